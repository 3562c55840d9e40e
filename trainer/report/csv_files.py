"""Write results and comparisons as CSV files."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...pipeline.console import plain
from ...pipeline.files import write_csv
from .comparisons import current, family_of
from .tables import SETTING, sections

NAMES = ("dataset", "features", "store", "weights", "split", "missing_test", "method", "fusion", "missing")


def export_csv(documents: Sequence[dict], comparisons: Sequence[dict], folder: Path) -> list[Path]:
    """Write results.csv, a row a cell, and comparisons.csv, a row a pair, into ``folder``; return their paths.

    Accuracies, F1, recalls and ECE are percentages, NLL is in nats, differences percentage points. Lists over seeds are
    separated by spaces; what does not exist (the deviation of one seed, a measure that an earlier version did not
    record) is empty. Where trainings have several tests, tests.csv has a row a cell and test.
    """
    results = [result for section in sections(plain(documents)) for result in section.results]
    tables = {"results.csv": [result_row(r) for r in results]}
    tables["comparisons.csv"] = [comparison_row(c) for c in map(current, plain(comparisons))]
    if several := [row for r in results for row in test_rows(r)]:
        tables["tests.csv"] = several
    for name, rows in tables.items():
        write_rows(folder / name, rows)
    return [folder / name for name in tables]


def write_rows(path: Path, rows: Sequence[Mapping]) -> None:
    """Write rows as a CSV file with every column that any of them has; of no row, those of comparisons."""
    header = list(dict.fromkeys(column for row in rows for column in row)) or COMPARISON_COLUMNS
    write_csv(path, header, ([row.get(column) for column in header] for row in rows))


def result_row(r: Mapping) -> dict:
    """Return a result as a row of results.csv."""
    row = {name: r.get(name) for name in (*NAMES, "marginal")} | _measured(r)
    row["val_accuracy"] = statistics.fmean(r["val_accuracy"])
    row["val_accuracy_std"] = statistics.stdev(r["val_accuracy"]) if len(r["val_accuracy"]) > 1 else None
    row |= {"epochs": r["epochs"], "total_epochs": r.get("total_epochs"), "seconds": r["seconds"]}
    lists = ("seeds", "test_accuracy", "n_train", "n_complete", "n_test", "best_epoch")
    row["n_labelled"] = " ".join(map(str, r.get("n_labelled", r["n_train"])))  # none was missing before they could be
    row |= {name: " ".join(map(str, r[name])) for name in lists} | _family_columns(r)
    return row | {name: value for name, value in r["settings"].items() if name != "marginal"}  # tuned ones, too


def test_rows(r: Mapping) -> list[dict]:
    """Return a result as rows of tests.csv, one for each of several tests."""
    same = {name: r.get(name) for name in (*NAMES, "marginal")}
    seeds = {"seeds": " ".join(map(str, r["seeds"]))}
    return [
        same | {"missing_test": test["missing_test"], "validation_lacks": r["missing_test"]} | _measured(test) | seeds
        for test in r.get("tests", ())
    ]


def _measured(scores: Mapping) -> dict:
    """Return mean, deviation and interval of each measure of test clips."""
    row = {"mean": scores["mean"], "std": scores["std"]}
    row["low"], row["high"] = scores.get("interval") or (None, None)
    for name in ("macro_f1", "uar", "weighted_f1", "nll", "ece"):
        values = scores.get(name, ())
        row[name] = statistics.fmean(values) if values else None
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        row[f"{name}_low"], row[f"{name}_high"] = scores.get(f"{name}_interval") or (None, None)
    return row


def comparison_row(c: Mapping) -> dict:
    """Return a comparison as a row of comparisons.csv."""
    low, high = c["interval"] or (None, None)
    sides = {f"{s}_{name}": c[s].get(name) for s in ("a", "b") for name in ("method", "fusion", "marginal")}
    values = dict(c) | sides | {"low": low, "high": high, "seeds": " ".join(map(str, c["seeds"]))}
    return {name: values[name] for name in COMPARISON_COLUMNS} | _family_columns(c)


COMPARISON_COLUMNS = (*SETTING, "missing", "a_method", "a_fusion", "a_marginal", "b_method", "b_fusion", "b_marginal")
COMPARISON_COLUMNS += (
    "difference",
    "low",
    "high",
    "df",
    "p",
    "p_holm",
    "verdict",
    "reason",
    "units",
    "n_units",
    "n_clips",
    "seeds",
)


def _family_columns(described: Mapping) -> dict:
    """Return what else sets the tables of several runs apart: the store's revision, given files, hyper-parameters."""
    family = family_of(described)
    given = " ".join(f"{kind}:{f['file']}:{f['sha256'][:12]}" for kind, f in (family["given"] or {}).items())
    trained = {f"end_to_end_{name}": value for name, value in (family["end_to_end"] or {}).items()}
    settings = {name: json.dumps(value) if name == "tuned" else value for name, value in family["settings"].items()}
    return {"revision": family["revision"], "given": given} | settings | trained
