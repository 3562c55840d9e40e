"""Training end to end: a backbone for each modality in place of the cached features; everything else is as for these.

The same methods, encoders, label embedding and loop train; what a method is given as features comes from a network
that is trained with it (`trunks.Trunk`), from frames and log-Mels of a media store. One run at a time.

Shapes: M modalities, S segments a clip, D features, B batch, n rows. A row is a segment: clip * S + s.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..pipeline.backbones import Weights, load_network
from ..pipeline.errors import InputError
from ..pipeline.masks import TRAIN
from .checkpoint import Checkpoint
from .data import Clips, Run, Runs, generator
from .media import MediaReader
from .method import Stage
from .order import Strata
from .trunks import Trunk, averaging_statistics

READ_ROWS = 256  # read and computed at a time where nothing is trained
CALIBRATION_STEPS = 32  # batches that set batch norms and standardisation before a network is trained


@dataclass(frozen=True)
class EndToEnd:
    """What training end to end takes beside `Settings`.

    backbone: a name as for --features. init: its weights at first. frozen: it is not trained. augment: frames and
    spectrograms are changed at random in training. backbone_lr: learning rate of the backbones. micro_batch: segments
    computed at once. precision: fp32 or bf16 (mixed). workdir: where checkpoints are kept, or None.
    InputError: a value out of range.
    """

    backbone: str
    init: Weights
    frozen: bool = False
    augment: bool = False
    backbone_lr: float = 1e-4
    micro_batch: int = 64
    precision: str = "fp32"
    workdir: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.backbone_lr < float("inf"):
            raise InputError(f"backbone lr {self.backbone_lr} is out of range: expected more than 0.")
        if self.micro_batch < 1:
            raise InputError(f"micro batch {self.micro_batch} is out of range: expected 1 or more.")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"--precision {self.precision!r}: expected fp32 or bf16.")
        if self.frozen and self.augment:
            raise InputError("--frozen and --augment exclude each other.\nLeave out one of the two.")

    def describe(self) -> dict:
        """Plain values that results depend on; how many segments are computed at once is not among them."""
        described = asdict(self) | {"init": self.init.name}
        return {name: value for name, value in described.items() if name not in ("micro_batch", "workdir")}


class MediaClips(Clips):
    """The clips of a media store, for a backbone that is trained over them. InputError: no media store."""

    def __init__(self, store, options: EndToEnd):
        super().__init__(store)
        self.reader, self.options = MediaReader(self), options

    def describe(self) -> dict:
        weights = {"weights": self.options.init.name, "weights_hash": self.network_hash}
        return {"features": self.options.backbone, "end_to_end": self.options.describe()} | weights

    @cached_property
    def network_hash(self) -> str:
        """Of the backbone's weights at first."""
        return load_network(self.options.backbone, self.options.init).weights_hash

    def load(self, device: torch.device) -> "MediaDataset":
        return MediaDataset(self, device)


class MediaDataset:
    """Stands in for `data.Dataset`: labels on a device, media read when they are needed."""

    def __init__(self, clips: MediaClips, device: torch.device):
        self.clips, self.device, self.segments = clips, device, clips.reader.segments
        self.label = torch.as_tensor(clips.label, device=device)

    def check_finite(self, run: Run) -> None:
        """Media are: frames are integers, and the pipeline checks log-Mels."""

    def runs(self, runs: Sequence[Run], rows: Callable[[np.ndarray], np.ndarray]) -> "MediaRuns":
        return MediaRuns(self, runs, rows)


class MediaRuns(Runs):
    """One run whose features come from trunks."""

    costly = True

    def __init__(self, dataset: MediaDataset, runs: Sequence[Run], rows: Callable[[np.ndarray], np.ndarray]):
        if len(runs) != 1:
            raise ValueError(f"end to end one run is trained at a time, found {len(runs)}.")
        self.options, self.reader = dataset.clips.options, dataset.clips.reader
        self.modalities, self.device, self.seeds = dataset.clips.modalities, dataset.device, [runs[0].spec.seed]
        self._ready: tuple[Tensor, dict[int, Future]] | None = None  # rows of the batch that comes, and its media
        self._augment = generator(self.seeds[0], "augment")
        self._rows = rows
        super().__init__(dataset, runs, rows)

    @cached_property
    def trunks(self) -> nn.ModuleList:
        o = self.options
        how = {"frozen": o.frozen, "augment": o.augment, "micro_batch": o.micro_batch, "precision": o.precision}
        trunks = [Trunk(name, load_network(o.backbone, o.init), **how) for name in self.modalities]
        return nn.ModuleList(trunks).to(self.device)

    def trained_parameters(self) -> list[dict]:
        if self.options.frozen:
            return []
        return [{"params": list(self.trunks.parameters()), "lr": self.options.backbone_lr}]

    def order(self, stage: Stage, steps: int, batch_size: int) -> "MediaOrder":
        return MediaOrder(self, stage, batch_size)

    def checkpoint(self, stage: Stage) -> Checkpoint | None:
        """A file of this run's in the folder that `EndToEnd.workdir` names."""
        if self.options.workdir is None:
            return None
        run, clips = self.runs[0], self.dataset.clips
        names = {"store": clips.store.fingerprint, "run": run.spec.name, "split": run.spec.split, "stage": stage.name}
        identity = names | self.options.describe() | self.identity
        stem = "-".join([self.identity.get("method", "run"), self.identity.get("fusion", ""), run.spec.name, stage.name])
        name = "".join(c if c.isalnum() else "_" for c in stem)
        return Checkpoint(self.options.workdir / f"{name}.pt", identity, self.device)

    identity: dict = {}  # what is trained: method, fusion and settings, as `fit` says

    def gather_modality(self, m: int, rows: Tensor, observed: Tensor) -> Tensor:
        """Modality m of rows [1, n]: float32 [1, n, D], NaN where not observed. Only what is observed is computed."""
        seen = observed[0].nonzero()[:, 0]
        trunk = self.trunks[m]
        with torch.set_grad_enabled(torch.is_grad_enabled() and trunk.training and not trunk.frozen):
            if self._ready and self._ready[0] is rows:
                features = self._compute(m, self._ready[1][m].result())
            else:
                wanted = rows[0, seen].cpu().split(READ_ROWS)
                features = torch.cat([self._compute(m, self.reader.read(m, part)) for part in wanted])
        x = torch.full((rows.shape[1], features.shape[1]), torch.nan, device=self.device)
        return x.index_put((seen,), features)[None]

    def _compute(self, m: int, media: Tensor) -> Tensor:
        if self.device.type == "cuda":
            media = media.pin_memory()
        try:
            return self.trunks[m](media, self.device, self._augment)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower():
                raise
            size = min(self.options.micro_batch, len(media))
            raise InputError(
                f"{size} segments at once do not fit into the memory of {self.device} with {self.options.backbone}.\n"
                f"Try --micro-batch {max(size // 2, 1)}: the batch and its gradient stay the same."
            ) from error

    @torch.no_grad()
    def _moments(self, m: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the features as training begins, [1, D] each, of the run's observed training entries.

        Of a frozen network: over all of them, as of cached features. Else over some batches in training mode, which
        also set the running statistics of its batch norms: a network from elsewhere, or a new one, starts with those
        of this data.
        """
        run, trunk = self.runs[0], self.trunks[m]
        rows = self.rows_of(torch.as_tensor(np.flatnonzero(run.observed[:, m] & (run.part == TRAIN)))[None])[0]
        if not self.options.frozen:
            order = torch.randperm(len(rows), generator=generator(run.spec.seed, "calibration"))
            rows = rows.cpu()[order[: CALIBRATION_STEPS * self.options.micro_batch]]
        total = torch.zeros(2, trunk.info.dimension, dtype=torch.float64, device=self.device)
        trunk.train()
        with averaging_statistics([] if self.options.frozen else [trunk]):
            parts = rows.cpu().split(self.options.micro_batch)
            for media in self.reader.ahead([{m: part} for part in parts]):
                found = trunk(media[m].result(), self.device).double()
                total += torch.stack([found.sum(0), found.square().sum(0)]) / len(rows)
        trunk.eval()
        mean, square = total
        std = (square - mean**2).clamp_min(0).sqrt()
        constant = std <= 1e-6 * mean.abs().clamp_min(1e-3)
        return mean.float()[None], std.masked_fill(constant, 1).float()[None]


class MediaOrder:
    """The order of one run's rows, and their media read ahead."""

    def __init__(self, runs: MediaRuns, stage: Stage, batch_size: int):
        run = runs.runs[0]
        self.runs, self.purpose = runs, f"order:{stage.name}"
        trained = run.training_clips(stage.rows)
        self.strata = Strata(run.observed, trained, runs.segments, batch_size, runs.reader.clips_at_once)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Steps of rows and weights, [1, B] each."""
        runs, seed = self.runs, self.runs.seeds[0]
        rows, weights = self.strata.epoch(generator(seed, f"{self.purpose}:{number}"))
        runs._augment = generator(seed, f"augment:{number}")
        observed = torch.as_tensor(runs.runs[0].observed)[rows // runs.segments]  # [steps, B, M]
        places = range(observed.shape[-1])
        wanted = [{m: step[seen[:, m]] for m in places} for step, seen in zip(rows, observed, strict=True)]
        for step, weight, media in zip(rows, weights, runs.reader.ahead(wanted), strict=True):
            step, weight = step[None].to(runs.device), weight[None].to(runs.device)
            runs._ready = (step, media)
            yield step, weight
        runs._ready = None
