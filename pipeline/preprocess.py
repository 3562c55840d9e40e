"""The whole preprocessing job: dataset, plan, run, closing summary."""

import datetime
import platform
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .clips.datasets import collect
from .clips.manifest import limit_clips
from .console import Progress, amount, name_some, say
from .encoders import images as backbones
from .errors import InputError
from .media import decode as media
from .media import logmel
from .media.ffmpeg import FRAME_SIZE, Limits
from .run import cluster, extract
from .run import run as assemble
from .run import run as execute
from .run.cluster import checked
from .run.plan import Output, Plan, Task, make_plan
from .stores import store
from .stores.remote import Remote, is_local
from .stores.share import pull, standing_at
from .stores.store import revision_at, run_record


@dataclass(frozen=True)
class How:
    """Where the work runs, and what failed clips mean to it."""

    workers: int = 0  # processes of this machine; 0: serial, in this one
    scheduler: cluster.Scheduler | None = None  # an existing Dask cluster instead
    report: Path | None = None  # of Dask's performance report
    retry_failed: bool = False
    max_failures: int | None = None


SERIAL = How()
CLIP_OPTIONS = {
    "--clip-timeout": "timeout",
    "--clip-seconds": "max_seconds",
    "--clip-pixels": "max_pixels",
    "--clip-bytes": "max_bytes",
    "--clip-memory": "max_memory",
}


@dataclass
class Summary:
    """What a run did; `as_json` is the contract of `preprocess --json`."""

    stores: list[str]
    clips: int
    done: int
    failed: list[dict[str, str]]
    absent: tuple[str, ...]
    seconds: dict[str, float]  # summed over workers; total on the wall
    computed: int = 0  # clips computed in this run, not found finished
    missing: dict[str, int] = field(default_factory=dict)  # clips done without this modality
    unexpected: tuple[str, ...] = ()

    @property
    def limit(self) -> str:
        """The stage that took most of the time, or `nothing` when all was there already."""
        stages = {name: spent for name, spent in self.seconds.items() if name != "total"}
        return max(stages, key=stages.get) if self.computed else "nothing"

    def as_json(self) -> dict:
        return {
            "stores": self.stores,
            "clips": self.clips,
            "done": self.done,
            "failed": self.failed,
            "absent": len(self.absent),
            "unexpected": len(self.unexpected),
            "seconds": {name: round(spent, 3) for name, spent in self.seconds.items()},
            "limit": self.limit,
        }


def preprocess(
    dataset: str,
    root: Path | None,
    stores: Path,
    features: Sequence[str],
    weights: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    media_mode: str | None = None,
    precision: str = "fp32",
    device: str = "auto",
    limit: int | None = None,
    limits: Limits = media.DEFAULT_LIMITS,
    follow_links: bool = False,
    how: How = SERIAL,
    dry_run: bool = False,
    shared: Remote | None = None,
) -> Summary | None:
    """Cache a dataset's features; says on standard error what it resolves and does. None after a dry run.

    shared: where the stores will be pushed to; those that are finished there are not made again.
    """
    if stores.exists() and not stores.is_dir():
        raise InputError(f"--stores {stores} is a file: expected a folder for the stores, made if absent.")
    collection = collect(dataset, root, classes, follow_links)
    chosen = backbones.parse_weights(weights, features)
    for name in features:
        backbones.resolve_tag(name)
    if limit is not None:
        kept = limit_clips(collection.clips, limit)
        say(f"limited to {len(kept)} of the {amount(len(collection.clips), 'clip')} found")
        collection = replace(collection, clips=kept)
    say(f"{collection.dataset}: {amount(len(collection.clips), 'clip')} in {collection.root}")
    if classes:
        say(f"classes: {', '.join(collection.classes)}")
    for note in collection.notes:
        say(f"note: {note}")
    with cluster.connected(how.scheduler, say) if how.scheduler else nullcontext() as client:
        options = {"media_mode": media_mode, "precision": precision, "limits": limits, "follow_links": follow_links}
        wanted = "cpu" if media_mode == "only" and device == "auto" else device  # media need no torch
        options |= {"device": _device(wanted, client), "retry_failed": how.retry_failed}
        plan = make_plan(collection, stores, features, chosen, **options)
        if shared:
            plan = replace(plan, outputs=tuple(finished_there(output, shared) for output in plan.outputs))
            newer = [output.final for output in plan.outputs if not is_local(output.final)]
            if newer and how.retry_failed:  # their failed clips are tried here, so the rest must be here too
                for place in newer:
                    pull(place, stores)
                plan = make_plan(collection, stores, features, chosen, **options)
        _announce(plan)
        if dry_run:
            _estimate(plan, len(cluster.workers_of(client)) if client else max(how.workers, 1))
            return None
        if client is None:
            on_processes = cluster.on_this_machine(how.workers, how.report, say) if how.workers else execute.serial
            return _run(plan, how, on_processes)
        with checked(client, plan) as expected:
            return _run(plan, how, cluster.on_cluster(client, how.report, say, expected))


def finished_there(output: Output, shared: Remote) -> Output:
    """An output of a plan; or where its store is finished at ``shared`` and here is none as new: that one."""
    standing = standing_at(shared / output.final.name)
    if standing is None or revision_at(output.final) >= standing.attrs["revision"]:
        return output
    return replace(output, final=standing.place)


def _device(name: str, client) -> str:
    """Where the CNNs run: of a cluster, on its workers with a GPU, where there are any."""
    if client is None or name not in ("auto", "cuda"):
        return backbones.device_of(name)
    if name == "cuda":
        cluster.wait_for_gpu(client, say)
        return name
    if cluster.has_gpu(client):
        say("CNNs on workers with a GPU, as some have one")
        return "cuda"
    say("CNNs on CPUs, as no worker here now has the resource GPU; --device cuda waits for one")
    return "cpu"


def _announce(plan: Plan) -> None:
    for output in plan.outputs:
        state = "finished already" if output.finished else "to make"
        state += f", revision {output.revision}: its failed clips again" if output.revision > 1 else ""
        made_by = f"weights {output.weights.name} ({output.weights_hash})" if output.weights else "frames and log-Mels"
        say(f"store {output.final}: {made_by}, {state}")
    cached = sum(source.sha256 in plan.media_rows for source in plan.sources)
    if cached and plan.unfinished():
        say(f"frames and log-Mels of {amount(cached, 'clip')} from media stores: no decoding of these")


def _run(plan: Plan, how: How, executor: cluster.Executor) -> Summary:
    progress = None
    computed = 0
    record = {
        "command": shlex.join(["mlemiss", *sys.argv[1:]]),
        "started": assemble.now(),
        "host": platform.node(),
        "workers": how.scheduler.address if how.scheduler else how.workers,
    }

    def started(total: int):
        nonlocal progress, computed
        computed = total
        progress = Progress("preprocess", total).__enter__()
        return lambda outcome: progress.advance(failed=bool(outcome.failed))

    try:
        seconds = execute.run(plan, executor, started, say, max_failures=how.max_failures, record=record)
    finally:
        if progress:
            progress.__exit__(None, None, None)
    summary = _summarise(plan, {"decode": 0.0, "cnn": 0.0, "write": 0.0} | seconds, computed)
    for output in plan.outputs:
        if not is_local(output.final) or not record.items() <= (first := run_record(output.final)).items():
            continue  # another run made it
        full = {
            **first,
            "device": output.device,
            **summary.as_json(),
            "absent": list(summary.absent),
            "unexpected": list(summary.unexpected),
            "stores": [output.final.name],
        }
        with suppress(OSError):  # a full disk: the first record tells who made it
            store.write_json(output.final / store.RUN, full)
    return summary


def _summarise(plan: Plan, seconds: dict[str, float], computed: int) -> Summary:
    """Read back from the stores what became of every clip, whichever run computed it."""
    causes: dict[int, str] = {}
    missing: dict[str, int] = {}
    for output in plan.outputs:
        opened = store.FeatureStore.open(output.final)
        for index in np.flatnonzero(opened.status == store.FAILED):
            causes.setdefault(int(index), str(opened.error[index]))
        present = opened.present[opened.status == store.DONE]
        for modality, count in zip(opened.modalities, (~present).sum(0), strict=True):
            missing[modality] = max(missing.get(modality, 0), int(count))
    clips = plan.collection.clips
    failed = [{"clip_id": clips[i].clip_id, "path": clips[i].path, "cause": causes[i]} for i in sorted(causes)]
    return Summary(
        stores=[str(output.final) for output in plan.outputs],
        clips=len(clips),
        done=len(clips) - len(failed),
        failed=failed,
        absent=plan.collection.absent,
        seconds=seconds,
        computed=computed,
        missing=missing,
        unexpected=plan.collection.unexpected,
    )


def print_summary(summary: Summary) -> None:
    """The closing lines a person reads, on standard error."""
    seconds = summary.seconds
    say(
        f"clips: {summary.done} done, {len(summary.failed)} failed, {len(summary.absent)} absent, "
        f"{len(summary.unexpected)} unexpected"
    )
    for modality, count in summary.missing.items():
        if count:
            say(f"  {count} done without {modality} (cause in the store's `error`)")
    for failure in summary.failed:
        say(f"  failed: {failure['path']}: {failure['cause']}")
    for what, clips in (("absent", summary.absent), ("unexpected", summary.unexpected)):
        if clips:
            counted = [f"{clip} ×{count}" if count > 1 else clip for clip, count in Counter(clips).items()]
            more = f" (all in each store's {store.RUN})" if len(counted) > 5 else ""
            say(f"  {what}: {name_some(counted, 5)}{more}")
    if summary.computed:
        rate = summary.computed / max(seconds["total"], 1e-9)
        stages = ", ".join(f"{stage} {seconds[stage]:.1f}" for stage in ("decode", "cnn", "write"))
        say(f"seconds in {stages} (summed over workers), {seconds['total']:.1f} in all: {rate:.2f} clips/s")
        say(f"the limit was: {summary.limit}")
    else:
        say(f"nothing left to do ({seconds['total']:.1f} s)")
    for path in summary.stores:
        say(f"store: {path}")


def _estimate(plan: Plan, workers: int) -> None:
    """Time one clip and say what the whole would take, in time and on disk."""
    clips = len(plan.collection.clips)
    size = 0
    for output in plan.unfinished():
        segment = FRAME_SIZE**2 * 3 + 2 * 3 * logmel.N_MELS * logmel.MEL_FRAMES
        size += clips * media.SEGMENTS * (2 * 2 * output.dimension if output.weights else segment)
    tasks = plan.tasks()
    if not tasks:
        say("dry run: nothing left to do")
        return
    timed: dict[str, float] = {"decode": 0.0, "cnn": 0.0}
    for attempt in tasks[: 2 if len(tasks) > 1 else 1]:  # the first one warms up
        timed = _time_clip(attempt)
    total = sum(timed.values()) * len(tasks) / workers
    free = shutil.disk_usage(_existing(plan.outputs[0].work.parent)).free
    say(
        f"dry run: {len(tasks)} clips to compute, about {timed['decode']:.2f} s decoding and {timed['cnn']:.2f} s CNN "
        f"each: about {datetime.timedelta(seconds=round(total))} with {workers} workers"
    )
    say(f"dry run: at most {size / 1e9:.2f} GB on disk (about twice that while working), {free / 1e9:.1f} GB free")


def _time_clip(task: Task) -> dict[str, float]:
    start = time.perf_counter()
    clip = extract.decode(task).clip
    decoded = time.perf_counter()
    for output in task.outputs:
        extract.compute(output, [clip])
    return {"decode": decoded - start, "cnn": time.perf_counter() - decoded}


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def check_options(media_mode: str | None, precision: str, limit: int | None, limits: Limits, how: How) -> None:
    """InputError for option values that cannot be."""
    if media_mode not in (None, "keep", "only"):
        raise InputError(f"--media {media_mode!r}: expected keep or only.")
    if precision not in ("fp32", "bf16"):
        raise InputError(f"--precision {precision!r}: expected fp32 or bf16.")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected at least 1 clip.")
    if how.workers < 0:
        raise InputError(f"--workers {how.workers}: expected 0 (serial, in this process) or more.")
    if how.max_failures is not None and how.max_failures < 0:
        raise InputError(f"--max-failures {how.max_failures}: expected 0 or more.")
    if how.report and not (how.workers or how.scheduler):
        raise InputError(
            "--performance-report is Dask's, and --workers 0 runs without Dask.\nLeave out one of the two."
        )
    for option, value in CLIP_OPTIONS.items():
        if not getattr(limits, value) > 0:
            raise InputError(f"{option} {getattr(limits, value)}: expected more than 0.")
