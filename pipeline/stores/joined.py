"""Join stores of one data set on the clip's id: each modality's features from a store of its own."""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from ..console import amount, name_some
from ..errors import InputError
from .masks import Missing, in_order, missing_in_store, split_clips, stored_settings
from .schema import STORED_SEEDS, merged_versions
from .store import CLIP_DONE, CLIP_FAILED, MEDIA, FeatureStore

CAUSES = re.compile(r"; (?=\w+: )")  # between what is recorded of modalities


class JoinedStore(FeatureStore):
    """Stores of one data set as one, each modality from its own. A clip that a store lacks lacks that modality.

    Nothing is copied. Splits and masks are those of any store with the same ids, labels and modalities.

    Args:
        sources: the store of each modality; a modality of one segment a clip goes with others of several.

    Raises:
        InputError: they are not of one data set, disagree on classes, labels or subjects, have no clip in common, or
            one of them lacks its modality.
    """

    def __init__(self, sources: Mapping[str, FeatureStore]):
        self.modalities = in_order(sources)
        self.sources = {name: sources[name] for name in self.modalities}
        stores = list(self.sources.values())
        self.path = Path(",".join(f"{name}={store.path.name}" for name, store in self.sources.items()))
        self._check_modalities()
        self.dataset, self.classes, self.given = stores[0].dataset, stores[0].classes, None
        self.synthetic = any(store.synthetic for store in stores)
        self.features = ",".join(f"{name}={store.features}" for name, store in self.sources.items())
        self.joined = {
            name: {
                "features": store.features,
                "store": store.fingerprint,
                "revision": store.attrs["revision"],
                "weights": store.weights.get("name"),
                "weights_hash": store.weights.get("hash"),
            }
            for name, store in self.sources.items()
        }
        identity = repr([(name, one["store"], one["revision"]) for name, one in self.joined.items()])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.weights = {key: self._described(f"weights{tail}") for key, tail in (("name", ""), ("hash", "_hash"))}
        self.attrs = {
            "revision": max(store.attrs["revision"] for store in stores),
            "settings": stored_settings(self.modalities),
            "spec": {name: store.attrs["spec"] for name, store in self.sources.items()},
            "versions": merged_versions(store.attrs.get("versions") or {} for store in stores),
        }
        self.clip_id = np.unique(np.concatenate([store.clip_id for store in stores]))
        self._places = {name: _places(store, self.clip_id) for name, store in self.sources.items()}
        self._check_tables()

    def _described(self, key: str) -> str:
        """Return what all sources say, or what each does: `visual imagenet, audio random`."""
        said = {name: str(one[key]) for name, one in self.joined.items()}
        if len(set(said.values())) == 1:
            return said[self.modalities[0]]
        return ", ".join(f"{name} {value}" for name, value in said.items())

    # ---- what cannot be joined ----

    def _check_modalities(self) -> None:
        first, *others = self.sources.values()
        for name, store in self.sources.items():
            if store.features == MEDIA:
                raise InputError(f"{store.path} holds frames and log-Mels, not features.\nName a store of features.")
            if name not in store.modalities:
                raise InputError(f"{store.path} has no {name}, it has {', '.join(store.modalities)}.\nName another.")
        for other in others:
            for what, here, there in (
                ("data sets", first.dataset, other.dataset),
                ("classes", *(", ".join(sorted(one.classes)) for one in (first, other))),
            ):
                if here != there:
                    raise _differ(f"their {what} are {here}, and {there}", first, other)
            if not set(first.clip_id.tolist()) & set(other.clip_id.tolist()):
                ids = f"{str(first.clip_id[0])!r} and {str(other.clip_id[0])!r}"
                raise _differ(f"no clip is in both (ids such as {ids})", first, other)
        segments = {name: store.shape(name)[1] for name, store in self.sources.items()}
        if len(set(segments.values()) - {1}) > 1:
            found = ", ".join(f"{name} {count}" for name, count in segments.items())
            raise InputError(
                f"{self.path} cannot be joined: segments a clip are {found}.\nExpected the same number, or 1 segment."
            )

    def _check_tables(self) -> None:
        """Check that no two stores say different things of a clip."""
        for first, other in combinations(self.sources, 2):
            for what, of in (("label", _class_names), ("subject", lambda store: store.subject)):
                here, there = (self._spread(of(self.sources[name]), name, "") for name in (first, other))
                differ = np.flatnonzero((here != there) & (here != "") & (there != ""))
                if len(differ):
                    ids = name_some(self.clip_id[differ])
                    values = f"{str(here[differ[0]])!r} and {str(there[differ[0]])!r}"
                    said = f"the {what} of {amount(len(differ), 'clip')} differs ({ids}; first {values})"
                    raise _differ(said, self.sources[first], self.sources[other])

    # ---- one row a clip ----

    def _spread(self, values: np.ndarray, name: str, fill: object) -> np.ndarray:
        """Return a source's values [its clip] for every clip; `fill` for clips that it lacks."""
        places = self._places[name]
        return np.where(places >= 0, values[places], fill)

    def _first(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return each clip's text in the first source that has one: str [clip]."""
        found = np.array([""] * len(self.clip_id))
        for name, texts in values.items():
            found = np.where(found == "", self._spread(texts, name, ""), found)
        return found

    @cached_property
    def present(self) -> np.ndarray:
        """Return which modalities carry a signal: bool [clip, modality]."""
        seen = {name: one.present[:, one.modalities.index(name)] & one.done for name, one in self.sources.items()}
        return np.stack([self._spread(values, name, False) for name, values in seen.items()], 1)

    @cached_property
    def status(self) -> np.ndarray:
        """Return done where any store has done a clip, else failed: str [clip]."""
        done = np.any([self._spread(store.done, name, False) for name, store in self.sources.items()], axis=0)
        return np.where(done, CLIP_DONE, CLIP_FAILED)

    @cached_property
    def error(self) -> np.ndarray:
        """Return what the stores recorded, and which of them lack the clip: str [clip]."""
        said = [
            self._spread(_errors_of(store, name), name, f"{name}: not in {store.path.name}")
            for name, store in self.sources.items()
        ]
        parts = (CAUSES.split("; ".join(filter(None, map(str, texts)))) for texts in zip(*said, strict=True))
        return np.array(["; ".join(dict.fromkeys(one)) for one in parts])

    @cached_property
    def label(self) -> np.ndarray:
        """Return each clip's class, a position in `classes`: int64 [clip]."""
        names = self._first({name: _class_names(store) for name, store in self.sources.items()})
        return np.array([self.classes.index(name) for name in names.tolist()], np.int64)

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns of all stores, each clip's value from the first that has one: name -> str [clip]."""
        names = sorted({column for store in self.sources.values() for column in store.columns})
        return {
            column: self._first({m: s.columns[column] for m, s in self.sources.items() if column in s.columns})
            for column in names
        }

    @property
    def subject(self) -> np.ndarray:
        """Return who is seen and heard: str [clip]."""
        return self.columns["subject"]

    @cached_property
    def duration(self) -> np.ndarray:
        """Return the clips' durations in seconds, in the first store that knows it: float64 [clip]."""
        known = np.stack([self._spread(store.duration, name, np.nan) for name, store in self.sources.items()])
        return np.take_along_axis(known, np.isfinite(known).argmax(0)[None], 0)[0]

    # ---- one array a modality ----

    @property
    def segment_arrays(self) -> tuple[str, ...]:
        """Return the names of the modalities."""
        return self.modalities

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a modality's features, [clip, segment, feature]."""
        return len(self.clip_id), *self.sources[name].shape(name)[1:]

    def dtype(self, name: str) -> np.dtype:
        """Return a modality's type."""
        return self.sources[name].dtype(name)

    def clips_a_chunk(self, name: str) -> int:
        """Return how many clips a chunk of a modality holds."""
        return self.sources[name].clips_a_chunk(name)

    def read(self, name: str, clips: slice = slice(None)) -> np.ndarray:
        """Read a modality of these clips: float16 [clip, segment, feature], NaN where missing."""
        first, last, _ = clips.indices(len(self.clip_id))
        out = np.empty((last - first, *self.shape(name)[1:]), self.dtype(name))
        self.read_into(out, name, slice(first, last))
        return out

    def read_into(self, out: np.ndarray, name: str, clips: slice) -> None:
        """Read as `read` does, into an array of the right shape and type."""
        places, source = self._places[name][clips], self.sources[name]
        have = places >= 0
        if not have.any():
            out[:] = np.nan
            return
        low, high = int(places[have].min()), int(places[have].max()) + 1
        if np.array_equal(places, np.arange(low, high)):
            source.read_into(out, name, slice(low, high))
            return
        out[~have] = np.nan
        out[have] = source.read(name, slice(low, high))[places[have] - low]

    # ---- splits and masks ----

    @cached_property
    def _stored_splits(self) -> np.ndarray:
        return np.stack([split_clips(self.clip_id, self.label, seed) for seed in range(STORED_SEEDS)])

    def missing(self, spec: Missing, seed: int, among: np.ndarray) -> np.ndarray:
        """Return what ``spec`` hides of the clips ``among`` (bool [clip]) under this seed: bool [clip, modality]."""
        return missing_in_store(self, spec, seed, among)


def _differ(what: str, first: FeatureStore, other: FeatureStore) -> InputError:
    return InputError(
        f"{first.path.name} and {other.path.name} cannot be joined: {what}.\n"
        f"Join stores of one data set, with the same classes, labels and subjects."
    )


def _places(store: FeatureStore, clip_id: np.ndarray) -> np.ndarray:
    """Return where a store has each clip, -1 where it lacks it: int64 [clip]."""
    rows = {clip: row for row, clip in enumerate(store.clip_id.tolist())}
    return np.array([rows.get(clip, -1) for clip in clip_id.tolist()], np.int64)


def _errors_of(store: FeatureStore, name: str) -> np.ndarray:
    """Return what a store recorded of a modality or of the clip, without its other modalities: str [clip]."""
    others = tuple(f"{other}: " for other in store.modalities if other != name)
    parts = (CAUSES.split(text) for text in store.error.tolist())
    return np.array(["; ".join(part for part in said if not part.startswith(others)) for said in parts])


def _class_names(store: FeatureStore) -> np.ndarray:
    return np.array(store.classes)[store.label]
