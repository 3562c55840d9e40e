"""One dataset a file: how its raw folder becomes clips, and what it should hold.

A dataset module has ``NAME``, ``SUMMARY`` (one line with the citation), ``CLASSES`` (label names in the order of the
store's label codes) and ``find(root) -> (clips, notes)``; if data_manifests/NAME.csv is there, clips are checked
against it. Other packages add theirs through the entry-point group ``mlemiss.datasets``.
"""

import importlib
import os
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from types import ModuleType

from ..errors import InputError
from ..manifest import Collection, check_root, collect_manifest, read_manifest

BUILT_IN = ("ravdess",)


def dataset_names() -> dict[str, str]:
    """name -> one line: built-in datasets first, then installed plug-ins."""
    plugins = sorted(plugin.name for plugin in entry_points(group="mlemiss.datasets"))
    return {name: load_dataset(name).SUMMARY for name in (*BUILT_IN, *plugins)}


def load_dataset(name: str) -> ModuleType:
    """The module of a named dataset. InputError: an unknown name."""
    if name in BUILT_IN:
        return importlib.import_module(f".{name}", __name__)
    for plugin in entry_points(group="mlemiss.datasets"):
        if plugin.name == name:
            return plugin.load()
    raise InputError(
        f"unknown dataset {name!r}: expected {', '.join(dataset_names())}, or the path of a CSV manifest.\n"
        "`mlemiss list datasets` describes them; a manifest has the columns clip_id,path,label,subject."
    )


def default_root(name: str) -> Path:
    """$MLEMISS_DATA/NAME, or data/NAME."""
    return Path(os.environ.get("MLEMISS_DATA") or "data") / name


def expected_clips(name: str) -> list[str] | None:
    """The clip ids a dataset should hold, or None where no listing is known."""
    listing = files("mlemiss.data_manifests") / f"{name}.csv"
    return [clip.clip_id for clip in read_manifest(Path(str(listing)))] if listing.is_file() else None


def collect(dataset: str, root: Path | None = None) -> Collection:
    """Find the clips of a named dataset or of a CSV manifest. InputError: no such dataset, root, or any clip in it."""
    if dataset.lower().endswith(".csv"):
        return collect_manifest(Path(dataset), root)
    module = load_dataset(dataset)
    root = check_root(root or default_root(dataset), f"the raw files of {dataset}")
    clips, notes = module.find(root)
    if not clips:
        raise InputError(f"no clip of {dataset} in {root}: expected {module.EXAMPLE}.\nIs this the right folder?")
    found = {clip.clip_id for clip in clips}
    absent = [clip for clip in expected_clips(dataset) or [] if clip not in found]
    clips = tuple(sorted(clips, key=lambda clip: clip.clip_id))
    return Collection(dataset, root, tuple(module.CLASSES), clips, tuple(absent), tuple(notes))
