"""Compare any two methods of one setting, clip by clip, from the test predictions that runs keep.

A setting is one dataset, store and its revision, features, split, given files, missing spec in training and in test,
hyper-parameters, and one list of seeds; both methods were tested on the same clips, seed by seed. Of hyper-parameters
only the marginal may differ: it is a choice of the method. The estimator, exactly:

1. Clip i's outcome of a method is the share of the seeds in which i was a test clip that classified it right; d_i is
   the difference of the two methods' outcomes. Clips that no seed tested do not count.
2. ``difference`` is the mean of d_i over clips, in percentage points. Every clip weighs the same, however many seeds
   tested it, so it can differ a little from the difference of the mean accuracies, where every test weighs the same.
3. The unit of resampling is the speaker (``subject``) where the tested clips have at least 6 different ones, else the
   clip. A clip without a subject is a unit of its own.
4. ``interval``: percentile bootstrap, 95 %. 10,000 times as many units as there are, drawn with replacement, all clips
   of a drawn unit with it: sum of d_i over number of clips.
5. ``p``: two-sided sign-flip test. The signs of the units' sums of d_i are flipped independently; p is the share of
   flips whose absolute total is at least the observed one. All flips where there are at most 14 units, else random
   ones with the observed signs counted among them, (1 + count) / (1 + flips): 10,000 flips, and where these give less
   than 0.01, 100 for each comparison of the table if that is more, as Holm's factor else outgrows the smallest p.
6. ``p_holm``: Holm's step-down correction over all comparisons of one table: all of a setting but the missing spec in
   training and the seeds.

Its limits. The seeds are not resampled: test sets of different seeds share clips, and training sets overlap, so this
is inference over speakers (or clips) for these seeds. With clips as units it says nothing of other speakers. The sign
flip tests that each unit's difference is symmetric about zero. A percentile interval of few units is too narrow; with
U units no p can be below 2^(1-U). Draws come from a fixed seed: the same predictions give the same numbers.

Shapes: S seeds, C classes, U units, K methods of one setting, P = K (K - 1) / 2 pairs.
"""

import hashlib
import itertools
import json
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...pipeline.errors import InputError

# Names the results of one table and of one Holm correction; of the settings all but the marginal.
FAMILY = ("dataset", "features", "store", "revision", "split", "given", "missing_test", "settings", "end_to_end")
LEAST_SUBJECTS = 6
RESAMPLES, FLIPS, FLIPS_A_COMPARISON, MOST_ENUMERATED = 10_000, 10_000, 100, 14
CLEAR = 0.01  # a p above it is known well enough from FLIPS flips
SIGNIFICANT = 0.05
SEED = 0
DRAWN_AT_ONCE = 2**20  # random numbers in memory at a time


@dataclass(frozen=True)
class Outcomes:
    """One method's success on the tested clips."""

    outcome: np.ndarray  # [clip], in percent of the seeds that tested the clip
    unit: np.ndarray  # [clip], the name of the unit of resampling
    kind: str  # of unit: subject or clip
    tested: str  # hash of clip ids, labels, subjects and the clips each seed tested: equal ones can be compared


def family_of(described: Mapping) -> dict:
    """Return what names the table of a result or a comparison: the values of FAMILY."""
    settings = {name: value for name, value in (described.get("settings") or {}).items() if name != "marginal"}
    return {name: described.get(name) for name in FAMILY} | {"settings": settings}


def family_key(described: Mapping) -> str:
    """Return `family_of` as a key: equal for results and comparisons of one table."""
    return json.dumps(family_of(described), sort_keys=True)


def several_marginals(results: Sequence[Mapping]) -> set[str]:
    """Return the methods with more than one marginal in one table, where it must be named to tell them apart."""
    marginals = Counter(method for method, _ in {(r["method"], r.get("marginal")) for r in results})
    return {method for method, number in marginals.items() if number > 1}


def side(result: Mapping, several: set[str]) -> dict:
    """Name a result as one side of a comparison, ``a`` or ``b``; several: as `several_marginals` has them."""
    named = {"method": result["method"], "fusion": result["fusion"]}
    return named | {"marginal": result.get("marginal")} if result["method"] in several else named


def compare_methods(results: Sequence[dict], out_dir: Path) -> list[dict]:
    """Make all paired comparisons of results, as results.json has them; see the module for the estimator.

    Results without kept predictions or tested clips, or whose test clips or seeds no other result shares, are not
    compared; of a cell that comes twice, the later counts.

    Args:
        results: of any tables.
        out_dir: the folder that the results' ``predictions`` are relative to, where they are not absolute.

    Returns:
        An entry a pair. ``a`` and ``b`` name a marginal where the table holds several of the method.

    Raises:
        InputError: a predictions file is damaged.
    """
    families: dict[str, dict[tuple, dict]] = defaultdict(dict)
    for r in results:
        families[family_key(r)][r["missing"], r["method"], r["fusion"], r.get("marginal")] = r
    return [entry for cells in families.values() for entry in _family(list(cells.values()), Path(out_dir))]


def _family(results: Sequence[dict], out_dir: Path) -> list[dict]:
    """Return the entries of one table's results, corrected."""
    several = several_marginals(results)
    settings: dict[tuple, list[tuple[dict, Outcomes]]] = defaultdict(list)
    for r in results:
        path = out_dir / r["predictions"] if r.get("predictions") else None
        if path is not None and path.is_file():
            outcomes = read_outcomes(path)
            if len(outcomes.outcome):  # else nothing was tested, or every probability is NaN
                key = (r["missing"], tuple(r["seeds"]), outcomes.tested)
                settings[key].append((side(r, several), outcomes))
    comparisons = sum(len(rows) * (len(rows) - 1) // 2 for rows in settings.values())
    entries: list[dict] = []
    for (missing, seeds, _), rows in settings.items():
        setting = family_of(results[0]) | {"missing": missing, "seeds": list(seeds)}
        entries += _setting(setting, rows, comparisons)
    return corrected(entries)


def corrected(entries: Sequence[dict]) -> list[dict]:
    """Return comparisons of any tables with ``p_holm`` from their ``p``: step 6."""
    families: dict[str, list[dict]] = defaultdict(list)
    for entry in entries:
        families[family_key(entry)].append(entry)
    adjusted = {}
    for family in families.values():
        adjusted |= zip(map(id, family), holm([e["p"] for e in family]), strict=True)
    return [entry | {"p_holm": adjusted[id(entry)]} for entry in entries]


def read_outcomes(path: Path) -> Outcomes:
    """Read a predictions file as outcomes of clips. InputError: it is damaged or another file."""
    try:
        with np.load(path) as file:
            probability = file["probabilities"]  # [S, clip, C], NaN where not tested
            label, names = file["label"], [file["clip_id"].astype(str), file["subject"].astype(str)]
            tested = ~np.isnan(probability).any(2)  # [S, clip]
            right = tested & (np.nan_to_num(probability).argmax(2) == label)
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        what = f"{path}: expected predictions of mlemiss train, found a damaged or other file ({type(error).__name__})."
        raise InputError(f"{what}\nTrain again, or remove the file to report without its comparisons.") from error
    digest = hashlib.sha256(repr(tested.shape).encode() + tested.tobytes() + label.astype(np.int64).tobytes())
    for values in names:
        digest.update("\0".join(values.tolist()).encode())
    times = tested.sum(0)
    kept = times > 0
    clip_id, subject = (values[kept] for values in names)
    kind = "subject" if len(set(subject) - {""}) >= LEAST_SUBJECTS else "clip"
    own = subject == "" if kind == "subject" else np.ones(len(subject), bool)
    unit = np.where(own, np.char.add("clip ", clip_id), np.char.add("subject ", subject))
    return Outcomes(100 * right.sum(0)[kept] / times[kept], unit, kind, digest.hexdigest())


def _setting(setting: dict, rows: Sequence[tuple[dict, Outcomes]], comparisons: int) -> list[dict]:
    """Return the entries of one setting, in the order of its methods; ``p_holm`` is still to come."""
    if len(rows) < 2:
        return []
    sides, (one, *_) = [named for named, _ in rows], [outcomes for _, outcomes in rows]
    outcome = np.stack([outcomes.outcome for _, outcomes in rows])
    flips = max(FLIPS, FLIPS_A_COMPARISON * comparisons)
    *numbers, units = paired(outcome, one.unit, flips)
    entries = []
    for (a, b), (difference, low, high, p) in zip(itertools.combinations(sides, 2), np.transpose(numbers), strict=True):
        entries.append(
            setting
            | {
                "a": a,
                "b": b,
                "difference": float(difference),
                "interval": [float(low), float(high)],
                "p": float(p),
                "p_holm": None,
                "units": one.kind,
                "n_units": units,
                "n_clips": outcome.shape[1],
            }
        )
    return entries


def paired(
    outcome: np.ndarray, unit: np.ndarray, flips: int = FLIPS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Compare all pairs of rows, in the order of itertools.combinations.

    Args:
        outcome: [K, clip], in percent.
        unit: [clip], equal values are one unit.
        flips: random sign flips, where there are too many units for all.

    Returns:
        Difference, the interval's low and high end, and p, each [P], and the number of units.
    """
    names, place = np.unique(unit, return_inverse=True)
    U, (a, b) = len(names), np.triu_indices(len(outcome), 1)
    sums = np.stack([np.bincount(place, row, U) for row in outcome], 1)  # [U, K]
    sizes = np.bincount(place, minlength=U).astype(float)
    means = np.concatenate([(w @ sums) / (w @ sizes)[:, None] for w in _resamples(U)])  # [RESAMPLES, K]
    low, high = np.quantile(means[:, a] - means[:, b], [0.025, 0.975], axis=0)
    total = sums.sum(0)
    return (total[a] - total[b]) / sizes.sum(), low, high, _p_values(sums, a, b, flips), U


def _p_values(sums: np.ndarray, a: np.ndarray, b: np.ndarray, flips: int) -> np.ndarray:
    """Return p [P] of the pairs of columns a, b of the units' sums [U, K]: step 5."""
    U, P = len(sums), len(a)
    observed = np.abs(sums.sum(0)[a] - sums.sum(0)[b]) - 1e-7  # but for rounding
    reached, tried, going = np.zeros(P), np.zeros(P), np.arange(P)
    for signs in _signs(U, flips, max(U, P)):
        if not len(going):
            break
        totals = (signs @ sums).T  # [K, block]
        differences = totals[a[going]]
        differences -= totals[b[going]]
        reached[going] += (np.abs(differences, out=differences) >= observed[going, None]).sum(1)
        tried[going] += len(signs)
        if tried.max() >= FLIPS:
            going = going[reached[going] < CLEAR * tried[going]]
    return reached / tried if U <= MOST_ENUMERATED else (1 + reached) / (1 + tried)


def _resamples(U: int) -> Iterator[np.ndarray]:
    """Draw units and yield how often each is drawn, [block, U], RESAMPLES in all."""
    rng = np.random.default_rng(SEED)
    for block in _blocks(RESAMPLES, U):
        drawn = rng.integers(U, size=(block, U)) + U * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * U).reshape(block, U).astype(float)


def _signs(U: int, flips: int, width: int) -> Iterator[np.ndarray]:
    """Yield signs of the units, [block, U]: all of them for few units, else ``flips`` random ones."""
    if U <= MOST_ENUMERATED:
        yield 1.0 - 2 * (np.arange(2**U)[:, None] >> np.arange(U) & 1)
        return
    rng = np.random.default_rng(SEED)
    for block in _blocks(flips, width):
        yield 1.0 - 2 * rng.integers(2, size=(block, U), dtype=np.int8)


def _blocks(rows: int, width: int) -> Iterator[int]:
    most = max(DRAWN_AT_ONCE // width, 1)
    for done in range(0, rows, most):
        yield min(most, rows - done)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's (1979) step-down correction, in the order given."""
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()


def significant(entry: dict) -> bool:
    """Tell whether a comparison's difference holds after Holm's correction, at 5 %."""
    return entry["p_holm"] <= SIGNIFICANT


def least_p(entry: dict) -> float:
    """Return the smallest p-value there can be with this comparison's number of units."""
    return 2.0 ** (1 - entry["n_units"])


def units_text(entry: dict) -> str:
    """Say what a comparison resampled: ``24 speakers, 112 clips``."""
    clips = f"{entry['n_clips']} clips"
    return f"{entry['n_units']} speakers, {clips}" if entry["units"] == "subject" else clips
