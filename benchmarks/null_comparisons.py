"""False positives and coverage of the paired comparisons, where the truth is known.

    python benchmarks/null_comparisons.py [--repeats 4000]

Two methods are right on a clip where a sum of normal deviates is above a threshold: the clip's and the speaker's
difficulty (for both methods), the method's own on the clip and on the speaker, the training (method and seed), the
speaker in that training, and noise. So each method's accuracy in the population of speakers, clips and trainings is
known. Splits are those of the product: 15 % of clips, or of speakers. Printed for each case: false positives at 5 %
(accuracies 70 and 70 %), coverage of the 95 % interval there and with 80 against 70 %, over the repeats that have a
verdict; of cases that have none, coverage of all. One JSON line last.
"""

import argparse
import json

import numpy as np
from mlemiss.trainer.report.comparisons import why_none
from mlemiss.trainer.report.crossed import paired
from scipy.special import ndtri

DATA = {"RAVDESS-like": (24, 60), "CREMA-like": (91, 82), "small": (16, 20), "4 speakers": (4, 40)}
WORLDS = {  # standard deviations: method's own on a clip, on a speaker; training; speaker in a training
    "initial weights only": (0.3, 0.0, 0.05, 0.05),
    "two methods": (0.5, 0.15, 0.05, 0.1),
    "trainings agree": (0.5, 0.15, 0.0, 0.0),
    "trainings differ": (0.5, 0.1, 0.15, 0.1),
    "speakers differ": (0.4, 0.4, 0.05, 0.05),
}
SHARED = (1.0, 0.5)  # difficulty of a clip and of a speaker, the same for both methods
SAME_SPLITS = 20  # draws of outcomes for each draw of splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=4000)
    repeats = parser.parse_args().repeats
    print(f"{'data':13} {'split':8} {'seeds':>5}  {'world':21} {'false +':>7} {'covered':>7} {'of 10':>6}  verdicts")
    cases = []
    for data, (speakers, clips) in DATA.items():
        for split, seeds in ((split, seeds) for split in ("clip", "subject") for seeds in (2, 3, 5, 10)):
            if data == "4 speakers" and split == "clip":
                continue  # clips are the units there: nothing is said of other speakers
            for world, spread in WORLDS.items():
                rng = np.random.default_rng(len(cases))
                null = trial(rng, speakers, clips, split, seeds, spread, (0.7, 0.7), repeats)
                apart = trial(rng, speakers, clips, split, seeds, spread, (0.8, 0.7), repeats)
                case = {"data": data, "split": split, "seeds": seeds, "world": world, "verdicts": null["verdicts"]}
                case |= {"false_positives": null["significant"] if null["verdicts"] else None}
                case |= {"coverage": null["coverage"], "coverage_of_10": apart["coverage"]}
                cases.append(case)
                false = "-" if case["false_positives"] is None else f"{100 * case['false_positives']:.1f}"
                covered = [f"{100 * case[name]:.1f}" for name in ("coverage", "coverage_of_10")]
                told = f"{100 * case['verdicts']:.0f} %" if case["verdicts"] else "no verdict"
                line = f"{data:13} {split:8} {seeds:5}  {world:21} {false:>7} {covered[0]:>7} {covered[1]:>6}  {told}"
                print(line, flush=True)
    print(json.dumps({"benchmark": "null_comparisons", "repeats": repeats, "cases": cases}))


def trial(rng, speakers: int, clips: int, split: str, seeds: int, spread, accuracy, repeats: int) -> dict:
    """Return the shares of repeats that have a verdict, and of these that are significant and that cover the truth."""
    n, speaker = speakers * clips, np.repeat(np.arange(speakers), clips)
    scale = np.sqrt(1 + sum(s**2 for s in (*SHARED, *spread)))
    thresholds, truth = ndtri(accuracy) * scale, 100 * (accuracy[0] - accuracy[1])
    verdict, p, covers = [], [], []
    for _ in range(repeats // SAME_SPLITS):
        order = np.stack([rng.permutation(n if split == "clip" else speakers) for _ in range(seeds)])
        held = max(1, round(0.15 * order.shape[1]))
        tested = order < held if split == "clip" else (order < held)[:, speaker]
        kept = tested.any(0)
        right = np.concatenate([outcomes(rng, speaker, tested, spread, thresholds) for _ in range(SAME_SPLITS)])
        found = paired(right[:, :, kept], tested[:, kept], speaker[kept])
        own = np.diff(np.triu_indices(len(right), 1), axis=0)[0] == 1  # pairs of neighbours
        own &= np.triu_indices(len(right), 1)[0] % 2 == 0  # of the same draw
        verdict += [why_none(seeds, "subject", len(np.unique(speaker[kept]))) is None] * SAME_SPLITS
        p += found.p[own].tolist()
        covers += ((found.low <= truth) & (truth <= found.high))[own].tolist()
    verdict, p, covers = map(np.array, (verdict, p, covers))
    counted = verdict if verdict.any() else np.ones(len(p), bool)
    shares = {"verdicts": verdict.mean(), "significant": (p[counted] <= 0.05).mean()}
    shares |= {"coverage": covers[counted].mean()}
    return {name: round(float(share), 4) for name, share in shares.items()}


def outcomes(rng, speaker: np.ndarray, tested: np.ndarray, spread, thresholds: np.ndarray) -> np.ndarray:
    """Draw which tested clips two methods classify right: bool [2, seed, clip]."""
    (S, n), speakers = tested.shape, speaker.max() + 1
    clip, own, training, within = spread
    latent = rng.normal(0, SHARED[0], n) + rng.normal(0, SHARED[1], speakers)[speaker]
    latent = latent + rng.normal(0, clip, (2, n)) + rng.normal(0, own, (2, speakers))[:, speaker]
    right = np.zeros((2, S, n), bool)
    seed, tests = np.nonzero(tested)
    for m in (0, 1):
        moved = rng.normal(0, training, S)[seed] + rng.normal(0, within, (S, speakers))[seed, speaker[tests]]
        right[m, seed, tests] = latent[m, tests] + moved + rng.normal(size=len(tests)) > -thresholds[m]
    return right


if __name__ == "__main__":
    main()
