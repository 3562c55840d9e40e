"""A grid as a plan: its cells, their runs, and which runs train side by side. Nothing is trained here."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np

from ...pipeline.console import name_some
from ...pipeline.errors import InputError
from ...pipeline.stores.masks import HELD_OUT_LABELS, TEST, TRAIN, Missing, Setting, check_values, parse_missing
from ...pipeline.stores.store import FeatureStore
from .. import methods as registry
from ..batches import hiding_chances
from ..data import NOTHING, Clips, Run, RunResult, RunSpec
from ..method import check_run, check_width, plan_steps
from ..settings import FUSIONS, Rate, Settings

DEFAULTS = Settings()


@dataclass
class Grid:
    """Everything that is combined with each other, on every store. Duplicates count once.

    methods, fusions: names; `registry.EACH` among methods is each of a store's modalities alone. missing: what training
    lacks, specs such as ``audio:0.5`` or settings of a masks file. missing_test: what validation and test clips lack;
    further ones are what test clips lack in more tests of each training. seeds: how many, from 0, or which. splits:
    ``clip``, or columns whose equal values stay together.

    Raises:
        InputError: an unknown name, a wrong spec, or no seed.
    """

    methods: Sequence[str] = ("mle",)
    fusions: Sequence[str] = ("addition",)
    missing: Sequence[str | Missing | Setting] = ("audio:0.5",)
    missing_test: str | Missing | Sequence[str | Missing] = "none"
    seeds: int | Sequence[int] = 5
    splits: Sequence[str] = ("clip",)

    def __post_init__(self) -> None:
        named = (name if name == registry.EACH else registry.resolve(name) for name in self.methods)
        self.methods = list(dict.fromkeys(named))
        self.fusions, self.splits = list(dict.fromkeys(self.fusions)), list(dict.fromkeys(self.splits))
        for fusion in self.fusions:
            if fusion not in FUSIONS:
                raise InputError(f"unknown fusion {fusion!r}: expected one of {', '.join(FUSIONS)}.")
        self.missing = list(dict.fromkeys(_parsed(spec) for spec in self.missing))
        tests = [self.missing_test] if isinstance(self.missing_test, str | Missing) else self.missing_test
        self.missing_test, *more = dict.fromkeys(_parsed(one, HELD_OUT_LABELS) for one in tests or ["none"])
        self.more_tests: tuple[Missing, ...] = tuple(more)
        several = list(self.seeds) if isinstance(self.seeds, Iterable) else None
        one_or_several = [self.seeds] if several is None else several
        whole = all(isinstance(seed, Integral) and not isinstance(seed, bool) for seed in one_or_several)
        if not whole or min(several or [0]) < 0:
            raise InputError(f"seeds {self.seeds!r}: expected how many, or which ones, whole numbers from 0.")
        self.seeds = list(range(self.seeds) if several is None else dict.fromkeys(map(int, several)))
        if not self.seeds:
            raise InputError("seeds: expected at least one, found none.")

    @property
    def rates(self) -> dict[str, Mapping[str, Rate]]:
        """Return the methods' own settings, by method."""
        return {name: registry.load(name).rates for name in self.methods if name != registry.EACH}


def _parsed(spec: str | Missing | Setting, labels_stay: str | None = None) -> Missing | Setting:
    return parse_missing(spec, None, labels_stay) if isinstance(spec, str) else spec


@dataclass(eq=False)
class Cell:
    """One combination with its runs, a seed each, and their results once they are trained."""

    clips: Clips
    method: str
    fusion: str
    missing: Missing | Setting
    missing_test: Missing = NOTHING
    split: str = "clip"
    settings: Settings = field(default_factory=Settings)
    tuned: dict | None = None  # how they were chosen (`tune.Tuned`)
    runs: list[Run] = field(default_factory=list)
    results: dict[int, RunResult] = field(default_factory=dict)  # by seed
    more_tests: tuple[Missing, ...] = ()
    trained: list = field(default_factory=list)  # `weights.TrainedRuns`, where weights are kept

    @property
    def name(self) -> str:
        """Return the cell's name for messages, the same in every run."""
        store = self.clips.store
        parts = [store.dataset, self.clips.describe()["features"], self.method, self.fusion, self.missing.name]
        return " ".join(parts if self.split == "clip" else [*parts, f"by {self.split}"])

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of its runs."""
        return [run.spec.seed for run in self.runs]

    @property
    def held_out_lacks(self) -> str:
        """Return what validation and test clips lack, as results name it; a masks file may hide some of theirs too."""
        masks = (self.clips.store.given or {}).get("masks")
        if masks and any((self.clips.present & ~run.observed)[run.part != TRAIN].any() for run in self.runs):
            return f"given:{masks['file']}"
        return self.missing_test.name

    @property
    def tests(self) -> list[str]:
        """Return what test clips lack in each test; the validation clips lack the first, too."""
        return [self.held_out_lacks, *(one.name for one in self.more_tests)]

    @property
    def unlearned(self) -> tuple[str, ...]:
        """Return the modalities that a test hides and its first run's training never lacks."""
        run, kind = self.runs[0], registry.load(self.method)
        lacks = _lacking(run, run.training_clips(kind.stages[-1]), self.settings)
        hidden = [(self.clips.present & ~one)[run.part == TEST].any(0) for one in (run.observed, *run.more_tests)]
        return tuple(itertools.compress(self.clips.modalities, np.any(hidden, 0) & ~lacks))

    @property
    def left(self) -> list[Run]:
        """Return the runs that are not trained yet."""
        return [run for run in self.runs if run.spec.seed not in self.results]

    @property
    def clip_epochs(self) -> int:
        """Return the clips to train on, over all runs left, stages and epochs: about proportional to time."""
        stages = registry.load(self.method).stages
        return self.settings.epochs * sum(int(r.training_clips(s).sum()) for r in self.left for s in stages)


@dataclass(frozen=True)
class GridPlan:
    """A grid before it is trained: its cells in order, and the combinations that cannot be trained with the reason."""

    cells: list[Cell]
    skipped: list[dict]


SettingsOf = Callable[[Cell], Sequence[Settings]]


def plan_grid(
    stores: Sequence[FeatureStore],
    grid: Grid,
    settings: Settings | SettingsOf = DEFAULTS,
    clips_of: Callable[[FeatureStore], Clips] = Clips,
) -> GridPlan:
    """Return every combination as a cell with its runs drawn.

    settings: hyper-parameters of all; or a function from a cell to its settings, each of which makes a cell.
    clips_of: what a store's clips are trained as, on its features or end to end (`end_to_end.MediaClips`).
    InputError: an empty grid, or none of its combinations can be trained.
    """
    cells, skipped = [], []
    asked: set[str] = set()  # the methods that are named; single modalities where none is
    refused: list[str] = []  # why, of these
    for store in stores:
        clips = clips_of(store)
        for spec in (*grid.missing, grid.missing_test, *grid.more_tests):
            if isinstance(spec, Missing):
                check_values(store, spec)
        drawn: dict[RunSpec, Run] = {}  # shared by all methods
        methods = methods_on(clips, grid.methods)
        asked |= {name for name in grid.methods if name != registry.EACH} or set(methods)
        for split, method, fusion, spec in itertools.product(grid.splits, methods, grid.fusions, grid.missing):
            kind = registry.load(method)
            if not kind.fuses and fusion != grid.fusions[0]:
                continue
            one = Cell(clips, method, fusion if kind.fuses else kind.fusions[0], spec, grid.missing_test, split)
            one.more_tests = grid.more_tests
            each = [settings] if isinstance(settings, Settings) else settings(one)
            made = [replace(one, settings=own, runs=[], results={}, trained=[]) for own in each]
            try:
                for cell in made:
                    tests = (grid.missing_test, split, grid.more_tests)
                    _draw(cell, [RunSpec(seed, spec, *tests) for seed in grid.seeds], drawn)
            except InputError as error:
                skipped.append({"cell": one.name, "reason": str(error)})
                refused += [str(error)] * (method in asked)
            else:
                cells += made
    if asked.isdisjoint(cell.method for cell in cells):
        if not refused:
            raise InputError("an empty grid: expected at least one store, method, fusion and missing spec.")
        head = f"none of the {len(refused)} combinations can be trained. The first: " * (len(set(refused)) > 1)
        raise InputError(head + refused[0])
    return GridPlan(cells, skipped)


def notes_on(cells: Sequence[Cell]) -> list[str]:
    """Return what a user should know of a plan.

    Clips without anything, tests that lack what training never does or have one class, validation clips of training's
    groups, joined stores of other clips.
    """
    empty: dict[str, None] = {}
    unlearned: dict[tuple, dict[str, None]] = defaultdict(dict)
    for cell in cells:
        run, nothing = cell.runs[0], ~cell.runs[0].observed.any(1)
        counts = (int((nothing & (run.part == part)).sum()) for part in (TRAIN, TEST))
        counted = [f"{n} {of} clips" for n, of in zip(counts, ("training", "test"), strict=True) if n]
        if counted:
            note = f"{cell.missing.name}, seed {run.spec.seed}: {' and '.join(counted)} of {cell.clips.store.path.name}"
            empty[f"{note} have no modality, with what they lack anyway; they are not trained on, in tests guessed"] = (
                None
            )
        if not registry.load(cell.method).reference and (modalities := cell.unlearned):
            unlearned[modalities, cell.tuned is not None][cell.method] = None
    shared = [
        f"{clips.store.path.name} has 2 of {split}: one is the test's, the other gives training and validation clips"
        for clips, split in dict.fromkeys((cell.clips, cell.runs[0].spec.split) for cell in cells)
        if len(np.unique(clips.store.columns.get(split, ()))) == 2
    ]
    shared += dict.fromkeys(
        f"{cell.clips.store.path.name}, by {run.spec.split}, seed {run.spec.seed}: all test clips are of one class"
        for cell in cells
        for run in cell.runs
        if len(np.unique(cell.clips.label[run.part == TEST])) == 1
    )
    joined = {cell.clips.store.path.name: len(cell.clips.store.clip_id) for cell in cells if cell.clips.store.joined}
    if len(set(joined.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in joined.items())
        shared.append(f"joined stores differ in clips ({told}): so do their splits and test clips; do not compare them")
    hints = "--hide 0.3 hides modalities of complete clips in training", "tune chose to hide none"
    return [*empty, *shared] + [
        f"tests lack {' and '.join(modalities)}, which training never does for {name_some(list(methods))}: "
        f"how to do without is not learned; {hints[tuned]}"
        for (modalities, tuned), methods in unlearned.items()
    ]


def methods_on(clips: Clips, methods: Sequence[str]) -> list[str]:
    """Return the methods to train on clips, with the single modalities in place of `registry.EACH`.

    A modality that a method of the list looks at alone is not added, nor the only modality beside other methods.
    """
    others = [name for name in methods if name != registry.EACH]
    looked_at = {registry.load(name).modalities for name in others}
    each = [f"only:{m}" for m in clips.modalities if (m,) not in looked_at]
    if others and len(clips.modalities) == 1:
        each = []
    found = [one for name in methods for one in (each if name == registry.EACH else [name])]
    return list(dict.fromkeys(found))


def _draw(cell: Cell, specs: Sequence[RunSpec], drawn: dict[RunSpec, Run]) -> None:
    """Give a cell its runs. InputError: it cannot be trained."""
    kind = registry.load(cell.method)
    if cell.fusion not in kind.fusions:
        raise InputError(
            f"{cell.method} cannot use the fusion {cell.fusion}: expected one of {', '.join(kind.fusions)}.\n"
            f"Choose another fusion or method."
        )
    if unknown := set(cell.settings.own) - set(kind.rates):
        raise InputError(
            f"{cell.method} has no setting {', '.join(sorted(unknown))}: its own are {', '.join(kind.rates) or 'none'}."
        )
    cell.clips.check(kind, cell.method)
    if kind.fuses:
        check_width(cell.fusion, cell.settings.dim, len(kind.modalities or cell.clips.modalities))
    for spec in specs:
        if spec not in drawn:
            drawn[spec] = cell.clips.run(spec)
        check_run(kind, cell.clips, drawn[spec], cell.method)
        cell.runs.append(drawn[spec])


def _lacking(run: Run, trained: np.ndarray, settings: Settings) -> np.ndarray:
    """Return which modalities some of these clips lack, or a step hides: bool [M]."""
    return (~run.observed[trained]).any(0) | (hiding_chances(run.observed, trained, settings.hide) > 0)


Group = list[tuple[Cell, Run]]  # of one batch


def group_runs(cells: Sequence[Cell], segments: int, most: int, seeds: Sequence[int] | None = None) -> list[Group]:
    """Return the runs left, in groups that train as one batch.

    Runs of a group have the same method, fusion, `Settings.shape`, steps an epoch and kinds of what training lacks.
    A cell's seeds stay together; a group holds at most ``most`` runs, or one cell. Where ``most`` is 1 every run is a
    group of its own, in the order of the cells. seeds: only runs of these (default: all).
    """

    def left(cell: Cell) -> list[Run]:
        return [run for run in cell.left if seeds is None or run.spec.seed in seeds]

    if most == 1:
        return [[(cell, run)] for cell in cells for run in left(cell)]
    alike: dict[tuple, list[Group]] = defaultdict(list)  # a cell's runs of one shape each
    for cell in cells:
        kind = registry.load(cell.method)
        shapes: dict[tuple, Group] = defaultdict(list)
        for run in left(cell):
            trained = run.training_clips(kind.stages[-1])
            lacking = _lacking(run, trained, cell.settings)
            unlabelled = bool((trained & ~run.labelled).any())
            shape = (plan_steps(kind, run, segments, cell.settings), tuple(lacking.tolist()), unlabelled)
            shapes[shape].append((cell, run))
        for shape, group in shapes.items():
            alike[cell.method, cell.fusion, cell.settings.shape, shape].append(group)
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
