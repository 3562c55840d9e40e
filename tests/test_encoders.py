"""Encoders beside the paper's three: their names, and the features of transformers, of voices, of timm's ViTs."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from mlemiss.pipeline.clips.datasets import collect
from mlemiss.pipeline.encoders import Weights, names, parse_weights
from mlemiss.pipeline.encoders.load import load_encoder
from mlemiss.pipeline.encoders.names import Encoder, listed_encoders, stored_requests
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.media.decode import read_waveform, segment_starts
from mlemiss.pipeline.preprocess import ClipRequest, Where, preprocess
from mlemiss.pipeline.run.plan import FeatureRequest, make_plan
from mlemiss.pipeline.stores.store import FeatureStore

from .models import write_bert, write_hubert, write_whisper
from .preprocessing import SMALL


def needs(library: str) -> pytest.MarkDecorator:
    """Skip a test where an extra is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


transformers_there = needs("transformers")


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    return write_hubert(tmp_path_factory.mktemp("models") / "small-hubert")


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 52_000).astype(np.float32)


def encoder(features: str, folder=None, **more) -> Encoder:
    return load_encoder(features, Weights(f"hf:{features}", str(folder) if folder else None), **more)


def heard_alone(folder, waveform: np.ndarray, layers) -> np.ndarray:
    """Return what the library alone gives: the layers' sum, averaged over the steps of each segment."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = processor(waveform, sampling_rate=processor.sampling_rate, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    states = [*found.hidden_states[:-1], found.last_hidden_state]
    steps = sum(states[layer] for layer in layers)[0].double().numpy()
    duration = len(waveform) / processor.sampling_rate
    middle = (np.arange(len(steps)) + 0.5) * duration / len(steps)
    starts = segment_starts(duration)
    return np.stack([steps[(middle >= start) & (middle < start + 0.5)].mean(0) for start in starts])


# ---- waveforms ----


@transformers_there
@pytest.mark.parametrize(
    ("name", "layers"), [("", [-1]), ("@-4", [-4]), ("@0", [0]), ("@4+5", [4, 5]), ("@-4:", [2, 3, 4, 5])]
)
def test_sound_features_are_the_librarys_averaged(hubert, waveform, name, layers):
    network = encoder(f"hf:small-hubert{name}", hubert)
    (found,) = network.encode("waveform", [waveform])
    assert found.shape == (30, 24) == (network.segments, network.dimension)
    np.testing.assert_allclose(found, heard_alone(hubert, waveform, layers), atol=1e-3)


@transformers_there
@pytest.mark.parametrize(("norm", "mask"), [("layer", True), ("group", False), ("group", True)])
def test_pieces_of_similar_length_together_give_what_each_gives_alone(tmp_path, norm, mask):
    """As on a GPU: filled up and masked where the model takes a mask, else only what is equally long."""
    folder = write_hubert(tmp_path / "model", norm=norm)
    said = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(said | {"return_attention_mask": mask}))
    rng = np.random.default_rng(1)
    clips = [rng.normal(0, 0.1, size).astype(np.float32) for size in (8000, 52_000, 56_000, 52_001, 350_000)]
    alone = encoder("hf:model@-2", folder)
    expected = [alone.encode("waveform", [clip])[0] for clip in clips]
    together = type(alone)("hf:model@-2", Weights("hf:model", str(folder)))
    assert together.several == (norm == "layer")
    if together.several:
        together.batch = 3
    for found, one in zip(together.encode("waveform", clips), expected, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-4)
    for place in (1, 2):  # whatever it is computed with
        (again,) = together.encode("waveform", [clips[place]])
        assert (again == together.encode("waveform", clips)[place]).all()


@transformers_there
def test_a_long_clip_is_heard_in_pieces(hubert, monkeypatch):
    network = encoder("hf:small-hubert", hubert)
    sizes, states = [], network._states
    monkeypatch.setattr(network, "_states", lambda inputs: sizes.append(inputs["input_values"].shape) or states(inputs))
    clip = np.random.default_rng(0).normal(0, 0.1, 16_000 * 601).astype(np.float32)
    (found,) = network.encode("waveform", [clip])
    assert found.shape == (30, 24) and np.isfinite(found).all()
    assert max(sizes) <= (1, 160_000) and 30 <= len(sizes) <= 60  # those that no segment touches are left out
    start = segment_starts(601)[12]
    piece = int(start // (601 / 61))
    first, last = (round(k * 601 / 61 * 16_000) for k in (piece, piece + 1))
    normalised = (clip - clip.mean()) / clip.std()
    with torch.no_grad():
        steps = network.model(torch.from_numpy(normalised[first:last])[None]).last_hidden_state[0].numpy()
    middle = first / 16_000 + (np.arange(len(steps)) + 0.5) * (last - first) / len(steps) / 16_000
    np.testing.assert_allclose(found[12], steps[(middle >= start) & (middle < start + 0.5)].mean(0), atol=1e-3)


@transformers_there
def test_a_clip_shorter_than_a_segment(hubert):
    network = encoder("hf:small-hubert", hubert)
    for size in (1, 300, 7999):
        (found,) = network.encode("waveform", [np.full(size, 0.1, np.float32)])
        assert found.shape == (30, 24) and np.isfinite(found).all() and (found == found[0]).all()


@transformers_there
def test_another_sampling_rate_is_told_and_resampled(tmp_path, waveform):
    import librosa

    folder = write_hubert(tmp_path / "telephone", rate=8000)
    network = encoder("hf:telephone", folder)
    assert network.notes == ["hf:telephone hears 8000 Hz: the sound of 16000 Hz is resampled for it"]
    assert network.spec["sample_rate"] == 8000 and network.spec["resampler"] == "soxr_hq"
    low = librosa.resample(waveform, orig_sr=16000, target_sr=8000, res_type="soxr_hq")
    (found,) = network.encode("waveform", [waveform])
    np.testing.assert_allclose(found, heard_alone(folder, low, [-1]), atol=1e-3)


@transformers_there
def test_whisper_hears_with_its_encoder(tmp_path, waveform):
    import transformers

    network = encoder("hf:whisper@1", write_whisper(tmp_path / "whisper"))
    (found,) = network.encode("waveform", [waveform])
    inputs = transformers.WhisperFeatureExtractor()(waveform, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        steps = network.model(**inputs, output_hidden_states=True).hidden_states[1][0].numpy()  # 1500 of 20 ms
    starts = segment_starts(3.25)
    expected = [steps[int(np.ceil(50 * s - 0.5)) : int(np.ceil(50 * s + 24.5))].mean(0) for s in starts]
    np.testing.assert_allclose(found, expected, atol=1e-3)


@transformers_there
def test_bfloat16_is_close_and_told_apart(hubert, waveform):
    full, short = (encoder("hf:small-hubert", hubert, precision=precision) for precision in ("fp32", "bf16"))
    (expected,), (found,) = (network.encode("waveform", [waveform]) for network in (full, short))
    assert 0.9 < np.corrcoef(found.ravel(), expected.ravel())[0, 1] < 1 and full.spec != short.spec
    with pytest.raises(InputError, match="tf32 is of CUDA GPUs"):
        encoder("hf:small-hubert", hubert, precision="tf32")


# ---- text ----


@transformers_there
def test_text_features_are_the_mean_over_the_words(tmp_path):
    import transformers

    folder = write_bert(tmp_path / "bert")
    network = encoder("hf:bert@-2", folder)
    assert network.inputs == {"text": "text"} and network.segments == 1
    text = "Kids are talking by the door"
    found = network.encode("text", [text, "dogs are talking", f"{text} " * 3])
    assert np.abs(found[0] - found[1]).max() > 0.01
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(**tokens, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(found[0], states[-2][0, 1:-1].mean(0, keepdims=True), atol=1e-5)
    assert tokens["input_ids"].tolist() == [[2, 5, 7, 8, 10, 11, 12, 3]]  # it knows the words
    words, states = tokens["input_ids"][0, 1:-1].repeat(3), []  # 18: in pieces where the model ends, of all of them
    for piece in (words[:14], words[14:]):
        with torch.no_grad():
            every = model(torch.tensor([[2, *piece.tolist(), 3]]), output_hidden_states=True).hidden_states
        states.append(every[-2][0, 1:-1])
    np.testing.assert_allclose(found[2], torch.cat(states).mean(0, keepdims=True), atol=1e-5)


@transformers_there
def test_positions_that_no_token_has(tmp_path):
    import transformers

    write_bert(tmp_path / "roberta")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.RobertaConfig(vocab_size=13, max_position_embeddings=14, pad_token_id=1, **small)
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    network = encoder("hf:roberta", tmp_path / "roberta")
    assert network.most_tokens == 12
    (found,) = network.encode("text", ["kids are talking " * 9])
    assert found.shape == (1, 8) and np.isfinite(found).all()


# ---- what is no model ----


@transformers_there
def test_what_is_no_model_is_told(tmp_path, hubert):
    def told(folder, features="hf:x") -> str:
        with pytest.raises(InputError) as error:
            encoder(features, folder)
        return str(error.value)

    (tmp_path / "empty").mkdir()
    assert "is no model: it has no config.json (found nothing)" in told(tmp_path / "empty")
    assert "has no layer 6.\nExpected 0 (before the first) to 5, or -6 to -1" in told(hubert, "hf:x@6")
    assert "has no layer -7" in told(hubert, "hf:x@-7:")
    for name, write in (
        ("garbage", lambda folder: (folder / "config.json").write_text("{")),
        ("unknown", lambda folder: (folder / "config.json").write_text('{"model_type": "nothing-known"}')),
        ("weightless", lambda folder: (folder / "model.safetensors").unlink()),
        ("cut", lambda folder: (folder / "model.safetensors").write_bytes(b"1234567890")),
        ("mute", lambda folder: (folder / "preprocessor_config.json").unlink()),
    ):
        folder = tmp_path / name
        shutil.copytree(hubert, folder)
        write(folder)
        text = told(folder)
        assert str(folder) in text and text.count("\n") == 1 and ("save_pretrained" in text or name == "mute"), text
        assert ("Random weights: --weights hf:x=random" in text) == (name in ("weightless", "cut")), text
    assert "no processor of sound or text" in text


@transformers_there
def test_weights_that_lack_a_tensor_are_refused(tmp_path, hubert):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "part"
    shutil.copytree(hubert, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layers.2.attention.k_proj.weight"], tensors["masked_spec_embed"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack encoder\.layers\.2\.attention\.k_proj\.weight of HubertModel"):
        encoder("hf:part", folder)


@transformers_there
def test_a_folder_is_its_weights_wherever_it_lies(tmp_path, hubert):
    moved = tmp_path / "small-hubert"
    shutil.copytree(hubert, moved)
    here, there = (encoder("hf:small-hubert@2", folder) for folder in (hubert, moved))
    random = load_encoder("hf:small-hubert@2", Weights("random", str(moved)))
    assert here.spec == there.spec != random.spec
    requests = [f"audio=hf:{folder}@2" for folder in (hubert, moved)]
    with pytest.raises(InputError, match="another folder has this name too"):
        stored_requests(parse_weights([], requests))
    chosen = stored_requests(parse_weights([], requests[:1]))
    assert chosen == {"audio=hf:small-hubert@2": Weights("hf:small-hubert", str(hubert.resolve()))}


@transformers_there
def test_files_that_change_are_loaded_anew(tmp_path, hubert):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(hubert, folder)
    before = encoder("hf:model", folder)
    assert encoder("hf:model", folder) is before
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v * 1.5 for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    after = encoder("hf:model", folder)
    assert after.spec["weights_hash"] != before.spec["weights_hash"]
    assert encoder("hf:model", folder) is after


@transformers_there
@pytest.mark.parametrize(
    ("name", "change", "matters"),
    [
        ("tokenizer.json", ('"dogs":6', '"dogs":7'), True),
        ("config.json", ('"num_attention_heads": 2', '"num_attention_heads": 4'), True),
        ("config.json", ('"transformers_version": "', '"transformers_version": "0'), False),
        ("tokenizer_config.json", ('"do_lower_case": true', '"do_lower_case": false'), True),
    ],
)
def test_what_prepares_a_text_is_part_of_the_hash(tmp_path, name, change, matters):
    folders = [write_bert(tmp_path / which / "bert") for which in "ab"]
    file = folders[1] / name
    text = file.read_text()
    if name == "tokenizer.json":
        text = json.dumps(json.loads(text), separators=(",", ":"))
    assert change[0] in text
    file.write_text(text.replace(*change))
    one, other = (encoder("hf:bert", folder).spec for folder in folders)
    assert (one != other) == matters and (one["weights_hash"] != other["weights_hash"]) == matters


@transformers_there
def test_what_prepares_a_sound_is_part_of_the_hash(tmp_path, hubert):
    moved = tmp_path / "small-hubert"
    shutil.copytree(hubert, moved)
    said = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps(said | {"do_normalize": False}))
    assert encoder("hf:small-hubert", hubert).spec != encoder("hf:small-hubert", moved).spec


@transformers_there
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_states_that_are_no_steps_in_time_are_refused(tmp_path):
    """A transformer of spectrograms has patches; the layers of SEW differ in length; XLNet has no most tokens."""
    import transformers

    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ASTModel(transformers.ASTConfig(**small)).save_pretrained(tmp_path / "ast")
    transformers.ASTFeatureExtractor().save_pretrained(tmp_path / "ast")
    with pytest.raises(InputError, match="ASTModel has 1214 states for 1 s of sound and 1214 for 2 s"):
        encoder("hf:ast", tmp_path / "ast")
    convolutions = {"conv_dim": (16,) * 13, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    transformers.SEWModel(transformers.SEWConfig(**small, **convolutions)).save_pretrained(tmp_path / "sew")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "sew")
    with pytest.raises(InputError, match=r"layers 0, 1, 2 of SEWModel have [\d, ]+ steps of the same input"):
        encoder("hf:sew@0:", tmp_path / "sew")
    assert encoder("hf:sew@-1", tmp_path / "sew").dimension == 24
    config = transformers.XLNetConfig(vocab_size=13, d_model=20, n_layer=2, n_head=2, d_inner=32)
    write_bert(tmp_path / "xlnet")
    transformers.XLNetModel(config).save_pretrained(tmp_path / "xlnet")
    (found,) = encoder("hf:xlnet", tmp_path / "xlnet").encode("text", ["the dogs are talking"])
    assert found.shape == (1, 20) and np.isfinite(found).all()


@transformers_there
def test_a_model_that_is_not_in_the_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"no model for 'hf:some/model@3': not in the cache, and the hub is switched off"
    ):
        encoder("hf:some/model@3")


@transformers_there
@pytest.mark.parametrize("reachable", [True, False])
def test_a_cache_that_lacks_what_prepares_the_sound(monkeypatch, tmp_path, hubert, reachable):
    import huggingface_hub
    from mlemiss.pipeline.encoders import weights

    model, commit, called = tmp_path / "models--some--hubert", "0" * 40, []
    folder = model / "snapshots" / commit
    shutil.copytree(hubert, folder)
    (folder / "preprocessor_config.json").unlink()
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)

    def ask(url):
        if not reachable:
            raise OSError("unreachable")

    def download(name, revision, **_):
        called.append((name, revision))
        shutil.copy(hubert / "preprocessor_config.json", folder)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(weights, "_ask", ask)
    for _ in range(2):  # once it is whole, nothing is asked
        assert weights.hub_folder("some/hubert", "hf:some/hubert") == folder
    assert called == [("some/hubert", commit)] * reachable


@transformers_there
def test_why_a_tokenizer_cannot_be_made_is_told(monkeypatch, tmp_path):
    import transformers

    folder = write_bert(tmp_path / "bert")
    (folder / "tokenizer.json").rename(folder / "spm.model")

    def needs_library(*_, **__):
        raise ImportError("\nDebertaV2Tokenizer requires the SentencePiece library.\nCheck out its page")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", needs_library)
    why = r"no processor of sound or text: .* load it: DebertaV2Tokenizer requires the SentencePiece library\.\n"
    with pytest.raises(InputError, match=why + r".* pip install 'mlemiss\[encoders\]'\.$"):
        encoder("hf:bert", folder)


# ---- names ----


def test_names_that_are_none_are_told(tmp_path, monkeypatch):
    for request, why in (
        ("visual=", "expected NAME, or MODALITY=NAME"),
        ("2nd=resnet34", "a letter first"),
        ("resnet51", "unknown features 'resnet51'"),
        ("hf:", "no model is named"),
        ("hf:x@", "'' are no layers of a model"),
        ("hf:x@last", "'last' are no layers of a model"),
        (f"hf:{tmp_path}/nothing", "no folder .*nothing"),
    ):
        monkeypatch.setattr(names, "find_spec", lambda name: True)
        with pytest.raises(InputError, match=why):
            stored_requests(parse_weights([], [request]))
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    for features, extra in (("hf:x", "encoders"), ("egemaps", "egemaps"), ("voice", "voice")):
        with pytest.raises(
            InputError, match=rf"{features} needs .* not installed\.\n.*pip install 'mlemiss\[{extra}\]'"
        ):
            stored_requests({features: Weights(features)})


def test_weights_are_of_networks_of_pictures():
    own = parse_weights(["random"], ["visual=timm:a", "audio=timm:a", "voice", "hf:some/model"])
    assert own == {
        "visual=timm:a": Weights("random"),
        "audio=timm:a": Weights("random"),
        "voice": Weights("voice"),
        "hf:some/model": Weights("hf:some/model"),
    }
    assert parse_weights(["timm:a=random"], ["visual=timm:a", "timm:b"])["visual=timm:a"] == Weights("random")
    assert parse_weights(["hf:some/model=random"], ["hf:some/model"]) == {"hf:some/model": Weights("random")}
    for text in ("voice=random", "hf:some/model=imagenet"):
        with pytest.raises(InputError, match="has weights of its own"):
            parse_weights([text], ["voice", "hf:some/model"])
    for texts, mean in ((["random"], None), ([], "0.5,0.5,0.5")):
        with pytest.raises(
            InputError, match=r"of networks of pictures, and none is asked for \(voice, audio=hf:some/model"
        ):
            parse_weights(texts, ["voice", "audio=hf:some/model"], mean, mean)


def test_random_weights_of_a_folder_by_either_name(hubert):
    for name in (f"hf:{hubert}", f"audio=hf:{hubert}", "hf:small-hubert"):
        (chosen,) = parse_weights([f"{name}=random"], [f"audio=hf:{hubert}"]).values()
        assert chosen == Weights("random", str(hubert))


@pytest.mark.slow
def test_every_encoder_is_listed(mlemiss):
    rows = json.loads(mlemiss("list", "features", "--json").stdout)
    assert rows == listed_encoders()
    assert {row["extra"] for row in rows.values()} == {"", "encoders", "egemaps", "voice"}
    assert all(row["inputs"] and row["width"] and row["summary"] for row in rows.values())
    text = mlemiss("list", "features").stdout
    assert "hf:NAME_OR_FOLDER[@LAYERS]" in text and "inputs waveform; width 88; extra egemaps" in text


class Loudness(Encoder):
    """A plug-in: how loud a clip is."""

    inputs, dimension, segments = {"audio": "waveform"}, 2, 1

    def encode(self, kind, batch):
        return [[[clip.std(), np.abs(clip).max()]] for clip in batch]


@pytest.fixture
def plugins(monkeypatch):
    found = {"loud": Loudness, "tagged": "resnet18.tv_in1k", "broken": None}
    entries = [SimpleNamespace(name=name, value=f"m:{name}", load=lambda v=value: v) for name, value in found.items()]
    monkeypatch.setattr(names, "entry_points", lambda group: entries if group == "mlemiss.features" else [])


def test_plug_ins(plugins, waveform):
    rows = listed_encoders()
    assert (rows["loud"]["inputs"], rows["loud"]["width"]) == ("waveform", "2")
    assert rows["tagged"]["inputs"] == "frames, log-Mels" and "cannot be used" in rows["broken"]["inputs"]
    assert names.resolve_tag("tagged") == "resnet18.tv_in1k"
    chosen = stored_requests(parse_weights([], ["prosody=loud"]))
    network = load_encoder("loud", chosen["prosody=loud"])
    assert names.inputs_for(network, "prosody", "") == {"prosody": "waveform"}
    for modality in ("visual", "text"):
        with pytest.raises(InputError, match=rf"computed from waveform, which is no {modality}\.\nName it audio=…"):
            names.inputs_for(network, modality, f"{modality}=loud")
    both = SimpleNamespace(inputs={"visual": "frames", "text": "text"})
    with pytest.raises(InputError, match=r"(?s)from text and frames, .*Ask for each: visual=b, text=b\."):
        names.inputs_for(both, "", "b")
    assert names.inputs_for(both, "text", "text=b") == {"text": "text"}
    with pytest.raises(InputError, match="which is no face"):
        names.inputs_for(load_encoder(SMALL, Weights("random")), "face", f"face={SMALL}")


def test_a_store_that_is_asked_for_under_two_names_is_made_once(plugins, synthetic_ravdess, tmp_path):
    weights = stored_requests(parse_weights([], ["loud", "audio=loud"]))
    plan = make_plan(collect("ravdess", synthetic_ravdess), tmp_path, FeatureRequest(weights))
    assert len(weights) == 2 and [output.features for output in plan.outputs] == ["loud"]


# ---- stores ----


# ---- encoders of a whole clip's sound ----

SHARED = Path(os.environ.get("MLEMISS_SHARED_DATA", "nowhere"))
SPEAKER = sorted(SHARED.glob("ravdess_sample/Actor_05/0[13]-01-*"))
OTHERS = sorted(path for name in ("sample.mp4", "nasa_13013.mp4") for path in SHARED.rglob(name))


@needs("opensmile")
def test_egemaps_are_opensmiles():
    import opensmile

    waveform = np.random.default_rng(0).normal(size=32000).astype("float32") / 30
    (found,) = load_encoder("egemaps", Weights("egemaps")).encode("waveform", [waveform])
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    np.testing.assert_array_equal(found, smile.process_signal(waveform, 16000).to_numpy(np.float32))
    assert found.shape == (1, 88) and np.isfinite(found).all()


@needs("opensmile")
@pytest.mark.filterwarnings("error")
def test_a_sound_too_short_for_opensmile_is_a_missing_one(tmp_path):
    from scipy.io import wavfile

    sound = (3000 * np.random.default_rng(0).normal(size=32000)).astype(np.int16)
    for name, size in (("long", 32000), ("short", 800)):
        wavfile.write(tmp_path / f"{name}.wav", 16000, sound[:size])
    rows = "clip_id,path,label,subject\nlong,long.wav,a,s\nshort,short.wav,b,s\n"
    (tmp_path / "mine.csv").write_text(rows)
    request = FeatureRequest({"audio=egemaps": Weights("egemaps")})
    summary = preprocess(ClipRequest(str(tmp_path / "mine.csv")), request, tmp_path / "stores", where=Where(0))
    store = FeatureStore.open(summary.stores[0])
    assert summary.failed == [] and store.present[:, 0].tolist() == [True, False]
    assert store.error.tolist() == ["", "audio: too short for openSMILE (0.050 s)"]


@needs("resemblyzer")
def test_voices_are_resemblyzers(monkeypatch):
    monkeypatch.setitem(sys.modules, "webrtcvad", ModuleType("webrtcvad"))  # which cuts silences out, and is not called
    from resemblyzer import VoiceEncoder
    from resemblyzer.audio import normalize_volume

    random, voice = np.random.default_rng(0), load_encoder("voice", Weights("voice"))
    for seconds, loudness in ((0.5, 0.01), (1.7, 0.3), (4.0, 0.001)):
        waveform = (loudness * np.cumsum(random.normal(size=int(16000 * seconds))) / 50).astype("float32")
        louder = normalize_volume(waveform, -30, increase_only=True)
        expected = VoiceEncoder("cpu", verbose=False).embed_utterance(louder)
        (found,) = voice.encode("waveform", [waveform])
        np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.slow
@needs("resemblyzer")
@pytest.mark.skipif(not SPEAKER or not OTHERS, reason="no clips of a speaker and of others")
def test_a_speaker_is_closer_to_himself_than_to_others():
    encoder = load_encoder("voice", Weights("voice"))

    def heard(paths: list[Path]) -> np.ndarray:
        waveforms = [waveform for path in paths if (waveform := read_waveform(path)) is not None]
        return np.concatenate(encoder.encode("waveform", waveforms))

    same, others = heard(SPEAKER), heard(OTHERS)
    assert len(same) > 3 and (same @ same.T).min() > (same @ others.T).max()
