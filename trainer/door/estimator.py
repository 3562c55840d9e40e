"""The methods as a scikit-learn classifier over arrays in memory."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from numbers import Integral, Real

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ...pipeline.console import Progress
from ...pipeline.encoders import resolve_device
from ...pipeline.errors import InputError
from .. import methods as registry
from ..experiments.experiments import MOST_RUNS
from ..experiments.grid import Cell, Grid, group_runs, plan_grid
from ..experiments.weights import TrainedRuns, build, parts_of, probabilities
from ..fit import fit
from ..settings import Settings
from .arrays import FLOATS, ArrayClips, joined, modality_columns, modality_parts, unmasked


@contextmanager
def as_value_errors() -> Iterator[None]:
    """Raise ValueError, as scikit-learn's users expect, where the trainer raises InputError."""
    try:
        yield
    except InputError as error:
        raise ValueError(re.sub(r" \(tune: .*?\)|--", "", str(error))) from None


@dataclass(eq=False, repr=False)
class MissingModalityClassifier(ClassifierMixin, BaseEstimator):
    """Classify rows that may lack modalities.

    X is a dict or list of arrays [n, D_m], a row of NaN where a modality is missing; or one array [n, D] with
    ``modalities``, which scikit-learn can slice (`cross_val_score`, `GridSearchCV`, pipelines). A row has one at least.

    Args:
        method, fusion: as `mlemiss train` has them; ``mlemiss list methods`` lists them.
        modalities: of one array X, a dict from a modality's name to its width, or to its columns (a slice, positions,
            names). None: X is a dict or list; or one modality. Of a list X, the names.
        epochs to own: see `mlemiss.trainer.settings.Settings`; a batch here has fewer rows, as a row is no 30 segments.
        validation_fraction: of the rows, at most 0.5, drawn balanced over classes; they choose each training's epoch.
        seeds: trainings, each with validation rows of its own, whose probabilities are averaged.
        device: auto, cpu, cuda or mps.
        random_state: an int gives the same result each time.
        verbose: show progress.

    Attributes:
        classes_, n_features_in_, feature_names_in_: as of any classifier.
        columns_: each modality's columns of X, side by side if it was several arrays.
        validation_accuracy_, best_epoch_: of each training.
    """

    method: str = "mle"
    fusion: str = "addition"
    modalities: Mapping | Sequence[str] | None = None
    epochs: int = Settings.epochs
    batch_size: int = 32
    lr: float = Settings.lr
    weight_decay: float = Settings.weight_decay
    hidden: int = Settings.hidden
    dim: int = Settings.dim
    marginal: str = Settings.marginal
    dropout: float = Settings.dropout
    hide: float = Settings.hide
    complete_share: float | None = Settings.complete_share
    clamp: float = Settings.clamp
    own: Mapping[str, float] | None = None
    validation_fraction: float = 0.15
    seeds: int = 1
    device: str = "auto"
    random_state: int | np.random.RandomState | None = None
    verbose: bool = False

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: object, y: Sequence) -> "MissingModalityClassifier":
        """Train on X and labels y [n], numbers or texts.

        ValueError: arrays of unequal length, a row without any modality or with one that is NaN in part, infinite
        values, one class, a setting out of range, or too few rows.
        """
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)  # of an earlier fit, which an error must not leave half replaced
        with as_value_errors():
            settings = self._settings()
            parts, observed, label = self._training_rows(X, y)
            cell = self._plan(settings, parts, observed, label)
            self._train(cell, torch.device(resolve_device(self.device)))
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "trained_")

    def predict_proba(self, X: object) -> np.ndarray:
        """Return the classes' probabilities, [n, C] in the order of `classes_`.

        A dict may lack modalities: all rows then miss these. NotFittedError: before `fit`. ValueError: as of `fit`,
        an unknown modality, or other widths.
        """
        check_is_fitted(self)
        X = self._as_one(X)
        X = validate_data(self, X, reset=False, dtype=FLOATS, ensure_all_finite=False)
        values, observed = modality_parts(X, self.columns_)
        values = [self._standardised(name, part)[:, None] for name, part in values.items()]
        with as_value_errors():
            device = torch.device(resolve_device(self.device))
        total = 0
        for part in self.trained_:
            method = build(self._kind, self._header, self.settings_, vars(part), part.tensors, device)
            if device.type != "mps":  # a row's probabilities do not depend on the rows beside it, but for rounding
                method.double()
                method.prepared = {n: t.double() if t.is_floating_point() else t for n, t in method.prepared.items()}
            total = total + probabilities(method, values, observed, device).sum(0).cpu().double().numpy()
        return total / total.sum(1, keepdims=True)

    def predict(self, X: object) -> np.ndarray:
        """Return the likeliest class of each row, [n]. Errors as `predict_proba`."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    # ---- fitting ----

    def _settings(self) -> Settings:
        given = {one.name: getattr(self, one.name) for one in fields(Settings)}
        found = self.validation_fraction
        if not isinstance(found, Real) or not 0 < found <= 0.5:
            raise ValueError(f"validation_fraction {found} is out of range: expected more than 0, at most 0.5.")
        if not isinstance(self.seeds, Integral) or isinstance(self.seeds, bool):
            raise ValueError(f"seeds: expected a whole number, found {self.seeds!r}.")
        for name in ("method", "fusion"):
            if not isinstance(found := getattr(self, name), str):
                raise ValueError(f"{name}: expected one name, found {found!r}.")
        return Settings(**given | {"own": {} if self.own is None else self.own})

    def _training_rows(self, X: object, y: Sequence) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Check X and y; return the parts of X, what is observed and y's codes, and learn columns, scales, classes."""
        several = _is_several(X)
        if several:
            asked = self.modalities if isinstance(self.modalities, Iterable) else [self.modalities]
            if isinstance(X, Mapping) and self.modalities is not None and set(asked) != set(X):
                asked, found = (", ".join(map(str, names)) for names in (asked, X))
                raise ValueError(f"modalities: expected {found}, which X has, found {asked}.\nLeave them out.")
            X, columns = joined(X, None if isinstance(X, Mapping) else self.modalities)
        X, y = validate_data(self, unmasked(X), y, dtype=FLOATS, ensure_all_finite=False, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, label = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds 1 class, {self.classes_[0]}: expected at least 2 classes.")
        names = getattr(self, "feature_names_in_", None)
        self.columns_ = columns if several else modality_columns(self.modalities, X.shape[1], names)
        self.takes_several_ = several
        parts, observed = modality_parts(X, self.columns_)
        for name, seen in zip(parts, observed.T, strict=True):
            if not seen.any():
                raise ValueError(f"no row of X has {name}.\nLeave that modality out.")
        with np.errstate(over="ignore", invalid="ignore"):  # `_standardised` tells
            self.scalers_ = {name: StandardScaler().fit(part) for name, part in parts.items()}
        return {name: self._standardised(name, part) for name, part in parts.items()}, observed, label

    def _standardised(self, name: str, part: np.ndarray) -> np.ndarray:
        """Return features in units that float32 holds, whatever theirs are: [n, D]."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = self.scalers_[name].transform(part).astype(np.float32)
        if not np.isfinite(self.scalers_[name].scale_).all() or not np.array_equal(np.isfinite(found), ~np.isnan(part)):
            raise ValueError(f"{name} in X has values too large to standardise.\nScale its features.")
        return found

    def _plan(self, settings: Settings, parts: Mapping, observed: np.ndarray, label: np.ndarray) -> Cell:
        """Return the trainings as a cell, with their validation rows drawn."""
        clips = ArrayClips(parts, label, list(map(str, self.classes_)), observed, self.validation_fraction)
        first = int(check_random_state(self.random_state).randint(2**31 - 1))
        grid = Grid([registry.resolve(self.method)], [self.fusion], ["none"], seeds=range(first, first + self.seeds))
        (cell,) = plan_grid([clips], grid, settings, lambda clips: clips).cells
        return cell

    def _train(self, cell: Cell, device: torch.device) -> None:
        kind, data, trained = registry.load(cell.method), cell.clips.load(device), []
        groups = group_runs([cell], data.segments, MOST_RUNS[device.type])
        with Progress(cell.method, cell.clip_epochs, "row epochs") if self.verbose else nullcontext() as bar:
            for group in groups:
                results = fit(
                    kind,
                    data,
                    [run for _, run in group],
                    cell.settings,
                    cell.fusion,
                    name=cell.method,
                    on_epoch=bar.advance if bar else lambda rows: None,
                    on_trained=lambda method: trained.extend(parts_of(method, [range(len(method.runs))])),
                )
                cell.results.update({result.run.spec.seed: result for result in results})
        self.trained_: list[TrainedRuns] = trained
        self.settings_ = cell.settings
        self.fitted_as_ = (cell.method, cell.fusion)
        results = [cell.results[seed] for seed in cell.seeds]
        self.best_epoch_ = [result.best_epoch for result in results]
        self.validation_accuracy_ = [result.val_accuracy[result.best_epoch - 1] for result in results]

    # ---- predicting ----

    @property
    def _kind(self) -> type:
        return registry.load(self.fitted_as_[0])

    @property
    def _header(self) -> dict:
        widths = {name: len(places) for name, places in self.columns_.items()}
        classes = list(map(str, self.classes_))
        return {"modalities": list(widths), "widths": widths, "classes": classes, "fusion": self.fitted_as_[1]}

    def _as_one(self, X: object) -> object:
        """Return X as one array with the columns of `fit`. ValueError: other modalities, or other widths."""
        wanted = {name: len(places) for name, places in self.columns_.items()}
        if _is_several(X) != self.takes_several_:
            kinds = ("one array", f"a dict or list of the arrays {', '.join(wanted)}")
            raise ValueError(
                f"X is {kinds[not self.takes_several_]}: expected {kinds[self.takes_several_]}, as in fit."
            )
        if not self.takes_several_:
            return unmasked(X)
        X, columns = joined(X, None if isinstance(X, Mapping) else list(wanted))
        if unknown := [name for name in columns if name not in wanted]:
            raise ValueError(f"X has {', '.join(unknown)}, and fit saw {', '.join(wanted)} alone.\nLeave it out.")
        for name, places in columns.items():
            if len(places) != wanted[name]:
                raise ValueError(f"X has {len(places)} features of {name}: expected {wanted[name]}, as in fit.")
        absent = np.full((len(X), 1), np.nan, X.dtype)
        return np.hstack([X[:, columns[n]] if n in columns else absent.repeat(wanted[n], 1) for n in wanted])


def _is_several(X: object) -> bool:
    """Tell whether X is a dict of arrays, or a list or tuple of arrays of two axes, not of rows."""
    if issparse(X):  # some of scipy's are dicts
        return False
    return isinstance(X, Mapping) or (isinstance(X, list | tuple) and len(X) > 0 and np.ndim(X[0]) == 2)
