"""Our numbers beside the paper's: one document, as JSON, as Markdown and for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from .kept import write_document
from .paper import Exhibit, table2_value
from .tables import grouped_text

PAPER = "Ma, Xu, Huang, Zhang (2021), arXiv:2108.10513, Table 2"
SHOWN_EPOCHS = 8  # of a curve, in tables


def compare(exhibit: Exhibit, document: Mapping, ran_on: Sequence[str], left_out: Sequence[str]) -> dict:
    """Cell by cell ours, the paper's and the difference; ``None`` where the paper has no number or a cell no result."""
    return {
        "schema": 1,
        "exhibit": exhibit.name,
        "title": exhibit.title,
        "paper": PAPER,
        "ran_on": list(ran_on),
        "left_out": list(left_out) + [f"{entry['cell']}: {entry['reason']}" for entry in document["skipped"]],
        "missing": list(exhibit.missing),
        "command": document["command"],
        "created": document["created"],
        "cells": [_cell(result) for result in document["results"]],
    }


def _cell(result: Mapping) -> dict:
    paper = table2_value(result["features"], result["method"], result["missing"])
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
    }


def _mean_curve(result: Mapping) -> dict:
    """Test accuracy after each of the classifier's epochs, over the seeds; total_epoch counts what went before too."""
    scores = np.array(result["curve"]["test_accuracy"])  # [seed, epoch]
    epochs, before = result["curve"]["epoch"], result["total_epochs"] - result["epochs"]
    return {
        "epoch": epochs,
        "total_epoch": [epoch + before for epoch in epochs],
        "mean": scores.mean(0).round(3).tolist(),
        "std": scores.std(0, ddof=1).round(3).tolist() if len(scores) > 1 else None,
    }


def tables(compared: Mapping) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and rows of text: accuracies by split and fusion, then (of a figure) curves, then the cost."""
    cells, several = compared["cells"], len({cell["store"] for cell in compared["cells"]}) > 1
    several &= len({cell["features"] for cell in cells}) < len({(c["features"], c["store"]) for c in cells})

    def backbone(cell: Mapping) -> str:
        return f"{cell['features']} {cell['store']}" if several else cell["features"]

    found = []
    for split, fusion in dict.fromkeys((cell["split"], cell["fusion"]) for cell in cells):
        part = [cell for cell in cells if (cell["split"], cell["fusion"]) == (split, fusion)]
        title = f"By {split}, {fusion}: ours ± std (the paper's, difference)"
        if split != "clip":
            title += "; the paper splits by clip, an easier test"
        rows = []
        for features, method in dict.fromkeys((backbone(c), c["method"]) for c in part):
            row = {c["missing"]: c for c in part if (backbone(c), c["method"]) == (features, method)}
            rows.append([features, method, *(_score(row.get(missing)) for missing in compared["missing"])])
        found.append((title, ["features", "method", *compared["missing"]], rows))
        if len(compared["missing"]) == 1:
            found.append(_curves(part, f"By {split}, {fusion}: test accuracy after epochs of the classifier", backbone))
    return [*found, _cost(cells, backbone)]


def _score(cell: Mapping | None) -> str:
    if cell is None:
        return "–"
    ours = f"{cell['mean']:.1f}" + ("" if cell["std"] is None else f" ± {cell['std']:.1f}")
    return ours if cell["paper"] is None else f"{ours} ({cell['paper']:.2f}, {cell['difference']:+.1f})"


def _curves(cells: Sequence[Mapping], title: str, backbone) -> tuple[str, list[str], list[list[str]]]:
    most = max(len(cell["curve"]["epoch"]) for cell in cells)
    places = sorted({round(p) for p in np.geomspace(1, most, min(SHOWN_EPOCHS, most))})
    rows = []
    for cell in cells:
        curve = cell["curve"]
        before = curve["total_epoch"][0] - 1
        scores = [f"{curve['mean'][p - 1]:.1f}" if p <= len(curve["mean"]) else "–" for p in places]
        rows.append([backbone(cell), cell["method"], str(before), *scores])
    return title, ["features", "method", "epochs before it", *map(str, places)], rows


def _cost(cells: Sequence[Mapping], backbone) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for features, method in dict.fromkeys((backbone(c), c["method"]) for c in cells):
        same = [c for c in cells if (backbone(c), c["method"]) == (features, method)]
        epochs, total = (_span([c[name] for c in same], "{:.0f}") for name in ("classifier_epochs", "total_epochs"))
        seeds = _span([len(c["seeds"]) for c in same], "{:.0f}")
        rows.append([features, method, seeds, epochs, total, _span([c["seconds_a_run"] for c in same], "{:.2f}")])
    heads = ["features", "method", "seeds", "classifier epochs", "total epochs", "seconds a run"]
    devices = ", ".join(dict.fromkeys(cell["device"] for cell in cells))
    return f"Cost (runs train side by side; a run's share of the time on {devices})", heads, rows


def _span(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def notes(compared: Mapping) -> list[str]:
    """What must be said beside the numbers."""
    return [
        *(f"Ran on {line}." for line in compared["ran_on"]),
        f"Accuracy in percent of test clips, mean ± standard deviation over seeds; the paper's: {compared['paper']}, "
        "means of five runs.",
        "Every classifier trains as many epochs; an autoencoder trains as many before it.",
    ]


def left_out(compared: Mapping) -> list[str]:
    """What was left out, a line a reason; a budget's lines have none and stand for themselves."""
    split = [line.partition(": ") for line in compared["left_out"]]
    grouped = grouped_text([(what, reason) for what, _, reason in split if reason])
    return [
        *(f"Left out: {what}." for what, _, reason in split if not reason),
        *(f"Left out: {what}: {reason}" for what, reason in grouped),
    ]


def left_out_number(compared: Mapping) -> list[str]:
    """One line that says how many were left out, for above the numbers; no line where there were none."""
    number = len(compared["left_out"])
    return [f"Left out: {number} {'entry' if number == 1 else 'entries'}, listed below the tables."] if number else []


def markdown(compared: Mapping) -> str:
    """The whole document as Markdown."""
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
    """NAME.json and NAME.md of an exhibit into a folder."""
    write_document(out / f"{compared['exhibit']}.json", dict(compared))
    path = out / f"{compared['exhibit']}.md"
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(markdown(compared), encoding="utf-8")
    temporary.replace(path)


def print_tables(compared: Mapping) -> None:
    """All tables to standard output, how much is left out above them, then what must be said beside them."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
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
    for note in ["", *notes(compared), *left_out(compared)]:
        console.print(note, markup=False, highlight=False)
