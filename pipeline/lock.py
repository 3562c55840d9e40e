"""One process at a time in a folder."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .claim import Claim

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def only_one(file: Path, what: str) -> Iterator[Claim]:
    """Hold a lock file while ``what`` is being made; the lock is gone with its holder, however that ends.

    The kernel's lock does this at once, among the processes it reaches. A network file system may have none, or let
    each machine lock for itself alone: so a claim stands beside it (FILE.json), which other machines watch.
    InputError: another process holds it, which is named.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    claim = Claim(file.with_name(f"{file.name}.json"), f"{what} is being made")
    with file.open("a+") as lock:
        alone = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise claim.busy() from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            alone = False
        with claim.held(alone):
            yield claim
