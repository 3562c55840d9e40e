"""Training end to end: a backbone for each modality in place of the cached features; everything else is as for these.

The same methods, encoders, label embedding and loop train; what a method is given as features comes from a network
that is trained with it (`trunks.Trunk`), from frames and log-Mels of a media store. One run at a time.

Shapes: M modalities, S segments a clip, D features, B batch, n rows. A row is a segment: clip * S + s.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ...pipeline.console import say
from ...pipeline.encoders import Weights, check_precision, round_products
from ...pipeline.encoders.images import Backbone
from ...pipeline.errors import InputError, out_of_memory
from ...pipeline.stores.masks import TRAIN
from ...pipeline.stores.store import FeatureStore
from ..batches import Batch, EpochOrder, Stage, Strata, generator, rows_of
from ..data import NO_RATES, Clips, Run, Runs, exact_type, usable_deviation
from ..method import Method
from ..settings import Settings
from .media import MediaReader
from .trunks import Trunk, averaging_statistics

READ_ROWS = 256  # read and computed at a time where nothing is trained
CALIBRATION_STEPS = 32  # micro-batches that set batch norms and standardisation before a network is trained


@dataclass(frozen=True)
class EndToEnd:
    """The options of training end to end, beside `Settings`.

    backbone: a name as for --features. init: its weights at first, the same in every run. frozen: it is not trained.
    augment: frames and spectrograms are changed at random in training. backbone_lr: learning rate of the backbones.
    micro_batch: most segments computed at once. precision: fp32, tf32 or bf16 (mixed). compiled: by torch.compile.
    InputError: a value out of range.
    """

    backbone: str
    init: Weights
    frozen: bool = False
    augment: bool = False
    backbone_lr: float = 1e-4
    micro_batch: int = 64
    precision: str = "fp32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.backbone_lr < float("inf"):
            raise InputError(f"--backbone-lr {self.backbone_lr} is out of range: expected more than 0.")
        if self.micro_batch < 1:
            raise InputError(f"--micro-batch {self.micro_batch} is out of range: expected 1 or more.")
        if self.precision not in ("fp32", "tf32", "bf16"):
            raise InputError(f"--precision {self.precision!r}: expected fp32, tf32 or bf16.")
        compiler = os.environ.get("CXX") or "g++"
        if self.compiled and not shutil.which(compiler):
            raise InputError(
                f"--compile needs a C++ compiler, and there is no {compiler}.\n"
                "Install one, name one in CXX, or leave out --compile."
            )
        if self.frozen and self.augment:
            raise InputError("--frozen and --augment exclude each other.\nLeave out one of the two.")

    def describe(self) -> dict:
        """Return plain values that results depend on."""
        return asdict(self) | {"init": self.init.name}

    def trunk(self, modality: str) -> Trunk:
        """Return one modality's backbone with its first weights."""
        return Trunk(
            modality,
            Backbone(self.backbone, self.init),
            frozen=self.frozen,
            augment=self.augment,
            micro_batch=self.micro_batch,
            precision=self.precision,
            compiled=self.compiled,
        )

    def check(self, settings: Settings, save_weights: bool = False) -> None:
        """Check the other options. InputError: training end to end does not have one of them."""
        if settings.marginal == "batch":
            raise InputError(
                "--marginal batch is not for training end to end: at high missing rates a batch has few complete rows."
                "\nChoose --marginal bank, or full for a small problem."
            )
        if save_weights:
            raise InputError(
                "--save-weights keeps what was trained on cached features, not backbones trained end to end.\n"
                "Leave it out; predictions of the test clips are kept without it."
            )


@contextmanager
def within_memory(options: EndToEnd, batch_size: int, device: torch.device) -> Iterator[None]:
    """Raise an InputError with what to try where memory does not suffice for so many segments a batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError
        if not out_of_memory(error):
            raise
        size = min(options.micro_batch, batch_size)
        smaller = (
            f"Try --micro-batch {size // 2}: the batch stays as large; batch norms then see {size // 2} segments each."
            if size > 1
            else "Try a smaller --batch-size, --precision bf16, or a smaller backbone."
        )
        raise InputError(
            f"{options.backbone} end to end, {size} segments at once, does not fit into the memory of {device}.\n"
            f"{smaller}"
        ) from error


class MediaClips(Clips):
    """The clips of a media store, for a backbone that is trained over them. InputError: no media store."""

    end_to_end = True

    def __init__(self, store: FeatureStore, options: EndToEnd):
        super().__init__(store)
        self.reader, self.options = MediaReader(store, self.kept), options

    def describe(self) -> dict:
        """Return the backbone, its first weights and the options, as results record them."""
        return {
            "features": self.options.backbone,
            "weights": self.options.init.name,
            "weights_hash": self.network_hash,
            "end_to_end": self.options.describe() | {"weights_hash": self.network_hash},
        }

    @cached_property
    def network_hash(self) -> str:
        """Return the hash of the backbone's first weights, and say what is noteworthy of their file."""
        backbone = Backbone(self.options.backbone, self.options.init)
        for note in backbone.notes:
            say(f"note: {note}")
        return backbone.spec["weights_hash"]

    def check(self, kind: type[Method], name: str) -> None:
        """Check that the method called ``name`` can train end to end. InputError: it reconstructs features."""
        if kind.reconstructs:
            raise InputError(
                f"{name} cannot train end to end: it reconstructs features, which change while their network trains.\n"
                f"Train it on cached features (--features), or choose another --method."
            )

    def seen(self, run: Run, modalities: Sequence[str] | None) -> Run:
        """Return the run without the modalities that a method does not look at, so that no network computes them."""
        looked_at = np.array([name in (modalities or self.modalities) for name in self.modalities])
        more = tuple(observed & looked_at for observed in run.more_tests)
        return replace(run, observed=run.observed & looked_at, more_tests=more)

    def load(self, device: torch.device) -> "MediaDataset":
        """Return the clips' labels on a device, and a reader of their media."""
        return MediaDataset(self, device)


class MediaDataset:
    """The counterpart of `data.Dataset`: labels on a device, media read when they are needed."""

    def __init__(self, clips: MediaClips, device: torch.device):
        self.clips, self.device, self.segments = clips, device, clips.reader.segments
        clips.reader.pin = device.type == "cuda"
        check_precision(clips.options.precision, device.type)
        round_products(clips.options.precision == "tf32")
        self.label = torch.as_tensor(clips.label, device=device)

    def check_finite(self, run: Run) -> None:
        """Do nothing: frames are integers, and the pipeline checks log-Mels."""

    def runs(
        self,
        runs: Sequence[Run],
        stage: Stage,
        rates: Mapping[str, Tensor] = NO_RATES,
        modalities: Sequence[str] | None = None,
    ) -> "MediaRuns":
        """Return the only run, for a method that looks at these modalities (None: all); stage: as `Dataset.runs`."""
        return MediaRuns(self, [self.clips.seen(run, modalities) for run in runs], stage, rates)


class MediaRuns(Runs):
    """One run whose features come from trunks. ValueError: more than one."""

    def __init__(
        self, dataset: MediaDataset, runs: Sequence[Run], stage: Stage, rates: Mapping[str, Tensor] = NO_RATES
    ):
        if len(runs) != 1:
            raise ValueError(f"end to end one run is trained at a time, found {len(runs)}.")
        self.options, self.reader = dataset.clips.options, dataset.clips.reader
        self.features_change = not self.options.frozen
        self.modalities, self.device, self.seeds = dataset.clips.modalities, dataset.device, [runs[0].spec.seed]
        self._augment = generator(self.seeds[0], "augment")
        super().__init__(dataset, runs, stage, rates)

    @cached_property
    def trunks(self) -> nn.ModuleList:
        """Return the backbones, one for each modality."""
        return nn.ModuleList(map(self.options.trunk, self.modalities)).to(self.device)

    def batches(self, stage: Stage, steps: int, batch_size: int) -> "MediaBatches":
        """Return what yields the batches of a stage, epoch by epoch."""
        return MediaBatches(self, stage, steps, batch_size)

    def media_batch(self, rows: Tensor, weight: Tensor, hidden: Tensor | None, media: Mapping[int, Future]) -> Batch:
        """Return a batch of rows [1, B] on the host; media of the rows of each modality that it sees were read ahead.

        hidden: bool [1, B, M], what it does not see, or None.
        """
        (patterns,) = self.patterns(rows[None], hidden if hidden is None else hidden[None])
        rows, weight = rows.to(self.device), weight.to(self.device)
        observed = self.observed_rows(rows)
        observed = observed if hidden is None else observed & ~hidden.to(self.device)
        x = []
        for m in range(len(self.modalities)):
            features = self._compute(m, media[m].result())
            x.append(self._in_place(features, observed[0, :, m].nonzero()[:, 0], rows.shape[1]))
        return Batch(rows, x, observed, self.labels(rows), weight, patterns)

    def gather_modality(self, m: int, rows: Tensor, observed: Tensor) -> Tensor:
        """Compute modality m of rows [1, n]: float32 [1, n, D], NaN where not observed, and only what is observed.

        Without gradient in evaluation mode.
        """
        seen = observed[0].nonzero()[:, 0]
        if torch.is_grad_enabled():  # a whole support, in an order in which batch norms see all kinds of clips
            shuffled = torch.randperm(len(seen), generator=generator(self.seeds[0], "support"))
            seen, mode = seen[shuffled.to(seen.device)], self.trunks[m].keeping_statistics()
        else:
            mode = self.trunks[m].evaluating()
        wanted = [{m: part} for part in rows[0, seen].cpu().split(READ_ROWS)]
        with mode:
            features = torch.cat([self._compute(m, media[m].result()) for media in self.reader.ahead(wanted)])
        return self._in_place(features, seen, rows.shape[1])

    def _in_place(self, features: Tensor, seen: Tensor, count: int) -> Tensor:
        """Return the features of the rows ``seen`` among ``count`` rows: [1, count, D], NaN elsewhere."""
        x = torch.full((count, features.shape[1]), torch.nan, device=self.device)
        return x.index_put((seen,), features)[None]

    def _compute(self, m: int, media: Tensor) -> Tensor:
        return self.trunks[m](media, self.device, self._augment)

    @contextmanager
    def randomness(self, purpose: str) -> Iterator[None]:
        """Seed torch's own generators, which a network's dropout draws from, by run and purpose for a while."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(generator(self.seeds[0], f"network:{purpose}").initial_seed())
            yield

    @torch.no_grad()
    def _moments(self, m: int) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the observed training features as training begins, [1, D] each.

        Of a frozen network: over all of them, as of cached features. Else over some batches in training mode, which
        also set the running statistics of its batch norms: a network from elsewhere, or a new one, starts with those
        of this data.
        """
        run, options = self.runs[0], self.options
        with within_memory(options, options.micro_batch, self.device):
            trunk = self.trunks[m]
        rows = self.rows_of(torch.as_tensor(np.flatnonzero(run.observed[:, m] & (run.part == TRAIN)))[None])[0]
        if not len(rows):  # not looked at
            mean = torch.zeros(1, trunk.info.dimension, device=self.device)
            return mean, torch.ones_like(mean)
        if not options.frozen:
            order = torch.randperm(len(rows), generator=generator(run.spec.seed, "calibration"))
            rows = rows[order[: CALIBRATION_STEPS * options.micro_batch]]
        parts = rows.tensor_split(-(-len(rows) // options.micro_batch))
        dtype = exact_type(self.device)
        total = torch.zeros(2, trunk.info.dimension, dtype=dtype, device=self.device)
        trunk.train()
        with (
            within_memory(options, options.micro_batch, self.device),
            self.randomness("calibration"),
            averaging_statistics([] if options.frozen else [trunk]),
        ):
            for media in self.reader.ahead([{m: part} for part in parts]):
                found = trunk(media[m].result(), self.device).to(dtype)
                total += torch.stack([found.sum(0), found.square().sum(0)]) / len(rows)
        trunk.eval()
        mean, square = total
        std = (square - mean**2).clamp_min(0).sqrt()
        return mean.float()[None], usable_deviation(mean, std)[None]


class MediaBatches:
    """The batches of one run, with their media read ahead and their features computed.

    Over frozen backbones the order of rows is that of cached features, so that training is the same; else it is
    `batches.Strata`, each epoch's drawn from the run's seed and its number.
    """

    def __init__(self, runs: MediaRuns, stage: Stage, steps: int, batch_size: int):
        (run,) = runs.runs
        self.runs, self.stage, self.purpose = runs, stage, f"order:{stage.name}"
        trained = run.training_clips(stage)
        if runs.options.frozen:
            self.order = EpochOrder([rows_of(trained, runs.segments)], runs.generators(self.purpose), steps, batch_size)
        else:
            has = np.column_stack([run.observed, run.labelled])
            self.order = Strata(has, trained, runs.segments, batch_size)

    def _steps(self, number: int) -> list[tuple[Tensor, Tensor]]:
        """Draw an epoch: rows and weights of each step, [1, B] on the host."""
        if self.runs.options.frozen:
            drawn = self.order.epoch(number)
            return [(rows[weight > 0][None], weight[weight > 0][None]) for rows, weight in drawn]  # without fillers
        drawn = self.order.epoch(generator(self.runs.seeds[0], f"{self.purpose}:{number}"))
        return [(rows[None], weight[None]) for rows, weight in zip(*drawn, strict=True)]

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, numbered from 1."""
        runs, steps = self.runs, self._steps(number)
        runs._augment = generator(runs.seeds[0], f"augment:{number}")
        observed = torch.as_tensor(runs.runs[0].observed)
        wanted = []
        for n, (rows, weight) in enumerate(steps):
            weight = runs.draws.weighted(self.stage, rows[None], weight[None])[0]
            drawn = runs.draws.hidden(self.stage, number, rows[None], n)
            hidden = None if drawn is None else drawn[0]  # [1, B, M]
            seen = observed[rows[0] // runs.segments]  # [B, M]
            seen = seen if hidden is None else seen & ~hidden[0]
            wanted.append({m: rows[0, seen[:, m]] for m in range(len(runs.modalities))})
            steps[n] = rows, weight, hidden
        for step, media in zip(steps, runs.reader.ahead(wanted), strict=True):
            yield runs.media_batch(*step, media)
