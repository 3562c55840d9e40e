"""What all verbs share: exit statuses, common options, lists on the command line, JSON."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError
from .places import Place, place

DONE, FAILURES, WRONG_INPUT, UNEXPECTED, INTERRUPTED = 0, 1, 2, 3, 130

_STORES = {"parser": place, "envvar": "MLEMISS_STORES", "show_default": "stores"}
StoresOption = Annotated[
    Place, typer.Option("--stores", metavar="DIR|URL", help="Stores: a folder, s3:// or http(s)://.", **_STORES)
]
FolderOption = Annotated[
    Place, typer.Option("--stores", metavar="DIR", help="Folder of stores on this machine.", **_STORES)
]
StoreArgument = Annotated[Place, typer.Argument(parser=place, metavar="STORE", help="A store: its folder or URL.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]


def comma_list(values: list[str]) -> list[str]:
    """A repeatable option also takes a comma list; doubles are dropped. InputError: nothing is in it."""
    items = list(dict.fromkeys(item.strip() for value in values for item in value.split(",") if item.strip()))
    if not items:
        raise InputError(f"an empty list {','.join(values)!r}: expected at least one name in it.")
    return items


def writable_folder(path: Path, option: str) -> Path:
    """The folder to write into that ``option`` names; not made yet, so that wrong input leaves nothing behind.

    InputError: something else than a folder is in the way, or nothing can be written there.
    """
    there = path
    try:
        while not (there.exists() or there.is_symlink()):  # a dangling link is in the way too
            there = there.parent
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}.\nExpected a folder, made if absent.") from None
    if not there.is_dir():
        raise InputError(f"{option} {path}: {there} is a file.\nExpected a folder, made if absent: name another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option} {path}: nothing can be written into {there}.\nName another folder.")
    return path


def writable_file(path: Path, option: str) -> Path:
    """The file to write that ``option`` names; its folder need not be there yet, and is not made.

    InputError: it is a folder, or cannot be written.
    """
    writable_folder(path.parent, option)
    try:
        there = path.exists()
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}.\nExpected a file to write.") from None
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder: expected a file to write.\nName a file in it.")
    if there and not os.access(path, os.W_OK):
        raise InputError(f"{option} {path} cannot be written.\nName another file.")
    return path


def print_json(document: dict | list) -> None:
    """The one document of a verb with --json, on standard output."""
    print(json.dumps(document, ensure_ascii=False))
