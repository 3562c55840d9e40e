"""Take over results of equal content and spec instead of computing them again, from finished and unfinished stores.

A clip that is added, removed or renamed changes a store's fingerprint and name; the results of the other clips stay
valid. The next revision of a store takes the clips that did not fail from the revision before.
"""

from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr

from ..console import say_once
from ..errors import InputError
from ..files import check_work
from ..media.process import due_to_limit
from ..stores import store
from ..stores.schema import WAVEFORM
from ..stores.store import WORK
from .parts import UNREADABLE, WAVEFORM_CHUNK, DamagedError, Donor, Part, donors, samples_of, write_media
from .plan import Output, Plan

MEDIA_ARRAYS = ("frames", "logmel")
Media = tuple[np.ndarray | None, ...]  # frames, log-Mels and waveform of a clip, None where it lacks them
Results = Iterator[tuple[str, Part, Media | None]]  # key, result, media of a media store


def fill(plan: Plan) -> int:
    """Save the results that other stores and unfinished work have, media included, as if they were computed now.

    Returns:
        The number of clips whose results were taken over.
    """
    filled: set[int] = set()
    for output in plan.unfinished():
        every = plan.rows_of(output)
        wanted = {key for key in every if not output.part(key).is_file()}
        for key, part, media in _results(plan, output, wanted):
            rows = every[key]
            if media is not None:
                write_media(output.work, rows, *media)
            replace(part, row=rows[0]).save(output.part(key))
            wanted.remove(key)
            filled.update(rows)
    return len(filled)


def _results(plan: Plan, output: Output, wanted: Set[str]) -> Results:
    for donor in donors(plan.stores, output.features, output.spec.__eq__, output.shapes):
        yield from _from_store(donor, output, wanted, plan.retry_failed)
    for work in sorted((plan.stores / WORK).glob("*/")):
        if work != output.work and not work.is_symlink():
            yield from _from_work(work, output, wanted, plan.retry_failed)


def _from_store(donor: Donor, output: Output, wanted: Set[str], retry_failed: bool) -> Results:
    """Read a finished store, a chunk of clips at a time; skip damaged chunks."""
    opened, media = donor.store, output.features == store.MEDIA
    names = MEDIA_ARRAYS if media else output.modalities
    size = opened.clips_a_chunk(names[0])
    blocks: dict[int, dict[str, int]] = defaultdict(dict)
    for key, row in donor.rows(retry_failed).items():
        if key in wanted:
            blocks[row // size][key] = row
    for block, rows in sorted(blocks.items()):
        try:
            values = donor.block(names, block)
        except DamagedError as error:
            say_once(f"note: {error}")
            continue
        for key, row in rows.items():
            present = tuple(opened.present[row].tolist())
            clip = {n: v[row % size] for n, v, has in zip(names, values, present, strict=True) if has}
            facts = {"duration": float(opened.duration[row]), "versions": opened.attrs.get("versions") or {}}
            facts["box"] = donor.box(row)
            part = Part(present, str(opened.error[row]), arrays={} if media else clip, **facts)
            heard = None
            if media and output.waveform and present[1]:
                try:
                    heard = donor.waveform(row)
                except DamagedError as error:
                    say_once(f"note: {error}")
                    continue
            yield key, part, (*map(clip.get, names), heard) if media else None


def _from_work(work: Path, output: Output, wanted: Set[str], retry_failed: bool) -> Results:
    """Read the unfinished work of another fingerprint; its process may be at work, or remove the folder meanwhile."""
    built = work / "store.zarr"
    try:
        check_work(work)
    except InputError as error:
        say_once(f"not usable: {error}")
        return
    try:
        group = zarr.open_group(built, mode="r")
        modalities = group.attrs.get("modalities", list(store.MODALITIES))
        made = (group.attrs["features"], group.attrs["spec"], modalities)
        if made != (output.features, output.spec, list(output.modalities)):
            return
    except UNREADABLE:  # also the work of an earlier version, which is computed again
        return
    for key in sorted(wanted):
        try:
            part = Part.load(work / "clips" / f"{key}.npz")
            if part.failed or (retry_failed and due_to_limit(part.cause)):
                continue
            media = _media_of(built, group, part) if output.features == store.MEDIA else None
        except UNREADABLE:
            continue
        yield key, part, media


def _media_of(built: Path, group: zarr.Group, part: Part) -> Media:
    """Read a clip's media from an unfinished store. FileNotFoundError: they were removed meanwhile."""
    media = []
    for name, present in zip(MEDIA_ARRAYS, part.present, strict=True):
        media.append(group[name][part.row] if present else None)
        # zarr reads an absent chunk as fill values, so look afterwards whether the chunk was there
        (built / name / "c").joinpath(str(part.row), *"0" * (group[name].ndim - 1)).stat()
    size = samples_of(part.duration)
    heard = WAVEFORM in group and part.present[1]
    media.append(group[WAVEFORM][part.row, :size] if heard else None)
    for chunk in range(-(-size // WAVEFORM_CHUNK) if heard else 0):
        (built / WAVEFORM / "c" / str(part.row) / str(chunk)).stat()
    return tuple(media)
