"""Run tasks on Dask: worker processes of this machine, or an existing cluster of any machines (`connect`).

Where workers have the resource GPU, the others decode and these compute the CNNs of several clips at once. The number
of clips in flight is bounded, and so is memory. A clip whose worker died is tried once more, alone, and then fails.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from ..console import amount, say
from ..encoders.images import BATCH_CLIPS
from ..errors import InputError, MachineError
from ..files import work_folder
from . import parts
from .connect import GPU, WORKER_SECONDS, workers_of
from .extract import Outcome, decode_and_save, encode, of_networks, process, wants_gpu
from .forking import OWN, silence_dask, start_server
from .parts import Part
from .plan import WORK, Plan, Task

RECOUNT_SECONDS = 5.0  # workers come and go
POLL_SECONDS = 0.02  # between looks for a finished clip
LEAST_IN_FLIGHT = 8  # clips: enough waiting for an adaptive cluster to grow
SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # which clip of a dead worker was to blame is found out below
    "distributed.scheduler.worker-saturation": 1.0,
}
SEVERAL = 3  # clips whose workers died twice, while no other clip was finished: the clips are not to blame


def on_cluster(client, plan: Plan | None, report: Path | None, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Run tasks on a connected cluster.

    Args:
        client: of the cluster.
        plan: the run, whose clips and stores every worker must see; None: the workers are our own.
        report: file to write Dask's performance report into.
        tasks: to run.
    """
    from distributed import performance_report

    address = client.scheduler.address
    try:
        with (
            checked(client, plan) if plan else nullcontext() as expected,
            performance_report(filename=str(report)) if report else nullcontext(),
        ):
            yield from _Schedule(client, expected).run(tasks)
    except ImportError as error:
        advice = "Install the same version on every worker."
        raise InputError(f"a worker cannot import mlemiss ({error}).\n{advice}") from None
    except (CancelledError, OSError) as error:
        if getattr(error, "errno", None):  # a worker's own, such as a full disk
            raise
        raise MachineError(
            f"the Dask cluster at {address} is gone ({type(error).__name__}).\n"
            "Start it and run the same command again: finished clips are kept."
        ) from error


def on_this_machine(workers: int, report: Path | None, dashboard: bool, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Run tasks on worker processes of one thread each, and on one more for each GPU if the tasks want GPUs.

    The scheduler and the workers accept only connections with the run's own keys, so that other accounts of this
    machine cannot run code through them. The dashboard has no password and is off by default.
    """
    on_gpu = wants_gpu(tasks)
    encoded_here = not on_gpu and any(output.weights for task in tasks for output in task.outputs)
    start_method = start_server(encoded_here)  # before the imports here, which it makes meanwhile, and more
    import dask
    from distributed import Client, LocalCluster

    silence_dask()
    gpus = 0
    if on_gpu:
        import torch

        gpus = torch.cuda.device_count()
    on_gpus = f" and {gpus} on GPUs" if gpus else ""
    say(f"waiting for {workers} worker {'process' if workers == 1 else 'processes'}{on_gpus} to start …")
    # Dask would pause a worker for good near its share of the memory, as freed memory is kept for the next clip.
    options = {"threads_per_worker": 1, "processes": True, "memory_limit": 0, "silence_logs": 50}
    # As it is now: a server of an earlier run in this process has an older one.
    options["env"] = dict.fromkeys(OWN, "") | dict(os.environ)
    page = "127.0.0.1:0" if dashboard else None
    loopback = {"host": "127.0.0.1", "dashboard_address": page, "worker_dashboard_address": page}
    with (
        dask.config.set(SETTINGS | start_method),
        # Its workers start inside, so that an interruption meanwhile ends those that are there.
        LocalCluster(n_workers=0, security=True, **loopback, **options) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(workers)
        _add_gpu_workers(cluster, gpus)
        client.wait_for_workers(workers + gpus, timeout=WORKER_SECONDS)
        while len(cluster.workers) < workers + gpus:  # Dask restarts no worker that dies before it is listed there
            time.sleep(POLL_SECONDS)
        say(f"{amount(workers, 'worker')}{on_gpus}" + (f"; dashboard at {cluster.dashboard_link}" if dashboard else ""))
        yield from on_cluster(client, None, report, tasks)


def _add_gpu_workers(cluster, gpus: int) -> None:
    """Add a worker for each GPU that this process sees: of those that CUDA_VISIBLE_DEVICES leaves it, if it is set."""
    ((_, described),) = cluster.new_worker_spec().items()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    for gpu in visible.split(",")[:gpus] if visible else map(str, range(gpus)):
        options = described["options"] | {"resources": {GPU: 1}}
        options["env"] = options["env"] | {"CUDA_VISIBLE_DEVICES": gpu}
        cluster.worker_spec[f"gpu-{gpu}"] = described | {"options": options}
    cluster.scale(len(cluster.worker_spec))


# ---- What every worker must have and see ----


@dataclass(frozen=True)
class Expected:
    """What every worker of a run must have and see."""

    versions: tuple[tuple[str, str], ...]
    token: Path  # a file in the stores folder, for as long as the run
    clip: Path


@contextmanager
def checked(client, plan: Plan) -> Iterator[Expected]:
    """Check the workers of a cluster, and yield what those that join later must have and see.

    Raises:
        InputError: a worker has other versions, or does not see the same clips and stores under the same paths.
    """
    token = plan.stores / WORK / f"{uuid4().hex}.token"
    first = next((index for index, source in enumerate(plan.sources) if not source.fault), 0)
    clip = (plan.collection.root / plan.collection.clips[first].path).absolute()
    work_folder(token.parent, plan.stores)
    token.touch(exist_ok=False)
    try:
        libraries = sorted({name for output in plan.outputs for name in output.libraries})
        expected = Expected(tuple(parts.versions(tuple(libraries)).items()), token, clip)
        for address, fault in client.run(_fault, expected).items():
            if fault:
                raise InputError(f"worker {address} {fault}")
        yield expected
    finally:
        token.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _fault(expected: Expected) -> str:
    """Return the fault of the worker that this runs on, empty if there is none."""
    versions = parts.versions(tuple(name for name, _ in expected.versions))
    for name, version in expected.versions:
        if versions.get(name) != version:
            return (
                f"has {name} {versions.get(name)}, here it is {version}: features would differ in their last bits.\n"
                "Install the same versions everywhere (constraints.txt)."
            )
    stores, clip = expected.token.parent, expected.clip
    unseen = "" if clip.is_file() else f"clips at {clip}"
    if not (expected.token.is_file() and os.access(stores, os.W_OK)):
        unseen = f"stores at {stores}"
    advice = "Mount them under the same path on every machine; stores must be writable there."
    return f"does not see the {unseen}.\n{advice}" if unseen else ""


def on_worker(expected: Expected | None, function: Callable, *arguments: object) -> object:
    """Call a function on a worker, after checking the worker at its first task: it may have joined during the run."""
    if expected is not None and (fault := _fault(expected)):
        from distributed import get_worker

        raise InputError(f"worker {get_worker().address} {fault}")
    return function(*arguments)


# ---- Which worker does what, and when ----


@dataclass
class _Schedule:
    """Tasks on a cluster's workers, a bounded number of clips at a time."""

    client: object
    expected: Expected | None = None
    suspects: list[Task] = field(default_factory=list)  # whose workers died
    survived: int = 0
    _counted: float = 0.0
    _decoders: list[str] = field(default_factory=list)  # addresses of the workers that decode
    _encoders: list[str] = field(default_factory=list)  # and of those with the resource GPU
    _in_flight: int = 0  # clips at most, decoded ones that wait for a GPU included
    _with_gpu: bool = False  # workers with the resource GPU compute the CNNs
    _absent: str = ""  # the kind of worker that is absent, where that was printed

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield every task's outcome; clips whose workers died come last."""
        self._count()
        networks = any(of_networks(task).outputs for task in tasks)
        self._with_gpu = wants_gpu(tasks) or (networks and bool(self._encoders))
        if self._with_gpu and self._encoders:
            decoders = amount(len(self._decoders), "worker")
            say(f"decoding on {decoders}, CNNs on {len(self._encoders)} with a GPU")
        for outcomes in self._compute(tasks):
            self.survived += len(outcomes)
            if self._absent:
                self._counted = 0.0  # a worker is back
            yield from outcomes
        yield from self._try_suspects()

    def _count(self) -> None:
        """Look which workers there are, every few seconds."""
        if time.monotonic() - self._counted < RECOUNT_SECONDS:
            return
        self._counted = time.monotonic()
        workers = workers_of(self.client)
        self._encoders = [address for address, worker in workers.items() if worker["resources"].get(GPU)]
        others = [address for address in workers if address not in self._encoders]
        self._decoders = others or list(workers)
        threads = sum(workers[address]["nthreads"] for address in self._decoders)
        self._in_flight = max(2 * threads, LEAST_IN_FLIGHT) + 3 * BATCH_CLIPS * len(self._encoders)
        self._say_absent(workers)

    def _say_absent(self, workers: Mapping) -> None:
        """Print once that all workers are gone, or all with a GPU where tasks wait for one; and once that some came."""
        no_gpu = self._with_gpu and not self._encoders
        absent = "worker" if not workers else "worker with a GPU" if no_gpu else ""
        if absent and absent != self._absent:
            say(f"no {absent} is left at {self.client.scheduler.address}: waiting for one (finished clips are kept)")
        elif self._absent and not absent:
            say("going on: workers are back")
        self._absent = absent

    def _done(self, running) -> Iterator:
        """Yield futures as they are done; meanwhile count the workers."""
        while not running.is_empty():
            while not running.has_ready():
                self._count()
                time.sleep(POLL_SECONDS)
            yield next(running)

    def _result(self, future):
        """Return a future's result. If the worker that holds it dies first, Dask computes it again on another."""
        while True:
            try:
                return future.result(timeout=RECOUNT_SECONDS)
            except TimeoutError:
                if future.status == "error":
                    return future.result()  # raises the task's own
                self._count()

    def _in_stages(self, task: Task) -> bool:
        """Return whether a worker decodes the task's clip, and one with a GPU computes the networks."""
        return self._with_gpu and bool(of_networks(task).outputs)

    def _submit(self, function, *arguments, **where):
        key = f"{function.__name__}-{uuid4().hex}"  # the dashboard shows the part before the dash
        return self.client.submit(on_worker, self.expected, function, *arguments, key=key, retries=0, **where)

    def _compute(self, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
        """Work on all tasks: each whole on one worker, or decoded on one and its networks with others on a GPU."""
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        waiting, running = iter(tasks), as_completed()
        first: dict = {}  # future of `process` or `decode_and_save` -> its task
        decoded: list = []  # (task, future) that wait for a GPU; the media stay on the worker that decoded them
        encoding: dict = {}  # future of `encode` -> [(task, future of `decode_and_save`), ...]

        def top_up() -> None:
            self._count()
            in_flight = len(first) + len(decoded) + sum(map(len, encoding.values()))
            for _ in range(self._in_flight - in_flight):
                if (task := next(waiting, None)) is None:
                    break
                there = {"workers": self._decoders, "allow_other_workers": True} if self._with_gpu else {}
                future = self._submit(decode_and_save if self._in_stages(task) else process, task, **there)
                first[future] = task
                running.add(future)
            while len(decoded) >= BATCH_CLIPS or (decoded and not first):
                batch, decoded[:BATCH_CLIPS] = decoded[:BATCH_CLIPS], []
                networks, media = [of_networks(task) for task, _ in batch], [one for _, one in batch]
                future = self._submit(encode, networks, media, resources={GPU: 1})
                encoding[future] = batch
                running.add(future)

        top_up()
        for future in self._done(running):
            batch = encoding.pop(future, [])
            several = [task for task, _ in batch] or [first.pop(future)]
            ended = bool(batch) or not self._in_stages(several[0])
            try:
                if batch:
                    yield self._result(future)
                elif ended:
                    yield [self._result(future)]
                elif future.status == "finished":
                    decoded.append((several[0], future))
                else:
                    raise future.exception()
            except KilledWorker:
                self.suspects += several
            finally:
                if ended:
                    for done in (future, *(media for _, media in batch)):
                        done.release()
            top_up()

    def _try_suspects(self) -> Iterator[Outcome]:
        """Try each suspect alone; one whose worker dies again is recorded as failed.

        Raises:
            MachineError: several died, and no clip survived.
        """
        fatal: list[Task] = []
        for task in self.suspects:
            if (outcome := self._alone(task)) is not None:
                self.survived += 1
                yield outcome
                continue
            fatal.append(task)
            if not self.survived and 1 < len(fatal) == min(len(self.suspects), SEVERAL):
                raise MachineError(
                    "worker processes die on whatever clip they are given, for lack of memory perhaps.\n"
                    "Take fewer with --workers; finished clips are kept."
                )
        cause = "the worker process died on this clip twice (out of memory?)"
        for task in fatal:
            for output in task.outputs:
                Part((False,) * len(output.modalities), cause, failed=True).save(output.part(task.key))
            yield Outcome(task.rows, cause)

    def _alone(self, task: Task) -> Outcome | None:
        """Return the outcome of a task, None if its worker died."""
        from distributed.scheduler import KilledWorker

        future = self._submit(process, task, **({"resources": {GPU: 1}} if self._in_stages(task) else {}))
        try:
            return self._result(future)
        except KilledWorker:
            return None
