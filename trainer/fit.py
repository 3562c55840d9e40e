"""The only training loop: R runs of one method side by side, each as it would go alone but for rounding.

Nothing couples the runs: the loss is the sum over runs of each run's own mean, the optimiser works element by element,
and what is random comes from a generator of the run's seed. Only the order of sums depends on the company: supports are
filled up to the longest of any run, and the outer product takes rows and support in blocks of a size that all runs
share. In float64 a step beside others is the step alone within 1e-9; docs/training.md has what float32 makes of it.
Runs of one batch need equal numbers of steps an epoch; a shorter last batch is filled up with rows of weight 0.

Shapes: R runs, B batch, C classes.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..pipeline.console import say
from ..pipeline.errors import InputError, out_of_memory
from ..pipeline.stores.masks import TEST, VALIDATION
from .batches import Batch, Patterns, Stage, widest
from .data import Batches, Dataset, Run, RunResult, Runs, exact_type
from .method import Method, in_blocks, plan_steps, rates_of, rows_at_once
from .settings import Settings


@torch.no_grad()
def clip_probabilities(method: Method, runs: Runs, clips: Tensor) -> Tensor:
    """Return the probabilities of clips [R, c], the mean over their segments: [R, c, C]."""

    def block(part: Tensor) -> Tensor:
        log_probability = method.predict(*runs.gather(runs.rows_of(part)))  # [R, c * S, C]
        return log_probability.exp().unflatten(1, (part.shape[1], runs.segments)).mean(2)

    return in_blocks(block, clips, max(rows_at_once(runs.device) // runs.segments, 1))


class HeldOut:
    """The clips of one part (validation or test) of each run, scored after an epoch."""

    def __init__(self, runs: Runs, part: int):
        self.chosen = np.stack([run.part == part for run in runs.runs])
        self.runs = runs
        self.clips, self.counted = runs.padded_clips(self.chosen)  # [R, c]
        self.label = runs.dataset.label[self.clips]

    def score(self, method: Method) -> tuple[Tensor, Tensor, Tensor]:
        """Return accuracy in percent [R], mean log-probability of the true class [R] and probabilities [R, c, C].

        Of no clip in any run, as there is no test in an estimator: NaN, and no probabilities.
        """
        if not self.chosen.any():
            nothing = self.label.new_full([len(self.runs)], torch.nan, dtype=torch.float32)
            return nothing, nothing, nothing.new_zeros(len(self.runs), 0, len(self.runs.classes))
        probability = clip_probabilities(method, self.runs, self.clips)
        right = (probability.argmax(-1) == self.label) & self.counted
        likelihood = probability.gather(-1, self.label[..., None])[..., 0].clamp_min(1e-12).log() * self.counted
        count = self.counted.sum(1)
        right = right.sum(1).to(exact_type(right.device))
        return 100.0 * right / count, likelihood.sum(1) / count, probability


def fit(
    kind: type[Method],
    dataset: Dataset,
    runs: Sequence[Run],
    settings: Settings | Sequence[Settings],
    fusion: str,
    *,
    name: str = "method",
    on_epoch: Callable[[int], None] = lambda clips: None,
    on_trained: Callable[[Method], None] = lambda method: None,
    keep_going: bool = False,
) -> list[RunResult]:
    """Train runs of equal `plan_steps` side by side; test each with the weights of its best validation epoch.

    The best epoch has the highest validation accuracy, among equals the highest validation likelihood, then the first.

    Args:
        kind: the method's class.
        dataset: the clips' features.
        runs: splits and masks of the runs.
        settings: hyper-parameters; a run's own, where they agree in their `Settings.shape`.
        fusion: how embeddings are combined.
        name: of the method, for messages.
        on_epoch: called after each epoch with the number of clips it trained on, over all runs.
        on_trained: called at the end with the method, which holds each run's best weights.
        keep_going: where a run's loss is not finite, its validation accuracy is 0 from then on, and no error.

    Raises:
        InputError: a loss is not finite.
    """
    each = [settings] * len(runs) if isinstance(settings, Settings) else settings
    if len({one.shape for one in each}) != 1:
        raise ValueError("runs of one batch need settings of one shape.")
    method = kind(dataset.runs(runs, kind.stages[-1], rates_of(kind, each)), each[0], fusion)
    results = Training(method, name, on_epoch, keep_going).run()
    on_trained(method)
    return results


class Training:
    """The training of R runs of one method, side by side. Subclasses train more than the method."""

    from_memory: ClassVar[bool] = True  # a step reads no files

    def __init__(self, method: Method, name: str, on_epoch: Callable[[int], None], keep_going: bool = False):
        self.method, self.runs, self.settings = method, method.runs, method.settings
        self.name, self.on_epoch, self.keep_going = name, on_epoch, keep_going
        self.rates = self.runs.rates or rates_of(type(method), [self.settings] * len(self.runs))
        for parameter_name, parameter in method.named_parameters():
            if parameter.shape[0] != len(self.runs):
                raise ValueError(
                    f"{name}: parameter {parameter_name}: expected {len(self.runs)} runs first, found "
                    f"{list(parameter.shape)}."
                )
        self.results = [RunResult(run, np.flatnonzero(run.part == TEST), np.empty(0), 0) for run in self.runs.runs]

    def run(self) -> list[RunResult]:
        """Train every stage, then test; return each run's result. InputError: a loss is not finite."""
        stages = self.method.stages
        steps = {plan_steps(type(self.method), run, self.runs.segments, self.settings) for run in self.runs.runs}
        if len(steps) != 1:
            raise ValueError(f"runs of one batch need equal steps an epoch, found {sorted(steps)}.")
        for stage, count in zip(stages, steps.pop(), strict=True):
            epochs = self.train_stage(stage, count)
            for result in self.results:
                result.total_epochs += epochs
        self.method.eval()  # also where a checkpoint left no epoch to train
        with torch.no_grad():
            self.method.prepare_predictions(self.runs.lacking_held_out)
        more = [copy.copy(self.runs) for _ in self.runs.runs[0].more_tests]
        for place, view in enumerate(more):  # other test clips lack something
            observed = np.stack([run.more_tests[place] for run in self.runs.runs])
            view.observed = torch.as_tensor(observed, device=self.runs.device)
        scored = [HeldOut(one, TEST).score(self.method)[2].cpu().numpy() for one in (self.runs, *more)]
        if self.keep_going:  # a run that is lost says nothing
            scored = [np.where(np.isfinite(one), one, 1 / one.shape[-1]) for one in scored]
        probability, *others = scored
        for r, result in enumerate(self.results):
            result.probability = probability[r, : len(result.test_clips)]
            result.more_probabilities = [other[r, : len(result.test_clips)] for other in others]
        return self.results

    def train_stage(self, stage: Stage, steps: int) -> int:
        """Train one stage; where it selects, score every epoch and leave the method with each run's best weights.

        Returns the number of epochs: none where the stage has nothing to train.
        """
        parameters = _parameters(self.method, stage)
        clips = sum(int(run.training_clips(stage).sum()) for run in self.runs.runs)
        if not parameters:  # such as autoencoders where nothing is missing
            self.on_epoch(self.settings.epochs * clips)
            return 0
        optimiser = RunAdamW(parameters, self.rates, self.more_groups())
        batches = self.runs.batches(stage, steps, self.settings.batch_size)
        record = recorder(self.runs.device) if self.from_memory and self.method.replays else None
        step = Step(self.method, stage, optimiser, record)
        selection = self.selection() if stage.selects else None
        first = self.resume(stage, optimiser, selection)
        if first > 1:
            self.on_epoch((first - 1) * clips)
        for epoch in range(first, self.settings.epochs + 1):
            self.method.train()
            self.method.begin_epoch(stage, steps)
            total = self.train_epoch(step, batches, epoch)
            self._check_finite(total, f"{stage.name}'s loss", epoch)
            if selection:
                self.method.eval()
                probability = selection.update(epoch, self.results)
                self._check_finite(probability, f"{stage.name}'s probability", epoch)
            self.on_epoch(clips)
            self.save(stage, epoch, optimiser, selection)
        if selection:
            selection.restore()
        return self.settings.epochs

    def train_epoch(self, step: "Step", batches: Batches, epoch: int) -> Tensor:
        """Take every step of an epoch; return each run's sum of losses [R]."""
        step.total.zero_()
        if step.record:
            step.replay(list(batches.steps(epoch)))
        else:
            for batch in batches.epoch(epoch):
                step(batch)
        return step.total

    def more_groups(self) -> list[dict]:
        """Return what the optimiser trains beside the method: nothing over cached features."""
        return []

    def selection(self) -> "Selection":
        """Return what keeps the best epoch's weights."""
        return Selection(self.method, self.runs)

    def resume(self, stage: Stage, optimiser: "RunAdamW", selection: "Selection | None") -> int:
        """Return the epoch to begin with. Cached features train in less time than a checkpoint would be worth."""
        return 1

    def save(self, stage: Stage, epoch: int, optimiser: "RunAdamW", selection: "Selection | None") -> None:
        """Keep what an epoch left, for `resume`: nothing over cached features."""

    def _check_finite(self, values: Tensor, what: str, epoch: int) -> None:
        """Check that each run's values [R, ...] are finite. InputError: some are not, unless ``keep_going``."""
        if self.keep_going:
            return
        finite = values.flatten(1).isfinite().all(1).tolist() if values.ndim > 1 else values.isfinite().tolist()
        for run, fine, lr in zip(self.runs.runs, finite, self.rates["lr"].tolist(), strict=True):
            if not fine:
                raise InputError(
                    f"{self.name}: the {what} is not finite in epoch {epoch} of the run with {run.spec.name}.\n"
                    f"Lower the learning rate (now {lr:g}; tuned settings: narrow the --space of `mlemiss tune`), "
                    f"and check the features' range."
                )


class Step:
    """One step of a stage, a function of tensors alone.

    Where there is ``record`` (`recorder`), it is recorded and replayed with other rows in the same place, which spares
    the host's work. For that, one mapping of patterns serves every step; and what a step reads stays where it is from
    epoch to epoch: `Method.begin_epoch` copies into it.

    total: each run's sum of losses, [R].
    """

    def __init__(self, method: Method, stage: Stage, optimiser: "RunAdamW", record: "Record | None"):
        self.runs, self.loss_of = method.runs, getattr(method, stage.loss)
        self.optimiser, self.record = optimiser, record
        self.total = torch.zeros(len(method.runs), device=method.runs.device)
        self._patterns: Patterns = {}
        self._place: list[Tensor | None] | None = None  # of the rows that are replayed
        self._again: Callable[[], None] | None = None  # replays it

    def __call__(self, batch: Batch) -> None:
        """Take the step."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss_of(batch)  # [R]
        loss.sum().backward()
        self.optimiser.step()
        self.total += loss.detach()

    def replay(self, steps: Sequence[tuple[Tensor, Tensor, Patterns, Tensor | None]]) -> None:
        """Take the steps of an epoch, as `data.Batches.steps` has them.

        The first of its kind is taken as ever, which makes what is made once; the second is recorded.
        """
        patterns = widest([one for _, _, one, _ in steps], self._patterns, steps[0][0].shape[1])
        if patterns != self._patterns:
            self._patterns, self._place, self._again = patterns, None, None
        for rows, weight, _, hidden in steps:
            if self._place is None:
                self(self.runs.batch(rows, weight, patterns, hidden))
                self._place = [part if part is None else part.clone() for part in (rows, weight, hidden)]
                continue
            for place, part in zip(self._place, (rows, weight, hidden), strict=True):
                if place is not None:
                    place.copy_(part)
            self._again = self._again or self._recorded()
            self._again()

    def _recorded(self) -> Callable[[], None]:
        """Record the step; where it cannot be, say so and return what takes it as ever."""
        rows, weight, hidden = self._place
        patterns = self._patterns

        def take() -> None:
            self(self.runs.batch(rows, weight, patterns, hidden))

        try:
            return self.record(take)
        except RuntimeError as error:
            lack = next((one for one in (error, error.__context__) if one and out_of_memory(one)), None)
            if lack and len(self.runs) > 1:  # fewer are tried then; one run fitted, as it was taken before
                raise lack from None
            self.record = None  # a failure may keep memory
            say(f"note: a step cannot be recorded ({str(error).splitlines()[0]}): the host takes each, which is slower")
            return take


Record = Callable[[Callable[[], None]], Callable[[], None]]


def recorder(device: torch.device) -> Record | None:
    """Return what records a function of tensors and returns its replay; None where a device has no such thing."""
    return partial(cuda_graph, device) if device.type == "cuda" else None


def cuda_graph(device: torch.device, take: Callable[[], None]) -> Callable[[], None]:
    """Record what ``take`` launches as a CUDA graph, and return its replay. RuntimeError: it waits for the device.

    The stream is named, as torch's own is of the device of the first graph, which would leave others' graphs empty.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        take()
    return graph.replay


class RunAdamW(torch.optim.AdamW):
    """AdamW with each run's own learning rate and weight decay, [R] each; fused: one pass over memory.

    Where the runs' rates differ each run's slices of the parameters are a group. more: groups of other parameters, with
    a rate of their own and the first run's weight decay.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], rates: Mapping[str, Tensor], more: Sequence[dict] = ()
    ):
        self.whole = list(parameters)
        own = list(zip(rates["lr"].tolist(), rates["weight_decay"].tolist(), strict=True))
        self.apart = len(set(own)) > 1
        groups = [{"params": self.whole}]
        if self.apart:
            groups = [
                {"params": [p.detach()[r] for p in self.whole], "lr": lr, "weight_decay": decay}
                for r, (lr, decay) in enumerate(own)
            ]
        on_card = self.whole[0].device.type == "cuda"  # there a step is recorded, its number included
        super().__init__([*groups, *more], lr=own[0][0], weight_decay=own[0][1], fused=True, capturable=on_card)

    def step(self, closure: None = None) -> None:
        """Take a step."""
        if self.apart:
            for r, group in enumerate(self.param_groups[: self.whole[0].shape[0]]):
                for part, p in zip(group["params"], self.whole, strict=True):
                    part.grad = None if p.grad is None else p.grad[r]
        super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        super().zero_grad(set_to_none)
        for p in self.whole:
            p.grad = None


class Selection:
    """Keeps each run's weights of its best validation epoch. Test accuracy is recorded, never looked at."""

    def __init__(self, method: Method, runs: Runs):
        self.method, self.runs = method, runs
        self.validation, self.test = HeldOut(runs, VALIDATION), HeldOut(runs, TEST)
        self.likelihood = torch.full([len(runs)], -torch.inf, device=runs.device)
        self.accuracy = self.likelihood.to(exact_type(runs.device))
        self.best = {n: p.detach().clone() for n, p in method.named_parameters()}

    def update(self, epoch: int, results: list[RunResult]) -> Tensor:
        """Score an epoch and keep what is better; return the validation clips' probabilities [R, c, C]."""
        with torch.no_grad():
            self.method.prepare_predictions(self.runs.lacking_held_out)
        accuracy, likelihood, probability = self.validation.score(self.method)
        finite = probability.isfinite().flatten(1).all(1)
        accuracy = accuracy.masked_fill(~finite, 0)
        better = (accuracy > self.accuracy) | ((accuracy == self.accuracy) & (likelihood > self.likelihood))
        better &= finite
        self.accuracy = torch.where(better, accuracy, self.accuracy)
        self.likelihood = torch.where(better, likelihood, self.likelihood)
        for name, parameter in self.method.named_parameters():
            shape = [-1] + [1] * (parameter.ndim - 1)
            self.best[name] = torch.where(better.view(shape), parameter.detach(), self.best[name])
        self.keep_more(better)
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

    def keep_more(self, better: Tensor) -> None:
        """Keep what else is trained, where runs got better (bool [R]): nothing over cached features."""

    def state(self) -> dict:
        """Return what a checkpoint keeps of the selection."""
        return {"accuracy": self.accuracy, "likelihood": self.likelihood, "best": self.best}

    def load_state(self, state: dict) -> None:
        """Go on from a checkpoint."""
        device = self.runs.device
        self.accuracy, self.likelihood = state["accuracy"].to(device), state["likelihood"].to(device)
        self.best = {name: value.to(device) for name, value in state["best"].items()}


def _parameters(method: Method, stage: Stage) -> list[torch.nn.Parameter]:
    parts = [getattr(method, part) for part in stage.parts] or [method]
    return [parameter for part in parts for parameter in part.parameters()]
