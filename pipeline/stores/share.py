"""Stores to share: push one to a folder or an S3 bucket, pull one from a folder, a bucket or a web server.

Every file is hashed where it arrived, against COMPLETE.json, which is written last; what is there and right already is
not sent again, so that a transfer that was cut short goes on. A newer revision, or the same one with other bytes, is
never overwritten.

Into a folder a store is built in `.partial/` and renamed. In a bucket, which has no renaming, an older revision's
COMPLETE.json goes first, so that readers refuse what is neither the old nor the new.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console import BYTES, Progress, printable, say
from ..errors import InputError
from .checksums import COMPLETE, PUSHING, RUN, EnoughError, checksum, parse_complete, there, write_json
from .claim import Claim, only_one
from .remote import Place, Remote, in_parallel, is_local, read_blocks
from .store import WORK, read_attributes, remove_tree, run_record

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


# ---- transfer ----


@dataclass(frozen=True)
class Transfer:
    """What became of one store: where it stands now, and how many of its files were sent or were there already."""

    place: Place
    sent: int
    found: int


def push(store: Place, destination: Place) -> Transfer:
    """Copy a finished local store into ``destination``, a folder of stores or a bucket.

    InputError: it is not finished, somebody else is pushing it, or what stands there must not be overwritten.
    """
    if not is_local(store):
        raise InputError(f"{store} is not on this machine: expected a folder to push.\nPull it first.")
    source = Sealed.read(store)
    if destination.name.endswith(".zarr"):
        if destination.name != store.name:
            raise InputError(f"{destination}: a store keeps its name, {store.name}.\nName the folder to push it into.")
        destination = destination.parent
    if is_local(destination):
        return _receive(source, destination)
    return _send(source, _writable(destination) / store.name)


def pull(source: Place, stores: Path) -> Transfer:
    """Copy a finished store, from wherever it stands, into the local folder ``stores``.

    InputError: it is not finished or does not arrive whole, or what stands here must not be overwritten.
    """
    if not source.name.endswith(".zarr"):
        raise InputError(
            f"{source} is no store: its name does not end in .zarr.\n`mlemiss store ls {source}` lists those in it."
        )
    return _receive(Sealed.read(source), stores)


def _writable(place: Remote) -> Remote:
    if place.is_http:
        raise InputError(
            f"{place} can only be read, as every http place.\nPush to s3://BUCKET/FOLDER, or to a folder that a web "
            "server shows."
        )
    return place


# ---- into a bucket ----------------------------------------------------------------------------------------------


def _send(source: Sealed, target: Remote) -> Transfer:
    nothing = Transfer(target, 0, len(source.files))
    if stands_already(source, standing_at(target)):
        return nothing
    with Claim(target / PUSHING, f"{target} is being pushed").held() as claim:
        if stands_already(source, standing := standing_at(target)):
            return nothing
        refuse_newer_remains(source, target)
        if standing:
            say(f"{target}: revision {standing.attrs['revision']} makes way for {source.attrs['revision']}")
            (target / COMPLETE).unlink()
        sizes = target.sizes()

        def deliver(name: str) -> bool:
            """True: it had to be sent."""
            claim.check()
            wanted, file = source.files[name], target / name
            if sizes.get(name) == wanted["bytes"] and checksum(file) == wanted:
                return False
            if checksum(source.place / name) != wanted:
                raise InputError(
                    f"{source.place}: {name} is damaged.\n`mlemiss store verify {source.place}` says more."
                )
            file.upload(source.place / name)
            if checksum(file, wanted["bytes"]) != wanted:
                raise InputError(f"{file} is not what was sent.\nPush again; if it stays, ask who runs the server.")
            return True

        sent = _all(deliver, source, f"push {source.place.name}")
        for name in set(sizes) - set(source.files) - {COMPLETE, RUN, PUSHING}:
            (target / name).unlink()
        if (source.place / RUN).is_file():
            (target / RUN).upload(source.place / RUN)
        elif RUN in sizes:
            (target / RUN).unlink()  # of the older revision
        claim.check(now=True)
        (target / COMPLETE).write_bytes(source.marker)
        if (target / COMPLETE).read_bytes() != source.marker:
            raise InputError(f"{target / COMPLETE} is not what was written.\nPush again.")
    return Transfer(target, sent, len(source.files) - sent)


def _all(deliver: Callable[[str], bool], source: Sealed, what: str) -> int:
    """Deliver every file, with progress; the number of those that were sent.

    zarr.json goes first: it tells, if this is cut short, of which revision the rest is.
    """
    with Progress(what, source.size, BYTES) as bar:
        sent = int(deliver("zarr.json"))
        bar.advance(source.files["zarr.json"]["bytes"])
        for name, was_sent in in_parallel(deliver, set(source.files) - {"zarr.json"}):
            sent += was_sent
            bar.advance(source.files[name]["bytes"])
    return sent


# ---- into a folder ----------------------------------------------------------------------------------------------


def _receive(source: Sealed, stores: Path) -> Transfer:
    final, work = stores / source.place.name, stores / WORK / source.place.name
    built, nothing = work.with_suffix(".incoming"), Transfer(final, 0, len(source.files))
    if stands_already(source, standing_at(final)):
        return nothing
    with only_one(work.with_suffix(".lock"), final.name) as claim:
        if stands_already(source, standing := standing_at(final)):
            return nothing
        if standing is None and final.is_dir():
            refuse_newer_remains(source, final)
            if not built.exists():
                final.rename(built)  # a copy that was cut short, or damaged: what is right in it stays
        built.mkdir(parents=True, exist_ok=True)
        _check_space(source, built)

        def deliver(name: str) -> bool:
            claim.check()
            return _fetch(source.place / name, built / name, source.files[name])

        try:
            sent = _all(deliver, source, f"copy {final.name}")
        except InputError:
            if source.is_still_there():
                raise
            raise InputError(f"{source.place} was replaced while it was copied.\nRun this again.") from None
        for name in there(built) - set(source.files):
            (built / name).unlink()
        if record := run_record(source.place):
            write_json(built / RUN, record)
        _write(built / COMPLETE, source.marker)
        claim.check(now=True)
        _swap(built, final, work, keep=standing is None)
    return Transfer(final, sent, len(source.files) - sent)


def _check_space(source: Sealed, built: Path) -> None:
    here = sum(file.stat().st_size for file in built.rglob("*") if file.is_file())
    needed, free = source.size - here, shutil.disk_usage(built).free
    if needed > free:
        raise InputError(
            f"{built.parent.parent}: {needed / 1e9:.2f} GB more are needed for {source.place}, {free / 1e9:.2f} GB are "
            "free.\nMake room, or name another folder."
        )


def _fetch(source: Place, file: Path, wanted: Mapping) -> bool:
    """Copy one file, as long as it is what was recorded; False where it is here already."""
    if file.is_file() and checksum(file, wanted["bytes"]) == wanted:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:

            def take(block: bytes) -> None:
                if stream.tell() + len(block) > wanted["bytes"]:
                    raise EnoughError  # of an honest server's damaged file, or of another's endless one
                stream.write(block)

            with suppress(EnoughError):
                read_blocks(source, take)
            stream.flush()
            os.fsync(stream.fileno())
        if checksum(temporary) != wanted:
            raise InputError(
                f"{source} differs from its checksum.\n`mlemiss store verify` names all damaged files; have the store "
                "pushed again."
            )
        temporary.replace(file)
    except FileNotFoundError:
        raise InputError(f"{source} is absent, and its store vouches for it.\nHave the store pushed again.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _swap(built: Path, final: Path, work: Path, keep: bool) -> None:
    """Put a built store in its place; what stood there goes, or is kept aside where it was unfinished."""
    replaced = work.with_suffix(".replaced")
    if final.exists():
        aside = work.with_suffix(".set-aside") if keep else replaced
        remove_tree(aside)
        final.rename(aside)
        if keep:
            say(f"note: {final} was incomplete; the old one is kept as {aside}")
    built.rename(final)
    remove_tree(replaced)  # what a kill left of it too


# ---- preprocess into a shared place -----------------------------------------------------------------------------


def split(stores: Place, local: Path) -> tuple[Remote | None, Path]:
    """Where `preprocess --stores` shares its stores, if anywhere, and the folder it works in.

    InputError: nothing can be written there.
    """
    return (None, stores) if is_local(stores) else (_writable(stores), local)


def push_made(stores: Sequence[str], shared: Remote) -> list[str]:
    """Push what `preprocess` made (paths, or URLs of what was there) to ``shared``; where each stands now.

    InputError: a push failed; the local stores stay.
    """
    standing = []
    for text in stores:
        if text.startswith(f"{shared}/"):
            standing.append(text)
            continue
        try:
            standing.append(str(push(Path(text), shared).place))
        except InputError as error:
            raise InputError(f"{error}\nFinished in {text}; to go on: mlemiss store push {text} {shared}") from None
        say(f"store {standing[-1]}: pushed from {text}")
    return standing
