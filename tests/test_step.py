"""A training step is a function of tensors alone: it runs on `meta` tensors, which hold no values, or is replayed."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.trainer import fit as training
from mlemiss.trainer import methods as registry
from mlemiss.trainer.batches import Batch, widest
from mlemiss.trainer.data import Clips, Dataset, RunSpec
from mlemiss.trainer.method import plan_steps
from mlemiss.trainer.settings import MARGINALS, Settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .feature_stores import write_store

CASES = [
    (name, fusion, marginal)
    for name in registry.method_names()
    for fusion in registry.load(name).fusions
    for marginal in (MARGINALS if registry.load(name).marginalises else ("bank",))
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(Clips(write_store(tmp_path_factory.mktemp("stores"))))


def on_meta(value: object, done: dict) -> object:
    """Return a value with all tensors that it holds replaced by meta tensors; objects are changed in place."""
    if isinstance(value, torch.Tensor):
        return done.setdefault(id(value), (value.to("meta"), value))[0]
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(on_meta(item, done) for item in value)
    if isinstance(value, dict):
        return {key: on_meta(item, done) for key, item in value.items()}
    frozen = getattr(type(value), "__dataclass_params__", None)
    if frozen and frozen.frozen:
        return value  # plain values
    if type(value).__module__.startswith("mlemiss.trainer") and id(value) not in done:
        done[id(value)] = (value, value)
        if isinstance(value, torch.nn.Module):
            value.to("meta")
        for name, item in list(vars(value).items()):
            if not name.startswith(("_parameters", "_buffers", "_modules")):
                setattr(value, name, on_meta(item, done))
    return value


class NothingOnTheHost(TorchDispatchMode):
    """Fails where an operation reads or makes a tensor on the host: on a GPU each would wait for a copy."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
        assert all(one.device.type == "meta" for one in tensors), f"{func} has a tensor on the host"
        return result


@pytest.mark.parametrize(("name", "fusion", "marginal"), CASES)
def test_a_step_runs_without_values(dataset, name, fusion, marginal):
    """Forward, backward and the optimiser, in every stage; no class reads a tensor or makes one on another device."""
    kind, settings = registry.load(name), Settings(batch_size=32, hidden=8, dim=3, marginal=marginal)
    spec = parse_missing("audio:0.3+visual:0.3")
    drawn = [dataset.clips.run(RunSpec(seed, spec)) for seed in (0, 1)]
    steps = {plan_steps(kind, run, dataset.segments, settings) for run in drawn}
    assert len(steps) == 1
    for stage, count in zip(kind.stages, steps.pop(), strict=True):
        runs = Dataset(dataset.clips).runs(drawn, kind.stages[-1])
        method = kind(runs, settings, fusion)
        for _ in range(2):  # autoencoder 2 fits its own predictions from the second epoch on
            method.begin_epoch(stage, count)
        batch = next(runs.batches(stage, count, settings.batch_size).epoch(1))
        rows, weight, patterns = batch.rows, batch.weight, batch.patterns
        done = {}
        on_meta(method, done)
        runs.device = torch.device("meta")
        rows, weight = rows.to("meta"), weight.to("meta")
        parameters = [p for part in [getattr(method, n) for n in stage.parts] or [method] for p in part.parameters()]
        optimiser = torch.optim.AdamW(parameters)
        with NothingOnTheHost():
            batch = runs.batch(rows, weight, patterns)
            assert isinstance(batch, Batch) and batch.x[0].device.type == "meta"
            loss = getattr(method, stage.loss)(batch)
            loss.sum().backward()
        optimiser.step()
        assert loss.shape == (2,) and loss.device.type == "meta"


class Recording(TorchDispatchMode):
    """Records the operations of a step; a replay makes them again, on what the same tensors hold then.

    So it stands for a CUDA graph where there is no card: what the step's Python code does is done once, and a tensor
    that it made is made anew, one that was there before is read where it is. A graph is recorded without being run,
    here the step is taken: so the first replay does nothing.
    """

    def __init__(self, take):
        super().__init__()
        self.operations, self.taken = [], True
        with self:
            take()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def __call__(self):
        if self.taken:
            self.taken = False
            return
        made = {}

        def now(value):
            return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

        for func, args, kwargs, result in self.operations:
            again = func(*tree_map(now, args), **tree_map(now, kwargs))
            for before, after in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(before, torch.Tensor):
                    made[id(before)] = after


def trained(dataset, monkeypatch, record, name, fusion, settings, missing="audio:0.3+visual:0.3", seeds=(0, 1)):
    """Return the runs' results, weights and losses of every epoch, and how many steps were recorded."""
    recorded, weights, losses, kind = [], {}, [], registry.load(name)

    def recorder(device):
        return record and (lambda take: recorded.append(record(take)) or recorded[-1])

    monkeypatch.setattr(training, "recorder", recorder)
    monkeypatch.setattr(
        training.Training, "_check_finite", lambda self, values, what, epoch: losses.append(values.clone())
    )
    runs = [dataset.clips.run(RunSpec(seed, parse_missing(missing))) for seed in seeds]
    results = training.fit(
        kind, dataset, runs, settings, fusion, on_trained=lambda method: weights.update(method.state_dict())
    )
    return results, weights, losses, len(recorded)


@pytest.mark.parametrize(("name", "fusion", "marginal"), CASES)
def test_replayed_steps_train_as_steps_that_are_taken(dataset, monkeypatch, name, fusion, marginal):
    """All stages, epoch by epoch, with rates of each run's own, random numbers and rows that are hidden."""
    quick = Settings(epochs=3, batch_size=32, hidden=8, dim=3, marginal=marginal, dropout=0.25, hide=0.2)
    settings = [replace(quick, lr=lr, weight_decay=10 * lr) for lr in (1e-2, 3e-3)]
    expected, weights, losses, recorded = trained(dataset, monkeypatch, None, name, fusion, settings)
    assert recorded == 0
    found, same, lost, recorded = trained(dataset, monkeypatch, Recording, name, fusion, settings)
    assert 1 <= recorded <= 2 * len(registry.load(name).stages)  # counts of patterns seldom grow
    for one, other in zip(lost, losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    for one, other in zip(found, expected, strict=True):
        assert one.best_epoch == other.best_epoch and one.val_accuracy == other.val_accuracy
        np.testing.assert_allclose(one.probability, other.probability, atol=1e-4)
    assert same.keys() == weights.keys()
    for key, value in weights.items():  # but few: of a gradient that is rounding alone AdamW makes whole steps
        apart = (same[key] - value).abs() - 1e-3 * value.abs()
        assert apart.flatten().quantile(0.85) <= 1e-4, key


@pytest.mark.parametrize(("name", "fusion", "marginal"), CASES)
def test_nothing_of_a_step_outlives_it(dataset, monkeypatch, name, fusion, marginal):
    """A gradient's node that is kept would be of the stream of the step before, which a recording must not use."""
    take, parameters = training.Step.__call__, []

    def node(parameter):
        return parameter.view_as(parameter).grad_fn.next_functions[0][0].metadata

    def watched(self, batch):
        parameters[:] = self.optimiser.whole
        assert not any("seen" in node(parameter) for parameter in parameters)
        take(self, batch)
        for parameter in parameters:
            node(parameter)["seen"] = True

    monkeypatch.setattr(training.Step, "__call__", watched)
    settings = Settings(epochs=1, batch_size=32, hidden=8, dim=3, marginal=marginal)
    trained(dataset, monkeypatch, None, name, fusion, settings)
    assert parameters


def test_a_graph_is_of_the_devices_own_stream(monkeypatch):
    """torch keeps one stream for all graphs, of the device of the first: those of another would be empty."""
    done = []

    @contextmanager
    def noted(*what, **more):
        done.append((*what, *more.values()))
        yield
        done.append("left")

    graph = SimpleNamespace(replay=lambda: done.append("replayed"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "device", noted)
    monkeypatch.setattr(torch.cuda, "graph", noted)
    device = torch.device("cuda:1")
    replay = training.recorder(device)(lambda: done.append("taken"))
    assert done == [(device,), (graph, "stream of cuda:1"), "taken", "left", "left"]
    replay()
    assert done[-1] == "replayed" and training.recorder(torch.device("cpu")) is None


def test_one_mapping_of_patterns_serves_every_step():
    both, first, second = (True, True), (True, False), (False, True)
    steps = [{both: 20, first: 3}, {both: 33, second: 16}]
    found = widest(steps, {both: 50, first: 1}, 60)
    assert list(found.items()) == [(both, 60), (first, 16), (second, 16)]  # 64 are more than there are
    assert widest(steps, found, 60) == found


def test_what_cannot_be_recorded_is_taken_step_by_step(dataset, monkeypatch, capsys):
    settings = Settings(epochs=2, batch_size=32, hidden=8, dim=3)

    def fails(take):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    expected, weights, *_ = trained(dataset, monkeypatch, Recording, "mle", "addition", settings)
    capsys.readouterr()
    found, same, *_ = trained(dataset, monkeypatch, fails, "mle", "addition", settings)
    told = capsys.readouterr().err
    assert told.count("cannot be recorded (operation not permitted when stream is capturing)") == 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probability, other.probability)
    assert all(torch.equal(same[key], value) for key, value in weights.items())

    def too_large(take):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):  # runs are trained in halves then
        trained(dataset, monkeypatch, too_large, "mle", "addition", settings)

    def hidden(take):
        try:
            too_large(take)
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

    with pytest.raises(torch.OutOfMemoryError):
        trained(dataset, monkeypatch, hidden, "mle", "addition", settings)
    (alone,), *_ = trained(dataset, monkeypatch, too_large, "mle", "addition", settings, seeds=[0])
    np.testing.assert_allclose(alone.probability, expected[0].probability, atol=1e-4)
