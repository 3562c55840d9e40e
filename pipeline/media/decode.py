"""One clip -> 30 central frames and 30 log-Mel images, each modality with the reason where it is missing.

Time 0 is the earliest presented timestamp of the first real video stream and the first audio stream; T is the end of
the last decoded video frame (without video: of the audio). 30 segments of 0.5 s start evenly spaced from 0 to
max(T - 0.5, 0). A segment's picture is the last frame whose timestamp is not after the segment's centre.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..errors import OUT_OF_TIME, ClipError, MachineError, is_machine_fault
from .ffmpeg import DecodedStreams, Listing, Packets, check_file, decode_streams, find_damaged_frames, list_packets
from .logmel import segment_logmel
from .parse import complains, decoder_failed, error_of, first_error
from .process import DecoderError, Limits, ffmpeg_binary
from .sound import take_sound, undecodable

SEGMENTS = 30
SEGMENT_SECONDS = 0.5
CLOCK = 1e5  # per second: timestamps that round to the same tick are the same
ROUNDING = 1e-9  # seconds
MODALITY_OF = {"video": "visual", "audio": "audio"}  # by kind of stream
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class ClipMedia:
    """The frames and the sound of one clip.

    Args:
        frames: uint8 [30, 256, 256, 3] RGB, or None where the picture is missing.
        logmel: float16 [30, 3, 64, 51] (`segment_logmel`), or None where the sound is missing.
        causes: why a modality (`"visual"`, `"audio"`) is missing, or what is wrong with it; empty for a sound clip.
        duration: T in seconds, 0.0 if neither modality is there.
        frame_times: float64 [30] timestamps of the frames in seconds after time 0, or None.
        note: what is odd about a clip that was read nevertheless, or nothing.
        waveform: float32 [round(16000 T)], mono, 16 kHz, from time 0 to T, or None where the sound is missing.
        text: what is said in it, of the manifest; None where no text is read.
        box: float64 [4] of the face that the frames are cut to (`faces.widen_box`), or None.
        lost: neither modality is there, though its length is known: the picture has no face.
    """

    frames: np.ndarray | None
    logmel: np.ndarray | None
    causes: dict[str, str]
    duration: float
    frame_times: np.ndarray | None = None
    note: str = ""
    waveform: np.ndarray | None = None
    text: str | None = None
    box: np.ndarray | None = None
    lost: bool = False


@dataclass
class _Clip:
    """A decoded clip on its own clock."""

    duration: float = 0.0
    frames: np.ndarray | None = None
    frame_times: np.ndarray | None = None
    waveform: np.ndarray | None = None  # float32 [round(16000 T)]
    logmel: np.ndarray | None = None
    causes: dict[str, str] = field(default_factory=dict)
    note: str = ""
    box: np.ndarray | None = None


def segment_starts(duration: float) -> np.ndarray:
    """Return the starts of the 30 segments of a clip of `duration` seconds: float64 [30] in seconds."""
    return np.linspace(0.0, max(duration - SEGMENT_SECONDS, 0.0), SEGMENTS)


def segment_centres(duration: float) -> np.ndarray:
    """Return the centres of the 30 segments of a clip of `duration` seconds: float64 [30] in seconds."""
    return segment_starts(duration) + min(duration, SEGMENT_SECONDS) / 2


def read_clip(path: str | os.PathLike, limits: Limits = DEFAULT_LIMITS) -> ClipMedia:
    """Decode one clip: its 30 central frames and log-Mel images.

    A modality is missing, with a cause, if it has no stream, if its stream fails before its last needed frame or
    sample, or if it is digital silence. A file that cannot be read misses both; that is not an exception.

    Args:
        path: video or audio file; only real containers are opened, never a playlist.
        limits: what it may cost; a clip beyond them is not read.

    Raises:
        InputError: there is no ffmpeg to decode with.
        MachineError: ffmpeg was killed, by a lack of memory for example.
    """
    path, deadline = Path(path), time.monotonic() + limits.timeout
    return _with_logmel(path, _guarded(path, lambda: _read(path, limits, deadline)))


def read_pair(
    path: str | os.PathLike,
    sound: str | os.PathLike,
    limits: Limits = DEFAULT_LIMITS,
    faults: Mapping[str, str] = MappingProxyType({}),
) -> ClipMedia:
    """Decode a clip whose picture is in one file and whose sound is in another.

    The picture is what `read_clip` makes of the first file, T included, and that file's sound is not used. The sound
    keeps its start on its own file's clock, whose time 0 is the picture's; what lies beyond T is not used, and where it
    ends early there is silence. What is wrong with one file costs the modality that is read from it; T is the end of
    the sound if there is no picture.

    Args:
        path: file of the picture.
        sound: file of the sound; its pictures are not decoded.
        limits: what both together may take in time, and each may cost otherwise.
        faults: why a file must not be opened, by modality.

    Raises:
        InputError, MachineError: as `read_clip`.
    """
    path, sound, deadline = Path(path), Path(sound), time.monotonic() + limits.timeout
    shown, heard = (_Clip(causes={name: faults.get(name, "")}) for name in ("visual", "audio"))
    if "visual" not in faults:
        shown = _guarded(path, lambda: _read(path, limits, deadline), ("visual",))
    clip = _Clip(shown.duration, shown.frames, shown.frame_times, note=shown.note, box=shown.box)
    if shown.frame_times is None:  # a picture without a face still has its T
        clip = _Clip()
    if "audio" not in faults:
        heard = _guarded(sound, lambda: _read_sound(replace(clip), sound, limits, deadline), ("audio",))
    if heard.waveform is not None:
        clip.waveform, clip.duration = heard.waveform, heard.duration
        clip.note = "; ".join(filter(None, (clip.note, heard.note and f"the file of its sound: {heard.note}")))
    causes = {"visual": shown.causes.get("visual", ""), "audio": heard.causes.get("audio", "")}
    clip.causes = {name: why for name, why in causes.items() if why}
    return _with_logmel(sound, clip)


def _with_logmel(path: Path, clip: _Clip) -> ClipMedia:
    logmel = None
    if clip.waveform is not None:
        starts = segment_starts(clip.duration)
        heard = _guarded(path, lambda: _Clip(logmel=segment_logmel(clip.waveform, starts)), ("audio",))
        logmel, clip.causes = heard.logmel, clip.causes | heard.causes
    lost = clip.frames is None and logmel is None
    if lost and clip.frame_times is None:
        clip.duration = 0.0
    times = None if clip.frames is None else clip.frame_times
    more = {"waveform": None if logmel is None else clip.waveform, "box": clip.box, "lost": lost}
    return ClipMedia(clip.frames, logmel, clip.causes, clip.duration, times, clip.note, **more)


def read_waveform(path: str | os.PathLike, limits: Limits = DEFAULT_LIMITS) -> np.ndarray | None:
    """Return the sound that log-Mels are made from: float32 [round(16000 T)], mono, 16 kHz, from time 0 to T.

    None where the sound is missing; arguments and errors as for `read_clip`.
    """
    return read_clip(path, limits).waveform


def _guarded(path: Path, stage: Callable[[], _Clip], modalities: Sequence[str] = ("visual", "audio")) -> _Clip:
    """Return what a stage makes of a clip. Whatever it raises is the cause why these modalities are missing.

    Raises:
        Exception: `is_machine_fault`.
    """
    try:
        return stage()
    except ClipError as error:
        cause = str(error)
    except MachineError as error:
        raise MachineError(f"{path.name}: {error}") from None
    except Exception as error:  # whatever a clip holds, the run goes on
        if is_machine_fault(error):
            raise
        cause = f"an unforeseen error ({type(error).__name__})"
    return _Clip(causes=dict.fromkeys(modalities, cause))


def _read(path: Path, limits: Limits, deadline: float) -> _Clip:
    ffmpeg_binary()  # its absence is no fault of the clip
    check_file(path, limits.max_bytes)
    listing = list_packets(path, limits, deadline)
    decoded = _decode(path, listing, limits, deadline)
    clip = _assemble(path, listing, decoded, limits)
    if limits.crop == "face" and clip.frames is not None:
        from .faces import crop_to_face

        times = clip.frame_times + _time_zero(decoded)
        clip.frames, clip.box, told = crop_to_face(path, listing, clip.frames, times, limits, deadline)
        if told := "; ".join(filter(None, (clip.causes.get("visual"), told))):
            clip.causes["visual"] = told
    if time.monotonic() > deadline:  # what is done here takes time, too
        raise ClipError(OUT_OF_TIME)
    return clip


def _read_sound(clip: _Clip, path: Path, limits: Limits, deadline: float) -> _Clip:
    """Return a clip with the sound of a file of its own, or the cause why it lacks it."""
    ffmpeg_binary()
    check_file(path, limits.max_bytes)
    listing = list_packets(path, limits, deadline)
    streams = dict(listing.streams)
    pictures = streams.pop("video", None)
    listing = replace(listing, streams=streams)
    decoded = _decode(path, listing, limits, deadline)
    if len(decoded.audio_times):
        zero = decoded.audio_times.min()
        if pictures is not None:  # not decoded, but on the file's clock
            zero = min(zero, pictures.times.min())
        listing = _settle(listing, decoded, zero, limits)
        clip.note = listing.note
        _hear(clip, path, listing, decoded, zero)
    else:
        clip.causes = {"audio": undecodable("audio", listing, decoded, path)}
    if time.monotonic() > deadline:
        raise ClipError(OUT_OF_TIME)
    return clip


def _decode(path: Path, listing: Listing, limits: Limits, deadline: float) -> DecodedStreams:
    """Decode once, keeping the frames that the packets' timestamps ask for; again if the frames say otherwise."""
    kinds = tuple(listing.streams)
    streams = listing.streams.values()
    if not kinds:
        return DecodedStreams()
    _check_length(max(s.ends.max() for s in streams) - min(s.times.min() for s in streams), limits)
    wanted = np.zeros(0)
    if "video" in kinds:
        packets = listing.streams["video"]
        start = min(stream.times.min() for stream in listing.streams.values())
        wanted = np.unique(packets.times[_choose_frames(packets.times, packets.ends - packets.times, start)[0]])
    how = {"limits": limits, "deadline": deadline, "bridged": listing.bridged}
    decode = partial(_decode_kinds, path, listing.maps, **how)
    decoded = decode(kinds, wanted)
    if len(kinds) == 2 and (not len(decoded.frame_times) or not len(decoded.audio_times)):
        # One stream that cannot even be opened ends the whole process: give each its own.
        video, audio = decode(("video",), wanted), decode(("audio",), wanted)
        decoded = DecodedStreams(
            video.frame_times, video.frame_durations, video.images, video.imaged, audio.audio_times,
            audio.audio_counts, audio.samples, audio.peaks, log=video.log + audio.log,
        )  # fmt: skip
    if len(decoded.frame_times):
        truth, _ = _choose_frames(decoded.frame_times, decoded.frame_durations, _time_zero(decoded))
        if not np.isin(truth, decoded.imaged).all():
            # Bridged, a stream's timestamps depend on the other one's, so that both are decoded again.
            again = decode(kinds if listing.bridged else ("video",), np.unique(decoded.frame_times[truth]))
            decoded.images, decoded.imaged = again.images, again.imaged
        lacking = np.setdiff1d(truth, decoded.imaged)
        if len(lacking):  # where the stream changes, the deinterlacer does not give the frame that it holds
            again = decode(("video",), decoded.frame_times[lacking], deinterlaced=False)
            imaged = np.concatenate([decoded.imaged, again.imaged])
            order = np.argsort(imaged, kind="stable")
            decoded.images, decoded.imaged = np.concatenate([decoded.images, again.images])[order], imaged[order]
        decoded.damaged = np.zeros(len(decoded.frame_times), bool)
        if decoder_failed(decoded.log, "video"):  # only then is it worth another pass
            found = find_damaged_frames(path, listing.maps["video"], **how)[: len(decoded.damaged)]
            decoded.damaged[: len(found)] = found
    return decoded


def _decode_kinds(
    path: Path,
    maps: Mapping[str, str],
    kinds: tuple[str, ...],
    wanted: np.ndarray,
    limits: Limits,
    deadline: float,
    **how: bool,
) -> DecodedStreams:
    try:
        return decode_streams(path, {kind: maps[kind] for kind in kinds}, wanted, limits, deadline, **how)
    except DecoderError as error:
        return DecodedStreams(log=f"[error] {error}\n")


def _check_length(seconds: float, limits: Limits) -> None:
    if seconds > limits.max_seconds:
        raise ClipError(f"the clip lasts {seconds:.0f} s, longer than the {limits.max_seconds:.0f} s allowed")


def _time_zero(decoded: DecodedStreams) -> float:
    return min(times.min() for times in (decoded.frame_times, decoded.audio_times) if len(times))


def _choose_frames(times: np.ndarray, durations: np.ndarray, zero: float) -> tuple[np.ndarray, float]:
    """Choose the frames that are on screen at the segments' centres, and return T.

    Args:
        times: float64 [F] timestamps in seconds, in any order.
        durations: float64 [F] seconds, 0 where unknown.
        zero: the clip's time 0 on the clock of `times`.

    Returns:
        int [30] indexes into `times`; the end of the last frame in seconds after `zero`.
    """
    order = np.argsort(times, kind="stable")
    ordered, last = times[order], durations[order[-1]]
    if last <= 0 and len(times) > 1:
        last = np.median(np.diff(ordered))
    duration = round(float(ordered[-1] + max(last, 0.0) - zero), 9)
    position = np.searchsorted(ordered - zero, segment_centres(duration) + ROUNDING, side="right") - 1
    return order[np.maximum(position, 0)], duration


def _assemble(path: Path, listing: Listing, decoded: DecodedStreams, limits: Limits) -> _Clip:
    clip = _Clip()
    if not len(decoded.frame_times) and not len(decoded.audio_times):
        for kind, modality in MODALITY_OF.items():
            clip.causes[modality] = undecodable(kind, listing, decoded, path)
        return clip
    zero = _time_zero(decoded)
    listing = _settle(listing, decoded, zero, limits)
    clip.note = listing.note
    fault = _video_fault(path, listing, decoded, zero, limits)
    if fault is None:
        chosen, clip.duration = _choose_frames(decoded.frame_times, decoded.frame_durations, zero)
        clip.frames = decoded.images[np.searchsorted(decoded.imaged, chosen, side="right") - 1]  # the last of one time
        clip.frame_times = decoded.frame_times[chosen] - zero
        if told := _blemish(path, listing, decoded, chosen):
            clip.causes["visual"] = told
    else:
        clip.causes["visual"] = fault
    _hear(clip, path, listing, decoded, zero)
    if clip.frames is None and clip.waveform is None:
        clip.duration = 0.0
    return clip


def _settle(listing: Listing, decoded: DecodedStreams, zero: float, limits: Limits) -> Listing:
    """Return a listing without a promise that nothing but its header makes: its note tells it. ClipError: too long."""
    ends = [*(decoded.frame_times + decoded.frame_durations)[-1:], *decoded.audio_ends]
    _check_length(max(ends) - zero, limits)
    promised = listing.promised
    if promised is None or listing.cut or complains(decoded.log):
        return listing
    told = f"its header promises {promised - zero:.2f} s; it ends at {max(ends) - zero:.2f} s without an error"
    return replace(listing, promised=None, note="; ".join(filter(None, (listing.note, told))))


def _hear(clip: _Clip, path: Path, listing: Listing, decoded: DecodedStreams, zero: float) -> None:
    """Give a clip the sound of a file, or the cause why it lacks it; without a picture T is the end of the sound."""
    end = clip.duration
    if clip.frame_times is None:
        end = np.inf
        clip.duration = round(float(decoded.audio_ends.max() - zero), 9) if len(decoded.audio_times) else 0.0
    starts = segment_starts(clip.duration)
    clip.waveform, fault = take_sound(path, listing, decoded, zero, clip.duration, starts, end)
    if fault:
        clip.causes["audio"] = fault


def _video_fault(path: Path, listing: Listing, decoded: DecodedStreams, zero: float, limits: Limits) -> str | None:
    if not len(decoded.frame_times):
        return undecodable("video", listing, decoded, path)
    packets, times = listing.streams["video"], decoded.frame_times
    why = first_error(decoded.log, path, packets.codec) or "the file is truncated"
    expected = max(packets.ends.max(), listing.promised or 0.0) - zero
    needed = segment_centres(expected)[-1]
    chosen, end = _choose_frames(times, decoded.frame_durations, zero)
    if end < needed - ROUNDING:
        return f"the video stops at {end:.2f} s of {expected:.2f} s: {why}"
    if decoder_failed(decoded.log, "video"):
        # Some codecs have packets that show nothing; only when the decoder complained is such a packet a lost frame.
        # Before the first decoded frame none is missed: a recording may start between two key frames.
        lost = _lost_pictures(packets, decoded) - zero
        lost = lost[(lost > times.min() - zero) & (lost <= needed)]
        if len(lost):
            return f"the video fails at {lost.min():.2f} s of {expected:.2f} s: {why}"
    converted = np.isin(np.unique(chosen), decoded.imaged)
    if not converted.all():
        return f"{converted.sum()} of {len(converted)} frames could be converted: {why}"
    if decoded.damaged[chosen].sum() > limits.max_damaged:
        return f"{_blemish(path, listing, decoded, chosen)}, more than the {limits.max_damaged} allowed"
    return None


def _blemish(path: Path, listing: Listing, decoded: DecodedStreams, chosen: np.ndarray) -> str | None:
    """Return what is wrong with the chosen frames, if anything."""
    if count := int(decoded.damaged[chosen].sum()):
        return f"{count} of {SEGMENTS} frames are damaged"
    why = error_of(decoded.log, path, "video", listing.streams["video"].codec, listing.bridged)
    return why and f"frames may be damaged, which ones the decoder does not tell: {why}"


def _lost_pictures(packets: Packets, decoded: DecodedStreams) -> np.ndarray:
    """Return when packets gave no picture, float64 [lost] in seconds of the file's clock.

    Where packets have no timestamps of their own it is when a picture's duration is over and the next one is not there.
    """
    times = decoded.frame_times
    if packets.timed:
        return packets.times[~np.isin(np.rint(packets.times * CLOCK), np.rint(times * CLOCK))]
    gaps = np.diff(times)
    return times[:-1][gaps > 1.5 * np.median(gaps)] + np.median(gaps) if len(gaps) else gaps
