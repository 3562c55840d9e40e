"""What a run's folder keeps of the cells that are finished: results.json, predictions/ and weights/.

results.json holds the cells of the latest plan, in its order. Where a folder is used again for another plan (fewer
backbones, other settings), finished cells that the new one has not stay in other-results.json, and are taken up again
when they are asked for.
"""

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ...pipeline.errors import InputError
from ...pipeline.stores.masks import TEST
from ..fit import RunResult
from .grid import Cell

RESULTS, OTHERS = "results.json", "other-results.json"
PREDICTIONS, WEIGHTS, CHECKPOINTS = "predictions", "weights", "checkpoints"
# Two results that agree in all of these are the same training.
IDENTITY = ("dataset", "features", "store", "revision", "method", "fusion", "missing", "missing_test", "split", "seeds")
IDENTITY += ("settings", "given", "end_to_end")
VERSIONS = ("mlemiss", "torch")


def identity(described: Mapping) -> str:
    """A key that finished and planned cells share when they are the same, of a result or of what is known before."""
    values = [described.get(name) for name in IDENTITY]
    return json.dumps([*values, [described["versions"].get(name) for name in VERSIONS]], sort_keys=True)


def file_stem(described: Mapping) -> str:
    """The name of a cell's files, without ending: what it is of in words, then a hash of its identity."""
    digest = hashlib.sha256(identity(described).encode()).hexdigest()[:8]
    return f"{_words(described)}-{digest}"


def _words(described: Mapping) -> str:
    names = ("dataset", "features", "store", "method", "fusion", "missing", "split")
    return re.sub(r"[^\w.=+-]+", "_", "-".join(described[name] for name in names))


def checkpoint_folder(described: Mapping, out: Path) -> Path:
    """Where a cell that is being trained keeps its checkpoints: the same whatever the hyper-parameters."""
    return out / CHECKPOINTS / _words(described)


def start_afresh(out: Path) -> None:
    """Make the folder, without anything of an earlier run into it."""
    (out / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    stale = [out / RESULTS, out / OTHERS, *(out / PREDICTIONS).glob("*.npz"), *(out / WEIGHTS).glob("*.safetensors")]
    for path in stale:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def take_up(out: Path, exhibit: str | None) -> dict[str, dict]:
    """The finished cells of an earlier run into this folder, by identity; those without their predictions are none.

    InputError: the folder holds another kind of run, or a results file that cannot be read.
    """
    (out / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    for leftover in (out / PREDICTIONS).glob(".*.npz"):  # a kill's
        leftover.unlink()
    found: dict[str, dict] = {}
    for name in (OTHERS, RESULTS):
        path = out / name
        if not path.exists():
            continue
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            keys = [identity(result) for result in document["results"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path} cannot be read as results of mlemiss, so what is finished is unknown.\n"
                f"Restore it, or name another folder with --out."
            ) from None
        if document.get("exhibit") != exhibit:
            raise InputError(
                f"{out} holds the results of another run ({document.get('exhibit') or 'mlemiss train'}).\n"
                f"Name another folder with --out."
            )
        found |= dict(zip(keys, document["results"], strict=True))
    return {key: r for key, r in found.items() if r.get("predictions") and zipfile.is_zipfile(out / r["predictions"])}


def take_up_seeds(cell: Cell, described: Mapping, results: Iterable[Mapping], out: Path) -> None:
    """Give a cell the runs that finished cells of ``out`` hold of it, which are the same but for their seeds."""
    runs = {run.spec.seed: run for run in cell.left}
    same = identity({**described, "seeds": None})
    for result in results:
        if not runs.keys() & set(result["seeds"]) or identity({**result, "seeds": None}) != same:
            continue
        with np.load(out / result["predictions"]) as there:
            probabilities = there["probabilities"]
        for place, seed in enumerate(result["seeds"]):
            if run := runs.pop(seed, None):
                tested, curve = np.flatnonzero(run.part == TEST), result["curve"]
                cell.results[seed] = RunResult(
                    run,
                    tested,
                    probabilities[place, tested],
                    result["best_epoch"][place],
                    result["total_epochs"],
                    curve["val_accuracy"][place],
                    curve["test_accuracy"][place],
                    result["seconds"] / len(result["seeds"]),
                    result["device"],
                )


def set_aside(out: Path, document: dict, others: Iterable[dict]) -> None:
    """Keep finished cells that this plan has not. Nothing is ever taken out of that file: a kill loses no cell."""
    if results := list(others):
        write_document(out / OTHERS, document | {"results": results, "comparisons": [], "skipped": []})


def keep_predictions(cell: Cell, described: Mapping, out: Path) -> str:
    """Write a cell's test predictions; the file's name relative to ``out``.

    clip_id [clip], subject [clip] and label [clip] of all usable clips, seeds [seed], classes [class], and
    probabilities [seed, clip, class], NaN where a clip is not among that seed's test clips.
    """
    clips, results = cell.clips, [cell.results[seed] for seed in cell.seeds]
    probabilities = np.full((len(results), len(clips.label), len(clips.classes)), np.nan, np.float32)
    for values, result in zip(probabilities, results, strict=True):
        values[result.test_clips] = result.probability
    path = out / PREDICTIONS / f"{file_stem(described)}.npz"
    temporary = path.with_name("." + path.name)
    np.savez_compressed(
        temporary,
        clip_id=clips.clip_id,
        subject=clips.subject,
        label=clips.label,
        probabilities=probabilities,
        seeds=np.array(cell.seeds),
        classes=np.array(clips.classes),
    )
    temporary.replace(path)
    return f"{PREDICTIONS}/{path.name}"


def write_document(path: Path, document: dict) -> None:
    """Temp, move: a JSON file is whole or absent."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
