"""Trained methods as files, and predictions from them: one safetensors file a cell, in a run's folder weights/.

Tensors have the runs (seeds) as their first axis and are named PART.state.NAME (parameters and buffers, of each run's
best validation epoch) and PART.prepared.NAME (what else predicting from incomplete clips takes, such as the support
of a marginal). Seeds of a cell whose runs had the same shape are one part. The header's entry ``mlemiss`` is a JSON
text that says what was trained and what features it takes.

Shapes: R runs, M modalities, S segments a clip, D features, C classes.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ...pipeline.console import printable, say
from ...pipeline.errors import InputError
from ...pipeline.files import csv_lines, whole_file
from ...pipeline.stores.catalogue import how_to_make
from ...pipeline.stores.store import IMPORTED, MEDIA, FeatureStore
from .. import methods as registry
from ..data import Blueprint
from ..method import Method, rows_at_once
from ..settings import BEFORE, Settings

SCHEMA = 1
HEADER = "mlemiss"
FOLDER, SUFFIX = "weights", ".safetensors"
LISTED = 6  # cells that a message names
OF_DEVICE = ("device", "execution", "batch")  # of a backbone's spec


@dataclass(frozen=True)
class TrainedRuns:
    """Runs of one cell that were trained side by side: what their method is built from, and its tensors, R first."""

    seeds: list[int]
    lacking: list[bool]  # per modality, as in `Blueprint`
    lacking_held_out: list[bool]
    tensors: dict[str, Tensor]


@torch.no_grad()
def parts_of(method: Method, owners: Sequence[Sequence[int]]) -> list[TrainedRuns]:
    """Return a trained method's tensors on the host, a part for each list of its runs.

    The method is first prepared to predict from any pattern. ValueError: a tensor that does not have the runs first.
    """
    runs = method.runs
    method.eval()
    method.prepare_predictions([True] * len(runs.modalities))
    tensors = {f"state.{name}": tensor for name, tensor in method.state_dict().items()}
    tensors |= {f"prepared.{name}": tensor for name, tensor in method.prepared.items()}
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or len(tensor) != len(runs):
            raise ValueError(f"{name}: expected {len(runs)} runs first, found {list(tensor.shape)}.")
    lacking, held_out = [list(map(bool, flags)) for flags in (runs.lacking, runs.lacking_held_out)]
    parts = []
    for rows in owners:
        chosen = {name: tensor[list(rows)].cpu().contiguous() for name, tensor in tensors.items()}
        parts.append(TrainedRuns([runs.seeds[r] for r in rows], lacking, held_out, chosen))
    return parts


def describe_inputs(store: FeatureStore) -> dict:
    """Return what weights that are trained on a store's features depend on."""
    widths = {modality: store.shape(modality)[-1] for modality in store.modalities}
    spec = store.attrs.get("spec") or {}
    return {"modalities": list(store.modalities), "widths": widths, "spec": spec, "joined": store.joined}


def save(path: Path, described: Mapping, parts: Sequence[TrainedRuns]) -> None:
    """Write one cell's file. described: plain values that say what was trained, `describe_inputs` among them."""
    tensors = {f"{p}.{name}": tensor for p, part in enumerate(parts) for name, tensor in part.tensors.items()}
    shapes = [{name: value for name, value in vars(part).items() if name != "tensors"} for part in parts]
    header = dict(described) | {"schema": SCHEMA, "parts": shapes, "digest": _digest(tensors)}
    with whole_file(path) as file:
        file.write(to_bytes(tensors, {HEADER: json.dumps(header)}))


def read_header(path: Path) -> dict:
    """Return the header of a weights file. InputError: it is damaged, or not written by mlemiss."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if header.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema {header.get('schema')!r}, this version of mlemiss reads {SCHEMA}.\n"
            f"Train again, or install mlemiss {header.get('versions', {}).get('mlemiss')}."
        )
    return header


def load(path: Path, device: torch.device) -> list[Method]:
    """Return a cell's trained method, one for each part; `Method.predict` works, training does not.

    InputError: the file is damaged, or holds another shape of the method than this version builds.
    """
    header = read_header(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if _digest(tensors) != header["digest"]:
        raise _damaged(path, "its tensors are not the ones that were written")
    kind = registry.load(header["method"])
    try:
        settings = Settings(**BEFORE | header["settings"])
        owned = [{n: t for n, t in tensors.items() if n.startswith(f"{p}.")} for p in range(len(header["parts"]))]
        owned = [{n.partition(".")[2]: t for n, t in own.items()} for own in owned]
        parts = zip(header["parts"], owned, strict=True)
        return [build(kind, header, settings, part, own, device) for part, own in parts]
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} was written by mlemiss {header['versions']['mlemiss']}, and this version builds "
            f"{header['method']} differently ({str(error).splitlines()[0]}).\nTrain again with --save-weights."
        ) from None


def build(
    kind: type[Method],
    header: Mapping,
    settings: Settings,
    part: Mapping,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> Method:
    """Return a trained method that `Method.predict` works of, without training data.

    header: modalities, widths, classes and fusion. part, tensors: what a `TrainedRuns` holds.
    """
    R = len(part["seeds"])
    widths = [header["widths"][modality] for modality in header["modalities"]]
    blueprint = Blueprint(
        seeds=part["seeds"],
        modalities=tuple(header["modalities"]),
        classes=tuple(header["classes"]),
        moments=[(torch.zeros(R, D, device=device), torch.ones(R, D, device=device)) for D in widths],  # overwritten
        log_prior=torch.zeros(R, len(header["classes"]), device=device),
        lacking=part["lacking"],
        lacking_held_out=part["lacking_held_out"],
        device=device,
    )
    method = kind(blueprint, settings, header["fusion"])
    method.load_state_dict({n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")})
    prepared = {n: t.to(device) for n, t in tensors.items() if n.startswith("prepared.")}
    method.prepared = {n.removeprefix("prepared."): t for n, t in prepared.items()}
    return method.to(device).eval()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"weights file {path} is damaged ({why}).\nCopy it again, or train again with --save-weights.")


@dataclass(frozen=True)
class Predictions:
    """The done clips of a store with any modality.

    clip_id; label, empty where it is not among the classes; probability [clip, C].
    """

    classes: tuple[str, ...]
    clip_id: np.ndarray
    label: list[str]
    probability: np.ndarray


def choose(run: Path, features: str, **wanted: str | None) -> tuple[Path, dict]:
    """Return the one weights file of a run that fits, and its header.

    wanted: method, fusion and missing as results have them, cell (a part of the file's name); None takes any. Of one
    method and references, the method is taken.
    InputError: no weights are kept, or none or several fit (they are listed).
    """
    files = sorted((run / FOLDER).glob(f"*{SUFFIX}"))
    if not files:
        if not (run / "results.json").is_file():
            raise InputError(f"no run at {run}.\nName the folder of a `mlemiss train --save-weights`.")
        raise InputError(f"{run} keeps no trained weights.\nTrain again with `mlemiss train --save-weights`.")
    headers = [(path, read_header(path)) for path in files]
    part = wanted.pop("cell", None)
    fitting = [
        (path, header)
        for path, header in headers
        if (part is None or part in path.stem) and all(v is None or header[n] == v for n, v in wanted.items())
    ]
    asked = ", ".join(f"{n} {v}" for n, v in {**wanted, "cell": part}.items() if v is not None) or "any"
    if not fitting:
        named = [name for name, value in wanted.items() if value is not None]
        raise InputError(
            f"no weights in {run} fit ({asked}); there are {_listed(headers, named)}.\n"
            f"Choose among these with --method, --fusion, --missing or --cell."
        )
    same = [(path, header) for path, header in fitting if _feeds(features, header["features"])]
    if not same:
        there = ", ".join(dict.fromkeys(header["features"] for _, header in fitting))
        how = f"Name a store of the same features, or make one: `{how_to_make(there.split(', ')[0], 'NAME')}`."
        if "=" in there:
            how = "Join stores of these features: `--store visual=PATH,audio=PATH`."
        raise InputError(f"the weights in {run} take {there} features, and the store has {features} features.\n{how}")
    fused = [(path, header) for path, header in same if not header.get("reference")]
    same = fused if len(fused) == 1 else same  # a method beside the single modalities it is measured against
    if len(same) > 1:
        raise InputError(
            f"several trained cells in {run} fit: {_listed(same)}.\n"
            f"Choose one with --method, --fusion, --missing or --cell."
        )
    return same[0]


def _feeds(features: str, trained: str) -> bool:
    """Return whether features are those of the weights, or of joined ones some modalities: `visual=A` of both."""
    return features == trained or ("=" in trained and set(features.split(",")) <= set(trained.split(",")))


def _listed(headers: Sequence[tuple[Path, Mapping]], asked: Collection[str] = ()) -> str:
    """Return how many there are, and the values in which they differ, or that were asked for."""
    differing = []
    for name in ("dataset", "features", "method", "fusion", "missing"):
        values = list(dict.fromkeys(header[name] for _, header in headers))
        if len(values) > 1 or name in asked:
            differing.append(f"{name} {' or '.join(values)}")
    cells = ", ".join(path.stem.rpartition("-")[2] for path, _ in headers[:LISTED])
    more = ", …" if len(headers) > LISTED else ""
    return f"{len(headers)} cells ({'; '.join([*differing, f'cell {cells}{more}'])})"


def check_store(header: Mapping, store: FeatureStore) -> None:
    """Check that a store's features are made as those that the weights were trained on; modalities may be missing.

    InputError: they are not.
    """
    if store.features == MEDIA:
        raise InputError(f"{store.path.name} holds frames and log-Mels, not features.\nName a store of features.")
    here = describe_inputs(store)

    def differs(what: str, trained: object, found: object) -> InputError:
        return InputError(
            f"{store.path.name} does not fit the weights: trained on {what} {trained}, found {found}.\n"
            f"Name a store made as {header['dataset']}-{header['features']} {header['store']} was."
        )

    if not set(here["modalities"]) <= set(header["modalities"]):
        raise differs("the modalities", header["modalities"], here["modalities"])
    looked_at = registry.load(header["method"]).modalities
    if looked_at and not set(looked_at) & set(here["modalities"]):
        raise differs("the modality", ", ".join(looked_at), ", ".join(here["modalities"]))
    widths = {name: header["widths"][name] for name in here["modalities"]}
    if here["widths"] != widths:
        raise differs("features a modality", widths, here["widths"])
    header = {"joined": None} | dict(header) | {"modalities": here["modalities"]}
    here |= {"weights": store.weights.get("name"), "weights_hash": store.weights.get("hash")}
    for theirs, ours in zip(_sources(header), _sources(here), strict=True):
        trained, found = (_comparable(one["spec"], one["modalities"]) for one in (theirs, ours))
        for name in sorted(trained.keys() | found.keys()):
            if trained.get(name) != found.get(name):
                raise differs(name.replace("_", " "), trained.get(name), found.get(name))
        names = (theirs["weights"], ours["weights"])
        if names == (IMPORTED, IMPORTED):
            continue  # the hash is the imported file's, and another one's clips are what is to be predicted
        if theirs["weights_hash"] != ours["weights_hash"] or (names[0] != names[1] and "random" in names):
            said = (f"{one['weights']} ({one['weights_hash']})" for one in (theirs, ours))
            raise differs("features of weights", *said)


def _sources(inputs: Mapping) -> list[Mapping]:
    """Return the inputs that weights depend on, store by store where several were joined."""
    joined, spec = inputs["joined"], inputs["spec"]
    if not joined:
        return [inputs]
    return [{**joined[name], "spec": spec[name], "modalities": [name]} for name in inputs["modalities"]]


def _comparable(spec: Mapping, modalities: Sequence[str]) -> dict:
    """Return what features depend on.

    For a backbone: everything but the codec and what a device changes, the last bits. For imported features: the
    segments, what steps became, and the arrays, columns or folder of each modality in their order.
    """
    if "backbone" not in spec:
        return {name: spec[name] for name in ("segments", "pool", "zero", "confidence", *modalities) if name in spec}
    backbone = {f"backbone's {name}": value for name, value in spec["backbone"].items() if name not in OF_DEVICE}
    return {name: value for name, value in spec.items() if name not in ("backbone", "codec")} | backbone


def predict(path: Path, header: Mapping, store: FeatureStore, device: torch.device) -> Predictions:
    """Return the probabilities of every done clip with any modality: the mean over its segments, then over the seeds.

    A modality that the store does not have is missing in every clip.
    InputError: the store does not fit the weights, they are damaged, or features are not finite.
    """
    check_store(header, store)
    methods = load(path, device)
    done = np.flatnonzero(store.done & store.present.any(1))
    values, observed = _inputs(header, store, done)
    runs = sum(len(method.runs) for method in methods)
    total = sum(probabilities(method, values, observed, device).sum(0) for method in methods)
    classes, label = tuple(header["classes"]), store.label[done]
    named = [store.classes[c] if 0 <= c < len(store.classes) else "" for c in label]
    known = [name if name in classes else "" for name in named]
    return Predictions(classes, store.clip_id[done], known, (total / runs).cpu().numpy())


def _inputs(header: Mapping, store: FeatureStore, done: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return these clips' features, per modality float16 [clip, S, D], and which are observed, [clip, M]."""
    values, observed = [], np.zeros((len(done), len(header["modalities"])), bool)
    for m, modality in enumerate(header["modalities"]):
        if modality not in store.modalities:
            values.append(np.zeros((len(done), 1, header["widths"][modality]), np.float16))
            if modality in (registry.load(header["method"]).modalities or header["modalities"]):
                say(f"note: {store.path} has no {modality}: its clips are predicted without")
            continue
        values.append(store.read(modality)[done])
        observed[:, m] = store.present[done, store.modalities.index(modality)]
        bad = observed[:, m] & ~np.isfinite(values[m]).all((1, 2))
        if bad.any():
            raise InputError(
                f"{store.path}: {modality} features of {int(bad.sum())} clips are not finite, first "
                f"{store.clip_id[done][bad.argmax()]}.\nCheck the store with `mlemiss store verify`."
            )
    return values, observed


@torch.no_grad()
def probabilities(method: Method, values: Sequence[np.ndarray], observed: np.ndarray, device: torch.device) -> Tensor:
    """Return the mean over segments, [R, clip, C]. values: per modality [clip, S, D]; observed: [clip, M]."""
    R, S, exact = len(method.runs), max(part.shape[1] for part in values), next(method.parameters()).dtype
    size = max(rows_at_once(device) // (R * S), 1)
    blocks = []
    for start in range(0, len(observed), size):
        seen = torch.as_tensor(observed[start : start + size], device=device).repeat_interleave(S, 0)  # [n, M]
        x = [torch.as_tensor(part[start : start + size], device=device).to(exact) for part in values]
        x = [part.expand(-1, S, -1).flatten(0, 1) for part in x]  # one segment a clip counts for every segment
        x = [rows.masked_fill(~seen[:, m, None], torch.nan).expand(R, -1, -1) for m, rows in enumerate(x)]
        log_probability = method.predict(x, seen.expand(R, -1, -1))  # [R, n, C]
        blocks.append(log_probability.exp().unflatten(1, (-1, S)).mean(2))
    return torch.cat(blocks, 1)


def write_predictions(predictions: Predictions, file: TextIO) -> None:
    """Write a CSV: clip_id, label, predicted, and the probability of each class in a column ``p_CLASS``."""
    header = ["clip_id", "label", "predicted", *(f"p_{name}" for name in predictions.classes)]
    best = predictions.probability.argmax(1)
    rows = zip(predictions.clip_id, predictions.label, best, predictions.probability, strict=True)
    named = ((clip, label, predictions.classes[c], *(f"{p:.6f}" for p in values)) for clip, label, c, values in rows)
    csv_lines(file, header, (map(printable, row) for row in named) if file.isatty() else named)
