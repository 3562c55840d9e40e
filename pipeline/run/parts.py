"""A clip's result in one store, in a file of its own as soon as it is computed: a killed run resumes from these files.

Also the finished stores that such results are taken from.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from ..console import say_once
from ..encoders.names import SEGMENTS
from ..errors import InputError
from ..files import whole_file
from ..media import ffmpeg, logmel
from ..media.logmel import SAMPLE_RATE
from ..media.process import due_to_limit, ffmpeg_version
from ..stores.catalogue import stores_in, why_not
from ..stores.checksums import find_damage
from ..stores.masks import MODALITIES
from ..stores.schema import CLIP, FACE_BOX, WAVEFORM
from ..stores.store import MEDIA, FeatureStore, open_group

FACTS = frozenset({"present", "failed", "duration", "row", "cause", "versions", FACE_BOX})  # beside arrays
UNREADABLE = (OSError, ValueError, KeyError, zipfile.BadZipFile)  # of a part or store that is damaged or absent


@dataclass(frozen=True)
class Part:
    """One clip's result in one store."""

    present: tuple[bool, ...]  # by modality
    cause: str = ""  # why the clip failed or lacks a modality
    failed: bool = False
    duration: float = 0.0  # seconds
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # modality -> float16 [segment, feature]
    versions: Mapping[str, str] = field(default_factory=lambda: versions())  # of the software that computed it
    row: int = 0  # of the clip in the unfinished store, where its media are
    box: np.ndarray | None = None  # float [4], of the face that its frames are cut to

    def save(self, path: Path) -> None:
        """Write the part to a file, whole or not at all."""
        facts = {"present": self.present, "failed": self.failed, "duration": self.duration, "row": self.row}
        texts = {"cause": np.array(self.cause), "versions": np.array(json.dumps(dict(self.versions)))}
        box = {} if self.box is None else {FACE_BOX: self.box}
        with whole_file(path) as file:
            np.savez(file, **facts, **texts, **box, **self.arrays)

    @classmethod
    def load(cls, path: Path) -> "Part":
        """Read a part from its file.

        Raises:
            OSError, ValueError, KeyError, BadZipFile: the file is absent or damaged (`UNREADABLE`).
        """
        with np.load(path) as saved:
            return cls(
                present=tuple(saved["present"].tolist()),
                cause=str(saved["cause"]),
                failed=bool(saved["failed"]),
                duration=float(saved["duration"]),
                arrays={name: saved[name] for name in saved.files if name not in FACTS},
                versions=json.loads(str(saved["versions"])),
                row=int(saved["row"]),
                box=saved[FACE_BOX] if FACE_BOX in saved.files else None,
            )


MEDIA_SHAPES = {  # of one clip
    "frames": (SEGMENTS, ffmpeg.FRAME_SIZE, ffmpeg.FRAME_SIZE, 3),
    "logmel": (SEGMENTS, 3, logmel.N_MELS, logmel.MEL_FRAMES),
}
WAVEFORM_CHUNK = 30 * SAMPLE_RATE  # samples
# Of an unfinished store, 37 hours: a result may be of a run with another limit. Cut to the longest clip at the end.
WAVEFORM_ROOM = 1 << 31


def samples_of(duration: float) -> int:
    """Return the number of samples of a clip's waveform, from its duration in seconds."""
    return round(duration * SAMPLE_RATE)


def write_media(
    work: Path,
    rows: Sequence[int],
    frames: np.ndarray | None,
    logmel: np.ndarray | None,
    waveform: np.ndarray | None = None,
) -> None:
    """Write a clip's media into an unfinished media store: chunks of one row each, so that each has one writer.

    Args:
        work: the store's work folder.
        rows: of all clips that have this content.
        frames: uint8 [segment, row, column, channel], None where the clip has no picture.
        logmel: float16 [segment, channel, mel, time], None where the clip has no sound.
        waveform: float32 [sample], kept if the store has an array for it.
    """
    group = open_group(work / "store.zarr", "r+")
    if waveform is not None and WAVEFORM in group:
        if len(waveform) > WAVEFORM_ROOM:  # zarr would cut it and say nothing
            raise ValueError(f"a waveform of {len(waveform)} samples is longer than the {WAVEFORM_ROOM} that fit")
        for row in rows:
            group[WAVEFORM][row, : len(waveform)] = waveform
    for name, values, filler in (("frames", frames, 0), ("logmel", logmel, np.nan)):
        array = group[name]
        for row in rows:
            array[row] = np.full(array.shape[1:], filler, array.dtype) if values is None else values


@cache
def versions(more: tuple[str, ...] = ()) -> Mapping[str, str]:
    """Return the versions of what determines the bytes: this package, the libraries that compute, ffmpeg.

    ``more`` names further libraries; one that is not installed has no version.
    """
    found = {name: version(name) for name in ("mlemiss", "numpy", "librosa", "torch", "timm", "zarr")}
    for name in more:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"ffmpeg": ffmpeg_version()}


# ---- Finished stores that results are taken from ----


class DamagedError(InputError):
    """A store's bytes are not those of its checksums, or no chunk; the message is one line."""


@dataclass(frozen=True)
class Donor:
    """A finished store that results are taken from; a chunk of it is hashed before."""

    store: FeatureStore

    @classmethod
    def open(cls, path: Path) -> "Donor":
        """Open a store. InputError: it cannot be used, as `FeatureStore.open` says."""
        return cls(FeatureStore.open(path))

    def rows(self, retry_failed: bool) -> dict[str, int]:
        """Return the row of each content (sha256) that has a result here.

        Args:
            retry_failed: leave out clips that lack a modality because of a limit.
        """
        rows: dict[str, int] = {}
        for row in np.flatnonzero(self.store.done):
            if not (retry_failed and due_to_limit(str(self.store.error[row]))):
                rows.setdefault(str(self.store.sha256[row]), int(row))
        return rows

    def box(self, row: int) -> np.ndarray | None:
        """Return the box of the face that a clip's frames are cut to, float32 [4]; None where there is none."""
        array = self.store.arrays.get(FACE_BOX)
        if array is None or array.dimensions == CLIP:  # a manifest's own column of that name
            return None
        box = self.store.read(FACE_BOX)[row]
        return None if np.isnan(box).any() else box

    def block(self, names: Sequence[str], block: int) -> list[np.ndarray]:
        """Read a chunk of clips of arrays that share their chunks.

        Args:
            names: of the arrays.
            block: position of the chunk along the clips.

        Raises:
            DamagedError: a chunk is damaged.
        """
        size = self.store.clips_a_chunk(names[0])
        chunks = [name for array in names for name in self._chunks(f"{array}/c/{block}/")]
        return self._read(chunks, dict.fromkeys(names, slice(block * size, (block + 1) * size)))

    def _read(self, chunks: Sequence[str], parts: Mapping[str, slice | tuple[int, slice]]) -> list[np.ndarray]:
        """Read parts of arrays that lie in these chunks. DamagedError: a chunk is damaged."""
        self._check(chunks)
        try:
            return [self.store.chunks.read(name, at) for name, at in parts.items()]
        except InputError as error:
            why = why_not(self.store.path, error)
            raise DamagedError(f"not usable: {self.store.path.name}, {why}; its clips are decoded again") from None

    def waveform(self, row: int) -> np.ndarray:
        """Read a clip's sound from a media store that keeps it: float32 [sample]. DamagedError: a chunk is damaged."""
        size = samples_of(float(self.store.duration[row]))
        chunks = [f"{WAVEFORM}/c/{row}/{chunk}" for chunk in range(-(-size // WAVEFORM_CHUNK))]
        return self._read(chunks, {WAVEFORM: (row, slice(0, size))})[0]

    def _chunks(self, prefix: str) -> list[str]:
        return [name for name in self.store.chunks.files if name.startswith(prefix)] or [f"{prefix}…"]

    def _check(self, names: Sequence[str]) -> None:
        path = self.store.path
        if find_damage(path, self.store.chunks.files, names):
            raise DamagedError(
                f"{path} is damaged (`mlemiss store verify` names the files); its damaged clips are decoded again"
            )


def donors(
    stores: Path, features: str, fits: Callable[[Mapping], bool], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Donor]:
    """Open the finished stores of these features and a fitting spec; name one that cannot be used once and skip it.

    Args:
        stores: their folder.
        features: their name, or `media`.
        fits: tells whether a store's spec is as needed.
        shapes: of one clip in each array, whose names are the modalities if these are no media.
    """
    modalities = MODALITIES if features == MEDIA else tuple(shapes)
    for path, attrs in stores_in(stores):
        if (attrs["features"], tuple(attrs["modalities"])) == (features, modalities) and fits(attrs["spec"]):
            try:
                donor = Donor.open(path)
            except InputError as error:
                say_once(f"not usable: {path.name}, {why_not(path, error)}")
                continue
            if any(donor.store.shape(name)[1:] != shape for name, shape in shapes.items()):
                say_once(f"not usable: {path.name}, its features or media have other shapes than its spec says")
                continue
            yield donor
