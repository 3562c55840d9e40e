"""Grids: every combination of stores, methods, fusions, missing specs and splits is a cell, every cell runs N seeds.

`cells.plan_grid` plans all cells first; `run_plan` trains those of equal shape together and keeps what is finished at
once; `run_grid` is both.
"""

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from ...pipeline.errors import InputError
from ...pipeline.stores.masks import TRAIN
from ...pipeline.stores.store import FeatureStore
from .. import methods as registry
from ..data import Clips, Dataset
from ..end_to_end.checkpoint import Checkpoints
from ..end_to_end.training import fit_end_to_end
from ..evaluate import accuracy, confusion, macro_f1, mean_and_std, mean_interval, unweighted_average_recall
from ..fit import fit
from ..method import Method
from ..report.comparisons import compare_methods
from ..settings import Settings
from . import run_folder as kept
from . import weights as saved
from .grid import Cell, Group, Plan, group_runs, plan_grid

SCHEMA = 1
MOST_RUNS = {"cpu": 10, "cuda": 64}  # trained as one batch: on processors more only grows the memory


@dataclass(frozen=True)
class Progress:
    """How far a grid is: clips trained on, done and in all; what is running."""

    done: int
    total: int
    what: str


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one. InputError: cuda is asked for and there is none, or an unknown name."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: expected auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no CUDA device here.\nUse --device auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def run_grid(
    stores: Sequence[FeatureStore],
    *,
    methods: Sequence[str] = ("mle",),
    fusions: Sequence[str] = ("addition",),
    missing: Sequence[str] = ("audio:0.5",),
    missing_test: str = "none",
    seeds: int | Sequence[int] = 5,
    split: str | Sequence[str] = "clip",
    settings: Settings | None = None,
    device: str = "auto",
    clips_of: Callable[[FeatureStore], Clips] = Clips,
    **run,
) -> dict:
    """Train and test a grid; return the results document, which ``out`` keeps as results.json with predictions/.

    missing, missing_test: specs such as ``audio:0.5``. seeds: how many, from 0, or which. split: ``clip`` or a column
    whose equal values stay together, or several. clips_of: what a store's clips are trained as, on its features or end
    to end (`end_to_end.MediaClips`). run: the options of `run_plan`.
    InputError: an unknown name, no seed, an empty grid, or none of its combinations can be. A combination that cannot
    be is skipped with a line; where it is the only one, its reason is the error. What finished before an error is kept.
    """
    where = choose_device(device)
    grid = {"methods": methods, "fusions": fusions, "missing": missing, "missing_test": missing_test}
    plan = plan_grid(stores, **grid, seeds=seeds, split=split, clips_of=clips_of)
    return run_plan(plan, settings or Settings(), where, **run)


def run_plan(
    plan: Plan,
    settings: Settings,
    device: torch.device,
    *,
    out: Path | None = None,
    resume: bool = False,
    exhibit: str | None = None,
    save_weights: bool = False,
    command: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Train and test the cells of a plan; return the results document.

    out: the folder that keeps it, group by group. resume: finished cells in there are taken over, else they make way.
    exhibit: what the folder is for (such as ``table2``); resuming one that is for something else is an InputError.
    save_weights: keep the trained methods in ``out`` too. say takes a line for each reason to skip combinations.
    """
    for reason, cells in _by_reason(plan.skipped).items():
        what = cells[0] if len(cells) == 1 else f"{len(cells)} combinations, such as {cells[0]}"
        say(f"skipped {what}: {reason}")
    document = {"schema": SCHEMA, "results": [], "comparisons": [], "skipped": plan.skipped, "command": command}
    document |= {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | ({"exhibit": exhibit} if exhibit else {})
    described = [describe(cell, settings) for cell in plan.cells]
    finished: dict[int, dict] = {}  # by place in the plan
    if out is not None and resume:
        finished = _take_over(out, plan, described, document, exhibit)
        if finished:
            say(f"{len(finished)} of {len(plan.cells)} cells are finished and kept")
        if runs := sum(len(cell.results) for place, cell in enumerate(plan.cells) if place not in finished):
            say(f"{runs} runs of other cells are finished and kept")
    elif out is not None:
        kept.start_afresh(out)
    left = [cell for place, cell in enumerate(plan.cells) if place not in finished]
    for cell in left:
        if out is not None and cell.clips.end_to_end:
            stages = [stage.name for stage in registry.load(cell.method).stages]
            _checkpoints(out, cell, settings).check([run.spec.seed for run in cell.left], stages)
    clock = _Clock(left, settings, progress)

    def keep_finished() -> None:
        for place, cell in enumerate(plan.cells):
            if place not in finished and not cell.left:
                finished[place] = described[place] | _result(cell, settings)
                if out is not None:
                    finished[place] |= _keep(cell, described[place], out)
        document["results"] = [finished[place] for place in sorted(finished)]
        if out is not None:
            kept.write_document(out / kept.RESULTS, document)

    if resume:
        keep_finished()
    for clips in dict.fromkeys(cell.clips for cell in left):
        dataset = clips.load(device)  # one store's features in memory at a time
        cells = [cell for cell in left if cell.clips is clips]
        for group in group_runs(cells, dataset.segments, settings, 1 if clips.end_to_end else MOST_RUNS[device.type]):
            owner = group[0][0]  # the only one, where checkpoints are kept
            checkpoints = None if out is None else _checkpoints(out, owner, settings)
            _train(group, dataset, settings, clock, checkpoints, save_weights)
            keep_finished()
            if checkpoints and not owner.left:
                checkpoints.remove()
    if out is not None:
        document["comparisons"] = compare_methods(document["results"], out)
        kept.write_document(out / kept.RESULTS, document)
    return document


def _by_reason(skipped: Sequence[Mapping]) -> dict[str, list[str]]:
    """Why combinations are skipped, and which."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in skipped:
        reasons[entry["reason"]].append(entry["cell"])
    return reasons


def _take_over(
    out: Path, plan: Plan, described: Sequence[Mapping], document: dict, exhibit: str | None
) -> dict[int, dict]:
    """What an earlier run into the folder finished, by place in this plan; what this plan has not is set aside.

    Cells that were finished with other seeds give what they have of a cell's.
    """
    found = kept.take_up(out, exhibit)
    keys = [kept.identity(one) for one in described]
    if any(key not in keys for key in found):
        kept.set_aside(out, document, found.values())
    finished = {place: found[key] for place, key in enumerate(keys) if key in found}
    for place, cell in enumerate(plan.cells):
        if place not in finished:
            kept.take_up_seeds(cell, described[place], found.values(), out)
    kept.write_document(out / kept.RESULTS, document | {"results": list(finished.values())})
    return finished


def _keep(cell: Cell, described: Mapping, out: Path) -> dict:
    """Write a finished cell's files; their names relative to ``out``, as the result has them."""
    files = {"predictions": kept.keep_predictions(cell, described, out)}
    if cell.trained:
        name = f"{kept.WEIGHTS}/{kept.file_stem(described)}{saved.SUFFIX}"
        saved.save(out / name, dict(described) | saved.describe_inputs(cell.clips.store), cell.trained)
        cell.trained.clear()
        files["weights_file"] = name
    return files


def _checkpoints(out: Path, cell: Cell, settings: Settings) -> Checkpoints:
    """Where a cell's runs keep theirs."""
    described = describe(cell, settings)
    identity = {name: value for name, value in described.items() if name in kept.IDENTITY and name != "seeds"}
    return Checkpoints(kept.checkpoint_folder(described, out), identity | {"versions": described["versions"]})


def _train(
    group: Group,
    dataset: Dataset,
    settings: Settings,
    clock: "_Clock",
    checkpoints: Checkpoints | None,
    save_weights: bool,
) -> None:
    """Fit one group and hand the results to its cells; each is charged its runs' share of the time."""
    cell = group[0][0]
    cells = list(dict.fromkeys(owner for owner, _ in group))
    what = f"{cell.method} {cell.fusion}, {len(group)} runs of {len(cells)} cells"

    def keep(method: Method) -> None:
        rows = [[r for r, (owner, _) in enumerate(group) if owner is one] for one in cells]
        for one, part in zip(cells, saved.parts_of(method, rows), strict=True):
            one.trained.append(part)

    start = time.perf_counter()
    train = partial(fit_end_to_end, checkpoints=checkpoints) if cell.clips.end_to_end else fit
    results = train(
        registry.load(cell.method),
        dataset,
        [run for _, run in group],
        settings,
        cell.fusion,
        name=f"{cell.method} ({cell.fusion}, {cell.clips.describe()['features']})",
        on_epoch=lambda clips: clock.tick(clips, what),
        **({"on_trained": keep} if save_weights else {}),
    )
    seconds = (time.perf_counter() - start) / len(group)
    on_gpu = dataset.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"cpu ({torch.get_num_threads()} threads)"
    for (owner, run), result in zip(group, results, strict=True):
        owner.results[run.spec.seed] = result
        result.seconds += seconds
        result.device = device


class _Clock:
    """Progress in clips trained on, which is near enough proportional to time."""

    def __init__(self, cells: Sequence[Cell], settings: Settings, report: Callable[[Progress], None] | None):
        self.total = sum(cell.clip_epochs(settings) for cell in cells)
        self.done, self.report = 0, report

    def tick(self, clips: int, what: str) -> None:
        self.done += clips
        if self.report:
            self.report(Progress(self.done, self.total, what))


def describe(cell: Cell, settings: Settings) -> dict:
    """What a cell's result is of: everything that is known before it is trained."""
    store, kind = cell.clips.store, registry.load(cell.method)
    return {
        "dataset": store.dataset,
        "store": store.fingerprint,
        "revision": store.attrs.get("revision"),
        **cell.clips.describe(),
        "synthetic": store.synthetic,
        "method": cell.method,
        "reference": not kind.fuses,
        "fusion": cell.fusion,
        "missing": cell.missing.name,
        "missing_test": cell.held_out_lacks,
        "split": cell.split,
        "given": store.given,  # files with somebody else's splits and masks
        "marginal": settings.marginal if kind.marginalises else None,
        "seeds": cell.seeds,
        "classes": list(cell.clips.classes),
        "epochs": settings.epochs,
        "settings": asdict(settings),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("mlemiss", "torch", "numpy")},
    }


def _result(cell: Cell, settings: Settings) -> dict:
    """What training a cell found, beside `describe`; lists have one entry a seed."""
    label = cell.clips.label
    results = [cell.results[run.spec.seed] for run in cell.runs]
    counts = [confusion(r.probability, label[r.test_clips]) for r in results]
    scores = [accuracy(c) for c in counts]
    mean, std = mean_and_std(scores)
    return {
        "total_epochs": max(r.total_epochs for r in results),  # with an autoencoder's, before the classifier
        "test_accuracy": scores,
        "mean": mean,
        "std": std,
        "interval": mean_interval(scores),  # 95 %, of the mean over seeds
        "val_accuracy": [r.val_accuracy[r.best_epoch - 1] for r in results],
        "macro_f1": [macro_f1(c) for c in counts],
        "uar": [unweighted_average_recall(c) for c in counts],
        "macro_f1_interval": mean_interval([macro_f1(c) for c in counts]),
        "uar_interval": mean_interval([unweighted_average_recall(c) for c in counts]),
        "confusion": sum(counts).tolist(),
        "curve": {
            "epoch": list(range(1, settings.epochs + 1)),
            "val_accuracy": [r.val_accuracy for r in results],
            "test_accuracy": [r.test_accuracy for r in results],
        },
        "n_train": [int((run.part == TRAIN).sum()) for run in cell.runs],
        "n_complete": [int(((run.part == TRAIN) & run.observed.all(1)).sum()) for run in cell.runs],
        "n_test": [len(r.test_clips) for r in results],
        "best_epoch": [r.best_epoch for r in results],
        "seconds": round(sum(r.seconds for r in results), 3),
        "device": " and ".join(dict.fromkeys(r.device for r in results)),
    }
