"""Run a plan and publish its stores.

A clip's result is kept as soon as it is there, in a file of its own, so a killed job goes on from its finished clips;
when all are there, each feature chunk is written once, by one writer, and the store is published. Serial and parallel
runs, whole or resumed, give the same bytes.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from . import assemble, reuse
from .backbones import BATCH_CLIPS
from .claim import Claim
from .donor import say_once
from .errors import MACHINE_ERRNOS, InputError, MachineError
from .extract import Outcome, decode, encode
from .ffmpeg import due_to_limit
from .lock import only_one
from .parts import UNREADABLE, Part
from .plan import Output, Plan, Task, leftovers, recover
from .progress import amount

Progress = Callable[[Outcome], None]
Executor = Callable[[Sequence[Task]], Iterator[Outcome]]


def run(
    plan: Plan,
    executor: Executor,
    started: Callable[[int], Progress],
    say: Callable[[str], None],
    *,
    max_failures: int | None = None,
    record: Mapping | None = None,
) -> dict[str, float]:
    """Compute what is lacking and publish every store; returns seconds summed over workers, and `total` on the wall.

    ``executor`` runs tasks and yields their outcomes (`serial`, or one of cluster.py). ``started(n)`` is called with
    the number of clips to compute and returns the callback for each outcome. More than ``max_failures`` failed clips
    are an InputError: nothing is published, and what is finished is kept. ``record`` is for the stores' RUN.json.
    """
    begin = time.perf_counter()
    seconds: dict[str, float] = defaultdict(float)
    claims: dict[Path, Claim] = {}  # by work folder
    with ExitStack() as locks, disk_errors(plan.stores):
        for output in plan.outputs:
            if output.finished:
                _sweep(output)
                assemble.check_failures(output, max_failures)
                continue
            claims[output.work] = locks.enter_context(only_one(output.lock, output.final.name))
            recover(output)
            if output.finished:  # by whoever held the lock
                continue
            assemble.set_aside(output, say)
            assemble.prepare(plan, output)
            if plan.retry_failed:
                _drop_failed(output, len(plan.sources))
        reused = reuse.fill(plan)
        if reused:
            say(f"{reused} of {amount(len(plan.sources), 'clip')} taken over from results of the same content and spec")
        tasks = plan.tasks()
        done = sum(output.part(i).is_file() for output in plan.unfinished() for i in range(len(plan.sources)))
        if tasks and done > reused * len(plan.unfinished()):
            say("going on from the results of an earlier run")
        if tasks:
            failures = 0 if max_failures is None else _failed_already(plan, max_failures)
            _compute(tasks, executor, started(len(tasks)), seconds, failures, max_failures, list(claims.values()))
            reuse.fill(plan)  # clips that share their content with one computed just now
        start = time.perf_counter()
        for output in plan.unfinished():
            check = partial(claims[output.work].check, now=True)
            check()
            assemble.finish(plan, output, say, max_failures, check, record)
        seconds["write"] += time.perf_counter() - start
    seconds["total"] = time.perf_counter() - begin
    return dict(seconds)


def _compute(
    tasks: Sequence[Task],
    executor: Executor,
    progress: Progress,
    seconds: dict[str, float],
    failures: int,
    max_failures: int | None,
    claims: Sequence[Claim],
) -> None:
    for outcome in executor(tasks):
        for claim in claims:  # whoever took one over works in the same folder: stop before publishing anything
            claim.check()
        for stage, spent in outcome.seconds.items():
            seconds[stage] += spent
        if outcome.note:
            say_once(outcome.note)
        progress(outcome)
        failures += bool(outcome.failed)
        if max_failures is not None and failures > max_failures:
            raise assemble.too_many(failures, max_failures, outcome.failed)


def serial(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """One clip after the other in this process; on a GPU as many at once as its batches hold."""
    on_gpu = any(output.device == "cuda" for task in tasks for output in task.outputs)
    size = BATCH_CLIPS if on_gpu else 1
    for first in range(0, len(tasks), size):
        several = tasks[first : first + size]
        yield from encode(several, [decode(task) for task in several])


def _sweep(output: Output) -> None:
    """What a kill just after publishing left, unless somebody is at work there or nothing can be written."""
    if leftovers(output):
        with suppress(InputError, OSError), only_one(output.lock, output.final.name):
            recover(output)


def _drop_failed(output: Output, clips: int) -> None:
    """Results of unfinished work that are to be tried again."""
    for index, part in _parts(output, clips):
        if part.failed or due_to_limit(part.cause):
            output.part(index).unlink()


def _failed_already(plan: Plan, allowed: int) -> int:
    """Clips that failed in an earlier run over the same work. InputError: more than allowed."""
    causes = {}
    for output in plan.unfinished():
        causes |= {index: part.cause for index, part in _parts(output, len(plan.sources)) if part.failed}
    if len(causes) > allowed:
        raise assemble.too_many(len(causes), allowed, causes[max(causes)])
    return len(causes)


def _parts(output: Output, clips: int) -> Iterator[tuple[int, Part]]:
    """The results that are there."""
    for index in range(clips):
        with suppress(*UNREADABLE):
            yield index, Part.load(output.part(index))


@contextmanager
def disk_errors(stores: Path) -> Iterator[None]:
    """A disk that is full or broken is the machine's fault, said in a line. MachineError."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE_ERRNOS:
            raise
        raise MachineError(
            f"{stores}: {error.strerror}.\nMake room (or mend the disk) and run the same command again: what is "
            f"finished is kept."
        ) from error
