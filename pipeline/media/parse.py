"""What ffmpeg writes: listings of packets, and a log that tells of streams, errors and damage.

Both come from the process that reads a hostile file: every number is checked for what it may be.
"""

import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import OUT_OF_TIME, ClipError

# A line of framecrc: stream, timestamps of decoding and presentation, duration, bytes, checksum, flags, side data.
CRC = rb", *0x[0-9a-f]{8}"
LINE = rb"\d{1,4}(?:, *-?\d{1,19}){3}, *\d{1,10}" + CRC + rb"(?:, F=0x[0-9A-F]{1,8})?(?:,[^\n]*)?\n"
LINES = re.compile(rb"(?:" + LINE + rb"|\n)*+")
DISCARDED = re.compile(CRC + rb", F=0x[0-9A-F]{0,7}[4-7C-F](?:,[^\n]*)?\n")  # decoded, but not presented
PRESENTED = re.compile(CRC + rb"[^\n]*\n")
HEAD = re.compile(rb"^#(\w+)(?: (\d{1,4}))?: (.*)\n", re.MULTILINE)
PARSED_BYTES = 1 << 20  # bytes that are parsed at once
NO_TICKS = 1 << 62  # a timestamp beyond it is none: ffmpeg writes -2**63 where it has none
LATEST = 1e10  # seconds: later than any clock of recordings, which count from 1970 at most
# A clip's own text (titles, languages) is in logs: what searches there is anchored or bounded, and takes linear time.
WHO = r"[^]\n]{1,99} @ \w{1,20}"
ERROR = re.compile(rf"^(?:\[{WHO}\] )*\[(?:error|fatal)\] (?!.*pipe:\d)")
DAMAGED_PACKET = re.compile(r"corrupt input packet|Packet corrupt|[Tt]runcat|prematurely")
LACKING = "packets of the transport stream are lacking, or it was joined of several"
GAP = re.compile(r"(?m)^\[in#0/mpegts @ \w{1,20}\] \[warning\] corrupt input packet")  # by their numbers
NO_CONTAINER = re.compile(r"Format not on whitelist|Not detecting m3u8/hls")
NO_INDEX = "moov atom not found"
CHAINED = re.compile(r"Changing stream parameters in multistream ogg|failed to create or replace stream")
RAW = re.compile(r"Input #0, (?:av1|avs2|avs3|cavsvideo|dirac|evc|h264|hevc|m4v|mpegvideo|obu|vc1|vvc), from", re.ASCII)
STREAMED = re.compile(r"Input #0, (?:h264|mpegts), from")  # whose pictures only the stream turns
TURN = re.compile(rb"Display Matrix, +36, 0x([0-9a-f]{8})")  # of a packet, with its checksum
UPRIGHT = b"00740042"  # the checksum of a turn by nothing
SECOND = re.compile(r"Found duplicated MOOV Atom")
NO_STREAM = "does not contain any stream"
# With -debug_ts: a picture, after the warning if it is damaged. What begins the line may be mixed up with another line.
DECODED = re.compile(r"(corrupt decoded frame)|decoder -> pts:.{0,300}? keyframe:([01]) frame_type:(\d)")
STREAM = re.compile(r"(?m)^\[info\] +Stream #0:(\d{1,4})\S*: (Video|Audio): (.*)$", re.ASCII)
# Decoders that call themselves otherwise than their codec: by the codec.
DECODERS = {"av1": "libdav1d", "flv1": "flv", "msmpeg4v3": "msmpeg4", "roq": "roqvideo"}
DECODERS |= {"amr_nb": "amrnb", "amr_wb": "amrwb", "atrac3p": "atrac3plus", "dts": "dca", "mp4als": "als"}
DECODERS |= {"musepack7": "mpc7", "musepack8": "mpc8", "ra_144": "real_144", "ra_288": "real_288"}
DECODERS |= {"adpcm_g722": "g722", "adpcm_g726": "g726", "adpcm_g726le": "g726le"}
BETWEEN = "3"  # type of a frame that is predicted from both sides
INPUT_STREAM = r"(?m)^\[info\] +Stream #0:\d+.{0,300}?: (?:Video|Audio|Subtitle|Data): (?!.* q=)"


class Stream(NamedTuple):
    """A stream of a framecrc listing: the packets that are presented, in order of their starts."""

    kind: str  # video, audio, subtitle, …
    codec: str
    starts: np.ndarray  # float64 [packets] in seconds
    ends: np.ndarray  # float64 [packets] in seconds
    sizes: np.ndarray  # float64 [packets] in bytes
    timed: bool  # every start is the packet's own timestamp; False: some are those of their decoding
    unit: float  # seconds of a tick of its timestamps
    size: tuple[int, int] = (0, 0)  # of its pictures, width and height


def parse_framecrc(text: bytearray, deadline: float) -> list[Stream]:
    """Parse a framecrc listing, millions of packets within seconds and about the memory of the text.

    Raises:
        ClipError: a line or a number of it is not what framecrc writes, or `time.monotonic()` is past the deadline.
    """
    heads: dict[int, dict[str, str]] = {}
    tables: dict[int, list[np.ndarray]] = {}
    for block in _blocks(text):
        if time.monotonic() > deadline:
            raise ClipError(OUT_OF_TIME)
        for name, index, value in HEAD.findall(block):
            if index:
                heads.setdefault(int(index), {})[name.decode()] = value.decode("ascii", "replace")
        rows = HEAD.sub(b"", block)
        if not LINES.fullmatch(rows):
            raise ClipError("the list of its packets makes no sense")
        numbers = PRESENTED.sub(b",0,", DISCARDED.sub(b",1,", rows)).strip().rstrip(b",")
        table = np.fromstring(numbers, np.int64, sep=",").reshape(-1, 6)
        for index in np.unique(table[:, 0]):
            tables.setdefault(int(index), []).append(table[table[:, 0] == index, 1:])
    kinds = ("video", "audio", "subtitle", "data", "attachment")
    known = {index: head for index, head in heads.items() if head.get("media_type") in kinds}
    return [_stream(head, tables.pop(index, [])) for index, head in known.items()]


def _blocks(text: bytearray) -> Iterator[bytes]:
    """Yield whole lines, about PARSED_BYTES bytes at a time."""
    at = 0
    while at < len(text):
        end = text.find(b"\n", at + PARSED_BYTES) + 1 or len(text)
        yield bytes(text[at:end]) + b"\n" * (text[end - 1 : end] != b"\n")
        at = end


def _stream(head: Mapping[str, str], tables: Sequence[np.ndarray]) -> Stream:
    decoding, presented, lasts, sizes, discarded = np.concatenate([*tables, np.zeros((0, 5), np.int64)]).T
    own, known = _is_time(presented), _is_time(decoding)
    kept = (own | known) & (discarded == 0)  # the rest is decoded only for what follows, or nobody knows when
    starts = np.where(own, presented, decoding)[kept]
    ends = starts + np.where((lasts > 0) & _is_time(lasts), lasts, 0)[kept]
    sizes, own = sizes[kept], own[kept]
    order = np.lexsort((own, sizes, ends, starts))
    numerator, denominator = _parse_unit(head.get("tb", ""))
    starts, ends = (ticks[order].astype(np.float64) * numerator / denominator for ticks in (starts, ends))
    if max(np.abs(starts).max(initial=0), np.abs(ends).max(initial=0)) > LATEST:
        raise ClipError(f"a timestamp of the {head['media_type']} lies more than {LATEST:.0g} s from 0")
    timed, unit = bool(own.all()), numerator / denominator
    size = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", head.get("dimensions", ""), re.ASCII)
    pixels = (int(size[1]), int(size[2])) if size else (0, 0)
    codec = head.get("codec_id", "")
    return Stream(head["media_type"], codec, starts, ends, sizes[order].astype(float), timed, unit, pixels)


def _is_time(ticks: np.ndarray) -> np.ndarray:
    return (ticks > -NO_TICKS) & (ticks < NO_TICKS)


def _parse_unit(ratio: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,10})/(\d{1,10})", ratio, re.ASCII)
    if match is None or not int(match[1]) or not int(match[2]):
        raise ClipError("the unit of its timestamps makes no sense")
    return int(match[1]), int(match[2])


def declared_end(log: str) -> float | None:
    """Return the end of the clip in seconds that the container's header tells, if it does."""
    match = re.search(r"Duration: (\d{1,9}):(\d\d):(\d\d\.\d+), start: (-?\d{1,10}\.\d{1,9})", log, re.ASCII)
    if match is None or "Estimating duration from bitrate" in log:
        return None
    hours, minutes, seconds, start = map(float, match.groups())
    if "Input #0, matroska" in log:  # which counts from 0, not from the first timestamp
        start = 0.0
    return start + 3600 * hours + 60 * minutes + seconds


def default_streams(log: str) -> dict[str, str]:
    """Return the index of the default stream by kind (`"video"`, `"audio"`), where that is not the first one."""
    chosen = {}
    streams = list(STREAM.finditer(log.partition("Output #0")[0]))
    for kind in ("Video", "Audio"):
        found = [(s[1], "(default)" in s[3]) for s in streams if s[2] == kind and "(attached pic)" not in s[3]]
        defaults = [index for index, default in found if default]
        if defaults and defaults[0] != found[0][0]:
            chosen[kind.lower()] = defaults[0]
    return chosen


def damaged_pictures(log: str) -> np.ndarray:
    """Return which pictures the decoder of a log with -debug_ts calls damaged, or predicts from damaged ones.

    Damage lasts until the next key frame; frames predicted from both sides have it from the one that follows, too, even
    if that is a key frame (as in open groups of pictures).

    Returns:
        bool [frames] in order of presentation.
    """
    flagged, keys, between, corrupt = [], [], [], False
    for corrupt_now, key, kind in DECODED.findall(log):
        if corrupt_now:
            corrupt = True
            continue
        flagged.append(corrupt)
        keys.append(key == "1")
        between.append(kind == BETWEEN)
        corrupt = False
    damaged = np.array(flagged, bool)
    for i in range(1, len(damaged)):
        damaged[i] |= damaged[i - 1] and not keys[i]
    for i in reversed(range(len(damaged) - 1)):
        damaged[i] |= between[i] and damaged[i + 1]
    return damaged


def stops_turning(listing: bytes) -> bool:
    """Return whether pictures are turned and later ones are not: a framecrc listing with the turns they ask for."""
    turned = [turn != UPRIGHT for turn in TURN.findall(listing)]
    return any(before and not after for before, after in itertools.pairwise(turned))


def first_error(log: str, path: Path, codec: str | None = None) -> str:
    """Return the first error of a log as one line, the same at every run: without addresses, contexts and paths.

    Args:
        log: ffmpeg's standard error.
        path: the clip, whose name is taken out.
        codec: name of the codec whose own errors come first, if any.
    """
    errors = _errors(log, path)
    own = [line for line in errors if codec and f"[{DECODERS.get(codec, codec)} @" in line]
    text = _message((own or errors or [""])[0])
    if NO_CONTAINER.search(text):
        return "a playlist, a still picture or the like, no container of video or sound"
    if text == NO_INDEX:
        return f"{text}: the mp4's index, which comes last; the file is cut, was never finished, or is no mp4"
    return text


def complains(log: str) -> bool:
    """Return whether a log tells of an error, or of packets that are cut or damaged."""
    return any(ERROR.search(line) or DAMAGED_PACKET.search(line) for line in log.splitlines())


def error_of(log: str, path: Path, kind: str, codec: str, joined: bool = False) -> str:
    """Return the first error of the container or the decoder of `"video"` or `"audio"`, as `first_error` does.

    That the packets of a transport stream do not count on is one, unless that is known to be ``joined`` of several.
    """
    decoder = re.escape(DECODERS.get(codec, codec))
    origin = re.compile(rf"\[(?:in#0|{kind[0]}ist#|{decoder}(?:float)? @)")
    told = _message(next((line for line in _errors(log, path) if origin.match(line)), ""))
    return told or (LACKING if GAP.search(log) and not joined else "")


def _errors(log: str, path: Path) -> list[str]:
    return [line for line in log.replace(f"file:{path.absolute()}", "the file").splitlines() if ERROR.search(line)]


def _message(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r" ?@ 0x[0-9a-f]+", "", ERROR.split(line)[-1])).strip().rstrip(".")


def decoder_failed(log: str, kind: str) -> bool:
    """Return whether the decoder of `"video"` or `"audio"` rejected a packet or gave a damaged frame."""
    said = r"\[(?:error|fatal)\]|\[warning\] corrupt decoded frame"
    return re.search(rf"\[{kind[0]}ist#{WHO}\] \[dec:{WHO}\] (?:{said})", log) is not None
