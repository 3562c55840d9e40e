"""Trained methods as files: one safetensors file a cell, in a run's folder weights/.

Tensors have the runs (seeds) as their first axis and are named PART.state.NAME (parameters and buffers, of each run's
best validation epoch) and PART.prepared.NAME (what else predicting from incomplete clips takes, such as the support
of a marginal). Seeds of a cell whose runs had the same shape are one part. The header's entry ``mlemiss`` is a JSON
text that says what the weights are of and what features they take.

Shapes: R runs, D features, C classes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ...pipeline.errors import InputError
from ...pipeline.stores.store import FeatureStore
from .. import methods as registry
from ..data import Blueprint
from ..method import Method
from ..settings import Settings

SCHEMA = 1
HEADER = "mlemiss"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Part:
    """Runs of one cell that were trained side by side: what building their method takes, and its tensors, R first."""

    seeds: list[int]
    lacking: list[bool]  # per modality, as in `Blueprint`
    lacking_held_out: list[bool]
    tensors: dict[str, Tensor]


@torch.no_grad()
def parts_of(method: Method, owners: Sequence[Sequence[int]]) -> list[Part]:
    """A trained method's tensors on the host, a part for each list of its runs; ready to predict from any pattern.

    ValueError: a tensor that does not have the runs first.
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
        parts.append(Part([runs.seeds[r] for r in rows], lacking, held_out, chosen))
    return parts


def describe_inputs(store: FeatureStore) -> dict:
    """What a store's features are, as far as weights trained on them depend on it."""
    widths = {modality: store.shape(modality)[-1] for modality in store.modalities}
    return {"modalities": list(store.modalities), "widths": widths, "spec": store.attrs.get("spec") or {}}


def save(path: Path, described: Mapping, parts: Sequence[Part]) -> None:
    """Write one cell's file. described: what it is of, plain values, `describe_inputs` among them."""
    tensors = {f"{p}.{name}": tensor for p, part in enumerate(parts) for name, tensor in part.tensors.items()}
    shapes = [{name: value for name, value in vars(part).items() if name != "tensors"} for part in parts]
    header = dict(described) | {"schema": SCHEMA, "parts": shapes, "digest": _digest(tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    temporary.write_bytes(to_bytes(tensors, {HEADER: json.dumps(header)}))  # save_file would make it private
    temporary.replace(path)


def read_header(path: Path) -> dict:
    """What a weights file is of. InputError: it is damaged, or none of mlemiss."""
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
    """A cell's trained method, one for each part; `Method.predict` works, training does not.

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
        settings = Settings(**header["settings"])
        return [_build(kind, header, settings, part, p, tensors, device) for p, part in enumerate(header["parts"])]
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} was written by mlemiss {header['versions']['mlemiss']}, and this version builds "
            f"{header['method']} differently ({str(error).splitlines()[0]}).\nTrain again with --save-weights."
        ) from None


def _build(
    kind: type[Method],
    header: Mapping,
    settings: Settings,
    part: Mapping,
    place: int,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> Method:
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
    own = {name.removeprefix(f"{place}."): t for name, t in tensors.items() if name.startswith(f"{place}.")}
    method.load_state_dict({n.removeprefix("state."): t for n, t in own.items() if n.startswith("state.")})
    method.prepared = {n.removeprefix("prepared."): t.to(device) for n, t in own.items() if n.startswith("prepared.")}
    return method.to(device).eval()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"weights file {path} is damaged ({why}).\nCopy it again, or train again with --save-weights.")
