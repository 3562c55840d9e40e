"""Cross what training lacks with what test clips lack: the tests of each training, where it has several."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from ...pipeline.console import plain
from .tables import Section, column_text, score_text, sections

NOTE = (
    "One training a row, tested on the same clips with more or less missing. All other tables and figures are of the "
    "first test, whose missing modalities validation clips lack, too, as they choose the epoch."
)


def several_tests(section: Section) -> list[str]:
    """Return what test clips lack, test by test, in the order asked for; empty where trainings have one test each."""
    return list(dict.fromkeys(test["missing_test"] for r in section.results for test in r.get("tests", ())))


def of_test(result: Mapping, missing_test: str) -> dict | None:
    """Return what results record of one test; None where there was none such."""
    return next((test for test in result.get("tests", ()) if test["missing_test"] == missing_test), None)


def matrix(section: Section, row: tuple[str, str]) -> np.ndarray:
    """Return a row's mean accuracies by what training lacks (rows) and test clips lack (columns), NaN without any."""
    cells = [section.cell(*row, missing) for missing in section.columns]
    found = [[of_test(cell, test) if cell else None for test in several_tests(section)] for cell in cells]
    return np.array([[test["mean"] if test else np.nan for test in tests] for tests in found], float)


def matrix_rows(section: Section) -> list[list[str]]:
    """Return method, fusion, what training lacks, then a score for each test, of every result."""
    tests = several_tests(section)
    return [
        [*section.row(r), column_text(r["missing"]), *(score_text(of_test(r, test)) for test in tests)]
        for row in section.rows
        for r in section.results
        if section.row(r) == row
    ]


def print_matrices(document: dict, console: Console | None = None) -> None:
    """Print the tests of each training, of tables that have several."""
    console = console or Console()
    if not console.is_terminal:
        console.width = 160
    for section in sections([plain(document)]):
        if tests := several_tests(section):
            table = Table()
            for place, head in enumerate(["method", "fusion", "training", *(f"test\n{column_text(t)}" for t in tests)]):
                table.add_column(head, justify="left" if place < 3 else "right", overflow="fold")
            before: Sequence[str] = ()
            for row in matrix_rows(section):
                if before and row[:2] != before:
                    table.add_section()
                table.add_row(*(["", ""] if row[:2] == before else row[:2]), *row[2:])
                before = row[:2]
            console.print(f"\n{section.title}: tests", style="italic", markup=False, highlight=False)
            console.print(table, markup=False)
            console.print(NOTE, markup=False, highlight=False)
