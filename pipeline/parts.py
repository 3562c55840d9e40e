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

from .errors import InputError
from .ffmpeg_process import ffmpeg_version
from .plan import Output
from .store import MODALITIES


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


UNREADABLE = (OSError, ValueError, KeyError, zipfile.BadZipFile)


def load_parts(output: Output, indexes: Sequence[int]) -> list[Part]:
    """The clips' results. InputError: some are unreadable; they are dropped, so that the next run makes them again."""
    parts, bad = [], []
    for index in indexes:
        try:
            parts.append(Part.load(output.part(index)))
        except UNREADABLE:
            output.part(index).unlink(missing_ok=True)
            bad.append(index)
    if bad:
        raise InputError(f"{len(bad)} unfinished results in {output.work} were unreadable and are gone.\nRun again.")
    return parts


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
