"""Decode clips that tell their own time: every frame and every sound is the right one, or the record says why not.

    python benchmarks/self_timing.py [--cases TEXT] [--at-once 2]

The pictures show their number as eight black or white bars, the sound is a chirp whose pitch tells its second. ffmpeg
makes some 120 clips of them: containers and codecs, offsets, cuts, edit lists, pictures that change on the way, clocks
that start again, pauses. A row a clip: by how many frames the worst of the 30 frames is off (at most one may be
rounding), by how many ms the worst of the 30 sounds (20 may be a codec's delay), by how many seconds the length (0.25),
and what the product says of the clip. A clip is right; or something is missing or told, with its cause; or WRONG: not
right, and nothing said. Clips that this ffmpeg cannot make are left out. The last line is JSON. The status is 1 if a
clip is WRONG.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from mlemiss.pipeline.media.decode import read_clip, read_waveform, segment_centres
from mlemiss.pipeline.media.logmel import SAMPLE_RATE
from mlemiss.pipeline.media.process import ffmpeg_binary, ffmpeg_version

SIZE, BITS, FPS, SECONDS, RATE = 256, 8, 30, 4.0, 48000  # of what every clip is made from
PITCH, SLOPE = 300, 600  # Hz, Hz per second
WINDOW = 0.03  # seconds of sound on both sides of a centre
LOUD = 0.01  # amplitude, the least of a sound
FRAMES, SOUND, LENGTH = 1, 0.02, 0.25  # frames, seconds and seconds by which a clip may be off
H264 = "-c:v libx264 -preset ultrafast -g 30 -bf 2 -pix_fmt yuv420p "
MPEG2 = "-c:v mpeg2video -q:v 3 -g 15 -bf 2 "
TS = "-muxdelay 0 -muxpreload 0 "
NUMBERS = np.arange(int(SECONDS * FPS))


PADDING = {"aac": 1024, "libmp3lame": 1105, "mp2": 481, "ac3": 256, "eac3": 256}  # samples
PADDED = ("ts", "m2ts", "mpg", "vob", "flv", "avi", "asf", "rm", "aac", "ac3")  # containers that do not tell it


class LeftOutError(Exception):
    """This ffmpeg cannot make a clip."""


@dataclass(frozen=True)
class Case:
    """One clip and its truth.

    Args:
        name: of the clip.
        make: takes the folder with ``whole.mkv`` and the clip's own folder, and returns the clip.
        holds: ``"v"``, ``"a"`` or both.
        picture: seconds that the clip's own time 0 lies after the first picture of the whole (negative: before).
        sound: the same of the sound.
        seconds: the length of the clip.
        kept: the numbers of the pictures that the clip has.
        step: frames of the whole between two pictures.
        heard: seconds of the whole between which there is sound.
        pause: seconds of the whole between which there is none nevertheless.
        turned: quarter turns of the pictures against the clock, before and after the middle.
        joints: seconds of the whole at which two sounds meet.
        slip: seconds that the second half sounds later, where nothing hides the padding of its codec.
        early: seconds that a codec's padding sounds before the first sound, where the container does not say so.
    """

    name: str
    make: Callable[[Path, Path], Path]
    holds: str = "va"
    picture: float = 0.0
    sound: float = 0.0
    seconds: float = SECONDS
    kept: np.ndarray = field(default_factory=lambda: NUMBERS)
    step: float = 1
    heard: tuple[float, float] = (0.0, SECONDS)
    pause: tuple[float, float] = (0.0, 0.0)
    turned: tuple[int, int] = (0, 0)
    early: float = 0.0
    joints: tuple[float, ...] = ()
    slip: float = 0.0


# --- how clips are made -----------------------------------------------------------------------------------------------


def ffmpeg(*arguments: object) -> None:
    """Run ffmpeg; options may stand together in one text."""
    words = [word for each in arguments for word in (each.split() if isinstance(each, str) else [str(each)])]
    command = [ffmpeg_binary(), "-v", "error", "-nostdin", "-y", *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise LeftOutError((done.stderr.strip().splitlines() or ["no reason given"])[0][:100])


def make_whole(folder: Path) -> None:
    """Write ``whole.mkv``: four seconds of numbered pictures and of a chirp, without loss."""
    bars = np.where(NUMBERS[:, None] >> np.arange(BITS) & 1, 220, 30).astype(np.uint8)
    frames = np.repeat(bars, SIZE // BITS, axis=1)[:, None, :].repeat(SIZE, axis=1)
    (folder / "whole.gray").write_bytes(frames.tobytes())
    seconds = np.arange(int(SECONDS * RATE)) / RATE
    chirp = 0.4 * np.sin(2 * np.pi * (PITCH * seconds + SLOPE * seconds**2 / 2))
    with wave.open(str(folder / "whole.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((chirp * 32767).astype("<i2").tobytes())
    shape = f"-f rawvideo -pix_fmt gray -s {SIZE}x{SIZE} -r {FPS} -i"
    ffmpeg(shape, folder / "whole.gray", "-i", folder / "whole.wav", "-c:v ffv1 -c:a copy", folder / "whole.mkv")


def coded(suffix: str, options: str, whole: Path, folder: Path) -> Path:
    """Encode the whole."""
    ffmpeg("-i", whole / "whole.mkv", options, folder / f"clip.{suffix}")
    return folder / f"clip.{suffix}"


def late(suffix: str, options: str, picture: float, sound: float, whole: Path, folder: Path) -> Path:
    """Encode the whole with its streams later than 0."""
    inputs = [each for by in (picture, sound) for each in (f"-itsoffset {by} -i", whole / "whole.mkv")]
    ffmpeg(*inputs, "-map 0:v -map 1:a", options, folder / f"clip.{suffix}")
    return folder / f"clip.{suffix}"


def again(suffix: str, options: str, make: Callable[[Path, Path], Path], whole: Path, folder: Path) -> Path:
    """Make a clip and copy its packets; `options` may begin with some for the input, which end with ``|``."""
    before, _, after = options.rpartition("|")
    ffmpeg(before, "-i", make(whole, folder), after, "-c copy", folder / f"again.{suffix}")
    return folder / f"again.{suffix}"


def parts(suffix: str, options: Sequence[str], goes_on: bool, whole: Path, folder: Path) -> list[Path]:
    """Encode the whole in equal parts, each with options of its own; their clock goes on or starts again."""
    length, made = SECONDS / len(options), []
    for index, each in enumerate(options):
        offset = f"-output_ts_offset {index * length + 1}" if goes_on else ""
        made.append(folder / f"part{index}.{suffix}")
        ffmpeg("-i", whole / "whole.mkv", f"-ss {index * length} -t {length}", each, offset, made[-1])
    return made


def joined(suffix: str, options: Sequence[str], goes_on: bool, whole: Path, folder: Path) -> Path:
    """Encode the whole in parts and join their bytes."""
    clip = folder / f"joined.{suffix}"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts(suffix, options, goes_on, whole, folder)))
    return clip


def listed(suffix: str, part: str, options: Sequence[str], whole: Path, folder: Path) -> Path:
    """Encode the whole in parts and copy their packets into one clip."""
    made = parts(part, options, False, whole, folder)
    (folder / "list.txt").write_text("".join(f"file '{each}'\n" for each in made))
    ffmpeg("-f concat -safe 0 -i", folder / "list.txt", "-c copy", folder / f"listed.{suffix}")
    return folder / f"listed.{suffix}"


def cut(make: Callable[[Path, Path], Path], whole: Path, folder: Path) -> Path:
    """Make a clip and leave out its second half."""
    clip = make(whole, folder)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    return clip


def padding(suffix: str, options: str) -> float:
    """Return the seconds of a codec's padding that a container gives out as sound."""
    found = re.search(r"-c:a (\w+)", options)
    rate = 44100 if "-ar 44100" in options else RATE
    return PADDING.get(found[1], 0) / rate if found and suffix in PADDED else 0.0


# --- the clips --------------------------------------------------------------------------------------------------------

WHOLE = {  # name: suffix, options
    "mp4 h264 aac": ("mp4", H264 + "-c:a aac"),
    "mp4 hevc aac": ("mp4", "-c:v libx265 -preset ultrafast -x265-params log-level=none -pix_fmt yuv420p -c:a aac"),
    "mp4 av1 opus": ("mp4", "-c:v libsvtav1 -preset 12 -crf 10 -pix_fmt yuv420p -c:a libopus"),
    "mp4 index first": ("mp4", H264 + "-c:a aac -movflags +faststart"),
    "mov prores pcm": ("mov", "-c:v prores_ks -c:a pcm_s16le"),
    "mov mjpeg alac": ("mov", "-c:v mjpeg -pix_fmt yuvj420p -c:a alac"),
    "mkv h264 opus": ("mkv", H264 + "-c:a libopus"),
    "mkv ffv1 flac": ("mkv", "-c:v ffv1 -c:a flac"),
    "mkv utvideo pcm": ("mkv", "-c:v utvideo -pix_fmt yuv420p -c:a pcm_f32le"),
    "mkv vvc dts": ("mkv", "-c:v libvvenc -preset faster -pix_fmt yuv420p -c:a dca -strict -2"),
    "mkv mpeg4 truehd": ("mkv", "-c:v mpeg4 -bf 2 -q:v 3 -c:a truehd -strict -2"),
    "webm vp8 vorbis": ("webm", "-c:v libvpx -deadline realtime -b:v 1M -c:a libvorbis"),
    "webm vp9 opus": ("webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M -c:a libopus"),
    "avi mpeg4 mp3": ("avi", "-c:v mpeg4 -q:v 3 -c:a libmp3lame"),
    "avi mjpeg pcm": ("avi", "-c:v mjpeg -pix_fmt yuvj420p -c:a pcm_s16le"),
    "flv h264 aac": ("flv", H264 + "-c:a aac"),
    "flv flv1 mp3": ("flv", "-c:v flv -q:v 3 -ar 44100 -c:a libmp3lame"),
    "ts h264 aac": ("ts", H264 + "-c:a aac"),
    "ts mpeg2 mp2": ("ts", MPEG2 + "-c:a mp2"),
    "ts hevc ac3": ("ts", "-c:v libx265 -preset ultrafast -x265-params log-level=none -pix_fmt yuv420p -c:a ac3"),
    "m2ts h264 eac3": ("m2ts", H264 + "-c:a eac3"),
    "mpg mpeg1 mp2": ("mpg", "-c:v mpeg1video -bf 2 -q:v 3 -c:a mp2"),
    "vob mpeg2 ac3": ("vob", MPEG2 + "-c:a ac3"),
    "wmv wmv2 wmav2": ("wmv", "-c:v wmv2 -q:v 3 -c:a wmav2"),
    "asf mpeg4 mp3, B-frames": ("asf", "-c:v mpeg4 -bf 2 -q:v 3 -c:a libmp3lame"),
    "ogv theora vorbis": ("ogv", "-c:v libtheora -q:v 8 -c:a libvorbis"),
    "3gp h263 amr": ("3gp", "-c:v h263 -q:v 3 -vf scale=288:288,pad=352:288:32 -c:a libopencore_amrnb -ar 8000"),
    "mxf mpeg2 pcm": ("mxf", MPEG2 + "-c:a pcm_s16le"),
    "rm rv20 ac3": ("rm", "-c:v rv20 -q:v 3 -c:a ac3"),
    "nut h264 pcm": ("nut", H264 + "-c:a pcm_s16le"),
    "10 bits": ("mkv", "-c:v libx264 -preset ultrafast -pix_fmt yuv422p10le -c:a aac"),
    "RGB": ("mkv", "-c:v libx264rgb -preset ultrafast -c:a aac"),
    "full range": ("mp4", H264 + "-vf scale=out_range=full -color_range pc -c:a aac"),
    "wide": ("mp4", "-vf pad=512:256:128 " + H264 + "-c:a aac"),
    "tall": ("mp4", "-vf pad=256:512:0:128 " + H264 + "-c:a aac"),
    "odd size": ("mkv", "-vf scale=333:333 -c:v libx264 -preset ultrafast -pix_fmt yuv444p -c:a aac"),
    "pixels twice as wide": ("mp4", "-vf scale=128:256,setsar=2 " + H264 + "-c:a aac"),
    "interlaced": ("mpg", "-vf setfield=tff -flags +ildct+ilme " + MPEG2 + "-c:a mp2"),
    "60 frames/s": ("mp4", "-r 60 " + H264 + "-c:a aac"),
    "8 kHz": ("mp4", H264 + "-c:a aac -ar 8000"),
    "96 kHz": ("mkv", H264 + "-c:a pcm_s24le -ar 96000"),
    "six channels": ("mp4", H264 + "-c:a aac -af pan=5.1|FL=c0|FR=c0|FC=c0|LFE=c0|BL=c0|BR=c0"),
}
SOUNDS = {  # suffix: codec
    "wav": "pcm_s16le", "w64": "pcm_s16le", "aiff": "pcm_s16be", "au": "pcm_s16be", "caf": "alac", "flac": "flac",
    "mp3": "libmp3lame", "m4a": "aac", "aac": "aac", "ogg": "libvorbis", "opus": "libopus", "ac3": "ac3",
    "amr": "libopencore_amrnb -ar 8000", "wma": "wmav2", "wv": "wavpack", "tta": "tta", "voc": "pcm_s16le",
}  # fmt: skip
PICTURES = {  # suffix: options
    "y4m": "-pix_fmt yuv420p", "ivf": "-c:v libvpx -deadline realtime -b:v 1M", "gif": "-vf fps=25:round=up",
    "apng": "-c:v apng", "h264": H264 + "-bf 0",
}  # fmt: skip
MP4, MKV = partial(coded, "mp4", H264 + "-c:a aac"), partial(coded, "mkv", H264 + "-c:a aac")
SEI = "-bsf:v h264_metadata=display_orientation=insert:rotate="
CHANGES = {
    "size": "-vf scale=512:512", "shape": "-vf scale=512:256,setsar=1/2", "format": "-pix_fmt yuv444p",
    "range": "-vf scale=out_range=full -color_range pc", "sample rate": "-ar 44100", "channels": "-ac 2",
    "interlacing": "-vf setfield=tff -x264-params tff=1",
}  # fmt: skip
JOINED = {
    "ts": H264 + TS + "-c:a aac", "mpg": "-c:v mpeg1video -bf 2 -q:v 3 -c:a mp2", "vob": MPEG2 + "-c:a ac3",
    "flv": H264 + "-c:a aac", "wmv": "-c:v wmv2 -q:v 3 -c:a wmav2", "avi": "-c:v mpeg4 -q:v 3 -c:a libmp3lame",
    "mkv": H264 + "-c:a aac", "mp4": H264 + "-c:a aac", "ogv": "-c:v libtheora -q:v 8 -c:a libvorbis",
    "mxf": MPEG2 + "-c:a pcm_s16le", "rm": "-c:v rv20 -q:v 3 -c:a ac3",
}  # fmt: skip
JOINED_SOUNDS = ("wav", "aiff", "au", "flac", "mp3", "aac", "ogg", "opus", "ac3", "wma", "m4a", "caf", "w64")


def varied(numbers: np.ndarray, suffix: str, more: str = "") -> dict:
    """Return what a case of some pictures alone, at their own times, needs."""
    gone = "+".join(f"eq(n\\,{number})" for number in np.setdiff1d(NUMBERS, numbers))
    options = f"-vf select=not({gone}){more} -fps_mode vfr -enc_time_base 1/3000 " + H264 + "-c:a aac"
    return {"make": partial(coded, suffix, options), "kept": numbers}


def cases() -> list[Case]:
    """Return all clips and their truths."""

    def add(*case: object, **truth: object) -> None:
        found.append(Case(*case, **truth))

    found = [Case(name, partial(coded, *how), early=padding(*how)) for name, how in WHOLE.items()]
    found += [
        Case(
            f"{s} alone",
            partial(coded, s, f"-vn -c:a {c}"),
            "a",
            sound=2048 / RATE * (s == "wma"),
            early=padding(s, f"-c:a {c}"),
        )
        for s, c in SOUNDS.items()
    ]
    found += [Case(f"{s} alone", partial(coded, s, f"-an {c}"), "v") for s, c in PICTURES.items()]
    square = "-vf fps=25,scale=540:576,pad=720:576:90,setsar=16/15 -pix_fmt yuv420p -c:v dvvideo -ar 48000 -ac 2"
    fragments = partial(coded, "mp4", H264 + "-c:a aac -movflags frag_keyframe+empty_moov")
    add("mp4 in fragments", fragments, early=2 / FPS)  # its first picture is at 2 / FPS, without an edit list
    plain = partial(coded, "mp4", H264 + "-c:a libmp3lame -use_editlist 0 -movflags negative_cts_offsets")
    add("mp4 no edit list", plain, sound=-PADDING["libmp3lame"] / RATE)
    for name, suffix, options, frames in (  # avi keeps neither timestamps nor the padding: B-frames show later
        ("avi h264 mp3, B-frames", "avi", H264, 2),
        ("avi mpeg4 mp3, B-frames", "avi", "-c:v mpeg4 -bf 2 -q:v 3 ", 1),
    ):
        sound = -PADDING["libmp3lame"] / RATE
        make = partial(coded, suffix, options + "-c:a libmp3lame")
        add(name, make, picture=-frames / FPS, sound=sound)
    add("dv", partial(coded, "dv", square), step=FPS / 25)
    for rate in (24, 10, 2):
        slower = partial(coded, "mp4", f"-vf fps={rate}:round=up {H264} -c:a aac")
        add(f"{rate} frames/s", slower, kept=np.unique(NUMBERS * FPS // rate), step=FPS / rate)
    # Streams that begin or end at times of their own.
    aac = H264 + "-c:a aac "
    for suffix in ("mp4", "mkv", "ts", "flv"):  # avi keeps no such offset
        options, early = aac, padding(suffix, aac)
        add(f"{suffix} sound 0.5 s late", partial(late, suffix, options, 0, 0.5), sound=-0.5)
        pictures_late = {"picture": -0.5, "seconds": 4.5, "early": early}
        add(f"{suffix} pictures 0.5 s late", partial(late, suffix, options, 0.5, 0), **pictures_late)
    for suffix in ("mp4", "mkv", "ts"):
        options, early = aac + "-af atrim=0:2", padding(suffix, aac)
        add(f"{suffix} sound ends early", partial(coded, suffix, options), heard=(0, 2), early=early)
        options = aac + "-vf trim=0:3"
        add(f"{suffix} pictures end early", partial(coded, suffix, options), seconds=3, early=early)
    options = H264 + "-c:a flac -af aselect=not(between(t\\,1.5\\,2.5))"
    add("a pause in the sound", partial(coded, "mkv", options), pause=(1.5, 2.5))
    for suffix in ("mp4", "mkv"):
        irregular = NUMBERS[(NUMBERS % 7 != 3) & (NUMBERS % 3 != 1)]
        add(f"{suffix} variable frame rate", **varied(irregular, suffix))
        pause = NUMBERS[(NUMBERS < 30) | (NUMBERS > 75)]
        add(f"{suffix} a pause in the pictures", **varied(pause, suffix))
    # Clocks that begin elsewhere, or overflow.
    hour = "-output_ts_offset 3600"
    late_start = {"early": PADDING["aac"] / RATE}  # of mp4, too: its edit list does not hide the padding then
    found += [Case(f"{s} from 1 h", partial(coded, s, aac + hour), **late_start) for s in ("ts", "mp4", "flv")]
    add("mkv from 1 h", partial(coded, "mkv", aac + hour))
    wraps = aac + TS + "-output_ts_offset 95441.7"
    add("ts overflows after 2 s", partial(coded, "ts", wraps), **late_start)
    make = partial(again, "mp4", "-itsoffset -1.5 | -copyts -avoid_negative_ts disabled", MKV)
    add("mp4 from -1.5 s", make, picture=1.5, sound=1.5, seconds=2.5)  # which its edit list hides
    # Cut without encoding: pictures begin at the key frame before, unless an edit list hides them.
    for suffix, begins in (("mp4", 1.37), ("mkv", 1 - 2 / FPS), ("ts", 1 - 2 / FPS), ("mov", 1.37)):
        truth = {"picture": begins, "sound": begins, "seconds": SECONDS - begins, "early": padding(suffix, aac)}
        add(f"{suffix} cut at 1.37 s", partial(again, suffix, "-ss 1.37 |", MP4), **truth)
    add("mp4 ends at 2.5 s", partial(again, "mp4", "-t 2.5", MP4), seconds=2.5, heard=(0, 2.5))
    # Pictures that change on the way.
    usual = H264 + "-c:a mp2 " + TS
    mp2 = {"early": padding("ts", usual)}
    for change, options in CHANGES.items():
        add(f"ts changes its {change}", partial(joined, "ts", (usual, usual + options), True), **mp2)
    everything = tuple(usual + options for options in ("", *CHANGES.values()))
    joints = tuple(np.arange(len(everything)) * SECONDS / len(everything))
    add("ts changes everything", partial(joined, "ts", everything, True), joints=joints, **mp2)
    rates = np.concatenate([NUMBERS[:60], NUMBERS[60::2]])
    add(
        "ts changes its frame rate",
        partial(joined, "ts", (usual, usual + "-vf fps=15:round=up"), True),
        kept=rates,
        step=2,
        **mp2,
    )
    for suffix in ("mkv", "mp4"):
        sizes = (usual, usual + CHANGES["size"])
        add(f"{suffix} changes its size", partial(listed, suffix, "ts", sizes), **mp2)
    vp9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M -c:a libopus "
    add("webm changes its size", partial(listed, "webm", "webm", (vp9, vp9 + "-vf scale=320:320")))
    # Rotation, in the container and in the stream.
    for turns in (1, 2, 3):
        for suffix in ("mp4", "mkv"):
            make = partial(again, suffix, f"-display_rotation {90 * turns} |", MP4)
            add(f"{suffix} turned by {90 * turns}", make, turned=(turns, turns))
        sei = f"{H264} -c:a aac {SEI}{90 * turns}"
        add(f"mp4 turned by {90 * turns} in the stream", partial(coded, "mp4", sei), turned=(turns,) * 2)
    for before, after in ((0, 1), (0, 2), (1, 0), (1, 3)):
        turning = [usual + f"{SEI}{90 * turns}" for turns in (before, after)]
        name = f"ts turns from {90 * before} to {90 * after}"
        add(name, partial(joined, "ts", turning, True), turned=(before, after), **mp2)
    # Clips joined end to end, whose timestamps start again.
    found += [
        Case(f"{s} joined", partial(joined, s, (how, how), False), early=padding(s, how)) for s, how in JOINED.items()
    ]
    sizes = (usual, usual + CHANGES["size"])
    add("ts joined, of two sizes", partial(joined, "ts", sizes, False), **mp2)
    for suffix in JOINED_SOUNDS:
        how = f"-vn -c:a {SOUNDS[suffix]}"
        # The second ADTS file begins after the 95 frames of the first, and nothing tells of the padding in between.
        truth = {"early": padding(suffix, how), "slip": (95 * 1024 / RATE - SECONDS / 2) * (suffix == "aac")}
        add(f"{suffix} joined, sound alone", partial(joined, suffix, (how, how), False), "a", **truth)
    # Cut files.
    found += [
        Case(f"{s} cut in half", partial(cut, partial(coded, *WHOLE[s]))) for s in ("avi mjpeg pcm", "mkv h264 opus")
    ]
    add("mp4 cut in half", partial(cut, partial(coded, *WHOLE["mp4 index first"])))
    add("wav cut in half", partial(cut, partial(coded, "wav", "-vn")), "a")
    return found


# --- what the product makes of them -----------------------------------------------------------------------------------


def frame_error(case: Case, frames: np.ndarray, centres: np.ndarray) -> float:
    """Return by how many frames the worst is off; frames: uint8 [30, 256, 256, 3]."""
    halves = np.array(case.turned)[(centres + case.picture - case.early > SECONDS / 2).astype(int)]
    upright = np.stack([np.rot90(frame, -turns) for frame, turns in zip(frames, halves, strict=True)])
    width = SIZE // BITS
    bars = upright[:, SIZE // 3 : 2 * SIZE // 3].mean(axis=(1, 3)).reshape(len(frames), BITS, width)
    shown = ((bars[:, :, width // 3 : -width // 3].mean(axis=2) > 125) << np.arange(BITS)).sum(axis=1)
    place = np.searchsorted(case.kept, (centres + case.picture - case.early) * FPS + 1e-6, side="right") - 1
    return float(np.abs(shown - case.kept[np.maximum(place, 0)]).max() / case.step)


def sound_error(case: Case, waveform: np.ndarray, centres: np.ndarray) -> float:
    """Return by how many seconds the worst sound is off; infinite: sound for silence, or the reverse."""
    worst = 0.0
    for seconds in centres:
        piece = waveform[int((seconds - WINDOW) * SAMPLE_RATE) : int((seconds + WINDOW) * SAMPLE_RATE)]
        truth = seconds + case.sound - case.early
        truth -= case.slip * (truth > SECONDS / 2)
        edges = np.abs(truth - np.array([*case.heard, *case.pause, *case.joints]))
        if edges.min() < 2 * WINDOW:
            continue
        expected = case.heard[0] < truth < case.heard[1] and not case.pause[0] < truth < case.pause[1]
        if expected != (np.abs(piece).max(initial=0) > LOUD):
            return np.inf
        if expected:
            spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 1 << 15))
            worst = max(worst, abs((spectrum.argmax() * SAMPLE_RATE / (1 << 15) - PITCH) / SLOPE - truth))
    return worst


def judge(case: Case, whole: Path, work: Path) -> tuple[str, str]:
    """Return the verdict on a clip, and its row."""
    folder = work / case.name.replace(" ", "_").replace("/", "_")
    folder.mkdir()
    try:
        path = case.make(whole, folder)
    except LeftOutError as error:
        return "left out", f"{case.name:32}{'':30}  left out            {error}"
    clip, waveform = read_clip(path), read_waveform(path)
    centres = segment_centres(clip.duration)
    off = clip.duration - case.seconds
    picture = sound = np.nan
    if clip.frames is not None:
        picture = frame_error(case, clip.frames, centres)
    if clip.logmel is not None and waveform is not None:
        sound = sound_error(case, waveform, centres)
    there = ("v" in case.holds) <= (clip.frames is not None) and ("a" in case.holds) <= (clip.logmel is not None)
    right = there and not picture > FRAMES and not sound > SOUND and abs(off) <= LENGTH
    kinds = {"visual": "v", "audio": "a"}
    said = "; ".join([*(f"{m}: {c}" for m, c in clip.causes.items() if kinds[m] in case.holds), clip.note]).strip("; ")
    verdict = "right" if right else "missing with cause" if said else "WRONG"
    shutil.rmtree(folder)
    return verdict, f"{case.name:32}{picture:8.1f}{sound * 1e3:10.1f}{off:12.2f}  {verdict:20}{said}"


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", default="", help="only clips with this text in their name")
    parser.add_argument("--at-once", type=int, default=2)
    chosen = parser.parse_args()
    print(f"{'clip':32}{'frames':>8}{'sound ms':>10}{'length s':>12}  {'verdict':20}what is said of it")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(chosen.at_once) as pool:
        whole = Path(name)
        make_whole(whole)
        wanted = [case for case in cases() if chosen.cases in case.name]
        for verdict, row in pool.map(lambda case: judge(case, whole, whole), wanted):
            counts[verdict] += 1
            print(row, flush=True)
    print(json.dumps({"ffmpeg": ffmpeg_version(), "clips": sum(counts.values()), **counts}))
    return int(counts["WRONG"] > 0)


if __name__ == "__main__":
    sys.exit(main())
