"""Work on one clip, in any process: decode it, compute the results that its stores lack, save each result at once.

One decode pass serves the media store and every backbone. A fault of the clip becomes its recorded cause; a fault of
the machine (a full disk, no ffmpeg) is raised.
"""

import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ..encoders import keep_freed_memory, use_one_thread
from ..encoders.load import load_encoder
from ..encoders.names import INPUTS, Encoder
from ..errors import InputError, MachineError, is_machine_fault
from ..media import decode as media
from ..media.ffmpeg import FRAME_SIZE
from ..media.logmel import MEL_FRAMES, N_MELS, SAMPLE_RATE
from ..stores import store
from .parts import Donor, Part, versions, write_media
from .plan import Output, Row, Task
from .sources import stamp_of


@dataclass(frozen=True)
class Outcome:
    """The end of one task."""

    rows: tuple[int, ...]  # the task's
    failed: str = ""  # the cause, if the clip failed in any store
    seconds: dict[str, float] = field(default_factory=dict)  # decode, cnn, write
    note: str = ""  # to print once


BLANK = media.ClipMedia(
    np.zeros((media.SEGMENTS, FRAME_SIZE, FRAME_SIZE, 3), np.uint8),
    np.zeros((media.SEGMENTS, 3, N_MELS, MEL_FRAMES), np.float16),
    {},
    0.0,
    waveform=np.zeros(SAMPLE_RATE, np.float32),
    text="a",
)
Executor = Callable[[Sequence[Task]], Iterator[Outcome]]  # runs tasks, yields their outcomes as they end


@dataclass(frozen=True)
class Decoded:
    """A clip between its two stages."""

    clip: media.ClipMedia
    seconds: float
    note: str = ""
    written: float = 0.0  # seconds of saving what needs no network


def wants_gpu(tasks: Sequence[Task]) -> bool:
    """Return whether some task's CNNs are to run on a GPU."""
    return any(output.device.startswith("cuda") for task in tasks for output in task.outputs)


def process(task: Task) -> Outcome:
    """Do both stages of one task."""
    return encode([task], [decode(task)])[0]


def of_networks(task: Task) -> Task:
    """Return what is left of a task for the second stage, where another worker does the first (`decode_and_save`)."""
    return replace(task, outputs=tuple(output for output in task.outputs if output.weights))


def decode_and_save(task: Task) -> Decoded:
    """Decode a clip whose networks run elsewhere: save what needs none, and return what they are given, no more."""
    decoded, networks = decode(task), of_networks(task).outputs
    rest = replace(task, outputs=tuple(output for output in task.outputs if not output.weights))
    written = sum(encode([rest], [decoded])[0].seconds[stage] for stage in ("cnn", "write"))
    given = {kind for output in networks for kind in output.inputs.values()}
    clip = replace(decoded.clip, **dict.fromkeys({"frames", "logmel", "waveform"} - given))
    return replace(decoded, clip=clip, written=written)


def decode(task: Task) -> Decoded:
    """Read a clip's frames and log-Mels: from a media store that has them, else from the clip's file."""
    keep_freed_memory()
    threadpool_limits(1)  # BLAS: more threads would change the last bits of log-Mels, and a store's bytes
    start = time.perf_counter()
    clip, note = None, ""
    if task.text is not None:
        causes = {} if task.text else {"text": "the manifest has none"}
        return Decoded(media.ClipMedia(None, None, causes, 0.0, text=task.text), 0.0)
    faults = task.source.faults
    if len(faults) == len(store.MODALITIES):
        clip = media.ClipMedia(None, None, faults, 0.0)
    elif task.media:
        try:
            clip = _cached_media(task.media, {name for output in task.outputs for name in _needed(output)})
        except InputError as error:
            note = f"note: {error}"
    if clip is None:
        if task.sound is None:
            clip = media.read_clip(task.path, task.limits)
        else:
            clip = media.read_pair(task.path, task.sound, task.limits, faults)
        if _changed(task):  # the results must not be saved under the hash of the earlier content
            _check_root(task.root)
            changed = "the file changed after its content was hashed"
            clip = media.ClipMedia(None, None, dict.fromkeys(store.MODALITIES, changed), 0.0)
    return Decoded(clip, time.perf_counter() - start, note)


def _changed(task: Task) -> bool:
    files = [(task.path, task.source), (task.sound, task.source.sound)]
    try:
        return any(stamp_of(path) != source.stamp for path, source in files if source and not source.fault)
    except OSError:
        return True


def _check_root(root: Path) -> None:
    """Raise MachineError if all clips are gone, not one of them, as where a disk is not mounted."""
    with suppress(OSError):
        if any(root.iterdir()):
            return
    raise MachineError(
        f"no clips at {root} on {platform.node()} (any more).\n"
        "Mount them there and run the same command again: finished clips are kept."
    )


def encode(tasks: Sequence[Task], decoded: Sequence[Decoded]) -> list[Outcome]:
    """Compute and save the results that each clip's stores lack; on a GPU the clips of a backbone in large batches."""
    keep_freed_memory()
    seconds = {"cnn": 0.0, "write": 0.0}
    failed = [""] * len(tasks)
    for work, output in {output.work: output for task in tasks for output in task.outputs}.items():
        lacking = [i for i, task in enumerate(tasks) if any(o.work == work for o in task.outputs)]
        start = time.perf_counter()
        parts = compute(output, [decoded[i].clip for i in lacking])
        seconds["cnn"] += time.perf_counter() - start
        start = time.perf_counter()
        for i, part in zip(lacking, parts, strict=True):
            clip, task = decoded[i].clip, tasks[i]
            if output.features == store.MEDIA and not part.failed:
                write_media(work, task.rows, clip.frames, clip.logmel, clip.waveform)
            replace(part, row=task.rows[0]).save(output.part(task.key))
            failed[i] = part.cause if part.failed else failed[i]
        seconds["write"] += time.perf_counter() - start
    cnn, write = (spent / len(tasks) for spent in seconds.values())
    return [
        Outcome(task.rows, cause, {"decode": each.seconds, "cnn": cnn, "write": write + each.written}, each.note)
        for task, cause, each in zip(tasks, failed, decoded, strict=True)
    ]


def compute(output: Output, clips: Sequence[media.ClipMedia]) -> list[Part]:
    """Compute the results of several clips in one store. A clip that its encoder fails at costs only itself."""
    if output.weights is None:  # media alone need no torch
        return [_part(output, clip, {}) for clip in clips]
    use_one_thread()
    encoder = _encoder(output)
    try:
        return _encode(output, encoder, clips)
    except Exception as error:
        if is_machine_fault(error):
            raise
    parts = []
    for clip in clips:
        try:
            parts += _encode(output, encoder, [clip])
        except Exception as error:
            if is_machine_fault(error):
                raise
            _encode(output, encoder, [BLANK])  # raises if the network or its device is broken
            parts.append(_failed(output, clip, f": an unforeseen error ({type(error).__name__})"))
    return parts


def _encode(output: Output, encoder: Encoder, clips: Sequence[media.ClipMedia]) -> list[Part]:
    clips, found = list(clips), [{} for _ in clips]
    for modality, kind in output.inputs.items():
        there = [i for i, clip in enumerate(clips) if _has(clip, kind)]
        values = encoder.encode(kind, [getattr(clips[i], kind) for i in there]) if there else []
        for i, each in zip(there, values, strict=True):
            if isinstance(each, str):
                clips[i] = replace(clips[i], **{kind: None}, causes={**clips[i].causes, INPUTS[kind]: each})
                continue
            with np.errstate(over="ignore"):  # what float16 cannot hold is infinite, and told below
                found[i][modality] = np.asarray(each, np.float16)
            if (shape := found[i][modality].shape) != (output.segments, output.dimension):
                raise InputError(
                    f"{output.features} gave features of shape {list(shape)}, expected the [{output.segments}, "
                    f"{output.dimension}] that it says.\nMend the encoder: its `segments`, `dimension` or `encode`."
                )
    return [_part(output, clip, arrays) for clip, arrays in zip(clips, found, strict=True)]


def _has(clip: media.ClipMedia, kind: str) -> bool:
    """Return whether a clip has what an encoder is to be given."""
    return bool(clip.text) if kind == "text" else getattr(clip, kind) is not None


def _failed(output: Output, clip: media.ClipMedia, why: str) -> Part:
    nothing = (False,) * len(output.modalities)
    facts = {"versions": versions(output.libraries), "box": clip.box if output.faces else None}
    return Part(nothing, f"{output.features}{why}", True, clip.duration, **facts)


def _part(output: Output, clip: media.ClipMedia, arrays: dict[str, np.ndarray]) -> Part:
    if any(not np.isfinite(values).all() for values in arrays.values()):
        return _failed(output, clip, " gave features beyond float16 or not finite")
    present = tuple(_has(clip, kind) for kind in output.inputs.values())
    # Without a face and without sound it failed, unless the picture is not asked for: then it lacks the sound.
    duration = 0.0 if clip.lost and output.shown else clip.duration
    told = {INPUTS[kind] for kind in output.inputs.values()} if any(present) or duration else clip.causes
    causes = [(modality, why) for modality, why in sorted(clip.causes.items(), reverse=True) if modality in {"", *told}]
    causes += [("clip", clip.note)] if clip.note and any(present) else []
    cause = "; ".join(f"{modality}: {why}" if modality else why for modality, why in causes)
    # A clip that has the other modality did not fail: it lacks this one.
    failed = not any(present) and not duration and clip.text is None
    box = clip.box if output.faces else None
    return Part(present, cause, failed, duration, arrays, versions(output.libraries), box=box)


def _encoder(output: Output) -> Encoder:
    encoder = load_encoder(output.features, output.weights, output.precision, output.device)
    weights_hash = encoder.spec["weights_hash"]
    if weights_hash != output.weights_hash:
        raise InputError(
            f"the weights of {output.features} have hash {weights_hash} on this worker and "
            f"{output.weights_hash} in the plan.\nGive every worker the same weights file and the same versions."
        )
    return encoder


@lru_cache(maxsize=4)
def _open_media(path: Path, revision: int) -> Donor:
    """Open a media store once a process; the ``revision`` tells it from its successor, as a worker serves many runs."""
    return Donor.open(path)


def _needed(output: Output) -> Sequence[str]:
    """Return which of a clip's media a store is computed from, or keeps."""
    if output.weights:
        return tuple(output.inputs.values())
    return (*output.inputs.values(), *(["waveform"] if output.waveform else []))


def _cached_media(row: Row, needed: Set[str]) -> media.ClipMedia:
    """Read what is needed of a clip from a media store: the bytes that decoding gave. InputError: they are damaged."""
    donor = _open_media(row.store, row.revision)
    opened = donor.store
    visual, audio = opened.present[row.index]
    told, duration = str(opened.error[row.index]), float(opened.duration[row.index])
    causes, note = _causes(told)
    return media.ClipMedia(
        frames=donor.block(["frames"], row.index)[0][0] if visual and "frames" in needed else None,
        logmel=donor.block(["logmel"], row.index)[0][0] if audio and "logmel" in needed else None,
        causes=causes,
        duration=duration,
        note=note,
        waveform=donor.waveform(row.index) if audio and "waveform" in needed else None,
        box=donor.box(row.index),
    )


def _causes(told: str) -> tuple[dict[str, str], str]:
    """Take what is recorded of a clip apart again: the cause of each modality, and the note."""
    _, *parts = re.split(r"(?:^|; )(visual|audio|clip): ", told)
    causes = dict(zip(parts[::2], parts[1::2], strict=True))
    if told != "; ".join(f"{name}: {why}" for name, why in causes.items()):
        return {"": told}, ""
    note = causes.pop("clip", "")
    return causes, note
