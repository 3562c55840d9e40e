"""Networks with a leading run axis: R small networks of one shape, trained side by side as batched products.

Each run's weights come from its own generator, so a run starts the same in any company.
Shapes: R runs, n rows, D input features, k embedding, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class RunLinear(nn.Module):
    """R linear layers: [R, n, in] to [R, n, out]. Initialised uniformly within 1/sqrt(in), as torch's own."""

    def __init__(self, inputs: int, outputs: int, generators: Sequence[torch.Generator]):
        super().__init__()
        bound = inputs**-0.5

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.stack([torch.rand(shape, generator=g) for g in generators]) * 2 * bound - bound)

        self.weight = draw(inputs, outputs)  # [R, in, out]
        self.bias = draw(1, outputs)  # [R, 1, out]

    def forward(self, x: Tensor) -> Tensor:
        """Map x [R, n, in] to [R, n, out]."""
        return torch.baddbmm(self.bias, x, self.weight)


class Standardise(nn.Module):
    """Features less their mean, over their deviation; entries that are not observed become 0, which is the mean.

    mean, std: [R, D], the run's own. Entries that are not observed may hold anything, NaN included: they are replaced
    before any arithmetic on weights.
    """

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("scale", std.reciprocal()[:, None])  # [R, 1, D]
        self.register_buffer("shift", -(mean / std)[:, None])

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Standardise x [R, n, D], observed bool [R, n]."""
        return torch.addcmul(self.shift, x, self.scale).masked_fill_(~observed[..., None], 0)

    def undo(self, standardised: Tensor) -> Tensor:
        """Return values in the features' own units: [R, n, D]."""
        return (standardised - self.shift) / self.scale


class Encoder(nn.Module):
    """Standardise, one hidden layer, embed: [R, n, D] to [R, n, k].

    mean, std: [R, D]. constant: the value of the embedding's last coordinate, or None where it is learned as well.
    Embeddings of entries that are not observed mean nothing.
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        hidden: int,
        dim: int,
        generators: Sequence[torch.Generator],
        constant: float | None = None,
    ):
        super().__init__()
        self.constant = constant
        self.standardise = Standardise(mean, std)
        self.hidden = RunLinear(mean.shape[1], hidden, generators)
        self.embedding = RunLinear(hidden, dim if constant is None else dim - 1, generators)

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Embed x [R, n, D], observed bool [R, n]: [R, n, k]."""
        embedding = self.embedding(self.hidden(self.standardise(x, observed)).relu())
        return embedding if self.constant is None else pad(embedding, (0, 1), value=self.constant)


class LabelEmbedding(nn.Module):
    """h(z): one linear layer with bias on one-hot labels, all classes at once: [R, C, d].

    at_first: bool [d], coordinates that do not start at zero, or None for all.
    """

    def __init__(self, classes: int, width: int, generators: Sequence[torch.Generator], at_first: Tensor | None = None):
        super().__init__()
        self.linear = RunLinear(classes, width, generators)
        if at_first is not None:
            with torch.no_grad():
                self.linear.weight.mul_(at_first)
                self.linear.bias.mul_(at_first)

    def forward(self) -> Tensor:
        """Return h(z) of every class: [R, C, d]."""
        return self.linear.weight + self.linear.bias  # a one-hot label picks a row of the weights
