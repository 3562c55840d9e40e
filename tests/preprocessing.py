"""What the tests that preprocess clips have in common: the arguments of a run, and what it leaves."""

import time
from pathlib import Path

from mlemiss.pipeline.stores.checksums import COMPLETE, RUN

SMALL = "timm:test_byobnet"  # the backbone of tests that are not about backbones
NETWORK = ("--features", SMALL, "--weights", "random")
SIX = ("--media", "keep", "--limit", 6)


def options(root: Path, stores: Path, *more: object) -> list:
    """Return the arguments of a run over clips named as RAVDESS's; with a network unless media are all that is made."""
    network = () if "only" in more else NETWORK
    return ["preprocess", "--dataset", "ravdess", "--root", root, "--stores", stores, *network, *more]


def content(stores: Path) -> dict[str, bytes]:
    """Return every file of every finished store, RUN.json apart."""
    finished = [path for path in sorted(stores.glob("*.zarr")) if (path / COMPLETE).is_file()]
    return {
        f"{path.name}/{file.relative_to(path)}": file.read_bytes()
        for path in finished
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != RUN
    }


def staged(stores: Path) -> int:
    """Return how many results of clips wait to be published."""
    return len(list(stores.glob(".partial/*/clips/*.npz")))


def left_running(text: str, seconds: float = 30) -> list[str]:
    """Return the command lines of the processes with this text in their environment that do not end in time."""
    deadline = time.monotonic() + seconds
    while (found := _with_environment(text)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _with_environment(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        except OSError:
            continue
    return found


KILL_BEFORE_COMPLETE = """
import os
from pathlib import Path
real = Path.replace
def replace(self, target):
    return os.kill(os.getpid(), 9) if Path(target).name == "COMPLETE.json" else real(self, target)
Path.replace = replace
"""


def kill_at(moment: str) -> str:
    """Return code after which the command is killed as it calls a function of the pipeline."""
    if moment == "COMPLETE":
        return KILL_BEFORE_COMPLETE
    return f"""
import importlib, os
module, name = "mlemiss.pipeline.{moment}".rsplit(".", 1)
getattr(importlib.import_module(module), name)  # a name that is gone would never be called
setattr(importlib.import_module(module), name, lambda *arguments: os.kill(os.getpid(), 9))
"""
