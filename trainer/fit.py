"""The only training loop: R runs of one method side by side, each exactly as it would go alone.

Nothing couples the runs: the loss is the sum over runs of each run's own mean, the optimiser works element by element,
and what is random comes from a generator of the run's seed. Runs of one batch need equal numbers of steps an epoch; a
shorter last batch is filled up with rows of weight 0.

Shapes: R runs, B batch, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..pipeline.errors import InputError
from ..pipeline.stores.masks import TEST, TRAIN, VALIDATION
from .data import Clips, Dataset, Run, Runs
from .end_to_end.checkpoint import Checkpoints
from .evaluate import clip_probabilities
from .method import Method, Stage
from .settings import Settings


@dataclass
class RunResult:
    """One run's outcome. Accuracies in percent of clips; curves have one entry an epoch of the selecting stage."""

    run: Run
    test_clips: np.ndarray  # int [n], positions among the data set's clips
    probability: np.ndarray  # [n, C] of the test clips, by the best epoch's weights
    best_epoch: int  # from 1
    total_epochs: int = 0  # over all stages
    val_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0  # its share of its group's
    device: str = ""


class HeldOut:
    """The clips of one part (validation or test) of each run, scored after an epoch."""

    def __init__(self, runs: Runs, part: int):
        self.chosen = np.stack([run.part == part for run in runs.runs])
        self.runs = runs
        self.clips, self.counted = runs.padded_clips(self.chosen)  # [R, c]
        self.label = runs.dataset.label[self.clips]

    def score(self, method: Method) -> tuple[Tensor, Tensor, Tensor]:
        """Accuracy in percent [R], mean log-probability of the true class [R], probabilities [R, c, C]."""
        probability = clip_probabilities(method, self.runs, self.clips)
        right = (probability.argmax(-1) == self.label) & self.counted
        likelihood = probability.gather(-1, self.label[..., None])[..., 0].clamp_min(1e-12).log() * self.counted
        count = self.counted.sum(1)
        return 100.0 * right.sum(1).double() / count, likelihood.sum(1) / count, probability


def plan_steps(kind: type[Method], run: Run, segments: int, settings: Settings) -> tuple[int, ...]:
    """Steps an epoch of each stage: rows over batch size, rounded up."""
    rows = (int(run.training_clips(stage.rows).sum()) * segments for stage in kind.stages)
    return tuple(-(-n // settings.batch_size) for n in rows)


def check_run(kind: type[Method], clips: Clips, run: Run, name: str) -> None:
    """InputError: too few clips for the method called ``name``, or a modality that none of them has."""
    complete = int(((run.part == TRAIN) & run.observed.all(1)).sum())
    for stage in kind.stages:
        chosen = run.training_clips(stage.rows)
        classes = len(np.unique(clips.label[chosen]))
        if (stage.selects and classes < 2) or complete < kind.least_complete:
            needs = "training clips of at least two classes"
            if kind.least_complete:
                needs += f" and at least {kind.least_complete} complete ones"
            raise InputError(
                f"{name} cannot train its {stage.name} with {run.spec.name}: expected {needs}, found "
                f"{int(chosen.sum())} fitting clips of {classes} classes ({int((run.part == TRAIN).sum())} training "
                f"clips, {complete} complete).\n"
                f"Lower the missing rate, preprocess more clips, or use a method that trains on incomplete clips."
            )
        for m, modality in enumerate(clips.modalities):
            if modality in (kind.modalities or clips.modalities) and not (chosen & run.observed[:, m]).any():
                raise InputError(
                    f"{name} cannot train its {stage.name} with {run.spec.name}: expected training clips with "
                    f"{modality}, found none.\nLower that modality's missing rate, or preprocess more clips."
                )


def fit(
    kind: type[Method],
    dataset: Dataset,
    runs: Sequence[Run],
    settings: Settings,
    fusion: str,
    *,
    name: str = "method",
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[int], None] = lambda clips: None,
    on_trained: Callable[[Method], None] = lambda method: None,
) -> list[RunResult]:
    """Train runs of equal `plan_steps` side by side; test each with the weights of its best validation epoch.

    The best epoch has the highest validation accuracy, among equals the highest validation likelihood, then the first.
    checkpoints: where runs that take long keep what a killed training goes on from.
    on_epoch is called after each epoch with the number of clips it trained on, over all runs; on_trained at the end
    with the method, which holds each run's best weights.
    InputError: a loss that is not finite, a checkpoint of another training, or memory that does not suffice.
    """
    steps = {plan_steps(kind, run, dataset.segments, settings) for run in runs}
    if len(steps) != 1:
        raise ValueError(f"runs of one batch need equal steps an epoch, found {sorted(steps)}.")
    batch = dataset.runs(runs, kind.stages[-1].rows, checkpoints, kind.modalities)
    method = kind(batch, settings, fusion)
    for parameter_name, parameter in method.named_parameters():
        if parameter.shape[0] != len(runs):
            raise ValueError(
                f"{name}: parameter {parameter_name}: expected {len(runs)} runs first, found {list(parameter.shape)}."
            )
    results = [RunResult(run, np.flatnonzero(run.part == TEST), np.empty(0), 0) for run in runs]
    with batch.within_memory(settings.batch_size):
        for stage, count in zip(kind.stages, steps.pop(), strict=True):
            epochs = _train_stage(method, batch, stage, count, results, name, on_epoch)
            for result in results:
                result.total_epochs += epochs
        test = HeldOut(batch, TEST)
        with torch.no_grad():
            method.prepare_predictions(batch.lacking_held_out)
        probability = test.score(method)[2].cpu().numpy()
    for r, result in enumerate(results):
        result.probability = probability[r, : len(result.test_clips)]
    on_trained(method)
    return results


def _train_stage(
    method: Method,
    runs: Runs,
    stage: Stage,
    steps: int,
    results: list[RunResult],
    name: str,
    on_epoch: Callable[[int], None],
) -> int:
    """Train one stage; where it selects, score every epoch and leave the method with each run's best weights.

    Returns the number of epochs: none where the stage has nothing to train.
    """
    settings = method.settings
    parameters = _parameters(method, stage)
    clips = sum(int(run.training_clips(stage.rows).sum()) for run in runs.runs)
    if not parameters:  # such as autoencoders where nothing is missing
        on_epoch(settings.epochs * clips)
        return 0
    groups = [{"params": parameters}, *runs.trained_parameters()]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    order = runs.order(stage, steps, settings.batch_size)
    loss_of = getattr(method, stage.loss)
    selection = Selection(method, runs) if stage.selects else None
    checkpoint = runs.checkpoint(stage)
    first = checkpoint.load(method, optimiser, selection, results) if checkpoint else 1
    if first > 1:
        on_epoch((first - 1) * clips)
    for epoch in range(first, settings.epochs + 1):
        method.train()
        runs.trunks.train()
        method.begin_epoch(stage, steps)
        total = torch.zeros(len(runs), device=runs.device)
        with runs.randomness(f"{stage.name}:{epoch}"):
            for rows, weight in order.epoch(epoch):
                optimiser.zero_grad(set_to_none=True)
                loss = loss_of(runs.batch(rows, weight))  # [R]
                loss.sum().backward()
                optimiser.step()
                total += loss.detach()
        _check_finite(total, runs, name, f"{stage.name}'s loss", epoch, settings)
        if selection:
            method.eval()
            runs.trunks.eval()
            probability = selection.update(epoch, results)
            _check_finite(probability, runs, name, f"{stage.name}'s probability", epoch, settings)
        on_epoch(clips)
        if checkpoint:
            checkpoint.save(epoch, method, optimiser, selection, results)
    if selection:
        selection.restore()
    return settings.epochs


class Selection:
    """Keeps each run's weights of its best validation epoch. Test accuracy is recorded, never looked at."""

    def __init__(self, method: Method, runs: Runs):
        self.method, self.runs = method, runs
        self.validation, self.test = HeldOut(runs, VALIDATION), HeldOut(runs, TEST)
        self.accuracy = torch.full([len(runs)], -torch.inf, dtype=torch.float64, device=runs.device)
        self.likelihood = self.accuracy.float()
        self.best = {n: p.detach().clone() for n, p in method.named_parameters()}
        self.best_trunks = self._trunks()  # of the only run

    def update(self, epoch: int, results: list[RunResult]) -> Tensor:
        """Score an epoch and keep what is better; the validation clips' probabilities [R, c, C]."""
        with torch.no_grad():
            self.method.prepare_predictions(self.runs.lacking_held_out)
        accuracy, likelihood, probability = self.validation.score(self.method)
        better = (accuracy > self.accuracy) | ((accuracy == self.accuracy) & (likelihood > self.likelihood))
        self.accuracy = torch.where(better, accuracy, self.accuracy)
        self.likelihood = torch.where(better, likelihood, self.likelihood)
        for name, parameter in self.method.named_parameters():
            shape = [-1] + [1] * (parameter.ndim - 1)
            self.best[name] = torch.where(better.view(shape), parameter.detach(), self.best[name])
        if self.runs.costly and bool(better.all()):
            self.best_trunks = self._trunks()
        test_accuracy = self.test.score(self.method)[0]
        rows = zip(better.tolist(), accuracy.tolist(), test_accuracy.tolist(), results, strict=True)
        for improved, val, tested, result in rows:
            result.val_accuracy.append(val)
            result.test_accuracy.append(tested)
            if improved:
                result.best_epoch = epoch
        return probability

    @torch.no_grad()
    def restore(self) -> None:
        """Give the method each run's best weights."""
        for name, parameter in self.method.named_parameters():
            parameter.copy_(self.best[name])
        if self.best_trunks:
            self.runs.trunks.load_state_dict(self.best_trunks)

    def _trunks(self) -> dict[str, Tensor]:
        """Networks that are trained, as they are."""
        return on_host(self.runs.trunks.state_dict()) if self.runs.costly else {}

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        names = ("accuracy", "likelihood", "best", "best_trunks")
        return {name: getattr(self, name) for name in names}

    def load_state(self, state: dict) -> None:
        """Go on from a checkpoint."""
        device = self.runs.device
        self.accuracy, self.likelihood = state["accuracy"].to(device), state["likelihood"].to(device)
        self.best = {name: value.to(device) for name, value in state["best"].items()}
        self.best_trunks = state["best_trunks"]


def on_host(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of tensors, in the host's memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def _parameters(method: Method, stage: Stage) -> list[torch.nn.Parameter]:
    parts = [getattr(method, part) for part in stage.parts] or [method]
    return [parameter for part in parts for parameter in part.parameters()]


def _check_finite(values: Tensor, runs: Runs, name: str, what: str, epoch: int, settings: Settings) -> None:
    """InputError: some of a run's values [R, ...] are not finite."""
    finite = values.flatten(1).isfinite().all(1).tolist() if values.ndim > 1 else values.isfinite().tolist()
    for run, fine in zip(runs.runs, finite, strict=True):
        if not fine:
            raise InputError(
                f"{name}: the {what} is not finite in epoch {epoch} of the run with {run.spec.name}.\n"
                f"Lower the learning rate (now {settings.lr:g}), and check the features' range."
            )
