"""The folder of a run: results.json, predictions/, weights/ and checkpoints/ of its cells.

results.json holds the cells of the latest plan, in its order. Where a folder is used again for another plan (fewer
backbones, other settings), finished cells that the new plan has not move to other-results.json, and are used again
when they are asked for.
"""

import hashlib
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ...pipeline.errors import InputError
from ...pipeline.files import whole_file, write_json
from ...pipeline.stores.masks import TEST
from ..data import RunResult
from ..end_to_end.checkpoint import Checkpoints
from . import weights
from .grid import Cell

RESULTS, OTHERS = "results.json", "other-results.json"
PREDICTIONS, CHECKPOINTS = "predictions", "checkpoints"
# Two results that agree in all of these are the same training.
IDENTITY = ("dataset", "features", "store", "revision", "method", "fusion", "missing", "missing_test", "split", "seeds")
IDENTITY += ("settings", "given", "end_to_end")
VERSIONS = ("mlemiss", "torch")
MOST_WORDS = 150  # bytes of a file's name, of the 255 that file systems take; joined features may have long names


def identity(described: Mapping) -> str:
    """Return a key that finished and planned cells share when they are the same training."""
    values = [described.get(name) for name in IDENTITY]
    values.append([described["versions"].get(name) for name in VERSIONS])
    tests = [described["missing_tests"]] if described.get("missing_tests") else []  # where there are several
    return json.dumps(values + tests, sort_keys=True)


def _words(described: Mapping) -> str:
    names = ("dataset", "features", "store", "method", "fusion", "missing", "split")
    words = re.sub(r"[^\w.=+-]+", "_", "-".join(described[name] for name in names))
    if len(whole := words.encode()) <= MOST_WORDS:
        return words
    return f"{whole[:MOST_WORDS].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:8]}"


def _file_stem(described: Mapping) -> str:
    """Return the name of a cell's files, without ending: words that say what it is, then a hash of its identity."""
    digest = hashlib.sha256(identity(described).encode()).hexdigest()[:8]
    return f"{_words(described)}-{digest}"


def _is_whole(path: Path) -> bool:
    """Tell whether a predictions file is there, with the checksums of all it holds."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return False


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made when it is written to.
        resume: use the finished cells that are in it; else they are deleted.
        exhibit: what the folder is for, such as ``table2``; one that is for something else is not resumed.
        save_weights: keep what was trained, too.
    """

    def __init__(self, path: Path, *, resume: bool = False, exhibit: str | None = None, save_weights: bool = False):
        self.path, self.resume, self.exhibit, self.save_weights = path, resume, exhibit, save_weights

    def clear(self) -> None:
        """Make the folder, and delete everything of an earlier run in it. InputError: it may be somebody else's."""
        kept = [*(self.path / PREDICTIONS).glob("*.npz"), *(self.path / weights.FOLDER).glob(f"*{weights.SUFFIX}")]
        found = [*kept, *(self.path / CHECKPOINTS).glob("*")]
        if found and not any((self.path / name).exists() for name in (RESULTS, OTHERS)):
            raise InputError(
                f"{self.path} holds {found[0].relative_to(self.path)}, and no {RESULTS} that would say of what run.\n"
                f"Name another folder with --out, or remove it."
            )
        (self.path / PREDICTIONS).mkdir(parents=True, exist_ok=True)
        for path in [self.path / RESULTS, self.path / OTHERS, *kept]:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def tidy(self) -> None:
        """Make the folder, and delete what killed processes wrote in part; nobody else may write here meanwhile."""
        (self.path / PREDICTIONS).mkdir(parents=True, exist_ok=True)
        for leftover in [*self.path.glob("*.partial"), *(self.path / PREDICTIONS).glob("*.partial")]:
            leftover.unlink()

    def finished(self) -> dict[str, dict]:
        """Return the results of finished cells by identity, without those whose predictions are absent or damaged.

        InputError: the folder holds another kind of run, or a results file that cannot be read.
        """
        return {
            key: result
            for key, result in self.recorded().items()
            if result.get("predictions") and _is_whole(self.path / result["predictions"])
        }

    def recorded(self) -> dict[str, dict]:
        """Return the results that the folder's files record, by identity. InputError: as `finished`."""
        results: dict[str, dict] = {}
        for name in (OTHERS, RESULTS):
            path = self.path / name
            if path.exists():
                results |= self._read(path)
        return results

    def _read(self, path: Path) -> dict[str, dict]:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            keys = [identity(result) for result in document["results"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path} cannot be read as results of mlemiss, so what is finished is unknown.\n"
                f"Restore it, or name another folder with --out."
            ) from None
        if document.get("exhibit") != self.exhibit:
            raise InputError(
                f"{self.path} holds the results of another run ({document.get('exhibit') or 'mlemiss train'}).\n"
                f"Name another folder with --out."
            )
        return dict(zip(keys, document["results"], strict=True))

    def load_runs(self, cell: Cell, described: Mapping, results: Iterable[Mapping]) -> None:
        """Give a cell the runs that ``results`` hold of it, of cells that are the same but for their seeds."""
        runs = {run.spec.seed: run for run in cell.left}
        same = identity({**described, "seeds": None})
        for result in results:
            if not runs.keys() & set(result["seeds"]) or identity({**result, "seeds": None}) != same:
                continue
            with np.load(self.path / result["predictions"]) as file:
                probabilities, more = file["probabilities"], file.get("more_probabilities", ())
            for r, seed in enumerate(result["seeds"]):
                if run := runs.pop(seed, None):
                    tested, curve = np.flatnonzero(run.part == TEST), result["curve"]
                    cell.results[seed] = RunResult(
                        run,
                        tested,
                        probabilities[r, tested],
                        result["best_epoch"][r],
                        result["total_epochs"],
                        curve["val_accuracy"][r],
                        curve["test_accuracy"][r],
                        result["seconds"] / len(result["seeds"]),
                        result["device"],
                        [of[r, tested] for of in more],
                    )

    def set_aside(self, document: Mapping, results: Iterable[dict]) -> None:
        """Keep finished cells that this plan has not. Nothing is taken out of that file: a kill loses no cell."""
        if kept := list(results):
            write_json(self.path / OTHERS, {**document, "results": kept, "comparisons": [], "skipped": []})

    def write(self, document: Mapping) -> None:
        """Write results.json, whole or not at all."""
        write_json(self.path / RESULTS, document)

    def keep(self, cell: Cell, described: Mapping) -> dict:
        """Write the files of a cell's trained runs; return their names relative to the folder, as the result has them.

        predictions: clip_id [clip], subject [clip] and label [clip] of all usable clips, seeds [seed], classes [class],
        group [clip] where another column than subject was split by,
        probabilities [seed, clip, class], NaN where a clip is not among that seed's test clips, and where there are
        several tests what the further ones are and more_probabilities [test, seed, clip, class].
        weights_file: where weights are kept and every run is trained, see `weights`.
        """
        clips, stem = cell.clips, _file_stem(described)
        results = [cell.results[seed] for seed in described["seeds"]]
        shape = (1 + len(cell.more_tests), len(results), len(clips.label), len(clips.classes))
        probabilities = np.full(shape, np.nan, np.float32)
        for s, result in enumerate(results):
            probabilities[:, s, result.test_clips] = [result.probability, *result.more_probabilities]
        names = {"predictions": f"{PREDICTIONS}/{stem}.npz"}
        by_column = cell.split not in ("clip", "subject") and not cell.split.startswith("given:")
        with whole_file(self.path / names["predictions"]) as file:
            np.savez_compressed(
                file,
                clip_id=clips.clip_id,
                subject=clips.subject,
                label=clips.label,
                probabilities=probabilities[0],
                seeds=np.array(described["seeds"]),
                classes=np.array(clips.classes),
                **({"more_tests": cell.tests[1:], "more_probabilities": probabilities[1:]} if cell.more_tests else {}),
                **({"group": clips.store.columns[cell.split][clips.kept]} if by_column else {}),
            )
        if cell.trained and not cell.left:
            names["weights_file"] = f"{weights.FOLDER}/{stem}{weights.SUFFIX}"
            inputs = weights.describe_inputs(clips.store)
            weights.save(self.path / names["weights_file"], dict(described) | inputs, cell.trained)
            cell.trained.clear()
        return names

    def checkpoints(self, described: Mapping) -> Checkpoints:
        """Return where the runs of a cell keep their checkpoints: the same folder whatever the hyper-parameters."""
        values = {name: value for name, value in described.items() if name in IDENTITY and name != "seeds"}
        folder = self.path / CHECKPOINTS / _words(described)
        return Checkpoints(folder, values | {"versions": described["versions"]})
