"""The clips of a feature store on a device, shared by all runs, and what each run may see of them.

Shapes: R runs, M modalities, S segments a clip, D features, C classes, n rows. A row is a segment: clip * S + s.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..pipeline.errors import InputError
from ..pipeline.stores.masks import (
    HELD_OUT_LABELS,
    TEST,
    TRAIN,
    VALIDATION,
    Missing,
    Setting,
    parse_missing,
    unlabelled_clips,
)
from ..pipeline.stores.store import FeatureStore
from .batches import NO_LABEL, Batch, Draws, EpochOrder, Patterns, Stage, count_patterns, hiding_chances, rows_of
from .networks import Blueprint, exact_type, nan_, usable_deviation

NOTHING = Missing()
NO_RATES: Mapping[str, Tensor] = MappingProxyType({})
CACHED = 1 << 17  # float32 numbers that stay in a core's cache while they are summed
CHUNKS_AT_ONCE = 8  # of a store, read by a thread: zarr decodes them side by side, and fewer would wait for Python
PARTS = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}


@dataclass(frozen=True)
class RunSpec:
    """Everything that the data of one run depend on; more_tests: what test clips lack in further tests of it."""

    seed: int
    missing: Missing | Setting = NOTHING
    missing_test: Missing = NOTHING
    split: str = "clip"
    more_tests: tuple[Missing, ...] = ()

    @property
    def name(self) -> str:
        """Return the run's name for messages."""
        parts = [f"seed {self.seed}", f"missing {self.missing.name}"]
        parts += [f"held-out clips lack {self.missing_test.name}"] if self.missing_test != NOTHING else []
        return ", ".join(parts if self.split == "clip" else [*parts, f"split by {self.split}"])


@dataclass(frozen=True)
class Run:
    """One run's view of the usable clips, on the host: part int8 [clip], observed bool [clip, M], labelled [clip]."""

    spec: RunSpec
    part: np.ndarray
    observed: np.ndarray
    modalities: tuple[str, ...]
    labelled: np.ndarray
    more_tests: tuple[np.ndarray, ...] = ()  # observed, in each further test

    def training_clips(self, stage: Stage) -> np.ndarray:
        """Return the clips that a stage trains on, with something observed each: bool [clip]."""
        clips = (self.part == TRAIN) & self.observed.any(1) & stage.rows(self.observed, self.modalities)
        return clips if stage.unlabelled else clips & self.labelled

    @property
    def complete(self) -> np.ndarray:
        """Return the training clips that lack nothing, no label either: bool [clip]."""
        return (self.part == TRAIN) & self.observed.all(1) & self.labelled


@dataclass
class RunResult:
    """One run's outcome. Accuracies in percent of clips; curves have one entry an epoch of the selecting stage."""

    run: Run
    test_clips: np.ndarray  # int [n], positions among the data set's clips
    probability: np.ndarray  # [n, C] of the test clips, by the best epoch's weights
    best_epoch: int  # from 1
    total_epochs: int = 0  # over all stages
    val_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0  # its share of its group's
    device: str = ""
    more_probabilities: list[np.ndarray] = field(default_factory=list)  # [n, C] of each further test


class Clips:
    """The clips of a store that did not fail, without their features; on the host.

    kept: int [clip], places in the store; clip_id, subject: str [clip]; label: int64 [clip]; present: bool [clip, M].
    InputError: fewer than two classes.
    """

    def __init__(self, store: FeatureStore):
        self.store = store
        self.modalities, self.classes = store.modalities, store.classes
        self.kept = np.flatnonzero(store.done)
        self.clip_id, self.subject = store.clip_id[self.kept], store.subject[self.kept]
        self.present, self.label = store.present[self.kept], store.label[self.kept]
        if (found := len(np.unique(self.label))) < 2:
            few = f"expected clips of at least two classes, found {len(self.label)} clips of {found}"
            raise InputError(f"{store.path}: {few}.\nPreprocess more clips.")

    end_to_end: ClassVar[bool] = False  # features are computed by networks as they are needed (`end_to_end.MediaClips`)
    remedy: ClassVar[str] = "Lower the missing rate, or preprocess more clips"  # of training clips, where some lack

    def describe(self) -> dict:
        """Return the features' name and weights, as results record them."""
        weights = self.store.weights
        return {"features": self.store.features, "weights": weights.get("name"), "weights_hash": weights.get("hash")}

    def check(self, kind: type, name: str) -> None:
        """Check that the method called ``name`` can train on these clips. InputError: they lack what it looks at."""
        if absent := set(kind.modalities or ()) - set(self.modalities):
            raise InputError(
                f"{name} looks at {', '.join(sorted(absent))}, and {self.store.path.name} has "
                f"{', '.join(self.modalities)}.\nChoose another --method, such as only:{self.modalities[0]}."
            )

    def load(self, device: torch.device) -> "Dataset":
        """Return the clips' features and labels on a device."""
        return Dataset(self, device)

    def run(self, spec: RunSpec) -> Run:
        """Draw the run's split and masks.

        Raises:
            InputError: a missing spec of other modalities, an empty part, or a class in none of the training clips.
        """
        tests = (spec.missing_test, *spec.more_tests)
        for missing, labels in ((spec.missing, None), *((one, HELD_OUT_LABELS) for one in tests)):
            if isinstance(missing, Missing):
                parse_missing(missing.name, self.modalities, labels)
        part = self.store.split(spec.seed, spec.split)
        hidden = self.store.missing(spec.missing, spec.seed, part == TRAIN)
        hidden = hidden | self.store.missing(spec.missing_test, spec.seed, part == VALIDATION)
        hidden = [hidden | self.store.missing(one, spec.seed, part == TEST) for one in tests]
        whole, part = part, part[self.kept]
        observed, *more = [self.present & ~one[self.kept] for one in hidden]
        drawn = f"{self.store.path}: the split by {spec.split.removeprefix('given:')} with seed {spec.seed}"
        given = (self.store.given or {}).get("splits")
        advice = f"Correct {given['file']}." if given else "Preprocess more clips, or choose another --split."
        for value, name in PARTS.items():
            if not (part == value).any():
                raise InputError(f"{drawn} leaves no {name} clips of {len(part)} usable ones.\n{advice}")
        if len(one := np.unique(self.label[part == VALIDATION])) < 2:
            only = self.classes[one[0]]
            raise InputError(f"{drawn} has validation clips of {only} alone: expected two classes.\n{advice}")
        if len(absent := np.setdiff1d(self.label[part != TRAIN], self.label[part == TRAIN])):
            names = ", ".join(self.classes[c] for c in absent)
            raise InputError(f"{drawn} has held-out clips but no training clip of {names}.\n{advice}")
        return Run(spec, part, observed, self.modalities, self._labelled(spec, whole, observed), tuple(more))

    def _labelled(self, spec: RunSpec, part: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Draw which usable clips keep their label, held-out ones all: part of all clips, observed [clip, M]."""
        if not (isinstance(spec.missing, Missing) and spec.missing.label):
            return np.ones(len(self.kept), bool)
        store, usable = self.store, np.zeros(len(part), bool)
        usable[self.kept] = observed.any(1)
        table = (store.clip_id, store.label, part == TRAIN)
        return ~unlabelled_clips(*table, spec.missing.label, spec.seed, usable)[self.kept]


class Dataset:
    """The features of a store's usable clips as float16 rows on a device, as they are stored, shared by all runs.

    features: M tensors [clip * S, D_m], or [clip, D_m] of a modality with one segment a clip; entries of clips that
    lack the modality may hold anything. label: [clip]. finite: bool [clip, M], whether all of a clip's values are.
    """

    def __init__(self, clips: Clips, device: torch.device | str = "cpu"):
        self.clips, self.device = clips, torch.device(device)
        self.label = torch.as_tensor(clips.label, device=self.device)
        self.features, self._means, self._spreads, finite = [], [], [], []
        self._segments = [clips.store.shape(modality)[1] for modality in clips.modalities]
        self.segments = max(self._segments)
        for modality in clips.modalities:
            rows, means, spreads = _load(clips, modality)
            finite.append(spreads.isfinite().all(1).numpy())  # float16's squares cannot overflow there
            self._means.append(means.to(self.device))
            self._spreads.append(spreads.to(self.device))
            self.features.append(rows.flatten(0, 1).to(self.device))
        self.finite = np.stack(finite, 1)

    def check_finite(self, run: Run) -> None:
        """Check that every value that a run observes is finite. InputError: one is not."""
        bad = np.any([run.observed, *run.more_tests], axis=0) & ~self.finite
        if bad.any():
            clip, m = np.argwhere(bad)[0]
            raise InputError(
                f"{self.clips.store.path}: features of {int(bad.any(1).sum())} clips are not finite, first "
                f"{self.clips.modalities[m]} of {self.clips.clip_id[clip]}.\n"
                f"Check the store with `mlemiss store verify` and preprocess again."
            )

    def gather(self, m: int, rows: Tensor) -> Tensor:
        """Return modality m of rows [R, n]: float32 [R, n, D_m]. One with a segment a clip has it in every segment."""
        if self._segments[m] != self.segments:
            rows = torch.div(rows, self.segments, rounding_mode="floor")
        return self.features[m].index_select(0, rows.flatten()).float().unflatten(0, rows.shape)

    def runs(self, runs: Sequence[Run], stage: Stage, rates: Mapping[str, Tensor] = NO_RATES) -> "Runs":
        """Return these runs, to be trained side by side; stage: what trains the classifier."""
        return Runs(self, runs, stage, rates)

    def moments(self, m: int, clips: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of modality m over the rows of clips (bool [clip]): float32 [D] each.

        Only those clips are read. A feature that is constant there keeps a deviation of 1.
        """
        chosen = torch.as_tensor(clips, device=self.device)
        segments = self._segments[m]
        count = max(int(clips.sum()), 1) * segments
        means, spreads = (values[m][chosen].to(exact_type(self.device)) for values in (self._means, self._spreads))
        mean = means.mean(0) if len(means) else torch.zeros_like(means.sum(0))
        std = ((segments * (means - mean).square_().sum(0) + spreads.sum(0)) / count).sqrt()
        return mean.float(), usable_deviation(mean, std)


def _load(clips: Clips, modality: str) -> tuple[Tensor, Tensor, Tensor]:
    """Read the features of the usable clips, and sum them up.

    A variance is a difference of large numbers; about a segment of the clip itself the numbers are small, and float32
    is exact enough. Each thread reads and sums some chunks of the store, so that one decompresses while others read;
    torch's own threads would wait for each other. Returns features, float16 [clip, S, D]; each clip's mean over its
    segments, and the sum of squared differences from it: float32 [clip, D] each.
    """
    store, kept = clips.store, clips.kept
    (count, S, D), step = store.shape(modality), CHUNKS_AT_ONCE * store.clips_a_chunk(modality)
    features = torch.from_numpy(np.empty((len(kept), S, D), np.float16))  # which asks for huge pages
    means, spreads = torch.empty(2, len(kept), D)
    few = max(CACHED // (S * D), 1)  # clips

    def load(first: int) -> None:
        low, high = np.searchsorted(kept, (first, first + step))
        last = min(first + step, count)
        if high - low == last - first:  # all of them are usable
            store.read_into(features[low:high].numpy(), modality, slice(first, last))
        else:
            block = torch.from_numpy(store.read(modality, slice(first, last)))
            torch.index_select(block, 0, torch.from_numpy(kept[low:high] - first), out=features[low:high])
        parts = (values[low:high].split(few) for values in (features, means, spreads))
        for some, mean, spread in zip(*parts, strict=True):
            values = some.float()
            first = values[:, 0].clone()
            shift = values.sub_(first[:, None]).sum(1)
            torch.add(first, shift, alpha=1 / S, out=mean)
            torch.sub(values.square_().sum(1), shift.square_(), alpha=1 / S, out=spread).clamp_min_(0)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(load, range(0, count, step)))
    finally:
        torch.set_num_threads(threads)
    return features, means, spreads


class Runs(Blueprint):
    """R runs over one data set, trained as one batch. ``trained_on`` [R, clip] are the clips the classifier trains on,
    ``unlabelled`` whether some of them lack their label.

    rates: of each run, [R] each, see `method.rates_of`.

    Raises:
        InputError: features that a run observes are not finite.
    """

    features_change = False  # a row keeps its features while the method trains

    def __init__(self, dataset: Dataset, runs: Sequence[Run], stage: Stage, rates: Mapping[str, Tensor] = NO_RATES):
        for run in runs:
            dataset.check_finite(run)
        hide = rates["hide"].tolist() if rates else [0.0] * len(runs)
        shares = rates["complete_share"].tolist() if rates else [np.nan] * len(runs)
        self.dataset, self.runs, self.segments = dataset, list(runs), dataset.segments
        clips, device = dataset.clips, dataset.device
        observed = np.stack([r.observed for r in runs])  # [R, clip, M]
        held_out = np.stack([r.part != TRAIN for r in runs])  # [R, clip]
        tested = np.stack([np.all([r.observed, *r.more_tests], axis=0) for r in runs])  # in every test
        self.trained_on = np.stack([r.training_clips(stage) for r in runs])
        labelled = np.stack([r.labelled for r in runs])  # [R, clip]
        self.unlabelled = bool((self.trained_on & ~labelled).any())
        self.labelled = torch.as_tensor(labelled, device=device)
        self.observed = torch.as_tensor(observed, device=device)
        each = zip(observed, self.trained_on, hide, strict=True)
        hides = np.stack([hiding_chances(*one) for one in each])  # [R, M]
        self._anything_missing = ((~tested).any((0, 1)) | (hides > 0).any(0)).tolist()
        # Every clip has S rows, so clips' frequencies are rows' frequencies.
        counted = self.trained_on & labelled
        counts = np.stack([np.bincount(clips.label[k], minlength=len(clips.classes)) for k in counted])
        prior = torch.as_tensor(counts / counts.sum(1, keepdims=True))
        super().__init__(
            seeds=[run.spec.seed for run in runs],
            modalities=clips.modalities,
            classes=clips.classes,
            moments=[self._moments(m) for m in range(len(clips.modalities))],
            log_prior=prior.log().float().to(device),
            lacking=((~observed & self.trained_on[..., None]).any((0, 1)) | (hides > 0).any(0)).tolist(),
            lacking_held_out=(~tested & held_out[..., None]).any((0, 1)).tolist(),
            device=device,
            rates=rates,
        )
        self.draws = Draws(observed, labelled, self.trained_on, self.segments, self.seeds, hides, shares)

    def batches(self, stage: Stage, steps: int, batch_size: int) -> "Batches":
        """Return what yields the batches of a stage, epoch by epoch."""
        return Batches(self, stage, steps, batch_size)

    def _moments(self, m: int) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each run's observed training entries, [R, D] each, whatever the method."""
        each = [self.dataset.moments(m, run.observed[:, m] & (run.part == TRAIN)) for run in self.runs]
        mean, std = zip(*each, strict=True)
        return torch.stack(mean), torch.stack(std)

    def gather(self, rows: Tensor, hidden: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return rows [R, n] as a method sees them: x, M tensors [R, n, D], NaN where missing; observed [R, n, M].

        hidden: bool [R, n, M], what is not to be seen of them.
        """
        observed = self.observed_rows(rows)
        observed = observed if hidden is None else observed & ~hidden
        return [self.gather_modality(m, rows, observed[..., m]) for m in range(len(self.modalities))], observed

    def observed_rows(self, rows: Tensor) -> Tensor:
        """Return which modalities of rows [R, n] are observed: bool [R, n, M]."""
        clips = torch.div(rows, self.segments, rounding_mode="floor")
        return self.observed.gather(1, clips[..., None].expand(-1, -1, len(self.modalities)))

    def gather_modality(self, m: int, rows: Tensor, observed: Tensor) -> Tensor:
        """Return one modality of rows [R, n]: [R, n, D], NaN where not observed (bool [R, n])."""
        x = self.dataset.gather(m, rows)
        return nan_(x, observed) if self._anything_missing[m] else x

    def batch(
        self, rows: Tensor, weight: Tensor, patterns: Patterns | None = None, hidden: Tensor | None = None
    ) -> Batch:
        """Return the batch of rows and weights [R, B] on the device.

        patterns: of these rows, if they are known. hidden: bool [R, B, M], what the step does not see of them.
        """
        if patterns is None:
            (patterns,) = self.patterns(rows.cpu()[None], hidden if hidden is None else hidden.cpu()[None])
        x, observed = self.gather(rows, hidden)
        return Batch(rows, x, observed, self.labels(rows), weight, patterns)

    def labels(self, rows: Tensor) -> Tensor:
        """Return the labels of rows [R, n], NO_LABEL where they are missing: [R, n]."""
        clips = torch.div(rows, self.segments, rounding_mode="floor")
        label = self.dataset.label[clips]
        return label.masked_fill(~self.labelled.gather(1, clips), NO_LABEL) if self.unlabelled else label

    def patterns(self, rows: Tensor, hidden: Tensor | None) -> list[Patterns]:
        """Return each step's patterns of observed modalities: rows [steps, R, B] on the host, less what is hidden."""
        clips = rows.numpy() // self.segments
        observed = np.stack([run.observed[clips[:, r]] for r, run in enumerate(self.runs)], 1)
        return count_patterns(observed if hidden is None else observed & ~hidden.numpy())

    def rows_of(self, clips: Tensor) -> Tensor:
        """Return all rows of clips [R, c]: [R, c * S]."""
        return (clips[..., None] * self.segments + torch.arange(self.segments, device=clips.device)).flatten(1)

    def padded_clips(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return clips that runs choose (bool [R, clip]) as positions [R, c], c the most of any, and which count."""
        most = max(int(chosen.sum(1).max()), 1)
        clips = np.repeat(chosen.argmax(1)[:, None], most, axis=1)  # filled up with the run's own first
        counted = np.arange(most) < chosen.sum(1, keepdims=True)
        clips[counted] = np.nonzero(chosen)[1]
        return torch.as_tensor(clips, device=self.device), torch.as_tensor(counted, device=self.device)


class Batches:
    """The batches of R runs: rows are drawn on the host, `Runs.batch` makes a batch of them by tensors alone."""

    def __init__(self, runs: Runs, stage: Stage, steps: int, batch_size: int):
        self.runs, self.stage = runs, stage
        rows = [rows_of(run.training_clips(stage), runs.segments) for run in runs.runs]
        self.order = EpochOrder(rows, runs.generators(f"order:{stage.name}"), steps, batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, numbered from 1."""
        return (self.runs.batch(*step) for step in self.steps(number))

    def steps(self, number: int) -> Iterator[tuple[Tensor, Tensor, Patterns, Tensor | None]]:
        """Yield what `Runs.batch` takes, of each step of an epoch, on the device."""
        rows, weights = (torch.stack(parts) for parts in zip(*self.order.epoch(number), strict=True))
        hidden = self.runs.draws.hidden(self.stage, number, rows)
        weights = self.runs.draws.weighted(self.stage, rows, weights)
        patterns = self.runs.patterns(rows, hidden)
        hidden = [None] * len(rows) if hidden is None else hidden.to(self.runs.device)
        return zip(rows.to(self.runs.device), weights.to(self.runs.device), patterns, hidden, strict=True)
