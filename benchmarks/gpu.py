"""Everything that is to be known of a card, in one command: correctness first, then speed, in the time given.

    python benchmarks/gpu.py [--out FILE.json] [--minutes 8] [--device auto] [--parts same,steps,...] [--quick]

1. suite: on a card, the tests of training, which take the card where there is one; a third of the time at most;
2. same: a small grid of every method on the card, on the processor, and on the card with steps that are not recorded:
   the same test accuracies within one clip, and test losses within 0.05;
3. steps: milliseconds of a training step of every method and fusion, 30 runs of 2,048 features, and what scoring the
   held-out clips takes of an epoch;
4. table2: the 270 runs of the paper's Table 2, 40 epochs, features of RAVDESS's size;
5. grid: runs side by side against a plain PyTorch loop (`training.py`);
6. cnn: images per second of the CNN stage in every precision, beside the bare network on images that are there;
7. preprocess: a whole `mlemiss preprocess` of three networks, beside the smaller of what its stages reach alone;
8. end_to_end: a step that trains the backbones, beside the backbones alone (`end_to_end.py`);
9. tune: 30 draws of 6 methods with 5 seeds as one `mlemiss tune`, as many rows as the votes of CREMA-D, beside a
   `mlemiss train` for each: one a method is timed, with the default settings (`tune.py` times more of them).

A part is a process of its own, which is stopped with all that it started when the time is up: what it measured until
then stands, and so do the others. A part that failed or had not time enough says so, and the exit status is 1. Without
a card it says so and measures the processor, in smaller sizes. A table is printed; the last line is JSON.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import training
import tune as tuning
from mlemiss.pipeline.console import interruptible
from mlemiss.pipeline.encoders import Weights, keep_freed_memory, resolve_device
from mlemiss.pipeline.encoders.images import GPU_IMAGES, Backbone
from mlemiss.pipeline.encoders.names import DEFAULT
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.trainer import fit as fitting
from mlemiss.trainer.data import Clips, Dataset, RunSpec
from mlemiss.trainer.experiments.experiments import run_grid
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.fit import HeldOut, fit
from mlemiss.trainer.method import plan_steps
from mlemiss.trainer.methods import load, method_names
from mlemiss.trainer.settings import FUSIONS, Settings

PARTS = ("suite", "same", "steps", "table2", "grid", "cnn", "preprocess", "end_to_end", "tune")
MISSING = "audio:0.8"
MLEMISS = (sys.executable, "-m", "mlemiss.cli")
LOSS = 0.05  # nats a test clip
TESTS = ("likelihood", "methods", "trainer", "baselines", "rates", "saved", "experiments", "end_to_end")
Found = Iterator[tuple[str, object]]  # what a part measures, as soon as it is known


def now(device: torch.device) -> float:
    """Return the time in seconds when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- Correctness ----


def suite(device: torch.device, quick: bool) -> Found:
    """Run the tests of training where they take the card. RuntimeError: one fails."""
    if device.type == "cpu":
        yield "left_out", "for a card; `make test` runs all tests on the processor"
        return
    tests = Path(__file__).parents[1] / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "8", "--dist", "loadfile", "-p", "no:cacheprovider"]
    yield "tests", _run([*command, *(str(tests / f"test_{name}.py") for name in TESTS)], tests.parent)[-1]


def same(device: torch.device, quick: bool) -> Found:
    """Train every method and fusion on the processor too, and with steps that are not recorded.

    ValueError: accuracies differ by more than a test clip, or losses by more than LOSS.
    """
    grid = Grid(method_names(), list(FUSIONS), [parse_missing("audio:0.5")], seeds=1 if quick else 2)
    settings = Settings(epochs=1 if quick else 3, hidden=32, dim=6)
    with tempfile.TemporaryDirectory() as folder:
        store = training.random_store(Path(folder), 36 if quick else 200, 64)
        found = run_grid([store], grid, settings, device.type)["results"]
        yield "cells", len(found)
        if device.type == "cpu":
            yield "compared", "with nothing: there is no card"
            return
        others = {"cpu": run_grid([store], grid, settings, "cpu")["results"]}
        if device.type == "cuda":
            with patch.object(fitting, "recorder", lambda device: None):
                others["not recorded"] = run_grid([store], grid, settings, device.type)["results"]
    for name, results in others.items():
        clips = losses = 0.0
        for one, other in zip(found, results, strict=True):
            moved = np.abs(np.subtract(one["test_accuracy"], other["test_accuracy"])) * one["n_test"] / 100
            clips = max(clips, float(moved.max()))
            losses = max(losses, float(np.abs(np.subtract(one["nll"], other["nll"])).max()))
            if clips > 1.001 or losses > LOSS:
                cell = f"{one['method']} {one['fusion']}"
                raise ValueError(f"{cell}, {name}: {clips:.0f} test clips and a loss of {losses:.3f} apart")
        yield f"most apart, {name}", {"clips": round(clips, 1), "loss": losses}


# ---- Training ----


def steps(device: torch.device, quick: bool) -> Found:
    """Time an epoch of every method and fusion: milliseconds a step, and the share of scoring held-out clips."""
    R, clips, width = (2, 36, 256) if quick else (30, 1152, 2048)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(Clips(training.random_store(Path(folder), clips, width)), device)
        drawn = [dataset.clips.run(RunSpec(seed, parse_missing(MISSING))) for seed in range(R)]
        for name in method_names():
            kind = load(name)
            for fusion in kind.fusions if kind.fuses else kind.fusions[:1]:
                yield f"{name} {fusion}", _one(kind, dataset, drawn, fusion, device)


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


def table2(device: torch.device, quick: bool) -> Found:
    """Time the 270 runs of Table 2, which take a processor half an hour and more."""
    if quick:
        yield "left_out", "for a card"
        return
    settings = Settings()
    yield "seconds", training.table2(1152, settings, device)
    yield "epochs", settings.epochs


def grid(device: torch.device, quick: bool) -> Found:
    """Time runs side by side against a plain loop."""
    R, clips, rounds = (4, 96, 1) if quick else (20, 1152, 1)
    yield from training.grid(512 if quick else 2048, R, clips, 2, device, rounds).items()


# ---- Preprocessing and end to end ----


def cnn(device: torch.device, quick: bool) -> Found:
    """Time the CNN stage on frames in host memory beside the bare network on a batch that is there, in turns."""
    import timm

    clips, turns = (1, 1) if quick else (32, 3)
    frames = [np.random.default_rng(0).integers(0, 255, (30, 256, 256, 3), dtype=np.uint8)] * clips
    images = 30 * clips
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
            found = {"images_per_s": round(ours, 1), "bare": round(theirs, 1), "ratio": round(ours / theirs, 2)}
            yield f"{features} {precision}", found


def _rate(work: Callable[[], object], images: int, device: torch.device) -> float:
    start = now(device)
    work()
    return images / (now(device) - start)


def preprocess(device: torch.device, quick: bool) -> Found:
    """Time a whole preprocessing run of synthetic clips, its decoding alone, and its CNNs alone."""
    clips, networks = (4, ["resnet34"]) if quick else (192, list(DEFAULT))
    workers = max(len(os.sched_getaffinity(0)) - 1, 1)
    yield "clips", clips
    yield "workers", workers
    network = sum(_seconds_a_clip(features, device, quick) for features in networks)
    yield "cnn_alone_clips_per_s", round(1 / network, 2)
    with tempfile.TemporaryDirectory() as folder:
        _synth(folder, 4, clips // 4)
        job = [*MLEMISS, "preprocess", "--dataset", "ravdess", "--root", "clips", "--json", "--workers", str(workers)]
        decode = _clips_per_second([*job, "--media", "only", "--stores", "media"], folder)
        yield "media_alone_clips_per_s", round(decode, 2)
        job += ["--media", "keep", "--weights", "random", "--features", ",".join(networks), "--device", device.type]
        whole = _clips_per_second([*job, "--stores", "all"], folder)
    yield "whole_clips_per_s", round(whole, 2)
    yield "of_the_smaller", round(whole / min(decode, 1 / network), 2)


def _seconds_a_clip(features: str, device: torch.device, quick: bool) -> float:
    """Return what a network takes for the frames and spectrograms of a clip that is in host memory."""
    clips = 1 if quick else 32
    frames = [np.random.default_rng(0).integers(0, 255, (30, 256, 256, 3), dtype=np.uint8)] * clips
    backbone = Backbone(features, Weights("random"), "fp32", device.type)
    rates = [_rate(partial(backbone.encode, "frames", frames), 30 * clips, device) for _ in range(2)]
    return 2 * 30 / rates[-1]  # the first warms up


def _clips_per_second(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    done = json.loads("\n".join(_run(command, folder)))["done"]
    return done / (time.perf_counter() - start)


def _synth(folder: str, subjects: int, each: int) -> None:
    _run([*MLEMISS, "synth", "clips", "--subjects", str(subjects), "--clips-per-subject", str(each)], folder)


def _run(command: Sequence[str], folder: str | Path = ".") -> list[str]:
    """Return the lines that a command prints. RuntimeError: it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()
        raise RuntimeError(f"{' '.join(command[1:5])} …: {said[-1]}")
    return done.stdout.splitlines()


def end_to_end(device: torch.device, quick: bool) -> Found:
    """Time a step that trains the backbones, in every precision."""
    subjects, per_subject = (2, 12) if quick else (4, 24)
    backbone, size, turns = ("resnet34", "8", "1") if quick else ("resnet50", "128", "2")
    with tempfile.TemporaryDirectory() as folder:
        _synth(folder, subjects, per_subject)
        _run([*MLEMISS, "preprocess", "--dataset", "ravdess", "--root", "clips", "--media", "only"], folder)
        (store,) = (Path(folder) / "stores").glob("*.zarr")
        script = [sys.executable, str(Path(__file__).with_name("end_to_end.py")), "--store", str(store)]
        script += ["--backbone", backbone, "--batch-size", size, "--micro-batch", size, "--turns", turns]
        for precision in ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32",):
            yield precision, json.loads(_run([*script, "--device", device.type, "--precision", precision])[-1])


def tune(device: torch.device, quick: bool) -> Found:
    """Time a whole tuning as a command, and a `train` command of each method with the default settings."""
    clips, draws, seeds, methods = (36, 2, 1, ["mle", "ae1"]) if quick else (248, 30, 5, tuning.METHODS.split(","))
    yield "runs", draws * seeds * len(methods)
    with tempfile.TemporaryDirectory() as folder:
        common = ["--store", str(training.random_store(Path(folder), clips, 64).path), "--missing", MISSING]
        common += ["--seeds", str(seeds), "--device", device.type]
        drawn = ["--method", ",".join(methods), "--draws", str(draws), "--out", f"{folder}/tuned"]
        together = tuning.seconds_of("tune", *common, *drawn)
        yield "one_command_s", round(together, 1)
        apart = [tuning.seconds_of("train", *common, "--method", m, "--out", f"{folder}/{m}") for m in methods]
    yield "separate_s", round(draws * sum(apart), 1)
    yield "ratio", round(draws * sum(apart) / together, 2)


# ---- All of it ----


def run_parts(o: argparse.Namespace, device: torch.device) -> dict:
    """Run each part while there is time; return what each found, and why it did not find all."""
    end, found = time.monotonic() + 60 * o.minutes, {}
    for part in o.parts.split(","):
        left = end - time.monotonic()
        if left < 5:
            found[part] = {"not_run": "the time is up"}
        else:
            print(f"{part}: {left:.0f} s are left", flush=True)
            start = time.monotonic()
            found[part] = run_part(part, o.quick, device, min(left, 20 * o.minutes) if part == "suite" else left)
            found[part]["took_s"] = round(time.monotonic() - start, 1)
        print_part(part, found[part])
    return found


def run_part(part: str, quick: bool, device: torch.device, seconds: float) -> dict:
    """Run a part in a process of its own, and end all that it started, files too, when it or the time is over."""
    command = [sys.executable, __file__, "--part", part, "--device", device.type, *(["--quick"] if quick else [])]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        with subprocess.Popen(command, env=os.environ | {"TMPDIR": folder}, **given) as process:
            found = {}
            try:
                printed, said = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                found["stopped"] = f"after {seconds:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            if found:
                printed, said = process.communicate()
    for line in printed.splitlines():
        found |= json.loads(line) if line.startswith("{") else {}  # `training.py` prints for people, too
    if process.returncode and "stopped" not in found:
        found["failed"] = (said.splitlines() or ["nothing was said"])[-1]
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
    if not o.minutes > 0:
        parser.error(f"--minutes {o.minutes:g}: expected more than 0")
    try:
        device = torch.device(resolve_device(o.device))
    except InputError as error:
        parser.error(str(error))
    keep_freed_memory()
    if o.part:
        for name, value in globals()[o.part](device, o.quick):
            print(json.dumps({name: value}), flush=True)
        return
    try:
        out = o.out and o.out.open("a", encoding="utf-8")
    except OSError as error:
        parser.error(f"--out {o.out}: {error.strerror}")
    if device.type == "cpu":
        print("no card here: the processor is measured, in small sizes")
        o.quick = True
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    print(f"{name}, {cores} cores, torch {torch.__version__}, CUDA {torch.version.cuda}")
    document = {"device": name, "kind": device.type, "cores": cores, "torch": torch.__version__, "quick": o.quick}
    try:
        with interruptible():
            document["parts"] = run_parts(o, device)
    except KeyboardInterrupt:
        sys.exit(130)
    if out:
        with out:
            out.truncate(0)
            out.write(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    sys.exit(any({"failed", "stopped", "not_run"} & part.keys() for part in document["parts"].values()))


if __name__ == "__main__":
    main()
