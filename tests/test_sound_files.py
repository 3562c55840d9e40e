"""Sound and picture of a clip in different files: a manifest's audio_path, RAVDESS's wavs, the waveform in stores."""

import json
import os
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
from mlemiss.pipeline.clips.datasets import collect
from mlemiss.pipeline.clips.manifest import read_manifest
from mlemiss.pipeline.errors import InputError, MachineError
from mlemiss.pipeline.media.decode import read_clip, read_pair
from mlemiss.pipeline.media.ffmpeg import Limits
from mlemiss.pipeline.run.plan import FeatureRequest, make_plan
from mlemiss.pipeline.run.sources import read_sources
from mlemiss.pipeline.stores.store import FeatureStore

from .models import write_hubert
from .preprocessing import content, staged
from .test_clip_faults import counting_clip, run_ffmpeg, shown_numbers
from .test_encoders import transformers_there

HEADER = "clip_id,path,audio_path,label,subject"


def write_wav(path: Path, samples: np.ndarray) -> Path:
    """Write float samples, mono, 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return path


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).clip(-1, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A clip of 2 s with a tone, and wavs of noise: longer, shorter, silent, silent up to the clip's end."""
    folder = tmp_path_factory.mktemp("pairs")
    counting_clip(folder / "clip.mkv", 2.0)
    write_wav(folder / "long.wav", noise(3.0))
    write_wav(folder / "short.wav", noise(1.25))
    write_wav(folder / "silent.wav", np.zeros(32000))
    write_wav(folder / "late.wav", np.r_[np.zeros(40000), noise(1.0)])
    return folder


# ---- one clip ----


def test_the_picture_is_the_one_files_and_the_sound_the_others(files):
    alone, pair = read_clip(files / "clip.mkv"), read_pair(files / "clip.mkv", files / "long.wav")
    assert (pair.duration, pair.causes, pair.note) == (alone.duration, {}, "")
    np.testing.assert_array_equal(pair.frames, alone.frames)
    np.testing.assert_array_equal(pair.frame_times, alone.frame_times)
    assert pair.waveform.shape == alone.waveform.shape == (32000,)  # what lies beyond the picture's end is not used
    np.testing.assert_allclose(pair.waveform, noise(3.0)[:32000], atol=1 / 32767)
    assert (pair.logmel != alone.logmel).mean() > 0.9


def test_sound_that_ends_early_is_followed_by_silence(files):
    pair = read_pair(files / "clip.mkv", files / "short.wav")
    assert pair.causes == {} and pair.waveform.shape == (32000,) and not pair.waveform[20000:].any()
    np.testing.assert_allclose(pair.waveform[:20000], noise(1.25), atol=1 / 32767)


def test_the_same_file_twice_is_that_file(files):
    alone, pair = read_clip(files / "clip.mkv"), read_pair(files / "clip.mkv", files / "clip.mkv")
    for name in ("frames", "frame_times", "logmel", "waveform"):
        np.testing.assert_array_equal(getattr(pair, name), getattr(alone, name))


def test_each_stream_starts_on_its_own_files_clock(files, tmp_path):
    """Sound that its file starts 0.5 s late is late; a picture that starts late in its file is, too."""
    late = tmp_path / "late.mkv"
    streams = ["-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "pcm_s16le"]
    run_ffmpeg("-i", files / "clip.mkv", "-itsoffset", 0.5, "-i", files / "long.wav", *streams, late)
    pair = read_pair(files / "clip.mkv", late)
    assert pair.causes == {} and not pair.waveform[:7990].any()
    np.testing.assert_allclose(pair.waveform[8000:], noise(3.0)[:24000], atol=1e-4)
    run_ffmpeg("-itsoffset", 0.5, "-i", files / "clip.mkv", "-i", files / "long.wav", *streams, tmp_path / "v.mkv")
    alone, pair = read_clip(tmp_path / "v.mkv"), read_pair(tmp_path / "v.mkv", files / "long.wav")
    assert pair.duration == alone.duration == pytest.approx(2.5)
    np.testing.assert_array_equal(shown_numbers(pair.frames), shown_numbers(alone.frames))
    np.testing.assert_allclose(pair.waveform, noise(3.0)[:40000], atol=1 / 32767)


def test_the_picture_of_the_sounds_file_is_not_decoded(files, tmp_path):
    """Damage, and pictures beyond what is allowed, do no harm there."""
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=512x512:d=2", "-i", files / "long.wav", tmp_path / "large.mp4")
    pair = read_pair(files / "clip.mkv", tmp_path / "large.mp4", Limits(max_pixels=300 * 300))
    assert pair.causes == {} and pair.frames is not None


@pytest.mark.parametrize(
    ("name", "make", "cause"),
    [
        ("lfs.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "the file is a Git LFS pointer"),
        ("page.wav", b"<!DOCTYPE html><html></html>", "the file is a web page"),
        ("empty.wav", b"", "the file is empty"),
        ("text.wav", b"no sound at all", "not readable"),
        ("absent.wav", None, "No such file or directory"),
    ],
)
def test_a_sound_that_cannot_be_read_costs_the_sound(files, tmp_path, name, make, cause):
    if make is not None:
        (tmp_path / name).write_bytes(make)
    pair = read_pair(files / "clip.mkv", tmp_path / name)
    assert pair.causes["audio"].startswith(cause) and list(pair.causes) == ["audio"], pair.causes
    assert pair.logmel is pair.waveform is None and pair.frames is not None and pair.duration == pytest.approx(2)


def test_what_is_no_sound_costs_the_sound(files, tmp_path):
    run_ffmpeg("-i", files / "clip.mkv", "-an", "-c", "copy", tmp_path / "mute.mkv")
    for name, cause in (
        (tmp_path / "mute.mkv", "no audio stream"),
        (files, "not a regular file"),
        (files / "silent.wav", "the audio is digital silence"),
        (files / "late.wav", "the audio is digital silence"),  # up to the end of the picture
    ):
        assert read_pair(files / "clip.mkv", name).causes == {"audio": cause}
    (tmp_path / "cut.wav").write_bytes((files / "long.wav").read_bytes()[:20000])
    assert "the audio stops at 0.6" in read_pair(files / "clip.mkv", tmp_path / "cut.wav").causes["audio"]
    long = read_pair(files / "clip.mkv", files / "long.wav", Limits(max_seconds=2.5))
    assert long.frames is not None and "lasts 3 s, longer than the 2 s allowed" in long.causes["audio"]


def test_a_picture_that_cannot_be_read_costs_the_picture(files, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(b"nothing")
    pair = read_pair(tmp_path / "cut.mp4", files / "long.wav")
    assert (
        pair.frames is None and list(pair.causes) == ["visual"] and pair.duration == 3.0 and len(pair.waveform) == 48000
    )
    neither = read_pair(tmp_path / "cut.mp4", files / "silent.wav")
    assert set(neither.causes) == {"visual", "audio"} and neither.duration == 0
    told = read_pair(files / "clip.mkv", files / "long.wav", faults={"visual": "a link"})
    assert told.causes == {"visual": "a link"} and told.frames is None and told.duration == 3.0


# ---- a manifest ----


def manifest(root: Path, *rows: str, header: str = HEADER) -> Path:
    path = root / "mine.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def root(files, tmp_path) -> Path:
    folder = tmp_path / "root"
    shutil.copytree(files, folder)
    return folder


def test_a_manifest_names_the_file_of_the_sound(root):
    rows = [f"a,clip.mkv,{root}/long.wav,x,s", "b,clip.mkv,,y,s", "c,clip.mkv,clip.mkv,y,s", "d,clip.mkv,long.wav,x,s"]
    found = collect(str(manifest(root, *rows)))
    assert [clip.audio_path for clip in found.clips] == ["long.wav", "", "", "long.wav"]  # empty: in `path`
    assert all(clip.columns == () for clip in found.clips)
    assert "the sound of 2 of 4 clips is read from other files" in found.notes
    a, b, c, d = read_sources(found, 1 << 30, False)
    assert b == c and a == d and a.sha256 != b.sha256 and b.sound is None and not a.faults  # one wav for two clips
    for wrong in ("../long.wav", "/etc/passwd", f"{root}/../x.wav"):
        with pytest.raises(InputError, match=r"line 2: audio_path .* is outside the root"):
            read_manifest(manifest(root, f"a,clip.mkv,{wrong},x,s"), root)
    with pytest.raises(InputError, match="'audio_path' appears twice"):
        read_manifest(manifest(root, "a,clip.mkv,,x,s,", header=f"{HEADER},audio_path"))


def test_sounds_that_are_absent(root):
    rows = ["a,clip.mkv,long.wav,x,s", "b,clip.mkv,gone.wav,y,s"]
    found = collect(str(manifest(root, *rows)))
    assert len(found.clips) == 2 and "the sound of 1 is absent" in found.notes[-1] and "gone.wav" in found.notes[-1]
    assert read_sources(found, 1 << 30, False)[1].faults == {"audio": "No such file or directory"}
    with pytest.raises(InputError, match=r"column audio_path .*: none of the 2 files is in .*first looked for: l\.wav"):
        collect(str(manifest(root, "a,clip.mkv,l.wav,x,s", "b,clip.mkv,m.wav,y,s")))


def test_a_sound_through_a_link_out_of_the_root(root, tmp_path):
    write_wav(tmp_path / "elsewhere.wav", noise(1))
    (root / "link.wav").symlink_to(tmp_path / "elsewhere.wav")
    found = collect(str(manifest(root, "a,clip.mkv,link.wav,x,s", "b,clip.mkv,long.wav,y,s")))
    (source, _), (followed, _) = (read_sources(found, 1 << 30, follow) for follow in (False, True))
    assert "leaves the root" in source.faults["audio"] and list(source.faults) == ["audio"] and not followed.faults


def test_paths_alone_change_no_fingerprint_and_contents_do(root, tmp_path):
    def fingerprint(*rows: str, header: str = HEADER) -> str:
        found = collect(str(manifest(root, *rows, header=header)))
        return make_plan(found, tmp_path / "stores", FeatureRequest(media="only")).outputs[0].fingerprint

    plain = fingerprint("a,clip.mkv,x,s", "b,clip.mkv,y,s", header="clip_id,path,label,subject")
    assert fingerprint("a,clip.mkv,,x,s", "b,clip.mkv,clip.mkv,y,s") == plain  # nothing is read from elsewhere
    rows = ("a,clip.mkv,long.wav,x,s", "b,clip.mkv,,y,s")
    paired = fingerprint(*rows)
    shutil.copy(root / "long.wav", root / "copy.wav")
    assert fingerprint(rows[0].replace("long", "copy"), rows[1]) == paired != plain
    write_wav(root / "long.wav", noise(3.0, seed=1))
    changed = fingerprint(*rows)
    (root / "long.wav").unlink()
    (root / "long.wav").mkdir()
    assert len({plain, paired, changed, fingerprint(*rows)}) == 4


# ---- the command ----


KILL_AFTER_A_CLIP = """
import os
from mlemiss.pipeline.run import run
real = run.encode
def encode(tasks, decoded):
    done = real(tasks, decoded)
    os.kill(os.getpid(), 9)
run.encode = encode
"""


def preprocess(root: Path, stores: Path, *more: object) -> list:
    where = ["preprocess", "--dataset", root / "mine.csv", "--stores", stores, "--workers", 0]
    return [*where, "--media", "only", "--waveform", "--json", *more]


def media_of(result) -> FeatureStore:
    assert result.returncode == 0, result.stderr
    (path,) = [path for path in json.loads(result.stdout)["stores"] if "-media-" in path]
    return FeatureStore.open(Path(path))


@pytest.mark.slow
def test_a_replaced_wav_makes_its_clip_anew(root, tmp_path, mlemiss):
    stores = tmp_path / "stores"
    shutil.copy(root / "long.wav", root / "other.wav")
    with (root / "other.wav").open("r+b") as file:
        file.seek(100)
        file.write(b"\1\2\3\4")
    manifest(root, "a,clip.mkv,long.wav,x,s", "b,clip.mkv,other.wav,y,s", "c,clip.mkv,,x,t", "d,clip.mkv,gone.wav,y,t")
    first = mlemiss(*preprocess(root, stores))
    before = media_of(first)
    assert before.present.tolist() == [[True, True]] * 3 + [[True, False]]
    assert before.error.tolist() == ["", "", "", "audio: No such file or directory"]
    assert "the sound of 1 is absent" in first.stderr and "1 done without audio" in first.stderr
    waveform = before.chunks.group["waveform"]
    np.testing.assert_allclose(waveform[0], noise(3.0)[:32000], atol=1 / 32767)
    np.testing.assert_array_equal(waveform[2], read_clip(root / "clip.mkv").waveform)
    write_wav(root / "long.wav", noise(3.0, seed=2))
    write_wav(root / "gone.wav", noise(1.0, seed=3))
    second = mlemiss(*preprocess(root, stores))
    after = media_of(second)
    assert "2 of 4 clips taken over" in second.stderr and after.path != before.path and after.present.all()
    np.testing.assert_allclose(after.chunks.group["waveform"][0], noise(3.0, seed=2)[:32000], atol=1 / 32767)
    np.testing.assert_array_equal(after.chunks.group["frames"][:], before.chunks.group["frames"][:])


@pytest.mark.slow
def test_killed_and_in_other_processes_the_bytes_are_the_same(root, tmp_path, mlemiss):
    rows = ["a,clip.mkv,long.wav,x,s", "b,clip.mkv,short.wav,y,s", "c,clip.mkv,silent.wav,x,t", "d,clip.mkv,,y,t"]
    manifest(root, *rows)
    media_of(mlemiss(*preprocess(root, tmp_path / "whole")))
    killed = mlemiss(*preprocess(root, tmp_path / "resumed"), before=KILL_AFTER_A_CLIP)
    assert killed.returncode == -9 and staged(tmp_path / "resumed") == 1
    resumed = mlemiss(*preprocess(root, tmp_path / "resumed", "--workers", 2))
    assert media_of(resumed).present.tolist() == [[True, True]] * 2 + [[True, False], [True, True]]
    assert content(tmp_path / "whole") == content(tmp_path / "resumed")


def test_a_file_that_changes_meanwhile_is_told(root, tmp_path):
    from mlemiss.pipeline.run.extract import decode

    found = collect(str(manifest(root, "a,clip.mkv,long.wav,x,s", "b,clip.mkv,,y,s")))
    plan = make_plan(found, tmp_path / "stores", FeatureRequest(media="only"))
    both, alone = plan.tasks()
    os.utime(root / "long.wav", ns=(1, 1))
    changed = dict.fromkeys(("visual", "audio"), "the file changed after its content was hashed")
    assert decode(both).clip.causes == changed and decode(alone).clip.causes == {}
    shutil.rmtree(root)
    root.mkdir()
    with pytest.raises(MachineError, match="no clips at"):
        decode(both)


# ---- the waveform of media stores, for encoders of sound ----


@pytest.mark.slow
def test_a_waveform_is_whole_whatever_limit_an_earlier_run_had(root, tmp_path, mlemiss):
    """In the work that is gone on with, and in a finished store that results are taken from."""
    manifest(root, "a,short.wav,,x,s", "b,long.wav,,y,s")
    stopped = mlemiss(*preprocess(root, tmp_path / "stores", "--clip-seconds", 2.5, "--max-failures", 0))
    assert stopped.returncode == 2 and "longer than the 2 s allowed" in stopped.stderr, stopped.stderr
    again = media_of(mlemiss(*preprocess(root, tmp_path / "stores", "--retry-failed")))
    manifest(root, "a,short.wav,,x,s", "b,long.wav,,y,s", "c,clip.mkv,,y,s")
    taken_over = media_of(mlemiss(*preprocess(root, tmp_path / "stores", "--clip-seconds", 2.5)))
    for store in (again, taken_over):
        np.testing.assert_allclose(store.chunks.group["waveform"][1], noise(3.0), atol=1 / 32767)


@pytest.mark.slow
@transformers_there
def test_a_second_encoder_hears_the_stored_waveform(root, tmp_path, mlemiss):
    """From the media store, after a kill and by Dask's workers as from the files; no clip is decoded for it."""
    manifest(root, "a,clip.mkv,long.wav,x,s", "b,clip.mkv,short.wav,y,s", "c,clip.mkv,,y,t")
    hubert = write_hubert(tmp_path / "small-hubert")
    heard = ["--features", f"audio=hf:{hubert}@-2"]

    def run(stores: Path, *more: object, **options):
        where = ["preprocess", "--dataset", root / "mine.csv", "--stores", stores, *heard]
        return mlemiss(*where, *more, **options)

    first, second, killed = (tmp_path / name for name in ("first", "second", "killed"))
    assert run(first, "--workers", 0, "--media", "keep").returncode == 0
    expected = content(first)
    for folder in (second, killed):
        shutil.copytree(next(first.glob("*-media-*.zarr")), folder / next(first.glob("*-media-*.zarr")).name)
    nothing = {"MLEMISS_FFMPEG": str(write_deaf(tmp_path / "ffmpeg"))}
    done = run(second, "--workers", 0, **nothing)
    assert done.returncode == 0 and "of 3 clips from media stores: no decoding" in done.stderr, done.stderr
    assert run(killed, "--workers", 0, before=KILL_AFTER_A_CLIP, **nothing).returncode == -9
    assert staged(killed) == 1
    done = run(killed, "--workers", 2, **nothing)
    assert done.returncode == 0 and "going on from the results of an earlier run" in done.stderr, done.stderr
    assert content(second) == content(killed) == expected and len(expected) > 10


def write_deaf(path: Path) -> Path:
    """Write an ffmpeg that tells its version and reads no clip."""
    from mlemiss.pipeline.media.process import ffmpeg_binary

    path.write_text(f'#!/bin/sh\ncase "$*" in -version) exec {ffmpeg_binary()} -version;; esac\nexit 1\n')
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_a_media_store_without_the_waveform_is_not_enough(root, tmp_path, mlemiss):
    """Then the clip is decoded once more, from both files."""
    manifest(root, "a,clip.mkv,long.wav,x,s", "b,clip.mkv,short.wav,y,s")
    stores = tmp_path / "stores"
    plain = ["preprocess", "--dataset", root / "mine.csv", "--stores", stores, "--workers", 0, "--media", "only"]
    assert mlemiss(*plain).returncode == 0
    heard = media_of(mlemiss(*preprocess(root, stores)))
    np.testing.assert_allclose(heard.chunks.group["waveform"][0], noise(3.0)[:32000], atol=1 / 32767)


# ---- RAVDESS ----


def ravdess(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_the_wavs_of_ravdess_are_found_wherever_they_lie(tmp_path):
    videos = [f"Actor_12/01-01-0{e}-01-02-01-12.mp4" for e in (3, 4, 5)]
    wavs = ["Audio_Speech_Actors_01-24/Actor_12/03-01-03-01-02-01-12.wav", "Actor_12/03-01-04-01-02-01-12.wav"]
    second = "audio_speech_actors_01-24/x/03-01-03-01-02-01-12.wav"
    silent = ["Actor_12/02-01-03-01-02-01-12.mp4", "Actor_12/02-01-06-01-02-01-12.mp4"]
    root = ravdess(tmp_path, *videos, *wavs, second, *silent, "Actor_12/03-02-03-01-02-01-12.wav")
    found = collect("ravdess", root, audio="03")
    assert {clip.path: clip.audio_path for clip in found.clips} == {
        videos[0]: wavs[0],
        videos[1]: wavs[1],
        videos[2]: "Actor_12/03-01-05-01-02-01-12.wav",  # expected beside the video, and absent
        silent[1]: "Actor_12/03-01-06-01-02-01-12.wav",  # video-only, where there is no other
    }
    assert [clip.clip_id[:2] for clip in found.clips] == ["01"] * 4 and not found.unexpected
    notes = "\n".join(found.notes)
    assert f"{second} is a second copy of {wavs[0]}" in notes
    assert "the sound of 2 of 4 clips" in notes and "the sound of 2 is absent" in notes
    assert "1 clips are of video-only files" in notes and "(audio-only song 1, video-only speech 1)" in notes
    plain = collect("ravdess", root)
    assert [clip.audio_path for clip in plain.clips] == [""] * 3
    assert "(audio-only song 1, audio-only speech 3, video-only speech 2)" in "\n".join(plain.notes)


def test_sounds_that_a_dataset_does_not_have(tmp_path):
    root = ravdess(tmp_path, "Actor_12/01-01-03-01-02-01-12.mp4")
    for dataset, audio, why in (
        ("ravdess", "03", r"--audio 03: none of the 1 file is in .* \(first looked for: Actor_12/03-01-03-01-02-01-12"),
        ("ravdess", "02", r"ravdess has no such files\.\nExpected 03 \(the original wavs"),
        ("enterface05", "03", "enterface05 has no sound in files of its own; only ravdess has"),
        ("mine.csv", "03", r"is of a known dataset\.\nName the sounds of mine\.csv in a column audio_path"),
    ):
        with pytest.raises(InputError, match=why):
            collect(dataset, root, audio=audio)


def test_the_wavs_of_ravdess_are_the_sound_of_its_videos(shared_data):
    folder = shared_data / "ravdess_sample" / "Actor_05"
    wavs = sorted(folder.glob("03-*.wav"))
    for wav in wavs:
        video = folder / f"01{wav.name[2:-4]}.mp4"
        alone, pair = read_clip(video), read_pair(video, wav)
        np.testing.assert_array_equal(pair.frames, alone.frames)
        assert pair.causes == {} and pair.duration == alone.duration
        shift = 533  # samples: the sound in the video is a frame of it, 33 ms, later than in the wav
        first, second = alone.waveform[shift:], pair.waveform[:-shift]
        assert np.corrcoef(first, second)[0, 1] > 0.98
        likeness = np.corrcoef(alone.logmel[:, 0].ravel(), pair.logmel[:, 0].ravel())
        assert likeness[0, 1] > 0.85  # of the dB, the video's that frame later
    assert len(wavs) == 2


@pytest.mark.slow
def test_ravdess_with_its_wavs(shared_data, tmp_path, mlemiss):
    """Two of the four sample clips have a wav; the others lack their sound, and are counted."""
    where = ["preprocess", "--dataset", "ravdess", "--root", shared_data / "ravdess_sample", "--audio", "03"]
    done = mlemiss(*where, "--media", "only", "--waveform", "--workers", 0, "--stores", tmp_path / "s", "--json")
    store = media_of(done)
    assert store.present.tolist() == [[True, name in ("04", "08")] for name in (i[6:8] for i in store.clip_id)]
    assert "the sound of 2 is absent" in done.stderr and "2 done without audio" in done.stderr
    dry = mlemiss(*where, "--media", "only", "--workers", 0, "--stores", tmp_path / "t", "--dry-run")
    assert dry.returncode == 0 and "4 clips to compute" in dry.stderr and not list((tmp_path / "t").glob("*.zarr"))
