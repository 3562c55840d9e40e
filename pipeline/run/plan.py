"""What a preprocessing run will do, decided before it starts: stores, fingerprints, one task a clip."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..clips.manifest import Collection
from ..encoders import images as backbones
from ..encoders.images import Weights
from ..errors import MACHINE_ERRNOS, InputError, MachineError
from ..media import decode as media
from ..media import ffmpeg, logmel
from ..media.decode import check_file
from ..media.ffmpeg import Limits, due_to_limit
from ..media.process import ClipError
from ..stores import store
from ..stores.catalogue import stores_in
from ..stores.claim import only_one
from ..stores.store import WORK, write_json
from .parts import Donor, say_once

UNREAD = "unread"  # stands for the content of a file that may not be read
Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def stamp_of(path: Path) -> Stamp:
    """OSError: there is no such file any more."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@dataclass(frozen=True)
class Source:
    """A clip's file: the sha256 of its content, and what shows whether it is the same file still; or why it is not
    to be opened."""

    sha256: str
    stamp: Stamp | None = None
    fault: str = ""


def read_sources(collection: Collection, max_bytes: int, follow_links: bool, cache_file: Path) -> list[Source]:
    """Each clip's source; sha256s are remembered in ``cache_file`` by path, size and modification time.

    A file that is no regular file, empty, larger than ``max_bytes`` or not to be opened costs its clip, not the run.
    So does one outside the root, where a link leads: a data set from elsewhere must not make this machine read its
    own files. ``follow_links`` allows it.
    """
    root = collection.root.resolve()
    try:
        known = dict(json.loads(cache_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    known = {key: entry for key, entry in known.items() if isinstance(entry, list) and len(entry) == 3}

    def read(path: Path) -> tuple[Source, str, list]:
        try:
            real = path.resolve()
            if not follow_links and not real.is_relative_to(root):
                raise ClipError("a link that leaves the root, which --follow-links allows")
            check_file(path, max_bytes)
            stamp = stamp_of(path)
            if known.get(str(real), [])[:2] == [*stamp]:
                return Source(known[str(real)][2], stamp), str(real), known[str(real)]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Source(digest, stamp), str(real), [*stamp, digest]
        except ClipError as error:
            return Source(UNREAD, fault=str(error)), "", []
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError in Python 3.11 and 3.12
            if getattr(error, "errno", None) in MACHINE_ERRNOS:
                raise MachineError(f"{path}: {error.strerror}.\nMend the disk or network and run again.") from None
            return Source(UNREAD, fault=getattr(error, "strerror", None) or "a loop of links"), "", []

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        found = list(pool.map(read, [collection.root / clip.path for clip in collection.clips]))
    fresh = {key: entry for _, key, entry in found if key}
    if any(known.get(key) != entry for key, entry in fresh.items()):
        with contextlib.suppress(OSError):  # a folder that others may only read: hash again next time
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache_file, known | fresh)
    return [source for source, _, _ in found]


# ---- plan ----

HASH_CACHE = Path(".cache") / "sha256.json"
WORK_PLAN = "plan.json"  # in a work folder: which content its clips have, for a run over other clips to reuse them
MEDIA_SPEC = {
    "segments": media.SEGMENTS,
    "segment_seconds": media.SEGMENT_SECONDS,
    "frame_size": ffmpeg.FRAME_SIZE,
    "sample_rate": logmel.SAMPLE_RATE,
    "n_fft": logmel.N_FFT,
    "hop_length": logmel.HOP_LENGTH,
    "n_mels": logmel.N_MELS,
    "delta_width": logmel.DELTA_WIDTH,
    "amin": logmel.AMIN,
    "silence": media.SILENCE,
}


@dataclass(frozen=True)
class Output:
    """One store to make: the media store (no weights) or one backbone's features."""

    features: str
    fingerprint: str
    final: Path
    work: Path  # unfinished: store.zarr/, and clips/ with one file a finished clip
    spec: Mapping  # as JSON gives it back, so that it equals a finished store's
    weights: Weights | None = None
    weights_hash: str = ""
    dimension: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    revision: int = 1  # above 1: the store that stands there is to be replaced, its failed clips tried again

    @property
    def finished(self) -> bool:
        """The store is published, in this revision or a later one."""
        return store.revision_at(self.final) >= self.revision

    @property
    def lock(self) -> Path:
        """The lock file of whoever makes this store, in whatever revision."""
        return self.work.parent / f"{self.final.name.removesuffix('.zarr')}.lock"

    @property
    def replaced(self) -> Path:
        """Where the older revision stands for the moment in which the newer one takes its place."""
        return self.work.parent / f"{self.final.name}.replaced"

    def part(self, index: int) -> Path:
        """The file that holds, and whose presence tells, the finished result of one clip."""
        return self.work / "clips" / f"{index:06d}.npz"


@dataclass(frozen=True)
class Row:
    """One clip in a finished store."""

    store: Path
    index: int
    revision: int = 1  # of the store


@dataclass(frozen=True)
class Task:
    """One clip's work: a small message to a worker."""

    index: int
    root: Path
    path: Path
    outputs: tuple[Output, ...]  # the stores that lack this clip
    media: Row | None  # read the media from here instead of decoding
    limits: Limits
    source: Source  # what the file was when it was hashed, or why it is not to be opened


@dataclass(frozen=True)
class Plan:
    """A run: its clips, and every store asked for, finished ones included."""

    collection: Collection
    sources: tuple[Source, ...]  # each clip's file: its sha256, or why it is not to be opened
    outputs: tuple[Output, ...]
    stores: Path
    limits: Limits
    retry_failed: bool = False  # take over no clip that failed, or lacks a modality because of a limit

    @property
    def hashes(self) -> tuple[str, ...]:
        """sha256 of each clip's content."""
        return tuple(source.sha256 for source in self.sources)

    def unfinished(self) -> tuple[Output, ...]:
        """The stores that are not published yet."""
        return tuple(output for output in self.outputs if not output.finished)

    @cached_property
    def media_rows(self) -> dict[str, Row]:
        """By content: clips whose frames and log-Mels are in a finished media store of these stores."""
        rows: dict[str, Row] = {}
        for path, attrs in stores_in(self.stores):
            if attrs["features"] != store.MEDIA or attrs.get("spec") != MEDIA_SPEC:
                continue
            try:
                opened = Donor.open(path).store
            except InputError as error:
                say_once(f"note: {error}")
                continue
            for index, (content, status) in enumerate(zip(opened.sha256, opened.status, strict=True)):
                if status == store.DONE and not (self.retry_failed and due_to_limit(str(opened.error[index]))):
                    rows.setdefault(str(content), Row(path, index, attrs["revision"]))
        return rows

    def tasks(self) -> list[Task]:
        """One task for each content that lacks its result in any store; clips of equal content share its result."""
        tasks, unfinished, seen = [], self.unfinished(), set()
        for index, (clip, source) in enumerate(zip(self.collection.clips, self.sources, strict=True)):
            lacking = tuple(output for output in unfinished if not output.part(index).is_file())
            if not lacking or source.sha256 in seen:
                continue
            if not source.fault:
                seen.add(source.sha256)
            root = self.collection.root.absolute()
            row = self.media_rows.get(source.sha256)
            tasks.append(Task(index, root, root / clip.path, lacking, row, self.limits, source))
        return tasks


def make_plan(
    collection: Collection,
    stores: Path,
    features: Sequence[str],
    weights: Mapping[str, Weights],
    *,
    media_mode: str | None = None,
    precision: str = "fp32",
    device: str = "cpu",
    limits: Limits = media.DEFAULT_LIMITS,
    follow_links: bool = False,
    retry_failed: bool = False,
) -> Plan:
    """Decide which stores to make and where. ``media_mode``: None, `keep` (the media store too) or `only`.

    The fingerprints hash the clips (content, id, label, columns), the spec of segments and log-Mels and, for features,
    the backbone, its weights and the precision: what determines the bytes, never paths. ``retry_failed``: a finished
    store with clips that failed, or lack a modality because of a limit, is to get its next revision.
    """
    stores = stores.absolute()
    sources = read_sources(collection, limits.max_bytes, follow_links, stores / HASH_CACHE)
    clips = zip(collection.clips, sources, strict=True)
    rows = [[c.clip_id, c.label, c.subject, c.columns, source.sha256] for c, source in clips]
    content = _fingerprint(store.SCHEMA, rows, collection.classes, collection.synthetic, MEDIA_SPEC)

    def output(name: str, fingerprint: str, spec: Mapping) -> Output:
        folder = store.store_name(collection.dataset, name, fingerprint)
        return Output(name, fingerprint, stores / folder, stores / WORK / folder, json.loads(json.dumps(spec)))

    outputs = [output(store.MEDIA, content, MEDIA_SPEC)] if media_mode else []
    for name in () if media_mode == "only" else features:
        backbone = backbones.load_backbone(name, weights[name], precision, device)
        described = backbone.describe()
        outputs.append(
            replace(
                output(
                    name,
                    _fingerprint(content, described, weights[name].name, store.FEATURE_CODEC),
                    MEDIA_SPEC | {"backbone": described, "codec": store.FEATURE_CODEC},
                ),
                weights=weights[name],
                weights_hash=backbone.spec.weights_hash,
                dimension=backbone.dimension,
                precision=precision,
                device=device,
            )
        )
    for made in outputs:
        if made.replaced.exists():
            with only_one(made.lock, made.final.name):
                recover(made)
        if made.finished:
            store.FeatureStore.open(made.final)  # an InputError now, before anything is computed
    if retry_failed:
        outputs = [_next_revision(made) for made in outputs]
    return Plan(collection, tuple(sources), tuple(outputs), stores, limits, retry_failed)


def recover(output: Output) -> None:
    """Whatever a kill left: an older revision that had just made way comes back, work on a finished store goes."""
    if output.replaced.exists():
        if output.final.exists():
            store.remove_tree(output.replaced)
        else:
            output.replaced.rename(output.final)
    for work in leftovers(output):
        store.remove_tree(work)


def leftovers(output: Output) -> list[Path]:
    """Work folders of the revision that stands in an output's place, and of those before it."""
    standing = store.revision_at(output.final)
    first = output.work.with_name(output.final.name)
    works = [first, *(first.with_name(f"{first.name}.{revision}") for revision in range(2, standing + 1))]
    return [work for work in works if work.is_dir()] if standing else []


def _next_revision(output: Output) -> Output:
    if not output.finished:
        return output
    opened = store.FeatureStore.open(output.final)
    failed = opened.status == store.FAILED
    if not failed.any() and not any(map(due_to_limit, opened.error.tolist())):
        return output
    revision = opened.attrs["revision"] + 1
    return replace(output, revision=revision, work=output.work.with_name(f"{output.final.name}.{revision}"))


def _fingerprint(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
