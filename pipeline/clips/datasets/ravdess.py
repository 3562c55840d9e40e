"""RAVDESS: 24 actors, full audio-visual speech, the six basic emotions, 192 clips each.

Livingstone & Russo (2018), The Ryerson Audio-Visual Database of Emotional Speech and Song, PLoS ONE 13(5): e0196391.
Official record: Zenodo 1188976, CC BY-NC-SA 4.0; about 14 GB in one zip of speech videos an actor, which holds 60
audio-visual clips (Actor_01/01-01-…-01.mp4) and 60 video-only ones of the same takes.

A file is known by its name, modality-channel-emotion-intensity-statement-repetition-actor, wherever it lies. Of copies
with the same name the one in its own actor's folder is kept, else the one that lies less deep.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...console import name_some
from ..manifest import Clip, Download, known_clips, note_copies

NAME = "ravdess"
SUMMARY = "RAVDESS speech, 24 actors, 1152 audio-visual clips of six emotions (Livingstone & Russo 2018)"
EXAMPLE = "files such as Actor_01/01-01-03-01-01-01-01.mp4 (audio-visual speech of the six emotions 03 to 08)"
EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
ALL_CLASSES = tuple(EMOTIONS.values())  # 1440 clips: neutral 96, each other emotion 192
CLASSES = ALL_CLASSES[2:]
FILE_NAME = re.compile(r"(\d\d)-(\d\d)-(0[1-8])-(\d\d)-(\d\d)-(\d\d)-(\d\d)\.(?:mp4|wav)", re.IGNORECASE)
MODALITY_CODES = {"01": "audio-visual", "02": "video-only", "03": "audio-only"}
CHANNEL_CODES = {"01": "speech", "02": "song"}
WANTED, SILENT, HEARD = (f"{kind} speech" for kind in MODALITY_CODES.values())
AUDIO = {"03": "the original wavs, as in Audio_Speech_Actors_01-24.zip"}
ACTOR_FOLDER = re.compile(r"Actor_(\d\d)", re.IGNORECASE)


def _clips_of(actor: int) -> dict[str, str]:
    """Return the paths below the root of an actor's 60 audio-visual clips, by clip id."""
    ids = [clip_id for clip_id in known_clips(NAME, ALL_CLASSES) if clip_id.endswith(f"-{actor:02}")]
    return {clip_id: f"Actor_{actor:02}/{clip_id}.mp4" for clip_id in ids}


DOWNLOAD = Download(
    record="https://zenodo.org/api/records/1188976",
    zips={actor: f"Video_Speech_Actor_{actor:02}.zip" for actor in range(1, 25)},
    clips=_clips_of,
    part="actor",
    unpacked=0.5,
)


Files = list[tuple[Path, tuple[str, ...]]]  # with the fields of their names from the emotion on


def find(root: Path, files: Sequence[Path], audio: str | None = None) -> tuple[list[Clip], list[str]]:
    """Find the audio-visual speech clips of eight emotions among the files below ``root``; note the other files.

    With ``audio`` 03 the sound of a clip is the wav of the same take, expected beside the video if it is nowhere; a
    video-only file serves where there is no audio-visual one of its take.
    """
    used: dict[str, Files] = {kind: [] for kind in ((WANTED, SILENT, HEARD) if audio else (WANTED,))}
    left_out, unknown = Counter(), []
    for path in files:
        match = FILE_NAME.fullmatch(path.name)
        if match:
            modality, channel, *fields = match.groups()
            kind = f"{MODALITY_CODES.get(modality, 'unknown')} {CHANNEL_CODES.get(channel, 'unknown')}"
            if kind in used and path.suffix.lower() == (".wav" if kind == HEARD else ".mp4"):
                used[kind].append((path, tuple(fields)))
            else:
                left_out[kind] += 1
        elif path.suffix.lower() == ".mp4":
            unknown.append(path.relative_to(root).as_posix())
    videos, copies = _one_each(used[WANTED])
    silent, second = _one_each([file for file in used.get(SILENT, []) if file[1] not in videos])
    sounds, third = _one_each(used.get(HEARD, []))
    if twins := len(used.get(SILENT, [])) - len(silent) - len(second):
        left_out[SILENT] += twins

    clips, misfiled = [], []
    for fields, path in (videos | silent).items():
        sound = sounds.get(fields, path.with_name(f"03-01-{'-'.join(fields)}.wav")) if audio else None
        clips.append(_clip(root, path, sound, *fields))
        if _folder_actor(path) not in (None, fields[-1]):
            misfiled.append(clips[-1].path)
    notes = note_copies(root, [*copies, *second, *third])
    if silent:
        names = name_some(path.name for path in silent.values())
        notes.append(f"{len(silent)} clips are of video-only files, as there is no audio-visual one: {names}")
    if misfiled:
        notes.append(f"{len(misfiled)} clips lie with another actor; their names decide: {name_some(misfiled)}")
    if left_out:
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(left_out.items()))
        notes.append(f"{left_out.total()} files of RAVDESS that are not {WANTED} are left out ({counted})")
    if unknown:
        notes.append(f"{len(unknown)} mp4 files are not named as RAVDESS's are: {name_some(unknown)}")
    return clips, notes


def _one_each(files: Files) -> tuple[dict[tuple[str, ...], Path], list[tuple[Path, Path]]]:
    """Return one file of each name, by its fields, and (left out, kept) of its copies; files come sorted by depth."""
    kept: dict[tuple[str, ...], Path] = {}
    copies = []
    for path, fields in sorted(files, key=lambda file: _folder_actor(file[0]) != file[1][-1]):
        if path is not (first := kept.setdefault(fields, path)):
            copies.append((path, first))
    return kept, copies


def _folder_actor(path: Path) -> str | None:
    match = ACTOR_FOLDER.fullmatch(path.parent.name)
    return match[1] if match else None


def _clip(root: Path, path: Path, sound: Path | None, *fields: str) -> Clip:
    emotion, intensity, statement, repetition, actor = fields
    columns = (("intensity", intensity), ("statement", statement), ("repetition", repetition))
    # Repetitions 1 and 2 of one take are near twins: a split by `take` keeps them together.
    take = ("take", f"{emotion}-{intensity}-{statement}-{actor}")
    place, heard = (each.relative_to(root).as_posix() if each else "" for each in (path, sound))
    return Clip(f"01-01-{'-'.join(fields)}", place, EMOTIONS[emotion], actor, (*columns, take), heard)
