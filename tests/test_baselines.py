"""The baselines' own objectives against plain references."""

import numpy as np
import pytest
import torch
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.trainer.data import Clips, Dataset, Runs, RunSpec
from mlemiss.trainer.fit import fit
from mlemiss.trainer.method import plan_steps
from mlemiss.trainer.methods import load
from mlemiss.trainer.methods.hgr import LEAST_PROBABILITY, soft_hgr
from mlemiss.trainer.settings import Settings

from .feature_stores import write_store

torch.set_num_threads(1)
SETTINGS = Settings(dropout=0.0, epochs=3, batch_size=32, lr=1e-2, hidden=8, dim=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(Clips(write_store(tmp_path_factory.mktemp("stores"))))


def draw(dataset, missing="audio:0.5", seeds=(0,), missing_test="none"):
    specs = [RunSpec(seed, parse_missing(missing), parse_missing(missing_test)) for seed in seeds]
    return [dataset.clips.run(spec) for spec in specs]


# HGR


def soft_hgr_loops(f, g):
    """H(f, g) of rows [n, k] in float64, term by term."""
    n, k = f.shape
    f_mean, g_mean = [sum(f[:, j]) / n for j in range(k)], [sum(g[:, j]) / n for j in range(k)]
    correlation = sum((f[i, j] - f_mean[j]) * (g[i, j] - g_mean[j]) for i in range(n) for j in range(k)) / (n - 1)
    trace = 0.0
    for a in range(k):
        for b in range(k):
            cov_f = sum((f[i, a] - f_mean[a]) * (f[i, b] - f_mean[b]) for i in range(n)) / (n - 1)
            cov_g = sum((g[i, b] - g_mean[b]) * (g[i, a] - g_mean[a]) for i in range(n)) / (n - 1)
            trace += cov_f * cov_g
    return correlation - trace / 2


def test_soft_hgr_equals_loops_gradients_too():
    g = torch.Generator().manual_seed(0)
    f, h = (torch.randn(3, 9, 4, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight = torch.ones(3, 9, dtype=torch.float64)
    weight[1, 5:] = 0
    weight[2, 1:] = 0  # one row: nothing can be said
    found = soft_hgr(f, h, weight)
    grads = torch.autograd.grad(found.sum(), (f, h))
    for r, n in ((0, 9), (1, 5)):
        expected = soft_hgr_loops(f[r, :n], h[r, :n])
        torch.testing.assert_close(found[r], expected)
        for grad, part in zip(grads, torch.autograd.grad(expected, (f, h)), strict=True):
            torch.testing.assert_close(grad[r], part[r])
    assert found[2] == 0


def test_soft_hgr_of_a_perfect_dependence():
    """Standardised f = g of k uncorrelated features has the known maximum k / 2."""
    g = torch.Generator().manual_seed(1)
    f = torch.linalg.qr(torch.randn(50, 3, generator=g, dtype=torch.float64) - 0.0)[0]
    f = torch.linalg.qr(f - f.mean(0))[0] * 49**0.5
    found = soft_hgr(f[None], f[None], torch.ones(1, 50, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((1,), 1.5, dtype=torch.float64))


@pytest.mark.parametrize("fusion", ["addition", "concatenation", "outer"])
def test_hgr_loss_is_its_terms(dataset, fusion):
    """The classifier scores with the label embedding that the correlations of all rows train."""
    runs = Runs(dataset, draw(dataset, "audio:0.4+visual:0.3"), load("hgr").stages[-1])
    method = load("hgr")(runs, SETTINGS, fusion)
    batch = runs.batch(runs.rows_of(runs.padded_clips(runs.trained_on)[0])[:, ::2], torch.ones(1, 1).expand(1, -1))
    batch.weight = torch.ones(batch.label.shape)
    with torch.no_grad():
        f, g = (e[0].double() for e in method.encode(batch.x, batch.observed))
        h = method.correlated()[0][batch.label[0]].double()
        both, only_f, only_g = (
            (batch.observed[0] == torch.tensor(pattern)).all(-1)
            for pattern in ([True, True], [True, False], [False, True])
        )
        assert min(both.sum(), only_f.sum(), only_g.sum()) > 2
        pairs = [(f, g, both), (f, h, both), (g, h, both), (f, h, only_f), (g, h, only_g)]
        correlation = sum(soft_hgr_loops(a[rows].numpy(), b[rows].numpy()) for a, b, rows in pairs)
        logits = (f + g) @ method.correlated()[0].double().T + method.log_prior[0].double()
        if fusion != "addition":
            joined = torch.cat([f, g], 1) if fusion == "concatenation" else (f[:, :, None] * g[:, None]).flatten(1)
            logits += joined @ method.labels()[0].double().T
        entropy = torch.nn.functional.cross_entropy(logits[both], batch.label[0][both]).item()
        assert method.loss(batch).item() == pytest.approx(entropy - correlation, rel=1e-4)


def test_hgr_predicts_an_incomplete_clip_by_the_maximum_a_posteriori_rule(dataset):
    runs = Runs(dataset, draw(dataset), load("hgr").stages[-1])
    method = load("hgr")(runs, SETTINGS, "addition")
    rows = runs.rows_of(runs.padded_clips(runs.trained_on)[0])
    x, observed = runs.gather(rows)
    with torch.no_grad():
        method.prepare_predictions([True, True])
        found = method.predict(x, observed).exp()[0].double()
        f, _ = (e[0].double() for e in method.encode(x, observed))
        prior = method.log_prior[0].exp().double()
        h = method.correlated()[0].double()
    lacking = ~observed[0, :, 1]
    assert lacking.any() and observed[0, :, 0].all()
    posterior = prior * (1 + (f - f.mean(0)) @ (h - prior @ h).T)
    posterior = posterior.clamp_min(LEAST_PROBABILITY)
    torch.testing.assert_close(
        found[lacking], (posterior / posterior.sum(1, keepdim=True))[lacking], atol=1e-6, rtol=1e-5
    )


# Autoencoders


def imputer_alone(dataset, run, kind):
    """Train the network that predicts audio from visual in plain torch: float64, a loop over batches."""
    runs = Runs(dataset, [run], kind.stages[-1])
    start = kind(runs, SETTINGS, "addition").imputers["1"]
    layers = [start.hidden.weight, start.hidden.bias, start.output.weight, start.output.bias]
    w, b, v, c = (layer.detach()[0].double().clone().requires_grad_() for layer in layers)
    stage = kind.stages[0]
    clips = run.training_clips(stage)
    steps = -(-int(clips.sum()) * runs.segments // SETTINGS.batch_size)
    order = runs.batches(stage, steps, SETTINGS.batch_size).order
    optimiser = torch.optim.AdamW([w, b, v, c], lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay)

    def bounded(z):
        return z.clamp(-SETTINGS.clamp, SETTINGS.clamp) if SETTINGS.clamp else z

    x, y = (bounded((dataset.features[m] - runs.moments[m][0][0]) / runs.moments[m][1][0]).double() for m in (0, 1))
    has_audio = torch.as_tensor(np.repeat(run.observed[:, 1], runs.segments))
    for epoch in range(SETTINGS.epochs):
        with torch.no_grad():
            pseudo = bounded((x @ w + b).relu() @ v + c)  # what is predicted before the epoch
        for rows, weight in order.epoch(epoch + 1):
            rows = rows[0][weight[0] > 0]
            target = torch.where(has_audio[rows, None], y[rows].nan_to_num(), pseudo[rows])
            if epoch == 0:
                rows, target = rows[has_audio[rows]], target[has_audio[rows]]
            optimiser.zero_grad()
            loss = (((x[rows] @ w + b).relu() @ v + c - target) ** 2).mean()
            loss.backward()
            optimiser.step()
    return ((x @ w + b).relu() @ v + c).detach()


@pytest.mark.parametrize("name", ["ae1", "ae2"])
def test_autoencoder_equals_one_trained_alone(dataset, name, monkeypatch):
    kind = load(name)
    kept = []

    class Watched(kind):
        def begin_epoch(self, stage, steps):
            super().begin_epoch(stage, steps)
            if stage.name == "classifier" and not kept:
                kept.append({n: p.detach().clone() for n, p in self.imputers["1"].named_parameters()})
                kept.append(self)

    run = draw(dataset)[0]
    steps = plan_steps(kind, run, dataset.segments, SETTINGS)
    others = [r for r in draw(dataset, seeds=range(1, 8)) if plan_steps(kind, r, dataset.segments, SETTINGS) == steps]
    fit(Watched, dataset, [run, others[0]], SETTINGS, "addition")
    state, method = kept
    expected = imputer_alone(dataset, run, kind)
    x = [features[None].expand(2, -1, -1).float() for features in dataset.features]
    observed = torch.ones(*x[0].shape[:2], 2, dtype=torch.bool)
    with torch.no_grad():
        found = torch.func.functional_call(method.imputers["1"], state, (x, observed))[0].double()
    visual = torch.as_tensor(np.repeat(run.observed[:, 0], dataset.segments))
    torch.testing.assert_close(found[visual], expected[visual], atol=2e-4, rtol=2e-4)


def test_autoencoder_2_goes_on_from_a_checkpoint_with_its_own_predictions(dataset):
    """A stage that goes on in its second epoch fits what is missing, as one that was never left."""
    kind = load("ae2")
    stage, run = kind.stages[0], draw(dataset)[0]
    steps = plan_steps(kind, run, dataset.segments, SETTINGS)[0]
    runs = dataset.runs([run], kind.stages[-1])
    one, other = (kind(runs, SETTINGS, "addition") for _ in range(2))
    batch = next(runs.batches(stage, steps, SETTINGS.batch_size).epoch(1))
    one.begin_epoch(stage, steps)
    first = one.reconstruction(batch)
    other.load_state_dict(one.state_dict())
    other.load_training_state(one.training_state())
    for method in (one, other):
        method.begin_epoch(stage, steps)
    again = one.reconstruction(batch)
    assert torch.equal(again, other.reconstruction(batch)) and not torch.equal(again, first)


@pytest.mark.slow
def test_autoencoder_learns_what_can_be_learned(tmp_path):
    """Where audio is a function of visual, imputation beats the mean by far, and the classifier stage leaves it."""
    store = write_store(tmp_path, without_audio=(), failed=())
    visual = store.read("visual")
    arrays = {"visual": visual, "audio": visual[..., :10] * 2 - 1}
    store.read_into = lambda out, modality, clips: np.copyto(out, arrays[modality][clips])
    data = Dataset(Clips(store))
    settings = Settings(dropout=0.0, epochs=60, batch_size=32, lr=1e-2, hidden=32, dim=5)
    kept = []

    class Watched(load("ae1")):
        def begin_epoch(self, stage, steps):
            kept.append(self)

    (run,) = draw(data)
    fit(Watched, data, [run], settings, "addition")
    method = kept[0]
    x = [features[None].float() for features in data.features]
    observed = torch.ones(1, x[0].shape[1], 2, dtype=torch.bool)
    with torch.no_grad():
        guess = method.imputers["1"](x, observed)[0]
    truth = method.encoders[1].standardise(x[1], observed[..., 1])[0]
    hidden = torch.as_tensor(np.repeat(~run.observed[:, 1], 4))
    error = (guess - truth)[hidden][:, 1:].square().mean()  # the first feature never varies
    assert error < 0.2 * truth[hidden][:, 1:].square().mean()


def test_nothing_missing_needs_no_autoencoder(tmp_path):
    data = Dataset(Clips(write_store(tmp_path, without_audio=(), failed=())))
    (run,) = draw(data, "none")
    ae1, zero_padding = (fit(load(name), data, [run], SETTINGS, "addition")[0] for name in ("ae1", "zero-padding"))
    np.testing.assert_array_equal(ae1.probability, zero_padding.probability)


# One modality alone


@pytest.mark.parametrize(("name", "other"), [("audio-only", "visual"), ("visual-only", "audio")])
def test_one_modality_alone_does_not_look_at_the_other(tmp_path, name, other):
    store = write_store(tmp_path, without_audio=(), failed=())
    found = []
    for scale in (1.0, -3.0):
        data = Dataset(Clips(store))
        m = data.clips.modalities.index(other)
        data.features[m] = data.features[m] * scale
        (run,) = draw(data, f"{other}:0.5", missing_test=f"{other}:0.5")
        found.append(fit(load(name), data, [run], SETTINGS, "addition")[0].probability)
    np.testing.assert_array_equal(*found)
