"""Paired comparisons: as a slow reference has them, right under the null, and only between what can be compared."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.trainer.evaluate import mean_interval
from mlemiss.trainer.report.comparisons import compare_methods, holm, paired, read_outcomes
from mlemiss.trainer.report.report import load_runs
from mlemiss.trainer.report.tables import comparisons_text, sections

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


def differences(a, b, tested):
    """Step 1 of the estimator, in loops: the difference of each tested clip, in percent, by clip."""
    found = {}
    for i in range(len(a[0])):
        seeds = [s for s in range(len(a)) if tested[s][i]]
        if seeds:
            found[i] = 100 * sum(float(a[s][i]) - float(b[s][i]) for s in seeds) / len(seeds)
    return found


def reference(difference, unit, resamples, flips, rng):
    """Steps 2 to 5, in loops over units; flips None enumerates all."""
    units = sorted(set(unit.values()))
    members = {u: [difference[i] for i in difference if unit[i] == u] for u in units}
    n = len(difference)
    mean = sum(difference.values()) / n
    draws = []
    for _ in range(resamples):
        values = [d for u in rng.choice(units, len(units)) for d in members[u]]
        draws.append(sum(values) / len(values))
    sums = [sum(members[u]) for u in units]
    every = itertools.product((-1, 1), repeat=len(units)) if flips is None else rng.choice((-1, 1), (flips, len(units)))
    reached = [abs(sum(e * s for e, s in zip(signs, sums, strict=True))) >= abs(mean * n) - 1e-9 for signs in every]
    p = np.mean(reached) if flips is None else (1 + sum(reached)) / (1 + len(reached))
    return mean, *np.quantile(draws, [0.025, 0.975]), p


@pytest.mark.parametrize(("subjects", "enumerated"), [(9, True), (20, False), (0, False)])
def test_estimator_equals_a_plain_reference(tmp_path, subjects, enumerated):
    rng = np.random.default_rng(3)
    S, n = 4, 90
    subject = [f"p{int(subjects * (i / n) ** 0.7)}" if subjects else "" for i in range(n)]  # of unequal size
    tested = rng.random((S, n)) < 0.3
    a, b = rng.random((S, n)) < 0.75, rng.random((S, n)) < 0.6
    results = [result(tmp_path, m, x, subject, tested=tested) for m, x in (("A", a), ("B", b))]
    (entry,) = compare_methods(results, tmp_path)
    difference = differences(a, b, tested)
    unit = {i: subject[i] or f"clip {i}" for i in difference}
    mean, low, high, p = reference(difference, unit, 3000, None if enumerated else 3000, rng)
    assert entry["difference"] == pytest.approx(mean, abs=1e-9)
    assert entry["interval"] == pytest.approx([low, high], abs=1.0)  # points; two independent bootstraps
    assert entry["p"] == pytest.approx(p, abs=1e-12 if enumerated else 0.03)
    assert (entry["units"], entry["n_units"]) == ("subject" if subjects else "clip", len(set(unit.values())))
    assert entry["n_clips"] == len(difference) and entry["seeds"] == [0, 1, 2, 3]
    assert (entry["a"], entry["b"]) == (
        {"method": "A", "fusion": "addition"},
        {"method": "B", "fusion": "addition"},
    )
    assert entry["p_holm"] == entry["p"]  # the only comparison


def test_pairs_are_those_of_two_rows_alone():
    rng = np.random.default_rng(0)
    outcome, unit = rng.random((4, 120)), np.arange(120) % 17
    together = paired(outcome, unit)
    for place, (a, b) in enumerate(itertools.combinations(range(4), 2)):
        alone = paired(outcome[[a, b]], unit)
        np.testing.assert_allclose([x[place] for x in together[:4]], [x[0] for x in alone[:4]], atol=1e-9)


def test_p_is_uniform_and_the_interval_covers_where_there_is_no_difference():
    """Two methods alike, with speakers that are easy or hard for both and for one of them."""
    rng = np.random.default_rng(11)
    trials, units = 300, 18
    p, covered = [], 0
    for _ in range(trials):
        unit = np.repeat(np.arange(units), rng.integers(3, 9, units))
        skill = rng.uniform(0.3, 0.9, units) + rng.normal(0, 0.1, (2, units))
        outcome = 100.0 * (rng.random((2, len(unit))) < skill[:, unit])
        _, low, high, value, _ = paired(outcome, unit, 400)
        p.append(value[0])
        covered += low[0] <= 0 <= high[0]
    assert 0.015 < np.mean(np.array(p) <= 0.05) < 0.09  # 0.05 ± 3 standard errors
    assert 0.4 < np.mean(p) < 0.6 and 0.3 < np.mean(np.array(p) <= 0.4) < 0.5
    assert 0.87 < covered / trials < 0.98  # a percentile interval of 18 units is a little narrow


def test_a_large_difference_is_found_and_none_where_there_is_none(tmp_path):
    rng = np.random.default_rng(5)
    subject = [f"p{i % 24}" for i in range(240)]
    good, alike, bad = (rng.random((3, 240)) < share for share in (0.9, 0.9, 0.6))
    entries = compare_methods(
        [result(tmp_path, m, x, subject) for m, x in (("good", good), ("alike", alike), ("bad", bad))], tmp_path
    )
    first, second, third = entries
    assert first["p"] > 0.05 and abs(first["difference"]) < 5
    for entry in (second, third):
        assert entry["p_holm"] < 0.001 and 25 < entry["difference"] < 36
        assert 15 < entry["interval"][0] < entry["difference"] < entry["interval"][1] < 45
    same = compare_methods([result(tmp_path / "s", m, good, subject) for m in "AB"], tmp_path / "s")[0]
    assert (same["difference"], same["interval"], same["p"]) == (0, [0, 0], 1)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == []


def test_holm_is_over_one_table_and_its_missing_specs(tmp_path):
    rng = np.random.default_rng(2)
    subject = [f"p{i % 8}" for i in range(80)]
    cells = [
        result(tmp_path, method, rng.random((2, 80)) < share, subject, missing=missing, features=features)
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


def test_only_the_same_seeds_and_test_clips_are_compared(tmp_path):
    rng = np.random.default_rng(1)
    subject = [f"p{i % 8}" for i in range(40)]
    right, tested = rng.random((2, 40)) < 0.7, rng.random((2, 40)) < 0.5
    a = result(tmp_path, "A", right, subject, tested=tested)
    others = [
        result(tmp_path, "B", right, subject, tested=~tested),  # other test clips
        result(tmp_path, "C", right, subject, tested=tested) | {"seeds": [0, 2]},
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


@pytest.mark.parametrize(
    ("subject", "kind", "units"),
    [
        ([f"p{i % 5}" for i in range(30)], "clip", 30),  # five speakers are too few
        ([f"p{i % 6}" for i in range(30)], "subject", 6),
        ([""] * 30, "clip", 30),
        (["", "", *(f"p{i % 6}" for i in range(28))], "subject", 8),  # without a speaker: a unit of its own
    ],
)
def test_units_are_speakers_where_there_are_enough(tmp_path, subject, kind, units):
    write_predictions(tmp_path / "p.npz", np.ones((1, 30)), subject)
    outcomes = read_outcomes(tmp_path / "p.npz")
    assert (outcomes.kind, len(set(outcomes.unit))) == (kind, units)


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
        assert entry["difference"] == pytest.approx(a["mean"] - b["mean"], abs=8)  # clips of two seeds weigh half
        assert entry["units"] == "subject" and 0 < entry["p"] <= entry["p_holm"] <= 1
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
        for name in ("revision", "given", "settings"):
            del entry[name]
    path.write_text(json.dumps(document))
    entries = load_runs([tmp_path / "run"])[1]
    methods = {frozenset((e["a"]["method"], e["b"]["method"])): e for e in entries}
    assert len(methods) == len(entries) == 3
    for pair, entry in methods.items():
        assert ("zero-padding" in pair) == entry.get("recorded", False) == (entry["difference"] == 77)
    assert [e["p_holm"] for e in entries] == holm([e["p"] for e in entries])
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
    assert len(entries) == 6 and entries[0]["settings"] == {"hidden": 8}
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
