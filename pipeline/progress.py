"""Progress on standard error: a bar with rate and ETA on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

PLAIN_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts finished items; use as a context manager and call `advance` for each."""

    def __init__(self, what: str, total: int, unit: str = "clips"):
        self.what, self.total, self.unit = what, total, unit
        self.done = self.failed = 0
        self._start = self._said = time.monotonic()
        self._bar = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich import progress as rich_progress
            from rich.console import Console

            columns = (
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[rate]}"),
                rich_progress.TimeRemainingColumn(),
            )
            self._bar = rich_progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.what, total=self.total, rate="")
            self._bar.start()
        return self

    def advance(self, count: int = 1, failed: bool = False) -> None:
        """``count`` more items are finished."""
        self.done += count
        self.failed += failed
        if self._bar:
            self._bar.update(self._task, advance=count, rate=f"{self._rate():.2f} {self.unit}/s")
        elif time.monotonic() - self._said >= PLAIN_EVERY:
            self._said = time.monotonic()
            self._print_line()

    def _rate(self) -> float:
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def _print_line(self) -> None:
        left = (self.total - self.done) / max(self._rate(), 1e-9)
        failed = f", {self.failed} failed" if self.failed else ""
        text = f"{self.what}: {self.done}/{self.total} {self.unit}{failed}, {self._rate():.2f} {self.unit}/s, ETA"
        print(f"{text} {int(left) // 60}:{int(left) % 60:02d}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
