"""Standardising beside the gather, with and without the clamp, or folded into the first layer: forward and backward.

    python benchmarks/standardise.py [--widths 2048,128] [--runs 10] [--batch-size 256] [--hidden 128] [--rounds 20]

1. clamped: rows are gathered, standardised and clamped in one pass each, then multiplied: what `Encoder` does;
2. standardised: without the clamp;
3. folded: the raw rows are multiplied by weights over the deviation, mean and bias added: exact without a clamp alone,
   and where no entry is missing. Gradients are of the same weights.

Milliseconds are medians of rounds in turns. The last line is JSON.
"""

import argparse
import json
import statistics
import time

import torch
from mlemiss.pipeline.encoders import resolve_device
from mlemiss.trainer.networks import RunLinear, Standardise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="2048,128")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="auto")
    o = parser.parse_args()
    device, found = torch.device(resolve_device(o.device)), {}
    for width in map(int, o.widths.split(",")):
        found[width] = measure(o, width, device)
        print(width, found[width], flush=True)
    print(json.dumps({"benchmark": "standardise", "device": device.type, "threads": torch.get_num_threads(), **found}))


def measure(o: argparse.Namespace, width: int, device: torch.device) -> dict[str, float]:
    """Return milliseconds of each way, and how many times those of the folded one they are."""
    torch.manual_seed(0)
    features = torch.randn(34_560, width).to(device, torch.float16)
    mean = torch.randn(o.runs, width, device=device)
    std = torch.rand(o.runs, width, device=device) + 0.5
    layer = RunLinear(width, o.hidden, [torch.Generator().manual_seed(r) for r in range(o.runs)]).to(device)
    observed = torch.ones(o.runs, o.batch_size, dtype=torch.bool, device=device)
    plain, clamped = (Standardise(mean, std, clamp) for clamp in (0.0, 3.0))

    def folded(x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(layer.bias + plain.shift @ layer.weight, x, plain.scale.mT * layer.weight)

    ways = {
        "clamped": lambda x: layer(clamped(x, observed)),
        "standardised": lambda x: layer(plain(x, observed)),
        "folded": folded,
    }
    x = features[torch.randint(len(features), (o.runs, o.batch_size), device=device)].float()
    torch.testing.assert_close(folded(x), ways["standardised"](x), rtol=1e-3, atol=1e-3)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(o.rounds + 1):
        for name, way in ways.items():
            rows = torch.randint(len(features), (o.runs, o.batch_size), device=device)
            layer.zero_grad()
            start = now(device)
            way(features[rows].float()).square().sum().backward()
            spent[name].append(now(device) - start)
    median = {name: statistics.median(seconds[1:]) for name, seconds in spent.items()}
    times = {f"{name}_of_folded": round(median[name] / median["folded"], 2) for name in ("clamped", "standardised")}
    return {f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in median.items()} | times


def now(device: torch.device) -> float:
    """Return the time in seconds when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
