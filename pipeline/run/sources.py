"""The clips' files: the hash of each one's content, kept between runs; or why a file must not be opened."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..clips.manifest import Collection
from ..console import say
from ..errors import MACHINE_ERRNOS, ClipError, MachineError
from ..files import sha256_of, user_cache, write_json
from ..media.ffmpeg import check_file

UNREAD = "unread"  # in place of the sha256 of a file that may not be read
Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def stamp_of(path: Path) -> Stamp:
    """Return a file's size and time of change. OSError: the file is gone."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@dataclass(frozen=True)
class Source:
    """A clip's file: the sha256 of its content and its stamp then; or why the file must not be opened.

    Of a clip whose sound is in a file of its own, ``sha256`` is of both, and that file is ``sound``.
    """

    sha256: str
    stamp: Stamp | None = None
    fault: str = ""
    sound: "Source | None" = None

    def with_sound(self, sound: "Source") -> "Source":
        """Return the source of a clip whose picture is in this file and whose sound is in another."""
        # A fault counts as a file's content does: it determines what comes of the clip.
        contents = [file.fault or file.sha256 for file in (self, sound)]
        return replace(self, sha256=sha256_text(json.dumps(["picture, sound", *contents])), sound=sound)

    @property
    def faults(self) -> dict[str, str]:
        """Return why a modality must not be read, by modality."""
        found = {"visual": self.fault, "audio": (self.sound or self).fault}
        return {modality: why for modality, why in found.items() if why}


def read_sources(collection: Collection, max_bytes: int, follow_links: bool) -> list[Source]:
    """Hash each clip's file, and the file of its sound where that is another.

    A file that is not regular, is empty, too large or cannot be opened costs its clip, not the run. So does a link that
    leads out of the root: a data set from elsewhere must not make this machine read its own files.

    Args:
        collection: the clips.
        max_bytes: of the largest file.
        follow_links: read links that lead out of the root.

    Returns:
        A source for each clip, in order.

    Raises:
        MachineError: the disk or network failed.
    """
    root = collection.root.resolve()
    known = _known_hashes(root)

    def read(path: Path) -> tuple[Source, str, list]:
        try:
            real = path.resolve()
            if not follow_links and not real.is_relative_to(root):
                raise ClipError("a link that leaves the root, which --follow-links allows")
            check_file(path, max_bytes)
            stamp = stamp_of(path)
            entry = known.get(str(real), [])
            digest = entry[2] if entry[:2] == [*stamp] else sha256_of(path)
            return Source(digest, stamp), str(real), [*stamp, digest]
        except ClipError as error:
            return Source(UNREAD, fault=str(error)), "", []
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError in Python 3.11 and 3.12
            if getattr(error, "errno", None) in MACHINE_ERRNOS:
                raise MachineError(f"{path}: {error.strerror}.\nMend the disk or network and run again.") from None
            return Source(UNREAD, fault=getattr(error, "strerror", None) or "a loop of links"), "", []

    paths = list(dict.fromkeys(path for clip in collection.clips for path in (clip.path, clip.audio_path) if path))
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        results = list(pool.map(read, [collection.root / path for path in paths]))
    fresh = {real: entry for _, real, entry in results if real}
    if any(known.get(real) != entry for real, entry in fresh.items()):
        _keep_hashes(root, known | fresh)
    found = {path: source for path, (source, _, _) in zip(paths, results, strict=True)}
    return [
        found[clip.path].with_sound(found[clip.audio_path]) if clip.audio_path else found[clip.path]
        for clip in collection.clips
    ]


# The hashes of earlier runs: of each path its size, time of change and sha256. They are the user's own, not the stores'
# folder's, where a wrong line of somebody else would give one clip another's features.


def _hash_file(root: Path) -> Path:
    return user_cache() / f"sha256-{sha256_text(str(root))[:16]}.json"


def _known_hashes(root: Path) -> dict[str, list]:
    try:
        known = dict(json.loads(_hash_file(root).read_text(encoding="utf-8")))
    except (OSError, RuntimeError, ValueError, TypeError):  # RuntimeError: a user without a home
        return {}
    return {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 3}


def _keep_hashes(root: Path, known: Mapping[str, list]) -> None:
    try:
        write_json(_hash_file(root), known)
    except (OSError, RuntimeError) as error:
        say(f"note: the clips' hashes are not kept, so that the next run reads every clip again ({error})")


def sha256_text(text: str) -> str:
    """Return the sha256 of a text, as hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()
