"""Write a leaderboard: a folder with one static page over many runs and data sets, and its tables as CSV files.

The page opens offline, needs no JavaScript (its script only sorts tables), and its bytes follow from the runs alone. A
table holds what may be compared: results of one dataset, store, split, test condition and hyper-parameters, as
`tables.sections` arranges them. How it looks, and the words around it, are in `templates/site.html`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from ...pipeline.console import writable_folder
from ...pipeline.errors import InputError
from ...pipeline.files import remove_tree, temporary_beside, write_json
from ...pipeline.page import render, write_page
from ...pipeline.stores.masks import parse_missing
from .comparisons import read_outcomes, units_of, units_text
from .csv_files import comparison_row, result_row, test_rows, write_rows
from .figures import accuracy_by_rate, groups
from .matrix import of_test, several_tests
from .report import compare_documents
from .runs import NamedRun, choose_results, read_runs
from .tables import (
    Section,
    column_text,
    comparisons_text,
    grouped_text,
    sections,
    settings_words,
    side_row,
    source_text,
    span_text,
    worse_text,
)

PAGE, MARKER = "index.html", "site.json"
PHONE = 360  # points: a wider figure is not shrunk to a phone's width
HERE = Path(__file__).parent / "templates"
MEASURES = {"macro_f1": "macro F1", "weighted_f1": "weighted F1", "uar": "UAR", "nll": "NLL", "ece": "ECE"}
MARKS = {
    "": ("", ""),
    "highest": ("●", " highest"),
    "level": ("○", " not told apart from the highest"),
    "unknown": ("?", " no verdict"),
}


def write_site(paths: Sequence[Path], folder: Path) -> list[str]:
    """Write the leaderboard of runs into a folder, whole or not at all; return what the user should be told.

    Args:
        paths: folders of runs, or their results.json. Of a cell that several have, the result with the most seeds
            counts, of those the later named.
        folder: is made, or replaced where it is an older leaderboard and holds nothing else.

    Raises:
        InputError: a run has no results that can be read (all such are named), or the folder cannot be replaced.
    """
    folder = check_folder(folder)
    runs, notes = read_runs(paths)
    repeats = choose_results(runs)
    documents = [run.document for run in runs]
    comparisons, parts = compare_documents(documents), sections(documents)
    tables = [_table(number, part, comparisons) for number, part in enumerate(parts, 1)]
    names = {run.number: run.name for run in runs}
    rows = [[{"run": names[r["run"]]} | result_row(r) for r in part.results] for part in parts]
    files = {table["csv"]: of for table, of in zip(tables, rows, strict=True)}
    files |= {"results.csv": list(chain(*rows)), "comparisons.csv": [comparison_row(c) for c in comparisons]}
    tests = [{"run": names[r["run"]]} | row for part in parts for r in part.results for row in test_rows(r)]
    files |= {"tests.csv": tests} if tests else {}
    page = _page(tables, parts, runs, repeats)
    temporary = temporary_beside(folder)
    try:
        for name, of in files.items():
            write_rows(temporary / name, of)
        write_page(page, temporary / PAGE)
        write_json(temporary / MARKER, {"mlemiss_site": 1, "files": sorted([*files, PAGE])})
        _move(temporary, folder)
    except OSError as error:
        what = f"--site {folder} cannot be written: {error.strerror or error}."
        raise InputError(f"{what}\nMake room, or name another folder.") from error
    finally:
        remove_tree(temporary)
    unfinished = [f"{run.name}: {run.state}" for run in runs if run.state != "finished"]
    return notes + [f"{what}: {why}" for what, why in repeats] + unfinished


def check_folder(folder: Path) -> Path:
    """Return the folder that a leaderboard may be moved to, links resolved, and write nothing.

    InputError: a file is in the way, nothing can be written beside the folder, or the folder holds anything that is not
    of an older leaderboard.
    """
    folder = folder.resolve()
    writable_folder(folder, "--site")
    writable_folder(folder.parent, "--site")
    if not folder.exists():
        return folder
    inside = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    there = {path.relative_to(folder).as_posix() for path in inside}
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        ours = {MARKER, *marker["files"]} if marker["mlemiss_site"] == 1 else set()
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    if foreign := sorted(there - ours):
        kind = "a leaderboard and other things" if ours else "no leaderboard of mlemiss, but other things"
        raise InputError(
            f"--site {folder} holds {kind}: {foreign[0]}" + f" and {len(foreign) - 1} more." * (len(foreign) > 1) + "\n"
            "The whole folder would be replaced: name a new one, or move what is in it."
        )
    return folder


def _table(number: int, part: Section, comparisons: Sequence[dict]) -> dict:
    """Return the facts of one table: scores with their marks, notes, curves and every result."""
    compared, columns = part.compared(comparisons), sorted(part.columns, key=_by_rate)
    marks = {missing: mark_best(part, compared, missing) for missing in columns}
    found = {row: {missing: part.cell(*row, missing) for missing in columns} for row in part.rows}
    whole = [missing for missing in columns if all(cells[missing] for cells in found.values())]
    rows = []
    for row, cells in sorted(found.items(), key=lambda of: -sum(of[1][missing]["mean"] for missing in whole)):
        there = [cell for cell in cells.values() if cell]
        scores = [_score(cell, marks[missing].get(row, "")) for missing, cell in cells.items()]
        seeds = "/".join(map(str, sorted({len(cell["seeds"]) for cell in there})))
        rows.append({"texts": row, "scores": scores, "seeds": seeds, "runs": sorted({cell["run"] for cell in there})})
    own = _own_settings(part)
    measures = [name for name in MEASURES if any(r.get(name) for r in part.results)]
    tests = several_tests(part)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{part.of('dataset')} {part.of('features')}".lower())[:60].strip("-")
    rates = [svg for each in groups(part) if (svg := accuracy_by_rate(part, each))]
    return {
        "title": part.apart.removeprefix(f"by {part.of('split')}").removeprefix(", "),
        "size": len(part.results),
        "heads": _heads(["method", "fusion"], [*map(column_text, columns)], ["seeds", "run"]),
        "rows": rows,
        "notes": [
            _tested(part),
            *part.conditions(),
            *worse_text(part, compared),
            *comparisons_text(compared),
            *_settings_text(part),
        ],
        "rates": rates,
        "wide": any(float(re.search(r'width="([\d.]+)pt"', svg)[1]) > PHONE for svg in rates),
        "cell_heads": _heads(
            ["method", "fusion", "missing"],
            ["accuracy", "low (95 %)", "high", *(MEASURES[name] for name in measures), "seeds", "run"],
            ["settings of its own"] * bool(own),
        ),
        "cells": [_cell(part, r, measures, own[i : i + 1]) for i, r in enumerate(part.results)],
        "test_heads": _heads(
            ["method", "fusion", "missing in training"], [f"test {column_text(one)}" for one in tests]
        ),
        "tests": [_tests(part, r, tests) for r in part.results if r.get("tests")],
        "csv": f"tables/{number:02}-{slug}.csv",
    }


def _heads(texts: Sequence[str], numbers: Sequence[str], last: Sequence[str] = ()) -> list[tuple[str, bool]]:
    """Return heads of columns, and whether each is of texts."""
    return [(name, of is not numbers) for of in (texts, numbers, last) for name in of]


def _by_rate(missing: str) -> tuple:
    """Return what orders columns: complete data, then modality by modality by rate, then other people's settings."""
    try:
        rates = parse_missing(missing, modalities=None).entries
    except InputError:
        return 1, (), ()
    return 0, tuple(name for name, _ in rates), tuple(rate for _, rate in rates)


def mark_best(part: Section, compared: Sequence[dict], missing: str) -> dict[tuple[str, str], str]:
    """Mark the rows of a column as far as the paired comparisons with the row of the highest mean allow.

    Returns:
        ``highest``; ``level`` where the difference from it does not hold; ``unknown`` where it has no verdict. Lower
        rows have no mark, and no row has one where no difference from the highest has a verdict.
    """
    results = [r for r in part.results if r["missing"] == missing]
    top = part.row(max(results, key=lambda r: r["mean"]))
    verdicts = {part.row(r): None for r in results if part.row(r) != top}
    for c in compared:
        pair = [side_row(c["a"]), side_row(c["b"])]
        if c["missing"] == missing and top in pair:
            lower = c["difference"] * (1 if pair[0] == top else -1) > 0  # over the common seeds, too
            verdicts[pair[pair[0] == top]] = None if c["verdict"] is None else c["verdict"] and lower
    if all(verdict is None for verdict in verdicts.values()):
        return {}
    marks = {row: "unknown" if verdict is None else "level" for row, verdict in verdicts.items() if not verdict}
    return {top: "highest"} | marks


def _score(cell: dict | None, mark: str) -> tuple[float | str, str, str]:
    """Return a cell's mean, mean with half of its 95 % interval as text, and mark."""
    if cell is None:
        return "", "–", ""
    mean, interval = cell["mean"], cell.get("interval")
    # Where one end of the interval is cut, at 0 or 100, the other is half of it away; of both cut it is not known.
    half = f" ± {max(mean - interval[0], interval[1] - mean):.1f}" if interval and interval != [0, 100] else ""
    return mean, f"{mean:.1f}{half}", mark


def _cell(part: Section, r: Mapping, measures: Sequence[str], more: Sequence[str]) -> dict:
    """Return a row of the table of every result, ``more`` at its end; a number that was not recorded is empty."""
    means = [float(np.mean(r[name])) if r.get(name) else "" for name in measures]
    numbers = [r["mean"], *(r.get("interval") or ("", "")), *means, len(r["seeds"]), r["run"]]
    return {"texts": [*part.row(r), r["missing"]], "numbers": numbers, "more": more}


def _tests(part: Section, r: Mapping, tests: Sequence[str]) -> dict:
    """Return a row of the table of tests: a result's mean in each."""
    found = [of_test(r, name) for name in tests]
    return {"texts": [*part.row(r), r["missing"]], "numbers": [one["mean"] if one else "" for one in found], "more": []}


def _tested(part: Section) -> str:
    """Say how many speakers or other groups, clips and seeds the table was tested on, by the predictions it has."""
    kept = [r for r in part.results if r.get("predictions") and Path(r["predictions"]).is_file()]
    if not kept:
        return "The predictions of these results are gone: how many speakers were tested is not known."
    most = max(kept, key=lambda r: len(r["seeds"]))
    outcomes = read_outcomes(Path(most["predictions"]))
    kind, unit = units_of(outcomes, outcomes.tested, part.of("split"))
    clips = outcomes.tested.any(0)
    counts = {"units": kind, "n_units": 0 if unit is None else len(np.unique(unit[clips])), "n_clips": int(clips.sum())}
    each = span_text([n for r in part.results for n in r["n_test"]])
    return f"Tested: {units_text(counts | {'seeds': most['seeds']})}; {each} clips a seed."


def _settings_text(part: Section) -> list[str]:
    """Say with which hyper-parameters a table was trained, and how they were chosen."""
    first, *others = map(settings_words, part.results)
    shared = [setting for setting in first if all(setting in other for other in others)]
    several = " Each result has other settings beside these: see all results below." * bool(_own_settings(part))
    tuned = part.results[0].get("tuned")
    how = f" Chosen among {tuned['draws']} draws for each row, by mlemiss tune (run {tuned['run']})." if tuned else ""
    return [f"Settings: {', '.join(shared)}.{how}{several}"]


def _own_settings(part: Section) -> list[str]:
    """Return each result's hyper-parameters that not all results of the table share; nothing where all are."""
    found = [settings_words(r) for r in part.results]
    own = [", ".join(setting for setting in of if not all(setting in other for other in found)) for of in found]
    return own if any(own) else []


def _page(tables: Sequence[dict], parts: Sequence[Section], runs: Sequence[NamedRun], repeats: Sequence) -> str:
    """Return the page: tables by dataset, features and split, then the runs."""
    topics: dict[str, list[dict]] = {}
    for table, part in zip(tables, parts, strict=True):
        topics.setdefault(f"{part.data}, {source_text(part.results[0])}, by {part.of('split')}", []).append(table)
    script = (HERE / "site.js").read_text(encoding="utf-8")
    skipped = [(e["cell"], e["reason"]) for run in runs for e in run.document.get("skipped", [])]
    return render(
        HERE,
        "site.html",
        topics=topics,
        tests=any(table["tests"] for table in tables),
        marks=MARKS,
        run_heads=_heads(["no.", "run", "state"], ["results shown", "seeds"], ["made", "device", "versions"]),
        runs=[_run(run) for run in runs],
        told={"Results that several runs have": repeats, "Skipped combinations": grouped_text(skipped)},
        untrained=any(part.untrained for part in parts),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _run(run: NamedRun) -> dict:
    """Return what is told of a run."""
    results = run.document["results"]
    devices = dict.fromkeys(r["device"] for r in results)
    versions = dict.fromkeys(", ".join(f"{n} {v}" for n, v in r["versions"].items()) for r in results)
    return {
        "id": f"run-{run.number}",
        "number": run.number,
        "texts": [run.number, run.name, run.state],
        "numbers": [len(results), max((len(r["seeds"]) for r in results), default=0)],
        "more": [run.document.get("created") or "–", " and ".join(devices), " and ".join(versions)],
        "command": run.document.get("command") or "–",
    }


def _move(built: Path, folder: Path) -> None:
    """Move a finished folder to its place; an older leaderboard there is put back if that fails, else deleted."""
    if not folder.exists():
        built.rename(folder)
        return
    aside = temporary_beside(folder)
    folder.rename(aside)
    try:
        built.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    remove_tree(aside)
