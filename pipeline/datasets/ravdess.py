"""RAVDESS: 24 actors, full audio-visual speech, the six basic emotions, 192 clips each.

Livingstone & Russo (2018), The Ryerson Audio-Visual Database of Emotional Speech and Song, PLoS ONE 13(5): e0196391.
Official record: Zenodo 1188976, CC BY-NC-SA 4.0; one zip of speech videos an actor (Actor_01/01-01-…-01.mp4).

A file is known by its name, modality-channel-emotion-intensity-statement-repetition-actor, wherever it lies.
"""

import re
from pathlib import Path

from ..manifest import Clip

NAME = "ravdess"
SUMMARY = "RAVDESS speech, 24 actors, 1152 audio-visual clips of six emotions (Livingstone & Russo 2018)"
EXAMPLE = "files such as Actor_01/01-01-03-01-01-01-01.mp4 (audio-visual speech of the six emotions 03 to 08)"
EMOTIONS = {"03": "happy", "04": "sad", "05": "angry", "06": "fearful", "07": "disgust", "08": "surprised"}
CLASSES = tuple(EMOTIONS.values())
# full audio-visual (01), speech (01), emotion, intensity, statement, repetition, actor
CLIP_NAME = re.compile(r"01-01-(0[3-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])\.mp4", re.IGNORECASE)


def find(root: Path) -> tuple[list[Clip], list[str]]:
    """All six-class audio-visual speech clips below ``root``, and notes about duplicates."""
    clips: dict[str, Clip] = {}
    notes = []
    for path in sorted(root.rglob("*")):
        match = CLIP_NAME.fullmatch(path.name)
        if not match or not path.is_file():
            continue
        emotion, intensity, statement, repetition, actor = match.groups()
        relative = path.relative_to(root).as_posix()
        if path.stem in clips:
            notes.append(f"{relative} is a second copy of {clips[path.stem].path} and is left out")
            continue
        columns = (("intensity", intensity), ("statement", statement), ("repetition", repetition))
        # Repetitions 1 and 2 of one take are near twins: a split by `take` keeps them together.
        take = ("take", f"{emotion}-{intensity}-{statement}-{actor}")
        clips[path.stem] = Clip(path.stem, relative, EMOTIONS[emotion], actor, (*columns, take))
    return list(clips.values()), notes
