"""RAVDESS's speech videos from its official record: which zips, what of them is wanted, what is there already.

The record is Zenodo 1188976, about 14 GB in one zip an actor; its API lists names, sizes and checksums. Each zip holds
60 audio-visual clips and 60 video-only ones of the same takes; only the former are unpacked. Developed against local
servers that answer as the API is documented to, never against the record itself.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..console import Progress, say
from ..errors import InputError
from ..stores.claim import only_one
from . import manifest as listing
from .datasets import ravdess
from .download import DownloadError, RemoteFile, cannot_write, download, read_url
from .manifest import files_below
from .unpack import ArchiveError, unpack

RECORD = "https://zenodo.org/api/records/1188976"
ACTORS = range(1, 25)
WORK = ".fetch"  # folder below the root: zips, and files that are not whole yet
MOST_JSON = 10_000_000  # bytes of the record's description
CHECKSUMS = {"md5": 32, "sha256": 64}  # algorithm -> hexadecimal digits


@dataclass
class Fetched:
    """What became of the actors that were asked for."""

    there: list[int] = field(default_factory=list)  # before
    unpacked: list[int] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # zip -> cause


def fetch_ravdess(root: Path, actors: Sequence[int], record: str = RECORD) -> Fetched:
    """Download, verify and unpack the zips of the actors that ``root`` does not hold yet, as Actor_NN/….mp4.

    Can be killed and run again at any time: it goes on where it was. InputError: no such record, a record that is not
    described as expected, no room for it. MachineError: the server cannot be reached, the disk is full.
    """
    with only_one(root / WORK / "lock", str(root)):
        wanted = _wanted(root, actors)
        result = Fetched([actor for actor in actors if not wanted[actor]])
        lacking = [actor for actor in actors if wanted[actor]]
        for actor in result.there:
            (root / WORK / zip_name(actor)).unlink(missing_ok=True)  # a kill left it when all of it was unpacked
        if result.there:
            say(f"{len(result.there)} of {len(actors)} actors are in {root} already")
        if not lacking:
            return result
        say(f"record {record}")
        listed = _read_record(record)
        if absent := [zip_name(actor) for actor in lacking if actor not in listed]:
            raise _changed(record, f"no {', '.join(absent)} among its files")
        remotes = {actor: listed[actor] for actor in lacking}
        _check_room(root, list(remotes.values()))
        before = 0
        total = sum(remote.size for remote in remotes.values())
        with Progress("fetch", total // 10**6, unit="MB") as bar:

            def show(there: int) -> None:
                bar.advance((before + there) // 10**6 - bar.done)

            for actor, remote in remotes.items():
                bar.what = f"fetch {remote.name}"
                try:
                    zip_file = download(remote, root / WORK, show)
                    _unpack(zip_file, root, wanted[actor])
                    result.unpacked.append(actor)
                except (DownloadError, ArchiveError) as error:
                    result.failed[remote.name] = str(error)
                before += remote.size
    return result


def parse_actors(text: str) -> list[int]:
    """`1,5-8` -> 1, 5, 6, 7, 8. InputError: anything else, or no such actor."""
    spans = [re.fullmatch(r"\s*(\d\d?)\s*(?:-\s*(\d\d?)\s*)?", part) for part in text.split(",")]
    chosen = [actor for span in spans if span for actor in range(int(span[1]), int(span[2] or span[1]) + 1)]
    if not chosen or None in spans or not set(chosen) <= set(ACTORS):
        raise InputError(f"--actors {text!r}: expected numbers from 1 to 24, as in 1,2,5-8.")
    return sorted(set(chosen))


def _wanted(root: Path, actors: Sequence[int]) -> dict[int, dict[str, Path]]:
    """File name -> place, of the clips of each actor that are nowhere below the root."""
    have = {clip.clip_id for clip in ravdess.find(root, files_below(root)[0])[0] if (root / clip.path).stat().st_size}
    wanted: dict[int, dict[str, Path]] = {actor: {} for actor in actors}
    for clip_id in listing.known_clips(ravdess.NAME, ravdess.ALL_CLASSES):
        actor = int(clip_id[-2:])
        if actor in wanted and clip_id not in have:
            wanted[actor][f"{clip_id}.mp4"] = root / f"Actor_{actor:02}" / f"{clip_id}.mp4"
    return wanted


def zip_name(actor: int) -> str:
    """The record's name of an actor's speech videos."""
    return f"Video_Speech_Actor_{actor:02}.zip"


def _read_record(url: str) -> dict[int, RemoteFile]:
    """actor -> zip, as the record's API describes it."""
    schemes = {urlsplit(url).scheme, "https"}
    if not schemes <= {"http", "https"}:
        raise InputError(f"--record {url}: expected an address that begins with https:// (or http://).")
    try:
        document = json.loads(read_url(url, MOST_JSON))
    except DownloadError as error:
        raise InputError(f"the record: {error}.\nSee whether it has moved; --record names another address.") from None
    except ValueError:
        raise _changed(url, "something that is not JSON") from None
    try:
        entries = {entry["key"]: entry for entry in document["files"]}
        names = {zip_name(actor): actor for actor in ACTORS}
        return {names[key]: _remote(entry, schemes) for key, entry in entries.items() if key in names}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _changed(url, f"{type(error).__name__} {error}") from None


def _remote(entry: dict, schemes: set[str]) -> RemoteFile:
    algorithm, _, digest = entry["checksum"].partition(":")
    size, link = entry["size"], entry["links"]["self"]
    if not re.fullmatch(f"[0-9a-fA-F]{{{CHECKSUMS[algorithm]}}}", digest):
        raise ValueError(f"checksum {entry['checksum']!r}")
    if type(size) is not int or size < 1:
        raise ValueError(f"size {size!r}")
    if urlsplit(link).scheme not in schemes:
        raise ValueError(f"link {link!r}")
    return RemoteFile(entry["key"], link, size, algorithm, digest.lower())


def _changed(url: str, found: str) -> InputError:
    return InputError(
        f"{url}: expected files[] with key, size, checksum (md5:…) and links.self, found {found}.\n"
        "The record or its API has changed: unpack its zips into the root by hand, or try a newer mlemiss."
    )


def _check_room(root: Path, remotes: Sequence[RemoteFile]) -> None:
    """InputError: not enough disk. Half of each zip is kept unpacked, and one zip at a time is there beside it."""
    sizes = [remote.size for remote in remotes]
    begun = sum(path.stat().st_size for path in (root / WORK).glob("*.zip*"))
    needed, free = sum(sizes) // 2 + max(sizes) - begun, shutil.disk_usage(root).free
    say(f"{len(sizes)} zips of {sum(sizes) / 1e9:.2f} GB to fetch into {root}; {free / 1e9:.1f} GB are free")
    if free < needed:
        raise InputError(
            f"{root}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free.\n"
            "Make room, name another --root, or fetch fewer --actors."
        )


def _unpack(zip_file: Path, root: Path, wanted: dict[str, Path]) -> None:
    """Put the wanted clips into place and remove the zip. ArchiveError: it is not what it should be, and is kept."""
    try:
        absent, others = unpack(zip_file, wanted, root / WORK)
    except ArchiveError as error:
        raise ArchiveError(f"{error}; it is kept as {zip_file}") from None
    except OSError as error:
        raise cannot_write(zip_file, error) from None
    zip_file.unlink()
    say(f"{zip_file.name}: {len(wanted) - len(absent)} clips unpacked, {others} other files left out")
    if absent:
        raise ArchiveError(f"{len(absent)} of {len(wanted)} expected clips are not in it, the first {absent[0]}")
