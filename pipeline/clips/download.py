"""A file from a server that may cut connections: resumed, verified by checksum, in place only when it is whole."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..console import say
from ..errors import MachineError

ATTEMPTS = 6  # in a row that bring nothing
BACKOFF = 1.0  # seconds before the second attempt, doubled each time
LONGEST_WAIT = 120.0  # seconds, where a server asks for more
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20  # bytes
USER_AGENT = "mlemiss"
ENDED_EARLY = "the connection ended early"
RANGE_NOT_THERE = 416  # HTTP status
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be another one later


class DownloadError(Exception):
    """The server answers, but not with what it should: no attempt more would help."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as a record lists it."""

    name: str
    url: str
    size: int  # bytes
    algorithm: str  # of hashlib
    digest: str  # hexadecimal


def download(remote: RemoteFile, folder: Path, show: Callable[[int], None]) -> Path:
    """The file in ``folder``, verified. What of it lies there already (`NAME.partial`) is not asked for again.

    show: called with the bytes there are. DownloadError: the server has no such file, or another one than listed.
    MachineError: no connection, or nothing more can be written; what arrived is kept.
    """
    whole, partial = folder / remote.name, folder / f"{remote.name}.partial"
    if whole.is_file() and _digest(whole, remote.algorithm) == remote.digest:
        show(remote.size)
        return whole
    while True:
        begun = partial.is_file() and partial.stat().st_size > 0
        try:
            _receive(remote, partial, show)
        finally:
            if partial.is_file() and not partial.stat().st_size:
                partial.unlink()
        found = _digest(partial, remote.algorithm)
        if found == remote.digest:
            partial.replace(whole)
            return whole
        partial.unlink()
        if not begun:
            raise DownloadError(
                f"{remote.url}: expected {remote.algorithm} {remote.digest}, found {found}: what arrived is thrown away"
            )
        say(f"{remote.name}: what an earlier run left does not fit; from the start again")


def read_url(url: str, most: int) -> bytes:
    """A small document of at most ``most`` bytes, after as many attempts as `download` makes. Errors as there."""
    failures = 0
    while True:
        try:
            with _open(url) as response:
                content = response.read(most + 1)
                if response.length and len(content) <= most:  # what the header promises is not all there
                    raise ConnectionError(ENDED_EARLY)
        except (OSError, http.client.HTTPException) as error:
            failures += 1
            _wait(url, error, failures)
            continue
        if len(content) > most:
            raise DownloadError(f"{url}: expected at most {most} bytes, found more")
        return content


def _receive(remote: RemoteFile, partial: Path, show: Callable[[int], None]) -> None:
    """Append to ``partial`` until it has the listed size."""
    try:
        opened = partial.open("ab", buffering=0)
    except OSError as error:
        raise cannot_write(partial, error) from None
    failures = 0
    with opened as file:
        while (there := file.seek(0, os.SEEK_END)) != remote.size:
            if there > remote.size:
                there = file.truncate(0)
            error: Exception = ConnectionError(ENDED_EARLY)
            try:
                with _open(remote.url, there) as response:
                    if there and not _continues(response, there):
                        file.truncate(0)
                    _copy(response, file, remote, show)
            except (OSError, http.client.HTTPException) as caught:
                error = caught
                if getattr(caught, "code", None) == RANGE_NOT_THERE:  # the server's file ends before what is here
                    file.truncate(0)
            now = file.seek(0, os.SEEK_END)
            failures = 0 if now > there else failures + 1
            if now < remote.size:
                _wait(remote.name, error, failures, f", {now / 1e6:.0f} of {remote.size / 1e6:.0f} MB are here")
    show(remote.size)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, remote: RemoteFile, show: Callable[[int], None]) -> None:
    there = file.seek(0, os.SEEK_END)
    show(there)
    while block := response.read1(BLOCK):
        there += len(block)
        if there > remote.size:
            file.truncate(0)
            raise DownloadError(f"{remote.url}: expected {remote.size} bytes, found more")
        rest = memoryview(block)
        while rest:
            try:
                rest = rest[file.write(rest) :]
            except OSError as error:
                raise cannot_write(Path(file.name), error) from None
        show(there)


def _open(url: str, start: int = 0) -> http.client.HTTPResponse:
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code in (RANGE_NOT_THERE, *TRY_AGAIN):
            raise
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from None


def _continues(response: http.client.HTTPResponse, start: int) -> bool:
    """The server sends from ``start`` on, not everything again."""
    span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == 206 and span is not None and int(span[1]) == start


def _wait(what: str, error: Exception, failures: int, state: str = "") -> None:
    """Wait before the next attempt; ``failures``: in a row that brought nothing. MachineError: enough of them."""
    code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
    reason = code + (str(getattr(error, "reason", "") or error) or repr(error))
    if failures >= ATTEMPTS:
        raise MachineError(
            f"{what}: no connection after {ATTEMPTS} attempts ({reason}){state}.\n"
            "Run the same command again later: what arrived is kept."
        )
    seconds = BACKOFF * 2 ** max(failures - 1, 0)
    headers = getattr(error, "headers", None)
    asked = headers.get("Retry-After", "") if headers else ""
    if asked.isdecimal():
        seconds = min(max(seconds, float(asked)), LONGEST_WAIT)
    say(f"{what}: {reason}{state}; again in {seconds:.0f} s")
    time.sleep(seconds)


def cannot_write(path: Path, error: OSError) -> MachineError:
    """The error for a full disk and its like."""
    return MachineError(
        f"{path}: {error.strerror}; what arrived is kept.\nMake room, or name another --root, and run it again."
    )


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
