"""What all verbs share: exit statuses, common options, lists on the command line, JSON."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError

DONE, FAILURES, WRONG_INPUT, UNEXPECTED, INTERRUPTED = 0, 1, 2, 3, 130

StoresOption = Annotated[
    Path, typer.Option("--stores", envvar="MLEMISS_STORES", help="Folder of stores.", show_default="stores")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]


def comma_list(values: list[str]) -> list[str]:
    """A repeatable option also takes a comma list; doubles are dropped. InputError: nothing is in it."""
    items = list(dict.fromkeys(item.strip() for value in values for item in value.split(",") if item.strip()))
    if not items:
        raise InputError(f"an empty list {','.join(values)!r}: expected at least one name in it.")
    return items


def print_json(document: dict | list) -> None:
    """The one document of a verb with --json, on standard output."""
    print(json.dumps(document, ensure_ascii=False))
