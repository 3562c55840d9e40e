"""Read and write the small files of the product: whole or not at all, and with errors that name file and line."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import InputError

SEPARATORS = {";": "semicolons", "\t": "tabs"}  # of other programs' exports
Wrong = Callable[[str], InputError]  # makes the error of one line


@contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file to write: a temporary one beside it, flushed to the disk and moved into place at the end.

    Readers see the old file or the new one, never a part, whatever is killed. On an error the old file stays and the
    temporary one goes. Several processes may write the same file. The folder is made if it is absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping) -> None:
    """Write a JSON document, whole or not at all."""
    with whole_file(path, "w") as file:
        json.dump(document, file, indent=1, ensure_ascii=False)
        file.write("\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterator[Sequence]) -> None:
    """Write a CSV file, whole or not at all."""
    with whole_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
