"""What ffmpeg writes: listings of packets, and a log that tells of streams, errors and damage.

Both come from the process that reads a hostile file: every number is checked for what it may be.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .process import ClipError

PACKET_DISCARD = 4  # flag of a packet that is decoded but not presented
PACKET = re.compile(  # stream, timestamps of decoding and presentation, duration, bytes, checksum, flags, side data
    r"(\d{1,4}), *(-?\d{1,19}), *(-?\d{1,19}), *(-?\d{1,19}), *(\d{1,10}), *0x[0-9a-f]{8}(?:, F=0x(\w{1,8}))?(?:,.*)?",
    re.ASCII,
)
NO_TICKS = 1 << 62  # a timestamp beyond it is none: ffmpeg writes -2**63 where it has none
LATEST = 1e10  # seconds: later than any clock of recordings, which count from 1970 at most
# A clip's own text (titles, languages) is in logs: what searches there is anchored or bounded, and takes linear time.
WHO = r"[^]\n]{1,99} @ \w{1,20}"
ERROR = re.compile(rf"^(?:\[{WHO}\] )*\[(?:error|fatal)\] (?!.*pipe:\d)")
DAMAGED_PACKET = re.compile(r"corrupt input packet|Packet corrupt|[Tt]runcat|prematurely")
NO_CONTAINER = re.compile(r"Format not on whitelist|Not detecting m3u8/hls")
CHAINED = re.compile(r"Changing stream parameters in multistream ogg|failed to create or replace stream")
RAW = re.compile(r"Input #0, (?:av1|avs2|avs3|cavsvideo|dirac|evc|h264|hevc|m4v|mpegvideo|obu|vc1|vvc), from", re.ASCII)
SECOND = re.compile(r"Found duplicated MOOV Atom")
NO_STREAM = "does not contain any stream"
# With -debug_ts: a picture, after the warning if it is damaged. What begins the line may be mixed up with another line.
DECODED = re.compile(r"(corrupt decoded frame)|decoder -> pts:.{0,300}? keyframe:([01]) frame_type:(\d)")
STREAM = re.compile(r"(?m)^\[info\] +Stream #0:(\d{1,4})\S*: (Video|Audio): (.*)$", re.ASCII)
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


def parse_framecrc(text: str) -> list[Stream]:
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


def declared_end(log: str) -> float | None:
    """Return the end of the clip in seconds that the container's header tells, if it does."""
    match = re.search(r"Duration: (\d{1,9}):(\d\d):(\d\d\.\d+), start: (-?\d{1,10}\.\d{1,9})", log, re.ASCII)
    if match is None or "Estimating duration from bitrate" in log:
        return None
    hours, minutes, seconds, start = map(float, match.groups())
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

    Damage lasts until the next key frame; frames predicted from both sides have it from the one that follows, too.

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
        damaged[i] |= between[i] and damaged[i + 1] and not keys[i + 1]
    return damaged


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


def complains(log: str) -> bool:
    """Return whether a log tells of an error, or of packets that are cut or damaged."""
    return any(ERROR.search(line) or DAMAGED_PACKET.search(line) for line in log.splitlines())


def decoder_failed(log: str, kind: str) -> bool:
    """Return whether the decoder of `"video"` or `"audio"` rejected a packet or gave a damaged frame."""
    said = r"\[(?:error|fatal)\]|\[warning\] corrupt decoded frame"
    return re.search(rf"\[{kind[0]}ist#{WHO}\] \[dec:{WHO}\] (?:{said})", log) is not None
