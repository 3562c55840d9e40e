"""Read the runs that share a page: each once, each cell in one of them, and told what is wrong with any."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.console import amount, plain
from ...pipeline.errors import InputError
from .comparisons import family_key
from .csv_files import result_row
from .report import compare_documents, load_run
from .tables import Section, grouped_text

# Texts of a result that a page shows.
TEXTS = ("dataset", "features", "store", "split", "missing", "missing_test", "method", "fusion", "device")


@dataclass(frozen=True)
class NamedRun:
    """One run of the leaderboard. name: its folder's, or its path where several folders have that name."""

    number: int
    name: str
    document: dict

    @property
    def state(self) -> str:
        """Say whether the run was finished when its results were read."""
        if left := self.document.get("unfinished"):
            return f"unfinished: {amount(left, 'planned cell')} left"
        kept = Counter((family_key(r), r["missing"]) for r in self.document["results"] if r.get("predictions"))
        if not self.document.get("comparisons") and max(kept.values(), default=0) > 1:
            return "unfinished: its comparisons were never made"
        return "finished"


def read_runs(paths: Sequence[Path]) -> tuple[list[NamedRun], list[str]]:
    """Read all runs, or none, the same run once; return them, texts `printable`, and what to tell of those named again.

    InputError: names every run that cannot be read, with the reason.
    """
    paths, again = _once(paths)
    documents, wrong = [], []
    for path in paths:
        try:
            documents.append(_read(path))
        except InputError as error:
            wrong.append(f"  {str(error).splitlines()[0]}")
    if wrong:
        what = f"{len(wrong)} of {amount(len(paths), 'run')} cannot be read, so nothing was written:"
        hint = "Leave them out, train them again, or wait for their first finished results."
        raise InputError("\n".join([what, *wrong, hint]))
    names = [(path.parent if path.is_file() else path).resolve().name for path in paths]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [NamedRun(i, *run) for i, run in enumerate(zip(plain(names), documents, strict=True), 1)], again


def load_runs(paths: Sequence[Path]) -> tuple[list[dict], list[dict], list[str]]:
    """Read runs for one report, each cell from one of them (`choose_results`).

    Returns:
        The documents, the paired comparisons between all of their results, and what to tell of cells in several runs.

    Raises:
        InputError: a run that cannot be read, or a damaged predictions file.
    """
    runs = [NamedRun(i, str(path), load_run(path)) for i, path in enumerate(paths, 1)]
    told = [f"{what}: {why}" for what, why in choose_results(runs)]
    documents = [run.document for run in runs]
    return documents, compare_documents(documents), told


def _read(path: Path) -> dict:
    """Read a run's document. InputError: it is none, or a result lacks what a page shows."""
    document = load_run(path)
    shown = plain(document)
    for number, (r, kept) in enumerate(zip(shown["results"], document["results"], strict=True), 1):
        try:
            result_row(r), Section((r,)).notes(), Section((r,)).title, dict(r["versions"])
            scores = [*r["test_accuracy"], r["mean"]]
            sound = len(r["seeds"]) == len(scores) - 1 > 0 and all(0 <= score <= 100 for score in scores)
            sound = sound and all(isinstance(r[name], str) for name in TEXTS)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            sound = False
        if not sound:
            raise InputError(f"{path}: result {number} is damaged, or was written by another program.")
        r["predictions"] = kept.get("predictions")  # a path, not a text
    return shown


def _once(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the runs, each once however its path is written, and what to tell of those named again."""
    found: dict[Path, Path] = {}
    again = []
    for path in paths:
        place = path.parent if path.name == "results.json" and path.is_file() else path
        if place.resolve() in found:
            again.append(f"{path} is named twice: it counts once")
        found.setdefault(place.resolve(), path)
    return list(found.values()), again


def choose_results(runs: Sequence[NamedRun]) -> list[tuple[str, str]]:
    """Leave each cell in one run alone: that with the most seeds, of several the one named last.

    Returns:
        Which cells were in several runs, and which run counts.
    """
    found: dict[tuple, list[tuple[NamedRun, dict]]] = {}
    for run in runs:
        for r in run.document["results"]:
            r["run"] = run.number
            cell = (family_key(r), r["weights"], r["method"], r["fusion"], r["missing"], r.get("marginal"))
            found.setdefault(cell, []).append((run, r))
    told = []
    for entries in found.values():
        chosen, kept = max(reversed(entries), key=lambda entry: len(entry[1]["seeds"]))
        for run, r in entries:
            if r is not kept:
                run.document["results"] = [one for one in run.document["results"] if one is not r]
                seeds = len(kept["seeds"]), len(r["seeds"])
                why = f"it has {seeds[0]} seeds, not {seeds[1]}" if seeds[0] > seeds[1] else "it is named later"
                apart = abs(kept["mean"] - r["mean"])
                numbers = "the means are the same" if apart < 1e-9 else "the means differ"
                what = f"{r['dataset']} {r['features']} {r['method']} {r['fusion']} {r['missing']}"
                told.append((what, f"both in {run.name} and in {chosen.name}, which counts as {why}; {numbers}"))
    return grouped_text(told)
