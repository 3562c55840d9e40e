"""Every byte of a store against its checksums, and which clips the damaged ones hold."""

from collections.abc import Sequence

from .checksums import COMPLETE, UNEXPECTED, clip_chunks, clips_hit, find_damage, recorded_files
from .errors import InputError
from .places import Place
from .progress import BYTES, Progress, amount, printable, say
from .store import FeatureStore

SHOWN = 5  # clips that a line names


def verify_store(store: Place) -> dict:
    """What `verify --json` says: each file that is damaged, absent, unreadable or unexpected, and the clips it hits.

    A swapped chunk is damage: checksums go by name. A file that is not one of an array's chunks hits every clip, as
    does a chunk where zarr.json, which says what chunks are, is damaged itself; an unexpected one hits none.
    InputError: there is no COMPLETE.json to check against.
    """
    try:
        recorded = recorded_files(store)
    except (FileNotFoundError, NotADirectoryError):
        FeatureStore.open(store)  # says what is wrong
        raise InputError(f"{store} has no {COMPLETE} any more: it is being replaced.\nTry again later.") from None
    size = sum(entry["bytes"] for entry in recorded.values())
    with Progress("verify", size, BYTES) as bar:
        damage = find_damage(store, recorded, bar.advance)
    chunks = {} if "zarr.json" in damage else clip_chunks(store)
    ids = _clip_ids(store, damage, max((cut.clips for cut in chunks.values()), default=0))
    files, hit = [], set()
    for name, state in damage.items():
        clips = range(0) if state == UNEXPECTED else clips_hit(name, chunks)
        clips = range(len(ids)) if clips is None else clips
        hit.update(clips)
        every = state != UNEXPECTED and len(clips) == len(ids)
        files.append({"file": name, "state": state, "every_clip": every, "clips": [ids[clip] for clip in clips]})
    return {
        "store": str(store),
        "files": len(recorded),
        "bytes": size,
        "damaged": files,
        "clips": [ids[clip] for clip in sorted(hit)],
        "of_clips": len(ids),
    }


def _clip_ids(store: Place, damage: dict[str, str], clips: int) -> list[str]:
    """The clips' ids; their numbers where the ids are damaged themselves."""
    if not any(name == "zarr.json" or name.startswith("clip_id/") for name in damage):
        return FeatureStore.open(store).clip_id.tolist()
    return [f"#{number}" for number in range(clips)]


def print_damage(found: dict) -> None:
    """A line for each file, and what follows from it."""
    for entry in found["damaged"]:
        clips = "every clip" if entry["every_clip"] else _named(entry["clips"])
        print(printable(f"{entry['state']}: {entry['file']}" + (f": {clips}" if entry["state"] != UNEXPECTED else "")))
    store, wrong = found["store"], len(found["damaged"])
    if not wrong:
        say(f"{store}: every byte as written ({amount(found['files'], 'file')}, {found['bytes'] / 1e6:.1f} MB)")
        return
    hit = f"{len(found['clips'])} of {found['of_clips']} clips" if found["of_clips"] else "every clip"
    say(f"{store}: {amount(wrong, 'file')} not as its checksums say; hit: {hit}")
    say(f"To mend it, remove its {COMPLETE} and push or pull it again from a whole copy: what is right stays.")


def _named(clips: Sequence[str]) -> str:
    more = f" and {len(clips) - SHOWN} more" if len(clips) > SHOWN else ""
    return f"clips {', '.join(clips[:SHOWN])}{more}"
