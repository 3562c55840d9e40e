"""How long training end to end will take: images counted from the plan, times what one takes on this machine.

The backbones are nearly all of the work whatever the method, and an epoch of each would take too long to try. Reading
media, which goes on beside, is not counted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...pipeline.stores.masks import TEST, TRAIN
from .. import methods as registry
from ..batches import Strata
from ..data import Run
from ..end_to_end.end_to_end import CALIBRATION_STEPS, MediaClips, within_memory
from ..marginal import DRAWN
from ..settings import Settings
from .grid import Cell

TRIED_IMAGES = {"cpu": 8, "cuda": 1024}  # at most, of a micro-batch
TRIED_STEPS = 2  # after one that pays for starting up


@dataclass(frozen=True)
class Cost:
    """Seconds of one modality: of an image computed, of one trained on, and of a step of the optimiser."""

    computed: float
    trained: float
    step: float


def estimate(cells: Sequence[Cell], settings: Settings, device: torch.device) -> dict[Cell, float]:
    """Seconds of the runs left of each cell, all of one store."""
    clips = cells[0].clips
    with within_memory(clips.options, settings.batch_size, device):
        costs = [_measure(clips, m, settings, device) for m in range(len(clips.modalities))]
    return {cell: sum(_seconds(cell, run, settings, costs) for run in cell.left) for cell in cells}


def _measure(clips: MediaClips, m: int, settings: Settings, device: torch.device) -> Cost:
    o = clips.options
    trunk = o.trunk(clips.modalities[m]).to(device)
    n = min(TRIED_IMAGES[device.type], o.micro_batch, settings.batch_size)
    there = torch.as_tensor(np.flatnonzero(clips.present[:, m]))
    S = clips.reader.segments
    rows = (there[: -(-n // S), None] * S + torch.arange(S)).flatten()[:n]
    media, n = clips.reader.read(m, rows), len(rows)
    with torch.no_grad():
        trunk.eval()
        computed = _timed(lambda: trunk(media, device), device) / n
    if o.frozen:
        return Cost(computed, computed, 0.0)
    trunk.train()
    optimiser = torch.optim.AdamW(trunk.parameters(), lr=1e-9)
    again = computed if settings.batch_size > o.micro_batch else 0.0  # activations are made again backward
    trained = _timed(lambda: trunk(media, device).sum().backward(), device) / n
    return Cost(computed, trained + again, _timed(optimiser.step, device))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    for turn in range(1 + TRIED_STEPS):
        if turn == 1:
            start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / TRIED_STEPS


def _seconds(cell: Cell, run: Run, settings: Settings, costs: Sequence[Cost]) -> float:
    kind, options, S = registry.load(cell.method), cell.clips.options, cell.clips.reader.segments
    run = cell.clips.seen(run, kind.modalities)
    images = np.zeros((2, len(costs)))  # computed alone, and trained on
    steps = 0
    for stage in kind.stages:
        trained = run.training_clips(stage.rows)
        strata = Strata(run.observed, trained, S, settings.batch_size)
        stage_steps = settings.epochs * strata.steps
        lacking = (~run.observed[trained]).any(0) & kind.marginalises
        support = (run.observed & trained[:, None]).sum(0) * S * lacking
        again = {"full": support, "bank": np.minimum(support, DRAWN) * options.frozen}[settings.marginal]
        once = (run.observed & trained[:, None]).sum(0) * S * settings.epochs
        images[1] += (once if options.frozen else stage_steps * (strata.shares @ strata.patterns)) + again * stage_steps
        images[0] += support * (settings.marginal == "bank")
        steps += stage_steps
    held_out, tested = (run.observed[part].sum(0) * S for part in (run.part != TRAIN, run.part == TEST))
    standardised = (run.observed & (run.part == TRAIN)[:, None]).sum(0) * S
    if not options.frozen:
        standardised = np.minimum(standardised, CALIBRATION_STEPS * options.micro_batch)
    images[0] += held_out * settings.epochs + tested + standardised
    each = [c.computed * images[0, m] + c.trained * images[1, m] + c.step * steps for m, c in enumerate(costs)]
    return float(sum(each))
