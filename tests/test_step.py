"""Nothing passes between host and device in a training step: it runs on `meta` tensors alone, which hold no values."""

import pytest
import torch
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.trainer import methods as registry
from mlemiss.trainer.batches import Batch
from mlemiss.trainer.data import Clips, Dataset, RunSpec
from mlemiss.trainer.method import plan_steps
from mlemiss.trainer.settings import MARGINALS, Settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    if type(value).__name__ in ("list_iterator", "tuple_iterator"):
        return iter([on_meta(item, done) for item in value])
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
