"""Train one run with its backbones: `fit.Training` with checkpoints and a learning rate for the backbones."""

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from ..batches import Stage
from ..data import Run, RunResult
from ..fit import RunAdamW, Selection, Step, Training
from ..method import Method, rates_of
from ..settings import Settings
from .checkpoint import Checkpoint, Checkpoints
from .end_to_end import MediaBatches, MediaDataset, MediaRuns, within_memory


class OutOfTimeError(Exception):
    """The time for training is up. What was trained is kept."""


class BestTrunks(Selection):
    """Keeps the best epoch's backbones too, where they are trained."""

    def __init__(self, method: Method, runs: MediaRuns):
        super().__init__(method, runs)
        self.best_trunks = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        if not self.runs.features_change:
            return {}
        return {name: t.detach().to("cpu", copy=True) for name, t in self.runs.trunks.state_dict().items()}

    def keep_more(self, better: Tensor) -> None:
        """Keep the backbones of the only run where it got better."""
        if bool(better.all()):
            self.best_trunks = self._copy()

    def restore(self) -> None:
        """Give the method and the backbones the best epoch's weights."""
        super().restore()
        if self.best_trunks:
            self.runs.trunks.load_state_dict(self.best_trunks)

    def state(self) -> dict:
        """Return what a checkpoint keeps of the selection."""
        return super().state() | {"best_trunks": self.best_trunks}

    def load_state(self, state: dict) -> None:
        """Go on from a checkpoint."""
        super().load_state(state)
        self.best_trunks = state["best_trunks"]


class MediaTraining(Training):
    """The training of one run with its backbones; keeps a checkpoint after every epoch where there is a folder."""

    from_memory = False

    def __init__(
        self,
        method: Method,
        name: str,
        on_epoch: Callable[[int], None],
        checkpoints: Checkpoints | None = None,
        deadline: float | None = None,
    ):
        super().__init__(method, name, on_epoch)
        self.checkpoints, self.deadline = checkpoints, deadline
        self._checkpoint: Checkpoint | None = None  # of the stage

    def more_groups(self) -> list[dict]:
        """Return the backbones' parameters with a learning rate of their own, where they are trained."""
        if self.runs.options.frozen:
            return []
        return [{"params": list(self.runs.trunks.parameters()), "lr": self.runs.options.backbone_lr}]

    def train_epoch(self, step: Step, batches: MediaBatches, epoch: int) -> Tensor:
        """Take every step of an epoch with the backbones in training mode; return the sum of losses [1]."""
        self.runs.trunks.train()
        with self.runs.randomness(f"{batches.stage.name}:{epoch}"):
            total = super().train_epoch(step, batches, epoch)
        self.runs.trunks.eval()
        return total

    def selection(self) -> BestTrunks:
        """Return what keeps the best epoch's weights."""
        return BestTrunks(self.method, self.runs)

    def resume(self, stage: Stage, optimiser: RunAdamW, selection: Selection | None) -> int:
        """Take up a checkpoint, if there is one, and return the epoch to begin with.

        InputError: the file is damaged, or of another training.
        """
        self._checkpoint = self.checkpoints and self.checkpoints.of(self.runs.seeds[0], stage.name)
        kept = self._checkpoint and self._checkpoint.load()
        if not kept:
            return 1
        self.method.load_state_dict(kept["method"])
        if kept["trunks"]:
            self.runs.trunks.load_state_dict(kept["trunks"])
        self.method.load_training_state(kept["training"])
        optimiser.load_state_dict(kept["optimiser"])
        if selection:
            selection.load_state(kept["selection"])
        (result,) = self.results
        result.val_accuracy, result.test_accuracy = kept["curves"]
        result.best_epoch, result.total_epochs = kept["best_epoch"], kept["total_epochs"]
        result.seconds += kept["seconds"]
        return kept["epoch"] + 1

    def save(self, stage: Stage, epoch: int, optimiser: RunAdamW, selection: Selection | None) -> None:
        """Keep what an epoch left, for `resume`. OutOfTimeError: the deadline has passed."""
        if not self._checkpoint:
            return
        (result,) = self.results
        self._checkpoint.save(
            {
                "epoch": epoch,
                "method": self.method.state_dict(),
                "trunks": self.runs.trunks.state_dict() if self.runs.features_change else {},
                "training": self.method.training_state(),
                "optimiser": optimiser.state_dict(),
                "selection": selection.state() if selection else None,
                "curves": [result.val_accuracy, result.test_accuracy],
                "best_epoch": result.best_epoch,
                "total_epochs": result.total_epochs,
            }
        )
        if self.deadline is not None and epoch < self.settings.epochs and time.monotonic() > self.deadline:
            raise OutOfTimeError


def fit_end_to_end(
    kind: type[Method],
    dataset: MediaDataset,
    runs: Sequence[Run],
    settings: Settings,
    fusion: str,
    *,
    name: str = "method",
    checkpoints: Checkpoints | None = None,
    deadline: float | None = None,
    on_epoch: Callable[[int], None] = lambda clips: None,
) -> list[RunResult]:
    """Train the only run of a method with its backbones; arguments as for `fit.fit`.

    checkpoints: where to keep what a killed training goes on from. deadline: a time of `time.monotonic` after which no
    epoch begins, where there are checkpoints.

    Raises:
        InputError: a loss is not finite, a checkpoint is of another training, or memory does not suffice.
        OutOfTimeError: the deadline has passed.
    """
    options = dataset.clips.options
    rates = rates_of(kind, [settings])
    method = kind(dataset.runs(runs, kind.stages[-1], rates, kind.modalities), settings, fusion)
    with within_memory(options, settings.batch_size, dataset.device):
        return MediaTraining(method, name, on_epoch, checkpoints, deadline).run()
