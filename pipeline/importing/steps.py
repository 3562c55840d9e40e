"""Make a clip's segments from its steps: frames, rows or vectors over time, as many as the clip has.

Steps that hold no features are an error that counts them, or are left out where the user asks for that.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ..console import amount
from ..errors import InputError

LARGEST = 65504  # that float16 holds
INFINITE = 65520.0  # from here on, float16 rounds to infinity
WINDOWS = 30  # segments of clips whose numbers of steps differ
NAN_CAUSE = "NaN in the imported file"
UNFIT = f"not finite or beyond float16's {LARGEST}"


@dataclass(frozen=True)
class Rules:
    """What steps become.

    Args:
        segments: windows of equal length that a clip's steps are averaged over; None: as `choose_windows` says.
        pool: of the whole clip, or of each window if ``segments`` is given: the mean, or the standard deviation too.
        not_finite: what a value that is not finite, or that float16 cannot hold, is: an error; its clip is missing the
            modality; or its step is left out.
        zero: whether steps whose features are all 0 are left out.
        confidence: OpenFace's frames below it are left out.
    """

    segments: int | None = None
    pool: Literal["mean", "mean+std"] | None = None
    not_finite: Literal["error", "missing", "drop"] = "error"
    zero: Literal["keep", "missing"] = "keep"
    confidence: float | None = None


@dataclass(frozen=True)
class Steps:
    """A clip's steps in one modality: values [step, feature], and which of them their program vouches for."""

    values: np.ndarray
    kept: np.ndarray  # bool [step]
    why: str = ""  # the others are left out: `without a face`

    @classmethod
    def of(cls, values: np.ndarray, kept: np.ndarray | None = None, why: str = "") -> "Steps":
        """Return steps as floats of at least 32 bits; all are kept if nothing else is said."""
        wide = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
        values = values if values.dtype.kind == "f" and values.dtype.itemsize > 2 else wide
        return cls(values, np.ones(len(values), bool) if kept is None else kept, why)


def average(values: np.ndarray, kept: np.ndarray, windows: int, spread: bool = False) -> np.ndarray:
    """Average the steps whose middles lie in each of N windows of equal length.

    A window without a step has the nearest step that is kept, in time; of two, the earlier one.

    Args:
        values: [T, D], evenly spaced in time.
        kept: bool [T], at least one: steps that count.
        windows: N.
        spread: append the standard deviation in each window.

    Returns:
        float64 [N, D], or [N, 2 D].
    """
    steps, total = np.flatnonzero(kept), len(values)
    x = values[steps].astype(np.float64)
    filled, first, counts = np.unique((2 * steps + 1) * windows // (2 * total), return_index=True, return_counts=True)
    means = np.add.reduceat(x, first, axis=0) / counts[:, None]
    out = np.zeros((windows, x.shape[1] * (1 + spread)))
    out[filled, : x.shape[1]] = means
    if spread:
        squares = np.square(x - np.repeat(means, counts, 0))
        out[filled, x.shape[1] :] = np.sqrt(np.add.reduceat(squares, first, axis=0) / counts[:, None])
    empty = np.setdiff1d(np.arange(windows), filled)
    distance = np.abs((2 * empty[:, None] + 1) * total - (2 * steps + 1) * windows)  # in 1 / (2 N T) of the clip
    out[empty, : x.shape[1]] = x[distance.argmin(1)]
    return out


def choose_windows(
    lengths: Mapping[str, Mapping[str, int]], over_time: Mapping[str, bool], rules: Rules
) -> dict[str, int | None]:
    """Choose how many windows each modality's steps are averaged over; None: its steps are the segments.

    A modality of one step a clip is never changed.

    Args:
        lengths: number of steps by modality and clip.
        over_time: modalities whose steps are a clip's course, and not the segments that a user made.
        rules: the user's.

    Raises:
        InputError: modalities have different numbers of segments.
    """
    chosen: dict[str, int | None] = dict.fromkeys(lengths)
    counts = {modality: set(by_clip.values()) - {0} for modality, by_clip in lengths.items()}  # 0: it is missing
    longer = [modality for modality, found in counts.items() if found - {1}]
    if rules.segments or rules.pool:
        return chosen | dict.fromkeys(longer, rules.segments or 1)
    if len(set().union(*(counts[modality] for modality in longer))) > 1:
        chosen |= {modality: WINDOWS for modality in longer if over_time[modality]}
    segments = {modality: chosen[modality] or max(counts[modality]) for modality in longer}
    if len(set(segments.values())) > 1:
        listed = ", ".join(f"{modality} {count}" for modality, count in segments.items())
        raise InputError(
            f"segments a clip differ: {listed}.\nExpected as many of every modality, or 1: `--segments N` averages "
            f"all of them over N equal windows, `--pool mean` over the clip."
        )
    return chosen


@dataclass
class Unfit:
    """Values that are no features, counted over all clips."""

    entries: int = 0
    clips: int = 0
    first: str = ""  # where the first one is, and what it is
    largest: dict[str, float] = field(default_factory=dict)  # by feature

    def add(self, where: str, names: Sequence[str], values: np.ndarray, bad: np.ndarray) -> None:
        """Count the bad ones among a clip's values [step, feature]."""
        step, feature = np.argwhere(bad)[0]
        self.first = self.first or f"{where.format(step=step)} feature {names[feature]} is {values[step, feature]}"
        self.entries, self.clips = self.entries + int(bad.sum()), self.clips + 1
        for i in np.flatnonzero(bad.any(0)):
            most = float(np.abs(values[bad[:, i], i]).max())
            self.largest[names[i]] = max(self.largest.get(names[i], 0.0), most)


class Collector:
    """Collects a modality's segments clip by clip, and what is wrong with their steps.

    Args:
        source: file or folder, for messages.
        modality: its name.
        clips: ids of all clips.
        rules: the user's.
        windows: as `choose_windows` returns.
    """

    def __init__(self, source: Path, modality: str, clips: Sequence[str], rules: Rules, windows: int | None):
        self.source, self.modality, self.clips, self.rules = source, modality, clips, rules
        self.windows, self.step = windows, "step" if windows else "segment"
        self.values: list[np.ndarray | None] = [None] * len(clips)
        self.causes = [""] * len(clips)  # why a clip lacks the modality
        self.names: Sequence[str] = ()  # of the features, for messages
        self.not_finite, self.too_large = Unfit(), Unfit()
        self.steps, self.most, self.short, self.zero = 0, 0, 0, 0
        self.left_out: Counter[str] = Counter()  # steps, by why
        self.lacking: Counter[str] = Counter()  # clips, by why

    def add(self, clip: int, steps: Steps, names: Sequence[str]) -> None:
        """Take the steps of one clip."""
        self.names, values, rules = names, steps.values, self.rules
        kept, left_out = steps.kept.copy(), Counter({steps.why: int((~steps.kept).sum())})
        self.steps, self.most = self.steps + len(values), max(self.most, len(values))
        if kept.any() and np.isnan(values[kept]).all():
            self.causes[clip] = NAN_CAUSE
            return
        bad = ~(np.abs(values) < INFINITE) & kept[:, None]
        if bad.any():
            self._count(clip, values, bad)
            if rules.not_finite == "missing":
                self.causes[clip] = f"{amount(int(bad.sum()), 'value')} {UNFIT}"
                self.lacking[f"values {UNFIT}"] += 1
                return
            if rules.not_finite == "drop":
                kept &= ~bad.any(1)
                left_out[UNFIT] = int(bad.any(1).sum())
        zero = kept & (values == 0).all(1)
        self.zero += int(zero.sum())
        if rules.zero == "missing":
            kept &= ~zero
            left_out["all zero"] = int(zero.sum())
        self.left_out += left_out
        if not kept.any():
            reasons = ", ".join(f"{count} {why}" for why, count in (+left_out).items())
            self.causes[clip] = f"no {self.step} is left of {len(values)}" + f": {reasons}" * bool(reasons)
            self.lacking[f"no {self.step} is left"] += 1
            return
        self.short += len(values) < (self.windows or 0)
        spread = rules.pool == "mean+std" and self.windows is not None
        whole = self.windows is None and kept.all()
        averaged = () if whole else average(values, kept, self.windows or len(values), spread)
        self.values[clip] = values if whole else averaged.astype(values.dtype)

    def _count(self, clip: int, values: np.ndarray, bad: np.ndarray) -> None:
        at = f", {self.step} {{step}}" if len(values) > 1 else ""
        where = f"clip {self.clips[clip]!r}".replace("{", "{{").replace("}", "}}") + f"{at}: {self.modality}"
        finite = np.isfinite(values)
        for unfit, these in ((self.not_finite, bad & ~finite), (self.too_large, bad & finite)):
            if these.any():
                unfit.add(where, self.names, values, these)

    def segments(self) -> np.ndarray:
        """Return the segments of all clips: [clip, segment, feature], NaN where a clip lacks the modality.

        InputError: values that are no features, if the user did not say what they are; no clip has the modality.
        """
        if self.rules.not_finite == "error":
            self._refuse_unfit()
        known = next((values for values in self.values if values is not None), None)
        if known is None:
            causes = Counter(self.causes).most_common(1)[0][0]
            causes = "every value is NaN" if causes == NAN_CAUSE else f"of most, the cause is: {causes}"
            raise InputError(f"{self.source}: no clip has any {self.modality}: {causes}.")
        missing = np.full(known.shape, np.nan, np.float32)
        return np.stack([missing if values is None else values for values in self.values])

    def _refuse_unfit(self) -> None:
        bad, modality = self.not_finite, self.modality
        if bad.entries:
            more = f", and {self.too_large.entries} beyond float16's {LARGEST}" * bool(self.too_large.entries)
            raise InputError(
                f"{self.source}: {bad.first} while others of the clip are not: {amount(bad.entries, 'value')} in "
                f"{amount(bad.clips, 'clip')} not finite{more}.\nMake all of a clip's {modality} features NaN where it "
                f"lacks them, or fill the gap; or `--not-finite missing` (the clip lacks {modality}) or `drop` (the "
                f"{self.step} is left out)."
            )
        bad = self.too_large
        if bad.entries:
            name, largest = next(iter(bad.largest.items()))
            raise InputError(
                f"{self.source}: {len(bad.largest)} {modality} features have values beyond float16's {LARGEST}, which "
                f"stores keep: first {name} (up to {largest:.4g}); {amount(bad.entries, 'value')} in "
                f"{amount(bad.clips, 'clip')}, {bad.first}.\nCentre and scale it (subtract its mean, divide by its "
                f"deviation) and import again; or `--not-finite missing` or `drop`, where these are errors."
            )

    def notes(self) -> list[str]:
        """Return what was left out, and what is often a mistake and cannot be told from what is meant."""
        notes, of = [], self.steps
        unit = "clips" if self.most == 1 else f"{self.step}s"
        for why, count in self.left_out.items():
            notes.append(f"{self.modality}: {count} of {of} {unit} are left out: {why}")
        notes += [f"{self.modality} is missing in {amount(n, 'clip')}: {why}" for why, n in self.lacking.items()]
        if self.zero and self.rules.zero == "keep":
            notes.append(
                f"all {self.modality} features are 0 in {self.zero} of {of} {unit}; where that means missing, write "
                f"NaN, or import with --zero missing"
            )
        if self.short:
            notes.append(
                f"{self.modality}: {amount(self.short, 'clip')} of fewer than {self.windows} steps: a step is in "
                f"several segments"
            )
        return notes
