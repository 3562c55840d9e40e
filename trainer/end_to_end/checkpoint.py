"""Checkpoints of training end to end: everything that an epoch leaves, for a killed training to resume from."""

import itertools
import json
import pickle
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ...pipeline.errors import InputError
from ...pipeline.files import whole_file

SCHEMA = 3


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one cell's runs, and plain values that identify the training."""

    folder: Path
    identity: Mapping

    def of(self, seed: int, stage: str) -> "Checkpoint":
        """Return the checkpoint of one run's stage."""
        name = "".join(c if c.isalnum() else "-" for c in stage)
        return Checkpoint(self.folder / f"seed{seed}-{name}.pt", {**self.identity, "seed": seed, "stage": stage})

    def check(self, seeds: Sequence[int], stages: Sequence[str]) -> None:
        """Check the checkpoints that are there. InputError: one is damaged, or of another training."""
        for seed, stage in itertools.product(seeds, stages):
            checkpoint = self.of(seed, stage)
            if checkpoint.path.is_file():
                checkpoint.read(whole=False)

    def remove(self, seeds: Iterable[int]) -> None:
        """Delete the checkpoints of finished runs; those of other seeds stay."""
        for seed in seeds:
            for path in self.folder.glob(f"seed{seed}-*"):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # absent, or not empty
            self.folder.rmdir()


class Checkpoint:
    """One stage of one run, kept after every epoch.

    identity: plain values that say what is trained and how; a file of another identity is refused. What is random in
    an epoch must depend on its number, or on a generator that the method keeps (`Method.training_state`).
    """

    def __init__(self, path: Path, identity: Mapping):
        self.path = path
        self.identity = json.loads(json.dumps(dict(identity) | {"schema": SCHEMA}, sort_keys=True))
        self._seconds, self._started = 0.0, time.perf_counter()  # of this stage before a kill; since when it goes on

    def read(self, whole: bool = True) -> dict:
        """Return what was kept, on the host; unless ``whole``, parts are read when they are used.

        InputError: the file is damaged, or of another training.
        """
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True, mmap=not whole)
            identity = json.loads(kept["identity"])
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"the checkpoint {self.path} cannot be read ({type(error).__name__}).\nRemove it to begin anew."
            ) from None
        if identity != self.identity:
            there, here = _flat(identity), _flat(self.identity)
            names = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
            told = "; ".join(f"{n.replace('_', ' ')}: {there.get(n)} there, {here.get(n)} here" for n in names[:3])
            raise InputError(
                f"the checkpoint {self.path} is of another training ({told}).\n"
                f"Train as it was begun, name another folder with --out, or remove that file."
            )
        return kept

    def load(self) -> dict | None:
        """Return what was kept, or None. From now on the time counts. InputError: as `read`."""
        self._started = time.perf_counter()
        if not self.path.is_file():
            return None
        kept = self.read()
        self._seconds = kept["seconds"]
        return kept

    def save(self, state: Mapping) -> None:
        """Keep what an epoch left: tensors and plain values. The file is whole, or the one before."""
        seconds = self._seconds + time.perf_counter() - self._started
        with whole_file(self.path) as file:
            torch.save({**state, "identity": json.dumps(self.identity), "seconds": seconds}, file)


def _flat(identity: Mapping) -> dict:
    """Return values by name, those of groups (such as settings) too."""
    flat = {}
    for name, value in identity.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return flat
