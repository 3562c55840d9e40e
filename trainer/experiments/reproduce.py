"""The paper's tables and figures as grids: plan, estimate, run what is not finished yet, set ours beside theirs."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...pipeline.clips.datasets import expected_clips
from ...pipeline.console import say
from ...pipeline.encoders.images import keep_freed_memory
from ...pipeline.errors import InputError
from ...pipeline.stores.catalogue import find_store, stores_in
from ...pipeline.stores.claim import only_one
from ...pipeline.stores.remote import Place
from ...pipeline.stores.store import MEDIA, FeatureStore
from ..end_to_end.end_to_end import EndToEnd, MediaClips
from ..report.report import write_report
from ..report.tables import source_text, weights_text
from ..settings import Settings
from . import experiments, side_by_side
from . import run_folder as kept
from .estimate import duration_text, estimate
from .grid import Cell, Plan, plan_grid, with_seeds
from .job import check_features, clips_as, shown_progress
from .paper import EXHIBITS, Exhibit

LEAST_SEEDS = 2  # with fewer there is no deviation; a budget takes rows away first


def find_exhibit(name: str) -> Exhibit:
    """InputError: an unknown name."""
    if name not in EXHIBITS:
        raise InputError(f"unknown exhibit {name!r}: expected {', '.join(EXHIBITS)}.")
    return EXHIBITS[name]


def choose_stores(
    exhibit: Exhibit, folder: Place, dataset: str | None, features: Sequence[str] | None
) -> tuple[list[FeatureStore], list[str]]:
    """The stores to run on, of the named features, else of those of the exhibit's that are there; and what is absent.

    An exhibit of networks trained end to end runs on media.
    The dataset is the exhibit's where a store of it is there, else the only one. InputError: a named backbone's store,
    or every store, is absent, or several fit.
    """
    there = [attrs for _, attrs in stores_in(folder)]
    if dataset is None and any(attrs["dataset"] == exhibit.dataset for attrs in there):
        dataset = exhibit.dataset
    if features:
        return [FeatureStore.open(find_store(folder, name, dataset)) for name in features], []
    wanted = (MEDIA,) if exhibit.end_to_end else exhibit.features
    made = f"mlemiss preprocess --dataset {dataset or exhibit.dataset}" + " --media only" * exhibit.end_to_end
    chosen, absent = [], []
    for name in wanted:
        if any(attrs["features"] == name and dataset in (None, attrs["dataset"]) for attrs in there):
            chosen.append(FeatureStore.open(find_store(folder, name, dataset)))
        else:
            absent.append(f"{name}: no store of it in {folder}; `{made} --features {name}` makes one")
    if not chosen:
        raise InputError(
            f"no store of {', '.join(wanted)} in {folder}, and {exhibit.name} needs at least one.\n"
            f"Make {'one' if exhibit.end_to_end else 'them'} with `{made}`"
            + ("." if exhibit.end_to_end else ", or name others' --features.")
        )
    return chosen, absent


def ran_on(exhibit: Exhibit, store: FeatureStore, options: EndToEnd | None = None) -> str:
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
    if options is None:
        return f"{store.features}: {data}; {weights_text(store.weights.get('name'))}, store {store.fingerprint}"
    source = source_text(MediaClips(store, options).describe())
    other = "" if options.backbone in exhibit.features else f", ANOTHER BACKBONE than the paper's {exhibit.features[0]}"
    return f"{source}{other}: {data}; store {store.fingerprint}"


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
    end_to_end: EndToEnd | None = None,
) -> dict:
    """Run what is not finished yet into ``out``; write report.html, NAME.md and NAME.json; return the latter.

    absent: what it cannot run on, in words. budget: hours, which choose the cells by an estimate; it stops nothing.
    end_to_end: how backbones are trained, where the exhibit is of such.
    InputError: stores of the wrong kind, not enough for any row, or another process works in the folder.
    """
    if end_to_end is None:
        check_features(stores)
    else:
        end_to_end.check(settings)
    keep_freed_memory()
    where = experiments.choose_device(device)
    lines = [ran_on(exhibit, store, end_to_end) for store in stores]
    for line in [exhibit.title, *(f"left out {line}" for line in absent), *lines]:
        say(line)
    grid = {"methods": exhibit.methods, "fusions": fusions, "missing": exhibit.missing}
    plan = plan_grid(stores, **grid, seeds=seeds, split=splits, clips_of=clips_as(end_to_end))
    with only_one(out / ".lock", str(out)):
        found = kept.take_up(out, exhibit.name)

        for cell in plan.cells:
            kept.take_up_seeds(cell, experiments.describe(cell, settings), found.values(), out)
        left = [cell for cell in plan.cells if cell.left]
        left_out: list[str] = []
        if left:
            say(f"timing {'steps of the backbone' if end_to_end else 'a short training of each method'} on {where}")
            seconds = estimate(left, settings, where)
            total = sum(seconds.values())
            say(f"{sum(len(c.left) for c in left)} runs of {len(left)} cells to train: about {duration_text(total)}")
            if budget is not None and total > 3600 * budget:
                cells, left_out, cost = within_budget(
                    plan.cells, seconds, 3600 * budget, SMALLEST_CUT if end_to_end else LARGEST_CUT
                )
                plan = replace(plan, cells=cells)
                say(f"for a budget of {duration_text(3600 * budget)}, cells of about {duration_text(cost)} are run")
                for line in left_out:
                    say(f"left out: {line}")
        document = run_plan(plan, settings, where, out, exhibit)
        compared = side_by_side.compare(exhibit, document, lines, [*absent, *left_out])
        side_by_side.write(compared, out)
        document["compared"] = side_by_side.in_short(compared)
        kept.write_document(out / kept.RESULTS, document)
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


def _backbone(cell: Cell) -> str:
    return f"all of {cell.clips.describe()['features']} by {cell.split}"


def _column(cell: Cell) -> str:
    return f"all methods of {cell.fusion} with {cell.missing.name} by {cell.split}"


# What a budget takes away at a time, in words that are the same for all of its cells: methods stay comparable. Of
# networks that are trained end to end a backbone would be everything, so fusions go, column by column.
LARGEST_CUT, SMALLEST_CUT = _backbone, _column


def within_budget(
    cells: Sequence[Cell],
    seconds: Mapping[Cell, float],
    budget: float,
    row_of: Callable[[Cell], str] = LARGEST_CUT,
) -> tuple[list[Cell], list[str], float]:
    """Cells that fit into so many seconds, what is left out, in words, and the seconds they take.

    First every cell is given fewer seeds, down to two; then rows (all cells that ``row_of`` names alike) go, the last
    first; then one seed for the first row. Finished runs cost nothing, finished cells stay with all their seeds.
    seconds: of the runs left of each cell that has any.
    InputError: not even that fits.
    """
    most = max(len(cell.runs) for cell in cells)
    rows = list(dict.fromkeys(map(row_of, sorted(cells, key=_by_split(cells)))))
    few = min(LEAST_SEEDS, most)
    choices = [(n, len(rows)) for n in range(most, few - 1, -1)]
    choices += [(few, count) for count in range(len(rows) - 1, 0, -1)] + [(1, 1)]
    for n, count in choices:
        chosen, cost = [], 0.0
        for cell in cells:
            if not cell.left:
                chosen.append(cell)
            elif row_of(cell) in rows[:count]:
                fewer = with_seeds(cell, n)
                chosen.append(fewer)
                cost += seconds[cell] * len(fewer.left) / len(cell.left)
        if cost <= budget:
            gone = list(rows[count:])
            gone += [f"{most - n} of {most} seeds of every cell not finished before"] if n < most else []
            return chosen, gone, cost
    less = "a smaller --end-to-end" if cells[0].clips.end_to_end else "fewer --features"
    raise InputError(
        f"a budget of {budget:.1f} s is not enough for one row with one seed, which takes about {cost:.1f} s.\n"
        f"Give more hours, fewer --epochs, or {less}."
    )


def _by_split(cells: Sequence[Cell]) -> Callable[[Cell], int]:
    order = list(dict.fromkeys(cell.split for cell in cells))
    return lambda cell: order.index(cell.split)
