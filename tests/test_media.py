"""Decoding: frames and sound against an independent decoder, and what becomes of broken, odd and hostile files."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import cv2
import librosa
import numpy as np
import pytest
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.media import decode as media
from mlemiss.pipeline.media import ffmpeg
from mlemiss.pipeline.media.ffmpeg import Limits
from mlemiss.pipeline.media.process import ffmpeg_binary, ffmpeg_version

SHARED = Path(os.environ.get("MLEMISS_SHARED_DATA", "/nonexistent"))
ODD = SHARED / "decoder_oddities"
RAVDESS = SHARED / "ravdess_sample" / "Actor_05"
needs_real_clips = pytest.mark.skipif(not RAVDESS.is_dir(), reason="MLEMISS_SHARED_DATA does not name the real clips")


def make(path, *arguments):
    """Write a clip with ffmpeg's own sources and encoders."""
    command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-y", *map(str, arguments), f"file:{path}"]
    subprocess.run(command, check=True)
    return path


def source(kind, spec):
    return ["-f", "lavfi", "-i", spec] if kind == "lavfi" else ["-i", spec]


PICTURE = source("lavfi", "testsrc2=size=320x240:rate=25:duration=1.6")
SOUND = source("lavfi", "sine=frequency=440:sample_rate=48000:duration=1.6")
H264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Ordinary clips, made once."""
    folder = tmp_path_factory.mktemp("clips")
    make(folder / "both.mp4", *PICTURE, *SOUND, *H264, "-g", 12, "-c:a", "aac")
    make(folder / "start.mp4", "-i", folder / "both.mp4", "-c", "copy", "-movflags", "+faststart")
    make(folder / "both.mkv", "-i", folder / "both.mp4", "-c", "copy")
    make(folder / "both.avi", *PICTURE, *SOUND, "-c:v", "mjpeg", "-c:a", "pcm_s16le")
    make(folder / "sound.wav", *SOUND)
    return folder


def test_the_commands_in_the_comment_are_those_that_run(clips, monkeypatch):
    """`media/ffmpeg.py` shows newcomers both commands whole."""
    commands = []

    class Recorded(subprocess.Popen):
        def __init__(self, command, **options):
            commands.append(" ".join(command[command.index(ffmpeg_binary()) + 1 :]))
            super().__init__(command, **options)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    clip, deadline = clips / "both.mp4", time.monotonic() + 60
    ffmpeg.list_packets(clip, Limits(), deadline)
    ffmpeg.decode_streams(clip, ffmpeg.FIRST, np.array([0.1, 0.3]), Limits(), deadline)
    pipes = iter(("PACKETS", "FRAMES", "KEPT", "PICTURE", "SAMPLES", "SOUND"))
    ran = [re.sub(r"pipe:\d+", lambda _: f"pipe:{next(pipes)}", command) for command in commands]
    ran = [command.replace(ffmpeg.CONTAINERS, "CONTAINERS").replace(str(clip), "CLIP") for command in ran]
    shown = re.findall(r"(?m)^#   ffmpeg (.*(?:\n#   .*)+)", Path(ffmpeg.__file__).read_text(encoding="utf-8"))
    assert [re.sub(r"(,)?\n# +", lambda cut: cut[1] or " ", command) for command in shown] == ran


# --- which frame, against an independent decoder --------------------------------------------------------------------


def reference(path):
    """The 30 frames and their times from the definition, in exact fractions, by PyAV."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.pts * stream.time_base, frame) for frame in container.decode(stream)]
    firsts = [min(at for at, _ in frames)]
    with av.open(str(path)) as container:
        if container.streams.audio:
            frame = next(container.decode(audio=0))
            firsts.append(frame.pts * frame.time_base)
    zero = min(firsts)
    frames = sorted(((at - zero, frame) for at, frame in frames), key=lambda pair: pair[0])
    last = frames[-1]
    duration = last[0] + last[1].duration * last[1].time_base
    half = Fraction(1, 2)
    starts = [max(duration - half, 0) * Fraction(k, 29) for k in range(30)]
    centres = [start + min(duration, half) / 2 for start in starts]
    chosen = [max([i for i, (at, _) in enumerate(frames) if at <= centre], default=0) for centre in centres]
    return duration, [frames[i] for i in chosen]


def picture(frame):
    """A decoded frame upright, as a centre-cropped square of 256 pixels, RGB."""
    image = frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
    image = np.rot90(image, frame.rotation // 90)
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    how = cv2.INTER_AREA if side > 256 else cv2.INTER_LINEAR
    return cv2.resize(image[top : top + side, left : left + side], (256, 256), interpolation=how)


REAL = [
    *(f"ravdess_sample/Actor_05/{stem}-05.mp4" for stem in ("01-01-01-01-02-01", "01-01-03-01-01-02")),
    *(f"ravdess_sample/Actor_05/{stem}-05.mp4" for stem in ("01-01-04-02-01-02", "01-01-06-01-01-01")),
    *(f"ravdess_sample/Actor_05/{stem}-05.mp4" for stem in ("01-01-08-01-02-01", "02-01-06-01-01-01")),
    *(f"decoder_oddities/{name}" for name in ("var_fps_video.mp4", "h264_10bits.mp4", "h265_10bits.mp4")),
    *(f"decoder_oddities/{name}" for name in ("video_90.mov", "video_270.mov", "unordered.mov", "av1_video.mkv")),
    *(f"decoder_oddities/{name}" for name in ("sample.mp4", "bt709_full_range.mp4")),
]


def check_against_reference(path):
    clip = media.read_clip(path)
    duration, chosen = reference(path)
    assert clip.duration == pytest.approx(float(duration), abs=1e-6)
    np.testing.assert_allclose(clip.frame_times, [float(at) for at, _ in chosen], atol=1e-6)
    wanted = np.stack([picture(frame) for _, frame in chosen]).astype(np.float32)
    difference = np.abs(clip.frames - wanted).mean(axis=(1, 2, 3))
    # Two resizers differ by a level or two; a neighbouring frame, a wrong rotation or crop by much more.
    assert difference.max() < 4.0, difference


@pytest.mark.slow
@needs_real_clips
@pytest.mark.parametrize("name", REAL)
def test_the_frames_on_screen_at_the_centres(name):
    check_against_reference(SHARED / name)


@pytest.mark.parametrize("name", ["both.mp4", "both.mkv", "both.avi"])
def test_the_frames_on_screen_at_the_centres_of_made_clips(clips, name):
    check_against_reference(clips / name)


# --- sound ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec, container", [("pcm_s16le", "mov"), ("flac", "mkv")])
def test_a_lossless_mux_sounds_like_its_wav(tmp_path, codec, container):
    noise = source("lavfi", "anoisesrc=amplitude=0.3:sample_rate=48000:duration=1.6:seed=1")
    wav = make(tmp_path / "a.wav", *noise, "-ac", 2)
    clip = make(tmp_path / f"a.{container}", *PICTURE, "-i", wav, *H264, "-c:a", codec)
    alone, muxed = media.read_clip(wav), media.read_clip(clip)
    assert alone.duration == muxed.duration == pytest.approx(1.6)
    np.testing.assert_array_equal(muxed.logmel, alone.logmel)


@needs_real_clips
def test_the_sound_of_a_real_clip_is_its_wav_a_little_later(tmp_path):
    import soundfile

    clip = RAVDESS / "01-01-04-02-01-02-05.mp4"
    samples, rate = soundfile.read(RAVDESS / "03-01-04-02-01-02-05.wav")
    assert rate == 48000
    soundfile.write(tmp_path / "later.wav", np.concatenate([np.zeros((1600, *samples.shape[1:])), samples]), rate)
    waveforms = [media.read_waveform(path) for path in (clip, tmp_path / "later.wav")]
    length = min(map(len, waveforms))
    mels = [librosa.feature.melspectrogram(y=w[:length], sr=16000, n_fft=400, hop_length=160, n_mels=64)
            for w in waveforms]  # fmt: skip
    ours, wav = (librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None) for mel in mels)
    loud = wav > -50
    assert loud.mean() > 0.05
    assert np.abs(ours - wav)[loud].mean() < 0.2


@needs_real_clips
def test_a_track_of_digital_silence_is_no_sound():
    clip = media.read_clip(RAVDESS / "02-01-06-01-01-01-05.mp4")
    assert clip.frames is not None and clip.logmel is None
    assert clip.causes == {"audio": "the audio is digital silence"}


def test_channels_are_averaged(tmp_path):
    tone = "aevalsrc=0.5*sin(2*PI*440*t)|0:sample_rate=16000:duration=1"
    waveform = media.read_waveform(make(tmp_path / "left.wav", *source("lavfi", tone)))
    assert len(waveform) == 16000
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(waveform, expected, atol=1e-4)


def test_six_channels_are_averaged(tmp_path):
    tones = "|".join(f"0.1*{k}" for k in range(6))
    spec = f"aevalsrc={tones}:sample_rate=16000:duration=1:channel_layout=5.1"
    waveform = media.read_waveform(make(tmp_path / "six.wav", *source("lavfi", spec)))
    np.testing.assert_allclose(waveform, 0.25, atol=1e-4)


def test_late_sound_is_late_on_the_clips_clock(tmp_path):
    sound = source("lavfi", "sine=frequency=440:sample_rate=16000:duration=1")
    path = make(tmp_path / "late.mkv", *PICTURE, "-itsoffset", 0.5, *sound, *H264, "-c:a", "pcm_s16le")
    waveform = media.read_waveform(path)
    assert len(waveform) == round(1.6 * 16000)
    heard = np.flatnonzero(np.abs(waveform) > 1e-3)
    assert heard[0] == pytest.approx(8000, abs=20)
    assert heard[-1] == pytest.approx(24000, abs=20)


def test_late_picture_counts_from_the_sound(tmp_path):
    path = make(tmp_path / "late.mkv", *SOUND, "-itsoffset", 0.4, *PICTURE, *H264, "-c:a", "pcm_s16le")
    clip = media.read_clip(path)
    assert clip.duration == pytest.approx(2.0)
    assert clip.frame_times[0] == pytest.approx(0.4)  # the first centre, 0.25 s, lies before the first frame
    assert clip.logmel is not None


def test_a_gap_in_the_sound_is_silence(tmp_path):
    cut = "aselect='not(between(t,0.5,0.9))'"
    sound = source("lavfi", "sine=frequency=440:sample_rate=16000:duration=1.6")
    path = make(tmp_path / "gap.mkv", *PICTURE, *sound, *H264, "-af", cut, "-c:a", "pcm_s16le")
    clip, waveform = media.read_clip(path), media.read_waveform(path)
    assert clip.causes == {}
    quiet = np.flatnonzero(np.convolve(np.abs(waveform), np.ones(160), "same") == 0)
    assert 5000 < len(quiet) < 7500
    assert quiet[0] > 0.4 * 16000 and quiet[-1] < 1.0 * 16000
    assert np.abs(waveform[-1000:]).max() > 0.05  # what follows the gap is where its timestamps say


def test_sound_that_simply_ends_early_is_padded(tmp_path):
    sound = source("lavfi", "sine=frequency=440:sample_rate=48000:duration=0.7")
    path = make(tmp_path / "short.mp4", *PICTURE, *sound, *H264, "-c:a", "aac")
    waveform = media.read_waveform(path)
    assert len(waveform) == 25600
    assert np.abs(waveform[:10000]).max() > 0.05 and np.abs(waveform[13000:]).max() == 0


# --- geometry -------------------------------------------------------------------------------------------------------


def test_pixel_aspect_is_honoured(tmp_path):
    # A disc on a 4:3 screen stored with pixels twice as wide as high: upright, it is round again.
    disc = "color=black:size=320x240:rate=25:duration=0.6,geq=lum='255*lt(hypot(X-160,Y-120),80)':cb=128:cr=128"
    squeezed = disc + ",scale=160:240,setsar=2/1"
    for name, spec in {"square": disc, "anamorphic": squeezed}.items():
        make(tmp_path / f"{name}.mp4", *source("lavfi", spec), *H264, "-crf", 1)
    square, anamorphic = (media.read_clip(tmp_path / f"{name}.mp4").frames[0] for name in ("square", "anamorphic"))
    bright = [
        (np.ptp(np.flatnonzero((image > 128).any(axis=(k, 2))))) for image in (square, anamorphic) for k in (0, 1)
    ]
    assert bright == pytest.approx([171, 171, 171, 171], abs=4)


def test_interlaced_frames_are_deinterlaced(tmp_path):
    # Fields of a bar that moves: woven together they comb, line against line.
    bar = "color=black:size=320x240:rate=50:duration=1.2,geq=lum='255*between(mod(X-N*8,320),0,60)':cb=128:cr=128"
    woven = ["-vf", "interlace=lowpass=off", *H264, "-crf", 5]
    flagged = make(tmp_path / "flagged.mkv", *source("lavfi", bar), *woven, "-flags", "+ilme+ildct")
    frames = media.read_clip(flagged).frames[..., 0].astype(np.float32)
    comb = np.abs(frames[:, 1:-1] - (frames[:, :-2] + frames[:, 2:]) / 2).mean()
    assert comb < 2.0


# --- names, containers, hostile and broken files ---------------------------------------------------------------------

NAMES = ["-y.mp4", "with space.mp4", "new\nline.mp4", "käse 感情.mp4", "50%d%%.mp4", "a:b.mp4", "it's 'q' [1],x.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names(clips, tmp_path, monkeypatch, name):
    shutil.copy(clips / "both.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    clip = media.read_clip(name)
    assert clip.causes == {} and clip.duration == pytest.approx(1.6)


def test_the_same_clip_twice_is_the_same_bytes(clips):
    first, second = (media.read_clip(clips / "both.mp4") for _ in range(2))
    assert first.frames.tobytes() == second.frames.tobytes()
    assert first.logmel.tobytes() == second.logmel.tobytes()


def test_one_modality(clips, tmp_path):
    seen = media.read_clip(make(tmp_path / "seen.mp4", "-i", clips / "both.mp4", "-an", "-c", "copy"))
    heard = media.read_clip(make(tmp_path / "heard.mp4", "-i", clips / "both.mp4", "-vn", "-c", "copy"))
    assert seen.frames.shape == (30, 256, 256, 3) and seen.frames.dtype == np.uint8
    assert seen.logmel is None and seen.causes == {"audio": "no audio stream"}
    assert heard.logmel.shape == (30, 3, 64, 51) and heard.logmel.dtype == np.float16
    assert heard.frames is None and heard.frame_times is None and heard.causes == {"visual": "no video stream"}


def test_a_cover_picture_is_no_video(tmp_path):
    cover = make(tmp_path / "cover.png", *PICTURE, "-frames:v", 1)
    attach = ["-map", 0, "-map", 1, "-c:v", "copy", "-disposition:v", "attached_pic"]
    for name, codec in {"song.mp3": "libmp3lame", "song.m4a": "aac"}.items():
        clip = media.read_clip(make(tmp_path / name, *SOUND, "-i", cover, *attach, "-c:a", codec))
        assert clip.causes == {"visual": "no video stream"}, name
        assert clip.logmel is not None and clip.duration == pytest.approx(1.6, abs=0.06)


def failed(path, **limits):
    clip = media.read_clip(path, Limits(**limits))
    assert clip.frames is None and clip.logmel is None and clip.duration == 0.0
    assert set(clip.causes) == {"visual", "audio"}
    for cause in clip.causes.values():
        assert cause and "\n" not in cause and "0x" not in cause and str(path.parent) not in cause
    return clip.causes


def test_files_that_are_no_clips(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Not a film.\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    os.mkfifo(tmp_path / "pipe.mp4")
    assert failed(tmp_path / "empty.mp4")["visual"] == "the file is empty"
    assert failed(tmp_path / "pipe.mp4")["visual"] == "not a regular file"
    assert failed(tmp_path / "absent.mp4")["visual"] == "No such file or directory"
    failed(tmp_path / "text.mp4")
    failed(tmp_path / "noise.mp4")
    failed(tmp_path)


def test_a_playlist_opens_no_other_file(clips, tmp_path):
    shutil.copy(clips / "both.mp4", tmp_path / "neighbour.mp4")
    concat = "ffconcat version 1.0\nfile neighbour.mp4\n"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\nneighbour.mp4\n#EXT-X-ENDLIST\n"
    for name, text in {"concat.mp4": concat, "hls.mp4": hls, "hls.m3u8": hls, "list.ffconcat": concat}.items():
        (tmp_path / name).write_text(text)
        failed(tmp_path / name)


@pytest.mark.parametrize("name", ["both.mp4", "start.mp4", "both.mkv", "both.avi", "sound.wav"])
def test_a_file_cut_in_half_is_not_a_shorter_clip(clips, tmp_path, name):
    whole = (clips / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(whole[: len(whole) // 2])
    causes = failed(cut)
    if name != "both.mp4":  # whose index was at the end
        assert "the audio stops at" in causes["audio"]
    if name not in ("both.mp4", "sound.wav"):
        assert "the video stops at" in causes["visual"] and "of 1.6" in causes["visual"]


def test_a_lost_frame_costs_the_picture_and_not_the_sound(clips, tmp_path):
    data = bytearray((clips / "both.avi").read_bytes())
    starts = [at.start() for at in re.finditer(rb"00dc....\xff\xd8", data, re.DOTALL)]
    assert len(starts) >= 40
    data[starts[20] + 8 : starts[20] + 1008] = bytes(1000)  # the frame at 0.8 s
    (tmp_path / "damaged.avi").write_bytes(data)
    clip = media.read_clip(tmp_path / "damaged.avi")
    assert clip.frames is None and "the video fails at 0.80 s of 1.60 s" in clip.causes["visual"]
    assert clip.logmel is not None and clip.duration == pytest.approx(1.6, abs=0.01)


def test_an_unknown_video_codec_leaves_the_sound(clips, tmp_path):
    data = (clips / "both.avi").read_bytes().replace(b"MJPG", b"ZZZZ")
    (tmp_path / "unknown.avi").write_bytes(data)
    clip = media.read_clip(tmp_path / "unknown.avi")
    assert clip.frames is None and "does not decode" in clip.causes["visual"]
    assert clip.logmel is not None and clip.duration == pytest.approx(1.6, abs=0.01)


# --- limits and processes ---------------------------------------------------------------------------------------------


def test_limits(clips):
    assert "longer than" in failed(clips / "both.mp4", max_seconds=1.0)["visual"]
    assert "more than the 1000 allowed" in failed(clips / "both.mp4", max_bytes=1000)["visual"]
    assert "memory allowed" in failed(clips / "both.mp4", max_memory=50 << 20)["visual"]
    clip = media.read_clip(clips / "both.mp4", Limits(max_pixels=10_000))
    assert clip.frames is None and clip.logmel is not None
    assert "does not decode" in clip.causes["visual"]


@pytest.fixture
def stuck_ffmpeg(tmp_path, monkeypatch):
    """An ffmpeg that never ends and writes its process id."""
    program = tmp_path / "stuck"
    program.write_text(
        f"#!/bin/sh\necho $$ > '{tmp_path}/pid.new'\nmv '{tmp_path}/pid.new' '{tmp_path}/pid'\nexec sleep 300\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("MLEMISS_FFMPEG", str(program))
    ffmpeg_binary.cache_clear()
    yield tmp_path / "pid"
    ffmpeg_binary.cache_clear()


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_takes_too_long_is_stopped(clips, stuck_ffmpeg):
    assert "longer than the time allowed" in failed(clips / "both.mp4", timeout=1.0)["visual"]
    assert not running(int(stuck_ffmpeg.read_text()))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_killed_parent_leaves_no_ffmpeg(clips, stuck_ffmpeg, mlemiss):
    code = "import sys; from mlemiss.pipeline.media.decode import read_clip; read_clip(sys.argv[1])"
    parent = mlemiss.start(clips / "both.mp4", code=code)
    wait_for(stuck_ffmpeg.exists)
    child = int(stuck_ffmpeg.read_text())
    assert running(child)
    parent.kill()
    wait_for(lambda: not running(child))


def test_no_ffmpeg_is_the_users_to_know(clips, monkeypatch):
    monkeypatch.setenv("MLEMISS_FFMPEG", "no-such-program")
    ffmpeg_binary.cache_clear()
    with pytest.raises(InputError, match="no-such-program"):
        media.read_clip(clips / "both.mp4")
    monkeypatch.undo()
    ffmpeg_binary.cache_clear()
    assert ffmpeg_version()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("ffmpeg version 5.1.9-0+deb12u1 Copyright", "is ffmpeg 5.1.9-0[+]deb12u1, which is too old"),
        ("ffmpeg version n6.1 Copyright", "too old"),
        ("nothing", "is no ffmpeg"),
        ("ffmpeg version 7.0.2-static x", ""),
        ("ffmpeg version N-118-g1a2b3c x", ""),
    ],
)
def test_an_ffmpeg_that_is_too_old_is_the_users_to_know(tmp_path, monkeypatch, said, why):
    """Each clip would lose its picture, as the commands need options of version 7."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("MLEMISS_FFMPEG", str(program))
    ffmpeg_binary.cache_clear()
    with pytest.raises(InputError, match=f"{why}.*\nTo go on, install ffmpeg 7.0") if why else contextlib.nullcontext():
        assert ffmpeg_version.__wrapped__() == said.split()[2]
    monkeypatch.undo()
    ffmpeg_binary.cache_clear()


# --- real files that decoders trip over -------------------------------------------------------------------------------

NO_SOUND, NO_PICTURE = {"audio": "no audio stream"}, {"visual": "no video stream"}
SILENT = {"visual": "no video stream", "audio": "the audio is digital silence"}
NOTHING = "no video and no audio stream"
HOLLOW = {
    k: f"the {s} stream holds nothing: the file is truncated" for k, s in (("visual", "video"), ("audio", "audio"))
}
OUTCOMES = {  # T (None: nothing is left of it), what is missing and why
    "av1_video.mkv": (5.0, NO_SOUND),
    "big_buck_bunny_small.mp4": (5.28, {}),
    "bt709_full_range.mp4": (1.0, NO_SOUND),
    "corrupted.mp4": (
        0.0,
        {"visual": "the video fails at 3.00 s of 5.00 s: Invalid NAL unit size (-1 > 551)"} | NO_SOUND,
    ),
    "h264_10bits.mp4": (1.0, NO_SOUND),
    "h264_white_frame_sar_16_9.mp4": (0.04, NO_SOUND),
    "h265_10bits.mp4": (1.0, NO_SOUND),
    "invalid_userdata.mp4": (0.0, HOLLOW),
    "issue55.flv": (0.0, SILENT),
    "mp4-with-audio.mp4": (0.0, SILENT),
    "mpeg4.mp4": (0.0, {"visual": NOTHING, "audio": NOTHING}),
    "nasa_13013.mp4": (
        13.0,
        {},
    ),  # the 390 frames it declares are its second video stream's; the first holds all its 325
    "no_timescale.mp4": (
        0.0,
        {"visual": "the video fails at 0.43 s of 6.04 s: top block unavailable for requested intra mode -1"} | NO_SOUND,
    ),
    "sample.mkv": (0.0, {"visual": "not readable: Duplicate element", "audio": "not readable: Duplicate element"}),
    "sample.mp4": (1.0427, {}),
    "short-cenc.mp4": (
        0.0,
        {
            "visual": "the video is encrypted",
            "audio": "the audio is encrypted",
        },
    ),
    "test1_empty.wav": (0.0, NO_PICTURE | {"audio": "the audio stream holds nothing"}),
    "unordered.mov": (0.125, NO_SOUND),
    "var_fps_video.mp4": (14.9667, NO_SOUND),
    "video_270.mov": (0.1, NO_SOUND),
    "video_90.mov": (0.1, NO_SOUND),
    "zero_empty_stsc.mp4": (0.0, HOLLOW),
}


@needs_real_clips
@pytest.mark.parametrize("name", OUTCOMES)
def test_oddities(name):
    clip = media.read_clip(ODD / name)
    duration, causes = OUTCOMES[name]
    assert clip.causes == causes
    assert clip.duration == pytest.approx(duration, abs=1e-3)
    assert (clip.frames is None, clip.logmel is None) == ("visual" in causes, "audio" in causes)


@needs_real_clips
def test_every_oddity_has_its_outcome():
    assert sorted(OUTCOMES) == sorted(path.name for path in ODD.iterdir())


def test_streams_that_lie_far_apart_are_no_long_clip(tmp_path):
    """Sound that starts hours after the picture makes a clip longer than allowed: this clip's cause, no gigabytes."""
    make(tmp_path / "picture.mp4", *source("lavfi", "testsrc2=d=1:s=64x48"), *H264)
    make(tmp_path / "sound.wav", *source("lavfi", "sine=d=1"))
    both = ["-i", tmp_path / "picture.mp4", "-itsoffset", "100000", "-i", tmp_path / "sound.wav", "-c:v", "copy"]
    make(tmp_path / "apart.mkv", *both, "-c:a", "pcm_s16le")
    clip = media.read_clip(tmp_path / "apart.mkv")
    assert clip.frames is None and clip.logmel is None and "longer than the 1800 s allowed" in clip.causes["visual"]
