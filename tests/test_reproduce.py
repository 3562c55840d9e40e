"""The paper's exhibits as grids: what is finished is kept, an interrupted one goes on, ours stand beside theirs."""

import json
import os
import signal
import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mlemiss.pipeline.clips.datasets import expected_clips
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.files import write_json
from mlemiss.pipeline.stores.claim import only_one
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.experiments import experiments, paper
from mlemiss.trainer.experiments.experiments import describe_cell
from mlemiss.trainer.experiments.grid import Grid, plan_grid
from mlemiss.trainer.experiments.paper import EXHIBITS, find_exhibit
from mlemiss.trainer.experiments.reproduce import choose_stores, ran_on, reproduce
from mlemiss.trainer.experiments.run_folder import RunFolder, identity
from mlemiss.trainer.settings import Settings

from .feature_stores import QUICK, damage, grid, predictions, write_store

torch.set_num_threads(1)  # small networks
TINY = ["--seeds", "2", "--hidden", "8", "--dim", "4", "--batch-size", "64", "--device", "cpu"]
TABLE2 = EXHIBITS["table2"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for features in ("vgg16", "resnet50"):
        write_store(folder, dataset="ravdess", features=features)
    return folder


# Finished cells are kept.


def trained_cells(stores, out, **options):
    """Names of what a resumed grid trained, and its document."""
    seen = []
    document = grid(stores, out, resume=True, progress=lambda now: seen.append(now), **options)
    assert not seen or seen[-1].done == seen[-1].total  # only what was left is counted
    return {now.what.split()[0] for now in seen}, document


def test_finished_cells_are_taken_over_in_plan_order(tmp_path):
    store = write_store(tmp_path)
    out, options = tmp_path / "run", {"missing": ["audio:0.5", "visual:0.5"], "seeds": 2}
    first, one = trained_cells([store], out, methods=["mle"], **options)
    assert first == {"mle"}
    second, both = trained_cells([store], out, methods=["zp", "mle"], **options)
    assert second == {"zero-padding"}
    assert [r["method"] for r in both["results"]] == ["zero-padding"] * 2 + ["mle"] * 2
    assert both["results"][2:] == one["results"]
    assert json.loads((out / "results.json").read_text()) == both
    assert both["comparisons"]  # over old and new cells
    third, again = trained_cells([store], out, methods=["zp", "mle"], **options)
    assert third == set() and again["results"] == both["results"]


def test_other_seeds_of_a_finished_cell_take_over_what_they_can(tmp_path):
    """More seeds train what is new, fewer train nothing, and either is what it would be without the other."""
    store, out = write_store(tmp_path), tmp_path / "run"
    options = {"methods": ["mle"], "missing": ["audio:0.5"]}
    trained_cells([store], out, seeds=2, **options)
    one = grid([store], tmp_path / "alone", seeds=3, **options)["results"][0]
    said = []
    more = grid([store], out, resume=True, seeds=3, progress=said.append, **options)["results"][0]
    assert said[-1].what.startswith("mle addition, 1 run ")
    same = ("test_accuracy", "val_accuracy", "best_epoch", "total_epochs", "n_test", "device", "confusion", "seeds")
    assert {name: more[name] for name in same} == {name: one[name] for name in same}
    pair = [np.load(folder / r["predictions"]) for folder, r in ((out, more), (tmp_path / "alone", one))]
    np.testing.assert_allclose(*(p["probabilities"] for p in pair), atol=1e-5)  # rounding: another company
    nothing, fewer = trained_cells([store], out, seeds=[2], **options)
    assert nothing == set() and fewer["results"][0]["test_accuracy"] == one["test_accuracy"][2:]
    assert 0 < fewer["results"][0]["seconds"] <= more["seconds"]


def test_cells_of_other_plans_are_neither_shown_nor_lost(tmp_path):
    store = write_store(tmp_path)
    out = tmp_path / "run"
    grid([store], out, resume=True, methods=["mle", "zp"], seeds=2)
    _, less = trained_cells([store], out, methods=["zp"], seeds=2)
    assert [r["method"] for r in less["results"]] == ["zero-padding"]
    trained, all_again = trained_cells([store], out, methods=["mle", "zp"], seeds=2)
    assert trained == set() and len(all_again["results"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"settings": Settings(dropout=0.0, epochs=2, batch_size=32, lr=1e-2, hidden=16, dim=6)},
        {"missing_test": "audio:0.5"},
        {"splits": ["subject"]},
        {"fusions": ["outer"]},
        {"missing": ["audio:0.8"]},
    ],
)
def test_whatever_differs_is_trained_anew(tmp_path, change):
    store = write_store(tmp_path)
    options = {"methods": ["zp" if "fusions" not in change else "mle"], "seeds": 2}
    trained_cells([store], tmp_path / "run", **options)
    trained, document = trained_cells([store], tmp_path / "run", **(options | change))
    assert trained and len(document["results"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["predictions gone", "predictions cut short", "predictions damaged", "another version"]
)
def test_cells_that_cannot_be_vouched_for_are_trained_anew(tmp_path, loss):
    store, out = write_store(tmp_path), tmp_path / "run"
    _, document = trained_cells([store], out, seeds=2)
    path = out / document["results"][0]["predictions"]
    if loss == "predictions gone":
        path.unlink()
    elif loss == "predictions cut short":
        path.write_bytes(path.read_bytes()[:100])
    elif loss == "predictions damaged":
        damage(path, "probabilities.npy")
    else:
        document["results"][0]["versions"]["torch"] = "0.1"
        write_json(out / "results.json", document)
    trained, again = trained_cells([store], out, seeds=2)
    assert trained == {"mle"} and np.isfinite(predictions(again, out, method="mle")[0]).any()


def test_a_results_file_that_cannot_be_read_is_told_and_left(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"results": [1')
    with pytest.raises(InputError, match=r"results\.json cannot be read"):
        grid([write_store(tmp_path)], tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "results.json").read_text() == '{"results": [1'


def test_two_splits_share_one_document(tmp_path):
    document = grid([write_store(tmp_path)], tmp_path / "run", splits=["clip", "subject"], seeds=1)
    assert [r["split"] for r in document["results"]] == ["clip", "subject"]
    assert len({r["predictions"] for r in document["results"]}) == 2


# Table 2 and Figure 6.


def test_table2_is_the_papers():
    assert len(paper.TABLE2) == 9 and len(paper.TABLE1) == 11
    assert {len(row) for row in (*paper.TABLE2.values(), *paper.TABLE1.values())} == {6}
    assert paper.table2_value("resnet50", "mle", "visual:0.5") == 84.05
    assert paper.table2_value("vgg16", "ae2", "audio:0.9") == 66.59
    assert paper.table2_value("resnet34", "ae1", "visual:0.9") == 47.17
    assert paper.table2_value("resnet18", "ae1", "visual:0.9") is None
    assert paper.TABLE1["mle", "outer"][-1] == 80.31 and paper.TABLE1["hgr", "addition"][1] == 59.69


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_the_same(stores, tmp_path, mlemiss):
    """Killed once the first group has been written; then run again, beside an undisturbed run."""
    options = ["reproduce", "figure6", "--stores", stores, "--epochs", 40, "--split", "clip", *TINY]
    results = tmp_path / "cut" / "results.json"
    process = mlemiss.start(*options, "--out", "cut")
    while process.poll() is None and not (results.exists() and json.loads(results.read_text())["results"]):
        time.sleep(0.005)
    status = process.kill()
    before = json.loads(results.read_text())["results"]
    assert status == -signal.SIGKILL and 0 < len(before) < 6
    again = mlemiss(*options, "--out", "cut")
    assert again.returncode == 0 and f"{len(before)} of 6 cells are finished and kept" in again.stderr
    settings = Settings(epochs=40, hidden=8, dim=4, batch_size=64)
    both, _ = choose_stores(TABLE2, stores, None, None)
    figure6 = EXHIBITS["figure6"]
    reproduce(figure6, both, tmp_path / "whole", figure6.grid(splits=["clip"], seeds=2), settings, "cpu")
    cut, whole = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("cut", "whole"))
    assert [r for r in cut["results"] if r in before] == before
    for one, other in zip(cut["results"], whole["results"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
        values = [np.load(tmp_path / name / one["predictions"])["probabilities"] for name in ("cut", "whole")]
        np.testing.assert_array_equal(*values)
    tables = [json.loads((tmp_path / name / "figure6.json").read_text())["cells"] for name in ("cut", "whole")]
    assert [c["mean"] for c in tables[0]] == [c["mean"] for c in tables[1]]
    assert cut["comparisons"] == whole["comparisons"]


@pytest.mark.slow
def test_ours_stand_beside_the_papers(stores, tmp_path):
    both, _ = choose_stores(TABLE2, stores, None, ["vgg16"])
    out, settings = tmp_path / "table2", Settings(dropout=0.0, epochs=1, hidden=8, dim=4, batch_size=64)
    document = reproduce(TABLE2, both, out, TABLE2.grid(seeds=2), settings, "cpu")
    assert json.loads((out / "table2.json").read_text()) == document
    cells = document["cells"]
    assert len(cells) == 2 * 3 * 6 and {c["split"] for c in cells} == {"clip", "subject"}
    raw = json.loads((out / "results.json").read_text())["results"]
    for cell, found in zip(cells, raw, strict=True):
        row = paper.TABLE2["vgg16", cell["method"]]
        assert cell["paper"] == row[paper.TABLE2_COLUMNS.index(cell["missing"])]
        assert cell["mean"] == found["mean"]
        assert cell["difference"] == pytest.approx(cell["mean"] - cell["paper"], abs=0.01)
        assert cell["total_epochs"] == (1 if cell["method"] == "mle" else 2) and cell["classifier_epochs"] == 1
        assert cell["seconds_a_run"] > 0
    text = (out / "table2.md").read_text()
    assert "CLIPS THAT ARE NOT IN IT" in text and "RANDOM weights" in text and "the paper splits by clip" in text
    shown = [line for line in text.splitlines() if line.startswith("| vgg16 | mle | ")]
    first = next(c for c in cells if (c["method"], c["missing"], c["split"]) == ("mle", "visual:0.5", "clip"))
    assert f"{first['mean']:.1f} ± {first['std']:.1f} (78.84, {first['difference']:+.1f})" in shown[0]
    page = (out / "report.html").read_text()
    assert "CLIPS THAT ARE NOT IN IT" in page and f"(78.84, {first['difference']:+.1f})" in page


@pytest.mark.slow
def test_figure6_as_a_user(stores, tmp_path, mlemiss):
    options = ["--stores", stores, "--epochs", 3, "--split", "clip", *TINY]
    result = mlemiss("reproduce", "figure6", *options)
    assert result.returncode == 0, result.stderr
    assert "6 cells of 2 seeds on cpu" in result.stderr
    assert "mlemiss preprocess --dataset ravdess --features resnet34" in result.stderr
    document = json.loads((tmp_path / "runs" / "figure6" / "figure6.json").read_text())
    assert any("resnet34" in line for line in document["left_out"])
    for cell in document["cells"]:
        curve = cell["curve"]
        assert cell["missing"] == "audio:0.5" and curve["epoch"] == [1, 2, 3] and len(curve["mean"]) == 3
        assert curve["total_epoch"] == ([1, 2, 3] if cell["method"] == "mle" else [4, 5, 6])
    assert "after epochs of the classifier" in result.stdout and "Left out: resnet34" in result.stdout
    again = mlemiss("reproduce", "figure6", *options, "--json")
    assert "6 of 6 cells are finished and kept" in again.stderr
    assert json.loads(again.stdout)["cells"] == document["cells"]


def test_a_second_process_in_the_folder_is_told_who_is_at_work(stores, tmp_path, mlemiss):
    with only_one(tmp_path / "out" / ".lock", "this test"):
        second = mlemiss("reproduce", "figure6", "--stores", stores, *TINY, "--out", "out")
    assert second.returncode == 2 and f"another mlemiss (process {os.getpid()} on" in second.stderr
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.slow
def test_other_features_and_a_new_plan_in_the_same_folder(stores, tmp_path):
    toy = write_store(tmp_path / "stores", features="toy")
    figure6, out = EXHIBITS["figure6"], tmp_path / "f"
    found = reproduce(figure6, [toy], out, figure6.grid(splits=["clip"], seeds=1), QUICK, "cpu")
    assert {(c["features"], c["paper"], c["difference"]) for c in found["cells"]} == {("toy", None, None)}
    more = reproduce(figure6, [toy], out, figure6.grid(["addition", "outer"], ["clip"], 1), QUICK, "cpu")
    assert len(more["cells"]) == 6 and more["cells"][0] == found["cells"][0]
    with pytest.raises(InputError, match=r"holds the results of another run \(figure6\)"):
        reproduce(TABLE2, [toy], out, TABLE2.grid(seeds=1), QUICK, "cpu")


class Described:
    """What `ran_on` reads of a store."""

    def __init__(self, dataset, clip_id, weights="imagenet", synthetic=False):
        self.dataset, self.clip_id, self.synthetic = dataset, np.array(clip_id), synthetic
        self.done = np.ones(len(clip_id), bool)
        self.features, self.fingerprint, self.weights = "vgg16", "0", {"name": weights}


def test_what_it_ran_on_is_said_loudly():
    every = expected_clips("ravdess")
    assert len(every) == 1152
    whole = ran_on(TABLE2, Described("ravdess", every))
    assert "ravdess, all 1152 clips; imagenet weights" in whole and whole.upper() != whole
    assert "SUBSET of ravdess: 100 of its 1152 clips;" in ran_on(TABLE2, Described("ravdess", every[:100]))
    made = ran_on(TABLE2, Described("ravdess", every, "random", synthetic=True))
    assert "SYNTHETIC CLIPS" in made and "RANDOM weights, never trained" in made
    assert "ANOTHER DATA SET" in ran_on(TABLE2, Described("crema", ["a", "b"]))


def test_which_stores_are_taken(stores, tmp_path):
    chosen, absent = choose_stores(TABLE2, stores, None, None)
    assert [s.features for s in chosen] == ["vgg16", "resnet50"] and len(absent) == 1
    with pytest.raises(InputError, match=r"(?s)no finished store of resnet34.*mlemiss preprocess --dataset ravdess"):
        choose_stores(TABLE2, stores, None, ["resnet34"])
    with pytest.raises(InputError, match=r"(?s)needs at least one.*mlemiss preprocess --dataset ravdess"):
        choose_stores(TABLE2, tmp_path / "nowhere", None, None)
    for dataset in ("ravdess", "other"):
        write_store(tmp_path, dataset=dataset, features="vgg16")
    chosen, _ = choose_stores(TABLE2, tmp_path, None, None)
    assert [s.dataset for s in chosen] == ["ravdess"]  # the exhibit's own, where it is there


# A budget.


@pytest.mark.slow
def test_a_budget_trains_seed_by_seed_and_the_same_command_goes_on(stores, tmp_path, mlemiss):
    """A budget that one group of runs uses up; then without one, beside an undisturbed run."""
    options = ["reproduce", "figure6", "--stores", stores, "--epochs", 2, "--split", "clip", *TINY]
    first = mlemiss(*options, "--out", "cut", "--budget", 1e-6)
    assert first.returncode == 0, first.stderr
    assert "the time is up, 11 runs left; run the same command again to go on" in first.stderr
    cells = json.loads((tmp_path / "cut" / "figure6.json").read_text())["cells"]
    assert [cell["seeds"] for cell in cells] == [[0]]
    assert "the budget of 1e-06 h is spent" in (tmp_path / "cut" / "figure6.md").read_text()
    second = mlemiss(*options, "--out", "cut", "--budget", 1e-6)
    assert "1 run of other cells are finished and kept" in second.stderr and "10 runs left" in second.stderr
    assert not (tmp_path / "cut" / "other-results.json").exists()  # nothing is of another plan
    rest, whole = mlemiss(*options, "--out", "cut"), mlemiss(*options, "--out", "whole")
    assert rest.returncode == whole.returncode == 0 and "runs left" not in rest.stderr
    results = [json.loads((tmp_path / out / "results.json").read_text())["results"] for out in ("cut", "whole")]
    assert [r["seeds"] for r in results[0]] == [[0, 1]] * 6
    for one, other in zip(*results, strict=True):
        assert one["best_epoch"] == other["best_epoch"] and one["test_accuracy"] == other["test_accuracy"]
        values = [
            np.load(tmp_path / n / r["predictions"])["probabilities"] for n, r in (("cut", one), ("whole", other))
        ]
        np.testing.assert_allclose(*values, atol=1e-5)  # rounding: another company


def test_killed_before_anything_new_a_budgets_results_stay(tmp_path, monkeypatch):
    store, out, figure6 = write_store(tmp_path), tmp_path / "f", EXHIBITS["figure6"]
    plan = figure6.grid(splits=["clip"], seeds=2)
    reproduce(figure6, [store], out, plan, QUICK, "cpu", hours=1e-9)
    before = json.loads((out / "results.json").read_text())["results"]
    monkeypatch.setattr(experiments, "_train", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        reproduce(figure6, [store], out, plan, QUICK, "cpu", hours=1e-9)
    assert json.loads((out / "results.json").read_text())["results"] == before != []


def test_what_was_written_in_part_goes_once_nobody_else_may_write(tmp_path):
    store, out = write_store(tmp_path), tmp_path / "run"
    grid([store], out, seeds=1)
    leftovers = [out / "predictions" / "a.npz.1.partial", out / "results.json.1.partial"]
    for path in leftovers:
        path.touch()
    assert RunFolder(out).finished() and all(path.exists() for path in leftovers)
    grid([store], out, resume=True, seeds=1)
    assert not any(path.exists() for path in leftovers)


@pytest.mark.slow
def test_a_budget_of_hours_is_not_spent(stores, tmp_path):
    both, _ = choose_stores(TABLE2, stores, None, None)
    figure6 = EXHIBITS["figure6"]
    found = reproduce(figure6, both, tmp_path, figure6.grid(splits=["clip"], seeds=2), QUICK, "cpu", hours=1.0)
    assert [cell["seeds"] for cell in found["cells"]] == [[0, 1]] * 6
    assert len(list((tmp_path / "predictions").iterdir())) == 6  # those of one seed are gone


def test_identity_is_known_before_training(stores, tmp_path):
    store = FeatureStore.open(next(stores.glob("*.zarr")))
    plan = plan_grid([store], Grid(["zp"], seeds=[2, 0]), QUICK)
    document = grid([store], tmp_path, methods=["zp"], seeds=[2, 0])
    assert identity(describe_cell(plan.cells[0])) == identity(document["results"][0])


# Wrong use.


def test_an_unknown_exhibit_is_told():
    with pytest.raises(InputError, match=r"unknown exhibit 'table3': expected table2, figure6"):
        find_exhibit("table3")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["table2", "--budget", "0", "--epochs", "1"], "budget of 0.0 hours"),
        (["table2", "--store", "x", "--features", "y"], "exclude each other"),
        (["table2", "--end-to-end", "resnet50"], "table2 is on cached features"),
        (["table2", "--init", "random"], "--init belongs to training end to end"),
        (["table1", "--features", "resnet50"], "table1 trains a backbone"),
        (["table1", "--init", "random"], "mlemiss preprocess --dataset enterface05 --media only"),
    ],
)
def test_wrong_use_is_told(arguments, why, stores, mlemiss):
    result = mlemiss("reproduce", *arguments, "--stores", stores)
    assert result.returncode == 2 and why in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""
