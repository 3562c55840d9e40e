"""The encoders that clips' features are made with: the weights that are asked for, and what they are computed on.

Their names are in `names`; `load` makes any of them, and only there are their libraries imported.
"""

import ctypes
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from .names import Channels, Weights, brings_weights, list_requests, split_layers, split_request, stored_name


def are_random(weights: str | None) -> bool:
    """Return whether weights, by name, are random: all of them, or a modality's (`visual imagenet, audio random`)."""
    return "random" in re.findall(r"\w+", weights or "")


def parse_weights(
    texts: Sequence[str], features: Sequence[str], mean: str | None = None, std: str | None = None
) -> dict[str, Weights]:
    """Parse which weights each encoder is to have.

    Encoders that are no networks of pictures bring their own; `NAME=random` gives those of `hf:` random ones.

    Args:
        texts: such as `random`, `w.pth` or `resnet50=w.pth`.
        features: the requested encoders, with the modality they are to make or without (`visual=resnet50`).
        mean: of the pictures that the weights were trained on, such as `0.5,0.5,0.5`; None: what timm says.
        std: their standard deviation; None with ``mean``.

    Raises:
        InputError: weights that are nowhere, or for no encoder, or for several; no three numbers from 0 to 1.
    """
    normalised = _normalisation(mean, std)
    chosen: dict[str, Weights] = {}
    default: Weights | None = None
    names = {request: split_request(request)[1] for request in list_requests(features)}
    pictures = [request for request, name in names.items() if not brings_weights(name)]
    called = {request: {request, name, stored_name(name)} for request, name in names.items()}
    for text in texts:
        name, weights = _named_weights(text, [one for several in called.values() for one in sorted(several)])
        several = [request for request in names if name in called[request]]
        if name and not several:
            raise InputError(f"weights {text!r}: {name!r} is not among the requested features {', '.join(features)}.")
        if any(
            brings_weights(names[r]) and not (names[r].startswith("hf:") and weights == Weights("random"))
            for r in several
        ):
            raise InputError(
                f"weights {text!r}: {name} has weights of its own.\n"
                "Leave it out; those of hf: may be random instead (NAME=random)."
            )
        if not name and default is not None:
            raise InputError(f"weights given twice, as {default.name!r} and {text!r}.\nFor several use NAME=FILE.")
        chosen |= dict.fromkeys(several, weights)
        if not name:
            default = weights
    if (default is not None or normalised) and not pictures:
        said = f"weights {default.name!r}: they are" if default else "--mean and --std are"
        raise InputError(
            f"{said} of networks of pictures, and none is asked for ({', '.join(features)}).\n"
            "Leave them out; weights of hf: may be random by name: --weights hf:NAME=random."
        )
    if default is not None and default.file and len({names[r] for r in set(pictures) - set(chosen)}) > 1:
        raise InputError(
            f"one weights file {default.name!r} for {len(features)} backbones ({', '.join(features)}).\n"
            "Say which one it is for: --weights NAME=FILE."
        )
    usual = default or Weights("imagenet")
    of_pictures = {request: replace(chosen.get(request, usual), **normalised) for request in pictures}
    return {r: of_pictures[r] if r in of_pictures else _own_weights(name, chosen.get(r)) for r, name in names.items()}


def _named_weights(text: str, names: Sequence[str]) -> tuple[str, Weights]:
    """Split NAME=WEIGHTS, NAME empty where there is none. InputError: weights that are nowhere."""
    name = next((one for one in names if text.startswith(f"{one}=")), "")
    value = text.removeprefix(f"{name}=") if name else text
    if not name and "=" in text and not Path(text).is_file():
        name, _, value = text.rpartition("=")
    if value in ("imagenet", "random"):
        return name, Weights(value)
    if Path(value).is_file() and Path(value).name not in ("imagenet", "random"):
        return name, Weights(Path(value).name, str(Path(value).resolve()))
    raise InputError(
        f"weights {text!r}: {value!r} is neither imagenet nor random nor a file that is there.\n"
        "Name a safetensors or torch file, or NAME=FILE for one of several backbones."
    )


def _own_weights(features: str, chosen: Weights | None) -> Weights:
    """Return the weights of an encoder that brings them; of `hf:` with the folder that they lie in."""
    if not features.startswith("hf:"):
        return Weights(features)
    source, _ = split_layers(features)
    folder = Path(source).expanduser().resolve()
    name = f"hf:{folder.name}" if folder.is_dir() else f"hf:{source}"
    return Weights(chosen.name if chosen else name, str(folder) if folder.is_dir() else None)


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
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", str(name)):
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
