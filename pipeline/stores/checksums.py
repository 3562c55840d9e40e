"""The checksums of a store, in COMPLETE.json, which is written last: read them, and compare the files with them.

Stores come from elsewhere too: whatever COMPLETE.json says is checked before anything is done with it.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.buffer.cpu import NDBuffer
from zarr.storage import MemoryStore, WrapperStore

from ..console import BYTES, Progress
from ..errors import InputError, MachineError
from .remote import (
    BLOCK_BYTES,
    NotRegularError,
    Place,
    file_of,
    file_sizes,
    in_parallel,
    is_local,
    open_regular,
    reaching,
    read_blocks,
    read_document,
)
from .schema import ATTRIBUTES_BYTES, CHUNK_BYTES, FILE, Schema, is_whole, parse_json, parse_schema

COMPLETE = "COMPLETE.json"
RUN = "RUN.json"  # command, date, timings, host: outside checksums and byte identity
PUSHING = "PUSHING.json"  # who is at work on a store behind a URL
OWN = frozenset({COMPLETE, RUN, PUSHING})  # documents of a store that have no checksums
FILE_BYTES = CHUNK_BYTES + BLOCK_BYTES  # bytes of the largest file: a chunk that nothing compresses
SMALL_BYTES = 128 << 20  # bytes of all files of a store that are no features or media
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
        InputError: it is no regular file, its content is something else, or it names what cannot be a file inside.
    """
    return parse_complete(store, read_marker(store))


def read_marker(store: Place) -> bytes:
    """Read a store's COMPLETE.json as it is. FileNotFoundError: there is none. InputError: it is no regular file."""
    try:
        return read_document(store / COMPLETE)
    except NotRegularError as error:
        raise InputError(f"{store}: its {COMPLETE} is {error.strerror}.\nDo not use it.") from None


def parse_complete(store: Place, content: bytes) -> dict[str, dict]:
    """Return the checksums in a COMPLETE.json that was read already, as `recorded_files` does."""

    def wrong(why: str) -> InputError:
        return InputError(f"{store}: its {COMPLETE} {why}.\nIt was not written by mlemiss, or damaged: do not use it.")

    try:
        listed = parse_json(content)["files"]
        files = {name: {"sha256": entry["sha256"], "bytes": entry["bytes"]} for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise wrong("is unreadable") from None
    folders = set()
    for name, entry in files.items():
        if not _is_inside(name):
            raise wrong(f"names {name[:80]!r}, which is no file inside the store")
        if not (isinstance(entry["sha256"], str) and re.fullmatch("[0-9a-f]{64}", entry["sha256"])):
            raise wrong(f"has no sha256 of {name}")
        if not is_whole(entry["bytes"]) or entry["bytes"] > FILE_BYTES:
            raise wrong(f"has no size of {name}, or more than the {FILE_BYTES} bytes that a file of a store may have")
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
            same = checksum(file_of(store, name), recorded[name]["bytes"]) == recorded[name]
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


def clip_axes(schema: Schema) -> dict[str, ClipAxis]:
    """Return the clip axis of every array."""
    axes = {}
    for name, array in schema.arrays.items():
        axis = array.dimensions.index("clip")
        axes[name] = ClipAxis(axis, array.chunks[axis], array.shape[axis])
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
        InputError: there is no COMPLETE.json to check against, or no version of mlemiss would write its zarr.json.
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
    schema = None if FILE in damage else read_schema(store)
    axes = {} if schema is None else clip_axes(schema)
    if schema is None or any(name.startswith("clip_id/") for name in damage):
        ids = [f"#{number}" for number in range(max((axis.clips for axis in axes.values()), default=0))]
    else:
        ids = CheckedChunks.at(store, recorded, schema).read("clip_id").tolist()
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


# ---- read chunks: never a fill value where a file is gone, never more than an array says ----


def read_schema(store: Place) -> Schema:
    """Read and check what a store's zarr.json says.

    Raises:
        FileNotFoundError: there is no zarr.json.
        OSError: it is no regular file.
        InputError: this is no store of mlemiss.
    """
    return parse_schema(store, read_document(store / FILE, ATTRIBUTES_BYTES))


class CheckedChunks(WrapperStore):
    """A store's chunks for zarr, which alone would read an absent one as fill values and decode whatever is there.

    Each must be there in its recorded size, and decode to what its array says. Those of the small arrays must have the
    recorded bytes (`keep_small`). Features are not hashed: that is for `store verify`, and for whoever copies results.
    """

    def __init__(self, store: Store, location: Place, files: Mapping[str, Mapping], schema: Schema):
        super().__init__(store)
        self.location, self.files, self.schema = location, files, schema
        self.small: dict[str, bytes] = {}  # files of small arrays that were read and hashed

    @classmethod
    def at(cls, location: Place, files: Mapping[str, Mapping], schema: Schema) -> "CheckedChunks":
        """Open the chunks of the store at ``location`` for reading; ``files`` are its checksums."""
        return cls(MemoryStore(read_only=True), location, files, schema)  # which holds nothing: `get` reads all

    def _with_store(self, store: Store) -> "CheckedChunks":
        other = type(self)(store, self.location, self.files, self.schema)
        other.small = self.small
        return other

    def keep_small(self) -> None:
        """Read and hash zarr.json and the files of all small arrays. InputError: one is not as recorded."""
        self._check_hash(FILE, self.schema.content)
        names = self.schema.small_files
        if (size := sum(self.files.get(name, {}).get("bytes", 0) for name in names)) > SMALL_BYTES:
            raise self._wrong(COMPLETE, f"records {size} bytes of labels, masks and other columns, too many")
        for name, content in in_parallel(self._read, names):
            self._check(name, content, hashed=True)
            self.small[name] = content

    @cached_property
    def group(self) -> zarr.Group:
        """Return zarr's group of the arrays. InputError: zarr cannot read their metadata."""
        try:
            return zarr.open_group(self, mode="r", zarr_format=3)
        except Exception as error:
            raise self._wrong(FILE, f"cannot be read ({_first_line(error)})") from None

    def read(self, array: str, at: Any = slice(None), out: np.ndarray | None = None) -> np.ndarray:
        """Read an array or a part of it, into ``out`` if given. InputError: no such array, or which file is wrong."""
        if array not in self.schema.arrays:
            there = ", ".join(self.schema.arrays)
            raise InputError(f"{self.location} has no array {array!r}.\nExpected one of {there}.")
        try:
            with reaching(self.location):
                if out is None:
                    return self.group[array][at]
                return self.group[array].get_basic_selection(at, out=NDBuffer(out))
        except (InputError, MachineError, MemoryError):
            raise
        except Exception as error:  # whatever a codec raises at bytes that are none of its own
            names = [name for name in self.files if name.startswith(f"{array}/c/")]
            damaged = find_damage(self.location, self.files, names)
            name = min(damaged) if damaged else names[0] if len(names) == 1 else f"{array}/c/…"
            raise self._wrong(name, f"cannot be decoded ({_first_line(error)})") from None

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Read a file. InputError: a chunk is absent, is not as recorded, or states another size than its array."""
        if key == FILE:
            return prototype.buffer.from_bytes(self.schema.content)
        if "/c/" not in key:
            return None  # all metadata are in zarr.json
        if key in self.small:
            return prototype.buffer.from_bytes(self.small[key])
        content = await asyncio.to_thread(self._read, key)
        self._check(key, content)
        return prototype.buffer.from_bytes(content)

    def _read(self, name: str) -> bytes:
        size = self.files.get(name, {}).get("bytes", 0)
        try:
            if is_local(self.location):
                with open_regular(file_of(self.location, name)) as file:
                    return file.read(size + 1)
            content = bytearray()
            read_blocks(self.location / name, content.extend, size)
            return bytes(content)
        except FileNotFoundError:
            raise self._wrong(name, "is absent") from None
        except OSError as error:
            raise self._wrong(name, f"cannot be read ({error.strerror or error})") from None

    def _check(self, name: str, content: bytes | memoryview, hashed: bool = False) -> None:
        """Check a chunk's size, its hash if asked, and what it says of its decoded size. InputError: they are wrong."""
        recorded = self.files.get(name, {}).get("bytes")
        if len(content) != recorded:
            at_least = "at least " * (len(content) > (recorded or 0))  # the rest was not read
            raise self._wrong(name, f"is {at_least}{len(content)} bytes, recorded with {recorded}")
        if hashed:
            self._check_hash(name, content)
        try:
            self.schema.arrays[name.partition("/c/")[0]].check_chunk(content)
        except Exception as error:
            raise self._wrong(name, f"is no chunk of its array ({_first_line(error)})") from None

    def _check_hash(self, name: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != self.files.get(name, {}).get("sha256"):
            raise self._wrong(name, "differs from its checksum")

    def _wrong(self, name: str, state: str) -> InputError:
        return InputError(
            f"{self.location}: its file {name} {state}.\n`mlemiss store verify {self.location}` names all "
            "damaged files; preprocess or copy the store again."
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]
