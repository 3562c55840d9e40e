"""What a training run can be told, without importing torch: names, defaults, checks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple, get_args

from ..pipeline.errors import InputError

FUSIONS = ("addition", "concatenation", "outer")
Marginal = Literal["full", "bank", "batch"]
MARGINALS = get_args(Marginal)
# May differ between runs that train side by side; everything else is a shape, or a choice of the whole batch.
RATES = ("lr", "weight_decay", "dropout", "hide", "complete_share")


class Rate(NamedTuple):
    """A method's own number: its default, and the range that tuning draws from, evenly in the logarithm."""

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters, the same for every method of a grid.

    InputError: a value out of range.
    """

    epochs: int = 40
    batch_size: int = 256  # segments
    lr: float = 3e-3
    weight_decay: float = 1e-4
    hidden: int = 128  # units of an encoder's hidden layer
    dim: int = 16  # k, the embedding's width
    marginal: Marginal = "bank"  # how training averages a missing modality out: see marginal.py
    dropout: float = 0.0  # share of hidden units that are zero in a training step
    hide: float = 0.0  # share of complete training rows of which a step hides one modality: see batches.py
    complete_share: float | None = None  # of the loss, for clips that lack nothing; None: every row counts alike
    clamp: float = 0.0  # most deviations from the mean that an input may be away, 0: any
    own: Mapping[str, float] = field(default_factory=dict)  # of the method's own `Rate`s, those that are not default

    def __post_init__(self) -> None:
        if self.marginal not in MARGINALS:
            raise InputError(f"unknown marginal {self.marginal!r}: expected one of {', '.join(MARGINALS)}.")
        for one in fields(self):
            name, value = one.name.replace("_", " "), getattr(self, one.name)
            if one.name in ("marginal", "own") or (one.name == "complete_share" and value is None):
                continue
            if one.name in ("dropout", "hide", "complete_share"):
                least = 0 if one.name != "complete_share" else 1e-6
                if not least <= value < 1:
                    expected = "0 or more" if one.name != "complete_share" else "more than 0"
                    raise InputError(f"{name} {value} is out of range: expected {expected} and less than 1.")
            elif one.name == "lr" and value > 1e37:  # AdamW's first step is ten times that, in float32
                raise InputError(f"lr {value:g} is out of range: expected more than 0 and at most 1e37.")
            elif not (value > 0 or (one.name in ("weight_decay", "clamp") and value == 0)) or math.isinf(value):
                least = "0 or more" if one.name in ("weight_decay", "clamp") else "more than 0"
                raise InputError(f"{name} {value} is out of range: expected {least}.")

    @property
    def shape(self) -> tuple:
        """Return what settings must agree in, for runs to train side by side."""
        return tuple(getattr(self, one.name) for one in fields(self) if one.name not in (*RATES, "own"))
