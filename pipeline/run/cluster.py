"""Run tasks on Dask: worker processes of this machine, or an existing cluster of any machines.

Where workers have the resource GPU, the others decode and these compute the CNNs of several clips at once. A bounded
number of clips is in flight, so memory stays bounded however many clips there are. A clip that took its worker down
is tried once more, alone, and then recorded as failed.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from ..console import amount
from ..encoders.images import BATCH_CLIPS
from ..errors import InputError, MachineError
from . import parts
from .extract import Outcome, decode, encode, process
from .parts import Part
from .plan import WORK, Plan, Task


@dataclass(frozen=True)
class Expected:
    """What every worker of a run must have and see."""

    versions: tuple[tuple[str, str], ...]
    token: Path  # a file in the stores folder, for as long as the run
    clip: Path


@contextmanager
def checked(client, plan: Plan) -> Iterator[Expected]:
    """Check the workers that are there; what is yielded lets `cluster.on_cluster` check those that join later.

    InputError: one has other versions, or does not see the same clips and stores under the same paths.
    """
    token = plan.stores / WORK / f"{uuid4().hex}.token"
    first = next((index for index, source in enumerate(plan.sources) if not source.fault), 0)
    clip = (plan.collection.root / plan.collection.clips[first].path).absolute()
    expected = Expected(tuple(parts.versions().items()), token, clip)
    token.parent.mkdir(parents=True, exist_ok=True)
    token.touch()
    try:
        try:
            faults = client.run(_fault, expected)
        except ImportError as error:
            raise no_mlemiss(error) from None
        for address, fault in faults.items():
            if fault:
                raise InputError(f"worker {address} {fault}")
        yield expected
    finally:
        token.unlink(missing_ok=True)


def no_mlemiss(error: ImportError) -> InputError:
    """What to say of a worker on which nothing of ours can be imported."""
    return InputError(f"a worker cannot import mlemiss ({error}).\nInstall the same version on every worker.")


@lru_cache(maxsize=1)
def _fault(expected: Expected) -> str:
    """What is wrong with the worker that this runs on; empty: nothing."""
    versions = parts.versions()
    for name, version in expected.versions:
        if versions.get(name) != version:
            return (
                f"has {name} {versions.get(name)}, here it is {version}: features would differ in their last bits.\n"
                "Install the same versions everywhere (constraints.txt)."
            )
    stores, clip = expected.token.parent, expected.clip
    for path, what, seen in (
        (stores, "stores", expected.token.is_file() and os.access(stores, os.W_OK)),
        (clip, "clips", clip.is_file()),
    ):
        if not seen:
            return (
                f"does not see the {what} at {path}.\nMount them under the same path on every machine; stores must be "
                "writable there."
            )
    return ""


def on_worker(expected: Expected | None, function: Callable, *arguments: object) -> object:
    """A task, where its worker is as expected: one that joined during the run is found out at its first."""
    if expected is not None and (fault := _fault(expected)):
        from distributed import get_worker

        raise InputError(f"worker {get_worker().address} {fault}")
    return function(*arguments)


# ---- executor ----

GPU = "GPU"  # the Dask resource of workers that compute on one
CONNECT_SECONDS, WORKER_SECONDS = 10, 60  # for the scheduler to answer, for a first worker to be there
RECOUNT_SECONDS = 5.0  # workers come and go
POLL_SECONDS = 0.02  # for a clip to be done
LEAST_IN_FLIGHT = 8  # clips: enough waiting for an adaptive cluster to grow
SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # which of a dead worker's clips was to blame is found out below
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.logging.distributed": "error",
}
SEVERAL = 3  # clips that each took a worker down twice, with none that did not: it is not the clips
Say = Callable[[str], None]
Executor = Callable[[Sequence[Task]], Iterator[Outcome]]


@dataclass(frozen=True)
class Scheduler:
    """An existing Dask cluster: its scheduler's address, and the files of TLS where it asks for it."""

    address: str
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


@contextmanager
def connected(scheduler: Scheduler, say: Say) -> Iterator:
    """A client of an existing cluster that has workers. InputError: it cannot be had."""
    from distributed import Client
    from distributed.security import Security

    files = {
        "tls_ca_file": scheduler.tls_ca,
        "tls_client_cert": scheduler.tls_cert,
        "tls_client_key": scheduler.tls_key,
    }
    given = {name: str(path) for name, path in files.items() if path}
    for path in given.values():
        if not Path(path).is_file():
            raise InputError(
                f"no file {path}: expected a PEM file for TLS.\nName it with --tls-ca, --tls-cert, --tls-key."
            )
    security = Security(require_encryption=True, **given) if given else None
    try:
        client = Client(scheduler.address, security=security, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"--scheduler {scheduler.address}: no Dask scheduler answers there ({str(error).splitlines()[0]}).\n"
            f"Expected an address such as tcp://HOST:8786, or tls://HOST:8786 with --tls-ca, --tls-cert and --tls-key."
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            raise InputError(
                f"--scheduler {scheduler.address}: no worker in {WORKER_SECONDS} s.\nStart some: `dask worker "
                f"{scheduler.address} --nthreads 1` on each machine."
            ) from None
        workers = amount(len(workers_of(client)), "worker")
        say(f"cluster {scheduler.address}: {workers}; dashboard at {client.dashboard_link}")
        yield client


def has_gpu(client) -> bool:
    """Some workers of the cluster have the resource GPU."""
    return any(worker["resources"].get(GPU) for worker in workers_of(client).values())


def wait_for_gpu(client, say: Say) -> None:
    """InputError: no worker with the resource GPU joins in time."""
    deadline = time.monotonic() + WORKER_SECONDS
    if not has_gpu(client):
        say(f"--device cuda: waiting up to {WORKER_SECONDS} s for a worker with the resource GPU")
    while not has_gpu(client):
        if time.monotonic() > deadline:
            raise InputError(
                f"--device cuda: no worker of the cluster has the resource GPU after {WORKER_SECONDS} s.\n"
                "Start some with --resources GPU=1."
            )
        time.sleep(0.2)


def on_cluster(client, report: Path | None, say: Say, expected: Expected | None = None) -> Executor:
    """An executor on a connected cluster; ``report`` is the file of Dask's performance report, if wanted."""

    def execute(tasks: Sequence[Task]) -> Iterator[Outcome]:
        from distributed import performance_report

        address = client.scheduler.address
        try:
            with performance_report(filename=str(report)) if report else nullcontext():
                yield from _Schedule(client, say, expected).run(tasks)
        except ImportError as error:
            raise no_mlemiss(error) from None
        except (CancelledError, OSError) as error:
            if getattr(error, "errno", None):  # a worker's own, such as a full disk
                raise
            raise MachineError(
                f"the Dask cluster at {address} is gone ({type(error).__name__}).\n"
                "Start it and run the same command again: finished clips are kept."
            ) from error

    return execute


def on_this_machine(workers: int, report: Path | None, say: Say) -> Executor:
    """An executor on worker processes of one thread each, and one more for each GPU where tasks want it."""

    def execute(tasks: Sequence[Task]) -> Iterator[Outcome]:
        import dask
        from distributed import Client, LocalCluster

        gpus = _gpus(tasks)
        # Dask would pause a worker for good near its share of the memory, as freed memory is kept for the next clip.
        options = {"threads_per_worker": 1, "processes": True, "memory_limit": 0, "silence_logs": 50}
        loopback = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
        with (
            dask.config.set(SETTINGS),
            LocalCluster(n_workers=workers, **loopback, **options) as cluster,
            Client(cluster) as client,
        ):
            _add_gpu_workers(cluster, gpus)
            on_gpus = f" and {gpus} on GPUs" if gpus else ""
            say(f"{amount(workers, 'worker')}{on_gpus}; dashboard at {cluster.dashboard_link}")
            client.wait_for_workers(workers + gpus, timeout=WORKER_SECONDS)
            yield from on_cluster(client, report, say)(tasks)

    return execute


def _gpus(tasks: Sequence[Task]) -> int:
    if not any(output.device == "cuda" for task in tasks for output in task.outputs):
        return 0
    import torch

    return torch.cuda.device_count()


def _add_gpu_workers(cluster, gpus: int) -> None:
    ((_, described),) = cluster.new_worker_spec().items()
    for gpu in range(gpus):
        options = described["options"] | {"resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": str(gpu)}}
        cluster.worker_spec[f"gpu-{gpu}"] = described | {"options": options}
    cluster.scale(len(cluster.worker_spec))


def workers_of(client) -> dict:
    """The cluster's workers by address, as its scheduler knows them."""
    return client.scheduler_info(n_workers=-1)["workers"]


@dataclass
class _Schedule:
    """Tasks on a cluster's workers, a bounded number of clips at a time."""

    client: object
    say: Say
    expected: Expected | None = None
    suspects: list[Task] = field(default_factory=list)  # of workers that died with a clip
    survived: int = 0
    _counted: float = 0.0
    _decoders: list[str] = field(default_factory=list)  # addresses of the workers that decode
    _encoders: list[str] = field(default_factory=list)  # and of those with the resource GPU
    _in_flight: int = 0  # clips at most, decoded ones that wait for a GPU included
    _with_gpu: bool = False  # tasks go to them
    _lacking: str = ""  # what kind of worker there is none of, where it has been said

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Every task's outcome; clips that take their workers down come last."""
        self._count()
        wanted = any(output.device == "cuda" for task in tasks for output in task.outputs)
        self._with_gpu = wanted or bool(self._encoders)
        if self._encoders:
            decoders = amount(len(self._decoders), "worker")
            self.say(f"decoding on {decoders}, CNNs on {len(self._encoders)} with a GPU")
        for outcomes in self._two_stages(tasks) if self._with_gpu else self._one_stage(tasks):
            self.survived += len(outcomes)
            if self._lacking:
                self._counted = 0.0  # somebody is back
            yield from outcomes
        yield from self._told_apart()

    def _count(self) -> None:
        """Who is there, now and then."""
        if time.monotonic() - self._counted < RECOUNT_SECONDS:
            return
        self._counted = time.monotonic()
        workers = workers_of(self.client)
        self._encoders = [address for address, worker in workers.items() if worker["resources"].get(GPU)]
        others = [address for address in workers if address not in self._encoders]
        self._decoders = others or list(workers)
        threads = sum(workers[address]["nthreads"] for address in self._decoders)
        self._tell(bool(workers))
        self._in_flight = max(2 * threads, LEAST_IN_FLIGHT) + 3 * BATCH_CLIPS * len(self._encoders)

    def _tell(self, any_workers: bool) -> None:
        """Say once that workers are all gone, or all with a GPU where tasks wait for one, and once that some came."""
        lacking = "" if any_workers else "worker"
        if any_workers and self._with_gpu and not self._encoders:
            lacking = "worker with a GPU"
        if lacking and lacking != self._lacking:
            self.say(
                f"no {lacking} is left at {self.client.scheduler.address}: waiting for one (finished clips are kept)"
            )
        elif self._lacking and not lacking:
            self.say("going on: workers are back")
        self._lacking = lacking

    def _done(self, running) -> Iterator:
        """Futures as they are done; meanwhile workers are counted."""
        while not running.is_empty():
            while not running.has_ready():
                self._count()
                time.sleep(POLL_SECONDS)
            yield next(running)

    def _result(self, future):
        """What it computed. If the worker that holds it goes first it is computed again, once there is another."""
        while True:
            try:
                return future.result(timeout=RECOUNT_SECONDS)
            except TimeoutError:
                if future.status == "error":
                    return future.result()  # raises the task's own
                self._count()

    def _submit(self, function, *arguments, **where):
        key = f"{function.__name__}-{uuid4().hex}"  # the dashboard shows what comes before the dash
        return self.client.submit(on_worker, self.expected, function, *arguments, key=key, retries=0, **where)

    def _one_stage(self, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        waiting, submitted, running = iter(tasks), {}, as_completed()

        def top_up() -> None:
            self._count()
            while len(submitted) < self._in_flight and (task := next(waiting, None)):
                future = self._submit(process, task)
                submitted[future] = task
                running.add(future)

        top_up()
        for future in self._done(running):
            task = submitted.pop(future)
            try:
                yield [self._result(future)]
            except KilledWorker:
                self.suspects.append(task)
            finally:
                future.release()
            top_up()

    def _two_stages(self, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        waiting, running = iter(tasks), as_completed()
        decoding: dict = {}  # future -> task
        ready: list = []  # (task, future) that wait for a GPU; what they hold stays on the worker that decoded it
        encoding: dict = {}  # future -> [(task, future), ...]

        def top_up() -> None:
            self._count()
            held = len(decoding) + len(ready) + sum(map(len, encoding.values()))
            for _ in range(self._in_flight - held):
                if (task := next(waiting, None)) is None:
                    break
                future = self._submit(decode, task, workers=self._decoders, allow_other_workers=True)
                decoding[future] = task
                running.add(future)
            while len(ready) >= BATCH_CLIPS or (ready and not decoding):
                several, ready[:BATCH_CLIPS] = ready[:BATCH_CLIPS], []
                clips, media = map(list, zip(*several, strict=True))
                future = self._submit(encode, clips, media, resources={GPU: 1})
                encoding[future] = several
                running.add(future)

        top_up()
        for future in self._done(running):
            if future in decoding:
                task = decoding.pop(future)
                if future.status == "finished":
                    ready.append((task, future))
                elif isinstance(error := future.exception(), KilledWorker):
                    self.suspects.append(task)
                else:
                    raise error
            else:
                several = encoding.pop(future)
                try:
                    yield self._result(future)
                except KilledWorker:
                    self.suspects += [task for task, _ in several]
                finally:
                    for done in (future, *(media for _, media in several)):
                        done.release()
            top_up()

    def _told_apart(self) -> Iterator[Outcome]:
        """Each suspect alone once more; one that takes its worker down again is recorded as failed.

        MachineError: several do, and no clip did not.
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
                Part((False, False), cause, failed=True).save(output.part(task.index))
            yield Outcome(task.index, cause)

    def _alone(self, task: Task) -> Outcome | None:
        """None: its worker died."""
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        future = self._submit(process, task, **({"resources": {GPU: 1}} if self._with_gpu else {}))
        try:
            (outcome,) = (self._result(done) for done in self._done(as_completed([future])))
        except KilledWorker:
            return None
        return outcome
