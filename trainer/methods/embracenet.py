"""EmbraceNet."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..data import Blueprint
from ..layers import OwnFusion, blank
from ..method import negative_log_likelihood
from ..networks import Encoder, RunRandom
from ..settings import Settings


class EmbraceNet(OwnFusion):
    """EmbraceNet: each coordinate of the fused embedding is one of the observed modalities', drawn at random.

    Objective: the mean over all training rows of the cross-entropy, of embeddings drawn anew in each step: each
    coordinate from one of the row's observed modalities, all alike probable.
    Source: Choi, Lee, "EmbraceNet: A robust deep learning architecture for multimodal classification", Information
    Fusion 51, 2019 (arXiv 1904.09078, repository idearibosome/embracenet).
    What differs: predictions are of the drawn embedding's expectation, the mean over what is observed (there drawn as
    well), so that they are the same each time. Docking layers are the encoders of every method with a rectified
    embedding of ``Settings.hidden`` (there 1024); the terminal network is linear; no modalities are hidden beside those
    that are missing; optimiser and epochs as for every method.
    """

    replays = True

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        width = settings.hidden
        self.docking = nn.ModuleList(
            Encoder(
                *runs.moments[m],
                width,
                width,
                runs.generators(f"docking:{name}"),
                self.dropout(name),
                clamp=settings.clamp,
            )
            for m, name in enumerate(runs.modalities)
        )
        self.draws = RunRandom(runs.generators("embrace"))
        self.head = self.linear(width, len(runs.classes), "head")
        self.to(runs.device)

    def _docked(self, x: Sequence[Tensor], observed: Tensor) -> list[Tensor]:
        docked = [part(x[m], observed[..., m]).relu() for m, part in enumerate(self.docking)]
        return blank(docked, observed)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of drawn embeddings: [R]."""
        docked, observed = self._docked(batch.x, batch.observed), batch.observed
        drawn = self.draws.uniform(observed.shape[1], docked[0].shape[-1])  # [R, B, d]
        count = observed.sum(-1, keepdim=True)
        chosen = torch.minimum((drawn * count).floor(), count - 1)  # which of a row's observed ones: [R, B, d]
        place = observed.cumsum(-1) - 1
        embraced = sum(e * (chosen == place[..., m, None]) for m, e in enumerate(docked))
        log_probability = self.finished(self.head(embraced), observed)
        return negative_log_likelihood(log_probability, batch.label, batch.weight)

    def logits(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return scores of the classes [R, B, C] from the mean over what is observed."""
        count = observed.sum(-1, keepdim=True).clamp_min(1)
        return self.head(sum(self._docked(x, observed)) / count)
