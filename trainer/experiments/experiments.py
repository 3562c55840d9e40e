"""Train and test grids: every combination of stores, methods, fusions, missing specs and splits is a cell with N runs.

`run_grid` trains a grid and returns the results document; `run_plan` does so from a plan (`grid.plan_grid`). Runs of
equal shape train together, and what is finished is kept at once.
"""

import itertools
import platform
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version

import torch

from ...pipeline import console
from ...pipeline.console import amount
from ...pipeline.encoders import resolve_device
from ...pipeline.errors import InputError, out_of_memory
from ...pipeline.stores.masks import TRAIN
from ...pipeline.stores.store import MEDIA, FeatureStore
from .. import methods as registry
from ..data import Clips, Dataset
from ..end_to_end.end_to_end import EndToEnd, MediaClips
from ..end_to_end.training import OutOfTimeError, fit_end_to_end
from ..evaluate import scores
from ..fit import fit
from ..method import Method
from ..report.comparisons import compare_methods
from ..settings import Settings
from . import weights
from .grid import Cell, Grid, GridPlan, Group, group_runs, notes_on, plan_grid
from .run_folder import RunFolder, identity

SCHEMA = 1
MOST_RUNS = {"cpu": 10, "cuda": 256, "mps": 64}  # at once, where memory holds them; more slow a processor


@dataclass(frozen=True)
class GridProgress:
    """How far a grid is: clips trained on, done and in all; what is running."""

    done: int
    total: int
    what: str


Report = Callable[[GridProgress], None]


def command_line() -> str:
    """Return the command that runs now, as results record it."""
    return shlex.join(["mlemiss", *sys.argv[1:]])


def clips_as(end_to_end: EndToEnd | None) -> Callable[[FeatureStore], Clips]:
    """Return what a store's clips are trained as: on cached features, or on media with a backbone."""
    return Clips if end_to_end is None else partial(MediaClips, options=end_to_end)


def check_stores(
    stores: Sequence[FeatureStore], settings: Settings, end_to_end: EndToEnd | None, save_weights: bool = False
) -> None:
    """Check that stores and settings fit the kind of training. InputError: they do not."""
    if end_to_end is not None:
        end_to_end.check(settings, save_weights)
    elif media := [store.path.name for store in stores if store.features == MEDIA]:
        raise InputError(f"{media[0]} holds frames and log-Mels, not features.\nName a store of a backbone's features.")


@contextmanager
def shown_progress(what: str) -> Iterator[Report]:
    """Show a progress bar of a grid; yield the function that moves it."""
    bar = console.Progress(what, 0, "clip epochs")

    def report(now: GridProgress) -> None:
        bar.what, bar.total = now.what, now.total
        bar.advance(now.done - bar.done)

    with bar:
        yield report


def run_grid(
    stores: Sequence[FeatureStore],
    grid: Grid,
    settings: Settings | None = None,
    device: str = "auto",
    folder: RunFolder | None = None,
    *,
    clips_of: Callable[[FeatureStore], Clips] = Clips,
    progress: Report | None = None,
) -> dict:
    """Train and test a grid; return the results document.

    Arguments and errors as for `grid.plan_grid` and `run_plan`.
    """
    plan = plan_grid(stores, grid, settings or Settings(), clips_of)
    return run_plan(plan, torch.device(resolve_device(device)), folder, progress=progress)


def run_plan(
    plan: GridPlan,
    device: torch.device,
    folder: RunFolder | None = None,
    *,
    hours: float | None = None,
    command: str | None = None,
    progress: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
    tuning: bool = False,
) -> dict:
    """Train and test the cells of a plan; return the results document.

    Args:
        plan: the cells. Combinations that it skips are a line each; what finished before an error is kept.
        device: where to train.
        folder: keeps the results, group by group.
        hours: train seed by seed, and stop when the time is up. At least one group of runs is trained, or one epoch
            end to end; with 0 hours nothing. Cells then have the seeds that were trained.
        command: the command line, for the record.
        progress: called after each epoch.
        say: takes lines for the user.
        tuning: make no paired comparisons at the end; a run whose loss is not finite has lost, and is no error.

    Raises:
        InputError: ``folder`` resumes another kind of run, a checkpoint is of another training, or a loss is not
            finite.
    """
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in plan.skipped:
        reasons[entry["reason"]].append(entry["cell"])
    for reason, cells in reasons.items():
        what = cells[0] if len(cells) == 1 else f"{len(cells)} combinations, such as {cells[0]}"
        say(f"skipped {what}: {reason}")
    for note in notes_on(plan.cells):
        say(f"note: {note}")
    goes_on = hours is not None or (folder is not None and folder.resume)
    results = _Results(plan, folder, command, partly=goes_on)
    results.begin(say)
    clock = _Clock(plan.cells, progress, None if hours is None else time.monotonic() + 3600 * hours)
    seeds = list(dict.fromkeys(seed for cell in plan.cells for seed in cell.seeds))
    rounds = [seeds] if hours is None else [[seed] for seed in seeds]
    with suppress(OutOfTimeError):
        if hours == 0:  # what is finished is all that counts
            raise OutOfTimeError
        for chosen, clips in itertools.product(rounds, dict.fromkeys(cell.clips for cell in plan.cells)):
            cells = [cell for cell in plan.cells if cell.clips is clips]
            if not any(run.spec.seed in chosen for cell in cells for run in cell.left):
                continue
            dataset = clips.load(device)  # one store's features in memory at a time
            most = 1 if clips.end_to_end else MOST_RUNS[device.type]
            for group in group_runs(cells, dataset.segments, most, chosen):
                _train_within_memory(group, dataset, clock, folder, tuning, say)
                results.keep()
                clock.check()
    return results.finish(compare=not tuning)


@dataclass
class _Results:
    """The results document of a plan while the plan is trained, and the folder that keeps the document.

    partly: a cell is kept once any of its runs is trained, not only when all are.
    """

    plan: GridPlan
    folder: RunFolder | None
    command: str | None
    partly: bool = False
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    entries: dict[Cell, dict] = field(default_factory=dict)
    loaded: set[Cell] = field(default_factory=set)  # with some runs of an earlier command

    def document(self) -> dict:
        """Return the document of what is finished, in the plan's order, without comparisons.

        ``unfinished`` is the number of planned cells that lack any of their seeds; it is absent where none does.
        """
        results = [self.entries[cell] for cell in self.plan.cells if cell in self.entries]
        left = sum(self.entries.get(cell, {}).get("seeds") != list(cell.seeds) for cell in self.plan.cells)
        document = {"schema": SCHEMA, "results": results, "comparisons": [], "skipped": self.plan.skipped}
        document |= {"unfinished": left} if left else {}
        document |= {"command": self.command, "created": self.created}
        return document | ({"exhibit": self.folder.exhibit} if self.folder and self.folder.exhibit else {})

    def begin(self, say: Callable[[str], None]) -> None:
        """Take over what an earlier run into the folder finished, or clear the folder."""
        if self.folder is None:
            return
        if not self.folder.resume:
            self.folder.clear()
        else:
            self._take_over(self.folder, say)
        for cell in self.plan.cells:
            if cell.clips.end_to_end:
                stages = [stage.name for stage in registry.load(cell.method).stages]
                checkpoints = self.folder.checkpoints(describe_cell(cell))
                if cell.results:
                    checkpoints.remove(cell.results)  # a kill left them when the results were written
                checkpoints.check([run.spec.seed for run in cell.left], stages)

    def _take_over(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        """Cells that were finished with other seeds give those that a cell of the plan has too."""
        folder.tidy()
        finished = folder.finished()
        described = {cell: describe_cell(cell) for cell in self.plan.cells}
        self.entries = {
            cell: finished[key] | {"tuned": one["tuned"]}  # the same settings may be another tuning's choice
            for cell, one in described.items()
            if (key := identity(one)) in finished
        }
        for cell, one in described.items():
            folder.load_runs(cell, one, finished.values())
        seeds = {identity({**one, "seeds": None}): set(cell.seeds) for cell, one in described.items()}
        if any(set(r["seeds"]) - seeds.get(identity({**r, "seeds": None}), set()) for r in finished.values()):
            folder.set_aside(self.document(), finished.values())  # of another plan
        self.loaded = {cell for cell in self.plan.cells if cell.left and cell.results}
        if self.entries:
            say(f"{len(self.entries)} of {len(self.plan.cells)} cells are finished and kept")
        if runs := sum(len(cell.results) for cell in self.plan.cells if cell not in self.entries):
            say(f"{amount(runs, 'run')} of other cells are finished and kept")
        self.keep()

    def keep(self) -> None:
        """Write what is new: cells whose runs are all trained; of others what an earlier command kept of them.

        ``partly``: cells with any trained run.

        What it stands in for, older predictions and checkpoints, goes last.
        """
        stale, kept = [], []
        for cell in self.plan.cells:
            seeds = [seed for seed in cell.seeds if seed in cell.results]
            before = self.entries.get(cell, {})
            if not seeds or before.get("seeds") == seeds or (cell.left and not self.partly and cell not in self.loaded):
                continue
            described = describe_cell(cell) | {"seeds": seeds}
            self.entries[cell] = described | _result(cell, seeds)
            if self.folder:
                self.entries[cell] |= self.folder.keep(cell, described)
                stale += [self.folder.path / before["predictions"]] if before else []
                kept += [cell] if cell.clips.end_to_end else []
        if self.folder:
            self.folder.write(self.document())
        for path in stale:
            path.unlink(missing_ok=True)
        for cell in kept:
            self.folder.checkpoints(describe_cell(cell)).remove(cell.results)

    def finish(self, compare: bool) -> dict:
        """Compare the methods where predictions are kept; return the document."""
        document = self.document()
        if self.folder and compare:
            document["comparisons"] = compare_methods(document["results"], self.folder.path)
            self.folder.write(document)
        return document


def _train_within_memory(
    group: Group, dataset: Dataset, clock: "_Clock", folder: RunFolder | None, tuning: bool, say: Callable[[str], None]
) -> None:
    """Train a group, in halves where memory does not hold it. InputError: it does not hold one run."""
    before, half, device = clock.done, len(group) // 2, dataset.device
    try:
        return _train(group, dataset, clock, folder, tuning)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if not half:
            what = f"the memory of {device} does not hold one run of {group[0][0].method}"
            raise InputError(f"{what}.\nTake a smaller --batch-size, or --device cpu.") from error
    clock.done = before
    say(f"note: the memory of {device} does not hold {len(group)} runs at once: they are trained in halves")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # here, as the error held on to what the step had
    for part in (group[:half], group[half:]):
        _train_within_memory(part, dataset, clock, folder, tuning, say)


def _train(group: Group, dataset: Dataset, clock: "_Clock", folder: RunFolder | None, tuning: bool) -> None:
    """Fit one group and hand the results to its cells; each is charged its runs' share of the time."""
    cell = group[0][0]
    cells = list(dict.fromkeys(owner for owner, _ in group))
    what = f"{cell.method} {cell.fusion}, {amount(len(group), 'run')} of {amount(len(cells), 'cell')}"

    def keep(method: Method) -> None:
        rows = [[r for r, (owner, _) in enumerate(group) if owner is one] for one in cells]
        for one, part in zip(cells, weights.parts_of(method, rows), strict=True):
            one.trained.append(part)

    start, train_group, settings = time.perf_counter(), fit, [owner.settings for owner, _ in group]
    if cell.clips.end_to_end:
        checkpoints = folder and folder.checkpoints(describe_cell(cell))
        (settings,) = settings
        train_group = partial(fit_end_to_end, checkpoints=checkpoints, deadline=clock.deadline)
    results = train_group(
        registry.load(cell.method),
        dataset,
        [run for _, run in group],
        settings,
        cell.fusion,
        name=f"{cell.method} ({cell.fusion}, {cell.clips.describe()['features']})",
        on_epoch=lambda clips: clock.tick(clips, what),
        **({"on_trained": keep} if folder and folder.save_weights else {}),
        **({"keep_going": True} if tuning else {}),
    )
    seconds = (time.perf_counter() - start) / len(group)
    device = str(dataset.device)
    if dataset.device.type == "cuda":
        device = torch.cuda.get_device_name(dataset.device)
    elif dataset.device.type == "cpu":
        device = f"cpu ({torch.get_num_threads()} threads)"
    for (owner, run), result in zip(group, results, strict=True):
        owner.results[run.spec.seed] = result
        result.seconds += seconds
        result.device = device


class _Clock:
    """Progress in clips trained on, about proportional to time, and the time when training stops."""

    def __init__(self, cells: Sequence[Cell], report: Report | None, deadline: float | None):
        self.total = sum(cell.clip_epochs for cell in cells)
        self.done, self.report, self.deadline = 0, report, deadline

    def tick(self, clips: int, what: str) -> None:
        """Report clips that were trained on."""
        self.done += clips
        if self.report:
            self.report(GridProgress(self.done, self.total, what))

    def check(self) -> None:
        """Raise OutOfTimeError where the time is up."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTimeError


def describe_cell(cell: Cell) -> dict:
    """Return everything of a cell's result that is known before it is trained."""
    store, kind, settings = cell.clips.store, registry.load(cell.method), cell.settings
    return {
        "dataset": store.dataset,
        "store": store.fingerprint,
        "revision": store.attrs.get("revision"),
        **cell.clips.describe(),
        "joined": store.joined,  # of each modality's own store
        "synthetic": store.synthetic,
        "method": cell.method,
        "reference": kind.reference,
        "fusion": cell.fusion,
        "missing": cell.missing.name,
        "missing_test": cell.held_out_lacks,
        **({"missing_tests": cell.tests} if cell.more_tests else {}),
        "split": cell.split,
        "given": store.given,  # files with somebody else's splits and masks
        "marginal": settings.marginal if kind.marginalises else None,
        "seeds": cell.seeds,
        "classes": list(cell.clips.classes),
        "epochs": settings.epochs,
        "settings": asdict(settings),
        "tuned": cell.tuned,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("mlemiss", "torch", "numpy")},
    }


def _result(cell: Cell, seeds: Sequence[int]) -> dict:
    """Return what training a cell with these seeds gave, beside `describe`; lists have one entry a seed."""
    label = cell.clips.label
    results = [cell.results[seed] for seed in seeds]
    runs = [run for run in cell.runs if run.spec.seed in seeds]
    labels = [label[r.test_clips] for r in results]
    first = scores([r.probability for r in results], labels)
    more = [scores(of, labels) for of in zip(*(r.more_probabilities for r in results), strict=True)]
    tests = [{"missing_test": name} | of for name, of in zip(cell.tests, [first, *more], strict=True)]
    return {
        "total_epochs": max(r.total_epochs for r in results),  # with an autoencoder's, before the classifier
        **first,
        **({"tests": tests} if more else {}),
        "val_accuracy": [r.val_accuracy[r.best_epoch - 1] for r in results],
        "curve": {
            "epoch": list(range(1, cell.settings.epochs + 1)),
            "val_accuracy": [r.val_accuracy for r in results],
            "test_accuracy": [r.test_accuracy for r in results],
        },
        "n_train": [int((run.part == TRAIN).sum()) for run in runs],
        "n_labelled": [int(((run.part == TRAIN) & run.labelled).sum()) for run in runs],
        "n_complete": [int(run.complete.sum()) for run in runs],  # their label included
        "n_test": [len(r.test_clips) for r in results],
        "best_epoch": [r.best_epoch for r in results],
        "seconds": round(sum(r.seconds for r in results), 3),
        "device": " and ".join(dict.fromkeys(r.device for r in results)),
    }
