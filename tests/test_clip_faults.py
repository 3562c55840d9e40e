"""What is wrong with clips, by kind: unset numbers, restarted clocks, headers that overstate, files of other kinds."""

import builtins
import errno
import io
import json
import os
import re
import resource
import struct
import subprocess
import time
import zipfile
from pathlib import Path
from unittest import mock

import librosa
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlemiss.pipeline.clips.manifest import read_manifest
from mlemiss.pipeline.encoders import Weights
from mlemiss.pipeline.encoders.load import load_encoder
from mlemiss.pipeline.errors import ClipError, InputError, MachineError, is_machine_fault
from mlemiss.pipeline.importing.feature_files import read_feature_file
from mlemiss.pipeline.media import decode as media
from mlemiss.pipeline.media import ffmpeg, parse, sound
from mlemiss.pipeline.media.process import DecoderError, ffmpeg_binary
from mlemiss.pipeline.run import extract
from mlemiss.pipeline.run.plan import Output

SIZE, BITS, RATE = 256, 8, 30  # pixels a side, bars, frames per second
FAULTS = Path(os.environ.get("MLEMISS_SHARED_DATA", "/nonexistent")) / "field_faults"
needs_field_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason="MLEMISS_SHARED_DATA does not name the clips")


def run_ffmpeg(*arguments, feed=None):
    command = [ffmpeg_binary(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, input=feed, stdin=None if feed else subprocess.DEVNULL)


def counting_clip(path, seconds=4.0, *options):
    """Write a clip whose frames show their number as eight black or white bars, with a tone."""
    numbers = np.arange(round(seconds * RATE))
    bars = np.where(numbers[:, None] >> np.arange(BITS) & 1, 220, 30).astype(np.uint8)
    frames = np.repeat(bars, SIZE // BITS, axis=1)[:, None, :].repeat(SIZE, axis=1)
    picture = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{SIZE}x{SIZE}", "-r", RATE, "-i", "-"]
    tone = ["-f", "lavfi", "-i", f"sine=440:r=48000:d={seconds}"]
    run_ffmpeg(*picture, *tone, *(options or ("-c:v", "mpeg4", "-bf", 2)), path, feed=frames.tobytes())
    return path


def shown_numbers(frames):
    """Read the numbers off frames, uint8 [n, 256, 256, 3]."""
    width = SIZE // BITS
    bars = frames[:, 64:192].mean(axis=(1, 3)).reshape(len(frames), BITS, width)[:, :, width // 4 : -width // 4]
    return ((bars.mean(axis=2) > 125) << np.arange(BITS)).sum(axis=1)


def check_frames(clip, late=0.0):
    """Check that every frame is within one of the frame at its segment's centre, ``late`` seconds after time 0."""
    assert clip.frames is not None, clip.causes
    on_time = (media.segment_centres(clip.duration) - late) * RATE
    assert np.abs(shown_numbers(clip.frames) - np.floor(on_time)).max() <= 1.01


# --- streams that change on the way -----------------------------------------------------------------------------------

CHANGES = {
    "size": ("-vf", "scale=512:512"),
    "shape": ("-vf", "scale=512:256,setsar=1/2"),
    "range": ("-vf", "scale=out_range=full", "-color_range", "pc"),
    "format": ("-pix_fmt", "yuv444p"),
    "rate": ("-vf", "fps=15"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", [*CHANGES, "all"])
def test_frames_are_chosen_by_time_whatever_changes(tmp_path, change):
    """Where pictures change their size or kind, ffmpeg counts them from 0 again."""
    whole = counting_clip(tmp_path / "whole.mkv", 4.0, "-c:v", "ffv1")
    joined = tmp_path / "joined.ts"
    parts = [(), *(CHANGES.values() if change == "all" else [CHANGES[change]])]
    for i, options in enumerate(parts):
        start, part = i * 4.0 / len(parts), tmp_path / f"{i}.ts"
        cut = ["-ss", start, "-t", 4.0 / len(parts), "-i", whole]
        coded = ["-c:v", "libx264", "-g", 15, "-bf", 0, "-pix_fmt", "yuv420p", *options, "-c:a", "mp2"]
        run_ffmpeg(*cut, *coded, "-muxdelay", 0, "-muxpreload", 0, "-output_ts_offset", start + 1, part)
        with joined.open("ab") as file:
            file.write(part.read_bytes())
    check_frames(media.read_clip(joined))


@pytest.mark.slow
def test_of_frames_with_one_timestamp_the_last_is_on_screen(tmp_path):
    whole = counting_clip(tmp_path / "whole.mkv", 1.0, "-c:v", "ffv1")
    twice = tmp_path / "twice.mkv"
    run_ffmpeg("-i", whole, "-c", "copy", "-bsf:v", "setts=ts='if(mod(N\\,2)\\,PREV_OUTPTS\\,PTS)'", twice)
    assert (shown_numbers(media.read_clip(twice).frames) % 2 == 1).all()


@needs_field_faults
@pytest.mark.parametrize("name", ["resolution_change.webm", "range_change.mp4"])
def test_changing_clips_from_the_field(name):
    check_frames(media.read_clip(FAULTS / name))


# --- numbers that are no numbers --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("container", ["avi", "mpg", "asf"])
def test_packets_without_timestamps_are_no_long_clip(tmp_path, container):
    """Containers that keep no timestamps of presentation: `ffmpeg` lists -2**63 for them."""
    codec = ("-c:v", "mpeg1video", "-bf", 2) if container == "mpg" else ("-c:v", "mpeg4", "-bf", 2)
    clip = media.read_clip(counting_clip(tmp_path / f"untimed.{container}", 2.0, *codec))
    assert clip.causes == {} and clip.duration == pytest.approx(2.0, abs=0.15)
    check_frames(clip)


@pytest.mark.slow
@pytest.mark.parametrize("container", ["avi", "asf"])
def test_a_lost_frame_without_a_timestamp_is_known(tmp_path, container):
    path = counting_clip(tmp_path / f"untimed.{container}", 2.0, "-c:v", "mpeg4", "-bf", 2, "-g", 12)
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data) - 4) if data[at : at + 4] == b"\0\0\1\xb6"]  # of pictures
    data[starts[30] : starts[30] + 200] = bytes(200)
    path.write_bytes(data)
    clip = media.read_clip(path)
    assert clip.frames is None and "the video " in clip.causes["visual"]


@needs_field_faults
@pytest.mark.parametrize("name", ["bframes.avi", "bframes.mpg"])
def test_untimed_clips_from_the_field(name):
    clip = media.read_clip(FAULTS / name)
    assert clip.causes == {}
    check_frames(clip, late=1 / RATE if name.endswith("avi") else 0.0)


numbers = st.one_of(st.integers(-5, 200), st.integers(-(2**63), 2**63), st.just(-(2**63)), st.integers(0, 10**25))
units = st.builds("{}/{}".format, numbers, numbers) | st.sampled_from(["1/30", "1/90000", "1/16000"])
packets = st.builds("{}, {}, {}, {}, {}, 0x00c0ffee".format, st.integers(0, 2), *[numbers] * 4)
plain = st.builds("{0}, {1}, {1}, 1, 424, 0x00c0ffee".format, st.integers(0, 1), st.integers(0, 90))
KINDS = st.sampled_from(["video", "x"])
heads = st.builds(
    "#tb 0: {}\n#media_type 0: {}\n#tb 1: {}\n#media_type 1: audio".format,
    units,
    st.sampled_from(["video", "x"]),
    units,
)
listings = st.builds(
    lambda head, rows: "\n".join([head, *rows]).encode(), heads, st.lists(packets | plain, max_size=40)
)
logs = st.binary(max_size=200) | st.builds(
    "[info]   Duration: {}:{}:{}, start: {}\n[error] {}".format, *[numbers] * 4, st.text()
).map(lambda text: text.encode("utf-8", "replace"))


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_text_of_ffmpeg_ends_the_run(data, tmp_path, monkeypatch):
    """Whatever ffmpeg prints of a clip, the clip is read or has causes."""
    path = tmp_path / "clip.mkv"
    path.write_bytes(b"\x1aE\xdf\xa3")

    def answer(outputs, names, *_):
        texts = {name: bytearray(data.draw(listings | st.binary(max_size=300))) for name in names}
        texts |= {"log": bytearray(data.draw(logs))}
        for name, unit in (("frames", ffmpeg.FRAME_BYTES), ("samples", 4)):
            if name in texts:
                texts[name] = bytearray(unit * data.draw(st.integers(0, 40)))
        return texts

    with monkeypatch.context() as patch:
        patch.setattr(ffmpeg, "run_ffmpeg", answer)
        clip = media.read_clip(path)
    assert ("visual" in clip.causes, "audio" in clip.causes) == (clip.frames is None, clip.logmel is None)
    assert np.isfinite(clip.duration) and clip.duration >= 0
    assert not any("unforeseen" in cause for cause in clip.causes.values())


# --- one clip that ends the run ---------------------------------------------------------------------------------------


def float_wav(path, sample, at=9000, seconds=1):
    """Write a tone, in 32-bit floats, one of whose samples is ``sample``."""
    samples = 0.3 * np.sin(np.arange(16_000 * seconds) / 10)
    samples[at] = sample
    raw = ["-f", "f32le", "-ar", 16_000, "-ac", 1, "-i", "-"]
    run_ffmpeg(*raw, "-c:a", "pcm_f32le", path, feed=samples.astype("<f4").tobytes())
    return path


@pytest.mark.parametrize("sample", [np.nan, np.inf, -np.inf, 1e18, 3e38])
def test_a_sample_that_is_no_sound_costs_the_sound(tmp_path, sample):
    clips = [media.read_clip(float_wav(tmp_path / "sound.wav", sample))]
    starts = media.segment_starts(25)  # a clip of more than 15 s has gaps between its segments
    between = round(8000 * (starts[10] + media.SEGMENT_SECONDS + starts[11]))
    clips.append(media.read_clip(float_wav(tmp_path / "long.wav", sample, between, 25)))
    why = "is no sound: samples up to " if np.isfinite(sample) else "holds samples that are not finite numbers"
    assert all(clip.logmel is None and why in clip.causes["audio"] for clip in clips)


@needs_field_faults
def test_one_nan_sample_from_the_field():
    assert "not finite" in media.read_clip(FAULTS / "one_nan_sample.wav").causes["audio"]


def every_exception():
    """Make one of every exception type of Python, and those that libraries raise."""
    special = {UnicodeDecodeError: ("utf-8", b"", 0, 1, "no"), UnicodeEncodeError: ("utf-8", "", 0, 1, "no")}
    special |= {UnicodeTranslateError: ("", 0, 1, "no"), ExceptionGroup: ("no", [ValueError()])}
    own = (librosa.util.exceptions.ParameterError, np.linalg.LinAlgError, zipfile.BadZipFile, ClipError, DecoderError)
    types = {t for t in vars(builtins).values() if isinstance(t, type) and issubclass(t, Exception)} | set(own)
    return [kind(*special.get(kind, ("no",))) for kind in sorted(types, key=lambda t: t.__name__)]


STAGES = ["check_file", "list_packets", "decode_streams", "segment_centres", "cut_segments", "segment_logmel"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_whatever_a_stage_raises_is_the_clips_cause(tmp_path, monkeypatch, stage):
    path = counting_clip(tmp_path / "clip.mkv", 1.0)
    for error in every_exception():
        with monkeypatch.context() as patch:
            patch.setattr(sound if stage == "cut_segments" else media, stage, mock.Mock(side_effect=error))
            if isinstance(error, MemoryError | ImportError):
                with pytest.raises(type(error)):
                    media.read_clip(path)
                continue
            clip = media.read_clip(path)
        assert clip.logmel is None and clip.causes["audio"]
        assert (clip.frames is None) == ("visual" in clip.causes) == (stage != "segment_logmel")


@pytest.mark.parametrize("error", [MachineError("no"), InputError("no"), OSError(errno.ENOSPC, "full")])
def test_faults_of_the_machine_stop_the_run_at_any_stage(tmp_path, monkeypatch, error):
    path = counting_clip(tmp_path / "clip.mkv", 1.0)
    for stage in STAGES:
        with monkeypatch.context() as patch:
            patch.setattr(sound if stage == "cut_segments" else media, stage, mock.Mock(side_effect=error))
            with pytest.raises(type(error)):
                media.read_clip(path)


class FailingNetwork:
    """A network of one feature that raises at a clip whose frames are bright, or at every clip."""

    def __init__(self, error, broken=False):
        self.error, self.broken = error, broken

    def encode(self, kind, clips):
        if kind == "frames" and (self.broken or any(frames.max() > 250 for frames in clips)):
            raise self.error
        return [np.zeros((30, 1), np.float16) for _ in clips]


def network_output(monkeypatch, network):
    monkeypatch.setattr(extract, "load_encoder", lambda *_: network)
    network.spec = {"weights_hash": ""}
    return Output("resnet34", "0" * 16, Path("final"), Path("work"), {}, Weights("random"), dimension=1)


def one_frame_clips(*brightness):
    frames = [np.full((30, 256, 256, 3), value, np.uint8) for value in brightness]
    return [media.ClipMedia(each, None, {"audio": "no audio stream"}, 1.0) for each in frames]


@pytest.mark.slow
def test_whatever_a_network_raises_at_one_clip_is_its_cause(monkeypatch):
    for error in every_exception():
        output = network_output(monkeypatch, FailingNetwork(error))
        if isinstance(error, MemoryError | ImportError):
            with pytest.raises(type(error)):
                extract.compute(output, one_frame_clips(0, 255, 0))
            continue
        parts = extract.compute(output, one_frame_clips(0, 255, 0))
        assert [part.failed for part in parts] == [False, True, False]
        assert type(error).__name__ in parts[1].cause


def test_a_broken_network_stops_the_run(monkeypatch):
    output = network_output(monkeypatch, FailingNetwork(RuntimeError("CUDA error"), broken=True))
    with pytest.raises(RuntimeError, match="CUDA error"):
        extract.compute(output, one_frame_clips(0, 255))


@pytest.mark.parametrize("shape", [(30, 3), (1, 1), (30,)])
def test_features_of_another_shape_than_the_encoder_says_stop_the_run(monkeypatch, shape):
    output = network_output(monkeypatch, mock.Mock(encode=lambda *_: [np.ones(shape)]))
    with pytest.raises(InputError, match=re.escape(f"of shape {list(shape)}, expected the [30, 1] that it says")):
        extract.compute(output, one_frame_clips(0))


# --- streams of nothing -----------------------------------------------------------------------------------------------


def test_streams_without_packets_are_named(tmp_path):
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "sound.wav")
    header = (tmp_path / "sound.wav").read_bytes()[:78]
    (tmp_path / "empty.wav").write_bytes(header[:74] + bytes(4))
    causes = media.read_clip(tmp_path / "empty.wav").causes
    assert causes == {"visual": "no video stream", "audio": "the audio stream holds nothing"}


# --- timestamps that start again --------------------------------------------------------------------------------------

JOINED = {"ts": ("-c:v", "libx264", "-c:a", "aac"), "mpg": ("-c:v", "mpeg1video", "-c:a", "mp2"), "ogg": ("-vn",)}
JOINED |= {"mkv": ("-c:v", "mpeg4", "-c:a", "aac"), "ogv": ("-c:v", "libtheora", "-c:a", "libvorbis"), "flac": ("-vn",)}


@pytest.mark.parametrize("container", JOINED)
def test_files_joined_end_to_end_are_read_to_the_end_or_not(tmp_path, container):
    """Never the first file alone, in silence."""
    one = counting_clip(tmp_path / f"one.{container}", 2.0, *JOINED[container]).read_bytes()
    (tmp_path / f"two.{container}").write_bytes(one + one)
    clip = media.read_clip(tmp_path / f"two.{container}")
    if container in ("ts", "mpg", "ogg"):
        assert "audio" not in clip.causes and clip.duration == pytest.approx(4.0, abs=0.1)
    else:
        assert "start again" in clip.causes["audio"] or "several files joined" in clip.causes["audio"]
    if clip.frames is not None:
        numbers = shown_numbers(clip.frames)
        assert numbers.max() > 50 and (np.diff(numbers) < 0).sum() == 1  # up, and from the middle on again


def test_the_second_of_two_joined_mp4_is_told(tmp_path):
    one = counting_clip(tmp_path / "one.mp4", 1.0).read_bytes()
    (tmp_path / "two.mp4").write_bytes(one + one)
    assert "second index" in media.read_clip(tmp_path / "two.mp4").note
    assert media.read_clip(tmp_path / "one.mp4").note == ""


@needs_field_faults
def test_joined_ts_from_the_field():
    clip = media.read_clip(FAULTS / "joined.ts")
    assert clip.causes == {} and clip.duration == pytest.approx(6.02, abs=0.02)
    check_frames(clip)


# --- headers that overstate -------------------------------------------------------------------------------------------


def overstate(path):
    """Let the header of a clip say that it lasts 9 seconds."""
    data = bytearray(path.read_bytes())
    mark = {".mkv": b"\x44\x89\x88", ".flv": b"duration\0"}[path.suffix]
    at = data.index(mark) + len(mark)
    data[at : at + 8] = struct.pack(">d", 9000.0 if path.suffix == ".mkv" else 9.0)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("container", ["mkv", "flv"])
def test_a_whole_clip_whose_header_overstates_is_whole(tmp_path, container):
    options = ("-c:v", "flv1", "-c:a", "mp3", "-ar", 44_100) if container == "flv" else ("-c:v", "mpeg4", "-c:a", "aac")
    path = overstate(counting_clip(tmp_path / f"clip.{container}", 3.0, *options))
    clip = media.read_clip(path)
    assert clip.causes == {} and clip.duration == pytest.approx(3.0, abs=0.1)
    assert "promises 9.00 s" in clip.note or "promises 8.9" in clip.note
    check_frames(clip)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    cut = media.read_clip(path)
    assert "the video stops at" in cut.causes["visual"] and "the audio stops at" in cut.causes["audio"]


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF, 0x80000000 - 44, 0xFFFFFFFF, 0xFFFFF000])
def test_a_wav_written_into_a_pipe_is_whole(tmp_path, size):
    path = float_wav(tmp_path / "pipe.wav", 0.5)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8], data[at : at + 4] = (min(size + 36, 2**32 - 1)).to_bytes(4, "little"), size.to_bytes(4, "little")
    path.write_bytes(data)
    clip = media.read_clip(path)
    assert "audio" not in clip.causes and clip.duration == pytest.approx(1.0)


def test_a_cut_mp3_is_no_shorter_clip(tmp_path):
    path = counting_clip(tmp_path / "sound.mp3", 3.0, "-vn")
    assert media.read_clip(path).logmel is not None
    path.write_bytes(path.read_bytes()[:15_000])
    assert "the audio stops at" in media.read_clip(path).causes["audio"]


@needs_field_faults
@pytest.mark.parametrize(("name", "seconds"), [("overstated.mkv", 4.0), ("sox_pipe.wav", 0.8)])
def test_overstated_clips_from_the_field(name, seconds):
    clip = media.read_clip(FAULTS / name)
    assert "audio" not in clip.causes and clip.duration == pytest.approx(seconds, abs=0.01)


@pytest.mark.slow
def test_a_run_tells_notes_and_causes_and_goes_on(tmp_path, mlemiss):
    overstate(counting_clip(tmp_path / "long.mkv", 1.0))
    float_wav(tmp_path / "nan.wav", np.nan)
    (tmp_path / "pointer.mp4").write_bytes(POINTER)
    rows = "".join(f"{name[:-4]},{name},{name[0]},s\n" for name in ("long.mkv", "nan.wav", "pointer.mp4"))
    (tmp_path / "mine.csv").write_text("clip_id,path,label,subject\n" + rows)
    arguments = ("--dataset", tmp_path / "mine.csv", "--stores", tmp_path / "stores", "--media", "only", "--workers", 0)
    result = mlemiss("preprocess", *arguments, "--json")
    assert result.returncode == 1 and "note: long.mkv: clip: its header promises 9.00 s" in result.stderr
    causes = {failure["path"]: failure["cause"] for failure in json.loads(result.stdout)["failed"]}
    assert sorted(causes) == ["nan.wav", "pointer.mp4"]
    assert "not finite" in causes["nan.wav"] and "Git LFS" in causes["pointer.mp4"]


# --- files that are not what their names say --------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
MP4_HEAD = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41\0\0\0\x08free"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"
OTHER_KINDS = {
    POINTER: "a Git LFS pointer",
    b"/annex/objects/SHA256E-s12--4d7a.mp4\n": "a git-annex pointer",
    PAGE: "a web page",
    100 * b"\r\n" + PAGE: "a web page",
    b"<html><head><title>404 Not Found</title>": "a web page",
    b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>': "an XML document",
    b'{"message": "Not found"}': "a JSON document",
    b"\x1f\x8b\x08\x00" + bytes(50): "a gzip archive",
    b"%PDF-1.7": "a PDF document",
    bytes(100_000): "zeros only",
    b"": "empty",
}


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.mp4", "film")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "named"),
    [*OTHER_KINDS.items(), (zipped(), "a zip archive"), (b"see README\n", "is no mp4"), (MP4_HEAD, "the file is cut")],
)
def test_a_file_that_is_no_clip_is_named(tmp_path, content, named):
    (tmp_path / "clip.mp4").write_bytes(content)
    causes = media.read_clip(tmp_path / "clip.mp4").causes
    assert named in causes["visual"] and named in causes["audio"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("content", "named"), [*OTHER_KINDS.items(), (zipped(), "a zip archive")])
def test_a_file_that_is_no_weights_is_named(tmp_path, suffix, content, named):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=named):
        load_encoder("resnet34", Weights(path.name, str(path)))


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
@pytest.mark.parametrize(("content", "named"), [*OTHER_KINDS.items(), (zipped(), "a zip archive")])
def test_a_file_that_is_no_table_is_named(tmp_path, suffix, content, named):
    path = tmp_path / f"table{suffix}"
    path.write_bytes(content)
    if suffix != ".npz" or not named.endswith("zip archive"):  # which an npz is
        with pytest.raises(InputError, match=named):
            read_feature_file(path, ["x"], [])
    if suffix == ".csv":
        with pytest.raises(InputError, match=named):
            read_manifest(path)


def test_a_link_of_git_annex_without_its_content_is_named(tmp_path):
    (tmp_path / "clip.mp4").symlink_to(".git/annex/objects/aa/bb/SHA256E-s12--4d7a.mp4/SHA256E-s12--4d7a.mp4")
    assert "a git-annex link" in media.read_clip(tmp_path / "clip.mp4").causes["visual"]
    (tmp_path / "broken.mp4").symlink_to("elsewhere.mp4")
    assert media.read_clip(tmp_path / "broken.mp4").causes["visual"] == "No such file or directory"


@pytest.mark.slow
def test_an_encrypted_clip_is_called_so(tmp_path):
    """Decoded without its key it would be noise, some of which passes for pictures or sound."""
    key = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")
    plain = counting_clip(tmp_path / "plain.mp4", 1.0, "-c:v", "libx264", "-c:a", "aac")
    for options in ((), ("-movflags", "+faststart")):
        locked = ("-c", "copy", "-encryption_scheme", "cenc-aes-ctr", *key, *options)
        run_ffmpeg("-i", plain, *locked, tmp_path / "locked.mp4")
        causes = media.read_clip(tmp_path / "locked.mp4").causes
        assert causes == {"visual": "the video is encrypted", "audio": "the audio is encrypted"}
    assert media.read_clip(plain).causes == {}


def test_memory_that_runs_out_is_the_machines(tmp_path, monkeypatch):
    """Recorded as the clip's it would outlast the fault."""
    for error in (RuntimeError("can't start new thread"), RuntimeError("CUDA out of memory. Tried"), MemoryError()):
        assert is_machine_fault(error)
    assert not is_machine_fault(RuntimeError("shapes differ"))
    clip = counting_clip(tmp_path / "clip.mp4", 1.0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 31, 1 << 31))
    with pytest.raises(InputError, match=r"--clip-memory 4294967296 is more than `ulimit -v` allows, 2147483648 bytes"):
        media.read_clip(clip)


TEXTS = [
    "[error] ",
    "[vist#",
    "[vist#0 @ 0x1] [dec:",
    ": Video: ",
    "Stream #0:0: Video: ",
    "[a @ 0x1] ",
    "decoder -> pts:",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_clips_own_text_is_searched_in_linear_time(text):
    """Titles and languages, which ffmpeg prints: backtracking over them takes hours."""
    for end in ("pipe:0", " q="):
        log = f"[info] Stream #0:0({100_000 * text}{end}\n[info]   title : {100_000 * text}{end}\n"
        begin = time.process_time()
        assert not parse.complains(log) and not parse.decoder_failed(log, "video")
        assert parse.first_error(log, Path("x")) == ""
        for pattern in (parse.INPUT_STREAM, parse.STREAM, parse.DECODED, parse.RAW, parse.CHAINED, parse.SECOND):
            re.findall(pattern, log)
        assert time.process_time() - begin < 10
