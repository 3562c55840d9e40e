"""The whole training job: check, say what was resolved, run the grid with progress, keep results and report."""

import itertools
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from ...pipeline.console import Progress, amount, say, writable_folder
from ...pipeline.encoders.images import keep_freed_memory
from ...pipeline.errors import InputError
from ...pipeline.stores.claim import only_one
from ...pipeline.stores.store import MEDIA, FeatureStore
from ..data import Clips
from ..end_to_end.end_to_end import EndToEnd, MediaClips
from ..report.report import write_report
from . import experiments
from . import run_folder as kept


def train(
    stores: Sequence[FeatureStore],
    out: Path | None,
    *,
    replace: bool = False,
    end_to_end: EndToEnd | None = None,
    **grid,
) -> tuple[dict, Path]:
    """Run a grid (arguments as for `experiments.run_grid`) into a folder; returns the results document and the folder.

    out: the folder, a new runs/DATE-NAME by default. replace: results that are there already make way. end_to_end: how
    a backbone is trained too, over media stores; what an earlier run of the same into the folder finished is kept.
    InputError: stores of the wrong kind, results of another run in the folder, or no folder can be there.
    """
    goes_on = end_to_end is not None and out is not None
    if end_to_end is None:
        check_features(stores)
    else:
        end_to_end.check(grid["settings"], grid.get("save_weights", False))
    writable_folder(out or Path("runs"), "--out")
    if out and (out / kept.RESULTS).exists() and not replace:
        earlier = kept.take_up(out, None).values() if goes_on else ()
        if not goes_on or any(not result.get("end_to_end") for result in earlier):
            raise InputError(f"{out} holds the results of another run.\nName another folder with --out, or remove it.")
    keep_freed_memory()
    name = "-".join(dict.fromkeys([store.dataset for store in stores] + list(grid["methods"])))[:60]
    for store in stores:
        weights = "" if end_to_end else f", weights {store.weights.get('name')}"
        say(f"store {store.path}: {amount(len(store.clip_id), 'clip')}{weights}")
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in vars(grid["settings"]).items())
    say(f"device {experiments.choose_device(grid['device'])}; {grid['seeds']} seeds; {settings}")
    if end_to_end:
        say("end to end: " + ", ".join(f"{n.replace('_', ' ')} {v}" for n, v in end_to_end.describe().items()))
    how = {"clips_of": clips_as(end_to_end), "resume": goes_on, "command": shlex.join(["mlemiss", *sys.argv[1:]])}
    with (
        _own_folder(name) if out is None else nullcontext(out) as folder,
        only_one(folder / ".lock", str(folder)) if goes_on else nullcontext(),
    ):
        with shown_progress("train") as report:
            document = experiments.run_grid(stores, **grid, **how, out=folder, progress=report, say=say)
        write_report([document], folder / "report.html")
    return document, folder


@contextmanager
def _own_folder(name: str) -> Iterator[Path]:
    """A new folder runs/DATE-NAME, of no other run that began in this second; it goes where it stays empty."""
    runs, first = Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    runs.mkdir(exist_ok=True)
    for number in itertools.count(1):
        out = runs / (first if number == 1 else f"{first}-{number}")
        with suppress(FileExistsError):
            out.mkdir()
            break
    try:
        yield out
    finally:
        with suppress(OSError):  # not empty: there are results
            out.rmdir()


def clips_as(end_to_end: EndToEnd | None) -> Callable[[FeatureStore], Clips]:
    """What a store's clips are trained as: on cached features, or on media with a backbone."""
    return Clips if end_to_end is None else partial(MediaClips, options=end_to_end)


def check_features(stores: Sequence[FeatureStore]) -> None:
    """InputError: a media store."""
    if media := [store.path.name for store in stores if store.features == MEDIA]:
        raise InputError(f"{media[0]} holds frames and log-Mels, not features.\nName a store of a backbone's features.")


@contextmanager
def shown_progress(what: str) -> Iterator[Callable[[experiments.Progress], None]]:
    """A progress bar of a grid; what it gives is told how far the grid is."""
    bar = Progress(what, 0, "clip epochs")

    def report(now: experiments.Progress) -> None:
        bar.what, bar.total = now.what, now.total
        bar.advance(now.done - bar.done)

    with bar:
        yield report
