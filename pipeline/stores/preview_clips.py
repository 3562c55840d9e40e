"""Which clips of a store a preview shows, and what it says of one."""

from dataclasses import dataclass

import numpy as np

from .masks import stratified_order
from .store import DONE, FeatureStore

COLUMNS = ("clip", "class", "subject", "duration")
TEXT = frozenset({"clip", "class", "subject", "cause", "remarks"})  # columns of words


@dataclass(frozen=True)
class Shown:
    """Places of clips in the store, sorted: every failed one, and of the others as many as were asked for."""

    failed: np.ndarray
    lacking: np.ndarray  # without one modality
    complete: np.ndarray
    all_lacking: int
    all_complete: int

    @property
    def left_out(self) -> int:
        return self.all_lacking + self.all_complete - len(self.lacking) - len(self.complete)

    def text(self) -> str:
        """How much is shown, in one line."""
        parts = [(len(self.failed), len(self.failed), "failed")]
        parts += [(len(self.lacking), self.all_lacking, "without a modality")]
        parts += [(len(self.complete), self.all_complete, "complete")]
        sample = f"; {self.left_out} left out, those shown balanced over classes (--limit shows more)"
        return ", ".join(f"{count_text(*part[:2])} {part[2]}" for part in parts) + sample * bool(self.left_out)


def count_text(shown: int, there: int) -> str:
    """How many clips are shown of those there are."""
    return f"{shown} of {there}" if shown < there else str(there)


def choose(store: FeatureStore, limit: int) -> Shown:
    """Every failed clip and ``limit`` others, balanced over classes.

    Those that lack a modality take at most half of the places, unless there are fewer complete ones.
    """
    done, whole = store.status == DONE, store.present.all(1)
    lacking, complete = np.flatnonzero(done & ~whole), np.flatnonzero(done & whole)
    some = balanced(store, lacking, max(limit // 2, limit - len(complete)))
    others = balanced(store, complete, limit - len(some))
    return Shown(np.flatnonzero(~done), some, others, len(lacking), len(complete))


def balanced(store: FeatureStore, places: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of these clips, of each class in proportion, always the same ones; sorted."""
    order = stratified_order(store.clip_id[places], store.label[places], "preview")
    return np.sort(places[order[:count]])


def describe(store: FeatureStore, place: int) -> list[str]:
    """One clip's values of COLUMNS, as text."""
    seconds = store.duration[place]
    known = np.isfinite(seconds) and seconds > 0
    return [
        str(store.clip_id[place]),
        store.classes[store.label[place]],
        str(store.subject[place]) or "–",
        f"{seconds:.2f} s" if known else "–",
    ]
