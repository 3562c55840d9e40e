"""Read features that were computed elsewhere: arrays of an .npz, columns of a .csv or .parquet.

Only what is asked for is read. A name may be a glob (``face_*``), which stands for all that fit, in the file's order.
"""

import csv
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ..console import name_some
from ..errors import InputError
from ..files import foreign_content  # which lifts csv's limit of a field's length

READ_AS_NAN = frozenset({"", "NA", "N/A", "null"})  # a CSV's ways to say that a number is missing, beside nan
NAMES_LISTED = 20  # names of arrays or columns that are listed
WHOLE = re.compile(r"([+-]?\d+)\.0*")  # a whole number that is written with a fraction


@dataclass(frozen=True)
class FeatureFile:
    """The arrays or columns of a file that were asked for, row by row."""

    path: Path
    maps: dict[str, list[str]]  # pattern -> the names that fit it, in the file's order
    numbers: dict[str, np.ndarray]  # floats or integers [row], [row, feature] or [row, segment, feature]
    texts: dict[str, np.ndarray]  # str [row]
    tabular: bool  # rows may be a clip's segments, as in a CSV
    notes: tuple[str, ...] = ()  # what a user should know of how it was read


def read_feature_file(path: Path, patterns: Sequence[str], texts: Sequence[str]) -> FeatureFile:
    """Read ``patterns`` as numbers and ``texts`` as words.

    Raises:
        InputError: the file cannot be read or is of another kind, a name is not in it (those there are listed), an
            array is pickled or ragged, or something is no number where a number is expected.
    """
    readers = {".npz": _read_npz, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: expected a file that ends in {', '.join(readers)}, found {path.suffix or 'none'!r}.")
    if not path.is_file():
        raise InputError(f"no file {path}: expected features to import as {', '.join(readers)}.")
    if found := foreign_content(path, zipped=path.suffix.lower() == ".npz"):
        raise InputError(f"{path}: this is {found}, not what its name says.")
    maps: dict[str, list[str]] = {}

    def choose(available: Sequence[str]) -> list[str]:
        """Return which of the file's names to read as numbers."""
        for text in texts:
            if text not in available:
                raise _absent(path, text, available)
        for pattern in patterns:
            maps[pattern] = [pattern] if pattern in available else [n for n in available if fnmatchcase(n, pattern)]
            if not maps[pattern]:
                raise _absent(path, pattern, available)
        return list(dict.fromkeys(name for names in maps.values() for name in names))

    try:
        numbers, words = readers[path.suffix.lower()](path, choose, list(texts))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    notes = [
        f"{pattern!r} took {name_some(names, NAMES_LISTED)}" for pattern, names in maps.items() if pattern not in names
    ]
    for name, values in words.items():
        _refuse_nul(path, name, values)
        words[name], read_as = _whole_numbers(values)
        notes += [f"{name!r} holds whole numbers: {read_as}"] if read_as else []
    return FeatureFile(path, maps, numbers, words, path.suffix.lower() != ".npz", tuple(notes))


def _whole_numbers(words: np.ndarray) -> tuple[np.ndarray, str]:
    """Write 1.0 as 1 where all words are whole numbers, as programs write them that make a gap's column one of floats.

    Returns:
        The words, str [row], and the first that was changed: `1.0 is read as 1`.
    """
    plain = {str(word): WHOLE.sub(r"\1", str(word)) for word in np.unique(words)}
    changed = [word for word, number in plain.items() if word != number]
    if not changed or not all(re.fullmatch(r"[+-]?\d+|", number) for number in plain.values()):
        return words, ""
    return np.array([plain[str(word)] for word in words]), f"{changed[0]} is read as {plain[changed[0]]}"


Read = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # numbers, texts
Choose = Callable[[Sequence[str]], list[str]]


def _absent(path: Path, name: str, available: Sequence[str]) -> InputError:
    return InputError(f"{path} has no {name!r}.\nThere are: {name_some(available, NAMES_LISTED) or 'none'}.")


def _read_npz(path: Path, choose: Choose, texts: list[str]) -> Read:
    """Read arrays of an .npz, which are never unpickled: an array of Python objects is an error."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds one bare array: expected an .npz of named ones (numpy.savez).")
        with file:
            numbers = {name: _npz_array(path, file, name) for name in choose(file.files)}
            return numbers, {name: as_text(path, name, _npz_array(path, file, name)) for name in texts}
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise InputError(
            f"{path} is no .npz of plain arrays (pickled, damaged or something else).\nWrite it with numpy.savez."
        ) from None


def _npz_array(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return file[name]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if "allow_pickle" not in str(error):
            raise InputError(f"{path}: the array {name!r} is damaged ({error}).\nWrite the file again.") from None
        raise InputError(
            f"{path}: the array {name!r} is pickled (rows of different lengths, or strings kept as objects), which may "
            f"run code and is never loaded.\nSave an array of numbers, all rows alike, or of strings (.astype(str))."
        ) from None


def _read_csv(path: Path, choose: Choose, texts: list[str]) -> Read:
    """Read columns of a CSV: comma, semicolon or tab, whichever splits the header most; spaces around do not count."""
    lines: list[np.ndarray] = []
    words: dict[str, list[str]] = {name: [] for name in texts}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = csv.reader(file, delimiter=separator, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if twice := [name for name in dict.fromkeys(header) if header.count(name) > 1]:
                raise InputError(f"{path}, line 1: column {twice[0]!r} stands twice.\nRename one of them.")
            names = choose(header)
            columns = [header.index(name) for name in names]
            text_columns = [(words[name], header.index(name)) for name in texts]
            for values in rows:
                if not values:
                    continue
                if len(values) != len(header):
                    raise InputError(
                        f"{path}, line {rows.line_num}: expected {len(header)} fields, found {len(values)}."
                    )
                lines.append(_row(path, rows.line_num, names, [values[column] for column in columns]))
                for column_words, column in text_columns:
                    column_words.append(values[column].strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}).\nSave it as UTF-8 CSV.") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: {error}.") from None
    for name, some in words.items():
        _refuse_nul(path, name, some)
    table = np.array(lines).reshape(len(lines), len(names))
    return dict(zip(names, table.T, strict=True)), {name: np.array(some, dtype=str) for name, some in words.items()}


def _row(path: Path, line: int, names: Sequence[str], values: list[str]) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except ValueError:
        pass
    row = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            row[i] = np.nan if value.strip() in READ_AS_NAN else float(value)
        except ValueError:
            raise InputError(
                f"{path}, line {line}, column {names[i]!r}: expected a number, found {value!r}.\n"
                f"Map columns of numbers only; leave a field empty where a clip lacks the modality."
            ) from None
    return row


def _read_parquet(path: Path, choose: Choose, texts: list[str]) -> Read:
    """Read columns of numbers, or of lists of numbers that are all of one length."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{path}: reading parquet needs pyarrow.\nInstall it (pip install 'mlemiss[parquet]'), or import a CSV."
        ) from None
    try:
        names = choose(pyarrow.parquet.read_schema(path).names)
        table = pyarrow.parquet.read_table(path, columns=list(dict.fromkeys([*names, *texts])))
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is no parquet file, or a damaged one ({error}).\nWrite it again.") from None
    numbers = {name: _arrow_numbers(path, name, table[name]) for name in names}
    words = {}
    for name in texts:
        values = table[name].to_pylist()
        _refuse_nul(path, name, filter(lambda value: isinstance(value, str), values))
        empty = "" if any(isinstance(v, str) for v in values) else np.nan
        words[name] = as_text(path, name, np.array([empty if v is None else v for v in values]))
    return numbers, words


def _arrow_numbers(path: Path, name: str, column) -> np.ndarray:
    """Return a parquet column: [row] or, of lists, [row, feature] or [row, segment, feature]; null is NaN."""
    values = column.to_pylist() if column.type.num_fields else column.to_numpy()
    if column.type.num_fields:
        known = next((np.shape(value) for value in values if value is not None), (0,))
        values = [np.full(known, np.nan) if value is None else value for value in values]
    try:
        return np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError):
        raise InputError(
            f"{path}: column {name!r} ({column.type}) holds rows of different lengths, or no numbers.\n"
            f"Map columns of numbers, or of lists of numbers of one length."
        ) from None


def _refuse_nul(path: Path, name: str, words: Iterable[str]) -> None:
    """Raise an InputError if a word holds a character NUL, which numpy drops at the end."""
    if any("\0" in word for word in words):
        raise InputError(f"{path}: {name!r} holds a character NUL, which belongs in no text.\nWrite it without.")


def as_text(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return words, bytes, booleans or whole numbers [row] as str [row], without blanks around them; NaN is empty.

    InputError: anything else, floats so large that they are not exact, or another shape.
    """
    if values.ndim != 1:
        raise InputError(f"{path}: {name!r} has shape {list(values.shape)}, expected one value a clip: [clip].")
    if values.dtype.kind == "S":
        return np.char.strip(np.char.decode(values, "utf-8"))
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if values.dtype.kind == "f" and np.all(np.isfinite(known)) and np.all(known == np.rint(known)):
        bits = min(np.finfo(values.dtype).nmant + 1, 53)
        if len(inexact := np.flatnonzero(np.abs(values) >= 2.0**bits)):
            raise InputError(
                f"{path}: {name!r}, row {inexact[0]}: {values[inexact[0]]} is beyond 2^{bits}, where {values.dtype} "
                f"rounds whole numbers.\nWrite them as strings or integers."
            )
        return np.where(np.isnan(values), "", np.nan_to_num(values).astype(np.int64).astype(str))
    if values.dtype.kind not in "Uiub":
        raise InputError(
            f"{path}: {name!r} ({values.dtype}) holds no words or whole numbers.\nWrite them as strings or integers."
        )
    return np.char.strip(values.astype(str))
