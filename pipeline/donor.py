"""Finished stores that results are taken from: what is copied out of one gets valid checksums of its own, so nothing is
whose bytes are not the recorded ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .checksums import damage_among, recorded_files
from .errors import InputError
from .progress import say
from .store import FeatureStore

TABLE = ("label", "status", "sha256", "present", "error", "duration")


class DamagedError(InputError):
    """A store's bytes are not what its checksums say; one line."""


@dataclass(frozen=True)
class Donor:
    """A finished store whose metadata and table are as they were written."""

    store: FeatureStore
    files: Mapping[str, Mapping]  # what its COMPLETE.json vouches for

    @classmethod
    def open(cls, path: Path) -> "Donor":
        """DamagedError: its metadata or table are damaged, absent, or not those of a store of clips."""
        donor = cls(FeatureStore.open(path), recorded_files(path))
        donor._check(["zarr.json", *(name for array in TABLE for name in donor._chunks(f"{array}/c/"))])
        return donor

    def block(self, names: Sequence[str], block: int) -> list[np.ndarray]:
        """The ``block``-th chunk along the clips of arrays that share their chunks. DamagedError: one is damaged."""
        self._check([name for array in names for name in self._chunks(f"{array}/c/{block}/")])
        size = self.store.group[names[0]].chunks[0]
        return [self.store.group[name][block * size : (block + 1) * size] for name in names]

    def _chunks(self, prefix: str) -> list[str]:
        return [name for name in self.files if name.startswith(prefix)] or [f"{prefix}…"]

    def _check(self, names: Sequence[str]) -> None:
        path = self.store.path
        if damage_among(path, self.files, names):
            raise DamagedError(f"{path} is damaged (`mlemiss store verify` says where); clips hit are decoded again")


@cache
def say_once(text: str) -> None:
    """A store that serves many clips is complained of once."""
    say(text)
