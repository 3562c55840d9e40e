"""Numbers of a run's own: dropout, hidden modalities, the complete clips' share, clamped inputs, optimiser rates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import TEST, parse_missing
from mlemiss.trainer.batches import Draws, Stage, generator, hiding_chances
from mlemiss.trainer.data import Clips, Dataset, RunSpec
from mlemiss.trainer.fit import RunAdamW, Training, fit
from mlemiss.trainer.methods import autoencoders, load, method_names
from mlemiss.trainer.networks import Dropout, Encoder, RunRandom, Standardise, nan_, zero_
from mlemiss.trainer.report.crossed import paired
from mlemiss.trainer.settings import Settings

from .feature_stores import write_store

torch.set_num_threads(1)  # small networks

STEPS = Settings(dropout=0.0, epochs=3, batch_size=32, lr=1e-2, hidden=16, dim=4)
ONE_STEP = replace(STEPS, batch_size=300)  # all rows in a batch, so that runs of unequal size train side by side


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(Clips(write_store(tmp_path_factory.mktemp("stores"))))


def draw(dataset, seeds=(0,), missing="audio:0.5", split="clip"):
    return [dataset.clips.run(RunSpec(s, parse_missing(missing), parse_missing("none"), split)) for s in seeds]


def probabilities(method, dataset, runs, settings, fusion="addition"):
    return [result.probability for result in fit(load(method), dataset, runs, settings, fusion)]


@pytest.mark.parametrize("method", ["mle", "transformer", "embracenet", "simmlm", "momke"])
def test_what_is_random_does_not_depend_on_company(dataset, method):
    """Runs of unequal size, each with rates of its own: as each would train alone."""
    runs = draw(dataset, range(4), split="subject")
    assert len({run.training_clips(Stage()).sum() for run in runs}) > 1
    own = [(0.5, 0.3, 1e-2), (0.0, 0.3, 3e-3), (0.2, 0.0, 1e-2), (0.5, 0.6, 1e-3)]
    settings = [replace(ONE_STEP, dropout=dropout, hide=hide, lr=lr) for dropout, hide, lr in own]
    fusion = load(method).fusions[0]
    together = probabilities(method, dataset, runs, settings, fusion)
    for run, own, found in zip(runs, settings, together, strict=True):
        np.testing.assert_allclose(found, probabilities(method, dataset, [run], own, fusion)[0], atol=2e-5)


CHANGES = {"dropout": 0.3, "hide": 0.3, "complete_share": 0.8, "clamp": 1.0}
WITHOUT_EFFECT = {
    ("lower-bound", "complete_share"): "trains on complete clips alone",
    ("hgr", "complete_share"): "takes a mean of its own over complete clips",
} | {
    (f"{modality}-only", name): "knows one modality"
    for modality in ("audio", "visual")
    for name in ("hide", "complete_share")
}


@pytest.mark.parametrize("method", method_names())
@pytest.mark.slow
def test_every_method_trains_with_each_of_them(dataset, method):
    """Each alone changes what is trained, but for those of WITHOUT_EFFECT, which change nothing."""
    runs, fusion = draw(dataset, (0, 1), "audio:0.5+visual:0.2"), load(method).fusions[0]
    basis = replace(STEPS, clamp=0.0)
    plain = probabilities(method, dataset, runs, basis, fusion)
    for name, value in CHANGES.items():
        changed = probabilities(method, dataset, runs, replace(basis, **{name: value}), fusion)
        same = np.allclose(plain, changed, atol=1e-4)
        assert np.isfinite(changed).all() and same == ((method, name) in WITHOUT_EFFECT), name
    none = replace(STEPS, clamp=1e6)
    np.testing.assert_allclose(plain, probabilities(method, dataset, runs, none, fusion), atol=1e-6)


@pytest.mark.slow
def test_chosen_on_validation_fused_methods_are_not_left_below_a_single_modality(tmp_path):
    """Of few features that say much and many that say little, the latter lacking in 95 %: what regularisation is for.

    No bound is a constant: the 95 % interval of the paired difference to the best single modality must reach zero, and
    without regularisation it does not for each. hgr is left out: it stays below with each of these tries, as the
    classifier that it predicts whole clips by is trained on complete ones alone.
    """
    options = {"clips": 600, "classes": 4, "segments": 1, "failed": (), "without_audio": ()}
    apart, widths = {"visual": 0.7, "audio": 0.15}, {"visual": 12, "audio": 200}
    data = Dataset(Clips(write_store(tmp_path, separation=apart, widths=widths, **options)))
    runs, label = draw(data, range(6), "audio:0.95"), data.clips.label
    tries = [(decay, dropout) for decay in (1e-4, 1.0) for dropout in (0.0, 0.5)]  # the first regularises nothing
    basis = Settings(dropout=0.0, epochs=10, batch_size=64, lr=3e-2, hidden=64, dim=8)
    each = [replace(basis, weight_decay=decay, dropout=dropout) for decay, dropout in tries for _ in runs]
    first, chosen = {}, {}
    for method in ("visual-only", "audio-only", "mle", "zero-padding", "ae1", "embracenet"):
        results = fit(load(method), data, runs * len(tries), each, load(method).fusions[0])
        found = np.reshape([max(r.val_accuracy) for r in results], (len(tries), -1)).mean(1)
        for kept, place in ((first, 0), (chosen, found.argmax())):
            right = np.zeros((len(runs), len(label)), bool)
            for row, r in zip(right, results[place * len(runs) :], strict=False):
                row[r.test_clips] = r.probability.argmax(1) == label[r.test_clips]
            kept[method] = found[place], right
    tested = np.array([run.part == TEST for run in runs])

    def below(kept):
        alone = max((kept.pop(method) for method in ("visual-only", "audio-only")), key=lambda one: one[0])[1]
        pairs = {m: paired(np.stack([right, alone]), tested, np.arange(len(label))) for m, (_, right) in kept.items()}
        return {method: pair for method, pair in pairs.items() if pair.high[0] < 0}

    assert below(first), "these data need no regularisation"
    assert not (left := below(chosen)), left


def test_dropout_drops_its_share_and_keeps_the_mean():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (0, 1, 2)]

    dropout = Dropout(torch.tensor([0.0, 0.25, 0.75]), generators())
    x = torch.ones(3, 2000, 10)
    dropped = dropout(x)
    assert torch.equal(dropped[0], x[0]) and not torch.equal(dropped[1] > 0, dropped[2] > 0)
    for rate, part in zip((0.25, 0.75), dropped[1:], strict=True):
        assert float((part == 0).float().mean()) == pytest.approx(rate, abs=0.01)
        assert part.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    assert not torch.equal(dropout(x), dropped)  # anew at each call
    short = Dropout(torch.tensor([0.0, 0.25, 0.75]), generators())(x[:, :7])
    assert torch.equal(short, dropped[:, :7])  # the first rows are drawn alike, however many follow
    assert torch.equal(dropout.eval()(x), x)


def test_random_bits_are_those_of_independent_bytes():
    """By themselves, and beside those of other runs, calls and places; of two purposes of one seed, too."""
    random = RunRandom([generator(seed, purpose) for seed in (0, 1) for purpose in ("a", "b")])
    drawn = torch.stack([random.bits(1 << 14) for _ in range(3)])  # [call, run, place]
    bits = (drawn.view(torch.uint8).long()[..., None] >> torch.arange(8)) & 1
    signs = 2.0 * bits.flatten(2) - 1  # [call, run, n]
    n = signs.shape[-1]
    assert float(signs.mean((0, 1)).std()) == pytest.approx(12**-0.5, rel=0.02)  # each place's mean over 12
    found = torch.corrcoef(signs.flatten(0, 1)) - torch.eye(12)  # of every two calls and runs
    shifted = [(signs[..., :-lag] * signs[..., lag:]).mean(-1) for lag in (*range(1, 33), 256, 4096)]
    for name, values in (("mean", signs.mean(-1)), ("across", found), ("along", torch.stack(shifted))):
        assert float(values.abs().max()) < 5 * n**-0.5, name
    counts = torch.bincount(drawn.view(torch.uint8).flatten().long(), minlength=256).double()
    expected = counts.mean()
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 5 * (2 * 255) ** 0.5
    uniform = RunRandom([generator(0, "a")]).uniform(1 << 12, 4)
    assert uniform.min() >= 0 and uniform.max() < 1 and float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(uniform.std()) == pytest.approx(12**-0.5, rel=0.02)


def test_the_lower_bound_does_not_depend_on_the_marginal_that_its_results_leave_out(dataset):
    found = []
    for marginal in ("bank", "full"):
        settings = replace(STEPS, hide=0.5, marginal=marginal, epochs=1)
        (result,) = fit(load("lower-bound"), dataset, draw(dataset), settings, "addition")
        found.append(result.probability)
    np.testing.assert_array_equal(*found)


def test_a_checkpoint_draws_on(dataset):
    runs = dataset.runs(draw(dataset), Stage())
    settings = replace(STEPS, dropout=0.5)
    method, again = (load("transformer")(runs, settings, "addition") for _ in range(2))
    batch = runs.batch(torch.arange(20)[None], torch.ones(1, 20))
    method.loss(batch)
    again.load_training_state(method.training_state())
    assert torch.equal(method.loss(batch), again.loss(batch))


def test_hidden_modalities_are_those_of_complete_rows_at_the_rate_asked_for():
    rng = np.random.default_rng(0)
    observed = rng.random((2, 4000, 3)) < [0.9, 0.6, 0.3]
    observed[..., 0] |= ~observed.any(-1)
    trained = rng.random((2, 4000)) < 0.8
    chances = np.stack([hiding_chances(o, t, rate) for o, t, rate in zip(observed, trained, (0.4, 0.0), strict=True)])
    assert chances[0].sum() == pytest.approx(0.4) and not chances[1].any()
    assert np.all(np.diff(chances[0]) < 0)  # what few clips have is seldom hidden
    draws = Draws(observed, observed.any(-1), trained, 2, [5, 6], chances, [np.nan, np.nan])
    rows = torch.as_tensor(rng.integers(0, 8000, (4, 2, 5000)))
    hidden = draws.hidden(Stage(), 3, rows)
    complete = torch.as_tensor(observed.all(-1))[0][rows[:, 0] // 2]
    assert not hidden[:, 1].any() and not hidden[:, 0][~complete].any() and hidden.sum(-1).max() == 1
    np.testing.assert_allclose(hidden[:, 0][complete].float().mean(0), chances[0], atol=0.03)
    assert torch.equal(draws.hidden(Stage(), 3, rows), hidden)
    assert not torch.equal(draws.hidden(Stage(), 4, rows), hidden)
    assert draws.hidden(Stage(hides=False), 3, rows) is None
    assert not hiding_chances(observed[0, :, :1], trained[0], 0.5).any()  # nothing would be left
    assert not hiding_chances(np.array([[True, False]]), np.array([True]), 0.5).any()  # nothing is complete


def test_complete_clips_share_of_the_loss():
    observed = np.ones((2, 10, 2), bool)
    observed[:, 2:, 1] = False  # 2 of 10 are complete
    trained, rows = np.ones((2, 10), bool), torch.arange(10).expand(1, 2, 10)
    draws = Draws(observed, trained, trained, 1, [0, 1], np.zeros((2, 2)), [0.5, np.nan])
    weight = draws.weighted(Stage(), rows, torch.ones(1, 2, 10))[0]
    assert weight[1].tolist() == [1] * 10
    assert weight[0].sum() == pytest.approx(10) and weight[0, :2].sum() == pytest.approx(5)
    assert torch.equal(draws.weighted(Stage(selects=False), rows, weight[None]), weight[None])  # imputers' own loss


def test_a_single_modality_knows_no_complete_clips(dataset):
    """What another modality lacks says nothing of it."""
    runs = draw(dataset, (0,), "visual:0.8")
    plain, shared = (probabilities("only:audio", dataset, runs, replace(STEPS, complete_share=s)) for s in (None, 0.9))
    np.testing.assert_array_equal(plain[0], shared[0])


def test_one_optimiser_is_as_many_each_with_its_rates():
    torch.manual_seed(0)
    lr, decay = torch.tensor([1e-2, 1e-3, 3e-2]), torch.tensor([0.0, 0.1, 1.0])
    together = [torch.nn.Parameter(torch.randn(3, 4, 2)), torch.nn.Parameter(torch.randn(3, 1, 5))]
    unused = torch.nn.Parameter(torch.ones(3, 1))
    alone = [[torch.nn.Parameter(p[r].detach().clone()) for p in together] for r in range(3)]
    optimiser = RunAdamW([*together, unused], {"lr": lr, "weight_decay": decay})
    others = [torch.optim.AdamW(a, lr=float(lr[r]), weight_decay=float(decay[r])) for r, a in enumerate(alone)]
    for step in range(5):
        optimiser.zero_grad()
        sum(((p - step) ** 3).sum() for p in together).backward()
        optimiser.step()
        for r, one in enumerate(others):
            one.zero_grad()
            sum(((p - step) ** 3).sum() for p in alone[r]).backward()
            one.step()
    for p, q in enumerate(together):
        for r in range(3):
            torch.testing.assert_close(q[r], alone[r][p])
    assert torch.equal(unused, torch.ones(3, 1))


def test_clamped_inputs_are_within_their_bound():
    x = torch.tensor([[[0.0, 50.0], [1.0, -3000.0]]])
    layer = Standardise(torch.zeros(1, 2), torch.ones(1, 2), 5.0)
    assert layer(x, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[[0, 5], [1, -5]]]
    assert layer(x * torch.nan, torch.zeros(1, 2, dtype=torch.bool)).tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_is_not_kept_is_put_out_whatever_it_holds(dtype):
    kept = torch.tensor([[True, False, False], [False, True, True]])
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 1], x[1, 1, 2], x[0, 2, 0], x[1, 0] = torch.nan, torch.nan, -torch.inf, -3.0  # NaN that is kept stays
    for put, value in ((zero_, 0.0), (nan_, torch.nan)):
        expected = x.masked_fill(~kept[..., None], value)
        torch.testing.assert_close(put(x.clone(), kept), expected, rtol=0, atol=0, equal_nan=True)
        parts = x.clone()[:, :2]  # of a larger tensor
        torch.testing.assert_close(put(parts, kept[:, :2]), expected[:, :2], rtol=0, atol=0, equal_nan=True)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(put(leaf * 2, kept).nansum(), leaf)
        assert (gradient[~kept] == 0).all() and (gradient[kept][:, 0] == 2).all()


@pytest.mark.parametrize("clamp", [0.0, 1.5])
def test_encoders_of_all_runs_at_once_are_each_runs_own(clamp):
    """Standardising and the layers that two embeddings share give, in float64, what plain formulas give run by run."""
    g = torch.Generator().manual_seed(0)
    R, n, D = 3, 7, 5
    x, mean = torch.randn(R, n, D, generator=g).double() * 40, torch.randn(R, D, generator=g).double() * 9
    std = torch.rand(R, D, generator=g).double() * 30 + 1
    observed = torch.rand(R, n, generator=g) < 0.7
    x[~observed] = torch.nan
    weights = torch.randn(2, R, n, 4, generator=g).double()
    seeded = [torch.Generator().manual_seed(r) for r in range(R)]
    dropout = Dropout(torch.tensor([0.0, 0.25, 0.5]), seeded)
    encoder = Encoder(mean, std, 8, 4, seeded, dropout, constant=0.5, clamp=clamp).double()
    parameters = list(encoder.parameters())
    dropped, whole = encoder.both(x, observed)
    found = torch.autograd.grad((torch.stack([dropped, whole]) * weights).sum(), parameters)
    dropout.calls.zero_()
    masks = dropout(torch.ones(R, n, 8, dtype=torch.float64))
    assert (masks[1:] == 0).any() and masks[0].eq(1).all()
    plain = []
    for r in range(R):
        z = torch.where(observed[r, :, None], (x[r] - mean[r]) / std[r], 0)
        z = z.clamp(-clamp, clamp) if clamp else z
        hidden = (z @ encoder.hidden.weight[r] + encoder.hidden.bias[r]).relu()
        embed = [h @ encoder.embedding.weight[r] + encoder.embedding.bias[r] for h in (hidden * masks[r], hidden)]
        plain.append(torch.stack([torch.cat([e, torch.full((n, 1), 0.5)], 1) for e in embed]))
    plain = torch.stack(plain, 1)
    torch.testing.assert_close(torch.stack([dropped, whole]), plain, rtol=0, atol=1e-10)
    for one, expected in zip(found, torch.autograd.grad((plain * weights).sum(), parameters), strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_sparse_features_cannot_explode(tmp_path, monkeypatch):
    """At 95 % missing, values of held-out clips are thousands of deviations away; clamped, every fused method gains."""
    widths = {"visual": 192, "audio": 192}
    store = write_store(tmp_path, clips=320, classes=4, segments=1, widths=widths, failed=(), sparse=True)
    assert 0.01 < (store.read("audio")[..., 1:] > 0).mean() < 0.02
    data = Dataset(Clips(store))
    runs, seen = draw(data, range(4), "audio:0.95"), []
    standardise, error = Standardise.forward, autoencoders._squared_error

    def watched(self, x, observed):
        seen.append(float((z := standardise(self, x, observed)).detach().abs().max()))
        return z

    def watched_error(found, target, weight):
        seen.append(float(target.abs().max()))
        return error(found, target, weight)

    monkeypatch.setattr(Standardise, "forward", watched)
    monkeypatch.setattr(autoencoders, "_squared_error", watched_error)
    found = {}
    for clamp in (0.0, Settings.clamp):
        settings = Settings(dropout=0.0, epochs=8, batch_size=32, lr=1e-2, hidden=32, dim=8, clamp=clamp)
        for method in method_names():
            seen.clear()
            results = fit(load(method), data, runs, settings, load(method).fusions[0])
            right = [r.probability.argmax(1) == data.clips.label[r.test_clips] for r in results]
            found.setdefault(method, []).append(100 * np.mean(right))
            assert seen and (max(seen) <= clamp if clamp else method == "visual-only" or max(seen) > 1000)
    gained = {method: clamped - plain for method, (plain, clamped) in found.items()}
    fused = [gain for method, gain in gained.items() if not load(method).reference]
    assert min(fused) > 0 and np.mean(fused) > 7 and min(gained.values()) > -1, found


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"hide": 1.0},
        {"hide": float("nan")},
        {"complete_share": 0.0},
        {"complete_share": 1.0},
        {"clamp": -1.0},
        {"clamp": float("inf")},
    ],
)
def test_out_of_range(change):
    name, value = next(iter(change.items()))
    with pytest.raises(InputError, match=f"{name.replace('_', ' ')} {value} is out of range: expected"):
        Settings(**change)


def test_predictions_drop_nothing_where_no_epoch_was_left_to_train(monkeypatch, dataset):
    """As where a checkpoint holds all epochs: what is tested is in evaluation mode."""
    monkeypatch.setattr(Training, "train_stage", lambda self, stage, steps: 0)
    every = [probabilities("mle", dataset, draw(dataset), replace(STEPS, dropout=rate)) for rate in (0.5, 0.0)]
    np.testing.assert_array_equal(*every)
