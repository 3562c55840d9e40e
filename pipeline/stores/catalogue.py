"""List stores, wherever they are: a row each for `store ls`, all about one for `store info`; find the one asked for."""

import datetime
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from ..console import amount, comma_list, name_some, printable, say, say_once
from ..encoders.names import MODALITY_NAME, check_cases, is_encoder, stored_name
from ..errors import InputError
from .checksums import COMPLETE, UNEXPECTED
from .remote import Place, in_parallel, is_local, parse_place
from .store import MEDIA, FeatureStore, read_attributes, run_record

MODALITY = re.compile(rf"({MODALITY_NAME.pattern})=(.+)", re.DOTALL)
Wanted = str | tuple[tuple[str, str], ...]  # the name of features, or (modality, name or path) of each modality


def catalogue(folder: Place) -> tuple[list[dict], list[tuple[Place, str]]]:
    """Describe every finished store of a folder in a row, by name.

    Returns:
        The rows, and whatever else is called NAME.zarr, with why it cannot be used.

    Raises:
        InputError: the folder is behind a URL and cannot be reached or listed.
    """

    def row_or_error(candidate: tuple[Place, dict | InputError]) -> dict | InputError:
        path, attrs = candidate
        if isinstance(attrs, InputError):
            return attrs
        try:
            return store_row(FeatureStore.open(path))
        except InputError as error:
            return error
        except OSError as error:  # it goes just now
            return InputError(f"{path} cannot be read ({error.strerror or error}).")

    rows, unusable = [], []
    for (path, _), result in in_parallel(row_or_error, candidates_in(folder)):
        if isinstance(result, InputError):
            unusable.append((path, why_not(path, result)))
        else:
            rows.append(result)
    return sorted(rows, key=lambda row: row["store"]), sorted(unusable)


def store_row(store: FeatureStore) -> dict:
    """Return what `ls --json` says of a store; missing counts the clips that did not fail and lack a modality."""
    files, record = store.chunks.files, run_record(store.path)
    lacking = ~store.present[store.done]
    return {
        "store": store.path.name,
        "place": str(store.path),
        "dataset": store.dataset,
        "features": store.features,
        "weights": store.weights.get("name"),
        "synthetic": store.synthetic,
        "clips": len(store.clip_id),
        "failed": int((~store.done).sum()),
        "missing": {m: int(count) for m, count in zip(store.modalities, lacking.sum(0), strict=True)},
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": len(files),
        "revision": store.attrs["revision"],
        "finished": record.get("finished"),
        "host": record.get("host"),
        "command": record.get("command"),
    }


def store_facts(store: FeatureStore) -> dict:
    """Return what `info --json` says of a store: its row, and everything a person wants to know before using it."""
    done = store.done
    counts = np.bincount(store.label[done], minlength=len(store.classes))
    arrays = {name: {"shape": list(store.shape(name)), "type": str(store.dtype(name))} for name in store.segment_arrays}
    return store_row(store) | {
        "fingerprint": store.fingerprint,
        "weights": store.weights or None,
        "classes": dict(zip(store.classes, counts.tolist(), strict=True)),
        "columns": {name: len(set(values.tolist())) for name, values in store.columns.items()},
        "arrays": arrays,
        "failures": _causes(store, ~done),
        "lacking": _causes(store, done & ~store.present.all(1)),
        "remarks": _causes(store, with_remarks(store)),
        "spec": store.attrs["spec"],
        "splits": {"seeds": store.shape("split")[0], "settings": store.attrs["settings"]},
        "versions": store.attrs["versions"],
        "run": run_record(store.path),
    }


def with_remarks(store: FeatureStore) -> np.ndarray:
    """Return which clips have something recorded beside what they lack, such as damaged frames: bool [clip]."""
    noted = np.zeros(len(store.error), bool)
    for clip in np.flatnonzero(store.done & (store.error != "")):
        there = [name for name, has in zip(store.modalities, store.present[clip], strict=True) if has]
        noted[clip] = any(f"{name}: " in store.error[clip] for name in (*there, "clip"))
    return noted


def _causes(store: FeatureStore, clips: np.ndarray) -> list[dict]:
    """Return the ids and recorded causes of these clips (bool [clip])."""
    return [
        {"clip_id": str(clip_id), "cause": str(cause)}
        for clip_id, cause in zip(store.clip_id[clips], store.error[clips], strict=True)
    ]


# ---- as text ----


def size_text(count: int) -> str:
    """Return a number of bytes as people read it: ``259.8 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def when_text(finished: str | None) -> str:
    """Return RUN.json's time in this machine's zone."""
    try:
        return f"{datetime.datetime.fromisoformat(finished).astimezone():%Y-%m-%d %H:%M}"
    except (TypeError, ValueError):
        return "at an unknown time"


def missing_counts(missing: Mapping[str, int]) -> str:
    """Return how many clips lack each modality: ``2 visual, 5 audio``."""
    return ", ".join(f"{count} {modality}" for modality, count in missing.items() if count) or "-"


def listing(rows: Sequence[Mapping]) -> Table:
    """Return the table of `ls`: of each store what it holds, its name, and when, where and by which command."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in ("clips", "missing", "failed", "size", "rev"):
        table.add_column(name, justify="left" if name == "missing" else "right", no_wrap=name != "missing")
    table.add_column("store", overflow="fold")
    for row in rows:
        weights = f"{row['weights']} weights, " if row["weights"] else ""
        lines = [
            row["store"] + " (SYNTHETIC clips)" * row["synthetic"],
            f"{weights}{when_text(row['finished'])} on {row['host'] or 'an unknown host'}",
            row["command"] or "unknown command",
        ]
        missing, name = missing_counts(row["missing"]), "\n".join(map(printable, lines))
        counts = (row["clips"], missing, row["failed"], size_text(row["bytes"]), row["revision"])
        table.add_row(*map(Text, map(str, counts)), Text(name), end_section=True)
    return table


def description(facts: Mapping) -> Table:
    """Return the table of `info`: names and values."""
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
        ("missing", missing_counts(facts["missing"])),
        ("splits", f"by clip, {facts['splits']['seeds']} seeds"),
        ("settings", ", ".join(facts["splits"]["settings"])),
        ("spec", ", ".join(f"{key} {value}" for key, value in spec.items()) or "-"),
        *([("backbone", ", ".join(f"{key} {value}" for key, value in backbone.items()))] if backbone else []),
        ("versions", ", ".join(f"{name} {value}" for name, value in facts["versions"].items()) or "-"),
        ("size", f"{size_text(facts['bytes'])} in {facts['files']} files"),
        ("revision", str(facts["revision"])),
        ("made", f"{when_text(run.get('finished'))} on {run.get('host') or 'an unknown host'}"),
        ("by", run.get("command") or "an unknown command"),
        *(("failed", f"{clip['clip_id']}: {clip['cause']}") for clip in facts["failures"]),
        *(("lacking", f"{clip['clip_id']}: {clip['cause']}") for clip in facts["lacking"]),
        *(("remark", f"{clip['clip_id']}: {clip['cause']}") for clip in facts["remarks"]),
    ]
    table = Table.grid("", Column(overflow="fold"), padding=(0, 2))
    for name, value in pairs:
        table.add_row(name, Text(printable(value)))
    return table


def print_table(table: Table) -> None:
    """Print a table on standard output: folded to a terminal's width; as wide as its longest line in a file or pipe."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        widest = console.options.update(max_width=sys.maxsize)
        console.width = Measurement.get(console, widest, table).maximum
    with console.capture() as text:
        console.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def print_damage(report: Mapping) -> None:
    """Print what `verify_store` found: a line for each file, and what follows from it."""
    for entry in report["damaged"]:
        clips = "every clip" if entry["every_clip"] else f"clips {name_some(entry['clips'], 5)}"
        print(printable(f"{entry['state']}: {entry['file']}" + (f": {clips}" if entry["state"] != UNEXPECTED else "")))
    store, wrong = report["store"], len(report["damaged"])
    if not wrong:
        say(f"{store}: every byte as written ({amount(report['files'], 'file')}, {report['bytes'] / 1e6:.1f} MB)")
        return
    hit = f"{len(report['clips'])} of {report['of_clips']} clips" if report["of_clips"] else "every clip"
    say(f"{store}: {amount(wrong, 'file')} not as its checksums say; hit: {hit}")
    say(f"To mend it, remove its {COMPLETE} and push or pull it again from a whole copy: what is right stays.")


# ---- find stores ----


def candidates_in(folder: Place) -> Iterator[tuple[Place, dict | InputError]]:
    """Yield everything of a folder that is called NAME.zarr, by name: its attributes, or why it cannot be opened.

    InputError: the folder is behind a URL and cannot be reached or listed.
    """
    if is_local(folder):
        paths = sorted(folder.glob("*.zarr"))
    else:
        paths = [path for path in folder.iterdir() if path.name.endswith(".zarr")]

    def attributes_or_error(path: Place) -> dict | InputError:
        try:
            return read_attributes(path)
        except InputError as error:
            return error

    yield from sorted(in_parallel(attributes_or_error, paths), key=lambda pair: pair[0])


def stores_in(folder: Place) -> Iterator[tuple[Place, dict]]:
    """Yield the finished stores of a folder with their attributes, by name; say once which others cannot be used."""
    for path, attrs in candidates_in(folder):
        if isinstance(attrs, InputError):
            say_once(f"not usable: {path.name}, {why_not(path, attrs)}")
        else:
            yield path, attrs


def why_not(path: Place, error: InputError) -> str:
    """Return why a store cannot be opened, in one line without its path."""
    return str(error).split("\n")[0].removeprefix(str(path)).lstrip(" :").rstrip(". ")


def how_to_make(features: str, dataset: str) -> str:
    """Return the command that makes a store of these features."""
    if features == MEDIA:
        return f"mlemiss preprocess --dataset {dataset} --media only"
    if is_encoder(features):
        return f"mlemiss preprocess --dataset {dataset} --features {features}"
    return f"mlemiss store import FILE --dataset {dataset} --features {features} --map …"


def find_store(folder: Place, features: str, dataset: str | None = None, modality: str | None = None) -> Place:
    """Return the one usable store of these features, and with this modality, in a folder; say which cannot be used.

    InputError: none or several fit (they are listed).
    """
    everything, features = list(stores_in(folder)), stored_name(features)
    datasets = sorted({attrs["dataset"] for _, attrs in everything})
    fitting = [
        (path, attrs)
        for path, attrs in everything
        if attrs["features"] == features
        and dataset in (None, attrs["dataset"])
        and (modality is None or modality in attrs["modalities"])
    ]
    if dataset is None and len(datasets) > 1:
        raise InputError(
            f"stores of several datasets in {folder}: {', '.join(datasets)}.\nChoose one with --dataset NAME."
        )
    opened, errors = [], []
    for path, _ in fitting:
        try:
            opened.append(FeatureStore.open(path))
        except InputError as error:
            errors.append((path, error))
    if errors and not opened:
        raise errors[0][1]
    for path, error in errors:
        say_once(f"not usable: {path.name}, {why_not(path, error)}")
    if len(opened) == 1:
        return opened[0].path
    wanted = f"{features} features" + (f" with {modality}" if modality else "") + (f" of {dataset}" if dataset else "")
    if not fitting:
        there = ", ".join(path.name for path, _ in everything) or "none"
        named = [attrs for _, attrs in everything if dataset in (None, attrs["dataset"])]
        others = {attrs["features"] for attrs in named if modality is None or modality in attrs["modalities"]}
        others = sorted(others - {features, MEDIA})
        raise InputError(
            f"no finished store of {wanted} in {folder} (stores there: {there}).\n"
            + (f"Name what is there with --features ({', '.join(others)}), or make one: " if others else "Make one: ")
            + f"`{how_to_make(features, dataset or 'NAME')}`."
        )
    rows = "; ".join(f"{store.path} ({told})" for store, told in zip(opened, _told_apart(opened), strict=True))
    how = f"--features {modality}=PATH" if modality else "--store PATH"
    raise InputError(f"{len(opened)} stores of {wanted} fit: {rows}.\nChoose one with {how}.")


def _told_apart(stores: Sequence[FeatureStore]) -> list[str]:
    """Return of each store in what it differs from the others: its clips, its weights, what is in its spec."""
    told: list[dict] = []
    for store in stores:
        spec = dict(store.attrs["spec"])
        backbone = spec.pop("backbone", {})
        told.append({"clips": len(store.clip_id), "weights": store.weights.get("name")} | spec | backbone)
    names = [name for name in dict.fromkeys(itertools.chain(*told)) if len({str(one.get(name)) for one in told}) > 1]
    shown = [[f"{name.replace('_', ' ')} {one[name]}" for name in names if name in one] for one in told]
    return [", ".join(one) or f"{len(store.clip_id)} clips" for one, store in zip(shown, stores, strict=True)]


def parse_features(texts: Sequence[str]) -> list[Wanted]:
    """Parse what `--features` asks for, each once.

    Args:
        texts: lists of names, or of `MODALITY=NAME` for each modality, where a `.zarr` path may stand for a name.
            Alternatives, `visual=A|B,audio=C`, are combined with each other.

    Raises:
        InputError: nothing named, a modality twice, or a name without one beside others with one.
    """
    wanted: list[Wanted] = []
    for text in texts:
        if "=" in text:
            choices: dict[str, list[str]] = {}
            for part in text.split(","):
                match = MODALITY.fullmatch(part.strip())
                names = [name.strip() for name in match[2].split("|")] if match else []
                if match is None or not all(names) or match[1] in choices:
                    raise InputError(
                        f"features {text!r}, at {part.strip()!r}: expected MODALITY=NAME for each modality, once.\n"
                        f"For example visual=resnet50,audio=vgg16, or visual=A|B,audio=C for both combinations."
                    )
                choices[match[1]] = names
            check_cases(choices)
            wanted += (tuple(zip(choices, names, strict=True)) for names in itertools.product(*choices.values()))
        else:
            wanted += comma_list([text])
    return list(dict.fromkeys(wanted))


def open_features(wanted: Wanted, folder: Place, dataset: str | None = None) -> FeatureStore:
    """Open the store of some features in a folder, or join those of each modality.

    InputError: none or several fit, or they cannot be joined.
    """
    if isinstance(wanted, str):
        return FeatureStore.open(find_store(folder, wanted, dataset))
    paths = {
        modality: parse_place(name) if _is_path(name) else find_store(folder, name, dataset, modality)
        for modality, name in wanted
    }
    from .joined import JoinedStore  # which most runs need not

    opened = {path: FeatureStore.open(path) for path in dict.fromkeys(paths.values())}
    return JoinedStore({modality: opened[path] for modality, path in paths.items()})


def open_store(text: str | Place) -> FeatureStore:
    """Open one store by its path or URL, or join several: `visual=PATH,audio=PATH`. InputError as `open_features`."""
    if not isinstance(text, str | Place):
        raise InputError(f"expected a store's path or URL, found {text!r}.")
    if not MODALITY.fullmatch(str(text)):
        return FeatureStore.open(text)
    wanted, *others = parse_features([str(text)])
    if others or not all(_is_path(name) for _, name in wanted):
        raise InputError(
            f"{text}: expected for each modality a path that ends in .zarr, or a URL: visual=A.zarr,audio=B.zarr."
        )
    return open_features(wanted, Path())


def _is_path(name: str) -> bool:
    return "://" in name or name.rstrip("/").endswith(".zarr")
