"""Connect to an existing Dask cluster: its workers, and whether some have a GPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..console import amount, say, say_once
from ..errors import InputError

GPU = "GPU"  # the Dask resource of workers that compute on one
CONNECT_SECONDS, WORKER_SECONDS = 10, 60  # for the scheduler to answer, for a first worker to start


@dataclass(frozen=True)
class Scheduler:
    """An existing Dask cluster: its scheduler's address, and the files of TLS where the scheduler asks for it."""

    address: str
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


@contextmanager
def connected(scheduler: Scheduler) -> Iterator:
    """Connect to an existing cluster, wait for a first worker and yield the client.

    Raises:
        InputError: no file of TLS, no scheduler at the address, no worker in time.
    """
    from distributed import Client
    from distributed.security import Security

    tls = {"ca_file": scheduler.tls_ca, "client_cert": scheduler.tls_cert, "client_key": scheduler.tls_key}
    given = {f"tls_{name}": str(path) for name, path in tls.items() if path}
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
        if not workers_of(client):
            say(f"waiting up to {WORKER_SECONDS} s for a first worker at {scheduler.address} …")
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


def workers_of(client) -> dict:
    """Return the cluster's workers by address, as its scheduler knows them."""
    return client.scheduler_info(n_workers=-1)["workers"]


def device_on(client, name: str) -> str:
    """Choose where the CNNs run: on the cluster's workers with the resource GPU, if there are any.

    The name `cuda` waits for such a worker, `auto` does not. InputError: none joins in time.
    """
    deadline = time.monotonic() + WORKER_SECONDS
    while not any(worker["resources"].get(GPU) for worker in workers_of(client).values()):
        if name == "auto":
            say("CNNs on CPUs, as no worker here now has the resource GPU; --device cuda waits for one")
            return "cpu"
        if time.monotonic() > deadline:
            raise InputError(
                f"--device cuda: no worker of the cluster has the resource GPU after {WORKER_SECONDS} s.\n"
                "Start some with --resources GPU=1."
            )
        say_once(f"--device cuda: waiting up to {WORKER_SECONDS} s for a worker with the resource GPU")
        time.sleep(0.2)
    if name == "auto":
        say("CNNs on workers with a GPU, as some have one")
    return "cuda"
