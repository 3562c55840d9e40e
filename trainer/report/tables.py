"""Arrange results in tables: rows are methods and fusions, columns what is missing.

The terminal, the report and LaTeX files share them.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ...pipeline.console import plain
from ...pipeline.encoders import are_random
from ...pipeline.files import whole_file
from .comparisons import current, family_key, family_of, several_marginals, side, units_text

NAMED = 3  # of the combinations that share a reason
SETTING = ("dataset", "features", "store", "split", "missing_test")  # of results and comparisons
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "{}%_&#$"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}"}
    | {">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "–": "--", "−": "$-$"}
)


@dataclass(frozen=True)
class Section:
    """Results of one table: same data, features, weights, split, test condition and hyper-parameters.

    apart: what sets it apart from the other tables of the same data, "" where there are none.
    """

    results: tuple[dict, ...]
    apart: str = ""

    @property
    def columns(self) -> list[str]:
        """Return the missing specs, in the order they were asked for."""
        return list(dict.fromkeys(r["missing"] for r in self.results))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Return methods and fusions, in the order they were asked for."""
        return list(dict.fromkeys(map(self.row, self.results)))

    @cached_property
    def several(self) -> set[str]:
        """Return the methods that have several marginals here."""
        return several_marginals(self.results)

    def row(self, result: Mapping) -> tuple[str, str]:
        """Return the row of a result: its method, with the marginal where there are several of it, and fusion."""
        return side_row(side(result, self.several))

    def cell(self, method: str, fusion: str, missing: str) -> dict | None:
        """Return the result of one cell; None where the combination was skipped or has not run."""
        for result in self.results:
            if result["missing"] == missing and self.row(result) == (method, fusion):
                return result
        return None

    def best(self, missing: str) -> list[tuple[str, str]]:
        """Return the rows of the highest mean of a column as it is printed: several where they print alike."""
        cells = [r for r in self.results if r["missing"] == missing]
        highest = max(round(r["mean"], 1) for r in cells)
        return [self.row(r) for r in cells if round(r["mean"], 1) == highest]

    def compared(self, comparisons: Sequence[dict]) -> list[dict]:
        """Return those of the paired comparisons that belong to this table."""
        own = family_key(self.results[0])
        return [current(c) for c in comparisons if family_key(c) == own]

    def of(self, name: str) -> str:
        """Return what all results of the table have in common under this name, such as ``split``."""
        return self.results[0][name]

    @property
    def title(self) -> str:
        """Return what the table is of, and what sets it apart."""
        apart = f": {self.apart}" if self.apart else ""
        return f"{self.data}, {source_text(self.results[0])}{apart}"

    @property
    def untrained(self) -> bool:
        """Return whether the features come from networks that were never trained."""
        trained = self.results[0].get("end_to_end") and not self.results[0]["end_to_end"]["frozen"]
        return are_random(self.of("weights")) and not trained

    @property
    def data(self) -> str:
        """Return the dataset's name, loud where its clips are drawn ones."""
        return f"{self.of('dataset')} (SYNTHETIC clips)" if self.results[0].get("synthetic") else self.of("dataset")

    def notes(self, compared: Sequence[dict] = ()) -> list[str]:
        """Say what must stand beside these numbers; compared: this table's comparisons, which know of speakers."""
        seeds = [len(r["seeds"]) for r in self.results]
        spread = "one seed" if max(seeds) == 1 else f"mean ± standard deviation of {span_text(seeds)} seeds"
        clips = span_text([n for r in self.results for n in r["n_test"]])
        return [f"Test accuracy in percent of clips, {spread}, {clips} test clips.", *self.conditions(compared)]

    def conditions(self, compared: Sequence[dict] = ()) -> list[str]:
        """Say under which conditions these numbers hold; arguments as for `notes`."""
        lines = []
        if self.untrained:
            lines.append("RANDOM WEIGHTS: these features come from networks that were never trained.")
        split, lacking_too = self.of("split"), self.of("missing_test")
        if split == "clip":
            lines.append(f"Split by clip: {by_clip_text(compared)}, so this says nothing of new speakers.")
        elif not split.startswith("given:"):
            lines.append(f"Split by {split}: no {split} is in both training and test clips.")
        files = {(kind, f["file"]): None for r in self.results for kind, f in (r.get("given") or {}).items()}
        for kind, name in files:
            speakers = ": whether training and test clips share speakers is up to that file" if kind == "splits" else ""
            lines.append(f"{kind.capitalize()} given by {name}{speakers}.")
        whole = [r for r in self.results if r["missing"] == "none"]
        if lacking := max((max(np.subtract(r["n_train"], r["n_complete"])) for r in whole), default=0):
            lines.append(f"Complete is as the data are: {lacking} training clips lack a modality by themselves.")
        unlabelled = {r["missing"]: r for r in self.results if r.get("n_labelled", r["n_train"]) != r["n_train"]}
        for missing, r in unlabelled.items():
            counts = [f"{span_text(r[f'n_{name}'])} {name}" for name in ("labelled", "complete")]
            lines.append(
                f"Missing {missing}: of {span_text(r['n_train'])} training clips {' and '.join(counts)}. A method that "
                f"has no likelihood of clips without a label trains on the labelled ones."
            )
        if lacking_too != "none":
            lines.append(f"Validation and test clips lack {lacking_too} too.")
        return lines


def by_clip_text(compared: Sequence[dict]) -> str:
    """Say what a split by clip does to speakers; only comparisons that resampled speakers know of them."""
    if any(entry["units"] == "subject" for entry in compared):
        return "training and test clips share speakers"
    return "clips of one speaker may be in both training and test"


def source_text(result: Mapping) -> str:
    """Say what a result was trained on: cached features, or media end to end."""
    options = result.get("end_to_end")
    if not options:
        return f"{result['features']} features ({weights_text(result['weights'])})"
    if options["frozen"]:
        return f"{result['features']} end to end, frozen ({weights_text(result['weights'])})"
    return f"{result['features']} trained end to end ({weights_text(result['weights'], trained=True)})"


def weights_text(weights: str | None, trained: bool = False) -> str:
    """Name weights beside a number, loud where they were never trained. trained: on from these."""
    if trained:
        return f"from {weights} weights"
    if weights is None:
        return "weights not recorded"
    some = ", the RANDOM ones never trained" * are_random(weights)
    return "RANDOM weights, never trained" if weights == "random" else f"{weights} weights{some}"


def sections(documents: Sequence[dict]) -> list[Section]:
    """Arrange the results of one or more documents, table by table; of a cell run twice the later result counts."""
    tables: dict[tuple, dict[tuple, dict]] = {}
    for document in documents:
        for r in document["results"]:
            cell = (r["method"], r["fusion"], r["missing"], r.get("marginal"))
            tables.setdefault((r["weights"], family_key(r)), {})[cell] = r
    groups = [tuple(cells.values()) for cells in tables.values()]
    firsts = [results[0] for results in groups]
    return [Section(results, _apart(results[0], firsts)) for results in groups]


def _apart(first: Mapping, firsts: Sequence[Mapping]) -> str:
    """Say what of a table's first result is not so in all tables of the same data, features and weights.

    The split is named wherever tables of any data differ in it.
    """
    same = [r for r in firsts if all(r[name] == first[name] for name in ("dataset", "features", "weights"))]
    facts, *others = [_facts(r) for r in [first, *same]]
    differ = [text for name, text in facts.items() if any(other.get(name) != text for other in others)]
    split = [f"by {first['split']}"] if len({r["split"] for r in firsts}) > 1 else []
    return ", ".join([*split, *differ])


def _facts(result: Mapping) -> dict[str, str]:
    """Return what makes a table besides data, features and weights, in words that tell different values apart."""
    family = family_of(result)
    facts = {name.replace("_", " "): value for name, value in family["settings"].items()}
    facts |= {name.replace("_", " "): value for name, value in (family["end_to_end"] or {}).items()}
    given = [f"{kind} {f['file']} ({f['sha256'][:8]})" for kind, f in (family["given"] or {}).items()]
    return {name: f"{name} {value}" for name, value in facts.items()} | {
        "missing_test": f"test clips {column_text(family['missing_test'])}",
        "store": f"store {family['store']}",
        "revision": f"revision {family['revision']}",
        "given": " and ".join(given) if given else "no given files",
    }


def side_row(named: Mapping) -> tuple[str, str]:
    """Return the row of one side of a comparison: its method, with the marginal where one is named, and fusion."""
    return named["method"] + (f" ({named['marginal']})" if "marginal" in named else ""), named["fusion"]


def score_text(result: dict | None) -> str:
    """Write ``71.3 ± 2.1``; without a deviation for one seed, a dash for no result."""
    return "–" if result is None else spread_text(result["mean"], result["std"])


def spread_text(mean: float, std: float | None) -> str:
    """Write a mean and, where there is one, its standard deviation."""
    return f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}")


def mean_text(values: Sequence[float]) -> str:
    """Write values of seeds as ``71.3 ± 2.1``."""
    return spread_text(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def span_text(numbers: Sequence[int]) -> str:
    """Write the least and the greatest number, ``9 to 10``; one where they are equal."""
    return " to ".join(map(str, dict.fromkeys([min(numbers), max(numbers)])))


def signed_text(points: float) -> str:
    """Write a difference in percentage points with its sign, true minus and no minus zero: ``−3.1``."""
    return f"{round(points, 1) + 0.0:+.1f}".replace("+0.0", "0.0").replace("-", "−")


def column_text(missing: str) -> str:
    """Write a missing spec as a column's head."""
    return "complete" if missing == "none" else f"missing {missing}"


def _head(missing: str) -> str:
    """Write a column's head for the terminal, a line for each modality."""
    return column_text(missing).replace(" ", "\n").replace("+", "\n+")


def comparisons_text(compared: Sequence[dict]) -> list[str]:
    """Say how many paired differences of one table hold, over what, and whether any could."""
    if not compared:
        return []
    judged = [c for c in compared if c["verdict"] is not None]
    held = sum(c["verdict"] for c in judged)
    units = "; ".join(dict.fromkeys(map(units_text, judged or compared)))
    lines = [
        f"Paired comparisons: {held} of {len(judged)} differences hold after Holm's correction ({units})."
        if judged
        else f"Paired comparisons: {len(compared)} differences, without a verdict ({units})."
    ]
    for reason, number in Counter(c["reason"] for c in compared if c["verdict"] is None).items():
        lines.append(f"No verdict on {number} of {len(compared)}: {reason}.")
    if recorded := sum(c.get("recorded", False) for c in compared):
        lines.append(
            f"{recorded} of them could not be recomputed, as predictions are gone: their differences, intervals and p "
            "are those their run recorded."
        )
    return lines


def grouped_text(entries: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Name what shares a reason, each reason once: ``18 combinations, such as A; B; C`` or the only one's name."""
    reasons: dict[str, list[str]] = {}
    for what, reason in entries:
        reasons.setdefault(reason, []).append(what)
    found = []
    for reason, names in reasons.items():
        names = list(dict.fromkeys(names))
        listed = "; ".join(names[:NAMED])
        if len(names) > NAMED:
            listed = f"{len(names)} combinations, such as {listed}"
        found.append((listed, reason))
    return found


def results_table(section: Section, columns: Sequence[str] | None = None) -> Table:
    """Make one section a table for the terminal, of all or some of its columns."""
    table = Table()
    table.add_column("method", overflow="fold")
    table.add_column("fusion", overflow="fold")
    columns = section.columns if columns is None else columns
    for missing in columns:
        table.add_column(_head(missing), justify="right", overflow="fold", no_wrap=False)  # folded, never cut
    rows = section.rows
    several = len({fusion for _, fusion in rows}) > 1
    for i, (method, fusion) in enumerate(rows):
        again = i > 0 and rows[i - 1][0] == method
        last = several and (i + 1 == len(rows) or rows[i + 1][0] != method)  # a line below each method
        scores = (score_text(section.cell(method, fusion, missing)) for missing in columns)
        table.add_row("" if again else method, fusion, *scores, end_section=last)
    return table


def _fitting(section: Section, width: int) -> list[list[str]]:
    """Return the section's columns, in parts that fit beside its methods and fusions into so many characters."""
    room = width - sum(2 + max(map(len, names)) + 1 for names in zip(*section.rows, strict=True)) - 1
    parts: list[list[str]] = [[]]
    left = room
    for missing in section.columns:
        texts = [score_text(section.cell(*row, missing)) for row in section.rows]
        needed = 3 + max(map(len, [*texts, *_head(missing).split("\n")]))
        if parts[-1] and needed > left:
            parts.append([])
            left = room
        parts[-1].append(missing)
        left -= needed
    return parts


def print_results(document: dict, console: Console | None = None) -> None:
    """Print all tables of a results document, on standard output unless a console is given; wide ones in parts."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = 160  # a file or a pipe has no width of its own
    for section in sections([plain(document)]):
        compared = section.compared(plain(document.get("comparisons", [])))
        # Plain lines: a table's own title and caption are folded to its width.
        console.print(section.title, style="italic", markup=False, highlight=False)
        for columns in _fitting(section, console.width):
            console.print(results_table(section, columns), markup=False)  # names are text
        for note in section.notes(compared) + comparisons_text(compared):
            console.print(note, markup=False, highlight=False)


def export_latex(documents: Sequence[dict], folder: Path) -> Path:
    """Write results.tex into ``folder``: a table a section, for a document that uses booktabs; return its path."""
    tables = "\n".join(map(_latex_table, sections(plain(documents))))
    with whole_file(folder / "results.tex", "w") as file:
        file.write(f"% \\usepackage{{booktabs}}; the best mean of each column is bold\n{tables}")
    return folder / "results.tex"


def _latex_table(section: Section) -> str:
    columns, rows = section.columns, section.rows
    several = len(rows) > len({method for method, _ in rows})
    lines = []
    for i, row in enumerate(rows):
        scores = [_latex_score(section, row, missing) for missing in columns]
        apart = "\\addlinespace\n" if several and i and rows[i - 1][0] != row[0] else ""
        lines.append(apart + " & ".join([*map(latex_text, row), *scores]) + r" \\")
    heads = [column_text(missing).rpartition(" ") for missing in columns]  # on two lines, or it grows wide
    above = " & ".join(["", "", *(latex_text(first) for first, _, _ in heads)])
    head = " & ".join(["method", "fusion", *(latex_text(last) for _, _, last in heads)])
    caption = latex_text(" ".join([section.title + ".", *section.notes()]))
    words = [*map(section.of, SETTING), *filter(None, [section.apart])]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-")
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\label{{tab:{name}}}\n"
        f"\\begin{{tabular}}{{ll{'r' * len(columns)}}}\n\\toprule\n{above} \\\\\n{head} \\\\\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _latex_score(section: Section, row: tuple[str, str], missing: str) -> str:
    text = latex_text(score_text(section.cell(*row, missing)))
    return f"\\textbf{{{text}}}" if row in section.best(missing) else text


def latex_text(text: str) -> str:
    """Write plain text as LaTeX that compiles: every character that means something to TeX is escaped."""
    return text.translate(LATEX)
