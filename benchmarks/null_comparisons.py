"""False positives and coverage of the paired comparisons, where the truth is known.

    python benchmarks/null_comparisons.py [--repeats 4000] [--data NAME …] [--world NAME …] [--seeds N …]

Two methods are right on a clip where a sum of normal deviates is above a threshold: the clip's and the speaker's
difficulty (for both methods), the method's own on the clip and on the speaker, the training (method and seed), the
speaker in that training, and noise. So each method's accuracy in the population of speakers, clips and trainings is
known. Splits are those of the product: 15 % of clips, or of speakers; or given, where every seed tests all clips here.
Where clips are the units, these speakers are all there are: they differ in a training alone. Printed for each case:
false positives at 5 % (accuracies 70 and 70 %), coverage of the 95 % interval there and with 80 against 70 %, over
pairs that have a verdict, and which share of splits has one; of cases that have none, coverage over all. "Tables" are
of ten methods with 70 %, a tenth as many as repeats: the share with a verdict after Holm's correction, a false one.
Data of "few errors" have 95 and 98 % for 70 and 80. One JSON line last.
"""

import argparse
import itertools
import json
import zlib
from collections.abc import Iterator

import numpy as np
from mlemiss.trainer.report.comparisons import SIGNIFICANT, Outcomes, holm, units_of, why_alike, why_none
from mlemiss.trainer.report.crossed import paired
from scipy.special import ndtri

BOTH = ("clip", "subject")
DATA = {  # clips of each speaker, and how they are split
    "RAVDESS-like": ([60] * 24, BOTH),
    "CREMA-like": ([82] * 91, BOTH),
    "small": ([20] * 16, BOTH),
    "4 speakers": ([40] * 4, ("subject",)),
    "8 speakers": ([40] * 8, ("given:",)),
    "clips of 4": ([40] * 4, ("clip",)),
    "many clips of 4": ([100] * 4, ("clip",)),
    "few clips of 4": ([10] * 4, ("clip",)),
    "given, 10": ([60] * 10, ("given:",)),
    "given, 24": ([60] * 24, ("given:",)),
    "given, 24 x 5": ([5] * 24, ("given:",)),
    "given, 12 clips": ([1] * 12, ("given:",)),
    "unequal 10": ([400, 200, 130, 100, 80, 66, 57, 50, 44, 40], ("clip", "given:")),
    "one of 10": ([600, *[20] * 9], ("clip", "given:")),
    "unequal 24": ([max(600 // k, 4) for k in range(1, 25)], ("clip", "given:")),
    "unequal 91": ([max(800 // k, 4) for k in range(1, 92)], BOTH),
    "few errors": ([60] * 24, BOTH),
}
FEW = (0.98, 0.95)  # accuracies of "few errors"; else
USUAL = (0.8, 0.7)
WORLDS = {  # standard deviations: method's own on a clip, on a speaker; training; speaker in a training
    "initial weights only": (0.3, 0.0, 0.05, 0.05),
    "two methods": (0.5, 0.15, 0.05, 0.1),
    "trainings agree": (0.5, 0.15, 0.0, 0.0),
    "trainings differ": (0.5, 0.1, 0.15, 0.1),
    "speakers differ": (0.4, 0.4, 0.05, 0.05),
    "trainings dominate": (0.3, 0.0, 0.3, 0.0),
}
SHARED = (1.0, 0.5)  # difficulty of a clip and of a speaker, the same for both methods
TRIED = 400  # splits, for the share that has a verdict; where there is one, all repeats have
SAME_SPLITS = 20  # draws of outcomes for each draw of splits
TABLE = 10  # methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--data", choices=DATA, nargs="*", default=list(DATA))
    parser.add_argument("--world", choices=WORLDS, nargs="*", default=list(WORLDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[2, 3, 4, 5, 10])
    asked = parser.parse_args()
    print(f"{'data':15} {'split':8} seeds  {'world':21} {'false +':>7} {'covered':>7} {'apart':>6} tables  verdicts")
    cases = []
    for data, split, seeds, world in every_case():
        if data not in asked.data or world not in asked.world or seeds not in asked.seeds:
            continue
        better, worse = FEW if data == "few errors" else USUAL
        own = zlib.crc32(f"{data} {split} {seeds} {world}".encode())  # of each case, whichever are asked for
        null, apart = (
            Case(np.random.default_rng(own), DATA[data][0], split, seeds, WORLDS[world], accuracy)
            for accuracy in ((worse, worse), (better, worse))
        )
        case = {"data": data, "split": split, "seeds": seeds, "world": world, "verdicts": null.verdicts}
        case |= {"false_positives": None, "tables": None}
        found, case["coverage"] = null.pairs(asked.repeats)
        if null.verdicts:
            case |= {"false_positives": found, "tables": null.tables(asked.repeats // 10)}
        case["coverage_apart"] = apart.pairs(asked.repeats)[1]
        case = {name: round(value, 4) if isinstance(value, float) else value for name, value in case.items()}
        cases.append(case)
        shown = (case[name] for name in ("false_positives", "coverage", "coverage_apart", "tables"))
        false, covered, of_apart, tables = ("-" if value is None else f"{100 * value:.1f}" for value in shown)
        told = f"{100 * case['verdicts']:.1f} %" if case["verdicts"] else "no verdict"
        line = f"{data:15} {split:8} {seeds:5}  {world:21} {false:>7} {covered:>7} {of_apart:>6} {tables:>6}  {told}"
        print(line, flush=True)
    print(json.dumps({"benchmark": "null_comparisons", "repeats": asked.repeats, "cases": cases}))


def every_case() -> Iterator[tuple[str, str, int, str]]:
    """Yield data, split, seeds and world; the first three data also with seeds that have no verdict."""
    for place, (data, (_, splits)) in enumerate(DATA.items()):
        for split in splits:
            for seeds in (2, 3, 4, 5, 10) if place < 3 else (5, 10):
                for world in WORLDS:
                    yield data, split, seeds, world


class Case:
    """Draws of one kind of data, split and world; ``accuracy``: two methods', in the population."""

    def __init__(self, rng, clips, split: str, seeds: int, spread, accuracy):
        speaker = np.repeat(np.arange(len(clips)), clips)
        everyone = Outcomes(None, None, np.arange(len(speaker)).astype(str), speaker.astype(str), None, "")
        self.kind, unit = units_of(everyone, np.ones((1, len(speaker)), bool), split)
        self.unit = np.unique(unit, return_inverse=True)[1]
        shared = SHARED
        if self.kind == "clip":
            shared, spread = (shared[0], 0.0), (spread[0], 0.0, *spread[2:])
        scale = np.sqrt(1 + sum(s**2 for s in (*shared, *spread)))
        self.thresholds, self.truth = ndtri(accuracy) * scale, 100 * (accuracy[0] - accuracy[1])
        self._draw = lambda: tests(rng, speaker, split, seeds)
        self._outcomes = lambda tested, of: outcomes(rng, speaker, tested, shared, spread, of)
        self.verdicts = sum(self._told(self._draw()) for _ in range(TRIED)) / TRIED

    def _told(self, tested) -> bool:
        return why_none(tested, self.kind, self.unit) is None

    def _tests(self) -> np.ndarray:
        """Draw tests that have a verdict, or any of a case that has none."""
        while not self._told(tested := self._draw()) and self.verdicts:
            pass
        return tested

    def pairs(self, repeats: int) -> tuple[float, float]:
        """Return which share of pairs is significant, and of how many the interval covers the truth."""
        p, covers = [], []
        while len(p) < repeats:
            tested = self._tests()
            kept = tested.any(0)
            right = np.concatenate([self._outcomes(tested, self.thresholds) for _ in range(SAME_SPLITS)])
            found = paired(right[:, :, kept], tested[:, kept], self.unit[kept])
            first, second = np.triu_indices(len(right), 1)
            own = (first % 2 == 0) & (second == first + 1)  # of the same draw
            if self.verdicts:
                own[own] = [why_alike(*right[2 * draw : 2 * draw + 2]) is None for draw in range(SAME_SPLITS)]
            p += found.p[own].tolist()
            covers += ((found.low <= self.truth) & (self.truth <= found.high))[own].tolist()
        return float((np.array(p) <= SIGNIFICANT).mean()), float(np.mean(covers))

    def tables(self, number: int) -> float:
        """Return which share of tables of equal methods has a verdict."""
        wrong = 0
        for _ in range(number):
            tested = self._tests()
            kept = tested.any(0)
            right = self._outcomes(tested, self.thresholds[[1] * TABLE])
            found = paired(right[:, :, kept], tested[:, kept], self.unit[kept]).p.tolist()
            alike = [why_alike(a, b) for a, b in itertools.combinations(right, 2)]
            adjusted = holm([p for p, why in zip(found, alike, strict=True) if why is None])
            wrong += min(adjusted, default=1) <= SIGNIFICANT
        return wrong / number


def tests(rng, speaker: np.ndarray, split: str, seeds: int) -> np.ndarray:
    """Draw which clips each seed tests: bool [seed, clip]."""
    if split == "given:":
        return np.ones((seeds, len(speaker)), bool)
    of = np.arange(len(speaker)) if split == "clip" else speaker
    order = np.stack([rng.permutation(of[-1] + 1) for _ in range(seeds)])
    return (order < max(1, round(0.15 * order.shape[1])))[:, of]


def outcomes(rng, speaker: np.ndarray, tested: np.ndarray, shared, spread, thresholds: np.ndarray) -> np.ndarray:
    """Draw which tested clips methods, a threshold each, classify right: bool [method, seed, clip]."""
    (S, n), speakers, methods = tested.shape, speaker.max() + 1, len(thresholds)
    clip, own, training, within = spread
    latent = rng.normal(0, shared[0], n) + rng.normal(0, shared[1], speakers)[speaker]
    latent = latent + rng.normal(0, clip, (methods, n)) + rng.normal(0, own, (methods, speakers))[:, speaker]
    right = np.zeros((methods, S, n), bool)
    seed, tests = np.nonzero(tested)
    for m in range(methods):
        moved = rng.normal(0, training, S)[seed] + rng.normal(0, within, (S, speakers))[seed, speaker[tests]]
        right[m, seed, tests] = latent[m, tests] + moved + rng.normal(size=len(tests)) > -thresholds[m]
    return right


if __name__ == "__main__":
    main()
