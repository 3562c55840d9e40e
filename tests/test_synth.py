"""The synthetic dataset: real files in RAVDESS's names and folders, the same bytes each time."""

import hashlib
import re
from collections import Counter
from dataclasses import replace

import av
import numpy as np
import pytest
from mlemiss.pipeline.clips import synth
from mlemiss.pipeline.clips.synth import face as synth_face
from mlemiss.pipeline.clips.synth import voice as synth_voice
from mlemiss.pipeline.errors import InputError


def bytes_below(root):
    """Checksum of every file, by relative path."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six clips of two subjects, made by two processes: root, paths, progress calls."""
    root = tmp_path_factory.mktemp("synth") / "new" / "with space"
    calls = []
    paths = synth.synthesize(
        root, subjects=2, clips_per_subject=3, seed=5, workers=2, progress=lambda *a: calls.append(a)
    )
    return root, paths, calls


@pytest.mark.slow
def test_names_folders_and_progress(made):
    root, paths, calls = made
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert found == sorted([path.relative_to(root).as_posix() for path in paths] + ["SYNTHETIC.json"])
    for path in paths:
        match = re.fullmatch(r"01-01-0([3-8])-0[12]-0[12]-0[12]-(\d\d)\.mp4", path.name)
        assert match and path.parent.name == f"Actor_{match[2]}"
    assert [path.name[6:8] for path in paths] == ["03", "04", "05", "06", "07", "08"]
    assert calls == [(done, 6) for done in range(1, 7)]


def test_files_are_h264_with_stereo_aac_that_moves_and_sounds(made):
    for path in made[1]:
        with av.open(str(path)) as file:
            video, audio = file.streams.video[0], file.streams.audio[0]
            assert len(file.streams) == 2
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (audio.rate, audio.channels) == (48_000, 2)
            frames = np.stack([frame.to_ndarray(format="gray") for frame in file.decode(video)]).astype(int)
        with av.open(str(path)) as file:
            sound = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
        seconds = len(frames) / synth_face.FPS
        assert synth.DURATION[0] - 0.05 < seconds < synth.DURATION[1] + 0.05
        assert frames.shape[1:] == (synth_face.HEIGHT, synth_face.WIDTH)
        assert abs(sound.shape[1] / 48_000 - seconds) < 0.1
        rms = np.sqrt(np.mean(sound**2))
        assert np.sqrt(np.mean((sound[0] - sound[1]) ** 2)) < 0.1 * rms  # equal before the lossy encoder
        assert 0.005 < rms < 0.3 and np.abs(sound).max() < 1.05
        assert np.abs(frames[len(frames) // 2] - frames[0]).max() > 60  # the picture changes within the clip


def test_enterface05_is_mpeg4_avi_at_25_fps(tmp_path):
    """A regular file, and an unsegmented one that holds two sentences: the two clips that it would be, in turn."""
    plan = {clip.path: clip for clip in synth.plan_enterface05(6, 12)}
    unsegmented = plan["enterface database/subject 6/fear/s6_fe.avi"]
    assert (unsegmented.takes, unsegmented.emotion) == (2, "fearful")
    seconds = []
    for number, clip in enumerate((replace(unsegmented, takes=1), unsegmented)):
        synth.make_clip(tmp_path / f"{number}.avi", clip, 0)
        with av.open(str(tmp_path / f"{number}.avi")) as file:
            video, audio = file.streams.video[0], file.streams.audio[0]
            assert (file.format.name, len(file.streams), video.codec_context.name) == ("avi", 2, "mpeg4")
            assert (video.average_rate, audio.rate, audio.channels) == (25, 48_000, 2)
            seconds.append(sum(1 for _ in file.decode(video)) / 25)
        with av.open(str(tmp_path / f"{number}.avi")) as file:
            samples = sum(frame.samples for frame in file.decode(audio=0))
        assert abs(samples / 48_000 - seconds[-1]) < 0.01
    low, high = synth.DURATION
    assert low - 0.05 < seconds[0] < high + 0.05 and low - 0.05 < seconds[1] - seconds[0] < high + 0.05


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers_or_on_the_run(made, tmp_path):
    root = made[0]
    synth.synthesize(tmp_path / "serial", subjects=2, clips_per_subject=3, seed=5, workers=1)
    assert bytes_below(tmp_path / "serial") == bytes_below(root)
    before = bytes_below(root)
    victim = made[1][2]
    victim.write_bytes(b"half a clip")
    synth.synthesize(root, subjects=2, clips_per_subject=3, seed=5, workers=2)
    assert bytes_below(root) == before


def test_a_clip_does_not_depend_on_the_other_clips(made, tmp_path):
    first = made[1][0]
    (alone,) = synth.synthesize(tmp_path / "alone", subjects=1, clips_per_subject=1, seed=5)
    assert alone.name == first.name and alone.read_bytes() == first.read_bytes()
    (other,) = synth.synthesize(tmp_path / "other", subjects=1, clips_per_subject=1, seed=6)
    assert other.name == first.name and other.read_bytes() != first.read_bytes()


@pytest.mark.parametrize("subjects", [1, 2, 5, 24])
@pytest.mark.parametrize("clips_per_subject", [1, 4, 6, 10, 24, 48])
def test_plan_is_balanced_and_without_repeats(subjects, clips_per_subject):
    clips = synth.plan_ravdess(subjects, clips_per_subject)
    assert len({clip.path for clip in clips}) == len(clips) == subjects * clips_per_subject
    assert len({(clip.subject, clip.number) for clip in clips}) == len(clips)
    assert set(Counter(clip.subject for clip in clips).values()) == {clips_per_subject}
    emotions = Counter(clip.emotion for clip in clips)
    counts = [emotions[emotion] for emotion in synth.RAVDESS_EMOTIONS]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("subjects", [1, 6, 23, 44])
@pytest.mark.parametrize("clips_per_subject", [1, 7, 12, 30])
def test_enterface05_plan_is_balanced_and_without_repeats(subjects, clips_per_subject):
    clips = synth.plan_enterface05(subjects, clips_per_subject)
    assert len({clip.path for clip in clips}) == len(clips)
    takes = [(clip.subject, clip.number + take) for clip in clips for take in range(clip.takes)]
    absent = 3 if (subjects, clips_per_subject) in [(23, 30), (44, 30)] else 0
    assert len(set(takes)) == len(takes) == subjects * clips_per_subject - absent
    emotions = Counter({emotion: 0 for _, _, emotion in synth.ENTERFACE05_EMOTIONS})
    for clip in clips:
        emotions[clip.emotion] += clip.takes
    assert max(emotions.values()) - min(emotions.values()) <= max(1, absent)


def test_the_whole_plan_is_ravdess_six_class_speech():
    names = {clip.path for clip in synth.plan_ravdess(24, 48)}
    assert names == {
        f"Actor_{actor:02}/01-01-{emotion:02}-{intensity:02}-{statement:02}-{repetition:02}-{actor:02}.mp4"
        for actor in range(1, 25)
        for emotion in range(3, 9)
        for intensity in (1, 2)
        for statement in (1, 2)
        for repetition in (1, 2)
    }
    for clip in synth.plan_ravdess(3, 48):
        assert f"-{int(clip.strong) + 1:02}-{clip.statement + 1:02}-" in clip.path


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"subjects": 0}, "subjects: expected a whole number, 1 to 24, found 0"),
        ({"subjects": 25}, "1 to 24, found 25"),
        ({"subjects": 2.0}, "found 2.0"),
        ({"clips_per_subject": 49}, "clips_per_subject: expected a whole number, 1 to 48, found 49"),
        ({"clips_per_subject": 0}, "1 to 48, found 0"),
        ({"seed": -1}, "seed: expected a whole number, 0 or more, found -1"),
        ({"workers": 0}, "workers: expected a whole number, 1 or more, found 0"),
        ({"layout": "enterface05", "subjects": 45}, "subjects: expected a whole number, 1 to 44, found 45"),
        ({"layout": "enterface05", "clips_per_subject": 31}, "clips_per_subject: expected a whole number, 1 to 30"),
        ({"layout": "cinema"}, "layout: expected enterface05 or ravdess, found 'cinema'"),
    ],
)
def test_parameters_out_of_range(tmp_path, wrong, said):
    with pytest.raises(InputError, match=re.escape(said)):
        synth.synthesize(tmp_path / "root", **wrong)
    assert not (tmp_path / "root").exists()


def test_a_root_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="expected a folder or nothing, found a file"):
        synth.synthesize(tmp_path / "file", subjects=1, clips_per_subject=1)
    with pytest.raises(InputError, match="expected a folder that can be written"):
        synth.synthesize(tmp_path / "file" / "below", subjects=1, clips_per_subject=1)
    assert (tmp_path / "file").read_text() == "kept"


def test_clips_of_others_are_not_overwritten(tmp_path):
    recorded = tmp_path / synth.plan_ravdess(1, 1)[0].path
    recorded.parent.mkdir()
    recorded.write_bytes(b"recorded")
    with pytest.raises(InputError, match=f"found 1 others, the first Actor_01/{recorded.name}"):
        synth.synthesize(tmp_path, subjects=1, clips_per_subject=1)
    assert bytes_below(tmp_path).keys() == {f"Actor_01/{recorded.name}"}
    assert recorded.read_bytes() == b"recorded"


@pytest.mark.slow
def test_other_parameters_are_not_mixed(made):
    before = bytes_below(made[0])
    with pytest.raises(InputError, match=r'"seed": 6.*"seed": 5.*another folder'):
        synth.synthesize(made[0], subjects=2, clips_per_subject=3, seed=6)
    assert bytes_below(made[0]) == before


def test_a_failing_encoder_leaves_no_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "ffmpeg_binary", lambda: "/bin/false")
    with pytest.raises(RuntimeError, match="ffmpeg ended with status 1"):
        synth.synthesize(tmp_path, subjects=1, clips_per_subject=1, workers=1)
    assert bytes_below(tmp_path).keys() == {"SYNTHETIC.json"}


def test_each_modality_is_insufficient_and_both_are_better():
    """Nearest prototype on the parameters that are drawn: what a good observer of the face or the voice could tell."""
    emotions = synth.RAVDESS_EMOTIONS
    prototypes = {
        "visual": np.array([synth_face.EXPRESSIONS[emotion] for emotion in emotions]),
        "audio": np.array([synth_voice.PROSODIES[emotion] for emotion in emotions]) / synth_voice.PROSODY_JITTER,
    }
    noise = {"visual": 4 * synth_face.EXPRESSION_JITTER, "audio": 4.0}  # an observer sees less than what was drawn
    rng = np.random.default_rng(0)
    right = Counter()
    for trial in range(3000):
        true = trial % len(emotions)
        clarity = synth.draw_clarity(rng, strong=bool(trial // 6 % 2))
        distance = {}
        for modality, table in prototypes.items():
            seen = clarity[modality] * table[true] + rng.normal(0, noise[modality], table.shape[1])
            distance[modality] = ((seen - table) ** 2).sum(1) / noise[modality] ** 2
        distance["both"] = distance["visual"] + distance["audio"]
        for name, each in distance.items():
            right[name] += np.argmin(each) == true
    accuracy = {name: count / 3000 for name, count in right.items()}
    assert min(accuracy.values()) > 0.4, accuracy
    assert accuracy["both"] > max(accuracy["visual"], accuracy["audio"]) + 0.08, accuracy


@pytest.mark.slow
def test_clarity_moves_the_face_and_the_voice():
    """A clear clip differs from a neutral one of the same random numbers, in the picture and in the sound."""
    person, speaker = (draw(np.random.default_rng(1)) for draw in (synth_face.draw_person, synth_voice.draw_speaker))
    for emotion in synth.RAVDESS_EMOTIONS:
        frames, pitch = {}, {}
        for clarity in (0.0, 1.0):
            waveform, opening = synth_voice.speak(np.random.default_rng(2), speaker, emotion, clarity, 0, 2.0)
            assert waveform.shape == opening.shape == (96_000,) and waveform.dtype == np.float32
            assert opening.min() >= 0 and 0.9 < opening.max() <= 1
            frames[clarity] = synth_face.act(np.random.default_rng(3), person, emotion, clarity, np.zeros(20))
            pitch[clarity] = np.abs(np.fft.rfft(waveform))
        assert frames[1.0].shape == (20, synth_face.HEIGHT, synth_face.WIDTH, 3) and frames[1.0].dtype == np.uint8
        middle = (slice(-1, None), slice(40, 220), slice(80, 240))  # the face late in the clip
        assert np.abs(frames[1.0][middle].astype(int) - frames[0.0][middle]).mean() > 3
        same = pitch[0.0] @ pitch[1.0] / np.linalg.norm(pitch[0.0]) / np.linalg.norm(pitch[1.0])
        assert same < 0.9
