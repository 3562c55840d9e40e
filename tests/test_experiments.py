"""Grids: their results are as documented, and what cannot be is said before training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import TEST, parse_missing
from mlemiss.trainer.experiments import experiments
from mlemiss.trainer.experiments.experiments import run_grid, run_plan
from mlemiss.trainer.experiments.grid import Grid, plan_grid
from mlemiss.trainer.experiments.run_folder import RunFolder
from mlemiss.trainer.report.report import render_report
from mlemiss.trainer.settings import Settings

from .feature_stores import QUICK, grid, predictions, write_store

torch.set_num_threads(1)  # small networks


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores"))


def test_results_are_as_documented(store, tmp_path):
    seen = []
    document = grid(
        [store], tmp_path, methods=["mle", "zp"], fusions=["addition", "outer"], seeds=2, progress=seen.append
    )
    assert json.loads((tmp_path / "results.json").read_text()) == document
    assert document["schema"] == 1 and len(document["comparisons"]) == 3
    assert [(r["method"], r["fusion"]) for r in document["results"]] == [
        ("mle", "addition"),
        ("mle", "outer"),
        ("zero-padding", "addition"),
    ]
    assert ["zero-padding outer" in s["cell"] for s in document["skipped"]] == [True]
    for r in document["results"]:
        assert (r["dataset"], r["features"], r["store"], r["weights"]) == ("toy", "toy", "0123abcd", "random")
        assert (r["missing"], r["missing_test"], r["split"], r["seeds"]) == ("audio:0.5", "none", "clip", [0, 1])
        assert r["marginal"] == ("bank" if r["method"] == "mle" else None)
        assert (r["mean"], r["std"]) == (np.mean(r["test_accuracy"]), np.std(r["test_accuracy"], ddof=1))
        assert np.sum(r["confusion"]) == sum(r["n_test"])
        assert np.trace(r["confusion"]) == round(np.dot(r["test_accuracy"], r["n_test"]) / 100)
        assert r["curve"]["epoch"] == [1, 2, 3] and np.shape(r["curve"]["val_accuracy"]) == (2, 3)
        assert r["n_complete"][0] < r["n_train"][0] and r["epochs"] == 3 and r["seconds"] > 0
        with np.load(tmp_path / r["predictions"]) as file:
            probability, clip_id, label = file["probabilities"], file["clip_id"], file["label"]
            assert list(file["seeds"]) == [0, 1] and list(file["classes"]) == list(store.classes)
        for s in range(2):
            tested = ~np.isnan(probability[s, :, 0])
            assert set(clip_id[tested]) == set(store.clip_id[(store.split(s) == TEST) & (store.status == "done")])
            np.testing.assert_allclose(probability[s, tested].sum(-1), 1, atol=1e-5)
            right = (probability[s, tested].argmax(-1) == label[tested]).mean()
            assert 100 * right == pytest.approx(r["test_accuracy"][s])
    assert seen[-1].done == seen[-1].total and seen[0].done < seen[0].total


def test_one_seed_has_no_deviation(store, tmp_path):
    assert grid([store], tmp_path, seeds=1)["results"][0]["std"] is None


@pytest.mark.slow
def test_learns_from_incomplete_clips(tmp_path):
    """Audio is missing in 90 % of training clips; the lower bound has 2 or 3 clips a class, mle has all."""
    easy = write_store(tmp_path, clips=120, separation=1.2)
    settings = Settings(dropout=0.0, epochs=25, batch_size=32, lr=3e-3, hidden=32, dim=8)
    document = run_grid([easy], Grid(["mle", "lb", "zp"], missing=["audio:0.9"], seeds=3), settings, "cpu")
    mle, bound, padding = (r["mean"] for r in document["results"])
    assert mle > 80 and padding > 80
    assert mle > bound


@pytest.mark.parametrize("fusion", ["addition", "concatenation", "outer"])
def test_incomplete_test_clips_are_predicted(store, tmp_path, fusion):
    document = grid(
        [store], tmp_path, methods=["mle", "lb"], fusions=[fusion], missing_test="audio:0.4+visual:0.3", seeds=2
    )
    for r in document["results"]:
        values = predictions(document, tmp_path, method=r["method"])
        assert np.isfinite(values[~np.isnan(values[..., 0])]).all()
        assert r["missing_test"] == "audio:0.4+visual:0.3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["zero-padding"], "fusions": ["outer"]}, "zero-padding cannot use the fusion outer"),
        ({"methods": ["nothing"]}, "unknown method 'nothing'"),
        ({"fusions": ["sum"]}, "unknown fusion 'sum'"),
        ({"missing": ["smell:0.5"]}, "smell"),
        ({"methods": ["lower-bound"], "missing": ["visual:1.0"]}, "lower-bound cannot train.*at least two"),
        (
            {"methods": ["ae1"], "missing": ["audio:0.5+visual:0.5"]},
            "ae1 cannot train its autoencoder.*1 complete ones",
        ),
        ({"methods": ["hgr"], "missing": ["audio:0.5+visual:0.5"]}, "hgr cannot train.*at least 2 complete ones"),
        ({"methods": ["visual-only"], "missing": ["visual:1.0"]}, "visual-only cannot train"),
        ({"methods": ["mle"], "missing": ["audio:1.0"]}, "mle cannot train.*with audio, found none"),
        ({"seeds": 0}, "expected at least one"),
        ({"splits": ["weather"]}, "no such column"),
        ({"methods": []}, "empty grid"),
    ],
)
def test_what_cannot_be_is_an_input_error_before_training(store, tmp_path, options, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        grid([store], tmp_path / "out", progress=lambda p: pytest.fail("training began"), **options)


def test_in_a_grid_what_cannot_be_is_skipped_with_a_line(store, tmp_path):
    lines = []
    plan = plan_grid([store], Grid(["lb", "mle"], missing=["visual:1", "audio:0.5"], seeds=1), QUICK)
    document = run_plan(plan, torch.device("cpu"), say=lines.append)
    assert [(r["method"], r["missing"]) for r in document["results"]] == [
        ("lower-bound", "audio:0.5"),
        ("mle", "audio:0.5"),
    ]
    assert len(lines) == len(document["skipped"]) == 2


def test_loss_that_is_not_finite_names_method_run_and_epoch(store, tmp_path):
    with pytest.raises(
        InputError, match=r"(?s)mle.*epoch \d+ of the run with seed 0, missing audio:0.5.*learning rate"
    ):
        grid([store], tmp_path, seeds=1, settings=Settings(dropout=0.0, epochs=5, lr=1e30, batch_size=32))


def test_store_folder_is_left_as_it_was(store, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in Path(store.path).rglob("*")}
    grid([store], tmp_path, seeds=1)
    assert before == {p: p.stat().st_mtime_ns for p in Path(store.path).rglob("*")}


def test_a_run_that_diverges_in_its_last_step_is_named(store):
    """The loss is taken before the step; it is the prediction that shows what the step did."""
    settings = Settings(dropout=0.0, epochs=1, batch_size=1000, lr=1e19, hidden=16, dim=6)
    with pytest.raises(InputError, match=r"mle .*probability is not finite in epoch 1 of the run with seed 0"):
        run_grid([store], Grid(seeds=1), settings, "cpu")


@pytest.mark.parametrize("name", ["predictions/mine.npz", "weights/mine.safetensors", "checkpoints/mine.pt"])
def test_a_folder_with_files_of_somebody_is_left_alone(store, tmp_path, name):
    """Without results.json nobody knows whose they are; in an earlier run's folder they go with it."""
    mine = tmp_path / name
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match=rf"holds {name.partition('/')[0]}.*, and no results.json"):
        grid([store], tmp_path, seeds=1)
    assert mine.read_text() == "mine" and not (tmp_path / "results.json").exists()


def test_a_run_that_is_lost_says_nothing(store, tmp_path):
    """In tuning, where it is no error: probabilities that are none are equal ones, and every measure is a number."""
    wild = Settings(dropout=0.0, epochs=2, batch_size=32, lr=1e30, hidden=16, dim=6)
    plan = plan_grid([store], Grid(["simmlm", "mle"], seeds=1), wild)
    for result in run_plan(plan, torch.device("cpu"), RunFolder(tmp_path), tuning=True)["results"]:
        assert result["best_epoch"] == [0] and np.isfinite([*result["nll"], *result["ece"]]).all()
    json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)


def test_what_goes_on_later_keeps_every_group(store, tmp_path, monkeypatch):
    """Split by subject, seeds differ in their steps and train in several groups: each run counts once it is trained."""
    real, trained = experiments._train, []

    def until_killed(group, *more):
        if len(trained) > 1:
            raise KeyboardInterrupt
        real(group, *more)
        trained.extend(run.spec.seed for _, run in group)

    monkeypatch.setattr(experiments, "_train", until_killed)
    plan = plan_grid([store], Grid(seeds=8, splits=["subject"]), replace(QUICK, epochs=1, batch_size=8))
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, torch.device("cpu"), RunFolder(tmp_path, resume=True), tuning=True)
    (kept,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert sorted(kept["seeds"]) == sorted(trained) and 1 < len(trained) < 8


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to"), MemoryError()])
def test_runs_that_memory_does_not_hold_at_once_are_trained_in_halves(store, monkeypatch, error):
    fit, most, sizes, seen, told = experiments.fit, 2, [], [], []
    wanted = Grid(["mle"], ["addition"], ["audio:0.5"], seeds=5)
    whole = run_grid([store], wanted, QUICK, "cpu")

    def in_little_memory(kind, dataset, runs, *args, on_epoch, **options):
        sizes.append(len(runs))
        if len(runs) > most:
            on_epoch(70)
            raise error
        return fit(kind, dataset, runs, *args, on_epoch=on_epoch, **options)

    monkeypatch.setattr(experiments, "fit", in_little_memory)
    parts = run_plan(plan_grid([store], wanted, QUICK), torch.device("cpu"), progress=seen.append, say=told.append)
    assert sizes == [5, 2, 3, 1, 2] and seen[-1].done == seen[-1].total
    assert "memory of cpu does not hold 5 runs at once" in told[0] and len(told) == 2
    for name in ("test_accuracy", "best_epoch", "seeds"):
        assert parts["results"][0][name] == whole["results"][0][name]
    most = 0
    with pytest.raises(InputError, match="does not hold one run of mle"):
        run_grid([store], wanted, QUICK, "cpu")


def test_references_run_once_whatever_the_fusions(store, tmp_path):
    options = {"methods": ["mle", "visual-only"], "fusions": ["outer", "concatenation"], "seeds": 1}
    document = grid([store], tmp_path, **options)
    assert not document["skipped"]
    found = [(r["method"], r["fusion"], r["reference"]) for r in document["results"]]
    assert found == [("mle", "outer", False), ("mle", "concatenation", False), ("visual-only", "addition", True)]


def test_total_epochs_count_what_was_trained(tmp_path):
    whole = write_store(tmp_path, without_audio=())
    document = grid([whole], tmp_path / "run", methods=["ae1"], missing=["none", "audio:0.5"], seeds=1)
    assert [(r["epochs"], r["total_epochs"]) for r in document["results"]] == [(3, 3), (3, 6)]


def test_a_batch_larger_than_the_data_costs_no_memory(store, tmp_path):
    huge, enough = (Settings(dropout=0.0, epochs=2, batch_size=n, hidden=16, dim=6) for n in (10**12, 10**4))
    found = [
        predictions(grid([store], tmp_path / name, seeds=1, settings=s), tmp_path / name, method="mle")
        for name, s in (("huge", huge), ("enough", enough))
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lacking",
    [
        "text:0.5",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("audio:0.3+text:0.3", "audio:0.2+text:0.2+visual:0.2")),
    ],
)
def test_three_modalities_train(tmp_path, lacking):
    """Any of three is missing, in training and in test; better than chance, and the report is made of it."""
    widths = {"visual": 12, "audio": 10, "text": 8}
    three = write_store(tmp_path, clips=120, separation=1.2, widths=widths)
    assert three.modalities == ("visual", "audio", "text")
    spec = parse_missing(lacking, three.modalities)
    methods = ["mle", "zero-padding", "lower-bound", "hgr", "ae1"]
    every = Grid(methods, missing=[spec], missing_test=spec, seeds=2)
    settings = Settings(dropout=0.0, epochs=12, batch_size=64, lr=3e-3, hidden=32, dim=4)
    document = run_grid([three], every, settings, "cpu", RunFolder(tmp_path / "run"))
    assert not document["skipped"] and {r["missing"] for r in document["results"]} == {spec.name}
    means = {r["method"]: r["mean"] for r in document["results"]}
    assert means["mle"] > 70 and means["zero-padding"] > 70  # of three classes
    assert spec.name in render_report([document])


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"missing": ["text:0.5"]}, r"'text:0.5' names no known modality with a rate.*modalities are visual, audio"),
        (
            {"missing": ["audio:0.6+visual:0.6"]},
            r"add up to 1\.2, which is more than 1, and some clips would have nothing",
        ),
        (
            {"methods": ["only:text"]},
            r"only:text looks at text, and .* has visual, audio.*such as only:visual",
        ),
        ({"fusions": ["outer"]}, r"width 300 has 90,000 entries \(k\^M\), more than 65,536.\nUse --dim 256 or less"),
    ],
)
def test_what_these_modalities_cannot_do_is_told(store, asked, why):
    with pytest.raises(InputError, match=f"(?s){why}"):
        run_grid([store], Grid(**({"seeds": 1} | asked)), Settings(dropout=0.0, epochs=1, hidden=8, dim=300), "cpu")


def test_one_modality_of_any_name_is_a_method(tmp_path):
    three = write_store(tmp_path, widths={"visual": 12, "audio": 10, "text": 8})
    document = run_grid(
        [three], Grid(["only:text", "only:audio", "audio-only"], missing=["none"], seeds=1), QUICK, "cpu"
    )
    text, audio, same = document["results"]
    assert (text["method"], text["reference"]) == ("only:text", True)
    assert audio["test_accuracy"] == same["test_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mle", "hgr"])
def test_every_fusion_of_three_modalities_trains(tmp_path, method):
    three = write_store(tmp_path, widths={"visual": 12, "audio": 10, "text": 8})
    fusions = ["addition", "concatenation", "outer"]
    missing = [parse_missing("text:0.4+audio:0.4", three.modalities)]
    document = run_grid([three], Grid([method], fusions, missing, seeds=1), QUICK, "cpu")
    assert [r["fusion"] for r in document["results"]] == fusions and not document["skipped"]


def test_too_narrow_for_the_outer_product(store):
    with pytest.raises(InputError, match="width 1 is too narrow"):
        run_grid([store], Grid(fusions=["outer"], seeds=1), Settings(dropout=0.0, epochs=1, dim=1), "cpu")
