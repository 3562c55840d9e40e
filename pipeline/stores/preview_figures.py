"""A preview's figures: every clip a point, its class by colour and marker."""

import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..page import COLOURS, MARKERS, STYLE, svg
from .preview_features import Features
from .store import FeatureStore

LONGEST = 24  # characters of a class's name
LABELLED = 16  # classes at most that are named below an axis
NAMED = 6  # ringed clips of a panel that are named
DRAWN = 2500  # points a panel, beyond which they are one picture: the page stays small
LOOK = {
    "savefig.dpi": 150,  # of that picture
    "svg.fonttype": "none",  # the reader's fonts, which have the letters that matplotlib's own lacks
}
WIDE = 0.7  # of the way from one class to the next: over how much its clips are spread


def norms(store: FeatureStore, found: Sequence[Features]) -> str:
    """Each clip's norm, by class in the order of the clips, a panel a modality; conspicuous ones ringed, a few named.

    SVG.
    """
    with rc_context(STYLE | LOOK):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        x = store.label + _spread(store.label)
        for axis, features in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            top = _top(features)
            y = np.minimum(features.norm, top)
            _points(axis, store, np.flatnonzero(np.isfinite(y)), x, y)
            ringed = [place for place in sorted(features.remarks) if np.isfinite(y[place])]
            axis.scatter(
                x[ringed], y[ringed], s=60, facecolors="none", edgecolors="black", linewidths=0.9, clip_on=False
            )
            for place in ringed[:NAMED]:
                name, beyond = _short(str(store.clip_id[place])), features.norm[place] > top
                text = f"{name}: {features.norm[place]:.4g}" if beyond else name
                options = {"xytext": (7, -9 if beyond else 3), "textcoords": "offset points", "fontsize": 7}
                axis.annotate(text, (x[place], y[place]), **options)
            axis.set_title(f"{features.modality} features", fontsize=9)
            axis.set_ylabel("norm")
            axis.set_ylim(0, top)
            if len(store.classes) <= LABELLED:
                axis.set_xticks(range(len(store.classes)), map(_short, store.classes), rotation=30, ha="right")
            else:
                axis.set_xticks([])
                axis.set_xlabel("classes, in the order of the table")
            axis.grid(False, axis="x")
        return _drawn(figure)


def projections(store: FeatureStore, found: Sequence[Features]) -> str | None:
    """Each modality's first two principal components. SVG, or None where no modality has any."""
    drawn = [features for features in found if features.scores is not None]
    if not drawn:
        return None
    with rc_context(STYLE | LOOK):
        figure = Figure(figsize=(9.6, 5.0), layout="constrained")
        for axis, features in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
            _points(axis, store, features.projected, *_by_place(features, len(store.label)))
            axis.set_title(f"{features.modality} features", fontsize=9)
            for component, (name, share) in enumerate(zip("xy", features.share, strict=True), 1):
                getattr(axis, f"set_{name}label")(f"component {component} ({100 * share:.0f} % of the variance)")
        shown = np.unique(np.concatenate([store.label[features.projected] for features in drawn]))
        handles = [axis.scatter([], [], s=30, **_look(c)) for c in shown]
        names = [_short(store.classes[c]) for c in shown]
        figure.legend(handles, names, loc="outside upper center", ncols=min(len(shown), 6), frameon=False)
        return _drawn(figure)


def _drawn(figure: Figure) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # which only measures the text here
        return svg(figure)


def _top(features: Features) -> float:
    """The norm at the upper edge: a little above the highest of clips that are not conspicuous, else of all."""
    finite = np.isfinite(features.norm)
    ordinary = finite.copy()
    ordinary[list(features.remarks)] = False
    return 1.25 * features.norm[ordinary if ordinary.any() else finite].max(initial=0) or 1.0


def _by_place(features: Features, clips: int) -> np.ndarray:
    """Scores where their clips stand: [2, clip]."""
    at = np.full((2, clips), np.nan)
    at[:, features.projected] = features.scores.T
    return at


def _points(axis: Axes, store: FeatureStore, places: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """These clips at x, y [clip], class by class."""
    size = 26 if len(places) < 400 else 9
    edge = {"edgecolors": "black", "linewidths": 0.3 if len(places) < 400 else 0.1}
    for code in np.unique(store.label[places]):
        of = places[store.label[places] == code]
        axis.scatter(x[of], y[of], s=size, alpha=0.8, rasterized=len(places) > DRAWN, **edge, **_look(code))


def _look(code: int) -> dict:
    return {"color": COLOURS[code % len(COLOURS)], "marker": MARKERS[(code + code // len(COLOURS)) % len(MARKERS)]}


def _spread(label: np.ndarray) -> np.ndarray:
    """How far each clip stands beside the middle of its class: [clip], evenly in the clips' order."""
    beside = np.zeros(len(label))
    for code in np.unique(label):
        of = np.flatnonzero(label == code)
        beside[of] = WIDE * ((np.arange(len(of)) + 0.5) / len(of) - 0.5)
    return beside


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
