"""Draw the report's figures as SVG. Colours are told apart with any colour vision and, by markers and dashes, in print.

A section's rows (method and fusion) are drawn in groups: all together where they are few, else a figure a fusion, so
that no panel holds more lines than can be followed. Nothing is left out. Methods that look at one modality, which fuse
nothing, are reference lines without markers in every figure, but make no panel of their own beside others.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ...pipeline.errors import InputError
from ...pipeline.page import COLOURS, MARKERS, STYLE, svg
from ...pipeline.stores.masks import parse_missing
from .matrix import matrix, several_tests
from .tables import Section, column_text

DASHES = {"addition": "-", "concatenation": "--", "outer": ":"}
REFERENCE = (0, (6, 2, 1, 2, 1, 2))  # dash, dot, dot
TOGETHER, MOST_LINES = 6, 9  # rows of all fusions in one panel; rows in any panel
LABEL = 44  # characters a line, below a panel
PANELS_ACROSS = 3  # panels beside each other
LEAST_SHARE = 0.01  # of the clips, for a bin of confidence to be on its method's line
APART, SPREAD = 0.015, 0.25  # rows of one rate: of the axis from one to the next; of the way to the next rate, in all


@dataclass(frozen=True)
class Lines:
    """Rows that share a figure. title: what they have in common, "" where that is nothing worth a word."""

    title: str
    rows: tuple[tuple[str, str], ...]


def groups(section: Section) -> list[Lines]:
    """Spread the section's rows over figures: see the module."""
    marked = references(section)
    rows = [row for row in section.rows if row not in marked]
    if not rows:
        rows, marked = marked, []
    fusions = list(dict.fromkeys(fusion for _, fusion in rows))
    if len(rows) + len(marked) <= TOGETHER or len(fusions) == 1:
        found = {"": rows}
    else:
        found = {fusion: [row for row in rows if row[1] == fusion] for fusion in fusions}
    most = max(MOST_LINES - len(marked), 1)
    return [
        Lines(title, (*part[start : start + most], *marked))
        for title, part in found.items()
        for start in range(0, len(part), most)
    ]


def references(section: Section) -> list[tuple[str, str]]:
    """Return the rows of methods that look at one modality only: their fusion says nothing."""
    return list(dict.fromkeys(section.row(r) for r in section.results if r.get("reference")))


def _look(section: Section, method: str, fusion: str, lines: Lines) -> dict:
    """Choose colour and marker by method, dashes by fusion; references have no marker, and dashes of their own."""
    place = list(dict.fromkeys(method for method, _ in section.rows)).index(method)
    colour, marked = COLOURS[place % len(COLOURS)], references(section)
    if (method, fusion) in marked:
        return {"color": colour, "marker": "", "linestyle": REFERENCE, "label": method}
    alone = lines.title or len({row[1] for row in section.rows if row not in marked}) == 1
    return {
        "color": colour,
        "marker": MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
        "linestyle": "-" if alone else DASHES.get(fusion, "-."),
        "label": method if alone else f"{method}, {fusion}",
        "markersize": 5,
    }


def rates(section: Section) -> dict[str, list[tuple[float, str]]]:
    """Return what goes missing in equal proportions at two rates or more, modalities or labels: rates with their specs.

    Rates are in order, complete data is rate 0 of each. A key reads ``audio``, or ``audio or visual`` where both go
    missing equally often, in clips of their own: rates are of both together. Where rates add up to more than 1, or
    one is of labels, they are of each: ``each of audio, text``.
    """
    found: dict[tuple, list[tuple[float, str]]] = {}
    complete = [(0.0, spec) for spec in section.columns if spec == "none"]
    for spec in section.columns:
        try:
            parsed = parse_missing(spec, modalities=None)
            missing = {} if parsed.where else dict(parsed.entries)  # rates by value are no one rate
        except InputError:  # somebody else's masks, which have a name and no rate
            continue
        total = sum(missing.values())
        if total:
            overlap = total > 1 + 1e-9 or bool(parsed.label and parsed.rates)
            shares = overlap, tuple((modality, round(rate / total, 6)) for modality, rate in missing.items())
            found.setdefault(shares, list(complete)).append((max(missing.values()) if overlap else total, spec))
    return {_shares_text(*key): sorted(points) for key, points in found.items() if len(points) > 1}


def _shares_text(overlap: bool, shares: Sequence[tuple[str, float]]) -> str:
    equal = len({share for _, share in shares}) == 1
    if overlap:
        most = max(share for _, share in shares)
        names = [name if share == most else f"{name} ({100 * share / most:.0f} % of it)" for name, share in shares]
        return f"each of {', '.join(names)}"
    return " or ".join(name if equal else f"{name} ({100 * share:.0f} % of them)" for name, share in shares)


def accuracy_by_rate(section: Section, lines: Lines) -> str | None:
    """Draw accuracy against the missing rate, a panel a modality, error bars of one standard deviation over seeds.

    Rates are set evenly apart: most of a grid's lie close together near 100 %. None where there is nothing to draw.
    """
    panels = {
        modality: points
        for modality, points in rates(section).items()
        if _own_rows(section, lines, [spec for rate, spec in points if rate])
    }
    if not panels:
        return None
    with rc_context(STYLE):
        figure, axes = _panels(len(panels), 4.4 if len(panels) < PANELS_ACROSS else 3.5, 3.4)
        for axis, (modality, points) in zip(axes, panels.items(), strict=False):
            for i, (method, fusion) in enumerate(lines.rows):
                cells = [(x, section.cell(method, fusion, spec)) for x, (_, spec) in enumerate(points)]
                cells = [(x, cell) for x, cell in cells if cell is not None]
                if cells:
                    # Rows are set a little apart, else their bars hide each other.
                    apart = offsets(len(lines.rows), len(points))[i]
                    deviation = [cell["std"] or 0 for _, cell in cells]
                    look = _look(section, method, fusion, lines)
                    means = [cell["mean"] for _, cell in cells]
                    x = [x + apart for x, _ in cells]
                    axis.errorbar(x, means, deviation, capsize=2, elinewidth=0.8, lw=1.3, **look)
            axis.set_xticks(range(len(points)), [f"{100 * rate:g}" for rate, _ in points])
            axis.grid(False, axis="x")
            axis.set_xlabel(textwrap.fill(f"training clips without {modality} (%)", LABEL))
        bounds = [r["mean"] + sign * (r["std"] or 0) for r in section.results for sign in (-1, 1)]
        _finish(figure, axes, lines, bounds)
        return svg(figure)


def offsets(rows: int, rates: int) -> np.ndarray:
    """Return each row's distance from its rate's tick, rates a unit apart: [row], around 0."""
    step = min(APART * (rates - 1), SPREAD / max(rows - 1, 1))
    return step * (np.arange(rows) - (rows - 1) / 2)


def _own_rows(section: Section, lines: Lines, specs: Sequence[str]) -> bool:
    """Tell whether any of these specs has a result to draw: of a reference only where all rows are references."""
    marked = references(section)
    own = [row for row in lines.rows if row not in marked] or lines.rows
    return any(section.cell(*row, spec) for row in own for spec in specs)


def accuracy_by_epoch(section: Section, lines: Lines) -> str | None:
    """Draw test accuracy after each epoch of the classifier, mean over seeds, a panel a missing spec.

    The label says how many epochs a method trained before its classifier's first. None where there is nothing to draw.
    """
    columns = [missing for missing in section.columns if _own_rows(section, lines, [missing])]
    if not columns:
        return None
    with rc_context(STYLE):
        figure, axes = _panels(len(columns), 3.4, 2.7)
        for axis, missing in zip(axes, columns, strict=True):
            for i, (method, fusion) in enumerate(lines.rows):
                cell = section.cell(method, fusion, missing)
                if cell is not None:
                    epochs, scores = cell["curve"]["epoch"], np.array(cell["curve"]["test_accuracy"])  # [seed, epoch]
                    every = max(len(epochs) // 6, 1)
                    look = _look(section, method, fusion, lines)
                    if before := epochs_before(cell):
                        look["label"] += f" (after {before} epochs)"
                    axis.plot(epochs, scores.mean(0), markevery=(i % every, every), lw=1.2, **look)
            axis.set_title(column_text(missing), fontsize=9)
            axis.set_xlabel("epoch of the classifier")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        bounds = [score for r in section.results for score in np.mean(r["curve"]["test_accuracy"], 0)]
        _finish(figure, axes, lines, bounds)
        return svg(figure)


def accuracy_by_confidence(section: Section, lines: Lines) -> str | None:
    """Draw accuracy against confidence, bin by bin, a panel a missing spec; a dot's area is its share of the clips.

    None where there is nothing to draw: results of an earlier version.
    """
    known = {r["missing"] for r in section.results if r.get("reliability")}
    columns = [missing for missing in section.columns if missing in known and _own_rows(section, lines, [missing])]
    if not columns:
        return None
    with rc_context(STYLE):
        figure, axes = _panels(len(columns), 3.4, 3.3, "accuracy (% of a bin's clips)")
        for axis, missing in zip(axes, columns, strict=True):
            axis.plot([0, 100], [0, 100], color="#888888", lw=0.8, zorder=1)
            for method, fusion in lines.rows:
                cell = section.cell(method, fusion, missing)
                if cell is not None and cell.get("reliability"):
                    look = _look(section, method, fusion, lines)
                    _bins(axis, cell["reliability"], look)
            axis.set_title(column_text(missing), fontsize=9)
            axis.set_xlabel("confidence (%)")
            axis.set(xlim=(0, 102), aspect="equal")
        _finish(figure, axes, lines, [0, 100])
        return svg(figure)


def _bins(axis: Axes, bins: dict, look: dict) -> None:
    """Draw a method's bins: a dot each, and a line through those that hold LEAST_SHARE of the clips."""
    clips = np.array(bins["clips"])
    x, y = (np.array(bins[name], float) for name in ("confidence", "accuracy"))  # NaN where empty
    share = clips / clips.sum()
    usual = share >= LEAST_SHARE
    axis.plot(x[usual], y[usual], lw=1.2, **look | {"markersize": 3})
    axis.scatter(x[clips > 0], y[clips > 0], s=150 * share[clips > 0], color=look["color"], alpha=0.35, linewidths=0)


def epochs_before(result: dict) -> int:
    """Return the number of epochs that a method trained before its classifier's first: an autoencoder's."""
    return result.get("total_epochs", result["epochs"]) - result["epochs"]


def _panels(
    number: int, width: float, height: float, of: str = "test accuracy (% of clips)"
) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many panels of a size in inches, PANELS_ACROSS beside each other, one scale for all."""
    columns = min(number, PANELS_ACROSS)
    lines = -(-number // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten().tolist()
    for axis in axes[number:]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(of)
    return figure, axes[:number]


def _finish(figure: Figure, axes: Sequence[Axes], lines: Lines, bounds: Sequence[float]) -> None:
    """Add the legend, above, with what the lines share; set the scale that every figure of the section has."""
    axes[0].set_ylim(max(min(bounds) - 3, 0), min(max(bounds) + 3, 102))
    entries = {}
    for axis in axes:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = min(len(entries), 5 if max(map(len, entries)) < 18 and len(axes) > 1 else 3)
    title = f"fusion by {lines.title}" if lines.title else None
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper center", ncols=columns, frameon=False, title=title
    )


def confusion_matrices(section: Section, missing: str) -> str:
    """Draw a matrix for each method and fusion: rows the true class, in percent of its test clips over all seeds."""
    cells = [(row, section.cell(*row, missing)) for row in section.rows]
    cells = [(row, cell) for row, cell in cells if cell is not None]
    classes, parts = cells[0][1]["classes"], []
    for row, cell in cells:
        counts = np.array(cell["confusion"], float)
        total = counts.sum(1, keepdims=True)
        parts.append((row, 100 * np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)))
    return _matrices(parts, classes, classes)


def tests_crossed(section: Section) -> str:
    """Draw a matrix for each method and fusion: rows what training lacks, columns what test clips lack, accuracies."""
    parts = [(row, matrix(section, row)) for row in section.rows]
    names = [
        [name if name != "none" else "complete" for name in of] for of in (section.columns, several_tests(section))
    ]
    return _matrices(parts, *names, digits=1)


def _matrices(
    parts: Sequence[tuple[tuple[str, str], np.ndarray]], down: Sequence[str], across: Sequence[str], digits: int = 0
) -> str:
    """Draw matrices of percentages with one scale of colour; the names are those of their rows and columns.

    All are on one pair of axes, an entry a unit: dozens of pairs would take matplotlib many seconds.
    """
    n, m, columns = len(down), len(across), min(len(parts), 4)
    right, below = max(m, 4) + 0.6, n + 2  # from one matrix to the next; a title needs the width of four
    lines = -(-len(parts) // columns)
    side, foot = (0.25 * max(map(len, names)) + 0.8 for names in (down, across))  # for the names
    width, height = right * columns + side, below * lines + foot  # in entries
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(0.29 * width, 0.29 * height))  # inches
        axis = figure.add_axes((0, 0, 1, 1))
        axis.axis("off")
        for i, ((method, fusion), percent) in enumerate(parts):
            x, y = right * (i % columns), below * (i // columns)
            _matrix(axis, percent, x, y, digits)
            axis.text(x + (m - 1) / 2, y - 0.75, f"{method}\n{fusion}", ha="center", fontsize=8, linespacing=1.1)
            if i % columns == 0:
                for row, name in enumerate(down):
                    axis.text(-0.7, y + row, name, ha="right", va="center", fontsize=8)
            if i + columns >= len(parts):  # the lowest of its column
                for column, name in enumerate(across):
                    options = {"ha": "right", "va": "top", "rotation": 60, "rotation_mode": "anchor", "fontsize": 8}
                    axis.text(x + column, y + n - 0.3, name, **options)
        axis.set(xlim=(-0.5 - side, width - 0.5 - side), ylim=(height - 2, -2), aspect="equal")
        return svg(figure, crop=None)  # cropping would draw it twice


def _matrix(axis: Axes, percent: np.ndarray, x: float, y: float, digits: int) -> None:
    """Draw one matrix with its upper left entry's centre at x, y; NaN stays white."""
    n, m = percent.shape
    extent = (x - 0.5, x + m - 0.5, y + n - 0.5, y - 0.5)
    axis.imshow(percent, cmap="Blues", vmin=0, vmax=100, extent=extent, aspect="equal", interpolation="nearest")
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), m, n, fill=False, edgecolor="#bbbbbb", linewidth=0.6))
    for i, row in enumerate(percent):
        for j, value in enumerate(row):
            colour = "white" if value > 55 else "black"
            text = "" if np.isnan(value) else f"{value:.{digits}f}"
            axis.text(x + j, y + i, text, ha="center", va="center", fontsize=7, color=colour)
