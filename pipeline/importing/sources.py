"""Where features come from: a table of all clips, or a folder with a file or a folder for each clip."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..console import name_some
from ..errors import InputError
from ..files import sha256_of
from .feature_files import MEDIA_ENDING, NAMES_LISTED, FeatureFile, check_kind, count_rows, read_feature_file
from .steps import Rules, Steps

NPY = ".npy"
CLIP_KINDS = (NPY, ".csv", ".arff")  # of files, of which a folder has one for each clip
Maps = Mapping[str, list[str]]  # modality -> the names or globs that make it


class Map(NamedTuple):
    """A modality's array, column or glob of columns: in ``file``, or else in the file with the labels."""

    modality: str
    name: str
    file: Path | None = None


class Table:
    """The rows of one file, some of each clip.

    Args:
        file: as read.
        maps: what makes each modality.
        ids: clip id of each row, str [row].
        rules: the user's.

    Raises:
        InputError: a name is mapped twice, or lengths or shapes do not fit together.
    """

    def __init__(self, file: FeatureFile, maps: Maps, ids: np.ndarray, rules: Rules):
        self.file, self.path, self.over_time = file, file.path, file.tool or bool(rules.segments or rules.pool)
        self.columns = columns_of(file, maps)
        self.notes = list(file.notes)
        self._check()
        self._rows = _rows_of_clips(file, ids)
        self.clips = list(self._rows)
        self._values = {modality: self._join(names) for modality, names in self.columns.items()}
        self.hint = ""  # where none of its clips is known
        self._kept, self._why = vouched(file.face, rules, file.path)
        self.faces = bool(file.face)

    def _check(self) -> None:
        file = self.file
        arrays = file.numbers | file.texts
        lengths = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"{file.path}: arrays of different lengths: {listed}.\nExpected one row a clip in each.")
        if not next(iter(lengths.values())):
            raise InputError(f"{file.path} holds no clips.")

    def _join(self, names: Sequence[str]) -> np.ndarray:
        """Join a modality's arrays to [row, feature] or [row, segment, feature]."""
        parts, path = [], self.path
        for name in names:
            values = self.file.numbers[name]
            if values.dtype.kind not in "fiub":
                raise InputError(f"{path}: expected numbers in {name!r}, found {values.dtype}.")
            if values.ndim not in ((1, 2, 3) if self.file.tabular else (2, 3)) or 0 in values.shape:
                raise InputError(
                    f"{path}: {name!r} has shape {list(values.shape)}, expected [clip, feature] or "
                    f"[clip, segment, feature]."
                )
            parts.append(values[:, None] if values.ndim == 1 else values)
        if len({part.shape[1:-1] for part in parts}) > 1:
            listed = ", ".join(f"{name} {list(part.shape)}" for name, part in zip(names, parts, strict=True))
            raise InputError(f"{path}: cannot join arrays of different segments: {listed}.")
        several = next((rows for rows in self._rows.values() if len(rows) > 1), ())
        if parts[0].ndim == 3 and len(several):
            raise InputError(
                f"{path}: {names[0]!r} holds segments, and clips have {len(several)} rows each.\n"
                f"Expected one row a clip with its segments in it, or one row a segment."
            )
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def one_row(self, name: str, clips: Sequence[str]) -> np.ndarray:
        """Return the words of a column, one a clip: str [clip]. InputError: a clip's rows differ."""
        values = self.file.texts[name]
        for clip, rows in self._rows.items():
            if (values[rows] != values[rows[0]]).any():
                raise InputError(f"{self.path}: {name!r} differs between the segments of clip {clip!r}.")
        return values[[self._rows[clip][0] for clip in clips]]

    def lengths(self, clips: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return each modality's number of steps by clip. InputError: rows that are segments, not as many a clip."""
        counts = {clip: len(self._rows[clip]) for clip in clips}
        least, most = (choose(counts, key=counts.__getitem__) for choose in (min, max))
        if self._values and counts[least] != counts[most] and not self.over_time:
            raise InputError(
                f"{self.path}: clip {least!r} has {counts[least]} rows and {most!r} has {counts[most]}: rows that "
                f"share a clip id are its segments, and every clip needs as many.\nIf they are its course over time, "
                f"`--segments N` averages them over N equal windows, `--pool mean` over the clip."
            )
        return {
            modality: dict.fromkeys(clips, values.shape[1]) if values.ndim == 3 else counts
            for modality, values in self._values.items()
        }

    def read(self, clip: str) -> Iterator[tuple[str, Steps, list[str]]]:
        """Yield each modality of a clip, its steps and its features' names."""
        rows = self._rows[clip]
        for modality, values in self._values.items():
            steps = values[rows[0]] if values.ndim == 3 else values[rows]
            kept = None if self._kept is None or values.ndim == 3 else self._kept[rows]
            yield modality, Steps.of(steps, kept, self._why), self._names(modality)

    def _names(self, modality: str) -> list[str]:
        names = []
        for name in self.columns[modality]:
            values = self.file.numbers[name]
            names += [name] if values.ndim == 1 else [f"{name}[{i}]" for i in range(values.shape[-1])]
        return names

    def digest(self) -> str:
        """Return the SHA-256 of the file's content."""
        return sha256_of(self.path)


def columns_of(file: FeatureFile, maps: Maps) -> dict[str, list[str]]:
    """Return the columns that make each modality. InputError: one is mapped twice, or is read as words too."""
    columns = {m: [name for pattern in patterns for name in file.maps[pattern]] for m, patterns in maps.items()}
    for name, count in Counter(chain.from_iterable(columns.values())).items():
        if name in file.texts:
            raise InputError(
                f"{file.path}: {name!r} is mapped to a modality and is the label or another column too, which would "
                f"tell the answer.\nMap it to one of them; a narrower glob leaves it out."
            )
        if count > 1:
            raise InputError(f"{file.path}: {name!r} is mapped twice.\nA feature belongs to one modality, once.")
    return columns


def _rows_of_clips(file: FeatureFile, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return each clip's rows in the file's order, clips sorted by id: int [row]."""
    if (ids == "").any():
        raise InputError(f"{file.path}: row {int((ids == '').argmax())} has an empty clip id.")
    names, members, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if not file.tabular and counts.max() > 1:
        raise InputError(
            f"{file.path}: clip id {str(names[counts.argmax()])!r} stands {counts.max()} times, expected once.\n"
            f"Segments of a clip belong in one array [clip, segment, feature]."
        )
    parts = np.split(np.argsort(members, kind="stable"), np.cumsum(counts)[:-1])
    return dict(zip(map(str, names), parts, strict=True))


def vouched(face: Mapping[str, np.ndarray], rules: Rules, path: Path) -> tuple[np.ndarray | None, str]:
    """Return which of OpenFace's rows show a face, bool [row], and what the others are; None: it says nothing.

    InputError: several faces in one file, or no confidence.
    """
    if not face:
        return None, ""
    if "confidence" not in face:
        raise InputError(f"{path} is OpenFace's, and has no column confidence.\nWrite it again with OpenFace 2.")
    if len(faces := np.unique(face.get("face_id", []))) > 1:
        raise InputError(
            f"{path} is about {len(faces)} faces (face_id {name_some(map('{:g}'.format, faces))}): one row for each.\n"
            f"Keep one person's rows, or run OpenFace's FeatureExtraction, which follows one face."
        )
    sure = face["confidence"] >= (rules.confidence or 0.0)
    tracked = face["success"] == 1 if "success" in face else np.ones_like(sure)
    below = "" if rules.confidence is None else f" or below confidence {rules.confidence:g}"
    return sure & tracked, f"without success{below}"


def open_table(path: Path, maps: Maps, clip: str | None, rules: Rules) -> Table:
    """Open a file that is joined on clip ids: those of the column ``clip``, or openSMILE's own.

    openSMILE's names are quoted, and may be paths of sound files: the clip is the name without folder and ending.
    """
    patterns = list(dict.fromkeys(name for names in maps.values() for name in names))
    file = read_feature_file(path, patterns, (), clip, face=True)
    ids = file.texts[file.clip]
    if file.tool:
        ids = _clips_of_opensmile(path, ids)
    return Table(file, maps, ids, rules)


def _clips_of_opensmile(path: Path, names: np.ndarray) -> np.ndarray:
    """Return openSMILE's names without quotes, folder and ending: str [row]. InputError: two names become one."""
    plain = {name: MEDIA_ENDING.sub("", re.split(r"[/\\]", name.strip("'"))[-1]) for name in np.unique(names).tolist()}
    first: dict[str, str] = {}
    for name, clip in plain.items():
        if first.setdefault(clip, name).strip("'") != name.strip("'"):
            raise InputError(
                f"{path}: {first[clip]!r} and {name!r} would both be clip {clip!r}.\n"
                "Write a column of clip ids into it and name that with --clip."
            )
    if set(first) == {"unknown"}:
        raise InputError(
            f"{path} names no clip: openSMILE writes 'unknown' where it is given none.\n"
            "Run it with -instname CLIP for each clip, or import a folder with a file for each."
        )
    return np.array([plain[name] for name in names.tolist()])


class Folder:
    """A folder with features of each clip in `CLIP.npy` [D] or [T, D], `CLIP.csv` or `CLIP.arff`, or a folder of .npy.

    Args:
        path: the folder.
        maps: what makes each modality: globs of columns, or for .npy one modality without a name.
        rules: the user's.

    Raises:
        InputError: there is no such folder, or files of none or several of these kinds in it.
    """

    over_time = True

    def __init__(self, path: Path, maps: Maps, rules: Rules):
        self.path, self._maps, self._rules = path, maps, rules
        self.kind, self._files, self.notes = _files_of_clips(path)
        self.clips = list(self._files)
        several = any(file.parent != path for files in self._files.values() for file in files)
        self.hint = f"A folder in it, such as {self.clips[0]}, is taken for the steps of one clip. " if several else ""
        self._digest = hashlib.sha256()
        self.columns: dict[str, list[str]] = {}
        self.faces = False  # whether OpenFace made the files, once one was read
        self._width = (0, "")  # of the first file, and its name
        if self.kind == NPY:
            if len(maps) > 1 or [name for names in maps.values() for name in names] not in ([""], ["*"]):
                raise InputError(
                    f"{path} holds {NPY} files, which have no names in them: expected one modality, as in "
                    f"`--map visual=@{path}`."
                )
            self.columns = {modality: [path.resolve().name] for modality in maps}

    def lengths(self, clips: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return each modality's number of steps by clip; 0 where a file is empty of them."""
        counts = {clip: self._count(self._files[clip]) for clip in clips}
        return dict.fromkeys(self._maps, counts)

    def _count(self, files: list[Path]) -> int:
        if self.kind != NPY:
            return count_rows(files[0])
        shapes = [_load(file, header=True).shape for file in files]
        return sum(1 if len(shape) == 1 and shape[0] else shape[0] * (shape[-1] > 0) for shape in shapes)

    def read(self, clip: str) -> Iterator[tuple[str, Steps, list[str]]]:
        """Yield each modality of a clip, its steps and its features' names. InputError: a file cannot be read."""
        files = self._files[clip]
        for file in files:
            self._digest.update(f"{clip}/{file.name} {sha256_of(file)}\n".encode())
        if self.kind == NPY:
            yield self._read_arrays(files)
        else:
            yield from self._read_columns(files[0])

    def _read_arrays(self, files: list[Path]) -> tuple[str, Steps, list[str]]:
        (modality,) = self._maps
        parts = [np.atleast_2d(_load(file)) for file in files]
        for file, part in zip(files, parts, strict=True):
            width, first = self._width
            self._width = self._width if width else (part.shape[-1], str(file))
            if width and part.size and part.shape[-1] != width:
                raise InputError(
                    f"{file} has {part.shape[-1]} features and {first} has {width}.\n"
                    f"Expected features of one model in a folder."
                )
        found = [part for part in parts if part.size]
        width, name = self._width[0], self.columns[modality][0]
        steps = np.concatenate(found) if found else np.empty((0, width))
        return modality, Steps.of(steps), [f"{name}[{i}]" for i in range(width)]

    def _read_columns(self, path: Path) -> Iterator[tuple[str, Steps, list[str]]]:
        patterns = list(dict.fromkeys(name for names in self._maps.values() for name in names))
        file = read_feature_file(path, patterns, (), face=True)
        columns = columns_of(file, self._maps)
        if not self.columns:
            self.columns, self._width = columns, (0, str(path))
            self.notes += file.notes
        elif columns != self.columns:
            here, first = (set(chain.from_iterable(one.values())) for one in (columns, self.columns))
            raise InputError(
                f"{path} has other columns than {self._width[1]}: {name_some(sorted(here ^ first)) or 'another order'}."
                f"\nExpected files that one program wrote with the same options."
            )
        kept, why = vouched(file.face, self._rules, path)
        self.faces = bool(file.face)
        for modality, names in columns.items():
            yield modality, Steps.of(np.stack([file.numbers[name] for name in names], 1), kept, why), names

    def digest(self) -> str:
        """Return the SHA-256 of all that was read."""
        return self._digest.hexdigest()


def _files_of_clips(folder: Path) -> tuple[str, dict[str, list[Path]], list[str]]:
    """Return the kind of files in a folder, each clip's in order, and what is not read. InputError: none or several."""
    files: dict[str, dict[str, list[Path]]] = {kind: {} for kind in CLIP_KINDS}
    other = []
    for path in sorted(folder.iterdir()):
        kind = path.suffix.lower()
        if path.name.startswith("."):  # a Mac's companions, an editor's
            other.append(path.name)
        elif path.is_dir() and (inside := sorted(path.glob(f"[!.]*{NPY}"), key=_by_number)):
            _add(files[NPY], path.name, inside)
        elif kind in files:
            _add(files[kind], path.stem, [path])
        else:
            other.append(path.name)
    found = [kind for kind, by_clip in files.items() if by_clip]
    if len(found) != 1:
        counted = (
            " and ".join(f"{len(files[kind])} {kind}" for kind in found) or name_some(other, NAMES_LISTED) or "nothing"
        )
        raise InputError(
            f"{folder} holds {counted}.\nExpected a file for each clip, all {', '.join(CLIP_KINDS[:-1])} or all "
            f"{CLIP_KINDS[-1]}, or a folder of {NPY} for each."
        )
    notes = [f"{folder}: not read are {name_some(other, NAMES_LISTED)}"] if other else []
    return found[0], files[found[0]], notes


def _add(files: dict[str, list[Path]], clip: str, paths: list[Path]) -> None:
    if clip in files:
        raise InputError(f"{paths[0]} and {files[clip][0]} are both clip {clip!r}.\nRemove one of them.")
    files[clip] = paths


def _by_number(path: Path) -> list:
    """Return a key that sorts 2.npy before 10.npy."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.stem)]


def _load(path: Path, header: bool = False) -> np.ndarray:
    """Load a clip's .npy, or only its shape. InputError: it is none, damaged, or holds no [D] or [T, D] of numbers."""
    check_kind(path, (NPY,))
    try:
        try:
            found = np.load(path, mmap_mode="r" if header else None, allow_pickle=False)
        except ValueError:  # an array without values cannot be mapped
            found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is no {NPY} of numbers, or a damaged one ({error}).\nWrite it again.") from None
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path} is an .npz by content, not {NPY}.\nSave one array with numpy.save.")
    if found.dtype.kind not in "fiub" or found.ndim not in (1, 2):
        raise InputError(
            f"{path} holds {found.dtype} {list(found.shape)}, expected numbers [feature] or [step, feature].\n"
            f"Average or take apart the other axes, and save it again."
        )
    return found


def open_source(path: Path, maps: Maps, clip: str | None, rules: Rules) -> Table | Folder:
    """Open a file or folder with features that is not the file with the labels. InputError: it is neither."""
    if not path.exists():
        raise InputError(f"no file or folder {path}: expected features, as in `--map visual=NAME@FILE`.")
    return Folder(path, maps, rules) if path.is_dir() else open_table(path, maps, clip, rules)
