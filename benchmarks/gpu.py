"""Everything that is to be known of a card, in one command: correctness first, then speed, in the time given.

    python benchmarks/gpu.py [--out FILE.json] [--minutes 8] [--device auto] [--parts same,steps,...] [--quick]

1. same: a small grid of every method on the card, on the processor, and on the card with steps that are not recorded:
   the same test accuracies within one clip, and test losses within 0.05;
2. steps: milliseconds of a training step of every method and fusion, 30 runs of 2,048 features, and what scoring the
   held-out clips takes of an epoch;
3. table2: the 270 runs of the paper's Table 2, 40 epochs, features of RAVDESS's size;
4. grid: runs side by side against a plain PyTorch loop (`training.py`);
5. cnn: images per second of the CNN stage in every precision, beside the bare network on images that are there;
6. preprocess: a whole `mlemiss preprocess` of three networks, beside the smaller of what its stages reach alone;
7. end_to_end: a step that trains the backbones, beside the backbones alone (`end_to_end.py`).

A part is a process of its own, which is stopped when the time is up: a part that failed or had no time says so, and
the others stand. Without a card it says so and measures the processor, in smaller sizes. A table is printed; the last
line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import training
from mlemiss.pipeline.encoders import Weights, keep_freed_memory, resolve_device
from mlemiss.pipeline.encoders.images import GPU_IMAGES, Backbone
from mlemiss.pipeline.encoders.names import DEFAULT
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.trainer import fit as fitting
from mlemiss.trainer.data import Clips, Dataset, RunSpec
from mlemiss.trainer.experiments.experiments import run_grid
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.fit import HeldOut, fit
from mlemiss.trainer.method import plan_steps
from mlemiss.trainer.methods import load, method_names
from mlemiss.trainer.settings import FUSIONS, Settings

PARTS = ("same", "steps", "table2", "grid", "cnn", "preprocess", "end_to_end")
MISSING = "audio:0.8"
LOSS = 0.05  # nats a test clip


def now(device: torch.device) -> float:
    """Return the time in seconds when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- Correctness ----


def same(device: torch.device, quick: bool) -> dict:
    """Train every method and fusion on the processor too, and with steps that are not recorded.

    ValueError: accuracies differ by more than a test clip, or losses by more than LOSS.
    """
    grid = Grid(method_names(), list(FUSIONS), [parse_missing("audio:0.5")], seeds=2)
    settings = Settings(epochs=3, hidden=32, dim=6)
    with tempfile.TemporaryDirectory() as folder:
        store = training.random_store(Path(folder), 60 if quick else 200, 64)
        found = run_grid([store], grid, settings, device.type)["results"]
        others = {"cpu": run_grid([store], grid, settings, "cpu")["results"]}
        if device.type == "cuda":
            with patch.object(fitting, "recorder", lambda device: None):
                others["not recorded"] = run_grid([store], grid, settings, device.type)["results"]
    worst = {}
    for name, results in others.items():
        clips = losses = 0.0
        for one, other in zip(found, results, strict=True):
            moved = np.abs(np.subtract(one["test_accuracy"], other["test_accuracy"])) * one["n_test"] / 100
            clips = max(clips, float(moved.max()))
            losses = max(losses, float(np.abs(np.subtract(one["nll"], other["nll"])).max()))
            if clips > 1.001 or losses > LOSS:
                cell = f"{one['method']} {one['fusion']}"
                raise ValueError(f"{cell}, {name}: {clips:.0f} test clips and a loss of {losses:.3f} apart")
        worst[name] = {"clips": round(clips, 1), "loss": losses}
    return {"cells": len(found), "most_apart": worst}


# ---- Training ----


def steps(device: torch.device, quick: bool) -> dict:
    """Time an epoch of every method and fusion: milliseconds a step, and the share of scoring held-out clips."""
    R, clips, width = (4, 60, 256) if quick else (30, 1152, 2048)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(Clips(training.random_store(Path(folder), clips, width)), device)
        drawn = [dataset.clips.run(RunSpec(seed, parse_missing(MISSING))) for seed in range(R)]
        for name in method_names():
            kind = load(name)
            for fusion in kind.fusions if kind.fuses else kind.fusions[:1]:
                found[f"{name} {fusion}"] = _one(kind, dataset, drawn, fusion, device)
    return found


def _one(kind, dataset: Dataset, drawn: list, fusion: str, device: torch.device) -> dict:
    """Time three epochs less one, so that a step's recording and what else is done once are not counted."""
    count = sum(plan_steps(kind, drawn[0], dataset.segments, Settings()))
    scored: list[float] = []
    score = HeldOut.score

    def timed(self, method):
        start = now(device)
        result = score(self, method)
        scored.append(now(device) - start)
        return result

    seconds, scoring = [], []
    with patch.object(HeldOut, "score", timed):
        for epochs in (1, 1, 3):  # the first is a warm-up
            scored.clear()
            start = now(device)
            fit(kind, dataset, drawn, Settings(epochs=epochs), fusion)
            seconds.append(now(device) - start)
            scoring.append(sum(scored))
    epochs, held_out = seconds[2] - seconds[1], scoring[2] - scoring[1]
    return {"ms_a_step": round(1e3 * (epochs - held_out) / 2 / count, 2), "scoring": round(held_out / epochs, 3)}


def table2(device: torch.device, quick: bool) -> dict:
    """Time the 270 runs of Table 2, which take a processor half an hour and more."""
    if quick:
        return {"not_run": "for a card"}
    settings = Settings()
    return {"seconds": training.table2(1152, settings, device), "epochs": settings.epochs}


def grid(device: torch.device, quick: bool) -> dict:
    """Time runs side by side against a plain loop."""
    R, clips, rounds = (4, 96, 1) if quick else (20, 1152, 1)
    return training.grid(512 if quick else 2048, R, clips, 2, device, rounds)


# ---- Preprocessing and end to end ----


def cnn(device: torch.device, quick: bool) -> dict:
    """Time the CNN stage on frames in host memory beside the bare network on a batch that is there, in turns."""
    import timm

    clips, turns = (1, 2) if quick else (32, 3)
    frames = [np.random.default_rng(0).integers(0, 255, (30, 256, 256, 3), dtype=np.uint8)] * clips
    images, found = 30 * clips, {}
    for features in ("resnet34",) if quick else DEFAULT:
        for precision in ("fp32", *(["tf32"] if device.type == "cuda" else []), "bf16"):
            backbone = Backbone(features, Weights("random"), precision, device.type)
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            bare = timm.create_model(backbone.spec["tag"], pretrained=False, num_classes=0).eval()
            bare = bare.to(device, dtype, memory_format=torch.channels_last)
            size = min(GPU_IMAGES, images)
            there = torch.randn(size, 3, *backbone.spec["input_size"], device=device, dtype=dtype)
            there = there.contiguous(memory_format=torch.channels_last)
            rates: list[tuple[float, float]] = []
            with torch.inference_mode():
                for turn in range(turns + 1):
                    ours = _rate(partial(backbone.encode, "frames", frames), images, device)
                    pair = ours, _rate(partial(bare, there), size, device)
                    rates += [pair] if turn else []  # the first warms up
            ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
            found[f"{features} {precision}"] = {
                "images_per_s": round(ours),
                "bare": round(theirs),
                "ratio": round(ours / theirs, 2),
            }
    return found


def _rate(work: Callable[[], object], images: int, device: torch.device) -> float:
    start = now(device)
    work()
    return images / (now(device) - start)


def preprocess(device: torch.device, quick: bool) -> dict:
    """Time a whole preprocessing run of synthetic clips, and its decoding alone."""
    clips, names = (4, "resnet34") if quick else (192, "vgg16,resnet34,resnet50")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        mlemiss = [sys.executable, "-m", "mlemiss.cli"]
        subprocess.run(
            [*mlemiss, "synth", "clips", "--subjects", "4", "--clips-per-subject", str(clips // 4)],
            cwd=folder,
            check=True,
        )
        job = [*mlemiss, "preprocess", "--dataset", "ravdess", "--root", "clips", "--weights", "random", "--json"]
        job += ["--workers", str(max(cores - 1, 1))]
        media = _clips_per_second([*job, "--media", "only", "--stores", "media"], folder)
        whole = _clips_per_second([*job, "--features", names, "--device", device.type, "--stores", "all"], folder)
    return {"clips": clips, "workers": max(cores - 1, 1), "media_alone_clips_per_s": media, "whole_clips_per_s": whole}


def _clips_per_second(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return round(json.loads(done.stdout)["done"] / (time.perf_counter() - start), 2)


def end_to_end(device: torch.device, quick: bool) -> dict:
    """Time a step that trains the backbones, in every precision."""
    subjects, per_subject = (2, 12) if quick else (4, 24)
    backbone, size, turns = ("resnet34", "8", "1") if quick else ("resnet50", "128", "2")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        mlemiss = [sys.executable, "-m", "mlemiss.cli"]
        made = ["synth", "clips", "--subjects", str(subjects), "--clips-per-subject", str(per_subject)]
        subprocess.run([*mlemiss, *made], cwd=folder, check=True)
        where = ["--dataset", "ravdess", "--root", "clips", "--media", "only"]
        subprocess.run([*mlemiss, "preprocess", *where], cwd=folder, check=True)
        (store,) = (Path(folder) / "stores").glob("*.zarr")
        script = [sys.executable, str(Path(__file__).with_name("end_to_end.py")), "--store", str(store)]
        script += ["--backbone", backbone, "--batch-size", size, "--micro-batch", size, "--turns", turns]
        for precision in ("fp32", *(["tf32"] if device.type == "cuda" else []), "bf16"):
            command = [*script, "--device", device.type, "--precision", precision]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[precision] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- All of it ----


def run_parts(o: argparse.Namespace, device: torch.device) -> dict:
    """Run each part in a process of its own while there is time; return what each found, or why it did not."""
    end, found = time.monotonic() + 60 * o.minutes, {}
    for part in o.parts.split(","):
        left = end - time.monotonic()
        if left < 5:
            found[part] = {"not_run": "the time is up"}
            continue
        print(f"{part}: {left:.0f} s are left", flush=True)
        command = [sys.executable, __file__, "--part", part, "--device", device.type, *(["--quick"] if o.quick else [])]
        start = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            found[part] = {"not_run": f"stopped after {left:.0f} s"}
        else:
            lines = (done.stderr if done.returncode else done.stdout).splitlines() or ["nothing was said"]
            found[part] = {"failed": lines[-1]} if done.returncode else json.loads(lines[-1])
        found[part]["took_s"] = round(time.monotonic() - start, 1)
        print_part(part, found[part])
    return found


def print_part(name: str, found: dict) -> None:
    """Print a line for each thing that a part measured."""
    for key, value in found.items():
        values = value if isinstance(value, dict) else {key: value}
        label = f"{name} {key}" if isinstance(value, dict) else name
        print(f"  {label:34} " + "  ".join(f"{k} {v}" for k, v in values.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON too")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="small sizes, as on a processor")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if unknown := set(o.parts.split(",")) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    device = torch.device(resolve_device(o.device))
    keep_freed_memory()
    if o.part:
        print(json.dumps(globals()[o.part](device, o.quick)))
        return
    if device.type == "cpu":
        print("no card here: the processor is measured, in small sizes")
        o.quick = True
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    print(f"{name}, {cores} cores, torch {torch.__version__}, CUDA {torch.version.cuda}")
    document = {"device": name, "kind": device.type, "cores": cores, "torch": torch.__version__, "quick": o.quick}
    document["parts"] = run_parts(o, device)
    if o.out:
        o.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))
    sys.exit(any("failed" in part for part in document["parts"].values()))


if __name__ == "__main__":
    main()
