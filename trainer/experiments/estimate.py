"""How long cells will take, from a short training of each kind on this machine."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from .. import methods as registry
from ..data import Dataset
from ..fit import fit
from ..settings import Settings
from . import estimate_end_to_end
from .grid import Cell, Group, group_runs

TRIED_RUNS = {"cpu": 4, "cuda": 64}  # trained side by side in a trial, at most; a grid's own groups on a GPU
TRIED_EPOCHS = 2  # the first of which pays for starting up and does not count


def estimate(cells: Sequence[Cell], settings: Settings, device: torch.device) -> dict[Cell, float]:
    """Seconds of each cell's runs that are left: two epochs of a few of its kind (store, method, fusion) are timed.

    Time is taken as proportional to clips and epochs. Reading the stores is not counted. Of cells that are trained end
    to end, steps of the backbones alone are timed: see `estimate_end_to_end`.
    """
    short = replace(settings, epochs=TRIED_EPOCHS)
    seconds: dict[Cell, float] = {}
    for clips in dict.fromkeys(cell.clips for cell in cells):
        mine = [cell for cell in cells if cell.clips is clips]
        if clips.end_to_end:
            seconds |= estimate_end_to_end.estimate(mine, settings, device)
            continue
        dataset = clips.load(device)
        rates: dict[tuple[str, str], float] = {}  # seconds a clip and epoch
        for group in group_runs(mine, dataset.segments, settings, TRIED_RUNS[device.type]):
            kind = (group[0][0].method, group[0][0].fusion)
            if kind not in rates:
                rates[kind] = _seconds_a_clip(group[: TRIED_RUNS[device.type]], dataset, short)
        seconds |= {cell: rates[cell.method, cell.fusion] * cell.clip_epochs(settings) for cell in mine}
    return seconds


def _seconds_a_clip(group: Group, dataset: Dataset, settings: Settings) -> float:
    cell = group[0][0]
    marks: list[tuple[float, int]] = []  # when an epoch ended, and its clips over all runs
    start = time.perf_counter()
    fit(
        registry.load(cell.method),
        dataset,
        [run for _, run in group],
        settings,
        cell.fusion,
        name=cell.method,
        on_epoch=lambda clips: marks.append((time.perf_counter(), clips)),
    )
    if len(marks) > 1:
        start = marks.pop(0)[0]
    return (marks[-1][0] - start) / max(sum(clips for _, clips in marks), 1)


def duration_text(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
