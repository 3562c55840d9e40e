"""The two ffmpeg commands that read a clip: one lists its packets, one decodes it; and what their logs say.

A clip may be hostile: only containers of sound and pictures are opened (a playlist could name other files), only from
the file itself, within limits of time, size and picture size.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import ffmpeg
import numpy as np

from ..files import encrypted_kinds, is_cut_mp3, riff_end
from .logmel import SAMPLE_RATE
from .process import ClipError, run_ffmpeg

FRAME_SIZE = 256  # pixels, both sides
FRAME_BYTES = FRAME_SIZE * FRAME_SIZE * 3  # RGB
CONTAINERS = "mov,matroska,webm,avi,flv,mpegts,mpeg,ogg,wav,w64,aiff,flac,mp3,aac,ac3,eac3,asf,dv,mxf,gxf,rm,caf,amr,au"
LIST_BYTES = 1 << 28  # of packet lists and logs: days of video
MAX_CHANNELS = 8  # of a clip that lasts as long as allowed
DECLARED_TOLERANCE = 0.25  # seconds by which a header may overstate a clip: no segment's centre lies that late
PACKET_DISCARD = 4  # flag of a packet that is decoded but not presented
PACKET = re.compile(  # stream, timestamps of decoding and presentation, duration, bytes, checksum, flags, side data
    r"(\d{1,4}), *(-?\d{1,19}), *(-?\d{1,19}), *(-?\d{1,19}), *(\d{1,10}), *0x[0-9a-f]{8}(?:, F=0x(\w{1,8}))?(?:,.*)?",
    re.ASCII,
)
RESTART = 0.1  # seconds by which timestamps go back where ffmpeg takes it for a new beginning
BRIDGED_GAP = 0.5  # seconds, the longest pause in streams whose timestamps start again
NON_MONOTONIC = re.compile(
    r"ost#0:(\d{1,4})/copy @ \w+\] (?:\[\w+\] )?Non-monotonic DTS; previous: (-?\d{1,19}), current: (-?\d{1,19})",
    re.ASCII,
)
NO_TICKS = 1 << 62  # a timestamp beyond it is none: ffmpeg writes -2**63 where it has none
LATEST = 1e10  # seconds: later than any clock of recordings, which count from 1970 at most
ERROR = re.compile(r"\[(?:error|fatal)\] (?!.*pipe:\d)")
DAMAGED_PACKET = re.compile(r"corrupt input packet|Packet corrupt|[Tt]runcat|prematurely")
NO_CONTAINER = re.compile(r"Format not on whitelist|Not detecting m3u8/hls")
CHAINED = re.compile(r"Changing stream parameters in multistream ogg|failed to create or replace stream")
SECOND = re.compile(r"Found duplicated MOOV Atom")
NO_STREAM = "does not contain any stream"
INPUT_STREAM = r"(?m)^\[info\] +Stream #0:\d+.*: (?:Video|Audio|Subtitle|Data): (?!.* q=)"
SAME_TIME = 1e-5  # seconds by which the timestamp of a wanted frame may differ
SPARE_FRAMES = 8  # that share their timestamp with a wanted one
SCALER = "bilinear+accurate_rnd+full_chroma_int+bitexact"  # antialiased: the kernel widens with the reduction
# Frames are chosen by time: their count starts again where size, pixel format or colour range change in the stream.
# They arrive upright (ffmpeg applies the rotation) with their true timestamps; only interlaced ones are deinterlaced.
DEINTERLACE = "bwdif=mode=send_frame:deint=interlaced,"
VIDEO_FILTERS = "select={select},crop=min(iw\\,ih/sar):min(ih\\,iw*sar),scale={size}:{size}:flags=" + SCALER
# The commands, which a test compares: of an mp4 (others are probed more), frames at 0.1 s and 0.3 s.
# List the packets:
#   ffmpeg -analyzeduration 0 -copyts -format_whitelist CONTAINERS -max_pixels 67108864 -probesize 32
#   -protocol_whitelist file -threads 1 -i file:CLIP
#   -map 0:V:0? -map 0:a:0? -f framecrc -codec copy -flush_packets 0 pipe:PACKETS
#   -nostdin -hide_banner -nostats -loglevel repeat+level+info -filter_threads 1
#
# Decode, once, into five pipes:
#   ffmpeg -analyzeduration 0 -copyts -format_whitelist CONTAINERS -max_pixels 67108864 -probesize 32
#   -protocol_whitelist file -threads 1 -i file:CLIP
#   -map 0:V:0 -f tee -enc_time_base filter -fps_mode passthrough -pix_fmt gbrp -vcodec rawvideo
#     -vf bwdif=mode=send_frame:deint=interlaced,select=lt(abs(t-0.1)\,1e-05)+lt(abs(t-0.3)\,1e-05),
#     crop=min(iw\,ih/sar):min(ih\,iw*sar),scale=256:256:flags=bilinear+accurate_rnd+full_chroma_int+bitexact
#     [f=rawvideo]pipe:FRAMES|[f=framecrc:flush_packets=0]pipe:KEPT
#   -map 0:V:0 -f framecrc -enc_time_base filter -flush_packets 0 -fps_mode passthrough -vcodec wrapped_avframe
#     pipe:PICTURE
#   -map 0:a:0 -f tee -acodec pcm_f32le -ar 16000 [f=f32le]pipe:SAMPLES|[f=framecrc:flush_packets=0]pipe:SOUND
#   -nostdin -hide_banner -nostats -loglevel repeat+level+warning -filter_threads 1


@dataclass(frozen=True)
class Limits:
    """Limits of what one clip may cost.

    Args:
        timeout: seconds of wall time for all of the clip's processes together.
        max_seconds: longest clip.
        max_pixels: largest picture, width times height.
        max_bytes: largest file.
        max_memory: bytes of address space of the process that decodes, and of what it may send.
    """

    timeout: float = 600.0
    max_seconds: float = 1800.0
    max_pixels: int = 8192 * 8192
    max_bytes: int = 8 << 30
    max_memory: int = 4 << 30


@dataclass(frozen=True)
class Packets:
    """The packets of one stream that are to be presented, in order of their timestamps (seconds, the file's clock)."""

    codec: str
    times: np.ndarray  # float64 [packets]
    ends: np.ndarray  # float64 [packets]
    timed: bool  # False: some lack a timestamp, and have that of their decoding here
    unit: float  # seconds of a tick


class Stream(NamedTuple):
    """A stream of a framecrc listing: the packets that are presented, in order of their starts."""

    kind: str  # video, audio, subtitle, …
    codec: str
    starts: np.ndarray  # float64 [packets] in seconds
    ends: np.ndarray  # float64 [packets] in seconds
    sizes: np.ndarray  # float64 [packets] in bytes
    timed: bool  # every start is the packet's own timestamp; False: some are those of their decoding
    unit: float  # seconds of a tick of its timestamps


@dataclass(frozen=True)
class Listing:
    """The packets that a clip's container lists, before anything is decoded."""

    streams: dict[str, Packets]  # by "video", "audio"
    unusable: dict[str, str]  # why, by kind of stream that is declared and has no packets, or only encrypted ones
    promised: float | None  # seconds, where the header says that the clip ends, if the packets stop well before that
    cut: bool = False  # something beside that promise says that the end of the file is lacking
    note: str = ""  # what is odd about a file that is read nevertheless
    bridged: bool = False  # the timestamps start again, and ffmpeg is to let them go on


@dataclass
class DecodedStreams:
    """The output of one decoding pass. Times are seconds of the file's own clock, in decoding order."""

    frame_times: np.ndarray = field(default_factory=lambda: np.zeros(0))
    frame_durations: np.ndarray = field(default_factory=lambda: np.zeros(0))
    images: np.ndarray = field(default_factory=lambda: np.zeros((0, FRAME_SIZE, FRAME_SIZE, 3), np.uint8))
    imaged: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # the images' places in `frame_times`
    audio_times: np.ndarray = field(default_factory=lambda: np.zeros(0))
    audio_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # samples from each time on
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # mono, 16 kHz, gaps left out
    log: str = ""

    @property
    def audio_ends(self) -> np.ndarray:
        """Return the ends of the pieces of sound: float64 [pieces] in seconds."""
        return self.audio_times + self.audio_counts / SAMPLE_RATE


def _input(path: Path, limits: Limits, bridged: bool):
    with path.open("rb") as file:
        indexed = file.read(8)[4:] == b"ftyp"
    # An mp4's index tells what its streams are: do not decode a few pictures beforehand to find out.
    probing = {"analyzeduration": 0, "probesize": 32} if indexed else {}
    return ffmpeg.input(
        f"file:{path.absolute()}",  # whatever the name holds: a colon, a leading dash
        threads=1,  # many short clips: parallel across clips
        protocol_whitelist="file",
        format_whitelist=CONTAINERS,
        max_pixels=limits.max_pixels,
        **probing | ({} if bridged else {"copyts": None}),
    )


def _command(*outputs, loglevel: str = "warning"):
    return ffmpeg.merge_outputs(*outputs).global_args(
        "-nostdin", "-hide_banner", "-nostats", "-loglevel", f"repeat+level+{loglevel}", "-filter_threads", "1"
    )


def list_packets(path: Path, limits: Limits, deadline: float) -> Listing:
    """List the packets of the first video stream (no cover picture) and of the first audio stream, without decoding.

    Raises:
        ClipError: the file cannot be opened, or holds neither stream.
    """
    main = ("V:0?", "a:0?")
    streams, log = _list(path, main, limits, deadline)
    if bridged := _restarts(streams, log):
        streams, log = _list(path, main, limits, deadline, bridged)
        gaps = [(packets.times[1:] - packets.ends[:-1]).max(initial=0.0) for _, packets in streams]
        if _restarts(streams, log) or max(gaps, default=0.0) > BRIDGED_GAP:  # which two jumps for one would leave
            raise ClipError("its timestamps start again, as in files that were joined end to end")
    if CHAINED.search(log):
        raise ClipError("it is several files joined end to end, of which only the first can be read")
    missing_bytes = riff_end(path)
    end = None if bridged else missing_bytes or _declared_end(log)
    last = max((packets.ends.max() for _, packets in streams if len(packets.times)), default=0.0)
    if end is not None and end - last > DECLARED_TOLERANCE and len(re.findall(INPUT_STREAM, log)) > len(streams):
        # Another stream, such as subtitles, may be what lasts as long as the header says.
        everything, _ = _list(path, ("v?", "a?", "s?", "d?"), limits, deadline)
        last = max((packets.ends.max() for _, packets in everything if len(packets.times)), default=0.0)
    promised = end if end is not None and end - last > DECLARED_TOLERANCE else None
    cut = missing_bytes is not None or is_cut_mp3(path) or complains(log)
    truncated = ": the file is truncated" if promised and cut else ""
    unusable = {k: f"the {k} stream holds nothing{truncated}" for k, packets in streams if not len(packets.times)}
    unusable |= {kind: f"the {kind} is encrypted" for kind in encrypted_kinds(path)}
    usable = {kind: packets for kind, packets in streams if kind not in unusable}
    note = (
        "it has a second index, as files joined end to end have; only the first is read" if SECOND.search(log) else ""
    )
    return Listing(usable, unusable, promised, cut, note, bridged)


def _restarts(streams: list, log: str) -> bool:
    """Return whether a stream's timestamps go back, by more than ffmpeg takes for disorder."""
    return any(
        (int(jump[2]) - int(jump[3])) * streams[int(jump[1])][1].unit > RESTART
        for jump in NON_MONOTONIC.finditer(log)
        if int(jump[1]) < len(streams)
    )


def _list(
    path: Path, which: tuple[str, ...], limits: Limits, deadline: float, bridged: bool = False
) -> tuple[list[tuple[str, Packets]], str]:
    def outputs(urls):
        source = _input(path, limits, bridged)
        streams = [source[name] for name in which]
        listed = ffmpeg.output(*streams, urls["packets"], codec="copy", format="framecrc", flush_packets=0)
        return _command(listed, loglevel="info")

    sizes = {"packets": LIST_BYTES, "log": LIST_BYTES}
    received = run_ffmpeg(outputs, ("packets",), sizes, deadline, limits.max_memory)
    log = received["log"].decode("utf-8", "replace")
    streams = _parse_framecrc(received["packets"].decode("ascii", "replace"))
    if not streams:
        raise ClipError(
            "no video and no audio stream"
            if NO_STREAM in log
            else f"not readable: {first_error(log, path) or 'no reason given'}"
        )
    return [(each.kind, Packets(each.codec, each.starts, each.ends, each.timed, each.unit)) for each in streams], log


def _declared_end(log: str) -> float | None:
    """Return the end of the clip in seconds that the container's header tells, if it does."""
    match = re.search(r"Duration: (\d{1,9}):(\d\d):(\d\d\.\d+), start: (-?\d{1,10}\.\d{1,9})", log, re.ASCII)
    if match is None or "Estimating duration from bitrate" in log:
        return None
    hours, minutes, seconds, start = map(float, match.groups())
    return start + 3600 * hours + 60 * minutes + seconds


def _parse_framecrc(text: str) -> list[Stream]:
    """Parse a framecrc listing. ClipError: a line or a number of it is not what framecrc writes."""
    heads: dict[str, dict[str, str]] = {}
    rows: dict[str, list[tuple[int, int, int, bool]]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            name, _, value = line[1:].partition(": ")
            key, _, index = name.partition(" ")
            heads.setdefault(index, {})[key] = value
        elif line.strip():
            index, row = _parse_packet(line)
            if row is not None:
                rows.setdefault(index, []).append(row)
    streams = []
    for index, head in heads.items():
        if head.get("media_type") not in ("video", "audio", "subtitle", "data", "attachment"):
            continue
        numerator, denominator = _parse_unit(head.get("tb", ""))
        starts, ends, sizes, own = np.array(sorted(rows.get(index, [])), dtype=np.float64).reshape(-1, 4).T
        starts, ends = starts * numerator / denominator, ends * numerator / denominator
        if max(np.abs(starts).max(initial=0), np.abs(ends).max(initial=0)) > LATEST:
            raise ClipError(f"a timestamp of the {head['media_type']} lies more than {LATEST:.0g} s from 0")
        timed, unit = bool(own.all()), numerator / denominator
        streams.append(Stream(head["media_type"], head.get("codec_id", ""), starts, ends, sizes, timed, unit))
    return streams


def _parse_packet(line: str) -> tuple[str, tuple[int, int, int, bool] | None]:
    """Return a packet's stream, and its start, end, bytes and whether the start is its own; None if not presented."""
    match = PACKET.fullmatch(line)
    if match is None:
        raise ClipError("the list of its packets makes no sense")
    index, *numbers, flags = match.groups()
    decoding, presented, lasts, size = map(int, numbers)
    start = next((ticks for ticks in (presented, decoding) if abs(ticks) < NO_TICKS), None)
    if start is None or int(flags or "1", 16) & PACKET_DISCARD:
        return index, None  # decoded only for what follows, or nobody knows when
    return index, (start, start + (lasts if 0 < lasts < NO_TICKS else 0), size, start == presented)


def _parse_unit(ratio: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,10})/(\d{1,10})", ratio, re.ASCII)
    if match is None or not int(match[1]) or not int(match[2]):
        raise ClipError("the unit of its timestamps makes no sense")
    return int(match[1]), int(match[2])


def decode_streams(
    path: Path,
    kinds: tuple[str, ...],
    wanted: np.ndarray,
    limits: Limits,
    deadline: float,
    bridged: bool = False,
    deinterlaced: bool = True,
) -> DecodedStreams:
    """Decode streams once, keeping some of the frames and all of the sound.

    Args:
        path: the clip.
        kinds: `"video"`, `"audio"` or both, which must exist.
        wanted: float64 [W] timestamps of the frames to keep, in seconds of the file's own clock.
        limits: what it may cost.
        deadline: `time.monotonic()` at which it is stopped.
        bridged: let timestamps that start again go on (`Listing.bridged`).
        deinterlaced: deinterlace what is interlaced, which loses the last frame before the stream changes.

    Returns:
        True timestamps of every frame and of every piece of sound; images uint8 [W, 256, 256, 3] (fewer if they did
        not all come, more if several have one timestamp); mono 16 kHz samples.
    """

    def outputs(urls):
        source = _input(path, limits, bridged)
        made = []
        if "video" in kinds:
            picture = source["V:0"]
            near = (f"lt(abs(t-{seconds!r})\\,{SAME_TIME})" for seconds in wanted.tolist())
            filters = DEINTERLACE * deinterlaced + VIDEO_FILTERS.format(select="+".join(near) or "0", size=FRAME_SIZE)
            times = {"fps_mode": "passthrough", "enc_time_base": "filter"}  # the frames' own
            both = f"[f=rawvideo]{urls['frames']}|[f=framecrc:flush_packets=0]{urls['kept']}"
            raw = {"format": "tee", "vcodec": "rawvideo", "pix_fmt": "gbrp"}
            made.append(ffmpeg.output(picture, both, vf=filters, **raw, **times))
            # A listing of the decoded frames' headers, at no cost.
            bare = {"format": "framecrc", "vcodec": "wrapped_avframe", "flush_packets": 0}
            made.append(ffmpeg.output(picture, urls["picture"], **bare, **times))
        if "audio" in kinds:
            # One encoder, two outputs: the samples and a listing of their timestamps.
            both = f"[f=f32le]{urls['samples']}|[f=framecrc:flush_packets=0]{urls['sound']}"
            made.append(ffmpeg.output(source["a:0"], both, format="tee", ar=SAMPLE_RATE, acodec="pcm_f32le"))
        return _command(*made)

    names = ("frames", "kept", "picture") * ("video" in kinds) + ("samples", "sound") * ("audio" in kinds)
    sizes = dict.fromkeys(("kept", "picture", "sound", "log"), LIST_BYTES)
    sizes["frames"] = (len(wanted) + SPARE_FRAMES) * FRAME_BYTES
    sizes["samples"] = min(int(limits.max_seconds * SAMPLE_RATE) * 4 * MAX_CHANNELS, limits.max_memory)
    received = run_ffmpeg(outputs, names, sizes, deadline, limits.max_memory)
    decoded = DecodedStreams(log=received["log"].decode("utf-8", "replace"))
    if "video" in kinds:
        kept, picture = (received[name].decode("ascii", "replace") for name in ("kept", "picture"))
        _read_frames(decoded, received["frames"], kept, picture)
    if "audio" in kinds:
        _read_sound(decoded, received["samples"], received["sound"].decode("ascii", "replace"))
    return decoded


def _read_frames(decoded: DecodedStreams, frames: bytearray, kept: str, listing: str) -> None:
    for stream in _parse_framecrc(listing):
        decoded.frame_times, decoded.frame_durations = stream.starts, stream.ends - stream.starts
    times = np.concatenate([stream.starts for stream in _parse_framecrc(kept)] or [np.zeros(0)])
    count = min(len(frames) // FRAME_BYTES, len(times))
    decoded.imaged = np.searchsorted(decoded.frame_times, times[:count] + SAME_TIME) - 1
    planes = np.frombuffer(frames, np.uint8, count * FRAME_BYTES).reshape(count, 3, FRAME_SIZE, FRAME_SIZE)
    decoded.images = np.empty((count, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    for channel, plane in enumerate((2, 0, 1)):  # ffmpeg's planes are green, blue, red: three times as fast as packed
        decoded.images[..., channel] = planes[:, plane]


def _read_sound(decoded: DecodedStreams, samples: bytearray, listing: str) -> None:
    for _, _, starts, ends, sizes, *_ in _parse_framecrc(listing):
        if not len(starts) or ends[0] <= starts[0]:
            continue
        channels = max(round(sizes[0] / ((ends[0] - starts[0]) * SAMPLE_RATE * 4)), 1)
        decoded.audio_times, decoded.audio_counts = starts, (sizes / (4 * channels)).astype(np.int64)
        whole = len(samples) // (4 * channels) * channels
        # ffmpeg's own downmix to one channel is louder by the square root of two.
        with np.errstate(over="ignore", invalid="ignore"):
            decoded.samples = np.frombuffer(samples, "<f4", whole).reshape(-1, channels).mean(axis=1, dtype=np.float32)


def first_error(log: str, path: Path, codec: str | None = None) -> str:
    """Return the first error of a log as one line, the same at every run: without addresses, contexts and paths.

    Args:
        log: ffmpeg's standard error.
        path: the clip, whose name is taken out.
        codec: name of the codec whose own errors come first, if any.
    """
    lines = log.replace(f"file:{path.absolute()}", "the file").splitlines()
    errors = [line for line in lines if ERROR.search(line)]
    own = [line for line in errors if codec and f"[{codec} @" in line]
    text = ERROR.split((own or errors or [""])[0])[-1]
    if NO_CONTAINER.search(text):
        return "a playlist, a still picture or the like, no container of video or sound"
    return re.sub(r"\s+", " ", re.sub(r" ?@ 0x[0-9a-f]+", "", text)).strip().rstrip(".")


def due_to_limit(cause: str) -> bool:
    """Return whether a clip failed, or lacks a modality, because of its `Limits`; with others it might not."""
    return re.search(r"\ballowed\b|exceeds specified max pixel count", cause) is not None


def complains(log: str) -> bool:
    """Return whether a log tells of an error, or of packets that are cut or damaged."""
    return any(ERROR.search(line) or DAMAGED_PACKET.search(line) for line in log.splitlines())


def decoder_failed(log: str, kind: str) -> bool:
    """Return whether the decoder of `"video"` or `"audio"` rejected a packet or gave a damaged frame."""
    said = r"\[(?:error|fatal)\]|\[warning\] corrupt decoded frame"
    return re.search(rf"\[{kind[0]}ist#\S+ @ \w+\] \[dec:\S+ @ \w+\] (?:{said})", log) is not None
