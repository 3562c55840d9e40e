"""Make a synthetic dataset of real video files: drawn faces and synthetic voices that each carry the emotion in part.

Some clips are nearly neutral in the face and others in the voice, and the face confuses other pairs of emotions than
the voice does. Each modality alone is therefore insufficient, and both together are clearly better. Speakers, light,
background and noise vary as they do in recordings.
"""

import json
import multiprocessing
import os
import subprocess
import tempfile
import threading
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from ...errors import InputError
from ...files import whole_file
from ...media.process import ffmpeg_binary
from ..manifest import SYNTHETIC
from .face import FPS, act, draw_person
from .voice import VOICE_RATE, draw_speaker, speak

DURATION = (1.7, 2.1)  # seconds, shortest and longest clip
UNCLEAR_SHARE = {"visual": 0.32, "audio": 0.36}  # of the clips; no clip is unclear in both
CLEAR, UNCLEAR = (1.0, 1.15), (0.05, 0.35)  # ranges of the clarity of those clips, and of the others
STRONG = 1.1  # clarity of strong intensity over that of normal intensity
VERSION = 1  # goes up when the same parameters give other clips


@dataclass(frozen=True)
class SynthClip:
    """A clip to be made; `number` identifies it among its subject's clips, whichever other clips are made."""

    path: str  # relative to the root
    subject: int
    number: int
    emotion: str
    strong: bool
    statement: int  # 0 or 1
    takes: int = 1  # acted one after the other in one file, numbered from `number` on


@dataclass(frozen=True)
class Layout:
    """The names, folders and limits of a dataset: `plan(subjects, clips_per_subject)` returns the `SynthClip`s."""

    subjects: int  # at most
    clips_per_subject: int  # at most
    plan: Callable[[int, int], list[SynthClip]]


# RAVDESS's order of the emotion codes 03 to 08.
RAVDESS_EMOTIONS = ("happy", "sad", "angry", "fearful", "disgust", "surprised")


def plan_ravdess(subjects, clips_per_subject):
    """Plan the audio-visual speech clips of six emotions, `Actor_NN/01-01-EE-II-SS-RR-NN.mp4`.

    Emotions take turns through the whole list, so that their counts differ by one at most; the 8 combinations of
    intensity, statement and repetition take turns too, beginning at another one for each subject.
    """
    clips = []
    for index in range(subjects * clips_per_subject):
        subject, own = 1 + index // clips_per_subject, index % clips_per_subject
        emotion = index % len(RAVDESS_EMOTIONS)
        take = (own // len(RAVDESS_EMOTIONS) + subject - 1) % 8
        strong, statement, repetition = take % 2, take // 2 % 2, take // 4
        name = f"01-01-{emotion + 3:02}-{strong + 1:02}-{statement + 1:02}-{repetition + 1:02}-{subject:02}.mp4"
        path = f"Actor_{subject:02}/{name}"
        clips.append(SynthClip(path, subject, 8 * emotion + take, RAVDESS_EMOTIONS[emotion], bool(strong), statement))
    return clips


# eNTERFACE'05's emotions in the order of their codes: code, folder, and what is drawn and spoken.
ENTERFACE05_EMOTIONS = (
    ("an", "anger", "angry"),
    ("di", "disgust", "disgust"),
    ("fe", "fear", "fearful"),
    ("ha", "happiness", "happy"),
    ("sa", "sadness", "sad"),
    ("su", "surprise", "surprised"),
)
SENTENCES_PER_EMOTION = 5
# The subjects with the irregularities of the recorded set; its details of (23, "ha", …) and (2, "sa") are not known.
UNSEGMENTED, MISNAMED, MISNAMED_AS = 6, 11, 12  # subjects
RENAMED, RENAMED_FROM = 3, ("fe", 5)  # this subject's files, from this one on, begin with `s_3_` in place of `s3_`
MISSPELT = (16, "su", 3)
ABSENT = {(23, "ha", 3), (23, "ha", 4), (23, "ha", 5)}
SHALLOW = (2, "sa")  # lies in the emotion's folder, without a folder for each sentence


def plan_enterface05(subjects, clips_per_subject):
    """Plan the clips of `enterface database/subject N/EMOTION/sentence K/sN_CODE_K.avi`, irregularities included.

    Emotions take turns through the whole list; sentences go on when all emotions had theirs. The unsegmented subject
    has one file for each emotion it would have clips of, with as many sentences in it; in all 44 subjects of 30 clips
    there are 1293 files. Strong and normal performances, and the two sentences that the voice can say, take turns.
    """
    clips = []
    for subject in range(1, subjects + 1):
        whole = {}  # emotion -> the clips of the unsegmented subject
        for own in range(clips_per_subject):
            index = ((subject - 1) * clips_per_subject + own) % len(ENTERFACE05_EMOTIONS)
            code, folder, emotion = ENTERFACE05_EMOTIONS[index]
            sentence = 1 + own // len(ENTERFACE05_EMOTIONS)
            if (subject, code, sentence) in ABSENT:
                continue
            path = f"enterface database/subject {subject}/{folder}/{_enterface05_file(subject, code, sentence)}"
            strong, statement = (sentence + subject) % 2, sentence % 2
            number = SENTENCES_PER_EMOTION * index + sentence - 1
            clip = SynthClip(path, subject, number, emotion, bool(strong), statement)
            whole.setdefault(path, []).append(clip)
        clips += [replace(parts[0], takes=len(parts)) for parts in whole.values()]
    return clips


def _enterface05_file(subject, code, sentence):
    """Return the path of a clip below its emotion's folder."""
    if subject == UNSEGMENTED:
        return f"s{subject}_{code}.avi"
    speaker = f"s{MISNAMED_AS if subject == MISNAMED else subject}"
    if subject == RENAMED and (code, sentence) >= RENAMED_FROM:
        speaker = f"s_{subject}"
    misspelt = "avi" if (subject, code, sentence) == MISSPELT else ""
    name = f"{speaker}_{code}_{sentence}{misspelt}.avi"
    return name if (subject, code) == SHALLOW else f"sentence {sentence}/{name}"


LAYOUTS = {
    "ravdess": Layout(subjects=24, clips_per_subject=48, plan=plan_ravdess),
    "enterface05": Layout(subjects=44, clips_per_subject=30, plan=plan_enterface05),
}


def synthesize(root, *, layout="ravdess", subjects=None, clips_per_subject=None, seed=0, workers=None, progress=None):
    """Write a synthetic dataset under `root` and return the paths of its clips.

    The clips are video of 25 frames a second with 48 kHz stereo sound, H.264 with AAC in mp4 files, MPEG-4 with
    uncompressed sound in avi files. A clip's bytes depend on the seed, its subject and its name only (of an unsegmented
    one also on how many sentences are in it): on one machine they are the same each time, for any number of workers and
    any number of other clips. Each file appears under its name only when it is whole; a call that was interrupted can
    be repeated. `SYNTHETIC.json` in the root marks the clips as drawn; a root with other clips or other parameters is
    refused, so that a recorded dataset is never overwritten and two synthetic ones never mix.

    Args:
        root: a folder, made if absent.
        layout: a key of `LAYOUTS`.
        subjects: from 1 to the layout's number (None: that number).
        clips_per_subject: likewise.
        seed: at least 0.
        workers: processes (None: one for each processor; 1: only this process).
        progress: called with (clips done, clips in all) after each clip.

    Raises:
        InputError: a parameter out of range, or a root that cannot be used.
    """
    parameters = _check(layout, subjects, clips_per_subject, seed, workers)
    clips = LAYOUTS[layout].plan(parameters["subjects"], parameters["clips_per_subject"])
    root = Path(root)
    _claim(root, parameters | {"version": VERSION}, clips)
    jobs = [(str(root / clip.path), clip, seed) for clip in clips]
    with closing(_make_clips(jobs, min(workers or len(os.sched_getaffinity(0)), len(jobs)))) as made:
        for done, _ in enumerate(made, 1):
            if progress:
                progress(done, len(jobs))
    return [root / clip.path for clip in clips]


def _make_clips(jobs: Sequence[tuple], workers: int) -> Iterator[None]:
    """Make clips and yield after each, in any order."""
    if workers == 1:
        yield from (make_clip(*job) for job in jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        futures = [pool.submit(make_clip, *job) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent():
    """End this worker when its parent is killed, which could no longer tell it to stop."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check(layout, subjects, clips_per_subject, seed, workers):
    """Return the parameters that determine the clips, with the layout's limits filled in. InputError: one is wrong."""
    if layout not in LAYOUTS:
        raise InputError(f"synth: layout: expected {' or '.join(sorted(LAYOUTS))}, found {layout!r}")
    limits = LAYOUTS[layout]
    subjects = limits.subjects if subjects is None else subjects
    clips_per_subject = limits.clips_per_subject if clips_per_subject is None else clips_per_subject
    for name, value, most in (
        ("subjects", subjects, limits.subjects),
        ("clips_per_subject", clips_per_subject, limits.clips_per_subject),
        ("seed", seed, None),
        ("workers", 1 if workers is None else workers, None),
    ):
        least = 0 if name == "seed" else 1
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            span = f"{least} to {most}" if most else f"{least} or more"
            raise InputError(f"synth: {name}: expected a whole number, {span}, found {value!r}")
    return {"layout": layout, "subjects": subjects, "clips_per_subject": clips_per_subject, "seed": seed}


def _claim(root, parameters, clips):
    """Make the folders and the marker. InputError: the root holds other clips, or cannot be written."""
    elsewhere = "give another folder, or empty this one first"
    if root.exists() and not root.is_dir():
        raise InputError(f"synth: {root}: expected a folder or nothing, found a file; give another path")
    marker = root / SYNTHETIC
    text = json.dumps(parameters) + "\n"
    try:
        if marker.exists():
            found = marker.read_text(encoding="utf-8")
            if found != text:
                raise InputError(
                    f"synth: {root}: expected clips of {text.strip()}, found those of {found.strip()}; {elsewhere}"
                )
        taken = [] if marker.exists() else [clip.path for clip in clips if (root / clip.path).exists()]
        if taken:
            raise InputError(
                f"synth: {root}: expected no clips but synthetic ones ({SYNTHETIC}), found {len(taken)} others, "
                f"the first {taken[0]}; {elsewhere}"
            )
        for folder in sorted({(root / clip.path).parent for clip in clips}):
            folder.mkdir(parents=True, exist_ok=True)
        with whole_file(marker, "w") as file:
            file.write(text)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise InputError(f"synth: {root}: expected a folder that can be written, found {reason}") from error


def make_clip(path, clip, seed):
    """Draw, speak and encode one `SynthClip`; the file appears at `path` when it is whole."""
    person = draw_person(np.random.default_rng([seed, clip.subject, 0, 1]))
    speaker = draw_speaker(np.random.default_rng([seed, clip.subject, 0, 2]))
    takes = [_perform(person, speaker, clip, take, seed) for take in range(clip.takes)]
    frames, waveforms = (np.concatenate(parts) for parts in zip(*takes, strict=True))
    _encode(Path(path), frames, waveforms, comment=f"mlemiss synth {VERSION}: drawn and synthesised, not recorded")


def _perform(person, speaker, clip, take, seed):
    """Return frames, uint8 [frame, row, column, 3], and waveform, float [samples], of one of a clip's performances."""
    rng, visual, audio = (
        np.random.default_rng([seed, clip.subject, 1 + clip.number + take, part]) for part in (1, 2, 3)
    )
    clarity = draw_clarity(rng, clip.strong ^ bool(take % 2))
    count = round(rng.uniform(*DURATION) * FPS)  # frames
    duration = count / FPS
    statement = clip.statement ^ take % 2
    waveform, opening = speak(audio, speaker, clip.emotion, clarity["audio"], statement, duration)  # both [samples]
    opening = opening[:: VOICE_RATE // FPS]  # [frame]
    return act(visual, person, clip.emotion, clarity["visual"], opening), waveform


def draw_clarity(rng, strong):
    """Draw how clearly a clip shows its emotion, by modality: 0 (neutral) to about 1; never unclear in both."""
    which = rng.random()
    unclear = {"visual": which < UNCLEAR_SHARE["visual"], "audio": which > 1 - UNCLEAR_SHARE["audio"]}
    return {
        modality: rng.uniform(*(UNCLEAR if hidden else CLEAR)) * (STRONG if strong else 1.0)
        for modality, hidden in unclear.items()
    }


# One thread and bitexact make the bytes the same each time; noise substitution would make the channels differ.
ENCODING = {
    ".mp4": "-c:v libx264 -preset ultrafast -crf 26 -g 50 -threads 1 -c:a aac -aac_coder fast -aac_pns 0 -b:a 128k",
    ".avi": "-c:v mpeg4 -q:v 4 -g 50 -threads 1 -c:a pcm_s16le",
}


def _encode(path, frames, waveform, comment):
    """Write `frames`, uint8 [frame, row, column, 3] RGB, and `waveform`, float [samples], as an mp4 or avi."""
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "sound.wav"
        with wave.open(str(sound), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(VOICE_RATE)
            mono = np.round(32767 * waveform).astype("<i2")
            file.writeframes(np.repeat(mono, 2).tobytes())  # two identical channels, as RAVDESS has
        height, width = frames.shape[1:3]
        pictures, clip = Path(folder) / "pictures.yuv", Path(folder) / "clip"
        pictures.write_bytes(b"".join(cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes() for frame in frames))
        command = f"""
            -nostdin -loglevel error -y -threads 1
            -f rawvideo -pix_fmt yuv420p -s {width}x{height} -r {FPS} -i PICTURES -i SOUND
            {ENCODING[path.suffix]} -flags +bitexact -fflags +bitexact -map_metadata -1 -metadata COMMENT
            -f {path.suffix[1:]} CLIP
        """.split()
        given = {"PICTURES": str(pictures), "SOUND": str(sound), "COMMENT": f"comment={comment}", "CLIP": str(clip)}
        command = [ffmpeg_binary(), *(given.get(word, word) for word in command)]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if result.returncode == 0:
            with whole_file(path) as file:
                file.write(clip.read_bytes())
            return
        reason = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"synth: {path}: ffmpeg ended with status {result.returncode}: {reason[0]}")
