"""One process at a time."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def only_one(file: Path, what: str) -> Iterator[None]:
    """Hold a lock file while ``what`` is being made; the lock is gone with its holder, however that ends.

    InputError: another process holds it, which is named.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"{what} is being made by another mlemiss ({lock.read().strip() or 'unknown'}).\n"
                "Wait for it, or stop it and run this again: what is finished is kept."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield
