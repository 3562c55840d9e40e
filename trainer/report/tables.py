"""Arrange results in tables: rows are methods and fusions, columns what is missing.

The terminal, the report and LaTeX files share them, and what must be said beside them.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rich.console import Console
from rich.table import Table

from ...pipeline.console import amount, plain
from ...pipeline.encoders import are_random
from ..evaluate import ACCURACY, Measure
from .comparisons import current, family_key, family_of, several_marginals, side, units_text

NAMED = 3  # of the combinations that share a reason
BY_CLIP = "clips of one speaker, if there are speakers, may be in both training and test: nothing is said of new ones"
NAMED_WORSE = 8  # of a missing spec's methods that are worse than a single modality
SETTING = ("dataset", "features", "store", "split", "missing_test")  # of results and comparisons


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

    def best(self, missing: str, measure: Measure = ACCURACY) -> list[tuple[str, str]]:
        """Return the rows of the best mean of a column as it is printed: several where they print alike."""
        found = [(self.row(r), measure.of(r)) for r in self.results if r["missing"] == missing]
        means = {row: round(of[0], measure.digits) for row, of in found if of}
        best = (min if measure.less else max)(means.values(), default=None)
        return [row for row, mean in means.items() if mean == best]

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

    def notes(self, measure: Measure = ACCURACY) -> list[str]:
        """Say what must stand beside these numbers."""
        seeds = [len(r["seeds"]) for r in self.results]
        spread = "one seed" if max(seeds) == 1 else f"mean ± standard deviation of {span_text(seeds)} seeds"
        clips = span_text([n for r in self.results for n in r["n_test"]])
        return [f"{measure.name}, {spread}, {clips} test clips.", *self.conditions()]

    def conditions(self) -> list[str]:
        """Say under which conditions these numbers hold."""
        lines = ["RANDOM WEIGHTS: these features come from networks that were never trained."] * self.untrained
        split, lacking_too = self.of("split"), self.of("missing_test")
        if split == "clip":
            lines.append(f"Split by clip: {BY_CLIP}.")
        elif not split.startswith("given:"):
            lines.append(f"Split by {split}: no {split} is in both training and test clips.")
        files = {(kind, f["file"]): None for r in self.results for kind, f in (r.get("given") or {}).items()}
        for kind, name in files:
            speakers = ": whether training and test clips share speakers is up to that file" if kind == "splits" else ""
            lines.append(f"{kind.capitalize()} given by {name}{speakers}.")
        whole = [r for r in self.results if r["missing"] == "none"]
        if lacking := max((max(np.subtract(r["n_train"], r["n_complete"])) for r in whole), default=0):
            lines.append(f"Complete is as the data are: {lacking} training clips lack a modality by themselves.")
        for r in {r["missing"]: r for r in self.results if r.get("n_labelled", r["n_train"]) != r["n_train"]}.values():
            n, labelled, complete = (span_text(r[f"n_{name}"]) for name in ("train", "labelled", "complete"))
            lines.append(f"Missing {r['missing']}: {n} training clips, {labelled} labelled, {complete} complete.")
        specs = [one for r in self.results for one in (r["missing"], *(r.get("missing_tests") or [r["missing_test"]]))]
        if columns := dict.fromkeys(found for one in specs for found in re.findall(r"@([^=+]+)=", one)):
            lines.append(f"What is missing depends on {' and '.join(columns)}, so it is not missing at random.")
        return lines + [f"Validation and test clips lack {lacking_too} too."] * (lacking_too != "none")


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


def settings_words(result: Mapping) -> list[str]:
    """Return a result's hyper-parameters, ``name value`` each; those that are off or empty are left out."""
    values = {name.replace("_", " "): value for name, value in result["settings"].items() if name != "own"}
    values |= {name.replace("_", " "): value for name, value in result["settings"].get("own", {}).items()}
    values |= {f"end to end {name}": value for name, value in (result.get("end_to_end") or {}).items()}
    return [f"{name} {value}" for name, value in values.items() if value not in ({}, None)]


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
    (settings, facts), *others = [_facts(r) for r in [first, *same]]
    alike = [of for of, other in others if other["tuned"] == facts["tuned"]]  # a tuned table has settings of each row
    differ = [text for name, text in settings.items() if any(of.get(name) != text for of in alike)]
    differ += [text for name, text in facts.items() if any(other.get(name) != text for _, other in others)]
    split = [f"by {first['split']}"] if len({r["split"] for r in firsts}) > 1 else []
    return ", ".join([*split, *differ])


def _facts(result: Mapping) -> tuple[dict[str, str], dict[str, str]]:
    """Return hyper-parameters, and what else makes a table besides data, features and weights, in words for each."""
    family = family_of(result)
    tuned, trained = family["settings"].get("tuned"), family["end_to_end"] or {}
    given = [f"{kind} {f['file']} ({f['sha256'][:8]})" for kind, f in (family["given"] or {}).items()]
    settings = {name: f"{name.replace('_', ' ')} {value}" for name, value in family["settings"].items() if not tuned}
    facts = {name: f"{name.replace('_', ' ')} {value}" for name, value in trained.items()}
    return settings, facts | {
        "tuned": _tuned_text(tuned) if tuned else "not tuned",
        "missing_test": f"test clips {column_text(family['missing_test'])}",
        "store": f"store {family['store']}",
        "revision": f"revision {family['revision']}",
        "given": " and ".join(given) if given else "no given files",
    }


def _tuned_text(tuned: Mapping) -> str:
    seeds = ", ".join(map(str, tuned["seeds"]))
    return f"tuned ({amount(tuned['draws'], 'draw')}, seeds {seeds}, choice {tuned['digest']})"


def side_row(named: Mapping) -> tuple[str, str]:
    """Return the row of one side of a comparison: its method, with the marginal where one is named, and fusion."""
    return named["method"] + (f" ({named['marginal']})" if "marginal" in named else ""), named["fusion"]


def score_text(result: dict | None, measure: Measure = ACCURACY) -> str:
    """Write ``71.3 ± 2.1``; without a deviation for one seed, a dash for no result."""
    found = None if result is None else measure.of(result)
    return "–" if found is None else spread_text(*found, measure.digits)


def spread_text(mean: float, std: float | None, digits: int = 1) -> str:
    """Write a mean and, where there is one, its standard deviation."""
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def span_text(numbers: Sequence[int]) -> str:
    """Write the least and the greatest number, ``9 to 10``; one where they are equal."""
    return " to ".join(map(str, dict.fromkeys([min(numbers), max(numbers)])))


def signed_text(points: float) -> str:
    """Write a difference in percentage points with its sign, true minus and no minus zero: ``−3.1``."""
    return f"{round(points, 1) + 0.0:+.1f}".replace("+0.0", "0.0").replace("-", "−")


def column_text(missing: str) -> str:
    """Write a missing spec as a column's head."""
    return "complete" if missing == "none" else f"missing {missing}"


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
        else f"Paired comparisons: {amount(len(compared), 'difference')}, without a verdict ({units})."
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


def best_single(section: Section, missing: str) -> dict | None:
    """Return the result of the single modality with the highest validation accuracy; None where there is none.

    Test clips do not choose it: the best of several on test clips would be too good by chance.
    """
    alone = [r for r in section.results if r["missing"] == missing and r.get("reference")]
    return max(alone, key=lambda r: np.mean(r["val_accuracy"]), default=None)


def gain(result: Mapping, other: Mapping) -> float | None:
    """Return how many points of test accuracy a result is above another, over their common seeds; None without any."""
    theirs = dict(zip(other["seeds"], other["test_accuracy"], strict=True))
    scores = zip(result["seeds"], result["test_accuracy"], strict=True)
    gains = [score - theirs[seed] for seed, score in scores if seed in theirs]
    return float(np.mean(gains)) if gains else None


def worse_text(section: Section, compared: Sequence[dict] = ()) -> list[str]:
    """Return one line a test that says which fused methods are worse than the best single modality, and by how much.

    compared: the section's paired comparisons, which are of the first test, and of which a difference may hold. No line
    where there is nothing to say: without a row of a single modality, or without another.
    """
    tests: dict[str, list[dict]] = {}
    for r in section.results:
        for test in r.get("tests") or [r]:
            tests.setdefault(test["missing_test"], []).append(r | test)
    if len(tests) < 2:
        return _worse(section, compared)
    return [
        f"Test clips {column_text(name)}: {line[0].lower()}{line[1:]}"
        for name, results in tests.items()
        for line in _worse(Section(tuple(results)), compared if name == section.of("missing_test") else ())
    ]


def _worse(section: Section, compared: Sequence[dict]) -> list[str]:
    """Return the line of one test; arguments as of `worse_text`."""
    asked, worse, apart = [], [], {}
    for missing in section.columns:
        single = best_single(section, missing)
        fused = [r for r in section.results if r["missing"] == missing and not r.get("reference")]
        if single is None or not fused:
            continue
        asked.append(missing)
        gains = [(gain(r, single), section.row(r)) for r in fused]
        apart |= dict.fromkeys(row[0] for points, row in gains if points is None)
        losses = sorted((points, row) for points, row in gains if points is not None and round(points, 1) < 0)
        if losses:
            held = _held(compared, missing, section.row(single))
            several = len({fusion for _, fusion in section.rows}) > 1
            named = [
                f"{' '.join(row) if several else row[0]} by {-points:.1f}" + " (which holds)" * (row in held)
                for points, row in losses[:NAMED_WORSE]
            ]
            named += [f"{len(losses) - NAMED_WORSE} more"] * (len(losses) > NAMED_WORSE)
            worse.append(f"{column_text(missing)}, {section.row(single)[0]} {single['mean']:.1f}: {', '.join(named)}")
    if not asked:
        return []
    chosen = "the best single modality (chosen on validation clips)"
    lacking = f" {' and '.join(apart)} could not be compared: no common seeds." * bool(apart)
    if not worse:
        return [f"No fused method is worse than {chosen}.{lacking}"]
    rest = "" if len(worse) == len(asked) else "; none elsewhere"
    return [f"Worse than {chosen}, in points: {'; '.join(worse)}{rest}.{lacking}"]


def _held(compared: Sequence[dict], missing: str, single: tuple[str, str]) -> set[tuple[str, str]]:
    """Return the rows whose difference from a single modality's row holds."""
    pairs = [
        {side_row(entry[s]) for s in ("a", "b")}
        for entry in map(current, compared)
        if entry["missing"] == missing and entry["verdict"]
    ]
    return {row for pair in pairs if single in pair for row in pair - {single}}


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
        for note in [*section.notes(), *worse_text(section, compared), *comparisons_text(compared)]:
            console.print(note, markup=False, highlight=False)


def _head(missing: str) -> str:
    """Write a column's head for the terminal, a line for each modality."""
    return column_text(missing).replace(" ", "\n").replace("+", "\n+")
