"""From the clips' results to a published store; nothing half-made ever looks finished."""

import datetime
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import zarr

from . import ffmpeg, logmel, media, store
from .errors import InputError
from .parts import Part, load_parts, merged_versions
from .plan import WORK_PLAN, Output, Plan


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
