"""Match the clip ids of several sources, and tell those that do not match with the nearest that might be meant."""

import re
import unicodedata
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ..console import amount
from ..errors import InputError
from .feature_files import MEDIA_ENDING

TOLD = 3  # ids in a message
BESIDE = re.compile(r"[\s_.:/\\-]+")


def match_ids(labelled: Path, ids: Sequence[str], source: Path, there: Sequence[str], hint: str = "") -> list[str]:
    """Compare the clip ids of a source with those of the file with the labels; hint: to tell where none is in both.

    Returns:
        Notes: clips that the source lacks, and clips of it that have no label, each with the nearest on the other side.

    Raises:
        InputError: no id is in both, or some differ only in how they are written.
    """
    lacking, unknown = sorted(set(ids) - set(there)), sorted(set(there) - set(ids))
    if len(lacking) == len(set(ids)):
        told = _nearest(unknown, lacking) + _affix(unknown, lacking)
        raise InputError(
            f"{source} and {labelled} have no clip id in common: {told}."
            f"\n{hint}Write the ids in {labelled.name} as {source.name} has them."
        )
    alike = {_plain(clip): clip for clip in lacking}
    twins = [(clip, alike[_plain(clip)]) for clip in unknown if _plain(clip) in alike]
    if twins:
        here, other = twins[0]
        raise InputError(
            f"{source} has {here!r} and {labelled} has {other!r}, which differ only in how they are written "
            f"({amount(len(twins), 'such clip')}).\nWrite each id in one way."
        )
    notes = []
    if lacking:
        told = f"{source} lacks {amount(len(lacking), 'clip')} of {labelled.name}: {_nearest(lacking, unknown)}"
        notes.append(told + _affix(unknown, lacking))
    if unknown:
        told = f"{amount(len(unknown), 'clip')} of {source} have no label in {labelled.name} and are left out"
        notes.append(f"{told}: {_nearest(unknown, lacking)}")
    return notes


def _plain(clip: str) -> str:
    """Return a key that is equal for ids that a reader would take for the same; `3.1` and `3.10` are two clips."""
    return BESIDE.sub("_", unicodedata.normalize("NFKC", MEDIA_ENDING.sub("", clip)).casefold())


def _nearest(ids: Sequence[str], others: Sequence[str]) -> str:
    """Return the first ids, each with the nearest of others: `'a1' (nearest: 'b1')`."""
    told = []
    for clip in ids[:TOLD]:
        near = _near(clip, others)
        told.append(f"{clip!r} (nearest on the other side: {near!r})" if near else f"{clip!r}")
    return ", ".join(told) + f" and {len(ids) - TOLD} more" * (len(ids) > TOLD)


def _near(clip: str, others: Sequence[str]) -> str:
    """Return the id that one might be meant for: one that is a part of the other, else one of similar letters."""
    parts = [other for other in others if other in clip or clip in other]
    return next(iter(get_close_matches(clip, parts or others, 1, 0.1 if parts else 0.5)), "")


def _affix(ids: Sequence[str], others: Sequence[str]) -> str:
    """Return what one side has before or after the other's ids, if that is what makes them differ."""
    numbers = [{clip.lstrip("0") or "0" for clip in side} for side in (ids, others)]
    if set("".join([*ids, *others])) <= set("0123456789") and (same := len(numbers[0] & numbers[1])):
        return f"; {amount(same, 'id')} would match without the zeros before them"
    for longer, shorter in ((ids, others), (others, ids)):
        near = _near(longer[0], shorter) if longer else ""
        if near and near in longer[0]:
            before, _, after = longer[0].partition(near)
            known = set(shorter)
            cut = [c[len(before) : len(c) - len(after)] for c in longer if c.startswith(before) and c.endswith(after)]
            fitting = set(cut) & known
            if len([clip for clip in cut if clip in known]) > len(fitting):
                return ""  # several would be one
            said = " and ".join(f"{text!r} {where}" for text, where in ((before, "before"), (after, "after")) if text)
            return f"; {amount(len(fitting), 'id')} would match without {said} them"
    return ""
