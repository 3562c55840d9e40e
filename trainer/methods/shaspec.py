"""ShaSpec: shared and specific features."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..data import Blueprint
from ..layers import OwnFusion, blank
from ..method import negative_log_likelihood
from ..networks import Encoder
from ..settings import Rate, Settings


class SharedSpecific(OwnFusion):
    """ShaSpec: shared features stand in for the missing modalities, specific ones add what is a modality's own.

    Objective: the mean over all training rows of the cross-entropy; plus ``alignment`` times the mean absolute
    difference of shared features of two observed modalities, over pairs and rows; plus ``specific`` times the
    cross-entropy of telling from specific features which modality they are of.
    Source: Wang, Chen, Ma, Avery, Hull, Carneiro, "Multi-modal Learning with Missing Modality via Shared-Specific
    Feature Modelling", CVPR 2023 (arXiv 2307.14126, repository billhhh/ShaSpec); weights as tuned there.
    What differs: the shared encoder is one hidden layer behind a linear map of each modality, since widths differ, and
    specific encoders are those of every method. An observed modality is a linear map of both features plus the shared
    ones; for a missing one the mean of the observed shared ones stands. A linear layer over all of them classifies. The
    task is classification only; optimiser and epochs as for every method.
    """

    replays = True
    rates: ClassVar = {"alignment": Rate(0.1, 0.01, 1.0), "specific": Rate(0.02, 0.002, 0.2)}

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        d, M = self.width, len(runs.modalities)
        self.maps = self.tokens()
        self.shared = self.perceptron(d, d, "shared")
        self.specific = nn.ModuleList(
            Encoder(
                *runs.moments[m],
                settings.hidden,
                d,
                runs.generators(f"specific:{name}"),
                self.dropout(f"specific:{name}"),
                clamp=settings.clamp,
            )
            for m, name in enumerate(runs.modalities)
        )
        self.residual = nn.ModuleList(self.linear(2 * d, d, f"residual:{name}") for name in runs.modalities)
        self.which = self.linear(d, M, "which modality")
        self.head = self.linear(M * d, len(runs.classes), "head")
        self.to(runs.device)

    def _features(self, x: Sequence[Tensor], observed: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return shared and specific features, M tensors [R, B, d] each, arbitrary but finite where not observed."""
        shared = [self.shared(part(x[m], observed[..., m])) for m, part in enumerate(self.maps)]
        return shared, [part(x[m], observed[..., m]) for m, part in enumerate(self.specific)]

    def _fuse(self, shared: Sequence[Tensor], specific: Sequence[Tensor], observed: Tensor) -> Tensor:
        mean = sum(blank(shared, observed)) / observed.sum(-1, keepdim=True).clamp_min(1)
        joined = [
            torch.where(observed[..., m, None], part(torch.cat([r, s], -1)) + r, mean)
            for m, (part, r, s) in enumerate(zip(self.residual, shared, specific, strict=True))
        ]
        return self.head(torch.cat(joined, -1))

    def logits(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return scores of the classes [R, B, C]."""
        return self._fuse(*self._features(x, observed), observed)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss with alignment and the modalities' classification: [R]."""
        shared, specific = self._features(batch.x, batch.observed)
        counted = batch.observed * batch.weight[..., None]  # [R, B, M]
        apart = torch.zeros_like(counted[:, 0, 0])
        pairs = apart.clone()
        for m, n in itertools.combinations(range(len(shared)), 2):
            both = counted[..., m] * batch.observed[..., n]
            apart = apart + ((shared[m] - shared[n]).abs().mean(-1) * both).sum(-1)
            pairs = pairs + both.sum(-1)
        told = torch.stack([self.which(s).log_softmax(-1)[..., m] for m, s in enumerate(specific)], -1)
        told = -(told * counted).sum((1, 2)) / counted.sum((1, 2)).clamp_min(1e-12)
        log_probability = self.finished(self._fuse(shared, specific, batch.observed), batch.observed)
        classified = negative_log_likelihood(log_probability, batch.label, batch.weight)
        return classified + self.rate("alignment") * apart / pairs.clamp_min(1e-12) + self.rate("specific") * told
