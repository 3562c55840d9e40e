"""Run a plan and publish its stores.

A clip's result is kept as soon as it is there, in a file of its own, so a killed job goes on from its finished clips;
when all are there, each feature chunk is written once, by one writer, and the store is published. Serial and parallel
runs, whole or resumed, give the same bytes.
"""

import datetime
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import zarr

from ..console import amount
from ..encoders.images import BATCH_CLIPS
from ..errors import MACHINE_ERRNOS, InputError, MachineError
from ..media import decode as media
from ..media import ffmpeg, logmel
from ..media.ffmpeg import due_to_limit
from ..stores import store
from ..stores.claim import Claim, only_one
from . import reuse
from .extract import Outcome, decode, encode
from .parts import UNREADABLE, Part, merged_versions, say_once
from .plan import WORK_PLAN, Output, Plan, Task, leftovers, recover

Progress = Callable[[Outcome], None]
Executor = Callable[[Sequence[Task]], Iterator[Outcome]]


def run(
    plan: Plan,
    executor: Executor,
    started: Callable[[int], Progress],
    say: Callable[[str], None],
    *,
    max_failures: int | None = None,
    record: Mapping | None = None,
) -> dict[str, float]:
    """Compute what is lacking and publish every store; returns seconds summed over workers, and `total` on the wall.

    ``executor`` runs tasks and yields their outcomes (`serial`, or one of cluster.py). ``started(n)`` is called with
    the number of clips to compute and returns the callback for each outcome. More than ``max_failures`` failed clips
    are an InputError: nothing is published, and what is finished is kept. ``record`` is for the stores' RUN.json.
    """
    begin = time.perf_counter()
    seconds: dict[str, float] = defaultdict(float)
    claims: dict[Path, Claim] = {}  # by work folder
    with ExitStack() as locks, disk_errors(plan.stores):
        for output in plan.outputs:
            if output.finished:
                _sweep(output)
                check_failures(output, max_failures)
                continue
            claims[output.work] = locks.enter_context(only_one(output.lock, output.final.name))
            recover(output)
            if output.finished:  # by whoever held the lock
                continue
            set_aside(output, say)
            prepare(plan, output)
            if plan.retry_failed:
                _drop_failed(output, len(plan.sources))
        reused = reuse.fill(plan)
        if reused:
            say(f"{reused} of {amount(len(plan.sources), 'clip')} taken over from results of the same content and spec")
        tasks = plan.tasks()
        done = sum(output.part(i).is_file() for output in plan.unfinished() for i in range(len(plan.sources)))
        if tasks and done > reused * len(plan.unfinished()):
            say("going on from the results of an earlier run")
        if tasks:
            failures = 0 if max_failures is None else _failed_already(plan, max_failures)
            _compute(tasks, executor, started(len(tasks)), seconds, failures, max_failures, list(claims.values()))
            reuse.fill(plan)  # clips that share their content with one computed just now
        start = time.perf_counter()
        for output in plan.unfinished():
            check = partial(claims[output.work].check, now=True)
            check()
            finish(plan, output, say, max_failures, check, record)
        seconds["write"] += time.perf_counter() - start
    seconds["total"] = time.perf_counter() - begin
    return dict(seconds)


def _compute(
    tasks: Sequence[Task],
    executor: Executor,
    progress: Progress,
    seconds: dict[str, float],
    failures: int,
    max_failures: int | None,
    claims: Sequence[Claim],
) -> None:
    for outcome in executor(tasks):
        for claim in claims:  # whoever took one over works in the same folder: stop before publishing anything
            claim.check()
        for stage, spent in outcome.seconds.items():
            seconds[stage] += spent
        if outcome.note:
            say_once(outcome.note)
        progress(outcome)
        failures += bool(outcome.failed)
        if max_failures is not None and failures > max_failures:
            raise too_many(failures, max_failures, outcome.failed)


def serial(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """One clip after the other in this process; on a GPU as many at once as its batches hold."""
    on_gpu = any(output.device == "cuda" for task in tasks for output in task.outputs)
    size = BATCH_CLIPS if on_gpu else 1
    for first in range(0, len(tasks), size):
        several = tasks[first : first + size]
        yield from encode(several, [decode(task) for task in several])


def _sweep(output: Output) -> None:
    """What a kill just after publishing left, unless somebody is at work there or nothing can be written."""
    if leftovers(output):
        with suppress(InputError, OSError), only_one(output.lock, output.final.name):
            recover(output)


def _drop_failed(output: Output, clips: int) -> None:
    """Results of unfinished work that are to be tried again."""
    for index, part in _parts(output, clips):
        if part.failed or due_to_limit(part.cause):
            output.part(index).unlink()


def _failed_already(plan: Plan, allowed: int) -> int:
    """Clips that failed in an earlier run over the same work. InputError: more than allowed."""
    causes = {}
    for output in plan.unfinished():
        causes |= {index: part.cause for index, part in _parts(output, len(plan.sources)) if part.failed}
    if len(causes) > allowed:
        raise too_many(len(causes), allowed, causes[max(causes)])
    return len(causes)


def _parts(output: Output, clips: int) -> Iterator[tuple[int, Part]]:
    """The results that are there."""
    for index in range(clips):
        with suppress(*UNREADABLE):
            yield index, Part.load(output.part(index))


@contextmanager
def disk_errors(stores: Path) -> Iterator[None]:
    """A disk that is full or broken is the machine's fault, said in a line. MachineError."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE_ERRNOS:
            raise
        raise MachineError(
            f"{stores}: {error.strerror}.\nMake room (or mend the disk) and run the same command again: what is "
            f"finished is kept."
        ) from error


# ---- From the clips' results to a published store; nothing half-made ever looks finished ----


def set_aside(output: Output, say: Callable[[str], None]) -> None:
    """What stands in the store's place and is no finished store makes way; it may be the copy of somebody's work."""
    if output.final.exists() and not store.revision_at(output.final):
        state = "damaged" if (output.final / store.COMPLETE).is_file() else "incomplete"
        aside = output.lock.with_suffix(".set-aside")
        store.remove_tree(aside)
        output.final.rename(aside)
        say(f"note: {output.final} was {state}; it is made anew and the old one kept as {aside}")


def prepare(plan: Plan, output: Output) -> None:
    """The work folder; for a media store its arrays, whose chunks the workers write (one clip is one chunk)."""
    (output.work / "clips").mkdir(parents=True, exist_ok=True)
    for leftover in output.work.rglob("*.partial"):
        leftover.unlink(missing_ok=True)  # of a worker that is only just ending
    contents = ["" if source.fault else source.sha256 for source in plan.sources]
    planned = {"features": output.features, "spec": output.spec, "sha256": contents}
    store.write_json(output.work / WORK_PLAN, planned)
    if output.features != store.MEDIA:
        return
    group = store.open_group(output.work / "store.zarr")
    frames = (media.SEGMENTS, ffmpeg.FRAME_SIZE, ffmpeg.FRAME_SIZE, 3)
    images = (media.SEGMENTS, 3, logmel.N_MELS, logmel.MEL_FRAMES)
    for name, shape, dtype, dimensions in (
        ("frames", frames, "uint8", ("row", "column", "channel")),
        ("logmel", images, "float16", ("channel", "mel", "time")),
    ):
        if name not in group:
            dimensions = ("clip", "segment", *dimensions)
            store.create_array(group, name, (len(plan.sources), *shape), (1, *shape), dtype, dimensions)


def finish(
    plan: Plan,
    output: Output,
    say: Callable[[str], None],
    max_failures: int | None = None,
    check: Callable[[], object] = lambda: None,
    record: Mapping | None = None,
) -> None:
    """From the clips' parts to a published store; the parts go when it stands.

    ``check`` is asked right before it is published, `store.publish`; ``record`` goes into its RUN.json.
    InputError: more clips failed than allowed. A next revision in which nothing changed is not published.
    """
    built = output.work / "store.zarr"
    group = store.open_group(built)
    table, present, made_by = _gather(plan, output, group)
    failed = int((table["status"] == store.FAILED).sum())
    if max_failures is not None and failed > max_failures:
        raise too_many(failed, max_failures, str(table["error"][np.argmax(table["status"] == store.FAILED)]))
    if output.revision > 1 and _unchanged(output, table):
        say(f"{output.final.name}: the same clips failed again, as before; revision {output.revision - 1} stays")
        store.remove_tree(output.work)
        return
    collection = plan.collection
    store.write_table(group, table, present)
    weights = {"name": output.weights.name, "hash": output.weights_hash} if output.weights else None
    described = (collection.dataset, output.features, output.fingerprint, list(collection.classes), output.spec)
    group.attrs.put(store.attributes(*described, weights, made_by, collection.synthetic, output.revision))
    if record is not None:
        store.write_json(built / store.RUN, {**record, "finished": now()})
    replaced = output.replaced if output.revision > 1 else None
    store.publish(built, output.final, replaced, check)
    if replaced:
        store.remove_tree(replaced)
    store.remove_tree(output.work)


def now() -> str:
    """For RUN.json."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def check_failures(output: Output, max_failures: int | None) -> None:
    """InputError: a finished store has more failed clips than allowed."""
    if max_failures is None:
        return
    failed = int((store.FeatureStore.open(output.final).status == store.FAILED).sum())
    if failed > max_failures:
        raise InputError(
            f"{failed} clips of {output.final.name} failed, more than --max-failures {max_failures}.\n"
            "It is finished: try them again with --retry-failed, or allow more."
        )


def too_many(failed: int, allowed: int, cause: str) -> InputError:
    """More clips failed than `--max-failures` allows."""
    return InputError(
        f"{failed} clips failed, more than --max-failures {allowed}; the latest: {cause}.\n"
        f"Nothing was published; mend what is wrong and run again with --retry-failed, or allow more."
    )


def load_parts(output: Output, indexes: Sequence[int]) -> list[Part]:
    """The clips' results. InputError: some are unreadable; they are dropped, so that the next run makes them again."""
    parts, bad = [], []
    for index in indexes:
        try:
            parts.append(Part.load(output.part(index)))
        except UNREADABLE:
            output.part(index).unlink(missing_ok=True)
            bad.append(index)
    if bad:
        raise InputError(f"{len(bad)} unfinished results in {output.work} were unreadable and are gone.\nRun again.")
    return parts


def _gather(plan: Plan, output: Output, group: zarr.Group) -> tuple[dict[str, Sequence], np.ndarray, dict[str, str]]:
    """The clips' results chunk by chunk into the feature arrays; the table, presence and versions."""
    clips, count = plan.collection.clips, len(plan.sources)
    present = np.zeros((count, len(store.MODALITIES)), bool)
    status, error = np.empty(count, object), np.empty(count, object)
    duration = np.zeros(count)
    made_by: dict[str, str] = {}
    arrays = _feature_arrays(group, output, count) if output.weights else {}
    for first in range(0, count, store.FEATURE_CHUNK):
        parts = load_parts(output, range(first, min(first + store.FEATURE_CHUNK, count)))
        rows = slice(first, first + len(parts))
        present[rows] = [part.present for part in parts]
        status[rows] = [store.FAILED if part.failed else store.DONE for part in parts]
        error[rows] = [part.cause for part in parts]
        duration[rows] = [part.duration for part in parts]
        made_by = merged_versions([made_by, *(part.versions for part in parts)])
        for modality, array in arrays.items():
            array[rows] = _block(parts, modality, array.shape[1:])
    classes = list(plan.collection.classes)
    table = {
        "clip_id": [clip.clip_id for clip in clips],
        "label": [classes.index(clip.label) for clip in clips],
        "subject": [clip.subject for clip in clips],
        "sha256": list(plan.hashes),
        "status": status,
        "error": error,
        "duration": duration,
    }
    for name, _ in clips[0].columns:
        table[name] = [dict(clip.columns)[name] for clip in clips]
    return table, present, made_by


def _block(parts: Sequence[Part], modality: str, shape: tuple[int, ...]) -> np.ndarray:
    block = np.full((len(parts), *shape), np.nan, np.float16)
    for row, part in enumerate(parts):
        if modality in part.arrays:
            block[row] = part.arrays[modality]
    return block


def _unchanged(output: Output, table: dict[str, Sequence]) -> bool:
    before = store.FeatureStore.open(output.final)
    return bool((before.status == table["status"]).all() and (before.error == table["error"]).all())


def _feature_arrays(group: zarr.Group, output: Output, clips: int) -> dict[str, zarr.Array]:
    shape = (clips, media.SEGMENTS, output.dimension)
    chunks = (min(store.FEATURE_CHUNK, clips), *shape[1:])
    dimensions = ("clip", "segment", "feature")
    return {m: store.create_array(group, m, shape, chunks, "float16", dimensions) for m in store.MODALITIES}
