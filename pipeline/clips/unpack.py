"""Take wanted files out of a zip that somebody else made: nothing leaves its place, nothing grows without limit."""

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

MAX_MEMBERS = 10_000
MAX_RATIO = 3  # unpacked bytes over packed ones; video hardly compresses
BLOCK = 1 << 20  # bytes


class ArchiveError(Exception):
    """A zip that is broken or holds what no honest one does."""


def unpack(archive: Path, wanted: Mapping[str, Path], work: Path) -> tuple[list[str], int]:
    """Write the members called as ``wanted`` says, wherever in the zip they lie, to the places it gives.

    Returns the names that are not in the zip, and how many other files are. No path of the zip is ever used: a member
    is known by its name alone. Each file is written in ``work``, checked against the zip's CRC and moved when whole.
    ArchiveError: a broken zip; a member with an absolute path, with `..`, that is a link or device, encrypted, or there
    twice; more members or more unpacked bytes than MAX_MEMBERS and MAX_RATIO allow. OSError: it cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _check(opened.infolist(), archive.stat().st_size)
            found = {name: member for name, member in members.items() if name in wanted}
            for name, member in found.items():
                _extract(opened, member, work / f"{name}.partial", wanted[name])
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise ArchiveError(f"the zip is broken ({error})") from None
    return sorted(set(wanted) - set(found)), len(members) - len(found)


def _check(infos: list[zipfile.ZipInfo], packed: int) -> dict[str, zipfile.ZipInfo]:
    """The files among the members, by name without folders."""
    if len(infos) > MAX_MEMBERS:
        raise ArchiveError(f"{len(infos)} members, expected at most {MAX_MEMBERS}")
    unpacked = sum(info.file_size for info in infos)
    if unpacked > MAX_RATIO * packed:
        raise ArchiveError(f"its {packed} bytes would unpack to {unpacked}, expected at most {MAX_RATIO} times as many")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", info.filename):
            raise ArchiveError(f"member {info.filename!r} leads out of the zip's own folder")
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the zip was made on a system without such modes
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"member {info.filename!r} is a link or a device, expected files and folders")
        if info.flag_bits & 1:
            raise ArchiveError(f"member {info.filename!r} is encrypted")
        if info.is_dir():
            continue
        if path.name in members:
            raise ArchiveError(f"member {path.name!r} is there twice")
        members[path.name] = info
    return members


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, partial: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(member) as source, partial.open("wb") as file:
            while block := source.read(BLOCK):  # never more than the size that was checked; the CRC is, at the end
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
