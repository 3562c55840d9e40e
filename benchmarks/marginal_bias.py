"""The bias of the marginal over the latest features (`bank`) against the full one, while backbones train.

    python benchmarks/marginal_bias.py --store stores/ravdess-media-*.zarr --missing audio:0.8 [--epochs 5] [--seeds 3]

Trains the maximum-likelihood method with `bank`. Before each step the same batch's loss and gradient are taken at the
same weights with `full`, every row of the support computed anew, and with a bank of features that are all fresh, which
is unbiased: what the bank as it is differs from that by is the age of its features. Printed for each epoch:

- loss_bank, loss_full: means over its steps;
- bias: length of the mean over steps of (gradient with the bank - with a fresh one), over that of full's mean gradient;
- noise: mean length over steps of (gradient with a fresh bank - with full), over the same: the drawing of the batch.

With --accuracy whole trainings with either marginal follow: test accuracies over the seeds. A backbone without batch
norms (timm:test_convnext by default) keeps the two gradients comparable.
"""

import argparse
import json
import statistics

import torch
from mlemiss.pipeline.encoders import parse_weights, resolve_device
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.batches import Batch, Stage
from mlemiss.trainer.data import RunSpec
from mlemiss.trainer.end_to_end.end_to_end import EndToEnd, MediaClips
from mlemiss.trainer.experiments.experiments import clips_as, run_grid
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.marginal import Full
from mlemiss.trainer.methods import load
from mlemiss.trainer.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--backbone", default="timm:test_convnext")
    parser.add_argument("--init", default="random")
    parser.add_argument("--backbone-lr", type=float, default=1e-3)
    parser.add_argument("--missing", default="audio:0.8")
    parser.add_argument("--fusion", default="addition")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--accuracy", action="store_true")
    o = parser.parse_args()
    options = EndToEnd(o.backbone, parse_weights([o.init], [o.backbone])[o.backbone], backbone_lr=o.backbone_lr)
    store, device = FeatureStore.open(o.store), torch.device(resolve_device(o.device))
    found = {"benchmark": "marginal_bias", "backbone": o.backbone, "missing": o.missing, "fusion": o.fusion}
    epochs = [gradients(store, options, o, seed, device) for seed in range(o.seeds)]
    found["epochs"] = [
        {name: round(statistics.mean(of[name] for of in same), 5) for name in same[0]}
        for same in zip(*epochs, strict=True)
    ]
    for number, epoch in enumerate(found["epochs"], 1):
        print(f"epoch {number}: " + ", ".join(f"{name} {value}" for name, value in epoch.items()))
    if o.accuracy:
        found["accuracy"] = {kind: accuracies(store, options, o, kind) for kind in ("bank", "full")}
        print(found["accuracy"])
    print(json.dumps(found))


def gradients(store: FeatureStore, options: EndToEnd, o: argparse.Namespace, seed: int, device: torch.device) -> list:
    """One run's epochs; see the module."""
    settings = Settings(batch_size=o.batch_size)
    clips = MediaClips(store, options)
    runs = clips.load(device).runs([clips.run(RunSpec(seed, parse_missing(o.missing)))], Stage())
    method = load("mle")(runs, settings, o.fusion)
    groups = [{"params": list(method.parameters())}]
    if not options.frozen:
        groups.append({"params": list(runs.trunks.parameters()), "lr": options.backbone_lr})
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    parameters = [p for group in groups for p in group["params"]]
    batches = runs.batches(Stage(), 0, o.batch_size)
    runs.trunks.train()
    method.begin_epoch(Stage(), 0)
    bank = method._marginals
    full = {m: Full(runs, m, method.encoders[m]) for m in bank}

    def gradient(marginals: dict, batch: Batch) -> tuple[float, torch.Tensor]:
        method._marginals = marginals
        optimiser.zero_grad(set_to_none=True)
        loss = method.loss(runs.batch(batch.rows, batch.weight)).sum()
        loss.backward()
        return loss.item(), torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )

    found = []
    for epoch in range(1, o.epochs + 1):
        losses, exact, aged, noise = [], 0, 0, 0
        for batch in batches.epoch(epoch):
            of_full, whole = gradient(full, batch)
            before = {m: marginal.bank.clone() for m, marginal in bank.items()}
            for marginal in bank.values():
                with torch.no_grad():
                    marginal.bank[:, : marginal.N] = marginal.support.features(marginal.support.rows)
            _, fresh = gradient(bank, batch)
            for m, marginal in bank.items():
                marginal.bank = before[m]
            of_bank, latest = gradient(bank, batch)
            losses.append((of_bank, of_full))
            exact, aged = exact + whole, aged + (latest - fresh)
            noise += (fresh - whole).norm()
            optimiser.step()
        steps = len(losses)
        length = exact.norm() / steps
        of_bank, of_full = map(statistics.mean, zip(*losses, strict=True))
        entry = {"loss_bank": of_bank, "loss_full": of_full, "loss_difference": of_bank - of_full}
        found.append(entry | {"bias": (aged.norm() / steps / length).item(), "noise": (noise / steps / length).item()})
    return found


def accuracies(store: FeatureStore, options: EndToEnd, o: argparse.Namespace, kind: str) -> list[float]:
    settings = Settings(epochs=o.epochs, batch_size=o.batch_size, marginal=kind)
    grid = Grid(["mle"], [o.fusion], [o.missing], seeds=o.seeds)
    return run_grid([store], grid, settings, o.device, clips_of=clips_as(options))["results"][0]["test_accuracy"]


if __name__ == "__main__":
    main()
