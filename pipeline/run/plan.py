"""Plan a preprocessing run before it starts: the stores to make, their fingerprints, one task for each content."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..clips.manifest import Collection
from ..console import name_some, say
from ..encoders import Weights, check_precision
from ..encoders.load import load_encoder
from ..encoders.names import PICTURES, Encoder, inputs_for, split_request
from ..errors import InputError
from ..files import remove_tree
from ..media import decode as media
from ..media import faces, ffmpeg, logmel, sound
from ..media.process import Limits, due_to_limit
from ..stores import store
from ..stores.claim import only_one
from ..stores.schema import SOUND, WAVEFORM
from ..stores.store import WORK
from .parts import FACTS, MEDIA_SHAPES, donors
from .sources import UNREAD, Source, read_sources, sha256_text

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
    "silence": sound.SILENCE,
}
Precision = Literal["fp32", "tf32", "bf16"]
MediaMode = Literal["keep", "only"]


@dataclass(frozen=True)
class FeatureRequest:
    """The stores that a run is asked for.

    Args:
        weights: of each encoder by its name, as `stored_requests` gives them: `NAME`, or `MODALITY=NAME`.
        precision: of the networks.
        media: `keep` a media store beside the features, or make `only` that.
        waveform: the media store keeps the sound, too; it does so anyway where an encoder hears it.
    """

    weights: Mapping[str, Weights] = field(default_factory=dict)
    precision: Precision = "fp32"
    media: MediaMode | None = None
    waveform: bool = False

    def __post_init__(self):
        if self.waveform and self.media is None:
            raise InputError("--waveform is of the media store.\nGive --media keep or only with it, or leave it out.")


@dataclass(frozen=True)
class Output:
    """One store to make: the media store (no weights) or one encoder's features."""

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
    inputs: Mapping[str, str] = field(default_factory=lambda: PICTURES)  # modality -> what it is computed from
    segments: int = media.SEGMENTS
    libraries: tuple[str, ...] = ()  # whose versions count beside those of every store
    revision: int = 1  # above 1: replaces the finished store, whose failed clips are tried again

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the names of the store's modalities, in order."""
        return tuple(self.inputs)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of one clip in each array; a waveform has none that all clips share."""
        return dict.fromkeys(self.inputs, (self.segments, self.dimension)) if self.weights else MEDIA_SHAPES

    @property
    def waveform(self) -> bool:
        """Return whether a clip's waveform is needed: to be heard, or to be kept."""
        return WAVEFORM in (self.inputs.values() if self.weights else self.spec)

    @property
    def shown(self) -> bool:
        """Return whether a clip's frames are needed."""
        return "frames" in self.inputs.values()

    @property
    def faces(self) -> bool:
        """Return whether the frames are cut to faces."""
        return "crop" in self.spec

    @property
    def reads_text(self) -> bool:
        """Return whether the store is made of the manifest's texts alone."""
        return "text" in self.inputs.values()

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
    text: str | None = None  # in place of the file, for stores that are made of texts
    sound: Path | None = None  # of these clips' sound, if it is not in `path`


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
        return tuple(f"{UNREAD}-{sha256_text(c.clip_id)}" if s.sha256 == UNREAD else s.sha256 for c, s in clips)

    @cached_property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """Return, for each key, its rows on the clip axis: clips of equal content share their result."""
        return _rows(self.keys)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Return each clip's text, the manifest's column `text`; empty where there is none."""
        return tuple(dict(clip.columns).get("text", "").strip() for clip in self.collection.clips)

    def keys_of(self, output: Output) -> tuple[str, ...]:
        """Return each clip's key in a store: of a store made of texts, the sha256 of the text."""
        return tuple(map(sha256_text, self.texts)) if output.reads_text else self.keys

    def rows_of(self, output: Output) -> dict[str, tuple[int, ...]]:
        """Return, for each key in a store, its rows on the clip axis."""
        return _rows(self.keys_of(output)) if output.reads_text else self.rows

    def unfinished(self) -> tuple[Output, ...]:
        """Return the stores that are not published yet."""
        return tuple(output for output in self.outputs if not output.finished)

    @cached_property
    def media_rows(self) -> dict[str, Row]:
        """Return, for each content (sha256) with media in a finished store, the row there.

        Where a waveform is needed, only stores that keep it count; where no frames are, they may be cut in any way.
        """
        heard, shown = (any(getattr(o, kind) for o in self.unfinished()) for kind in ("waveform", "shown"))
        cut, rows = dict if shown else _uncut, {}
        for kept in (True,) if heard else (True, False):
            spec = media_spec(self.limits, waveform=kept)
            for donor in donors(self.stores, store.MEDIA, lambda made, spec=spec: cut(made) == cut(spec), MEDIA_SHAPES):
                path, revision = donor.store.path, donor.store.attrs["revision"]
                for content, row in donor.rows(self.retry_failed).items():
                    rows.setdefault(content, Row(path, row, revision))
        return rows

    def tasks(self) -> list[Task]:
        """Return a task for each content that some store lacks."""
        tasks, root = [], self.collection.root.absolute()
        reading = [output for output in self.unfinished() if output.reads_text]
        watching = [output for output in self.unfinished() if not output.reads_text]
        for outputs in filter(None, (watching, reading)):
            for key, rows in self.rows_of(outputs[0]).items():
                if lacking := tuple(output for output in outputs if not output.part(key).is_file()):
                    clip, source = self.collection.clips[rows[0]], self.sources[rows[0]]
                    text = self.texts[rows[0]] if outputs is reading else None
                    cached = None if outputs is reading else self.media_rows.get(key)
                    path, sound = root / clip.path, root / clip.audio_path if clip.audio_path else None
                    limits = self.limits if any(output.shown for output in lacking) else self.limits.without_crop()
                    tasks.append(Task(key, rows, root, path, lacking, cached, limits, source, text, sound))
        return tasks


def _rows(keys: Sequence[str]) -> dict[str, tuple[int, ...]]:
    rows = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    return {key: tuple(several) for key, several in rows.items()}


def media_spec(limits: Limits, waveform: bool = False) -> dict:
    """Return what determines the media of a clip: constants, and what was asked for beside the defaults."""
    face = faces.face_spec() if limits.crop == "face" else {}
    return MEDIA_SPEC | limits.spec() | face | ({WAVEFORM: SOUND[0]} if waveform else {})


def _uncut(spec: Mapping) -> dict:
    """Return a media store's spec without what the frames are cut to, which its sound does not depend on."""
    return {name: value for name, value in spec.items() if name not in ("crop", "no_face") and name[:5] != "face_"}


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
    the encoder, its weights and the precision: what determines the bytes, never paths.

    Args:
        collection: the clips.
        stores: folder of the stores.
        request: which stores.
        device: where the networks run.
        limits: of each clip.
        follow_links: read links that lead out of the clips' root.
        retry_failed: a finished store with clips that failed, or lack a modality because of a limit, gets its next
            revision.

    Raises:
        InputError: unknown features, weights that cannot be loaded, a store that cannot be opened.
    """
    stores, spec, unseen = stores.absolute(), media_spec(limits), media_spec(limits.without_crop())
    sources = read_sources(collection, limits.max_bytes, follow_links)
    hashed = zip(collection.clips, (source.sha256 for source in sources), strict=True)
    rows = [[c.clip_id, c.label, c.subject, c.columns, sha256] for c, sha256 in hashed]

    def content(spec: Mapping) -> str:
        return _fingerprint(store.SCHEMA, rows, collection.classes, collection.synthetic, spec)

    def output(name: str, fingerprint: str, spec: Mapping, **more: object) -> Output:
        folder = store.store_name(collection.dataset, name, fingerprint)
        more["libraries"] = (*more.get("libraries", ()), *((faces.LIBRARY,) if "crop" in spec else ()))
        return Output(name, fingerprint, stores / folder, stores / WORK / folder, json.loads(json.dumps(spec)), **more)

    outputs, codec = [], store.FEATURE_CODEC
    for name, encoder, facts in _encoders(collection, request, device):
        made_of = spec if "frames" in facts["inputs"].values() else unseen
        asked = [] if facts["inputs"] == PICTURES else [facts["inputs"]]  # the paper's are in no fingerprint
        fingerprint = _fingerprint(content(made_of), encoder.spec, facts["weights"].name, codec, *asked)
        outputs.append(output(name, fingerprint, made_of | {"backbone": encoder.spec, "codec": codec}, **facts))
    if request.media:
        kept = media_spec(limits, _keeps_waveform(collection, request, outputs))
        outputs.insert(0, output(store.MEDIA, content(kept), kept))
    outputs = list({each.final: each for each in outputs}.values())  # one may be asked for under two names
    _check_crop(limits, outputs)
    for each in outputs:
        if each.replaced.exists():
            with only_one(each.lock, each.final.name):
                recover(each)
        if each.finished:
            store.FeatureStore.open(each.final)  # an InputError now, before anything is computed
    outputs = list(map(_next_revision, outputs)) if retry_failed else outputs
    return Plan(collection, tuple(sources), tuple(outputs), stores, limits, retry_failed)


def _encoders(collection: Collection, request: FeatureRequest, device: str) -> Iterator[tuple[str, Encoder, dict]]:
    """Load what was asked for; yield its name, the encoder, and what an output says of it."""
    wanted = {} if request.media == "only" else request.weights
    if wanted:
        check_precision(request.precision, device)
        say(f"loading {name_some(wanted)} …")
    for requested, weights in wanted.items():
        modality, name = split_request(requested)
        encoder = load_encoder(name, weights, request.precision, device)
        for note in encoder.notes:
            say(f"note: {note}")
        inputs = inputs_for(encoder, modality, requested)
        _check_inputs(collection, inputs)
        yield (
            name,
            encoder,
            {
                "weights": weights,
                "weights_hash": encoder.spec["weights_hash"],
                "dimension": encoder.dimension,
                "segments": encoder.segments,
                "precision": request.precision,
                "device": device if encoder.spec.get("device", "cpu") != "cpu" else "cpu",
                "inputs": inputs,
                "libraries": encoder.libraries,
            },
        )


def _keeps_waveform(collection: Collection, request: FeatureRequest, outputs: Sequence[Output]) -> bool:
    """Return whether the media store keeps the sound. InputError: the manifest has a column of that name."""
    kept = request.waveform or any(output.waveform for output in outputs)
    if kept and WAVEFORM in dict(collection.clips[0].columns):
        raise InputError(f"the manifest's column {WAVEFORM!r} has the name of the media store's sound.\nRename it.")
    return kept


def _check_crop(limits: Limits, outputs: Sequence[Output]) -> None:
    """Check that there are frames to cut to faces."""
    if limits.crop == "face" and not any(output.shown for output in outputs):
        why = "--crop face is of pictures, and nothing that is asked for is made of them"
        raise InputError(f"{why}.\nLeave it out: the sound of a media store of faces is used all the same.")


def _check_inputs(collection: Collection, inputs: Mapping[str, str]) -> None:
    """Check that there is text to read, and that a modality has no name of the store's own."""
    for modality in inputs:
        if modality in store.NO_MODALITY | FACTS:
            raise InputError(f"--features {modality}=…: {modality} is a name of the store's own.\nName it otherwise.")
        if modality in dict(collection.clips[0].columns) and (modality, inputs[modality]) != ("text", "text"):
            raise InputError(f"--features {modality}=…: the manifest has a column of that name.\nRename one of them.")
    if "text" in inputs.values() and not any(dict(clip.columns).get("text", "").strip() for clip in collection.clips):
        raise InputError(
            f"no clip of {collection.dataset} has a text.\n"
            "Add a column `text` with what is said in each clip to the CSV (--dataset FILE.csv)."
        )


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


def _fingerprint(*parts: object) -> str:
    return sha256_text(json.dumps(parts, sort_keys=True, ensure_ascii=True))[:12]
