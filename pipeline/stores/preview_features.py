"""A preview's view of a feature store: norms, what is conspicuous, and a projection of each modality by class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from .. import page
from .preview_clips import COLUMNS, TEXT, Shown, balanced, count_text, describe
from .store import DONE, FeatureStore

PROJECTED = 2000  # clips at most, balanced over classes
FAR = 6.0  # deviations from the median beyond which a norm is conspicuous, the deviation being a robust one:
ROBUST = 1.4826  # times the median distance from the median, as for a normal distribution


@dataclass
class Features:
    """What one modality's features look like.

    norm: float64 [clip], a segment's Euclidean norm, averaged over the clip's segments; NaN where there are no features
    or some that are not finite. remarks: by clip, what is conspicuous. notes: the same of features, not of clips.
    projected: places of the clips projected, none of them conspicuous. scores: float64 [projected, 2], or None where
    nothing varies. share: of the variance, of both.
    """

    modality: str
    norm: np.ndarray
    remarks: dict[int, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    projected: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    scores: np.ndarray | None = None
    share: np.ndarray | None = None

    def remark(self, places: Sequence[int], text: str) -> None:
        for place in places:
            self.remarks.setdefault(int(place), []).append(f"{self.modality}: {text}")


def sections(store: FeatureStore, shown: Shown) -> list[str]:
    """Clips that lack a modality, conspicuous ones, the figures, the others' norms."""
    found = [look_through(store, m) for m in range(len(store.modalities))]
    conspicuous = np.array(sorted({place for features in found for place in features.remarks}), int)
    most = max(len(shown.lacking) + len(shown.complete), 1)
    parts = [("Conspicuous clips", conspicuous[:most], len(conspicuous))]
    if shown.all_lacking:
        parts.insert(0, ("Clips without a modality", shown.lacking, shown.all_lacking))
    body = [_clips(title, store, found, places, there) for title, places, there in parts]
    body += [f'<p class="notes">{escape(note)}</p>' for features in found for note in features.notes]
    return [
        *body,
        *_figures(store, found),
        _clips("Complete clips", store, found, shown.complete, shown.all_complete),
    ]


def _figures(store: FeatureStore, found: Sequence[Features]) -> list[str]:
    from .preview_figures import norms, projections

    caption = (
        "A segment's norm, averaged over each clip, by class in the order of the clips. Conspicuous clips are ringed; "
        "one beyond the axis stands at its edge with its norm."
    )
    body = ["<h2>Norms</h2>", page.figure([norms(store, found)], caption), "<h2>Projection</h2>"]
    if not (drawn := projections(store, found)):
        return [*body, '<p class="notes">Too few clips, or features that never vary: nothing to project.</p>']
    counts = ", ".join(f"{f.modality} {count_text(len(f.projected), np.isfinite(f.norm).sum())}" for f in found)
    caption = (
        f"Clips on the first two principal components of each modality: means over segments, every feature scaled to "
        f"deviation 1, conspicuous clips left out. Clips shown: {counts}. What overlaps here may lie apart in more "
        f"dimensions."
    )
    return [*body, page.figure([drawn], caption)]


def _clips(title: str, store: FeatureStore, found: Sequence[Features], places: np.ndarray, there: int) -> str:
    """A table of clips with their norms, and what there is to say."""
    heading = f"<h2>{title}: {count_text(len(places), there)}</h2>"
    if not len(places):
        return heading
    rows = []
    for place in places:
        norms = ["–" if np.isnan(f.norm[place]) else f"{f.norm[place]:.4g}" for f in found]
        causes = [str(store.error[place])] * bool(store.error[place])
        remarks = [text for f in found for text in f.remarks.get(int(place), [])]
        rows.append([*describe(store, place), *norms, "; ".join(causes + remarks)])
    names = [*COLUMNS, *(f"{f.modality} norm" for f in found), "remarks"]
    return heading + page.table(names, rows, TEXT)


def look_through(store: FeatureStore, m: int) -> Features:
    """Read modality m, one chunk of clips at a time. InputError: damaged chunks."""
    modality = store.modalities[m]
    usable = (store.status == DONE) & store.present[:, m]
    found = Features(modality, np.full(len(usable), np.nan))
    projected = balanced(store, np.flatnonzero(usable), PROJECTED)
    _, segments, width = store.shape(modality)
    means = np.empty((len(projected), width), np.float32)
    lowest, highest = np.full(width, np.inf), np.full(width, -np.inf)
    broken, zero, still = [], [], []
    step = store.clips_a_chunk(modality)
    for first in range(0, len(usable), step):
        for place, values in enumerate(store.read(modality, slice(first, first + step)), first):
            if not usable[place]:
                continue
            values = values.astype(np.float32)  # [S, D]
            if not np.isfinite(values).all():
                broken.append(place)
                continue
            found.norm[place] = np.linalg.norm(values.astype(np.float64), axis=1).mean()
            np.minimum(lowest, values.min(0), out=lowest)
            np.maximum(highest, values.max(0), out=highest)
            means[projected == place] = values.mean(0)
            if not values.any():
                zero.append(place)
            elif (values == values[0]).all():
                still.append(place)
    found.remark(broken, "values that are not finite")
    found.remark(zero, "all features are 0")
    _remark_still(found, still, int(usable.sum()), segments)
    _remark_far(found)
    _note_constant(found, lowest, highest)
    ordinary = np.array([place not in found.remarks for place in projected], bool)
    found.projected = projected[ordinary]
    found.scores, found.share = principal_components(means[ordinary])
    return found


def _remark_still(found: Features, still: list[int], usable: int, segments: int) -> None:
    """Clips whose segments are all the same: conspicuous unless it is the rule, as for features of whole clips."""
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
    """The first two principal components of [n, D], every column scaled to deviation 1: scores [n, 2], share [2] of
    the variance. Each component's largest weight is positive. None, None where fewer than three rows or nothing vary.
    """
    x = x.astype(np.float64)
    x -= x.mean(0, keepdims=True) if len(x) else 0
    deviation = np.sqrt(np.square(x).mean(0)) if len(x) else np.zeros(x.shape[1])
    varies = deviation > 1e-6 * max(deviation.max(initial=0), 1e-30)
    x = x[:, varies] / deviation[varies]
    if len(x) < 3 or not x.shape[1]:
        return None, None
    tall = len(x) > x.shape[1]
    values, vectors = np.linalg.eigh(x.T @ x if tall else x @ x.T)  # ascending
    share = values[::-1][:2] / values.sum()
    vectors = vectors[:, ::-1][:, :2]
    weights = vectors if tall else x.T @ vectors  # [D, 2], up to a factor
    signs = np.sign(weights[np.abs(weights).argmax(0), np.arange(weights.shape[1])])
    scores = x @ vectors if tall else vectors * np.sqrt(values[::-1][:2].clip(0))
    scores = scores * signs
    if scores.shape[1] < 2:  # one feature
        scores, share = np.pad(scores, ((0, 0), (0, 1))), np.pad(share, (0, 1))
    return scores, share
