"""Arrays in memory in the place of a store: one row is a clip of one segment, some of them held out for validation.

Shapes: n rows, M modalities, D features, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ...pipeline.errors import InputError
from ...pipeline.stores.masks import TRAIN, VALIDATION, stratified_order
from ..data import Clips, Dataset, Run, RunSpec

Columns = Mapping[str, np.ndarray]  # of each modality, its columns in the one array that holds all


class RowsSpec(RunSpec):
    """The spec of a run on rows, whose seed is drawn: messages need not name it."""

    @property
    def name(self) -> str:
        """Return the run's name for messages."""
        return "these rows"


class ArrayClips(Clips):
    """Rows of arrays as clips; float32 [n, D] of each modality, NaN rows where it is missing."""

    remedy = "Give more such rows, or lower validation_fraction"

    def __init__(
        self,
        values: Mapping[str, np.ndarray],
        label: np.ndarray,
        classes: Sequence[str],
        observed: np.ndarray,
        validation_fraction: float,
    ):
        """Label: positions in ``classes``, int64 [n]; observed: bool [n, M]."""
        self.values, self.label, self.present = values, label, observed
        self.modalities, self.classes = tuple(values), tuple(classes)
        self.clip_id = self.subject = np.arange(len(label)).astype(str)
        self.validation_fraction = validation_fraction
        self.store = SimpleNamespace(path=Path("X"), dataset="arrays", given=None)

    def describe(self) -> dict:
        """Return the features' name: there are no weights that made them."""
        return {"features": "X", "weights": None, "weights_hash": None}

    def check(self, kind: type, name: str) -> None:
        """Check that X has what a method looks at. InputError: it has not."""
        if absent := set(kind.modalities or ()) - set(self.modalities):
            raise InputError(
                f"{name} looks at {', '.join(sorted(absent))}, and X has {', '.join(self.modalities)}.\n"
                f"Choose another method, such as only:{self.modalities[0]}."
            )

    def load(self, device: torch.device) -> "ArrayData":
        """Return the rows on a device."""
        return ArrayData(self, device)

    def run(self, spec: RunSpec) -> Run:
        """Draw a run's validation rows, stratified by class; there is no test part.

        InputError: no row is left to train a class on.
        """
        n = len(self.label)
        part = np.full(n, TRAIN, np.int8)
        order = stratified_order(self.clip_id, self.label, f"validation:{spec.seed}")
        chosen = order[: max(round(self.validation_fraction * n), 2)]
        others = order[self.label[order] != self.label[chosen[0]]]
        if not np.isin(others, chosen).any():  # one class alone chooses no epoch
            chosen[-1] = others[0]
        part[chosen] = VALIDATION
        if len(absent := np.setdiff1d(self.label, self.label[part == TRAIN])):
            names = ", ".join(self.classes[c] for c in absent)
            raise InputError(
                f"of n_samples={n} in X no row is left to train on of class {names}, as {(part == VALIDATION).sum()} "
                f"validate.\nGive more rows of each class, or lower validation_fraction."
            )
        return Run(RowsSpec(spec.seed), part, self.present, self.modalities, np.ones(n, bool))


class ArrayData(Dataset):
    """`ArrayClips` on a device, in float32."""

    def __init__(self, clips: ArrayClips, device: torch.device):
        self.clips, self.device = clips, device
        self.label = torch.as_tensor(clips.label, device=device)
        self.features = [torch.as_tensor(part, device=device) for part in clips.values.values()]
        self._segments, self.segments = [1] * len(self.features), 1
        self._means = self.features  # of a row's one segment
        self._spreads = [torch.zeros((), device=device).expand_as(part) for part in self.features]
        self.finite = np.ones_like(clips.present)  # `modality_parts` has checked it


def joined(X: object, names: Sequence[str] | None = None) -> tuple[np.ndarray, Columns]:
    """Join a dict or list of arrays [n, D] to one float array [n, sum of D]; return each modality's columns of it, too.

    names: of a list's arrays, by default m0, m1, …. ValueError: an array of other than two axes, or of other length.
    """
    if not isinstance(X, Mapping):
        if names is not None and not isinstance(names, Iterable):
            raise ValueError(f"modalities is {names!r}: expected the names of {len(X)} arrays.")
        names = [f"m{m}" for m in range(len(X))] if names is None else list(names)
        if len(names) != len(X):
            raise ValueError(f"X has {len(X)} arrays, expected {len(names)}: {', '.join(names)}.")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"modalities names {twice[0]} twice: expected a name for each of {len(X)} arrays.")
        X = dict(zip(names, X, strict=True))
    if not X:
        raise ValueError("X holds no arrays: expected one [n, D] for each modality.")
    parts = {name: _checked(part, f"X[{name!r}]") for name, part in X.items()}
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(
            f"the arrays of X have unequal lengths: {found} rows.\nGive each a row a sample, NaN if missing."
        )
    ends = np.cumsum([part.shape[1] for part in parts.values()])
    columns = {n: np.arange(end - part.shape[1], end) for (n, part), end in zip(parts.items(), ends, strict=True)}
    return np.hstack(list(parts.values())), columns


FLOATS = [np.float64, np.float32]


def unmasked(X: object) -> object:
    """Return an array whose entries that numpy.ma masks are NaN, which is how missing ones are told; others as is."""
    return X.astype(float).filled(np.nan) if np.ma.isMaskedArray(X) else X


def _checked(part: object, name: str) -> np.ndarray:
    """Return one modality's array of floats. ValueError: it is none, by name."""
    from sklearn.utils import check_array

    if (axes := np.ndim(part)) != 2:
        raise ValueError(f"{name} has {axes} axes: expected two, rows and features.")
    try:
        return check_array(unmasked(part), dtype=FLOATS, ensure_all_finite=False, ensure_min_samples=0, input_name=name)
    except ValueError as error:
        raise ValueError(str(error) if name in str(error) else f"{name}: {error}") from None


def modality_columns(modalities: Mapping | None, width: int, names: Sequence[str] | None) -> Columns:
    """Return the columns of each modality in one array of this width.

    modalities: widths of neighbouring columns, which add up; or a slice, a list of positions or of names each; None for
    one modality of all columns. names: of the columns, if they have any. ValueError: columns that are not there.
    """
    if modalities is None:
        return {"x": np.arange(width)}
    if not isinstance(modalities, Mapping) or not modalities:
        raise ValueError(f"modalities is {modalities!r}: expected a dict from a name to its columns of X.")
    widths = [isinstance(one, int | np.integer) for one in modalities.values()]
    if any(widths) and not all(widths):
        raise ValueError(f"modalities is {modalities!r}: expected the width of each, or the columns of each.")
    if all(widths):
        if min(modalities.values()) < 1 or sum(modalities.values()) != width:
            raise ValueError(f"modalities has the widths {dict(modalities)}: expected 1 or more, in sum X's {width}.")
        ends = np.cumsum(list(modalities.values()))
        return {name: np.arange(end - modalities[name], end) for name, end in zip(modalities, ends, strict=True)}
    known = {} if names is None else {name: place for place, name in enumerate(names)}
    columns = {}
    for name, chosen in modalities.items():
        try:
            places = chosen if isinstance(chosen, slice) else [known.get(c, c) for c in chosen]
            columns[name] = np.arange(width)[places]
        except (TypeError, IndexError):
            raise ValueError(f"modalities[{name!r}] is {chosen!r}: X, of {width} columns, has no such.") from None
        if columns[name].size == 0:
            raise ValueError(f"modalities[{name!r}] is {chosen!r}: no column of X, with n_features = {width}.")
    owners: dict[int, str] = {}
    for name, place in ((name, place) for name, places in columns.items() for place in places.tolist()):
        if place in owners:
            raise ValueError(f"column {place} of X is in {owners[place]} and in {name}: expected it once.")
        owners[place] = name
    return columns


def modality_parts(X: np.ndarray, columns: Columns) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return each modality's [n, D], and which rows have it: bool [n, M].

    ValueError: infinite values, a row in which a modality is NaN in part, or one that has no modality.
    """
    parts = {name: X[:, places] for name, places in columns.items()}
    observed = []
    for name, part in parts.items():
        nan = np.isnan(part)
        for row in np.flatnonzero(np.isinf(part).any(1))[:1]:
            raise ValueError(f"row {row} of {name} in X holds infinity.\nReplace it, or make the whole row NaN.")
        for row in np.flatnonzero(nan.any(1) & ~nan.all(1))[:1]:
            raise ValueError(
                f"row {row} of {name} in X is NaN in {nan[row].sum()} of {part.shape[1]} features: expected all "
                f"(the modality is missing) or none.\nImpute them, or make the whole row NaN."
            )
        observed.append(~nan.all(1))
    observed = np.stack(observed, 1)
    for row in np.flatnonzero(~observed.any(1))[:1]:
        raise ValueError(f"row {row} of X lacks every modality ({', '.join(columns)}).\nLeave such rows out.")
    return parts, observed
