"""Networks with a leading run axis: R small networks of one shape, trained side by side as batched products, and what
they are built from.

Each run's weights come from its own generator, so a run starts the same in any company.
Shapes: R runs, n rows, D input features, k embedding, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .batches import generator


@dataclass(eq=False)
class Blueprint:
    """The facts that R runs of a method are built from, whether they are trained (`Runs`) or read from a file.

    seeds: one a run. moments: per modality mean and deviation, [R, D] each. log_prior: [R, C]. lacking,
    lacking_held_out: per modality, is it missing in some row trained on, and in some clip predicted. rates: numbers
    that only training asks for and that runs may have of their own, [R] each on the host (see `Settings`).
    """

    seeds: list[int]
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    moments: list[tuple[Tensor, Tensor]]
    log_prior: Tensor
    lacking: list[bool]
    lacking_held_out: list[bool]
    device: torch.device
    rates: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.seeds)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Return a random generator for each run. It depends on the run's seed and the purpose, never on other runs."""
        return [generator(seed, purpose) for seed in self.seeds]


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


def _mixed(x: Tensor) -> Tensor:
    """Mix the bits of int32s in place: lowbias32 of C. Wellons. Products wrap around, and ``>>`` repeats the sign."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x


class RunRandom(nn.Module):
    """Random numbers of each run: a hash of its seed, the number of the call and the place.

    So a run draws the same in any company and on any device, and a step draws by tensor operations alone: nothing
    passes between host and device. Where one batch holds all rows a run may have fewer than others beside it; its own
    come first and are drawn alike. (Counter-based, as Salmon and others, "Parallel Random Numbers: As Easy as 1, 2, 3",
    2011.) calls: how many there were, which a method's checkpoint keeps.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        super().__init__()
        seeds = torch.tensor([[g.initial_seed()] for g in generators])  # int64 [R, 1]
        self.register_buffer("seeds", seeds.view(torch.int32), persistent=False)  # [R, 2]
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int32), persistent=False)

    def bits(self, count: int) -> Tensor:
        """Draw int32s [R, count] of random bits."""
        self.calls += 1
        low, high = self.seeds.split(1, 1)
        key = _mixed(_mixed(low + self.calls) + high)  # [R, 1]
        return _mixed(torch.arange(count, dtype=torch.int32, device=key.device) ^ key)

    def uniform(self, *shape: int) -> Tensor:
        """Draw from [0, 1), in steps of 2^-24: float32 [R, *shape], rows first."""
        drawn = self.bits(math.prod(shape)) & ((1 << 24) - 1)
        return (drawn * 2.0**-24).unflatten(1, shape)


class Dropout(RunRandom):
    """Dropout with a rate of each run's own, [R], in steps of 1/256: in training mode, units are zero at random."""

    def __init__(self, rate: Tensor, generators: Sequence[torch.Generator]):
        super().__init__(generators)
        least = (rate.detach().cpu() * 256).round()[:, None]  # a byte below it drops its unit
        self.drops = bool(least.any())
        self.register_buffer("least", least.to(torch.uint8), persistent=False)  # [R, 1]
        self.register_buffer("scale", 256 / (256 - least), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Drop units of x [R, B, ...], and scale the others up."""
        if not self.training or not self.drops:
            return x
        units = x[0].numel()
        drawn = self.bits(-(-units // 4)).view(torch.uint8)[:, :units]  # four units an int32
        return x * ((drawn >= self.least) * self.scale).reshape(x.shape)


class Standardise(nn.Module):
    """Features less their mean, over their deviation; entries that are not observed become 0, which is the mean.

    mean, std: [R, D], the run's own. clamp: most deviations that a value may be away from the mean, 0 for any: a
    feature that hardly varies in training may be thousands away in a test clip. Entries that are not observed may hold
    anything, NaN included: they are replaced before any arithmetic on weights.
    """

    def __init__(self, mean: Tensor, std: Tensor, clamp: float = 0.0):
        super().__init__()
        self.clamp = clamp
        self.register_buffer("scale", std.reciprocal()[:, None])  # [R, 1, D]
        self.register_buffer("shift", -(mean / std)[:, None])

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Standardise x [R, n, D], observed bool [R, n]."""
        z = torch.addcmul(self.shift, x, self.scale)
        return zero_(self.bounded(z), observed)

    def bounded(self, z: Tensor) -> Tensor:
        """Clamp standardised values in place."""
        return z.clamp_(-self.clamp, self.clamp) if self.clamp else z

    def undo(self, standardised: Tensor) -> Tensor:
        """Return values in the features' own units: [R, n, D]."""
        return (standardised - self.shift) / self.scale


class Encoder(nn.Module):
    """Standardise, one hidden layer with dropout, embed: [R, n, D] to [R, n, k].

    mean, std: [R, D]. dropout: `Dropout`, of the hidden layer. constant: the value of the embedding's last coordinate,
    or None where it is learned as well. clamp: see `Standardise`. Embeddings of entries that are not observed mean
    nothing.
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        hidden: int,
        dim: int,
        generators: Sequence[torch.Generator],
        dropout: Dropout,
        *,
        constant: float | None = None,
        clamp: float = 0.0,
    ):
        super().__init__()
        self.constant, self.dropout = constant, dropout
        self.standardise = Standardise(mean, std, clamp)
        self.hidden = RunLinear(mean.shape[1], hidden, generators)
        self.embedding = RunLinear(hidden, dim if constant is None else dim - 1, generators)

    def forward(self, x: Tensor, observed: Tensor, drop: bool = True) -> Tensor:
        """Embed x [R, n, D], observed bool [R, n]: [R, n, k]. drop: with dropout, in training."""
        hidden = self.hidden(self.standardise(x, observed)).relu()
        return self._embed(self.dropout(hidden) if drop else hidden)

    def both(self, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Embed as `forward` does, with dropout and without; the same tensor twice where nothing is dropped."""
        hidden = self.hidden(self.standardise(x, observed)).relu()
        dropped = self.dropout(hidden)
        embedded = self._embed(dropped)
        return embedded, embedded if dropped is hidden else self._embed(hidden)

    def _embed(self, hidden: Tensor) -> Tensor:
        embedding = self.embedding(hidden)
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


BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


def zero_(x: Tensor, kept: Tensor) -> Tensor:
    """Put 0 in place where ``kept`` [...] is False, whatever x [..., D] holds there, NaN included.

    By its bits, which a processor does six times as fast as `masked_fill_`: that looks up its mask number by number.
    """
    if x.requires_grad:
        return x.masked_fill_(~kept[..., None], 0)
    bits = BITS[x.element_size()]
    x.view(bits).bitwise_and_(-kept[..., None].to(bits))  # all bits, or none
    return x


def nan_(x: Tensor, kept: Tensor) -> Tensor:
    """Put NaN in place where ``kept`` [...] is False, as `zero_` puts 0."""
    if x.requires_grad:
        return x.masked_fill_(~kept[..., None], torch.nan)
    bits = BITS[x.element_size()]
    x.view(bits).bitwise_or_(kept[..., None].to(bits) - 1)  # all bits set are a NaN
    return x


def exact_type(device: torch.device) -> torch.dtype:
    """Return the type to sum in: float64, or float32 on Apple's mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def usable_deviation(mean: Tensor, std: Tensor) -> Tensor:
    """Return what features are divided by, float32 [D]: their deviation, or 1 where they are constant (to rounding)."""
    return std.masked_fill(std <= 1e-6 * mean.abs().clamp_min(1e-3), 1).float()
