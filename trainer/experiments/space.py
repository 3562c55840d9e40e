"""What `mlemiss tune` draws from: a range or some values of each setting, the same draws for every method.

Draw 0 is the defaults, where a range of one's own does not leave them out. The j-th draw of a setting depends on j and
the setting's name alone, so that methods, data and the number of draws change nothing, and a method's own settings can
be added without changing others.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...pipeline.errors import InputError
from ..settings import Rate, Settings

SEED = 20211  # of all draws


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, even in the logarithm or in themselves; ``often`` of the draws are the default.

    Or one of ``values``, each as often.
    """

    low: float = 0.0
    high: float = 0.0
    logarithmic: bool = False
    often: float = 0.0
    values: tuple = ()

    def draw(self, random: np.random.Generator, default: float | None) -> float | None:
        """Draw a number."""
        kept, place = random.random(2).tolist()
        if self.values:
            return self.values[int(place * len(self.values))]
        if kept < self.often and (default is None or default in self):
            return default
        if self.logarithmic:
            drawn = float(f"{self.low ** (1 - place) * self.high**place:.3g}")
        else:
            width = self.high - self.low
            drawn = round(self.low + place * width, 2 - math.floor(math.log10(width)) if width else 15)
        return min(max(drawn, self.low), self.high)

    def __contains__(self, value: float) -> bool:
        return value in self.values if self.values else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.values:
            return "|".join(map(str, self.values))
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}..{self.high:g}"


COMMON: Mapping[str, Range] = {
    "lr": Range(3e-4, 3e-2, logarithmic=True),
    "weight_decay": Range(1e-5, 1.0, logarithmic=True),
    "dropout": Range(0.0, 0.7),
    "hide": Range(0.0, 0.7, often=0.5),
    "complete_share": Range(0.2, 0.95, often=0.5),
    # Widths are a shape: few of them, so that many draws train side by side.
    "hidden": Range(values=(64, 128, 256)),
    "dim": Range(values=(8, 16)),
}


@dataclass(frozen=True)
class Space:
    """The ranges of settings, of all methods and of single ones' own.

    narrowed: ranges that stand in for the usual ones, by name.
    InputError: a range of no setting, or without a value that a setting may have.
    """

    narrowed: Mapping[str, Range] = field(default_factory=dict)

    def settings(self, default: Settings, rates: Mapping[str, Rate], count: int) -> list[Settings]:
        """Return the first draws for a method with these own rates."""
        ranges = {**COMMON, **{name: self.narrowed[name] for name in COMMON if name in self.narrowed}}
        drawn = []
        for j in range(count):
            common = {name: self._drawn(j, name, of, getattr(default, name)) for name, of in ranges.items()}
            own = {}
            for name, rate in rates.items():
                own[name] = self._drawn(j, name, self._own(name, rate), default.own.get(name, rate.default))
            own = {name: value for name, value in own.items() if value != rates[name].default}
            drawn.append(replace(default, **common, own=own))
        return drawn

    def _drawn(self, j: int, name: str, of: Range, default: float | None) -> float | None:
        """Return the j-th draw of a setting; the 0th is the default, unless ``narrowed`` leaves it out."""
        if j == 0 and (name not in self.narrowed or (default is not None and default in of)):
            return default
        return of.draw(np.random.default_rng([SEED, j, *name.encode()]), default)

    def _own(self, name: str, rate: Rate) -> Range:
        """Return the range of a method's own setting."""
        return self.narrowed.get(name, Range(rate.low, rate.high, logarithmic=True))

    def describe(self, own: Mapping[str, Mapping[str, Rate]]) -> dict[str, str]:
        """Return the ranges as text, by name; a setting that two methods have is named with its method.

        own: the own settings of each method that is tuned.
        """
        ranges = {name: self.narrowed.get(name, of) for name, of in COMMON.items()}
        methods = Counter(name for rates in own.values() for name in rates)
        for method, rates in own.items():
            for name, rate in rates.items():
                ranges[name if methods[name] == 1 else f"{name} of {method}"] = self._own(name, rate)
        return {name: str(of) for name, of in ranges.items()}


def parse_space(texts: Sequence[str], own: Mapping[str, Rate]) -> Space:
    """Read ranges: ``lr=1e-4..1e-2``, ``hidden=64|128``, ``dropout=0``.

    Args:
        texts: one a setting.
        own: the methods' own settings, by name.

    Raises:
        InputError: what is not such a text, another name, one named twice, or a range that holds no valid value.
    """
    narrowed: dict[str, Range] = {}
    for text in texts:
        name, _, given = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in COMMON and name not in own:
            known = ", ".join([*COMMON, *own])
            raise InputError(f"--space {text}: expected one of {known}, found {name!r}.")
        if name in narrowed:
            raise InputError(f"--space names {name} twice.\nName it once: {name}=LOW..HIGH or {name}=V1|V2.")
        narrowed[name] = _parse_range(text, name, given)
    return Space(narrowed)


def _parse_range(text: str, name: str, given: str) -> Range:
    shape, separator = name in ("hidden", "dim"), ".." if ".." in given else "|"
    try:
        numbers = tuple(map(int if shape else float, given.split(separator)))
    except ValueError:
        numbers = ()
    if not numbers or (separator == ".." and len(numbers) != 2):
        raise InputError(f"--space {text}: expected {name}=LOW..HIGH, {name}=V1|V2 or {name}=VALUE.")
    for value in numbers:
        if name in COMMON:
            try:
                Settings(**{name: value})
            except InputError as error:
                raise InputError(f"--space {text}: {error}") from None
        elif not 0 <= value < math.inf:
            raise InputError(f"--space {text}: {name} {value} is out of range: expected 0 or more.")
    if separator == "|":
        return Range(values=numbers)
    low, high = numbers
    if low > high:
        raise InputError(f"--space {text} holds no valid draw: {low:g} is more than {high:g}.")
    if shape:
        raise InputError(f"--space {text}: few widths train side by side.\nName them: {name}={low}|{high}.")
    return Range(low, high, logarithmic=low > 0 and (name not in COMMON or COMMON[name].logarithmic))
