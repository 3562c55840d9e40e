"""Backbones: the contract of the paper's three, weights from every source, and messages where they cannot be had."""

import http.server
import json
import threading

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from mlemiss.pipeline.encoders import Weights, parse_weights, resolve_device
from mlemiss.pipeline.encoders.images import Backbone, logmel_pictures
from mlemiss.pipeline.encoders.names import BACKBONES, resolve_tag
from mlemiss.pipeline.errors import InputError

SMALL = "timm:mobilenetv3_small_050"


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (4, 256, 256, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def logmel() -> np.ndarray:
    return np.random.default_rng(0).uniform(-90, 5, (4, 3, 64, 51)).astype(np.float16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "dimension"),
    [
        ("resnet34", 512),
        pytest.param("resnet50", 2048, marks=pytest.mark.slow),
        pytest.param("vgg16", 4096, marks=pytest.mark.slow),
        (SMALL, 1024),
    ],
)
def test_features_equal_the_plain_model(features, dimension, frames, logmel):
    """Folding, freezing and channels-last change nothing beyond rounding."""
    backbone = Backbone(features, Weights("random"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = timm.create_model(resolve_tag(features), pretrained=False, num_classes=0).eval()
    image = torch.from_numpy(frames[:2]).permute(0, 3, 1, 2) / 255
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = plain((image - mean[:, None, None]) / std[:, None, None]).numpy()
    (found,) = backbone.encode("frames", [frames[:2]])
    assert found.dtype == np.float16 and found.shape == (2, dimension) == (2, backbone.dimension)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())
    one, other = backbone.encode("logmel", [logmel[:1], logmel[:2]])
    assert one.shape == (1, dimension) and other.shape == (2, dimension)


def test_bfloat16_is_close_and_told_apart(frames):
    full, short = (Backbone(SMALL, Weights("random"), precision) for precision in ("fp32", "bf16"))
    expected, found = (backbone.encode("frames", [frames])[0].astype(float) for backbone in (full, short))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert full.spec != short.spec  # so that their stores have different fingerprints


def test_tags_are_pinned():
    assert {name: tag for name, (tag, _) in BACKBONES.items()} == {
        "vgg16": "vgg16.tv_in1k",
        "resnet34": "resnet34.tv_in1k",
        "resnet50": "resnet50.tv_in1k",
    }
    assert resolve_tag("timm:resnet18") == timm.models.get_pretrained_cfg("resnet18").architecture + ".a1_in1k"
    assert resolve_tag("timm:resnet18.tv_in1k") == "resnet18.tv_in1k"
    for unknown in ("resnet51", "timm:resnet51", "timm:resnet18.nope"):
        with pytest.raises(InputError, match="unknown"):
            resolve_tag(unknown)


def test_logmel_image_is_level_and_slopes():
    """Silence is black and 0 dB white; flat slopes are mid-grey; beyond the range is clipped."""
    image = np.zeros((1, 3, 64, 51), np.float16)
    image[0, 0, 0], image[0, 0, 1], image[0, 0, 2], image[0, 1, 0] = -100, -40, 10, 10
    picture = logmel_pictures(torch.from_numpy(image))[0]
    assert picture[0, :4, 0].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert picture[1, :2, 0].tolist() == [1.0, 0.5] and (picture[2] == 0.5).all()


def test_the_spec_of_a_store_that_was_made_before_is_the_same():
    """Every entry goes into the fingerprint: another one and a team's stores would all be made again."""
    spec = Backbone(SMALL, Weights("random"), "bf16").spec
    weights_hash = spec.pop("weights_hash")
    assert len(weights_hash) == 16 and json.dumps(spec) == json.dumps(
        {
            "features": SMALL,
            "tag": "mobilenetv3_small_050.lamb_in1k",
            "input_size": [224, 224],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "precision": "bf16",
            "device": "cpu",
            "logmel_floor": -80.0,
            "delta_ranges": [10.0, 5.0],
            "execution": "trace-freeze-channels-last",
        }
    )
    executions = {kind: Backbone(SMALL, Weights("random"), device=kind).spec for kind in ("cuda", "cuda:1", "mps")}
    assert executions["cuda"] == executions["cuda:1"]  # which of several GPUs makes no difference
    assert executions["cuda"]["execution"].endswith("batch-240")
    rounded = Backbone(SMALL, Weights("random"), "tf32", "cuda").spec
    assert rounded == executions["cuda"] | {"precision": "tf32"}
    with pytest.raises(
        InputError, match=r"--precision tf32 is of CUDA GPUs, and the device is cpu\.\nUse fp32 or bf16"
    ):
        Backbone(SMALL, Weights("random"), "tf32", "cpu")
    assert executions["mps"]["device"] == "mps" and executions["mps"]["execution"] == spec["execution"]


def test_devices_by_name(monkeypatch):
    def gpus(cuda: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    gpus(0, False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    for name in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match=rf"device {name}: torch finds no CUDA device here\.\nUse --device"):
            resolve_device(name)
    with pytest.raises(InputError, match=r"device mps: torch finds no Apple GPU here\.\nUse --device auto or cpu"):
        resolve_device("mps")
    gpus(2, False)
    assert [resolve_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    with pytest.raises(InputError, match="device cuda:2: torch finds only 2 CUDA devices here"):
        resolve_device("cuda:2")
    gpus(0, True)
    assert resolve_device("mps") == "mps" and resolve_device("auto") == "cpu"
    for name in ("tpu", "cuda1", "cuda:", "mps:0", ""):
        with pytest.raises(InputError, match=r"unknown device .*: expected auto, cpu, cuda, cuda:N or mps"):
            resolve_device(name)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights with a classifier, as a torch file and as safetensors, and files that are neither."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    torch.save(state, folder / "w.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, folder / "wrapped.pth")
    safetensors.torch.save_file(state, folder / "w.safetensors")
    torch.save({k: v for k, v in state.items() if "layer4" not in k}, folder / "part.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save(threading.Event, folder / "code.pth")
    for name in ("text.pth", "text.safetensors"):
        (folder / name).write_text("no weights at all")
    (folder / "hello.pth").write_text("hello")  # its first letter is an instruction of a pickle
    (folder / "empty.pth").touch()
    return folder


@pytest.mark.slow
def test_hash_is_of_the_tensors_not_of_the_file(files):
    loaded = [
        Backbone("timm:resnet18.tv_in1k", Weights(name, str(files / name)))
        for name in ("w.pth", "wrapped.pth", "w.safetensors")
    ]
    assert len({backbone.spec["weights_hash"] for backbone in loaded}) == 1
    assert Backbone("timm:resnet18.tv_in1k", Weights("random")).spec["weights_hash"] != loaded[0].spec["weights_hash"]


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    hashes = {Backbone(SMALL, Weights("random")).spec["weights_hash"] for _ in range(2)}
    assert len(hashes) == 1 and torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("name", "features", "why"),
    [
        ("w.pth", "resnet50", "does not fit resnet50.tv_in1k"),
        ("w.pth", "resnet34", "does not fit resnet34.tv_in1k"),
        pytest.param("w.pth", "vgg16", "does not fit vgg16.tv_in1k", marks=pytest.mark.slow),
        ("part.pth", "timm:resnet18", "does not fit"),
        ("list.pth", "timm:resnet18", "expected a state dict of tensors, found list"),
        ("code.pth", "timm:resnet18", "not readable"),
        ("text.pth", "timm:resnet18", "not readable"),
        ("hello.pth", "timm:resnet18", "not readable"),
        ("text.safetensors", "timm:resnet18", "not readable"),
        ("empty.pth", "timm:resnet18", "an empty file"),
    ],
)
def test_wrong_weights_are_told(files, name, features, why, caplog):
    with pytest.raises(InputError, match=why):
        Backbone(features, Weights(name, str(files / name)))
    assert not caplog.records  # nothing of timm's beside it


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(6)
    return timm.create_model("resnet18", pretrained=False).state_dict()


def loaded(path, content, features="timm:resnet18.tv_in1k"):
    torch.save(content, path)
    return Backbone(features, Weights(path.name, str(path)))


@pytest.mark.slow
def test_tensors_that_are_left_over_are_told(tmp_path, state):
    """A head of another training is told; more of the network's own layers are another network's."""
    alone = loaded(tmp_path / "w.pth", state)
    assert alone.notes == []  # its classifier is what is left out
    head = {f"projector.{name}": torch.ones(3) for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    more = loaded(tmp_path / "w.pth", state | head)
    assert more.spec == alone.spec
    told = (
        "fits resnet18.tv_in1k, with 4 tensors of it left over: projector.0.weight, projector.0.bias, projector.1.weig"
    )
    assert told in more.notes[0]
    larger = timm.create_model("resnet34", pretrained=False).state_dict()
    larger |= {name: tensor for name, tensor in state.items() if tensor.shape == larger[name].shape}
    with pytest.raises(InputError, match=r"more than resnet18\.tv_in1k: .* left over: layer1\.2\.[\s\S]*--features"):
        loaded(tmp_path / "w.pth", larger)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "module.backbone.", "model_ema.module.", "encoder_q."])
def test_the_prefix_without_which_a_file_would_fit_is_told(tmp_path, state, prefix):
    with pytest.raises(InputError) as error:
        loaded(tmp_path / "w.pth", {"loss.weight": torch.ones(1)} | {prefix + n: t for n, t in state.items()})
    text, shown = str(error.value), prefix.removeprefix("module.")
    assert "found no conv1.weight, bn1.weight, bn1.bias and" in text and text.count("\n") == 1
    assert f"first tensors are loss.weight, {shown}conv1.weight" in text and f"without the prefix {shown!r}" in text


@pytest.mark.slow
def test_a_misfit_names_the_first_tensors_of_both_sides(tmp_path, state):
    wide = state | {"layer1.0.conv1.weight": torch.ones(2, 64, 3, 3)}
    twice = {f"{side}.{name}": tensor for name, tensor in state.items() for side in ("student", "teacher")}
    for content, why in (
        (twice, r"without the prefix 'student\.' or 'teacher\.' \(choose one\)"),
        (wide, r"layer1\.0\.conv1\.weight is \[64, 64, 3, 3\] in the network and \[2, 64, 3, 3\] in the file"),
        ({"a": torch.ones(1)}, r"found no conv1\.weight, .*\nThe file's first tensors are a\.\nGive the weights"),
    ):
        with pytest.raises(InputError, match=why):
            loaded(tmp_path / "w.pth", content)


@pytest.mark.slow
def test_which_state_dict_of_a_checkpoint_is_taken_is_told(tmp_path, state):
    chosen = loaded(tmp_path / "w.pth", {"model": state, "model_ema": state, "epoch": 3})
    assert chosen.notes == [f"weights file {tmp_path / 'w.pth'}: took 'model'; it holds model_ema too"]
    assert chosen.spec == loaded(tmp_path / "w.pth", state).spec
    with pytest.raises(InputError, match=r"found dict with tensors under 'model_ema'\.\nExpected names and tensors"):
        loaded(tmp_path / "w.pth", {"model_ema": state, "epoch": 3})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, state, value):
    broken = state | {"bn1.bias": state["bn1.bias"].clone().index_fill_(0, torch.tensor([3]), value)}
    with pytest.raises(InputError, match=r"1 tensor with NaN or infinite values: bn1\.bias"):
        loaded(tmp_path / "w.pth", broken)


def test_mean_and_deviation_belong_to_the_weights():
    """Given as timm has them they change nothing; others are another fingerprint and other features."""
    plain = Backbone(SMALL, Weights("random"))
    same, other = (
        Backbone(SMALL, parse_weights(["random"], [SMALL], *texts)[SMALL])
        for texts in (("0.485,0.456,0.406", "0.229, 0.224, 0.225"), ("0.5,0.5,0.5", "0.5,0.5,1"))
    )
    assert json.dumps(plain.spec) == json.dumps(same.spec) != json.dumps(other.spec)
    assert other.images(torch.full((1, 3, 2, 2), 0.75))[0, :, 0, 0].tolist() == [0.5, 0.5, 0.25]
    for mean, std, why in (
        ("0.5,0.5,0.5", None, "belong together"),
        (None, "1,1,1", "belong together"),
        ("123.7,116.3,103.5", "1,1,1", r"--mean '123.*from 0 to 1[\s\S]*by 255"),
        ("0,0,0", "1,0,1", "--std '1,0,1': expected three numbers above 0"),
        ("0,0", "1,1,1", "--mean '0,0'"),
        ("0,0,nan", "1,1,1", "--mean '0,0,nan'"),
        ("a,b,c", "1,1,1", "--mean 'a,b,c'"),
    ):
        with pytest.raises(InputError, match=why):
            parse_weights(["random"], ["a"], mean, std)


def test_weights_options(files):
    path = str(files / "w.pth")
    assert parse_weights(["random"], ["a", "b"]) == {"a": Weights("random"), "b": Weights("random")}
    assert parse_weights([], ["a"]) == {"a": Weights("imagenet")}
    chosen = parse_weights([f"a={path}", "random"], ["a", "b"])
    assert chosen["a"] == Weights("w.pth", path) and chosen["b"] == Weights("random")
    for texts, why in (
        (["nothing.pth"], "neither imagenet nor random nor a file"),
        ([f"c={path}"], "not among the requested features"),
        ([path], "one weights file .* for 2 backbones"),
        (["random", "imagenet"], "given twice"),
    ):
        with pytest.raises(InputError, match=why):
            parse_weights(texts, ["a", "b"])


@pytest.fixture
def hub(tmp_path, files, monkeypatch):
    """A model hub on loopback that knows one repository; answers as the real one does for a plain file."""
    content = (files / "w.safetensors").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            found = self.path == "/timm/resnet18.tv_in1k/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", '"0123456789abcdef"')
                self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            if found and body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_imagenet_weights_come_from_the_hub_then_from_the_cache(hub, files):
    expected = Backbone("timm:resnet18.tv_in1k", Weights("w.pth", str(files / "w.pth"))).spec
    assert Backbone("timm:resnet18.tv_in1k", Weights("imagenet")).spec == expected
    hub.shutdown()
    hub.server_close()
    assert Backbone("timm:resnet18.tv_in1k", Weights("imagenet")).spec == expected


def test_weights_the_hub_lacks(hub):
    with pytest.raises(InputError, match=r"resnet50\.tv_in1k.*answered 404.*cache folder.*\n.*--weights FILE.*random"):
        Backbone("resnet50", Weights("imagenet"))


def test_hub_that_cannot_be_reached(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(InputError, match=r"resnet50\.tv_in1k.*cannot be reached.*cache folder.*\n.*--weights FILE"):
        Backbone("resnet50", Weights("imagenet"))


def test_a_cache_that_cannot_be_used_is_told(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(InputError, match=r"the cache cannot be used \(Not a directory: .*HF_HOME names another\)"):
        Backbone("timm:resnet18.tv_in1k", Weights("imagenet"))
