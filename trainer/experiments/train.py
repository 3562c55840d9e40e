"""The job of `mlemiss train`: check, say what was resolved, train the grid with progress, keep results and report."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from ...pipeline.console import amount, say, writable_folder
from ...pipeline.encoders import check_precision, keep_freed_memory, resolve_device
from ...pipeline.errors import InputError
from ...pipeline.stores.catalogue import missing_counts
from ...pipeline.stores.claim import only_one
from ...pipeline.stores.store import FeatureStore
from ..end_to_end.end_to_end import EndToEnd
from ..report.report import write_report
from ..settings import Settings
from .experiments import check_stores, clips_as, command_line, run_plan, shown_progress
from .grid import Grid, plan_grid
from .run_folder import RESULTS, RunFolder
from .tuned import Tuned


def train(
    stores: Sequence[FeatureStore],
    out: Path | None,
    grid: Grid,
    settings: Settings | Tuned,
    device: str = "auto",
    *,
    end_to_end: EndToEnd | None = None,
    save_weights: bool = False,
    replace: bool = False,
) -> tuple[dict, Path]:
    """Train a grid with progress, keep its results and report; return the results document and the folder.

    Args:
        stores: of features; of media to train end to end.
        out: the folder; by default a new runs/DATE-NAME.
        grid: what is combined.
        settings: hyper-parameters, or those that were chosen for each row.
        device: auto, cpu, cuda or mps.
        end_to_end: how a backbone is trained too. What an earlier run of the same into ``out`` finished is kept.
        save_weights: keep what was trained.
        replace: delete results that are in ``out`` already.

    Raises:
        InputError: stores of the wrong kind, results of another run in the folder, or the folder cannot be made.
    """
    plain = isinstance(settings, Settings)
    check_stores(stores, settings if plain else None, end_to_end, save_weights)
    writable_folder(out or Path("runs"), "--out")
    resume = end_to_end is not None and out is not None
    if out and (out / RESULTS).exists() and not replace:
        earlier = RunFolder(out).recorded().values() if resume else ()
        if not resume or any(not result.get("end_to_end") for result in earlier):
            raise InputError(f"{out} holds the results of another run.\nName another folder with --out, or remove it.")
    keep_freed_memory()
    where = torch.device(resolve_device(device))
    if end_to_end:
        check_precision(end_to_end.precision, where.type)
    for store in stores:
        made_with = "" if end_to_end else f", weights {store.weights.get('name')}"
        lacking = dict(zip(store.modalities, (~store.present).sum(0).tolist(), strict=True)) if store.joined else {}
        without = f"; without {missing_counts(lacking)}" * any(lacking.values())
        say(f"store {store.path}: {amount(len(store.clip_id), 'clip')}{made_with}{without}")
    chosen = _listed(asdict(settings)) if plain else settings.text
    say(f"device {where}; {amount(len(grid.seeds), 'seed')}; {chosen}")
    if end_to_end:
        say(f"end to end: {_listed(end_to_end.describe())}")
    plan = plan_grid(stores, grid, settings, clips_as(end_to_end)) if plain else settings.plan(stores, grid)
    name = "-".join(dict.fromkeys([store.dataset for store in stores] + grid.methods))[:60].replace(":", "-")
    with (
        _new_folder(name) if out is None else nullcontext(out) as path,
        only_one(path / ".lock", str(path)) if resume else nullcontext(),
    ):
        folder = RunFolder(path, resume=resume, save_weights=save_weights)
        with shown_progress("train") as report:
            document = run_plan(plan, where, folder, command=command_line(), progress=report, say=say)
        write_report([document], path / "report.html")
    return document, path


def _listed(values: Mapping) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value not in (None, {}))


@contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    """Make a folder runs/DATE-NAME that no other run has; remove it where it stays empty."""
    runs, first = Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    runs.mkdir(exist_ok=True)
    for number in itertools.count(1):
        out = runs / (first if number == 1 else f"{first}-{number}")
        with suppress(FileExistsError):
            out.mkdir()
            break
    try:
        yield out
    finally:
        with suppress(OSError):  # not empty: there are results
            out.rmdir()
