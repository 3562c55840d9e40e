"""What all verbs share: exit statuses, checks of folders and files, JSON, lines and progress."""

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType

from .errors import InputError

GROUP_READS = stat.S_IRGRP | stat.S_IXGRP  # of a folder
DONE, FAILURES, WRONG_INPUT, UNEXPECTED, INTERRUPTED = 0, 1, 2, 3, 130


def comma_list(values: Sequence[str]) -> list[str]:
    """Split the values of a repeatable option at commas, and drop duplicates. InputError: nothing is left."""
    items = list(dict.fromkeys(item.strip() for value in values for item in value.split(",") if item.strip()))
    if not items:
        raise InputError(f"an empty list {','.join(values)!r}: expected at least one name in it.")
    return items


def writable_folder(path: Path, option: str, read_only: bool = False) -> Path:
    """Check that a folder can be written into, or made; do not make it, so that wrong input leaves nothing behind.

    Args:
        path: the folder.
        option: its name on the command line.
        read_only: a folder that is there need not be writable, as everything may be in it already.

    Raises:
        InputError: a file is in the way, or nothing can be written there.
    """
    if read_only and path.is_dir():
        return path
    nearest = path
    try:
        while not (nearest.exists() or nearest.is_symlink()):  # a dangling link is in the way too
            nearest = nearest.parent
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}.\nExpected a folder, made if absent.") from None
    if not nearest.is_dir():
        raise InputError(f"{option} {path}: {nearest} is a file.\nExpected a folder, made if absent: name another.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{option} {path}: nothing can be written into {nearest}.\nName another folder.")
    return path


def writable_file(path: Path, option: str) -> Path:
    """Check that a file can be written; its folder may be absent, and is not made.

    Args:
        path: the file.
        option: its name on the command line.

    Raises:
        InputError: it is a folder, or cannot be written.
    """
    writable_folder(path.parent, option)
    try:
        exists = path.exists()
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}.\nExpected a file to write.") from None
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder: expected a file to write.\nName a file in it.")
    if exists and not os.access(path, os.W_OK):
        raise InputError(f"{option} {path} cannot be written.\nName another file.")
    return path


def note_if_private(path: Path) -> None:
    """Say where others may enter the folder of what was made, but its group cannot read it, as under `umask 077`."""
    folder, made = path.parent.stat().st_mode, path.stat().st_mode
    if folder & GROUP_READS == GROUP_READS and made & GROUP_READS != GROUP_READS:
        say(
            f"note: the group of {path.parent} cannot read {path.name}: this process makes files for its user alone "
            f"(umask).\n`chmod -R g+rX {path}` lets the group read it"
        )


def print_json(document: dict | list) -> None:
    """Print the one document of a verb with --json on standard output."""
    from .files import json_text

    print(json_text(document))


def print_path(path: object) -> None:
    """Print a path on standard output: as it is into a file or pipe, for programs, `printable` on a terminal."""
    print(printable(path) if sys.stdout.isatty() else path)


# ---- What ends a command, and where its output goes ----

STREAMS = {0: ("stdin", "r"), 1: ("stdout", "w"), 2: ("stderr", "w")}
ENDING = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)


def open_streams() -> None:
    """Open standard streams that were closed on `os.devnull`; else a store's file got their number, and what is said.

    Python has None for such a stream, and prints to standard output what is meant for standard error.
    """
    for number, (name, mode) in STREAMS.items():
        with suppress(OSError):
            os.fstat(number)
            continue
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def address_space() -> int:
    """Return how many bytes of addresses this process may map (`ulimit -v`), -1 where there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return -1
    return resource.getrlimit(resource.RLIMIT_AS)[0]


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does; yield the list of those that came.

    While it ends, others of them do not break off its cleaning up. What is ignored, as under `nohup`, stays ignored.
    """
    came: list[int] = []
    process = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a forked child that has not started its own program yet
            os._exit(128 + number)
        if not came:
            came.append(number)
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING}
    taken = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield came
    finally:
        for number in taken:
            signal.signal(number, before[number])


# ---- Lines and progress on standard error ----

PLAIN_EVERY = 10.0  # seconds between plain lines
CELL_EVERY = 0.2  # seconds between pictures of a bar in a notebook
BYTES = "bytes"  # a unit that is shown in MB


def printable(text: object) -> str:
    """Return one line without what a terminal or a browser obeys: control characters, marks that turn text around."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def plain(document: object) -> object:
    """Return a JSON document with every text in it `printable`, line breaks apart."""
    if isinstance(document, dict):
        return {plain(key): plain(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [plain(value) for value in document]
    return "\n".join(map(printable, document.split("\n"))) if isinstance(document, str) else document


def all_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def amount(number: int, noun: str) -> str:
    """Return a number with its noun: `1 clip`, `2 clips`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def name_some(names: Iterable[object], most: int = 3) -> str:
    """Return the first few of many names, and how many more there are: `a, b, c and 4 more`."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def say(text: str) -> None:
    """Print one or several lines on standard error, where logs and progress go; nobody needs to be there to read."""
    with suppress(OSError):  # a closed pipe, a terminal that is gone: the work goes on
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


@cache
def say_once(text: str) -> None:
    """Print a line unless it was printed before: one damaged store may serve many clips."""
    say(text)


def _notebook_display() -> Callable | None:
    """Return IPython's `display` where this process is a notebook's kernel, else None; nothing is loaded for it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display


class Progress:
    """Progress of long work: a bar with rate and ETA on a terminal or in a notebook, plain lines elsewhere.

    Use it as a context manager and call `advance` for each item.
    """

    def __init__(self, what: str, total: int, unit: str = "clips"):
        self.what, self.total, self.unit = printable(what), total, unit
        self.done = self.failed = 0
        self._said = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and number of the first finished items
        self._bar = self._cell = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich import progress as rich_progress
            from rich.console import Console
            from rich.table import Column

            column = Column(ratio=1, no_wrap=True)  # where the terminal is narrow this is cut, never the rest
            columns = (
                rich_progress.TextColumn("{task.description}", markup=False, table_column=column),
                rich_progress.BarColumn(bar_width=10),
                rich_progress.TextColumn("{task.fields[amount]}"),
                rich_progress.TextColumn("{task.fields[rate]}"),
                rich_progress.TimeRemainingColumn(),
            )
            self._bar = rich_progress.Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
            self._task = self._bar.add_task(self.what, total=self.total, rate="", amount=self._amount())
            self._bar.start()
        elif display := _notebook_display():
            self._cell = display(self._picture(), raw=True, display_id=True)
        return self

    def advance(self, count: int = 1, failed: bool = False) -> None:
        """Count more finished items, and show them."""
        self.done += count
        self.failed += failed
        self._first = self._first or (time.monotonic(), self.done)
        if self._bar:
            shown = {"description": self.what, "rate": self._speed(), "amount": self._amount()}
            self._bar.update(self._task, advance=count, total=self.total, **shown)
        elif time.monotonic() - self._said >= (CELL_EVERY if self._cell else PLAIN_EVERY):
            self._said = time.monotonic()
            if self._cell:
                self._cell.update(self._picture(), raw=True)
            else:
                say(self._line())

    def _rate(self) -> float:
        since, before = self._first
        return (self.done - before) / max(time.monotonic() - since, 1e-9)  # without the time of starting up

    def _amount(self) -> str:
        if self.unit == BYTES:
            return f"{self.done / 1e6:.1f}/{self.total / 1e6:.1f} MB"
        return f"{self.done}/{self.total} {self.unit}"

    def _speed(self) -> str:
        return f"{self._rate() / 1e6:.2f} MB/s" if self.unit == BYTES else f"{self._rate():.2f} {self.unit}/s"

    def _picture(self) -> dict[str, str]:
        """Return a bar as a notebook's cell shows it."""
        from html import escape

        line = self._line()
        bar = f'<progress value="{self.done}" max="{max(self.total, 1)}"></progress>'
        return {"text/html": f"<div>{bar} {escape(line)}</div>", "text/plain": line}

    def _line(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        text = f"{self.what}: {self._amount()}{failed}"
        if self._first and (rate := self._rate()):
            left = int((self.total - self.done) / rate)
            text += f", {self._speed()}, ETA {left // 60}:{left % 60:02d}"
        return text

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._cell:
            self._cell.update(self._picture(), raw=True)
