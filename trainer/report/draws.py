"""Write the page of a tuning: what was chosen for each row, and a picture of every draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from ...pipeline.console import plain
from ...pipeline.page import COLOURS, STYLE, render, svg, write_page
from .tables import column_text

SETTING = ("dataset", "features", "store", "split", "missing", "missing_test")  # of the rows of one section
AXES: Mapping[str, str] = {  # name -> scale
    "lr": "log",
    "weight_decay": "log",
    "dropout": "linear",
    "hide": "linear",
    "complete_share": "linear",
    "hidden": "linear",
    "dim": "linear",
}
OFF = ("hide", "complete_share")  # by default
NONE = -0.1  # where a share that is not set is drawn
TALL, WIDE = 1.25, 1.75  # inches of a panel


def write_draws(document: dict, out: Path) -> None:
    """Write the page of what `mlemiss tune` chose, the document of its tuned.json, to the file ``out``."""
    document = plain(document)
    sections: dict[tuple, list[dict]] = {}
    for row in document["rows"]:
        sections.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    facts = {
        "Draws": f"{document['draws']} of each row; draw 0 is the defaults, as far as they are in the space",
        "Seeds": f"{', '.join(map(str, document['seeds']))}, which are never reported",
        "Space": ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in document["space"].items()),
        "Command": document["command"],
        "Date": document["created"],
    }
    render_of = {"facts": facts, "sections": [_section(rows) for rows in sections.values()]}
    skipped = [f"{entry['cell']}: {entry['reason']}" for entry in document["skipped"]]
    write_page(render(Path(__file__).parent / "templates", "tune.html", **render_of, skipped=skipped), out)


def settings_text(settings: Mapping) -> str:
    """Return drawn settings in words: ``lr 0.003, weight decay 0.0001, …``, without hiding and a share that are off."""
    values = {name: settings[name] for name in AXES} | settings["own"]
    shown = {name: value for name, value in values.items() if value or (value == 0 and name not in OFF)}
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in shown.items())


def _section(rows: Sequence[dict]) -> dict:
    first = rows[0]
    synthetic = " (SYNTHETIC clips)" * bool(first.get("synthetic"))
    lacking = "" if first["missing_test"] == "none" else f", test clips {column_text(first['missing_test'])}"
    return {
        "title": f"{first['dataset']}{synthetic}, {first['features']}, by {first['split']}: "
        f"{column_text(first['missing'])}{lacking}",
        "rows": [_chosen(row) for row in sorted(rows, key=lambda row: -max(row["validation"]))],
        "picture": picture(rows),
    }


def _chosen(row: Mapping) -> list[str]:
    """Return a row of the table: highest validation accuracy first."""
    default, best = row["validation"][0], row["validation"][row["draw"]]
    numbers = [f"{default:.1f}", f"{best:.1f}", f"{best - default:+.1f}", str(row["draw"])]
    return [row["method"], row["fusion"], *numbers, settings_text(row["settings"])]


def picture(rows: Sequence[Mapping]) -> str:
    """Draw every draw of the rows of one section as a dot: a line of panels a row, a panel a setting, as SVG.

    Validation accuracy stands against the setting's value. The defaults are a square, the choice a large dot.
    """
    own = sorted({name for row in rows for drawn in row["drawn"] for name in drawn["own"]})
    names = [name for name in (*AXES, *own) if _varies(rows, name)] or ["lr"]
    with rc_context(STYLE):
        figure = Figure(figsize=(1 + WIDE * len(names), 0.5 + TALL * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(names), squeeze=False, sharex="col", sharey="row")
        for row, axes in zip(rows, grid, strict=True):
            axes[0].set_ylabel(f"{row['method']}\n{row['fusion']}", fontsize=7)
            for name, axis in zip(names, axes, strict=True):
                _panel(axis, row, name)
                if row is rows[0]:
                    axis.set_title(name.replace("_", " "), fontsize=8)
        return svg(figure)


def _value(settings: Mapping, name: str) -> float | None:
    return settings[name] if name in AXES else settings["own"].get(name)


def _varies(rows: Sequence[Mapping], name: str) -> bool:
    return len({_value(drawn, name) for row in rows for drawn in row["drawn"]}) > 1


def _panel(axis, row: Mapping, name: str) -> None:
    """Draw one row's draws against one setting. A share that is not set stands left of 0."""
    points = [(_value(drawn, name), score) for drawn, score in zip(row["drawn"], row["validation"], strict=True)]
    scale = "linear" if any(value == 0 for value, _ in points) else AXES.get(name, "log")
    if all(value is None for value, _ in points):
        axis.axis("off")  # another method's own
        return
    unset = NONE if scale == "linear" else None
    drawn = [(unset if value is None else value, score) for value, score in points]
    shown = [(value, score) for value, score in drawn if value is not None]
    axis.scatter(*zip(*shown, strict=True), s=9, color=COLOURS[5], linewidths=0)
    for place, marker, size, colour in ((0, "s", 16, COLOURS[6]), (row["draw"], "o", 30, COLOURS[1])):
        if drawn[place][0] is not None:
            axis.scatter(*drawn[place], s=size, marker=marker, color=colour, linewidths=0)
    axis.set_xscale(scale)
    if scale == "log":
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_locator(MaxNLocator(3))
    axis.tick_params(labelsize=7)
    if name not in AXES:  # whose last panel may be another method's
        axis.tick_params(labelbottom=True)
