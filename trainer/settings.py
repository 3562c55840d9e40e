"""What a training run can be told, without importing torch: names, defaults, checks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from ..pipeline.errors import InputError

FUSIONS = ("addition", "concatenation", "outer")
Marginal = Literal["full", "bank", "batch"]
MARGINALS = get_args(Marginal)
# What runs were trained with whose results and weights are older than these settings.
BEFORE = MappingProxyType({"dropout": 0.0, "hide": 0.0, "complete_share": None, "clamp": 0.0, "own": {}})
# May differ between runs that train side by side; everything else is a shape, or a choice of the whole batch.
RATES = ("lr", "weight_decay", "dropout", "hide", "complete_share")
WHOLE = ("epochs", "batch_size", "hidden", "dim")  # the settings that are whole numbers

Bound = tuple[str, Callable[[float], bool]]  # in words, and what tells whether a value suits; NaN never does
POSITIVE: Bound = ("more than 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE: Bound = ("0 or more", lambda value: 0 <= value < math.inf)
BOUNDS: Mapping[str, Bound] = {
    "epochs": POSITIVE,
    "batch_size": POSITIVE,
    # AdamW's first step is ten times the learning rate, in float32.
    "lr": ("more than 0 and at most 1e37", lambda value: 0 < value <= 1e37),
    "weight_decay": NOT_NEGATIVE,
    "hidden": POSITIVE,
    "dim": POSITIVE,
    "dropout": ("0 or more and at most 0.99", lambda value: 0 <= value <= 0.99),
    "hide": ("0 or more and less than 1", lambda value: 0 <= value < 1),
    "complete_share": ("more than 0 and less than 1", lambda value: 1e-6 <= value < 1),
    "clamp": NOT_NEGATIVE,
}


class Rate(NamedTuple):
    """A method's own number: its default, and the range that tuning draws from, evenly in the logarithm."""

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters, the same for every method of a grid.

    InputError: a value out of range, or of another type.
    """

    epochs: int = 40
    batch_size: int = 256  # segments
    lr: float = 3e-3
    weight_decay: float = 1e-4
    hidden: int = 128  # units of an encoder's hidden layer
    dim: int = 16  # k, the embedding's width
    marginal: Marginal = "bank"  # how training averages a missing modality out: see marginal.py
    dropout: float = 0.5  # share of hidden units that are zero in a training step
    hide: float = 0.0  # share of complete training rows of which a step hides one modality: see batches.py
    complete_share: float | None = None  # of the loss, for clips that lack nothing; None: every row counts alike
    clamp: float = 3.0  # most deviations from the mean that an input may be away, 0: any
    own: Mapping[str, float] = field(default_factory=dict)  # of the method's own `Rate`s, those that are not default

    def __post_init__(self) -> None:
        if self.marginal not in MARGINALS:
            raise InputError(f"unknown marginal {self.marginal!r}: expected one of {', '.join(MARGINALS)}.")
        if not isinstance(self.own, Mapping):
            raise InputError(f"own {self.own!r} is no dict: expected a method's own settings by name.")
        for name, value in self.own.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
                raise InputError(f"own {name}: expected a number, 0 or more, found {value!r}.")
        for name, (expected, suits) in BOUNDS.items():
            value, called = getattr(self, name), name.replace("_", " ")
            if value is None and name == "complete_share":
                continue
            kind, said = (Integral, "a whole number") if name in WHOLE else (Real, "a number")
            if isinstance(value, bool) or not isinstance(value, kind):
                raise InputError(f"{called}: expected {said}, found {value!r}.")
            if not suits(value):
                found = f"{value:g}" if name == "lr" else value
                raise InputError(f"{called} {found} is out of range: expected {expected}.")
            object.__setattr__(self, name, int(value) if name in WHOLE else float(value))  # NumPy's are not JSON's

    @property
    def shape(self) -> tuple:
        """Return what settings must agree in, for runs to train side by side."""
        return tuple(getattr(self, one.name) for one in fields(self) if one.name not in (*RATES, "own"))
