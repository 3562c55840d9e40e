"""Networks of images and their input transform.

A backbone turns the cached media of a clip into features: both the 256x256 frames and the log-Mel images are resized
bilinearly to the network's own input.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import Weights, check_precision, round_products
from .names import PICTURES, SEGMENTS, Encoder, resolve_tag
from .weights import load_network, weights_hash

if TYPE_CHECKING:
    import torch

# The log-Mel image: dB in [-80, 0] -> [0, 1]; deltas in dB a frame, in [-range, range] -> [0, 1].
LOGMEL_FLOOR = -80.0
DELTA_RANGES = (10.0, 5.0)

# Images a pass: a clip's segments; on a CUDA GPU those of several clips, and the last pass filled up, so that a clip's
# bytes do not depend on what it is computed with.
CPU_IMAGES = SEGMENTS
BATCH_CLIPS = 8
GPU_IMAGES = BATCH_CLIPS * CPU_IMAGES
EXECUTION = {
    "cpu": "trace-freeze-channels-last",  # batch norm folded, one modality of one clip at a time
    "cuda": f"trace-freeze-channels-last-pictures-there-batch-{GPU_IMAGES}",
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


class Backbone(Encoder):
    """A named network without its classifier, in evaluation mode, with its weights: pictures in, features out.

    Args:
        features: its name (`resolve_tag`).
        weights: where its weights come from.
        precision: fp32, tf32 or bf16, of `visual` and `audio`.
        device: cpu, cuda, cuda:N or mps, of `visual` and `audio`.

    Attributes:
        spec: all that determines the features, as plain values for fingerprints and a store's attributes.
        dimension: number of features.
        notes: what a user may want to know of the weights' file, as text.
        model: the torch module, until `visual` or `audio` compiles it.

    Raises:
        InputError: an unknown name; weights that cannot be had or do not fit; a precision that the device has not.
    """

    inputs = PICTURES

    def __init__(self, features: str, weights: Weights, precision: str = "fp32", device: str = "cpu"):
        import timm

        tag = resolve_tag(features)
        check_precision(precision, device)
        self.model: torch.nn.Module | None
        self.model, self.notes = load_network(tag, weights)
        config = timm.data.resolve_model_data_config(self.model)
        self.dimension: int = getattr(self.model, "head_hidden_size", self.model.num_features)
        self.device, kind = device, device.partition(":")[0]
        self.spec = {
            "features": features,
            "tag": tag,
            "input_size": tuple(config["input_size"][1:]),  # height, width
            "mean": weights.mean or tuple(config["mean"]),
            "std": weights.std or tuple(config["std"]),
            "weights_hash": weights_hash(self.model),
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

    def encode(self, kind: str, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute the features of several clips' `frames` or `logmel`: float16 [segment, feature] each.

        What float16 cannot hold is infinite.
        """
        import torch

        pictures = frame_pictures if kind == "frames" else logmel_pictures
        images = [image for clip in batch for image in clip]
        dtype = torch.bfloat16 if self.spec["precision"] == "bf16" else torch.float32
        round_products(self.spec["precision"] == "tf32")
        with torch.inference_mode():
            # A card computes while the next images are made ready: nothing is waited for before all are on their way.
            found = [
                self._compiled_for(inputs)(inputs)[:count].half()
                for inputs, count in self._batches(images, pictures, dtype)
            ]
            rows = torch.cat(found).cpu().numpy()
        return np.split(rows, np.cumsum([len(clip) for clip in batch])[:-1])

    def _batches(self, images: Sequence[np.ndarray], pictures: Callable, dtype: "torch.dtype") -> Iterator[tuple]:
        """Yield the network's input for a part of the images at a time, and how many of its pictures count."""
        import torch

        filled = self.spec["device"] == "cuda"  # a card gets bytes, and makes pictures of them itself
        size = GPU_IMAGES if filled else CPU_IMAGES
        for first in range(0, len(images), size):
            part = images[first : first + size]
            fill = part[-1:] * (size - len(part) if filled else 0)
            media = torch.from_numpy(np.stack(part + fill))
            media = (media.pin_memory() if filled else media).to(self.device, non_blocking=True)
            yield self.images(pictures(media)).to(dtype).contiguous(memory_format=torch.channels_last), len(part)

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
