"""Progress on standard error: a bar with rate and ETA on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

PLAIN_EVERY = 10.0  # seconds between plain lines
BYTES = "bytes"  # a unit that is shown in MB


def printable(text: object) -> str:
    """One line that a terminal only shows, whatever somebody else's store says."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def amount(number: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def say(text: str) -> None:
    """A line or several on standard error, where logs and progress go."""
    print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


class Progress:
    """Counts finished items; use as a context manager and call `advance` for each."""

    def __init__(self, what: str, total: int, unit: str = "clips"):
        self.what, self.total, self.unit = what, total, unit
        self.done = self.failed = 0
        self._said = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first items were finished, and how many: start-up is
        self._bar = None  # no part of the rate

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich import progress as rich_progress
            from rich.console import Console
            from rich.table import Column

            columns = (  # where the terminal is narrow the description is cut, never the rest
                rich_progress.TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
                rich_progress.BarColumn(bar_width=10),
                rich_progress.TextColumn("{task.fields[amount]}"),
                rich_progress.TextColumn("{task.fields[rate]}"),
                rich_progress.TimeRemainingColumn(),
            )
            self._bar = rich_progress.Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
            self._task = self._bar.add_task(self.what, total=self.total, rate="", amount=self._amount())
            self._bar.start()
        return self

    def advance(self, count: int = 1, failed: bool = False) -> None:
        """``count`` more items are finished."""
        self.done += count
        self.failed += failed
        self._first = self._first or (time.monotonic(), self.done)
        if self._bar:
            shown = {"description": self.what, "rate": self._speed(), "amount": self._amount()}
            self._bar.update(self._task, advance=count, total=self.total, **shown)
        elif time.monotonic() - self._said >= PLAIN_EVERY:
            self._said = time.monotonic()
            self._print_line()

    def _rate(self) -> float:
        since, before = self._first
        return (self.done - before) / max(time.monotonic() - since, 1e-9)

    def _amount(self) -> str:
        if self.unit == BYTES:
            return f"{self.done / 1e6:.1f}/{self.total / 1e6:.1f} MB"
        return f"{self.done}/{self.total} {self.unit}"

    def _speed(self) -> str:
        return f"{self._rate() / 1e6:.2f} MB/s" if self.unit == BYTES else f"{self._rate():.2f} {self.unit}/s"

    def _print_line(self) -> None:
        failed = f", {self.failed} failed" if self.failed else ""
        text = f"{self.what}: {self._amount()}{failed}"
        if rate := self._rate():
            left = int((self.total - self.done) / rate)
            text += f", {self._speed()}, ETA {left // 60}:{left % 60:02d}"
        say(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
