"""Results for other programs and for papers: results.csv, comparisons.csv and results.tex."""

import csv
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .comparisons import family_of
from .tables import Section, missing_text, score_text, sections

TABLE = ("dataset", "features", "store", "split", "missing_test")
CELL = ("dataset", "features", "store", "weights", "split", "missing_test", "method", "fusion", "missing", "marginal")
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
}


def write_csv(documents: Sequence[dict], comparisons: Sequence[dict], folder: Path) -> list[Path]:
    """Write results.csv, a row a cell, and comparisons.csv, a row a pair, into ``folder``; returns their paths.

    Accuracies, F1 and recalls are percentages, differences percentage points. Lists over seeds are separated by
    spaces; what does not exist (the deviation of one seed) is empty.
    """
    results = [result for section in sections(documents) for result in section.results]
    return [
        _write_rows(folder / "results.csv", map(_result_row, results)),
        _write_rows(folder / "comparisons.csv", map(_comparison_row, comparisons)),
    ]


def _result_row(r: dict) -> dict:
    row = {name: r.get(name) for name in CELL} | {"mean": r["mean"], "std": r["std"]}
    row["low"], row["high"] = r.get("interval") or (None, None)
    for name in ("macro_f1", "uar", "val_accuracy"):
        row[name] = statistics.fmean(r[name])
        row[f"{name}_std"] = statistics.stdev(r[name]) if len(r[name]) > 1 else None
        if name != "val_accuracy":
            row[f"{name}_low"], row[f"{name}_high"] = r.get(f"{name}_interval") or (None, None)
    row |= {"epochs": r["epochs"], "total_epochs": r.get("total_epochs"), "seconds": r["seconds"]}
    lists = ("seeds", "test_accuracy", "n_train", "n_complete", "n_test", "best_epoch")
    return row | {name: " ".join(map(str, r[name])) for name in lists} | _told_apart(r)


def _comparison_row(c: dict) -> dict:
    row = {name: c[name] for name in TABLE} | {"missing": c["missing"]}
    for side in ("a", "b"):
        row |= {f"{side}_{name}": c[side].get(name) for name in ("method", "fusion", "marginal")}
    row |= {"difference": c["difference"], "low": c["interval"][0], "high": c["interval"][1]}
    row |= {name: c[name] for name in ("p", "p_holm", "units", "n_units", "n_clips")}
    return row | {"seeds": " ".join(map(str, c["seeds"]))} | _told_apart(c)


def _told_apart(described: dict) -> dict:
    """What else sets the tables of several runs apart: revision of the store, given files, hyper-parameters."""
    family = family_of(described)
    given = " ".join(f"{kind}:{f['file']}:{f['sha256'][:12]}" for kind, f in (family["given"] or {}).items())
    return {"revision": family["revision"], "given": given} | family["settings"] | _end_to_end(family)


def _end_to_end(family: Mapping) -> dict:
    return {f"end_to_end_{name}": value for name, value in (family["end_to_end"] or {}).items()}


COMPARISON_COLUMNS = (*TABLE, "missing", "a_method", "a_fusion", "a_marginal", "b_method", "b_fusion", "b_marginal")
COMPARISON_COLUMNS += ("difference", "low", "high", "p", "p_holm", "units", "n_units", "n_clips", "seeds")


def _write_rows(path: Path, rows: Iterable[dict]) -> Path:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        names = dict.fromkeys(name for row in rows for name in row) or COMPARISON_COLUMNS
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_latex(documents: Sequence[dict], folder: Path) -> Path:
    """Write results.tex into ``folder``: a table a section, for a document that uses booktabs; returns its path."""
    path = folder / "results.tex"
    path.parent.mkdir(parents=True, exist_ok=True)
    tables = "\n".join(map(_latex_table, sections(documents)))
    path.write_text(f"% \\usepackage{{booktabs}}; the best mean of each column is bold\n{tables}", encoding="utf-8")
    return path


def _latex_table(section: Section) -> str:
    best = {missing: section.best(missing) for missing in section.columns}
    lines, before = [], None
    for method, fusion in section.rows:
        scores = [_latex_score(section, (method, fusion), missing, best[missing]) for missing in section.columns]
        if before is not None and before != method and len(section.rows) > len({m for m, _ in section.rows}):
            lines.append(r"\addlinespace")
        lines.append(" & ".join([latex_text(method), latex_text(fusion), *scores]) + r" \\")
        before = method
    heads = [missing_text(missing).rpartition(" ") for missing in section.columns]  # on two lines, or it grows wide
    above = " & ".join(["", "", *(latex_text(first) for first, _, _ in heads)])
    head = " & ".join(["method", "fusion", *(latex_text(last) for _, _, last in heads)])
    caption = latex_text(" ".join([section.title + ".", *section.notes()]))
    words = [*(getattr(section, name) for name in TABLE), *filter(None, [section.apart])]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-")
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\label{{tab:{name}}}\n"
        f"\\begin{{tabular}}{{ll{'r' * len(section.columns)}}}\n\\toprule\n{above} \\\\\n{head} \\\\\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _latex_score(section: Section, row: tuple[str, str], missing: str, best: Sequence[tuple[str, str]]) -> str:
    text = latex_text(score_text(section.cell(*row, missing)))
    return f"\\textbf{{{text}}}" if row in best else text


def latex_text(text: str) -> str:
    """Plain text as LaTeX that compiles: every character that means something to TeX is escaped."""
    return "".join(LATEX.get(character, character) for character in text)
