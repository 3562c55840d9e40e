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
WANTED = "audio-visual speech"
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


def find(root: Path, files: Sequence[Path]) -> tuple[list[Clip], list[str]]:
    """Find the audio-visual speech clips of eight emotions among the files below ``root``; note the other files."""
    videos: list[tuple[Path, tuple[str, ...]]] = []
    left_out, unknown = Counter(), []
    for path in files:
        match = FILE_NAME.fullmatch(path.name)
        if match:
            modality, channel, *fields = match.groups()
            kind = f"{MODALITY_CODES.get(modality, 'unknown')} {CHANNEL_CODES.get(channel, 'unknown')}"
            if kind == WANTED and path.suffix.lower() == ".mp4":
                videos.append((path, tuple(fields)))
            else:
                left_out[kind] += 1
        elif path.suffix.lower() == ".mp4":
            unknown.append(path.relative_to(root).as_posix())
    videos.sort(key=lambda video: _folder_actor(video[0]) != video[1][-1])  # stable: they are sorted by depth

    kept: dict[str, Path] = {}
    clips, copies, misfiled = [], [], []
    for path, fields in videos:
        if path.stem in kept:
            copies.append((path, kept[path.stem]))
            continue
        kept[path.stem] = path
        clips.append(_clip(root, path, *fields))
        if _folder_actor(path) not in (None, fields[-1]):
            misfiled.append(clips[-1].path)
    notes = note_copies(root, copies)
    if misfiled:
        notes.append(f"{len(misfiled)} clips lie with another actor; their names decide: {name_some(misfiled)}")
    if left_out:
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(left_out.items()))
        notes.append(f"{left_out.total()} files of RAVDESS that are not {WANTED} are left out ({counted})")
    if unknown:
        notes.append(f"{len(unknown)} mp4 files are not named as RAVDESS's are: {name_some(unknown)}")
    return clips, notes


def _folder_actor(path: Path) -> str | None:
    match = ACTOR_FOLDER.fullmatch(path.parent.name)
    return match[1] if match else None


def _clip(root: Path, path: Path, emotion: str, intensity: str, statement: str, repetition: str, actor: str) -> Clip:
    columns = (("intensity", intensity), ("statement", statement), ("repetition", repetition))
    # Repetitions 1 and 2 of one take are near twins: a split by `take` keeps them together.
    take = ("take", f"{emotion}-{intensity}-{statement}-{actor}")
    return Clip(path.stem, path.relative_to(root).as_posix(), EMOTIONS[emotion], actor, (*columns, take))
