"""What a store may say of itself: attributes and arrays, checked as a whole before any array is read.

A store may come from anybody. What passes here has the types and shapes that every reader takes for granted, and no
chunk of it decodes to more than its array says: so a reader needs no checks of its own, and a bounded memory.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from numcodecs.zstd import decompress

from ..errors import InputError

SCHEMA = 1
MODALITIES = ("visual", "audio")  # of the stores that `preprocess` makes, in order
STORED_SEEDS = 10  # of the splits and masks that every store carries
MEDIA = "media"  # the `features` name of a media store
MAX_CLIPS = 1_000_000
MAX_CLASSES = 1 << 15  # which int16 tells apart
TABLE_BYTES = 64 << 20  # bytes of a decoded chunk of what has one value a clip
CHUNK_BYTES = 256 << 20  # bytes of a decoded chunk of features or media
ATTRIBUTES_BYTES = 4 << 20  # bytes of zarr.json
MAX_VALUES, MAX_DEPTH = 2_000_000, 32  # of a JSON document
LONGEST = 60  # characters of a wrong value that an error shows
FILE = "zarr.json"

# ---- JSON of unknown origin ----


def parse_json(content: bytes) -> Any:
    """Parse a JSON document of unknown origin in bounded memory and depth. ValueError: whatever is wrong with it."""
    if sum(map(content.count, (b"[", b"{", b","))) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    try:
        document = json.loads(content, parse_constant=_no_number)
        _check_values(document, MAX_DEPTH)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return document


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _check_values(value: Any, depth: int) -> None:
    """Raise a ValueError for what is nested too deeply, and for text that no encoding can write."""
    if depth < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, list):
        for item in value:
            _check_values(item, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode()
            _check_values(item, depth - 1)


def is_text(value: Any) -> bool:
    """Return whether a value is a text."""
    return isinstance(value, str)


def is_whole(value: Any, least: int = 0) -> bool:
    """Return whether a value is a whole number that an int64 holds, of at least ``least``."""
    return type(value) is int and least <= value < 1 << 63


def is_texts(value: Any) -> bool:
    """Return whether a value is a list of different texts."""
    return isinstance(value, list) and all(map(is_text, value)) and len(set(value)) == len(value)


# ---- attributes ----


def _is_facts(value: Any) -> bool:
    return isinstance(value, dict) and all(text is None or is_text(text) for text in value.values())


def _is_spec(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("backbone", {}), dict)


EXPECTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "dataset": (is_text, "a text"),
    "features": (is_text, "a text"),
    "fingerprint": (is_text, "a text"),
    "revision": (lambda value: is_whole(value, 1), "a whole number from 1"),
    "modalities": (lambda value: is_texts(value) and len(value) > 0, "different names"),
    "classes": (lambda value: is_texts(value) and 0 < len(value) <= MAX_CLASSES, "different names"),
    "settings": (is_texts, "different names"),
    "weights": (lambda value: value is None or (_is_facts(value) and is_text(value.get("name"))), "a name and a hash"),
    "synthetic": (lambda value: isinstance(value, bool), "true or false"),
    "spec": (_is_spec, "names and values"),
    "versions": (_is_facts, "names and texts"),
}
OPTIONAL = {"spec", "versions"}  # empty where absent


# ---- arrays ----

CLIP = ("clip",)
TABLE: Mapping[str, tuple[str, tuple[str, ...]]] = {  # name -> type and dimensions
    **dict.fromkeys(("clip_id", "subject", "sha256", "status", "error"), ("string", CLIP)),
    "label": ("int16", CLIP),
    "duration": ("float64", CLIP),
    "present": ("bool", ("clip", "modality")),
    "split": ("int8", ("seed", "clip")),
    "missing": ("bool", ("setting", "seed", "clip", "modality")),
}
MEDIA_ARRAYS = {
    "frames": ("uint8", ("clip", "segment", "row", "column", "channel")),
    "logmel": ("float16", ("clip", "segment", "channel", "mel", "time")),
}
WAVEFORM = "waveform"  # of a media store that keeps the sound, too
SOUND = ("float32", ("clip", "sample"))
FACE_BOX = "face_box"  # of a store whose frames are cut to faces: left, top, right and bottom as shares of the picture
BOX = ("float32", ("clip", "edge"))
FEATURES = ("float16", ("clip", "segment", "feature"))
ITEM_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "float16": 2, "float32": 4, "float64": 8}
DECODERS = {"bytes", "vlen-utf8"}
COMPRESSORS = {"zstd", "blosc"}
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class ArraySchema:
    """One array as zarr.json describes it. ``compressor``: zstd, blosc, or empty."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    compressor: str

    @property
    def is_small(self) -> bool:
        """Return whether this is a part of the table: no features and no media."""
        return not {"segment", "sample"} & set(self.dimensions)

    @property
    def chunk_counts(self) -> tuple[int, ...]:
        """Return the number of chunks along each axis."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    def chunk_names(self) -> Iterator[str]:
        """Yield the names of the chunks' files below the array's folder: ``c/0/0``."""
        return ("/".join(["c", *map(str, place)]) for place in product(*map(range, self.chunk_counts)))

    def check_chunk(self, content: bytes) -> None:
        """Check what an encoded chunk says of its decoded size, before it is decoded. ValueError: that is wrong."""
        values = math.prod(self.chunks)
        size = _decoded_bytes(self.compressor, content)
        if self.dtype != "string":
            if size != values * ITEM_BYTES[self.dtype]:
                raise ValueError(f"{size} bytes, expected {values * ITEM_BYTES[self.dtype]}")
            return
        if size > TABLE_BYTES:
            raise ValueError(f"{size} bytes of text, more than {TABLE_BYTES}")
        text = content if not self.compressor else decompress(content)
        if len(text) < 4 or struct.unpack_from("<I", text)[0] != values:
            raise ValueError(f"another number of texts than {values}")


def _decoded_bytes(compressor: str, content: bytes) -> int:
    """Return the decoded size that a chunk's header states. ValueError: there is no such header."""
    if compressor == "blosc" and len(content) >= 16:
        return int.from_bytes(content[4:8], "little")
    if compressor == "zstd" and content[:4] == ZSTD_MAGIC and len(content) > 5:
        descriptor = content[4]  # RFC 8878, 3.1.1.1: size's width, single segment, dictionary's width
        single = descriptor >> 5 & 1
        width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
        if width and len(content) >= start + width:
            return int.from_bytes(content[start : start + width], "little") + (256 if width == 2 else 0)
    if not compressor:
        return len(content)
    raise ValueError(f"no {compressor} data of a stated size")


@dataclass(frozen=True)
class Schema:
    """What a store's zarr.json says, checked: its attributes, its arrays by name, and the document itself."""

    attrs: Mapping[str, Any]
    arrays: Mapping[str, ArraySchema]
    content: bytes

    @property
    def small_files(self) -> list[str]:
        """Return the names of the files that hold the table."""
        small = {name: array for name, array in self.arrays.items() if array.is_small}
        return [f"{name}/{key}" for name, array in small.items() for key in array.chunk_names()]

    def absent_from(self, files: Mapping[str, Any]) -> str | None:
        """Return the first chunk that the arrays have and ``files`` lack; None where all are there.

        A clip without picture or sound has no chunk of media.
        """
        for name, array in self.arrays.items():
            if name in MEDIA_ARRAYS or not (array.is_small or "segment" in array.dimensions):
                continue
            if math.prod(array.chunk_counts) > len(files):
                return f"{name}/c/…"
            for key in array.chunk_names():
                if f"{name}/{key}" not in files:
                    return f"{name}/{key}"
        return None


class _WrongError(Exception):
    """Something in zarr.json is not as expected; the message continues ``its zarr.json``."""


def parse_schema(store: object, content: bytes) -> Schema:
    """Check all that a store's zarr.json says, and return it.

    Args:
        store: what to call it in errors.
        content: of its zarr.json.

    Raises:
        InputError: this is no store of mlemiss, one of another schema version, or one that no version would write.
    """
    try:
        document = _parsed(content)
        attrs = _member(document, "attributes", dict)
        if "schema" not in attrs:
            raise _WrongError("lacks the attribute schema")
        if (schema := attrs["schema"]) != SCHEMA:
            versions = attrs.get("versions")
            made_by = versions.get("mlemiss") if isinstance(versions, dict) else None
            raise InputError(
                f"{store} has schema version {_shown(schema)}, this version of mlemiss reads {SCHEMA}.\n"
                f"Move it away and preprocess again, or install mlemiss {_shown(made_by)}."
            )
        attrs = {name: {} for name in OPTIONAL} | attrs
        if absent := sorted(set(EXPECTED) - set(attrs)):
            raise _WrongError(f"lacks {', '.join(absent)}")
        for name, (fits, expected) in EXPECTED.items():
            if not fits(attrs[name]):
                raise _WrongError(f"has {name} {_shown(attrs[name])}, expected {expected}")
        metadata = _member(_member(document, "consolidated_metadata", dict), "metadata", dict)
        arrays = {name: _array(name, described) for name, described in metadata.items()}
        _check_arrays(attrs, arrays)
    except _WrongError as wrong:
        raise InputError(
            f"{store} is no mlemiss store: its {FILE} {wrong}.\nName the folder that ends in .zarr itself; "
            "`mlemiss preprocess` or `mlemiss store import` makes one."
        ) from None
    return Schema(attrs, arrays, content)


def merged_versions(several: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Join the versions of a store whose clips were computed at different times: `2.14.0, 2.15.0` where they differ."""
    merged: dict[str, set[str]] = {}
    for each in several:
        for name, text in each.items():
            merged.setdefault(name, set()).update(text.split(", "))
    return {name: ", ".join(sorted(texts)) for name, texts in merged.items()}


def _parsed(content: bytes) -> dict:
    try:
        if len(content) > ATTRIBUTES_BYTES:
            raise ValueError(f"larger than {ATTRIBUTES_BYTES >> 20} MB")
        document = parse_json(content)
    except ValueError as error:
        raise _WrongError(f"is unreadable ({str(error)[:LONGEST]})") from None
    if not isinstance(document, dict):
        raise _WrongError("is no list of attributes")
    return document


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _member(document: Mapping, name: str, kind: type, where: str = "") -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise _WrongError(f"has no {name} that can be read{where}")
    return value


def _array(name: str, described: Any) -> ArraySchema:
    """Return what a member of the consolidated metadata describes, whatever its name. _WrongError: no such array."""
    where = f" of {_shown(name)}"
    if not name.isprintable() or not name or set(name) & set('/\\:"') or name in (".", ".."):
        raise _WrongError(f"names an array {_shown(repr(name))}")
    if not isinstance(described, dict) or described.get("node_type") != "array" or described.get("zarr_format") != 3:
        raise _WrongError(f"has {_shown(name)}, which is no array")
    grid = _member(described, "chunk_grid", dict, where)
    shape = _member(described, "shape", list, where)
    chunks = _member(_member(grid, "configuration", dict, where), "chunk_shape", list, where)
    dimensions = _member(described, "dimension_names", list, where)
    if not (all(map(is_whole, shape)) and all(is_whole(size, 1) for size in chunks)):
        raise _WrongError(f"has no shape{where}")
    if not len(shape) == len(chunks) == len(dimensions) or not all(map(is_text, dimensions)):
        raise _WrongError(f"has other numbers of sizes, chunks and dimensions{where}")
    codecs = [codec.get("name") if isinstance(codec, dict) else None for codec in _member(described, "codecs", list)]
    encoding = described.get("chunk_key_encoding")
    plain = grid.get("name") == "regular" and not described.get("storage_transformers")
    plain = plain and encoding == {"name": "default", "configuration": {"separator": "/"}}
    if not plain or not (codecs and codecs[0] in DECODERS and codecs[1:] in ([], *([c] for c in COMPRESSORS))):
        raise _WrongError(f"has chunks{where} that mlemiss would not write ({_shown(codecs)})")
    dtype = _member(described, "data_type", str, where)
    compressor = codecs[1] if len(codecs) > 1 else ""
    return ArraySchema(tuple(shape), tuple(chunks), dtype, tuple(dimensions), compressor)


def _check_arrays(attrs: Mapping, arrays: Mapping[str, ArraySchema]) -> None:
    """Check that the arrays are those of a store with these attributes, and fit together. _WrongError: they do not."""
    media = attrs["features"] == MEDIA
    if set(attrs["modalities"]) & set(TABLE) or (media and attrs["modalities"] != list(MODALITIES)):
        raise _WrongError(f"has modalities {_shown(attrs['modalities'])}, which are none")
    expected = dict(TABLE) | (MEDIA_ARRAYS if media else dict.fromkeys(attrs["modalities"], FEATURES))
    if media and arrays.get(WAVEFORM) and not arrays[WAVEFORM].is_small:
        expected[WAVEFORM] = SOUND
    if FACE_BOX in arrays and arrays[FACE_BOX].dimensions != CLIP:
        expected[FACE_BOX] = BOX
    if absent := sorted(set(expected) - set(arrays)):
        raise _WrongError(f"lacks the array {_shown(absent[0])}")
    sizes = {"modality": len(attrs["modalities"]), "setting": len(attrs["settings"]), "seed": STORED_SEEDS}
    sizes |= {"clip": arrays["clip_id"].shape[0] if arrays["clip_id"].shape else 0, "channel": 3, "edge": 4}
    if not 0 < sizes["clip"] <= MAX_CLIPS:
        raise _WrongError(f"has {sizes['clip']} clips, expected 1 to {MAX_CLIPS}")
    for name, array in arrays.items():
        a_type = array.dtype if array.dtype in ITEM_BYTES else "string"
        dtype, dimensions = expected.get(name, (a_type, CLIP))  # others are columns of the manifest
        if (array.dtype, array.dimensions) != (dtype, dimensions):
            found = f"{_shown(array.dtype)} {_shown(list(array.dimensions))}"
            raise _WrongError(f"has {_shown(name)} as {found}, expected {dtype} {list(dimensions)}")
        for dimension, size in zip(dimensions, array.shape, strict=True):
            if dimension == "segment" and size == 1 and not media:
                continue  # a whole clip's features, which count for each segment of the other modalities
            if dimension == "segment":
                sizes.setdefault(dimension, size)
            if size != sizes.get(dimension, size) or (size == 0 and dimension != "setting"):
                other = sizes.get(dimension) or "at least 1"
                raise _WrongError(f"has {_shown(name)} of {size} along its axis {dimension}, expected {other}")
        _check_chunks(name, array)


def _check_chunks(name: str, array: ArraySchema) -> None:
    most = TABLE_BYTES if array.is_small else CHUNK_BYTES
    if any(chunk > max(size, 1) and array.is_small for chunk, size in zip(array.chunks, array.shape, strict=True)):
        raise _WrongError(f"has chunks of {_shown(name)} that are larger than the array")
    if (size := math.prod(array.chunks) * ITEM_BYTES.get(array.dtype, 4)) > most:
        raise _WrongError(f"has chunks of {_shown(name)} of {size} bytes, more than {most}")
