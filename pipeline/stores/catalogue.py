"""What a team's stores are: a row each for `store ls`, all about one for `store info`, wherever they stand."""

import datetime
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..console import BYTES, Progress, amount, printable, say
from ..encoders import is_backbone
from ..errors import InputError
from .checksums import COMPLETE, UNEXPECTED, clip_chunks, clips_hit, find_damage, recorded_files
from .remote import Place, in_parallel, is_local
from .share import run_record
from .store import DONE, FAILED, MEDIA, FeatureStore, read_attributes

NUMERIC = ("clips", "failed", "size", "rev")
WIDEST = 20  # characters of a name in the table; the store's own stands below it in full


def catalogue(folder: Place) -> tuple[list[dict], list[tuple[Place, str]]]:
    """A row for every finished store of a folder, by name; and whatever else is called NAME.zarr, with why it is not.

    InputError: the folder is behind a URL and cannot be reached or listed.
    """

    def look(found: tuple[Place, dict | InputError]) -> dict | InputError:
        path, attrs = found
        if isinstance(attrs, InputError):
            return attrs
        try:
            return row(FeatureStore.open(path))
        except InputError as error:
            return error
        except (KeyError, ValueError, TypeError, OSError, RuntimeError) as error:  # damaged, or not made by mlemiss
            return InputError(f"{path} cannot be read ({error}).\n`mlemiss store verify {path}` names damaged files.")

    rows, unusable = [], []
    for (path, _), found in in_parallel(look, look_through(folder)):
        if isinstance(found, InputError):
            unusable.append((path, why_not(path, found)))
        else:
            rows.append(found)
    return sorted(rows, key=lambda row: row["store"]), sorted(unusable)


def row(store: FeatureStore) -> dict:
    """What `ls --json` says of a store. missing: of the clips that did not fail, how many lack each modality."""
    files, record = recorded_files(store.path), run_record(store.path)
    lacking = ~store.present[store.status == DONE]
    return {
        "store": store.path.name,
        "place": str(store.path),
        "dataset": store.dataset,
        "features": store.features,
        "weights": store.weights.get("name"),
        "synthetic": store.synthetic,
        "clips": len(store.clip_id),
        "failed": int((store.status == FAILED).sum()),
        "missing": {m: int(count) for m, count in zip(store.modalities, lacking.sum(0), strict=True)},
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": len(files),
        "revision": store.attrs["revision"],
        "finished": record.get("finished"),
        "host": record.get("host"),
        "command": record.get("command"),
    }


def describe(store: FeatureStore) -> dict:
    """What `info --json` says of a store: its row, and everything a person wants to know before using it."""
    done = store.status == DONE
    counts = np.bincount(store.label[done], minlength=len(store.classes))
    modalities = {
        name: {"shape": list(array.shape), "type": str(array.dtype)}
        for name, array in store.group.arrays()
        if array.metadata.dimension_names[:2] == ("clip", "segment")
    }
    lacking = (done & ~store.present.all(1)).nonzero()[0]
    return row(store) | {
        "fingerprint": store.fingerprint,
        "weights": store.weights or None,
        "classes": dict(zip(store.classes, counts.tolist(), strict=True)),
        "columns": {name: len(set(values.tolist())) for name, values in store.columns.items()},
        "arrays": modalities,
        "failures": _causes(store, (store.status == FAILED).nonzero()[0]),
        "lacking": _causes(store, lacking),
        "spec": store.attrs["spec"],
        "splits": {"seeds": int(store.group["split"].shape[0]), "settings": store.attrs["settings"]},
        "versions": store.attrs["versions"],
        "run": run_record(store.path),
    }


def _causes(store: FeatureStore, clips: Sequence[int]) -> list[dict]:
    return [{"clip_id": str(store.clip_id[clip]), "cause": str(store.error[clip])} for clip in clips]


# ---- as text ----------------------------------------------------------------------------------------------------


def size_text(count: int) -> str:
    """Bytes, for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def when_text(finished: str | None) -> str:
    """RUN.json's time, in this machine's zone."""
    try:
        return f"{datetime.datetime.fromisoformat(finished).astimezone():%Y-%m-%d %H:%M}"
    except (TypeError, ValueError):
        return "at a time nobody recorded"


def missing_text(missing: Mapping[str, int]) -> str:
    """``2 visual, 5 audio``"""
    return ", ".join(f"{count} {modality}" for modality, count in missing.items() if count) or "-"


def table(rows: Sequence[Mapping]) -> list[str]:
    """The lines of `ls`: a row a store, its name below, then when, where and by which command it was made."""
    width = shutil.get_terminal_size().columns
    cells = [
        {
            "dataset": row["dataset"],
            "features": row["features"],
            "weights": row["weights"] or "-",
            "clips": str(row["clips"]),
            "missing": missing_text(row["missing"]),
            "failed": str(row["failed"]),
            "size": size_text(row["bytes"]),
            "rev": str(row["revision"]),
        }
        for row in rows
    ]
    columns = list(cells[0])
    widths = {c: max(len(c), *(min(len(cell[c]), WIDEST) for cell in cells)) for c in columns}

    def line(cell: Mapping[str, str]) -> str:
        short = {c: v if len(v) <= WIDEST else v[: WIDEST - 1] + "…" for c, v in cell.items()}
        return "  ".join(short[c].rjust(widths[c]) if c in NUMERIC else short[c].ljust(widths[c]) for c in columns)

    lines = [line({c: c for c in columns})]
    for row, cell in zip(rows, cells, strict=True):
        made = f"  {when_text(row['finished'])} on {row['host'] or 'an unknown host'}: {row['command'] or '?'}"
        lines += [line(cell), f"  {row['store']}" + " (SYNTHETIC clips)" * row["synthetic"]]
        lines.append(made if len(made) <= width else made[: width - 1] + "…")
    return [printable(line.rstrip()) for line in lines]


def description(facts: Mapping) -> list[str]:
    """The lines of `info`."""
    weights, run, spec = facts["weights"], facts["run"], dict(facts["spec"])
    backbone = spec.pop("backbone", None)
    columns = ", ".join(f"{name} ({count})" for name, count in facts["columns"].items())
    pairs = [
        ("store", facts["place"]),
        ("dataset", facts["dataset"] + " (SYNTHETIC clips)" * facts["synthetic"]),
        ("features", facts["features"]),
        ("weights", f"{weights['name']}, hash {weights.get('hash')}" if weights else "-"),
        *((name, f"{array['type']} {array['shape']}") for name, array in facts["arrays"].items()),
        ("clips", f"{facts['clips']}, {facts['failed']} failed"),
        ("classes", ", ".join(f"{name} {count}" for name, count in facts["classes"].items())),
        ("columns", f"{columns} (different values)"),
        ("missing", missing_text(facts["missing"])),
        ("splits", f"by clip, {facts['splits']['seeds']} seeds"),
        ("settings", ", ".join(facts["splits"]["settings"])),
        ("spec", ", ".join(f"{key} {value}" for key, value in spec.items()) or "-"),
        *([("backbone", ", ".join(f"{key} {value}" for key, value in backbone.items()))] if backbone else []),
        ("versions", ", ".join(f"{name} {value}" for name, value in facts["versions"].items()) or "-"),
        ("size", f"{size_text(facts['bytes'])} in {facts['files']} files"),
        ("revision", str(facts["revision"])),
        ("made", f"{when_text(run.get('finished'))} on {run.get('host') or 'an unknown host'}"),
        ("by", run.get("command") or "a command nobody recorded"),
        *(("failed", f"{clip['clip_id']}: {clip['cause']}") for clip in facts["failures"]),
        *(("lacking", f"{clip['clip_id']}: {clip['cause']}") for clip in facts["lacking"]),
    ]
    width = max(shutil.get_terminal_size().columns, 40)
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False, subsequent_indent=" " * 10)
    return [line for name, value in pairs for line in wrap.wrap(f"{name:9} {printable(value)}")]


# ---- Which stores a folder of stores holds, and the one that is asked for ----


def look_through(folder: Place) -> Iterator[tuple[Place, dict | InputError]]:
    """Everything of a folder that is called NAME.zarr, by name: its attributes, or why it cannot be opened.

    InputError: the folder is behind a URL and cannot be reached or listed.
    """
    if is_local(folder):
        found = sorted(folder.glob("*.zarr"))
    else:
        found = [path for path in folder.iterdir() if path.name.endswith(".zarr")]

    def look(path: Place) -> dict | InputError:
        try:
            return read_attributes(path)
        except InputError as error:
            return error

    yield from sorted(in_parallel(look, found), key=lambda pair: pair[0])


def stores_in(folder: Place) -> Iterator[tuple[Place, dict]]:
    """Finished stores of a folder with their attributes, by name; others' files and unfinished stores are passed by."""
    for path, attrs in look_through(folder):
        if not isinstance(attrs, InputError):
            yield path, attrs


def unusable_in(folder: Place) -> Iterator[tuple[Place, str]]:
    """What looks like a store and cannot be opened, and why, in one line."""
    for path, error in look_through(folder):
        if isinstance(error, InputError):
            yield path, why_not(path, error)


def why_not(path: Place, error: InputError) -> str:
    """Why a store cannot be opened, in one line without its path."""
    return str(error).split("\n")[0].removeprefix(str(path)).strip().rstrip(".")


def how_to_make(features: str, dataset: str) -> str:
    """The command that makes a store of these features."""
    if features == MEDIA:
        return f"mlemiss preprocess --dataset {dataset} --media only"
    if is_backbone(features):
        return f"mlemiss preprocess --dataset {dataset} --features {features}"
    return f"mlemiss store import FILE --dataset {dataset} --features {features} --map …"


def find_store(folder: Place, features: str, dataset: str | None = None) -> Place:
    """The one store of these features in a folder of stores. InputError: none or several fit (they are listed)."""
    everything = list(stores_in(folder))
    datasets = sorted({attrs["dataset"] for _, attrs in everything})
    fitting = [
        (path, attrs)
        for path, attrs in everything
        if attrs["features"] == features and dataset in (None, attrs["dataset"])
    ]
    if dataset is None and len(datasets) > 1:
        raise InputError(
            f"stores of several datasets in {folder}: {', '.join(datasets)}.\nChoose one with --dataset NAME."
        )
    if len(fitting) == 1:
        return fitting[0][0]
    wanted = f"{features} features" + (f" of {dataset}" if dataset else "")
    if not fitting:
        there = ", ".join(path.name for path, _ in everything) or "none"
        unusable = "".join(f"; not usable: {path.name}, {why}" for path, why in unusable_in(folder))
        raise InputError(
            f"no finished store of {wanted} in {folder} (stores there: {there}{unusable}).\n"
            f"Make one with `{how_to_make(features, dataset or 'NAME')}`."
        )
    rows = "; ".join(
        f"{path} ({len(FeatureStore.open(path).clip_id)} clips, weights {(attrs['weights'] or {}).get('name')})"
        for path, attrs in fitting
    )
    raise InputError(f"{len(fitting)} stores of {wanted} fit: {rows}.\nChoose one with --store PATH.")


# ---- Every byte of a store against its checksums, and which clips the damaged ones hold ----

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
