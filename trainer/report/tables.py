"""Results as tables: rows are methods and fusions, columns what is missing. Terminal and report share them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rich.console import Console
from rich.table import Table

from .comparisons import SIGNIFICANT, family_key, family_of, least_p, several_marginals, side, significant

NAMED = 3  # of the combinations that share a reason


@dataclass(frozen=True)
class Section:
    """Results that stand in one table: same data, features, weights, split, test condition and hyper-parameters.

    apart: what sets it apart from the other tables of the same data, "" where there are none.
    """

    dataset: str
    features: str
    store: str
    weights: str | None
    split: str
    missing_test: str
    results: tuple[dict, ...]
    apart: str = ""

    @property
    def columns(self) -> list[str]:
        """Missing specs, in the order they were asked for."""
        return list(dict.fromkeys(r["missing"] for r in self.results))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Method and fusion, in the order they were asked for."""
        return list(dict.fromkeys(map(self.row, self.results)))

    @cached_property
    def several(self) -> set[str]:
        """Methods that stand here with several marginals."""
        return several_marginals(self.results)

    def row(self, result: Mapping) -> tuple[str, str]:
        """The row a result stands in, the method named with its marginal where there are several of it."""
        return side_row(side(result, self.several))

    def cell(self, method: str, fusion: str, missing: str) -> dict | None:
        """The result of one cell; None where the combination was skipped or has not run."""
        for result in self.results:
            if result["missing"] == missing and self.row(result) == (method, fusion):
                return result
        return None

    def best(self, missing: str) -> list[tuple[str, str]]:
        """The rows of the highest mean of a column as it is printed: several where they print alike."""
        cells = [r for r in self.results if r["missing"] == missing]
        highest = max(round(r["mean"], 1) for r in cells)
        return [self.row(r) for r in cells if round(r["mean"], 1) == highest]

    def compared(self, comparisons: Sequence[dict]) -> list[dict]:
        """Of paired comparisons those that belong to this table."""
        own = family_key(self.results[0])
        return [c for c in comparisons if family_key(c) == own]

    @property
    def title(self) -> str:
        apart = f": {self.apart}" if self.apart else ""
        return f"{self.data}, {self.source}{apart}"

    @property
    def source(self) -> str:
        """What was trained on."""
        return source_text(self.results[0])

    @property
    def untrained(self) -> bool:
        """Its features come from networks that were never trained."""
        trained = self.results[0].get("end_to_end") and not self.results[0]["end_to_end"]["frozen"]
        return self.weights == "random" and not trained

    @property
    def data(self) -> str:
        """The dataset's name, loud where its clips are drawn ones."""
        return f"{self.dataset} (SYNTHETIC clips)" if self.results[0].get("synthetic") else self.dataset

    def notes(self, compared: Sequence[dict] = ()) -> list[str]:
        """What must be said beside these numbers; compared: this table's comparisons, which know of speakers."""
        seeds = sorted({len(r["seeds"]) for r in self.results})
        number = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
        tests = sorted({n for r in self.results for n in r["n_test"]})
        clips = " to ".join(map(str, dict.fromkeys([tests[0], tests[-1]])))
        spread = "one seed" if number == "1" else f"mean ± standard deviation of {number} seeds"
        lines = [f"Test accuracy in percent of clips, {spread}, {clips} test clips."]
        if self.untrained:
            lines.append("RANDOM WEIGHTS: these features come from networks that were never trained.")
        if self.split == "clip":
            lines.append(f"Split by clip: {by_clip_text(compared)}, so this says nothing of new speakers.")
        elif not self.split.startswith("given:"):
            lines.append(f"Split by {self.split}: no {self.split} is in both training and test clips.")
        files = {(kind, f["file"]): None for r in self.results for kind, f in (r.get("given") or {}).items()}
        for kind, name in files:
            speakers = ": whether training and test clips share speakers is up to that file" if kind == "splits" else ""
            lines.append(f"{kind.capitalize()} given by {name}{speakers}.")
        whole = [r for r in self.results if r["missing"] == "none"]
        if lacking := max((max(np.subtract(r["n_train"], r["n_complete"])) for r in whole), default=0):
            lines.append(f"Complete is as the data are: {lacking} training clips lack a modality by themselves.")
        if self.missing_test != "none":
            lines.append(f"Validation and test clips lack {self.missing_test} too.")
        return lines


def by_clip_text(compared: Sequence[dict]) -> str:
    """What a split by clip does to speakers, known where comparisons resampled them; results do not record it."""
    if any(entry["units"] == "subject" for entry in compared):
        return "training and test clips share speakers"
    return "clips of one speaker may be in both training and test"


def source_text(result: Mapping) -> str:
    """What a result was trained on: cached features, or media end to end."""
    options = result.get("end_to_end")
    if not options:
        return f"{result['features']} features ({weights_text(result['weights'])})"
    if options["frozen"]:
        return f"{result['features']} end to end, frozen ({weights_text(result['weights'])})"
    return f"{result['features']} trained end to end ({weights_text(result['weights'], trained=True)})"


def weights_text(weights: str | None, trained: bool = False) -> str:
    """How weights are named beside a number; those that were never trained are loud. trained: from these on."""
    if trained:
        return f"from {weights} weights"
    if weights is None:
        return "weights not recorded"
    return "RANDOM weights, never trained" if weights == "random" else f"{weights} weights"


def sections(documents: Sequence[dict]) -> list[Section]:
    """The results of one or more results documents, table by table; of a cell run twice the later one stands."""
    tables: dict[tuple, dict[tuple, dict]] = {}
    for document in documents:
        for r in document["results"]:
            cell = (r["method"], r["fusion"], r["missing"], r.get("marginal"))
            tables.setdefault((r["weights"], family_key(r)), {})[cell] = r
    firsts = [next(iter(cells.values())) for cells in tables.values()]
    found = []
    for first, cells in zip(firsts, tables.values(), strict=True):
        names = (first[name] for name in ("dataset", "features", "store", "weights", "split", "missing_test"))
        found.append(Section(*names, tuple(cells.values()), _apart(first, firsts)))
    return found


def _apart(first: Mapping, firsts: Sequence[Mapping]) -> str:
    """What of a table's first result is not so in all tables of the same data, features and weights.

    The split is named wherever tables of any data differ in it.
    """
    same = [r for r in firsts if all(r[name] == first[name] for name in ("dataset", "features", "weights"))]
    facts, *others = [_facts(r) for r in [first, *same]]
    differ = [text for name, text in facts.items() if any(other.get(name) != text for other in others)]
    split = [f"by {first['split']}"] if len({r["split"] for r in firsts}) > 1 else []
    return ", ".join([*split, *differ])


def _facts(result: Mapping) -> dict[str, str]:
    """What makes a table besides data, features and weights, each in words that tell different values apart."""
    family = family_of(result)
    facts = {name.replace("_", " "): value for name, value in family["settings"].items()}
    facts |= {name.replace("_", " "): value for name, value in (family["end_to_end"] or {}).items()}
    given = [f"{kind} {f['file']} ({f['sha256'][:8]})" for kind, f in (family["given"] or {}).items()]
    return {name: f"{name} {value}" for name, value in facts.items()} | {
        "missing_test": f"test clips {missing_text(family['missing_test'])}",
        "store": f"store {family['store']}",
        "revision": f"revision {family['revision']}",
        "given": " and ".join(given) if given else "no given files",
    }


def side_row(named: Mapping) -> tuple[str, str]:
    """The row that a side of a comparison stands in: its method, with the marginal where one is named, and fusion."""
    return named["method"] + (f" ({named['marginal']})" if "marginal" in named else ""), named["fusion"]


def score_text(result: dict | None) -> str:
    """``71.3 ± 2.1``; without a deviation for one seed, a dash for no result."""
    return "–" if result is None else spread_text(result["mean"], result["std"])


def spread_text(mean: float, std: float | None) -> str:
    return f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}")


def mean_text(values: Sequence[float]) -> str:
    """Values of seeds as ``71.3 ± 2.1``."""
    return spread_text(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def signed_text(points: float) -> str:
    """A difference in percentage points with its sign, true minus and no minus zero: ``−3.1``."""
    return f"{round(points, 1) + 0.0:+.1f}".replace("+0.0", "0.0").replace("-", "−")


def missing_text(missing: str) -> str:
    """A missing spec as a column's head."""
    return "complete" if missing == "none" else f"missing {missing}"


def units_text(entry: dict) -> str:
    """What a comparison resampled: ``24 speakers, 112 clips``."""
    clips = f"{entry['n_clips']} clips"
    return f"{entry['n_units']} speakers, {clips}" if entry["units"] == "subject" else clips


def comparisons_text(compared: Sequence[dict]) -> list[str]:
    """How many paired differences of one table hold, over what, and whether any could."""
    if not compared:
        return []
    held = sum(map(significant, compared))
    units = "; ".join(dict.fromkeys(map(units_text, compared)))
    lines = [f"Paired comparisons: {held} of {len(compared)} differences hold after Holm's correction ({units})."]
    if recorded := sum(c.get("recorded", False) for c in compared):
        lines.append(
            f"{recorded} of them could not be recomputed, as predictions are gone: their differences, intervals and p "
            "are those their run recorded."
        )
    least = min(map(least_p, compared))
    if least * len(compared) > SIGNIFICANT:
        lines.append(
            f"None could: with {max(c['n_units'] for c in compared)} units no p is below {least:.2g}, times "
            f"{len(compared)} comparisons. Compare fewer methods, or test more speakers."
        )
    return lines


def grouped_text(entries: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of what and its reason, a reason once: ``18 combinations, such as A; B; C`` or the only one's name."""
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
    """One section as a table for the terminal, of all or some of its columns."""
    table = Table()
    table.add_column("method", overflow="fold")
    table.add_column("fusion", overflow="fold")
    columns = section.columns if columns is None else columns
    for missing in columns:
        head = missing_text(missing).replace(" ", "\n")
        table.add_column(head, justify="right", overflow="fold", no_wrap=False)  # folded, never cut
    rows = section.rows
    several = len({fusion for _, fusion in rows}) > 1
    for place, (method, fusion) in enumerate(rows):
        again = place > 0 and rows[place - 1][0] == method
        last = several and (place + 1 == len(rows) or rows[place + 1][0] != method)  # a line below each method
        scores = (score_text(section.cell(method, fusion, missing)) for missing in columns)
        table.add_row("" if again else method, fusion, *scores, end_section=last)
    return table


def _fitting(section: Section, width: int) -> list[list[str]]:
    """The section's columns, in parts that fit beside its methods and fusions into so many characters."""
    room = width - sum(2 + max(map(len, names)) + 1 for names in zip(*section.rows, strict=True)) - 1
    parts: list[list[str]] = [[]]
    left = room
    for missing in section.columns:
        texts = [score_text(section.cell(*row, missing)) for row in section.rows]
        needed = 3 + max(map(len, [*texts, *missing_text(missing).split()]))
        if parts[-1] and needed > left:
            parts.append([])
            left = room
        parts[-1].append(missing)
        left -= needed
    return parts


def print_results(document: dict, console: Console | None = None) -> None:
    """All tables of a results document, to standard output unless a console is given; wide ones in several parts."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = 160  # a file or a pipe has no width of its own
    for section in sections([document]):
        compared = section.compared(document.get("comparisons", []))
        # Plain lines: a table's own title and caption are folded to its width.
        console.print(section.title, style="italic", markup=False, highlight=False)
        for columns in _fitting(section, console.width):
            console.print(results_table(section, columns))
        for note in section.notes(compared) + comparisons_text(compared):
            console.print(note, markup=False, highlight=False)
