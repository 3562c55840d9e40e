"""SimMLM: experts of one modality each, a gate, and more modalities never worse than fewer."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..batches import Batch, Stage
from ..data import Blueprint
from ..layers import OwnFusion, blank
from ..method import mean_over_rows, negative_log_likelihood
from ..networks import Encoder, RunRandom
from ..settings import Rate, Settings


class ModalityExperts(OwnFusion):
    """SimMLM: a gated mixture of one expert a modality, trained so that more modalities are not worse than fewer.

    Objective: first, each expert alone, the mean over the rows that have its modality of the cross-entropy, summed over
    experts; then all together, the mean over all rows of the cross-entropy plus ``ranking`` times relu(cross-entropy -
    cross-entropy with one of the observed modalities less, drawn in each step). E epochs each.
    Source: Li and others, "SimMLM: A Simple Framework for Multi-modal Learning with Missing Modality", ICCV 2025 (arXiv
    2507.19264), and its code in SimBaMM (TillmannRheude/simple_mml_baseline).
    What differs: an expert is the encoder of every method with a linear layer for the classes' scores, which the gate
    weighs by a softmax over what is observed; the gate is one hidden layer over all embeddings, zero where missing. The
    two nested sets are what a row has and one modality less. Optimiser and epochs as for every method.
    """

    replays = True
    stages = (
        Stage("experts", "experts_loss", parts=("experts", "heads"), selects=False, hides=False),
        Stage("mixture"),
    )
    rates: ClassVar = {"ranking": Rate(0.1, 0.01, 1.0)}

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        M = len(runs.modalities)
        self.experts = nn.ModuleList(
            Encoder(
                *runs.moments[m],
                settings.hidden,
                self.width,
                runs.generators(f"expert:{name}"),
                self.dropout(f"expert:{name}"),
                clamp=settings.clamp,
            )
            for m, name in enumerate(runs.modalities)
        )
        self.heads = nn.ModuleList(self.linear(self.width, len(runs.classes), f"head:{n}") for n in runs.modalities)
        self.gate = self.perceptron(M * self.width, M, "gate")
        self.draws = RunRandom(runs.generators("one less"))
        self.to(runs.device)

    def _embed(self, x: Sequence[Tensor], observed: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return embeddings, M tensors [R, B, d], and each expert's scores [R, B, M, C]."""
        embeddings = [expert(x[m], observed[..., m]).relu() for m, expert in enumerate(self.experts)]
        return embeddings, torch.stack([head(e) for head, e in zip(self.heads, embeddings, strict=True)], 2)

    def _mix(self, embeddings: Sequence[Tensor], scores: Tensor, observed: Tensor) -> Tensor:
        gate = self.gate(torch.cat(blank(embeddings, observed), -1))
        share = gate.masked_fill(~observed, torch.finfo(gate.dtype).min).softmax(-1)  # finite with nothing observed
        return (scores * share[..., None]).sum(2)

    def logits(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return scores of the classes [R, B, C]."""
        return self._mix(*self._embed(x, observed), observed)

    def experts_loss(self, batch: Batch) -> Tensor:
        """Return the sum over modalities of each expert's mean loss: [R]."""
        _, scores = self._embed(batch.x, batch.observed)
        log_probability = scores.log_softmax(-1)
        return sum(
            negative_log_likelihood(log_probability[:, :, m], batch.label, batch.weight * batch.observed[..., m])
            for m in range(scores.shape[2])
        )

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of the mixture and of its ranking: [R]."""
        embeddings, scores = self._embed(batch.x, batch.observed)
        observed = batch.observed
        drawn = self.draws.uniform(*observed.shape[1:])  # [R, B, M]
        hidden = torch.zeros_like(observed).scatter(-1, drawn.masked_fill(~observed, -1).argmax(-1, keepdim=True), True)
        fewer = observed & ~(hidden & (observed.sum(-1, keepdim=True) > 1))
        more, less = (
            self._mix(embeddings, scores, known).log_softmax(-1).gather(-1, batch.label[..., None])[..., 0]
            for known in (observed, fewer)
        )
        ranked = -more + self.rate("ranking")[:, None] * (less - more).relu()
        return mean_over_rows(ranked, batch.weight)
