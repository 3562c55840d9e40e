"""What a preprocessing run will do, decided before it starts: stores, fingerprints, one task a clip."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import backbones, ffmpeg, logmel, media, store
from .backbones import Weights
from .manifest import Collection, content_hashes

WORK = ".partial"  # folder of unfinished work inside the stores folder
HASH_CACHE = Path(".cache") / "sha256.json"
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
    spec: Mapping
    weights: Weights | None = None
    weights_hash: str = ""
    dimension: int = 0
    precision: str = "fp32"
    device: str = "cpu"

    @property
    def finished(self) -> bool:
        """The store is published."""
        return (self.final / store.COMPLETE).is_file()

    def part(self, index: int) -> Path:
        """The file that holds, and whose presence tells, the finished result of one clip."""
        return self.work / "clips" / f"{index:06d}.npz"


@dataclass(frozen=True)
class Task:
    """One clip's work: a small message to a worker."""

    index: int
    path: Path
    outputs: tuple[Output, ...]  # the stores that lack this clip
    media_store: Path | None  # read the media from here instead of decoding
    timeout: float  # seconds to decode


@dataclass(frozen=True)
class Plan:
    """A run: its clips, and every store asked for, finished ones included."""

    collection: Collection
    hashes: tuple[str, ...]  # sha256 of each clip's content
    outputs: tuple[Output, ...]
    media_store: Path | None
    timeout: float

    def unfinished(self) -> tuple[Output, ...]:
        """The stores that are not published yet."""
        return tuple(output for output in self.outputs if not output.finished)

    def tasks(self) -> list[Task]:
        """One task for each clip that lacks its result in any store."""
        tasks, unfinished = [], self.unfinished()
        for index, clip in enumerate(self.collection.clips):
            lacking = tuple(output for output in unfinished if not output.part(index).is_file())
            if lacking:
                path = (self.collection.root / clip.path).absolute()
                tasks.append(Task(index, path, lacking, self.media_store, self.timeout))
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
    timeout: float = ffmpeg.Limits.timeout,
) -> Plan:
    """Decide which stores to make and where. ``media_mode``: None, `keep` (the media store too) or `only`.

    The fingerprints hash the clips (content, id, label, columns), the spec of segments and log-Mels and, for features,
    the backbone, its weights and the precision: what determines the bytes, never paths. A finished media store of
    the same clips is read instead of decoding again.
    """
    stores = stores.absolute()
    hashes = content_hashes([collection.root / clip.path for clip in collection.clips], stores / HASH_CACHE)
    rows = [[c.clip_id, c.label, c.subject, c.columns, h] for c, h in zip(collection.clips, hashes, strict=True)]
    content = _fingerprint(store.SCHEMA, rows, collection.classes, collection.synthetic, MEDIA_SPEC)

    def output(name: str, fingerprint: str, spec: Mapping) -> Output:
        folder = store.store_name(collection.dataset, name, fingerprint)
        return Output(name, fingerprint, stores / folder, stores / WORK / folder, spec)

    media_output = output(store.MEDIA, content, MEDIA_SPEC)
    outputs = [media_output] if media_mode else []
    for name in () if media_mode == "only" else features:
        backbone = backbones.load_backbone(name, weights[name], precision, device)
        described = backbone.describe()
        outputs.append(
            replace(
                output(
                    name, _fingerprint(content, described, weights[name].name), MEDIA_SPEC | {"backbone": described}
                ),
                weights=weights[name],
                weights_hash=backbone.spec.weights_hash,
                dimension=backbone.dimension,
                precision=precision,
                device=device,
            )
        )
    for made in (media_output, *outputs):
        if made.finished:
            store.FeatureStore.open(made.final)  # an InputError now, before anything is computed
    cached = media_output.final if media_output.finished else None
    return Plan(collection, tuple(hashes), tuple(outputs), cached, timeout)


def _fingerprint(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
