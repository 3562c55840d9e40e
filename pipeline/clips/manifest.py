"""Clip records: read and check a CSV manifest, list a folder, compare both with what a dataset should hold."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from pathlib import Path, PurePosixPath

from ..console import amount, name_some
from ..errors import InputError
from ..files import read_csv
from ..stores.masks import stratified_order
from ..stores.schema import FACE_BOX
from ..stores.store import RESERVED

REQUIRED = ("clip_id", "path", "label", "subject")
AUDIO_PATH = "audio_path"  # the column that names the file of a clip's sound
SYNTHETIC = "SYNTHETIC.json"  # lies in a root whose clips are drawn, not recorded; says with what parameters
# What programs write where a table has no value. Exact: `none` may be a class.
WORDS_HINT = "Write every class, and every person, in one way, or leave clips without a label out of the file."
NO_WORDS = frozenset({"nan", "NaN", "NAN", "-nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT", "null", "NULL", "None"})
COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
NUMBER = re.compile(r"[+-]?\d{1,100}(?:\.\d{0,100})?")


@dataclass(frozen=True)
class Clip:
    """One clip: a row of a manifest. Paths are relative to the root; `columns` are (name, value) beside the named ones.

    The sound is in the file `audio_path`; where that is empty, in `path`.
    """

    clip_id: str
    path: str
    label: str
    subject: str
    columns: tuple[tuple[str, str], ...] = ()
    audio_path: str = ""


@dataclass(frozen=True)
class Download:
    """The zips that a dataset can be downloaded as; its module has one as `DOWNLOAD` (see `fetch`).

    Args:
        record: address of a JSON document as Zenodo's API gives it: `files`, each with `key` (its name), `size` in
            bytes, `checksum` (`md5:…`, `sha256:…`) and `links.self` (its address).
        zips: names of the zips in the record, by number of the part of the dataset that they hold.
        clips: function from a part's number to the clips to unpack: path below the root, by clip id.
        part: one part in a word, such as `actor`.
        unpacked: size of these clips as a fraction of the zips' size.
    """

    record: str
    zips: Mapping[int, str]
    clips: Callable[[int], Mapping[str, str]]
    part: str = "part"
    unpacked: float = 1.0


@dataclass(frozen=True)
class Collection:
    """The clips that a dataset's folder holds, and those that are absent or unexpected."""

    dataset: str
    root: Path
    classes: tuple[str, ...]
    clips: tuple[Clip, ...]  # found, sorted by clip_id
    absent: tuple[str, ...] = ()  # clip ids of the dataset's manifest that are not in the root
    notes: tuple[str, ...] = ()  # what a user should know, duplicates for example
    unexpected: tuple[str, ...] = ()  # clips found that the dataset's manifest does not have

    @property
    def synthetic(self) -> bool:
        """Return whether some clips were made by `mlemiss synth`; stores and reports say so."""
        folders = {folder for clip in self.clips for folder in PurePosixPath(clip.path).parents}
        return any((self.root / folder / SYNTHETIC).is_file() for folder in folders)


def read_manifest(path: Path, root: Path | None = None) -> list[Clip]:
    """Read the clips of a manifest.

    Args:
        path: a CSV with the columns `clip_id,path,label,subject` and any others; the sound is read from `audio_path`.
        root: folder that the paths lie in. They are relative to it, or absolute ones below it; without a root only
            relative paths are taken.

    Raises:
        InputError: names file and line of whatever is wrong.
    """
    header, rows = read_csv(path, REQUIRED, "manifest", "Name a CSV with --dataset FILE.csv.")
    _check_columns(path, header)
    above = (root.absolute(), root.resolve()) if root else ()
    clips: list[Clip] = []
    lines: dict[str, int] = {}  # by clip id
    for line, row, wrong in rows:
        if empty := [name for name in ("clip_id", "path", "label") if not row[name]]:
            raise wrong(f"{', '.join(empty)} is empty")
        if row["clip_id"] in lines:
            raise wrong(f"clip_id {row['clip_id']!r} is on line {lines[row['clip_id']]} already")
        lines[row["clip_id"]] = line
        for name in ("path", *([AUDIO_PATH] if row.get(AUDIO_PATH) else [])):
            written, row[name] = row[name], _below(row[name], above)
            if not row[name]:
                where = f" {root.absolute()}" if root else ""
                raise wrong(f"{name} {written!r} is outside the root{where}. Move it there, or name another --root")
        sound = row.get(AUDIO_PATH, "")
        more = tuple((name, row[name]) for name in header if name not in (*REQUIRED, AUDIO_PATH))
        clips.append(Clip(*(row[name] for name in REQUIRED), more, "" if sound == row["path"] else sound))
    for name in ("label", "subject"):
        if why := faulty_words(getattr(clip, name) for clip in clips):
            raise InputError(f"manifest {path}: {name} {why}.\n{WORDS_HINT}")
    return clips


def _below(written: str, above: Sequence[Path]) -> str:
    """Return a path relative to the root, which has these names; empty where it is outside."""
    path = PurePosixPath(written)
    if ".." in path.parts:
        return ""
    if path.is_absolute():
        return next((str(path.relative_to(base)) for base in above if path.is_relative_to(base)), "")
    return written


def faulty_words(words: Iterable[str]) -> str:
    """Return what is wrong with the labels or the subjects of all clips: one rule for every kind of table.

    Refused are words that stand for no value, as they would be a class or a person of their own, and words that differ
    only in capitals, blanks, kinds of the same letter or in how a number is written. Empty where all are right.
    """
    counts = Counter(words)
    alike: dict[str, list[str]] = {}
    for word in sorted(counts):
        if word in NO_WORDS:
            return f"{word!r} stands for no value ({amount(counts[word], 'clip')})"
        alike.setdefault(plain_text(word), []).append(word)
    for several in alike.values():
        if len(several) > 1:
            counted = ", ".join(f"{word!r} ({amount(counts[word], 'clip')})" for word in several)
            return f"{counted} differ only in how they are written"
    return ""


def plain_text(word: str) -> str:
    """Return a key that is equal for words that a reader would take for the same."""
    text = " ".join(unicodedata.normalize("NFKC", word).casefold().split())
    return format(Decimal(text).normalize(), "f") if NUMBER.fullmatch(text) else text


def _check_columns(path: Path, header: Sequence[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            why = "appears twice"
        elif (name in RESERVED and name not in REQUIRED) or name == FACE_BOX:
            why = "has a name that the store itself uses; rename it"
        elif not COLUMN_NAME.fullmatch(name):
            why = "is not made of letters, digits, '_' and '-'"
        else:
            continue
        raise InputError(f"manifest {path}, line 1: column {name!r} {why}.")


def collect_manifest(path: Path, root: Path | None, classes: Sequence[str] | None = None) -> Collection:
    """Collect the clips of a user's own CSV; named after the file; its root is by default the CSV's folder."""
    root = root or path.parent
    listed = read_manifest(path, root)
    labels = tuple(sorted({c.label for c in listed}))
    classes = choose_classes(classes, labels, labels, str(path))
    clips, notes = keep_classes(listed, classes)
    root = check_root(root, f"the folder the paths of {path.name} are relative to")
    # A pipe or a link to nowhere is a failed clip with its cause, not an absent one.
    found = tuple(sorted((c for c in clips if _is_there(root / c.path)), key=lambda c: c.clip_id))
    absent = tuple(sorted({c.clip_id for c in clips} - {c.clip_id for c in found}))
    if not found:
        raise InputError(
            f"none of the {len(clips)} clips of {path} is in {root} (first looked for: {clips[0].path}).\n"
            "Say with --root which folder the paths are relative to."
        )
    name = re.sub(r"[^A-Za-z0-9_.]+", "_", path.stem).strip("_.") or "manifest"
    notes += note_sounds(root, found, f"column {AUDIO_PATH} of {path}")
    return Collection(name, root, classes, found, absent, tuple(notes))


def note_sounds(root: Path, clips: Sequence[Clip], what: str) -> list[str]:
    """Return notes on clips whose sound has a file of its own. InputError: all these files are absent; names `what`."""
    apart = [clip.audio_path for clip in clips if clip.audio_path]
    absent = [path for path in apart if not _is_there(root / path)]
    if apart and len(absent) == len(apart):
        raise InputError(
            f"{what}: none of the {amount(len(apart), 'file')} is in {root} (first looked for: {absent[0]}).\n"
            "Put them there, or say with --root which folder they are below."
        )
    there = f"the sound of {len(apart) - len(absent)} of {amount(len(clips), 'clip')} is read from other files"
    told = f"the sound of {len(absent)} is absent: no {name_some(absent)}"
    return [there] * bool(apart) + [told] * bool(absent)


def _is_there(path: Path) -> bool:
    """Return whether a clip is not absent; in a folder that may not be entered it is one that cannot be read."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def choose_classes(
    asked: Sequence[str] | None, there: Sequence[str], default: Sequence[str], dataset: str
) -> tuple[str, ...]:
    """Return the classes to keep, in the order of their label codes. InputError: one is unknown, or fewer than two."""
    if asked is None:
        return tuple(default)
    unknown = [name for name in asked if name not in there]
    if unknown or len(asked) < 2:
        what = f"unknown class {', '.join(unknown)}" if unknown else f"only one class, {asked[0]}"
        raise InputError(f"--classes of {dataset}: {what}.\nExpected two or more of {', '.join(there)}.")
    return tuple(asked)


def keep_classes(clips: Iterable[Clip], classes: Sequence[str]) -> tuple[list[Clip], list[str]]:
    """Return the clips of these classes, and a note on how many of other classes are left out."""
    kept, others = [], Counter()
    for clip in clips:
        if clip.label in classes:
            kept.append(clip)
        else:
            others[clip.label] += 1
    if not others:
        return kept, []
    counted = ", ".join(f"{label} {count}" for label, count in sorted(others.items()))
    return kept, [f"{others.total()} clips of other classes are left out ({counted}); --classes chooses"]


def files_below(root: Path, follow_links: bool = False) -> tuple[list[Path], list[str]]:
    """List everything below ``root`` that has the name of a file, the shallowest first, then by name; and notes.

    A pipe or a link to nowhere is listed: a clip that cannot be read, not an absent one. The `._` files that macOS
    leaves in copies are not. With ``follow_links``, folders that are links are entered, once each.

    InputError: a folder cannot be read. Its clips would pass for absent ones.
    """

    def unreadable(error: OSError) -> None:
        raise InputError(
            f"the folder {error.filename} cannot be read: {error.strerror}.\n"
            "Make it readable (chmod -R u+rX), mend its disk, or take it out of the root."
        ) from None

    found, linked, entered = [], [], set()
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=follow_links):
        real = os.path.realpath(folder)
        if real in entered:  # a loop, or a second link
            folders.clear()
            continue
        entered.add(real)
        paths = [Path(folder, name) for name in (*folders, *names)]
        found += [path for path in paths if path.suffix and not path.name.startswith("._")]
        linked += [path for path in paths[: len(folders)] if path.is_symlink()]
    notes = []
    if linked and not follow_links:
        names = name_some(path.relative_to(root).as_posix() for path in sorted(linked))
        notes = [f"folders that are links are not entered, which --follow-links allows: {names}"]
    return sorted(found, key=lambda path: (len(path.parts), path)), notes


def note_copies(root: Path, copies: Iterable[tuple[Path, Path]]) -> list[str]:
    """Return notes on second files of clips, given as (left out, kept); one note for all files of a copied folder."""
    places: dict[tuple[str, str], list[tuple[Path, Path]]] = {}
    for copy, kept in copies:
        places.setdefault(_differing_parts(copy.relative_to(root), kept.relative_to(root)), []).append((copy, kept))
    notes = []
    for (folder, other), pairs in places.items():
        if len(pairs) == 1:
            copy, kept = (path.relative_to(root).as_posix() for path in pairs[0])
            text = f"{copy} is a second copy of {kept} and is left out"
        else:
            names = name_some(copy.relative_to(root).as_posix() for copy, _ in pairs)
            text = f"{len(pairs)} files in {folder} are second copies of clips in {other} and are left out: {names}"
        sizes = sum(copy.stat().st_size != kept.stat().st_size for copy, kept in pairs)
        notes.append(text + (f" ({sizes} not of the kept file's size: see which is right)" if sizes else ""))
    return notes


def _differing_parts(path: Path, other: Path) -> tuple[str, str]:
    """Return both paths without the parts that they share at the end: x and y for x/a/b and y/a/b."""
    parts, others = list(path.parts), list(other.parts)
    while parts and others and parts[-1] == others[-1]:
        parts.pop()
        others.pop()
    return "/".join(parts) or "the root", "/".join(others) or "the root"


def check_root(root: Path, what: str) -> Path:
    """Return the root folder. InputError: it is absent, a file or empty."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: expected a folder with {what}.\nName the folder with --root DIR.")
    if not root.is_dir():
        raise InputError(
            f"no folder {root}: expected {what}.\nName it with --root DIR, or set MLEMISS_DATA to its parent folder."
        )
    if next(root.iterdir(), None) is None:
        raise InputError(f"the folder {root} is empty: expected {what}.\nUnpack the data set there first.")
    return root


def limit_clips(clips: Sequence[Clip], limit: int) -> tuple[Clip, ...]:
    """Return the first ``limit`` clips of a fixed shuffle that is balanced over classes, sorted by clip_id."""
    order = stratified_order([c.clip_id for c in clips], [c.label for c in clips], "limit")
    return tuple(sorted((clips[i] for i in order[:limit]), key=lambda c: c.clip_id))


# ---- The clips that a dataset should hold, as data_manifests/ lists or counts them ----


@dataclass(frozen=True)
class Count:
    """A count of one label's clips: at most ``each`` of every one of these subjects, ``clips`` of all together."""

    subjects: tuple[str, ...]
    label: str
    each: int
    clips: int


def known_clips(dataset: str, classes: Sequence[str]) -> list[str] | None:
    """Return the clip ids of these classes that a dataset should hold, or None without a listing."""
    listing = _file(f"{dataset}.csv")
    return [clip.clip_id for clip in read_manifest(listing) if clip.label in classes] if listing.is_file() else None


def known_counts(dataset: str, classes: Sequence[str]) -> list[Count] | None:
    """Return how many clips of these classes a dataset should hold, or None without counts."""
    path = _file(f"{dataset}.counts.csv")
    if not path.is_file():
        return None
    _, rows = read_csv(path, ("subjects", "label", "each", "clips"), "counts", "It is a part of mlemiss.")
    return [
        Count(_subjects(row["subjects"]), row["label"], int(row["each"]), int(row["clips"]))
        for _, row, _ in rows
        if row["label"] in classes
    ]


def compare_clips(dataset: str, clips: Sequence[Clip], classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return absent and unexpected clips, an entry for each; both empty where nothing is known of the dataset.

    Of clips that are only counted, an absent one is called `subject-label-?`, with `?` too for a subject that the
    counts do not tell; an unexpected one is the last by id of its subject and label.
    """
    if (names := known_clips(dataset, classes)) is not None:
        expected, found = set(names), {clip.clip_id for clip in clips}
        return sorted(expected - found), sorted(found - expected)
    if (counts := known_counts(dataset, classes)) is not None:
        return _compare_counts(counts, clips)
    return [], []


def _compare_counts(counts: Sequence[Count], clips: Sequence[Clip]) -> tuple[list[str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        found.setdefault((clip.subject, clip.label), []).append(clip.clip_id)
    absent: Counter[str] = Counter()
    unexpected: list[str] = []
    for count in counts:
        there = {subject: found.pop((subject, count.label), []) for subject in count.subjects}
        unexpected += [clip_id for ids in there.values() for clip_id in ids[count.each :]]
        lacking = {subject: count.each - min(len(ids), count.each) for subject, ids in there.items()}
        unlisted = count.each * len(count.subjects) - count.clips  # absent from the dataset itself
        if not unlisted:
            absent.update({f"{subject}-{count.label}-?": lack for subject, lack in lacking.items()})
        difference = sum(lacking.values()) - unlisted
        anywhere = f"?-{count.label}-?"
        if unlisted and difference > 0:
            absent[anywhere] += difference
        elif unlisted:
            unexpected += [anywhere] * -difference
    unexpected += [clip_id for ids in found.values() for clip_id in ids]  # of subjects that are not in the counts
    return list(absent.elements()), unexpected


def _subjects(text: str) -> tuple[str, ...]:
    """`1-3 7` -> 1, 2, 3, 7."""
    spans = [span.partition("-") for span in text.split()]
    return tuple(str(number) for first, _, last in spans for number in range(int(first), int(last or first) + 1))


def _file(name: str) -> Path:
    return Path(str(files("mlemiss.data_manifests") / name))
