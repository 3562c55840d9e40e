"""Evidence for the defaults: the marginal's estimator and the hyper-parameters, compared on validation clips.

    python benchmarks/choices.py marginal STORE [STORE ...] [--missing visual:0.8,visual:0.95,…] [--fusions addition,…]
    python benchmarks/choices.py settings STORE [STORE ...] [--missing visual:0.9,audio:0.9]
    python benchmarks/choices.py clamp STORE [STORE ...] [--rates 0.8,0.95] [--methods mle,…]
    python benchmarks/choices.py rates STORE [STORE ...] [--rates 0.9] [--methods mle,…] [--lr 0.003]
        [--dropout 0,0.25,0.5] [--weight-decay 0.0001,0.1,0.4]
    python benchmarks/choices.py draws FOLDER [FOLDER ...]

`marginal` trains mle with each estimator; `settings` changes one hyper-parameter at a time, the same for every method;
`clamp` bounds the standardised inputs, the same for every method, where either of two modalities lacks that share.
`rates` combines learning rates, dropout and weight decay, the same for every method, where the first modality lacks
that share; `draws` reads what `mlemiss tune` did, and ranks the draws over all fused methods of all folders.
Stores with subjects are split by subject for `clamp` and `rates`; pixels=PATH,zernike=PATH takes two modalities of a
store.
Tables are in Markdown: mean validation accuracy in percent of clips, over seeds (and, for `settings`, over methods).
Test clips are not looked at. The last line is JSON.
"""

import argparse
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mlemiss.pipeline.encoders import keep_freed_memory
from mlemiss.pipeline.options import parse_stores
from mlemiss.pipeline.stores.catalogue import open_store
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.experiments.experiments import run_grid, run_plan
from mlemiss.trainer.experiments.grid import Cell, Grid, plan_grid
from mlemiss.trainer.experiments.space import COMMON
from mlemiss.trainer.settings import MARGINALS, Settings

METHODS = ("mle", "zero-padding", "lower-bound", "hgr", "ae1")
CHANGES = {
    "epochs": (20, 80),
    "lr": (3e-4, 1e-3, 1e-2),
    "batch_size": (128, 512),
    "hidden": (64, 256),
    "dim": (8, 32),
    "weight_decay": (0.0, 1e-2),
}
CLAMPS = (0.0, 3.0, 5.0, 10.0, 20.0)


def marginal(stores: list[FeatureStore], missing: list[str], fusions: list[str], seeds: int) -> dict:
    """Accuracy by fusion, store and missing spec, a column an estimator."""
    print(f"| fusion | data | missing | {' | '.join(MARGINALS)} | seconds |")
    print("|---|---|---|" + "---|" * (len(MARGINALS) + 1))
    found = {}
    for fusion in fusions:
        for store in stores:
            grid = Grid(["mle"], [fusion], missing, seeds=seeds)
            runs = [run_grid([store], grid, Settings(marginal=m))["results"] for m in MARGINALS]
            for place, spec in enumerate(missing):
                values = [np.array(results[place]["val_accuracy"]) for results in runs]
                spent = "/".join(f"{results[place]['seconds']:.0f}" for results in runs)
                cells = " | ".join(f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" for v in values)
                print(f"| {fusion} | {store.dataset} | {spec} | {cells} | {spent} |", flush=True)
                found[f"{fusion} {store.dataset} {spec}"] = [round(float(v.mean()), 2) for v in values]
    return found


def settings(stores: list[FeatureStore], missing: list[str], fusions: list[str], seeds: int, names: list[str]) -> dict:
    """Accuracy by change, a column a store, the mean over methods and missing specs."""
    print(f"| change | {' | '.join(store.dataset for store in stores)} | mean | worst method against the defaults |")
    print("|---|" + "---|" * (len(stores) + 2))
    default, found, first = Settings(), {}, None
    for name, value in [("defaults", None), *((n, value) for n in names for value in CHANGES[n])]:
        changed = replace(default, **{name: value}) if value is not None else default
        columns, methods = [], {}
        for store in stores:
            results = run_grid([store], Grid(METHODS, fusions, missing, seeds=seeds), changed)["results"]
            columns.append(np.mean([r["val_accuracy"] for r in results]))
            for r in results:
                methods.setdefault(r["method"], []).append(np.mean(r["val_accuracy"]))
        methods = {method: float(np.mean(values)) for method, values in methods.items()}
        first = first or methods
        worst = min(methods, key=lambda m: methods[m] - first[m])
        label = "defaults" if value is None else f"{name} {value:g}"
        cells = " | ".join(f"{c:.1f}" for c in columns)
        print(
            f"| {label} | {cells} | {np.mean(columns):.1f} | {worst} {methods[worst] - first[worst]:+.1f} |", flush=True
        )
        found[label] = {"mean": round(float(np.mean(columns)), 2), "methods": methods}
    return found


def clamp(stores: list[FeatureStore], rates: list[str], seeds: int, methods: list[str]) -> dict:
    """Accuracy by store and missing rate, a column a bound, the mean over methods and over which modality lacks it."""
    print(f"| data | missing | {' | '.join(f'{bound:g}' for bound in CLAMPS)} | most harmed |")
    print("|---|---|" + "---|" * (len(CLAMPS) + 1))
    found = {}
    for store in stores:
        split = "subject" if len(np.unique(store.subject)) > 1 else "clip"
        specs = [f"{modality}:{rate}" for rate in rates for modality in store.modalities]
        grid = Grid(methods, missing=specs, seeds=seeds, splits=[split])
        every = [run_grid([store], grid, Settings(clamp=bound))["results"] for bound in CLAMPS]
        for rate in rates:
            values = {m: np.array([_mean(results, m, rate) for results in every]) for m in methods}
            label = f"{store.dataset} {', '.join(store.modalities)} | {rate}"
            changes = [(v[b] - v[0], m, CLAMPS[b]) for m, v in values.items() for b in range(1, len(CLAMPS))]
            loss, worst, bound = min(changes)
            cells = " | ".join(f"{value:.1f}" for value in np.mean(list(values.values()), 0))
            print(f"| {label} | {cells} | {worst} {loss:+.1f} by {bound:g} |", flush=True)
            found[label] = {method: v.round(2).tolist() for method, v in values.items()}
    return found


def rates(stores: list[FeatureStore], missing: list[str], seeds: int, methods: list[str], each: Mapping) -> dict:
    """Accuracy less the first's by combination, a column a store, the mean over methods and rates."""
    every = [Settings(**dict(zip(each, values, strict=True))) for values in itertools.product(*each.values())]
    found: dict[str, dict[str, np.ndarray]] = {}
    for store in stores:
        split = "subject" if len(np.unique(store.subject)) > 1 else "clip"
        specs = [f"{store.modalities[0]}:{rate}" for rate in missing]
        plan = plan_grid([store], Grid(methods, missing=specs, seeds=seeds, splits=[split]), lambda cell: every)
        run_plan(plan, torch.device("cpu"), tuning=True)
        scores = {m: [_validation(cell) for cell in plan.cells if cell.method == m] for m in methods}
        found[f"{store.dataset} {', '.join(store.modalities)}"] = {
            m: np.reshape(values, (len(specs), -1)).mean(0) for m, values in scores.items()
        }
        print(f"{list(found)[-1]}: {scores}", flush=True)
    names = [" ".join(f"{one} {getattr(settings, one):g}" for one in each) for settings in every]
    print_gains(found, names)
    return {store: {m: v.round(2).tolist() for m, v in of.items()} for store, of in found.items()} | {"names": names}


def draws(folders: list[str]) -> dict:
    """The draws of several tunings, best first: gains over draw 0, a column a folder, the mean over fused methods."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for folder in folders:
        for row in json.loads((Path(folder) / "tuned.json").read_text())["rows"]:
            names = [{n: drawn[n] for n in COMMON} for drawn in row["drawn"]]
            if not row["method"].startswith("only:"):
                data = f"{row['dataset']} {row['features']} {row['missing']} by {row['split']}"
                found.setdefault(data, {})[row["method"]] = np.array(row["validation"])
    print_gains(found, [", ".join(f"{n} {v}" for n, v in one.items() if v) for one in names])
    return {data: {m: v.round(2).tolist() for m, v in of.items()} for data, of in found.items()}


def print_gains(found: Mapping[str, Mapping[str, np.ndarray]], names: list[str]) -> None:
    """Print how much each setting gains over the first, by data, in the mean, and where a method loses most."""
    gains = {data: {m: v - v[0] for m, v in of.items()} for data, of in found.items()}
    by_data = np.array([np.mean(list(of.values()), 0) for of in gains.values()])
    methods = dict.fromkeys(m for of in gains.values() for m in of)
    by_method = {m: np.mean([of[m] for of in gains.values() if m in of], 0) for m in methods}
    print(f"| settings | {' | '.join(found)} | mean | most harmed method |")
    print("|---|" + "---|" * (len(found) + 2))
    for j in np.argsort(-by_data.mean(0), kind="stable"):
        worst = min(by_method, key=lambda m: by_method[m][j])
        cells = " | ".join(f"{gain:+.1f}" for gain in (*by_data[:, j], by_data[:, j].mean()))
        print(f"| {names[j]} | {cells} | {worst} {by_method[worst][j]:+.1f} |")


def _validation(cell: Cell) -> float:
    return float(np.mean([r.val_accuracy[r.best_epoch - 1] for r in cell.results.values()]))


def _mean(results: list[dict], method: str, rate: str) -> float:
    cells = [r["val_accuracy"] for r in results if r["method"] == method and r["missing"].endswith(f":{rate}")]
    return float(np.mean(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("marginal", "settings", "clamp", "rates", "draws"))
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--rates", default="0.8,0.95", help="missing rates of clamp and rates")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods of clamp and rates")
    parser.add_argument("--lr", default="0.003")
    parser.add_argument("--dropout", default="0,0.25,0.5")
    parser.add_argument("--weight-decay", default="0.0001,0.1,0.4")
    parser.add_argument("--missing")
    parser.add_argument("--fusions")
    parser.add_argument("--change", default=",".join(CHANGES), help="hyper-parameters to change")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.what == "draws":
        print(json.dumps(draws(arguments.stores)))
        return
    stores = [open_store(parse_stores(text)) for text in arguments.stores]
    if arguments.what == "clamp":
        print(json.dumps(clamp(stores, arguments.rates.split(","), arguments.seeds, arguments.methods.split(","))))
        return
    if arguments.what == "rates":
        each = {n: list(map(float, getattr(arguments, n).split(","))) for n in ("lr", "dropout", "weight_decay")}
        methods = arguments.methods.split(",")
        print(json.dumps(rates(stores, arguments.rates.split(","), arguments.seeds, methods, each)))
        return
    compare, missing, fusions = {
        "marginal": (marginal, "visual:0.8,visual:0.95,audio:0.8,audio:0.95", "addition,concatenation,outer"),
        "settings": (settings, "visual:0.9,audio:0.9", "addition"),
    }[arguments.what]
    missing, fusions = (arguments.missing or missing).split(","), (arguments.fusions or fusions).split(",")
    more = {"names": arguments.change.split(",")} if arguments.what == "settings" else {}
    print(json.dumps(compare(stores, missing, fusions, arguments.seeds, **more)))


if __name__ == "__main__":
    main()
