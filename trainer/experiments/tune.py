"""The job of `mlemiss tune`: draw settings, train them all, choose on validation clips.

A row is one method, fusion, missing spec, split and store. Every row gets the same number of draws, and the draw with
the highest mean validation accuracy over the tuning seeds wins; of equals the first, the defaults above all. The tuning
seeds are never reported: the reported seeds draw other splits, masks and initial weights. No seed's test clips choose
its settings or its epoch; of drawn splits, a clip that one seed tests may have been another's validation clip.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...pipeline.console import amount, plain, say
from ...pipeline.encoders import keep_freed_memory, resolve_device
from ...pipeline.errors import InputError
from ...pipeline.files import whole_file, write_json
from ...pipeline.stores.claim import only_one
from ...pipeline.stores.store import FeatureStore
from .. import methods as registry
from ..report.draws import settings_text, write_draws
from ..settings import Settings
from .experiments import check_stores, command_line, describe_cell, run_plan, shown_progress
from .grid import Cell, Grid, GridPlan, plan_grid
from .run_folder import RESULTS, RunFolder, identity
from .space import Space
from .tuned import DRAWS, ROW, TUNED, Tuned

PAGE, EXHIBIT = "tune.html", "tune"
BLOCKS = 6  # under a budget, draws are trained in about so many


def tune(
    stores: Sequence[FeatureStore],
    out: Path,
    grid: Grid,
    settings: Settings,
    space: Space,
    draws: int,
    device: str = "auto",
    *,
    hours: float | None = None,
) -> dict:
    """Train the draws of every row, and keep what was chosen in ``out``; run again, it goes on.

    Args:
        stores: of features.
        out: the folder.
        grid: the rows; its seeds are the tuning seeds.
        settings: the defaults, which are draw 0, and what is not drawn.
        space: what is drawn from.
        draws: of each row.
        device: auto, cpu, cuda or mps.
        hours: stop when they are over. Only draws that every row has trained count.

    Returns:
        The document of tuned.json.

    Raises:
        InputError: a store of media, another run's folder, a space of one point, no row can be trained, or no time for
            a draw of each.
    """
    check_stores(stores, settings, None)
    keep_freed_memory()
    where = torch.device(resolve_device(device))
    _announce(stores, grid, space, draws, where)

    def planned(count: int) -> GridPlan:
        return plan_grid(stores, grid, lambda cell: space.settings(settings, registry.load(cell.method).rates, count))

    drawn = list(_rows(planned(draws)).values())
    if draws > 1 and drawn and all(cell.settings == cells[0].settings for cells in drawn for cell in cells):
        raise InputError("the space is one point, so that all draws are the same.\nGive a --space with a range.")
    if (out / TUNED).exists() and not (out / RESULTS).exists():
        raise InputError(
            f"{out} holds {TUNED}, and no {RESULTS} of its draws.\nName another folder with --out, or remove it."
        )
    RunFolder(out, exhibit=EXHIBIT).recorded()
    out.mkdir(parents=True, exist_ok=True)  # what cannot be planned, or is another run's, is told before this
    asked = _digest(drawn)
    with only_one(out / ".lock", str(out)):
        with whole_file(out / DRAWS, "w") as file:
            file.write(asked)
        plan, done = _train_draws(planned, draws, out, where, hours)
        rows = _rows(plan)
        _check_whole(rows, done, hours, out)
        document = _document(rows, plan, grid, space, done) | {"asked": asked}
        _tell_what_is_replaced(out, document)
        write_json(out / TUNED, document)
        write_draws(document, out / PAGE)
    return document


def _check_whole(rows: Mapping[str, list[Cell]], done: int, hours: float | None, out: Path) -> None:
    """Check that every row has a whole draw, and one that did not diverge. InputError: there is a row that has not."""
    earlier = f" {out / TUNED} is still of an earlier command." if (out / TUNED).exists() else ""
    if not done:
        short = [name for name, cells in rows.items() if cells[0].left]
        raise InputError(
            f"{hours} hours were too short for one draw of each of {amount(len(rows), 'row')}: "
            f"{len(short)} lack it, such as {short[0]}.\n"
            f"What is trained is kept: run this command again to go on, or give a longer --budget.{earlier}"
        )
    if lost := [name for name, cells in rows.items() if all(map(_diverged, cells[:done]))]:
        raise InputError(
            f"all {done} draws of {lost[0]} diverged: their loss was not finite.\n"
            f"Narrow what is drawn, such as --space lr=1e-4..1e-2.{earlier}"
        )


def _announce(stores: Sequence[FeatureStore], grid: Grid, space: Space, draws: int, device: torch.device) -> None:
    for store in stores:
        say(f"store {store.path}: {amount(len(store.clip_id), 'clip')}, weights {store.weights.get('name')}")
    ranges = ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in space.describe(grid.rates).items())
    seeds = f"{amount(len(grid.seeds), 'seed')} from {grid.seeds[0]} on"
    say(f"device {device}; {amount(draws, 'draw')} of {ranges}; {seeds}")


def _train_draws(
    planned: Callable[[int], GridPlan], draws: int, out: Path, device: torch.device, hours: float | None
) -> tuple[GridPlan, int]:
    """Train all draws, under a budget some after the others; return the last plan, and how many draws are whole."""
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    steps = [draws] if hours is None else [1, *range(1 + (block := -(-draws // BLOCKS)), draws, block), draws]
    whole = 0
    for count in dict.fromkeys(min(step, draws) for step in steps):
        plan = planned(count)
        if hours is not None:
            say(f"draws to {count} of {draws}")
        left = None if deadline is None else max(deadline - time.monotonic(), 0) / 3600
        tell = (lambda line: None) if whole else say  # what is skipped or finished, once
        with shown_progress("tune") as report:
            folder = RunFolder(out, resume=True, exhibit=EXHIBIT)
            run_plan(plan, device, folder, hours=left, command=command_line(), progress=report, say=tell, tuning=True)
        whole = min(_trained(cells) for cells in _rows(plan).values())
        if whole < count:
            break
    return plan, whole


def _rows(plan: GridPlan) -> dict[str, list[Cell]]:
    """Return the cells of each row, in the order of their draws."""
    rows: dict[str, list[Cell]] = defaultdict(list)
    for cell in plan.cells:
        rows[f"{cell.name}, store {cell.clips.store.fingerprint}"].append(cell)
    return rows


def _trained(cells: Sequence[Cell]) -> int:
    """Return how many draws, from the first on, are trained with every seed."""
    return next((j for j, cell in enumerate(cells) if cell.left), len(cells))


def _diverged(cell: Cell) -> bool:
    """Return whether a run's loss was not finite: it had no epoch that counts, or none right from some epoch on."""
    each = cell.results.values()
    return any(not one.best_epoch or (not one.val_accuracy[-1] and max(one.val_accuracy) > 0) for one in each)


def _validation(cell: Cell) -> float:
    """Return the mean over seeds of the best epoch's validation accuracy, in percent; 0 of a draw that diverged."""
    if _diverged(cell):
        return 0.0
    return float(np.mean([result.val_accuracy[result.best_epoch - 1] for result in cell.results.values()]))


def _best(cells: Sequence[Cell]) -> int:
    """Return the place of the draw that has won: of equals the first, but before all that diverged."""
    return max(range(len(cells)), key=lambda j: (not _diverged(cells[j]), _validation(cells[j]), -j))


def _digest(rows: Iterable[Sequence[Cell]]) -> str:
    """Return a hash of all that is to be trained, by which a choice and a tuning that has not ended are told apart."""
    cells = sorted(identity(describe_cell(cell)) for cells in rows for cell in cells)
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def _tell_what_is_replaced(out: Path, document: Mapping) -> None:
    """Say that the choice of another command goes, and which of its rows the new one lacks."""
    with suppress(InputError, OSError):
        before = Tuned(out, ended=False)
        if before.document.get("asked") == document["asked"]:
            return
        gone = before.rows.keys() - {tuple(row[name] for name in ROW) for row in document["rows"]}
        also = f"; {amount(len(gone), 'row')} of it are not of this command" * bool(gone)
        say(f"{out / TUNED} is replaced: it was chosen among {amount(before.facts['draws'], 'draw')} of each row{also}")


def _document(rows: Mapping[str, list[Cell]], plan: GridPlan, grid: Grid, space: Space, draws: int) -> dict:
    """Return what was chosen for each row among its first draws, and how every draw did."""
    chosen = []
    for cells in rows.values():
        validation = [_validation(cell) for cell in cells[:draws]]
        best = _best(cells[:draws])
        described = describe_cell(cells[best])
        row = {name: described[name] for name in (*ROW, "revision", "given", "synthetic")}
        row["missing_test"] = cells[best].missing_test.name
        rates = {name: rate.default for name, rate in registry.load(cells[best].method).rates.items()}
        drawn = [asdict(cell.settings) for cell in cells[:draws]]
        chosen.append(
            row
            | {"draw": best, "settings": described["settings"], "validation": [round(v, 4) for v in validation]}
            | {"drawn": [one | {"own": rates | one["own"]} for one in drawn]}
        )
    return {
        "schema": 1,
        "draws": draws,
        "seeds": list(grid.seeds),
        "space": space.describe(grid.rates),
        "rows": chosen,
        "skipped": plan.skipped,
        "command": command_line(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def print_chosen(document: Mapping) -> None:
    """Print a line for each row: validation accuracy of the defaults and of the choice, and the settings."""
    rows = plain(document)["rows"]
    names = [name for name in ROW if name in ("method", "fusion", "missing") or len({row[name] for row in rows}) > 1]
    table = Table(box=None, header_style="bold")
    for name in (*names, "draw 0", "chosen", "settings"):
        table.add_column(name.replace("_", " "), justify="right" if name in ("draw 0", "chosen") else "left")
    for row in rows:
        scores = [f"{row['validation'][draw]:.1f}" for draw in (0, row["draw"])]
        table.add_row(*(escape(row[name]) for name in names), *scores, settings_text(row["settings"]))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width of its own
    console.print(table)
    print(f"Validation accuracy in percent; the best of {amount(document['draws'], 'draw')} is too high an estimate.")
