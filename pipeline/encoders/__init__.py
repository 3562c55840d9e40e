"""The registry of encoders: their names, the weights that are asked for, and what they are computed on.

`vgg16`, `resnet34` and `resnet50` are the paper's, with torchvision's ImageNet weights under their full timm tags;
`timm:NAME` is any other timm model. What they compute is in `images`.
"""

import ctypes
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from ..errors import InputError

# name -> (full timm tag, one line). The bare name `resnet50` hides some 18 sets of weights, so tags are pinned.
BACKBONES = {
    "vgg16": ("vgg16.tv_in1k", "VGG-16 without its classifier, 4096 features (Simonyan & Zisserman 2015)"),
    "resnet34": ("resnet34.tv_in1k", "ResNet-34, global average pool, 512 features (He et al. 2016)"),
    "resnet50": ("resnet50.tv_in1k", "ResNet-50, global average pool, 2048 features (He et al. 2016)"),
}
DEFAULT = ("vgg16", "resnet34", "resnet50")


Channels = tuple[float, float, float]  # of a picture in [0, 1]: red, green, blue; of a log-Mel image level and deltas


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from: `imagenet`, `random`, or a file; and what pictures they were trained on."""

    name: str  # imagenet, random, or the file's name
    file: str | None = None
    mean: Channels | None = None  # subtracted from pictures, which are divided by the deviation then;
    std: Channels | None = None  # None: what timm says of the tag


def backbone_names() -> dict[str, str]:
    """Return a line for each name: built-in ones, then installed plug-ins (entry-point group `mlemiss.features`)."""
    names = {name: summary for name, (_, summary) in BACKBONES.items()}
    names |= {plugin.name: f"plug-in {plugin.value}" for plugin in entry_points(group="mlemiss.features")}
    return names


def are_random(weights: str | None) -> bool:
    """Return whether weights, by name, are random: all of them, or a modality's (`visual imagenet, audio random`)."""
    return "random" in re.findall(r"\w+", weights or "")


def is_backbone(features: str) -> bool:
    """Return whether `preprocess` can make these features; others are imported."""
    return features in backbone_names() or features.startswith("timm:")


def resolve_tag(features: str) -> str:
    """Return the full timm tag of a feature name, for example `resnet50.tv_in1k`. InputError: an unknown name.

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


def parse_weights(
    texts: Sequence[str], features: Sequence[str], mean: str | None = None, std: str | None = None
) -> dict[str, Weights]:
    """Parse which weights each backbone is to have.

    Args:
        texts: such as `random`, `w.pth` or `resnet50=w.pth`.
        features: the requested backbones.
        mean: of the pictures that the weights were trained on, such as `0.5,0.5,0.5`; None: what timm says.
        std: their standard deviation; None with ``mean``.

    Raises:
        InputError: weights that are nowhere, or for no backbone, or for several; no three numbers from 0 to 1.
    """
    normalised = _normalisation(mean, std)
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
    return {name: replace(chosen.get(name, default or Weights("imagenet")), **normalised) for name in features}


def _normalisation(mean: str | None, std: str | None) -> dict[str, Channels]:
    if mean is None and std is None:
        return {}
    if mean is None or std is None:
        raise InputError("--mean and --std belong together: give both, or neither for those that timm has.")
    return {"mean": _channels("--mean", mean, least=0), "std": _channels("--std", std, least=sys.float_info.min)}


def _channels(option: str, text: str, least: float) -> Channels:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(least <= value <= 1 for value in values):
        raise InputError(
            f"{option} {text!r}: expected three numbers {'above' if least else 'from'} 0 to 1, such as 0.5,0.5,0.5.\n"
            "They are of pictures whose values go from 0 to 1: divide those of pictures from 0 to 255 by 255."
        )
    return values


# ---- What networks are computed on: the device, its threads and its memory ----


def resolve_device(name: str) -> str:
    """Return the device that a name stands for: `auto` is a CUDA GPU where there is one, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.

    Raises:
        InputError: an unknown name, or a device that this machine lacks.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise InputError(f"unknown device {name!r}: expected auto, cpu, cuda, cuda:N or mps.")
    if name == "cpu":
        return name
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps: torch finds no Apple GPU here.\nUse --device auto or cpu.")
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= gpus:
        found = f"only {gpus} CUDA devices" if gpus else "no CUDA device"
        raise InputError(f"device {name}: torch finds {found} here.\nUse --device auto or cpu.")
    return name


def use_one_thread() -> None:
    """Let this process compute with one thread, BLAS included.

    More would change the last bits of some features, and so a store's bytes.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def check_precision(precision: str, device: str) -> None:
    """Check that a device computes in a precision. InputError: TF32 where there is no CUDA GPU."""
    if precision == "tf32" and not device.startswith("cuda"):
        raise InputError(f"--precision tf32 is of CUDA GPUs, and the device is {device}.\nUse fp32 or bf16.")


def round_products(rounded: bool) -> None:
    """Choose whether CUDA GPUs round the factors of products to TF32. Else float32 is what is called fp32."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounded


# mallopt's parameters, from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks; do nothing on other systems.

    A CNN's activations are tens of megabytes each. If the system maps them again for every layer, page faults take a
    tenth to a third of the CNN's time (benchmarks/preprocess.py).
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26), (_ARENA_MAX, 1)):
        mallopt(parameter, value)
