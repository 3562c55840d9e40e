"""Run a plan: take the stores' locks, compute the results that are lacking, publish the stores.

A clip's result is saved as soon as it is computed, in a file of its own, so a killed run resumes from its finished
clips. When all are there, each feature chunk is written once, by one writer, and the store is published. Serial and
parallel runs, whole or resumed, give the same bytes.
"""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import zarr

from ..console import amount, say, say_once
from ..encoders.images import BATCH_CLIPS
from ..errors import MACHINE_ERRNOS, InputError, MachineError
from ..files import check_work, remove_tree, work_folder, write_json
from ..media.process import due_to_limit
from ..stores import store
from ..stores.claim import Claim, only_one
from ..stores.schema import BOX, FACE_BOX, FEATURES, MEDIA_ARRAYS, SOUND, WAVEFORM, merged_versions
from . import reuse
from .extract import Executor, Outcome, decode, encode, wants_gpu
from .parts import UNREADABLE, WAVEFORM_CHUNK, WAVEFORM_ROOM, Part, samples_of
from .plan import Output, Plan, Task, leftovers, recover


@contextmanager
def claimed(plan: Plan, max_failures: int | None = None) -> Iterator[list[Claim]]:
    """Hold the locks of all unfinished stores, with their work folders ready.

    Args:
        plan: the run.
        max_failures: failed clips that are allowed in a store that is finished already.

    Yields:
        The claims, to check before anything is published.

    Raises:
        InputError: another process makes one of the stores; too many failed clips.
        MachineError: the disk is full or broken.
    """
    claims = []
    with ExitStack() as locks, disk_errors(plan.stores):
        for output in plan.outputs:
            if output.finished:
                _sweep(output)
                _check_failures(output, max_failures)
                continue
            claims.append(locks.enter_context(only_one(output.lock, output.final.name)))
            recover(output)
            if not output.finished:  # by the process that held the lock before
                _set_aside(output)
                _prepare(plan, output)
        yield claims


def lacking(plan: Plan) -> list[Task]:
    """Take over the results that are available, and return the tasks that are left; call it while `claimed`."""
    resumed = any(output.part(key).is_file() for output in plan.unfinished() for key in plan.rows_of(output))
    if reused := reuse.fill(plan):
        say(f"{reused} of {amount(len(plan.keys), 'clip')} taken over from results of the same content and spec")
    tasks = plan.tasks()
    if tasks and resumed:
        say("going on from the results of an earlier run")
    return tasks


def run(
    plan: Plan, tasks: Sequence[Task], executor: Executor, claims: Sequence[Claim], max_failures: int | None = None
) -> Iterator[Outcome]:
    """Compute the results that are lacking, and yield the outcome of each task as it ends.

    Args:
        plan: the run.
        tasks: from `lacking`.
        executor: runs tasks and yields their outcomes: `serial`, or an executor of cluster.py.
        claims: from `claimed`; the run stops if another process took one over.
        max_failures: failed clips that are allowed, those of an earlier run over the same work included.

    Raises:
        InputError: too many failed clips; a claim was taken over.
    """
    if not tasks:
        return
    failures = 0 if max_failures is None else _failed_already(plan, max_failures)
    for outcome in executor(tasks):
        for claim in claims:
            claim.check()
        if outcome.note:
            say_once(outcome.note)
        yield outcome
        failures += len(outcome.rows) if outcome.failed else 0
        if max_failures is not None and failures > max_failures:
            path = plan.collection.clips[outcome.rows[0]].path
            raise _too_many(failures, max_failures, f"{path}: {outcome.failed}")


def serial(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Work on one clip after the other in this process; on a GPU on as many at once as its batches hold."""
    size = BATCH_CLIPS if wants_gpu(tasks) else 1
    for first in range(0, len(tasks), size):
        several = tasks[first : first + size]
        yield from encode(several, [decode(task) for task in several])


def publish(
    plan: Plan, claims: Sequence[Claim], max_failures: int | None = None, record: Mapping | None = None
) -> None:
    """Build every unfinished store from its parts and publish it; ``record`` is for its RUN.json.

    Raises:
        InputError: too many failed clips; a claim was taken over.
    """

    def check() -> None:
        for claim in claims:
            claim.check(now=True)

    for output in plan.unfinished():
        check()
        finish(plan, output, check, max_failures, record)


@contextmanager
def disk_errors(stores: Path) -> Iterator[None]:
    """Raise MachineError, with advice, where the disk is full or broken."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE_ERRNOS:
            raise
        raise MachineError(
            f"{stores}: {error.strerror}.\nMake room (or mend the disk) and run the same command again: what is "
            f"finished is kept."
        ) from error


# ---- Before the first clip ----


def _sweep(output: Output) -> None:
    """Remove the work that a kill just after publishing left, unless another process is at work there."""
    if leftovers(output):
        with suppress(InputError, OSError), only_one(output.lock, output.final.name):
            recover(output)


def _set_aside(output: Output) -> None:
    """Move an unfinished or damaged store out of the way; it may be a copy of somebody's work, so it is kept."""
    if output.final.exists() and not store.revision_at(output.final):
        state = "damaged" if (output.final / store.COMPLETE).is_file() else "incomplete"
        aside = output.lock.with_suffix(".set-aside")
        remove_tree(aside)
        output.final.rename(aside)
        say(f"note: {output.final} was {state}; it is made again and the old one kept as {aside}")


def _prepare(plan: Plan, output: Output) -> None:
    """Make the work folder; of a media store the arrays, whose chunks the workers write (one clip is one chunk)."""
    work_folder(output.work / "clips", plan.stores)
    check_work(output.work)
    for partial in output.work.rglob("*.partial"):
        partial.unlink(missing_ok=True)  # of a worker that is just ending
    group = store.open_group(output.work / "store.zarr")
    # shows other runs what they can take over
    group.attrs.put({"features": output.features, "spec": output.spec, "modalities": list(output.modalities)})
    if output.features == store.MEDIA:
        for name, shape in output.shapes.items():
            if name not in group:
                dtype, dimensions = MEDIA_ARRAYS[name]
                store.create_array(group, name, (len(plan.keys), *shape), (1, *shape), dtype, dimensions)
        if output.waveform and WAVEFORM not in group:
            shape = (len(plan.keys), WAVEFORM_ROOM)
            store.create_array(group, WAVEFORM, shape, (1, WAVEFORM_CHUNK), *SOUND)
        elif output.waveform:  # the work of a version that left room for its own limit alone
            store.cut_array(group[WAVEFORM], WAVEFORM_ROOM)
    if plan.retry_failed:
        for key, part in _parts(plan, output):
            if part.failed or due_to_limit(part.cause):
                output.part(key).unlink()


def _parts(plan: Plan, output: Output) -> Iterator[tuple[str, Part]]:
    """Read the results that are there."""
    for key in plan.rows_of(output):
        with suppress(*UNREADABLE):
            yield key, Part.load(output.part(key))


# ---- Too many failed clips ----


def _failed_already(plan: Plan, allowed: int) -> int:
    """Count the clips that failed in an earlier run over the same work. InputError: more than allowed."""
    causes = {}
    for output in plan.unfinished():
        rows = plan.rows_of(output)
        causes |= {row: part.cause for key, part in _parts(plan, output) if part.failed for row in rows[key]}
    if len(causes) > allowed:
        row = max(causes)
        raise _too_many(len(causes), allowed, f"{plan.collection.clips[row].path}: {causes[row]}")
    return len(causes)


def _check_failures(output: Output, max_failures: int | None) -> None:
    if max_failures is None:
        return
    failed = int((~store.FeatureStore.open(output.final).done).sum())
    if failed > max_failures:
        raise InputError(
            f"{failed} clips of {output.final.name} failed, more than --max-failures {max_failures}.\n"
            "It is finished: try them again with --retry-failed, or allow more."
        )


def _too_many(failed: int, allowed: int, cause: str) -> InputError:
    return InputError(
        f"{failed} clips failed, more than --max-failures {allowed}; the latest: {cause}.\n"
        f"Nothing was published; mend what is wrong and run again with --retry-failed, or allow more."
    )


# ---- From the clips' results to a published store; readers never see an unfinished store as finished ----


def finish(
    plan: Plan,
    output: Output,
    check: Callable[[], object] = lambda: None,
    max_failures: int | None = None,
    record: Mapping | None = None,
) -> None:
    """Build one store from its parts, publish it and remove its parts.

    A next revision in which nothing changed is not published.

    Args:
        plan: the run.
        output: the store.
        check: called right before the store is moved to its place, `store.publish`.
        max_failures: failed clips that are allowed.
        record: for RUN.json.

    Raises:
        InputError: too many failed clips; unreadable parts.
    """
    built = output.work / "store.zarr"
    group = store.open_group(built)
    table, present, versions = _gather(plan, output, group)
    failed = int((table["status"] == store.CLIP_FAILED).sum())
    if max_failures is not None and failed > max_failures:
        row = int(np.argmax(table["status"] == store.CLIP_FAILED))
        raise _too_many(failed, max_failures, f"{plan.collection.clips[row].path}: {table['error'][row]}")
    if output.revision > 1 and _unchanged(output, table):
        say(f"{output.final.name}: the same clips failed again, as before; revision {output.revision - 1} stays")
        remove_tree(output.work)
        return
    collection = plan.collection
    store.write_table(group, table, present, output.modalities)
    if output.waveform and not output.weights:
        store.cut_array(group[WAVEFORM], max(1, samples_of(table["duration"].max())))
    weights = {"name": output.weights.name, "hash": output.weights_hash} if output.weights else None
    described = (collection.dataset, output.features, output.fingerprint, list(collection.classes), output.spec)
    more = (collection.synthetic, output.revision, output.modalities)
    group.attrs.put(store.attributes(*described, weights, versions, *more))
    if record is not None:
        write_json(built / store.RUN, {**record, "finished": now()})
    replaced = output.replaced if output.revision > 1 else None
    store.publish(built, output.final, replaced, check)
    if replaced:
        remove_tree(replaced)
    remove_tree(output.work)


def now() -> str:
    """Return the time, for RUN.json."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def load_parts(output: Output, keys: Sequence[str]) -> list[Part]:
    """Read the results of several clips.

    Raises:
        InputError: some are unreadable; they are removed, so that the next run computes them again.
    """
    parts, bad = [], set()
    for key in keys:
        try:
            parts.append(Part.load(output.part(key)))
        except UNREADABLE:
            output.part(key).unlink(missing_ok=True)
            bad.add(key)
    if bad:
        raise InputError(f"{len(bad)} unfinished results in {output.work} were unreadable and are gone.\nRun again.")
    return parts


def _gather(plan: Plan, output: Output, group: zarr.Group) -> tuple[dict[str, Sequence], np.ndarray, dict[str, str]]:
    """Write the clips' features chunk by chunk; return the table, presence (bool [clip, modality]) and versions."""
    clips, count = plan.collection.clips, len(plan.keys)
    keys = plan.keys_of(output)
    present = np.zeros((count, len(output.modalities)), bool)
    status, error = np.empty(count, object), np.empty(count, object)
    duration = np.zeros(count)
    versions: dict[str, str] = {}
    arrays = _feature_arrays(group, output, count) if output.weights else {}
    boxes = np.full((count, 4), np.nan, np.float32)
    for first in range(0, count, store.FEATURE_CHUNK):
        parts = load_parts(output, keys[first : first + store.FEATURE_CHUNK])
        rows = slice(first, first + len(parts))
        present[rows] = [part.present for part in parts]
        status[rows] = [store.CLIP_FAILED if part.failed else store.CLIP_DONE for part in parts]
        error[rows] = [part.cause for part in parts]
        duration[rows] = [part.duration for part in parts]
        boxes[rows] = [np.full(4, np.nan) if part.box is None else part.box for part in parts]
        versions = merged_versions([versions, *(part.versions for part in parts)])
        for modality, array in arrays.items():
            absent = np.full(array.shape[1:], np.nan, np.float16)
            array[rows] = np.stack([part.arrays.get(modality, absent) for part in parts])
    if output.faces:
        store.create_array(group, FACE_BOX, boxes.shape, boxes.shape, *BOX)[:] = boxes
    classes = list(plan.collection.classes)
    table = {
        "clip_id": [clip.clip_id for clip in clips],
        "label": [classes.index(clip.label) for clip in clips],
        "subject": [clip.subject for clip in clips],
        "sha256": list(keys) if output.reads_text else [source.sha256 for source in plan.sources],
        "status": status,
        "error": error,
        "duration": duration,
    }
    for name, _ in clips[0].columns:
        if name not in output.modalities:  # as `text` may be, whose features have that name
            table[name] = [dict(clip.columns)[name] for clip in clips]
    return table, present, versions


def _unchanged(output: Output, table: dict[str, Sequence]) -> bool:
    before = store.FeatureStore.open(output.final)
    return bool((before.status == table["status"]).all() and (before.error == table["error"]).all())


def _feature_arrays(group: zarr.Group, output: Output, clips: int) -> dict[str, zarr.Array]:
    rows, (dtype, dimensions) = min(store.FEATURE_CHUNK, clips), FEATURES
    return {
        modality: store.create_array(group, modality, (clips, *shape), (rows, *shape), dtype, dimensions)
        for modality, shape in output.shapes.items()
    }
