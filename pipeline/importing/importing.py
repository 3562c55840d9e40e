"""Make a store of features that were computed elsewhere: read, check everything, build, publish.

A modality is missing in a clip whose features are all NaN, or that its file lacks. Nothing is scaled or guessed.
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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..clips.manifest import COLUMN_NAME, WORDS_HINT, faulty_words
from ..console import name_some, say
from ..encoders.names import MODALITY_NAME, check_cases
from ..errors import InputError
from ..files import work_folder, write_json
from ..stores import store
from ..stores.checksums import RUN
from ..stores.masks import MODALITIES, missing_by_class
from .feature_files import read_feature_file
from .matching import match_ids
from .sources import Folder, Map, Table, open_source
from .steps import Collector, Rules, choose_windows

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*")
LOST = 0.01  # of a feature's standard deviation: what rounding to float16 may cost
CHUNK_BYTES = 4_000_000  # of one chunk file
CLASSES_LISTED = 20
FEATURES_AT_ONCE = 64  # checked at a time, to bound the memory
DEFAULTS = Rules()


@dataclass(frozen=True)
class Request:
    """A request to import features; names are of arrays or columns in ``file``, which has the labels."""

    file: Path
    dataset: str
    features: str
    maps: tuple[Map, ...]
    label: str
    clip: str | None = None
    subject: str | None = None
    columns: tuple[str, ...] = ()
    rules: Rules = DEFAULTS  # what becomes of a clip's steps

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the modalities of the store: those of the pipeline's stores first, others as they were named."""
        named = list(dict.fromkeys(item.modality for item in self.maps))
        return tuple([name for name in MODALITIES if name in named] + [m for m in named if m not in MODALITIES])

    def texts(self) -> list[str]:
        """Return the names of everything that is read as words, one value a clip."""
        return list(dict.fromkeys(n for n in (self.label, self.clip, self.subject, *self.columns) if n))

    def by_file(self) -> dict[Path | None, dict[str, list[str]]]:
        """Return the names that make each modality, by file; None is the one with the labels.

        InputError: a modality is made of several files.
        """
        files: dict[Path | None, dict[str, list[str]]] = {None: {}}
        for modality, name, file in self.maps:
            files.setdefault(file, {}).setdefault(modality, []).append(name)
        for modality in self.modalities:
            sources = [str(file or self.file) for file, maps in files.items() if modality in maps]
            if len(sources) > 1:
                raise InputError(
                    f"--map: {modality} is made of {' and '.join(sources)}.\nExpected one file or folder a modality: "
                    f"name a modality for each."
                )
        return files


def parse_maps(items: Sequence[str]) -> tuple[Map, ...]:
    """Parse ``visual=ARRAY``, ``text=ARRAY@FILE``, ``audio=@FOLDER``, …; several of one modality are joined.

    InputError: another form, or a modality's name that is no identifier or is a store's own.
    """
    maps = []
    for item in items:
        modality, separator, target = (part.strip() for part in item.partition("="))
        name, at, file = (part.strip() for part in target.partition("@"))
        if not separator or not (name or at) or (at and not file):
            raise InputError(
                f"--map {item!r}: expected MODALITY=ARRAY, for example visual=face_*, or MODALITY=ARRAY@FILE.\n"
                "Commas stand between several, each whole: visual=AU*_r@FILE,visual=pose_*@FILE."
            )
        if not MODALITY_NAME.fullmatch(modality):
            raise InputError(
                f"--map {item!r}: {modality!r} is no name of a modality.\n"
                "Expected letters, digits and '_', a letter first, such as visual, audio, text."
            )
        if modality in store.NO_MODALITY:
            raise InputError(f"--map {item!r}: {modality} is a name of the store's own.\nName the modality otherwise.")
        maps.append(Map(modality, name, Path(file) if at else None))
    check_cases(one.modality for one in maps)
    return tuple(maps)


@dataclass(frozen=True)
class ImportedClips:
    """The clips of an import, sorted by id."""

    table: dict[str, np.ndarray]  # clip_id, label (words), subject and more: str [clip]
    features: dict[str, np.ndarray]  # modality -> [clip, segment, feature], NaN where missing
    names: dict[str, list[str]]  # of the features, for messages
    columns: dict[str, list[str]]  # the arrays or columns each modality was made of
    causes: dict[str, list[str]]  # modality -> why each clip lacks it
    paths: dict[str, Path]  # the file or folder each modality comes from
    digest: str  # of all that was read, in hexadecimal
    notes: list[str]

    def present(self) -> dict[str, np.ndarray]:
        """Return which clips have each modality: bool [clip]."""
        return {modality: ~np.isnan(values).all((1, 2)) for modality, values in self.features.items()}


def import_features(request: Request, stores: Path) -> Path:
    """Import features into the folder ``stores``.

    Returns:
        The store's path, also where the store was there already.

    Raises:
        InputError: something is wrong with a file or the names; nothing was written.
    """
    _check_names(request)
    clips = _gather(request)
    by_modality = clips.present()
    halves = {modality: _as_float16(clips, modality, has) for modality, has in by_modality.items()}
    present = np.stack(list(by_modality.values()), 1)  # [clip, modality]
    table, classes = _table(request.file, clips, present, halves)
    fingerprint = _fingerprint(table, classes, halves)
    final = stores / store.store_name(request.dataset, request.features, fingerprint)
    segments = max(values.shape[1] for values in halves.values())
    widths = ", ".join(f"{values.shape[2]} {modality}" for modality, values in halves.items())
    lacking = ", ".join(f"{int((~has).sum())} lack {modality}" for modality, has in by_modality.items())
    say(f"{request.file}: {len(present)} clips of {segments} segment(s), {len(classes)} classes, {widths} features")
    say(f"{lacking}; {int((~present.any(1)).sum())} have no modality and are left out of training")
    counts = (f"{name} {count}" for name, count in zip(classes, np.bincount(table["label"]), strict=True))
    say(f"classes: {name_some(counts, CLASSES_LISTED)}")
    for note in (*clips.notes, *_notes(table, classes, by_modality)):
        say(f"note: {note}")
    if _is_there(final):
        return final
    spec = {"segments": segments, "file": request.file.name, **clips.columns}
    spec |= {"label": request.label, "clip": request.clip, "subject": request.subject, "columns": request.columns}
    spec |= {name: value for name, value in asdict(request.rules).items() if value != getattr(DEFAULTS, name)}
    weights = {"name": store.IMPORTED, "hash": clips.digest}
    versions = {name: version(name) for name in ("mlemiss", "numpy", "zarr")}
    described = (request.dataset, request.features, fingerprint, classes, spec, weights, versions)
    _publish(final, table, present, halves, store.attributes(*described, modalities=request.modalities))
    return final


def _check_names(request: Request) -> None:
    for option, name in (("--dataset", request.dataset), ("--features", request.features)):
        if not PLAIN_NAME.fullmatch(name) or name == store.MEDIA or name.endswith(".zarr"):  # which is a store's path
            raise InputError(
                f"{option} {name!r}: expected a name of letters, digits and '_.:+-', not {store.MEDIA} or *.zarr."
            )
    for name in request.columns:
        if name in request.modalities:
            raise InputError(f"--column {name} and --map {name}=… have one name.\nName the modality otherwise.")
        if not COLUMN_NAME.fullmatch(name) or name in store.RESERVED | {"subject"}:
            raise InputError(
                f"--column {name!r} cannot be kept: a column's name is made of letters, digits, '_' and '-', and is "
                f"none of the store's own.\nRename it in {request.file}."
            )


# ---- from files to clips ----


def _gather(request: Request) -> ImportedClips:
    """Read every file, match their clips with the labelled ones, and make each clip's steps segments."""
    maps, rules = request.by_file(), request.rules
    main = _labelled(request, maps.pop(None))
    ids = np.array(main.clips)
    table = {"clip_id": ids, "label": main.one_row(request.label, main.clips)}
    table["subject"] = main.one_row(request.subject, main.clips) if request.subject else np.full(len(ids), "")
    table |= {name: main.one_row(name, main.clips) for name in request.columns}
    sources, notes = [main], list(main.notes)
    for path, of_file in maps.items():
        sources.append(open_source(path, of_file, request.clip, rules))
        notes += match_ids(request.file, main.clips, path, sources[-1].clips, sources[-1].hint)
    made_by = {m: source for source in sources for m in (maps[source.path] if source is not main else main.columns)}
    known = [set(source.clips) for source in sources]
    shared = [[clip for clip in main.clips if clip in there] for there in known]
    lengths = {m: n for source, clips in zip(sources, shared, strict=True) for m, n in source.lengths(clips).items()}
    windows = choose_windows(lengths, {m: made_by[m].over_time for m in lengths}, rules)
    collected = {m: Collector(made_by[m].path, m, main.clips, rules, windows[m]) for m in request.modalities}
    for source in sources:
        _collect(source, main.clips, collected, made_by)
        notes += source.notes if source is not main else []
    if rules.confidence is not None and not any(source.faces for source in sources):
        raise InputError("--confidence is about OpenFace's files, and none of these is one.\nLeave it out.")
    features = {modality: one.segments() for modality, one in collected.items()}
    digests = [source.digest() for source in sources]
    return ImportedClips(
        table,
        features,
        {modality: list(one.names) for modality, one in collected.items()},
        {modality: made_by[modality].columns[modality] for modality in request.modalities},
        {modality: one.causes for modality, one in collected.items()},
        {modality: one.source for modality, one in collected.items()},
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        notes + [note for one in collected.values() for note in one.notes()],
    )


def _labelled(request: Request, maps: dict[str, list[str]]) -> Table:
    """Read the file with the labels, and the features in it."""
    if request.file.is_dir():
        raise InputError(
            f"{request.file} is a folder, expected the table with --label {request.label}.\n"
            f"Name that first, and the folder as `--map visual=@{request.file}`."
        )
    patterns = list(dict.fromkeys(name for names in maps.values() for name in names))
    file = read_feature_file(request.file, patterns, request.texts(), face=True)
    rows = max((len(values) for values in (file.numbers | file.texts).values() if values.ndim), default=0)
    if len(maps) < len(request.modalities) and not request.clip:
        raise InputError(f"{request.file}: name the column of clip ids with --clip, to find the clips in other files.")
    ids = file.texts[request.clip] if request.clip else np.array([f"{i:0{len(str(rows - 1))}}" for i in range(rows)])
    return Table(file, maps, ids, request.rules)


def _collect(
    source: Table | Folder, clips: Sequence[str], collected: dict[str, Collector], made_by: dict[str, Table | Folder]
) -> None:
    """Read the clips of a source."""
    there, mine = set(source.clips), [m for m, one in made_by.items() if one is source]
    for place, clip in enumerate(clips if mine else ()):
        if clip in there:
            for modality, steps, names in source.read(clip):
                collected[modality].add(place, steps, names)
        else:
            for modality in mine:
                collected[modality].causes[place] = f"not in {source.path.name}"


# ---- checks ----


def _as_float16(clips: ImportedClips, modality: str, present: np.ndarray) -> np.ndarray:
    """Return a modality's features as stores keep them: float16 [clip, segment, feature], NaN where missing.

    InputError: float16 cannot hold what a feature tells.
    """
    values, names = clips.features[modality], clips.names[modality]
    if len(names) < values.shape[2]:  # pooled
        names = [*names, *(f"deviation of {name}" for name in names)]
    half, lost = values.astype(np.float16), []
    how = "Centre and scale it (subtract its mean, divide by its deviation)"
    for first in range(0, values.shape[2], FEATURES_AT_ONCE):
        block = slice(first, first + FEATURES_AT_ONCE)
        exact = values[present, :, block].astype(np.float64)
        rounded = half[present, :, block].astype(np.float64)
        mean, std, varies = exact.mean((0, 1)), exact.std((0, 1)), np.ptp(exact, (0, 1)) > 0
        error = np.sqrt(np.square(exact - rounded).mean((0, 1)))
        for i in np.flatnonzero(varies & (error > LOST * std)):
            lost.append(f"{names[first + i]} (mean {mean[i]:.6g}, deviation {std[i]:.3g})")
            if first + i >= len(clips.names[modality]):
                how = "Leave out the deviations (--pool mean)"
    if lost:
        raise InputError(
            f"{clips.paths[modality]}: {len(lost)} {modality} features vary too little for float16, which stores keep: "
            f"first {lost[0]}.\n{how} and import again."
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
        "; ".join(f"{m}: {clips.causes[m][i]}" for m, has in zip(halves, row, strict=True) if not has)
        for i, row in enumerate(present)
    ]
    table = clips.table | {
        "label": np.array([codes[str(word)] for word in words]),
        "sha256": np.array(digests),
        "status": np.where(present.any(1), store.CLIP_DONE, store.CLIP_FAILED),
        "error": np.array(causes),
        "duration": np.full(len(words), np.nan),
    }
    return table, classes


def _notes(table: dict[str, np.ndarray], classes: list[str], by_modality: dict[str, np.ndarray]) -> list[str]:
    """Return which modalities are missing in a way that tells the class."""
    return [
        f"that {modality} is missing tells the class by itself: {told}"
        for modality, present in by_modality.items()
        if (told := missing_by_class(present, table["label"], classes))
    ]


def _fingerprint(table: dict[str, np.ndarray], classes: list[str], halves: dict[str, np.ndarray]) -> str:
    """Hash what is in the store, never the file's name."""
    shapes = {modality: values.shape for modality, values in halves.items()}
    if set(shapes) - set(MODALITIES):  # clips' hashes are of features in this order; of these it is always the same
        shapes = list(shapes.items())
    columns = {name: values.tolist() for name, values in table.items() if name != "duration"}
    text = json.dumps([store.SCHEMA, store.FEATURE_CODEC, store.IMPORTED, classes, shapes, columns], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_there(final: Path) -> bool:
    """Return whether the store is there already, and say so. InputError: it is not whole."""
    if not final.exists():
        return False
    store.FeatureStore.open(final)
    say(f"{final} holds exactly these features already; nothing to do")
    return True


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
        try:
            store.publish(work / "store.zarr", final)
        except OSError:
            if not _is_there(final):  # of another import at the same time
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # not empty: it is in use
                folder.rmdir()
