"""Training: nothing leaks, no run depends on another, results as documented."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import TEST, TRAIN, VALIDATION, parse_missing
from mlemiss.trainer.batches import Stage, generator
from mlemiss.trainer.data import Clips, Dataset, Runs, RunSpec
from mlemiss.trainer.evaluate import accuracy, confusion, macro_f1, mean_and_std, unweighted_average_recall
from mlemiss.trainer.experiments.grid import Grid, notes_on, plan_grid
from mlemiss.trainer.fit import fit
from mlemiss.trainer.likelihood import log_mean_exp_inner
from mlemiss.trainer.marginal import BY_NAME
from mlemiss.trainer.method import rates_of
from mlemiss.trainer.methods import load, method_names
from mlemiss.trainer.methods.mle import MaximumLikelihood
from mlemiss.trainer.networks import Dropout, Encoder
from mlemiss.trainer.settings import Settings

from .feature_stores import CHUNK, QUICK, WIDTHS, grid, predictions, write_store

torch.set_num_threads(1)  # small networks


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    widths = {"visual": 8, "audio": 6, "text": 5}
    return write_store(tmp_path_factory.mktemp("three"), widths=widths, clips=180, segments=1)


def draw(clips, seeds=(0,), missing="audio:0.5", missing_test="none", split="clip"):
    specs = [RunSpec(s, parse_missing(missing), parse_missing(missing_test), split) for s in seeds]
    return [clips.run(spec) for spec in specs]


# A run is what it would be alone.


EVERY = [(name, fusion) for name in method_names() for fusion in load(name).fusions]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fusion", "marginal"),
    [pytest.param(*pair, "bank", marks=() if pair[0] == "mle" else pytest.mark.slow) for pair in EVERY]
    + [("mle", "addition", "full"), ("mle", "addition", "batch")],
)
def test_a_run_does_not_depend_on_its_company(store, tmp_path, method, fusion, marginal):
    settings = Settings(dropout=0.0, epochs=2, batch_size=32, lr=1e-2, hidden=16, dim=6, marginal=marginal)
    options = {"fusions": [fusion], "settings": settings}
    alone = grid([store], tmp_path / "a", methods=[method], seeds=1, **options)
    five = grid([store], tmp_path / "b", methods=[method], seeds=5, **options)
    missing = ["audio:0.5", "audio:0.4+visual:0.1", "visual:0.5", "none"]
    crowd = grid([store], tmp_path / "c", methods=["lb", method], missing=missing, seeds=[3, 0], **options)
    cell = {"method": method, "missing": "audio:0.5"}
    expected = predictions(alone, tmp_path / "a", **cell)[0]
    for document, folder, place in [(five, "b", 0), (crowd, "c", 1)]:
        found = predictions(document, tmp_path / folder, **cell)[place]
        np.testing.assert_allclose(found, expected, atol=2e-5)
    others = predictions(five, tmp_path / "b", **cell)
    assert not np.allclose(others[0], others[1], equal_nan=True)  # seeds differ


def gradients(store, method, fusion, specs):
    """Return the gradients of the first run, by a step on all rows in float64."""
    kind, data = load(method), Dataset(Clips(store))
    specs = [(seed, parse_missing(missing, store.modalities)) for seed, missing in specs]
    runs = [data.clips.run(RunSpec(seed, missing, parse_missing("none"))) for seed, missing in specs]
    settings = Settings(batch_size=300, hidden=16, dim=6, dropout=0.3, clamp=2.0)
    together = data.runs(runs, kind.stages[-1], rates_of(kind, [settings] * len(runs)))
    model = kind(together, settings, fusion).double()
    model.begin_epoch(kind.stages[-1], 1)
    batch = next(together.batches(kind.stages[-1], 1, 300).epoch(1))
    batch.x, batch.weight = [x.double() for x in batch.x], batch.weight.double()
    model.loss(batch).sum().backward()
    return {name: p.grad[0] for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("method", "fusion"), EVERY)
def test_company_changes_nothing_but_rounding(store, method, fusion):
    """In float64 a step beside others is as a step alone but for 1e-12, so what differs in float32 is rounding."""
    crowd = [(0, "audio:0.5"), (1, "audio:0.5"), (0, "audio:0.3+visual:0.3"), (2, "audio:0.2")]
    alone, beside = (gradients(store, method, fusion, specs) for specs in (crowd[:1], crowd))
    assert alone and alone.keys() <= beside.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(beside[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("method", "fusion"), EVERY)
def test_company_of_runs_with_other_supports(three, method, fusion):
    """Where a row lacks several modalities, too, and the others' supports are so large that not all pairs count."""
    crowd = [(0, "audio:0.8+visual:0.8"), (1, "audio:0.2+visual:0.2")]
    alone, beside = (gradients(three, method, fusion, specs) for specs in (crowd[:1], crowd))
    for name, expected in alone.items():
        torch.testing.assert_close(beside[name], expected, rtol=1e-9, atol=1e-12)


def test_runs_of_unequal_size_keep_their_own_results(store, tmp_path):
    """A split by subject gives each seed its own number of clips, of supports and of held-out clips."""
    one_batch = Settings(
        dropout=0.0, epochs=6, batch_size=300, lr=1e-2, hidden=16, dim=6
    )  # a step an epoch: all in one group
    options = {"splits": ["subject"], "fusions": ["outer"], "missing_test": "audio:0.5", "settings": one_batch}
    together = grid([store], tmp_path / "a", seeds=4, **options)
    sizes = set(together["results"][0]["n_train"])
    for seed in range(4):
        alone = grid([store], tmp_path / f"s{seed}", seeds=[seed], **options)
        cell = {"method": "mle"}
        np.testing.assert_allclose(
            predictions(together, tmp_path / "a", **cell)[seed],
            predictions(alone, tmp_path / f"s{seed}", **cell)[0],
            atol=2e-5,
        )
    assert len(sizes) > 1  # else this test would show nothing


def test_every_row_is_trained_on_once_an_epoch_in_the_seeds_own_order(store):
    clips = Clips(store)
    runs = Runs(Dataset(clips), draw(clips, (0, 1)), Stage())
    steps = -(-runs.trained_on[0].sum() * runs.segments // 32)
    order = runs.batches(Stage(), steps, 32).order
    epochs = []
    for number in (1, 2):
        rows, weight = (torch.cat(parts, 1) for parts in zip(*order.epoch(number), strict=True))
        assert rows.shape == (2, steps * 32)
        for r in range(2):
            expected = runs.rows_of(torch.tensor(np.flatnonzero(runs.trained_on[r]))[None])[0]
            assert torch.equal(rows[r][weight[r] > 0].sort().values, expected)
        assert (weight == 0).any()  # the last batch is short
        epochs.append(rows)
    assert not torch.equal(epochs[0], epochs[1])
    rank = [rows.argsort() for rows in epochs[0]]
    assert not torch.equal(*rank)  # the seeds' orders differ
    again = runs.batches(Stage(), steps, 32).order
    assert torch.equal(torch.cat([rows for rows, _ in again.epoch(2)], 1), epochs[1])  # as a resumed run draws it


def test_fillers_of_a_short_batch_weigh_nothing(store):
    clips = Clips(store)
    runs = Runs(Dataset(clips), draw(clips), Stage())
    method = load("mle")(runs, Settings(dropout=0.0, marginal="full", hidden=16, dim=6), "addition")
    rows = runs.rows_of(runs.padded_clips(runs.trained_on)[0])[:, :20]
    filled = torch.cat([rows, rows[:, :1].expand(-1, 12)], 1)
    weight = (torch.arange(32) < 20).float()[None]
    short = method.loss(runs.batch(rows, torch.ones(1, 20)))
    torch.testing.assert_close(method.loss(runs.batch(filled, weight)), short)


def test_generators_depend_on_seed_and_purpose_alone():
    drawn = {torch.rand((), generator=generator(s, p)).item() for s in range(3) for p in ("order", "labels")}
    assert len(drawn) == 6
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))


# Nothing leaks.


class Garbled:
    """A store whose entries hold garbage wherever the spec (or the store itself) says that a modality is missing."""

    def __init__(self, store, spec, seed, value):
        self._store, self._value = store, value
        self._hidden = store.missing(parse_missing(spec), seed, store.split(seed) == TRAIN) | ~store.present

    def __getattr__(self, name):
        return getattr(self._store, name)

    def read(self, modality, clips=slice(None)):
        values = self._store.read(modality)
        values[self._hidden[:, self.modalities.index(modality)]] = self._value
        return values[clips]


@pytest.mark.parametrize(("method", "fusion"), EVERY)
@pytest.mark.parametrize("spec", [pytest.param("audio:0.5", marks=pytest.mark.slow), "visual:0.4+audio:0.3"])
def test_garbage_where_a_modality_is_missing_changes_nothing(store, method, fusion, spec):
    settings = Settings(dropout=0.0, epochs=2, batch_size=32, lr=1e-2, hidden=16, dim=6)
    found = []
    for value in (np.nan, np.inf, 30000.0):
        clips = Clips(Garbled(store, spec, 0, value))
        (run,) = draw(clips, missing=spec)
        assert (~run.observed & (run.part == TRAIN)[:, None]).any()
        found.append(fit(load(method), Dataset(clips), [run], settings, fusion)[0])
    for result in found[1:]:
        np.testing.assert_array_equal(result.probability, found[0].probability)
        assert result.test_accuracy == found[0].test_accuracy


def test_methods_see_nan_where_a_modality_is_missing(store):
    clips = Clips(store)
    runs = Runs(Dataset(clips), draw(clips, (0, 1)), Stage())
    rows = runs.rows_of(runs.padded_clips(runs.trained_on)[0])
    batch = runs.batch(rows, torch.ones(rows.shape))
    assert (~batch.observed).any() and batch.observed.any()
    for m, x in enumerate(batch.x):
        assert torch.equal(x.isnan().all(-1), ~batch.observed[..., m])
        assert torch.equal(x.isnan().any(-1), ~batch.observed[..., m])


def test_standardisation_uses_observed_training_entries_only(store):
    clips = Clips(store)
    (run,) = draw(clips)
    runs = Runs(Dataset(clips), [run], Stage())
    for m, modality in enumerate(WIDTHS):
        seen = store.read(modality)[clips.kept][run.observed[:, m] & (run.part == TRAIN)].astype(np.float64)
        mean, std = runs.moments[m]
        np.testing.assert_allclose(mean[0], seen.mean((0, 1)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std[0, 1:], seen.std((0, 1))[1:], rtol=1e-5)
        assert std[0, 0] == 1  # the feature that never varies


def test_features_are_loaded_as_they_are_stored(tmp_path):
    """float16 on the device, float32 in a batch, whatever fails in a chunk; torch has its threads back afterwards."""
    store = write_store(tmp_path, failed=(5, *range(CHUNK, 2 * CHUNK)))
    clips = Clips(store)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        dataset = Dataset(clips)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    runs = Runs(dataset, draw(clips), Stage())
    rows = torch.arange(40)[None]
    for m, modality in enumerate(WIDTHS):
        stored = store.read(modality)[clips.kept]
        flat = stored.reshape(-1, WIDTHS[modality])
        np.testing.assert_array_equal(dataset.features[m].numpy(), flat)
        np.testing.assert_array_equal(dataset.finite[:, m], clips.present[:, m])
        batch = runs.gather_modality(m, rows, torch.ones(rows.shape, dtype=torch.bool))
        assert batch.dtype == torch.float32
        np.testing.assert_array_equal(batch[0].numpy(), flat[:40].astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fusion"), EVERY)
def test_test_labels_do_not_touch_training(store, method, fusion):
    settings = Settings(dropout=0.0, epochs=4, batch_size=32, lr=1e-2, hidden=16, dim=6)
    clips = Clips(store)
    (run,) = draw(clips)
    honest = fit(load(method), Dataset(clips), [run], settings, fusion)[0]
    shuffled = Clips(store)
    shuffled.label = clips.label.copy()
    shuffled.label[run.part == TEST] = np.roll(clips.label[run.part == TEST], 1)
    assert (shuffled.label != clips.label).any()
    other = fit(load(method), Dataset(shuffled), [run], settings, fusion)[0]
    np.testing.assert_array_equal(other.probability, honest.probability)
    assert (other.best_epoch, other.val_accuracy) == (honest.best_epoch, honest.val_accuracy)
    assert other.test_accuracy != honest.test_accuracy


def test_best_validation_epoch_is_tested(store):
    settings = Settings(dropout=0.0, epochs=8, batch_size=32, lr=3e-2, hidden=16, dim=6)
    clips = Clips(store)
    runs = draw(clips, range(5))
    results = fit(load("mle"), Dataset(clips), runs, settings, "addition")
    for result in results:
        assert max(result.val_accuracy) == result.val_accuracy[result.best_epoch - 1]
        label = clips.label[result.test_clips]
        assert len(result.val_accuracy) == len(result.test_accuracy) == 8
        tested = accuracy(confusion(result.probability, label))
        assert tested == pytest.approx(result.test_accuracy[result.best_epoch - 1])
    assert any(result.best_epoch < 8 for result in results)  # else the last epoch would do


def test_masks_fall_on_training_clips_unless_test_asks(store):
    clips = Clips(store)
    (run,) = draw(clips, missing="audio:0.5")
    native = clips.present
    held_out = run.part != TRAIN
    assert (run.observed[held_out] == native[held_out]).all()
    (run,) = draw(clips, missing="none", missing_test="visual:0.5")
    assert (run.observed[run.part == TRAIN] == native[run.part == TRAIN]).all()
    for part in (VALIDATION, TEST):
        chosen = run.part == part
        assert (~run.observed[chosen, 0]).sum() == pytest.approx(chosen.sum() / 2, abs=1)
    assert len(clips.clip_id) == 71  # the failed clip is left out
    assert "clip005" not in clips.clip_id


# The marginal over a missing modality.


def marginal_setting(store, kind, clips_kept=16):
    """One run whose support is 16 clips of 4 rows, an encoder, and a batch of rows that lack audio."""
    clips = Clips(store)
    (run,) = draw(clips, missing="audio:0.5")
    with_audio = np.flatnonzero((run.part == TRAIN) & run.observed[:, 1])[:clips_kept]
    without = np.flatnonzero((run.part == TRAIN) & ~run.observed[:, 1])[:8]
    part = np.full(len(run.part), TEST)
    part[[*with_audio, *without]] = TRAIN
    runs = Runs(Dataset(clips), [replace(run, part=part)], Stage())
    dropout = Dropout(torch.full((1,), 0.5), runs.generators("dropout"))  # of which the support has nothing
    encoder = Encoder(*runs.moments[1], 8, 5, runs.generators("encoder"), dropout)
    rows = runs.rows_of(torch.tensor(without)[None])
    batch = runs.batch(rows, torch.ones(rows.shape))
    marginal = BY_NAME[kind](runs, 1, encoder)
    return marginal, encoder, batch, runs


def test_bank_has_the_full_marginals_value_and_an_unbiased_gradient(store):
    queries = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, -2.0, 0.5]])

    def value_and_gradient(marginal, encoder, batch):
        encoder.zero_grad()
        value = log_mean_exp_inner(queries, *marginal(batch, encoder.both(batch.x[1], batch.observed[..., 1])[1]))
        (value * weights).sum().backward()
        return value.detach(), [p.grad.clone() for p in encoder.parameters()]

    full, encoder, batch, _ = marginal_setting(store, "full")
    expected, gradient = value_and_gradient(full, encoder, batch)
    bank, encoder, batch, _ = marginal_setting(store, "bank")
    steps = 64 // 16  # one pass over the support: the mean over it is the expectation
    bank.begin_epoch(steps)
    total = [torch.zeros_like(g) for g in gradient]
    spread = 0.0
    for _ in range(steps):
        value, part = value_and_gradient(bank, encoder, batch)
        torch.testing.assert_close(value, expected)
        total = [t + p / steps for t, p in zip(total, part, strict=True)]
        spread += (part[0] - gradient[0]).abs().max().item()
    for found, wanted in zip(total, gradient, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert spread > 1e-3  # a single step's gradient is an estimate


@pytest.mark.parametrize("complete", [True, False])
def test_batch_marginal_equals_the_full_one_in_expectation(store, complete):
    """The mean over y' of equation 5, gradient included, over batches that go through the support once; its logarithm,
    which the loss takes, is too small on average (Jensen), and that is `batch`'s bias."""
    queries = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, -2.0, 0.5]])

    def value_and_gradient(marginal, encoder, batch):
        encoder.zero_grad()
        value = log_mean_exp_inner(queries, *marginal(batch, encoder.both(batch.x[1], batch.observed[..., 1])[1]))
        (value.exp() * weights).sum().backward()
        return value.detach(), [p.grad.clone() for p in encoder.parameters()]

    full, encoder, batch, _ = marginal_setting(store, "full")
    expected, gradient = value_and_gradient(full, encoder, batch)
    marginal, encoder, batch, runs = marginal_setting(store, "batch")
    rows = marginal.support.rows  # [1, 64]
    # Batches of 16 support rows; or batches that hold none, for which a row drawn from all 64 stands in.
    steps = rows.shape[1] // 16 if complete else rows.shape[1]
    marginal._drawn.fill(torch.arange(rows.shape[1])[:, None, None])
    found = []
    for step in range(steps):
        if complete:
            part = rows[:, 16 * step : 16 * step + 16]
            batch = runs.batch(part, torch.ones(part.shape))
        found.append(value_and_gradient(marginal, encoder, batch))
    values = torch.stack([value for value, _ in found])
    torch.testing.assert_close(values.exp().mean(0), expected.exp(), rtol=1e-4, atol=1e-6)
    for g, wanted in enumerate(gradient):
        mean = torch.stack([gradients[g] for _, gradients in found]).mean(0)
        torch.testing.assert_close(mean, wanted, rtol=1e-3, atol=1e-5)
    assert (values.mean(0) < expected).all()


def test_bank_keeps_the_latest_embeddings(store):
    bank, encoder, _, runs = marginal_setting(store, "bank")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
        fresh_all = bank.support.embed(encoder)
        stale = bank.bank.clone()
        rows = bank.support.rows[:, 8:12]  # the third clip
        batch = runs.batch(rows, torch.tensor([[1.0, 1.0, 1.0, 0.0]]))  # the last one fills the batch up
        drawn = list(range(20, 36))
        bank._drawn.fill(torch.tensor([[drawn]]))
        support, mask = bank(batch, encoder.both(batch.x[1], batch.observed[..., 1])[1])
    assert mask is None
    renewed = {8, 9, 10, *drawn}
    for n in range(64):
        expected = fresh_all if n in renewed else stale
        torch.testing.assert_close(support[0, n], expected[0, n])
    assert len(renewed) < 64


def test_batch_marginal_never_has_an_empty_support(store):
    marginal, encoder, batch, runs = marginal_setting(store, "batch")
    marginal.begin_epoch(2)
    _, mask = marginal(batch, encoder.both(batch.x[1], batch.observed[..., 1])[1])
    assert mask.sum() == 1  # no row of this batch has audio: one drawn row stands in
    rows = torch.cat([batch.rows, marginal.support.rows[:, :3]], 1)
    mixed = runs.batch(rows, torch.ones(rows.shape))
    keys, mask = marginal(mixed, encoder.both(mixed.x[1], mixed.observed[..., 1])[1])
    assert mask.sum() == 3 and keys.isfinite().all()


# What cannot be used is named.


def test_data_that_cannot_be_classified_is_named(tmp_path):
    with pytest.raises(InputError, match="at least two classes"):
        Clips(write_store(tmp_path, features="one", label=np.zeros(72, int)))
    label = np.zeros(72, int)
    label[::2] = 1
    lonely = write_store(tmp_path, features="two", label=label)
    part = lonely.split(0)
    lonely.label[np.flatnonzero((part == TEST) & (lonely.status == "done"))[0]] = 2  # a class that no training clip has
    with pytest.raises(InputError, match="no training clip of sad"):
        draw(Clips(lonely))


def test_features_that_are_not_finite_are_named(store):
    values = store.read("visual")
    values[20, 1, 3] = np.inf

    class Broken(Garbled):
        def read(self, modality, clips):
            return values[clips] if modality == "visual" else self._store.read(modality, clips)

    clips = Clips(Broken(store, "none", 0, 0))
    with pytest.raises(InputError, match="features of 1 clips are not finite, first visual of clip020"):
        Runs(Dataset(clips), draw(clips), Stage())


@pytest.mark.parametrize("change", [{"epochs": 0}, {"lr": -1.0}, {"lr": float("nan")}, {"marginal": "some"}])
def test_settings_out_of_range(change):
    with pytest.raises(InputError):
        Settings(**change)


# Counting.


def test_metrics_on_a_small_example():
    probability = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])
    counts = confusion(probability, np.array([0, 0, 1, 1]))
    assert counts.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert accuracy(counts) == 50 and unweighted_average_recall(counts) == 50 and macro_f1(counts) == 50
    assert mean_and_std([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_std([4.0]) == (4.0, None)


@pytest.mark.slow
def test_trainer_loads_neither_dask_nor_decoders():
    code = (
        "import sys, mlemiss.trainer.methods as m\n"
        "import mlemiss.trainer.experiments.reproduce, mlemiss.trainer.experiments.train\n"
        "[m.load(n) for n in m.method_names()]\n"
        "print([n for n in ('dask', 'distributed', 'ffmpeg', 'imageio_ffmpeg', 'cv2', 'librosa', 'timm') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_and_registry_load_without_torch():
    code = (
        "import sys, mlemiss.trainer.settings, mlemiss.trainer.methods as m\n"
        "m.resolve('zp'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_maximum_likelihood_pays_for_no_marginal_it_does_not_need(tmp_path):
    dataset = Dataset(Clips(write_store(tmp_path, without_audio=())))
    complete = draw(dataset.clips, missing="none")
    assert MaximumLikelihood(Runs(dataset, complete, Stage()), QUICK, "outer")._marginals == {}
    lacking = MaximumLikelihood(Runs(dataset, draw(dataset.clips), Stage()), QUICK, "outer")._marginals
    assert list(lacking) == [1]  # audio alone


def test_validation_clips_of_one_class_choose_nothing(store):
    clips = Clips(store)
    part = np.full(len(store.clip_id), TRAIN, np.int8)
    part[[0, 3]], part[6:9] = VALIDATION, TEST  # classes go 0, 1, 2, 0, …
    clips.store = SimpleNamespace(path=store.path, split=lambda seed, by: part, missing=store.missing, given=None)
    with pytest.raises(InputError, match=rf"validation clips of {clips.classes[0]} alone(?s:.*)Preprocess more"):
        draw(clips)
    clips.store.given = {"splits": {"file": "own.csv"}}
    with pytest.raises(InputError, match=r"split by own\.csv with(?s:.*)Correct own"):
        draw(clips, split="given:own.csv")


def test_test_clips_of_one_class_are_told(store):
    (cell,) = plan_grid([store], Grid(["mle"], missing=["audio:0.5"], seeds=1), Settings()).cells
    assert not any("of one class" in note for note in notes_on([cell]))
    (run,) = cell.runs
    run.part[(run.part == TEST) & (cell.clips.label != 1)] = TRAIN
    assert any(note.endswith("by clip, seed 0: all test clips are of one class") for note in notes_on([cell]))
