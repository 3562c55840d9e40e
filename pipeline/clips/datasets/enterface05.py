"""eNTERFACE'05: 44 subject folders, six emotions, five sentences each: 1293 audio-visual clips, 216 an emotion
(happiness 213).

Martin, Kotsia, Macq & Pitas (2006), The eNTERFACE'05 Audio-Visual Emotion Database, ICDE Workshops. Label codes are in
the order of the emotions' names, which is that of the codes in the file names (an di fe ha sa su).

A regular file is `subject N/EMOTION/sentence K/sN_CODE_K.avi`. If folder and name differ, the folder decides, since the
names have errors: those of subject 11 begin with s12, there are `s_3_fe_5` and `s16_su_3avi.avi`. A field that no
folder tells (EMOTION/sN_CODE_K.avi) is taken from the name. Subject 6 is unsegmented, one file an emotion with all its
sentences: its `sentence` is 0.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...console import name_some
from ..manifest import Clip, note_copies

NAME = "enterface05"
SUMMARY = "eNTERFACE'05, 44 subjects, 1293 clips of six emotions (Martin, Kotsia, Macq & Pitas 2006)"
EXAMPLE = "files such as enterface database/subject 1/anger/sentence 1/s1_an_1.avi"
CODES = {
    "an": "anger",
    "di": "disgust",
    "fe": "fear",
    "ha": "happiness",
    "sa": "sadness",
    "su": "surprise",
}
CLASSES = tuple(CODES.values())
UNSEGMENTED = "0"  # the sentence of a file that holds all sentences of its subject and emotion
SUBJECT_FOLDER = re.compile(r"subject[ _-]*0*(\d+)")
SENTENCE_FOLDER = re.compile(r"sentence[ _-]*0*(\d+)")
FILE_STEM = re.compile(r"s(?:ubject)?[ _-]*0*(\d+)[ _-]*(an|di|fe|ha|sa|su)[a-z]*(?:[ _-]*0*(\d+)(?: ?avi)?)?")


class ClipFields(NamedTuple):
    """The fields of a clip that its folders, or its file name, tell; None for others."""

    subject: str | None = None
    emotion: str | None = None
    sentence: str | None = None


def find(root: Path, files: Sequence[Path]) -> tuple[list[Clip], list[str]]:
    """Find the clips among the files below ``root``; note what is not regular."""
    videos, lost = [], []
    for path in files:
        if path.suffix.lower() != ".avi":
            continue
        place, name = _from_folders(path.relative_to(root).parts[:-1]), _from_name(path.stem)
        emotion, sentence = place.emotion or name.emotion, place.sentence or name.sentence
        # A name that says nothing must not make a file whose folders do not name its sentence an unsegmented one.
        if place.subject and emotion and (sentence or name.emotion):
            videos.append((path, place, name, ClipFields(place.subject, emotion, sentence or UNSEGMENTED)))
        else:
            lost.append(path.relative_to(root).as_posix())
    videos.sort(key=lambda file: _disagreements(*file[1:3]))  # of several files for a clip, the one named rightly

    kept: dict[str, Path] = {}
    clips, copies, odd = [], [], []
    for path, place, name, (subject, emotion, sentence) in videos:
        code = next(code for code, label in CODES.items() if label == emotion)
        clip_id = f"{subject}-{code}-{sentence}"
        if clip_id in kept:
            copies.append((path, kept[clip_id]))
            continue
        kept[clip_id] = path
        relative = path.relative_to(root).as_posix()
        clips.append(Clip(clip_id, relative, emotion, subject, (("sentence", sentence),)))
        if _disagreements(place, name):
            odd.append((relative, place, name))
    return clips, [*note_copies(root, copies), *_notes(clips, odd, lost)]


def _from_folders(folders: Sequence[str]) -> ClipFields:
    """Return what the folders tell; the innermost folder of a kind counts."""
    subject = emotion = sentence = None
    for folder in map(str.lower, folders):
        if match := SUBJECT_FOLDER.fullmatch(folder):
            subject = match[1]
        elif match := SENTENCE_FOLDER.fullmatch(folder):
            sentence = match[1]
        elif folder in CLASSES:
            emotion = folder
    return ClipFields(subject, emotion, sentence)


def _from_name(stem: str) -> ClipFields:
    match = FILE_STEM.fullmatch(stem.lower())
    return ClipFields(match[1], CODES[match[2]], match[3]) if match else ClipFields()


def _disagreements(place: ClipFields, name: ClipFields) -> int:
    """Return in how many fields the name differs; in all of them if it is not a clip's name."""
    if name == ClipFields():
        return len(name)
    return sum(None not in (told, named) and told != named for told, named in zip(place, name, strict=True))


def _notes(clips: Sequence[Clip], odd: Sequence[tuple[str, ClipFields, ClipFields]], lost: Sequence[str]) -> list[str]:
    notes = []
    unsegmented = [clip.path for clip in clips if dict(clip.columns)["sentence"] == UNSEGMENTED]
    if unsegmented:
        notes.append(f"{len(unsegmented)} files are unsegmented (sentence {UNSEGMENTED}): {name_some(unsegmented)}")
    unnamed = [path for path, _, name in odd if name == ClipFields()]
    if unnamed:
        notes.append(f"{len(unnamed)} clips are not named as clips, but their folders tell: {name_some(unnamed)}")
    for index, what in enumerate(ClipFields._fields):
        wrong = [path for path, place, name in odd if name[index] and place[index] not in (None, name[index])]
        if wrong:
            notes.append(f"{len(wrong)} names tell another {what} than their folder, which decides: {name_some(wrong)}")
    if lost:
        notes.append(f"{len(lost)} avi files do not tell which clip they are and are left out: {name_some(lost)}")
    return notes
