"""What vouches for a store's bytes: COMPLETE.json, written last, and what it says of the files that are there.

Stores come from elsewhere too: whatever COMPLETE.json says is checked before anything is done with it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .remote import Place, in_parallel, is_local, read_blocks

COMPLETE = "COMPLETE.json"
RUN = "RUN.json"  # command, date, timings, host: outside checksums and byte identity
PUSHING = "PUSHING.json"  # who is at work on a store behind a URL
OWN = frozenset({COMPLETE, RUN, PUSHING})  # not among the files that are vouched for
DAMAGED, ABSENT, UNREADABLE, UNEXPECTED = "damaged", "absent", "unreadable", "unexpected"


class EnoughError(InputError):
    """A file goes on beyond the size that was recorded: no more of it is read."""


def write_json(path: Path, document: Mapping) -> None:
    """Temp, flush, move: the file is whole or absent."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")  # several processes may write the same file
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def checksum(file: Place, most: int | None = None) -> dict:
    """A file's sha256 and size; of one with more than ``most`` bytes no more is read, and it equals no record."""
    digest, size = hashlib.sha256(), 0

    def take(block: bytes) -> None:
        nonlocal size
        digest.update(block)
        size += len(block)
        if most is not None and size > most:
            raise EnoughError

    with suppress(EnoughError):
        read_blocks(file, take)
    return {"sha256": digest.hexdigest(), "bytes": size}


def recorded_files(store: Place) -> dict[str, dict]:
    """What a store's COMPLETE.json vouches for: relative name -> sha256 and bytes.

    FileNotFoundError: there is none. InputError: it is none, or names what is no file inside the store.
    """
    return parse_complete(store, (store / COMPLETE).read_bytes())


def parse_complete(store: Place, content: bytes) -> dict[str, dict]:
    """`recorded_files` of a COMPLETE.json that was read already."""

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
    """A relative name of plain parts; none of the store's own documents."""
    parts = name.split("/")
    plain = all(0 < len(part) <= 200 and part.isprintable() and part not in (".", "..") for part in parts)
    return plain and len(name) <= 1000 and not set(name) & set("\\:") and name not in OWN


def damaged_files(store: Place) -> list[str]:
    """Files of a finished store that are absent, changed or unexpected, by their checksums; empty when it is whole."""
    return sorted(find_damage(store, recorded_files(store)))


def find_damage(
    store: Place, recorded: Mapping[str, Mapping], checked: Callable[[int], None] = lambda size: None
) -> dict[str, str]:
    """What is wrong with a store's files: name -> damaged, absent, unreadable or unexpected.

    ``checked`` is told of each file's bytes as it is done. Over HTTP, where folders cannot be listed reliably, nothing
    unexpected is looked for.
    """
    wrong = damage_among(store, recorded, recorded, checked)
    return dict(sorted((wrong | dict.fromkeys(there(store) - set(recorded), UNEXPECTED)).items()))


def damage_among(
    store: Place,
    recorded: Mapping[str, Mapping],
    names: Iterable[str],
    checked: Callable[[int], None] = lambda size: None,
) -> dict[str, str]:
    """`find_damage` of these files alone; one that is not recorded is absent."""

    def state(name: str) -> str | None:
        try:
            found = checksum(store / name, recorded[name]["bytes"])
        except (KeyError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return ABSENT
        except OSError:
            return UNREADABLE
        return None if found == recorded[name] else DAMAGED

    wrong = {}
    for name, found in in_parallel(state, names):
        checked(recorded[name]["bytes"] if name in recorded else 0)
        if found:
            wrong[name] = found
    return wrong


def there(store: Place) -> set[str]:
    """Relative names of a store's files, its own documents apart; over HTTP none, as they cannot be listed reliably."""
    if is_local(store):
        return {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()} - OWN
    return set() if store.is_http else set(store.sizes()) - OWN


# ---- which clips a file holds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunks:
    """How an array is cut along its clips: which of a chunk's coordinates counts, clips a chunk, clips in all."""

    axis: int
    size: int
    clips: int


def clip_chunks(store: Place) -> dict[str, Chunks]:
    """Of every array with a clip axis, from the store's zarr.json; empty where that is unreadable."""
    found = {}
    try:
        document = json.loads((store / "zarr.json").read_bytes())
        for name, array in document["consolidated_metadata"]["metadata"].items():
            if "clip" in (names := array.get("dimension_names") or ()):
                axis = list(names).index("clip")
                size = array["chunk_grid"]["configuration"]["chunk_shape"][axis]
                found[name] = Chunks(axis, max(int(size), 1), int(array["shape"][axis]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}
    return found


def clips_hit(name: str, chunks: Mapping[str, Chunks]) -> range | None:
    """Positions of the clips that a file of the store holds; None: all, as it is metadata or cannot be told."""
    array, _, key = name.partition("/c/")
    try:
        cut = chunks[array]
        first = int(key.split("/")[cut.axis]) * cut.size
    except (KeyError, ValueError, IndexError):
        return None
    return range(min(first, cut.clips), min(first + cut.size, cut.clips))
