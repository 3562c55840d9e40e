"""Commands and scripts in processes of their own, forked from a server that has imported what takes seconds to import.

What shows which modules are imported, or must not know mlemiss, is started from nothing instead.
"""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

COMMAND = "import sys, mlemiss.cli\nmlemiss.cli.main(sys.argv[1:])"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # small networks, as everywhere in the tests
LONGEST = 300  # seconds of a command


def _run(code: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Sequence[Path]):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if any(name.startswith("DASK_") for name in environment):
        import dask

        dask.config.refresh()
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if encoding := environment.get("PYTHONIOENCODING"):
        sys.stdout.reconfigure(encoding=encoding)
    signal.alarm(LONGEST)
    sys.argv = ["mlemiss", *arguments]
    try:
        exec(compile(code, "script", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()


class Running:
    """A process that was started, with the interface of `subprocess.Popen` as far as the tests use it."""

    def __init__(self, process: BaseProcess, stdout: Path, stderr: Path):
        self.process, self._stdout, self._stderr = process, stdout, stderr
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the status, None while the process runs, -N if signal N ended it."""
        return self.process.exitcode

    def wait(self, timeout: float = LONGEST) -> int:
        """Wait for the end; return the status."""
        self.process.join(timeout)
        assert self.poll() is not None, f"still running after {timeout} s:\n{self.stderr}"
        return self.poll()

    def until(self, text: str) -> None:
        """Wait until the process has printed this, on either stream."""
        while text not in self.stdout + self.stderr:
            assert self.poll() is None, self.stderr
            time.sleep(0.01)

    def kill(self) -> int:
        """Send SIGKILL and return the status."""
        self.process.kill()
        return self.wait()

    @property
    def stdout(self) -> str:
        """Return what the process has printed up to now."""
        return self._stdout.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """Return what the process has printed up to now on standard error."""
        return self._stderr.read_text(encoding="utf-8")


class Forks:
    """Start commands and scripts, in a folder."""

    def __init__(self, folder: Path, streams: Path):
        self.folder, self._streams = folder, streams
        self.started: list[Running] = []

    def start(self, *arguments: object, code: str = COMMAND, before: str = "", **environment: str) -> Running:
        """Start a process and return it.

        Args:
            arguments: of the command `mlemiss`.
            code: what to run instead of the command; the arguments are its `sys.argv[1:]`.
            before: code to run first, such as a patch.
            environment: variables to set.
        """
        streams = [self._streams / f"{len(self.started)}.{name}" for name in ("stdout", "stderr")]
        for stream in streams:
            stream.touch()
        variables = dict(os.environ) | ONE_THREAD | environment
        job = (f"{before}\n{code}", list(map(str, arguments)), self.folder, variables, streams)
        process = multiprocessing.get_context("forkserver").Process(target=_run, args=job)
        process.start()
        self.started.append(Running(process, *streams))
        return self.started[-1]

    def __call__(self, *arguments: object, **options: str) -> subprocess.CompletedProcess:
        """Run a process to its end, as `start` does: mlemiss("list", "datasets") -> CompletedProcess of text."""
        running = self.start(*arguments, **options)
        status = running.wait()
        return subprocess.CompletedProcess(arguments, status, running.stdout, running.stderr)

    def end(self) -> None:
        """Kill what still runs."""
        for running in self.started:
            running.kill()
