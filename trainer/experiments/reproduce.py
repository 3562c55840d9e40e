"""The job of `mlemiss reproduce`: train an exhibit of the paper as a grid, and set our numbers beside the paper's."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ...pipeline.clips.datasets import expected_clips
from ...pipeline.console import amount, say
from ...pipeline.encoders import check_precision, keep_freed_memory, resolve_device
from ...pipeline.errors import InputError
from ...pipeline.stores.catalogue import Wanted, find_store, open_features, stores_in
from ...pipeline.stores.claim import only_one
from ...pipeline.stores.remote import Place
from ...pipeline.stores.store import MEDIA, FeatureStore
from ..end_to_end.end_to_end import EndToEnd, MediaClips
from ..report.report import write_report
from ..report.tables import source_text, weights_text
from ..settings import Settings
from . import side_by_side
from .experiments import check_stores, clips_as, command_line, run_plan, shown_progress
from .grid import Grid, GridPlan, plan_grid
from .paper import Exhibit
from .run_folder import RunFolder
from .tuned import Tuned


def choose_stores(
    exhibit: Exhibit, folder: Place, dataset: str | None, features: Sequence[Wanted] | None
) -> tuple[list[FeatureStore], list[str]]:
    """Return the stores to run on, and which are absent: of the named features, else of the exhibit's.

    An exhibit of networks trained end to end runs on media.
    The dataset is the exhibit's where a store of it is there, else the only one. InputError: a named backbone's store,
    or every store, is absent, or several fit.
    """
    there = [attrs for _, attrs in stores_in(folder)]
    if dataset is None and any(attrs["dataset"] == exhibit.dataset for attrs in there):
        dataset = exhibit.dataset
    if features:
        return [open_features(one, folder, dataset) for one in features], []
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
    """Return what the numbers from a store were measured on, in capitals where the paper used something else."""
    done = set(store.clip_id[store.done].tolist())
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
    grid: Grid,
    settings: Settings | Tuned,
    device: str = "auto",
    *,
    absent: Sequence[str] = (),
    hours: float | None = None,
    end_to_end: EndToEnd | None = None,
) -> dict:
    """Run what is not finished yet into ``out``; write report.html, NAME.md and NAME.json; return the latter.

    Args:
        exhibit: the table or figure.
        stores: to run on.
        out: the folder. What an earlier run into it finished is kept.
        grid: what is combined, see `Exhibit.grid`.
        settings: hyper-parameters, or those that were chosen for each row.
        device: auto, cpu, cuda or mps.
        absent: stores that the exhibit lacks, in words.
        hours: stop when the time is up, see `experiments.run_plan`.
        end_to_end: how backbones are trained, where the exhibit trains them.

    Raises:
        InputError: stores of the wrong kind, or another process works in the folder.
    """
    plain = isinstance(settings, Settings)
    check_stores(stores, settings if plain else None, end_to_end)
    keep_freed_memory()
    where = torch.device(resolve_device(device))
    if end_to_end:
        check_precision(end_to_end.precision, where.type)
    lines = [ran_on(exhibit, store, end_to_end) for store in stores]
    for line in [exhibit.title, *(f"left out {line}" for line in absent), *lines]:
        say(line)
    plan = plan_grid(stores, grid, settings, clips_as(end_to_end)) if plain else settings.plan(stores, grid)
    say(f"{amount(len(plan.cells), 'cell')} of {amount(len(grid.seeds), 'seed')} on {where}")
    folder = RunFolder(out, resume=True, exhibit=exhibit.name)
    with only_one(out / ".lock", str(out)):
        with shown_progress(exhibit.name) as report:
            job = {"hours": hours, "command": command_line(), "progress": report, "say": say}
            document = run_plan(plan, where, folder, **job)
        untrained = _untrained(plan, hours)
        if untrained:
            runs = sum(len(cell.left) for cell in plan.cells)
            say(f"the time is up, {amount(runs, 'run')} left; run the same command again to go on")
        compared = side_by_side.compare(exhibit, document, lines, [*absent, *untrained])
        side_by_side.write(compared, out)
        document["compared"] = side_by_side.in_short(compared)
        folder.write(document)
        write_report([document], out / "report.html")
    return compared


def _untrained(plan: GridPlan, hours: float | None) -> list[str]:
    """Return a line for each cell with seeds that a budget left untrained: which, and why."""
    why = f"the budget of {hours:g} h is spent; run the same command again to go on" if hours else ""
    left = [cell for cell in plan.cells if cell.left]
    return [f"{cell.name}, seed {' '.join(str(run.spec.seed) for run in cell.left)}: {why}" for cell in left]
