"""Paired comparisons: as a slow reference has them, right under the null, and only between what can be compared."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.importing.importing import Request, import_features
from mlemiss.pipeline.importing.sources import Map
from mlemiss.pipeline.stores.masks import TRAIN
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.evaluate import mean_interval
from mlemiss.trainer.report import comparisons, crossed
from mlemiss.trainer.report.comparisons import compare_methods, holm, read_outcomes, units_of, why_none
from mlemiss.trainer.report.crossed import paired
from mlemiss.trainer.report.report import render_report
from mlemiss.trainer.report.runs import load_runs
from mlemiss.trainer.report.tables import comparisons_text, sections
from mlemiss.trainer.settings import BEFORE
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import brentq

from .feature_stores import damage, grid, write_store

torch.set_num_threads(1)  # small networks

CLASSES = 3


def write_predictions(path, right, subject, tested=None, seeds=None):
    """A predictions file: right [seed, clip] says which clips are classified right, tested which count."""
    right = np.asarray(right, bool)
    S, n = right.shape
    label = np.arange(n) % CLASSES
    chosen = np.where(right, label, (label + 1) % CLASSES)
    probability = np.eye(CLASSES, dtype=np.float32)[chosen] * 0.8 + 0.1
    if tested is not None:
        probability[~np.asarray(tested, bool)] = np.nan
    path.parent.mkdir(parents=True, exist_ok=True)
    clip_id = np.array([f"c{i}" for i in range(n)])
    np.savez(path, clip_id=clip_id, subject=np.array(subject), label=label, probabilities=probability, seeds=seeds or S)


def result(folder, method, right, subject, *, tested=None, missing="audio:0.5", **other):
    """One result as results.json has it, its predictions kept."""
    name = f"predictions/{method}-{missing}-{len(list(folder.rglob('*.npz')))}.npz"
    write_predictions(folder / name, right, subject, tested)
    cell = {"dataset": "d", "features": "f", "store": "s", "split": "clip", "missing_test": "none"}
    return {**cell, "missing": missing, "method": method, "fusion": "addition", "weights": None} | {
        "seeds": list(range(len(right))),
        "predictions": name,
        **other,
    }


def reference(a, b, tested, unit):
    """The estimator of `crossed`, in plain loops over cells: difference, variance, degrees of freedom."""
    S, n = len(tested), len(unit)
    cells = sorted({(unit[i], s) for s in range(S) for i in range(n) if tested[s][i]})
    w = [sum(tested[s][i] and unit[i] == g for i in range(n)) / sum(tested[s]) / S for g, s in cells]
    u = [
        sum(100 * (float(a[s][i]) - float(b[s][i])) for i in range(n) if tested[s][i] and unit[i] == g)
        / (sum(tested[s]) * S)
        for g, s in cells
    ]
    N, difference = len(cells), sum(u)
    same = [
        np.array([[float(e[0] == f[0]) for f in cells] for e in cells]),
        np.array([[float(e[1] == f[1]) for f in cells] for e in cells]),
        np.eye(N),
    ]
    residual = np.eye(N) - np.outer(w, np.ones(N))
    forms = [residual.T @ one @ residual for one in same]
    covariances = [np.diag(w) @ one @ np.diag(w) for one in same]
    squares = np.array([np.array(u) @ form @ np.array(u) for form in forms])
    expected = np.array([[np.trace(form @ one) for one in covariances] for form in forms])

    def solved(levels):
        full = np.zeros((3, 3))
        full[np.ix_(levels, levels)] = np.linalg.inv(expected[np.ix_(levels, levels)])
        return full

    def spread(combination, v):
        form = sum(c * one for c, one in zip(combination, forms, strict=True))
        covariance = sum(x * one for x, one in zip(v, covariances, strict=True))
        return 2 * np.trace(form @ covariance @ form @ covariance)

    levels = [2]
    for level, bound in ((1, 0.25), (0, 0.8)):
        without = np.maximum(solved([1 - level, 2]) @ squares, 0)
        combination = solved([0, 1, 2])[level]
        if combination @ squares > bound * spread(combination, without) ** 0.5:
            levels.insert(0, level)
    solution = solved(levels)
    v = np.maximum(solution @ squares, 0)
    shares = np.array([one.sum() for one in covariances])
    variance, combination = shares @ v, shares @ solution
    form = sum(c * one for c, one in zip(combination, forms, strict=True))
    scaled = v.copy()  # for the variance of the variance: a level alone has the df that t needs
    for level, covariance in enumerate(covariances):
        df = 2 * shares[level] ** 2 / spread(combination, np.eye(3)[level]) if level in levels else np.inf
        if df < 20:
            scaled[level] *= (df / exact_df(form, covariance, df)) ** 0.5
    return difference, variance, 2 * variance**2 / spread(combination, scaled)


def exact_df(form, covariance, least):
    """Which degrees of freedom t needs for sum(u) over (u' form u)^1/2, u normal of this covariance; least or more."""

    def beyond(t):  # Imhof 1961
        values = np.linalg.eigvals(covariance @ (np.ones(covariance.shape) - t**2 * form)).real
        values = values[np.abs(values) > 1e-12 * np.abs(values).max()] / np.abs(values).max()

        def integrand(u):
            return np.sin(np.arctan(values * u).sum() / 2) / (u * np.prod((1 + (values * u) ** 2) ** 0.25))

        return 0.5 + sum(quad(integrand, *ends, limit=500)[0] for ends in ((0, 1), (1, 50), (50, np.inf))) / np.pi

    def too_often(df):
        return beyond(stats.t.ppf(0.975, df)) - 0.05

    if too_often(least) >= 0:
        return least
    return np.inf if too_often(1e6) <= 0 else brentq(too_often, least, 1e6)


@pytest.mark.parametrize(
    ("subjects", "trainings"), [(12, 0.0), (12, 0.05), (12, 0.3), (14, 0.15), (11, 0.0), (10, 0.0), (13, 0.0)]
)
def test_estimator_equals_a_plain_reference(tmp_path, subjects, trainings):
    rng = np.random.default_rng(3)
    S, n = 6, 90
    subject = [f"p{int(subjects * (i / n) ** 0.7)}" for i in range(n)]  # of unequal size
    tested = rng.random((S, n)) < 0.4
    a = rng.random((S, n)) < 0.75 + rng.normal(0, trainings, (S, 1))
    b = rng.random((S, n)) < 0.6
    results = [result(tmp_path, m, x, subject, tested=tested) for m, x in (("A", a), ("B", b))]
    (entry,) = compare_methods(results, tmp_path)
    difference, variance, df = reference(a, b, tested, subject)
    half = stats.t.ppf(0.975, df) * variance**0.5
    assert entry["difference"] == pytest.approx(difference, abs=1e-9)
    assert entry["difference"] == pytest.approx(
        100 * np.mean([x[t].mean() - y[t].mean() for x, y, t in zip(a, b, tested, strict=True)])
    )
    assert entry["interval"] == pytest.approx([difference - half, difference + half], rel=1e-4)
    assert entry["df"] == pytest.approx(df, rel=1e-4)
    tail = min(df, S - 1)
    scaled = abs(difference) / half * stats.t.ppf(0.975, tail)
    assert entry["p"] == pytest.approx(2 * stats.t.sf(scaled, tail), rel=1e-3)
    assert (entry["units"], entry["n_units"]) == ("subject", subjects) and entry["seeds"] == list(range(S))
    assert (entry["a"], entry["b"]) == ({"method": "A", "fusion": "addition"}, {"method": "B", "fusion": "addition"})
    assert entry["p_holm"] == entry["p"] and entry["verdict"] == (entry["p"] <= 0.05)  # the only comparison


def test_one_of_thirty_unequal_speakers_does_not_cost_all_degrees_of_freedom():
    """A level that needs the normal distribution's quantile alone leaves infinitely many, not one."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(36), [290, *[20] * 35])
    found = paired(rng.random((12, 5, len(speaker))) < 0.7, np.ones((5, len(speaker)), bool), speaker)
    assert found.df.min() > 2 and (found.high - found.low).max() < 20


@pytest.mark.parametrize("training", [0.0, 0.15])
def test_few_tables_of_equal_methods_have_a_verdict(training):
    """Ten methods alike, trainings that vary little: Holm over 45 pairs."""
    rng, G, S = np.random.default_rng(5), 24, 5
    speaker, wrong = np.repeat(np.arange(G), 5), 0
    for _ in range(60):
        moved = rng.normal(0, training, (10, S, 1)) + rng.normal(0, 1, (10, S, G))[:, :, speaker] * 0.1
        found = paired(rng.random((10, S, len(speaker))) < 0.7 + moved, np.ones((S, len(speaker)), bool), speaker)
        wrong += min(holm(found.p)) <= 0.05
    assert wrong <= 8  # 3 are expected at most


def test_many_units_are_dealt_into_fewer(monkeypatch):
    """4000 cells of 1 clip: as many sums as 2000 hold, evenly, with nearly the same interval."""
    rng = np.random.default_rng(1)
    right, tested, unit = rng.random((6, 5, 800)) < 0.7, np.ones((5, 800), bool), np.arange(800)
    dealt = paired(right, tested, unit)
    assert np.bincount(crossed._dealt(800, 5)).tolist() == [2] * 400
    monkeypatch.setattr(crossed, "CELLS", 4000)
    assert np.bincount(crossed._dealt(800, 5)).tolist() == [1] * 800
    whole = paired(right, tested, unit)
    assert dealt.difference == pytest.approx(whole.difference, abs=1e-9)
    assert ((dealt.high - dealt.low) / (whole.high - whole.low)).tolist() == pytest.approx([1] * 15, abs=0.25)


def test_pairs_are_those_of_two_rows_alone():
    rng = np.random.default_rng(0)
    right, tested, unit = rng.random((4, 6, 120)) < 0.7, rng.random((6, 120)) < 0.4, np.arange(120) % 17
    together = paired(right & tested, tested, unit)
    for place, (a, b) in enumerate(itertools.combinations(range(4), 2)):
        alone = paired((right & tested)[[a, b]], tested, unit)
        for name in ("difference", "low", "high", "p", "df"):
            assert getattr(together, name)[place] == pytest.approx(getattr(alone, name)[0], rel=1e-7)


@pytest.mark.parametrize("by", ["clip", "subject", "given, speakers unequal"])
@pytest.mark.parametrize("training", [0.0, 0.06])
def test_equal_methods_differ_in_one_of_twenty(by, training):
    """Methods alike on average, whose speakers and trainings deviate; the benchmark does more of it."""
    rng = np.random.default_rng(11)
    S, G, n, differ, found = 5, 20, 400, 0.05, []
    speaker = np.arange(n) % G
    if by == "given, speakers unequal":
        differ = 0.15
        speaker = np.repeat(np.arange(G), [max(110 // k, 4) for k in range(1, G + 1)])
        n = len(speaker)
    neighbours = [i for i, (a, b) in enumerate(itertools.combinations(range(40), 2)) if a % 2 == 0 and b == a + 1]
    for _ in range(40):
        held = np.stack([rng.permutation(G if by == "subject" else n) for _ in range(S)])
        tested = held[:, speaker] < 4 if by == "subject" else held < (80 if by == "clip" else n)
        own, moved = rng.normal(0, differ, (40, 1, G))[:, :, speaker], rng.normal(0, training, (40, S, 1))
        estimates = paired((rng.random((40, S, n)) < 0.7 + own + moved) & tested, tested, speaker)
        found += [(estimates.p[i], estimates.low[i], estimates.high[i]) for i in neighbours]
    p, low, high = np.transpose(found)
    assert 0.02 < np.mean(p <= 0.05) < 0.075  # 0.05 and three standard errors
    assert ((low <= 0) & (high >= 0) == (p >= 0.05)).all()


@pytest.mark.parametrize(
    ("split", "seeds", "speakers", "units", "reason"),
    [
        ("clip", 5, 12, "subject", None),
        ("clip", 5, 4, "clip", None),  # says nothing of other speakers
        ("clip", 4, 12, "subject", "needs 5 seeds that both methods have; there are 4"),
        ("clip", 1, 12, "subject", "there is 1"),
        ("subject", 5, 4, "subject", "needs tests of 10 speakers, and 4 were tested"),
        ("given:own.csv", 5, 4, "subject", "needs tests of 10 speakers, and 4 were tested"),
        ("statement", 5, 12, "statement", "do not tell the statement of a clip"),
    ],
)
def test_no_verdict_where_none_can_be_had(tmp_path, split, seeds, speakers, units, reason):
    rng = np.random.default_rng(7)
    subject = [f"p{i % speakers}" for i in range(120)]
    rows = [
        result(tmp_path, m, rng.random((seeds, 120)) < q, subject, split=split) for m, q in (("A", 0.9), ("B", 0.4))
    ]
    (entry,) = compare_methods(rows, tmp_path)
    assert entry["units"] == units and 30 < entry["difference"] < 70
    assert (entry["interval"] is None) == (seeds == 1 or split == "statement")
    if reason is None:
        assert entry["verdict"] is True and entry["reason"] is None and entry["p"] == entry["p_holm"] < 0.001
    else:
        assert (entry["p"], entry["p_holm"], entry["verdict"]) == (None, None, None) and reason in entry["reason"]
        assert f"No verdict on 1 of 1: {entry['reason']}." in comparisons_text([entry])


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ([f"p{min(i // 5, 12)}" for i in range(120)], "none of which has over 30 % of the test clips; one has 50.0 %"),
        ([f"p{min(i // 8, 10)}" for i in range(116)], "one has 31.0 %"),
        ([f"p{min(i // 8, 10)}" for i in range(114)], None),  # 30 %
        ([f"p{i}" for i in range(19)], "needs tests of 20 clips, and one seed's has 19"),
        ([f"p{i}" for i in range(20)], None),
    ],
)
def test_no_verdict_where_the_interval_would_cover_too_much(tmp_path, subject, reason):
    rng = np.random.default_rng(7)
    rows = [result(tmp_path, m, rng.random((5, len(subject))) < q, subject) for m, q in (("A", 0.95), ("B", 0.3))]
    (entry,) = compare_methods(rows, tmp_path)
    assert entry["interval"][0] < entry["difference"] < entry["interval"][1]
    assert (entry["verdict"], entry["reason"]) == (True, None) if reason is None else reason in entry["reason"]


def test_the_largest_unit_is_by_its_share_of_each_test():
    """Of 4 tests of 40 clips one speaker has a half, of the fifth, of 400, a hundredth: 40 %, not 15 % of all clips."""
    speaker = np.repeat(np.arange(21), 40)
    tested = np.zeros((5, len(speaker)), bool)
    tested[:4, :20], tested[:4, 40::40] = True, True
    tested[4, 36:436] = True
    assert "one has 40.2 %" in why_none(tested, "subject", speaker)


def test_pairs_of_different_seeds_are_compared_over_the_common_ones(tmp_path):
    rng = np.random.default_rng(8)
    right, subject = rng.random((3, 8, 90)) < 0.7, [f"p{i % 15}" for i in range(90)]
    a, b, c = (result(tmp_path, m, x, subject) for m, x in zip("ABC", right, strict=True))
    b["seeds"] = [2, 3, 4, 5, 6, 7, 8, 9]
    entries = compare_methods([a, b, c], tmp_path)
    assert [(e["a"]["method"], e["b"]["method"], len(e["seeds"])) for e in entries] == [
        ("A", "B", 6),
        ("A", "C", 8),
        ("B", "C", 6),
    ]
    assert entries[0]["seeds"] == [2, 3, 4, 5, 6, 7]
    assert entries[0]["difference"] == pytest.approx(100 * (right[0, 2:].mean() - right[1, :6].mean()))


def test_a_large_difference_is_found_and_none_where_there_is_none(tmp_path):
    rng = np.random.default_rng(5)
    subject = [f"p{i % 24}" for i in range(240)]
    good, alike, bad = (rng.random((5, 240)) < share for share in (0.9, 0.9, 0.6))
    entries = compare_methods(
        [result(tmp_path, m, x, subject) for m, x in (("good", good), ("alike", alike), ("bad", bad))], tmp_path
    )
    first, second, third = entries
    assert first["p"] > 0.05 and abs(first["difference"]) < 5
    for entry in (second, third):
        assert entry["p_holm"] < 0.001 and 25 < entry["difference"] < 36
        assert 15 < entry["interval"][0] < entry["difference"] < entry["interval"][1] < 45
    same = compare_methods([result(tmp_path / "s", m, good, subject) for m in "AB"], tmp_path / "s")[0]
    assert (same["difference"], same["interval"], same["verdict"]) == (0, [0, 0], None)
    assert "10 clips that only one of the two is right on" in same["reason"]


@pytest.mark.parametrize(("apart", "told"), [(9, False), (10, True)])
def test_no_verdict_where_methods_differ_on_few_clips(tmp_path, apart, told):
    """Each in some test alone; a clip counts once."""
    right = np.ones((5, 60), bool)
    one = right.copy()
    one[np.arange(apart) % 5, np.arange(apart)] = False
    one[:, 0] = False
    (entry,) = compare_methods(
        [result(tmp_path, m, x, [f"p{i % 12}" for i in range(60)]) for m, x in (("A", right), ("B", one))], tmp_path
    )
    assert (entry["verdict"] is not None, entry["p"] is not None, entry["reason"] is None) == (told, told, told)
    assert entry["interval"][0] < entry["difference"] < entry["interval"][1]


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == []


def test_holm_is_over_one_table_and_its_missing_specs(tmp_path):
    rng = np.random.default_rng(2)
    subject = [f"p{i % 8}" for i in range(80)]
    cells = [
        result(tmp_path, method, rng.random((5, 80)) < share, subject, missing=missing, features=features)
        for features in ("f", "g")
        for missing in ("audio:0.5", "audio:0.9")
        for method, share in (("A", 0.9), ("B", 0.5), ("C", 0.6))
    ]
    entries = compare_methods(cells, tmp_path)
    assert len(entries) == 2 * 2 * 3
    for features in ("f", "g"):
        table = [e for e in entries if e["features"] == features]
        assert [e["p_holm"] for e in table] == holm([e["p"] for e in table])
    assert {e["missing"] for e in entries} == {"audio:0.5", "audio:0.9"}


def test_two_single_modalities_are_not_compared(tmp_path):
    """Nor do they count in Holm's correction."""
    rng, subject = np.random.default_rng(3), [f"p{i % 12}" for i in range(120)]
    cells = [
        result(tmp_path, method, rng.random((5, 120)) < share, subject, reference=":" in method)
        for method, share in (("only:a", 0.5), ("A", 0.6), ("only:b", 0.6), ("only:c", 0.7))
    ]
    entries = compare_methods(cells, tmp_path)
    assert [(e["a"]["method"], e["b"]["method"]) for e in entries] == [
        ("only:a", "A"),
        ("A", "only:b"),
        ("A", "only:c"),
    ]
    assert [e["p_holm"] for e in entries] == holm([e["p"] for e in entries])
    assert compare_methods([cells[0], cells[2]], tmp_path) == []


def test_what_an_earlier_test_found_has_no_verdict():
    entry = {"p": 0.001, "p_holm": 0.01, "verdict": True, "df": 9.0, "reason": None, "test": comparisons.TEST}
    assert comparisons.current(entry) is entry
    for before in (entry | {"test": comparisons.TEST - 1}, {name: entry[name] for name in entry if name != "test"}):
        old = comparisons.current(before)
        assert (old["p"], old["p_holm"], old["verdict"]) == (None, None, None) and "earlier version" in old["reason"]


def test_units_are_speakers_and_clips_without_one(tmp_path):
    subject = np.array([f"p{i % 12}" if i < 60 else "" for i in range(70)])
    cell = result(tmp_path, "A", np.ones((2, 70)), subject)
    outcomes = read_outcomes(tmp_path / cell["predictions"])
    whole = np.ones((2, 70), bool)
    kind, unit = units_of(outcomes, whole, "clip")
    assert kind == "subject" and len(set(unit)) == 12 + 10
    few = whole & (np.arange(70) % 12 < 9)  # of nine speakers alone
    assert units_of(outcomes, few, "clip")[0] == "clip" and units_of(outcomes, few, "given:x")[0] == "subject"
    assert units_of(outcomes, whole & (subject == ""), "given:x")[0] == "clip"
    same = [*subject[:60], *[f"c{i}" for i in range(10)]]  # a speaker may be called as a clip is
    cell = result(tmp_path, "B", np.ones((2, 70)), [*same[:65], *[""] * 5])
    other = read_outcomes(tmp_path / cell["predictions"])
    assert len(set(units_of(other, whole, "clip")[1])) == 12 + 5 + 5


def test_other_labels_are_other_data(tmp_path):
    cells = [result(tmp_path, m, np.ones((2, 30)), [""] * 30) for m in "AB"]
    path = tmp_path / cells[1]["predictions"]
    with np.load(path) as file:
        held = dict(file)
    np.savez(path, **held | {"label": np.roll(held["label"], 1)})
    assert compare_methods(cells, tmp_path) == []


def test_only_the_same_seeds_and_test_clips_are_compared(tmp_path):
    rng = np.random.default_rng(1)
    subject = [f"p{i % 8}" for i in range(40)]
    right, tested = rng.random((2, 40)) < 0.7, rng.random((2, 40)) < 0.5
    a = result(tmp_path, "A", right, subject, tested=tested)
    others = [
        result(tmp_path, "B", right, subject, tested=~tested),  # other test clips
        result(tmp_path, "C", right, subject, tested=tested) | {"seeds": [5, 2]},
        result(tmp_path, "D", right, subject, tested=tested, missing="audio:0.9"),
        result(tmp_path, "E", right, [*subject[:-1], "p99"], tested=tested),
        result(tmp_path, "F", right, subject, tested=tested) | {"predictions": "predictions/gone.npz"},
        result(tmp_path, "G", right, subject, tested=tested, given="masks.csv 0123"),
        {k: v for k, v in result(tmp_path, "H", right, subject, tested=tested).items() if k != "predictions"},
    ]
    assert compare_methods([a, *others], tmp_path) == []
    again = result(tmp_path, "A", ~right, subject, tested=tested)  # of a cell that ran twice, the later stands
    (entry,) = compare_methods([a, result(tmp_path, "I", right, subject, tested=tested), again], tmp_path)
    assert entry["a"]["method"] == "A" and entry["difference"] < 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x80\x04pickle"])
def test_damaged_predictions_are_an_input_error(tmp_path, content):
    cell = result(tmp_path, "A", np.ones((1, 9)), [""] * 9)
    (tmp_path / cell["predictions"]).write_bytes(content)
    with pytest.raises(InputError, match=r"A-audio.*(?s:expected predictions.*remove the file)"):
        compare_methods([cell], tmp_path)


def test_a_damaged_byte_is_an_input_error(tmp_path):
    """What does not decompress, zlib tells in an error of its own."""
    grid([write_store(tmp_path)], tmp_path / "run", seeds=1)
    (path,) = (tmp_path / "run" / "predictions").iterdir()
    damage(path, "probabilities.npy")
    with pytest.raises(InputError, match=r"found a damaged or other file"):
        load_runs([tmp_path / "run"])


def test_interval_of_the_mean():
    assert mean_interval([70.0]) is None
    assert mean_interval([70.0, 72.0, 74.0]) == pytest.approx([72 - 4.9683, 72 + 4.9683], abs=1e-3)  # t = 4.3027
    assert mean_interval([99.0, 100.0]) == pytest.approx([99.5 - 6.3531, 100], abs=1e-3)  # not above 100


def test_a_grid_records_its_comparisons_and_runs_are_compared_together(tmp_path):
    store = write_store(tmp_path, clips=120)
    options = {"missing": ["audio:0.5", "visual:0.5"], "seeds": 2}
    one = grid([store], tmp_path / "one", methods=["mle", "lb"], **options)
    grid([store], tmp_path / "two", methods=["zp"], **options)
    assert len(one["comparisons"]) == 2
    assert json.loads((tmp_path / "one" / "results.json").read_text())["comparisons"] == one["comparisons"]
    for entry in one["comparisons"]:
        a, b = (
            next(r for r in one["results"] if r["missing"] == entry["missing"] and r["method"] == entry[side]["method"])
            for side in "ab"
        )
        assert entry["difference"] == pytest.approx(a["mean"] - b["mean"], abs=1e-9)
        assert entry["units"] == "clip" and entry["verdict"] is None and "there are 2" in entry["reason"]
    for r in one["results"]:
        assert r["interval"][0] < r["mean"] < r["interval"][1]
    together = load_runs([tmp_path / "one", tmp_path / "two" / "results.json"])[1]
    assert len(together) == 2 * 3
    assert load_runs([tmp_path / "one"])[1] == one["comparisons"]
    shutil.rmtree(tmp_path / "one" / "predictions")
    recorded = [entry | {"recorded": True} for entry in one["comparisons"]]
    assert load_runs([tmp_path / "one"])[1] == recorded


def test_what_a_run_recorded_stays_where_some_predictions_are_gone(tmp_path):
    store = write_store(tmp_path)
    document = grid([store], tmp_path / "run", methods=["mle", "lb", "zp"], missing=["audio:0.5"], seeds=2)
    (gone,) = (r for r in document["results"] if r["method"] == "zero-padding")
    (tmp_path / "run" / gone["predictions"]).unlink()
    path = tmp_path / "run" / "results.json"
    for entry in document["comparisons"]:  # an older record: without what tells tables apart
        entry["difference"] = 77.0
        entry |= {"p": 0.001, "p_holm": 0.003}  # by a test that does not hold
        for name in ("revision", "given", "settings", "verdict", "reason", "df", "test"):
            del entry[name]
    path.write_text(json.dumps(document))
    entries = load_runs([tmp_path / "run"])[1]
    methods = {frozenset((e["a"]["method"], e["b"]["method"])): e for e in entries}
    assert len(methods) == len(entries) == 3
    for pair, entry in methods.items():
        assert ("zero-padding" in pair) == entry.get("recorded", False) == (entry["difference"] == 77)
        old = "recorded by an earlier version" in entry["reason"]
        assert old == ("zero-padding" in pair) and (entry["p"], entry["verdict"]) == (None, None)
    (part,) = sections([document])
    assert "2 of them could not be recomputed" in " ".join(comparisons_text(part.compared(entries)))
    # The same cell, run again and kept, stands instead of the one that the record is about.
    grid([store], tmp_path / "again", methods=["zp"], missing=["audio:0.5"], seeds=2)
    entries = load_runs([tmp_path / "run", tmp_path / "again"])[1]
    assert len(entries) == 3 and not any(e.get("recorded") for e in entries)


def test_other_hyper_parameters_are_other_tables_but_for_the_marginal(tmp_path):
    rng = np.random.default_rng(4)
    subject = [f"p{i % 8}" for i in range(60)]

    def cell(method, **other):
        settings = {"hidden": 8, "marginal": "bank"} | other.pop("settings", {})
        return result(tmp_path, method, rng.random((2, 60)) < 0.7, subject, settings=settings, **other)

    a = cell("A", marginal="bank")
    others = [cell("B", settings={"hidden": 16}), cell("B", revision=2), cell("B", given={"masks": {"file": "m"}})]
    assert compare_methods([a, *others], tmp_path) == []
    full = {"settings": {"marginal": "full"}}
    entries = compare_methods([a, cell("B"), cell("A", marginal="full", **full), cell("C", **full)], tmp_path)
    assert len(entries) == 6 and entries[0]["settings"] == BEFORE | {"hidden": 8}
    clamped = [cell("C", settings={"clamp": value}) for value in (0.0, 3.0)]  # results of before were not clamped
    assert [len(compare_methods([a, one], tmp_path)) for one in clamped] == [1, 0]
    sides = [entries[1]["a"], entries[1]["b"], entries[0]["b"]]
    plain = {"fusion": "addition"}
    assert sides == [
        {"method": "A", "marginal": "bank"} | plain,
        {"method": "A", "marginal": "full"} | plain,
        {"method": "B"} | plain,
    ]


def test_results_without_a_tested_clip_are_left_out(tmp_path):
    right, subject = np.ones((2, 20)), [""] * 20
    nothing = [result(tmp_path, m, right, subject, tested=np.zeros((2, 20))) for m in "AB"]  # NaN throughout
    assert compare_methods(nothing, tmp_path) == []
    empty = [result(tmp_path, m, np.ones((2, 0)), [], missing="none") for m in "AB"]
    both = [result(tmp_path, m, right, subject) for m in "CD"]
    (entry,) = compare_methods([*nothing, *empty, *both], tmp_path)
    assert (entry["a"]["method"], entry["b"]["method"]) == ("C", "D")


def test_clips_of_one_value_of_a_column_stay_together_from_file_to_report(tmp_path):
    """Imported with its column, split by it, compared over its values."""
    rng, label, session = np.random.default_rng(0), np.arange(360) % 3, np.arange(360) // 3 % 60
    arrays = {name: (rng.normal(size=(360, 6)) + 2 * np.eye(6)[label]).astype("f4") for name in ("visual", "audio")}
    np.savez(tmp_path / "own.npz", label=label, session=session, **arrays)
    maps = tuple(Map(name, name) for name in arrays)
    request = Request(tmp_path / "own.npz", "own", "own", maps, label="label", columns=("session",))
    store = FeatureStore.open(import_features(request, tmp_path))
    methods = {"methods": ["mle", "only:audio"], "missing": ["audio:0.5"], "seeds": 5, "splits": ["session"]}
    document = grid([store], tmp_path / "run", **methods)
    session = store.columns["session"]
    with np.load(tmp_path / "run" / document["results"][0]["predictions"]) as file:
        tested = ~np.isnan(file["probabilities"][..., 0])
        assert (file["group"] == session).all()
    for seed, part in enumerate(tested):
        assert not set(session[part]) & set(session[store.split(seed, "session") == TRAIN])
    (entry,) = document["comparisons"]
    assert entry["units"] == "session" and entry["verdict"] is not None and entry["n_units"] >= 10
    assert "values of session" in render_report([document])


def test_of_a_cell_in_two_runs_the_one_with_most_seeds_counts(tmp_path):
    """Whatever the order in which they are named; and it is told."""
    store = write_store(tmp_path)
    for name, seeds in (("three", 3), ("two", 2)):
        grid([store], tmp_path / name, methods=["zp"], missing=["audio:0.5"], seeds=seeds)
    for order in (("three", "two"), ("two", "three")):
        documents, _, told = load_runs([tmp_path / name for name in order])
        (result,) = [r for document in documents for r in document["results"]]
        assert result["seeds"] == [0, 1, 2] and "which counts as it has 3 seeds, not 2" in told[0]
        assert render_report(documents, [])
