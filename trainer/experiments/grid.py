"""A grid as a plan: its cells, their runs, and which runs train side by side. Nothing is trained here."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ...pipeline.errors import InputError
from ...pipeline.stores.masks import TRAIN, Missing, Setting, parse_missing
from ...pipeline.stores.store import FeatureStore
from .. import methods as registry
from ..data import COMPLETE, Clips, Run, RunSpec
from ..fit import RunResult, check_run, plan_steps
from ..settings import FUSIONS, Settings


@dataclass(eq=False)
class Cell:
    """One combination with its runs, a seed each, and their results once they are trained."""

    clips: Clips
    method: str
    fusion: str
    missing: Missing | Setting
    missing_test: Missing = COMPLETE
    split: str = "clip"
    runs: list[Run] = field(default_factory=list)
    results: dict[int, RunResult] = field(default_factory=dict)  # by seed
    trained: list = field(default_factory=list)  # `saved.Part`, where weights are kept

    @property
    def name(self) -> str:
        store = self.clips.store
        parts = [store.dataset, self.clips.describe()["features"], self.method, self.fusion, self.missing.name]
        return " ".join(parts if self.split == "clip" else [*parts, f"by {self.split}"])

    @property
    def seeds(self) -> list[int]:
        return [run.spec.seed for run in self.runs]

    @property
    def held_out_lacks(self) -> str:
        """What validation and test clips lack, as results name it; the rows of a masks file may hide theirs too."""
        masks = (self.clips.store.given or {}).get("masks")
        if masks and any((self.clips.present & ~run.observed)[run.part != TRAIN].any() for run in self.runs):
            return f"given:{masks['file']}"
        return self.missing_test.name

    @property
    def left(self) -> list[Run]:
        """Its runs that are not trained yet."""
        return [run for run in self.runs if run.spec.seed not in self.results]

    def clip_epochs(self, settings: Settings) -> int:
        """Clips to train on, over all runs left, stages and epochs: near enough proportional to time."""
        stages = registry.load(self.method).stages
        return settings.epochs * sum(int(r.training_clips(s.rows).sum()) for r in self.left for s in stages)


@dataclass(frozen=True)
class Plan:
    """A grid before it is trained: its cells in order, and what cannot be with the reason."""

    cells: list[Cell]
    skipped: list[dict]


def plan_grid(
    stores: Sequence[FeatureStore],
    *,
    methods: Sequence[str] = ("mle",),
    fusions: Sequence[str] = ("addition",),
    missing: Sequence[str | Missing | Setting] = ("audio:0.5",),
    missing_test: str = "none",
    seeds: int | Sequence[int] = 5,
    split: str | Sequence[str] = "clip",
    clips_of: Callable[[FeatureStore], Clips] = Clips,
) -> Plan:
    """Every combination as a cell with its runs drawn. Arguments and errors as for `experiments.run_grid`."""
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not seeds:
        raise InputError("expected at least one seed, found none.\nChoose --seeds 1 or more.")
    splits = [split] if isinstance(split, str) else list(dict.fromkeys(split))
    names = list(dict.fromkeys(map(registry.resolve, methods)))
    for fusion in fusions:
        if fusion not in FUSIONS:
            raise InputError(f"unknown fusion {fusion!r}: expected one of {', '.join(FUSIONS)}.")
    specs = list(dict.fromkeys(parse_missing(spec) if isinstance(spec, str) else spec for spec in missing))
    held_out = parse_missing(missing_test)
    cells, skipped = [], []
    for store in stores:
        clips = clips_of(store)
        drawn: dict[RunSpec, Run] = {}  # shared by all methods
        for by, method, fusion, spec in itertools.product(splits, names, dict.fromkeys(fusions), specs):
            kind = registry.load(method)
            if not kind.fuses and fusion != fusions[0]:
                continue
            cell = Cell(clips, method, fusion if kind.fuses else kind.fusions[0], spec, held_out, by)
            try:
                _draw(cell, [RunSpec(seed, cell.missing, held_out, by) for seed in seeds], drawn)
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
    return Plan(cells, skipped)


def _draw(cell: Cell, specs: Sequence[RunSpec], drawn: dict[RunSpec, Run]) -> None:
    """Give a cell its runs. InputError: it cannot be."""
    kind = registry.load(cell.method)
    if cell.fusion not in kind.fusions:
        raise InputError(
            f"{cell.method} cannot use the fusion {cell.fusion}: expected one of {', '.join(kind.fusions)}.\n"
            f"Choose another --fusion or --method."
        )
    cell.clips.check(kind, cell.method)
    for spec in specs:
        if spec not in drawn:
            drawn[spec] = cell.clips.run(spec)
        check_run(kind, cell.clips, drawn[spec], cell.method)
        cell.runs.append(drawn[spec])


def with_seeds(cell: Cell, count: int) -> Cell:
    """The cell with its first seeds only, and what is finished of them."""
    runs = cell.runs[:count]
    return replace(
        cell, runs=runs, results={r.spec.seed: cell.results[r.spec.seed] for r in runs if r not in cell.left}
    )


Group = list[tuple[Cell, Run]]


def group_runs(cells: Sequence[Cell], segments: int, settings: Settings, most: int) -> list[Group]:
    """Runs that train as one batch: same method, fusion, steps an epoch and modalities missing in training.

    A cell's seeds stay together; batches hold at most ``most`` runs, except that they take a cell whole. Where ``most``
    is 1 every run is a batch of its own, in the order of the cells.
    """
    if most == 1:
        return [[(cell, run)] for cell in cells for run in cell.left]
    alike: dict[tuple, list[Group]] = defaultdict(list)  # a cell's runs of one shape each
    for cell in cells:
        kind = registry.load(cell.method)
        shapes: dict[tuple, Group] = defaultdict(list)
        for run in cell.left:
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
