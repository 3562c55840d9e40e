"""Apply trained weights to the clips of a store."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

from ...pipeline.errors import InputError
from ...pipeline.stores.catalogue import how_to_make
from ...pipeline.stores.masks import MODALITIES
from ...pipeline.stores.store import IMPORTED, MEDIA, FeatureStore
from ..method import ROWS_AT_ONCE, Method
from . import run_folder as kept
from . import weights as saved

LISTED = 6  # cells that a message names


@dataclass(frozen=True)
class Predictions:
    """Of a store's done clips: clip_id, label (empty where it is none of the classes), probability [clip, C]."""

    classes: tuple[str, ...]
    clip_id: np.ndarray
    label: list[str]
    probability: np.ndarray


def choose(run: Path, features: str, **wanted: str | None) -> tuple[Path, dict]:
    """The one weights file of a run that fits, and what it is of.

    wanted: method, fusion and missing as results have them, cell (a part of the file's name); None takes any.
    InputError: no weights are kept, or none or several fit (they are listed).
    """
    files = sorted((run / kept.WEIGHTS).glob(f"*{saved.SUFFIX}"))
    if not files:
        if not (run / kept.RESULTS).is_file():
            raise InputError(f"no run at {run}.\nName the folder of a `mlemiss train --save-weights`.")
        raise InputError(f"{run} keeps no trained weights.\nTrain again with `mlemiss train --save-weights`.")
    headers = [(path, saved.read_header(path)) for path in files]
    part = wanted.pop("cell", None)
    fitting = [
        (path, header)
        for path, header in headers
        if (part is None or part in path.stem) and all(v is None or header[n] == v for n, v in wanted.items())
    ]
    asked = ", ".join(f"{n} {v}" for n, v in {**wanted, "cell": part}.items() if v is not None) or "any"
    if not fitting:
        raise InputError(
            f"no weights in {run} fit ({asked}); there are {_listed(headers)}.\n"
            f"Choose among these with --method, --fusion, --missing or --cell."
        )
    same = [(path, header) for path, header in fitting if header["features"] == features]
    if not same:
        there = ", ".join(dict.fromkeys(header["features"] for _, header in fitting))
        raise InputError(
            f"the weights in {run} take {there} features, and the store has {features} features.\n"
            f"Name a store of the same features, or make one: `{how_to_make(there.split(', ')[0], 'NAME')}`."
        )
    if len(same) > 1:
        raise InputError(
            f"several trained cells in {run} fit: {_listed(same)}.\n"
            f"Choose one with --method, --fusion, --missing or --cell."
        )
    return same[0]


def _listed(headers: Sequence[tuple[Path, Mapping]]) -> str:
    """How many, and the values in which they differ."""
    differing = []
    for name in ("dataset", "features", "method", "fusion", "missing"):
        values = list(dict.fromkeys(header[name] for _, header in headers))
        if len(values) > 1:
            differing.append(f"{name} {' or '.join(values)}")
    cells = ", ".join(path.stem.rpartition("-")[2] for path, _ in headers[:LISTED])
    more = ", …" if len(headers) > LISTED else ""
    return f"{len(headers)} cells ({'; '.join([*differing, f'cell {cells}{more}'])})"


def check_store(header: Mapping, store: FeatureStore) -> None:
    """InputError: a store whose features are not made as those that the weights were trained on."""
    if store.features == MEDIA:
        raise InputError(f"{store.path.name} holds frames and log-Mels, not features.\nName a store of features.")
    here = saved.describe_inputs(store)

    def differs(what: str, trained: object, found: object) -> InputError:
        return InputError(
            f"{store.path.name} does not fit the weights: trained on {what} {trained}, found {found}.\n"
            f"Name a store made as {header['dataset']}-{header['features']} {header['store']} was."
        )

    for name, what in (("modalities", "the modalities"), ("widths", "features a modality")):
        if here[name] != header[name]:
            raise differs(what, header[name], here[name])
    trained, found = _comparable(header["spec"]), _comparable(here["spec"])
    for name in sorted(trained.keys() | found.keys()):
        if trained.get(name) != found.get(name):
            raise differs(name.replace("_", " "), trained.get(name), found.get(name))
    theirs = (header["weights"], header["weights_hash"])
    ours = (store.weights.get("name"), store.weights.get("hash"))
    if theirs[0] == ours[0] == IMPORTED:
        return  # the hash is the imported file's, and another one's clips are what is to be predicted
    if theirs[1] != ours[1] or (ours[0] != theirs[0] and "random" in (ours[0], theirs[0])):
        raise differs("features of weights", f"{theirs[0]} ({theirs[1]})", f"{ours[0]} ({ours[1]})")


def _comparable(spec: Mapping) -> dict:
    """What features depend on.

    Of a backbone's, without the device, whose last bits differ, and the codec; of imported ones the arrays or columns
    they were made of, in their order, and the segments.
    """
    if "backbone" not in spec:
        return {name: spec[name] for name in ("segments", *MODALITIES) if name in spec}
    backbone = {f"backbone's {name}": value for name, value in spec["backbone"].items() if name != "device"}
    return {name: value for name, value in spec.items() if name not in ("backbone", "codec")} | backbone


def predict(path: Path, header: Mapping, store: FeatureStore, device: torch.device) -> Predictions:
    """Probabilities of every done clip: the mean over its segments, then over the seeds.

    InputError: the store does not fit the weights, they are damaged, or features are not finite.
    """
    check_store(header, store)
    methods = saved.load(path, device)
    done = np.flatnonzero(np.asarray(store.status) == "done")
    observed = np.asarray(store.present, bool)[done]  # [clip, M]
    values = [store.read(modality)[done] for modality in store.modalities]  # float16 [clip, S, D] each
    for modality, part, seen in zip(store.modalities, values, observed.T, strict=True):
        bad = seen & ~np.isfinite(part).all((1, 2))
        if bad.any():
            raise InputError(
                f"{store.path}: {modality} features of {int(bad.sum())} clips are not finite, first "
                f"{store.clip_id[done][bad.argmax()]}.\nCheck the store with `mlemiss store verify`."
            )
    runs = sum(len(method.runs) for method in methods)
    total = sum(_probabilities(method, values, observed, device).sum(0) for method in methods)
    classes, label = tuple(header["classes"]), store.label[done]
    named = [store.classes[c] if 0 <= c < len(store.classes) else "" for c in label]
    known = [name if name in classes else "" for name in named]
    return Predictions(classes, store.clip_id[done], known, (total / runs).cpu().numpy())


@torch.no_grad()
def _probabilities(method: Method, values: Sequence[np.ndarray], observed: np.ndarray, device: torch.device) -> Tensor:
    """Of each run: [R, clip, C], the mean over segments. values: per modality [clip, S, D]; observed: [clip, M]."""
    R, S = len(method.runs), values[0].shape[1]
    size = max(ROWS_AT_ONCE // (R * S), 1)
    blocks = []
    for start in range(0, len(observed), size):
        seen = torch.as_tensor(observed[start : start + size], device=device).repeat_interleave(S, 0)  # [n, M]
        x = [torch.as_tensor(part[start : start + size], device=device).float().flatten(0, 1) for part in values]
        x = [rows.masked_fill(~seen[:, m, None], torch.nan).expand(R, -1, -1) for m, rows in enumerate(x)]
        log_probability = method.predict(x, seen.expand(R, -1, -1))  # [R, n, C]
        blocks.append(log_probability.exp().unflatten(1, (-1, S)).mean(2))
    return torch.cat(blocks, 1)


def write_csv(predictions: Predictions, file: TextIO) -> None:
    """clip_id, label, predicted, and the probability of each class in a column ``p_CLASS``."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["clip_id", "label", "predicted", *(f"p_{name}" for name in predictions.classes)])
    best = predictions.probability.argmax(1)
    rows = zip(predictions.clip_id, predictions.label, best, predictions.probability, strict=True)
    for clip, label, c, probability in rows:
        writer.writerow([clip, label, predictions.classes[c], *(f"{p:.6f}" for p in probability)])
