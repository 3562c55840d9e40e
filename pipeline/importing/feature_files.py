"""Read features that were computed elsewhere: arrays of an .npz, columns of a .csv, .arff or .parquet.

Only what is asked for is read. A name may be a glob (``face_*``), which stands for all that fit, in the file's order.
Files of OpenFace and openSMILE are known by their first columns, which are about a row and are no features.
"""

import csv
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

import numpy as np

from ..console import name_some
from ..errors import InputError
from ..files import foreign_content  # which lifts csv's limit of a field's length

READ_AS_NAN = frozenset({"", "NA", "N/A", "null"})  # a CSV's ways to say that a number is missing, beside nan
NAN_WORD = re.compile(r"[+-]?(?:nan\(\w*\)|1\.#(?:qnan|snan|ind)\w*)(?:e[+-]\d+)?", re.IGNORECASE)  # as Windows does
NAMES_LISTED = 20  # names of arrays or columns that are listed
WHOLE = re.compile(r"([+-]?\d+)\.0*")  # a whole number that is written with a fraction
OPENFACE_1 = ("frame", "timestamp", "confidence", "success")
# First columns of tools' files -> columns that are no features, and which one names the clip; where none does, the user
# may have put one before them.
ABOUT_ROWS = {
    ("frame", "face_id", "timestamp"): (("frame", "face_id", "timestamp", "confidence", "success"), ""),  # OpenFace
    OPENFACE_1: (OPENFACE_1, ""),
    ("face", "confidence"): (("face", "confidence"), ""),  # OpenFace, of single pictures
    ("name", "frameTime"): (("name", "frameTime", "frameIndex", "class"), "name"),  # openSMILE
    ("name", "frameIndex"): (("name", "frameTime", "frameIndex", "class"), "name"),
    ("file", "start", "end"): (("file", "start", "end"), "file"),  # openSMILE's Python package
}
FACE = ("success", "confidence", "face_id")  # of OpenFace, read beside what is asked for
ATTRIBUTE = re.compile(r"\s*@attribute\s+(?:'((?:[^'\\]|\\.)*)'|\"([^\"]*)\"|(\S+))\s", re.IGNORECASE)  # of ARFF
MEDIA_ENDING = re.compile(r"\.(?:wav|mp3|flac|ogg|m4a|aac|aiff?|mp4|avi|mov|mkv|webm|mpe?g|wmv|flv)$", re.IGNORECASE)


@dataclass(frozen=True)
class FeatureFile:
    """The arrays or columns of a file that were asked for, row by row."""

    path: Path
    maps: dict[str, list[str]]  # pattern -> the names that fit it, in the file's order
    numbers: dict[str, np.ndarray]  # floats or integers [row], [row, feature] or [row, segment, feature]
    texts: dict[str, np.ndarray]  # str [row]
    tabular: bool  # rows may be a clip's segments, as in a CSV
    notes: tuple[str, ...] = ()  # what a user should know of how it was read
    face: dict[str, np.ndarray] = field(default_factory=dict)  # OpenFace's columns of how it went, float64 [row]
    clip: str = ""  # the column of clip ids, where one was asked for
    tool: bool = False  # openSMILE made it: a clip's rows are its course over time


def columns_about_rows(header: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return which columns are no features but about a row, and which of them names the clip; nothing if unknown."""
    for first, (about, clip) in ABOUT_ROWS.items():
        starts = range(1 if clip else max(len(header) - len(first) + 1, 0))
        if any(tuple(header[i : i + len(first)]) == first for i in starts):
            return about, clip
    return (), ""


def read_feature_file(
    path: Path, patterns: Sequence[str], texts: Sequence[str], clip: str | None = "", face: bool = False
) -> FeatureFile:
    """Read ``patterns`` as numbers and ``texts`` as words.

    Args:
        path: the file; its ending says its kind.
        patterns: names of arrays or columns, or globs of them. A glob takes no column that is about a row.
        texts: names of arrays or columns.
        clip: another column of words, which names the clip: this one, or the tool's own where it is absent.
        face: read how OpenFace fared with each row, too, where it made the file.

    Raises:
        InputError: the file cannot be read or is of another kind, a name is not in it (those there are listed), an
            array is pickled or ragged, or something is no number where a number is expected.
    """
    check_kind(path, READERS)
    maps: dict[str, list[str]] = {}
    found: dict[str, list[str]] = {}

    def choose(available: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return which of the file's names to read as numbers, and which as words."""
        about, names_clip = columns_about_rows(available)
        found["tool"] = [names_clip] if names_clip else []
        if clip != "":
            found["clip"] = [clip if clip in available or not names_clip else names_clip]
        found["words"] = list(dict.fromkeys([*texts, *found.get("clip", [])]))
        for text in found["words"]:
            if text not in available:
                raise absent(path, text, available)
        for pattern in patterns:
            fitting = [n for n in available if fnmatchcase(n, pattern) and n not in about]
            maps[pattern] = [pattern] if pattern in available else fitting
            if not maps[pattern]:
                raise absent(path, pattern, [name for name in available if name not in about])
        found["face"] = [name for name in FACE if name in about and name in available] if face else []
        names = [name for names in maps.values() for name in names]
        return list(dict.fromkeys(names + found["face"])), found["words"]

    try:
        numbers, words = READERS[path.suffix.lower()](path, choose)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    notes = [
        f"{pattern!r} took {name_some(names, NAMES_LISTED)}" for pattern, names in maps.items() if pattern not in names
    ]
    for name, values in words.items():
        _refuse_nul(path, name, values)
        words[name], read_as = _whole_numbers(values)
        notes += [f"{name!r} holds whole numbers: {read_as}"] if read_as else []
    known = {name: numbers[name] for name in found["face"]}
    asked = {name: numbers[name] for names in maps.values() for name in names}
    tabular, named = path.suffix.lower() != ".npz", found.get("clip", [""])[0]
    return FeatureFile(path, maps, asked, words, tabular, tuple(notes), known, named, bool(found["tool"]))


def check_kind(path: Path, endings: Iterable[str]) -> None:
    """Check that a file is there, ends in one of these, and begins like that. InputError: it does not."""
    if path.suffix.lower() not in endings:
        raise InputError(f"{path}: expected a file that ends in {', '.join(endings)}, found {path.suffix or 'none'!r}.")
    if not path.is_file():
        raise InputError(f"no file {path}: expected features to import as {', '.join(endings)}.")
    if found := foreign_content(path, zipped=path.suffix.lower() == ".npz"):
        raise InputError(f"{path}: this is {found}, not what its name says.")


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
Choose = Callable[[Sequence[str]], tuple[list[str], list[str]]]  # names there are -> numbers, texts


def absent(path: Path, name: str, available: Sequence[str]) -> InputError:
    """Return the error for a name that a file lacks."""
    return InputError(f"{path} has no {name!r}.\nThere are: {name_some(available, NAMES_LISTED) or 'none'}.")


def _read_npz(path: Path, choose: Choose) -> Read:
    """Read arrays of an .npz, which are never unpickled: an array of Python objects is an error."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds one bare array: expected an .npz of named ones (numpy.savez).")
        with file:
            names, texts = choose(file.files)
            numbers = {name: _npz_array(path, file, name) for name in names}
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


TableLines = Iterator[tuple[int, list[str]]]  # number of the line, fields; the names of the columns come first


def _csv_lines(path: Path, file: TextIO) -> TableLines:
    """Yield the lines of a CSV: comma, semicolon or tab, whichever splits the header most."""
    separator = max(",;\t", key=file.readline().count)
    file.seek(0)
    rows = csv.reader(file, delimiter=separator, strict=True)
    for values in rows:
        yield rows.line_num, values


def _arff_lines(path: Path, file: TextIO) -> TableLines:
    """Yield the attributes' names, and the lines below `@data`: commas between, `?` for no value."""
    names, number = [], 0
    for line in file:
        number += 1
        if words := ATTRIBUTE.match(line):
            names.append(next(name for name in words.groups() if name is not None))
        elif line.strip().lower() == "@data":
            break
    else:
        raise InputError(f"{path}: no line @data, which an ARFF file has.\nWrite the file again.")
    yield number, names
    rows = csv.reader(file, quotechar="'", escapechar="\\", skipinitialspace=True)
    for values in rows:
        if values and values[0].startswith("{"):
            raise InputError(f"{path}, line {number + rows.line_num}: sparse ARFF.\nWrite every value.")
        comment = values and values[0].startswith("%")
        yield number + rows.line_num, [] if comment else ["" if value == "?" else value for value in values]


def _read_table(path: Path, choose: Choose) -> Read:
    """Read columns of a CSV or an ARFF file; spaces around names and values do not count."""
    table: list[np.ndarray] = []
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (_arff_lines if path.suffix.lower() == ".arff" else _csv_lines)(path, file)
            header = [name.strip() for name in next(lines, (1, []))[1]]
            if twice := [name for name in dict.fromkeys(header) if header.count(name) > 1]:
                raise InputError(f"{path}, line 1: column {twice[0]!r} stands twice.\nRename one of them.")
            names, texts = choose(header)
            columns = [header.index(name) for name in names]
            words: dict[str, list[str]] = {name: [] for name in texts}
            text_columns = [(words[name], header.index(name)) for name in texts]
            for line, values in lines:
                if not values:
                    continue
                if len(values) != len(header):
                    raise InputError(f"{path}, line {line}: expected {len(header)} fields, found {len(values)}.")
                table.append(_row(path, line, names, [values[column] for column in columns]))
                for column_words, column in text_columns:
                    column_words.append(values[column].strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}).\nSave it as UTF-8 CSV.") from None
    except csv.Error as error:
        raise InputError(f"{path}, below line {line}: {error}.") from None
    for name, some in words.items():
        _refuse_nul(path, name, some)
    numbers = np.array(table).reshape(len(table), len(names))
    return dict(zip(names, numbers.T, strict=True)), {name: np.array(some, dtype=str) for name, some in words.items()}


def count_rows(path: Path) -> int:
    """Return how many rows a CSV or an ARFF file has below its header, without reading them."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".arff":
            for line in file:
                if line.strip().lower() == b"@data":
                    break
        rows = sum(1 for line in file if line.strip() and not line.startswith(b"%"))
    return rows if path.suffix.lower() == ".arff" else max(rows - 1, 0)


def _row(path: Path, line: int, names: Sequence[str], values: list[str]) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except ValueError:
        pass
    row = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            none = value.strip() in READ_AS_NAN or NAN_WORD.fullmatch(value.strip())
            row[i] = np.nan if none else float(value)
        except ValueError:
            raise InputError(
                f"{path}, line {line}, column {names[i]!r}: expected a number, found {value!r}.\n"
                f"Map columns of numbers only; leave a field empty where a clip lacks the modality."
            ) from None
    return row


def _read_parquet(path: Path, choose: Choose) -> Read:
    """Read columns of numbers, or of lists of numbers that are all of one length."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{path}: reading parquet needs pyarrow.\nInstall it (pip install 'mlemiss[parquet]'), or import a CSV."
        ) from None
    try:
        names, texts = choose(pyarrow.parquet.read_schema(path).names)
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


READERS = {".npz": _read_npz, ".csv": _read_table, ".arff": _read_table, ".parquet": _read_parquet}
