"""Write one self-contained HTML file of one or more finished runs: it opens offline and prints.

Here are the facts; how they look, and the words around them, are in `templates/report.html`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ...pipeline.console import plain
from ...pipeline.errors import InputError
from ...pipeline.page import render, write_page
from ..evaluate import ACCURACY, MEASURES, Measure, mean_and_std
from .comparisons import (
    compare_methods,
    corrected,
    family_key,
    family_of,
    several_marginals,
    side,
    units_text,
)
from .figures import (
    accuracy_by_confidence,
    accuracy_by_epoch,
    accuracy_by_rate,
    confusion_matrices,
    epochs_before,
    groups,
    tests_crossed,
)
from .matrix import NOTE, matrix_rows, several_tests
from .tables import (
    BY_CLIP,
    Section,
    column_text,
    comparisons_text,
    grouped_text,
    score_text,
    sections,
    settings_words,
    side_row,
    signed_text,
    source_text,
    span_text,
    spread_text,
    worse_text,
)

OPEN_ROWS = 30  # tables longer than this are folded away
OPEN_MATRICES = 4


def load_results(run: Path) -> dict:
    """Read the results of a run's folder or of a results.json. InputError: there are none, or it is another file."""
    path = run / "results.json" if run.is_dir() else run
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        results = document["results"]
    except OSError:
        raise InputError(f"no results at {path}.\nName the folder a `mlemiss train` wrote.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no results file of mlemiss train.\nName the folder it wrote.") from None
    if document.get("schema") != 1:
        raise InputError(f"{path}: expected results of schema 1, found {document.get('schema')!r}.")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise InputError(f"{path} is no results file of mlemiss train.\nName the folder it wrote.")
    if document.get("exhibit") == "tune":
        raise InputError(f"{path} holds draws of `mlemiss tune`, which are no results.\nSee tune.html beside it.")
    if not results:
        raise InputError(f"{path} holds no finished result yet.\nWait for the training, or run it again.")
    return document


def load_run(run: Path) -> dict:
    """Read the results of a run as `load_results` does, the paths of their predictions made absolute."""
    document = load_results(run)
    folder = (run if run.is_dir() else run.parent).absolute()
    for result in document["results"]:
        if result.get("predictions"):
            result["predictions"] = str(folder / result["predictions"])
    return document


def compare_documents(documents: Sequence[dict]) -> list[dict]:
    """Make the paired comparisons between all results of documents as `load_run` gives them.

    Comparisons of results whose predictions are gone are those that the runs themselves recorded, with an entry
    ``recorded`` True; Holm's correction is over all. InputError: a damaged predictions file.
    """
    together = [result for section in sections(documents) for result in section.results]
    entries = {_pair(entry): entry for entry in compare_methods(together, Path())}
    for document in documents:
        for entry in _recorded(document, together):
            entries.setdefault(_pair(entry), entry)
    return corrected(list(entries.values()))


def _pair(entry: dict) -> tuple:
    """Return what a comparison is between, in either order."""
    return family_key(entry), entry["missing"], frozenset(json.dumps(entry[s], sort_keys=True) for s in ("a", "b"))


def _recorded(document: dict, together: Sequence[dict]) -> list[dict]:
    """Return a document's own comparisons of results in the report where the predictions of one are gone."""
    families: dict[str, list[dict]] = {}
    for result in together:
        families.setdefault(family_key(result), []).append(result)
    several = {key: several_marginals(results) for key, results in families.items()}
    in_report = {id(result) for result in together}
    own: dict[tuple, list[dict]] = {}
    for result in document["results"]:
        own.setdefault((result["missing"], result["method"], result["fusion"]), []).append(result)
    found = []
    for entry in document.get("comparisons", []):
        # What an entry has of its results' family, and of a marginal, must agree: not every version recorded all.
        pair = [
            next((r for r in own.get((entry["missing"], s["method"], s["fusion"]), []) if _is_of(entry, s, r)), None)
            for s in (entry["a"], entry["b"])
        ]
        if all(id(r) in in_report for r in pair) and not all(_has_predictions(r) for r in pair):
            a, b = (side(r, several[family_key(r)]) for r in pair)
            found.append(entry | family_of(pair[0]) | {"a": a, "b": b, "recorded": True})
    return found


def _is_of(entry: dict, named: dict, result: dict) -> bool:
    """Tell whether a result is the one that a side of a recorded comparison names."""
    family = family_of(result)
    return named.get("marginal", result.get("marginal")) == result.get("marginal") and all(
        entry[name] == value for name, value in family.items() if name in entry
    )


def _has_predictions(result: dict) -> bool:
    return bool(result.get("predictions")) and Path(result["predictions"]).is_file()


def write_report(documents: Sequence[dict], out: Path, comparisons: Sequence[dict] | None = None) -> None:
    """Write the report of one or more results documents to the file ``out``.

    comparisons: between all of their results, as `runs.load_runs` gives them; by default those the documents record.
    """
    write_page(render_report(documents, comparisons), out)


def render_report(documents: Sequence[dict], comparisons: Sequence[dict] | None = None) -> str:
    """Return the whole page; arguments as for `write_report`."""
    if comparisons is None:
        comparisons = [entry for document in documents for entry in document.get("comparisons", [])]
    documents, comparisons = plain(documents), plain(comparisons)
    parts = sections(documents)
    skipped = [(entry["cell"], entry["reason"]) for document in documents for entry in document.get("skipped", [])]
    facts = {
        "headline": "; ".join(dict.fromkeys(f"{part.data}, {part.of('features')}" for part in parts)),
        "untrained": any(part.untrained for part in parts),
        "beside_the_paper": [_beside_the_paper(d["compared"]) for d in documents if d.get("compared")],
        "facts": _facts(documents, parts),
        "sections": [_section(part, part.compared(comparisons)) for part in parts],
        "skipped": grouped_text(skipped),
        "tests_note": NOTE,
    }
    return render(Path(__file__).parent / "templates", "report.html", **facts)


def _beside_the_paper(compared: dict) -> dict:
    """Return our numbers and the paper's, and what ours ran on: loud where that is not what the paper used."""
    columns = list(dict.fromkeys(cell["missing"] for cell in compared["cells"]))
    rows: dict[tuple, dict[str, str]] = {}
    for cell in compared["cells"]:
        text = score_text(cell)
        if cell["paper"] is not None:
            text += f" ({cell['paper']:.2f}, {cell['difference']:+.1f})"
        key = (f"by {cell['split']}", cell["features"], cell["method"], cell["fusion"])
        rows.setdefault(key, {})[cell["missing"]] = text
    return {
        "title": compared["title"],
        "ran_on": [(line, bool(re.search(r"[A-Z]{5}", line))) for line in compared["ran_on"]],
        "names": ["split", "features", "method", "fusion", *(f"missing {name}" for name in columns)],
        "rows": [[*key, *(values.get(name, "–") for name in columns)] for key, values in rows.items()],
        "paper": compared["paper"],
        "left_out": compared["left_out"],
    }


def _facts(documents: Sequence[dict], parts: Sequence[Section]) -> dict[str, list[str]]:
    """Return what was run: everything a reader needs to judge or repeat the numbers."""
    results, firsts = [r for part in parts for r in part.results], [part.results[0] for part in parts]
    given = [f for r in results for f in (r.get("given") or {}).items()]
    facts = {
        "Data": [part.data for part in parts],
        "Features": [
            source_text(r) + f", hash {r.get('weights_hash')}" * (not r.get("joined")) + f", store {r['store']}"
            for r in firsts
        ],
        "Joined": [
            f"{name}: {one['features']}, hash {one['weights_hash']}, store {one['store']}, revision {one['revision']}"
            for r in firsts
            for name, one in (r.get("joined") or {}).items()
        ],
        "Split": [
            f"by {split}" + f" ({BY_CLIP})" * (split == "clip") for split in (part.of("split") for part in parts)
        ],
        "Missing in training": [", ".join(dict.fromkeys(r["missing"] for r in results))],
        "Missing in test": [", ".join(r.get("missing_tests") or [r["missing_test"]]) for r in firsts],
        "Given files": [f"{kind} {file['file']}, sha256 {file['sha256'][:12]}" for kind, file in given],
        "Seeds": [", ".join(map(str, r["seeds"])) for r in results],
        "Clips": [f"{span_text(r['n_train'])} training, {span_text(r['n_test'])} test" for r in results],
        "Tuned": [
            f"{t['draws']} draws for each row on seeds {', '.join(map(str, t['seeds']))} (`mlemiss tune`, {t['run']})"
            for r in results
            if (t := r.get("tuned"))
        ],
        "Settings": [", ".join(settings_words(r)) for r in results],
        "Selection": ["weights of the best validation epoch of each run; the test clips choose nothing"],
        "Command": [d["command"] for d in documents if d.get("command")],
        "Date": [d["created"] for d in documents if d.get("created")],
        "Device": [r["device"] for r in results],
        "Versions": [", ".join(f"{n} {v}" for n, v in r["versions"].items()) for r in results],
    }
    return {name: list(dict.fromkeys(values)) for name, values in facts.items()}


def _section(part: Section, compared: Sequence[dict]) -> dict:
    """Return the facts of one table: scores, cells, figures and comparisons."""
    lines = groups(part)
    return {
        "title": part.title,
        "columns": [column_text(missing) for missing in part.columns],
        "methods": _scores(part),
        "notes": part.notes() + worse_text(part, compared),
        "cells": [_cell(part, result) for result in part.results],
        "measures": [
            (measure.name, _scores(part, measure))
            for measure in MEASURES.values()
            if measure != ACCURACY and any(map(measure.of, part.results))
        ],
        "seeds": [_seeds(part, result) for result in part.results],
        "cells_open": len(part.results) <= OPEN_ROWS,
        "rates": [svg for each in lines if (svg := accuracy_by_rate(part, each))],
        "reliability": [(each.title, svg) for each in lines if (svg := accuracy_by_confidence(part, each))],
        "epochs": [(each.title, svg) for each in lines if (svg := accuracy_by_epoch(part, each))],
        "epochs_before": any(map(epochs_before, part.results)),
        "tests": _crossed(part) if any(r.get("tests") for r in part.results) else None,
        "confusions": [(column_text(missing), confusion_matrices(part, missing)) for missing in part.columns],
        "confusions_open": len(part.rows) <= OPEN_MATRICES,
        "comparisons": _comparisons(part, compared) if compared else None,
    }


def _crossed(part: Section) -> dict:
    """Return the tests of each training, where it has several: a picture and a table."""
    names = ["method", "fusion", "training", *(f"test {column_text(test)}" for test in several_tests(part))]
    return {"svg": tests_crossed(part), "names": names, "rows": matrix_rows(part)}


def _scores(part: Section, measure: Measure = ACCURACY) -> list[list[tuple[tuple[str, str], list[tuple[str, bool]]]]]:
    """Return the rows of each method: its fusions' scores, column by column, and whether each is the best there."""
    best = {missing: part.best(missing, measure) for missing in part.columns}
    methods: dict[str, list] = {}
    for row in part.rows:
        scores = [(score_text(part.cell(*row, missing), measure), row in best[missing]) for missing in part.columns]
        methods.setdefault(row[0], []).append((row, scores))
    return list(methods.values())


def _cell(part: Section, result: dict) -> list[str]:
    values = [*part.row(result), result["missing"], score_text(result), _interval_text(result.get("interval"))]
    for name in ("macro_f1", "uar"):
        values += [spread_text(*mean_and_std(result[name])), _interval_text(result.get(f"{name}_interval"))]
    values += [score_text(result, MEASURES[name]) for name in ("weighted-f1", "nll", "ece")]
    values += [spread_text(*mean_and_std(result["val_accuracy"])), span_text(result["n_complete"])]
    epochs = result["epochs"]
    return [*values, f"{epochs} ({epochs + epochs_before(result)})", f"{result['seconds']:.1f}"]


def _seeds(part: Section, result: dict) -> list[str]:
    scores = ", ".join(f"{score:.1f}" for score in result["test_accuracy"])
    return [*part.row(result), result["missing"], scores, ", ".join(map(str, result["best_epoch"]))]


def _comparisons(part: Section, compared: Sequence[dict]) -> dict:
    """Return the paired comparisons; where they are many, also a square of differences for each missing spec."""
    rows = []
    for c in compared:
        interval = " to ".join(map(signed_text, c["interval"])) if c["interval"] else "–"
        p = ["–", "no verdict"] if c["verdict"] is None else [f"{c['p']:.2g}", f"{c['p_holm']:.2g}"]
        values = [c["missing"], *(", ".join(side_row(c[s])) for s in ("a", "b")), signed_text(c["difference"])]
        rows.append([*values, interval, *p, units_text(c)])
    squares = [] if len(rows) <= OPEN_ROWS else [_square(part, missing, compared) for missing in part.columns]
    return {
        "notes": comparisons_text(compared),
        "rows": rows,
        "hold": [i for i, c in enumerate(compared) if c["verdict"]],
        "squares": [square for square in squares if square["rows"]],
    }


def _square(part: Section, missing: str, compared: Sequence[dict]) -> dict:
    """Return row minus column, for one missing spec; columns are numbered as the rows are. A ? is without a verdict."""
    cells: dict[tuple, tuple[str, bool]] = {}
    here = [c for c in compared if c["missing"] == missing]
    for c in here:
        a, b, unknown = side_row(c["a"]), side_row(c["b"]), "?" * (c["verdict"] is None)
        cells[a, b] = signed_text(c["difference"]) + unknown, bool(c["verdict"])
        cells[b, a] = signed_text(-c["difference"]) + unknown, bool(c["verdict"])
    rows = [row for row in part.rows if any(row in pair for pair in cells)]
    alone = len({fusion for _, fusion in part.rows}) == 1
    names = [method if alone else f"{method}, {fusion}" for method, fusion in rows]
    differences = [[cells.get((row, column), ("", False)) for column in rows] for row in rows]
    told = "; ".join(dict.fromkeys(map(units_text, here))) + "; ? has no verdict" * any(
        c["verdict"] is None for c in here
    )
    return {"missing": column_text(missing), "told": told, "rows": list(zip(names, differences, strict=True))}


def _interval_text(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
