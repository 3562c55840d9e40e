"""One dataset a file: how its raw folder becomes clips, what it should hold, where it can be downloaded.

A dataset module has ``NAME``, ``SUMMARY`` (one line with the citation), ``CLASSES`` (label names in the order of the
store's label codes), where it finds more classes than these also ``ALL_CLASSES``, and ``find(root, files) -> (clips,
notes)`` of what `files_below` lists; what data_manifests/ knows of NAME is compared with what is found. Where anybody
may download it, ``DOWNLOAD`` says how (`manifest.Download`). Where the sound is also there in files of its own,
``AUDIO`` has a line for each kind of them, and ``find(root, files, kind)`` gives clips with an `audio_path`. Other
packages add theirs through the entry-point group ``mlemiss.datasets``.
"""

import importlib
import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from ...errors import InputError
from ..manifest import (
    Collection,
    check_root,
    choose_classes,
    collect_manifest,
    compare_clips,
    files_below,
    keep_classes,
    known_clips,
    note_sounds,
)

BUILT_IN = ("ravdess", "enterface05")


def dataset_names() -> dict[str, str]:
    """Return a line for each dataset: built-in ones first, then installed plug-ins."""
    plugins = sorted(plugin.name for plugin in entry_points(group="mlemiss.datasets"))
    return {name: load_dataset(name).SUMMARY for name in (*BUILT_IN, *plugins)}


def load_dataset(name: str) -> ModuleType:
    """Return the module of a named dataset. InputError: an unknown name."""
    if name in BUILT_IN:
        return importlib.import_module(f".{name}", __name__)
    for plugin in entry_points(group="mlemiss.datasets"):
        if plugin.name == name:
            return plugin.load()
    raise InputError(
        f"unknown dataset {name!r}: expected {', '.join(dataset_names())}, or the path of a CSV manifest.\n"
        "`mlemiss list datasets` describes them; a manifest has the columns clip_id,path,label,subject."
    )


def downloadable(name: str) -> ModuleType:
    """Return the module of a dataset that can be downloaded. InputError: an unknown name, or one that cannot be."""
    module = load_dataset(name)
    if not hasattr(module, "DOWNLOAD"):
        others = ", ".join(other for other in dataset_names() if hasattr(load_dataset(other), "DOWNLOAD"))
        raise InputError(f"cannot fetch {name!r}: only {others} can be downloaded by anybody.\nAsk its makers for it.")
    return module


def default_root(name: str) -> Path:
    """Return the folder $MLEMISS_DATA/NAME, or data/NAME."""
    return Path(os.environ.get("MLEMISS_DATA") or "data") / name


def expected_clips(name: str) -> list[str] | None:
    """Return the clip ids that a dataset should hold of its default classes, or None without a listing."""
    return known_clips(name, load_dataset(name).CLASSES)


def collect(
    dataset: str,
    root: Path | None = None,
    classes: Sequence[str] | None = None,
    follow_links: bool = False,
    audio: str | None = None,
) -> Collection:
    """Find the clips of a dataset.

    Args:
        dataset: its name, or the path of a CSV manifest.
        root: folder of the clips (default: `default_root`, or the CSV's folder).
        classes: only these, in the order of the label codes.
        follow_links: look for a named dataset's clips in folders that are links, too.
        audio: take the sound from the dataset's files of this kind.

    Raises:
        InputError: no such dataset, class, kind of sound or root, or no clip in it.
    """
    if audio is not None:
        _check_audio(dataset, audio)
    if dataset.lower().endswith(".csv"):
        return collect_manifest(Path(dataset), root, classes)
    module = load_dataset(dataset)
    there = getattr(module, "ALL_CLASSES", module.CLASSES)
    classes = choose_classes(classes, there, module.CLASSES, dataset)
    root = check_root(root or default_root(dataset), f"the raw files of {dataset}")
    files, linked = files_below(root, follow_links)
    found, notes = module.find(root, files) if audio is None else module.find(root, files, audio)
    clips, others = keep_classes(found, classes)
    if not clips:
        hint = f"\n{(*others, *linked)[0]}." if others or linked else "\nIs this the right folder?"
        raise InputError(f"no clip of {dataset} in {root}: expected {module.EXAMPLE}.{hint}")
    absent, unexpected = compare_clips(dataset, clips, classes)
    clips = tuple(sorted(clips, key=lambda clip: clip.clip_id))
    notes += note_sounds(root, clips, f"--audio {audio}")
    return Collection(dataset, root, classes, clips, tuple(absent), (*linked, *notes, *others), tuple(unexpected))


def _check_audio(dataset: str, kind: str) -> None:
    """InputError: the dataset has no sound in files of its own, or none of this kind."""
    if dataset.lower().endswith(".csv"):
        raise InputError(f"--audio {kind} is of a known dataset.\nName the sounds of {dataset} in a column audio_path.")
    kinds = getattr(load_dataset(dataset), "AUDIO", {})
    if kind in kinds:
        return
    if kinds:
        allowed = ", ".join(f"{name} ({what})" for name, what in kinds.items())
        raise InputError(f"--audio {kind}: {dataset} has no such files.\nExpected {allowed}, or leave --audio out.")
    having = ", ".join(name for name in dataset_names() if hasattr(load_dataset(name), "AUDIO"))
    raise InputError(
        f"--audio {kind}: {dataset} has no sound in files of its own; only {having} has.\n"
        "Leave it out, or write a CSV with a column audio_path (--dataset FILE.csv)."
    )
