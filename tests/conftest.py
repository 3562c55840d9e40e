"""Clips for the tests: synthetic ones made once a session, real ones where MLEMISS_SHARED_DATA says they are."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .servers import http_server, s3_server

SMALL = "timm:mobilenetv3_small_050"  # the backbone of tests that are not about backbones


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

    root = tmp_path_factory.mktemp("ravdess")
    synthesize(root, subjects=3, clips_per_subject=12, seed=7, workers=2)
    return root


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


# Forks a process for each command from one that has imported what is slow to import, as most commands would: a process
# of its own with its own streams and status, without seconds of importing each time.
SERVER = """
import atexit, importlib, json, os, signal, sys
heavy = "timm distributed librosa mlemiss.pipeline.preprocess mlemiss.trainer.experiments.reproduce mlemiss.cli"
for name in heavy.split():
    importlib.import_module(name)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        for number, path in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        signal.alarm(job["timeout"])
        sys.argv = ["mlemiss", *job["arguments"]]
        try:
            sys.modules["mlemiss.cli"].main()
        except SystemExit as end:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(end.code)  # taking everything imported apart would take a second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def server():
    command = [sys.executable, "-c", SERVER]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # small networks, as everywhere in the tests
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def mlemiss(tmp_path, server):
    """Run the installed command as a user does: mlemiss("list", "datasets") -> CompletedProcess of text.

    With environment variables it is started from nothing, as what is imported may read them (but for MLEMISS_FFMPEG).
    """

    def run(*arguments: object, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess:
        arguments = list(map(str, arguments))
        if environment.keys() - {"MLEMISS_FFMPEG"}:
            command = [sys.executable, "-m", "mlemiss.cli", *arguments]
            environment = os.environ | environment
            return subprocess.run(
                command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=timeout
            )
        with tempfile.TemporaryDirectory() as folder:
            streams = {name: f"{folder}/{name}" for name in ("stdout", "stderr")}
            job = {"arguments": arguments, "folder": str(tmp_path), "timeout": timeout} | streams
            job["environment"] = dict(os.environ) | {"OMP_NUM_THREADS": "1"} | environment
            server.stdin.write(json.dumps(job) + "\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            texts = {name: Path(path).read_text(encoding="utf-8") for name, path in streams.items()}
        return subprocess.CompletedProcess(arguments, status, **texts)

    return run
