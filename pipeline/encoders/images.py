"""Networks of images, their weights and their input transform.

A backbone turns the cached media of a clip into features: both the 256x256 frames and the log-Mel images are resized
bilinearly to the network's own input.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import struct
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..files import foreign_content
from . import Weights, resolve_tag

if TYPE_CHECKING:
    import torch

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

RANDOM_SEED = 0
# What torch's unpickler raises where a file is something else.
UNPICKLING_ERRORS = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
UNPICKLING_ERRORS += (AssertionError, pickle.UnpicklingError, struct.error)
HUB_TIMEOUT = 5.0  # seconds for the hub's first answer; the hub client alone would retry for most of a minute

# The log-Mel image: dB in [-80, 0] -> [0, 1]; deltas in dB a frame, in [-range, range] -> [0, 1].
LOGMEL_FLOOR = -80.0
DELTA_RANGES = (10.0, 5.0)

# Images a pass: a clip's segments; on a CUDA GPU those of several clips, and the last pass filled up, so that a clip's
# bytes do not depend on what it is computed with.
CPU_IMAGES = 30
BATCH_CLIPS = 8
GPU_IMAGES = BATCH_CLIPS * CPU_IMAGES
EXECUTION = {
    "cpu": "trace-freeze-channels-last",  # batch norm folded, one modality of one clip at a time
    "cuda": f"trace-freeze-channels-last-batch-{GPU_IMAGES}",
    "mps": "trace-freeze-channels-last",
}


def frame_pictures(frames: "torch.Tensor") -> "torch.Tensor":
    """Turn frames, uint8 [n, row, column, 3], into pictures, float [n, 3, row, column] in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 255


def logmel_pictures(logmel: "torch.Tensor") -> "torch.Tensor":
    """Turn log-Mel images, float16 [n, 3, mel, time] in dB, into pictures, float [n, 3, mel, time] in [0, 1]."""
    import torch

    image = logmel.float()
    level = (image[:, :1] - LOGMEL_FLOOR) / -LOGMEL_FLOOR
    deltas = [0.5 + image[:, i : i + 1] / (2 * full) for i, full in enumerate(DELTA_RANGES, start=1)]
    return torch.cat([level, *deltas], 1).clamp(0, 1)


class Backbone:
    """A named network without its classifier, in evaluation mode, with its weights: pictures in, features out.

    Args:
        features: its name (`resolve_tag`).
        weights: where its weights come from.
        precision: fp32 or bf16, of `visual` and `audio`.
        device: cpu, cuda, cuda:N or mps, of `visual` and `audio`.

    Attributes:
        spec: all that determines the features, as plain values for fingerprints and a store's attributes.
        dimension: number of features.
        model: the torch module, until `visual` or `audio` compiles it.

    Raises:
        InputError: an unknown name; weights that cannot be had or do not fit.
    """

    def __init__(self, features: str, weights: Weights, precision: str = "fp32", device: str = "cpu"):
        import timm

        tag = resolve_tag(features)
        self.model: torch.nn.Module | None = _create_model(tag, weights)
        config = timm.data.resolve_model_data_config(self.model)
        self.dimension: int = getattr(self.model, "head_hidden_size", self.model.num_features)
        self.device, kind = device, device.partition(":")[0]
        self.spec = {
            "features": features,
            "tag": tag,
            "input_size": tuple(config["input_size"][1:]),  # height, width
            "mean": tuple(config["mean"]),
            "std": tuple(config["std"]),
            "weights_hash": _weights_hash(self.model),
            "precision": precision,
            "device": kind,  # the last bits differ
            "logmel_floor": LOGMEL_FLOOR,
            "delta_ranges": DELTA_RANGES,
            "execution": EXECUTION[kind],
        }
        self._compiled: torch.jit.ScriptModule | None = None

    def images(self, pictures: "torch.Tensor") -> "torch.Tensor":
        """Resize and normalise pictures, float [n, 3, row, column] in [0, 1], for the network, in their precision."""
        import torch
        from torch.nn.functional import interpolate

        resized = interpolate(pictures, self.spec["input_size"], mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(self.spec[k], device=pictures.device)[:, None, None] for k in ("mean", "std"))
        return (resized - mean) / std

    def visual(self, clips: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        """Compute the features of each clip's frames: uint8 [segment, row, column, 3] -> float16 [segment, feature].

        None where there are none; what float16 cannot hold is infinite.
        """
        return self._features(clips, frame_pictures)

    def audio(self, clips: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        """Compute the features of each clip's log-Mel images, float16 [segment, 3, mel, time] in dB or None."""
        return self._features(clips, logmel_pictures)

    def _features(
        self, clips: Sequence[np.ndarray | None], pictures: Callable[["torch.Tensor"], "torch.Tensor"]
    ) -> list[np.ndarray | None]:
        import torch

        images = [image for clip in clips if clip is not None for image in clip]
        dtype = torch.bfloat16 if self.spec["precision"] == "bf16" else torch.float32
        with torch.inference_mode():
            found = [
                self._compiled_for(inputs)(inputs)[:count].float().cpu().numpy()
                for inputs, count in self._batches(images, pictures, dtype)
            ]
        with np.errstate(over="ignore"):
            rows = iter(np.concatenate(found).astype(np.float16) if found else ())
        return [None if clip is None else np.stack([next(rows) for _ in clip]) for clip in clips]

    def _batches(self, images: Sequence[np.ndarray], pictures: Callable, dtype: "torch.dtype") -> Iterator[tuple]:
        """Yield the network's input for a part of the images at a time, and how many of its pictures count."""
        import torch

        filled = self.spec["device"] == "cuda"
        size = GPU_IMAGES if filled else CPU_IMAGES
        for first in range(0, len(images), size):
            part = images[first : first + size]
            fill = part[-1:] * (size - len(part) if filled else 0)
            values = pictures(torch.from_numpy(np.stack(part + fill))).to(self.device)
            yield self.images(values).to(dtype).contiguous(memory_format=torch.channels_last), len(part)

    def _compiled_for(self, example: "torch.Tensor") -> "torch.jit.ScriptModule":
        """Return the network compiled at first use: traced and frozen, which folds the batch norms (about 1.8x)."""
        import torch

        if self._compiled is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls tracing deprecated; its successors need a C++ compiler
                model = self.model.to(self.device, example.dtype, memory_format=torch.channels_last)
                self._compiled = torch.jit.freeze(torch.jit.trace(model, example[:2], check_trace=False))
            self.model = None  # the frozen copy holds the weights
        return self._compiled


@lru_cache(maxsize=8)
def load_backbone(features: str, weights: Weights, precision: str = "fp32", device: str = "cpu") -> Backbone:
    """Return a backbone, loaded once a process."""
    return Backbone(features, weights, precision, device)


# ---- Weights ----


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


def _is_torch_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return b"/data.pkl" in file.read(1024)


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
    except (*UNPICKLING_ERRORS, SafetensorError) as error:
        with contextlib.suppress(OSError):
            if found := foreign_content(path, zipped=_is_torch_archive(path)):
                raise InputError(f"weights file {path}: this is {found}, no safetensors or torch file.") from None
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
