"""The report's figures, as SVG. Colours are told apart with any colour vision and, by markers and dashes, in print."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .tables import Section

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = {"addition": "-", "concatenation": "--", "outer": ":"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "mlemiss",  # the same results draw the same bytes
}


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode()


def _look(section: Section, method: str, fusion: str) -> dict:
    """Colour by method, marker by row, dashes by fusion."""
    place = list(dict.fromkeys(r["method"] for r in section.results)).index(method)
    marker = MARKERS[section.rows.index((method, fusion)) % len(MARKERS)]
    look = {"color": COLOURS[place % len(COLOURS)], "marker": marker, "linestyle": DASHES.get(fusion, "-.")}
    return look | {"label": f"{method}, {fusion}", "markersize": 5}


def rates(section: Section) -> dict[str, list[tuple[float, str]]]:
    """For each modality that goes missing alone at two rates or more: the rates in order, with their specs."""
    found: dict[str, list[tuple[float, str]]] = {}
    for spec in section.columns:
        modality, separator, rate = spec.partition(":")
        if separator and "+" not in spec:
            found.setdefault(modality, []).append((float(rate), spec))
    return {modality: sorted(points) for modality, points in found.items() if len(points) > 1}


def accuracy_by_rate(section: Section) -> str | None:
    """Accuracy against the missing rate, a panel a modality, error bars of one standard deviation over seeds."""
    panels = rates(section)
    if not panels:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels), 3.4))
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (modality, points) in zip(axes, panels.items(), strict=True):
            apart = 1.2 * (points[-1][0] - points[0][0])  # percent points
            for place, (method, fusion) in enumerate(section.rows):
                cells = [(rate, section.cell(method, fusion, spec)) for rate, spec in points]
                cells = [(rate, cell) for rate, cell in cells if cell is not None]
                if cells:
                    # Rows are set a little apart, else their bars hide each other.
                    x = [100 * rate + apart * (place - (len(section.rows) - 1) / 2) for rate, _ in cells]
                    deviation = [cell["std"] or 0 for _, cell in cells]
                    look = _look(section, method, fusion)
                    axis.errorbar(x, [cell["mean"] for _, cell in cells], deviation, capsize=3, lw=1.4, **look)
            axis.set_xticks([100 * rate for rate, _ in points])
            axis.set_xlabel(f"training clips without {modality} (%)")
        axes[0].set_ylabel("test accuracy (% of clips)")
        _legend(figure, axes[0])
        return _svg(figure)


def accuracy_by_epoch(section: Section) -> str:
    """Test accuracy after each epoch, mean over seeds, a panel a missing spec."""
    with rc_context(STYLE):
        columns = min(len(section.columns), 3)
        lines = -(-len(section.columns) // columns)
        figure = Figure(figsize=(3.8 * columns + 0.8, 2.9 * lines))
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True).flatten()
        for axis, missing in zip(axes, section.columns, strict=False):
            for method, fusion in section.rows:
                cell = section.cell(method, fusion, missing)
                if cell is not None:
                    epochs, scores = cell["curve"]["epoch"], np.array(cell["curve"]["test_accuracy"])  # [seed, epoch]
                    every = max(len(epochs) // 8, 1)
                    axis.plot(epochs, scores.mean(0), markevery=every, lw=1.3, **_look(section, method, fusion))
            axis.set_title("complete" if missing == "none" else f"missing {missing}", fontsize=9)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.tick_params(labelbottom=True)
        for axis in axes[len(section.columns) :]:
            axis.set_visible(False)
        for axis in axes[::columns]:
            axis.set_ylabel("test accuracy (% of clips)")
        figure.subplots_adjust(hspace=0.4)
        _legend(figure, *axes)
        return _svg(figure)


def _legend(figure: Figure, *axes: Axes) -> None:
    entries = {}
    for axis in axes:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = min(len(entries), 4)
    figure.legend(
        entries.values(), entries.keys(), loc="lower center", bbox_to_anchor=(0.5, 0.95), ncols=columns, frameon=False
    )


def confusion_matrices(section: Section, missing: str) -> str:
    """A matrix for each method and fusion: rows the true class, in percent of its test clips over all seeds."""
    cells = [(row, section.cell(*row, missing)) for row in section.rows]
    cells = [(row, cell) for row, cell in cells if cell is not None]
    C = len(cells[0][1]["classes"])
    size = 0.42 * C + 0.9
    with rc_context(STYLE | {"axes.grid": False}):
        columns = min(len(cells), 4)
        lines = -(-len(cells) // columns)
        figure = Figure(figsize=(size * columns, (size + 0.35) * lines))
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for axis, ((method, fusion), cell) in zip(axes, cells, strict=False):
            _matrix(axis, np.array(cell["confusion"], float), cell["classes"])
            axis.set_title(f"{method}, {fusion}", fontsize=9)
        for axis in axes[len(cells) :]:
            axis.set_visible(False)
        for place, axis in enumerate(axes[: len(cells)]):
            if place % columns == 0:
                axis.set_ylabel("true class")
            if place >= len(cells) - columns:
                axis.set_xlabel("predicted class")
                axis.tick_params(labelbottom=True)
        figure.tight_layout()
        return _svg(figure)


def _matrix(axis: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    total = counts.sum(1, keepdims=True)
    percent = 100 * np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for i, row in enumerate(percent):
        for j, value in enumerate(row):
            dark = value > 55
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(classes)), classes)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
