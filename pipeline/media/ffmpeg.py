"""The ffmpeg commands that read a clip: one lists its packets, one decodes it; a third one looks for damage.

A clip may be hostile: only containers of sound and pictures are opened (a playlist could name other files), only from
the file itself, within limits of time, size and picture size.
"""

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ffmpeg
import numpy as np

from ..errors import MACHINE_ERRNOS, ClipError
from ..files import absent_content, encrypted_kinds, foreign_content, is_cut_mp3, is_joined, riff_end
from .logmel import SAMPLE_RATE
from .parse import (
    CHAINED,
    INPUT_STREAM,
    NO_STREAM,
    RAW,
    SECOND,
    STREAMED,
    Stream,
    complains,
    damaged_pictures,
    declared_end,
    default_streams,
    first_error,
    parse_framecrc,
    stops_turning,
)
from .process import Limits, run_ffmpeg

FRAME_SIZE = 256  # pixels, both sides
FRAME_BYTES = FRAME_SIZE * FRAME_SIZE * 3  # RGB
# Whatever cannot name another file. Still pictures are left out, and raw streams that any file can be taken for.
CONTAINERS = (
    "mov,matroska,webm,avi,flv,mpegts,mpeg,ogg,wav,w64,aiff,flac,mp3,aac,ac3,eac3,asf,dv,mxf,gxf,rm,caf,amr,au,"
    "3g2,apng,ape,av1,avs2,avs3,cavsvideo,dirac,dsf,dts,dtshd,evc,gif,h264,hevc,iamf,iff,ircam,ivf,lc3,loas,"
    "m4v,mlp,mpc,mpc8,mpegvideo,nistsphere,nsv,nut,obu,oma,osq,qcp,qoa,rso,sbc,shn,smjpeg,sox,tak,truehd,tta,vc1,voc,"
    "vvc,webp_anim,wtv,wv,xwma,yuv4mpegpipe"
)
LIST, SAMPLES = 16, 4  # one of so many shares of a clip's memory is for a list or log, and for its samples
DECLARED_TOLERANCE = 0.25  # seconds by which a header may overstate a clip: no segment's centre lies that late
RESTART = 0.1  # seconds by which timestamps go back where ffmpeg takes it for a new beginning
BRIDGED_GAP = 0.5  # seconds, the longest pause in streams whose timestamps start again
SECOND_NOTE = "it has a second index, as files joined end to end have; only the first is read"
JOINED_NOTE = "another file is joined to its end; what is not of the first is lost or late"
RAW_NOTE = "a raw stream has no clock of its own: its pictures last as long as it says, or 1/25 s where it does not"
TURNS = {"bsf:v": "h264_metadata=display_orientation=extract"}
STOPS_TURNING = "its pictures are turned up to a point and not from then on, which ffmpeg does not follow"
NON_MONOTONIC = re.compile(
    r"ost#0:(\d{1,4})/copy @ \w+\] (?:\[\w+\] )?Non-monotonic DTS; previous: (-?\d{1,19}), current: (-?\d{1,19})",
    re.ASCII,
)
FIRST = {"video": "V:0", "audio": "a:0"}  # the first of each kind, cover pictures apart
SAME_TIME = 1e-5  # seconds by which the timestamp of a wanted frame may differ
SPARE_FRAMES = 8  # that share their timestamp with a wanted one
SCALER = "bilinear+accurate_rnd+full_chroma_int+bitexact"  # antialiased: the kernel widens with the reduction
# Frames are chosen by time: their count starts again where size, pixel format or colour range change in the stream.
# They arrive upright (ffmpeg applies the rotation) with their true timestamps; only interlaced ones are deinterlaced.
DEINTERLACE = "bwdif=mode=send_frame:deint=interlaced,"
SQUARE = f"scale={FRAME_SIZE}:{FRAME_SIZE}:flags={SCALER}"
# The commands, which a test compares: of an mp4 (others are probed more), frames at 0.1 s and 0.3 s.
# List the packets:
#   ffmpeg -analyzeduration 0 -copyts -err_detect crccheck -format_whitelist CONTAINERS -max_pixels 67108864
#   -probesize 32 -protocol_whitelist file -threads 1 -i file:CLIP
#   -map 0:V:0? -map 0:a:0? -f framecrc -codec copy -flush_packets 0 pipe:PACKETS
#   -nostdin -hide_banner -nostats -loglevel repeat+level+info -filter_threads 1
#
# Decode, once, into five pipes:
#   ffmpeg -analyzeduration 0 -copyts -err_detect crccheck -format_whitelist CONTAINERS -max_pixels 67108864
#   -probesize 32 -protocol_whitelist file -threads 1 -i file:CLIP
#   -map 0:V:0 -f tee -enc_time_base filter -fps_mode passthrough -pix_fmt gbrp -vcodec rawvideo
#     -vf bwdif=mode=send_frame:deint=interlaced,select=lt(abs(t-0.1)\,1e-05)+lt(abs(t-0.3)\,1e-05),
#     crop=min(iw\,ih/sar):min(ih\,iw*sar),scale=256:256:flags=bilinear+accurate_rnd+full_chroma_int+bitexact
#     [f=rawvideo]pipe:FRAMES|[f=framecrc:flush_packets=0]pipe:KEPT
#   -map 0:V:0 -f framecrc -enc_time_base filter -flush_packets 0 -fps_mode passthrough -vcodec wrapped_avframe
#     pipe:PICTURE
#   -map 0:a:0 -f tee -acodec pcm_f32le -ar 16000 [f=f32le]pipe:SAMPLES|[f=framecrc:flush_packets=0]pipe:SOUND
#   -nostdin -hide_banner -nostats -loglevel repeat+level+warning -filter_threads 1


@dataclass(frozen=True)
class View:
    """What is kept of each wanted frame: filters that make a picture of it, of at most so many bytes."""

    filters: str
    max_bytes: int = FRAME_BYTES


CENTRE = View("crop=min(iw\\,ih/sar):min(ih\\,iw*sar)," + SQUARE)


@dataclass(frozen=True)
class Packets:
    """The packets of one stream that are to be presented, in order of their timestamps (seconds, the file's clock)."""

    codec: str
    times: np.ndarray  # float64 [packets]
    ends: np.ndarray  # float64 [packets]
    timed: bool  # False: some lack a timestamp, and have that of their decoding here
    unit: float  # seconds of a tick


@dataclass(frozen=True)
class Listing:
    """The packets that a clip's container lists, before anything is decoded."""

    streams: dict[str, Packets]  # by "video", "audio"
    unusable: dict[str, str]  # why, by kind of stream that is declared and has no packets, or only encrypted ones
    promised: float | None  # seconds, where the header says that the clip ends, if the packets stop well before that
    cut: bool = False  # something beside that promise says that the end of the file is lacking
    note: str = ""  # what is odd about a file that is read nevertheless
    bridged: bool = False  # the timestamps start again, and ffmpeg is to let them go on
    maps: dict[str, str] = field(default_factory=lambda: dict(FIRST))  # by kind, as ffmpeg's -map names the stream


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
    peaks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # of the loudest channel, if averaged
    damaged: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # by frame
    log: str = ""

    @property
    def audio_ends(self) -> np.ndarray:
        """Return the ends of the pieces of sound: float64 [pieces] in seconds."""
        return self.audio_times + self.audio_counts / SAMPLE_RATE


def check_file(path: Path, max_bytes: int) -> None:
    """Check that a file can be read. ClipError: no regular file, empty, too large, or not to be opened."""
    try:
        if annexed := absent_content(path):
            raise ClipError(f"the file is {annexed}")
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ClipError("not a regular file")  # a pipe or device might never end
        if state.st_size == 0:
            raise ClipError("the file is empty")
        if state.st_size > max_bytes:
            raise ClipError(f"the file holds {state.st_size} bytes, more than the {max_bytes} allowed")
        if found := foreign_content(path):
            raise ClipError(f"the file is {found}")
    except OSError as error:
        if error.errno in MACHINE_ERRNOS:
            raise
        raise ClipError(error.strerror or type(error).__name__) from None


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
        err_detect="crccheck",  # what has checksums of its own, such as FLAC and AC-3, tells of damage
        **probing | ({} if bridged else {"copyts": None}),
    )


def _command(*outputs, loglevel: str = "warning"):
    return ffmpeg.merge_outputs(*outputs).global_args(
        "-nostdin", "-hide_banner", "-nostats", "-loglevel", f"repeat+level+{loglevel}", "-filter_threads", "1"
    )


def list_packets(path: Path, limits: Limits, deadline: float) -> Listing:
    """List the packets of a video stream (no cover picture) and of an audio stream, without decoding.

    Of several, the default one is taken, or the first where none is.

    Raises:
        ClipError: the file cannot be opened, or holds neither stream.
    """
    maps = dict(FIRST)
    streams, log = _list(path, maps.values(), limits, deadline)
    if others := default_streams(log):
        maps |= others
        streams, log = _list(path, maps.values(), limits, deadline)
    if bridged := _restarts(streams, log):
        streams, log = _list(path, maps.values(), limits, deadline, bridged)
        gaps = [(packets.times[1:] - packets.ends[:-1]).max(initial=0.0) for _, packets in streams]
        if _restarts(streams, log) or max(gaps, default=0.0) > BRIDGED_GAP:  # which two jumps for one would leave
            raise ClipError("its timestamps start again, as in files that were joined end to end")
    if CHAINED.search(log):
        raise ClipError("it is several files joined end to end, of which only the first can be read")
    missing_bytes = riff_end(path)
    end = None if bridged else missing_bytes or declared_end(log)
    last = max((packets.ends.max() for _, packets in streams if len(packets.times)), default=0.0)
    if end is not None and end - last > DECLARED_TOLERANCE and len(re.findall(INPUT_STREAM, log)) > len(streams):
        # Another stream, such as subtitles, may be what lasts as long as the header says.
        everything, _ = _list(path, ("v", "a", "s", "d"), limits, deadline)
        last = max((packets.ends.max() for _, packets in everything if len(packets.times)), default=0.0)
    promised = end if end is not None and end - last > DECLARED_TOLERANCE else None
    cut = missing_bytes is not None or is_cut_mp3(path) or complains(log)
    truncated = ": the file is truncated" if promised and cut else ""
    unusable = {k: f"the {k} stream holds nothing{truncated}" for k, packets in streams if not len(packets.times)}
    unusable |= {kind: f"the {kind} is encrypted" for kind in encrypted_kinds(path)}
    if any(packets.codec == "h264" for _, packets in streams) and STREAMED.search(log):
        listed = _copy_packets(path, [maps["video"]], limits, deadline, bridged, **TURNS)
        unusable |= {"video": STOPS_TURNING} if stops_turning(listed["packets"]) else {}
    usable = {kind: packets for kind, packets in streams if kind not in unusable}
    found = {RAW_NOTE: RAW.search(log), SECOND_NOTE: SECOND.search(log)}
    note = "; ".join(note for note, said in (found | {JOINED_NOTE: is_joined(path)}).items() if said)
    return Listing(usable, unusable, promised, cut, note, bridged, maps)


def _restarts(streams: list, log: str) -> bool:
    """Return whether a stream's timestamps go back, by more than ffmpeg takes for disorder."""
    return any(
        (int(jump[2]) - int(jump[3])) * streams[int(jump[1])][1].unit > RESTART
        for jump in NON_MONOTONIC.finditer(log)
        if int(jump[1]) < len(streams)
    )


def _list(
    path: Path, which: Iterable[str], limits: Limits, deadline: float, bridged: bool = False
) -> tuple[list[tuple[str, Packets]], str]:
    received = _copy_packets(path, which, limits, deadline, bridged)
    log = received["log"].decode("utf-8", "replace")
    streams = parse_framecrc(received["packets"], deadline)
    if not streams:
        raise ClipError(
            "no video and no audio stream"
            if NO_STREAM in log
            else f"not readable: {first_error(log, path) or 'no reason given'}"
        )
    return [(each.kind, Packets(each.codec, each.starts, each.ends, each.timed, each.unit)) for each in streams], log


def _copy_packets(
    path: Path, which: Iterable[str], limits: Limits, deadline: float, bridged: bool, **how: str
) -> dict[str, bytearray]:
    def outputs(urls):
        source = _input(path, limits, bridged)
        streams = [source[f"{name}?"] for name in which]
        listed = ffmpeg.output(*streams, urls["packets"], codec="copy", format="framecrc", flush_packets=0, **how)
        return _command(listed, loglevel="info")

    sizes = dict.fromkeys(("packets", "log"), limits.max_memory // LIST)
    return run_ffmpeg(outputs, ("packets",), sizes, deadline, limits.max_memory)


def decode_streams(
    path: Path,
    maps: Mapping[str, str],
    wanted: np.ndarray,
    limits: Limits,
    deadline: float,
    bridged: bool = False,
    deinterlaced: bool = True,
    view: View = CENTRE,
) -> DecodedStreams:
    """Decode streams once, keeping some of the frames and all of the sound.

    Args:
        path: the clip.
        maps: the streams by kind, `"video"`, `"audio"` or both, as `Listing.maps` has them.
        wanted: float64 [W] timestamps of the frames to keep, in seconds of the file's own clock.
        limits: what it may cost.
        deadline: `time.monotonic()` at which it is stopped.
        bridged: let timestamps that start again go on (`Listing.bridged`).
        deinterlaced: deinterlace what is interlaced, which loses the last frame before the stream changes.
        view: what is kept of a wanted frame.

    Returns:
        True timestamps of every frame and of every piece of sound; images uint8 [W, row, column, 3], 256 x 256 unless
        `view` says otherwise (fewer if they did not all come, more if several have one timestamp); mono 16 kHz samples.
    """

    def outputs(urls):
        source = _input(path, limits, bridged)
        made = []
        if "video" in maps:
            picture = source[maps["video"]]
            near = (f"lt(abs(t-{seconds!r})\\,{SAME_TIME})" for seconds in wanted.tolist())
            filters = f"{DEINTERLACE * deinterlaced}select={'+'.join(near) or '0'},{view.filters}"
            times = {"fps_mode": "passthrough", "enc_time_base": "filter"}  # the frames' own
            both = f"[f=rawvideo]{urls['frames']}|[f=framecrc:flush_packets=0]{urls['kept']}"
            raw = {"format": "tee", "vcodec": "rawvideo", "pix_fmt": "gbrp"}
            made.append(ffmpeg.output(picture, both, vf=filters, **raw, **times))
            # A listing of the decoded frames' headers, at no cost.
            bare = {"format": "framecrc", "vcodec": "wrapped_avframe", "flush_packets": 0}
            made.append(ffmpeg.output(picture, urls["picture"], **bare, **times))
        if "audio" in maps:
            # One encoder, two outputs: the samples and a listing of their timestamps.
            both = f"[f=f32le]{urls['samples']}|[f=framecrc:flush_packets=0]{urls['sound']}"
            made.append(ffmpeg.output(source[maps["audio"]], both, format="tee", ar=SAMPLE_RATE, acodec="pcm_f32le"))
        return _command(*made)

    names = ("frames", "kept", "picture") * ("video" in maps) + ("samples", "sound") * ("audio" in maps)
    sizes = dict.fromkeys(("kept", "picture", "sound", "log"), limits.max_memory // LIST)
    sizes["frames"] = (len(wanted) + SPARE_FRAMES) * view.max_bytes
    sizes["samples"] = limits.max_memory // SAMPLES
    received = run_ffmpeg(outputs, names, sizes, deadline, limits.max_memory)
    decoded = DecodedStreams(log=received["log"].decode("utf-8", "replace"))
    if "video" in maps:
        kept, listed = (parse_framecrc(received.pop(name), deadline) for name in ("kept", "picture"))
        _read_frames(decoded, received.pop("frames"), kept, listed)
    if "audio" in maps:
        listed = parse_framecrc(received.pop("sound"), deadline)
        _read_sound(decoded, received.pop("samples"), listed, limits.channels)
    return decoded


def find_damaged_frames(path: Path, stream: str, limits: Limits, deadline: float, bridged: bool) -> np.ndarray:
    """Decode the pictures once more to learn which of them are damaged: see `damaged_pictures`.

    Args:
        path: the clip.
        stream: its pictures, as `Listing.maps` has them.
        limits: what it may cost.
        deadline: `time.monotonic()` at which it is stopped.
        bridged: as for `decode_streams`.
    """

    def outputs(_urls):
        source = _input(path, limits, bridged)
        nothing = ffmpeg.output(source[stream], "-", format="null", fps_mode="passthrough")
        return _command(nothing, loglevel="info").global_args("-debug_ts")

    received = run_ffmpeg(outputs, (), {"log": limits.max_memory // LIST}, deadline, limits.max_memory)
    return damaged_pictures(received["log"].decode("utf-8", "replace"))


def _read_frames(decoded: DecodedStreams, frames: bytearray, kept: list[Stream], listed: list[Stream]) -> None:
    for stream in listed:
        decoded.frame_times, decoded.frame_durations = stream.starts, stream.ends - stream.starts
    times = np.concatenate([stream.starts for stream in kept] or [np.zeros(0)])
    width, height = next((stream.size for stream in kept if all(stream.size)), (FRAME_SIZE, FRAME_SIZE))
    size = width * height * 3
    count = min(len(frames) // size, len(times))
    decoded.imaged = np.searchsorted(decoded.frame_times, times[:count] + SAME_TIME) - 1
    planes = np.frombuffer(frames, np.uint8, count * size).reshape(count, 3, height, width)
    decoded.images = np.empty((count, height, width, 3), np.uint8)
    for channel, plane in enumerate((2, 0, 1)):  # ffmpeg's planes are green, blue, red: three times as fast as packed
        decoded.images[..., channel] = planes[:, plane]


def _read_sound(decoded: DecodedStreams, samples: bytearray, listed: list[Stream], wanted: str) -> None:
    for _, _, starts, ends, sizes, *_ in listed:
        if not len(starts) or ends[0] <= starts[0]:
            continue
        channels = max(round(sizes[0] / ((ends[0] - starts[0]) * SAMPLE_RATE * 4)), 1)
        decoded.audio_times, decoded.audio_counts = starts, (sizes / (4 * channels)).astype(np.int64)
        whole = len(samples) // (4 * channels) * channels
        heard = np.frombuffer(samples, "<f4", whole).reshape(-1, channels)
        if wanted == "first":
            decoded.samples = heard[:, 0].copy()
            continue
        # ffmpeg's own downmix to one channel is louder by the square root of two.
        with np.errstate(over="ignore", invalid="ignore"):
            decoded.samples = heard.mean(axis=1, dtype=np.float32)
            if channels > 1:
                decoded.peaks = np.maximum(heard.max(axis=1), -heard.min(axis=1))
