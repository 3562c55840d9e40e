"""A feature store's clips on a device, shared by all runs, and what each run may see of them.

Shapes: R runs, M modalities, S segments a clip, D features, C classes, n rows. A row is a segment: clip * S + s.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..pipeline.errors import InputError
from ..pipeline.masks import TEST, TRAIN, VALIDATION, Missing
from ..pipeline.store import FeatureStore

PARTS = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}


@dataclass(frozen=True)
class RunSpec:
    """What sets one run of a cell apart: everything a run's data depends on."""

    seed: int
    missing: Missing = Missing()
    missing_test: Missing = Missing()
    split: str = "clip"

    @property
    def name(self) -> str:
        return f"seed {self.seed}, missing {self.missing.name}"


@dataclass(frozen=True)
class Run:
    """One run's view of the usable clips, on the host: part int8 [clip] and observed bool [clip, M]."""

    spec: RunSpec
    part: np.ndarray
    observed: np.ndarray

    def training_clips(self, rows: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Training clips with something observed that ``rows`` (observed [clip, M] to bool [clip]) keeps: bool [clip]."""
        return (self.part == TRAIN) & self.observed.any(1) & rows(self.observed)


class Dataset:
    """The clips of a store that did not fail, as float32 rows on the device.

    features: M tensors [clip * S, D_m]; entries of clips that lack the modality may hold anything.
    label: int64 [clip]; clip_id: str [clip]; present: bool [clip, M].
    InputError: nothing usable, fewer than two classes, or a value that is not finite where a signal is present.
    """

    def __init__(self, store: FeatureStore, device: torch.device | str = "cpu"):
        self.store, self.device = store, torch.device(device)
        self.kept = np.flatnonzero(np.asarray(store.status) == "done")  # positions in the store
        self.modalities, self.classes = tuple(store.modalities), tuple(store.classes)
        self.clip_id = np.asarray(store.clip_id)[self.kept]
        self.present = np.asarray(store.present, bool)[self.kept]
        label = np.asarray(store.label)[self.kept]
        if len(np.unique(label)) < 2:
            raise InputError(
                f"{store.path}: expected clips of at least two classes, found {len(label)} usable clips of "
                f"{len(np.unique(label))}.\nPreprocess more clips, or retry the failed ones with --retry-failed."
            )
        self.label = torch.as_tensor(label, dtype=torch.int64, device=self.device)
        self.features, self._sums = [], []
        for m, modality in enumerate(self.modalities):
            values = store.read(modality)[self.kept]  # float16 [clip, S, D]
            self.segments = values.shape[1]
            bad = [i for i in np.flatnonzero(self.present[:, m]) if not np.isfinite(values[i]).all()]
            if bad:
                raise InputError(
                    f"{store.path}: {modality} features of {len(bad)} clips are not finite, first {self.clip_id[bad[0]]}."
                    f"\nCheck the store with `mlemiss store verify` and preprocess again."
                )
            rows = torch.as_tensor(values, device=self.device).float()
            self._sums.append([(rows**p).sum(1, dtype=torch.float64) for p in (1, 2)])  # [clip, D] each
            self.features.append(rows.flatten(0, 1))

    @property
    def widths(self) -> list[int]:
        """D of each modality."""
        return [f.shape[1] for f in self.features]

    def run(self, spec: RunSpec) -> Run:
        """Draw the run's split and masks. InputError: an empty part, or a class in none of the training clips."""
        part = np.asarray(self.store.split(spec.seed, spec.split))
        hidden = self.store.missing(spec.missing, spec.seed, part == TRAIN)
        for held_out in (VALIDATION, TEST):
            hidden = hidden | self.store.missing(spec.missing_test, spec.seed, part == held_out)
        part, observed = part[self.kept], self.present & ~hidden[self.kept]
        label = self.label.cpu().numpy()
        for value, name in PARTS.items():
            if not (part == value).any():
                raise InputError(
                    f"{self.store.path}: the split by {spec.split} with seed {spec.seed} leaves no {name} clips "
                    f"of {len(part)} usable ones.\nPreprocess more clips."
                )
        absent = np.setdiff1d(label[part != TRAIN], label[part == TRAIN])
        if len(absent):
            names = ", ".join(self.classes[c] for c in absent)
            raise InputError(
                f"{self.store.path}: no training clip of {names} in the split by {spec.split} with seed {spec.seed}, "
                f"though held-out clips have it.\nPreprocess more clips, or choose another --split."
            )
        return Run(spec, part, observed)

    def moments(self, m: int, clips: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of modality m over the rows of these clips (bool [clip]): float32 [D] each.

        Only those clips are read. A feature that is constant there keeps a deviation of 1.
        """
        chosen = torch.as_tensor(clips, device=self.device)
        count = max(int(clips.sum()), 1) * self.segments
        mean, square = (total[chosen].sum(0) / count for total in self._sums[m])
        std = (square - mean**2).clamp_min(0).sqrt()
        constant = std <= 1e-6 * mean.abs().clamp_min(1e-3)
        return mean.float(), std.masked_fill(constant, 1).float()


@dataclass
class Batch:
    """Training rows of R runs, B each. x: M tensors [R, B, D], NaN where the modality is missing."""

    rows: Tensor  # [R, B]
    x: list[Tensor]
    observed: Tensor  # bool [R, B, M]
    label: Tensor  # [R, B]
    weight: Tensor  # [R, B], 0 where a shorter last batch is filled up


class Runs:
    """R runs over one data set, trained as one batch. ``kept`` [R, clip] are the clips the classifier trains on."""

    def __init__(self, dataset: Dataset, runs: Sequence[Run], rows: Callable[[np.ndarray], np.ndarray]):
        self.dataset, self.runs = dataset, list(runs)
        self.device, self.segments, self.modalities = dataset.device, dataset.segments, dataset.modalities
        self.observed = torch.as_tensor(np.stack([r.observed for r in runs]), device=self.device)  # [R, clip, M]
        self._anything_missing = [not all(r.observed[:, m].all() for r in runs) for m in range(len(self.modalities))]
        kept = np.stack([r.training_clips(rows) for r in runs])  # [R, clip]
        self.kept = kept
        self.lacking = [
            any((k & ~r.observed[:, m]).any() for k, r in zip(kept, runs, strict=True))
            for m in range(len(self.modalities))
        ]  # per modality: is it missing in some row trained on
        self.lacking_held_out = [
            any((~r.observed[r.part != TRAIN, m]).any() for r in runs) for m in range(len(self.modalities))
        ]  # per modality: is it missing in some clip predicted
        self.moments = [
            tuple(
                torch.stack(part)
                for part in zip(*(dataset.moments(m, r.observed[:, m] & (r.part == TRAIN)) for r in runs), strict=True)
            )
            for m in range(len(self.modalities))
        ]  # per modality mean and std, [R, D] each: of the run's observed training entries, whatever the method
        counts = np.stack(
            [np.bincount(dataset.label.cpu().numpy()[k], minlength=len(dataset.classes)) for k in kept]
        )  # every clip has S rows, so clips' frequencies are rows' frequencies
        prior = torch.as_tensor(counts / counts.sum(1, keepdims=True), device=self.device)
        self.log_prior = prior.log().float()  # [R, C]

    def __len__(self) -> int:
        return len(self.runs)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """A random generator for each run that depends on its seed and the purpose alone, so never on its company."""
        return [generator(run.spec.seed, purpose) for run in self.runs]

    def gather(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Rows [R, n] as a method may see them: x, M tensors [R, n, D] with NaN where missing; observed [R, n, M]."""
        observed = self.observed_rows(rows)
        return [self.gather_modality(m, rows, observed[..., m]) for m in range(len(self.modalities))], observed

    def observed_rows(self, rows: Tensor) -> Tensor:
        """bool [R, n, M] of rows [R, n]."""
        clips = torch.div(rows, self.segments, rounding_mode="floor")
        return self.observed.gather(1, clips[..., None].expand(-1, -1, len(self.modalities)))

    def gather_modality(self, m: int, rows: Tensor, observed: Tensor) -> Tensor:
        """One modality of rows [R, n]: [R, n, D], NaN where not observed (bool [R, n])."""
        x = self.dataset.features[m].index_select(0, rows.flatten()).unflatten(0, rows.shape)
        return x.masked_fill_(~observed[..., None], torch.nan) if self._anything_missing[m] else x

    def batch(self, rows: Tensor, weight: Tensor) -> Batch:
        """Rows and weights [R, B] with all that training needs of them."""
        x, observed = self.gather(rows)
        return Batch(rows, x, observed, self.dataset.label[torch.div(rows, self.segments, rounding_mode="floor")], weight)

    def rows_of(self, clips: Tensor) -> Tensor:
        """All rows of clips [R, c]: [R, c * S]."""
        return (clips[..., None] * self.segments + torch.arange(self.segments, device=clips.device)).flatten(1)

    def padded_clips(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Clips chosen by each run (bool [R, clip]) as positions [R, c], c the most of any run, and which count."""
        most = max(int(chosen.sum(1).max()), 1)
        clips = np.zeros((len(chosen), most), np.int64)
        counted = np.arange(most) < chosen.sum(1, keepdims=True)
        clips[counted] = np.nonzero(chosen)[1]
        return torch.as_tensor(clips, device=self.device), torch.as_tensor(counted, device=self.device)


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator on the CPU, whatever the device, so that every device draws the same."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def steps_per_epoch(clips: int, segments: int, batch_size: int) -> int:
    """ceil(rows / batch size)."""
    return -(-clips * segments // batch_size)
