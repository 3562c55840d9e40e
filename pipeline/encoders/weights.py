"""The weights of networks: from the hub or a user's file, checked tensor by tensor before anything is computed."""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import struct
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import amount, name_some
from ..errors import InputError
from ..files import foreign_content, sha256_of
from . import Weights

if TYPE_CHECKING:
    import torch

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

RANDOM_SEED = 0
# What torch's unpickler raises where a file is something else.
UNPICKLING_ERRORS = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
UNPICKLING_ERRORS += (AssertionError, pickle.UnpicklingError, struct.error)
HUB_TIMEOUT = 5.0  # seconds for the hub's first answer; the hub client alone would retry for most of a minute
# Files of what prepares a transformer's input, by what loads them: any of them will do.
PREPARING = {
    "AutoFeatureExtractor": ("preprocessor_config.json", "processor_config.json"),
    "AutoTokenizer": ("tokenizer.json", "vocab*", "*.model"),
}
MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin"]  # of a transformer
NO_MATTER = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}
)
WRAPPERS = ("state_dict", "model", "model_state_dict")  # a checkpoint's key of the state dict, the first that is there
COUNTER = "num_batches_tracked"  # of batch norms: no part of what they compute


def load_network(tag: str, weights: Weights) -> tuple["torch.nn.Module", list[str]]:
    """Load a network of timm without its classifier.

    Args:
        tag: its full timm tag.
        weights: where its weights come from.

    Returns:
        The network in evaluation mode, and notes on what its file holds beside it.

    Raises:
        InputError: weights that cannot be had, are not finite, or are not this network's.
    """
    import timm
    import torch

    if weights.name == "random" and weights.file is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return timm.create_model(tag, pretrained=False, num_classes=0).eval(), []
    path = Path(weights.file) if weights.file else _imagenet_file(tag)
    tensors, notes = _read_weights(path)
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # keys that are left over are told below
    try:
        # timm converts other libraries' key names and leaves out the classifier
        model = timm.create_model(tag, pretrained=True, num_classes=0, pretrained_cfg_overlay={"state_dict": tensors})
    except (RuntimeError, KeyError, AttributeError, ValueError):
        raise _misfit(path, tag, tensors) from None
    state, in_file = model.state_dict(), {name: _digest(tensor) for name, tensor in tensors.items()}
    own = {name: _digest(tensor) for name, tensor in state.items() if COUNTER not in name}
    # Loading without the classifier is lenient, so check that nothing kept its random initial value.
    if absent := [name for name, digest in own.items() if digest not in set(in_file.values())]:
        raise _misfit(path, tag, tensors, absent)
    check_finite(model, f"weights file {path}")
    if weights.file:  # the hub's files are their tags' own
        renamed = {digest for name, digest in own.items() if name not in in_file}
        left = (name for name, digest in in_file.items() if name not in state and digest not in renamed)
        notes += _left_over(path, tag, model, [name for name in left if COUNTER not in name])
    return model.eval(), notes


def check_finite(model: "torch.nn.Module", what: str) -> None:
    """Check that all of a model's tensors are finite. InputError: some are not; ``what`` says whose they are."""
    import torch

    if broken := [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise InputError(
            f"{what}: {amount(len(broken), 'tensor')} with NaN or infinite values: {name_some(broken)}.\n"
            "The training that wrote it diverged, or the file is damaged: give another one."
        )


def weights_hash(model: "torch.nn.Module", described: str = "") -> str:
    """Return a hash over the sorted tensors, the same for a .pth and a .safetensors of them: 16 hex digits.

    described: what else the features depend on, hashed too.
    """
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0{_digest(tensor)}\n".encode())
    return digest.hexdigest()[:16]


def describing_files(folder: Path, patterns: Iterable[str]) -> str:
    """Return what the files of a transformer's folder say of how it computes: JSON without versions and places."""
    found = []
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        try:
            content = json.loads(path.read_bytes())
            content = {k: v for k, v in content.items() if k not in NO_MATTER} if isinstance(content, dict) else content
        except ValueError:  # a list of words, or a library's own format
            content = sha256_of(path)
        found.append([path.name, content])
    return json.dumps(found, sort_keys=True)


def _digest(tensor: "torch.Tensor") -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _left_over(path: Path, tag: str, model: "torch.nn.Module", names: list[str]) -> list[str]:
    """Return a note on tensors that were not used. InputError: some are more layers of the network's own parts."""
    classifiers = model.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    names = [name for name in names if name.rpartition(".")[0] not in classifiers]
    if not names:
        return []
    told = f"{amount(len(names), 'tensor')} of it left over: {name_some(names)}"
    parameters = [name for name, _ in model.named_parameters()]
    parts, kinds = {name.split(".")[0] for name in parameters}, {name.rpartition(".")[2] for name in parameters}
    if any(name.split(".")[0] in parts and name.rpartition(".")[2] in kinds for name in names):
        raise InputError(
            f"weights file {path} holds more than {tag}: {told}.\n"
            "It is of a larger network: give the weights of this very architecture, or name the architecture that it "
            "is of (--features)."
        )
    return [f"weights file {path} fits {tag}, with {told}"]


def _misfit(path: Path, tag: str, tensors: Mapping, absent: Iterable[str] = ()) -> InputError:
    """Return the error that names the first tensors of both sides, and the prefix without which the file would fit."""
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        state = timm.create_model(tag, pretrained=False, num_classes=0).state_dict()
    expected = [name for name in state if COUNTER not in name]
    absent = [name for name in expected if name not in tensors] or list(absent)
    told = ""
    if absent:
        told = f", found no {name_some(absent)}"
    elif shaped := [name for name in expected if tensors[name].shape != state[name].shape]:
        shapes = [f"{list(there[shaped[0]].shape)}" for there in (state, tensors)]
        told = f", but {shaped[0]} is {shapes[0]} in the network and {shapes[1]} in the file"
    first = f"The file's first tensors are {name_some(tensors) or 'none'}"
    ends = {name[: -len(expected[0])] for name in tensors if name.endswith(f".{expected[0]}")}
    if fitting := sorted(prefix for prefix in ends if all(prefix + name in tensors for name in expected)):
        many = " (choose one)" if len(fitting) > 1 else ""
        first += (
            f"; without the prefix {' or '.join(map(repr, fitting))}{many} it would fit: write the tensors that "
            "have it to a new file, under their names without it."
        )
    else:
        first += ".\nGive the weights of this very architecture."
    return InputError(
        f"weights file {path} does not fit {tag}: expected every tensor of the network in it, classifier apart{told}.\n"
        f"{first}"
    )


def _state_dict(path: Path, loaded: object) -> tuple[Mapping, list[str]]:
    """Return the state dict of what a checkpoint holds, and a note on other ones. InputError: there is none."""
    import torch

    def is_state(found: object) -> bool:
        return isinstance(found, Mapping) and all(isinstance(value, torch.Tensor) for value in found.values())

    several = {k: v for k, v in loaded.items() if is_state(v) and v} if isinstance(loaded, Mapping) else {}
    if chosen := next((key for key in WRAPPERS if key in several), ""):
        others = [key for key in several if key != chosen]
        notes = [f"weights file {path}: took {chosen!r}; it holds {name_some(others)} too"] if others else []
        return several[chosen], notes
    if not is_state(loaded):
        found = f"{type(loaded).__name__}{' with tensors under ' + name_some(map(repr, several)) if several else ''}"
        raise InputError(
            f"weights file {path}: expected a state dict of tensors, found {found}.\n"
            f"Expected names and tensors alone, or such a dict under {', '.join(WRAPPERS)}: write what is wanted of it "
            "to a file of its own."
        )
    return loaded, []


def _imagenet_file(tag: str) -> Path:
    """The pinned weights from the hub's cache, else downloaded. InputError within seconds where neither can be."""
    import timm
    from huggingface_hub import constants

    config = timm.models.get_pretrained_cfg(tag)
    repository = config.hf_hub_id if config else None
    why = "timm has no pretrained weights under this tag"
    for filename in ("model.safetensors", "pytorch_model.bin") if repository else ():
        found, why, goes_on = _from_hub(repository, filename)
        if found:
            return found
        if not goes_on:
            break
    raise InputError(
        f"no ImageNet weights for {tag}: {why}; cache folder: {constants.HF_HUB_CACHE}.\n"
        f"Name a weights file instead (--weights FILE, end to end --init FILE; safetensors or torch), or random for an "
        "untrained network."
    )


def _from_hub(repository: str, filename: str) -> tuple[Path | None, str, bool]:
    """Return a file of the hub, from its cache or downloaded; else why not, and whether another file may be there."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, local_files_only=True)), "", False
    except LocalEntryNotFoundError:
        pass
    except OSError as error:
        return None, f"the cache cannot be used ({error.strerror}: {error.filename}; HF_HOME names another)", False
    if constants.HF_HUB_OFFLINE:
        return None, "not in the cache, and the hub is switched off (HF_HUB_OFFLINE)", True
    try:
        _ask(hf_hub_url(repository, filename))
        return Path(hf_hub_download(repository, filename, etag_timeout=HUB_TIMEOUT)), "", False
    except urllib.error.HTTPError as error:
        return None, f"not in the cache, and the hub answered {error.code} for {repository}/{filename}", True
    except (OSError, HfHubHTTPError) as error:
        if getattr(error, "filename", None):
            return None, f"the cache cannot be used ({error.strerror}: {error.filename}; HF_HOME names another)", False
        return None, f"not in the cache, and the hub cannot be reached ({getattr(error, 'reason', error)})", False


def _ask(url: str) -> None:
    """Ask the hub one quick question first: its client retries an unreachable hub many times. OSError: it is that."""
    urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT).close()


def hub_folder(name: str, features: str) -> Path:
    """Return the folder of a model of the hub: from its cache, else downloaded, also where only a part is in the cache.

    InputError: its weights are nowhere, within seconds where the hub cannot be reached.
    """
    from huggingface_hub import constants, hf_hub_url, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    config, why, _ = _from_hub(name, "config.json")
    if config and not _is_whole(config.parent):
        why = "its weights are not in the cache, and the hub is switched off (HF_HUB_OFFLINE)"
        if not constants.HF_HUB_OFFLINE:
            why, revision = "", config.parent.name
            try:
                with contextlib.suppress(urllib.error.HTTPError):  # the client has the user's token, and may be let in
                    _ask(hf_hub_url(name, "config.json", revision=revision))
                snapshot_download(name, revision=revision, allow_patterns=MODEL_FILES, etag_timeout=HUB_TIMEOUT)
            except (OSError, HfHubHTTPError) as error:
                why = f"its weights cannot be downloaded ({error})"
    if config and _has_weights(config.parent):
        return config.parent
    raise InputError(
        f"no model for {features!r}: {why or 'it has no weights'}; cache folder: {constants.HF_HUB_CACHE}.\n"
        "Name the folder of a copy instead (hf:FOLDER), or another model."
    )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _is_whole(folder: Path) -> bool:
    patterns = (pattern for several in PREPARING.values() for pattern in several)
    return _has_weights(folder) and any(any(folder.glob(pattern)) for pattern in patterns)


def _is_torch_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return b"/data.pkl" in file.read(1024)


def _read_weights(path: Path) -> tuple[dict, list[str]]:
    """Tensors of a safetensors file or of a torch file read weights-only (no code of it is run), and notes."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (*UNPICKLING_ERRORS, SafetensorError) as error:
        with contextlib.suppress(OSError):
            if found := foreign_content(path, zipped=_is_torch_archive(path)):
                raise InputError(f"weights file {path}: this is {found}, no safetensors or torch file.") from None
        raise InputError(
            f"weights file {path}: not readable as safetensors or a torch file of tensors ({type(error).__name__}).\n"
            "Expected a state dict, tensor names and tensors alone: a pickled model is not loaded, it could run code."
        ) from None
    loaded, notes = _state_dict(path, loaded)
    tensors = {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, notes
