"""One clip's result in one store, kept as a file as soon as it is there: what a killed job goes on from."""

import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..console import say
from ..errors import InputError
from ..media.process import ffmpeg_version
from ..stores.checksums import damage_among, recorded_files
from ..stores.store import MODALITIES, FeatureStore, open_group


@dataclass(frozen=True)
class Part:
    """One clip's result in one store."""

    present: tuple[bool, bool]  # visual, audio
    cause: str = ""  # why the clip failed or lacks a modality
    failed: bool = False
    duration: float = 0.0  # seconds
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # modality -> float16 [segment, feature]
    versions: Mapping[str, str] = field(default_factory=lambda: versions())  # of what made it

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        with temporary.open("wb") as file:
            facts = {"present": self.present, "failed": self.failed, "duration": self.duration}
            texts = {"cause": np.array(self.cause), "versions": np.array(json.dumps(dict(self.versions)))}
            np.savez(file, **facts, **texts, **self.arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Part":
        """OSError, ValueError, KeyError or BadZipFile: the file is not whole."""
        with np.load(path) as saved:
            return cls(
                present=tuple(saved["present"].tolist()),
                cause=str(saved["cause"]),
                failed=bool(saved["failed"]),
                duration=float(saved["duration"]),
                arrays={name: saved[name] for name in MODALITIES if name in saved},
                versions=json.loads(str(saved["versions"])),
            )


def write_media(work: Path, index: int, frames: np.ndarray | None, logmel: np.ndarray | None) -> None:
    """One clip's media into the unfinished media store: one chunk an array, so one writer a chunk."""
    group = open_group(work / "store.zarr", "r+")
    for name, values, filler in (("frames", frames, 0), ("logmel", logmel, np.nan)):
        array = group[name]
        array[index] = np.full(array.shape[1:], filler, array.dtype) if values is None else values


UNREADABLE = (OSError, ValueError, KeyError, zipfile.BadZipFile)


@cache
def versions() -> Mapping[str, str]:
    """What makes the bytes here: this package, the libraries that compute, ffmpeg."""
    libraries = ("mlemiss", "numpy", "librosa", "torch", "timm", "zarr")
    return {name: version(name) for name in libraries} | {"ffmpeg": ffmpeg_version()}


def merged_versions(several: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Versions of a store whose clips were made at different times: `2.14.0, 2.15.0` where they differ."""
    found: dict[str, set[str]] = {}
    for each in several:
        for name, text in each.items():
            found.setdefault(name, set()).update(text.split(", "))
    return {name: ", ".join(sorted(texts)) for name, texts in found.items()}


# ---- finished stores that results are taken from ----

TABLE = ("label", "status", "sha256", "present", "error", "duration")


class DamagedError(InputError):
    """A store's bytes are not what its checksums say; one line."""


@dataclass(frozen=True)
class Donor:
    """A finished store whose metadata and table are as they were written."""

    store: FeatureStore
    files: Mapping[str, Mapping]  # what its COMPLETE.json vouches for

    @classmethod
    def open(cls, path: Path) -> "Donor":
        """DamagedError: its metadata or table are damaged, absent, or not those of a store of clips."""
        donor = cls(FeatureStore.open(path), recorded_files(path))
        donor._check(["zarr.json", *(name for array in TABLE for name in donor._chunks(f"{array}/c/"))])
        return donor

    def block(self, names: Sequence[str], block: int) -> list[np.ndarray]:
        """The ``block``-th chunk along the clips of arrays that share their chunks. DamagedError: one is damaged."""
        self._check([name for array in names for name in self._chunks(f"{array}/c/{block}/")])
        size = self.store.group[names[0]].chunks[0]
        return [self.store.group[name][block * size : (block + 1) * size] for name in names]

    def _chunks(self, prefix: str) -> list[str]:
        return [name for name in self.files if name.startswith(prefix)] or [f"{prefix}…"]

    def _check(self, names: Sequence[str]) -> None:
        path = self.store.path
        if damage_among(path, self.files, names):
            raise DamagedError(f"{path} is damaged (`mlemiss store verify` says where); clips hit are decoded again")


@cache
def say_once(text: str) -> None:
    """A store that serves many clips is complained of once."""
    say(text)
