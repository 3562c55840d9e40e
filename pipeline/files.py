"""Read and write the small files of the product: whole or not at all, and with errors that name file and line.

And what the first bytes of a user's file say of it: another kind than its name says, encrypted, or cut.
"""

import csv
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO

from .errors import InputError

SEPARATORS = {";": "semicolons", "\t": "tabs"}  # of other programs' exports
HEAD_BYTES = 4096  # that tell what a file is
ZIP = "a zip archive"
FOREIGN = {  # what files begin with that are often found under another kind's name
    rb"version https://git-lfs\.github\.com/spec/": "a Git LFS pointer, without the content (`git lfs pull` gets it)",
    rb"(?:\.\./)*(?:\.git)?/annex/objects/": "a git-annex pointer, without the content (`git annex get` gets it)",
    rb"PK(?:\x03\x04|\x05\x06)": ZIP,
    rb"\x1f\x8b\x08": "a gzip archive",
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive",
    rb"Rar!\x1a\x07": "a rar archive",
    rb"\xfd7zXZ\0": "an xz archive",
    rb"BZh[1-9]1AY&SY": "a bzip2 archive",
    rb"%PDF-": "a PDF document",
    rb"(?i)(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)\b": "a web page (an error page or a login?)",
    rb"(?:\xef\xbb\xbf)?\s*<\?xml\b": "an XML document (the error of a server?)",
    rb"(?:\xef\xbb\xbf)?\s*\{\s*\"[^\"\n]*\"\s*:": "a JSON document (the error of a server?)",
}
MAX_BOXES, MAX_INDEX = 1000, 64 << 20  # top-level boxes of an mp4 before its index, bytes of the index
ENCRYPTED = {  # sample descriptions of an mp4's encrypted tracks
    "video": re.compile(rb"stsd.{12}(?:encv|drmi)", re.DOTALL),
    "audio": re.compile(rb"stsd.{12}(?:enca|drms)", re.DOTALL),
}
UNKNOWN_SIZE = 2**31 - 2**16  # bytes: a wav written into a pipe says that it is almost 2**31 or 2**32 bytes long
INFO_FRAME = re.compile(rb"(?:Xing|Info)\0\0\0[\x02\x03\x06\x07\x0a\x0b\x0e\x0f]")  # of an mp3 that states its bytes
SPECIAL = re.compile(r"[^\n -~]")  # may not be printable
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # text that a spreadsheet computes instead of showing it
ESCAPED = re.compile(r"'+[=+\-@\t\r]")
Wrong = Callable[[str], InputError]  # makes the error of one line
csv.field_size_limit(2**31 - 1)  # characters, of all readers of this process; csv's own limit is 131,072


@contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file to write: a temporary one beside it, flushed to the disk and moved into place at the end.

    Readers see the old file or the new one, never a part, whatever is killed. On an error the old file stays and the
    temporary one goes. Several processes may write the same file. The folder is made if it is absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode.replace("w", "x"), **text) as file:  # x: a new file, never what a link leads to
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a name beside a file, to be moved into its place: one that nobody else has or foresees."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def write_json(path: Path, document: Mapping) -> None:
    """Write a JSON document, whole or not at all."""
    with whole_file(path, "w") as file:
        file.write(json_text(document, indent=1) + "\n")


def json_text(document: object, indent: int | None = None) -> str:
    """Return a document as JSON in which whatever is not printable is escaped, and reads back as it was."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    return SPECIAL.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def write_csv(path: Path, header: Sequence[str], rows: Iterator[Sequence]) -> None:
    """Write a CSV file, whole or not at all, in which no text is a spreadsheet's formula (`csv_value`)."""
    with whole_file(path, "w") as file:
        csv_lines(file, header, rows)


def csv_lines(file: IO, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write the lines of a CSV, as `write_csv`, into an open file."""
    plain, quoted = (csv.writer(file, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in chain([header], rows):
        values = [csv_value(value) for value in row]
        odd = any("\r" in str(value) for value in values)  # csv leaves a lone carriage return unquoted
        (quoted if odd else plain).writerow(values)


def csv_value(value: object) -> object:
    """Return a value of a CSV as it is written: text that a spreadsheet would compute gets an apostrophe before it."""
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def csv_text(field: str) -> str:
    """Return the text of a field that `csv_value` wrote, as it was."""
    return field[1:] if ESCAPED.match(field) else field


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """Make the folder for what mlemiss keeps for this user alone, ~/.cache/mlemiss (or in XDG_CACHE_HOME).

    OSError: it cannot be made, or others may write to it.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (named if named.is_absolute() else Path.home() / ".cache") / "mlemiss"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "not a folder that its user alone can write to", str(folder))
    return folder


def absent_content(path: Path) -> str:
    """Return `a git-annex link, …` if a path is one and its content is not on this machine, else nothing."""
    if path.is_symlink() and "/annex/objects/" in str(path.readlink()) and not path.exists():
        return "a git-annex link, without the content (`git annex get` gets it)"
    return ""


def foreign_content(path: Path, zipped: bool = False) -> str:
    """Return what a file is instead of what its name says, such as `a web page`; empty where nothing is known.

    Args:
        path: the file.
        zipped: a zip archive is what it should be.

    Raises:
        OSError: it cannot be read.
    """
    if absent := absent_content(path):
        return absent
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if not head:
            return "an empty file"
        if not any(head):
            size = os.fstat(file.fileno()).st_size
            blocks = [os.pread(file.fileno(), HEAD_BYTES, at) for at in (size // 2, max(size - HEAD_BYTES, 0))]
            return "" if any(map(any, blocks)) else "zeros only: a download that was not finished"
    found = next((kind for pattern, kind in FOREIGN.items() if re.match(pattern, head)), "")
    return "" if zipped and found == ZIP else found


def read_csv(
    path: Path, required: Sequence[str], what: str, hint: str
) -> tuple[list[str], Iterator[tuple[int, dict[str, str], Wrong]]]:
    """Open a CSV file with a header.

    Args:
        path: a UTF-8 file, with or without a byte order mark.
        required: columns that must be there.
        what: what to call the file in errors, for example `manifest`.
        hint: what to do where it cannot be read.

    Returns:
        The header, and for each row below it the line number, the values by column (stripped of spaces around them)
        and a function that makes an error of that line.

    Raises:
        InputError: the file is absent, not UTF-8, not CSV, or lacks a required column; a row has another number of
            fields; there is no row.
    """
    rows = _rows(path, required, what, hint)
    return next(rows), rows


def _rows(path: Path, required: Sequence[str], what: str, hint: str) -> Iterator:
    line = 1

    def wrong(why: str) -> InputError:
        return InputError(f"{what} {path}, line {line}: {why}.\nExpected the columns {','.join(required)}[,more].")

    try:
        if (found := foreign_content(path)) and path.stat().st_size:
            raise InputError(f"{what} {path}: this is {found}, not a CSV.\n{hint}")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise wrong("the file is empty")
            if absent := [name for name in required if name not in header]:
                marks = [name for mark, name in SEPARATORS.items() if len(header) == 1 and mark in header[0]]
                told = f": its fields are separated by {marks[0]}, not commas" if marks else ""
                raise wrong(f"column {', '.join(absent)} is missing from the header {','.join(header)!r}{told}")
            yield header
            empty = True
            for values in reader:
                line = reader.line_num
                if not values:
                    continue
                if len(values) != len(header):
                    raise wrong(f"expected {len(header)} fields, found {len(values)}")
                if any("\0" in value for value in values):
                    raise wrong("a character NUL, which belongs in no text")
                empty = False
                yield line, dict(zip(header, (value.strip() for value in values), strict=True)), wrong
            if empty:
                raise wrong("no rows below the header")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path}: not UTF-8 text (byte {error.start}).\nSave it as UTF-8 CSV.") from None
    except OSError as error:
        raise InputError(f"{what} {path}: {error.strerror}.\n{hint}") from None
    except csv.Error as error:
        line = reader.line_num
        raise wrong(str(error)) from None


# ---- The headers of clips: what ffmpeg does not tell ----


def encrypted_kinds(path: Path) -> set[str]:
    """Return which of an mp4's `video` and `audio` its index calls encrypted, which ffmpeg would decode to noise."""
    at, end = 0, path.stat().st_size
    with path.open("rb") as file:
        for _ in range(MAX_BOXES):
            file.seek(at)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            if size == 1:  # a 64-bit size follows
                size = int.from_bytes(head[8:], "big")
            size = size or end - at  # 0: to the end of the file
            if head[4:8] == b"moov":
                index = head + file.read(min(size, MAX_INDEX))
                return {kind for kind, entry in ENCRYPTED.items() if entry.search(index)}
            at += size
            if size < 8 or at >= end:
                break
    return set()


def riff_end(path: Path) -> float | None:
    """Return the end in seconds that the header of a cut avi or wav tells; ffmpeg would adjust it to what is there."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] != b"RIFF" or len(head) < 64 or int.from_bytes(head[4:8], "little") + 8 <= path.stat().st_size:
        return None
    if head[8:12] == b"AVI " and head[24:28] == b"avih":
        microseconds, frames = (int.from_bytes(head[at : at + 4], "little") for at in (32, 48))
        return microseconds * frames / 1e6 or None
    data = head.find(b"data", 12)
    if head[8:16] == b"WAVEfmt " and data > 0:
        size, rate = (int.from_bytes(head[at : at + 4], "little") for at in (data + 4, 28))
        if size % 2**31 > UNKNOWN_SIZE:
            return None
        return size / rate if rate else None
    return None


LONGEST_HEAD, BLOCK_BYTES = 64, 1 << 20  # of HEADS; read at once
# How files begin whose readers see only the first where several are joined end to end.
HEADS = [
    re.compile(head, re.DOTALL)
    for head in (
        rb"RIFF.{4}WAVE(?:fmt |JUNK|bext|LIST)",
        rb"RIFF.{4}AVI LIST",
        rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0",  # W64
        rb"FORM.{4}AIF[FC](?:COMM|FVER)",
        rb"caff\0\x01\0\0desc",
        rb"FLV\x01[\x01\x04\x05]\0\0\0\x09\0\0\0\0",
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c",  # ASF
        rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02",  # MXF, the header's partition
        rb"\.RMF\0\0\0\x12\0",
    )
]


def is_joined(path: Path) -> bool:
    """Return whether another file of the same kind follows the first one in a file."""
    with path.open("rb") as file:
        block = file.read(BLOCK_BYTES)
        head = next((head for head in HEADS if head.match(block)), None)
        start = 1
        while head and block:
            if head.search(block, start):
                return True
            rest = file.read(BLOCK_BYTES)
            block, start = (block[-LONGEST_HEAD:] + rest if rest else b""), 0
    return False


def is_cut_mp3(path: Path) -> bool:
    """Return whether an mp3 holds fewer bytes than its first frame says."""
    with path.open("rb") as file:
        head = file.read(10)
        tag = sum((byte & 127) << 7 * place for place, byte in enumerate(reversed(head[6:]))) + 10  # bytes
        start = tag if head[:3] == b"ID3" else 0
        file.seek(start)
        frame = file.read(256)
    stated = INFO_FRAME.search(frame)
    if stated is None or frame[:1] != b"\xff":
        return False
    at = stated.end() + 4 * (frame[stated.end() - 1] & 1)  # after the number of frames
    return start + int.from_bytes(frame[at : at + 4], "big") > path.stat().st_size


# ---- Folders that others may write to: what somebody planted there is not followed ----


def planted(path: Path) -> InputError:
    """Return the error for what mlemiss never makes, in a folder where it works."""
    return InputError(
        f"{path} is a link, pipe or the like, and mlemiss makes none there: somebody else did. It is not followed.\n"
        f"See what it is (`ls -l`) and remove it; whoever may write to {path.parent} can do this again."
    )


def work_folder(folder: Path, top: Path) -> Path:
    """Make a folder for unfinished work, and refuse what somebody planted there or on the way.

    Else this run would write, read or delete something elsewhere, or wait for ever.

    Args:
        folder: below ``top``, or that itself.
        top: the user's folder, which may be a link; others may be able to write to it.

    Raises:
        InputError: a link, a pipe or the like, which is named.
    """
    top.mkdir(parents=True, exist_ok=True)
    for path in [*[between for between in folder.parents if top in between.parents][::-1], folder]:
        with suppress(FileExistsError):
            path.mkdir()
        if path != top and not stat.S_ISDIR(path.lstat().st_mode):
            raise planted(path)
    return folder


def check_work(folder: Path) -> None:
    """Look through a work folder. InputError: somebody planted a link, a pipe or the like in it, which is named."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # whose work it is may be at work
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                check_work(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                raise planted(Path(entry.path))


def remove_tree(path: Path) -> None:
    """Delete a folder of ours if it is there; of a link in its place the link, never what it leads to."""
    with suppress(OSError):  # a folder
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
