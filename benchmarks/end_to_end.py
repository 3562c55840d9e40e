"""Images per second of a step end to end beside the same backbones alone, in one run, in turns.

    python benchmarks/end_to_end.py --store stores/ravdess-media-*.zarr [--backbone resnet50] [--batch-size 64]

A step is the product's: media from the store, read ahead, onto the device, resized and normalised, through a backbone
for each modality, the method's loss, backward, and the optimiser. Beside it the limit: the same two networks' forward
and backward passes on random tensors of the network's own size, as many images of each modality, with the same
micro-batch and precision. Complete data, so that every row has both. Both are timed in turns, after one turn that
counts for nothing.

    python benchmarks/end_to_end.py --store … --accuracy [--budget HOURS]

instead runs `reproduce table1` on the store's clips within a budget, and then the same cells once more with the
backbones frozen as they were at first (random weights unless --init says otherwise).
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from mlemiss.pipeline.encoders import parse_weights, resolve_device
from mlemiss.pipeline.encoders.images import Backbone
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.batches import Stage
from mlemiss.trainer.data import RunSpec
from mlemiss.trainer.end_to_end.end_to_end import EndToEnd, MediaClips
from mlemiss.trainer.experiments.paper import EXHIBITS
from mlemiss.trainer.experiments.reproduce import reproduce
from mlemiss.trainer.methods import load
from mlemiss.trainer.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--init", default="random")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--compile", action="store_true", help="the product's step, not the bare one")
    parser.add_argument("--backbone-lr", type=float, default=1e-4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=4, help="a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--budget", type=float, default=0.2, help="hours, of --accuracy")
    parser.add_argument("--epochs", type=int, default=10, help="of --accuracy")
    parser.add_argument("--seeds", type=int, default=2, help="of --accuracy")
    parser.add_argument("--out", type=Path, default=Path("runs/end_to_end"), help="of --accuracy")
    o = parser.parse_args()
    weights = parse_weights([o.init], [o.backbone])[o.backbone]
    how = {"backbone_lr": o.backbone_lr, "micro_batch": o.micro_batch, "precision": o.precision, "compiled": o.compile}
    options = EndToEnd(o.backbone, weights, augment=o.augment, **how)
    store = FeatureStore.open(o.store)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(json.dumps(accuracy(store, options, o) if o.accuracy else speed(store, options, o)))


# Speed.


def speed(store: FeatureStore, options: EndToEnd, o: argparse.Namespace) -> dict:
    """Images per second of both, medians over turns, and the ratio turn by turn."""
    device = torch.device(resolve_device(o.device))
    product, bare = steps_end_to_end(store, options, o, device), steps_bare(options, o, device)
    rates: dict[str, list[float]] = {"end to end": [], "bare": []}
    for turn in range(o.turns + 1):
        for name, step in (("end to end", product), ("bare", bare)):
            rate = timed(step, o.steps, device)
            if turn:
                rates[name].append(rate)
                print(f"turn {turn}: {name} {rate:.2f} images/s")
    ratios = [one / other for one, other in zip(*rates.values(), strict=True)]
    found = {name.replace(" ", "_"): round(statistics.median(values), 3) for name, values in rates.items()}
    print(f"ratio {statistics.median(ratios):.3f} (of {o.turns} turns {min(ratios):.3f} to {max(ratios):.3f})")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    setting = {"backbone": o.backbone, "batch_size": o.batch_size, "micro_batch": o.micro_batch, "device": where}
    spread = {"ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in ratios]}
    return {"benchmark": "end_to_end"} | setting | {"precision": o.precision, "augment": o.augment} | found | spread


def timed(step: Callable[[], int], steps: int, device: torch.device) -> float:
    """Images per second."""
    start = time.perf_counter()
    images = sum(step() for _ in range(steps))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def steps_end_to_end(store, options, o, device) -> Callable[[], int]:
    """A step of training the maximum-likelihood method; returns its number of images."""
    clips = MediaClips(store, options)
    settings = Settings(batch_size=o.batch_size)
    runs = clips.load(device).runs([clips.run(RunSpec(0))], Stage())
    method = load("mle")(runs, settings, "addition")
    groups = [{"params": list(method.parameters())}]
    if not options.frozen:
        groups.append({"params": list(runs.trunks.parameters()), "lr": options.backbone_lr})
    optimiser = torch.optim.AdamW(groups, lr=settings.lr)
    of_epoch = runs.batches(Stage(), 0, o.batch_size)

    def endless():
        epoch = 0
        while True:
            epoch += 1
            yield from of_epoch.epoch(epoch)

    batches = endless()
    method.train()
    runs.trunks.train()
    method.begin_epoch(Stage(), 0)

    def step() -> int:
        batch = next(batches)
        optimiser.zero_grad(set_to_none=True)
        method.loss(batch).sum().backward()
        optimiser.step()
        return int(batch.observed.sum())

    return step


def steps_bare(options: EndToEnd, o: argparse.Namespace, device: torch.device) -> Callable[[], int]:
    """Both networks' forward and backward passes over as many images, in micro-batches one after the other."""
    networks = [Backbone(options.backbone, options.init) for _ in range(2)]
    models = [n.model.to(device, memory_format=torch.channels_last).train() for n in networks]
    sizes = [min(o.micro_batch, o.batch_size - first) for first in range(0, o.batch_size, o.micro_batch)]
    images = [
        torch.randn(n, 3, *networks[0].spec["input_size"], device=device).contiguous(memory_format=torch.channels_last)
        for n in sizes
    ]

    def step() -> int:
        for model in models:
            for part in images:
                with torch.autocast(device.type, torch.bfloat16, enabled=o.precision == "bf16"):
                    features = model(part)
                features.float().sum().backward()
            model.zero_grad(set_to_none=True)
        return 2 * o.batch_size

    return step


# Accuracy.


def accuracy(store: FeatureStore, options: EndToEnd, o: argparse.Namespace) -> dict:
    """`reproduce table1` within the budget, and the same cells with the backbones frozen as they began."""
    table = EXHIBITS["table1"]
    how = Settings(epochs=o.epochs, batch_size=o.batch_size), o.device
    grid, out = table.grid(seeds=o.seeds), o.out / "trained"
    start = time.perf_counter()
    document = reproduce(table, [store], out, grid, *how, hours=o.budget, end_to_end=options)
    seconds = time.perf_counter() - start
    trained = {(c["method"], c["fusion"], c["missing"]): c for c in document["cells"]}
    still = replace(options, frozen=True, augment=False)
    rows, gains = [], []
    for fusion, missing in dict.fromkeys(key[1:] for key in trained):
        seeds = len(next(c["seeds"] for key, c in trained.items() if key[1:] == (fusion, missing)))
        part, out = replace(table, missing=(missing,)), o.out / f"frozen-{fusion}-{missing.replace(':', '-')}"
        found = reproduce(part, [store], out, part.grid([fusion], seeds=seeds), *how, end_to_end=still)
        for cell in found["cells"]:
            row = [cell["method"], fusion, missing]
            if tuple(row) not in trained:  # the time was up
                continue
            one, other = trained[tuple(row)]["mean"], cell["mean"]
            rows.append({"row": row, "trained": one, "frozen": other})
            gains.append(round(one - other, 6))
            print(f"{' '.join(row):40} trained {one:5.1f}  frozen {other:5.1f}")
    mean, better = statistics.mean(gains), sum(gain > 0 for gain in gains)
    print(f"end to end {mean:+.1f} points on average, better in {better} of {len(gains)} rows")
    found = {"rows": rows, "mean_gain": round(mean, 2), "better": better, "seconds": round(seconds, 1)}
    found |= {"left_out": len(document["left_out"])}
    return {"benchmark": "end_to_end_accuracy", "backbone": o.backbone, "epochs": o.epochs, "budget": o.budget} | found


if __name__ == "__main__":
    main()
