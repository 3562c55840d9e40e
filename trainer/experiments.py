"""Grids: every combination of stores, methods, fusions and missing specs is a cell, every cell runs N seeds.

`run_grid` plans all cells first, then trains those of equal shape together, and keeps what is finished at once.
"""

import itertools
import json
import platform
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ..pipeline.errors import InputError
from ..pipeline.masks import TRAIN, Missing, parse_missing
from ..pipeline.store import FeatureStore
from . import methods as registry
from .data import COMPLETE, Clips, Dataset, Run, RunSpec
from .evaluate import accuracy, confusion, macro_f1, mean_and_std, unweighted_average_recall
from .fit import RunResult, check_run, fit, plan_steps
from .settings import FUSIONS, Settings

SCHEMA = 1
RESULTS, PREDICTIONS = "results.json", "predictions"
MOST_RUNS = {"cpu": 10, "cuda": 64}  # trained as one batch: on processors more only grows the memory


@dataclass(frozen=True)
class Progress:
    """How far a grid is: clips trained on, done and in all; seconds left, None at first; what is running."""

    done: int
    total: int
    seconds_left: float | None
    what: str


@dataclass
class Cell:
    """One combination, with its runs (a seed each) once they are drawn, and their results once they are trained."""

    clips: Clips
    method: str
    fusion: str
    missing: Missing
    runs: list[Run] = field(default_factory=list)
    results: dict[int, RunResult] = field(default_factory=dict)  # by seed
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.clips.store.dataset} {self.clips.store.features} {self.method} {self.fusion} {self.missing.name}"


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
    split: str = "clip",
    settings: Settings | None = None,
    device: str = "auto",
    out: Path | None = None,
    command: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Train and test a grid; return the results document, which ``out`` keeps as results.json with predictions/.

    missing, missing_test: specs such as ``audio:0.5``. seeds: how many, from 0, or which. split: ``clip`` or a column
    whose equal values stay together. say takes a line for each combination that is skipped.
    InputError: an unknown name, no seed, an empty grid, or none of its combinations can be. A combination that cannot
    be is skipped with a line; where it is the only one, its reason is the error. What finished before an error is kept.
    """
    settings = settings or Settings()
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not seeds:
        raise InputError("expected at least one seed, found none.\nChoose --seeds 1 or more.")
    where = choose_device(device)
    specs = [RunSpec(seed, COMPLETE, parse_missing(missing_test), split) for seed in seeds]
    cells, skipped = _plan(stores, methods, fusions, missing, specs)
    for entry in skipped:
        say(f"skipped {entry['cell']}: {entry['reason']}")
    document = {
        "schema": SCHEMA,
        "results": [],
        "comparisons": [],
        "skipped": skipped,
        "command": command,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if out is not None:
        (out / PREDICTIONS).mkdir(parents=True, exist_ok=True)
        for stale in [out / RESULTS, *(out / PREDICTIONS).glob("*.npz")]:  # of an earlier run into this folder
            stale.unlink(missing_ok=True)
    clock = _Clock(cells, settings, progress)
    finished: dict[int, dict] = {}  # by place in the plan
    for clips in dict.fromkeys(cell.clips for cell in cells):
        dataset = Dataset(clips, where)  # one store's features in memory at a time
        for group in _groups([c for c in cells if c.clips is clips], dataset.segments, settings, MOST_RUNS[where.type]):
            _train(group, dataset, settings, clock)
            for place, cell in enumerate(cells):
                if place not in finished and len(cell.results) == len(cell.runs):
                    finished[place] = _result(cell, missing_test, split, settings, where)
                    if out is not None:
                        finished[place]["predictions"] = _keep_predictions(cell, out)
            document["results"] = [finished[place] for place in sorted(finished)]
            if out is not None:
                _write_json(out / RESULTS, document)
    return document


def _plan(
    stores: Sequence[FeatureStore],
    methods: Sequence[str],
    fusions: Sequence[str],
    missing: Sequence[str],
    specs: Sequence[RunSpec],
) -> tuple[list[Cell], list[dict]]:
    """All cells with their runs drawn, and what is skipped and why. InputError: nothing is left."""
    names = list(dict.fromkeys(map(registry.resolve, methods)))
    for fusion in fusions:
        if fusion not in FUSIONS:
            raise InputError(f"unknown fusion {fusion!r}: expected one of {', '.join(FUSIONS)}.")
    settings = list(dict.fromkeys(map(parse_missing, missing)))
    cells, skipped = [], []
    for store in stores:
        clips = Clips(store)
        drawn: dict[RunSpec, Run] = {}  # shared by all methods
        for method, fusion, spec in itertools.product(names, dict.fromkeys(fusions), settings):
            cell = Cell(clips, method, fusion, spec)
            try:
                _draw(cell, [replace(run, missing=spec) for run in specs], drawn)
            except InputError as error:
                skipped.append({"cell": cell.name, "reason": str(error)})
            else:
                cells.append(cell)
    if not cells:
        reasons = list(dict.fromkeys(entry["reason"] for entry in skipped))
        if not reasons:
            raise InputError("an empty grid: expected at least one store, method, fusion and missing spec.")
        head = "" if len(reasons) == 1 else f"none of the {len(skipped)} combinations can be, the first because: "
        raise InputError(head + reasons[0])
    return cells, skipped


def _draw(cell: Cell, specs: Sequence[RunSpec], drawn: dict[RunSpec, Run]) -> None:
    """Give a cell its runs. InputError: it cannot be."""
    kind = registry.load(cell.method)
    if cell.fusion not in kind.fusions:
        raise InputError(
            f"{cell.method} cannot use the fusion {cell.fusion}: expected one of {', '.join(kind.fusions)}.\n"
            f"Choose another --fusion or --method."
        )
    for spec in specs:
        if spec not in drawn:
            drawn[spec] = cell.clips.run(spec)
        check_run(kind, cell.clips, drawn[spec], cell.method)
        cell.runs.append(drawn[spec])


Group = list[tuple[Cell, Run]]


def _groups(cells: Sequence[Cell], segments: int, settings: Settings, most: int) -> list[Group]:
    """Runs that train as one batch: same method, fusion, steps an epoch and modalities missing in training.

    A cell's seeds stay together; batches hold at most ``most`` runs, except that they take a cell whole.
    """
    alike: dict[tuple, list[Group]] = defaultdict(list)  # a cell's runs of one shape each
    for cell in cells:
        kind = registry.load(cell.method)
        shapes: dict[tuple, Group] = defaultdict(list)
        for run in cell.runs:
            lacking = ~run.observed[run.training_clips(kind.stages[-1].rows)]
            shape = (plan_steps(kind, run, segments, settings), tuple(lacking.any(0).tolist()))
            shapes[shape].append((cell, run))
        for shape, group in shapes.items():
            alike[cell.method, cell.fusion, shape].append(group)
    groups: list[Group] = []
    for parts in alike.values():
        batch: Group = []
        for part in parts:
            if batch and len(batch) + len(part) > most:
                groups.append(batch)
                batch = []
            batch = batch + part
        groups.append(batch)
    return groups


def _train(group: Group, dataset: Dataset, settings: Settings, clock: "_Clock") -> None:
    """Fit one group and hand the results to its cells; each is charged its runs' share of the time."""
    cell = group[0][0]
    cells = list(dict.fromkeys(c.name for c, _ in group))
    what = f"{cell.method} {cell.fusion}, {len(group)} runs of {len(cells)} cells"
    start = time.perf_counter()
    results = fit(
        registry.load(cell.method),
        dataset,
        [run for _, run in group],
        settings,
        cell.fusion,
        name=f"{cell.method} ({cell.fusion}, {cell.clips.store.features})",
        on_epoch=lambda clips: clock.tick(clips, what),
    )
    seconds = (time.perf_counter() - start) / len(group)
    for (owner, run), result in zip(group, results, strict=True):
        owner.results[run.spec.seed] = result
        owner.seconds += seconds


class _Clock:
    """Progress in clips trained on, which is near enough proportional to time."""

    def __init__(self, cells: Sequence[Cell], settings: Settings, report: Callable[[Progress], None] | None):
        self.total = settings.epochs * sum(
            int(run.training_clips(stage.rows).sum())
            for cell in cells
            for run in cell.runs
            for stage in registry.load(cell.method).stages
        )
        self.done, self.start, self.report = 0, time.perf_counter(), report

    def tick(self, clips: int, what: str) -> None:
        self.done += clips
        if self.report:
            spent = time.perf_counter() - self.start
            self.report(Progress(self.done, self.total, spent / self.done * (self.total - self.done), what))


def _result(cell: Cell, missing_test: str, split: str, settings: Settings, device: torch.device) -> dict:
    """One cell as results.json has it; lists have one entry a seed."""
    store, kind, label = cell.clips.store, registry.load(cell.method), cell.clips.label
    results = [cell.results[run.spec.seed] for run in cell.runs]
    counts = [confusion(r.probability, label[r.test_clips]) for r in results]
    scores = [accuracy(c) for c in counts]
    mean, std = mean_and_std(scores)
    return {
        "dataset": store.dataset,
        "features": store.features,
        "store": store.fingerprint,
        "weights": store.weights.get("name"),
        "weights_hash": store.weights.get("hash"),
        "synthetic": store.synthetic,
        "method": cell.method,
        "fusion": cell.fusion,
        "missing": cell.missing.name,
        "missing_test": parse_missing(missing_test).name,
        "split": split,
        "marginal": settings.marginal if kind.marginalises else None,
        "seeds": [run.spec.seed for run in cell.runs],
        "test_accuracy": scores,
        "mean": mean,
        "std": std,
        "val_accuracy": [r.val_accuracy[r.best_epoch - 1] for r in results],
        "macro_f1": [macro_f1(c) for c in counts],
        "uar": [unweighted_average_recall(c) for c in counts],
        "classes": list(cell.clips.classes),
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
        "epochs": settings.epochs,
        "total_epochs": settings.epochs * len(kind.stages),  # autoencoders train as many before the classifier
        "settings": asdict(settings),
        "seconds": round(cell.seconds, 3),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)",
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("mlemiss", "torch", "numpy")},
    }


def _keep_predictions(cell: Cell, out: Path) -> str:
    """Write a cell's test predictions; the file's name relative to ``out``.

    clip_id [clip], subject [clip] and label [clip] of all usable clips, seeds [seed], classes [class], and
    probabilities [seed, clip, class], NaN where a clip is not among that seed's test clips.
    """
    clips, results = cell.clips, [cell.results[run.spec.seed] for run in cell.runs]
    probabilities = np.full((len(results), len(clips.label), len(clips.classes)), np.nan, np.float32)
    for values, result in zip(probabilities, results, strict=True):
        values[result.test_clips] = result.probability
    parts = [clips.store.dataset, clips.store.features, clips.store.fingerprint, cell.method, cell.fusion]
    name = re.sub(r"[^\w.=+-]+", "_", "-".join([*parts, cell.missing.name]))
    path = out / PREDICTIONS / f"{name}.npz"
    temporary = path.with_name("." + path.name)
    np.savez_compressed(
        temporary,
        clip_id=clips.clip_id,
        subject=clips.subject,
        label=clips.label,
        probabilities=probabilities,
        seeds=np.array([run.spec.seed for run in cell.runs]),
        classes=np.array(clips.classes),
    )
    temporary.replace(path)
    return f"{PREDICTIONS}/{path.name}"


def _write_json(path: Path, document: dict) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
