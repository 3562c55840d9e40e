"""Time from a store to tensors beside a plain read of the very same files.

    python benchmarks/loading.py [DIR] [--widths 512,2048,4096] [--clips 1152] [--rounds 5]

Ours is all that training does before its first step: open the store, read its columns, both modalities' features into
tensors, their moments and whether they are finite. The plain read is `read_bytes` of every file, one after the other.
Both keep what they read. Each round is a process of its own that imports everything, loads once, then does both in
turns: first with nothing of the store in the page cache ("cold", read from the disk), then with all of it ("warm"). One
round more comes first and does not count. The stores are made in DIR, whose disk is what is measured (default: the
folder for temporary files; one in memory has no cold).

Features are random and RAVDESS-sized. Those of 4096 are like VGG-16's, after a ReLU, three quarters of them 0; those of
other widths like ResNets', averages of rectified maps that are hardly ever 0. Every part is measured within this one
run. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mlemiss.pipeline.encoders import keep_freed_memory
from mlemiss.pipeline.stores.store import FeatureStore, attributes, create_array, open_group, publish, write_table
from mlemiss.trainer.data import Clips, Dataset

CLASSES, SEGMENTS, CHUNK = 6, 30, 32
VGG16 = 4096


def make_store(
    folder: Path, clips: int, width: int, features: str = "", modalities: tuple[str, ...] = ("visual", "audio")
) -> Path:
    """A store of random features, the segments of a clip alike."""
    features = features or str(width)
    rng = np.random.default_rng(len(features))
    name = f"random-{features}-0"
    group = open_group(folder / f".{name}")
    for modality in modalities:
        shape, dimensions = (clips, SEGMENTS, width), ["clip", "segment", "feature"]
        array = create_array(group, modality, shape, (min(CHUNK, clips), *shape[1:]), "float16", dimensions)
        for first in range(0, clips, CHUNK):
            count = min(CHUNK, clips - first)
            values = 0.7 * rng.standard_normal((count, 1, width), np.float32)  # what a clip's segments share
            values = values + 0.7 * rng.standard_normal((count, SEGMENTS, width), np.float32) - 0.7
            values = np.maximum(values, 0) if width == VGG16 else np.logaddexp(values, 0)
            array[first : first + count] = values.astype(np.float16)
    text = {"subject": [f"s{i % 24}" for i in range(clips)], "status": ["done"] * clips}
    text |= {"clip_id": [f"{i:05d}" for i in range(clips)], "error": [""] * clips, "sha256": [""] * clips}
    table = {n: np.array(v) for n, v in text.items()} | {"label": np.arange(clips) % CLASSES}
    table["duration"] = np.full(clips, 3.0)
    write_table(group, table, np.ones((clips, len(modalities)), bool), modalities)
    classes = [f"class {c}" for c in range(CLASSES)]
    weights = {"name": "random", "hash": "0"}
    group.attrs.update(attributes("random", features, "0", classes, {}, weights, {}, modalities=modalities))
    publish(folder / f".{name}", folder / f"{name}.zarr")
    return folder / f"{name}.zarr"


def load(path: Path) -> Dataset:
    return Dataset(Clips(FeatureStore.open(path)))


def plain_read(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()]


def forget(path: Path) -> None:
    """Take the store out of the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())  # what is not written yet would stay
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work: Callable[[Path], object], path: Path, cold: bool) -> float:
    if cold:
        forget(path)
    start = time.perf_counter()
    kept = work(path)
    spent = time.perf_counter() - start
    del kept
    return spent


def one_round(path: Path) -> None:
    """In a process of its own: seconds of both, as JSON."""
    keep_freed_memory()  # as training does
    load(path)
    print(json.dumps({c: [seconds(work, path, c == "cold") for work in (load, plain_read)] for c in ("cold", "warm")}))


def measure(folder: Path, clips: int, width: int, rounds: int) -> dict:
    path = make_store(folder, clips, width)
    size = sum(map(len, plain_read(path)))
    found = {"store_mb": round(size / 1e6, 1), "tensors_mb": round(sum(f.nbytes for f in load(path).features) / 1e6, 1)}
    command = [sys.executable, __file__, "--round", str(path)]
    done = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(rounds + 1)][1:]
    for cache in done[0]:
        pairs = [each[cache] for each in done]
        ratios = sorted(ours / plain for ours, plain in pairs)
        ours, plain = (statistics.median(times) for times in zip(*pairs, strict=True))
        found[cache] = {
            "load_s": round(ours, 3),
            "plain_s": round(plain, 3),
            "plain_mb_per_s": round(size / plain / 1e6),
            "ratio": round(statistics.median(ratios), 2),
            "spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        }
    print(f"{width} features: {found}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", metavar="DIR", help="where to make the stores")
    parser.add_argument("--widths", default="512,2048,4096")
    parser.add_argument("--clips", type=int, default=1152)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round", type=Path, metavar="STORE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.round:
        one_round(arguments.round)
        return
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cores} cores, load {busy:.1f}, torch {torch.__version__}; n = {arguments.rounds}", flush=True)
    found = {"cores": cores, "load": round(busy, 1), "clips": arguments.clips, "widths": {}}
    for width in map(int, arguments.widths.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found["widths"][width] = measure(Path(folder), arguments.clips, width, arguments.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
