"""One contract over every method there is, and the registry that finds them."""

import itertools
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.trainer import methods as registry
from mlemiss.trainer.batches import Stage, complete_rows
from mlemiss.trainer.data import Clips, Dataset, Runs, RunSpec
from mlemiss.trainer.fit import fit
from mlemiss.trainer.method import FusionClassifier, negative_log_likelihood, plan_steps
from mlemiss.trainer.settings import FUSIONS, Settings

from .feature_stores import write_store

torch.set_num_threads(1)
SETTINGS = Settings(dropout=0.0, epochs=2, batch_size=32, hidden=8, dim=5)
EVERY = [(name, fusion) for name in registry.method_names() for fusion in registry.load(name).fusions]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(Clips(write_store(tmp_path_factory.mktemp("stores"))))


def build(kind, dataset, fusion, seeds=(0, 1, 2), missing="audio:0.5"):
    spec = parse_missing(missing)
    runs = Runs(dataset, [dataset.clips.run(RunSpec(s, spec)) for s in seeds], kind.stages[-1])
    return kind(runs, SETTINGS, fusion), runs


def training_batch(runs, size=24):
    clips, _ = runs.padded_clips(runs.trained_on)
    rows = runs.rows_of(clips)[:, ::3][:, :size]
    return runs.batch(rows, torch.ones(rows.shape))


@pytest.mark.parametrize("name", registry.method_names())
def test_method_says_what_it_is(name):
    kind = registry.load(name)
    assert set(kind.fusions) <= set(FUSIONS) and kind.fusions
    assert kind.stages and kind.stages[-1].selects
    assert all(hasattr(kind, stage.loss) for stage in kind.stages)
    assert "Objective:" in kind.__doc__ and "Source:" in kind.__doc__
    assert registry.summary(name) and "\n" not in registry.summary(name)


@pytest.mark.parametrize(("name", "fusion"), EVERY)
def test_losses_are_one_per_run_and_reach_their_parameters(dataset, name, fusion):
    method, runs = build(registry.load(name), dataset, fusion)
    for stage in method.stages:
        method.begin_epoch(stage, 1)
        loss = getattr(method, stage.loss)(training_batch(runs))
        assert loss.shape == (3,) and loss.isfinite().all()
        parts = [getattr(method, part) for part in stage.parts] or [method]
        for parameter in [p for part in parts for p in part.parameters()]:
            assert parameter.shape[0] == 3
            (grad,) = torch.autograd.grad(loss[1], parameter, retain_graph=True)
            assert grad.isfinite().all()
            assert (grad[[0, 2]] == 0).all()  # no run feels another


@pytest.mark.parametrize(("name", "fusion"), EVERY)
def test_predicts_from_any_pattern_and_ignores_what_is_missing(dataset, name, fusion):
    method, _ = build(registry.load(name), dataset, fusion)
    method.prepare_predictions([True, True])
    patterns = torch.tensor(list(itertools.product([True, False], repeat=2)))
    observed = patterns.repeat(3, 1).expand(3, -1, -1)
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(3, 12, width, generator=g) for width in (12, 10)]
    found = []
    with torch.no_grad():
        for garbage in (torch.nan, torch.inf, 1e9):
            seen = [torch.where(observed[..., m, None], part, garbage) for m, part in enumerate(x)]
            found.append(method.predict(seen, observed))
        complete = method.predict(x, torch.ones_like(observed))
    assert found[0].shape == (3, 12, 3)
    torch.testing.assert_close(found[0].exp().sum(-1), torch.ones(3, 12))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0][:, ::4], complete[:, ::4])
    assert not torch.allclose(found[0][:, 3::4], complete[:, 3::4])  # what is missing is missed


@pytest.mark.parametrize("name", [name for name, fusion in EVERY if fusion == "outer"])
def test_outer_product_starts_without_interactions(dataset, name):
    """Logits change by x as much whatever y is, until training finds otherwise."""
    method, _ = build(registry.load(name), dataset, "outer", missing="none")
    g = torch.Generator().manual_seed(0)
    f, other_f, g, other_g = (
        torch.cat([torch.randn(3, 7, 4, generator=g), torch.full((3, 7, 1), 2.0)], -1) for _ in range(4)
    )

    def logits():
        pairs = [(f, g), (other_f, g), (f, other_g), (other_f, other_g)]
        one, two, three, four = (method.classify(pair) for pair in pairs)
        change = one - two - (three - four)
        return change - change.mean(-1, keepdim=True)  # what is common to all classes says nothing

    torch.testing.assert_close(logits(), torch.zeros(3, 7, 3), atol=1e-5, rtol=0)
    with torch.no_grad():
        method.labels.linear.weight[:, :, 0] += 1
        method.labels.linear.weight[:, 0, 0] += 1
    assert logits().abs().max() > 0.1


def test_unobserved_everything_gives_the_prior_under_zero_padding(dataset):
    method, runs = build(registry.load("zp"), dataset, "addition")
    x = [torch.full((3, 1, width), torch.nan) for width in (12, 10)]
    found = method.predict(x, torch.zeros(3, 1, 2, dtype=torch.bool))
    torch.testing.assert_close(found[:, 0], runs.log_prior)


def test_lower_bound_is_mle_on_complete_clips(dataset):
    lower_bound, mle = registry.load("lower-bound"), registry.load("mle")
    (run,) = [dataset.clips.run(RunSpec(0, parse_missing("audio:0.5")))]
    found = fit(lower_bound, dataset, [run], SETTINGS, "outer")[0]

    class CompleteOnly(mle):
        stages = (Stage(rows=complete_rows),)

    expected = fit(CompleteOnly, dataset, [run], SETTINGS, "outer")[0]
    np.testing.assert_array_equal(found.probability, expected.probability)
    (steps,) = plan_steps(lower_bound, run, dataset.segments, SETTINGS)
    complete = int(((run.part == 0) & run.observed.all(1)).sum())
    assert steps == -(-complete * dataset.segments // SETTINGS.batch_size)


class TwoStages(FusionClassifier):
    """A method with a stage before its classifier, as an autoencoder's would be.

    Objective: made up. Source: this test.
    """

    stages = (
        Stage("encoders", "warm_up", rows=complete_rows, parts=("encoders",), selects=False),
        Stage("classifier"),
    )
    log: list

    def begin_epoch(self, stage, steps):
        type(self).log.append((stage.name, steps, self.labels.linear.weight.detach().clone()))

    def warm_up(self, batch):
        assert batch.observed.all()  # complete rows only
        return sum(e.square().mean((1, 2)) for e in self.encode(batch.x, batch.observed))

    def loss(self, batch):
        return negative_log_likelihood(self.predict(batch.x, batch.observed), batch.label, batch.weight)

    def predict(self, x, observed):
        embeddings = [e.masked_fill(~observed[..., m, None], 0) for m, e in enumerate(self.encode(x, observed))]
        return (sum(embeddings) @ self.labels().mT + self.log_prior[:, None]).log_softmax(-1)


def test_stages_train_in_order_each_on_its_own_rows_and_parts(dataset):
    TwoStages.log = []
    runs = [dataset.clips.run(RunSpec(s, parse_missing("audio:0.5"))) for s in (0, 1)]
    trained = []
    results = fit(TwoStages, dataset, runs, SETTINGS, "addition", on_epoch=trained.append)
    names = [name for name, _, _ in TwoStages.log]
    assert names == ["encoders", "encoders", "classifier", "classifier"]
    steps = [s for _, s, _ in TwoStages.log]
    assert steps[0] < steps[2]
    assert torch.equal(TwoStages.log[0][2], TwoStages.log[2][2])  # the first stage left the labels alone
    assert not torch.equal(TwoStages.log[2][2], TwoStages.log[3][2])
    assert len(results[0].val_accuracy) == SETTINGS.epochs  # only the stage that selects is scored
    assert trained[0] < trained[-1] and len(trained) == 4


def test_aliases_and_unknown_names():
    assert (registry.resolve("lb"), registry.resolve("zp"), registry.resolve("mle")) == (
        "lower-bound",
        "zero-padding",
        "mle",
    )
    with pytest.raises(InputError, match=r"unknown method 'mel'.*mle, lower-bound, .*zero-padding, .*zp"):
        registry.resolve("mel")


def test_other_packages_add_methods_by_entry_point(monkeypatch):
    here = [
        EntryPoint("two-stages", f"{__name__}:TwoStages", "mlemiss.methods"),
        EntryPoint("broken", "no_such_module_anywhere:Method", "mlemiss.methods"),
        EntryPoint("mle", f"{__name__}:TwoStages", "mlemiss.methods"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: here if group == "mlemiss.methods" else [])
    assert registry.method_names() == [*registry.BUILT_IN, "broken", "two-stages"]
    assert registry.load("two-stages") is TwoStages
    assert registry.summary("two-stages").startswith("A method with a stage")
    assert registry.load("mle") is not TwoStages  # a built-in name cannot be taken over
    with pytest.raises(InputError, match=r"method 'broken'.*does not import: ModuleNotFoundError"):
        registry.load("broken")
