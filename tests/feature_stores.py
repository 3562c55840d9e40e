"""Small real stores for the trainer's tests: features drawn at random, written by the product's own code."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mlemiss.pipeline.stores.store import FeatureStore, attributes, create_array, open_group, publish, write_table
from mlemiss.trainer.experiments.experiments import run_grid
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.experiments.run_folder import RunFolder
from mlemiss.trainer.settings import Settings

CHUNK = 16  # clips
SEGMENTS, WIDTHS = 4, {"visual": 12, "audio": 10}
QUICK = Settings(dropout=0.0, epochs=3, batch_size=32, lr=1e-2, hidden=16, dim=6)


def write_store(
    folder: Path,
    *,
    clips: int = 72,
    classes: int = 3,
    dataset: str = "toy",
    features: str = "toy",
    weights: str = "random",
    weights_hash: str = "0",
    failed: tuple[int, ...] = (5,),
    without_audio: tuple[int, ...] = (7, 8),
    label: np.ndarray | None = None,
    separation: float | Mapping[str, float] = 0.8,
    filler: float = np.nan,
    widths: Mapping[str, int] = WIDTHS,
    segments: int = SEGMENTS,
    sparse: bool = False,
) -> FeatureStore:
    """Clips of ``classes`` classes in 8 subjects of unequal size; ``filler`` stands where a modality is missing.

    sparse: features as of `relu_features`.
    """
    rng = np.random.default_rng(0)
    label = np.arange(clips) % classes if label is None else label
    path = folder / f"{dataset}-{features}-0123abcd.zarr"
    group = open_group(folder / f".building-{features}")
    present = np.ones((clips, len(widths)), bool)
    present[list(failed)] = False
    present[list(without_audio), 1:2] = False
    for m, (modality, width) in enumerate(widths.items()):
        apart = separation[modality] if isinstance(separation, Mapping) else separation
        centres = rng.normal(0, apart, (classes, 1, width))
        values = centres[label] + rng.normal(0, 0.7, (clips, 1, width)) + rng.normal(0, 1, (clips, segments, width))
        values = relu_features(rng, label, segments, width) if sparse else values
        values[~present[:, m]] = filler
        values[:, :, 0] = np.where(present[:, m, None], 1.5, filler)  # a feature that never varies
        shape, dimensions = (clips, segments, width), ["clip", "segment", "feature"]
        chunks = (min(CHUNK, clips), *shape[1:])
        create_array(group, modality, shape, chunks, "float16", dimensions)[:] = values.astype(np.float16)
    table = {
        "clip_id": np.array([f"clip{i:03d}" for i in range(clips)]),
        "subject": np.array([f"s{int(8 * (i / clips) ** 0.6)}" for i in range(clips)]),
        "status": np.where(present.any(1), "done", "failed"),
        "error": np.where(present.all(1), "", "no signal"),
        "sha256": np.array(["0" * 64] * clips),
        "label": label,
        "duration": np.full(clips, 2.0),
    }
    write_table(group, table, present, list(widths))
    names = ["angry", "happy", "sad", "calm", "fearful", "disgust"][:classes]
    group.attrs.update(
        attributes(
            dataset,
            features,
            "0123abcd",
            names,
            {},
            {"name": weights, "hash": weights_hash},
            {},
            modalities=list(widths),
        )
    )
    publish(folder / f".building-{features}", path)
    return FeatureStore.open(path)


def relu_features(rng: np.random.Generator, label: np.ndarray, segments: int, width: int) -> np.ndarray:
    """Draw features as after a CNN's last ReLU: 1.5 % of them active, with heavy tails; [clip, segment, width].

    A class activates a tenth of them 40 times as often as the others. Of a dozen clips a feature has one or two active
    values, and where these are small, values of other clips are thousands of deviations away from the mean.
    """
    own = rng.random((label.max() + 1, width)) < 0.1
    rate = np.where(own, 40.0, 1.0)[label][:, None]
    active = rng.random((len(label), segments, width)) < 0.015 * rate / rate.mean()
    return active * np.exp(rng.normal(0, 2, active.shape))


def predictions(document, out, **cell):
    """probabilities [seed, clip, class] of the one cell that fits."""
    (result,) = [r for r in document["results"] if all(r[k] == v for k, v in cell.items())]
    with np.load(out / result["predictions"]) as file:
        return file["probabilities"]


def grid(stores, out, *, settings=QUICK, resume=False, save_weights=False, progress=None, **combined):
    """Train a grid on the CPU into a folder. combined: the fields of `Grid`."""
    folder = RunFolder(out, resume=resume, save_weights=save_weights)
    return run_grid(stores, Grid(**combined), settings, "cpu", folder, progress=progress)


def damage(path: Path, member: str) -> None:
    """Make a compressed member of a zip (.npz) file begin with what no compressed data begin with."""
    with zipfile.ZipFile(path) as file:
        start = file.getinfo(member).header_offset
    content = bytearray(path.read_bytes())
    content[start + 30 + sum(content[start + 26 : start + 30 : 2])] = 0xFF  # below its header, name and extra field
    path.write_bytes(content)
