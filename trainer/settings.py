"""What a training run can be told, without importing torch: names, defaults, checks."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from ..pipeline.errors import InputError

FUSIONS = ("addition", "concatenation", "outer")
Marginal = Literal["full", "bank", "batch"]
MARGINALS = get_args(Marginal)


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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "marginal":
                if value not in MARGINALS:
                    raise InputError(f"unknown marginal {value!r}: expected one of {', '.join(MARGINALS)}.")
            elif field.name == "lr" and value > 1e37:  # AdamW's first step is ten times that, in float32
                raise InputError(f"lr {value:g} is out of range: expected more than 0 and at most 1e37.")
            elif not (value > 0 or (field.name == "weight_decay" and value == 0)) or value == float("inf"):
                least = "0 or more" if field.name == "weight_decay" else "more than 0"
                raise InputError(f"{field.name.replace('_', ' ')} {value} is out of range: expected {least}.")
