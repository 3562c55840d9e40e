"""Run one ffmpeg process within limits of time, output and memory; it ends when its parent does."""

import contextlib
import fcntl
import functools
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import ffmpeg

from ..errors import OUT_OF_TIME, ClipError, InputError, MachineError

OLDEST = 7  # version of ffmpeg: those before lack `-enc_time_base filter`, and tell otherwise of damage
INSTALL = f"install ffmpeg {OLDEST}.0 or newer, or name one in MLEMISS_FFMPEG"
PIPE_BYTES = 1 << 20  # the most an unprivileged process may ask for
READ_BYTES = 1 << 18
DECODER = 3 / 4  # share of a clip's memory for the process that decodes it; the rest is for what this one collects
TOO_LARGE = b"exceeds specified max pixel count"
MEMORY_REFUSED = re.compile(
    rb"Cannot allocate memory|get_buffer\(\) failed|pthread_create\(\) failed|thread_encoder_init failed"
)


@dataclass(frozen=True)
class Limits:
    """How a clip is read: what it may cost, how much damage it may have, which channels of its sound count.

    Args:
        timeout: seconds of wall time for all of the clip's processes together.
        max_seconds: longest clip.
        max_pixels: largest picture, width times height.
        max_bytes: largest file.
        max_memory: bytes of memory that reading the clip may take, in the process that decodes and in this one.
        max_damaged: damaged frames, of the 30 that are taken, with which the picture is still used.
        channels: of the sound: `"mean"` of all, or the `"first"`.
        crop: of the picture: the `"centre"`, or the `"face"` (`faces.crop_to_face`).
        no_face: a clip without a face lacks the picture, `"missing"` (as where None), or keeps the centre, `"keep"`.
    """

    timeout: float = 600.0
    max_seconds: float = 1800.0
    max_pixels: int = 8192 * 8192
    max_bytes: int = 8 << 30
    max_memory: int = 4 << 30
    max_damaged: int = 3
    channels: Literal["mean", "first"] = "mean"
    crop: Literal["centre", "face"] = "centre"
    no_face: Literal["missing", "keep"] | None = None

    def __post_init__(self):
        if self.no_face and self.crop != "face":
            raise InputError("--no-face is of --crop face, which is not given.\nGive it, too, or leave out --no-face.")

    def without_crop(self) -> "Limits":
        """Return the limits of what is not made of frames."""
        return replace(self, crop="centre", no_face=None)

    def spec(self) -> dict[str, int | str]:
        """Return what of it determines a clip's media and is not the default, for the spec of a store."""
        chosen = {"max_damaged": self.max_damaged, "channels": self.channels, "crop": self.crop}
        chosen |= {"no_face": self.no_face} if self.no_face == "keep" else {}
        return {name: value for name, value in chosen.items() if value != getattr(Limits, name)}


def due_to_limit(cause: str) -> bool:
    """Return whether a clip failed, or lacks a modality, because of its `Limits`; with others it might not."""
    return re.search(r"\ballowed\b|exceeds specified max pixel count", cause) is not None


class DecoderError(ClipError):
    """ffmpeg crashed or ran out of the memory allowed; another stream of the clip may still decode."""


@functools.cache
def ffmpeg_binary() -> str:
    """Return the path of the ffmpeg that decodes: `$MLEMISS_FFMPEG`, else the one that imageio-ffmpeg ships.

    Raises:
        InputError: there is none.
    """
    chosen = os.environ.get("MLEMISS_FFMPEG")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise InputError(f"MLEMISS_FFMPEG: expected an ffmpeg program, found nothing to run at {chosen!r}")
        return found
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise InputError(f"ffmpeg: none found; {INSTALL}") from error


@functools.cache
def ffmpeg_version() -> str:
    """Return the version of `ffmpeg_binary()`, such as `n9.0.2`. InputError: it is too old, or no ffmpeg."""
    done = subprocess.run([ffmpeg_binary(), "-version"], capture_output=True, text=True, errors="replace")
    words = done.stdout.split()
    if done.returncode or words[:2] != ["ffmpeg", "version"] or len(words) < 3:
        raise InputError(f"{ffmpeg_binary()} is no ffmpeg.\nTo go on, {INSTALL}.")
    number = re.match(r"n?(\d{1,9})\.", words[2])  # builds between two versions have a date or hash instead
    if number and int(number[1]) < OLDEST:
        raise InputError(f"{ffmpeg_binary()} is ffmpeg {words[2]}, which is too old.\nTo go on, {INSTALL}.")
    return words[2]


@functools.cache
def _die_with_parent() -> tuple[str, ...]:
    # A preexec_fn would fork a process that may hold gigabytes; setpriv keeps the cheap vfork. Without it (not Linux)
    # ffmpeg ends when it next writes to the closed pipe.
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()


def run_ffmpeg(
    outputs: Callable, names: tuple[str, ...], sizes: Mapping[str, int], deadline: float, max_memory: int
) -> dict[str, bytearray]:
    """Run one ffmpeg and read all its pipes at once, so that none of them can block it.

    Args:
        outputs: function from {name: URL of its pipe} to an ffmpeg-python output.
        names: the pipes that the command writes, beside the log.
        sizes: most bytes by name; `log` is standard error.
        deadline: `time.monotonic()` at which the process is killed.
        max_memory: bytes for the clip. The process is refused address space beyond its share and fails (Linux).

    Returns:
        What came through each pipe and, as `log`, through standard error.

    Raises:
        ClipError: out of time, or more output than allowed. The process is gone in any case.
        DecoderError: ffmpeg crashed, or needs more memory.
        MachineError: ffmpeg was killed from outside.
    """
    ends = {name: os.pipe() for name in names}
    process = None
    try:
        output = outputs({name: f"pipe:{write}" for name, (_, write) in ends.items()})
        process = _start(ffmpeg.compile(output, cmd=ffmpeg_binary()), [write for _, write in ends.values()], max_memory)
        for name, (read, write) in ends.items():
            os.close(write)
            ends[name] = (read, -1)
        sources = {name: read for name, (read, _) in ends.items()} | {"log": process.stderr.fileno()}
        received = _drain(sources, sizes, deadline)
        _check_status(process.wait(timeout=max(deadline - time.monotonic(), 0.1)), received["log"], max_memory)
        return received
    except subprocess.TimeoutExpired as error:
        raise ClipError(OUT_OF_TIME) from error
    finally:
        if process is not None:
            process.kill()
            process.wait()
            process.stderr.close()
        for descriptor in (d for pair in ends.values() for d in pair if d >= 0):
            os.close(descriptor)


def _start(command: Sequence[str], pipes: Sequence[int], max_memory: int) -> subprocess.Popen:
    if hasattr(resource, "prlimit"):
        _, most = resource.getrlimit(resource.RLIMIT_AS)  # which only root may exceed
        if most != resource.RLIM_INFINITY and max_memory > most:
            raise InputError(
                f"--clip-memory {max_memory} is more than `ulimit -v` allows, {most} bytes.\n"
                f"Say --clip-memory {most} or less, or raise the limit."
            )
    environment = {k: v for k, v in os.environ.items() if k not in ("FFREPORT", "AV_LOG_FORCE_COLOR")}
    process = subprocess.Popen(
        [*_die_with_parent(), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=pipes,
        # With an arena for each thread, each call of malloc asks the kernel in vain where address space is scarce.
        env=environment | {"AV_LOG_FORCE_NOCOLOR": "1", "MALLOC_ARENA_MAX": "2"},
    )
    if hasattr(resource, "prlimit"):
        with contextlib.suppress(ProcessLookupError):  # it is done already
            share = int(max_memory * DECODER)
            resource.prlimit(process.pid, resource.RLIMIT_AS, (share, share))
    return process


def _check_status(status: int, log: bytes, max_memory: int) -> None:
    """Check how ffmpeg ended; an error that it reports itself is no fault here. Errors as of `run_ffmpeg`."""
    if -status in (signal.SIGKILL, signal.SIGTERM) or (status in (126, 127) and _die_with_parent()):
        raise MachineError(
            f"ffmpeg was ended from outside or could not start (status {status}): out of memory?\n"
            "Run the same command again, with fewer --workers or less --clip-memory: finished clips are kept."
        )
    refused = MEMORY_REFUSED.search(log) and TOO_LARGE not in log  # a picture beyond --clip-pixels gets no buffer
    if status < 0 or refused:  # a library that is refused memory may crash
        raise DecoderError(
            f"the decoder crashed, or needs more than the {max_memory / 2**30:.3g} GiB of memory allowed"
        )


def _drain(sources: Mapping[str, int], sizes: Mapping[str, int], deadline: float) -> dict[str, bytearray]:
    received = {name: bytearray() for name in sources}
    with selectors.DefaultSelector() as selector:
        for name, descriptor in sources.items():
            if hasattr(fcntl, "F_SETPIPE_SZ"):  # fewer switches between the two processes
                with contextlib.suppress(PermissionError):  # the user's share of pipe memory may be spent
                    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            selector.register(descriptor, selectors.EVENT_READ, name)
        while selector.get_map():
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready and left <= 0:
                raise ClipError(OUT_OF_TIME)
            for key, _ in ready:
                data = os.read(key.fd, READ_BYTES)
                if not data:
                    selector.unregister(key.fd)
                received[key.data] += data
                if len(received[key.data]) > sizes[key.data]:
                    raise ClipError("decoding was stopped: it gave more than the memory or length allowed")
    return received
