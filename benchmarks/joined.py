"""A grid over three visual and three audio stores, joined, beside the same nine cells from stores of both modalities.

    python benchmarks/joined.py [--clips 576] [--width 2048] [--epochs 3] [--rounds 3]

Six stores of one modality and one store of both are made; the one of both is trained nine times, as if nine such stores
had been written. Each round trains both ways in a process of its own, one after the other, and reports seconds from
opening the stores to the results, and the process's peak memory. The last line is JSON.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loading import make_store
from mlemiss.pipeline.stores.joined import JoinedStore
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.experiments.experiments import run_grid
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.settings import Settings

KINDS = 3


def train(folder: Path, way: str, epochs: int) -> dict:
    """Train the nine cells; return seconds and peak memory in MB."""
    start = time.perf_counter()
    opened = {store.features: store for store in map(FeatureStore.open, folder.glob("*.zarr"))}
    if way == "joined":
        pairs = itertools.product(range(KINDS), repeat=2)
        stores = [JoinedStore({"visual": opened[f"visual{v}"], "audio": opened[f"audio{a}"]}) for v, a in pairs]
    else:
        stores = [FeatureStore.open(opened["both"].path) for _ in range(KINDS**2)]
    document = run_grid(stores, Grid(missing=["audio:0.5"], seeds=2), Settings(epochs=epochs), "cpu")
    seconds = time.perf_counter() - start
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "mb": most, "cells": len(document["results"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=576)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", nargs=2, metavar=("DIR", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        print(json.dumps(train(Path(given.train[0]), given.train[1], given.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        names = {f"{m}{k}": (m,) for m in ("visual", "audio") for k in range(KINDS)} | {"both": ("visual", "audio")}
        for name, modalities in names.items():
            make_store(Path(folder), given.clips, given.width, name, modalities)
        found = {"joined": [], "both": []}
        for number, way in itertools.product(range(given.rounds), found):
            command = [sys.executable, __file__, "--train", folder, way, "--epochs", str(given.epochs)]
            done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(f"round {number + 1}, {way}: {done['cells']} cells, {done['seconds']:.1f} s, {done['mb']:.0f} MB")
            found[way].append(done)
    ratio = {
        key: [a[key] / b[key] for a, b in zip(found["joined"], found["both"], strict=True)] for key in ("seconds", "mb")
    }
    summary = {key: {"median": statistics.median(values), "all": values} for key, values in ratio.items()}
    print(json.dumps({"clips": given.clips, "width": given.width, "joined / both": summary}))


if __name__ == "__main__":
    main()
