"""Download the zips that a dataset declares (`manifest.Download`), verify them and unpack their clips.

Killed or cut off at any time, the same call goes on where it was. A zip that is not what its record says costs its part
of the dataset. Developed against local servers that answer as Zenodo's API is documented to, never against one.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse, Retry
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError

from .. import web
from ..console import Progress, say
from ..errors import InputError, MachineError
from ..files import check_work
from ..stores.claim import only_one
from ..stores.remote import open_regular
from ..stores.schema import parse_json
from .manifest import Download, files_below

FETCH_FOLDER = ".fetch"  # below the root: zips, and files that are not whole yet
CHECKSUMS = {"md5": 32, "sha256": 64}  # algorithm -> hexadecimal digits
MOST_RECORD_BYTES = 10_000_000
TIMEOUT = 60.0  # seconds without a byte
LONGEST_WAIT = 120.0  # seconds, where a server asks for more
RANGE_NOT_THERE = 416  # HTTP status
MAX_MEMBERS = 10_000  # of a zip
MAX_RATIO = 3  # unpacked bytes over packed ones; video hardly compresses


class ZipError(Exception):
    """A zip cannot be had, or is not what it should be; other zips may be."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as a record lists it."""

    name: str
    url: str
    size: int  # bytes
    algorithm: str  # of hashlib
    digest: str  # hexadecimal
    anywhere: bool  # it may have a private address, as the record has


@dataclass
class Fetched:
    """The outcome of the parts that were asked for."""

    there: list[int] = field(default_factory=list)  # before
    unpacked: list[int] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # zip -> cause


def parse_parts(text: str, download: Download) -> list[int]:
    """Parse numbers of parts: `1,5-8` -> 1, 5, 6, 7, 8. InputError: anything else, or no such part."""
    spans = [re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", span) for span in text.split(",")]
    chosen = {number for span in spans if span for number in range(int(span[1]), int(span[2] or span[1]) + 1)}
    if not chosen or None in spans or not chosen <= set(download.zips):
        expected = f"expected numbers from {min(download.zips)} to {max(download.zips)}, as in 1,2,5-8"
        raise InputError(f"--{download.part}s {text!r}: {expected}.")
    return sorted(chosen)


def fetch_dataset(dataset: ModuleType, root: Path, parts: Sequence[int], record: str | None = None) -> Fetched:
    """Download, verify and unpack the zips of the parts that the root does not hold yet.

    Args:
        dataset: a dataset's module, with a `DOWNLOAD`.
        root: folder of its clips; made if absent.
        parts: numbers of the parts to fetch.
        record: another address of the record than the dataset's own.

    Raises:
        InputError: no such record, a record that is not described as expected, no room for it.
        MachineError: the server cannot be reached, the disk is full.
    """
    download: Download = dataset.DOWNLOAD
    work = root / FETCH_FOLDER
    with only_one(work / "lock", str(root)):
        check_work(work)
        wanted = _absent_clips(dataset, root, parts)
        result = Fetched([part for part in parts if not wanted[part]])
        for part in result.there:
            (work / download.zips[part]).unlink(missing_ok=True)  # a kill left it when all of it was unpacked
        if result.there:
            say(f"{len(result.there)} of {len(parts)} {download.part}s are in {root} already")
        lacking = [part for part in parts if wanted[part]]
        if not lacking:
            return result
        remotes = _read_record(record or download.record, [download.zips[part] for part in lacking])
        _check_room(root, remotes, download)
        before = 0  # bytes of the zips that are done
        with Progress("fetch", sum(remote.size for remote in remotes) // 10**6, unit="MB") as bar:

            def show(there: int) -> None:
                bar.advance((before + there) // 10**6 - bar.done)

            for part, remote in zip(lacking, remotes, strict=True):
                bar.what = f"fetch {remote.name}"
                try:
                    _unpack_clips(_download(remote, work, show), wanted[part], work)
                    result.unpacked.append(part)
                except ZipError as error:
                    result.failed[remote.name] = str(error)
                before += remote.size
    return result


def _absent_clips(dataset: ModuleType, root: Path, parts: Sequence[int]) -> dict[int, dict[str, Path]]:
    """Return the clips of each part that are nowhere below the root: where they belong, by file name."""
    clips, _ = dataset.find(root, files_below(root)[0])
    found = {clip.clip_id for clip in clips if (root / clip.path).stat().st_size}
    absent = {}
    for part in parts:
        places = {clip_id: root / path for clip_id, path in dataset.DOWNLOAD.clips(part).items()}
        absent[part] = {place.name: place for clip_id, place in places.items() if clip_id not in found}
    return absent


def _check_room(root: Path, remotes: Sequence[RemoteFile], download: Download) -> None:
    """InputError: not enough disk for the clips of all zips, and for one zip at a time beside them."""
    sizes = [remote.size for remote in remotes]
    begun = sum(path.stat().st_size for path in (root / FETCH_FOLDER).glob("*.zip*"))
    needed, free = int(sum(sizes) * download.unpacked) + max(sizes) - begun, shutil.disk_usage(root).free
    say(f"{len(sizes)} zips of {sum(sizes) / 1e9:.2f} GB to fetch into {root}; {free / 1e9:.1f} GB are free")
    if free < needed:
        raise InputError(
            f"{root}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free.\n"
            f"Make room, name another --root, or fetch fewer --{download.part}s."
        )


# ---- The record: a JSON document as Zenodo's API gives it ----


def _read_record(url: str, names: Sequence[str]) -> list[RemoteFile]:
    """Return the named files as the record describes them."""
    say(f"record {url}")
    schemes = {urlsplit(url).scheme, "https"}
    if not schemes <= {"http", "https"}:
        raise InputError(f"--record {url}: expected an address that begins with https:// (or http://).")
    content = bytearray()
    try:
        for start, block in _blocks(url):
            content[start:] = block
            if len(content) > MOST_RECORD_BYTES:
                raise _changed(url, f"more than {MOST_RECORD_BYTES} bytes")
        listed = {entry["key"]: entry for entry in parse_json(bytes(content))["files"]}
        if absent := [name for name in names if name not in listed]:
            raise _changed(url, f"no {', '.join(absent)} among its files")
        anywhere = web.may_lead_inside(url)
        return [_remote_file(listed[name], schemes, anywhere) for name in names]
    except ZipError as error:
        raise InputError(f"the record: {error}.\nSee whether it has moved; --record names another address.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise _changed(url, "something that is not JSON") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _changed(url, f"{type(error).__name__} {error}") from None


def _remote_file(entry: dict, schemes: set[str], anywhere: bool) -> RemoteFile:
    algorithm, _, digest = entry["checksum"].partition(":")
    size, link = entry["size"], entry["links"]["self"]
    if not re.fullmatch(f"[0-9a-fA-F]{{{CHECKSUMS[algorithm]}}}", digest):
        raise ValueError(f"checksum {entry['checksum']!r}")
    if type(size) is not int or not 0 < size < 1 << 60:
        raise ValueError(f"size {size!r}")
    if urlsplit(link).scheme not in schemes:
        raise ValueError(f"link {link!r}")
    return RemoteFile(entry["key"], link, size, algorithm, digest.lower(), anywhere)


def _changed(url: str, found: str) -> InputError:
    return InputError(
        f"{url}: expected files[] with key, size, checksum (md5:…) and links.self, found {found}.\n"
        "The record or its API has changed: unpack its zips into the root by hand, or try a newer mlemiss."
    )


# ---- Download: resumed where a connection was cut ----


class Repeats(Retry):
    """urllib3's repeated attempts, with a line for each wait and an error that says what to do at the end."""

    def increment(self, method=None, url=None, response=None, error=None, **internal):
        """Count one more failed attempt. MachineError: it was the last."""
        cause = f"{response.status} {response.reason}" if response else str(getattr(error, "args", [error])[0])
        cause = re.sub(r"^\w+\([^)]*\): ", "", cause)  # urllib3 begins with the connection's repr
        try:
            following = super().increment(method, url, response, error, **internal)
        except MaxRetryError:
            told = f"{url}: no connection, after repeated attempts ({cause})"
            raise MachineError(f"{told}.\nRun the same command again later: what arrived is kept.") from None
        wait = (response and self.get_retry_after(response)) or following.get_backoff_time()
        say(f"{url}: {cause}; again in {wait:.0f} s")
        return following

    def parse_retry_after(self, retry_after: str) -> float:
        """Return the seconds that a server asks to wait, within reason."""
        try:
            return min(super().parse_retry_after(retry_after), LONGEST_WAIT)
        except (ValueError, OverflowError):  # a number or date out of this world
            return LONGEST_WAIT


REPEATS = Repeats(  # of each kind of failure in a row; the second follows at once, the third after 2 s, then 4, 8, 16
    total=None,
    **dict.fromkeys(("connect", "read", "redirect", "status", "other"), 5),
    status_forcelist=(408, 425, 429, 500, 502, 503, 504),
    backoff_factor=1.0,
)


def _blocks(url: str, start: int = 0, size: int = 0, anywhere: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield the content of a URL from an offset on, as offset and block; go on where the connection is cut.

    Where the server cannot go on, it sends everything: the offset is 0 again. `size`, in bytes, tells a cut from the
    end where the server says no length. ZipError: it has no such file. MachineError: it never gets on.
    """
    repeats, most = REPEATS, start
    while True:
        try:
            headers = {"Range": f"bytes={start}-"} if start else {}
            with web.answer(url, repeats, TIMEOUT, headers, anywhere=anywhere) as response:
                if start and not _continues(response, start):
                    start = 0
                    if response.status == RANGE_NOT_THERE:  # the server's file ends here, or before what is here
                        if repeats is not REPEATS:  # what looked like a cut was its end
                            return
                        most = 0
                        continue
                if response.status >= 300:
                    raise ZipError(f"{url}: the server answers {response.status} {response.reason}")
                for block in web.blocks(response):
                    yield start, block
                    start += len(block)
                    if start > most:
                        repeats, most = REPEATS, start
                if start >= size or response.chunked or "Content-Length" in response.headers:
                    return
                raise ProtocolError("the connection ended early")
        except web.TooSlowError as error:
            raise MachineError(f"{error}.\nRun the same command again later: what arrived is kept.") from None
        except web.WebError as error:
            raise ZipError(str(error)) from None
        except HTTPError as error:
            repeats = repeats.increment("GET", url, error=error)
            repeats.sleep()


def _continues(response: BaseHTTPResponse, start: int) -> bool:
    """Return whether the server sends from the offset on, not everything again."""
    span = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
    return response.status == 206 and span is not None and int(span[1]) == start


def _download(remote: RemoteFile, folder: Path, show: Callable[[int], None]) -> Path:
    """Download a file into a folder and verify it; what of it lies there as `NAME.partial` is not asked for again.

    `show` is called with the bytes there are. ZipError: the server has no such file, or another one than listed.
    """
    whole, partial = folder / remote.name, folder / f"{remote.name}.partial"
    if whole.is_file() and _digest(whole, remote) == remote.digest:
        show(remote.size)
        return whole
    begun = partial.stat().st_size if partial.is_file() else 0
    if begun < remote.size:
        _receive(remote, partial, begun, show)
    found = _digest(partial, remote)
    if found == remote.digest:
        partial.replace(whole)
        return whole
    partial.unlink()
    if begun:
        say(f"{remote.name}: what an earlier run left does not fit; from the start again")
        return _download(remote, folder, show)
    raise ZipError(
        f"{remote.url}: expected {remote.algorithm} {remote.digest}, found {found}: what arrived is thrown away"
    )


def _receive(remote: RemoteFile, partial: Path, begun: int, show: Callable[[int], None]) -> None:
    for start, block in _blocks(remote.url, begun, remote.size, remote.anywhere):
        show(start + len(block))
        if start + len(block) > remote.size:
            partial.unlink(missing_ok=True)
            raise ZipError(f"{remote.url}: expected {remote.size} bytes, found more")
        try:
            with open_regular(partial, "ab") as file:
                if start < file.tell():
                    file.truncate(start)
                file.write(block)
        except OSError as error:
            raise _cannot_write(partial, error) from None


def _digest(path: Path, remote: RemoteFile) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, remote.algorithm).hexdigest()


def _cannot_write(path: Path, error: OSError) -> MachineError:
    return MachineError(
        f"{path}: {error.strerror}; what arrived is kept.\nMake room, or name another --root, and run it again."
    )


# ---- Unpack: a zip that somebody else made writes nothing but the wanted clips ----


def _unpack_clips(zip_file: Path, wanted: Mapping[str, Path], work: Path) -> None:
    """Put the wanted clips into place and remove the zip. ZipError: it is not what it should be, and is kept."""
    try:
        absent, others = unpack(zip_file, wanted, work)
    except ZipError as error:
        raise ZipError(f"{error}; it is kept as {zip_file}") from None
    except OSError as error:
        raise _cannot_write(zip_file, error) from None
    zip_file.unlink()
    say(f"{zip_file.name}: {len(wanted) - len(absent)} clips unpacked, {others} other files left out")
    if absent:
        raise ZipError(f"{len(absent)} of {len(wanted)} expected clips are not in it, the first {absent[0]}")


def unpack(archive: Path, wanted: Mapping[str, Path], work: Path) -> tuple[list[str], int]:
    """Write the wanted members of a zip, and return the names that are not in it and how many other files are.

    No path of the zip is ever used: a member is known by its name alone, and `wanted` says where it goes. Each file is
    written in the folder `work`, checked against the zip's CRC and moved when whole.

    Raises:
        ZipError: a broken zip; a member with an absolute path, with `..`, that is a link or device, encrypted, or there
            twice; more members or more unpacked bytes than MAX_MEMBERS and MAX_RATIO allow.
        OSError: a clip cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _check_members(opened.infolist(), archive.stat().st_size)
            found = {name: member for name, member in members.items() if name in wanted}
            for name, member in found.items():
                _extract(opened, member, work / f"{name}.partial", wanted[name])
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise ZipError(f"the zip is broken ({error})") from None
    return sorted(set(wanted) - set(found)), len(members) - len(found)


def _check_members(infos: list[zipfile.ZipInfo], packed: int) -> dict[str, zipfile.ZipInfo]:
    """Return the files among the members, by name without folders."""
    if len(infos) > MAX_MEMBERS:
        raise ZipError(f"{len(infos)} members, expected at most {MAX_MEMBERS}")
    unpacked = sum(info.file_size for info in infos)
    if unpacked > MAX_RATIO * packed:
        raise ZipError(f"its {packed} bytes would unpack to {unpacked}, expected at most {MAX_RATIO} times as many")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", info.filename):
            raise ZipError(f"member {info.filename!r} leads out of the zip's own folder")
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the zip was made on a system without such modes
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ZipError(f"member {info.filename!r} is a link or a device, expected files and folders")
        if info.flag_bits & 1:
            raise ZipError(f"member {info.filename!r} is encrypted")
        if info.is_dir():
            continue
        if path.name in members:
            raise ZipError(f"member {path.name!r} is there twice")
        members[path.name] = info
    return members


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, partial: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(member) as source, open_regular(partial, "wb") as file:
            shutil.copyfileobj(source, file, web.BLOCK)  # no more than the size that was checked; then the CRC
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
