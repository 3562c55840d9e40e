"""Measures of test clips: as scikit-learn or a plain loop has them, and in every file and page."""

import copy
import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from mlemiss.trainer.evaluate import MEASURES, calibration_error, confusion, log_loss, reliability, scores, weighted_f1
from mlemiss.trainer.report.csv_files import export_csv
from mlemiss.trainer.report.figures import accuracy_by_confidence, groups
from mlemiss.trainer.report.latex import export_latex
from mlemiss.trainer.report.report import render_report
from mlemiss.trainer.report.tables import sections
from sklearn import metrics

from .feature_stores import grid, predictions, write_store

torch.set_num_threads(1)  # small networks


def drawn(n=240, C=5, seed=0, sharpness=2.0):
    """Probabilities that are somewhat too sure, and labels; class 4 never occurs and class 3 is never predicted."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, C - 1, n)
    logits = rng.normal(0, 1, (n, C)) + 1.2 * np.eye(C)[label]
    logits[:, 3] -= 9
    p = np.exp(sharpness * logits)
    return (p / p.sum(1, keepdims=True)).astype(np.float32), label


def plain_ece(probability, label, bins=15):
    """The mean gap in percentage points, clip by clip in float64; bin b holds (b / bins, (b + 1) / bins]."""
    members = [[] for _ in range(bins)]
    for p, z in zip(probability.astype(np.float64), label, strict=True):
        best = max(range(len(p)), key=lambda c: p[c])
        (b,) = [b for b in range(bins) if b / bins < p[best] <= (b + 1) / bins]
        members[b].append((p[best], best == z))
    gaps = 0.0
    for clips in members:
        if clips:
            gaps += abs(sum(c for c, _ in clips) / len(clips) - sum(r for _, r in clips) / len(clips)) * len(clips)
    return 100 * gaps / len(label)


@pytest.mark.parametrize("seed", range(4))
def test_measures_equal_references(seed):
    probability, label = drawn(seed=seed)
    counts, predicted = confusion(probability, label), probability.argmax(1)
    assert weighted_f1(counts) == pytest.approx(100 * metrics.f1_score(label, predicted, average="weighted"))
    assert log_loss(probability, label) == pytest.approx(
        metrics.log_loss(label, probability / probability.sum(1, keepdims=True, dtype=float), labels=range(5)), rel=1e-6
    )
    assert calibration_error(reliability(probability, label)) == pytest.approx(plain_ece(probability, label))


def test_log_loss_is_finite_whatever_the_probabilities():
    sure = np.eye(3, dtype=np.float32)
    assert log_loss(sure, np.array([0, 1, 2])) == 0
    assert log_loss(sure, np.array([1, 1, 2])) == pytest.approx(-math.log(1e-12) / 3)
    over = np.array([[1 + 1e-6, 0]], np.float32)  # float32 means add up to a little more than 1
    assert log_loss(over, np.array([0])) == 0 and reliability(over, np.array([0]))["clips"][-1] == 1


def test_bins_hold_their_upper_bound_and_an_empty_one_nothing():
    probability = np.array([[0.4, 0.6], [0.41, 0.59], [1, 0], [0.5, 0.5]])
    bins = reliability(probability, np.array([1, 0, 0, 1]))
    assert [(b, n) for b, n in enumerate(bins["clips"]) if n] == [(7, 1), (8, 2), (14, 1)]  # 0.6 = 9 / 15
    assert bins["accuracy"][8] == 50 and bins["confidence"][8] == pytest.approx(59.5)
    assert [a for a, n in zip(bins["accuracy"], bins["clips"], strict=True) if not n] == [None] * 12
    perfect = np.repeat([[0.75, 0.25]], 4, 0)
    assert calibration_error(reliability(perfect, np.array([0, 0, 0, 1]))) == pytest.approx(0)


def test_scores_of_seeds_with_other_tests():
    parts = [drawn(n, seed=n) for n in (60, 90)]
    found = scores(*zip(*parts, strict=True))
    for name, of in (("nll", log_loss), ("ece", plain_ece)):
        assert found[name] == pytest.approx([of(*part) for part in parts])
    assert sum(found["reliability"]["clips"]) == 150 and found["nll_interval"][0] < np.mean(found["nll"])
    assert scores(*zip(parts[0], strict=True))["ece_interval"] is None  # of one seed
    huge = scores([np.eye(2)] * 2, [np.array([1, 0]), np.array([1, 1])])
    assert huge["nll_interval"][1] > 100  # nats are no percentages


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measures")
    more = {"missing": ["audio:0.5"], "methods": ["mle", "zp", "only:visual"], "seeds": 2}
    return folder, grid([write_store(folder)], folder / "run", **more)


def test_results_and_files_hold_every_measure(run, tmp_path):
    folder, document = run
    for result in document["results"]:
        kept = predictions(document, folder / "run", method=result["method"])
        with np.load(folder / "run" / result["predictions"]) as file:
            label = file["label"]
        parts = [(p[~np.isnan(p[:, 0])], label[~np.isnan(p[:, 0])]) for p in kept]
        found = scores(*zip(*parts, strict=True))
        assert {name: result[name] for name in found} == found
        assert len(result["weighted_f1"]) == 2 and sum(result["reliability"]["clips"]) == sum(result["n_test"])
    json.dumps(document, allow_nan=False)
    export_csv([document], [], tmp_path)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, result in zip(rows, document["results"], strict=True):
        for name in ("weighted_f1", "nll", "ece"):
            assert float(row[name]) == pytest.approx(np.mean(result[name]))
            assert [float(row[f"{name}_low"]), float(row[f"{name}_high"])] == result[f"{name}_interval"]
    page = render_report([document])
    for result in document["results"]:
        assert f"{np.mean(result['nll']):.2f} ± {np.std(result['nll'], ddof=1):.2f}" in page
    assert page.count("<h3>Reliability</h3>") == 1 and "<h3>NLL (negative log-likelihood) in nats</h3>" in page


def test_the_best_of_a_measure_is_the_least_where_less_is_better(run):
    document = copy.deepcopy(run[1])
    for place, result in enumerate(document["results"]):
        result |= {"nll": [0.5 + place, 0.7 + place], "uar": [50.0 + place]}
    (part,) = sections([document])
    assert part.best("audio:0.5", MEASURES["nll"]) == [("mle", "addition")]
    assert part.best("audio:0.5", MEASURES["uar"]) == [("only:visual", "addition")]


def test_results_of_an_earlier_version_are_reported_without(run, tmp_path):
    document = copy.deepcopy(run[1])
    for result in document["results"]:
        for name in ("weighted_f1", "nll", "ece", "reliability"):
            result.pop(name), result.pop(f"{name}_interval", None)
    (part,) = sections([document])
    assert part.best("audio:0.5", MEASURES["nll"]) == []
    assert all(accuracy_by_confidence(part, lines) is None for lines in groups(part))
    page = render_report([document])
    assert "Reliability</h3>" not in page and "Macro F1 in percent</h3>" in page and "in nats</h3>" not in page
    export_csv([document], [], tmp_path)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["nll"] == ""
    mixed = {**document, "results": [*document["results"][:1], *run[1]["results"][1:]]}
    assert "<td>–</td>" in render_report([mixed])


def test_latex_tables_of_any_measure(run, tmp_path):
    document = run[1]
    text = export_latex([document], tmp_path, ["nll", "accuracy"]).read_text(encoding="utf-8")
    nll, accuracy = text.split("\\end{table}")[:2]
    best = min(document["results"], key=lambda r: np.mean(r["nll"]))["nll"]
    assert rf"\textbf{{{np.mean(best):.2f} $\pm$ {np.std(best, ddof=1):.2f}}}" in nll and "in nats" in nll
    assert "nll" in re.search(r"\\label\{(.*)\}", nll)[1] and "Test accuracy" in accuracy
    with (export_latex([document], tmp_path)).open(encoding="utf-8") as file:
        assert accuracy.strip() in file.read()  # as without others
