"""The job of `mlemiss train` as a function, and its results as an object."""

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import torch

from ...pipeline.console import comma_list, plain, writable_file, writable_folder
from ...pipeline.encoders import resolve_device
from ...pipeline.errors import InputError
from ...pipeline.page import render
from ...pipeline.stores.catalogue import open_store
from ...pipeline.stores.remote import Place
from ...pipeline.stores.store import FeatureStore
from ..experiments.experiments import check_stores, run_plan, shown_progress
from ..experiments.grid import Grid, plan_grid
from ..experiments.run_folder import RESULTS, RunFolder
from ..experiments.tuned import Tuned
from ..methods import EACH
from ..report.comparisons import current
from ..report.csv_files import comparison_row, result_row, test_rows
from ..report.report import write_report
from ..report.tables import (
    column_text,
    comparisons_text,
    grouped_text,
    score_text,
    sections,
    worse_text,
)
from ..settings import Settings

if TYPE_CHECKING:
    import pandas

Stores = FeatureStore | Place | str
SAID = ("dataset", "features", "method", "fusion", "missing", "missing_test", "split")
COUNTS = ("n_train", "n_labelled", "n_complete", "n_test")
OF_SEEDS = ("test_accuracy", "macro_f1", "uar", "weighted_f1", "nll", "ece", "val_accuracy", "best_epoch", *COUNTS)


def train(
    stores: Stores | Sequence[Stores],
    missing: str | Sequence[str],
    method: str | Sequence[str] = ("mle", EACH),
    fusion: str | Sequence[str] = "addition",
    *,
    seeds: int | Sequence[int] = 5,
    split: str = "clip",
    missing_test: str | Sequence[str] = "none",
    tuned: str | Path | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    verbose: bool = True,
    **settings: object,
) -> "Results":
    """Train every combination of stores, methods, fusions and missing specs, as `mlemiss train` does.

    Args:
        stores: one or several, open, or by path or URL; ``visual=PATH,audio=PATH`` joins two.
        missing: what training lacks, such as ``audio:0.5``; one, a comma list, or several.
        method, fusion: names, in the same way; the method ``only`` is each modality alone.
        seeds: how many, from 0, or which.
        split: clip, or a column whose equal values stay together.
        missing_test: what validation and test clips lack; of several the further ones are more tests of each training.
        tuned: folder of a `mlemiss tune`, whose choices are taken in place of settings.
        device: auto, cpu, cuda or mps.
        out: a folder to keep the run in, with its report and weights. None: the results remember it all.
        verbose: show progress.
        settings: see `mlemiss.trainer.settings.Settings`, such as ``epochs=20``.

    Warns of combinations that cannot be trained, and are left out, and of tests that lack what training never does.

    Raises:
        InputError: an unknown name or setting, a store that cannot be read, or ``out`` holds results already.
    """
    known = Settings.__dataclass_fields__
    if unknown := [name for name in settings if name not in known]:
        raise InputError(f"unknown setting {unknown[0]!r}: expected some of {', '.join(known)}.")
    if tuned is not None and settings:
        own = ", ".join(settings)
        raise InputError(f"tuned and settings of your own exclude each other.\nLeave out {own}, or tuned.")
    chosen = Settings(**settings)
    opened = _opened(stores if isinstance(stores, list | tuple) else [stores])
    tuned, out = (None if path is None else _path(path, name) for path, name in ((tuned, "tuned"), (out, "out")))
    check_stores(opened, chosen, None)
    named = (("method", method), ("fusion", fusion), ("missing", missing), ("missing_test", missing_test))
    grid = Grid(*(_names(given, name) for name, given in named), seeds, [split])
    where = torch.device(resolve_device(device))
    plan = plan_grid(opened, grid, chosen) if tuned is None else Tuned(tuned).plan(opened, grid)
    for skipped in plan.skipped:
        warnings.warn(f"{skipped['cell']} is left out: {skipped['reason']}".replace("--", ""), stacklevel=2)
    temporary = TemporaryDirectory(prefix="mlemiss-") if out is None else None
    path = Path(temporary.name) if temporary else writable_folder(out, "out")
    if (path / RESULTS).exists():
        raise InputError(f"{path} holds the results of another run.\nName another folder as out, or remove it.")
    with shown_progress("train") if verbose else nullcontext() as report:
        document = run_plan(plan, where, RunFolder(path, save_weights=out is not None), progress=report, say=_warn)
    if out is not None:
        write_report([document], path / "report.html")
    return Results(document, path, temporary)


def _opened(stores: Sequence) -> list[FeatureStore]:
    """Return stores, open, each once."""
    opened = [one if isinstance(one, FeatureStore) else open_store(one) for one in stores]
    return list({(str(one.path), one.fingerprint): one for one in opened}.values())


def _warn(line: str) -> None:
    """Warn of what `mlemiss train` notes."""
    if line.startswith("note: "):
        warnings.warn(line.removeprefix("note: ").replace("--hide 0.3", "hide=0.3"), stacklevel=4)


def _path(given: object, name: str) -> Path:
    try:
        return Path(given)
    except TypeError:
        raise InputError(f"{name}: expected a path, found {given!r}.") from None


def _names(given: str | Sequence[str], name: str) -> list[str]:
    listed = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
    several = list(given) if listed else [given]
    if not several or not all(isinstance(one, str) for one in several):
        raise InputError(f"{name}: expected a text, or several, found {given!r}.")
    return comma_list(several)


class Results:
    """What `train` found.

    document: as results.json holds it. folder: with predictions, and what else `train` keeps; without ``out`` it lives
    as long as this object.
    """

    def __init__(self, document: dict, folder: Path, temporary: TemporaryDirectory | None = None):
        self.document, self.folder = document, folder
        if temporary:
            weakref.finalize(self, temporary.cleanup)

    def to_pandas(self, rows: Literal["cells", "seeds", "comparisons", "tests"] = "cells") -> "pandas.DataFrame":
        """Return a table: a row for each combination, each of its seeds, each two that were compared, or each test.

        Tests are those of combinations that have several.

        Accuracies, F1, recalls and ECE are percentages, NLL is in nats. ImportError: pandas is not installed.
        InputError: other rows.
        """
        made = {"cells": self._cells, "seeds": self._seeds, "comparisons": self._comparisons, "tests": self._tests}
        if rows not in made:
            raise InputError(f"unknown rows {rows!r}: expected one of {', '.join(made)}.")
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas.\nInstall it: pip install pandas") from error
        return pandas.DataFrame(made[rows]())

    def _cells(self) -> list[dict]:
        of_seeds = {"seeds", "test_accuracy", "best_epoch", *COUNTS}  # texts of numbers
        return [{n: v for n, v in result_row(r).items() if n not in of_seeds} for r in self.document["results"]]

    def _seeds(self) -> list[dict]:
        return [
            {name: r[name] for name in SAID} | {"seed": seed} | {name: r[name][i] for name in OF_SEEDS}
            for r in self.document["results"]
            for i, seed in enumerate(r["seeds"])
        ]

    def _comparisons(self) -> list[dict]:
        return [comparison_row(current(c)) for c in self.document["comparisons"]]

    def _tests(self) -> list[dict]:
        return [row for r in self.document["results"] for row in test_rows(r)]

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that opens offline; return its path. InputError: it cannot be written."""
        path = writable_file(_path(path, "report"), "report")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_report([self.document], path)
        return path

    def __repr__(self) -> str:
        lines = [f"{' '.join(plain(r[name]) for name in SAID)}: {score_text(r)}" for r in self.document["results"]]
        return "\n".join(["test accuracy in percent", *lines])

    def _repr_html_(self) -> str:
        """Return the tables of the report, as a notebook shows them."""
        parts = sections([plain(self.document)])
        tables = [
            {
                "title": part.title,
                "columns": [column_text(missing) for missing in part.columns],
                "rows": [
                    [*row, *(score_text(part.cell(*row, missing)) for missing in part.columns)] for row in part.rows
                ],
                "notes": [*part.notes(), *worse_text(part, compared), *comparisons_text(compared)],
            }
            for part in parts
            for compared in [part.compared(plain(self.document["comparisons"]))]
        ]
        skipped = grouped_text([(entry["cell"], entry["reason"]) for entry in self.document["skipped"]])
        return render(Path(__file__).parent / "templates", "results.html", tables=tables, skipped=skipped)
