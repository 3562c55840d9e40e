"""False positives and coverage of the paired comparisons, where the truth is known.

    python benchmarks/null_comparisons.py [--repeats 4000] [--data NAME]

Two methods are right on a clip where a sum of normal deviates is above a threshold: the clip's and the speaker's
difficulty (for both methods), the method's own on the clip and on the speaker, the training (method and seed), the
speaker in that training, and noise. So each method's accuracy in the population of speakers, clips and trainings is
known. Splits are those of the product: 15 % of clips, or of speakers; or given, where every seed tests all clips here.
Where clips are the units, these speakers are all there are: they differ in a training alone. Printed for each case:
false positives at 5 % (accuracies 70 and 70 %), coverage of the 95 % interval there and with 80 against 70 %, over
splits that have a verdict, and their share; of cases that have none, coverage over all. One JSON line last.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
from mlemiss.trainer.report.comparisons import Outcomes, units_of, why_none
from mlemiss.trainer.report.crossed import paired
from scipy.special import ndtri

BOTH = ("clip", "subject")
DATA = {  # clips of each speaker, and how they are split
    "RAVDESS-like": ([60] * 24, BOTH),
    "CREMA-like": ([82] * 91, BOTH),
    "small": ([20] * 16, BOTH),
    "4 speakers": ([40] * 4, ("subject",)),
    "clips of 4": ([40] * 4, ("clip",)),
    "many clips of 4": ([100] * 4, ("clip",)),
    "few clips of 4": ([10] * 4, ("clip",)),
    "given, 10": ([60] * 10, ("given:",)),
    "given, 24": ([60] * 24, ("given:",)),
    "given, 12 clips": ([1] * 12, ("given:",)),
    "unequal 10": ([400, 200, 130, 100, 80, 66, 57, 50, 44, 40], ("clip", "given:")),
    "one of 10": ([600, *[20] * 9], ("clip", "given:")),
    "unequal 24": ([max(600 // k, 4) for k in range(1, 25)], ("clip", "given:")),
    "unequal 91": ([max(800 // k, 4) for k in range(1, 92)], BOTH),
}
WORLDS = {  # standard deviations: method's own on a clip, on a speaker; training; speaker in a training
    "initial weights only": (0.3, 0.0, 0.05, 0.05),
    "two methods": (0.5, 0.15, 0.05, 0.1),
    "trainings agree": (0.5, 0.15, 0.0, 0.0),
    "trainings differ": (0.5, 0.1, 0.15, 0.1),
    "speakers differ": (0.4, 0.4, 0.05, 0.05),
}
SHARED = (1.0, 0.5)  # difficulty of a clip and of a speaker, the same for both methods
TRIED = 400  # splits, for the share that has a verdict; where there is one, all repeats have
SAME_SPLITS = 20  # draws of outcomes for each draw of splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--data", choices=DATA, nargs="*", default=list(DATA))
    asked = parser.parse_args()
    print(f"{'data':15} {'split':8} {'seeds':>5}  {'world':21} {'false +':>7} {'covered':>7} {'of 10':>6}  verdicts")
    cases = []
    for number, (data, split, seeds, world) in enumerate(every_case()):
        if data not in asked.data:
            continue
        rng = np.random.default_rng(number)
        null, apart = (
            trial(rng, DATA[data][0], split, seeds, WORLDS[world], accuracy, asked.repeats)
            for accuracy in ((0.7, 0.7), (0.8, 0.7))
        )
        case = {"data": data, "split": split, "seeds": seeds, "world": world, "verdicts": null["verdicts"]}
        case |= {"false_positives": null["significant"] if null["verdicts"] else None}
        case |= {"coverage": null["coverage"], "coverage_of_10": apart["coverage"]}
        cases.append(case)
        false = "-" if case["false_positives"] is None else f"{100 * case['false_positives']:.1f}"
        covered = [f"{100 * case[name]:.1f}" for name in ("coverage", "coverage_of_10")]
        told = f"{100 * case['verdicts']:.1f} %" if case["verdicts"] else "no verdict"
        line = f"{data:15} {split:8} {seeds:5}  {world:21} {false:>7} {covered[0]:>7} {covered[1]:>6}  {told}"
        print(line, flush=True)
    print(json.dumps({"benchmark": "null_comparisons", "repeats": asked.repeats, "cases": cases}))


def every_case() -> Iterator[tuple[str, str, int, str]]:
    """Yield data, split, seeds and world; the first four data also with seeds that have no verdict."""
    for place, (data, (_, splits)) in enumerate(DATA.items()):
        for split in splits:
            for seeds in (2, 3, 5, 10) if place < 4 else (5, 10):
                for world in WORLDS:
                    yield data, split, seeds, world


def trial(rng, clips, split: str, seeds: int, spread, accuracy, repeats: int) -> dict:
    """Return which share of splits has a verdict, and of repeats which are significant and which cover the truth."""
    speaker = np.repeat(np.arange(len(clips)), clips)
    everyone = Outcomes(None, None, np.arange(len(speaker)).astype(str), speaker.astype(str), None, "")
    kind, unit = units_of(everyone, np.ones((1, len(speaker)), bool), split)
    unit = np.unique(unit, return_inverse=True)[1]
    shared = SHARED
    if kind == "clip":
        shared, spread = (shared[0], 0.0), (spread[0], 0.0, *spread[2:])
    scale = np.sqrt(1 + sum(s**2 for s in (*shared, *spread)))
    thresholds, truth = ndtri(accuracy) * scale, 100 * (accuracy[0] - accuracy[1])
    drawn = [tests(rng, speaker, split, seeds) for _ in range(TRIED)]
    told = [tested for tested in drawn if why_none(tested, kind, unit) is None]
    p, covers = [], []
    while len(p) < repeats:
        tested = tests(rng, speaker, split, seeds)
        if told and why_none(tested, kind, unit):
            continue
        kept = tested.any(0)
        right = np.concatenate([outcomes(rng, speaker, tested, shared, spread, thresholds) for _ in range(SAME_SPLITS)])
        found = paired(right[:, :, kept], tested[:, kept], unit[kept])
        own = np.diff(np.triu_indices(len(right), 1), axis=0)[0] == 1  # pairs of neighbours
        own &= np.triu_indices(len(right), 1)[0] % 2 == 0  # of the same draw
        p += found.p[own].tolist()
        covers += ((found.low <= truth) & (truth <= found.high))[own].tolist()
    shares = {"verdicts": len(told) / TRIED, "significant": (np.array(p) <= 0.05).mean(), "coverage": np.mean(covers)}
    return {name: round(float(share), 4) for name, share in shares.items()}


def tests(rng, speaker: np.ndarray, split: str, seeds: int) -> np.ndarray:
    """Draw which clips each seed tests: bool [seed, clip]."""
    if split == "given:":
        return np.ones((seeds, len(speaker)), bool)
    of = np.arange(len(speaker)) if split == "clip" else speaker
    order = np.stack([rng.permutation(of[-1] + 1) for _ in range(seeds)])
    return (order < max(1, round(0.15 * order.shape[1])))[:, of]


def outcomes(rng, speaker: np.ndarray, tested: np.ndarray, shared, spread, thresholds: np.ndarray) -> np.ndarray:
    """Draw which tested clips two methods classify right: bool [2, seed, clip]."""
    (S, n), speakers = tested.shape, speaker.max() + 1
    clip, own, training, within = spread
    latent = rng.normal(0, shared[0], n) + rng.normal(0, shared[1], speakers)[speaker]
    latent = latent + rng.normal(0, clip, (2, n)) + rng.normal(0, own, (2, speakers))[:, speaker]
    right = np.zeros((2, S, n), bool)
    seed, tests = np.nonzero(tested)
    for m in (0, 1):
        moved = rng.normal(0, training, S)[seed] + rng.normal(0, within, (S, speakers))[seed, speaker[tests]]
        right[m, seed, tests] = latent[m, tests] + moved + rng.normal(size=len(tests)) > -thresholds[m]
    return right


if __name__ == "__main__":
    main()
