"""Training as one batch of runs beside the same runs one by one, and the memory of the outer product's marginal.

    python benchmarks/training.py [--widths 2048,128] [--runs 10] [--epochs 2] [--clips 1152] [--device auto] [--table2]

1. grid: seconds of `run_grid` (mle, addition, batch marginal) beside a plain PyTorch loop over the same runs: one model
   at a time, a DataLoader that shuffles, AdamW, the same networks, loss, selection on validation clips after every
   epoch. Features are random, RAVDESS-sized. In turns, after a warm-up. Also how near the grid's matrix products come
   to the peak that a large product reaches on this device in the same run, and the mean difference of the two
   accuracies run by run with half its 95 % interval: the runs share split and masks but not their random start, and
   after two epochs single runs differ by several points. `bank_s` is the same grid with the default marginal, which the
   plain loop has not, `defaults_s` with dropout and the clamp of inputs, too.
2. memory: peak memory of loss and gradient of the outer product's marginal for growing supports.
3. `--table2`: seconds of the 270 runs of Table 2: three widths, two modalities, three rates, three methods, five seeds.

Every part is measured within this one run. The last line is JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mlemiss.pipeline.encoders import keep_freed_memory, resolve_device
from mlemiss.pipeline.stores.store import FeatureStore, attributes, create_array, open_group, publish, write_table
from mlemiss.trainer.data import Clips, Dataset, RunSpec
from mlemiss.trainer.experiments.experiments import run_grid
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.settings import Settings
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES, SEGMENTS = 6, 30
SUPPORTS = (1_000, 3_000, 10_000, 30_000)


def random_store(folder: Path, clips: int, width: int) -> FeatureStore:
    """A store of random features with a little of the class in them."""
    rng = np.random.default_rng(0)
    label = np.arange(clips) % CLASSES
    name = f"random-{width}-0"
    group = open_group(folder / f".{name}")
    for modality in ("visual", "audio"):
        values = rng.standard_normal((clips, SEGMENTS, width), np.float32)
        values += 0.05 * rng.standard_normal((CLASSES, 1, width), np.float32)[label]
        shape = values.shape
        dimensions = ["clip", "segment", "feature"]
        create_array(group, modality, shape, (32, *shape[1:]), "float16", dimensions)[:] = values.astype(np.float16)
    text = {"subject": [f"s{i % 24}" for i in range(clips)], "status": ["done"] * clips}
    text |= {"clip_id": [f"{i:05d}" for i in range(clips)], "error": [""] * clips, "sha256": [""] * clips}
    table = {n: np.array(v) for n, v in text.items()} | {"label": label, "duration": np.full(clips, 3.0)}
    write_table(group, table, np.ones((clips, 2), bool))
    classes = [f"class {c}" for c in range(CLASSES)]
    group.attrs.update(attributes("random", str(width), "0", classes, {}, {"name": "random", "hash": "0"}, {}))
    publish(folder / f".{name}", folder / f"{name}.zarr")
    return FeatureStore.open(folder / f"{name}.zarr")


class PlainModel(nn.Module):
    """What a script would write for one run."""

    def __init__(self, width: int, settings: Settings):
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(width, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, settings.dim))
            for _ in range(2)
        )
        self.labels = nn.Linear(CLASSES, settings.dim)

    def forward(self, x, y, audio):
        h = self.labels(torch.eye(CLASSES, device=x.device))
        f, g = self.encoders[0](x) @ h.T, self.encoders[1](y.masked_fill(~audio[:, None], 0))
        seen = g[audio] @ h.T
        marginal = seen.logsumexp(0) - np.log(max(len(seen), 1)) if len(seen) else torch.zeros(CLASSES, device=x.device)
        return (f + torch.where(audio[:, None], g @ h.T, marginal)).log_softmax(-1)


def plain_run(dataset: Dataset, run, settings: Settings) -> float:
    """Train one run the plain way; its test accuracy."""
    device, S = dataset.device, dataset.segments
    on_gpu = device.type == "cuda"
    torch.manual_seed(run.spec.seed)
    parts = {}
    for part in (0, 1, 2):
        rows = (np.flatnonzero(run.part == part)[:, None] * S + np.arange(S)).ravel()
        audio = torch.as_tensor(np.repeat(run.observed[run.part == part, 1], S))
        parts[part] = [f.cpu()[torch.as_tensor(rows)].float() for f in dataset.features] + [audio]
        parts[part].append(dataset.label.cpu()[torch.as_tensor(rows // S)])
    x, y, audio, _ = parts[0]
    for m, seen in ((0, x), (1, y[audio])):
        mean, std = seen.mean(0), seen.std(0)
        for values in parts.values():
            values[m] = (values[m] - mean) / std
    held_out = [[values.to(device) for values in parts[part]] for part in (1, 2)]
    loader = DataLoader(TensorDataset(*parts[0]), batch_size=settings.batch_size, shuffle=True, pin_memory=on_gpu)
    model = PlainModel(x.shape[1], settings).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    best, kept = -1.0, 0.0
    for _ in range(settings.epochs):
        for batch in loader:
            x, y, audio, label = (values.to(device, non_blocking=True) for values in batch)
            optimiser.zero_grad()
            nn.functional.nll_loss(model(x, y, audio), label).backward()
            optimiser.step()
        scores = []
        with torch.no_grad():
            for x, y, audio, label in held_out:
                clips = model(x, y, audio).exp().unflatten(0, (-1, S)).mean(1)
                scores.append((clips.argmax(1) == label[::S]).float().mean().item())
        if scores[0] > best:
            best, kept = scores
    return 100 * kept


def peak(device: torch.device) -> float:
    """Floating-point operations a second of a large float32 product."""
    a = torch.randn(4096, 4096, device=device)
    best = 0.0
    for _ in range(6):
        start = _now(device)
        a @ a
        best = max(best, 2 * 4096**3 / (_now(device) - start))
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def grid(width: int, runs: int, clips: int, epochs: int, device: torch.device, rounds: int) -> dict:
    settings = Settings(epochs=epochs, marginal="batch", dropout=0.0, clamp=0.0)  # as the plain loop has it
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), clips, width)
        seeds = max(runs // 2, 1)
        wanted = Grid(missing=["audio:0.5", "audio:0.9"], seeds=seeds)
        dataset = Dataset(Clips(store), device)
        drawn = [dataset.clips.run(RunSpec(s, m)) for m in wanted.missing for s in range(seeds)]
        short = replace(settings, epochs=1)
        run_grid([store], replace(wanted, seeds=1), short, device.type)  # warm-up of both
        plain_run(dataset, drawn[0], short)
        variants = [settings, replace(settings, marginal=Settings.marginal), Settings(epochs=epochs)]
        times = []
        for _ in range(rounds):
            ours, documents = [], []
            for variant in variants:
                start = _now(device)
                documents.append(run_grid([store], wanted, variant, device.type))
                ours.append(_now(device) - start)
            start = _now(device)
            scores = [plain_run(dataset, run, settings) for run in drawn]
            times.append((*ours, _now(device) - start))
    ratios, of_bank, of_defaults = (sorted(t[-1] / t[i] for t in times) for i in range(3))
    ours, with_bank, with_defaults, one_by_one = (min(column) for column in zip(*times, strict=True))
    rows = [(run.part == p).sum() * SEGMENTS for run in drawn for p in (0, 1, 2)]
    products = 2 * 2 * width * settings.hidden * settings.epochs  # of both modalities, one pass
    operations = products * (2 * sum(rows[::3]) + sum(rows[1::3]) + sum(rows[2::3]))
    mine = np.concatenate([result["test_accuracy"] for result in documents[0]["results"]])  # in the order of `drawn`
    gap = mine - scores
    found = {
        "runs": len(drawn),
        "grid_s": round(ours, 2),
        "bank_s": round(with_bank, 2),
        "defaults_s": round(with_defaults, 2),
        "one_by_one_s": round(one_by_one, 2),
        "ratio": round(ratios[len(ratios) // 2], 2),
        "bank_ratio": round(of_bank[len(of_bank) // 2], 2),
        "defaults_ratio": round(of_defaults[len(of_defaults) // 2], 2),
        "spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        "share_of_peak": round(float(operations) / ours / peak(device), 3),
        "accuracy": [round(float(np.mean(s)), 1) for s in (mine, scores)],
        "accuracy_gap": [round(float(x), 1) for x in (gap.mean(), 1.96 * gap.std(ddof=1) / len(gap) ** 0.5)],
    }
    print(f"{width} features: {found}", flush=True)
    return found


MEMORY = """
import sys, torch
from pathlib import Path
from mlemiss.trainer.likelihood import log_mean_exp_inner

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

N, device = int(sys.argv[1]), sys.argv[2]
R, Q, k = 10, 256 * 6, 16
queries = torch.randn(R, Q, k, device=device, requires_grad=True)
log_mean_exp_inner(queries, torch.randn(R, 16, k, device=device)).sum().backward()
keys = torch.randn(R, N, k, device=device, requires_grad=True)
if device == "cuda":
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
else:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
log_mean_exp_inner(queries, keys).sum().backward()
print((torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")) - before)
"""


def memory(device: torch.device) -> dict:
    """Bytes that loss and gradient add at their peak: 10 runs, batch 256, 6 classes, k = 16, a process each."""
    found = {}
    for N in SUPPORTS:
        command = [sys.executable, "-c", MEMORY, str(N), device.type]
        # Without keeping freed blocks, whose amount is chance.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found[N] = int(done.stdout)
        own, scores = 10 * N * 16 * 4, 10 * 256 * 6 * N * 4
        text = f"{found[N] / 1e6:.1f} MB at the peak, {own / 1e6:.1f} of it the support's gradient"
        print(f"support {N}: {text} (all scores: {scores / 1e6:.0f} MB)", flush=True)
    return found


def table2(clips: int, settings: Settings, device: torch.device) -> float:
    with tempfile.TemporaryDirectory() as folder:
        stores = [random_store(Path(folder), clips, width) for width in (4096, 512, 2048)]
        missing = [f"{m}:{rate}" for m in ("visual", "audio") for rate in (0.5, 0.8, 0.9)]
        start = _now(device)
        run_grid(stores, Grid(["ae1", "ae2", "mle"], missing=missing), settings, device.type)
        seconds = _now(device) - start
    print(f"Table 2: 270 runs of {settings.epochs} epochs in {seconds:.1f} s")
    return round(seconds, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="2048,128")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--clips", type=int, default=1152)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--table2", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()
    device = torch.device(resolve_device(arguments.device))
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}; n = {arguments.rounds}")
    found = {"device": where, "epochs": arguments.epochs, "clips": arguments.clips, "grid": {}}
    for width in map(int, arguments.widths.split(",")):
        sizes = (arguments.runs, arguments.clips, arguments.epochs, device, arguments.rounds)
        found["grid"][width] = grid(width, *sizes)
    found["memory"] = memory(device)
    if arguments.table2:
        found["table2_s"] = table2(arguments.clips, Settings(), device)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
