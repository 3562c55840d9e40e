"""What data_manifests/ knows that a dataset holds, and the clips that were found against it.

NAME.csv lists clips, as a manifest. NAME.counts.csv, where the clips' names are not known in full, counts them.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from .manifest import Clip, read_manifest


@dataclass(frozen=True)
class Count:
    """Clips of one label: at most ``each`` of every one of these subjects, and ``clips`` of all of them together."""

    subjects: tuple[str, ...]
    label: str
    each: int
    clips: int


def known_clips(dataset: str, classes: Sequence[str]) -> list[str] | None:
    """The clip ids of these classes that a dataset should hold, or None where no listing is known."""
    listing = _file(f"{dataset}.csv")
    return [clip.clip_id for clip in read_manifest(listing) if clip.label in classes] if listing.is_file() else None


def known_counts(dataset: str, classes: Sequence[str]) -> list[Count] | None:
    """How many clips of these classes a dataset should hold, or None where no counts are known."""
    path = _file(f"{dataset}.counts.csv")
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in classes]
    return [Count(_subjects(row["subjects"]), row["label"], int(row["each"]), int(row["clips"])) for row in rows]


def compare(dataset: str, clips: Sequence[Clip], classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """(absent, unexpected), an entry for each clip; both empty where nothing is known of the dataset.

    Of clips that are only counted, an absent one is called `subject-label-?`, with `?` too for a subject that the
    counts do not tell; an unexpected one is the last by id of its subject and label.
    """
    if (names := known_clips(dataset, classes)) is not None:
        expected, found = set(names), {clip.clip_id for clip in clips}
        return sorted(expected - found), sorted(found - expected)
    if (counts := known_counts(dataset, classes)) is not None:
        return _compare_counts(counts, clips)
    return [], []


def _compare_counts(counts: Sequence[Count], clips: Sequence[Clip]) -> tuple[list[str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        found.setdefault((clip.subject, clip.label), []).append(clip.clip_id)
    absent: Counter[str] = Counter()
    unexpected: list[str] = []
    for count in counts:
        there = {subject: found.pop((subject, count.label), []) for subject in count.subjects}
        unexpected += [clip_id for ids in there.values() for clip_id in ids[count.each :]]
        lacking = {subject: count.each - min(len(ids), count.each) for subject, ids in there.items()}
        untold = count.each * len(count.subjects) - count.clips  # absent from the dataset itself, nobody says where
        if not untold:
            absent.update({f"{subject}-{count.label}-?": lack for subject, lack in lacking.items()})
        difference = sum(lacking.values()) - untold
        anywhere = f"?-{count.label}-?"
        if untold and difference > 0:
            absent[anywhere] += difference
        elif untold:
            unexpected += [anywhere] * -difference
    unexpected += [clip_id for ids in found.values() for clip_id in ids]  # of subjects that are not in the counts
    return list(absent.elements()), unexpected


def _subjects(text: str) -> tuple[str, ...]:
    """`1-3 7` -> 1, 2, 3, 7."""
    spans = [span.partition("-") for span in text.split()]
    return tuple(str(number) for first, _, last in spans for number in range(int(first), int(last or first) + 1))


def _file(name: str) -> Path:
    return Path(str(files("mlemiss.data_manifests") / name))
