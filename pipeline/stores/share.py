"""Share stores: push one to a folder or an S3 bucket, pull one from a folder, a bucket or a web server.

Every file is hashed where it arrived, against COMPLETE.json, which is written last; what is there and right already is
not sent again, so that a transfer that was cut short goes on. A newer revision, or the same one with other bytes, is
never overwritten.

Into a folder a store is built in `.partial/` and renamed. In a bucket, which has no renaming, an older revision's
COMPLETE.json goes first, so that readers refuse what is neither the old nor the new.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console import BYTES, Progress, name_some, note_if_private, printable, say
from ..errors import InputError
from ..files import check_work, planted, remove_tree, whole_file, work_folder, write_json
from .checksums import COMPLETE, OWN, PUSHING, RUN, checksum, parse_complete, read_marker
from .claim import Claim, only_one
from .remote import (
    NotRegularError,
    Place,
    Remote,
    file_of,
    file_sizes,
    in_parallel,
    is_local,
    open_regular,
    read_blocks,
    read_document,
)
from .schema import FILE, parse_json
from .store import WORK, read_attributes, run_record

SAME_IN_COPIES = ("dataset", "features", "fingerprint")
LONGEST_COMMAND = 200  # characters of a command that an error shows


@dataclass(frozen=True)
class FinishedStore:
    """A finished store, local or remote: its attributes and the checksums of its files."""

    path: Place
    attrs: Mapping[str, Any]
    files: Mapping[str, Mapping]  # name -> sha256, bytes
    marker: bytes  # COMPLETE.json itself

    @classmethod
    def read(cls, path: Place) -> "FinishedStore":
        """Read what COMPLETE.json and zarr.json say. InputError: no finished store is there."""
        attrs = read_attributes(path)
        marker = read_marker(path)
        return cls(path, attrs, parse_complete(path, marker), marker)

    @classmethod
    def find(cls, path: Place) -> "FinishedStore | None":
        """Read the finished store at this path; None where there is nothing, or something unfinished."""
        try:
            read_marker(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls.read(path)

    def was_replaced(self) -> bool:
        """Return whether another revision, or nothing, is there by now."""
        try:
            return read_marker(self.path) != self.marker
        except FileNotFoundError:
            return True

    def file(self, name: str) -> Place:
        """Return the path of a file. InputError: it is a link or a pipe, so not the store's own."""
        try:
            path = file_of(self.path, name)
            if is_local(path):
                open_regular(path).close()
        except NotRegularError as error:
            raise InputError(f"{self.path}: its {name} is {error.strerror}.\nNothing of it is copied.") from None
        except FileNotFoundError:
            pass  # which whoever reads it tells
        return path

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(entry["bytes"] for entry in self.files.values())


# ---- what must not be overwritten ----


def same_store(source: FinishedStore, other: FinishedStore | None) -> bool:
    """Return whether the other end has the very same store. InputError: it has one that must not be overwritten."""
    if other is None:
        return False
    if differing := [key for key in SAME_IN_COPIES if source.attrs[key] != other.attrs[key]]:
        raise InputError(
            f"{other.path} is another store: its {', '.join(differing)} differ from {source.path}'s.\n"
            "A store was renamed: give it back its name, DATASET-FEATURES-FINGERPRINT.zarr."
        )
    ours, theirs = source.attrs["revision"], other.attrs["revision"]
    if theirs > ours:
        raise InputError(
            f"{other.path} is revision {theirs}, newer than revision {ours} in {source.path} ({_origin(other.path)}).\n"
            "It is not overwritten: take the newer one."
        )
    if theirs < ours:
        return False
    if source.files == other.files:
        return True
    names = set(source.files) | set(other.files)
    unequal = sorted(name for name in names if source.files.get(name) != other.files.get(name))
    arrays = dict.fromkeys(name.partition("/")[0] for name in unequal)
    raise InputError(
        f"{other.path} is revision {ours} too, with other bytes in {len(unequal)} of {len(names)} files "
        f"({name_some(arrays, 5)}){_other_versions(source.attrs, other.attrs)}: {_origin(other.path)}; "
        f"{source.path} {_origin(source.path)}.\n"
        "It is not overwritten. Other processors or versions differ in last bits: let everybody use one of the two, "
        "and remove the other."
    )


def _other_versions(ours: Mapping, theirs: Mapping) -> str:
    """Return the versions that differ: ``, torch 2.15 and 2.14 there``."""
    here, there = (attrs.get("versions") or {} for attrs in (ours, theirs))
    differing = [name for name in sorted(set(here) | set(there)) if here.get(name) != there.get(name)]
    return "".join(f", {name} {here.get(name)} and {there.get(name)} there" for name in differing)


def _origin(store: Place) -> str:
    """Return what RUN.json says: ``made 2026-11-24T15:02:11+00:00 on host by `mlemiss preprocess …` ``."""
    record = run_record(store)
    if not record:
        return "of unknown origin"
    text = printable(f"made {record.get('finished')} on {record.get('host')} by `{record.get('command')}`")
    return text if len(text) <= LONGEST_COMMAND else text[: LONGEST_COMMAND - 2] + "…`"


def _refuse_newer_remains(source: FinishedStore, target: Place) -> None:
    """Raise an InputError if a newer revision is there, unfinished."""
    try:
        revision = parse_json(read_document(target / FILE))["attributes"]["revision"]
    except (FileNotFoundError, NotRegularError, ValueError, KeyError, TypeError):
        return
    if isinstance(revision, int) and revision > source.attrs["revision"]:
        raise InputError(
            f"{target} is an unfinished copy of revision {revision}, newer than revision {source.attrs['revision']} in "
            f"{source.path}.\nHave that copy run again, or remove what is there."
        )


# ---- transfer ----


@dataclass(frozen=True)
class Transfer:
    """The end of one store's transfer: its new path, and how many files were sent or were there already."""

    path: Place
    sent: int
    there: int


def push(store: Place, destination: Place) -> Transfer:
    """Copy a finished local store into ``destination``, a folder of stores or a bucket.

    Raises:
        InputError: it is not finished, somebody else is pushing it, or what is there must not be overwritten.
    """
    if not is_local(store):
        raise InputError(f"{store} is not on this machine: expected a folder to push.\nPull it first.")
    source = FinishedStore.read(store)
    if destination.name.endswith(".zarr"):
        if destination.name != store.name:
            raise InputError(f"{destination}: a store keeps its name, {store.name}.\nName the folder to push it into.")
        destination = destination.parent
    if is_local(destination):
        done = _transfer(source, _Folder(source, destination / store.name))
        note_if_private(done.path)
        return done
    return _transfer(source, _Bucket(source, writable(destination) / store.name))


def pull(source: Place, stores: Path) -> Transfer:
    """Copy a finished store, from wherever it is, into the local folder ``stores``.

    Raises:
        InputError: it is not finished or does not arrive whole, or what is here must not be overwritten.
    """
    if not source.name.endswith(".zarr"):
        raise InputError(
            f"{source} is no store: its name does not end in .zarr.\n`mlemiss store ls {source}` lists those in it."
        )
    finished = FinishedStore.read(source)
    return _transfer(finished, _Folder(finished, stores / source.name))


def writable(folder: Remote) -> Remote:
    """Return a place that stores can be pushed to. InputError: it can only be read."""
    if folder.is_http:
        raise InputError(
            f"{folder} can only be read, as everything behind http.\nPush to s3://BUCKET/FOLDER, or to a folder that a "
            "web server shows."
        )
    return folder


class _Folder:
    """The target of a transfer in a folder of stores: built beside its final path, then renamed."""

    def __init__(self, source: FinishedStore, final: Path):
        self.source, self.final = source, final
        self.work = final.parent / WORK / final.name
        self.built = self.work.with_suffix(".incoming")

    def claimed(self) -> AbstractContextManager[Claim]:
        """Keep others from this target. InputError: somebody else is at work."""
        return only_one(self.work.with_suffix(".lock"), self.final.name)

    def prepare(self, older: FinishedStore | None) -> None:
        """Go on with an unfinished copy, if there is one. InputError: there is no room."""
        if self.final.is_symlink() and older is None:
            raise planted(self.final)
        if older is None and self.final.is_dir():
            _refuse_newer_remains(self.source, self.final)
            if not self.built.exists():
                self.final.rename(self.built)  # a copy that was cut short, or damaged: what is right in it stays
        check_work(work_folder(self.built, self.final.parent))
        needed = self.source.size - sum(file_sizes(self.built).values())
        free = shutil.disk_usage(self.built).free
        if needed > free:
            raise InputError(
                f"{self.final.parent}: {needed / 1e9:.2f} GB more are needed for {self.source.path}, {free / 1e9:.2f} "
                "GB are free.\nMake room, or name another folder."
            )

    def receive(self, name: str) -> None:
        """Copy one file. InputError: it is absent, or its bytes are not those of its checksum."""
        recorded = self.source.files[name]
        origin, target = self.source.file(name), file_of(self.built, name)
        try:
            with whole_file(target) as file:
                read_blocks(origin, file.write, recorded["bytes"])
                file.flush()
                if checksum(Path(file.name)) != recorded:
                    raise InputError(
                        f"{origin} differs from its checksum.\n`mlemiss store verify` names all damaged files; have "
                        "the store pushed again."
                    )
        except FileNotFoundError:
            raise InputError(
                f"{origin} is absent, and its store vouches for it.\nHave the store pushed again."
            ) from None

    def copy_record(self) -> None:
        """Copy RUN.json, if it can be read; else remove what an earlier attempt left."""
        if record := run_record(self.source.path):
            write_json(self.built / RUN, record)
        else:
            (self.built / RUN).unlink(missing_ok=True)

    def publish(self, older: FinishedStore | None) -> None:
        """Write the marker and rename. The older revision goes; a folder that was never a store is kept aside."""
        with whole_file(self.built / COMPLETE) as file:
            file.write(self.source.marker)
        replaced = self.work.with_suffix(".replaced")
        if self.final.exists():
            aside = replaced if older else self.work.with_suffix(".set-aside")
            remove_tree(aside)
            self.final.rename(aside)
            if not older:
                say(f"note: {self.final} was incomplete; the old one is kept as {aside}")
        self.built.rename(self.final)
        remove_tree(replaced)  # what a kill left of it too


class _Bucket:
    """The target of a transfer in an S3 bucket, built where readers look, who refuse it until it has its marker."""

    def __init__(self, source: FinishedStore, final: Remote):
        self.source, self.final, self.built = source, final, final

    def claimed(self) -> AbstractContextManager[Claim]:
        """Keep others from this target. InputError: somebody else is at work."""
        return Claim(self.final / PUSHING, f"{self.final} is being pushed").held()

    def prepare(self, older: FinishedStore | None) -> None:
        """Take an older revision out of sight."""
        _refuse_newer_remains(self.source, self.final)
        if older:
            say(f"{self.final}: revision {older.attrs['revision']} is replaced by {self.source.attrs['revision']}")
            (self.final / COMPLETE).unlink()

    def receive(self, name: str) -> None:
        """Copy one file. InputError: its bytes are not those of its checksum, here or where they arrived."""
        origin, target, recorded = self.source.file(name), self.final / name, self.source.files[name]
        if checksum(origin, recorded["bytes"]) != recorded:
            raise InputError(
                f"{self.source.path}: {name} is damaged.\n`mlemiss store verify {self.source.path}` says more."
            )
        target.upload(origin)
        if checksum(target, recorded["bytes"]) != recorded:
            raise InputError(f"{target} is not what was sent.\nPush again; if it stays, ask who runs the server.")

    def copy_record(self) -> None:
        """Copy RUN.json; without one, remove that of an older revision."""
        if run_record(self.source.path):
            (self.final / RUN).write_bytes(read_document(self.source.path / RUN))
        else:
            (self.final / RUN).unlink()

    def publish(self, older: FinishedStore | None) -> None:
        """Write the marker. InputError: it did not arrive."""
        marker = self.final / COMPLETE
        marker.write_bytes(self.source.marker)
        if marker.read_bytes() != self.source.marker:
            raise InputError(f"{marker} is not what was written.\nPush again.")


def _transfer(source: FinishedStore, target: _Folder | _Bucket) -> Transfer:
    """Copy every file that the target lacks, remove those it should not have, then publish the copy."""
    everything_there = Transfer(target.final, 0, len(source.files))
    if same_store(source, FinishedStore.find(target.final)):
        return everything_there
    with target.claimed() as claim:
        if same_store(source, older := FinishedStore.find(target.final)):
            return everything_there
        target.prepare(older)
        sizes = file_sizes(target.built)

        def send(name: str) -> bool:
            """Return whether the file had to be sent."""
            claim.check()
            recorded = source.files[name]
            if sizes.get(name) == recorded["bytes"] and checksum(target.built / name, recorded["bytes"]) == recorded:
                return False
            target.receive(name)
            return True

        with Progress(f"copy {target.final.name}", source.size, BYTES) as bar:
            try:
                sent = int(send("zarr.json"))  # first: it tells, if this is cut short, of which revision the rest is
                bar.advance(source.files["zarr.json"]["bytes"])
                for name, was_sent in in_parallel(send, set(source.files) - {"zarr.json"}):
                    sent += was_sent
                    bar.advance(source.files[name]["bytes"])
            except InputError:
                if source.was_replaced():
                    raise InputError(f"{source.path} was replaced while it was copied.\nRun this again.") from None
                raise
        for name in set(sizes) - set(source.files) - OWN:
            (target.built / name).unlink()
        target.copy_record()
        claim.check(now=True)
        target.publish(older)
    return Transfer(target.final, sent, len(source.files) - sent)


# ---- preprocess into a shared place ----


def push_made(stores: Sequence[str], shared: Remote) -> list[str]:
    """Push what `preprocess` made (paths, or URLs of what was there) to ``shared``; return the URL of each.

    InputError: a push failed; the local stores stay.
    """
    urls = []
    for text in stores:
        if text.startswith(f"{shared}/"):
            urls.append(text)
            continue
        try:
            urls.append(str(push(Path(text), shared).path))
        except InputError as error:
            raise InputError(f"{error}\nFinished in {text}; to go on: mlemiss store push {text} {shared}") from None
        say(f"store {urls[-1]}: pushed from {text}")
    return urls
