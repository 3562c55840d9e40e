"""The contract between methods and training, and the classifier that most methods share.

A method is one file in `methods/` (or a class in another package, entry-point group ``mlemiss.methods``).
Every parameter has the runs as its first axis. Shapes: R runs, B batch, M modalities, D features, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..pipeline.errors import InputError
from ..pipeline.stores.masks import TRAIN
from .batches import Batch, Stage
from .data import Blueprint, Clips, Run
from .likelihood import log_posterior
from .networks import Dropout, Encoder, LabelEmbedding, RunRandom
from .settings import FUSIONS, RATES, Rate, Settings

ROWS_AT_ONCE, ROWS_AT_ONCE_GPU = 1 << 13, 1 << 16  # embedded or predicted at a time, over all runs
MOST_PRODUCTS = 1 << 16  # entries of an outer product: more would not fit beside a batch's rows
CONSTANT = 2.0  # last coordinate of an embedding that enters an outer product


class Method(nn.Module):
    """R runs of one method.

    Class attributes: ``fusions`` it can use, ``stages`` in order, ``marginalises`` whether training averages missing
    modalities out (and the choice of marginal matters), ``reconstructs`` whether it reconstructs features (which must
    then stay as they are while it trains), ``modalities`` it looks at (None: all), ``fuses`` whether it
    fuses by those fusions (else it runs once, whatever fusions are asked for), ``reference`` whether it is a row to
    measure others against, ``least_complete`` how many complete training clips it needs, ``replays`` whether a step is
    the same function of tensors in all epochs of a stage, with no value of Python that changes (on a GPU it is recorded
    then, see `fit.Step`), ``rates`` numbers of its own, such as a weight in its loss, which tuning draws.

    Everything `predict` needs beside parameters and buffers stands in ``prepared``: tensors with the runs first.
    Parts are built from a `Blueprint`; only training and `prepare_predictions` may ask for more, and get `Runs`. So a
    method whose tensors are read from a file predicts without training data.
    """

    fusions: ClassVar[tuple[str, ...]] = FUSIONS
    stages: ClassVar[tuple[Stage, ...]] = (Stage(),)
    marginalises: ClassVar[bool] = False
    reconstructs: ClassVar[bool] = False
    modalities: ClassVar[tuple[str, ...] | None] = None
    fuses: ClassVar[bool] = True
    reference: ClassVar[bool] = False
    least_complete: ClassVar[int] = 0
    replays: ClassVar[bool] = False
    rates: ClassVar[Mapping[str, Rate]] = {}

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__()
        self.runs, self.settings, self.fusion = runs, settings, fusion
        self.prepared: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        self._own = {name: self.rate(name) for name in self.rates}  # here already: a step copies nothing to its device

    def rate(self, name: str) -> Tensor:
        """Return a rate of `Settings.RATES` or of the method's own, of each run: [R] on the method's device."""
        if name in self._own:
            return self._own[name]
        if name in self.runs.rates:
            return self.runs.rates[name].float().to(self.runs.device)
        value = self.settings.own.get(name, self.rates[name].default) if name in self.rates else None
        value = getattr(self.settings, name) if value is None else value
        return torch.full([len(self.runs)], torch.nan if value is None else value, device=self.runs.device)

    def dropout(self, purpose: str) -> Dropout:
        """Return dropout at the runs' rate; what it draws depends on each run's seed and the purpose."""
        return Dropout(self.rate("dropout"), self.runs.generators(f"dropout:{purpose}"))

    def begin_epoch(self, stage: Stage, steps: int) -> None:
        """Prepare an epoch of a stage; called before each with the number of steps.

        Where steps are replayed, what they read is copied into its place, and what changes between epochs is a tensor.
        """

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of each run over its own batch, [R]: of -log Q(z | what is observed) by `predict`."""
        return negative_log_likelihood(self.predict(batch.x, batch.observed), batch.label, batch.weight)

    def training_state(self) -> dict:
        """Return what a checkpoint needs beside parameters and buffers: tensors and plain values."""
        return {"random": [module.calls.item() for module in self._random()]}

    def load_training_state(self, state: dict) -> None:
        """Go on from `training_state`."""
        for module, calls in zip(self._random(), state["random"], strict=True):
            module.calls.fill_(calls)

    def _random(self) -> list[RunRandom]:
        return [module for module in self.modules() if isinstance(module, RunRandom)]

    def prepare_predictions(self, lacking: Sequence[bool]) -> None:
        """Fill ``prepared`` with what all predictions share; called when weights have changed, before `predict`.

        lacking: M entries, whether modality m may be missing in what is to be predicted.
        """

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C] from what is observed: x M tensors [R, B, D], observed bool [R, B, M].

        Modalities that are not observed must have been among ``lacking`` of `prepare_predictions`.
        """
        raise NotImplementedError


def main_effects(k: int, M: int) -> Tensor:
    """Return the coordinates of an outer product of M embeddings that involve at most one modality: bool [k^M].

    The last coordinate of each embedding is constant, so these are products with constants.
    """
    learned = torch.arange(k) < k - 1
    count = torch.zeros([k] * M, dtype=torch.long)
    for m in range(M):
        count += learned.view([-1 if axis == m else 1 for axis in range(M)])
    return (count <= 1).flatten()


def check_width(fusion: str, k: int, M: int) -> None:
    """Check that embeddings of width k of M modalities can be fused. InputError: their outer product cannot."""
    if fusion == "outer" and k < 2:
        raise InputError(f"an embedding of width {k} is too narrow for the outer product: expected at least 2.")
    if fusion == "outer" and k**M > MOST_PRODUCTS:
        fits = next(d for d in range(k, 0, -1) if d**M <= MOST_PRODUCTS)
        raise InputError(
            f"the outer product of {M} embeddings of width {k} has {k**M:,} entries (k^M), more than "
            f"{MOST_PRODUCTS:,}.\n"
            + (f"Use --dim {fits} or less (tune: --space dim={fits}), or " if fits > 1 else "Use ")
            + "another --fusion."
        )


class FusionClassifier(Method):
    """An encoder for each modality it looks at and a label embedding, equal for every method that has them.

    With the outer product each embedding ends in a constant and h starts without interactions, so that training
    starts from a model like concatenation's: without, it has to find the main effect of each modality through
    products with the other, and trains worse (docs/choices.md).
    """

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        self._places = [m for m, name in enumerate(runs.modalities) if name in (self.modalities or runs.modalities)]
        k, M = settings.dim, len(self._places)
        check_width(fusion, k, M)
        constant = CONSTANT if fusion == "outer" else None
        self.encoders = nn.ModuleList(
            Encoder(
                *runs.moments[m],
                settings.hidden,
                k,
                runs.generators(f"encoder:{runs.modalities[m]}"),
                self.dropout(runs.modalities[m]),
                constant=constant,
                clamp=settings.clamp,
            )
            for m in self._places
        )
        width = {"addition": k, "concatenation": M * k, "outer": k**M}[fusion]
        at_first = main_effects(k, M) if fusion == "outer" else None
        self.labels = LabelEmbedding(len(runs.classes), width, runs.generators("labels"), at_first)
        self.register_buffer("log_prior", runs.log_prior)
        self.to(runs.device)

    def encode(self, x: Sequence[Tensor], observed: Tensor) -> list[Tensor]:
        """Return an embedding [R, B, k] of each modality that is looked at, arbitrary where not observed."""
        return [encoder(x[m], observed[..., m]) for m, encoder in zip(self._places, self.encoders, strict=True)]

    def classify(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Return log Q(z | all modalities) by equation 4: [R, B, C]."""
        R, B = embeddings[0].shape[:2]
        M = len(embeddings)
        everything = torch.ones(R, B, M, dtype=torch.bool, device=embeddings[0].device)
        more = {"support": [None] * M, "fusion": self.fusion, "patterns": {(True,) * M: B}}
        return log_posterior(embeddings, everything, self.labels(), self.log_prior, **more)


def mean_over_rows(values: Tensor, weight: Tensor) -> Tensor:
    """Return each run's weighted mean over rows of any weight: [R, B], [R, B] to [R]; 0 without.

    Weights are 1 in the mean over an epoch, not in each batch: dividing by their sum would favour scarce rows' batches.
    """
    return (values * weight).sum(-1) / (weight > 0).sum(-1).clamp_min(1)


def negative_log_likelihood(log_probability: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Return each run's mean of -log Q(label) over rows: [R, B, C], [R, B], [R, B] to [R]. See `mean_over_rows`."""
    return -mean_over_rows(log_probability.gather(-1, label[..., None])[..., 0], weight)


def rows_at_once(device: torch.device) -> int:
    """Return how many rows, over all runs, are embedded or predicted at a time."""
    return ROWS_AT_ONCE if device.type == "cpu" else ROWS_AT_ONCE_GPU


def in_blocks(function: Callable[[Tensor], Tensor], rows: Tensor, most: int) -> Tensor:
    """Apply to rows [R, n] in blocks of at most ``most`` rows over all runs, and join along the second axis."""
    block = max(most // rows.shape[0], 1)
    return torch.cat([function(part) for part in rows.split(block, dim=1)], dim=1)


def plan_steps(kind: type[Method], run: Run, segments: int, settings: Settings) -> tuple[int, ...]:
    """Return the steps an epoch of each stage: rows over batch size, rounded up."""
    rows = (int(run.training_clips(stage).sum()) * segments for stage in kind.stages)
    return tuple(-(-n // settings.batch_size) for n in rows)


def rates_of(kind: type[Method], settings: Sequence[Settings]) -> dict[str, Tensor]:
    """Return what `Method.rate` knows of runs with these settings: by name, float64 [R]; NaN for None."""
    common = {name: [getattr(one, name) for one in settings] for name in RATES}
    own = {name: [one.own.get(name, rate.default) for one in settings] for name, rate in kind.rates.items()}
    every = (common | own).items()
    return {
        n: torch.tensor([torch.nan if v is None else v for v in values], dtype=torch.float64) for n, values in every
    }


def check_run(kind: type[Method], clips: Clips, run: Run, name: str) -> None:
    """Check that a run suits the method called ``name``. InputError: too few clips, or none with a modality."""
    complete, trained = int(run.complete.sum()), run.part == TRAIN
    labelled = "" if run.labelled.all() else f"{int((trained & run.labelled).sum())} with a label, "
    for stage in kind.stages:
        chosen = run.training_clips(stage)
        classes = len(np.unique(clips.label[chosen & run.labelled]))
        if (stage.selects and classes < 2) or complete < kind.least_complete:
            needs = "training clips of at least two classes"
            if kind.least_complete:
                needs += f" and at least {kind.least_complete} complete ones"
            raise InputError(
                f"{name} cannot train its {stage.name} with {run.spec.name}: expected {needs}, found "
                f"{int(chosen.sum())} of {classes} classes that it can use ({int(trained.sum())} training clips, "
                f"{labelled}{complete} complete).\n"
                f"{clips.remedy}; or use a method that trains on incomplete clips."
            )
        for m, modality in enumerate(clips.modalities):
            if modality in (kind.modalities or clips.modalities) and not (chosen & run.observed[:, m]).any():
                raise InputError(
                    f"{name} cannot train its {stage.name} with {run.spec.name}: expected training clips with "
                    f"{modality}, found none.\n{clips.remedy}."
                )
