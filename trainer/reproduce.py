"""The paper's tables and figures as grids: plan, estimate, run what is not finished yet, set ours beside theirs."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..pipeline.datasets import expected_clips
from ..pipeline.errors import InputError
from ..pipeline.lock import only_one
from ..pipeline.memory import keep_freed_memory
from ..pipeline.places import Place
from ..pipeline.progress import say
from ..pipeline.store import FeatureStore, find_store, stores_in
from . import experiments, kept, side_by_side
from .cells import Cell, Plan, plan_grid, with_seeds
from .estimate import duration_text, estimate
from .job import check_features, shown_progress
from .paper import EXHIBITS, NOT_YET, Exhibit
from .report import write_report
from .settings import Settings
from .tables import weights_text

LEAST_SEEDS = 2  # with fewer there is no deviation; a budget takes rows away first


def find_exhibit(name: str) -> Exhibit:
    """InputError: an unknown name, or one that cannot be made yet."""
    if name in NOT_YET:
        raise InputError(
            f"{name} is not available yet: it takes networks trained end to end on eNTERFACE'05, and this version "
            f"trains on cached features.\nAvailable are {', '.join(EXHIBITS)}."
        )
    if name not in EXHIBITS:
        raise InputError(f"unknown exhibit {name!r}: expected {', '.join(EXHIBITS)} (not yet: {', '.join(NOT_YET)}).")
    return EXHIBITS[name]


def choose_stores(
    exhibit: Exhibit, folder: Place, dataset: str | None, features: Sequence[str] | None
) -> tuple[list[FeatureStore], list[str]]:
    """The stores to run on, of the named features, else of those of the exhibit's that are there; and what is absent.

    The dataset is the exhibit's where a store of it is there, else the only one. InputError: a named backbone's store,
    or every store, is absent, or several fit.
    """
    there = [attrs for _, attrs in stores_in(folder)]
    if dataset is None and any(attrs["dataset"] == exhibit.dataset for attrs in there):
        dataset = exhibit.dataset
    if features:
        return [FeatureStore.open(find_store(folder, name, dataset)) for name in features], []
    chosen, absent = [], []
    for name in exhibit.features:
        if any(attrs["features"] == name and dataset in (None, attrs["dataset"]) for attrs in there):
            chosen.append(FeatureStore.open(find_store(folder, name, dataset)))
        else:
            command = f"mlemiss preprocess --dataset {dataset or exhibit.dataset} --features {name}"
            absent.append(f"{name}: no store of it in {folder}; `{command}` makes one")
    if not chosen:
        raise InputError(
            f"no store of {', '.join(exhibit.features)} in {folder}, and {exhibit.name} needs at least one.\n"
            f"Make them with `mlemiss preprocess --dataset {dataset or exhibit.dataset}`, or name others' --features."
        )
    return chosen, absent


def ran_on(exhibit: Exhibit, store: FeatureStore) -> str:
    """What numbers from this store are of, loud where that is not what the paper used."""
    done = set(store.clip_id[store.status == "done"].tolist())
    if store.synthetic:
        data = f"SYNTHETIC CLIPS ({len(done)} of drawn faces and made voices): says nothing about {exhibit.dataset}"
    elif store.dataset != exhibit.dataset:
        data = f"ANOTHER DATA SET than the paper's {exhibit.dataset}: {store.dataset}, {len(done)} clips"
    else:
        expected = set(expected_clips(exhibit.dataset) or ())
        data = f"{store.dataset}, all {len(done)} clips"
        if done != expected:
            data = f"A SUBSET of {store.dataset}: {len(done & expected)} of its {len(expected)} clips"
            data += f", and {len(done - expected)} CLIPS THAT ARE NOT IN IT" if done - expected else ""
    return f"{store.features}: {data}; {weights_text(store.weights.get('name'))}, store {store.fingerprint}"


def reproduce(
    exhibit: Exhibit,
    stores: Sequence[FeatureStore],
    out: Path,
    *,
    fusions: Sequence[str],
    splits: Sequence[str],
    seeds: int,
    settings: Settings,
    device: str,
    absent: Sequence[str] = (),
    budget: float | None = None,
) -> dict:
    """Run what is not finished yet into ``out``; write report.html, NAME.md and NAME.json; return the latter.

    absent: what it cannot run on, in words. budget: hours, which choose the cells by an estimate; it stops nothing.
    InputError: not enough for any row, or another process works in the folder.
    """
    check_features(stores)
    keep_freed_memory()
    where = experiments.choose_device(device)
    lines = [ran_on(exhibit, store) for store in stores]
    for line in [exhibit.title, *(f"left out {line}" for line in absent), *lines]:
        say(line)
    plan = plan_grid(
        stores, methods=exhibit.methods, fusions=fusions, missing=exhibit.missing, seeds=seeds, split=splits
    )
    with only_one(out / ".lock", str(out)):
        found = kept.take_up(out, exhibit.name)

        def finished(cell: Cell) -> bool:
            return kept.identity(experiments.describe(cell, settings)) in found

        left = [cell for cell in plan.cells if not finished(cell)]
        left_out: list[str] = []
        if left:
            say(f"timing a short training of each method on {where}")
            seconds = estimate(left, settings, where)
            total = sum(seconds.values())
            say(f"{sum(len(c.runs) for c in left)} runs of {len(left)} cells to train: about {duration_text(total)}")
            if budget is not None and total > 3600 * budget:
                cells, left_out, cost = within_budget(plan.cells, seconds, finished, 3600 * budget)
                plan = replace(plan, cells=cells)
                say(f"for a budget of {duration_text(3600 * budget)}, cells of about {duration_text(cost)} are run")
                for line in left_out:
                    say(f"left out: {line}")
        document = run_plan(plan, settings, where, out, exhibit)
        compared = side_by_side.compare(exhibit, document, lines, [*absent, *left_out])
        side_by_side.write(compared, out)
        write_report([document], out / "report.html")
        return compared


def run_plan(plan: Plan, settings: Settings, where: torch.device, out: Path, exhibit: Exhibit) -> dict:
    with shown_progress(exhibit.name) as report:
        return experiments.run_plan(
            plan,
            settings,
            where,
            out=out,
            resume=True,
            exhibit=exhibit.name,
            command=shlex.join(["mlemiss", *sys.argv[1:]]),
            progress=report,
            say=say,
        )


def within_budget(
    cells: Sequence[Cell], seconds: Mapping[Cell, float], finished: Callable[[Cell], bool], budget: float
) -> tuple[list[Cell], list[str], float]:
    """Cells that fit into so many seconds, what is left out, in words, and the seconds they take.

    First every cell is given fewer seeds, down to two; then rows (all methods of a backbone and split) go, the last
    first; then one seed for the first row. Finished cells cost nothing and stay, with all their seeds.
    InputError: not even that fits.
    """
    most = max(len(cell.runs) for cell in cells)
    rows = list(dict.fromkeys((cell.split, cell.clips) for cell in sorted(cells, key=_by_split(cells))))
    few = min(LEAST_SEEDS, most)
    choices = [(n, len(rows)) for n in range(most, few - 1, -1)]
    choices += [(few, count) for count in range(len(rows) - 1, 0, -1)] + [(1, 1)]
    for n, count in choices:
        chosen, cost = [], 0.0
        for cell in cells:
            if finished(cell):
                chosen.append(cell)
            elif (cell.split, cell.clips) in rows[:count]:
                fewer = with_seeds(cell, n)
                chosen.append(fewer)
                cost += 0.0 if finished(fewer) else seconds[cell] * n / len(cell.runs)
        if cost <= budget:
            gone = [f"all of {clips.store.features} by {split}" for split, clips in rows[count:]]
            gone += [f"{most - n} of {most} seeds of every cell not finished before"] if n < most else []
            return chosen, gone, cost
    raise InputError(
        f"a budget of {budget:.1f} s is not enough for one row with one seed, which takes about {cost:.1f} s.\n"
        f"Give more hours, fewer --epochs, or fewer --features."
    )


def _by_split(cells: Sequence[Cell]) -> Callable[[Cell], int]:
    order = list(dict.fromkeys(cell.split for cell in cells))
    return lambda cell: order.index(cell.split)
