"""Backbones trained with the methods: the same training as on cached features but for where the features come from."""

import json
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlemiss.pipeline.encoders.images import Backbone
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import TRAIN, parse_missing
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.batches import Stage, Strata
from mlemiss.trainer.data import Clips, Dataset, RunSpec
from mlemiss.trainer.end_to_end.checkpoint import Checkpoints
from mlemiss.trainer.end_to_end.end_to_end import EndToEnd, MediaClips
from mlemiss.trainer.end_to_end.media import MediaReader
from mlemiss.trainer.end_to_end.training import MediaTraining, fit_end_to_end
from mlemiss.trainer.end_to_end.trunks import Trunk, augment_frames, augment_logmels
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.experiments.run_folder import identity
from mlemiss.trainer.experiments.train import train
from mlemiss.trainer.fit import fit
from mlemiss.trainer.marginal import Full, Latest, SupportRows
from mlemiss.trainer.method import rates_of
from mlemiss.trainer.methods import load
from mlemiss.trainer.methods.mle import MaximumLikelihood
from mlemiss.trainer.settings import Settings

from .feature_stores import predictions, write_store
from .media_stores import DROPPING, NORMED, RANDOM, SEGMENTS, TINY, cached, tiny, write_media
from .preprocessing import SMALL

QUICK = Settings(dropout=0.0, epochs=2, batch_size=16, hidden=16, dim=6, lr=1e-2)
CPU = torch.device("cpu")
ROWS = [
    *(("lower-bound", f) for f in ("addition", "concatenation", "outer")),
    *(("hgr", f) for f in ("addition", "concatenation", "outer")),
    *(("zero-padding", f) for f in ("addition", "concatenation")),
    *(("mle", f) for f in ("addition", "concatenation", "outer")),
]


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> FeatureStore:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def features(media, tmp_path_factory) -> FeatureStore:
    return cached(media, tmp_path_factory.mktemp("features"))


def trained(media, method="mle", fusion="addition", missing="audio:0.5", settings=QUICK, more_tests=(), **options):
    """One run, as `fit` has it."""
    clips = MediaClips(media, tiny(**options))
    run = clips.run(RunSpec(0, parse_missing(missing), more_tests=more_tests))
    return fit_end_to_end(load(method), clips.load(CPU), [run], settings, fusion)[0]


# Frozen, it is the training on cached features.


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fusion"), [*ROWS, ("audio-only", "addition")])
def test_frozen_it_is_training_on_cached_features(media, features, method, fusion):
    tests = (parse_missing("audio:1"), parse_missing("audio:0.5"))
    spec = RunSpec(0, parse_missing("audio:0.5"), more_tests=tests)
    clips = Clips(features)
    plain = fit(load(method), Dataset(clips), [clips.run(spec)], QUICK, fusion)[0]
    frozen = trained(media, method, fusion, frozen=True, more_tests=tests)
    np.testing.assert_allclose(frozen.more_probabilities, plain.more_probabilities, atol=0.01)
    np.testing.assert_allclose(frozen.probability, plain.probability, atol=0.01)
    assert np.abs(plain.probability - 1 / 3).max() > 0.05  # it has learned something to agree on
    assert frozen.best_epoch == plain.best_epoch and frozen.val_accuracy == plain.val_accuracy


@pytest.mark.slow
def test_losses_of_real_clips_are_those_of_cached_features(synthetic_ravdess, tmp_path):
    """The pipeline's own features and media of the synthetic clips: the same losses to float16 rounding."""
    from mlemiss.pipeline.preprocess import ClipRequest, preprocess
    from mlemiss.pipeline.run.plan import FeatureRequest

    preprocess(
        ClipRequest("ravdess", synthetic_ravdess, limit=12), FeatureRequest({SMALL: RANDOM}, media="keep"), tmp_path
    )
    opened = {store.features: store for store in map(FeatureStore.open, sorted(tmp_path.glob("*.zarr")))}
    clips = Clips(opened[SMALL])
    run = clips.run(RunSpec(0, parse_missing("audio:0.5")))
    plain = Dataset(clips).runs([run], Stage())
    frozen = MediaClips(opened["media"], EndToEnd(SMALL, RANDOM, frozen=True)).load(CPU).runs([run], Stage())
    for one, other in zip(plain.moments, frozen.moments, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-4)
    rows = plain.rows_of(torch.as_tensor(np.flatnonzero(run.part == TRAIN)[:3])[None])
    weight = torch.ones(rows.shape)
    losses = []
    for runs in (plain, frozen):
        runs.moments = plain.moments  # which float16 features' own rounding would make look worse
        method = load("zero-padding")(runs, QUICK, "addition")
        losses.append(method.loss(runs.batch(rows, weight)))
    torch.testing.assert_close(*losses, rtol=2e-3, atol=2e-3)


# Killed and resumed.

ARGUMENTS = [
    "train",
    "--end-to-end",
    DROPPING,
    "--init",
    "random",
    "--missing",
    "audio:0.5",
    "--epochs",
    "4",
    "--seeds",
]
ARGUMENTS += ["2", "--batch-size", "16", "--hidden", "16", "--dim", "6", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--frozen", "--augment"])
def test_killed_and_resumed_it_ends_as_if_unbroken(media, tmp_path, option, mlemiss):
    """Killed in the second run of its only cell; beside an undisturbed process."""
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    arguments = [*ARGUMENTS, "--store", media.path, option, "--out"]
    networks = "from tests import media_stores"  # the tests' own
    process = mlemiss.start(*arguments, cut, before=networks)
    while process.poll() is None and not list(cut.glob("checkpoints/*/seed1-*.pt")):
        time.sleep(0.002)
    assert process.kill() == -signal.SIGKILL, process.stderr
    (first,) = json.loads((cut / "results.json").read_text())["results"]  # of the seed that was done
    assert first["seeds"] == [0]
    for out in (cut, whole):
        done = mlemiss(*arguments, out, before=networks)
        assert done.returncode == 0, done.stderr
    documents = [json.loads((out / "results.json").read_text()) for out in (cut, whole)]
    values = [predictions(d, out) for d, out in zip(documents, (cut, whole), strict=True)]
    np.testing.assert_array_equal(*values)
    assert documents[0]["results"][0]["seconds"] > 0.4 * documents[1]["results"][0]["seconds"]  # with the killed part
    results = [{**d["results"][0], "seconds": 0} for d in documents]
    assert results[0] == results[1]
    assert not list((cut / "checkpoints").iterdir())  # the cell is finished


@pytest.mark.slow
def test_a_finished_grid_is_not_trained_again(media, tmp_path):
    grid, out = Grid(seeds=1), tmp_path / "run"
    first, _ = train([media], out, grid, QUICK, "cpu", end_to_end=tiny())
    again, _ = train([media], out, grid, QUICK, "cpu", end_to_end=tiny())
    assert again["results"] == first["results"]  # seconds too
    result = first["results"][0]
    assert (result["features"], result["weights"], result["marginal"]) == (TINY, "random", "bank")
    assert result["end_to_end"] | {"weights_hash": 0} == tiny().describe() | {"weights_hash": 0}
    assert result["weights_hash"] == Backbone(TINY, RANDOM).spec["weights_hash"]
    assert "trained end to end (from random weights)" in (tmp_path / "run" / "report.html").read_text()
    other, _ = train([media], out, grid, QUICK, "cpu", end_to_end=tiny(backbone_lr=1e-3))
    assert identity(other["results"][0]) != identity(result)


# Micro-batches.


def tiny_trunk(backbone=TINY, **options):
    how = {"frozen": False, "augment": False, "micro_batch": 64, "precision": "fp32"} | options
    return Trunk("visual", Backbone(backbone, RANDOM), **how)


def frames_of(media, n=12):
    return torch.from_numpy(media.read("frames")).flatten(0, 1)[:n]


def coupled(features):
    """A loss that no sum over parts of the batch is."""
    centred = features - features.mean(0)
    return (centred.T @ centred).square().sum() + features.logsumexp(0).sum()


def test_micro_batches_give_the_gradient_of_the_whole_batch(media):
    gradients = []
    for micro_batch in (64, 5, 1):
        trunk = tiny_trunk(micro_batch=micro_batch).train()
        coupled(trunk(frames_of(media), CPU)).backward()
        gradients.append([p.grad for p in trunk.parameters()])
    assert all(g.abs().max() > 0 for g in gradients[0])
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_computed_again_counts_once_in_batch_norms(media):
    trunk = tiny_trunk(NORMED, micro_batch=4).train()
    twin = tiny_trunk(NORMED).train()
    trunk(frames_of(media), CPU).sum().backward()
    with torch.no_grad():
        for part in frames_of(media).split(4):
            twin(part, CPU)
    for one, other in zip(trunk.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    assert trunk.network.first[1].num_batches_tracked == 3


def test_frozen_trunks_stay_as_they_are(media):
    trunk = tiny_trunk(NORMED, frozen=True).train()
    before = {n: t.clone() for n, t in trunk.state_dict().items()}
    found = trunk(frames_of(media), CPU)
    assert not found.requires_grad
    for name, tensor in trunk.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_mixed_precision_is_close(media):
    full, mixed = (tiny_trunk(precision=p)(frames_of(media), CPU) for p in ("fp32", "bf16"))
    assert mixed.dtype == torch.float32 and not torch.equal(full, mixed)
    torch.testing.assert_close(full, mixed, rtol=0.05, atol=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_it_is_the_same_network(media):
    """In training as in evaluation, gradients and batch norms' statistics too."""
    one, other = (tiny_trunk(NORMED, compiled=compiled, micro_batch=8).train() for compiled in (False, True))
    for part in (frames_of(media), frames_of(media)[:5]):
        found = [trunk(part, CPU) for trunk in (one, other)]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        for values in found:
            coupled(values).backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)  # a bias before a norm has none
    assert one.state_dict().keys() == other.state_dict().keys()
    for trunk in (one, other):
        trunk.eval()
    torch.testing.assert_close(*(trunk(frames_of(media), CPU) for trunk in (one, other)), rtol=1e-4, atol=1e-5)


# The order of rows.


def patterns(clips=100, complete=5):
    """Clips of which all but a few lack the second modality."""
    observed = np.ones((clips, 2), bool)
    observed[complete:, 1] = False
    return observed


def test_a_batch_holds_complete_rows_at_95_percent_missing():
    strata = Strata(patterns(), np.ones(100, bool), 4, 32)
    rows, weights = strata.epoch(torch.Generator().manual_seed(0))
    assert rows.shape == weights.shape == (13, 32)
    complete = rows // 4 < 5
    assert (complete.sum(1) == 8).all()
    assert len(rows[~complete].unique()) == (~complete).sum()  # none twice before all have come
    parts = complete.view(13, 4, 8).sum(2)  # of micro-batches, what their batch norms see
    assert (parts == 8).sum() == 0 and (parts > 0).float().mean() > 0.75
    torch.testing.assert_close(weights.sum(1), torch.full((13,), 32.0))
    torch.testing.assert_close((weights * complete).sum(1) / 32, torch.full((13,), 0.05))


@pytest.mark.slow
@pytest.mark.parametrize(("clips", "complete", "batch"), [(100, 5, 32), (40, 3, 16), (30, 20, 7), (12, 1, 2)])
def test_weights_make_the_expected_loss_the_plain_mean(clips, complete, batch):
    strata = Strata(patterns(clips, complete), np.ones(clips, bool), 3, batch)
    values = torch.randn(clips * 3, generator=torch.Generator().manual_seed(1)) + torch.arange(clips * 3) / 100
    generator = torch.Generator().manual_seed(2)
    epochs = [strata.epoch(generator) for _ in range(600)]
    means = torch.stack([(values[rows] * weights).mean() for rows, weights in epochs])
    error = means.std() / len(means) ** 0.5
    assert abs(means.mean() - values.mean()) < 4 * error + 1e-6
    plain = torch.stack([values[strata.epoch(generator)[0]].mean() for _ in range(50)])
    assert complete == 20 or abs(plain.mean() - values.mean()) > 4 * error  # without weights it would not


def test_an_epoch_depends_on_its_number_alone(media):
    clips = MediaClips(media, tiny())
    run = clips.run(RunSpec(0, parse_missing("audio:0.5")))
    runs = clips.load(CPU).runs([run], Stage())
    batches = [runs.batches(Stage(), 0, 16) for _ in range(2)]
    first = [list(batches[0].epoch(n)) for n in (1, 2)]
    second = list(batches[1].epoch(2))
    for one, other in zip(first[1], second, strict=True):
        assert torch.equal(one.rows, other.rows) and torch.equal(one.weight, other.weight)
    assert not torch.equal(first[0][0].rows, second[0].rows)


# The marginal.


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.05])
def test_the_latest_features_give_an_unbiased_gradient(tmp_path, share):
    """Over fresh features the mean gradient of what computes them, here a scale of each, and of the encoder is the full
    marginal's, the loss's own weights included."""
    clips = Clips(write_store(tmp_path, clips=60, without_audio=(), failed=()))
    run = clips.run(RunSpec(0, parse_missing("audio:0.8")))
    settings = Settings(dropout=0.0, hidden=8, dim=4, complete_share=share)
    runs = Dataset(clips).runs([run], Stage(), rates_of(MaximumLikelihood, [settings]))
    strata = Strata(run.observed, run.training_clips(Stage()), runs.segments, 24)
    scale = [torch.ones(n, requires_grad=True) for n in (12, 10)]
    gather = runs.gather_modality

    def scaled(m, rows, observed):
        return (gather(m, rows, observed).nan_to_num() * scale[m]).masked_fill(~observed[..., None], torch.nan)

    runs.gather_modality = scaled

    def gradient(kind, rows, weight):
        method = MaximumLikelihood(runs, settings, "addition")
        with torch.no_grad():
            for encoder in method.encoders:
                encoder.embedding.weight.mul_(4)  # a marginal that is far from linear
        method._marginals = {1: kind(runs, 1, method.encoders[1])}
        method._marginals[1].begin_epoch(1)
        weight = runs.draws.weighted(Stage(), rows[None, None], weight[None, None])[0]
        method.loss(runs.batch(rows[None], weight)).sum().backward()
        found, scale[1].grad = scale[1].grad, None
        return torch.cat([found, *(p.grad.flatten() for p in method.encoders[1].parameters())])

    every = torch.as_tensor(np.flatnonzero(run.part == TRAIN))
    rows = runs.rows_of(every[None])[0]
    exact = gradient(Full, rows, torch.ones(len(rows)))
    generator = torch.Generator().manual_seed(0)
    found = torch.stack(
        [gradient(Latest, r, w) for _ in range(150) for r, w in zip(*strata.epoch(generator), strict=True)]
    )
    error = found.std(0) / len(found) ** 0.5
    far = (found.mean(0) - exact).abs() / (error + 1e-7)
    assert far.square().mean() < 1.5 and far.max() < 5
    part = torch.stack([gradient(Full, *batch) for batch in zip(*strata.epoch(generator), strict=True)]).mean(0)
    assert (part - exact).norm() < 0.5 * exact.norm()  # of the same size
    assert exact[:10].norm() > 0.01


def test_a_bank_goes_on_where_it_was(media):
    clips = MediaClips(media, tiny())
    run = clips.run(RunSpec(0, parse_missing("audio:0.5")))
    runs = clips.load(CPU).runs([run], Stage())
    one, other = (MaximumLikelihood(runs, QUICK, "addition") for _ in range(2))
    one.begin_epoch(Stage(), 1)
    assert isinstance(one._marginals[1], Latest)
    one._marginals[1].bank += 1
    other.load_training_state(one.training_state())
    assert torch.equal(one._marginals[1].bank, other._marginals[1].bank)


# Every method.


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fusion"), ROWS)
@pytest.mark.parametrize("backbone", [TINY, pytest.param(NORMED, marks=pytest.mark.slow)])
def test_every_row_of_table_1_trains(media, method, fusion, backbone):
    found = trained(media, method, fusion, "visual:0.8", replace(QUICK, epochs=1), backbone=backbone)
    assert np.isfinite(found.probability).all() and found.total_epochs == 1
    np.testing.assert_allclose(found.probability.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_single_modality_costs_one_network(media, monkeypatch, frozen):
    computed, real = set(), Trunk._features
    monkeypatch.setattr(Trunk, "_features", lambda trunk, x: computed.add(trunk.modality) or real(trunk, x))
    found = trained(media, "audio-only", missing="visual:0.5", settings=replace(QUICK, epochs=1), frozen=frozen)
    assert computed == {"audio"} and np.isfinite(found.probability).all()


def test_the_full_marginal_trains_too(media):
    found = trained(media, "mle", "outer", "audio:0.8", replace(QUICK, epochs=1, marginal="full"), backbone=NORMED)
    assert np.isfinite(found.probability).all()


def test_a_whole_support_is_embedded_as_its_clips_are(media):
    """In micro-batches of all kinds of clips: batch norms leave what tells clips apart, and count nothing."""
    clips = MediaClips(media, tiny(NORMED, micro_batch=4))
    run = clips.run(RunSpec(0, parse_missing("visual:0.5")))
    runs = clips.load(CPU).runs([run], Stage())
    support = SupportRows(runs, 1)
    with torch.no_grad():
        expected = support.features(support.rows)[0]
    runs.trunks.train()
    before = {name: value.clone() for name, value in runs.trunks.state_dict().items()}
    found = support.features(support.rows)[0]
    found.sum().backward()
    for name, value in runs.trunks.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)

    def spread(features):
        return features.detach().view(-1, SEGMENTS, features.shape[1]).mean(1).std(0).mean()

    in_order = runs.trunks[1](runs.reader.read(1, support.rows[0]), CPU)
    assert spread(found) > 0.8 * spread(expected) > 1.1 * spread(in_order)


def test_both_modalities_may_be_missing(media):
    found = trained(media, "mle", "addition", "audio:0.4+visual:0.4", QUICK)
    assert np.isfinite(found.probability).all()


def test_backbones_learn(media):
    clips = MediaClips(media, tiny(backbone_lr=1e-2))
    run = clips.run(RunSpec(0, parse_missing("audio:0.5")))
    runs = clips.load(CPU).runs([run], Stage())
    MediaTraining(load("mle")(runs, replace(QUICK, epochs=3), "addition"), "mle", lambda clips: None).run()
    before = Backbone(TINY, RANDOM).model.state_dict()
    for trunk in runs.trunks:
        assert all(not torch.equal(t, before[name]) for name, t in trunk.network.state_dict().items())


def test_what_is_missing_is_neither_read_nor_seen(media):
    clips = MediaClips(media, tiny())
    run = clips.run(RunSpec(0, parse_missing("audio:0.8")))
    runs = clips.load(CPU).runs([run], Stage())
    read = []
    whole, runs.reader.read = runs.reader.read, lambda m, rows: read.append((m, rows)) or whole(m, rows)
    for batch in runs.batches(Stage(), 0, 16).epoch(1):
        for m, x in enumerate(batch.x):
            assert (x.isnan().all(-1) == ~batch.observed[..., m]).all()
    assert read and all(run.observed[rows.numpy() // SEGMENTS, m].all() for m, rows in read)


# Augmentation.


def test_without_augmentation_nothing_is_drawn(media):
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    trunk = tiny_trunk().train()
    assert torch.equal(trunk(frames_of(media), CPU, generator), trunk(frames_of(media), CPU))
    assert torch.equal(generator.get_state(), state)
    changing = tiny_trunk(augment=True).train()
    seeded = [changing(frames_of(media), CPU, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    assert torch.equal(changing.eval()(frames_of(media), CPU, generator), trunk(frames_of(media), CPU))


def test_augmented_training_is_reproducible(media):
    one, other, plain = (trained(media, augment=on).probability for on in (True, True, False))
    assert np.array_equal(one, other) and not np.array_equal(one, plain)


def test_augmented_pictures():
    pictures = torch.rand(40, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    changed = augment_frames(pictures, torch.Generator().manual_seed(1))
    assert changed.shape == pictures.shape and changed.min() >= 0 and changed.max() <= 1
    constant = augment_frames(torch.full((40, 3, 64, 64), 0.5), torch.Generator().manual_seed(1))
    assert (constant.std((2, 3)) < 1e-6).all()  # moving and flipping one colour gives one colour
    assert 0.005 < constant.mean((2, 3)).std() < 0.1  # of another light and hue
    ramp = torch.arange(64.0).expand(40, 3, 64, 64) / 100
    flipped = augment_frames(ramp, torch.Generator().manual_seed(1)).mean(2)  # [n, 3, column]
    turned = (flipped[:, :, 63] < flipped[:, :, 0]).float().mean()
    assert 0.2 < turned < 0.8
    sounds = torch.rand(40, 3, 64, 51, generator=torch.Generator().manual_seed(0))
    masked = augment_logmels(sounds, torch.Generator().manual_seed(1))
    gone = (masked != sounds).all(1)
    assert 0 < gone.float().mean() < 0.4
    mean = sounds.mean((2, 3), keepdim=True).expand_as(sounds)
    assert torch.equal(masked[gone[:, None].expand_as(masked)], mean[gone[:, None].expand_as(mean)])


# Reading ahead.


def test_media_are_the_stores(media):
    kept_clips = np.array([3, 4, 9, 11])
    reader = MediaReader(media, kept_clips, most_bytes=60_000)  # less than these clips have
    rows = torch.tensor([0, 7, 1, 0, 5])
    values = media.read("frames")[kept_clips].reshape(8, 40, 40, 3)
    for _ in range(2):
        np.testing.assert_array_equal(reader.read(0, rows).numpy(), values[rows])
    ahead = list(reader.ahead([{0: rows[:1]}, {0: rows[1:], 1: rows[:2]}, {}, {1: rows}, {0: rows}]))
    np.testing.assert_array_equal(ahead[1][0].result().numpy(), values[rows[1:]])
    assert len(ahead) == 5 and ahead[3][1].result().dtype == torch.float16
    assert reader._bytes <= 60_000 and reader._bytes == sum(v.nbytes for v in reader._clips.values())


# Wrong use.


def train_as_user(mlemiss, *arguments):
    result = mlemiss("train", "--missing", "audio:0.5", "--seeds", 1, "--epochs", 1, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr and result.stdout == ""
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--init", "random"], "--init belongs to training end to end"),
        (["--micro-batch", "8"], "--micro-batch belongs to training end to end"),
        (["--compile"], "--compile belongs to training end to end"),
        (["--end-to-end", SMALL, "--features", "resnet50"], "exclude each other"),
        (["--end-to-end", "resnet51"], "unknown features 'resnet51'"),
        (["--end-to-end", SMALL, "--init", "nowhere.pth"], "neither imagenet nor random nor a file"),
        (["--end-to-end", SMALL, "--init", "random", "--precision", "fp8"], "is not one of 'fp32', 'tf32', 'bf16'"),
        (["--end-to-end", SMALL, "--init", "random", "--micro-batch", "0"], "expected 1 or more"),
        (["--end-to-end", SMALL, "--init", "random", "--backbone-lr", "0"], "expected more than 0"),
        (["--end-to-end", SMALL, "--init", "random", "--frozen", "--augment"], "exclude each other"),
        (["--end-to-end", SMALL, "--init", "random"], "mlemiss preprocess --dataset NAME --media only"),
    ],
)
def test_wrong_options_are_told(arguments, why, mlemiss):
    assert why in train_as_user(mlemiss, *arguments)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--marginal", "batch"], "--marginal batch is not for training end to end"),
        (["--save-weights"], "--save-weights keeps what was trained on cached features"),
        (["--method", "ae1"], "ae1 cannot train end to end: it reconstructs features"),
        (["--precision", "tf32", "--device", "cpu"], "--precision tf32 is of CUDA GPUs, and the device is cpu"),
    ],
)
def test_what_training_end_to_end_has_not_is_told(arguments, why, mlemiss, media, tmp_path):
    trunk = ["--store", media.path, "--end-to-end", SMALL, "--init", "random", "--out", tmp_path / "out"]
    assert why in train_as_user(mlemiss, *trunk, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_store_without_media_is_told(mlemiss, features):
    said = train_as_user(mlemiss, "--store", features.path, "--end-to-end", SMALL, "--init", "random")
    assert "holds no media" in said and "mlemiss preprocess --dataset NAME --media only" in said


def test_a_compiler_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"(?s)--compile needs a C\+\+ compiler, and there is no no-such-compiler"):
        tiny(compiled=True)


def test_features_are_not_taken_for_media(mlemiss, media):
    assert "holds frames and log-Mels, not features" in train_as_user(mlemiss, "--store", media.path)


def test_a_batch_that_does_not_fit_names_the_size_to_try(media, monkeypatch):
    def hungry(self, x):
        if torch.is_grad_enabled():
            torch.empty(2**55)  # what the allocator of the processor says itself
        return x.mean((2, 3)).repeat(1, 4)

    monkeypatch.setattr(f"{__package__}.media_stores.Tiny.forward", hungry)
    with pytest.raises(
        InputError, match=r"(?s)8 segments at once, does not fit into the memory of cpu.*--micro-batch 4"
    ):
        trained(media, micro_batch=8)
    with pytest.raises(InputError, match=r"(?s)16 segments at once.*--micro-batch 8"):  # the batch is 16
        trained(media, micro_batch=64)
    with pytest.raises(InputError, match=r"(?s)1 segments at once.*a smaller --batch-size"):
        trained(media, micro_batch=1)

    def wrong(self, x):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(f"{__package__}.media_stores.Tiny.forward", wrong)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        trained(media)


def test_a_checkpoint_of_another_training_is_told(media, tmp_path):
    clips = MediaClips(media, tiny())
    run = clips.run(RunSpec(0, parse_missing("audio:0.5")))

    def trained_again(**identity):
        checkpoints = Checkpoints(tmp_path, {"method": "mle", "lr": 1} | identity)
        return fit_end_to_end(load("mle"), clips.load(CPU), [run], QUICK, "addition", checkpoints=checkpoints)[0]

    first = trained_again()
    assert np.array_equal(trained_again().probability, first.probability)  # taken from the file of the last epoch
    with pytest.raises(InputError, match=r"(?s)seed0-classifier.pt is of another training \(lr: 1 there, 2 here\)"):
        trained_again(lr=2)
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"(?s)seed0-classifier.pt cannot be read.*Remove it"):
        trained_again()


def test_a_checkpoint_of_another_training_is_told_before_anything_is_trained(media, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("mlemiss.trainer.end_to_end.checkpoint.Checkpoints.remove", killed)
        train([media], out, Grid(["hgr"], seeds=1), QUICK, "cpu", end_to_end=tiny())
    (out / "results.json").unlink()
    with pytest.raises(InputError, match=r"seed0-classifier.pt is of another training \(epochs: 2 there, 3 here\)"):
        train([media], out, Grid(["mle", "hgr"], seeds=1), replace(QUICK, epochs=3), "cpu", end_to_end=tiny())
    assert json.loads((out / "results.json").read_text())["results"] == []


def test_results_on_features_do_not_make_way(media, features, tmp_path):
    train([features], tmp_path / "run", Grid(seeds=1), QUICK, "cpu")
    with pytest.raises(InputError, match="holds the results of another run"):
        train([media], tmp_path / "run", Grid(seeds=1), QUICK, "cpu", end_to_end=tiny())
    assert json.loads((tmp_path / "run" / "results.json").read_text())["results"][0]["features"] == "tiny"


def test_one_run_at_a_time(media):
    clips = MediaClips(media, tiny())
    runs = [clips.run(RunSpec(s)) for s in (0, 1)]
    with pytest.raises(ValueError, match="one run is trained at a time, found 2"):
        clips.load(CPU).runs(runs, Stage())


# Missing labels.


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mle", "zero-padding"])
def test_clips_without_a_label_train_as_on_cached_features(media, features, method):
    missing = "audio:0.3+label:0.6"
    clips = Clips(features)
    plain = fit(load(method), Dataset(clips), [clips.run(RunSpec(0, parse_missing(missing)))], QUICK, "addition")[0]
    frozen = trained(media, method, missing=missing, frozen=True)
    np.testing.assert_allclose(frozen.probability, plain.probability, atol=0.01)
    assert frozen.best_epoch == plain.best_epoch and frozen.val_accuracy == plain.val_accuracy
    assert np.isfinite(trained(media, method, missing=missing).probability).all()


@pytest.mark.slow
def test_missing_labels_do_not_touch_backbones(media):
    """Of networks that are trained, too: other labels where they are missing give the same."""
    clips = MediaClips(media, tiny())
    run = clips.run(RunSpec(0, parse_missing("label:0.6")))
    found = []
    for label in (clips.label, np.where(run.labelled, clips.label, (clips.label + 1) % 3)):
        clips.label = label
        found.append(fit_end_to_end(load("mle"), clips.load(CPU), [run], QUICK, "addition")[0].probability)
    np.testing.assert_array_equal(*found)
