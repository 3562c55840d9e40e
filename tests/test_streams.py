"""What is inside a container: damaged pictures, channels that cancel out, the default stream, formats of all kinds."""

import contextlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlemiss.pipeline import files
from mlemiss.pipeline.errors import ClipError
from mlemiss.pipeline.media import parse
from mlemiss.pipeline.media.decode import read_clip
from mlemiss.pipeline.media.ffmpeg import STOPS_TURNING, Limits
from mlemiss.pipeline.stores.store import FeatureStore

from .test_clip_faults import FAULTS, counting_clip, needs_field_faults, run_ffmpeg

PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=176x144:r=25:d=2")
SOUND = ("-f", "lavfi", "-i", "sine=440:r=48000:d=2")
ANY_DAMAGE = Limits(max_damaged=30)


# --- pictures that the stream turns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("turns", "followed"), [((90, 0), False), ((0, 90), True), ((90, 90), True)])
def test_pictures_that_stop_being_turned_are_no_picture(tmp_path, turns, followed):
    path = tmp_path / "turns.ts"
    with path.open("wb") as file:
        for number, turn in enumerate(turns):
            sei = f"h264_metadata=display_orientation=insert:rotate={turn}"
            codec = ["-c:v", "libx264", "-preset", "ultrafast", "-c:a", "mp2", "-bsf:v", sei]
            run_ffmpeg(*PICTURE, *SOUND, *codec, "-output_ts_offset", 2 * number, tmp_path / "part.ts")
            file.write((tmp_path / "part.ts").read_bytes())
    clip = read_clip(path)
    assert (clip.frames is not None) == followed and clip.logmel is not None
    assert (clip.causes["visual"] == STOPS_TURNING) != followed


# --- damage inside pictures -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Return a clip, and one of the same with noise in the packets of frames 40 to 42; a key frame is every 30th."""
    folder = tmp_path_factory.mktemp("damage")
    whole, hurt = folder / "whole.mp4", folder / "hurt.mp4"
    picture = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=30:d=4")
    run_ffmpeg(*picture, *SOUND, "-c:v", "mpeg4", "-g", 30, "-q:v", 2, whole)
    run_ffmpeg("-i", whole, "-c", "copy", "-bsf:v", "noise=amount=if(between(n\\,40\\,42)\\,-60\\,0)", hurt)
    return whole, hurt


def test_damaged_frames_are_counted_to_the_next_key_frame(damaged):
    whole, hurt = (read_clip(path, ANY_DAMAGE) for path in damaged)
    differs = np.abs(whole.frames.astype(int) - hurt.frames).mean(axis=(1, 2, 3)) > 1
    reached = (hurt.frame_times > 40 / 30 - 0.01) & (hurt.frame_times < 60 / 30 - 0.01)
    assert differs.any() and (reached | ~differs).all()
    assert hurt.causes == {"visual": f"{reached.sum()} of 30 frames are damaged"} and whole.causes == {}


def test_more_damage_than_allowed_costs_the_picture_alone(damaged):
    count = int(read_clip(damaged[1], ANY_DAMAGE).causes["visual"].split()[0])
    assert read_clip(damaged[1], Limits(max_damaged=count)).frames is not None
    clip = read_clip(damaged[1], Limits(max_damaged=count - 1))
    assert clip.frames is None and clip.logmel is not None
    assert clip.causes == {"visual": f"{count} of 30 frames are damaged, more than the {count - 1} allowed"}


@needs_field_faults
def test_shredded_frames_from_the_field():
    assert (
        "of 30 frames are damaged, more than the 3 allowed" in read_clip(FAULTS / "damaged_slices.mp4").causes["visual"]
    )
    assert read_clip(FAULTS / "damaged_source.mp4").causes == {}


def test_frames_between_two_are_damaged_by_the_one_that_follows():
    kinds = ["1", "3", "2", "3", "3", "2!", "3", "2", "1", "3", "2", "3", "1!"]  # I, B and P; `!` is called damaged
    lines = []
    for kind in kinds:
        lines += ["[dec:h264] [warning] corrupt decoded frame"] * kind.endswith("!")
        lines.append(f"decoder -> pts:1 pts_time:0.1 keyframe:{int(kind[0] == '1')} frame_type:{kind[0]} time_base:1/9")
    expected = [*3 * [False], *5 * [True], *3 * [False], True, True]
    assert parse.damaged_pictures("\n".join(lines)).tolist() == expected
    assert parse.damaged_pictures("").tolist() == []


def test_pictures_before_a_damaged_key_frame_are_damaged_with_it(tmp_path):
    """In open groups of pictures, as MPEG-2 has them, they are predicted from it."""
    whole, hurt = tmp_path / "whole.mkv", tmp_path / "hurt.mkv"
    counting_clip(whole, 2.0, "-c:v", "mpeg2video", "-bf", 2, "-g", 12, "-sc_threshold", 1_000_000_000)
    # A key frame comes before the two that are shown before it: packet 34 is picture 36.
    run_ffmpeg("-i", whole, "-c", "copy", "-bsf:v", "noise=amount=if(eq(n\\,34)\\,20\\,0)", hurt)
    clips = [read_clip(path, ANY_DAMAGE) for path in (whole, hurt)]
    differs = np.abs(clips[0].frames.astype(int) - clips[1].frames).mean(axis=(1, 2, 3)) > 1
    assert differs.any() and clips[1].frame_times[differs].min() < 36 / 30 - 0.01
    assert int(clips[1].causes["visual"].split()[0]) >= differs.sum()


@pytest.mark.slow
def test_a_decoder_that_does_not_say_which_frames_is_recorded(tmp_path):
    whole, hurt = tmp_path / "whole.mkv", tmp_path / "hurt.mkv"
    counting_clip(whole, 1.0, "-c:v", "ffv1", "-slicecrc", 1, "-level", 3)
    run_ffmpeg("-i", whole, "-c", "copy", "-bsf:v", "noise=amount=if(between(n\\,9\\,12)\\,-90\\,0)", hurt)
    clip = read_clip(hurt)
    assert clip.frames is not None and "frames may be damaged" in clip.causes["visual"]


@pytest.mark.slow
def test_the_run_and_the_store_tell_of_damage(damaged, tmp_path, mlemiss):
    manifest = tmp_path / "clips.csv"
    manifest.write_text("clip_id,path,label,subject\na,whole.mp4,x,\nb,hurt.mp4,y,\n")
    places = ["--dataset", manifest, "--root", damaged[0].parent, "--stores", tmp_path / "stores", "--workers", 0]
    run = ["preprocess", *places, "--media", "only", "--json"]
    first = mlemiss(*run)
    lost = "visual: 6 of 30 frames are damaged, more than the 3 allowed"
    summary = json.loads(first.stdout)
    store = FeatureStore.open(summary["stores"][0])
    assert first.returncode == 0 and summary["remarks"] == [] and store.error[1] == lost
    second = mlemiss(*run, "--max-damaged", 6, "--channels", "first")
    summary = json.loads(second.stdout)
    told = "visual: 6 of 30 frames are damaged"
    assert summary["remarks"] == [{"clip_id": "b", "path": "hurt.mp4", "cause": told}]
    assert f"note: hurt.mp4: {told}" in second.stderr
    used = FeatureStore.open(summary["stores"][0])
    assert used.fingerprint != store.fingerprint and used.present.all() and used.error[1] == told
    assert used.attrs["spec"] == store.attrs["spec"] | {"max_damaged": 6, "channels": "first"}
    assert told in mlemiss("store", "info", used.path).stdout
    page = tmp_path / "page.html"
    assert mlemiss("store", "preview", used.path, "--out", page).returncode == 0
    assert told in page.read_text()


def test_damage_that_only_the_container_tells_of_is_recorded(tmp_path):
    whole, hurt = tmp_path / "whole.ogg", tmp_path / "hurt.ogg"
    run_ffmpeg(*SOUND, "-c:a", "libvorbis", whole)
    content = bytearray(whole.read_bytes())
    content[len(content) * 3 // 4] ^= 0xFF
    hurt.write_bytes(content)
    assert "audio" not in read_clip(whole).causes
    clip = read_clip(hurt)
    assert clip.logmel is not None and clip.causes["audio"] == "the sound may be damaged: CRC mismatch!"


def test_packets_that_a_transport_stream_lacks_are_recorded(tmp_path):
    """H.264 may be decoded without a word where some of its bytes are gone; the packets are numbered."""
    whole, hurt = tmp_path / "whole.ts", tmp_path / "hurt.ts"
    run_ffmpeg(*PICTURE, "-c:v", "libx264", "-pix_fmt", "yuv420p", whole)
    content, size = whole.read_bytes(), 188
    at = len(content) // size // 2 * size
    hurt.write_bytes(content[:at] + content[at + 3 * size :])
    assert read_clip(whole).causes == {"audio": "no audio stream"}
    assert "damaged" in read_clip(hurt).causes["visual"]
    log = "[in#0/mpegts @ 0x1] [warning] corrupt input packet in stream 0\n"
    assert parse.error_of(log, hurt, "video", "h264") == parse.LACKING
    assert parse.error_of(log, hurt, "video", "h264", joined=True) == ""


@pytest.mark.parametrize(("suffix", "codec"), [("flac", "flac"), ("tta", "tta"), ("ac3", "ac3"), ("mka", "wavpack")])
def test_a_wrong_checksum_of_sound_is_recorded(tmp_path, suffix, codec):
    """One bit, which these codecs decode to noise."""
    whole, hurt = tmp_path / f"whole.{suffix}", tmp_path / f"hurt.{suffix}"
    run_ffmpeg("-f", "lavfi", "-i", "anoisesrc=d=2:r=48000:a=0.3:seed=1", "-c:a", codec, whole)
    content = bytearray(whole.read_bytes())
    content[len(content) * 3 // 4] ^= 0x10
    hurt.write_bytes(content)
    assert "audio" not in read_clip(whole).causes and "CRC" in read_clip(hurt).causes["audio"]


def test_an_error_belongs_to_the_stream_that_it_names():
    path = Path("clip.ogg")
    log = "[h264 @ 0x1] [error] left block\n[warning] x\n[mp3float @ 0x2] [error] Header  missing.\n"
    assert parse.error_of(log, path, "video", "h264") == "left block"
    assert parse.error_of(log, path, "audio", "mp3") == "Header missing"
    assert parse.error_of(log, path, "audio", "aac") == ""
    assert parse.error_of("[dca @ 0x1] [error] Invalid data\n", path, "audio", "dts") == "Invalid data"
    assert parse.error_of("[in#0/ogg @ 0x1] [error] CRC mismatch!", path, "audio", "aac") == "CRC mismatch!"
    placed = f"[in#0/ogg @ 0x1] [error] file:{path.absolute()}: bad page @ 0x2f"
    assert parse.error_of(placed, path, "audio", "aac") == "the file: bad page"  # the same at every run


# --- channels and streams ---------------------------------------------------------------------------------------------


def test_channels_that_cancel_out_are_told_and_the_first_can_be_taken(tmp_path):
    path = tmp_path / "antiphase.wav"
    run_ffmpeg(*SOUND, "-af", "pan=stereo|c0=c0|c1=-1*c0", path)
    clip = read_clip(path)
    assert clip.logmel is None and "cancel each other out: `--channels first`" in clip.causes["audio"]
    clip = read_clip(path, Limits(channels="first"))
    assert clip.logmel is not None and "audio" not in clip.causes


def test_channels_that_nearly_cancel_out_are_told(tmp_path):
    path = tmp_path / "near.wav"
    run_ffmpeg(*SOUND, "-af", "pan=stereo|c0=c0|c1=-0.98*c0", path)
    clip = read_clip(path)
    assert clip.logmel is not None and "nearly cancel each other out, 40 dB below" in clip.causes["audio"]


def test_one_silent_channel_is_as_usual(tmp_path):
    path = tmp_path / "left.wav"
    run_ffmpeg(*SOUND, "-af", "pan=stereo|c0=c0|c1=0*c0", path)
    assert read_clip(path).causes == {"visual": "no video stream"}


def test_the_default_stream_goes_before_the_first(tmp_path):
    path = tmp_path / "two.mkv"
    inputs = ["-f", "lavfi", "-i", "color=black:s=64x64:d=1", "-f", "lavfi", "-i", "color=white:s=64x64:d=1"]
    inputs += ["-f", "lavfi", "-i", "anullsrc=d=1", "-f", "lavfi", "-i", "sine=440:d=1"]
    streams = [text for index in range(4) for text in ("-map", index)]
    for wanted, bright, cause in ((1, True, None), (0, False, "the audio is digital silence")):
        defaults = [
            ("-disposition:" + f"{kind}:{i}", "default" if i == wanted else "0") for kind in "va" for i in (0, 1)
        ]
        run_ffmpeg(*inputs, *streams, *sum(defaults, ()), "-t", 1, "-c:v", "mpeg4", "-c:a", "pcm_s16le", path)
        clip = read_clip(path)
        assert (clip.frames.mean() > 200) == bright and clip.causes.get("audio") == cause


# --- formats ----------------------------------------------------------------------------------------------------------

RAW = {"a.h264", "a.hevc", "a.m2v", "a.obu", "a.m4v"}
FORMATS = {  # how ffmpeg writes each
    "a.h264": (*PICTURE, "-c:v", "libx264", "-pix_fmt", "yuv420p"),
    "a.hevc": (*PICTURE, "-c:v", "libx265", "-x265-params", "log-level=none"),
    "a.m2v": (*PICTURE, "-c:v", "mpeg2video"),
    "a.m4v": (*PICTURE, "-f", "m4v", "-c:v", "mpeg4"),
    "a.obu": (*PICTURE, "-c:v", "libsvtav1", "-preset", "10"),
    "a.y4m": (*PICTURE, "-pix_fmt", "yuv420p"),
    "a.ivf": (*PICTURE, "-c:v", "libvpx"),
    "a.nut": (*PICTURE, *SOUND, "-c:v", "mpeg4", "-c:a", "pcm_s16le"),
    "a.wtv": (*PICTURE, *SOUND, "-c:v", "mpeg2video", "-c:a", "mp2"),
    "a.gif": (*PICTURE, "-loop", "0"),
    "a.apng": (*PICTURE, "-f", "apng", "-plays", "0"),
    "a.webp": (*PICTURE, "-c:v", "libwebp_anim", "-loop", "0"),
    "a.wv": SOUND,
    "a.tta": SOUND,
    "a.dts": (*SOUND, "-strict", "-2", "-ac", "2"),
    "a.mlp": (*SOUND, "-strict", "-2", "-ac", "2"),
    "a.voc": SOUND,
    "a.sox": SOUND,
    "a.rm": (*PICTURE, "-c:v", "rv20"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read_to_their_end(tmp_path, name):
    run_ffmpeg(*FORMATS[name], tmp_path / name)
    clip = read_clip(tmp_path / name)
    assert clip.duration == pytest.approx(2.0, abs=0.02), clip.causes
    assert (clip.frames is not None) == (PICTURE[3] in FORMATS[name])
    assert (clip.logmel is not None) == (SOUND[3] in FORMATS[name])
    assert ("no clock of its own" in clip.note) == (name in RAW)


@needs_field_faults
def test_a_sphere_file_is_read():
    assert read_clip(FAULTS / "nist_sphere.wav").logmel is not None


@pytest.mark.parametrize("name", ["one.png", "one.jpg", "one.webp", "list.ffconcat"])
def test_stills_and_lists_are_no_clips(tmp_path, name):
    if name == "list.ffconcat":
        run_ffmpeg(*SOUND, tmp_path / "a.wav")
        (tmp_path / name).write_text("ffconcat version 1.0\nfile a.wav\n")
    else:
        run_ffmpeg(*PICTURE, "-frames:v", "1", *(("-c:v", "libwebp") if name == "one.webp" else ()), tmp_path / name)
    clip = read_clip(tmp_path / name)
    assert clip.frames is None and clip.logmel is None
    assert "a playlist, a still picture or the like" in clip.causes["visual"]


# --- files joined end to end ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "video"),
    [
        ("wav", False),
        ("aiff", False),
        ("caf", False),
        ("w64", False),
        ("flv", True),
        ("wmv", True),
        ("avi", True),
        ("mxf", True),
    ],
)
def test_a_second_file_at_the_end_is_told(tmp_path, suffix, video):
    codecs = {"mxf": ("-c:v", "mpeg2video")}
    one, two = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
    run_ffmpeg(*(PICTURE if video else SOUND), *codecs.get(suffix, ()), one)
    two.write_bytes(2 * one.read_bytes())
    assert "another file is joined to its end" in read_clip(two).note and read_clip(one).note == ""


def test_a_head_across_two_blocks_is_found(tmp_path):
    head = b"FLV\x01\x05\0\0\0\x09\0\0\0\0"
    for at in (files.BLOCK_BYTES - 5, files.BLOCK_BYTES, 2 * files.BLOCK_BYTES + 3):
        path = tmp_path / "clip.flv"
        path.write_bytes(head.ljust(at, b"x") + head)
        assert files.is_joined(path)
    path.write_bytes(head + b"x" * 3 * files.BLOCK_BYTES)
    assert not files.is_joined(path)


@pytest.mark.slow
def test_a_note_is_on_record(tmp_path, mlemiss):
    run_ffmpeg(*SOUND, tmp_path / "one.wav")
    (tmp_path / "two.wav").write_bytes(2 * (tmp_path / "one.wav").read_bytes())
    manifest = tmp_path / "clips.csv"
    manifest.write_text("clip_id,path,label,subject\na,one.wav,x,\nb,two.wav,y,\n")
    places = ["--dataset", manifest, "--root", tmp_path, "--stores", tmp_path / "stores", "--workers", 0]
    done = mlemiss("preprocess", *places, "--media", "only", "--json")
    store = FeatureStore.open(json.loads(done.stdout)["stores"][0])
    told = "clip: another file is joined to its end"
    assert told in store.error[1] and told not in store.error[0]
    assert "note: two.wav: visual: no video stream; clip: another file is joined to its end" in done.stderr


def test_a_picture_beyond_the_limit_is_called_so_and_leaves_the_sound(tmp_path):
    run_ffmpeg(*PICTURE, *SOUND, "-c:v", "libx264", "-pix_fmt", "yuv420p", tmp_path / "clip.mkv")
    clip = read_clip(tmp_path / "clip.mkv", Limits(max_pixels=100))
    assert "176x144 exceeds specified max pixel count 100" in clip.causes["visual"] and clip.logmel is not None


def test_a_decoder_without_memory_is_told_once(tmp_path):
    run_ffmpeg(*PICTURE, *SOUND, "-c:v", "mpeg4", tmp_path / "clip.mkv")
    causes = read_clip(tmp_path / "clip.mkv", Limits(max_memory=280 << 20)).causes
    assert causes["visual"].endswith("needs more than the 0.273 GiB of memory allowed") and "[" not in causes["visual"]


# --- listings and memory ----------------------------------------------------------------------------------------------


def parse_slowly(text):
    """Return the rows of a listing of one stream as (start, end, bytes, own), in order."""
    rows = []
    for line in text.splitlines()[1:]:
        _, decoding, presented, lasts, size, *_ = (field.strip() for field in line.split(","))
        flags = int(line.partition("F=0x")[2].partition(",")[0] or "1", 16)
        times = [time for time in (int(presented), int(decoding)) if abs(time) < 1 << 62]
        if times and not flags & 4:
            lasts = int(lasts) if 0 < int(lasts) < 1 << 62 else 0
            rows.append((times[0], times[0] + lasts, int(size), times[0] == int(presented)))
    return sorted(rows)


TICKS = st.one_of(st.integers(-(10**12), 10**12), st.sampled_from([-(1 << 63), (1 << 63) - 1, 10**19 - 1]))
PACKETS = st.tuples(
    TICKS, TICKS, TICKS, st.integers(0, 10**9), st.sampled_from(["", "0x0", "0x1", "0x4", "0x1C", "0x8"])
)


@given(packets=st.lists(PACKETS, max_size=30), block=st.integers(1, 500))
@settings(max_examples=150, deadline=None)
def test_listings_are_parsed_as_line_by_line(packets, block):
    lines = ["#media_type 0: video", "#codec_id 0: h264", "#tb 0: 1/1000"]
    for decoding, presented, lasts, size, flags in packets:
        flagged = f", F={flags}" + ", S=1, 8" * (size % 2) if flags else ""
        lines.append(f"0, {decoding:10d}, {presented:10d}, {lasts:8d}, {size:8d}, 0x0123cdef{flagged}")
    with mock.patch.object(parse, "PARSED_BYTES", block):
        (stream,) = parse.parse_framecrc(bytearray("\n".join(lines), "ascii"), math.inf)
    expected = parse_slowly("\n".join(lines[2:]))
    found = zip(stream.starts * 1000, stream.ends * 1000, stream.sizes, strict=True)
    assert np.allclose(list(found) or np.zeros((0, 3)), [row[:3] for row in expected] or np.zeros((0, 3)), rtol=1e-12)
    assert stream.timed == all(row[3] for row in expected) and (stream.kind, stream.codec) == ("video", "h264")


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_listing_is_parsed_or_refused(text):
    with contextlib.suppress(ClipError):
        parse.parse_framecrc(bytearray(b"#media_type 0: audio\n#tb 0: 1/8\n" + text), math.inf)


def test_parsing_ends_at_the_deadline():
    with pytest.raises(ClipError, match="longer than the time allowed"):
        parse.parse_framecrc(bytearray(b"#tb 0: 1/8\n"), time.monotonic() - 1)


LOUD = ("-filter_complex", "anoisesrc=d=200:r=16000", "-ac", "8")  # 102 MB of samples
MANY = ("-filter_complex", "sine=440:d=60:r=48000,asetnsamples=20")  # 144,000 packets
# What a clip's own process and its decoders took at most, in bytes beyond what the process took before.
PEAK = """
import sys
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
import librosa.filters, mlemiss.pipeline.media.decode as media
from mlemiss.pipeline.media.ffmpeg import STOPS_TURNING, Limits
before = getrusage(RUSAGE_SELF).ru_maxrss
clip = media.read_clip(sys.argv[1], Limits(max_memory=int(sys.argv[2])))
most = getrusage(RUSAGE_SELF).ru_maxrss - before + getrusage(RUSAGE_CHILDREN).ru_maxrss
print(1024 * most, clip.causes["audio"] if "audio" in clip.causes else "", sep=";")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("made", "memory", "fits"), [(LOUD, 512, True), (LOUD, 320, False), (MANY, 512, True)])
def test_memory_of_decoder_and_python_stays_within_the_limit(tmp_path, made, memory, fits):
    path = tmp_path / "clip.mkv"
    run_ffmpeg(*made, "-c:a", "pcm_s16le", path)
    done = subprocess.run([sys.executable, "-c", PEAK, path, str(memory << 20)], capture_output=True, text=True)
    most, told = done.stdout.strip().split(";")
    assert int(most) < (memory + 100) << 20 and bool(told) != fits and told.endswith("allowed") != fits


CPU = """
import sys
from resource import RUSAGE_CHILDREN, getrusage
from mlemiss.pipeline.media import decode
from mlemiss.pipeline.media.ffmpeg import Limits
clip = decode.read_clip(sys.argv[1], Limits(max_memory=int(sys.argv[2]) << 20))
print(getrusage(RUSAGE_CHILDREN).ru_stime, clip.logmel is not None)
"""


@pytest.mark.slow
def test_little_memory_costs_the_decoder_no_time(tmp_path):
    run_ffmpeg("-filter_complex", "sine=440:d=15:r=48000,asetnsamples=16", "-c:a", "pcm_s16le", tmp_path / "clip.mkv")
    spent = []
    for memory in (512, 4096):
        done = subprocess.run(
            [sys.executable, "-c", CPU, tmp_path / "clip.mkv", str(memory)], capture_output=True, text=True
        )
        seconds, read = done.stdout.split()
        assert read == "True"
        spent.append(float(seconds))
    assert spent[0] < 4 * spent[1] + 0.5
