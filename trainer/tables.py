"""Results as tables: rows are methods and fusions, columns what is missing. Terminal and report share them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Section:
    """Results that stand in one table: same data, features, weights, split and test condition."""

    dataset: str
    features: str
    store: str
    weights: str | None
    split: str
    missing_test: str
    results: tuple[dict, ...]

    @property
    def columns(self) -> list[str]:
        """Missing specs, in the order they were asked for."""
        return list(dict.fromkeys(r["missing"] for r in self.results))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Method and fusion, in the order they were asked for."""
        return list(dict.fromkeys((r["method"], r["fusion"]) for r in self.results))

    def cell(self, method: str, fusion: str, missing: str) -> dict | None:
        """The result of one cell; None where the combination was skipped or has not run."""
        for result in self.results:
            if (result["method"], result["fusion"], result["missing"]) == (method, fusion, missing):
                return result
        return None

    @property
    def title(self) -> str:
        return f"{self.data}, {self.features} features ({weights_text(self.weights)})"

    @property
    def data(self) -> str:
        """The dataset's name, loud where its clips are drawn ones."""
        return f"{self.dataset} (SYNTHETIC clips)" if self.results[0].get("synthetic") else self.dataset

    def notes(self) -> list[str]:
        """What must be said beside these numbers."""
        seeds = sorted({len(r["seeds"]) for r in self.results})
        number = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
        tests = sorted({n for r in self.results for n in r["n_test"]})
        clips = " to ".join(map(str, dict.fromkeys([tests[0], tests[-1]])))
        lines = [
            f"Test accuracy in percent of clips, mean ± standard deviation of {number} seed(s), {clips} test clips."
        ]
        if self.weights == "random":
            lines.append("RANDOM WEIGHTS: these features come from networks that were never trained.")
        if self.split == "clip":
            lines.append("Split by clip: training and test clips share speakers, so this says nothing of new speakers.")
        else:
            lines.append(f"Split by {self.split}: no {self.split} is in both training and test clips.")
        if self.missing_test != "none":
            lines.append(f"Validation and test clips lack {self.missing_test} too.")
        return lines


def weights_text(weights: str | None) -> str:
    """How weights are named beside a number; those that were never trained are loud."""
    if weights is None:
        return "weights not recorded"
    return "RANDOM weights, never trained" if weights == "random" else f"{weights} weights"


def sections(documents: Sequence[dict]) -> list[Section]:
    """The results of one or more results documents, table by table; of a cell run twice the later one stands."""
    tables: dict[tuple, dict[tuple, dict]] = {}
    for document in documents:
        for r in document["results"]:
            key = tuple(r[name] for name in ("dataset", "features", "store", "weights", "split", "missing_test"))
            tables.setdefault(key, {})[r["method"], r["fusion"], r["missing"]] = r
    return [Section(*key, tuple(cells.values())) for key, cells in tables.items()]


def score_text(result: dict | None) -> str:
    """``71.3 ± 2.1``; without a deviation for one seed, a dash for no result."""
    if result is None:
        return "–"
    return f"{result['mean']:.1f}" + ("" if result["std"] is None else f" ± {result['std']:.1f}")


def results_table(section: Section) -> Table:
    """One section as a table for the terminal."""
    table = Table(title=section.title, caption="\n".join(section.notes()), caption_justify="left", title_justify="left")
    table.add_column("method", overflow="fold")
    table.add_column("fusion", overflow="fold")
    for missing in section.columns:
        head = "complete" if missing == "none" else f"missing\n{missing}"
        table.add_column(head, justify="right", overflow="fold")  # folded, never cut, in a narrow terminal
    for method, fusion in section.rows:
        table.add_row(method, fusion, *(score_text(section.cell(method, fusion, m)) for m in section.columns))
    return table


def print_results(document: dict, console: Console | None = None) -> None:
    """All tables of a results document, to standard output unless a console is given."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = 160  # a file or a pipe has no width of its own
    for section in sections([document]):
        console.print(results_table(section))
