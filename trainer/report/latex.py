"""Write results as LaTeX tables."""

import re
from collections.abc import Sequence
from pathlib import Path

from ...pipeline.console import plain
from ...pipeline.files import whole_file
from ..evaluate import ACCURACY, MEASURES, Measure
from .tables import SETTING, Section, column_text, score_text, sections

LATEX = str.maketrans(
    {character: f"\\{character}" for character in "{}%_&#$"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}"}
    | {">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "–": "--", "−": "$-$"}
)


def export_latex(documents: Sequence[dict], folder: Path, measures: Sequence[str] = ("accuracy",)) -> Path:
    """Write results.tex into ``folder``: tables for a document that uses booktabs; return its path.

    A section has a table for each of the measures (of MEASURES).
    """
    parts = sections(plain(documents))
    tables = "\n".join(_latex_table(part, name) for part in parts for name in dict.fromkeys(measures))
    with whole_file(folder / "results.tex", "w") as file:
        file.write(f"% \\usepackage{{booktabs}}; the best mean of each column is bold\n{tables}")
    return folder / "results.tex"


def _latex_table(section: Section, name: str) -> str:
    columns, rows, measure = section.columns, section.rows, MEASURES[name]
    several = len(rows) > len({method for method, _ in rows})
    lines = []
    for i, row in enumerate(rows):
        scores = [_latex_score(section, row, missing, measure) for missing in columns]
        apart = "\\addlinespace\n" if several and i and rows[i - 1][0] != row[0] else ""
        lines.append(apart + " & ".join([*map(latex_text, row), *scores]) + r" \\")
    heads = [column_text(missing).rpartition(" ") for missing in columns]  # on two lines, or it grows wide
    above = " & ".join(["", "", *(latex_text(first) for first, _, _ in heads)])
    head = " & ".join(["method", "fusion", *(latex_text(last) for _, _, last in heads)])
    caption = latex_text(" ".join([section.title + ".", *section.notes(measure=measure)]))
    words = [*map(section.of, SETTING), *filter(None, [section.apart])]
    words += [name] * (measure is not ACCURACY)
    label = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-")
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\label{{tab:{label}}}\n"
        f"\\begin{{tabular}}{{ll{'r' * len(columns)}}}\n\\toprule\n{above} \\\\\n{head} \\\\\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _latex_score(section: Section, row: tuple[str, str], missing: str, measure: Measure) -> str:
    text = latex_text(score_text(section.cell(*row, missing), measure))
    return f"\\textbf{{{text}}}" if row in section.best(missing, measure) else text


def latex_text(text: str) -> str:
    """Write plain text as LaTeX that compiles: every character that means something to TeX is escaped."""
    return text.translate(LATEX)
