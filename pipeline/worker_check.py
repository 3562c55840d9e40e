"""Whether a cluster's worker computes the bytes this machine would, and sees the same files, whenever it joins."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from . import parts
from .errors import InputError
from .plan import WORK, Plan


@dataclass(frozen=True)
class Expected:
    """What every worker of a run must have and see."""

    versions: tuple[tuple[str, str], ...]
    token: Path  # a file in the stores folder, for as long as the run
    clip: Path


@contextmanager
def checked(client, plan: Plan) -> Iterator[Expected]:
    """Check the workers that are there; what is yielded lets `cluster.on_cluster` check those that join later.

    InputError: one has other versions, or does not see the same clips and stores under the same paths.
    """
    token = plan.stores / WORK / f"{uuid4().hex}.token"
    first = next((index for index, source in enumerate(plan.sources) if not source.fault), 0)
    clip = (plan.collection.root / plan.collection.clips[first].path).absolute()
    expected = Expected(tuple(parts.versions().items()), token, clip)
    token.parent.mkdir(parents=True, exist_ok=True)
    token.touch()
    try:
        try:
            faults = client.run(_fault, expected)
        except ImportError as error:
            raise no_mlemiss(error) from None
        for address, fault in faults.items():
            if fault:
                raise InputError(f"worker {address} {fault}")
        yield expected
    finally:
        token.unlink(missing_ok=True)


def no_mlemiss(error: ImportError) -> InputError:
    """What to say of a worker on which nothing of ours can be imported."""
    return InputError(f"a worker cannot import mlemiss ({error}).\nInstall the same version on every worker.")


@lru_cache(maxsize=1)
def _fault(expected: Expected) -> str:
    """What is wrong with the worker that this runs on; empty: nothing."""
    versions = parts.versions()
    for name, version in expected.versions:
        if versions.get(name) != version:
            return (
                f"has {name} {versions.get(name)}, here it is {version}: features would differ in their last bits.\n"
                "Install the same versions everywhere (constraints.txt)."
            )
    stores, clip = expected.token.parent, expected.clip
    for path, what, seen in (
        (stores, "stores", expected.token.is_file() and os.access(stores, os.W_OK)),
        (clip, "clips", clip.is_file()),
    ):
        if not seen:
            return (
                f"does not see the {what} at {path}.\nMount them under the same path on every machine; stores must be "
                "writable there."
            )
    return ""


def on_worker(expected: Expected | None, function: Callable, *arguments: object) -> object:
    """A task, where its worker is as expected: one that joined during the run is found out at its first."""
    if expected is not None and (fault := _fault(expected)):
        from distributed import get_worker

        raise InputError(f"worker {get_worker().address} {fault}")
    return function(*arguments)
