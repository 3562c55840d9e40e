"""Run a plan clip by clip, serially or on Dask, and publish its stores.

One decode pass a clip serves the media store and every backbone. A clip's result is kept as soon as it is there, in
a file of its own, so a killed job goes on from its finished clips; when all are there, each feature chunk is written
once, by one writer, and the store is published. Serial and parallel runs, whole or resumed, give the same bytes.
"""

import os
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import zarr

from . import backbones, ffmpeg, logmel, media, store
from .errors import InputError, MachineError
from .ffmpeg_process import ffmpeg_version
from .lock import only_one
from .memory import keep_freed_memory
from .plan import Output, Plan, Task

Progress = Callable[["Outcome"], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one clip: the cause if it failed in any store, and the seconds it took."""

    index: int
    failed: str = ""
    seconds: dict[str, float] = field(default_factory=dict)  # decode, cnn, write


@dataclass(frozen=True)
class Part:
    """One clip's result in one store."""

    present: tuple[bool, bool]  # visual, audio
    cause: str = ""  # why the clip failed or lacks a modality
    failed: bool = False
    duration: float = 0.0  # seconds
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # modality -> float16 [segment, feature]

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        with temporary.open("wb") as file:
            facts = {"present": self.present, "failed": self.failed, "duration": self.duration}
            np.savez(file, cause=np.array(self.cause), **facts, **self.arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Part":
        with np.load(path) as saved:
            arrays = {name: saved[name] for name in store.MODALITIES if name in saved}
            present, duration = tuple(saved["present"].tolist()), float(saved["duration"])
            return cls(present, str(saved["cause"]), bool(saved["failed"]), duration, arrays)


# ---- one clip, in a worker --------------------------------------------------------------------------------------


def process(task: Task) -> Outcome:
    """Decode one clip (or read its cached media), compute what its stores lack, keep each result at once.

    Whatever is wrong with the clip becomes its recorded cause; what is wrong with the machine (a full disk, no
    ffmpeg) is raised.
    """
    keep_freed_memory()
    backbones.use_one_thread()
    seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[stage] += time.perf_counter() - start

    with timed("decode"):
        clip = read_media(task)
    failed = ""
    for output in task.outputs:
        with timed("cnn"):
            part = compute(output, clip)
        with timed("write"):
            if output.features == store.MEDIA and not part.failed:
                _write_media(output, task.index, clip)
            part.save(output.part(task.index))
        failed = part.cause if part.failed else failed
    return Outcome(task.index, failed, dict(seconds))


def read_media(task: Task) -> media.ClipMedia:
    """The clip's frames and log-Mels, from the media store where there is one, else decoded."""
    if task.media_store:
        return _cached_media(task.media_store, task.index)
    return media.read_clip(task.path, timeout=task.timeout)


def compute(output: Output, clip: media.ClipMedia) -> Part:
    """What one store keeps of one clip."""
    cause = _cause(clip)
    present = (clip.frames is not None, clip.logmel is not None)
    if not any(present):
        return Part((False, False), cause, True, clip.duration)
    if output.weights is None:
        return Part(present, cause, False, clip.duration)
    backbone = backbones.load_backbone(output.features, output.weights, output.precision, output.device)
    if backbone.spec.weights_hash != output.weights_hash:
        raise InputError(
            f"the weights of {output.features} have hash {backbone.spec.weights_hash} on this worker and "
            f"{output.weights_hash} in the plan.\nGive every worker the same weights file and the same versions."
        )
    arrays = {}
    try:
        if clip.frames is not None:
            arrays["visual"] = backbone.visual(clip.frames)
        if clip.logmel is not None:
            arrays["audio"] = backbone.audio(clip.logmel)
    except FloatingPointError as error:
        return Part((False, False), str(error), True, clip.duration)
    return Part(present, cause, False, clip.duration, arrays)


def _cause(clip: media.ClipMedia) -> str:
    """Why modalities are missing, in one line; as recorded where the media come from a store."""
    causes = sorted(clip.causes.items(), reverse=True)
    return "; ".join(f"{modality}: {why}" if modality else why for modality, why in causes)


@lru_cache(maxsize=1)
def _open_media(path: Path) -> store.FeatureStore:
    return store.FeatureStore.open(path)


def _cached_media(path: Path, index: int) -> media.ClipMedia:
    """The clip from a media store: the same bytes that decoding gave."""
    opened = _open_media(path)
    visual, audio = opened.present[index]
    return media.ClipMedia(
        frames=opened.group["frames"][index] if visual else None,
        logmel=opened.group["logmel"][index] if audio else None,
        causes={"": str(opened.error[index])},  # as recorded, of one or both modalities
        duration=float(opened.duration[index]),
    )


def _write_media(output: Output, index: int, clip: media.ClipMedia) -> None:
    group = store.open_group(output.work / "store.zarr")
    shape = group["frames"].shape[1:]
    group["frames"][index] = clip.frames if clip.frames is not None else np.zeros(shape, np.uint8)
    shape = group["logmel"].shape[1:]
    group["logmel"][index] = clip.logmel if clip.logmel is not None else np.full(shape, np.nan, np.float16)


# ---- all clips --------------------------------------------------------------------------------------------------


def run(
    plan: Plan,
    workers: int,
    started: Callable[[int], Progress],
    say: Callable[[str], None],
) -> dict[str, float]:
    """Compute what is lacking and publish every store; returns seconds summed over workers, and `total` on the wall.

    ``workers``: processes with one CNN thread each; 0 is the serial twin in this process. ``started(n)`` is called
    with the number of clips to do and returns the callback for each outcome.
    """
    begin = time.perf_counter()
    for output in plan.outputs:
        if output.finished:
            store.remove_tree(output.work)  # a kill just after publishing left it
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as locks:
        for output in plan.unfinished():
            locks.enter_context(only_one(output.work.with_suffix(".lock"), output.final.name))
            _set_aside(output, say)
            _prepare(output, len(plan.collection.clips))
        tasks = plan.tasks()
        if tasks and len(tasks) < len(plan.collection.clips):
            say(f"{len(plan.collection.clips) - len(tasks)} of {len(plan.collection.clips)} clips are done already")
        if tasks:
            progress = started(len(tasks))
            execute = _serial(tasks) if workers == 0 else _on_dask(tasks, workers, say)
            for outcome in execute:
                for stage, spent in outcome.seconds.items():
                    seconds[stage] += spent
                progress(outcome)
        start = time.perf_counter()
        for output in plan.unfinished():
            _finish(plan, output)
        seconds["write"] += time.perf_counter() - start
    seconds["total"] = time.perf_counter() - begin
    return dict(seconds)


def _serial(tasks: Sequence[Task]) -> Iterator[Outcome]:
    yield from map(process, tasks)


def _on_dask(tasks: Sequence[Task], workers: int, say: Callable[[str], None]) -> Iterator[Outcome]:
    """All tasks on local worker processes, a few in flight per worker; the scheduler listens on loopback only.

    A clip that took its worker down is tried once more, alone, and then recorded as failed.
    """
    import dask
    from distributed import Client, LocalCluster, as_completed
    from distributed.scheduler import KilledWorker

    settings = {
        "distributed.scheduler.allowed-failures": 0,  # which of a dead worker's clips was to blame is found out below
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.logging.distributed": "error",
    }
    cluster_options = {"threads_per_worker": 1, "processes": True, "host": "127.0.0.1", "silence_logs": 50}
    # Dask would pause a worker for good near its share of the memory, as freed memory is kept for the next clip.
    cluster_options["memory_limit"] = 0
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=workers, dashboard_address="127.0.0.1:0", **cluster_options) as cluster,
        Client(cluster) as client,
    ):
        say(f"{workers} workers; dashboard at {cluster.dashboard_link}")
        waiting = iter(tasks)
        submitted = {}

        def submit(task: Task):
            future = client.submit(process, task, pure=False, retries=0)
            submitted[future] = task
            return future

        running = as_completed([submit(task) for task in islice(waiting, 2 * workers)])
        suspects, survived = [], 0
        for future in running:
            task = submitted.pop(future)
            try:
                yield future.result()
                survived += 1
            except KilledWorker:
                suspects.append(task)
            finally:
                future.release()
            if (following := next(waiting, None)) is not None:
                running.add(submit(following))
        for task in suspects:
            try:
                yield submit(task).result()
                survived += 1
            except KilledWorker:
                if not survived:
                    raise MachineError(
                        "worker processes die on whatever clip they are given, for lack of memory perhaps.\n"
                        "Take fewer with --workers; finished clips are kept."
                    ) from None
                cause = "the worker process died on this clip twice (out of memory?)"
                for output in task.outputs:
                    Part((False, False), cause, failed=True).save(output.part(task.index))
                yield Outcome(task.index, cause)


def _set_aside(output: Output, say: Callable[[str], None]) -> None:
    """Whatever unfinished thing stands in the store's place makes way; it may be the copy of somebody's work."""
    if output.final.exists():
        aside = output.work.with_suffix(".set-aside")
        store.remove_tree(aside)
        output.final.rename(aside)
        say(f"note: {output.final} was incomplete; it is made anew and the old one kept as {aside}")


def _prepare(output: Output, clips: int) -> None:
    """The work folder; for a media store its arrays, whose chunks the workers write (one clip is one chunk)."""
    (output.work / "clips").mkdir(parents=True, exist_ok=True)
    for leftover in output.work.rglob("*.partial"):
        leftover.unlink()
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
            store.create_array(group, name, (clips, *shape), (1, *shape), dtype, dimensions)


def _finish(plan: Plan, output: Output) -> None:
    """From the clips' parts to a published store; the parts go when it stands."""
    built = output.work / "store.zarr"
    collection = plan.collection
    count = len(collection.clips)
    group = store.open_group(built)
    present = np.zeros((count, len(store.MODALITIES)), bool)
    status = np.empty(count, object)
    error = np.empty(count, object)
    duration = np.zeros(count)
    arrays = _feature_arrays(group, output, count) if output.weights else {}
    for first in range(0, count, store.FEATURE_CHUNK):
        parts = _load_parts(output, range(first, min(first + store.FEATURE_CHUNK, count)))
        rows = slice(first, first + len(parts))
        present[rows] = [part.present for part in parts]
        status[rows] = [store.FAILED if part.failed else store.DONE for part in parts]
        error[rows] = [part.cause for part in parts]
        duration[rows] = [part.duration for part in parts]
        for modality, array in arrays.items():
            block = np.full((len(parts), *array.shape[1:]), np.nan, np.float16)
            for row, part in enumerate(parts):
                if modality in part.arrays:
                    block[row] = part.arrays[modality]
            array[rows] = block
    classes = list(collection.classes)
    table = {
        "clip_id": [clip.clip_id for clip in collection.clips],
        "label": [classes.index(clip.label) for clip in collection.clips],
        "subject": [clip.subject for clip in collection.clips],
        "sha256": list(plan.hashes),
        "status": status,
        "error": error,
        "duration": duration,
    }
    for name, _ in collection.clips[0].columns:
        table[name] = [dict(clip.columns)[name] for clip in collection.clips]
    store.write_table(group, table, present)
    weights = {"name": output.weights.name, "hash": output.weights_hash} if output.weights else None
    described = (collection.dataset, output.features, output.fingerprint, classes, output.spec)
    group.attrs.put(store.attributes(*described, weights, versions(), collection.synthetic))
    store.publish(built, output.final)
    store.remove_tree(output.work)


def _feature_arrays(group: zarr.Group, output: Output, clips: int) -> dict[str, zarr.Array]:
    shape = (clips, media.SEGMENTS, output.dimension)
    chunks = (min(store.FEATURE_CHUNK, clips), *shape[1:])
    dimensions = ("clip", "segment", "feature")
    return {m: store.create_array(group, m, shape, chunks, "float16", dimensions) for m in store.MODALITIES}


def _load_parts(output: Output, indexes: Sequence[int]) -> list[Part]:
    """The clips' results. InputError: some are unreadable; they are dropped, so that the next run makes them again."""
    parts, bad = [], []
    for index in indexes:
        try:
            parts.append(Part.load(output.part(index)))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            output.part(index).unlink(missing_ok=True)
            bad.append(index)
    if bad:
        raise InputError(f"{len(bad)} unfinished results in {output.work} were unreadable and are gone.\nRun again.")
    return parts


def versions() -> dict[str, str]:
    """What made the bytes: this package, the libraries that compute, ffmpeg."""
    libraries = ("mlemiss", "numpy", "librosa", "torch", "timm", "zarr")
    return {name: version(name) for name in libraries} | {"ffmpeg": ffmpeg_version()}
