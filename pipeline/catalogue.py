"""What a team's stores are: a row each for `store ls`, all about one for `store info`, wherever they stand."""

import datetime
import shutil
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from .checksums import recorded_files
from .errors import InputError
from .finding import look_through, why_not
from .places import Place, in_parallel
from .progress import printable
from .sealed import run_record
from .store import DONE, FAILED, FeatureStore

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
