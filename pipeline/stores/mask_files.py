"""Splits and masks as CSV files: export a store's, or train with those of others.

splits.csv   seed,clip_id,split                train, validation or test
masks.csv    setting,seed,clip_id,modality     one row for each entry that a setting hides
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..console import name_some
from ..errors import InputError
from ..files import Wrong, csv_text, read_csv, sha256_of, write_csv
from .masks import HELD_OUT_LABELS, MODALITIES, TEST, TRAIN, VALIDATION, Missing, Setting, parse_missing
from .store import FeatureStore

SPLITS, MASKS = "splits.csv", "masks.csv"
SPLIT_COLUMNS, MASK_COLUMNS = ("seed", "clip_id", "split"), ("setting", "seed", "clip_id", "modality")
PART_CODES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
SETTING_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
NO_PART = -1  # of clips that no run uses
NAMES_SHOWN = 5  # names an error lists
HINT = "`mlemiss store masks` writes such files."


# ---- export ----


def export_masks(store: FeatureStore, out: Path, seeds: int, settings: Sequence[str], split: str) -> tuple[Path, Path]:
    """Write a store's splits, and what each setting hides of the training clips.

    Args:
        store: whose splits and masks.
        out: a folder, made if absent.
        seeds: how many, from 0.
        settings: missing specs.
        split: ``clip``, or a column whose equal values stay together.

    Returns:
        The paths of both files.

    Raises:
        InputError: a file is there already, there is no seed, or a setting or column cannot be.
    """
    if seeds < 1:
        raise InputError("seeds: expected at least one, found none.")
    why = "a masks file says which modalities are missing, and no labels"
    specs = list(dict.fromkeys(parse_missing(text, store.modalities, labels_stay=why) for text in settings))
    splits_path, masks_path = out / SPLITS, out / MASKS
    for path in (splits_path, masks_path):
        if path.exists():
            raise InputError(f"{path} is there already.\nName another folder with --out, or remove it.")
    parts = [store.split(seed, split) for seed in range(seeds)]
    names = {part: name for name, part in PART_CODES.items()}
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
    write_csv(splits_path, SPLIT_COLUMNS, split_rows)
    write_csv(masks_path, MASK_COLUMNS, mask_rows)
    return splits_path, masks_path


# ---- read ----


@dataclass(frozen=True)
class SplitsFile:
    """A splits file: of each seed, every clip's part and the line that says so."""

    path: Path
    sha256: str
    parts: dict[int, dict[str, tuple[int, int]]]  # seed -> clip id -> part, line

    def part(self, store: FeatureStore, seed: int) -> np.ndarray:
        """Return the parts of a store's clips: int8 [clip]; failed clips that the file leaves out have none.

        InputError: a clip the store does not have, or a usable one the file does not have.
        """
        if seed not in self.parts:
            seeds = name_some(sorted(self.parts), NAMES_SHOWN)
            raise InputError(
                f"{self.path} has no split for seed {seed} (seeds there: {seeds}).\n"
                f"Add it to the file, or ask for seeds that are there: --seeds, of `tune` --first-seed too."
            )
        rows = _rows_by_clip(store)
        part = np.full(len(rows), NO_PART, np.int8)
        for clip, (value, line) in self.parts[seed].items():
            if clip not in rows:
                raise _unknown_clip(self.path, line, clip, store)
            part[rows[clip]] = value
        absent = store.clip_id[(part == NO_PART) & store.done]
        if len(absent):
            raise InputError(
                f"{self.path}: {len(absent)} of the {len(rows)} clips of {store.path.name} are absent from seed "
                f"{seed}: {name_some(absent, NAMES_SHOWN)}.\nGive every clip a split, or import a store without them."
            )
        return part


@dataclass(frozen=True)
class MasksFile:
    """A masks file: of each setting and seed, the entries that are hidden."""

    path: Path
    sha256: str
    hidden: dict[str, dict[int, list[tuple[str, str, int]]]]  # setting -> seed -> (clip id, modality, line)

    def mask(self, store: FeatureStore, setting: str, seed: int) -> np.ndarray:
        """Return what a setting hides of a store's clips: bool [clip, modality].

        InputError: a clip or modality the store does not have, or no row for the seed.
        """
        if seed not in self.hidden[setting]:
            seeds = name_some(sorted(self.hidden[setting]), NAMES_SHOWN)
            raise InputError(
                f"{self.path}: setting {setting!r} has no rows for seed {seed} (seeds there: {seeds}).\n"
                f"Add it to the file, or ask for seeds that are there: --seeds, of `tune` --first-seed too."
            )
        rows = _rows_by_clip(store)
        mask = np.zeros((len(rows), len(store.modalities)), bool)
        for clip, modality, line in self.hidden[setting][seed]:
            if clip not in rows:
                raise _unknown_clip(self.path, line, clip, store)
            if modality not in store.modalities:
                raise InputError(
                    f"{self.path}, line {line}: the store {store.path.name} has no {modality}, only "
                    f"{', '.join(store.modalities)}.\nTrain it by another command, with a setting of its own."
                )
            mask[rows[clip], store.modalities.index(modality)] = True
        return mask


def read_splits(path: Path) -> SplitsFile:
    """Read a splits file. InputError: a bad seed or split, or a clip that is there twice in a seed; with the line."""
    parts: dict[int, dict[str, tuple[int, int]]] = {}
    _, rows = read_csv(path, SPLIT_COLUMNS, "splits file", HINT)
    for line, row, wrong in rows:
        clip, word = csv_text(row["clip_id"]), row["split"]
        if word not in PART_CODES:
            raise wrong(f"unknown split {word!r}: expected {', '.join(PART_CODES)}")
        of_seed = parts.setdefault(_seed(row["seed"], wrong), {})
        if clip in of_seed:
            raise wrong(f"clip {clip!r} of seed {row['seed']} is on line {of_seed[clip][1]} already")
        of_seed[clip] = (PART_CODES[word], line)
    return SplitsFile(path, sha256_of(path), parts)


def read_masks(path: Path, modalities: Sequence[str] = MODALITIES) -> MasksFile:
    """Read a masks file. InputError: a bad setting, seed or modality, or a row that is there twice; with the line."""
    hidden: dict[str, dict[int, list[tuple[str, str, int]]]] = {}
    seen: set[tuple] = set()
    _, rows = read_csv(path, MASK_COLUMNS, "masks file", HINT)
    for line, row, wrong in rows:
        setting, clip, modality = row["setting"], csv_text(row["clip_id"]), row["modality"]
        if modality not in modalities:
            raise wrong(f"unknown modality {modality!r}: expected {', '.join(modalities)}")
        if setting not in hidden:
            _check_setting(setting, modalities, wrong)
        seed = _seed(row["seed"], wrong)
        if (setting, seed, clip, modality) in seen:
            raise wrong(f"{modality} of clip {clip!r} is hidden twice in {setting}, seed {seed}")
        seen.add((setting, seed, clip, modality))
        hidden.setdefault(setting, {}).setdefault(seed, []).append((clip, modality, line))
    return MasksFile(path, sha256_of(path), hidden)


def _seed(text: str, wrong: Wrong) -> int:
    if not text.isascii() or not text.isdigit():
        raise wrong(f"seed {text!r} is no whole number from 0")
    return int(text)


def _check_setting(name: str, modalities: Sequence[str], wrong: Wrong) -> None:
    """Check that a setting is called like a missing spec, which figures over rates read, or by a plain word."""
    if name == "none":
        raise wrong("the setting 'none' is complete data and has no rows")
    if not SETTING_NAME.fullmatch(name):
        try:
            parse_missing(name, modalities, labels_stay="no labels")
        except InputError:
            raise wrong(
                f"setting {name!r} is neither a spec such as audio:0.5 nor a word of letters, digits and '_.-'"
            ) from None


def _rows_by_clip(store: FeatureStore) -> dict[str, int]:
    return {str(clip): row for row, clip in enumerate(store.clip_id)}


def _unknown_clip(path: Path, line: int, clip: str, store: FeatureStore) -> InputError:
    return InputError(
        f"{path}, line {line}: clip {clip!r} is not in {store.path.name}.\n"
        f"Expected its clip ids, such as {name_some(store.clip_id, NAMES_SHOWN)}; `mlemiss store masks` exports them."
    )


# ---- train with them ----


class StoreWithFiles:
    """A store whose splits or masks come from files; in all else the store itself."""

    def __init__(self, store: FeatureStore, splits: SplitsFile | None, masks: MasksFile | None):
        self.store, self.splits, self.masks = store, splits, masks
        files = {"splits": splits, "masks": masks}
        self.given = {kind: {"file": f.path.name, "sha256": f.sha256} for kind, f in files.items() if f} or None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def split(self, seed: int, by: str = "clip") -> np.ndarray:
        """Return the file's split, or the one of a store without files: int8 [clip]."""
        return self.splits.part(self, seed) if self.splits else self.store.split(seed, by)

    def missing(self, spec: Missing | Setting, seed: int, among: np.ndarray) -> np.ndarray:
        """Return what a setting's rows hide, of clips in whatever part, or what a spec hides: bool [clip, modality]."""
        if isinstance(spec, Setting):
            return self.masks.mask(self, spec.name, seed)
        return self.store.missing(spec, seed, among)


@dataclass(frozen=True)
class GivenFiles:
    """Files of splits and masks to train with; what no file gives is the store's own."""

    splits: SplitsFile | None = None
    masks: MasksFile | None = None
    modalities: tuple[str, ...] = MODALITIES

    def split_name(self, by: str) -> str:
        """Return how results name the split. InputError: a splits file and a column to split by."""
        if self.splits is None:
            return by
        if by != "clip":
            raise InputError(f"--split {by} and --splits {self.splits.path} exclude each other.\nGive one of them.")
        return f"given:{self.splits.path.name}"

    def setting(self, text: str) -> Missing | Setting:
        """Parse what --missing asks for: a spec or, with a masks file, a setting in it. InputError: there is none."""
        if self.masks is None or text.strip() == "none":
            return parse_missing(text, self.modalities)
        names = [text.strip()]
        with suppress(InputError):
            names.append(parse_missing(text, self.modalities).name)  # another spelling, audio:0.50
        for name in names:
            if name in self.masks.hidden:
                return Setting(name)
        raise InputError(
            f"{self.masks.path} has no setting {text!r}.\n"
            f"There are none (complete data), {', '.join(sorted(self.masks.hidden))}."
        )

    def held_out(self, text: str) -> Missing:
        """Parse what --missing-test asks for. InputError: anything, beside a masks file."""
        spec = parse_missing(text, self.modalities, HELD_OUT_LABELS)
        if self.masks and spec != Missing():
            raise InputError(
                f"--missing-test {text} and --masks {self.masks.path} exclude each other: the file's rows say what "
                f"validation and test clips lack.\nGive one of them."
            )
        return spec

    def apply(
        self, store: FeatureStore, seeds: Sequence[int], settings: Sequence[Missing | Setting]
    ) -> FeatureStore | StoreWithFiles:
        """Return the store with these splits and masks. InputError: they do not fit it in some of the seeds."""
        if self.splits is None and self.masks is None:
            return store
        with_files = StoreWithFiles(store, self.splits, self.masks)
        for seed in seeds:
            everything = np.ones(len(with_files.split(seed)), bool)
            for setting in settings:
                with_files.missing(setting, seed, everything)
        return with_files


def read_given(splits: Path | None, masks: Path | None, stores: Sequence[FeatureStore] = ()) -> GivenFiles:
    """Read either file, or both, for stores' modalities. InputError names file and line of whatever is wrong."""
    modalities = tuple(dict.fromkeys(name for store in stores for name in store.modalities)) or MODALITIES
    masks_file = read_masks(masks, modalities) if masks else None
    return GivenFiles(read_splits(splits) if splits else None, masks_file, modalities)
