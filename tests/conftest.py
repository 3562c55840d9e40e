"""What is made once a session: synthetic clips and their stores, the server that commands are forked from.

Real clips are used where MLEMISS_SHARED_DATA names a folder of them.
"""

import fcntl
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import forkserver
from pathlib import Path

import pytest

from .preprocessing import SIX, content, options
from .processes import ONE_THREAD, Forks
from .servers import http_server, s3_server


def once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that is made once for all processes of pytest-xdist: the first makes it, the others wait."""
    top = tmp_path_factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top
    folder, done = top / name, top / f"{name}.done"
    with (top / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_user(tmp_path_factory):
    """Keep nothing of the tests in the user's cache; what others keep there is at hand."""
    there = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = tmp_path_factory.mktemp("cache")
    for kept in there.iterdir() if there.is_dir() else ():
        if kept.name != "mlemiss":
            (folder / kept.name).symlink_to(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real clips (RAVDESS sample, files decoders trip over); skips where there is none."""
    folder = os.environ.get("MLEMISS_SHARED_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MLEMISS_SHARED_DATA names no folder of real clips")
    return Path(folder)


@pytest.fixture(scope="session")
def synthetic_ravdess(tmp_path_factory) -> Path:
    """Three subjects, twelve clips each, in the RAVDESS layout. Read only."""
    from mlemiss.pipeline.clips.synth import synthesize

    return once(
        tmp_path_factory, "ravdess", lambda root: synthesize(root, subjects=3, clips_per_subject=12, seed=7, workers=2)
    )


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """An S3 server with an empty bucket, s3://bucket, and the environment to reach it."""
    with s3_server(tmp_path_factory.mktemp("s3")) as served:
        yield served


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    """A static web server over an empty folder."""
    with http_server(tmp_path_factory.mktemp("http")) as served:
        yield served


@pytest.fixture(scope="session")
def fork_server():
    """Start the server that processes are forked from."""
    multiprocessing.set_forkserver_preload([f"{__package__}.imported"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_THREAD.items():
            patch.setenv(name, value)
        top = Path(__file__).parents[__package__.count(".") + 1]  # where this package, whatever its name, is found
        path = [str(top), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))  # for the server; each command gets its own environment
        forkserver.ensure_running()


@pytest.fixture(scope="session")
def commands(fork_server, tmp_path_factory):
    """Run the installed command for fixtures that serve several tests."""
    forks = Forks(tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("streams"))
    yield forks
    forks.end()


@pytest.fixture
def mlemiss(fork_server, tmp_path, tmp_path_factory):
    """Run the installed command as a user does, in the test's folder: mlemiss("list", "datasets")."""
    forks = Forks(tmp_path, tmp_path_factory.mktemp("streams"))
    yield forks
    forks.end()


@dataclass(frozen=True)
class Made:
    """The stores of an undisturbed run, which others are compared with. Read only."""

    stores: Path
    summary: dict  # of `--json`

    @cached_property
    def content(self) -> dict[str, bytes]:
        """Return every file of the stores."""
        return content(self.stores)

    @property
    def media(self) -> dict[str, bytes]:
        """Return every file of the media store."""
        return {name: data for name, data in self.content.items() if "-media-" in name}


@pytest.fixture(scope="session")
def six(commands, synthetic_ravdess, tmp_path_factory) -> Made:
    """Six clips, preprocessed one after the other: media and features."""

    def make(folder: Path) -> None:
        done = commands(*options(synthetic_ravdess, folder / "stores", *SIX, "--workers", 0, "--json"))
        assert done.returncode == 0, done.stderr
        (folder / "summary.json").write_text(done.stdout)

    folder = once(tmp_path_factory, "six", make)
    return Made(folder / "stores", json.loads((folder / "summary.json").read_text()))
