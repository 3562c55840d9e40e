"""Named CNNs, their weights and their input transform.

A backbone turns the cached media of one clip into features: both the 256x256 frames and the log-Mel images are
resized bilinearly to the network's own input. `vgg16`, `resnet34` and `resnet50` are the paper's, with torchvision's
ImageNet weights under their full timm tags; `timm:NAME` is any other timm model.
"""

import ctypes
import hashlib
import logging
import os
import pickle
import struct
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np

from ..errors import InputError

# name -> (full timm tag, one line). The bare name `resnet50` hides some 18 sets of weights, so tags are pinned.
BACKBONES = {
    "vgg16": ("vgg16.tv_in1k", "VGG-16 without its classifier, 4096 features (Simonyan & Zisserman 2015)"),
    "resnet34": ("resnet34.tv_in1k", "ResNet-34, global average pool, 512 features (He et al. 2016)"),
    "resnet50": ("resnet50.tv_in1k", "ResNet-50, global average pool, 2048 features (He et al. 2016)"),
}
DEFAULT = ("vgg16", "resnet34", "resnet50")
RANDOM_SEED = 0
UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError)
UNREADABLE += (pickle.UnpicklingError, struct.error)  # what torch's unpickler raises where a file is something else
HUB_TIMEOUT = 5.0  # seconds for the hub's first answer; the hub client alone would retry for most of a minute

# The log-Mel image: dB in [-80, 0] -> [0, 1]; deltas in dB a frame, in [-range, range] -> [0, 1].
LOGMEL_FLOOR = -80.0
DELTA_RANGES = (10.0, 5.0)

# Images a pass: a clip's segments on a CPU; on a GPU always as many as this, the last pass filled up, so that a clip's
# bytes do not depend on what it is computed with.
CPU_IMAGES = 30
BATCH_CLIPS = 8
GPU_IMAGES = BATCH_CLIPS * CPU_IMAGES
EXECUTION = {
    "cpu": "trace-freeze-channels-last",  # batch norm folded, one modality of one clip at a time
    "cuda": f"trace-freeze-channels-last-batch-{GPU_IMAGES}",
}


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from: `imagenet`, `random`, or a file."""

    name: str  # imagenet, random, or the file's name
    file: str | None = None


@dataclass(frozen=True)
class BackboneSpec:
    """What determines a backbone's output; every field goes into the store's fingerprint."""

    features: str
    tag: str
    input_size: tuple[int, int]  # height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_hash: str
    precision: str  # fp32 or bf16
    device: str  # cpu or cuda: the last bits differ
    logmel_floor: float = LOGMEL_FLOOR
    delta_ranges: tuple[float, ...] = DELTA_RANGES
    execution: str = EXECUTION["cpu"]


def backbone_names() -> dict[str, str]:
    """name -> one line, built-in ones first, then installed plug-ins (entry-point group `mlemiss.features`)."""
    names = {name: summary for name, (_, summary) in BACKBONES.items()}
    names |= {plugin.name: f"plug-in {plugin.value}" for plugin in entry_points(group="mlemiss.features")}
    return names


def is_backbone(features: str) -> bool:
    """Whether `preprocess` can make these features; others are imported."""
    return features in backbone_names() or features.startswith("timm:")


def resolve_tag(features: str) -> str:
    """The full timm tag of a feature name, for example `resnet50.tv_in1k`. InputError: an unknown name.

    A plug-in is an entry point `NAME = "package.module:TAG"` naming a str: the tag of a model it registered with timm.
    """
    if features in BACKBONES:
        return BACKBONES[features][0]
    for plugin in entry_points(group="mlemiss.features"):
        if plugin.name == features:
            return plugin.load()
    if features.startswith("timm:"):
        import timm

        name = features.removeprefix("timm:")
        architecture, _, tag = name.partition(".")
        if timm.is_model(architecture) and (not tag or name in timm.list_models(architecture, pretrained=True)):
            config = timm.models.get_pretrained_cfg(name)
            return f"{architecture}.{config.tag}" if config and config.tag else architecture
        known = timm.list_models(architecture, pretrained=True) or timm.list_models(f"*{architecture}*")
        raise InputError(
            f"unknown timm model {name!r}" + (f"; did you mean {', '.join(known[:6])}?" if known else ".") + "\n"
            "`python -c 'import timm; print(timm.list_models())'` lists all of them."
        )
    raise InputError(
        f"unknown features {features!r}: expected {', '.join(backbone_names())} or timm:NAME.\n"
        "`mlemiss list features` describes them."
    )


def parse_weights(texts: Sequence[str], features: Sequence[str]) -> dict[str, Weights]:
    """Options such as `random`, `weights.pth` or `resnet50=weights.pth` -> the weights of each requested backbone."""
    chosen: dict[str, Weights] = {}
    default: Weights | None = None
    for text in texts:
        name, separator, value = text.partition("=")
        if not (separator and (name in features or not Path(text).is_file())):
            name, value = "", text
        if value in ("imagenet", "random"):
            weights = Weights(value)
        elif Path(value).is_file() and Path(value).name not in ("imagenet", "random"):
            weights = Weights(Path(value).name, str(Path(value).resolve()))
        else:
            raise InputError(
                f"weights {text!r}: {value!r} is neither imagenet nor random nor a file that is there.\n"
                "Name a safetensors or torch file, or NAME=FILE for one of several backbones."
            )
        if name and name not in features:
            raise InputError(f"weights {text!r}: {name!r} is not among the requested features {', '.join(features)}.")
        if not name and default is not None:
            raise InputError(f"weights given twice, as {default.name!r} and {text!r}.\nFor several use NAME=FILE.")
        if name:
            chosen[name] = weights
        else:
            default = weights
    if default is not None and default.file and len(set(features) - set(chosen)) > 1:
        raise InputError(
            f"one weights file {default.name!r} for {len(features)} backbones ({', '.join(features)}).\n"
            "Say which one it is for: --weights NAME=FILE."
        )
    return {name: chosen.get(name, default or Weights("imagenet")) for name in features}


def _imagenet_file(tag: str) -> Path:
    """The pinned weights from the hub's cache, else downloaded. InputError within seconds where neither can be."""
    import timm
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config = timm.models.get_pretrained_cfg(tag)
    repository = config.hf_hub_id if config else None
    why = "timm has no pretrained weights under this tag"
    for filename in ("model.safetensors", "pytorch_model.bin") if repository else ():
        try:
            return Path(hf_hub_download(repository, filename, local_files_only=True))
        except LocalEntryNotFoundError:
            why = "not in the cache, and the hub is switched off (HF_HUB_OFFLINE)"
        if constants.HF_HUB_OFFLINE:
            continue
        try:  # one quick question first: the hub client retries an unreachable hub many times
            request = urllib.request.Request(hf_hub_url(repository, filename), method="HEAD")
            urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
            return Path(hf_hub_download(repository, filename, etag_timeout=HUB_TIMEOUT))
        except urllib.error.HTTPError as error:
            why = f"not in the cache, and the hub answered {error.code} for {repository}/{filename}"
        except (OSError, HfHubHTTPError) as error:
            why = f"not in the cache, and the hub cannot be reached ({getattr(error, 'reason', error)})"
            break
    raise InputError(
        f"no ImageNet weights for {tag}: {why}; cache folder: {constants.HF_HUB_CACHE}.\n"
        f"Name a weights file instead (--weights FILE, end to end --init FILE; safetensors or torch), or random for an "
        "untrained network."
    )


def _read_weights(path: Path) -> dict:
    """Tensors of a safetensors file or of a torch file read weights-only (no code of it is run)."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (*UNREADABLE, SafetensorError) as error:
        raise InputError(
            f"weights file {path}: not readable as safetensors or a torch file of tensors ({type(error).__name__}).\n"
            "Expected a state dict, tensor names and tensors alone: a pickled model is not loaded, it could run code."
        ) from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise InputError(f"weights file {path}: expected a state dict of tensors, found {type(loaded).__name__}.")
    tensors = {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}


def _digest(tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _create_model(tag: str, weights: Weights):
    """The network without its classifier. InputError: weights that cannot be had or are not this network's."""
    import timm
    import torch

    if weights.name == "random" and weights.file is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return timm.create_model(tag, pretrained=False, num_classes=0).eval()
    path = Path(weights.file) if weights.file else _imagenet_file(tag)
    tensors = _read_weights(path)
    in_file = {_digest(tensor) for tensor in tensors.values()}
    misfit = InputError(
        f"weights file {path} does not fit {tag}: expected every tensor of the network in it, classifier apart.\n"
        "Give the weights of this very architecture."
    )
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # keys that are left over are told below
    try:
        # timm converts other libraries' key names and leaves out the classifier
        model = timm.create_model(tag, pretrained=True, num_classes=0, pretrained_cfg_overlay={"state_dict": tensors})
    except (RuntimeError, KeyError, AttributeError, ValueError):
        raise misfit from None
    state = model.state_dict()
    # Loading without the classifier is lenient, so check that nothing kept its random initial value.
    if any(_digest(tensor) not in in_file for name, tensor in state.items() if "num_batches_tracked" not in name):
        raise misfit
    return model.eval()


def _weights_hash(model) -> str:
    """sha256 over the sorted tensors, so that a .pth and a .safetensors of the same weights agree; 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0{_digest(tensor)}\n".encode())
    return digest.hexdigest()[:16]


def frame_pictures(frames):
    """Frames as a tensor, uint8 [n, row, column, 3] -> float [n, 3, row, column] in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 255


def logmel_pictures(logmel):
    """Log-Mel images as a tensor, float16 [n, 3, mel, time] in dB -> float [n, 3, mel, time] in [0, 1]."""
    import torch

    image = logmel.float()
    level = (image[:, :1] - LOGMEL_FLOOR) / -LOGMEL_FLOOR
    deltas = [0.5 + image[:, i : i + 1] / (2 * full) for i, full in enumerate(DELTA_RANGES, start=1)]
    return torch.cat([level, *deltas], 1).clamp(0, 1)


@dataclass(frozen=True)
class Network:
    """A backbone's torch module, without its classifier, in evaluation mode, and what it takes and gives."""

    model: "torch.nn.Module"  # noqa: F821 (torch is imported where it is needed)
    tag: str
    input_size: tuple[int, int]  # height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dimension: int  # features
    weights_hash: str

    def images(self, pictures):
        """Float pictures in [0, 1] [n, 3, row, column] -> the network's own size, normalised, in the same precision."""
        import torch
        from torch.nn.functional import interpolate

        resized = interpolate(pictures, self.input_size, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (self.mean, self.std))
        return (resized - mean) / std


def load_network(features: str, weights: Weights) -> Network:
    """A named backbone with its weights. InputError: an unknown name, weights that cannot be had or do not fit."""
    import timm

    tag = resolve_tag(features)
    model = _create_model(tag, weights)
    config = timm.data.resolve_model_data_config(model)
    return Network(
        model,
        tag,
        input_size=tuple(config["input_size"][1:]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        dimension=getattr(model, "head_hidden_size", model.num_features),
        weights_hash=_weights_hash(model),
    )


class Backbone:
    """A loaded network: media of one clip in, features out."""

    def __init__(self, features: str, weights: Weights, precision: str = "fp32", device: str = "cpu"):
        self._network = network = load_network(features, weights)
        self.device = device
        self.features = features
        self.weights_name = weights.name
        self.dimension: int = network.dimension
        self.spec = BackboneSpec(
            features=features,
            tag=network.tag,
            input_size=network.input_size,
            mean=network.mean,
            std=network.std,
            weights_hash=network.weights_hash,
            precision=precision,
            device=device,
            execution=EXECUTION[device],
        )
        self._compiled = None

    def describe(self) -> dict:
        """The spec as plain values, for fingerprints and attributes."""
        return asdict(self.spec)

    def visual(self, clips: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        """Features of each clip's frames: uint8 [segment, row, column, 3] -> float16 [segment, feature].

        None where there are none; what float16 cannot hold is infinite.
        """
        return self._features(clips, frame_pictures)

    def audio(self, clips: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        """Features of each clip's log-Mel images, float16 [segment, 3, mel, time] in dB or None, as for `visual`."""
        return self._features(clips, logmel_pictures)

    def images(self, values):
        """Float images in [0, 1] [segment, 3, row, column] -> the network's normalised, resized input."""
        import torch

        dtype = torch.bfloat16 if self.spec.precision == "bf16" else torch.float32
        images = self._network.images(values.to(self.device))
        return images.to(dtype).contiguous(memory_format=torch.channels_last)

    def _features(self, clips: Sequence[np.ndarray | None], pictures) -> list[np.ndarray | None]:
        import torch

        there = [clip for clip in clips if clip is not None]
        images = [image for clip in there for image in clip]
        size = GPU_IMAGES if self.device == "cuda" else CPU_IMAGES
        found = []
        with torch.inference_mode():
            for first in range(0, len(images), size):
                part = images[first : first + size]
                fill = size - len(part) if self.device == "cuda" else 0
                inputs = self.images(pictures(torch.from_numpy(np.stack(part + part[-1:] * fill))))
                found.append(self._compiled_for(inputs)(inputs)[: len(part)].float().cpu().numpy())
        with np.errstate(over="ignore"):
            rows = iter(np.concatenate(found).astype(np.float16) if found else ())
        return [None if clip is None else np.stack([next(rows) for _ in clip]) for clip in clips]

    def _compiled_for(self, example):
        """The network compiled at first use: traced and frozen, which folds the batch norms (about 1.8x)."""
        import torch

        if self._compiled is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls tracing deprecated; its successors need a C++ compiler
                model = self._network.model.to(self.device, example.dtype, memory_format=torch.channels_last)
                self._compiled = torch.jit.freeze(torch.jit.trace(model, example[:2], check_trace=False))
            self._network = replace(self._network, model=None)  # the frozen copy holds the weights
        return self._compiled


@lru_cache(maxsize=8)
def load_backbone(features: str, weights: Weights, precision: str = "fp32", device: str = "cpu") -> Backbone:
    """A backbone, loaded once a process."""
    return Backbone(features, weights, precision, device)


def use_one_thread() -> None:
    """One thread a process, BLAS included: more would change the last bits of some features, and a store's bytes."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # what is called fp32 is float32 on a GPU too
    threadpool_limits(1)


def device_of(name: str) -> str:
    """`auto` -> cuda where there is one, else cpu. InputError: cuda asked for and absent."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: expected auto, cpu or cuda.")
    if name == "cpu":
        return name
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no CUDA device here.\nUse --device cpu or auto.")
    return "cuda" if torch.cuda.is_available() else "cpu"


os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


# ---- Keep freed memory for the next layer instead of handing it back to the system each time ----

# mallopt's parameters, from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks. A CNN's activations are tens of megabytes each: mapped anew for every layer,
    their page faults cost a tenth to a third of its time (benchmarks/preprocess.py). Elsewhere than on glibc: nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26), (_ARENA_MAX, 1)):
        mallopt(parameter, value)
