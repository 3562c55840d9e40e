"""Several tests of one training: what test clips lack crossed with what training lacks."""

import copy
import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.mask_files import export_masks, read_given
from mlemiss.pipeline.stores.masks import TEST, VALIDATION, parse_missing
from mlemiss.trainer import methods as registry
from mlemiss.trainer.data import Clips, RunSpec
from mlemiss.trainer.evaluate import scores
from mlemiss.trainer.experiments import weights
from mlemiss.trainer.experiments.experiments import run_plan
from mlemiss.trainer.experiments.grid import Grid, plan_grid
from mlemiss.trainer.report.csv_files import export_csv
from mlemiss.trainer.report.matrix import matrix, matrix_rows, several_tests
from mlemiss.trainer.report.report import render_report
from mlemiss.trainer.report.tables import sections, worse_text

from .feature_stores import QUICK, grid, predictions, write_store

torch.set_num_threads(1)  # small networks
TESTS = ["none", "audio:0.5", "visual:1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """Every method, tested thrice."""
    out = tmp_path_factory.mktemp("run")
    more = {"methods": [*registry.method_names()], "missing": ["audio:0.5"], "seeds": 2, "save_weights": True}
    return out, grid([store], out, missing_test=TESTS, **more)


@pytest.fixture(scope="module")
def document(store, tmp_path_factory):
    missing, out = ["none", "audio:0.8"], tmp_path_factory.mktemp("small")
    more = {"methods": ["mle", "zp"], "fusions": ["addition", "outer"], "missing": missing, "seeds": 2}
    return grid([store], out, missing_test=TESTS, **more)


def more_probabilities(out, result):
    with np.load(out / result["predictions"]) as file:
        return file["more_tests"].tolist(), file["more_probabilities"]  # [test, seed, clip, class]


def test_what_a_test_lacks_and_training_never_does_is_told(store):
    """Of fused methods alone, and not where the test is met in training or by hiding."""

    def unlearned(settings=QUICK, **grid):
        plan = plan_grid([store], Grid(seeds=1, **grid), settings)
        return {cell.name.split(" ", 2)[2]: cell.unlearned for cell in plan.cells}

    tests = {"missing_test": TESTS, "missing": ["none", "audio:0.5"], "methods": ["mle", "lower-bound"]}
    assert unlearned(**tests) == {
        "mle addition none": ("visual",),  # some clips have no audio anyway
        "mle addition audio:0.5": ("visual",),
        "lower-bound addition none": ("visual", "audio"),
        "lower-bound addition audio:0.5": ("visual", "audio"),  # trained on complete clips
    }
    assert not any(unlearned(replace(QUICK, hide=0.3), **tests).values())
    plan, lines = (
        plan_grid([store], Grid(["mle", "only"], missing=["none"], missing_test="visual:0.5", seeds=1), QUICK),
        [],
    )
    run_plan(plan, torch.device("cpu"), hours=0, say=lines.append)
    assert [line for line in lines if line.startswith("note: tests lack visual, which training never does for mle:")]


@pytest.mark.parametrize("name", registry.method_names())
def test_further_tests_are_the_saved_weights_with_other_clips_hidden(run, store, name):
    """The reference predicts clip by clip with what the store's mask of that rate leaves, from the weights' file."""
    out, document = run
    (result,) = [r for r in document["results"] if r["method"] == name]
    clips = Clips(store)
    tests, found = more_probabilities(out, result)
    assert tests == TESTS[1:] and result["missing_tests"] == [t["missing_test"] for t in result["tests"]] == TESTS
    methods = weights.load(out / result["weights_file"], torch.device("cpu"))
    values = [store.read(m)[clips.kept] for m in store.modalities]
    by_seed = {seed: (method, r) for method in methods for r, seed in enumerate(method.runs.seeds)}
    for t, test in enumerate(tests):
        of_seeds, labels = [], []
        for s, seed in enumerate(result["seeds"]):
            part = store.split(seed)
            hidden = store.missing(parse_missing(test), seed, part == TEST)
            tested = (part == TEST)[clips.kept]
            observed = (clips.present & ~hidden[clips.kept])[tested]
            method, r = by_seed[seed]
            expected = weights.probabilities(method, [v[tested] for v in values], observed, torch.device("cpu"))[r]
            np.testing.assert_allclose(found[t, s, tested], expected.numpy(), atol=2e-6)
            assert np.isnan(found[t, s, ~tested]).all()
            of_seeds.append(found[t, s, tested]), labels.append(clips.label[tested])
        assert result["tests"][1 + t] == {"missing_test": test} | scores(of_seeds, labels)
    first = result["tests"][0]
    assert {n: result[n] for n in first if n != "missing_test"} == {
        n: v for n, v in first.items() if n != "missing_test"
    }


@pytest.mark.slow
def test_the_first_test_is_what_it_is_alone(run, store, tmp_path):
    names = registry.method_names()
    alone = grid([store], tmp_path, methods=names, missing=["audio:0.5"], seeds=2, missing_test="none")
    assert not any("tests" in r or "missing_tests" in r for r in alone["results"])
    for one, several in zip(alone["results"], run[1]["results"], strict=True):
        differ = {n for n, v in one.items() if n not in ("seconds", "predictions") and several[n] != v}
        assert not differ, (one["method"], differ)
        kept = [predictions(d, out, method=one["method"]) for d, out in ((alone, tmp_path), (run[1], run[0]))]
        np.testing.assert_array_equal(*kept)
        with np.load(tmp_path / one["predictions"]) as file:
            assert "more_tests" not in file


def test_validation_clips_lack_what_the_first_test_lacks(store):
    visual, audio, none = map(parse_missing, ("visual:0.5", "audio:1", "none"))
    clips = Clips(store)
    plain = clips.run(RunSpec(3, none, visual))
    run = clips.run(RunSpec(3, none, visual, more_tests=(audio, none)))
    np.testing.assert_array_equal(run.observed, plain.observed)
    for observed in run.more_tests:
        np.testing.assert_array_equal(observed[run.part != TEST], run.observed[run.part != TEST])
        assert (~observed[run.part == VALIDATION, 0]).any()
    assert not run.more_tests[0][run.part == TEST, 1].any()
    np.testing.assert_array_equal(run.more_tests[1][run.part == TEST], clips.present[run.part == TEST])


def test_values_that_only_a_further_test_sees_must_be_finite(store, tmp_path):
    tested = np.flatnonzero((store.split(0) == TEST) & store.done)[:2]
    broken = write_store(tmp_path, without_audio=tuple(tested), filler=np.inf)
    broken.present[tested] = True  # it says that they have audio
    more = {"methods": ["zp"], "missing": ["none"], "seeds": 1}
    assert grid([broken], tmp_path / "a", missing_test="audio:1", **more)["results"]
    with pytest.raises(InputError, match="features of 2 clips are not finite"):
        grid([broken], tmp_path / "b", missing_test=["audio:1", "none"], **more)


def test_a_finished_cell_is_taken_over_with_its_tests(store, tmp_path):
    options = {"methods": ["mle"], "missing": ["audio:0.5"], "resume": True}
    seen = []
    first = grid([store], tmp_path, missing_test=TESTS, seeds=1, **options)["results"]
    again = grid([store], tmp_path, missing_test=TESTS, seeds=1, progress=seen.append, **options)["results"]
    assert again == first and not seen
    two = grid([store], tmp_path, missing_test=TESTS, seeds=2, progress=seen.append, **options)["results"]
    assert seen[-1].what.startswith("mle addition, 1 run ")  # of the new seed alone
    assert [t["test_accuracy"][0] for t in two[0]["tests"]] == [t["test_accuracy"][0] for t in first[0]["tests"]]
    assert more_probabilities(tmp_path, two[0])[1].shape[:2] == (2, 2)
    other = grid([store], tmp_path, missing_test=TESTS[:2], seeds=2, progress=seen.append, **options)["results"]
    assert other[0]["missing_tests"] == TESTS[:2] and seen[-1].what.startswith("mle addition, 2 runs")


def test_the_matrix_in_report_and_csv(document, tmp_path):
    (part,) = sections([document])
    assert several_tests(part) == TESTS and matrix(part, ("mle", "addition")).shape == (2, 3)
    for r in document["results"]:
        i = part.columns.index(r["missing"])
        assert matrix(part, part.row(r))[i].tolist() == [t["mean"] for t in r["tests"]]
    page = render_report([document])
    assert page.count("<h3>Training by test</h3>") == 1 and "One training a row" in page
    for row in matrix_rows(part):
        assert all(f"<td>{text}</td>" in page for text in row[3:])
    paths = export_csv([document], [], tmp_path)
    assert [path.name for path in paths] == ["results.csv", "comparisons.csv", "tests.csv"]
    with (tmp_path / "tests.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tests = [(r, test) for r in document["results"] for test in r["tests"]]
    for row, (r, test) in zip(rows, tests, strict=True):
        assert (row["method"], row["missing"], row["missing_test"]) == (r["method"], r["missing"], test["missing_test"])
        assert row["validation_lacks"] == "none" and float(row["mean"]) == test["mean"]
        assert float(row["nll"]) == pytest.approx(np.mean(test["nll"]))


def test_what_is_worse_than_a_single_modality_is_told_test_by_test(document):
    """Comparisons are of the first test, and so is what holds."""
    fused = [r for r in document["results"] if (r["method"], r["fusion"]) == ("mle", "addition")]
    alone = [copy.deepcopy(r) | {"method": "only:audio", "reference": True} for r in fused]
    for test in (test for r in alone for test in r["tests"][1:]):
        test["test_accuracy"] = [score + 5 for score in test["test_accuracy"]]
    document = document | {"results": [*fused, *alone]}
    (part,) = sections([document])
    first, *others = worse_text(part)
    assert first == (
        "Test clips complete: no fused method is worse than the best single modality (chosen on validation clips)."
    )
    assert [line.split(": ")[0] for line in others] == [f"Test clips missing {name}" for name in TESTS[1:]]
    assert all("worse than the best single" in line and "by 5.0" in line for line in others)
    sides = {"a": {"method": "mle", "fusion": "addition"}, "b": {"method": "only:audio", "fusion": "addition"}}
    held = [document["comparisons"][0] | sides | {"missing": m, "verdict": True, "reason": None} for m in part.columns]
    for test in (test for r in alone for test in r["tests"][:1]):
        test["test_accuracy"] = [score + 3 for score in test["test_accuracy"]]
    first, *others = worse_text(part, held)
    assert "mle by 3.0 (which holds)" in first and not any("holds" in line for line in others)


def test_results_of_one_test_and_of_several_are_told_together(document):
    """Of runs in one table some may have several tests: the others count under their own."""
    mle, zp = (
        [copy.deepcopy(r) for r in document["results"] if (r["method"], r["fusion"]) == (method, "addition")]
        for method in ("mle", "zero-padding")
    )
    single = [copy.deepcopy(r) | {"method": "only:audio", "reference": True} for r in mle]
    for r in (*mle, *single):
        del r["tests"], r["missing_tests"]
    for r in single:
        r["test_accuracy"] = [score + 5 for score in r["test_accuracy"]]
    (part,) = sections([document | {"results": [*zp, *mle, *single]}])
    (line,) = worse_text(part)
    assert line.startswith("Test clips complete: worse than the best single") and line.count("mle by 5.0") == 2


def test_tables_of_one_test_have_no_matrix_and_gaps_are_white(document, tmp_path):
    one = copy.deepcopy(document)
    for r in one["results"]:
        del r["tests"], r["missing_tests"]
    assert "Training by test" not in render_report([one])
    assert [path.name for path in export_csv([one], [], tmp_path)] == ["results.csv", "comparisons.csv"]
    both = copy.deepcopy(document)
    both["results"] = both["results"][:1] + one["results"][1:]  # of another run, with one test
    (part,) = sections([both])
    assert np.isnan(matrix(part, ("mle", "addition"))[1]).all()
    assert matrix_rows(part)[1][3:] == ["–"] * 3 and "Training by test" in render_report([both])


def test_beside_a_masks_file_there_is_one_test(store, tmp_path):
    files = read_given(None, export_masks(store, tmp_path, 1, ["audio:0.5"], "clip")[1], [store])
    assert files.held_out("none") == parse_missing("none")
    with pytest.raises(InputError, match="exclude each other"):
        files.held_out("audio:0.5")


@pytest.mark.slow
def test_as_a_user(store, tmp_path, mlemiss):
    quick = [
        "train",
        "--store",
        store.path,
        "--missing",
        "none,audio:0.5",
        "--method",
        "zp",
        "--seeds",
        1,
        "--epochs",
        1,
    ]
    tests = ["--missing-test", "none", "--missing-test", "audio:0.50,visual:0.5", "--missing-test", "audio:0.5"]
    done = mlemiss(*quick, *tests, "--out", "run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert [r["missing_tests"] for r in results] == [["none", "audio:0.5", "visual:0.5"]] * 2
    assert "complete" in done.stdout and "One training a row" in done.stdout


def test_no_test_is_the_complete_one():
    assert Grid(missing_test=[]).missing_test == parse_missing("none")
    assert Grid(missing_test=("audio:0.5", "none", "audio:0.50")).more_tests == (parse_missing("none"),)
