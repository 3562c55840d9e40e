"""Ask S3 servers that may be hostile, through s3fs: they answer in time, and with no more than asked for."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .errors import InputError
from .web import BLOCK, PACE, SLOW_SECONDS, TooSlowError

CONTACT = 10  # seconds a server may take to answer at all
CONNECT, READ = 3, 30  # seconds one that has answered may take to accept, and to go on
UPLOAD_SECONDS = 3600.0  # of a file or a part of it
ANSWER_BYTES = 4 << 20  # bytes of an answer that is no object: a page of a listing has 1000 names
MOST_LISTED = 200_000  # objects of a folder
REMOTE_EXTRA = "pip install 'mlemiss[remote]'"


@lru_cache
def contacted(bucket: str) -> Any:
    """Return s3fs's file system after a first question to the server, so that one that hangs is found soon.

    Raises:
        InputError: s3fs is not installed.
        ConnectionError: no answer.
    """
    from fsspec.asyn import sync

    fs = _file_system()
    try:
        sync(fs.loop, fs._call_s3, "head_bucket", timeout=CONTACT, Bucket=bucket)
    except TimeoutError:
        raise ConnectionError(f"no answer within {CONTACT} s") from None
    except OSError:
        pass  # an answer: the next question tells more
    return fs


def object_blocks(fs: Any, url: str) -> Iterator[bytes]:
    """Yield an object as it comes. TooSlowError: the server hardly sends. FileNotFoundError: there is none."""
    from fsspec.asyn import sync

    bucket, key, _ = fs.split_path(url)
    body = sync(fs.loop, fs._call_s3, "get_object", Bucket=bucket, Key=key)["Body"]
    PACE.start(url)
    try:
        while block := sync(fs.loop, _within, READ, body.read, BLOCK):
            with PACE.paused(len(block)):
                yield block
            PACE.check()
    finally:
        fs.loop.call_soon_threadsafe(body.close)


def listed(fs: Any, url: str, delimiter: str = "") -> dict[str, int]:
    """Return the bytes of every object below a folder, by name; with a delimiter of those right in it, and its folders.

    InputError: more than any folder of stores has, or a server that lists without end.
    """
    from fsspec.asyn import sync

    bucket, _, below = f"{url}/".removeprefix("s3://").partition("/")
    asked, found = {"Bucket": bucket, "Prefix": below, "Delimiter": delimiter}, {}
    while True:
        page = sync(fs.loop, fs._call_s3, "list_objects_v2", **asked)
        entries = [(entry["Key"], entry["Size"]) for entry in page.get("Contents", [])]
        entries += [(entry["Prefix"], 0) for entry in page.get("CommonPrefixes", [])]
        known = len(found)
        found |= {key[len(below) :]: size for key, size in entries if key.startswith(below) and key != below}
        if not page.get("IsTruncated"):
            return found
        if not known < len(found) <= MOST_LISTED:
            raise InputError(f"{url}: the server lists too many files, or without end.\nAsk who runs the server.")
        asked["ContinuationToken"] = page["NextContinuationToken"]


@lru_cache
def _file_system() -> Any:
    try:
        import s3fs
    except ImportError:
        raise InputError(f"s3:// needs the package s3fs, which is not installed.\nInstall it: {REMOTE_EXTRA}") from None
    tries = {"mode": "standard", "total_max_attempts": 3}
    config = {"connect_timeout": CONNECT, "read_timeout": READ, "retries": tries, "http_session_cls": _session()}
    fs = s3fs.S3FileSystem(use_listings_cache=False, config_kwargs=config)
    fs.retries = 2  # of what botocore has tried already
    return fs


async def _within(seconds: float, ask: Callable, *arguments: Any) -> Any:
    """Await an answer. TooSlowError: it takes longer."""
    try:
        return await asyncio.wait_for(ask(*arguments), seconds)
    except TimeoutError:
        raise TooSlowError(f"no answer within {seconds:.0f} s: given up") from None


async def _short(stream: Any) -> bytes:
    content = bytearray()
    while block := await stream.read(BLOCK):
        content += block
        if len(content) > ANSWER_BYTES:
            raise InputError(f"the S3 server answers with more than {ANSWER_BYTES >> 20} MB.\nAsk who runs the server.")
    return bytes(content)


@dataclass(frozen=True)
class _Staying:
    """A session of aiohttp that follows no redirect: S3 needs none, and one could lead into a private network."""

    session: Any

    async def request(self, *arguments: Any, **options: Any) -> Any:
        """Send a request."""
        return await self.session.request(*arguments, allow_redirects=False, **options)


def _session() -> type:
    """Return the class of aiobotocore's HTTP sessions in which answers come in time, and short but for objects."""
    from aiobotocore.httpsession import AIOHTTPSession

    class Session(AIOHTTPSession):
        async def _get_session(self, proxy_url: str | None) -> _Staying:
            return _Staying(await super()._get_session(proxy_url))

        async def send(self, request: Any) -> Any:
            """Send a request, and return the answer, with its body if that is no object."""
            whole, request.stream_output = not request.stream_output, True  # else it would read all there is
            seconds = SLOW_SECONDS if request.method in ("GET", "HEAD") else UPLOAD_SECONDS
            answer = await _within(seconds, super().send, request)
            if whole or answer.status_code >= 300:
                answer._content = await _within(SLOW_SECONDS, _short, answer.raw.content)
            return answer

    return Session
