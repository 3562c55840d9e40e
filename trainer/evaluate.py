"""Scores over clips. Clips are counted, never segments."""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit


def confusion(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Count clips by true class (rows) and predicted class (columns): [clip, C] and [clip] to [C, C]."""
    C = probability.shape[1]
    return np.bincount(label * C + probability.argmax(1), minlength=C * C).reshape(C, C)


def accuracy(counts: np.ndarray) -> float:
    """Return the percentage of clips classified right, from a confusion matrix."""
    return 100.0 * float(np.trace(counts) / counts.sum())


def unweighted_average_recall(counts: np.ndarray) -> float:
    """Return the mean recall over the classes that occur, in percent."""
    true = counts.sum(1)
    return 100.0 * float((np.diag(counts)[true > 0] / true[true > 0]).mean())


def macro_f1(counts: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur (as label or as prediction), in percent."""
    either = counts.sum(0) + counts.sum(1)
    return 100.0 * float((2 * np.diag(counts)[either > 0] / either[either > 0]).mean())


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation (ddof 1) over seeds; None for the deviation of one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval [low, high] of the mean of percentages over seeds, Student's t; None for one seed.

    Split, mask and initial weights vary together from seed to seed, so it covers all three. Test sets of different
    seeds share clips, which it does not know of: it is about more seeds on these clips, not about other clips.
    """
    if len(values) < 2:
        return None
    mean, std = mean_and_std(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * std / len(values) ** 0.5
    return [max(mean - half, 0.0), min(mean + half, 100.0)]
