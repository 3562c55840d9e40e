"""Scores over clips. Clips are counted, never segments."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

BINS = 15  # of confidence, as Guo and others (2017) have them
LEAST_PROBABILITY = 1e-12  # of a class in the log-likelihood; what training takes for 0 when it chooses an epoch, too
PERCENT, ANY = 100.0, float("inf")  # the most that a measure can be


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


def weighted_f1(counts: np.ndarray) -> float:
    """Return the mean F1 over classes, each weighted by its clips, in percent."""
    either = np.maximum(counts.sum(0) + counts.sum(1), 1)
    return 100.0 * float(2 * np.diag(counts) / either @ counts.sum(1) / counts.sum())


def log_loss(probability: np.ndarray, label: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the true class in nats: [clip, C] and [clip].

    Probabilities below LEAST_PROBABILITY, 0 among them, count as that one, so a clip costs at most 27.6.
    """
    of_label = probability[np.arange(len(label)), label].astype(np.float64)
    return float(-np.log(np.clip(of_label, LEAST_PROBABILITY, 1)).mean())


def reliability(probability: np.ndarray, label: np.ndarray) -> dict[str, list]:
    """Compare confidence, the predicted class's probability, with accuracy: [clip, C] and [clip].

    Returns:
        ``clips``, their mean ``confidence`` and their ``accuracy`` in percent, of each bin of confidence; None where a
        bin is empty. BINS bins of equal width, the upper bound belongs to a bin (Naeini and others 2015).
    """
    confidence = probability.max(1).astype(np.float64)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    clips = np.bincount(place, minlength=BINS)
    sums = [np.bincount(place, v, BINS) for v in (confidence, probability.argmax(1) == label)]
    percent = [[100 * s / n if n else None for s, n in zip(of, clips.tolist(), strict=True)] for of in sums]
    return {"clips": clips.tolist(), "confidence": percent[0], "accuracy": percent[1]}


def calibration_error(bins: dict[str, list]) -> float:
    """Return the expected calibration error (ECE) in percentage points, from `reliability`.

    The mean distance between confidence and accuracy over bins, weighted by clips (Guo and others 2017, equation 3).
    """
    gaps = [n * abs(c - a) for n, c, a in zip(*map(bins.get, ("clips", "confidence", "accuracy")), strict=True) if n]
    return sum(gaps) / sum(bins["clips"])


def scores(probabilities: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict:
    """Return what results record of the test clips of every seed: [clip, C] and [clip] each.

    Lists have an entry a seed; ``confusion`` and ``reliability`` are of all seeds together. Percent, but ``nll`` nats.
    """
    counts = [confusion(p, z) for p, z in zip(probabilities, labels, strict=True)]
    values = {
        "macro_f1": [macro_f1(c) for c in counts],
        "uar": [unweighted_average_recall(c) for c in counts],
        "weighted_f1": [weighted_f1(c) for c in counts],
        "nll": [log_loss(p, z) for p, z in zip(probabilities, labels, strict=True)],
        "ece": [calibration_error(reliability(p, z)) for p, z in zip(probabilities, labels, strict=True)],
    }
    accuracies = [accuracy(c) for c in counts]
    mean, std = mean_and_std(accuracies)
    found = {"test_accuracy": accuracies, "mean": mean, "std": std, "interval": mean_interval(accuracies)}
    intervals = {f"{n}_interval": mean_interval(v, ANY if n == "nll" else PERCENT) for n, v in values.items()}
    together = reliability(np.concatenate(probabilities), np.concatenate(labels))
    return found | values | intervals | {"confusion": sum(counts).tolist(), "reliability": together}


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation (ddof 1) over seeds; None for the deviation of one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_interval(values: Sequence[float], most: float = PERCENT) -> list[float] | None:
    """Return the 95 % interval [low, high] of the mean over seeds, Student's t, within 0 and most; None for one seed.

    Split, mask and initial weights vary together from seed to seed, so it covers all three. Test sets of different
    seeds share clips, which it does not know of: it is about more seeds on these clips, not about other clips.
    """
    if len(values) < 2:
        return None
    mean, std = mean_and_std(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * std / len(values) ** 0.5
    return [max(mean - half, 0.0), min(mean + half, most)]


class Measure(NamedTuple):
    """What is measured on test clips: its name in results, how it is written, and whether less of it is better."""

    key: str
    name: str
    digits: int = 1
    less: bool = False

    def of(self, result: Mapping) -> tuple[float, float | None] | None:
        """Return mean and deviation over seeds; None where an earlier version did not record the measure."""
        if self.key == ACCURACY.key:
            return result["mean"], result["std"]
        values = result.get(self.key)
        return mean_and_std(values) if values else None


ACCURACY = Measure("test_accuracy", "Test accuracy in percent of clips")
MEASURES = {
    "accuracy": ACCURACY,
    "macro-f1": Measure("macro_f1", "Macro F1 in percent"),
    "weighted-f1": Measure("weighted_f1", "Weighted F1 in percent"),
    "uar": Measure("uar", "UAR (unweighted average recall) in percent"),
    "nll": Measure("nll", "NLL (negative log-likelihood) in nats", 2, True),
    "ece": Measure("ece", "ECE (expected calibration error) in percentage points", less=True),
}
