"""Small media stores and small networks for the tests of training end to end, written by the product's own code."""

from pathlib import Path

import numpy as np
import timm
import torch
from mlemiss.pipeline.encoders import Weights
from mlemiss.pipeline.encoders.images import Backbone
from mlemiss.pipeline.stores.store import (
    MEDIA,
    FeatureStore,
    attributes,
    create_array,
    open_group,
    publish,
    write_table,
)
from mlemiss.trainer.end_to_end.end_to_end import EndToEnd
from torch import nn

SEGMENTS, SIDE = 2, 40  # a frame's rows and columns
TINY, NORMED, DROPPING = "timm:mlemiss_tiny", "timm:mlemiss_tiny_normed", "timm:mlemiss_tiny_dropping"
RANDOM = Weights("random")


class Tiny(nn.Module):
    """Two convolutions over 32 x 32 pictures, with or without batch norms and dropout."""

    num_features = 12

    def __init__(self, normed: bool, dropped: float = 0.0):
        super().__init__()
        norms = [nn.BatchNorm2d(n) if normed else nn.Identity() for n in (8, 12)]
        self.first = nn.Sequential(nn.Conv2d(3, 8, 5, 4), norms[0], nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, 2), norms[1], nn.ReLU(), nn.Dropout(dropped))
        size = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.pretrained_cfg = size | {"interpolation": "bilinear", "crop_pct": 1.0}

    def forward(self, x):
        return self.second(self.first(x)).mean((2, 3))


@timm.models.register_model
def mlemiss_tiny(pretrained=False, **_):
    return Tiny(False)


@timm.models.register_model
def mlemiss_tiny_normed(pretrained=False, **_):
    return Tiny(True)


@timm.models.register_model
def mlemiss_tiny_dropping(pretrained=False, **_):
    return Tiny(True, 0.2)


def tiny(backbone: str = TINY, **options) -> EndToEnd:
    return EndToEnd(backbone, RANDOM, **options)


def write_media(folder: Path, *, clips: int = 48, classes: int = 3, without_audio: tuple[int, ...] = (7, 8)):
    """Clips whose frames and log-Mels carry the class in where they are bright or loud."""
    rng = np.random.default_rng(0)
    label = np.arange(clips) % classes
    group = open_group(folder / ".building-media")
    present = np.ones((clips, 2), bool)
    present[list(without_audio), 1] = False
    frames = rng.integers(0, 120, (clips, SEGMENTS, SIDE, SIDE, 3)).astype(np.uint8)
    logmel = rng.normal(0, 2, (clips, SEGMENTS, 3, 64, 51)).astype(np.float16)
    logmel[:, :, 0] -= 50
    for clip, z in enumerate(label):
        frames[clip, :, 13 * z : 13 * z + 10] += 100
        logmel[clip, :, 0, 20 * z : 20 * z + 15] += 20
    logmel[~present[:, 1]] = np.nan
    for name, values, axes in (
        ("frames", frames, ["row", "column", "channel"]),
        ("logmel", logmel, ["channel", "mel", "time"]),
    ):
        shape = values.shape
        create_array(group, name, shape, (1, *shape[1:]), values.dtype, ["clip", "segment", *axes])[:] = values
    return _publish(folder, group, label, present, MEDIA, None)


def cached(media: FeatureStore, folder: Path, backbone: str = TINY) -> FeatureStore:
    """The same clips as a store of features, computed as `preprocess` does."""
    network = Backbone(backbone, RANDOM)
    group = open_group(folder / f".building-{MEDIA}-features")
    for m, (name, array) in enumerate((("visual", "frames"), ("audio", "logmel"))):
        there = media.present[:, m]
        shape = (len(there), SEGMENTS, network.dimension)
        features = np.full(shape, np.nan, np.float16)
        features[there] = np.stack(network.encode(array, media.read(array)[there]))
        create_array(group, name, shape, shape, "float16", ["clip", "segment", "feature"])[:] = features
    weights = {"name": "random", "hash": network.spec["weights_hash"]}
    return _publish(folder, group, media.label, media.present, "tiny", weights)


def _publish(folder: Path, group, label, present, features: str, weights) -> FeatureStore:
    clips = len(label)
    table = {
        "clip_id": np.array([f"clip{i:03d}" for i in range(clips)]),
        "subject": np.array([f"s{i % 8}" for i in range(clips)]),
        "status": np.full(clips, "done"),
        "error": np.where(present.all(1), "", "no signal"),
        "sha256": np.array(["0" * 64] * clips),
        "label": label,
        "duration": np.full(clips, 2.0),
    }
    write_table(group, table, present)
    names = ["angry", "happy", "sad"][: label.max() + 1]
    group.attrs.update(attributes("toy", features, "0123abcd", names, {}, weights, {}))
    built, final = Path(str(group.store.root)), folder / f"toy-{features}-0123abcd.zarr"
    publish(built, final)
    return FeatureStore.open(final)


torch.set_num_threads(1)
