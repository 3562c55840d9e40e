"""Look through the features of a store for a preview: norms, what is conspicuous, a projection, and their figures.

In the figures every clip is a point, its class shown by colour and marker.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..page import COLOURS, MARKERS, STYLE, svg
from ..stores.masks import stratified_order
from ..stores.store import FeatureStore

PROJECTED = 2000  # clips at most, balanced over classes
FAR = 6.0  # deviations from the median beyond which a norm is conspicuous, the deviation being a robust one:
ROBUST = 1.4826  # times the median distance from the median, as for a normal distribution
LONGEST_NAME = 24  # characters of a class's or clip's name
MOST_LABELLED = 16  # classes at most that are named below an axis
MOST_NAMED = 6  # ringed clips of a panel that are named
MOST_POINTS = 2500  # a panel, beyond which the points are one picture: the page stays small
LOOK = {
    "savefig.dpi": 150,  # of that picture
    "svg.fonttype": "none",  # the reader's fonts, which have the letters that matplotlib's own lacks
}
WIDE = 0.7  # of the way from one class to the next: over how much its clips are spread


@dataclass
class Features:
    """Measurements of one modality's features.

    Attributes:
        modality: its name.
        norm: float64 [clip], a segment's Euclidean norm, averaged over the clip's segments; NaN where there are no
            features, or some that are not finite.
        remarks: what is conspicuous, by clip.
        notes: what must be said of features, not of clips.
        projected: indices of the projected clips, none of them conspicuous.
        scores: float64 [projected, 2], or None where nothing varies.
        share: [2], of the variance, of each component.
    """

    modality: str
    norm: np.ndarray
    remarks: dict[int, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    projected: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    scores: np.ndarray | None = None
    share: np.ndarray | None = None

    def remark(self, clips: Sequence[int], text: str) -> None:
        """Add a remark on each of these clips."""
        for clip in clips:
            self.remarks.setdefault(int(clip), []).append(f"{self.modality}: {text}")


def balanced(store: FeatureStore, clips: np.ndarray, count: int) -> np.ndarray:
    """Return at most ``count`` of these clips, of each class in proportion, always the same ones; sorted."""
    order = stratified_order(store.clip_id[clips], store.label[clips], "preview")
    return np.sort(clips[order[:count]])


def measure_features(store: FeatureStore, modality: str) -> Features:
    """Read the features of a modality, one chunk of clips at a time. InputError: damaged chunks."""
    usable = store.done & store.present[:, store.modalities.index(modality)]
    found = Features(modality, np.full(len(usable), np.nan))
    projected = balanced(store, np.flatnonzero(usable), PROJECTED)
    _, segments, width = store.shape(modality)
    means = np.empty((len(projected), width), np.float32)  # over segments
    lowest, highest = np.full(width, np.inf), np.full(width, -np.inf)
    broken, zero, still = [], [], []
    step = store.clips_a_chunk(modality)
    for first in range(0, len(usable), step):
        clips = first + np.flatnonzero(usable[first : first + step])
        values = store.read(modality, slice(first, first + step))[clips - first].astype(np.float32)  # [clip, S, D]
        finite = np.isfinite(values).all((1, 2))
        broken += clips[~finite].tolist()
        clips, values = clips[finite], values[finite]
        found.norm[clips] = np.linalg.norm(values.astype(np.float64), axis=2).mean(1)
        lowest = np.minimum(lowest, values.min((0, 1), initial=np.inf))
        highest = np.maximum(highest, values.max((0, 1), initial=-np.inf))
        drawn = np.isin(clips, projected)
        means[np.searchsorted(projected, clips[drawn])] = values[drawn].mean(1)
        empty = ~values.any((1, 2))
        zero += clips[empty].tolist()
        still += clips[~empty & (values == values[:, :1]).all((1, 2))].tolist()
    found.remark(broken, "values that are not finite")
    found.remark(zero, "all features are 0")
    _remark_still(found, still, int(usable.sum()), segments)
    _remark_far(found)
    _note_constant(found, lowest, highest)
    ordinary = np.array([clip not in found.remarks for clip in projected], bool)
    found.projected = projected[ordinary]
    found.scores, found.share = principal_components(means[ordinary])
    return found


def _remark_still(found: Features, still: list[int], usable: int, segments: int) -> None:
    """Remark on clips whose segments are all the same, unless that is the rule, as for features of whole clips."""
    if segments > 1 and 2 * len(still) <= usable:
        found.remark(still, f"all {segments} segments are the same")
    elif segments > 1:
        found.notes.append(f"{found.modality}: in {len(still)} of {usable} clips all {segments} segments are the same.")


def _remark_far(found: Features) -> None:
    norm = found.norm[np.isfinite(found.norm)]
    if not len(norm):
        return
    median = np.median(norm)
    deviation = ROBUST * np.median(np.abs(norm - median))
    with np.errstate(invalid="ignore"):
        far = (np.abs(found.norm - median) > FAR * deviation) & (found.norm > 0) & (deviation > 0)
    found.remark(np.flatnonzero(far), f"norm far from the median {median:.4g}")


def _note_constant(found: Features, lowest: np.ndarray, highest: np.ndarray) -> None:
    constant = lowest == highest
    if constant.any():
        zeros = int((constant & (highest == 0)).sum())
        numbers = np.flatnonzero(constant)
        first = ", ".join(map(str, numbers[:10])) + ", …" * (len(numbers) > 10)
        found.notes.append(
            f"{found.modality}: features that never vary: {len(numbers)} of {len(constant)}, {zeros} of them always 0 "
            f"(numbers {first})."
        )


def principal_components(x: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Project clips on their first two principal components, every feature scaled to deviation 1.

    Args:
        x: [clip, D]. Features that do not vary are left out.

    Returns:
        Scores [clip, 2] and each component's share of the variance [2]. Each component's largest weight is positive.
        None, None where there are fewer than three clips or nothing varies.
    """
    x = x.astype(np.float64)
    if len(x) < 3:
        return None, None
    deviation = x.std(0)
    varies = deviation > 1e-6 * max(deviation.max(initial=0), 1e-30)
    if not varies.any():
        return None, None
    from sklearn.decomposition import PCA  # late: it takes a second to import

    x = x[:, varies] / deviation[varies]
    components = PCA(min(2, x.shape[1]), random_state=0)
    scores, share = components.fit_transform(x), components.explained_variance_ratio_
    absent = 2 - len(share)  # where there is one feature
    return np.pad(scores, ((0, 0), (0, absent))), np.pad(share, (0, absent))


def draw_norms(store: FeatureStore, found: Sequence[Features]) -> str:
    """Draw each clip's norm as SVG, by class in the order of the clips, a panel a modality.

    Conspicuous clips are ringed, a few of them named.
    """
    with rc_context(STYLE | LOOK):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        x = store.label + _spread(store.label)
        for axis, features in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            top = _top(features)
            y = np.minimum(features.norm, top)
            _points(axis, store, np.flatnonzero(np.isfinite(y)), x, y)
            ringed = [clip for clip in sorted(features.remarks) if np.isfinite(y[clip])]
            ring = {"s": 60, "facecolors": "none", "edgecolors": "black", "linewidths": 0.9, "clip_on": False}
            axis.scatter(x[ringed], y[ringed], **ring)
            for clip in ringed[:MOST_NAMED]:
                name, beyond = _short(str(store.clip_id[clip])), features.norm[clip] > top
                text = f"{name}: {features.norm[clip]:.4g}" if beyond else name
                options = {"xytext": (7, -9 if beyond else 3), "textcoords": "offset points", "fontsize": 7}
                axis.annotate(text, (x[clip], y[clip]), **options)
            axis.set_title(f"{features.modality} features", fontsize=9)
            axis.set_ylabel("norm")
            axis.set_ylim(0, top)
            if len(store.classes) <= MOST_LABELLED:
                axis.set_xticks(range(len(store.classes)), map(_short, store.classes), rotation=30, ha="right")
            else:
                axis.set_xticks([])
                axis.set_xlabel("classes, in the order of the table")
            axis.grid(False, axis="x")
        return _drawn(figure)


def draw_projections(store: FeatureStore, found: Sequence[Features]) -> str | None:
    """Draw each modality's first two principal components as SVG; None where no modality has any."""
    drawn = [features for features in found if features.scores is not None]
    if not drawn:
        return None
    with rc_context(STYLE | LOOK):
        figure = Figure(figsize=(9.6, 5.0), layout="constrained")
        for axis, features in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
            at = np.full((2, len(store.label)), np.nan)
            at[:, features.projected] = features.scores.T
            _points(axis, store, features.projected, *at)
            axis.set_title(f"{features.modality} features", fontsize=9)
            first, second = (
                f"component {i} ({100 * share:.0f} % of the variance)" for i, share in enumerate(features.share, 1)
            )
            axis.set(xlabel=first, ylabel=second)
        shown = np.unique(np.concatenate([store.label[features.projected] for features in drawn]))
        handles = [axis.scatter([], [], s=30, **_look(code)) for code in shown]
        names = [_short(store.classes[code]) for code in shown]
        figure.legend(handles, names, loc="outside upper center", ncols=min(len(shown), 6), frameon=False)
        return _drawn(figure)


def _drawn(figure: Figure) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # which only measures the text here
        return svg(figure)


def _top(features: Features) -> float:
    """Return the norm at the upper edge: above the highest of clips that are not conspicuous, else of all."""
    finite = np.isfinite(features.norm)
    ordinary = finite.copy()
    ordinary[list(features.remarks)] = False
    return 1.25 * features.norm[ordinary if ordinary.any() else finite].max(initial=0) or 1.0


def _points(axis: Axes, store: FeatureStore, clips: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Draw these clips at x, y [clip], class by class."""
    size = 26 if len(clips) < 400 else 9
    edge = {"edgecolors": "black", "linewidths": 0.3 if len(clips) < 400 else 0.1}
    for code in np.unique(store.label[clips]):
        of = clips[store.label[clips] == code]
        axis.scatter(x[of], y[of], s=size, alpha=0.8, rasterized=len(clips) > MOST_POINTS, **edge, **_look(code))


def _look(code: int) -> dict:
    return {"color": COLOURS[code % len(COLOURS)], "marker": MARKERS[(code + code // len(COLOURS)) % len(MARKERS)]}


def _spread(label: np.ndarray) -> np.ndarray:
    """Return how far each clip stands beside the middle of its class: [clip], evenly in the clips' order."""
    beside = np.zeros(len(label))
    for code in np.unique(label):
        of = np.flatnonzero(label == code)
        beside[of] = WIDE * ((np.arange(len(of)) + 0.5) / len(of) - 0.5)
    return beside


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
