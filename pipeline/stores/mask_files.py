"""Splits and masks as CSV files: export a store's, or train with somebody else's.

splits.csv   seed,clip_id,split                train, validation or test
masks.csv    setting,seed,clip_id,modality     one row for each entry that a setting hides
"""

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .masks import MODALITIES, TEST, TRAIN, VALIDATION, Missing, Setting, parse_missing
from .store import DONE, FeatureStore

SPLITS, MASKS = "splits.csv", "masks.csv"
SPLIT_COLUMNS, MASK_COLUMNS = ("seed", "clip_id", "split"), ("setting", "seed", "clip_id", "modality")
PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
SETTING_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
NOWHERE = -1  # in place of a part, for clips that no run uses
LISTED = 5  # names an error lists


# ---- export -----------------------------------------------------------------------------------------------------


def export_masks(store: FeatureStore, out: Path, seeds: int, settings: Sequence[str], split: str) -> tuple[Path, Path]:
    """Write the splits by ``split`` of seeds from 0, and what each setting hides of the training clips.

    Returns both paths. InputError: files that are there already, no seed, a setting or column that cannot be.
    """
    if seeds < 1:
        raise InputError("expected at least one seed, found none.\nChoose --seeds 1 or more.")
    specs = list(dict.fromkeys(parse_missing(text, store.modalities) for text in settings))
    splits_path, masks_path = out / SPLITS, out / MASKS
    for path in (splits_path, masks_path):
        if path.exists():
            raise InputError(f"{path} is there already.\nName another folder with --out, or remove it.")
    parts = [store.split(seed, split) for seed in range(seeds)]
    names = {part: name for name, part in PARTS.items()}
    split_rows = (
        (seed, clip, names[value])
        for seed, part in enumerate(parts)
        for clip, value in zip(store.clip_id, part.tolist(), strict=True)
    )
    mask_rows = (
        (spec.name, seed, store.clip_id[clip], store.modalities[m])
        for spec in specs
        for seed, part in enumerate(parts)
        for clip, m in np.argwhere(store.missing(spec, seed, part == TRAIN))
    )
    out.mkdir(parents=True, exist_ok=True)
    _write(splits_path, SPLIT_COLUMNS, split_rows)
    _write(masks_path, MASK_COLUMNS, mask_rows)
    return splits_path, masks_path


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


# ---- somebody else's --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitsFile:
    """A splits file: of each seed, every clip's part and the line that says so."""

    path: Path
    sha256: str
    parts: dict[int, dict[str, tuple[int, int]]]

    def part(self, store: FeatureStore, seed: int) -> np.ndarray:
        """int8 [clip] of a store; failed clips that the file leaves out are in no part.

        InputError: a clip the store does not have, or a usable one the file does not have.
        """
        if seed not in self.parts:
            raise InputError(
                f"{self.path} has no split for seed {seed} (seeds there: {_listed(sorted(self.parts))}).\n"
                f"Runs have the seeds 0, 1, …: ask for fewer with --seeds, or add them to the file."
            )
        known = {str(clip): place for place, clip in enumerate(store.clip_id)}
        part = np.full(len(known), NOWHERE, np.int8)
        for clip, (value, line) in self.parts[seed].items():
            if clip not in known:
                raise _unknown_clip(self.path, line, clip, store)
            part[known[clip]] = value
        absent = store.clip_id[(part == NOWHERE) & (store.status == DONE)]
        if len(absent):
            raise InputError(
                f"{self.path}: {len(absent)} of the {len(known)} clips of {store.path.name} are absent from seed "
                f"{seed}: {_listed(absent)}.\nGive every clip a split, or import a store without them."
            )
        return part


@dataclass(frozen=True)
class MasksFile:
    """A masks file: of each setting and seed, the (clip, modality, line) that are hidden."""

    path: Path
    sha256: str
    rows: dict[str, dict[int, list[tuple[str, str, int]]]]

    def hidden(self, store: FeatureStore, setting: str, seed: int) -> np.ndarray:
        """bool [clip, modality] of a store. InputError: a clip the store does not have, or no row for the seed."""
        if seed not in self.rows[setting]:
            there = _listed(sorted(self.rows[setting]))
            raise InputError(
                f"{self.path}: setting {setting!r} has no rows for seed {seed} (seeds there: {there}).\n"
                f"Write masks for every seed, or ask for fewer with --seeds; `none` is complete data."
            )
        known = {str(clip): place for place, clip in enumerate(store.clip_id)}
        hidden = np.zeros((len(known), len(store.modalities)), bool)
        for clip, modality, line in self.rows[setting][seed]:
            if clip not in known:
                raise _unknown_clip(self.path, line, clip, store)
            hidden[known[clip], store.modalities.index(modality)] = True
        return hidden


class GivenStore(FeatureStore):
    """A store whose splits or masks are somebody else's; in all else the store itself."""

    def __init__(self, store: FeatureStore, splits: SplitsFile | None, masks: MasksFile | None):
        super().__init__(store.path, store.group)
        self.splits, self.masks = splits, masks
        files = {"splits": splits, "masks": masks}
        self.given = {kind: {"file": f.path.name, "sha256": f.sha256} for kind, f in files.items() if f} or None

    def split(self, seed: int, by: str = "clip") -> np.ndarray:
        """int8 [clip]: the file's, or as a store without files splits."""
        return self.splits.part(self, seed) if self.splits else super().split(seed, by)

    def missing(self, spec: Missing | Setting, seed: int, among: np.ndarray) -> np.ndarray:
        """bool [clip, modality]: the clips a setting's rows name, in whatever part; a spec as without files."""
        if isinstance(spec, Setting):
            return self.masks.hidden(self, spec.name, seed)
        return super().missing(spec, seed, among)


@dataclass(frozen=True)
class Given:
    """Splits and masks to train with, from files; what no file gives is the store's own."""

    splits: SplitsFile | None = None
    masks: MasksFile | None = None

    def split_name(self, by: str) -> str:
        """How results name the split. InputError: a splits file and a column to split by."""
        if self.splits is None:
            return by
        if by != "clip":
            raise InputError(f"--split {by} and --splits {self.splits.path} exclude each other.\nGive one of them.")
        return f"given:{self.splits.path.name}"

    def setting(self, text: str) -> Missing | Setting:
        """What --missing asks for: a spec or, with a masks file, a setting of it. InputError: there is no such."""
        if self.masks is None or text.strip() == "none":
            return parse_missing(text)
        names = [text.strip()]
        with suppress(InputError):
            names.append(parse_missing(text).name)  # another spelling, audio:0.50
        for name in names:
            if name in self.masks.rows:
                return Setting(name)
        raise InputError(
            f"{self.masks.path} has no setting {text!r}.\n"
            f"There are none (complete data), {', '.join(sorted(self.masks.rows))}."
        )

    def held_out(self, text: str) -> Missing:
        """What --missing-test asks for. InputError: anything, beside a masks file."""
        spec = parse_missing(text)
        if self.masks and spec != Missing():
            raise InputError(
                f"--missing-test {text} and --masks {self.masks.path} exclude each other: the file's rows say what "
                f"validation and test clips lack.\nGive one of them."
            )
        return spec

    def apply(self, store: FeatureStore, seeds: int, settings: Sequence[Missing | Setting]) -> FeatureStore:
        """The store with these splits and masks. InputError: they do not fit it in some of the seeds from 0."""
        if self.splits is None and self.masks is None:
            return store
        given = GivenStore(store, self.splits, self.masks)
        for seed in range(seeds):
            everything = np.ones(len(given.split(seed)), bool)
            for setting in settings:
                given.missing(setting, seed, everything)
        return given


def read_given(splits: Path | None, masks: Path | None) -> Given:
    """Read either file, or both. InputError names file and line of whatever is wrong."""
    return Given(read_splits(splits) if splits else None, read_masks(masks) if masks else None)


def read_splits(path: Path) -> SplitsFile:
    """Read a splits file. InputError: a bad seed or split, or a clip that stands twice in a seed; with the line."""
    parts: dict[int, dict[str, tuple[int, int]]] = {}
    for line, (seed_text, clip, word), wrong in _rows(path, SPLIT_COLUMNS):
        if word not in PARTS:
            raise wrong(f"unknown split {word!r}: expected {', '.join(PARTS)}")
        of_seed = parts.setdefault(_seed(seed_text, wrong), {})
        if clip in of_seed:
            raise wrong(f"clip {clip!r} of seed {seed_text} stands on line {of_seed[clip][1]} already")
        of_seed[clip] = (PARTS[word], line)
    return SplitsFile(path, _sha256(path), parts)


def read_masks(path: Path) -> MasksFile:
    """Read a masks file. InputError: a bad setting, seed or modality, or a row that stands twice; with the line."""
    rows: dict[str, dict[int, list[tuple[str, str, int]]]] = {}
    seen: set[tuple] = set()
    for line, values, wrong in _rows(path, MASK_COLUMNS):
        setting, seed_text, clip, modality = values
        if modality not in MODALITIES:
            raise wrong(f"unknown modality {modality!r}: expected {', '.join(MODALITIES)}")
        if setting not in rows:
            _check_setting(setting, wrong)
        seed = _seed(seed_text, wrong)
        if (setting, seed, clip, modality) in seen:
            raise wrong(f"{modality} of clip {clip!r} is hidden twice in {setting}, seed {seed}")
        seen.add((setting, seed, clip, modality))
        rows.setdefault(setting, {}).setdefault(seed, []).append((clip, modality, line))
    return MasksFile(path, _sha256(path), rows)


Wrong = Callable[[str], InputError]


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str], Wrong]]:
    """Line number, the values of ``columns`` and how to complain, of each row below the header."""
    line = 1

    def wrong(why: str) -> InputError:
        return InputError(f"{path}, line {line}: {why}.\nExpected the columns {','.join(columns)}.")

    empty = True
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if absent := [name for name in columns if name not in header]:
                raise wrong(f"column {', '.join(absent)} is missing from the header {','.join(header)!r}")
            places = [header.index(name) for name in columns]
            for values in rows:
                line = rows.line_num
                if not values:
                    continue
                if len(values) != len(header):
                    raise wrong(f"expected {len(header)} fields, found {len(values)}")
                empty = False
                yield line, [values[place].strip() for place in places], wrong
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}).\nSave it as UTF-8 CSV.") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}.\n`mlemiss store masks` writes such files.") from None
    except csv.Error as error:
        raise wrong(str(error)) from None
    if empty:
        raise wrong("no rows below the header")


def _seed(text: str, wrong: Wrong) -> int:
    if not text.isascii() or not text.isdigit():
        raise wrong(f"seed {text!r} is no whole number from 0")
    return int(text)


def _check_setting(name: str, wrong: Wrong) -> None:
    """A setting is named like a missing spec, which figures over rates read, or by a plain word."""
    if name == "none":
        raise wrong("the setting 'none' is complete data and has no rows")
    if not SETTING_NAME.fullmatch(name):
        try:
            parse_missing(name)
        except InputError:
            raise wrong(
                f"setting {name!r} is neither a spec such as audio:0.5 nor a word of letters, digits and '_.-'"
            ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unknown_clip(path: Path, line: int, clip: str, store: FeatureStore) -> InputError:
    return InputError(
        f"{path}, line {line}: clip {clip!r} is not in {store.path.name}.\n"
        f"Expected its clip ids, such as {_listed(store.clip_id)}; `mlemiss store masks` exports them."
    )


def _listed(names: Sequence) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(str(name) for name in names[:LISTED]) + more
