"""Our numbers beside the paper's: one document, as JSON, as Markdown and for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ...pipeline.console import plain
from ...pipeline.files import whole_file, write_json
from ..report.tables import grouped_text, sections, worse_text
from .paper import Exhibit

SHOWN_EPOCHS = 8  # of a curve, in tables
MOST_LINES = 8  # of what is left out, on a terminal


def compare(exhibit: Exhibit, document: Mapping, ran_on: Sequence[str], left_out: Sequence[str]) -> dict:
    """Return ours, the paper's and the difference for each cell; None where the paper has no number."""
    return {
        "schema": 1,
        "exhibit": exhibit.name,
        "title": exhibit.title,
        "paper": exhibit.source,
        "end_to_end": exhibit.end_to_end,
        "shows": exhibit.shows,
        "ran_on": list(ran_on),
        "left_out": list(left_out) + [f"{entry['cell']}: {entry['reason']}" for entry in document["skipped"]],
        "missing": list(exhibit.missing),
        "command": document["command"],
        "created": document["created"],
        "cells": [_cell(exhibit, result) for result in document["results"]],
        "single": [
            f"{part.title}: {line}"
            for part in sections([document])
            for line in worse_text(part, part.compared(document["comparisons"]))
        ],
        "tuned": list(dict.fromkeys(_tuning(r["tuned"]) for r in document["results"] if r.get("tuned"))),
    }


def _tuning(tuned: Mapping) -> str:
    return (
        f"Tuned: the best of {tuned['draws']} draws of each row on validation clips ({tuned['run']} {tuned['digest']})."
    )


def in_short(compared: Mapping) -> dict:
    """Return what a report shows of a comparison: the numbers of each cell and what was trained."""
    names = ("split", "features", "method", "fusion", "missing", "mean", "std", "paper", "difference")
    cells = [{name: cell[name] for name in names} for cell in compared["cells"]]
    absent = [line.removeprefix("Left out: ") for line in left_out(compared)]
    return {name: compared[name] for name in ("title", "paper", "ran_on")} | {"left_out": absent, "cells": cells}


def _cell(exhibit: Exhibit, result: Mapping) -> dict:
    paper = exhibit.value(*(result[name] for name in ("features", "method", "fusion", "missing")))
    confusion = (
        {"classes": result["classes"], "confusion": result["confusion"]} if exhibit.shows == "confusions" else {}
    )
    names = ("dataset", "features", "store", "weights", "synthetic", "split", "fusion", "method", "missing", "seeds")
    return {name: result[name] for name in names} | {
        "mean": result["mean"],
        "std": result["std"],
        "paper": paper,
        "difference": None if paper is None else round(result["mean"] - paper, 2),
        "classifier_epochs": result["epochs"],
        "total_epochs": result["total_epochs"],
        "seconds_a_run": round(result["seconds"] / len(result["seeds"]), 3),
        "device": result["device"],
        "curve": _mean_curve(result),
        **confusion,
    }


def _mean_curve(result: Mapping) -> dict:
    """Return test accuracy after each epoch of the classifier, over the seeds; total_epoch counts earlier ones too."""
    scores = np.array(result["curve"]["test_accuracy"])  # [seed, epoch]
    epochs, before = result["curve"]["epoch"], result["total_epochs"] - result["epochs"]
    return {
        "epoch": epochs,
        "total_epoch": [epoch + before for epoch in epochs],
        "mean": scores.mean(0).round(3).tolist(),
        "std": scores.std(0, ddof=1).round(3).tolist() if len(scores) > 1 else None,
    }


def tables(compared: Mapping) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return tables as title, heads and rows of text: accuracies, what the exhibit shows beside them, then the cost.

    Of cached features a table holds a split and fusion, its rows are backbones and methods; of networks trained end to
    end a split, and its rows are methods and fusions.
    """
    cells = compared["cells"]
    stores = {(cell["features"], cell["store"]) for cell in cells}
    several = len({features for features, _ in stores}) < len(stores)

    def row_of(cell: Mapping) -> tuple[str, str]:
        if compared["end_to_end"]:
            return cell["method"], cell["fusion"]
        return f"{cell['features']} {cell['store']}" if several else cell["features"], cell["method"]

    def title_of(cell: Mapping) -> str:
        if compared["end_to_end"]:
            return f"By {cell['split']}" + (f", store {cell['store']}" if several else "")
        return f"By {cell['split']}, {cell['fusion']}"

    heads = ["method", "fusion"] if compared["end_to_end"] else ["features", "method"]
    found = []
    for title in dict.fromkeys(map(title_of, cells)):
        part = [cell for cell in cells if title_of(cell) == title]
        hard = "" if part[0]["split"] == "clip" else "; the paper splits by clip, an easier test"
        rows = []
        for row in dict.fromkeys(map(row_of, part)):
            by_missing = {c["missing"]: c for c in part if row_of(c) == row}
            rows.append([*row, *(_score(by_missing.get(missing)) for missing in compared["missing"])])
        found.append((f"{title}: ours ± std (the paper's, difference){hard}", [*heads, *compared["missing"]], rows))
        if compared["shows"] == "curves":
            found.append(_curves(part, f"{title}: test accuracy after epochs of the classifier", heads, row_of))
        if compared["shows"] == "confusions":
            found += [_confusion(cell, title, row_of) for cell in part]
    return [*found, _cost(cells, heads, row_of)] if cells else []


def _confusion(cell: Mapping, title: str, row_of) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for name, counts in zip(cell["classes"], cell["confusion"], strict=True):
        shares = [f"{100 * n / sum(counts):.0f}" for n in counts] if sum(counts) else ["–"] * len(counts)
        rows.append([name, str(sum(counts)), *shares])
    what = f"{title}, {', '.join(row_of(cell))}, {cell['missing']}: rows true, columns predicted, % of the row"
    return what, ["true class", "clips over seeds", *cell["classes"]], rows


def _score(cell: Mapping | None) -> str:
    if cell is None:
        return "–"
    ours = f"{cell['mean']:.1f}" + ("" if cell["std"] is None else f" ± {cell['std']:.1f}")
    return ours if cell["paper"] is None else f"{ours} ({cell['paper']:.2f}, {cell['difference']:+.1f})"


def _curves(
    cells: Sequence[Mapping], title: str, heads: Sequence[str], row_of
) -> tuple[str, list[str], list[list[str]]]:
    most = max(len(cell["curve"]["epoch"]) for cell in cells)
    places = sorted({round(p) for p in np.geomspace(1, most, min(SHOWN_EPOCHS, most))})
    rows = []
    for cell in cells:
        curve = cell["curve"]
        before = curve["total_epoch"][0] - 1
        scores = [f"{curve['mean'][p - 1]:.1f}" if p <= len(curve["mean"]) else "–" for p in places]
        rows.append([*row_of(cell), str(before), *scores])
    return title, [*heads, "epochs before it", *map(str, places)], rows


def _cost(cells: Sequence[Mapping], heads: Sequence[str], row_of) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for row in dict.fromkeys(map(row_of, cells)):
        same = [c for c in cells if row_of(c) == row]
        epochs, total = (_span([c[name] for c in same], "{:.0f}") for name in ("classifier_epochs", "total_epochs"))
        seeds = _span([len(c["seeds"]) for c in same], "{:.0f}")
        rows.append([*row, seeds, epochs, total, _span([c["seconds_a_run"] for c in same], "{:.2f}")])
    heads = [*heads, "seeds", "classifier epochs", "total epochs", "seconds a run"]
    devices = ", ".join(dict.fromkeys(cell["device"] for cell in cells))
    return f"Cost (of runs that train side by side, a run's share of the time; on {devices})", heads, rows


def _span(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def notes(compared: Mapping) -> list[str]:
    """Return what must be said beside the numbers."""
    end_to_end = compared["end_to_end"]
    return [
        *(f"Ran on {line}." for line in compared["ran_on"]),
        f"Accuracy in percent of test clips, mean ± standard deviation over seeds; the paper's: {compared['paper']}, "
        "means of five runs.",
        *compared.get("single", ()),
        *compared.get("tuned", ()),
        *(["Every classifier trains as many epochs; an autoencoder trains as many before it."] * (not end_to_end)),
        *(["The paper's networks are ResNet-50s; every method of ours trains the same backbone alike."] * end_to_end),
    ]


def left_out(compared: Mapping) -> list[str]:
    """Return what was left out, a line for each reason."""
    split = [line.partition(": ") for line in compared["left_out"]]
    return [f"Left out: {what}: {reason}" for what, reason in grouped_text([(what, why) for what, _, why in split])]


def left_out_number(compared: Mapping) -> list[str]:
    """Return one line with the number of what was left out, to stand above the numbers; none where nothing was."""
    number = len(compared["left_out"])
    return [f"Left out: {number} {'entry' if number == 1 else 'entries'}, listed below the tables."] if number else []


def markdown(compared: Mapping) -> str:
    """Return the whole document as Markdown."""
    shown = [*left_out_number(compared), *notes(compared)]
    lines = [f"# {compared['title']}", "", *(f"- {note}".replace("\n", " ") for note in shown)]
    lines += [f"- Command: `{compared['command']}`, {compared['created']}"] if compared["command"] else []
    for title, heads, rows in tables(compared):
        lines += ["", f"## {title}", "", _line(heads), _line(["---"] * len(heads)), *map(_line, rows)]
    if compared["left_out"]:
        lines += ["", "## Left out", "", *(f"- {line}".replace("\n", " ") for line in left_out(compared))]
    return "\n".join(lines) + "\n"


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def write(compared: Mapping, out: Path) -> None:
    """Write NAME.json and NAME.md of an exhibit into a folder."""
    write_json(out / f"{compared['exhibit']}.json", compared)
    compared = plain(compared)
    with whole_file(out / f"{compared['exhibit']}.md", "w") as file:
        file.write(markdown(compared))


def print_tables(compared: Mapping) -> None:
    """Print all tables to standard output, above them how much is left out, below them the notes."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    compared = plain(compared)
    for line in left_out_number(compared):
        console.print(f"\n{line}", markup=False, highlight=False)
    for title, heads, rows in tables(compared):
        console.print(f"\n{title}", style="bold", markup=False, highlight=False)
        table = Table()
        for place, head in enumerate(heads):
            table.add_column(head, justify="left" if place < 2 else "right", overflow="fold")
        before = None
        for row in rows:
            if before not in (None, row[0]):
                table.add_section()
            table.add_row("" if row[0] == before else row[0], *(text.replace(" (", "\n(") for text in row[1:]))
            before = row[0]
        console.print(table)
    absent = left_out(compared)
    if len(absent) > MOST_LINES:
        absent[MOST_LINES:] = [f"Left out: {len(absent) - MOST_LINES} more, listed in {compared['exhibit']}.md."]
    for note in ["", *notes(compared), *absent]:
        console.print(note, markup=False, highlight=False)
