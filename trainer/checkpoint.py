"""What a killed training goes on from: everything that an epoch leaves behind, in a file of its own."""

import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..pipeline.errors import InputError

if TYPE_CHECKING:
    from .fit import RunResult, Selection
    from .method import Method

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoints:
    """Where the runs of one cell keep theirs, and what these are of: plain values."""

    folder: Path
    identity: Mapping

    def of(self, seed: int, stage: str, device: torch.device) -> "Checkpoint":
        """One run's of one stage."""
        name = "".join(c if c.isalnum() else "-" for c in stage)
        return Checkpoint(
            self.folder / f"seed{seed}-{name}.pt", {**self.identity, "seed": seed, "stage": stage}, device
        )

    def remove(self) -> None:
        """The cell is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Checkpoint:
    """One stage of one run, kept after every epoch.

    identity: plain values that say what is trained and how; a file of another identity is refused. What is random in
    an epoch must depend on its number, or on a generator that the method keeps (`Method.training_state`).
    """

    def __init__(self, path: Path, identity: Mapping, device: torch.device):
        self.path, self.device = path, device
        self.identity = json.loads(json.dumps(dict(identity) | {"schema": SCHEMA}, sort_keys=True))

    def load(
        self, method: "Method", optimiser: torch.optim.Optimizer, selection: "Selection | None", results: list
    ) -> int:
        """Take up what was kept, if anything; returns the epoch to go on with, 1 where nothing was.

        InputError: the file is damaged, or of another training.
        """
        if not self.path.is_file():
            return 1
        try:
            kept = torch.load(self.path, map_location=self.device, weights_only=True)
            identity = json.loads(kept["identity"])
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"the checkpoint {self.path} cannot be read ({type(error).__name__}).\nRemove it to begin anew."
            ) from None
        if identity != self.identity:
            names = sorted(n for n in identity.keys() | self.identity.keys() if identity.get(n) != self.identity.get(n))
            told = "; ".join(f"{n}: {identity.get(n)} there, {self.identity.get(n)} here" for n in names[:3])
            raise InputError(
                f"the checkpoint {self.path} is of another training ({told}).\n"
                f"Train as it was begun, name another folder with --out, or remove that file."
            )
        method.load_state_dict(kept["method"])
        method.runs.trunks.load_state_dict(kept["trunks"])
        method.load_training_state(kept["training"])
        optimiser.load_state_dict(kept["optimiser"])
        if selection is not None:
            selection.load_state(kept["selection"])
        for result, curve in zip(results, kept["results"], strict=True):
            result.val_accuracy, result.test_accuracy = curve["val"], curve["test"]
            result.best_epoch, result.total_epochs = curve["best"], curve["epochs"]
        return kept["epoch"] + 1

    def save(
        self,
        epoch: int,
        method: "Method",
        optimiser: torch.optim.Optimizer,
        selection: "Selection | None",
        results: "list[RunResult]",
    ) -> None:
        """Keep what the epoch left; the file is whole or the one before."""
        curves = [
            {"val": r.val_accuracy, "test": r.test_accuracy, "best": r.best_epoch, "epochs": r.total_epochs}
            for r in results
        ]
        kept = {
            "identity": json.dumps(self.identity),
            "epoch": epoch,
            "method": method.state_dict(),
            "trunks": method.runs.trunks.state_dict(),
            "training": method.training_state(),
            "optimiser": optimiser.state_dict(),
            "selection": selection.state() if selection else None,
            "results": curves,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".partial")
        torch.save(kept, temporary)
        temporary.replace(self.path)
