"""The checksums of a store, in COMPLETE.json, which is written last: read them, and compare the files with them.

Stores come from elsewhere too: whatever COMPLETE.json says is checked before anything is done with it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from ..console import BYTES, Progress
from ..errors import InputError
from .remote import Place, file_sizes, in_parallel, is_local, reaching, read_blocks

COMPLETE = "COMPLETE.json"
RUN = "RUN.json"  # command, date, timings, host: outside checksums and byte identity
PUSHING = "PUSHING.json"  # who is at work on a store behind a URL
OWN = frozenset({COMPLETE, RUN, PUSHING})  # documents of a store that have no checksums
DAMAGED, ABSENT, UNREADABLE, UNEXPECTED = "damaged", "absent", "unreadable", "unexpected"


def checksum(file: Place, most: int | None = None) -> dict:
    """Return a file's sha256 and its size in bytes.

    Args:
        file: what to read.
        most: read hardly more than this many bytes; what is returned of a longer file equals no record.
    """
    digest, size = hashlib.sha256(), 0

    def take(block: bytes) -> None:
        nonlocal size
        digest.update(block)
        size += len(block)

    read_blocks(file, take, most)
    return {"sha256": digest.hexdigest(), "bytes": size}


def recorded_files(store: Place) -> dict[str, dict]:
    """Read the checksums in a store's COMPLETE.json: relative name -> sha256 and bytes.

    Raises:
        FileNotFoundError: there is no COMPLETE.json.
        InputError: its content is something else, or it names what cannot be a file inside the store.
    """
    return parse_complete(store, (store / COMPLETE).read_bytes())


def parse_complete(store: Place, content: bytes) -> dict[str, dict]:
    """Return the checksums in a COMPLETE.json that was read already, as `recorded_files` does."""

    def wrong(why: str) -> InputError:
        return InputError(f"{store}: its {COMPLETE} {why}.\nIt was not written by mlemiss, or damaged: do not use it.")

    try:
        listed = json.loads(content)["files"]
        files = {name: {"sha256": entry["sha256"], "bytes": entry["bytes"]} for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise wrong("is unreadable") from None
    folders = set()
    for name, entry in files.items():
        if not _is_inside(name):
            raise wrong(f"names {name[:80]!r}, which is no file inside the store")
        if not (isinstance(entry["sha256"], str) and re.fullmatch("[0-9a-f]{64}", entry["sha256"])):
            raise wrong(f"has no sha256 of {name}")
        if type(entry["bytes"]) is not int or entry["bytes"] < 0:
            raise wrong(f"has no size of {name}")
        parts = name.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if clash := folders & set(files):
        raise wrong(f"names {min(clash)!r} as a file and as a folder")
    if "zarr.json" not in files:
        raise wrong("does not name zarr.json")
    return files


def _is_inside(name: str) -> bool:
    """Return whether a name is relative, of plain parts, and none of the store's own documents."""
    parts = name.split("/")
    plain = all(0 < len(part) <= 200 and part.isprintable() and part not in (".", "..") for part in parts)
    return plain and len(name) <= 1000 and not set(name) & set("\\:") and name not in OWN


# ---- compare the files with their checksums ----


def damaged_files(store: Place) -> list[str]:
    """Return the names of a finished store's files that are absent, changed or unexpected; empty when it is whole."""
    return sorted(find_damage(store, recorded_files(store)))


def find_damage(
    store: Place,
    recorded: Mapping[str, Mapping],
    names: Iterable[str] | None = None,
    checked: Callable[[int], None] = lambda size: None,
) -> dict[str, str]:
    """Read files of a store and compare them with their checksums.

    Args:
        store: a folder or URL. Over HTTP, where folders cannot be listed, unexpected files are not found.
        recorded: the checksums, from `recorded_files`.
        names: check these files alone; one that is not recorded counts as absent.
        checked: called with each file's bytes as it is done.

    Returns:
        The name of each file that is not as recorded -> damaged, absent, unreadable or unexpected.
    """

    def state(name: str) -> str | None:
        try:
            same = checksum(store / name, recorded[name]["bytes"]) == recorded[name]
        except (KeyError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return ABSENT
        except OSError:
            return UNREADABLE
        return None if same else DAMAGED

    damage = {}
    for name, wrong in in_parallel(state, recorded if names is None else names):
        checked(recorded[name]["bytes"] if name in recorded else 0)
        if wrong:
            damage[name] = wrong
    if names is None and (is_local(store) or not store.is_http):
        damage |= dict.fromkeys(set(file_sizes(store)) - set(recorded) - OWN, UNEXPECTED)
    return dict(sorted(damage.items()))


@dataclass(frozen=True)
class ClipAxis:
    """The clips of an array's chunks: which of a chunk's coordinates counts clips, clips a chunk, clips in all."""

    axis: int
    size: int
    clips: int


def clip_axes(store: Place) -> dict[str, ClipAxis]:
    """Read the clip axis of every array that has one from the store's zarr.json; empty where that is unreadable."""
    axes = {}
    try:
        document = json.loads((store / "zarr.json").read_bytes())
        for name, array in document["consolidated_metadata"]["metadata"].items():
            if "clip" in (names := array.get("dimension_names") or ()):
                axis = list(names).index("clip")
                size = array["chunk_grid"]["configuration"]["chunk_shape"][axis]
                axes[name] = ClipAxis(axis, max(int(size), 1), int(array["shape"][axis]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}
    return axes


def clips_in(name: str, axes: Mapping[str, ClipAxis]) -> range | None:
    """Return the positions of the clips that a file of the store holds; None: all, or it cannot be told."""
    array, _, key = name.partition("/c/")
    try:
        chunk = axes[array]
        first = int(key.split("/")[chunk.axis]) * chunk.size
    except (KeyError, ValueError, IndexError):
        return None
    return range(min(first, chunk.clips), min(first + chunk.size, chunk.clips))


def verify_store(store: Place) -> dict:
    """Check every byte of a store against its checksums, and name the clips that are hit.

    A swapped chunk is damage: checksums go by name. A file that is not one of an array's chunks hits every clip, as
    does a chunk where zarr.json, which says what chunks are, is damaged itself; an unexpected file hits none.

    Args:
        store: a folder or URL.

    Returns:
        The document of `verify --json`.

    Raises:
        InputError: there is no COMPLETE.json to check against.
    """
    try:
        recorded = recorded_files(store)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"no store at {store}, or an unfinished one: it has no {COMPLETE}, which is written last.\n"
            "Run the preprocess or the copy that makes it again; `mlemiss store ls` lists the finished stores."
        ) from None
    size = sum(entry["bytes"] for entry in recorded.values())
    with Progress("verify", size, BYTES) as bar:
        damage = find_damage(store, recorded, checked=bar.advance)
    axes = {} if "zarr.json" in damage else clip_axes(store)
    if any(name == "zarr.json" or name.startswith("clip_id/") for name in damage):
        ids = [f"#{number}" for number in range(max((axis.clips for axis in axes.values()), default=0))]
    else:
        with reaching(store):
            ids = zarr.open_group(CheckedChunks.at(store, recorded), mode="r", zarr_format=3)["clip_id"][:].tolist()
    files, hit = [], set()
    for name, state in damage.items():
        clips = range(0) if state == UNEXPECTED else clips_in(name, axes)
        clips = range(len(ids)) if clips is None else clips
        hit.update(clips)
        every = state != UNEXPECTED and len(clips) == len(ids)
        files.append({"file": name, "state": state, "every_clip": every, "clips": [ids[clip] for clip in clips]})
    return {
        "store": str(store),
        "files": len(recorded),
        "bytes": size,
        "damaged": files,
        "clips": [ids[clip] for clip in sorted(hit)],
        "of_clips": len(ids),
    }


# ---- read chunks: never a fill value where a file is gone ----


class CheckedChunks(WrapperStore):
    """A zarr store whose chunks must be there in their recorded sizes; zarr alone reads an absent one as fill values.

    Bytes are not hashed: that is for `store verify`, and for whoever copies results (parts.py).
    """

    def __init__(self, store: Store, location: Place, files: Mapping[str, Mapping]):
        super().__init__(store)
        self.location, self.files = location, files

    @classmethod
    def at(cls, location: Place, files: Mapping[str, Mapping]) -> "CheckedChunks":
        """Open the chunks of the store at ``location`` for reading; ``files`` are its checksums."""
        if is_local(location):
            return cls(LocalStore(location, read_only=True), location, files)
        remote = FsspecStore.from_url(str(location), storage_options=location.storage_options, read_only=True)
        return cls(remote, location, files)

    def _with_store(self, store: Store) -> "CheckedChunks":
        return type(self)(store, self.location, self.files)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Read a file. InputError: a chunk is absent, or of another size than was recorded."""
        content = await super().get(key, prototype, byte_range)
        if "/c/" in key and (content is None or (byte_range is None and len(content) != self._size(key))):
            state = "absent" if content is None else f"{len(content)} bytes, recorded with {self._size(key)}"
            raise InputError(
                f"{self.location}: its file {key} is {state}.\n`mlemiss store verify {self.location}` names all "
                "damaged files; preprocess or copy the store again."
            )
        return content

    def _size(self, key: str) -> int | None:
        return self.files.get(key, {}).get("bytes")
