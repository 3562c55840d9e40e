"""What a method is: the contract `fit.py` trains and evaluates by, and the classifier most methods share.

A method is one file in `methods/` (or a class in another package, entry-point group ``mlemiss.methods``).
Every parameter has the runs as its first axis. Shapes: R runs, B batch, M modalities, D features, C classes.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..pipeline.errors import InputError
from .batches import Batch, Stage
from .data import Blueprint
from .likelihood import log_posterior
from .networks import Encoder, LabelEmbedding
from .settings import FUSIONS, Settings

ROWS_AT_ONCE = 8192  # embedded or predicted at a time, over all runs
CONSTANT = 2.0  # last coordinate of an embedding that enters an outer product


class Method(nn.Module):
    """R runs of one method.

    Class attributes: ``fusions`` it can use, ``stages`` in order, ``marginalises`` whether training averages missing
    modalities out (and the choice of marginal matters), ``reconstructs`` whether it reconstructs features (which must
    then stay as they are while it trains), ``modalities`` it looks at (None: all), ``fuses`` whether it
    fuses several (else it runs once, whatever fusions are asked for), ``least_complete`` how many complete training
    clips it needs.

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
    least_complete: ClassVar[int] = 0

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__()
        self.runs, self.settings, self.fusion = runs, settings, fusion
        self.prepared: dict[str, Tensor] = {}

    def begin_epoch(self, stage: Stage, steps: int) -> None:
        """Called before each epoch of a stage with its number of steps."""

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of each run over its own batch: [R]."""
        raise NotImplementedError

    def training_state(self) -> dict:
        """What training end to end goes on from, beside parameters and buffers: tensors and plain values."""
        return {}

    def load_training_state(self, state: dict) -> None:
        """Go on from `training_state`."""

    def prepare_predictions(self, lacking: Sequence[bool]) -> None:
        """Called when weights have changed, before `predict`: fill ``prepared`` with what all predictions share.

        lacking: M entries, whether modality m may be missing in what is to be predicted.
        """

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """log-probabilities [R, B, C] from whatever is observed: x M tensors [R, B, D], observed bool [R, B, M].

        Modalities that are not observed must have been among ``lacking`` of `prepare_predictions`.
        """
        raise NotImplementedError


def main_effects(k: int, M: int) -> Tensor:
    """Which coordinates of the outer product of M embeddings involve one modality at most: bool [k^M].

    The last coordinate of each embedding is constant, so these are products with constants.
    """
    learned = torch.arange(k) < k - 1
    count = torch.zeros([k] * M, dtype=torch.long)
    for m in range(M):
        count += learned.view([-1 if axis == m else 1 for axis in range(M)])
    return (count <= 1).flatten()


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
        if fusion == "outer" and k < 2:
            raise InputError(f"an embedding of width {k} is too narrow for the outer product: expected at least 2.")
        constant = CONSTANT if fusion == "outer" else None
        self.encoders = nn.ModuleList(
            Encoder(*runs.moments[m], settings.hidden, k, runs.generators(f"encoder:{runs.modalities[m]}"), constant)
            for m in self._places
        )
        width = {"addition": k, "concatenation": M * k, "outer": k**M}[fusion]
        at_first = main_effects(k, M) if fusion == "outer" else None
        self.labels = LabelEmbedding(len(runs.classes), width, runs.generators("labels"), at_first)
        self.register_buffer("log_prior", runs.log_prior)
        self.to(runs.device)

    def encode(self, x: Sequence[Tensor], observed: Tensor) -> list[Tensor]:
        """An embedding [R, B, k] for each modality it looks at; those of entries not observed mean nothing."""
        return [encoder(x[m], observed[..., m]) for m, encoder in zip(self._places, self.encoders, strict=True)]

    def classify(self, embeddings: Sequence[Tensor]) -> Tensor:
        """log Q(z | all modalities) by equation 4, whatever the embeddings stand for: [R, B, C]."""
        R, B = embeddings[0].shape[:2]
        everything = torch.ones(R, B, len(embeddings), dtype=torch.bool, device=embeddings[0].device)
        nothing = [None] * len(embeddings)
        return log_posterior(embeddings, everything, self.labels(), self.log_prior, nothing, self.fusion)


def negative_log_likelihood(log_probability: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """-log Q(label), each run's mean over its own rows: [R, B, C], [R, B] and weight [R, B] to [R]; 0 without rows."""
    of_label = log_probability.gather(-1, label[..., None])[..., 0]
    return -(of_label * weight).sum(-1) / weight.sum(-1).clamp_min(1e-12)


def in_blocks(function: Callable[[Tensor], Tensor], rows: Tensor, most: int) -> Tensor:
    """Apply to rows [R, n] in blocks of at most ``most`` rows over all runs, and join along the second axis."""
    block = max(most // rows.shape[0], 1)
    return torch.cat([function(part) for part in rows.split(block, dim=1)], dim=1)
