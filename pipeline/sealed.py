"""Finished stores as wholes, wherever they stand: what vouches for them, who made them, and which of two is to stay."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .checksums import COMPLETE, RUN, parse_complete
from .errors import InputError
from .places import Place
from .progress import printable
from .store import read_attributes

IDENTITY = ("dataset", "features", "fingerprint")
LONGEST = 200  # characters of a command that an error shows


@dataclass(frozen=True)
class Sealed:
    """A finished store, wherever it stands: its attributes and what its COMPLETE.json vouches for."""

    place: Place
    attrs: Mapping[str, Any]
    files: Mapping[str, Mapping]  # name -> sha256, bytes
    marker: bytes  # COMPLETE.json itself

    @classmethod
    def read(cls, place: Place) -> "Sealed":
        """InputError: no finished store stands there."""
        attrs = read_attributes(place)
        marker = (place / COMPLETE).read_bytes()
        return cls(place, attrs, parse_complete(place, marker), marker)

    def is_still_there(self) -> bool:
        """No other revision has taken its place."""
        try:
            return (self.place / COMPLETE).read_bytes() == self.marker
        except FileNotFoundError:
            return False

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry["bytes"] for entry in self.files.values())


def standing_at(place: Place) -> Sealed | None:
    """The finished store that stands there; None where nothing stands, or something unfinished."""
    try:
        (place / COMPLETE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Sealed.read(place)


def stands_already(source: Sealed, other: Sealed | None) -> bool:
    """Whether the other end has the very same store. InputError: it has one that must not be overwritten."""
    if other is None:
        return False
    if differing := [key for key in IDENTITY if source.attrs[key] != other.attrs[key]]:
        raise InputError(
            f"{other.place} is another store: its {', '.join(differing)} differ from {source.place}'s.\n"
            "A store was renamed: give it back its name, DATASET-FEATURES-FINGERPRINT.zarr."
        )
    ours, theirs = source.attrs["revision"], other.attrs["revision"]
    if theirs > ours:
        raise InputError(
            f"{other.place} is revision {theirs}, newer than revision {ours} in {source.place} ({made(other.place)}).\n"
            "It is not overwritten: take the newer one."
        )
    if theirs < ours:
        return False
    if source.files == other.files:
        return True
    names = set(source.files) | set(other.files)
    unequal = sorted(name for name in names if source.files.get(name) != other.files.get(name))
    raise InputError(
        f"{other.place} is revision {ours} too, with other bytes in {len(unequal)} of {len(names)} files "
        f"({_listed(unequal)}){_versions(source.attrs, other.attrs)}: {made(other.place)}; "
        f"{source.place} {made(source.place)}.\n"
        "It is not overwritten. Other processors or versions differ in last bits: let everybody use one of the two, "
        "and remove the other."
    )


def _listed(names: Sequence[str]) -> str:
    arrays = list(dict.fromkeys(name.partition("/")[0] for name in names))
    return ", ".join(arrays[:5]) + ("…" if len(arrays) > 5 else "")


def _versions(ours: Mapping, theirs: Mapping) -> str:
    """``, torch 2.15 here and 2.14 there``: the versions that differ."""
    here, there = (attrs.get("versions") or {} for attrs in (ours, theirs))
    differing = [name for name in sorted(set(here) | set(there)) if here.get(name) != there.get(name)]
    return "".join(f", {name} {here.get(name)} and {there.get(name)} there" for name in differing)


def run_record(store: Place) -> dict:
    """A store's RUN.json; empty where there is none that can be read."""
    try:
        found = json.loads((store / RUN).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def made(store: Place) -> str:
    """``made 2026-11-24T15:02:11+00:00 on host by `mlemiss preprocess …` ``, from RUN.json."""
    record = run_record(store)
    if not record:
        return "made by nobody knows whom"
    text = printable(f"made {record.get('finished')} on {record.get('host')} by `{record.get('command')}`")
    return text if len(text) <= LONGEST else text[: LONGEST - 2] + "…`"


def refuse_newer_remains(source: Sealed, target: Place) -> None:
    """InputError: a newer revision was being pushed there and is unfinished."""
    try:
        revision = json.loads((target / "zarr.json").read_bytes())["attributes"]["revision"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    if isinstance(revision, int) and revision > source.attrs["revision"]:
        raise InputError(
            f"{target} is an unfinished copy of revision {revision}, newer than revision {source.attrs['revision']} in "
            f"{source.place}.\nHave that copy run again, or remove what is there."
        )
