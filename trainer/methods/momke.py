"""MoMKE: a mixture of modality knowledge experts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..batches import Batch, Stage
from ..data import Blueprint
from ..layers import OwnFusion, Perceptron, RunLayerNorm, blank
from ..method import negative_log_likelihood
from ..settings import Settings


class KnowledgeExpert(nn.Module):
    """Blocks of one hidden layer each, added to their input and normalised after: [R, n, d] to [R, n, d]."""

    def __init__(self, blocks: Sequence[Perceptron], runs: int, width: int):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norms = nn.ModuleList(RunLayerNorm(runs, width) for _ in blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [R, n, d] to [R, n, d]."""
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = norm(x + block(x))
        return x


class KnowledgeExperts(OwnFusion):
    """MoMKE: experts learn one modality each, then all experts see every modality and a soft router mixes them.

    Objective: first, each modality through its own expert, the mean over the rows that have it of the cross-entropy,
    summed over modalities; then every modality through all experts, mixed by its own router of the token, the mean over
    all rows of the cross-entropy. E epochs each.
    Source: Xu, Jiang, Liang, "Leveraging Knowledge of Modality Experts for Incomplete Multimodal Learning", ACM
    Multimedia 2024 (repository wxxv/MoMKE).
    What differs: a row is one segment, so a token has no others in time to attend to, and an expert has 2 blocks of one
    hidden layer, normalised (there 4 of attention over time, of width 256, not normalised). Dropout by the settings
    (there 0.5), optimiser and epochs as for every method.
    """

    replays = True
    DEPTH = 2
    stages = (
        Stage("experts", "experts_loss", parts=("maps", "experts", "heads"), selects=False, hides=False),
        Stage("mixture", parts=("maps", "experts", "routers", "join", "head")),
    )

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        d, M, C = self.width, len(runs.modalities), len(runs.classes)
        self.maps = self.tokens()
        self.experts = nn.ModuleList(
            KnowledgeExpert(
                [self.perceptron(d, d, f"expert:{name}:{depth}") for depth in range(self.DEPTH)], len(runs), d
            )
            for name in runs.modalities
        )
        self.heads = nn.ModuleList(self.linear(d, C, f"head:{name}") for name in runs.modalities)
        self.routers = nn.ModuleList(self.perceptron(d, M, f"router:{name}") for name in runs.modalities)
        self.join = self.linear(M * d, M * d, "join")
        self.head = self.linear(M * d, C, "head")
        self.to(runs.device)

    def _tokens(self, x: Sequence[Tensor], observed: Tensor) -> list[Tensor]:
        return [part(x[m], observed[..., m]) for m, part in enumerate(self.maps)]

    def experts_loss(self, batch: Batch) -> Tensor:
        """Return the sum over modalities of the own expert's mean loss: [R]."""
        total = torch.zeros(len(self.runs), device=self.runs.device)
        for m, token in enumerate(self._tokens(batch.x, batch.observed)):
            log_probability = self.heads[m](self.experts[m](token)).log_softmax(-1)
            weight = batch.weight * batch.observed[..., m]
            total = total + negative_log_likelihood(log_probability, batch.label, weight)
        return total

    def logits(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return scores of the classes [R, B, C]."""
        each = self._tokens(x, observed)
        routed = [router(token) for router, token in zip(self.routers, each, strict=True)]
        share = torch.stack(routed, 2).flatten(1, 2).softmax(-1)
        tokens = torch.stack(each, 2).flatten(1, 2)  # [R, B * M, d]: row after row, as whatever is random is drawn
        mixed = sum(expert(tokens) * share[..., m, None] for m, expert in enumerate(self.experts))
        joined = torch.cat(blank(mixed.unflatten(1, (-1, len(each))).unbind(2), observed), -1)
        return self.head(joined + self.join(joined).relu())
