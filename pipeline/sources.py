"""The clips' files before anything opens them as media: may they be read at all, and what is their content."""

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .errors import MACHINE_ERRNOS, MachineError
from .ffmpeg_process import ClipError
from .manifest import Collection
from .media import check_file
from .store import write_json

UNREAD = "unread"  # stands for the content of a file that may not be read
Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def stamp_of(path: Path) -> Stamp:
    """OSError: there is no such file any more."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@dataclass(frozen=True)
class Source:
    """A clip's file: the sha256 of its content, and what shows whether it is the same file still; or why it is not
    to be opened."""

    sha256: str
    stamp: Stamp | None = None
    fault: str = ""


def read_sources(collection: Collection, max_bytes: int, follow_links: bool, cache_file: Path) -> list[Source]:
    """Each clip's source; sha256s are remembered in ``cache_file`` by path, size and modification time.

    A file that is no regular file, empty, larger than ``max_bytes`` or not to be opened costs its clip, not the run.
    So does one outside the root, where a link leads: a data set from elsewhere must not make this machine read its
    own files. ``follow_links`` allows it.
    """
    root = collection.root.resolve()
    try:
        known = dict(json.loads(cache_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    known = {key: entry for key, entry in known.items() if isinstance(entry, list) and len(entry) == 3}

    def read(path: Path) -> tuple[Source, str, list]:
        try:
            real = path.resolve()
            if not follow_links and not real.is_relative_to(root):
                raise ClipError("a link that leaves the root, which --follow-links allows")
            check_file(path, max_bytes)
            stamp = stamp_of(path)
            if known.get(str(real), [])[:2] == [*stamp]:
                return Source(known[str(real)][2], stamp), str(real), known[str(real)]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Source(digest, stamp), str(real), [*stamp, digest]
        except ClipError as error:
            return Source(UNREAD, fault=str(error)), "", []
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError in Python 3.11 and 3.12
            if getattr(error, "errno", None) in MACHINE_ERRNOS:
                raise MachineError(f"{path}: {error.strerror}.\nMend the disk or network and run again.") from None
            return Source(UNREAD, fault=getattr(error, "strerror", None) or "a loop of links"), "", []

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        found = list(pool.map(read, [collection.root / clip.path for clip in collection.clips]))
    fresh = {key: entry for _, key, entry in found if key}
    if any(known.get(key) != entry for key, entry in fresh.items()):
        with contextlib.suppress(OSError):  # a folder that others may only read: hash again next time
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache_file, known | fresh)
    return [source for source, _, _ in found]
