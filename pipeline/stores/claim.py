"""Claims: a small file says who is at work in a place whose locks cannot be relied on; its holder keeps it fresh.

No clock is compared with another's. Whoever finds somebody else's claim watches it: one that changes has a living
holder, one that stays the same for a minute is taken over. A holder that comes back finds the claim lost and stops: it
checks the claim before each step, and last before it publishes.
"""

import datetime
import errno
import fcntl
import getpass
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..console import printable, say
from ..errors import InputError
from ..files import planted, temporary_beside, work_folder
from .remote import NotRegularError, Place, is_local, open_regular, read_document

BEAT = 10.0  # seconds between signs of life
DEAD = 60.0  # seconds without one after which a claim is taken over
SETTLE = 1.0  # seconds after which a claim written at the same moment is seen


class TakenOverError(InputError):
    """The claim is somebody else's by now."""


class Claim:
    """The claim of one process, in ``file``; ``doing`` says what the process does: "X is being made"."""

    def __init__(self, file: Place, doing: str):
        self.file, self.doing = file, doing
        self.document = {
            "user": _user(),
            "host": platform.node(),
            "process": os.getpid(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": _machine(),
            "token": uuid.uuid4().hex,
            "beat": 0,
        }
        self._lost: TakenOverError | None = None
        self._seen = 0.0  # time at which the claim was last found to be ours
        self._one = threading.Lock()
        self._end = threading.Event()

    @contextmanager
    def held(self, alone: bool = False) -> Iterator["Claim"]:
        """Take the claim and keep it fresh. ``alone``: a lock says that nobody else on this machine holds it.

        InputError: somebody else is at work.
        """
        self._take(alone)
        keeper = threading.Thread(target=self._keep, daemon=True)
        keeper.start()
        try:
            yield self
        finally:
            self._end.set()
            keeper.join()
            with suppress(InputError, OSError):
                if self._is_ours(_read(self.file)):
                    self.file.unlink()

    def check(self, now: bool = False) -> None:
        """Check that the claim is still ours; read the file every few seconds at most, except ``now``.

        TakenOverError: it is not.
        """
        if self._lost:
            raise self._lost
        if now or time.time() - self._seen > 2 * BEAT:  # wall time, which goes on while a machine sleeps
            self._renew()

    def busy(self, other: dict | None = None) -> InputError:
        """Return the error that says who is at work."""
        return InputError(
            f"{self.doing} by another mlemiss ({_holder(other or _read(self.file))}).\n"
            "Wait for it, or stop it and run this again: what is finished is kept."
        )

    def _take(self, alone: bool) -> None:
        other = _read(self.file)
        if other is not None and not (alone and other.get("machine") == self.document["machine"]):
            self._watch(other)
            other = _read(self.file)
        try:
            self._write(new=other is None)
        except FileExistsError:
            raise self.busy() from None
        if not alone:
            time.sleep(SETTLE)
            if not self._is_ours(holder := _read(self.file)):
                raise self.busy(holder)
        self._seen = time.time()

    def _watch(self, other: dict) -> None:
        say(f"{self.doing} by {_holder(other)}, or was: watching for {DEAD:.0f} s whether it still is")
        deadline = time.monotonic() + DEAD
        while time.monotonic() < deadline:
            time.sleep(min(2.0, BEAT / 2))
            now = _read(self.file)
            if now is None:
                return
            if now != other:
                raise self.busy(now)
        say("no sign of life: taken over")

    def _keep(self) -> None:
        while not self._end.wait(BEAT):
            try:
                self._renew()
            except TakenOverError as error:
                self._lost = error
                return
            except Exception:  # a server out of reach: `check` tells, once it matters
                continue

    def _renew(self) -> None:
        with self._one:
            if not self._is_ours(holder := _read(self.file)):
                raise TakenOverError(
                    f"{self.doing} by another mlemiss now ({_holder(holder)}): this one gave no sign of life for "
                    "long.\n"
                    "Run it again when the other is done: what is finished is kept."
                )
            self.document["beat"] += 1
            self._write()
            self._seen = time.time()

    def _is_ours(self, document: dict | None) -> bool:
        return document is not None and document.get("token") == self.document["token"]

    def _link(self, temporary: Path) -> None:
        """Create the claim by a hard link, which the file server decides, whatever this machine has cached.

        FileExistsError: the claim is there.
        """
        try:
            self.file.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:
            pass  # no hard links here: what is read a moment later decides

    def _write(self, new: bool = False) -> None:
        data = json.dumps(self.document, ensure_ascii=False).encode()
        if not is_local(self.file):
            self.file.write_bytes(data, new=new)
            return
        temporary = temporary_beside(self.file)
        try:
            with temporary.open("xb") as file:
                file.write(data)
            if new:
                self._link(temporary)
            temporary.replace(self.file)
        finally:
            temporary.unlink(missing_ok=True)


def holder_of(file: Place) -> str | None:
    """Return whom a claim's file names, in words; None where there is no such file.

    InputError: it is a link or a pipe.
    """
    document = _read(file)
    return None if document is None else _holder(document)


def _read(file: Place) -> dict | None:
    try:
        content = read_document(file)
    except FileNotFoundError:
        return None
    except NotRegularError:
        raise planted(file) from None
    try:
        document = json.loads(content)
        return document if isinstance(document, dict) else {}
    except ValueError:
        return {"unreadable": content.hex()[:1000]}  # a claim nevertheless, which its holder may yet change


def _holder(document: dict | None) -> str:
    """Return who wrote a claim: ``process 12 on host, user, since 2026-11-24 15:02``."""
    if not document or not {"process", "host", "user", "since"} <= set(document):
        return "unknown"
    since = document["since"]
    with suppress(ValueError, TypeError):
        since = f"{datetime.datetime.fromisoformat(since).astimezone():%Y-%m-%d %H:%M}"
    text = f"process {document['process']} on {document['host']}, {document['user']}, since {since}"
    return printable(text)[:200]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _machine() -> str:
    """Return what tells machines of one name apart, and a machine from itself before it was last started."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return platform.node()


# ---- one process at a time in a folder ----

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def only_one(file: Path, what: str) -> Iterator[Claim]:
    """Hold a lock file while ``what`` is being made; the lock is gone with its holder, however that ends.

    The kernel's lock does this at once, among the processes it reaches. A network file system may have none, or let
    each machine lock for itself alone: so there is a claim beside it (FILE.json), which other machines watch.
    InputError: another process holds it, which is named; it is a link or a pipe, or in a linked work folder.
    """
    ours = file.parent.name.startswith(".")  # else it is the user's, and may be a link
    work_folder(file.parent, file.parent.parent if ours else file.parent)
    claim = Claim(file.with_name(f"{file.name}.json"), f"{what} is being made")
    try:
        lock = open_regular(file, "ab")
    except NotRegularError:
        raise planted(file) from None
    with lock:
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
