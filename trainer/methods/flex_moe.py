"""Flex-MoE: a bank for what is missing, and sparse experts."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..data import Blueprint
from ..layers import AttentionBlock, OwnFusion
from ..networks import Dropout, RunLinear
from ..settings import Rate, Settings


class SparseExperts(nn.Module):
    """A router and E experts of one hidden layer each, of which each token's best few are mixed: [R, n, d] to as many.

    All experts are computed, side by side in one product, and those that are not chosen weigh nothing. ``scores``
    [R, n, E] are the router's of the latest tokens.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        hidden: int,
        most: int,
        generators: Sequence[torch.Generator],
        dropout: Dropout,
    ):
        super().__init__()
        self.most, self.experts, self.dropout = most, experts, dropout
        self.router = RunLinear(width, experts, generators)
        self.hidden = RunLinear(width, experts * hidden, generators)
        self.output = RunLinear(experts * hidden, width, generators)
        self.scores: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map x [R, n, d] to [R, n, d]."""
        self.scores = self.router(x)
        best = self.scores.topk(self.most, -1)
        share = torch.zeros_like(self.scores).scatter(-1, best.indices, best.values.softmax(-1))
        hidden = self.dropout(self.hidden(x).relu()).unflatten(-1, (self.experts, -1))
        return self.output((hidden * share[..., None]).flatten(-2))


class FlexibleExperts(OwnFusion):
    """Flex-MoE: a learned bank stands in for what is missing, by what is observed, and sparse experts follow.

    Objective: the mean over all training rows of the cross-entropy; plus ``gate`` times the sum of the squared
    coefficient of variation of the experts' shares of complete rows and of the mean cross-entropy between the router's
    scores of incomplete rows and the expert that is set aside for their pattern.
    Source: Yun, Choi, Peng, Wu, Bao, Zhang, Xin, Long, Chen, "Flex-MoE: Modeling Arbitrary Modality Combination via the
    Flexible Mixture-of-Experts", NeurIPS 2024 (repository UNITES-Lab/Flex-MoE): 16 experts, top 4.
    What differs: a row is one segment, so a modality has one token; one block, whose tokens side by side a linear layer
    classifies. The router has no noise, its shares are those before the best are chosen, and incomplete rows' experts
    are not balanced; rows come in the order of every method, not complete ones first. Experts share an output's bias.
    With more than 10 modalities, patterns that agree in the first 10 share a bank entry; with more than 4, several
    patterns an expert. Optimiser and epochs as for every method.
    """

    replays = True
    EXPERTS, CHOSEN, MOST_ENTRIES = 16, 4, 1024
    rates: ClassVar = {"gate": Rate(0.01, 0.001, 0.1)}

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        d, M = self.width, len(runs.modalities)
        self.maps = self.tokens()
        entries = min(2**M, self.MOST_ENTRIES)
        drawn = [torch.randn(entries, M, d, generator=g) * d**-0.5 for g in runs.generators("bank")]
        self.bank = nn.Parameter(torch.stack(drawn))  # [R, pattern, M, d]
        digit = torch.tensor([2**m % self.MOST_ENTRIES for m in range(M)])
        self.register_buffer("digit", digit, persistent=False)
        hidden, dropout = max(settings.hidden // 8, 1), self.dropout("experts")
        experts = SparseExperts(d, self.EXPERTS, hidden, self.CHOSEN, runs.generators("experts"), dropout)
        self.block = AttentionBlock(d, experts, runs.generators("attention"), self.dropout("attention"))
        self.head = self.linear(M * d, len(runs.classes), "head")
        self.to(runs.device)

    def _pattern(self, observed: Tensor) -> Tensor:
        """Return the number of each row's pattern: [R, B]."""
        return (observed * self.digit).sum(-1)

    def logits(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return scores of the classes [R, B, C]."""
        maps = torch.stack([part(x[m], observed[..., m]) for m, part in enumerate(self.maps)], 2)
        of_run = torch.arange(len(self.runs), device=observed.device)[:, None]
        tokens = torch.where(observed[..., None], maps, self.bank[of_run, self._pattern(observed)])
        return self.head(self.block(tokens, torch.ones_like(observed)).flatten(2))

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss with the gate's: [R]."""
        classified = super().loss(batch)
        observed = batch.observed
        feed = self.block.feed
        scores, feed.scores = feed.scores.unflatten(1, observed.shape[1:]), None  # [R, B, M, E]; not kept
        complete = observed.all(-1)
        share = (scores.softmax(-1).mean(2) * (batch.weight * complete)[..., None]).sum(1)  # [R, E]
        share = share / share.sum(-1, keepdim=True).clamp_min(1e-12)
        uneven = self.EXPERTS * share.square().sum(-1) - (share.sum(-1) > 0).to(share.dtype)
        expert = (self._pattern(observed) % self.EXPERTS)[..., None, None].expand_as(scores[..., :1])
        wrong = -scores.log_softmax(-1).gather(-1, expert).mean((-1, -2))  # [R, B]
        weight = batch.weight * ~complete
        wrong = (wrong * weight).sum(-1) / weight.sum(-1).clamp_min(1e-12)
        return classified + self.rate("gate") * (uneven + wrong)
