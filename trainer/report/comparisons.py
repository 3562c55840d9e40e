"""Compare any two methods of one setting, test by test, from the test predictions that runs keep.

A setting is one dataset, store and its revision, features, split, given files, missing spec in training and in test,
and hyper-parameters. Of hyper-parameters only the marginal may differ: it is a choice of the method. Tuned ones, each
method's own, are those of one tuning, with as many draws for each. A difference
**holds** where it is too large to come from which speakers were tested, which clips, and how the trainings turned out:
where methods are equal on average over speakers and trainings, about 5 in 100 tables have one that "holds" (up to 8 in
simulations where trainings vary far more than speakers). So it is about other speakers like these and other trainings
(seeds: split, masks, initial weights), on this dataset. Exactly:

1. A pair is compared over its common seeds: those that both methods have, with the same test clips. Two single
   modalities are not compared.
2. ``difference`` is the mean over these seeds of the difference in accuracy, in percentage points.
3. The unit is the group under a split by a group (``subject`` or another column), never the clip. Under a split by clip
   it is the speaker (``subject``) where at least LEAST_UNITS were tested, a clip without one being a unit of its own,
   else the clip: then nothing is said of other speakers. Under a given split it is the speaker where any is known.
4. ``interval`` (95 %) is Student's t with ``df`` degrees of freedom, from variance components of units, trainings and
   what is left. ``p`` is 0.05 where it ends at 0; below, it has the tail of t with S - 1 degrees: `crossed` says why.
5. ``p_holm``: Holm's step-down correction over all comparisons of one table that have a p: all of a setting but the
   missing spec in training and the seeds. ``verdict``: whether p_holm is at most 0.05.
6. With fewer than LEAST_SEEDS common seeds, LEAST_UNITS units, LEAST_CLIPS clips in a test or LEAST_APART clips that
   only one of the two is right on in some test, or with a unit that has over LARGEST of the tests, there is no p and no
   verdict (None), ``reason`` says why, and the interval covers less or more than it says; with one seed or one unit
   there is none. In simulations, 4 seeds call up to 7 % of equal methods different, 3 seeds up to 8 % and 4 speakers
   up to 10 %; with 6 clips in a test, or with most of them one speaker's, the interval covers up to 99.5 %;
   where methods have over 98 % on tests of 20 clips, 68 to 100 %.

Shapes: S seeds, C classes, K methods of one setting, P = K (K - 1) / 2 pairs.
"""

import hashlib
import itertools
import json
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...pipeline.errors import InputError
from ..settings import BEFORE
from .crossed import paired

# Names the results of one table and of one Holm correction; of the settings all but the marginal.
FAMILY = ("dataset", "features", "store", "revision", "split", "given", "missing_test", "settings", "end_to_end")
LEAST_SEEDS, LEAST_UNITS, LEAST_CLIPS, LEAST_APART, LARGEST = 5, 10, 20, 10, 0.3
SIGNIFICANT = 0.05
TEST = 3  # of steps 3 to 6, and `crossed`: another number with any change of what they call a difference
OLD = (
    "recorded by an earlier version, whose test and interval are other than today's, and predictions are gone; "
    "train again for a verdict"
)


@dataclass(frozen=True)
class Outcomes:
    """One method's success on the tested clips."""

    right: np.ndarray  # bool [seed, clip]
    tested: np.ndarray  # bool [seed, clip]
    clip_id: np.ndarray  # [clip]
    subject: np.ndarray  # [clip]
    group: np.ndarray | None  # [clip], the values of the column that was split by, where it is another
    data: str  # hash of clip ids, labels and subjects: equal ones can be compared


def family_of(described: Mapping) -> dict:
    """Return what names the table of a result or a comparison: the values of FAMILY."""
    settings = described.get("settings") or {}
    if tuned := described.get("tuned") or settings.get("tuned"):  # the latter of a comparison
        settings = {"tuned": {name: tuned[name] for name in ("draws", "seeds", "digest")}}  # wherever it was kept
    else:
        settings = {name: value for name, value in (BEFORE | settings).items() if name != "marginal"}
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

    Results without kept predictions, or that share no seed's test clips with another, are not compared, nor two single
    modalities: that would be a question of the data, whose answer costs the methods' pairs some of Holm's 5 %. Of a
    cell that comes twice, the later counts.

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
    comparable: dict[tuple, list[tuple[dict, Outcomes]]] = defaultdict(list)
    for r in results:
        path = out_dir / r["predictions"] if r.get("predictions") else None
        if path is not None and path.is_file():
            outcomes = read_outcomes(path)
            comparable[r["missing"], outcomes.data].append((r, outcomes))
    entries: list[dict] = []
    for rows in comparable.values():
        entries += _setting(rows, several)
    return corrected(entries)


def _setting(rows: Sequence[tuple[dict, Outcomes]], several: set[str]) -> list[dict]:
    """Return the entries of one setting, in the order of its methods; what depends on others is still to come."""
    tests = [
        {(seed, one.tobytes()): s for s, (seed, one) in enumerate(zip(r["seeds"], o.tested, strict=True)) if one.any()}
        for r, o in rows
    ]
    over: dict[tuple, set[tuple[int, int]]] = defaultdict(set)  # pairs by common seeds and their tests
    for a, b in itertools.combinations(range(len(rows)), 2):
        if all(rows[i][0].get("reference") for i in (a, b)):
            continue
        if common := tuple(test for test in tests[a] if test in tests[b]):
            over[common].add((a, b))
    entries = {}
    for common, pairs in over.items():
        of = sorted({i for pair in pairs for i in pair})
        right = np.stack([rows[i][1].right[[tests[i][test] for test in common]] for i in of])
        tested = np.stack([rows[of[0]][1].tested[tests[of[0]][test]] for test in common])
        described = family_of(rows[0][0]) | {"missing": rows[0][0]["missing"], "seeds": [seed for seed, _ in common]}
        numbers = _entries(right, tested, *units_of(rows[0][1], tested, rows[0][0]["split"]))
        for (a, b), one in zip(itertools.combinations(of, 2), numbers, strict=True):
            if (a, b) in pairs:
                entries[a, b] = described | {"a": side(rows[a][0], several), "b": side(rows[b][0], several)} | one
    return [entries[pair] for pair in sorted(entries)]


def _entries(right: np.ndarray, tested: np.ndarray, kind: str, unit: np.ndarray | None) -> list[dict]:
    """Return the numbers of all pairs of ``right`` [K, S, clip] over the same ``tested`` [S, clip]."""
    found = paired(right, tested, np.zeros(tested.shape[1]) if unit is None else unit)
    n_units = 0 if unit is None else len(np.unique(unit[tested.any(0)]))
    reason = why_none(tested, kind, unit)
    counts = {"test": TEST, "units": kind, "n_units": n_units, "n_clips": int(tested.any(0).sum())}
    reasons = [reason or why_alike(a, b) for a, b in itertools.combinations(right, 2)]
    numbers = np.transpose([found.difference, found.low, found.high, found.p, found.df]).tolist()
    return [
        {"difference": difference, "interval": None if np.isnan(low) else [low, high]}
        | {"p": None if reason else p, "p_holm": None, "verdict": None, "df": None if np.isnan(df) else df}
        | counts
        | {"reason": reason}
        for (difference, low, high, p, df), reason in zip(numbers, reasons, strict=True)
    ]


def units_of(outcomes: Outcomes, tested: np.ndarray, split: str) -> tuple[str, np.ndarray | None]:
    """Return the kind of unit of a split, and each clip's unit: step 3; None where predictions lack the column."""
    if split == "subject":
        return "subject", outcomes.subject
    if split != "clip" and not split.startswith("given:"):
        return split, outcomes.group
    known = len(set(outcomes.subject[tested.any(0)]) - {""})
    if known >= (LEAST_UNITS if split == "clip" else 1):
        alone = outcomes.subject == ""
        names = np.where(alone, outcomes.clip_id, outcomes.subject)
        return "subject", np.char.add(np.where(alone, "clip ", "subject "), names)
    return "clip", outcomes.clip_id


def why_none(tested: np.ndarray, kind: str, unit: np.ndarray | None) -> str | None:
    """Say why a comparison over ``tested`` [S, clip] has no verdict; None where it has one: step 6."""
    if unit is None:
        return f"these predictions do not tell the {kind} of a clip; train again for an interval and a verdict"
    seeds, clips = len(tested), tested.sum(1)
    if seeds < LEAST_SEEDS:
        common = "is 1" if seeds == 1 else f"are {seeds}"
        return f"a verdict needs {LEAST_SEEDS} seeds that both methods have; there {common}"
    place = np.unique(unit, return_inverse=True)[1]
    share = np.bincount(place, (tested / clips[:, None]).mean(0))
    if (units := np.count_nonzero(share)) < LEAST_UNITS:
        return f"a verdict needs tests of {LEAST_UNITS} {_plural(kind)}, and {units} were tested"
    if clips.min() < LEAST_CLIPS:
        return f"a verdict needs tests of {LEAST_CLIPS} clips, and one seed's has {clips.min()}"
    if share.max() > LARGEST + 1e-9:
        most = f"over {100 * LARGEST:.0f} % of the test clips; one has {100 * share.max():.1f} %"
        return f"a verdict needs {_plural(kind)} none of which has {most}"
    return None


def why_alike(a: np.ndarray, b: np.ndarray) -> str | None:
    """Say why two methods, right or not [S, clip], differ on too few clips for a verdict; None where they do not."""
    few = f"a verdict needs {LEAST_APART} clips that only one of the two is right on in some test, and there are fewer"
    return few if np.count_nonzero((a != b).any(0)) < LEAST_APART else None


def current(entry: dict) -> dict:
    """Return a comparison as this version records it; one of an earlier test has no verdict, as its p did not hold."""
    if entry.get("test") == TEST:
        return entry
    return entry | {"p": None, "p_holm": None, "verdict": None, "df": None, "reason": OLD}


def corrected(entries: Sequence[dict]) -> list[dict]:
    """Return comparisons of any tables with ``p_holm`` and ``verdict`` from their ``p``: step 5."""
    entries = [current(entry) for entry in entries]
    families: dict[str, list[dict]] = defaultdict(list)
    for entry in entries:
        if entry["p"] is not None:
            families[family_key(entry)].append(entry)
    adjusted = {}
    for family in families.values():
        adjusted |= zip(map(id, family), holm([e["p"] for e in family]), strict=True)
    return [
        entry | {"p_holm": (p := adjusted.get(id(entry))), "verdict": None if p is None else p <= SIGNIFICANT}
        for entry in entries
    ]


def read_outcomes(path: Path) -> Outcomes:
    """Read a predictions file as outcomes of clips. InputError: it is damaged or another file."""
    try:
        with np.load(path) as file:
            probability = file["probabilities"]  # [S, clip, C], NaN where not tested
            label, names = file["label"], [file["clip_id"].astype(str), file["subject"].astype(str)]
            group = file["group"].astype(str) if "group" in file else None
            tested = ~np.isnan(probability).any(2)  # [S, clip]
            right = tested & (np.nan_to_num(probability).argmax(2) == label) if tested.size else tested
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        what = f"{path}: expected predictions of mlemiss train, found a damaged or other file ({type(error).__name__})."
        raise InputError(f"{what}\nTrain again, or remove the file to report without its comparisons.") from error
    digest = hashlib.sha256(label.astype(np.int64).tobytes())
    for values in names:
        digest.update("\0".join(values.tolist()).encode())
    return Outcomes(right, tested, *names, group, digest.hexdigest())


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's (1979) step-down correction, in the order given."""
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()


def units_text(entry: dict) -> str:
    """Say what a comparison is over: ``24 speakers, 112 clips, 5 seeds``."""
    units = [f"{entry['n_units']} {_plural(entry['units'])}"] * (entry["units"] != "clip" and entry["n_units"] > 0)
    seeds = len(entry["seeds"])
    return ", ".join([*units, f"{entry['n_clips']} clips", f"{seeds} seed{'s' * (seeds != 1)}"])


def _plural(kind: str) -> str:
    return {"subject": "speakers", "clip": "clips"}.get(kind, f"values of {kind}")
