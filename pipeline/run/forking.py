"""Start the server that worker processes of this machine are forked from, on Linux.

It imports what takes seconds to import (`forked`), once, and computes nothing, and so has no threads.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from ..console import ENDING

# Dask sets these as it starts a worker: too late for one that is forked from a server which has read them.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ENVIRONMENT |= {"MALLOC_TRIM_THRESHOLD_": "65536"}
OWN = ("PYTHONPATH", "PYTHONSAFEPATH")  # of the server, not of what workers start
_one_at_a_time = threading.Lock()


def start_server(networks: bool = False) -> dict[str, str]:
    """Start the server if none runs yet; return how workers start, as Dask's setting.

    Modules that Dask names later come too late, as the server has begun. One that runs already, of an earlier call in
    this process, stays as it is.

    networks: workers compute CNNs on CPUs. For GPUs it imports no torch, as CUDA must start after a fork.
    """
    if sys.platform != "linux":  # the system's own libraries may not work in a forked process
        return {}
    import multiprocessing
    from multiprocessing import forkserver, resource_tracker

    # It imports what this process would: Python's own start would look into the working folder first.
    path = os.pathsep.join(str(Path(part).absolute()) for part in sys.path if isinstance(part, str))
    with _one_at_a_time:
        multiprocessing.set_forkserver_preload([f"{__package__}.forked", *(("torch", "timm") if networks else ())])
        wanted = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
        wanted |= zip(OWN, (path, "1"), strict=True)
        before = {name: os.environ.get(name) for name in wanted}
        # What the server's start would start, too, and would let signals through again.
        resource_tracker.ensure_running()
        # Here they come when the environment is as it was; there, where a traceback would be shown while Python starts,
        # when `forked` says what they do.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDING})
        try:
            os.environ.update(wanted)
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    return {"distributed.worker.multiprocessing-method": "forkserver"}


def silence_dask() -> None:
    """Let Dask, once imported, log nothing for as long as this process lives.

    What it offers itself (`silence_logs`) ends when a cluster or a worker begins to close, and what it says of
    connections that break meanwhile would come after an interruption's own line.
    """
    for handler in logging.getLogger("distributed").handlers:
        handler.setLevel(logging.CRITICAL)
