"""Plan a preprocessing run before it starts: the stores to make, their fingerprints, one task for each content."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..clips.manifest import Collection
from ..console import name_some, say
from ..encoders import Weights
from ..encoders.images import load_backbone
from ..errors import MACHINE_ERRNOS, MachineError
from ..files import remove_tree, sha256_of, user_cache, write_json
from ..media import decode as media
from ..media import ffmpeg, logmel
from ..media.decode import check_file
from ..media.ffmpeg import Limits, due_to_limit
from ..media.process import ClipError
from ..stores import store
from ..stores.claim import only_one
from ..stores.store import WORK
from .parts import donors

UNREAD = "unread"  # in place of the sha256 of a file that may not be read
Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def stamp_of(path: Path) -> Stamp:
    """Return a file's size and time of change. OSError: the file is gone."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@dataclass(frozen=True)
class Source:
    """A clip's file: the sha256 of its content and its stamp then; or why the file must not be opened."""

    sha256: str
    stamp: Stamp | None = None
    fault: str = ""


def read_sources(collection: Collection, max_bytes: int, follow_links: bool) -> list[Source]:
    """Hash each clip's file.

    A file that is not regular, is empty, too large or cannot be opened costs its clip, not the run. So does a link that
    leads out of the root: a data set from elsewhere must not make this machine read its own files.

    Args:
        collection: the clips.
        max_bytes: of the largest file.
        follow_links: read links that lead out of the root.

    Returns:
        A source for each clip, in order.

    Raises:
        MachineError: the disk or network failed.
    """
    root = collection.root.resolve()
    known = _known_hashes(root)

    def read(path: Path) -> tuple[Source, str, list]:
        try:
            real = path.resolve()
            if not follow_links and not real.is_relative_to(root):
                raise ClipError("a link that leaves the root, which --follow-links allows")
            check_file(path, max_bytes)
            stamp = stamp_of(path)
            entry = known.get(str(real), [])
            digest = entry[2] if entry[:2] == [*stamp] else sha256_of(path)
            return Source(digest, stamp), str(real), [*stamp, digest]
        except ClipError as error:
            return Source(UNREAD, fault=str(error)), "", []
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError in Python 3.11 and 3.12
            if getattr(error, "errno", None) in MACHINE_ERRNOS:
                raise MachineError(f"{path}: {error.strerror}.\nMend the disk or network and run again.") from None
            return Source(UNREAD, fault=getattr(error, "strerror", None) or "a loop of links"), "", []

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        results = list(pool.map(read, [collection.root / clip.path for clip in collection.clips]))
    fresh = {real: entry for _, real, entry in results if real}
    if any(known.get(real) != entry for real, entry in fresh.items()):
        _keep_hashes(root, known | fresh)
    return [source for source, _, _ in results]


# The hashes of earlier runs: of each path its size, time of change and sha256. They are the user's own, not the stores'
# folder's, where a wrong line of somebody else would give one clip another's features.


def _hash_file(root: Path) -> Path:
    return user_cache() / f"sha256-{_sha256(str(root))[:16]}.json"


def _known_hashes(root: Path) -> dict[str, list]:
    try:
        known = dict(json.loads(_hash_file(root).read_text(encoding="utf-8")))
    except (OSError, RuntimeError, ValueError, TypeError):  # RuntimeError: a user without a home
        return {}
    return {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 3}


def _keep_hashes(root: Path, known: Mapping[str, list]) -> None:
    try:
        write_json(_hash_file(root), known)
    except (OSError, RuntimeError) as error:
        say(f"note: the clips' hashes are not kept, so that the next run reads every clip again ({error})")


# ---- The plan ----

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
Precision = Literal["fp32", "tf32", "bf16"]
MediaMode = Literal["keep", "only"]


@dataclass(frozen=True)
class FeatureRequest:
    """The stores that a run is asked for.

    Args:
        weights: of each backbone by its name.
        precision: of the backbones.
        media: `keep` a media store beside the features, or make `only` that.
    """

    weights: Mapping[str, Weights] = field(default_factory=dict)
    precision: Precision = "fp32"
    media: MediaMode | None = None


@dataclass(frozen=True)
class Output:
    """One store to make: the media store (no weights) or one backbone's features."""

    features: str
    fingerprint: str
    final: Path
    work: Path  # store.zarr/, unfinished, and clips/ with a part for each content
    spec: Mapping  # as read back from JSON, so that it equals a finished store's
    weights: Weights | None = None
    weights_hash: str = ""
    dimension: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    revision: int = 1  # above 1: replaces the finished store, whose failed clips are tried again

    @property
    def finished(self) -> bool:
        """Return whether the store is published, in this revision or a later one."""
        return store.revision_at(self.final) >= self.revision

    @property
    def lock(self) -> Path:
        """Return the lock file, the same for all revisions of the store."""
        return self.work.parent / f"{self.final.name.removesuffix('.zarr')}.lock"

    @property
    def replaced(self) -> Path:
        """Return where the older revision is for the moment in which the newer one is moved into its place."""
        return self.work.parent / f"{self.final.name}.replaced"

    def part(self, key: str) -> Path:
        """Return the file of the result of one content; a file that exists is a finished result."""
        return self.work / "clips" / f"{key}.npz"


@dataclass(frozen=True)
class Row:
    """One clip in a finished store."""

    store: Path
    index: int
    revision: int = 1  # of the store


@dataclass(frozen=True)
class Task:
    """The work on one content: a small message to a worker."""

    key: str  # names the results: the sha256 of the content
    rows: tuple[int, ...]  # on the clip axis, of all clips with this content
    root: Path
    path: Path  # of the first of these clips
    outputs: tuple[Output, ...]  # the stores that lack this content
    media: Row | None  # read the media from here instead of decoding
    limits: Limits
    source: Source


@dataclass(frozen=True)
class Plan:
    """A run: its clips and every store asked for, finished ones included."""

    collection: Collection
    sources: tuple[Source, ...]  # a file for each clip
    outputs: tuple[Output, ...]
    stores: Path
    limits: Limits
    retry_failed: bool = False  # take over no clip that failed, or lacks a modality because of a limit

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Return each clip's key: the sha256 of its content; a file that may not be read has a key of its own."""
        clips = zip(self.collection.clips, self.sources, strict=True)
        return tuple(f"{UNREAD}-{_sha256(c.clip_id)}" if source.fault else source.sha256 for c, source in clips)

    @cached_property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """Return, for each key, its rows on the clip axis: clips of equal content share their result."""
        rows = defaultdict(list)
        for row, key in enumerate(self.keys):
            rows[key].append(row)
        return {key: tuple(several) for key, several in rows.items()}

    def unfinished(self) -> tuple[Output, ...]:
        """Return the stores that are not published yet."""
        return tuple(output for output in self.outputs if not output.finished)

    @cached_property
    def media_rows(self) -> dict[str, Row]:
        """Return, for each content (sha256) with media in a finished store, the row there."""
        rows: dict[str, Row] = {}
        for donor in donors(self.stores, store.MEDIA, media_spec(self.limits)):
            path, revision = donor.store.path, donor.store.attrs["revision"]
            for content, row in donor.rows(self.retry_failed).items():
                rows.setdefault(content, Row(path, row, revision))
        return rows

    def tasks(self) -> list[Task]:
        """Return a task for each content that some store lacks."""
        tasks, unfinished, root = [], self.unfinished(), self.collection.root.absolute()
        for key, rows in self.rows.items():
            if lacking := tuple(output for output in unfinished if not output.part(key).is_file()):
                path, source = root / self.collection.clips[rows[0]].path, self.sources[rows[0]]
                tasks.append(Task(key, rows, root, path, lacking, self.media_rows.get(key), self.limits, source))
        return tasks


def media_spec(limits: Limits) -> dict:
    """Return what determines the media of a clip: constants, and what was asked for beside the defaults."""
    return MEDIA_SPEC | limits.spec()


def make_plan(
    collection: Collection,
    stores: Path,
    request: FeatureRequest,
    *,
    device: str = "cpu",
    limits: Limits = media.DEFAULT_LIMITS,
    follow_links: bool = False,
    retry_failed: bool = False,
) -> Plan:
    """Decide which stores to make and where.

    The fingerprints hash the clips (content, id, label, columns), the spec of segments and log-Mels and, for features,
    the backbone, its weights and the precision: what determines the bytes, never paths.

    Args:
        collection: the clips.
        stores: folder of the stores.
        request: which stores.
        device: where the backbones run.
        limits: of each clip.
        follow_links: read links that lead out of the clips' root.
        retry_failed: a finished store with clips that failed, or lack a modality because of a limit, gets its next
            revision.

    Raises:
        InputError: unknown features, weights that cannot be loaded, a store that cannot be opened.
    """
    stores = stores.absolute()
    sources = read_sources(collection, limits.max_bytes, follow_links)
    clips, spec = zip(collection.clips, sources, strict=True), media_spec(limits)
    rows = [[c.clip_id, c.label, c.subject, c.columns, source.sha256] for c, source in clips]
    content = _fingerprint(store.SCHEMA, rows, collection.classes, collection.synthetic, spec)

    def output(name: str, fingerprint: str, spec: Mapping, **more: object) -> Output:
        folder = store.store_name(collection.dataset, name, fingerprint)
        return Output(name, fingerprint, stores / folder, stores / WORK / folder, json.loads(json.dumps(spec)), **more)

    outputs = [output(store.MEDIA, content, spec)] if request.media else []
    wanted = {} if request.media == "only" else request.weights
    if wanted:
        say(f"loading {name_some(wanted)} …")
    for name, weights in wanted.items():
        backbone = load_backbone(name, weights, request.precision, device)
        for note in backbone.notes:
            say(f"note: {note}")
        facts = {"weights_hash": backbone.spec["weights_hash"], "dimension": backbone.dimension}
        facts |= {"weights": weights, "precision": request.precision, "device": device}
        fingerprint = _fingerprint(content, backbone.spec, weights.name, store.FEATURE_CODEC)
        of_features = {"backbone": backbone.spec, "codec": store.FEATURE_CODEC}
        outputs.append(output(name, fingerprint, spec | of_features, **facts))
    for each in outputs:
        if each.replaced.exists():
            with only_one(each.lock, each.final.name):
                recover(each)
        if each.finished:
            store.FeatureStore.open(each.final)  # an InputError now, before anything is computed
    if retry_failed:
        outputs = list(map(_next_revision, outputs))
    return Plan(collection, tuple(sources), tuple(outputs), stores, limits, retry_failed)


def recover(output: Output) -> None:
    """Clean up after a killed run: bring back a revision that has no successor, remove work on a finished store."""
    if output.replaced.exists():
        if output.final.exists():
            remove_tree(output.replaced)
        else:
            output.replaced.rename(output.final)
    for work in leftovers(output):
        remove_tree(work)


def leftovers(output: Output) -> list[Path]:
    """Return the work folders of the published revision and of those before it."""
    published = store.revision_at(output.final)
    first = output.work.with_name(output.final.name)
    works = [first, *(first.with_name(f"{first.name}.{revision}") for revision in range(2, published + 1))]
    return [work for work in works if work.is_dir()] if published else []


def _next_revision(output: Output) -> Output:
    if not output.finished:
        return output
    opened = store.FeatureStore.open(output.final)
    failed = ~opened.done
    if not failed.any() and not any(map(due_to_limit, opened.error.tolist())):
        return output
    revision = opened.attrs["revision"] + 1
    return replace(output, revision=revision, work=output.work.with_name(f"{output.final.name}.{revision}"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(*parts: object) -> str:
    return _sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True))[:12]
