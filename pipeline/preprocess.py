"""The whole preprocessing job: dataset, plan, run, closing summary."""

import datetime
import math
import platform
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from .clips.datasets import collect
from .clips.manifest import Collection, limit_clips
from .console import Progress, amount, name_some, say
from .encoders import resolve_device
from .encoders.names import stored_requests
from .errors import InputError
from .files import json_text
from .media import decode as media
from .media import faces, logmel
from .media.ffmpeg import FRAME_SIZE, Limits
from .run import cluster, connect, extract
from .run.extract import Executor
from .run.plan import FeatureRequest, Output, Plan, Task, make_plan
from .run.run import claimed, lacking, now, publish, run, serial
from .stores import store
from .stores.catalogue import with_remarks
from .stores.masks import missing_by_class
from .stores.remote import Remote, is_local
from .stores.share import FinishedStore, pull
from .stores.store import revision_at, run_record


@dataclass(frozen=True)
class ClipRequest:
    """The clips of a run."""

    dataset: str  # a known name, or a CSV file
    root: Path | None = None  # None: the dataset's default
    classes: Sequence[str] | None = None  # None: the dataset's own
    limit: int | None = None  # so many clips at most, balanced over classes
    limits: Limits = media.DEFAULT_LIMITS  # of each clip
    follow_links: bool = False  # out of the root
    audio: str | None = None  # the kind of the dataset's files that the sound is in; None: in the videos


@dataclass(frozen=True)
class Where:
    """Where the work runs."""

    workers: int = 0  # processes of this machine; 0: serial, in this one
    scheduler: connect.Scheduler | None = None  # an existing Dask cluster instead
    device: str = "auto"  # of the CNNs
    report: Path | None = None  # file of Dask's performance report
    dashboard: bool = False  # Dask's page, on loopback, for as long as the run


@dataclass(frozen=True)
class FailurePolicy:
    """How failed clips are treated."""

    retry: bool = False  # clips that failed in an earlier run
    most: int | None = None  # more failed clips than this are an error


HERE, ACCEPT = Where(), FailurePolicy()


@dataclass
class Summary:
    """The results of a run."""

    stores: list[str]
    clips: int
    done: int
    failed: list[dict[str, str]]
    absent: tuple[str, ...]
    seconds: dict[str, float]  # summed over workers; total on the wall
    computed: int = 0  # contents computed in this run, not found finished
    start: float = 0.0  # seconds on the wall until the first was begun
    missing: dict[str, int] = field(default_factory=dict)  # clips done without this modality
    telling: dict[str, str] = field(default_factory=dict)  # how a modality is missing by class, where it tells them
    unexpected: tuple[str, ...] = ()
    remarks: list[dict] = field(default_factory=list)  # of clips done that have damaged frames or the like
    no_face: int | None = None  # clips without a face, where frames are cut to faces

    @property
    def limit(self) -> str:
        """Return the stage that took most of the time: `start` if that is half of it, `nothing` if all was there."""
        stages = {name: spent for name, spent in self.seconds.items() if name != "total"}
        if not self.computed:
            return "nothing"
        return "start" if 2 * self.start > self.seconds["total"] else max(stages, key=stages.get)

    def as_json(self) -> dict:
        """Return the document of `preprocess --json`, a contract."""
        return {
            "stores": self.stores,
            "clips": self.clips,
            "done": self.done,
            "failed": self.failed,
            "absent": len(self.absent),
            "unexpected": len(self.unexpected),
            "remarks": self.remarks,
            "seconds": {name: round(spent, 3) for name, spent in self.seconds.items()},
            "limit": self.limit,
            **({} if self.no_face is None else {"no_face": self.no_face}),
        }


def preprocess(
    clips: ClipRequest,
    features: FeatureRequest,
    stores: Path,
    *,
    where: Where = HERE,
    failures: FailurePolicy = ACCEPT,
    dry_run: bool = False,
    shared: Remote | None = None,
) -> Summary | None:
    """Cache a dataset's features; print on standard error what is resolved and done.

    Args:
        clips: the clips.
        features: the stores to make of them.
        stores: folder of the stores.
        where: the processes that work.
        failures: how failed clips are treated.
        dry_run: estimate time and disk, and compute nothing.
        shared: where the stores will be pushed to; those that are finished there are not made again.

    Returns:
        A summary, None after a dry run.

    Raises:
        InputError: something asked for is unknown, absent or impossible; too many failed clips.
        MachineError: a disk, the memory or the cluster failed.
    """
    if stores.exists() and not stores.is_dir():
        raise InputError(f"--stores {stores} is a file: expected a folder for the stores, made if absent.")
    collection = _collect(clips)
    features = replace(features, weights=stored_requests(features.weights))
    with connect.connected(where.scheduler) if where.scheduler else nullcontext() as client:
        options = {"limits": clips.limits, "follow_links": clips.follow_links, "retry_failed": failures.retry}
        options["device"] = _device(where.device, features, client)
        plan = make_plan(collection, stores, features, **options)
        if shared:
            plan = replace(plan, outputs=tuple(finished_there(output, shared) for output in plan.outputs))
            newer = [output.final for output in plan.outputs if not is_local(output.final)]
            if newer and failures.retry:  # their failed clips are tried here, so the rest must be here too
                for url in newer:
                    pull(url, stores)
                plan = make_plan(collection, stores, features, **options)
        _announce(plan)
        if dry_run:
            _estimate(plan, len(connect.workers_of(client)) if client else max(where.workers, 1))
            return None
        if client:
            executor = partial(cluster.on_cluster, client, plan, where.report)
        else:
            here = partial(cluster.on_this_machine, where.workers, where.report, where.dashboard)
            executor = here if where.workers else serial
        return _run(plan, executor, where, failures.most)


def _collect(clips: ClipRequest) -> Collection:
    collection = collect(clips.dataset, clips.root, clips.classes, clips.follow_links, clips.audio)
    if clips.limit is not None:
        chosen = limit_clips(collection.clips, clips.limit)
        say(f"limited to {len(chosen)} of the {amount(len(collection.clips), 'clip')} found")
        collection = replace(collection, clips=chosen)
    say(f"{collection.dataset}: {amount(len(collection.clips), 'clip')} in {collection.root}")
    if clips.classes:
        say(f"classes: {', '.join(collection.classes)}")
    for note in collection.notes:
        say(f"note: {note}")
    return collection


def _device(name: str, features: FeatureRequest, client) -> str:
    if features.media == "only" and name == "auto":
        return "cpu"  # media need no torch, and no GPU
    if client is None or name == "cpu":
        return resolve_device(name)
    if name == "mps":
        raise InputError("--device mps is of this machine, not of a cluster.\nLeave out --scheduler or --device.")
    return connect.device_on(client, name)


def finished_there(output: Output, shared: Remote) -> Output:
    """Return the output, in its finished store at ``shared`` if the one here is older or absent."""
    published = FinishedStore.find(shared / output.final.name)
    if published is None or revision_at(output.final) >= published.attrs["revision"]:
        return output
    return replace(output, final=published.path)


def _announce(plan: Plan) -> None:
    for output in plan.outputs:
        state = "finished already" if output.finished else "to make"
        state += f", revision {output.revision}: its failed clips again" if output.revision > 1 else ""
        made_by = f"weights {output.weights.name}" if output.weights else "frames and log-Mels"
        made_by += f" ({output.weights_hash})" if output.weights_hash else ""
        say(f"store {output.final}: {made_by}, {state}")
        if output.weights:
            made = ", ".join(f"{modality} from {kind}" for modality, kind in output.inputs.items())
            say(f"  {made}: {output.dimension} features")
        if "mean" in output.spec.get("backbone", {}):
            mean, std = (name_some(output.spec["backbone"][key]) for key in ("mean", "std"))
            say(f"  pictures normalised with mean {mean} and deviation {std}")
    cached = sum(source.sha256 in plan.media_rows for source in plan.sources)
    if cached and plan.unfinished():
        say(f"media of {amount(cached, 'clip')} from media stores: no decoding of these")


def _run(plan: Plan, executor: Executor, where: Where, max_failures: int | None) -> Summary:
    record = {
        "command": shlex.join(["mlemiss", *sys.argv[1:]]),
        "started": now(),
        "host": platform.node(),
        "workers": where.scheduler.address if where.scheduler else where.workers,
    }
    begin = time.perf_counter()
    seconds, started = {"decode": 0.0, "cnn": 0.0, "write": 0.0}, None
    with claimed(plan, max_failures) as claims:
        tasks = lacking(plan)
        unit = "clips and texts" if any(task.text for task in tasks) else "clips"
        with (
            Progress("preprocess", len(tasks), unit) as progress,
            closing(run(plan, tasks, executor, claims, max_failures)) as outcomes,
        ):
            for outcome in outcomes:
                started = started or time.perf_counter() - begin - sum(outcome.seconds.values())
                for stage, spent in outcome.seconds.items():
                    seconds[stage] += spent
                progress.advance(failed=bool(outcome.failed))
        computed = time.perf_counter()
        publish(plan, claims, max_failures, record)
    seconds["write"] += time.perf_counter() - computed
    seconds["total"] = time.perf_counter() - begin
    summary = replace(_summarise(plan, seconds, len(tasks)), start=started or 0.0)
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
        # Written beside the store, in which a kill must leave nothing.
        beside = output.final.with_name(f".{output.final.name}.{store.RUN}.partial")
        with suppress(OSError):  # a full disk: the first record says which run made the store
            beside.write_text(json_text(full, indent=1) + "\n", encoding="utf-8")
            beside.replace(output.final / store.RUN)
    return summary


def _summarise(plan: Plan, seconds: dict[str, float], computed: int) -> Summary:
    """Read each clip's result back from the stores, whichever run computed it."""
    causes: dict[int, str] = {}
    remarks: dict[int, str] = {}
    missing: Counter[str] = Counter()
    telling: dict[str, str] = {}
    faceless: set[int] = set()
    for output in plan.outputs:
        opened = store.FeatureStore.open(output.final)
        if output.faces:
            faceless |= {row for row, told in enumerate(opened.error.tolist()) if faces.NO_FACE in told}
        for index in np.flatnonzero(~opened.done):
            causes.setdefault(int(index), str(opened.error[index]))
        for index in np.flatnonzero(with_remarks(opened)):
            remarks.setdefault(int(index), str(opened.error[index]))
        present = opened.present[opened.done]
        for modality, has in zip(opened.modalities, present.T, strict=True):
            if told := missing_by_class(has, opened.label[opened.done], opened.classes):
                telling[modality] = told
        missing |= Counter(dict(zip(opened.modalities, (~present).sum(0).tolist(), strict=True)))
    clips = plan.collection.clips

    def listed(texts: Mapping[int, str]) -> list[dict]:
        return [{"clip_id": clips[i].clip_id, "path": clips[i].path, "cause": texts[i]} for i in sorted(texts)]

    failed = listed(causes)
    return Summary(
        stores=[str(output.final) for output in plan.outputs],
        clips=len(clips),
        done=len(clips) - len(failed),
        failed=failed,
        absent=plan.collection.absent,
        seconds=seconds,
        computed=computed,
        missing=dict(missing),
        telling=telling,
        unexpected=plan.collection.unexpected,
        remarks=listed(remarks),
        no_face=len(faceless) if plan.limits.crop == "face" else None,
    )


def print_summary(summary: Summary) -> None:
    """Print the closing lines on standard error."""
    seconds = summary.seconds
    say(
        f"clips: {summary.done} done, {len(summary.failed)} failed, {len(summary.absent)} absent, "
        f"{len(summary.unexpected)} unexpected"
    )
    for modality, count in summary.missing.items():
        say(f"  {count} done without {modality} (cause in the store's `error`)")
    if summary.no_face is not None:
        say(f"  {summary.no_face} without a face")
    for modality, told in summary.telling.items():
        say(f"  note: that {modality} is missing tells the class by itself: {told}")
    for remark in summary.remarks:
        say(f"  note: {remark['path']}: {remark['cause']}")
    for failure in summary.failed:
        say(f"  failed: {failure['path']}: {failure['cause']}")
    for kind, clips in (("absent", summary.absent), ("unexpected", summary.unexpected)):
        if clips:
            counted = [f"{clip} ×{count}" if count > 1 else clip for clip, count in Counter(clips).items()]
            more = f" (all in each store's {store.RUN})" if len(counted) > 5 else ""
            say(f"  {kind}: {name_some(counted, 5)}{more}")
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
    """Time one clip and print how long the run would take, and how much disk."""
    tasks = plan.tasks()
    if not tasks:
        say("dry run: nothing left to do")
        return
    media_bytes = FRAME_SIZE**2 * 3 + 2 * 3 * logmel.N_MELS * logmel.MEL_FRAMES  # a segment
    features = sum(2 * math.prod(shape) for o in plan.unfinished() if o.weights for shape in o.shapes.values())
    kept = sum(not output.weights for output in plan.unfinished()) * media.SEGMENTS * media_bytes
    size = len(plan.collection.clips) * (features + kept)
    for task in tasks[:2]:  # the first one warms up
        decoding, encoding = _time_clip(task)
    total = (decoding + encoding) * len(tasks) / workers
    existing = next(path for path in (plan.stores, *plan.stores.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    say(
        f"dry run: {len(tasks)} clips to compute, about {decoding:.2f} s decoding and {encoding:.2f} s CNN "
        f"each: about {datetime.timedelta(seconds=round(total))} with {workers} workers"
    )
    say(f"dry run: at most {size / 1e9:.2f} GB on disk (about twice that while working), {free / 1e9:.1f} GB free")


def _time_clip(task: Task) -> tuple[float, float]:
    """Return the seconds of decoding a clip and of its CNNs."""
    start = time.perf_counter()
    clip = extract.decode(task).clip
    decoded = time.perf_counter()
    for output in task.outputs:
        extract.compute(output, [clip])
    return decoded - start, time.perf_counter() - decoded
