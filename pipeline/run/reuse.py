"""Results that need not be computed again: clips of the same content in stores, finished or not, of the same spec.

A clip that is added, removed or renamed changes a store's fingerprint, and so its name; what the other clips gave is
taken over from where it lies. A store in its next revision takes its clips that did not fail from the one before.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import zarr

from ..errors import InputError
from ..media.ffmpeg import due_to_limit
from ..stores import store
from ..stores.catalogue import stores_in
from ..stores.store import WORK
from .parts import UNREADABLE, DamagedError, Donor, Part, say_once, write_media
from .plan import WORK_PLAN, Output, Plan


def fill(plan: Plan) -> int:
    """Keep the results that are found elsewhere as if they had just been computed; returns of how many clips.

    Media (frames, log-Mels) are copied too. Run again after computing, it serves clips that share their content.
    """
    filled: set[int] = set()
    for output in plan.unfinished():
        wanted: dict[str, list[int]] = defaultdict(list)
        for index, source in enumerate(plan.sources):
            if not source.fault and not output.part(index).is_file():
                wanted[source.sha256].append(index)
        for donor in _donors(plan, output):
            if not wanted:
                break
            for content, part, media in donor(wanted):
                for index in wanted.pop(content):
                    if media is not None:
                        write_media(output.work, index, *media)
                    part.save(output.part(index))
                    filled.add(index)
    return len(filled)


Media = tuple[np.ndarray | None, np.ndarray | None]  # frames, log-Mels
Found = Iterator[tuple[str, Part, Media | None]]  # content, result, media where the store keeps them


def _donors(plan: Plan, output: Output):
    """What may hold results of this output's spec: functions from wanted contents to those that are there."""
    for path, attrs in stores_in(plan.stores):
        if attrs["features"] == output.features and attrs.get("spec") == output.spec:
            yield lambda wanted, path=path: _from_store(path, output, wanted, plan.retry_failed)
    own = output.work
    for work in sorted(path for path in (plan.stores / WORK).glob("*/") if (path / WORK_PLAN).is_file()):
        yield lambda wanted, work=work: _from_work(work, output, wanted, work == own, plan.retry_failed)


def _from_store(path: Path, output: Output, wanted: Mapping[str, list[int]], retry: bool) -> Found:
    """From a finished store, read a chunk of clips at a time; what is damaged is passed by."""
    try:
        donor = Donor.open(path)
    except InputError as error:
        say_once(f"note: {error}")
        return
    opened, rows = donor.store, {}
    for row in np.flatnonzero(opened.status == store.DONE):
        if opened.sha256[row] in wanted and not (retry and due_to_limit(str(opened.error[row]))):
            rows.setdefault(str(opened.sha256[row]), int(row))
    names = ("frames", "logmel") if output.features == store.MEDIA else store.MODALITIES
    size = opened.group[names[0]].chunks[0]
    blocks: dict[int, dict[str, int]] = defaultdict(dict)
    for content, row in rows.items():
        blocks[row // size][content] = row
    for block, contents in sorted(blocks.items()):
        try:
            values = donor.block(names, block)
        except DamagedError as error:
            say_once(f"note: {error}")
            continue
        for content, row in contents.items():
            present = tuple(opened.present[row].tolist())
            clip = [v[row % size] if there else None for v, there in zip(values, present, strict=True)]
            media = tuple(clip) if output.features == store.MEDIA else None
            arrays = {} if media else {m: v for m, v in zip(names, clip, strict=True) if v is not None}
            facts = {"duration": float(opened.duration[row]), "versions": opened.attrs.get("versions") or {}}
            yield content, Part(present, str(opened.error[row]), arrays=arrays, **facts), media


def _from_work(work: Path, output: Output, wanted: Mapping[str, list[int]], own: bool, retry: bool) -> Found:
    """From unfinished work, another's or this one's own, failures too; what vanishes meanwhile is not there."""
    try:
        planned = json.loads((work / WORK_PLAN).read_text(encoding="utf-8"))
        if planned["spec"] != output.spec or planned["features"] != output.features:
            return
        group = zarr.open_group(work / "store.zarr", mode="r") if output.features == store.MEDIA else None
    except (*UNREADABLE, FileNotFoundError):
        return
    for index, content in enumerate(planned["sha256"]):
        file = work / "clips" / f"{index:06d}.npz"
        if content not in wanted or not file.is_file():
            continue
        try:
            part = Part.load(file)
            if not own and (part.failed or (retry and due_to_limit(part.cause))):
                continue
            media = None
            if group is not None:
                names = zip(("frames", "logmel"), part.present, strict=True)
                media = tuple(group[name][index] if there else None for name, there in names)
        except UNREADABLE:
            continue
        yield content, part, media
