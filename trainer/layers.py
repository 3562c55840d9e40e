"""Layers with a leading run axis, and the base of methods with a fusion of their own.

Shapes: R runs, B batch, M modalities, T tokens a row, d a token's width, n rows of any kind, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from .data import Blueprint
from .method import Method
from .networks import Dropout, RunLinear, Standardise
from .settings import Settings

HEADS = 4  # of attention; a token's width is a multiple


class RunLayerNorm(nn.Module):
    """R layer normalisations over the last axis: [R, n, d] to [R, n, d]."""

    def __init__(self, runs: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(runs, 1, width))
        self.bias = nn.Parameter(torch.zeros(runs, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [R, n, d]."""
        return torch.addcmul(self.bias, layer_norm(x, x.shape[-1:]), self.weight)


class Perceptron(nn.Module):
    """R networks of one hidden layer, with dropout: [R, n, in] to [R, n, out]."""

    def __init__(self, inputs: int, hidden: int, outputs: int, generators: Sequence[torch.Generator], dropout: Dropout):
        super().__init__()
        self.hidden, self.output = RunLinear(inputs, hidden, generators), RunLinear(hidden, outputs, generators)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map x [R, n, in] to [R, n, out]."""
        return self.output(self.dropout(self.hidden(x).relu()))


class Token(nn.Module):
    """A linear map of one modality's standardised features to a token: [R, n, D] to [R, n, d]; see `Standardise`."""

    def __init__(self, moments: tuple[Tensor, Tensor], width: int, clamp: float, generators: Sequence[torch.Generator]):
        super().__init__()
        self.standardise = Standardise(*moments, clamp)
        self.linear = RunLinear(moments[0].shape[1], width, generators)

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Map x [R, n, D], observed bool [R, n], to [R, n, d]: finite and without influence where not observed."""
        return self.linear(self.standardise(x, observed))


class Attention(nn.Module):
    """R self-attentions of several heads among the tokens of a row."""

    def __init__(self, width: int, generators: Sequence[torch.Generator]):
        super().__init__()
        self.inputs = RunLinear(width, 3 * width, generators)  # queries, keys and values side by side
        self.output = RunLinear(width, width, generators)

    def forward(self, tokens: Tensor, seen: Tensor, asking: int) -> Tensor:
        """Map the first ``asking`` tokens of [R, n, T, d].

        seen: bool [R, n, T], those that are looked at, one a row or more.
        """
        R, n, T, d = tokens.shape
        parts = self.inputs(tokens.flatten(1, 2)).view(R * n, T, 3, HEADS, d // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        query, mask = query[..., :asking, :], seen.reshape(R * n, 1, 1, T)
        looked = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(looked.transpose(1, 2).reshape(R, n * asking, d)).unflatten(1, (n, asking))


class AttentionBlock(nn.Module):
    """Attention, then a layer of each token's own, each added to its input and normalised after (post-norm).

    apply: the layer of each token's own, [R, n, d] to [R, n, d]. dropout: of what attention adds; attention's weights
    have none.
    """

    def __init__(self, width: int, apply: nn.Module, generators: Sequence[torch.Generator], dropout: Dropout):
        super().__init__()
        self.attention, self.feed, self.dropout = Attention(width, generators), apply, dropout
        self.norms = nn.ModuleList(RunLayerNorm(len(generators), width) for _ in range(2))

    def forward(self, tokens: Tensor, seen: Tensor, asking: int | None = None) -> Tensor:
        """Map the first ``asking`` tokens of [R, n, T, d] (default: all); see `Attention`."""
        asking = asking or tokens.shape[2]
        attended = self.attention(tokens, seen, asking)
        added = self.norms[0]((tokens[:, :, :asking] + self.dropout(attended)).flatten(1, 2))
        return self.norms[1](added + self.feed(added)).unflatten(1, (-1, asking))


class OwnFusion(Method):
    """A method with a fusion of its own: it runs once, whatever fusions are asked for.

    ``width`` is that of a token: half of ``Settings.hidden``, rounded up to a multiple of the heads. A row with nothing
    observed is given the classes' frequencies.
    """

    fusions, fuses = ("addition",), False

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        self.width = -(-settings.hidden // (2 * HEADS)) * HEADS
        self.register_buffer("log_prior", runs.log_prior)

    def tokens(self) -> nn.ModuleList:
        """Make the map of each modality to its token."""
        runs = self.runs
        return nn.ModuleList(
            Token(runs.moments[m], self.width, self.settings.clamp, runs.generators(f"token:{name}"))
            for m, name in enumerate(runs.modalities)
        )

    def perceptron(self, inputs: int, outputs: int, purpose: str) -> Perceptron:
        """Make a network of one hidden layer; what it starts from depends on each run's seed and the purpose."""
        return Perceptron(inputs, self.settings.hidden, outputs, self.runs.generators(purpose), self.dropout(purpose))

    def linear(self, inputs: int, outputs: int, purpose: str) -> RunLinear:
        """Make a linear layer; see `perceptron`."""
        return RunLinear(inputs, outputs, self.runs.generators(purpose))

    def logits(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return scores of the classes [R, B, C]; x: M tensors [R, B, D], observed bool [R, B, M]."""
        raise NotImplementedError

    def finished(self, logits: Tensor, observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C] from scores: the classes' frequencies where nothing is observed."""
        return torch.where(observed.any(-1, keepdim=True), logits.log_softmax(-1), self.log_prior[:, None])

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C]."""
        return self.finished(self.logits(x, observed), observed)


def blank(values: Sequence[Tensor], observed: Tensor) -> list[Tensor]:
    """Return M tensors [R, B, d] that are zero where a modality is not observed (bool [R, B, M])."""
    return [value * observed[..., m, None] for m, value in enumerate(values)]
