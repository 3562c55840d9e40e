"""Rows of single modalities: in every table unless they are left out, and the line that says where fusing costs."""

import copy
import json

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.trainer.experiments import weights
from mlemiss.trainer.experiments.grid import Grid, plan_grid
from mlemiss.trainer.report.report import render_report
from mlemiss.trainer.report.tables import best_single, sections, worse_text

from .feature_stores import QUICK, grid, write_store

torch.set_num_threads(1)  # small networks


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("single"))


def planned(store, *methods):
    return [cell.method for cell in plan_grid([store], Grid(methods, missing=["none"], seeds=1), QUICK).cells]


def test_each_modality_of_the_store_stands_for_only(store, tmp_path):
    assert planned(store, "mle", "only") == ["mle", "only:visual", "only:audio"]
    assert planned(store, "only", "mle") == ["only:visual", "only:audio", "mle"]
    assert planned(store, "mle", "audio-only", "only") == ["mle", "audio-only", "only:visual"]
    assert planned(store, "mle") == ["mle"]
    one = write_store(tmp_path, widths={"text": 6}, without_audio=[], features="text")
    assert planned(one, "mle", "only") == ["mle"]  # which is the same classifier there
    assert planned(one, "only") == ["only:text"]
    both = plan_grid([store, one], Grid(["mle", "only"], missing=["none"], seeds=1), QUICK)
    assert [cell.method for cell in both.cells] == ["mle", "only:visual", "only:audio", "mle"] and not both.skipped
    with pytest.raises(InputError, match=r"^mle cannot train its"):  # though the single modalities could be
        plan_grid([store], Grid(["mle", "only"], missing=["audio:1"], seeds=1), QUICK)
    with pytest.raises(InputError, match="unknown method 'only:'"):
        Grid(["only:"])


def test_train_adds_them_unless_methods_are_named(store, tmp_path, mlemiss):
    quick = ["train", "--store", store.path, "--missing", "audio:0.5", "--seeds", 1, "--epochs", 1, "--json"]
    done = mlemiss(*quick, "--save-weights", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert [r["method"] for r in json.loads(done.stdout)["results"]] == ["mle", "only:visual", "only:audio"]
    applied = mlemiss("predict", tmp_path / "run", "--store", store.path)
    assert applied.returncode == 0 and "mle addition" in applied.stderr  # not what it is compared with
    path, header = weights.choose(tmp_path / "run", "toy", method="only:audio")
    assert header["method"] == "only:audio" and "audio" in path.name


@pytest.mark.slow
def test_reproduce_adds_them_to_another_dataset_alone(tmp_path, mlemiss):
    """The paper's exhibits stay the paper's (`test_figure6_as_a_user`)."""
    found = {}
    for dataset, more in (("crema", []), ("crema", ["--no-single"])):
        path = write_store(tmp_path / "-".join([dataset, *more]), dataset=dataset, features="vgg16").path
        quick = [
            "--store",
            path,
            "--split",
            "clip",
            "--seeds",
            2,
            "--epochs",
            1,
            "--out",
            path.parent / "run",
            "--json",
        ]
        done = mlemiss("reproduce", "figure6", *quick, *more)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        found[dataset, *more] = {cell["method"]: cell["paper"] for cell in document["cells"]}
        assert len(document["single"]) == (len(document["cells"]) > 3)
    paper = {"ae1": 69.48, "ae2": 70.64, "mle": 91.45}
    assert found["crema", "--no-single"] == paper
    assert found["crema",] == paper | {"only:visual": None, "only:audio": None}
    assert "best single modality" in (tmp_path / "crema" / "run" / "figure6.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document(store, tmp_path_factory):
    methods = ["mle", "zp", "hgr", "only"]
    more = {"missing": ["audio:0.5", "visual:0.8"], "methods": methods, "fusions": ["addition", "concatenation"]}
    return grid([store], tmp_path_factory.mktemp("run"), seeds=3, **more)


def changed(document, **scores):
    """The document with other accuracies: ``method=(validation, test)`` in percent, of every seed."""
    document = copy.deepcopy(document)
    for result in document["results"]:
        name = result["method"].replace(":", "_").replace("-", "_")
        if name in scores:
            validation, test = (np.broadcast_to(score, 3).tolist() for score in scores[name])
            result |= {"val_accuracy": validation, "test_accuracy": test, "mean": float(np.mean(test))}
    return document


def line(document):
    (part,) = sections([document])
    (found,) = worse_text(part, part.compared(document["comparisons"]))
    return found


def test_the_best_single_modality_is_chosen_on_validation_clips(document):
    """The one that is better on test clips is not chosen, and the difference is over the seeds that both have."""
    scores = {"only_visual": (60, 50), "only_audio": (59, 99), "mle": (0, [40, 50, 30]), "zero_padding": (0, 50.04)}
    found = changed(document, **scores, hgr=(0, 70))
    (part,) = sections([found])
    assert [best_single(part, missing)["method"] for missing in part.columns] == ["only:visual"] * 2
    cell = "only:visual 50.0: mle addition by 10.0, mle concatenation by 10.0"
    assert line(found) == (
        "Worse than the best single modality (chosen on validation clips), in points: "
        f"missing audio:0.5, {cell}; missing visual:0.8, {cell}."
    )
    for result in found["results"]:
        if result["method"] == "mle" and (result["missing"], result["fusion"]) != ("audio:0.5", "addition"):
            result["test_accuracy"] = [60.0] * 3
        elif result["method"] == "mle":
            result |= {"seeds": [1, 2, 7], "test_accuracy": [10, 20, 99]}  # seeds 1 and 2 are common
    assert "missing audio:0.5, only:visual 50.0: mle addition by 35.0; none elsewhere." in line(found)
    for result in found["results"]:
        if result["method"] == "zero-padding":
            result["seeds"] = [7, 8, 9]
    assert line(found).endswith("none elsewhere. zero-padding could not be compared: no common seeds.")


def test_a_loss_that_holds_is_said_to(document):
    found = changed(document, only_visual=(60, 50), only_audio=(0, 0), mle=(0, 40), zero_padding=(0, 40), hgr=(0, 90))
    sides = ({"method": "zero-padding", "fusion": "addition"}, {"method": "only:visual", "fusion": "addition"})
    for entry in found["comparisons"]:
        if entry["missing"] == "audio:0.5" and entry["a"] in sides and entry["b"] in sides:
            entry |= {"verdict": True, "p": 0.001, "p_holm": 0.01, "reason": None}
    assert line(found).count("zero-padding addition by 10.0 (which holds)") == line(found).count("which holds") == 1


def test_nothing_worse_no_row_and_many_rows(document):
    better = changed(document, only_visual=(60, 50), only_audio=(0, 0), mle=(0, 60), zero_padding=(0, 60), hgr=(0, 60))
    assert line(better) == "No fused method is worse than the best single modality (chosen on validation clips)."
    for kept in (False, True):  # fused methods alone, references alone
        some = better | {"results": [r for r in better["results"] if r["reference"] == kept]}
        (part,) = sections([some])
        assert worse_text(part) == []
    many = copy.deepcopy(changed(better, mle=(0, 1)))
    cell = next(r for r in many["results"] if (r["method"], r["missing"]) == ("mle", "audio:0.5"))
    many["results"] += [cell | {"method": f"m{i}"} for i in range(12)]
    assert "6 more; missing visual:0.8" in line(many)


@pytest.mark.slow
def test_terminal_and_report_say_it(document, capsys):
    from mlemiss.trainer.report.tables import print_results

    found = changed(document, only_visual=(60, 50), mle=(0, 40))
    print_results(found)
    assert line(found) in " ".join(capsys.readouterr().out.split())
    assert line(found) in render_report([found])
