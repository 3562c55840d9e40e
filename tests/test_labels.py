"""Missing labels: how they are drawn, the likelihood of rows without one, and that nothing else sees such rows."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlemiss import cli
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.mask_files import export_masks, read_masks
from mlemiss.pipeline.stores.masks import (
    HELD_OUT_LABELS,
    TRAIN,
    Missing,
    missing_clips,
    parse_missing,
    split_clips,
    unlabelled_clips,
)
from mlemiss.trainer.batches import NO_LABEL, Strata
from mlemiss.trainer.data import Clips, Dataset, Runs, RunSpec
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.fit import fit
from mlemiss.trainer.likelihood import log_weights
from mlemiss.trainer.marginal import SupportRows
from mlemiss.trainer.method import rates_of
from mlemiss.trainer.methods import load, method_names
from mlemiss.trainer.methods.mle import UNLABELLED
from mlemiss.trainer.report.csv_files import result_row
from mlemiss.trainer.report.figures import rates
from mlemiss.trainer.report.tables import sections
from mlemiss.trainer.settings import FUSIONS, Settings

from .feature_stores import QUICK, grid, predictions, write_store
from .test_likelihood import fuse, problem

torch.set_num_threads(1)  # small networks
TRIPLE = {"visual": 12, "audio": 10, "text": 7}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores"))


def draw(clips, missing, seeds=(0,)):
    return [clips.run(RunSpec(seed, parse_missing(missing, clips.modalities))) for seed in seeds]


# Which labels are missing.


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(20, 300),
    classes=st.integers(1, 8),
    seed=st.integers(0, 99),
    rates=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)).map(sorted),
)
def test_labels_go_missing_balanced_nested_and_never_all_of_a_class(n, classes, seed, rates):
    ids, labels = [f"clip-{i:04d}" for i in range(n)], np.arange(n) % classes
    train = split_clips(ids, labels, seed) == TRAIN
    usable = train & (np.random.default_rng(seed).random(n) < 0.9)
    low, high = (unlabelled_clips(ids, labels, train, rate, seed, usable) for rate in rates)
    assert not (low & ~high).any() and not high[~train].any()
    kept = np.unique(labels[usable])
    assert high.sum() == min(round(rates[1] * train.sum()), train.sum() - len(kept))
    assert set(labels[usable & ~high]) == set(kept)
    for label in kept:
        of_class = train & (labels == label)
        expected = min(rates[1] * of_class.sum(), of_class.sum() - 1)
        assert abs(high[of_class].sum() - expected) <= 2  # one more where another class keeps its last
    shuffle = np.random.default_rng(0).permutation(n)
    listed = [ids[i] for i in shuffle], labels[shuffle], train[shuffle]
    there = unlabelled_clips(*listed, rates[1], seed, usable[shuffle])
    np.testing.assert_array_equal(there, high[shuffle])


def test_labels_and_modalities_go_missing_independently():
    ids, labels = [f"clip-{i:04d}" for i in range(2000)], np.arange(2000) % 4
    everything = np.ones(2000, bool)
    spec = parse_missing("visual:0.5+label:0.5")
    hidden = missing_clips(ids, labels, everything, spec, 0)
    np.testing.assert_array_equal(hidden, missing_clips(ids, labels, everything, parse_missing("visual:0.5"), 0))
    unlabelled = unlabelled_clips(ids, labels, everything, 0.5, 0, everything)
    assert abs((hidden[:, 0] & unlabelled).sum() - 500) < 50
    assert not np.array_equal(unlabelled, unlabelled_clips(ids, labels, everything, 0.5, 1, everything))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("label:0.5", "label:0.5"),
        ("label:0.8+audio:0.5", "audio:0.5+label:0.8"),
        ("visual:0.5+label:.5", "visual:0.5+label:0.5"),
        ("label:0", "none"),
    ],
)
def test_specs(text, name):
    assert parse_missing(text).name == name and parse_missing(name) == parse_missing(text)
    assert parse_missing("label:0.5", ["text"]) == Missing(label=0.5)  # a store of one modality


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("label:1", "no training clip would have a label"),
        ("label:1.2", "not between 0 and 1"),
        ("label:-0.1", "not between 0 and 1"),
        ("label:nan", "not between 0 and 1"),
        ("label:half", "no number"),
        ("label", "names no known modality with a rate"),
        ("label:0.5+label:0.2", "named twice"),
        ("labels:0.5", "names no known modality"),
    ],
)
def test_bad_specs_say_what_is_wrong(text, why):
    with pytest.raises(InputError, match=why):
        parse_missing(text)


def test_held_out_clips_keep_their_labels(store, tmp_path):
    for held_out in ("label:0.5", "audio:0.5+label:0.5"):
        with pytest.raises(InputError, match=HELD_OUT_LABELS):
            Grid(missing_test=held_out)
    with pytest.raises(InputError, match=HELD_OUT_LABELS):
        Clips(store).run(RunSpec(0, Missing(), Missing(label=0.5)))
    with pytest.raises(InputError, match="and no labels"):
        export_masks(store, tmp_path, 1, ["label:0.5"], "clip")
    masks = tmp_path / "masks.csv"
    masks.write_text("setting,seed,clip_id,modality\naudio:0.5+label:0.5,0,clip000,audio\n")
    with pytest.raises(InputError, match="neither a spec"):  # it would not hide labels
        read_masks(masks)
    masks.write_text("setting,seed,clip_id,modality\nsome,0,clip000,label\n")
    with pytest.raises(InputError, match="unknown modality 'label'"):
        read_masks(masks)


@pytest.mark.parametrize("verb", [["train"], ["tune", "--draws", "2"]])
def test_test_labels_are_asked_for_before_any_store_is(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main([*verb, "--missing", "label:0.5", "--missing-test", "label:0.5"])
    assert HELD_OUT_LABELS in capsys.readouterr().err


# The likelihood of rows without a label.


def slow_log_weights(inputs, b, labels):
    """log of the sum over these labels of equation 3's terms of one row, from loops over what it lacks."""
    observed, total, count = inputs["observed"], 0.0, 0
    choices = [
        [inputs["embeddings"][m][b]] if b is not None and observed[b, m] else list(keys)
        for m, keys in enumerate(inputs["support"])
    ]
    for parts in itertools.product(*choices):
        scores = inputs["label_embedding"] @ fuse(list(parts), inputs["fusion"])
        total = total + sum(torch.exp(inputs["log_prior"][z] + scores[z]) for z in labels)
        count += 1
    return torch.log(total / count)


@pytest.mark.parametrize("M", [1, 2, 3])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_likelihood_of_what_is_observed_equals_loops_over_everything(fusion, M):
    """log Q(what is observed) less log R of it, of every pattern, with gradients: the label summed out of equation 3,
    over its denominator, which goes over all labels and combinations of all supports."""
    inputs = problem(fusion, M)
    inputs["log_prior"] = inputs["log_prior"].detach().log_softmax(-1).requires_grad_()
    every = range(len(inputs["log_prior"]))
    denominator = slow_log_weights(inputs, None, every)
    slow = torch.stack([slow_log_weights(inputs, b, every) for b in range(len(inputs["observed"]))]) - denominator
    one_more = dict(inputs)
    one_more["embeddings"] = [torch.cat([e, torch.full_like(e[:1], torch.nan)]) for e in inputs["embeddings"]]
    one_more["observed"] = torch.cat([inputs["observed"], torch.zeros_like(inputs["observed"][:1])])
    total = log_weights(**one_more).logsumexp(-1)
    fast = total[:-1] - total[-1]
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    leaves = [*inputs["embeddings"], inputs["label_embedding"], inputs["log_prior"], *inputs["support"]]
    weights = torch.randn(slow.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, found = (
        torch.autograd.grad((value * weights).sum(), leaves, allow_unused=True, retain_graph=True)
        for value in (slow, fast)
    )
    for e, f, leaf in zip(expected, found, leaves, strict=True):
        e, f = (torch.zeros_like(leaf) if g is None else g for g in (e, f))
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)


def build(dataset, missing, fusion="addition", seeds=(0,), **changes):
    kind, chosen = load("mle"), Settings(**{"dropout": 0.0, "hidden": 8, "dim": 3} | changes)
    runs = Runs(dataset, draw(dataset.clips, missing, seeds), kind.stages[-1], rates_of(kind, [chosen] * len(seeds)))
    return kind(runs, chosen, fusion), runs


def test_what_is_asked_of_rows_without_a_label_knows_no_dropout(tmp_path):
    """Else D and A(x, y) would be of different encoders."""
    dataset, losses = Dataset(Clips(write_store(tmp_path, clips=24, without_audio=(7,), failed=()))), []
    for dropout in (0.0, 0.5):
        method, runs = build(dataset, "audio:0.3+label:0.7", dropout=dropout)
        method.begin_epoch(method.stages[0], 1)
        batch = next(runs.batches(method.stages[0], 1, 300).epoch(1))
        nothing = replace(batch, label=torch.full_like(batch.label, NO_LABEL))
        losses.append(method.loss(nothing).item())
    assert losses[0] == losses[1]


def test_the_share_of_rows_without_a_label(tmp_path):
    """At most 30 %, unless a share is given for complete clips (with a label, that is) and there are any."""
    small = Dataset(Clips(write_store(tmp_path, without_audio=(), failed=())))
    for missing, share, expected in (
        ("label:0.8", None, (0.7, 0.3)),
        ("audio:0.5+visual:0.5+label:0.8", None, (0.7, 0.3)),
        ("audio:0.5+visual:0.5+label:0.8", 0.6, (0.7, 0.3)),  # no clip is complete
        ("label:0.8", 0.6, (0.6, 0.4)),
    ):
        method, runs = build(small, missing, complete_share=share)
        trained, labelled = (np.asarray(one[0]) for one in (runs.trained_on, runs.labelled))
        rows = runs.rows_of(torch.as_tensor(np.flatnonzero(trained))[None])
        weight = runs.draws.weighted(method.stages[0], rows[None], torch.ones(1, *rows.shape))[0, 0]
        without = torch.as_tensor(~labelled[trained]).repeat_interleave(runs.segments)
        counts = weight * method._shares[0][without.long()]
        np.testing.assert_allclose(
            [counts[~without].sum() / len(counts), counts[without].sum() / len(counts)], expected
        )
    assert 0 < (trained & labelled).sum() < trained.sum()


@pytest.mark.parametrize("hide", [0.0, 0.4])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_loss_is_equation_2_and_the_joint_of_rows_without_a_label(tmp_path, fusion, hide):
    small = write_store(tmp_path, clips=24, without_audio=(7,), failed=())
    missing = "audio:0.3+visual:0.2+label:0.7"
    method, runs = build(Dataset(Clips(small)), missing, fusion, marginal="full", hide=hide)
    method.double()
    (run,) = runs.runs
    steps = -(-int(runs.trained_on.sum()) * runs.segments // 32)
    with torch.no_grad():
        for batch in itertools.islice(runs.batches(method.stages[0], steps, 32).epoch(1), 2):
            batch.x = [x.double() for x in batch.x]
            support = [SupportRows(runs, m) for m in range(2)]
            keys = [method.encoders[m](s.features(s.rows).double(), s.rows >= 0)[0] for m, s in enumerate(support)]
            method._marginals = {m: lambda *_, e=e: (e[None], None) for m, e in enumerate(keys)}
            inputs = {
                "embeddings": [e[0] for e in method.encode(batch.x, batch.observed)],
                "observed": batch.observed[0],
                "label_embedding": method.labels()[0],
                "log_prior": method.log_prior[0],
                "support": keys,
                "fusion": fusion,
            }
            every = range(3)
            denominator, total = slow_log_weights(inputs, None, every), 0.0
            u = float((runs.trained_on & ~run.labelled).sum() / runs.trained_on.sum())
            assert u > 0.3 and (not hide or (batch.observed.sum(-1) == 1).any())
            for b, clip in enumerate((batch.rows[0] // runs.segments).tolist()):
                of_row = slow_log_weights(inputs, b, every)
                if run.labelled[clip]:
                    of_label = slow_log_weights(inputs, b, [int(small.label[runs.dataset.clips.kept][clip])])
                    row = (of_label - of_row) * (1 - UNLABELLED) / (1 - u)
                else:
                    assert batch.label[0, b] == NO_LABEL
                    row = (of_row - denominator) * UNLABELLED / u
                total = total - row * batch.weight[0, b]
            slow = total / (batch.weight[0] > 0).sum()
            torch.testing.assert_close(method.loss(batch)[0].double(), slow.double(), rtol=1e-5, atol=1e-6)


def test_the_bank_gives_the_gradient_of_the_full_marginal_in_the_mean(tmp_path):
    """Over steps that go through the support once; its value is exact. One batch holds all: no embedding is old."""
    dataset = Dataset(Clips(write_store(tmp_path, clips=96, without_audio=(), failed=())))
    full, runs = build(dataset, "label:0.7", marginal="full")
    batch = next(runs.batches(full.stages[0], 40, 1000).epoch(1))

    def gradient(method):
        method.zero_grad()
        loss = method.loss(batch)
        loss.sum().backward()
        return loss.detach(), [p.grad.clone() for p in method.parameters()]

    expected, wanted = gradient(full)
    bank, _ = build(dataset, "label:0.7", marginal="bank")
    steps, left = divmod(bank._marginals[0].N, 16)
    assert left == 0
    bank.begin_epoch(bank.stages[0], steps)
    total = [torch.zeros_like(g) for g in wanted]
    for _ in range(steps):
        value, part = gradient(bank)
        torch.testing.assert_close(value, expected)
        total = [t + p / steps for t, p in zip(total, part, strict=True)]
    for found, want in zip(total, wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-5)


def test_shares_of_the_loss(store):
    dataset = Dataset(Clips(store))
    for missing, complete_share, expected in [
        ("label:0.9", None, UNLABELLED),
        ("label:0.2", None, None),  # as they occur
        ("label:0.9", 0.4, None),  # which has shared the loss out already
    ]:
        method, runs = build(dataset, missing, complete_share=complete_share, seeds=(0, 1))
        of_all = (runs.trained_on & ~runs.labelled.numpy()).sum(1) / runs.trained_on.sum(1)
        found = method._shares * torch.as_tensor(np.stack([1 - of_all, of_all], 1))
        torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))
        share = torch.as_tensor(of_all) if expected is None else torch.full((2,), expected, dtype=torch.float64)
        torch.testing.assert_close(found[:, 1], share)


# Nothing else sees them.


EVERY = [(name, fusion) for name in method_names() for fusion in load(name).fusions]


@pytest.mark.parametrize("name", method_names())
def test_only_mle_trains_on_rows_without_a_label(store, name):
    clips = Clips(store)
    (run,) = draw(clips, "label:0.5")
    for stage in load(name).stages:
        seen = run.training_clips(stage)
        assert (seen & ~run.labelled).any() == (name == "mle") and (seen & run.labelled).any()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fusion"), [p for p in EVERY if p[1] == "addition"] + [("mle", "outer")])
def test_labels_that_are_missing_change_nothing(store, method, fusion):
    clips, other = Clips(store), Clips(store)
    (run,) = draw(clips, "audio:0.4+label:0.5")
    other.label = np.where(run.labelled, clips.label, (clips.label + 1) % 3)
    assert (other.label != clips.label).any()
    one, same = (fit(load(method), Dataset(c), [run], QUICK, fusion)[0] for c in (clips, other))
    np.testing.assert_array_equal(one.probability, same.probability)
    assert one.val_accuracy == same.val_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("marginal", ["bank", "full", "batch"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_run_does_not_depend_on_its_company(store, tmp_path, fusion, marginal):
    chosen = Settings(dropout=0.0, epochs=2, batch_size=32, lr=1e-2, hidden=16, dim=6, marginal=marginal)
    options = {"fusions": [fusion], "settings": chosen}
    alone = grid([store], tmp_path / "a", missing=["label:0.6"], seeds=1, **options)
    missing = ["audio:0.5", "label:0.6", "none", "audio:0.3+label:0.9"]
    crowd = grid([store], tmp_path / "b", methods=["mle", "lb"], missing=missing, seeds=[3, 0], **options)
    cell = {"method": "mle", "missing": "label:0.6"}
    expected, found = predictions(alone, tmp_path / "a", **cell)[0], predictions(crowd, tmp_path / "b", **cell)[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_results_count_labelled_clips(store, tmp_path):
    missing = ["label:0.5", "audio:0.5+label:0.95", "audio:0.5", "none"]
    document = grid([store], tmp_path, methods=["mle", "zero-padding"], missing=missing, seeds=2)
    for result in document["results"]:
        (run, _) = draw(Clips(store), result["missing"], (0, 1))
        n, labelled, complete = (result[name][0] for name in ("n_train", "n_labelled", "n_complete"))
        assert n == (run.part == TRAIN).sum() and labelled == (run.labelled & (run.part == TRAIN)).sum()
        assert complete == (run.labelled & run.observed.all(1) & (run.part == TRAIN)).sum()
        assert (labelled < n) == ("label" in result["missing"])
        assert sum(map(sum, result["confusion"])) == sum(result["n_test"])  # held-out clips keep their labels


def test_too_few_labels_are_told(store, tmp_path):
    with pytest.raises(InputError, match=r"3 with a label, [0-3] complete"):
        grid([store], tmp_path, methods=["ae1"], missing=["audio:0.95+label:0.95"])


def test_batches_of_networks_trained_end_to_end_hold_labelled_rows(store):
    (run,) = draw(Clips(store), "audio:0.3+label:0.9")
    stage = load("mle").stages[0]
    has = np.column_stack([run.observed, run.labelled])
    strata = Strata(has, run.training_clips(stage), 4, 32)
    rows, weight = strata.epoch(torch.Generator().manual_seed(0))
    assert torch.as_tensor(run.complete)[rows // 4].sum(1).min() >= 8
    torch.testing.assert_close(weight.sum(1), torch.full((len(rows),), 32.0))


# What it is good for.


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "modalities"), [("addition", 2), ("addition", 3), ("outer", 2)])
def test_learns_from_clips_without_a_label(tmp_path, fusion, modalities):
    widths = dict(itertools.islice(TRIPLE.items(), modalities))
    wide = write_store(tmp_path, clips=600, without_audio=(), failed=(), widths=widths, separation=0.6)
    chosen = Settings(dropout=0.0, epochs=15, batch_size=256, lr=1e-2, hidden=16, dim=6)
    options = {"methods": ["mle", "lower-bound"], "fusions": [fusion], "settings": chosen, "seeds": 3}
    document = grid([wide], tmp_path / "out", missing=["label:0.97"], **options)
    mle, labelled_only = (result["mean"] for result in document["results"])
    assert mle > labelled_only + 3


# How results show it.


def test_figures_and_columns_tell_labels_from_modalities():
    specs = ["none", "label:0.5", "label:0.8", "audio:0.5", "audio:0.8", "audio:0.5+label:0.5", "audio:0.8+label:0.8"]
    assert rates(SimpleNamespace(columns=specs)) == {
        "label": [(0.0, "none"), (0.5, "label:0.5"), (0.8, "label:0.8")],
        "audio": [(0.0, "none"), (0.5, "audio:0.5"), (0.8, "audio:0.8")],
        "each of audio, label": [(0.0, "none"), (0.5, "audio:0.5+label:0.5"), (0.8, "audio:0.8+label:0.8")],
    }


def test_tables_say_how_many_labels_there_are(store, tmp_path):
    document = grid([store], tmp_path, methods=["zero-padding"], missing=["label:0.5", "none"], seeds=1)
    (section,) = sections([document])
    assert "Missing label:0.5: 50 training clips, 25 labelled, 23 complete." in section.notes()
    rows = {r["missing"]: result_row(r) for r in document["results"]}
    assert (rows["label:0.5"]["n_labelled"], rows["none"]["n_labelled"]) == ("25", "50")
