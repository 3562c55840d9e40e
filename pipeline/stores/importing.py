"""Make a store of features that were computed elsewhere: read, check everything, build, publish.

A modality is missing in a clip whose features are all NaN. Nothing is padded, scaled, resampled or guessed.
"""

import datetime
import hashlib
import json
import platform
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..clips.manifest import COLUMN_NAME, WORDS_HINT, faulty_words
from ..console import name_some, say
from ..errors import InputError
from ..files import sha256_of, work_folder, write_json
from . import store
from .checksums import RUN
from .feature_files import FeatureFile, read_feature_file
from .masks import MODALITIES, missing_by_class

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*")
MODALITY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
LOST = 0.01  # of a feature's standard deviation: what rounding to float16 may cost
CHUNK_BYTES = 4_000_000  # of one chunk file
CLASSES_LISTED = 20
FEATURES_AT_ONCE = 64  # checked at a time, to bound the memory


@dataclass(frozen=True)
class Request:
    """A request to import features: names of arrays or columns in ``file``; ``maps`` are (modality, name or glob)."""

    file: Path
    dataset: str
    features: str
    maps: tuple[tuple[str, str], ...]
    label: str
    clip: str | None = None
    subject: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the modalities of the store: those of the pipeline's stores first, others as they were named."""
        named = list(dict(self.maps))
        return tuple([name for name in MODALITIES if name in named] + [m for m in named if m not in MODALITIES])

    def texts(self) -> list[str]:
        """Return the names of everything that is read as words, one value a clip."""
        return list(dict.fromkeys(n for n in (self.label, self.clip, self.subject, *self.columns) if n))


@dataclass(frozen=True)
class ImportedClips:
    """The clips of a file, sorted by clip id."""

    table: dict[str, np.ndarray]  # clip_id, label (words), subject and more: str [clip]
    features: dict[str, np.ndarray]  # modality -> [clip, segment, feature], numbers as read
    names: dict[str, list[str]]  # of the features, for messages
    sources: dict[str, list[str]]  # the arrays or columns each modality was made of


def parse_maps(items: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Parse ``visual=ARRAY``, ``text=ARRAY``, … into pairs; several of one modality are joined feature to feature.

    InputError: another form, or a modality's name that is no identifier or is a store's own.
    """
    maps = []
    for item in items:
        modality, separator, name = (part.strip() for part in item.partition("="))
        if not separator or not name:
            raise InputError(f"--map {item!r}: expected MODALITY=ARRAY, for example visual=face_*.")
        if not MODALITY_NAME.fullmatch(modality):
            raise InputError(
                f"--map {item!r}: {modality!r} is no name of a modality.\n"
                "Expected letters, digits and '_', a letter first, such as visual, audio, text."
            )
        if modality in store.RESERVED | {"subject", "none", "only"} and modality not in MODALITIES:
            raise InputError(f"--map {item!r}: {modality} is a name of the store's own.\nName the modality otherwise.")
        maps.append((modality, name))
    return tuple(maps)


def import_features(request: Request, stores: Path) -> Path:
    """Import a file into the folder ``stores``.

    Returns:
        The store's path, also where the store was there already.

    Raises:
        InputError: something is wrong with the file or the names; nothing was written.
    """
    _check_names(request)
    file = read_feature_file(request.file, list(dict.fromkeys(name for _, name in request.maps)), request.texts())
    clips = _gather(request, file)
    by_modality = {modality: _present(file.path, clips, modality) for modality in request.modalities}
    halves = {modality: _as_float16(file.path, clips, modality, has) for modality, has in by_modality.items()}
    present = np.stack(list(by_modality.values()), 1)  # [clip, modality]
    table, classes = _table(file.path, clips, present, halves)
    fingerprint = _fingerprint(table, classes, halves)
    final = stores / store.store_name(request.dataset, request.features, fingerprint)
    segments = next(iter(halves.values())).shape[1]
    widths = ", ".join(f"{values.shape[2]} {modality}" for modality, values in halves.items())
    lacking = ", ".join(f"{int((~has).sum())} lack {modality}" for modality, has in by_modality.items())
    say(f"{request.file}: {len(present)} clips of {segments} segment(s), {len(classes)} classes, {widths} features")
    say(f"{lacking}; {int((~present.any(1)).sum())} have no modality and are left out of training")
    counts = (f"{name} {count}" for name, count in zip(classes, np.bincount(table["label"]), strict=True))
    say(f"classes: {name_some(counts, CLASSES_LISTED)}")
    for note in (*file.notes, *_notes(table, classes, by_modality, halves)):
        say(f"note: {note}")
    if final.exists():
        store.FeatureStore.open(final)  # an InputError where it is not whole
        say(f"{final} holds exactly these features already; nothing to do")
        return final
    spec = {"segments": segments, "file": request.file.name, **clips.sources}
    spec |= {"label": request.label, "clip": request.clip, "subject": request.subject, "columns": request.columns}
    weights = {"name": store.IMPORTED, "hash": sha256_of(request.file)}
    versions = {name: version(name) for name in ("mlemiss", "numpy", "zarr")}
    described = (request.dataset, request.features, fingerprint, classes, spec, weights, versions)
    _publish(final, table, present, halves, store.attributes(*described, modalities=request.modalities))
    return final


def _check_names(request: Request) -> None:
    for option, name in (("--dataset", request.dataset), ("--features", request.features)):
        if not PLAIN_NAME.fullmatch(name) or name == store.MEDIA:
            raise InputError(
                f"{option} {name!r}: expected a name of letters, digits and '_.:+-' other than {store.MEDIA}."
            )
    for name in request.columns:
        if not COLUMN_NAME.fullmatch(name) or name in store.RESERVED | {"subject"}:
            raise InputError(
                f"--column {name!r} cannot be kept: a column's name is made of letters, digits, '_' and '-', and is "
                f"none of the store's own.\nRename it in {request.file}."
            )


# ---- from the file's rows to clips ----


def _gather(request: Request, file: FeatureFile) -> ImportedClips:
    """Join the arrays of each modality, and group rows into clips, sorted by id."""
    sources = {m: [n for k, p in request.maps if k == m for n in file.maps[p]] for m in request.modalities}
    everything = [name for names in sources.values() for name in names]
    for name in everything:
        if name in request.texts():
            raise InputError(
                f"{file.path}: {name!r} is mapped to a modality and is the label or another column too, which would "
                f"tell the answer.\nMap it to one of them; a narrower glob leaves it out."
            )
        if everything.count(name) > 1:
            raise InputError(f"{file.path}: {name!r} is mapped twice.\nA feature belongs to one modality, once.")
    arrays = file.numbers | file.texts
    lengths = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"{file.path}: arrays of different lengths: {listed}.\nExpected one row a clip in each.")
    rows = next(iter(lengths.values()))
    if not rows:
        raise InputError(f"{file.path} holds no clips.")
    texts = {name: file.texts[name] for name in request.texts()}
    ids = file.texts[request.clip] if request.clip else np.array([f"{i:0{len(str(rows - 1))}}" for i in range(rows)])
    rows_of = _rows_of_clips(file, ids)  # [clip, segment]
    features, names = {}, {}
    for modality in request.modalities:
        values, names[modality] = _join(file, sources[modality])
        if rows_of.shape[1] > 1 and values.ndim == 3:
            raise InputError(
                f"{file.path}: {sources[modality][0]!r} holds segments, and clips have {rows_of.shape[1]} rows each.\n"
                f"Expected one row a clip with its segments in it, or one row a segment."
            )
        # one row a clip: [clip, (segment,) feature]; several: each is a segment
        features[modality] = values[rows_of[:, 0]] if values.ndim == 3 else values[rows_of]
    segments = {modality: values.shape[1] for modality, values in features.items()}
    if len(set(segments.values())) > 1:
        listed = ", ".join(f"{modality} {count}" for modality, count in segments.items())
        raise InputError(
            f"{file.path}: segments a clip differ: {listed}.\nExpected as many of every modality: average over a "
            f"clip, or repeat a clip's features for each segment."
        )
    for name, values in texts.items():
        if len(changing := np.flatnonzero((values[rows_of] != values[rows_of[:, :1]]).any(1))):
            clip = str(ids[rows_of[changing[0], 0]])
            raise InputError(f"{file.path}: {name!r} differs between the segments of clip {clip!r}.")
    of_clip = {name: values[rows_of[:, 0]] for name, values in texts.items()}
    nobody = np.full(len(rows_of), "")
    table = {"clip_id": ids[rows_of[:, 0]], "label": of_clip[request.label]}
    table["subject"] = of_clip[request.subject] if request.subject else nobody
    table |= {name: of_clip[name] for name in request.columns}
    return ImportedClips(table, features, names, sources)


def _rows_of_clips(file: FeatureFile, ids: np.ndarray) -> np.ndarray:
    """Return each clip's rows in the file's order, clips sorted by id: int [clip, segment]."""
    if (ids == "").any():
        raise InputError(f"{file.path}: row {int((ids == '').argmax())} has an empty clip id.")
    names, members, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if not file.tabular and counts.max() > 1:
        raise InputError(
            f"{file.path}: clip id {str(names[counts.argmax()])!r} stands {counts.max()} times, expected once.\n"
            f"Segments of a clip belong in one array [clip, segment, feature]."
        )
    if len(set(counts)) > 1:
        least, most = counts.argmin(), counts.argmax()
        raise InputError(
            f"{file.path}: clip {str(names[least])!r} has {counts[least]} rows and {str(names[most])!r} has "
            f"{counts[most]}: rows that share a clip id are its segments, and every clip needs as many.\n"
            f"Resample to one number of segments a clip, or average each clip to one row; nothing is padded here."
        )
    return np.argsort(members, kind="stable").reshape(len(names), -1)


def _join(file: FeatureFile, sources: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Join a modality's arrays to [row, feature] or [row, segment, feature]; return the features' names too."""
    parts, names = [], []
    for name in sources:
        values = file.numbers[name]
        if values.dtype.kind not in "fiub":
            raise InputError(f"{file.path}: expected numbers in {name!r}, found {values.dtype}.")
        if values.ndim not in ((1, 2, 3) if file.tabular else (2, 3)) or 0 in values.shape:
            raise InputError(
                f"{file.path}: {name!r} has shape {list(values.shape)}, expected [clip, feature] or "
                f"[clip, segment, feature]."
            )
        names += [name] if values.ndim == 1 else [f"{name}[{i}]" for i in range(values.shape[-1])]
        parts.append(values[:, None] if values.ndim == 1 else values)
    if len({part.shape[1:-1] for part in parts}) > 1:
        listed = ", ".join(f"{name} {list(part.shape)}" for name, part in zip(sources, parts, strict=True))
        raise InputError(f"{file.path}: cannot join arrays of different segments: {listed}.")
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1), names


# ---- checks ----


def _present(path: Path, clips: ImportedClips, modality: str) -> np.ndarray:
    """Return which clips have this modality: bool [clip]. InputError: a clip has it in part, or none has it."""
    values = clips.features[modality]
    finite = np.isfinite(values)
    present = ~np.isnan(values).all((1, 2))
    partly = present & ~finite.all((1, 2))
    if partly.any():
        clip, (segment, feature) = int(partly.argmax()), np.argwhere(~finite[partly.argmax()])[0]
        where = f", segment {segment}" if values.shape[1] > 1 else ""
        raise InputError(
            f"{path}: clip {str(clips.table['clip_id'][clip])!r}{where}: {modality} feature "
            f"{clips.names[modality][feature]} is {values[clip, segment, feature]} while others of the clip are not "
            f"({int(partly.sum())} such clips).\nMake all of a clip's {modality} features NaN where it lacks them, or "
            f"fill the gap."
        )
    if not present.any():
        raise InputError(f"{path}: no clip has any {modality}: every value is NaN.")
    return present


def _as_float16(path: Path, clips: ImportedClips, modality: str, present: np.ndarray) -> np.ndarray:
    """Return a modality's features as stores keep them: float16 [clip, segment, feature], NaN where missing.

    InputError: float16 cannot hold what a feature tells.
    """
    values, names = clips.features[modality], clips.names[modality]
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    half[~present] = np.nan
    beyond, lost = [], []
    for first in range(0, values.shape[2], FEATURES_AT_ONCE):
        block = slice(first, first + FEATURES_AT_ONCE)
        exact = values[present, :, block].astype(np.float64)
        rounded = half[present, :, block].astype(np.float64)
        mean, std, varies = exact.mean((0, 1)), exact.std((0, 1)), np.ptp(exact, (0, 1)) > 0
        infinite = np.isinf(rounded).any((0, 1))
        with np.errstate(invalid="ignore"):
            error = np.sqrt(np.square(exact - rounded).mean((0, 1)))
        largest = np.abs(exact).max((0, 1))
        for i in np.flatnonzero(infinite):
            beyond.append(f"{names[first + i]} (up to {largest[i]:.4g})")
        for i in np.flatnonzero(varies & ~infinite & (error > LOST * std)):
            lost.append(f"{names[first + i]} (mean {mean[i]:.6g}, deviation {std[i]:.3g})")
    for features, why in ((beyond, "have values beyond float16's 65504"), (lost, "vary too little for float16")):
        if features:
            raise InputError(
                f"{path}: {len(features)} {modality} features {why}, which stores keep: first {features[0]}.\n"
                f"Centre and scale it (subtract its mean, divide by its deviation) and import again."
            )
    return half


def _table(
    path: Path, clips: ImportedClips, present: np.ndarray, halves: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the store's columns, and its classes in the order of their codes. InputError: labels that are none."""
    words = clips.table["label"]
    if (words == "").any():
        clip = str(clips.table["clip_id"][int((words == "").argmax())])
        raise InputError(f"{path}: clip {clip!r} has an empty label ({int((words == '').sum())} such clips).")
    for what in ("label", "subject"):
        if why := faulty_words(map(str, clips.table[what])):
            raise InputError(f"{path}: {what} {why}.\n{WORDS_HINT}")
    classes = [str(word) for word in np.unique(words)]
    if all(re.fullmatch(r"-?\d+", word) for word in classes):
        classes.sort(key=int)
    if len(classes) < 2:
        say(f"note: all clips of {path} have the label {classes[0]!r}: they can be predicted, not trained on")
    codes = {word: code for code, word in enumerate(classes)}
    digests = [
        hashlib.sha256(b"".join(values[i].tobytes() for values in halves.values())).hexdigest()
        for i in range(len(words))
    ]
    causes = [
        "; ".join(f"{m}: NaN in the imported file" for m, has in zip(halves, row, strict=True) if not has)
        for row in present
    ]
    table = clips.table | {
        "label": np.array([codes[str(word)] for word in words]),
        "sha256": np.array(digests),
        "status": np.where(present.any(1), store.CLIP_DONE, store.CLIP_FAILED),
        "error": np.array(causes),
        "duration": np.full(len(words), np.nan),
    }
    return table, classes


def _notes(
    table: dict[str, np.ndarray],
    classes: list[str],
    by_modality: dict[str, np.ndarray],
    halves: dict[str, np.ndarray],
) -> list[str]:
    """Return what is often a mistake and cannot be told from what is meant."""
    notes = []
    for modality, present in by_modality.items():
        zero = (halves[modality] == 0).all(2)  # [clip, segment]
        if zero.any():
            rows = f"{zero.sum()} of {zero.size} {'clips' if zero.shape[1] == 1 else 'segments'}"
            notes.append(f"all {modality} features are 0 in {rows}; where that means missing, write NaN")
        if told := missing_by_class(present, table["label"], classes):
            notes.append(f"that {modality} is missing tells the class by itself: {told}")
    return notes


def _fingerprint(table: dict[str, np.ndarray], classes: list[str], halves: dict[str, np.ndarray]) -> str:
    """Hash what is in the store, never the file's name."""
    shapes = {modality: values.shape for modality, values in halves.items()}
    columns = {name: values.tolist() for name, values in table.items() if name != "duration"}
    text = json.dumps([store.SCHEMA, store.FEATURE_CODEC, store.IMPORTED, classes, shapes, columns], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _publish(
    final: Path,
    table: dict[str, np.ndarray],
    present: np.ndarray,
    halves: dict[str, np.ndarray],
    attributes: dict,
) -> None:
    """Build beside the final path, then rename; on an error nothing stays behind."""
    unfinished = final.parent / store.WORK
    made = [folder for folder in (unfinished, *unfinished.parents) if not folder.exists()]
    work_folder(unfinished, final.parent)
    work = Path(tempfile.mkdtemp(prefix=f"{final.name}.", dir=unfinished))
    try:
        group = store.open_group(work / "store.zarr")
        for modality, values in halves.items():
            # Clip-level features are small: more clips a chunk than the pipeline's, so that files are not tiny.
            clips = max(store.FEATURE_CHUNK, CHUNK_BYTES // values[0].nbytes)
            chunks = (min(clips, len(values)), *values.shape[1:])
            dimensions = ("clip", "segment", "feature")
            store.create_array(group, modality, values.shape, chunks, "float16", dimensions)[:] = values
        store.write_table(group, table, present, tuple(halves))
        group.attrs.put(attributes)
        finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"command": shlex.join(["mlemiss", *sys.argv[1:]]), "finished": finished, "host": platform.node()}
        write_json(work / "store.zarr" / RUN, record)
        store.publish(work / "store.zarr", final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # not empty: it is in use
                folder.rmdir()
