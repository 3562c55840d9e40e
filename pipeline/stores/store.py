"""The Zarr v3 stores: create, write, publish, open, verify.

A feature store holds what the trainer reads, a media store what encoders are computed from (and where asked for the
waveform, float32 [clip, sample], of which a clip's own duration counts):
    features  visual, audio   float16 [clip, segment, feature]        NaN where missing; segment may be 1
    media     frames          uint8   [clip, segment, row, column, channel]
              logmel          float16 [clip, segment, channel, mel, time]
    both      present         bool    [clip, modality]
              label           int16   [clip] into attribute ``classes``
              duration        float64 [clip] seconds; with --crop face face_box, float32 [clip, edge], NaN if none
              clip_id, subject, other manifest columns, sha256, status, error    str [clip]
              split           int8    [seed, clip]                    0 train, 1 validation, 2 test
              missing         bool    [setting, seed, clip, modality] attribute ``settings`` names the settings

A store is built in a hidden folder beside its final path. Checksums of every file go into COMPLETE.json, written last;
then the folder is renamed. Readers refuse a store without that marker. A finished store never changes.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from zarr.codecs import BloscCodec
from zarr.core.sync import sync

from ..errors import InputError
from ..files import write_json
from .checksums import COMPLETE, PUSHING, RUN, CheckedChunks, checksum, read_schema, recorded_files
from .claim import holder_of
from .masks import (
    MODALITIES,
    TEST,
    TRAIN,
    Missing,
    in_order,
    missing_clips,
    missing_in_store,
    parse_missing,
    split_clips,
    stored_settings,
)
from .remote import Place, is_local, parse_place, read_document
from .schema import CLIP, FACE_BOX, FILE, SCHEMA, STORED_SEEDS, WAVEFORM, Schema, is_text, is_whole, parse_json
from .schema import MEDIA as MEDIA

FEATURE_CHUNK = 32  # clips a chunk: 4 to 8 MB files
# Features are read far more often than written. LZ4 is read as fast as a disk gives it, and as HC keeps VGG's zeros
# small; zstd (Zarr's own choice) would take a seventh off other features and read at a tenth of the speed.
FEATURE_CODEC = {"cname": "lz4hc", "clevel": 2, "shuffle": "noshuffle", "typesize": 2}
WORK = ".partial"  # folder of unfinished work inside the stores folder
IMPORTED = "imported"  # the name of the weights where not this package made the features
CLIP_DONE, CLIP_FAILED = "done", "failed"  # a clip's status
TEXT_BYTES = 256 << 20  # bytes of a column as NumPy holds it: every text as long as the longest
RUN_BYTES = 1 << 20  # bytes of RUN.json
RECORDED = ("command", "started", "finished", "host")  # texts of RUN.json
NUMBERS = {"label": "int16", "duration": "float64"}  # columns that are not strings
RESERVED = frozenset(
    {"visual", "audio", "frames", "logmel", "present", "label", "clip_id", "status", "error", "duration"}
    | {"split", "missing", "sha256", "path", "clip", "segment", "feature", "modality", "setting", "seed"}
)
NO_MODALITY = RESERVED - {*MODALITIES} | {"subject", "none", "only", FACE_BOX, WAVEFORM}  # what means something else
NO_MODALITY |= {"backbone", "file", "columns", "segments", "pool", "not_finite", "zero", "confidence"}  # and in a spec


def store_name(dataset: str, features: str, fingerprint: str) -> str:
    """Return a store's folder name; ``timm:NAME`` becomes ``timm.NAME``, as file names should have no colon."""
    return f"{dataset}-{features.translate(dict.fromkeys(map(ord, ':/@+'), '.'))}-{fingerprint}.zarr"


def open_group(path: Path, mode: str = "a") -> zarr.Group:
    """Open a group for writing. Chunks of only fill values are written too, so that an absent file is no value."""
    zarr.config.set({"array.write_empty_chunks": True})
    return zarr.open_group(path, mode=mode, zarr_format=3)


def create_array(
    group: zarr.Group, name: str, shape: Sequence[int], chunks: Sequence[int], dtype: Any, dimensions: Sequence[str]
) -> zarr.Array:
    """Create an empty array with named dimensions; floats are NaN where nothing is written."""
    options = {"compressors": BloscCodec(**FEATURE_CODEC)} if "feature" in dimensions else {}
    if dtype is not str:
        options["fill_value"] = np.nan if np.issubdtype(np.dtype(dtype), np.floating) else 0
    return group.create_array(
        name, shape=shape, chunks=chunks, dtype=dtype, dimension_names=dimensions, overwrite=True, **options
    )


def cut_array(array: zarr.Array, size: int) -> None:
    """Set the length of an array's last axis; chunks beyond, which were never written, are not looked for."""
    sync(array.async_array.resize((*array.shape[:-1], size), delete_outside_chunks=False))


def write_table(
    group: zarr.Group, table: Mapping[str, np.ndarray], present: np.ndarray, modalities: Sequence[str] = MODALITIES
) -> None:
    """Write everything that has one row a clip: ids, labels, columns, status, presence, splits and masks.

    Args:
        group: of the store.
        table: clip_id, subject, status, error, sha256 and the manifest's columns as str [clip], label and duration.
        present: bool [clip, modality].
        modalities: their names, in order.
    """
    ids, labels, clips = list(table["clip_id"]), np.asarray(table["label"]), len(table["clip_id"])
    for name, values in table.items():
        array = create_array(group, name, [clips], [clips], NUMBERS.get(name, str), ["clip"])
        array[:] = np.asarray(values, dtype=array.dtype)
    create_array(group, "present", present.shape, present.shape, bool, ["clip", "modality"])[:] = present
    splits = np.stack([split_clips(ids, labels, seed) for seed in range(STORED_SEEDS)])
    create_array(group, "split", splits.shape, splits.shape, "int8", ["seed", "clip"])[:] = splits
    settings = stored_settings(modalities)
    drawn = np.zeros((STORED_SEEDS, clips, len(modalities)), bool)
    shape, dimensions = (len(settings), *drawn.shape), ["setting", "seed", "clip", "modality"]
    masks = create_array(group, "missing", shape, (1, *drawn.shape), bool, dimensions)
    for setting, text in enumerate(settings):
        spec = parse_missing(text, modalities)
        for seed, split in enumerate(splits):
            drawn[seed] = missing_clips(ids, labels, split == TRAIN, spec, seed, modalities)
        masks[setting] = drawn


def attributes(
    dataset: str,
    features: str,
    fingerprint: str,
    classes: Sequence[str],
    spec: Mapping,
    weights: Mapping | None,
    versions: Mapping,
    synthetic: bool = False,
    revision: int = 1,
    modalities: Sequence[str] = MODALITIES,
) -> dict:
    """Return the group attributes of a new store."""
    return {
        "schema": SCHEMA,
        "dataset": dataset,
        "features": features,
        "fingerprint": fingerprint,
        "revision": revision,
        "modalities": list(modalities),
        "classes": list(classes),
        "settings": list(stored_settings(modalities)),
        "spec": dict(spec),
        "weights": dict(weights) if weights else None,
        "synthetic": synthetic,
        "versions": dict(versions),
    }


def publish(built: Path, final: Path, replaced: Path | None = None, check: Callable[[], object] = lambda: None) -> None:
    """Consolidate the metadata, write the checksums last, move the store to its final path.

    Args:
        built: the store's folder.
        final: its path, which must be free unless ``replaced`` is given.
        replaced: where the older revision at ``final`` is moved to.
        check: called right before, after all that takes long; what it raises leaves ``final`` untouched.
    """
    with warnings.catch_warnings():  # zarr calls consolidation experimental in v3; readers need it (see docs)
        warnings.simplefilter("ignore", UserWarning)  # zarr's own, too
        zarr.consolidate_metadata(str(built))
    read_schema(built)  # what readers would refuse is not published
    files = {}
    for path in sorted(built.rglob("*"), key=lambda p: p.relative_to(built).as_posix()):
        name = path.relative_to(built).as_posix()
        if not path.is_file() or name in (COMPLETE, RUN):
            continue
        if path.name.endswith(".partial"):  # zarr's temporary file, left by a kill
            path.unlink()
            continue
        files[name] = checksum(path)
        _flush(path)  # the marker must not reach the disk before what it vouches for
    write_json(built / COMPLETE, {"schema": SCHEMA, "files": files})
    final.parent.mkdir(parents=True, exist_ok=True)
    check()
    if replaced is not None:
        final.rename(replaced)
    built.rename(final)


def revision_at(path: Place) -> int:
    """Return the revision of the finished store at this path; 0 where there is none."""
    try:
        if (path / COMPLETE).is_file():
            revision = parse_json(read_document(path / FILE))["attributes"]["revision"]
            return revision if is_whole(revision) else 0
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0


def run_record(store: Place) -> dict:
    """Return a store's RUN.json; empty where there is none that can be read, or that mlemiss would not write."""
    try:
        record = parse_json(read_document(store / RUN, RUN_BYTES))
    except (OSError, ValueError, InputError):
        return {}
    fits = isinstance(record, dict) and all(is_text(record.get(name) or "") for name in RECORDED)
    return record if fits else {}


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_finished(path: Place) -> Schema:
    """Read and check a finished store's zarr.json. InputError: absent, no store, incomplete or of another schema."""
    if is_local(path) and not path.is_dir():
        raise InputError(f"no store at {path}.\n`mlemiss store ls` lists the stores there are.")
    try:
        schema = read_schema(path)
    except FileNotFoundError:
        ls = f"`mlemiss store ls {path.parent}` lists the stores there are."
        if not is_local(path):
            raise InputError(f"no store at {path}: there is no {FILE}.\n{ls}") from None
        raise InputError(f"{path} is no mlemiss store: it has no {FILE}.\nName the folder itself. {ls}") from None
    except OSError as error:
        raise InputError(f"{path} is no mlemiss store: its {FILE} is {error.strerror}.\nDo not use it.") from None
    if not (path / COMPLETE).is_file():
        pushed = (holder := holder_of(path / PUSHING)) and f" ({holder} was or is pushing it)"
        raise InputError(
            f"{path} is incomplete: it has no {COMPLETE}, so its writing or copying was cut short{pushed or ''}.\n"
            f"Run the preprocess or the copy that makes it again."
        )
    return schema


def read_attributes(path: Place) -> dict[str, Any]:
    """Read a store's attributes, checked as `read_finished` does."""
    return dict(read_finished(path).attrs)


class FeatureStore:
    """A finished store, open for reading. Small columns were hashed and checked; features are read by `read`."""

    def __init__(self, path: Place, chunks: CheckedChunks):
        self.path = path
        self.chunks, self.arrays = chunks, chunks.schema.arrays
        self.attrs: dict[str, Any] = dict(chunks.schema.attrs)
        self.dataset: str = self.attrs["dataset"]
        self.features: str = self.attrs["features"]
        self.fingerprint: str = self.attrs["fingerprint"]
        self.weights: dict[str, str] = self.attrs["weights"] or {}
        self.synthetic: bool = self.attrs["synthetic"]  # drawn clips, not recorded ones
        self.modalities: tuple[str, ...] = tuple(self.attrs["modalities"])
        self.classes: tuple[str, ...] = tuple(self.attrs["classes"])
        self.joined: dict | None = None  # of each modality's own store, see joined.py
        self.given: dict | None = None  # files that stand in for its splits and masks: see mask_files.py

    @classmethod
    def open(cls, path: str | Place) -> "FeatureStore":
        """Open a store, a folder or a URL, and read all of it but features and media.

        InputError: it is absent, no store, incomplete, of another schema, damaged, or says what no store can.
        """
        path = parse_place(path)
        schema, files = read_finished(path), recorded_files(path)
        if absent := schema.absent_from(files):
            raise InputError(f"{path}: its {COMPLETE} does not record {absent}.\nDo not use it: copy the store again.")
        chunks = CheckedChunks.at(path, files, schema)
        chunks.keep_small()
        store = cls(path, chunks)
        store._check_table()
        return store

    def _check_table(self) -> None:
        """Check the values that readers take for granted. InputError: they are not those of a store."""
        known, classes = {CLIP_DONE, CLIP_FAILED}, len(self.classes)
        for name, fits, expected in (
            ("clip_id", len(set(self.clip_id.tolist())) == len(self.clip_id), "different ids"),
            ("status", set(self.status.tolist()) <= known, " or ".join(sorted(known))),
            ("label", ((self.label >= 0) & (self.label < classes)).all(), f"0 to {classes - 1}, for its classes"),
            ("split", ((self._stored_splits >= TRAIN) & (self._stored_splits <= TEST)).all(), f"{TRAIN} to {TEST}"),
        ):
            if not fits:
                raise InputError(f"{self.path}: its array {name} has other values than {expected}.\nDo not use it.")

    def _strings(self, name: str) -> np.ndarray:
        texts = [str(value) for value in self.read(name).tolist()]
        if (size := 4 * len(texts) * max(map(len, texts))) > TEXT_BYTES:
            raise InputError(f"{self.path}: its texts of {name} need {size >> 20} MB, too many.\nDo not use it.")
        return np.array(texts, dtype=str)

    @cached_property
    def clip_id(self) -> np.ndarray:
        """Return the clips' ids, sorted: str [clip]."""
        return self._strings("clip_id")

    @cached_property
    def sha256(self) -> np.ndarray:
        """Return the hash of each clip's content, of both files where its sound is in one of its own: str [clip]."""
        return self._strings("sha256")

    @cached_property
    def status(self) -> np.ndarray:
        """Return each clip's status, done or failed: str [clip]."""
        return self._strings("status")

    @property
    def done(self) -> np.ndarray:
        """Return which clips did not fail: bool [clip]."""
        return self.status == CLIP_DONE

    @cached_property
    def error(self) -> np.ndarray:
        """Return why a clip failed or lacks a modality, else an empty text: str [clip]."""
        return self._strings("error")

    @cached_property
    def subject(self) -> np.ndarray:
        """Return who is seen and heard: str [clip]."""
        return self._strings("subject")

    @cached_property
    def label(self) -> np.ndarray:
        """Return each clip's class, a position in `classes`: int64 [clip]."""
        return self.read("label").astype(np.int64)

    @cached_property
    def duration(self) -> np.ndarray:
        """Return the clips' durations in seconds: float64 [clip]."""
        return self.read("duration")

    @cached_property
    def present(self) -> np.ndarray:
        """Return which modalities carry a signal, before any simulated missingness: bool [clip, modality]."""
        return self.read("present")

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Return the manifest's columns a split can keep together, subject included: name -> str [clip]."""
        there = sorted(name for name, array in self.arrays.items() if array.dimensions == CLIP)
        return {name: self._strings(name) for name in there if name not in RESERVED}

    @property
    def segment_arrays(self) -> tuple[str, ...]:
        """Return the names of the large arrays: a modality's features, or media."""
        return tuple(name for name, array in self.arrays.items() if not array.is_small)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape; a modality's features are [clip, segment, feature]."""
        return self.arrays[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Return an array's type."""
        return np.dtype(self.arrays[name].dtype)

    def clips_a_chunk(self, name: str) -> int:
        """Return how many clips a chunk of an array holds."""
        return self.arrays[name].chunks[0]

    def read(self, name: str, clips: slice = slice(None)) -> np.ndarray:
        """Read an array, or these clips of it; a modality's features are float16 [clip, segment, feature], NaN where
        missing. InputError: damaged chunks."""
        return self.chunks.read(name, clips)

    def read_into(self, out: np.ndarray, name: str, clips: slice) -> None:
        """Read as `read` does, without a copy: into an array of the right shape and type."""
        self.chunks.read(name, clips, out)

    def split(self, seed: int, by: str = "clip") -> np.ndarray:
        """Return each clip's part, 0 train, 1 validation or 2 test: int8 [clip].

        ``by`` a column keeps clips that share its value together. InputError: there is no such column, or it is empty.
        """
        if by == "clip":
            return self._stored_splits[seed] if seed < STORED_SEEDS else split_clips(self.clip_id, self.label, seed)
        if by not in self.columns:
            raise InputError(
                f"cannot split by {by!r}: the store {self.path.name} has no such column.\n"
                f"Columns are clip, {', '.join(self.columns)}."
            )
        if not self.columns[by].astype(bool).any():
            raise InputError(
                f"cannot split by {by!r}: no clip of the store {self.path.name} has a {by}.\n"
                f"Split by another column, or by clip."
            )
        return split_clips(self.clip_id, self.label, seed, self.columns[by])

    @cached_property
    def _stored_splits(self) -> np.ndarray:
        return self.read("split")

    def missing(self, spec: Missing, seed: int, among: np.ndarray) -> np.ndarray:
        """Return what ``spec`` hides of the clips ``among`` (bool [clip]) under this seed: bool [clip, modality].
        A clip split's training masks of the stored settings are read, anything else is computed by the same function.
        """
        name = Missing(spec.rates, where=spec.where).name  # labels hide no modality
        stored = self.attrs["settings"] if self.modalities == in_order(self.modalities) else []  # once drawn otherwise
        if name in stored and seed < STORED_SEEDS and np.array_equal(among, self._stored_splits[seed] == TRAIN):
            return self.chunks.read("missing", (stored.index(name), seed))
        return missing_in_store(self, spec, seed, among)
