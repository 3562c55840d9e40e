"""The places of stores: a folder (local or NFS), or a URL, read and written through fsspec.

s3://BUCKET/FOLDER        read and written; keys and endpoint as botocore finds them (AWS_PROFILE, ~/.aws, …)
http(s)://HOST/FOLDER     read only; user and password from ~/.netrc, proxies from the environment

Secrets never stand in a place's name, so that results, messages and logs may show it.
"""

import errno
import os
import re
import stat
from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from ..errors import InputError, MachineError

BLOCK_BYTES = 1 << 20  # bytes read at once
DOCUMENT_BYTES = 64 << 20  # bytes: no JSON document of a store is larger
AT_ONCE = 4  # files under way at the same time
CONTACT = 10  # seconds a server may take to answer at all
CONNECT, READ = 3, 30  # seconds one that has answered may take to accept, and to answer
SCHEMES = ("s3", "http", "https")
REMOTE_EXTRA = "pip install 'mlemiss[remote]'"

Item, Result = TypeVar("Item"), TypeVar("Result")


class Place(ABC):  # noqa: B024
    """The path of a file or folder: a `pathlib.Path` or a `Remote`.

    Both have str(), name, parent, /, resolve, read_bytes, is_file and iterdir; FileNotFoundError: a file is absent.
    """


Place.register(Path)


@dataclass(frozen=True, order=True)
class Remote(Place):
    """A file or folder behind a URL. Errors name it: MachineError where the server is out of reach, else InputError."""

    url: str  # without secrets, query or trailing slash

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url}/{quote(name) if self.is_http else name}")

    @property
    def is_http(self) -> bool:
        """Return whether this is behind HTTP, and so can only be read."""
        return not self.url.startswith("s3:")

    @property
    def name(self) -> str:
        """Return the last part, as a file would be called."""
        last = self.url.rpartition("/")[2]
        return unquote(last) if self.is_http else last

    @property
    def parent(self) -> "Remote":
        """Return the folder above."""
        return Remote(self.url.rpartition("/")[0])

    def resolve(self) -> "Remote":
        """Return this itself, as a URL has one form here."""
        return self

    @property
    def fs(self) -> Any:
        """Return fsspec's file system of this scheme, after a first contact with the server."""
        scheme, _, rest = self.url.partition("://")
        return _contacted(scheme, rest.partition("/")[0])

    @property
    def storage_options(self) -> dict:
        """Return what opens the URL with fsspec, beside the URL itself."""
        return _options(self.url.partition(":")[0])

    def read_bytes(self) -> bytes:
        """Read a small file whole. InputError: it is larger than any document of a store."""
        return read_document(self)

    def is_file(self) -> bool:
        """Return whether a document can be read there."""
        try:
            self.read_bytes()
        except FileNotFoundError:
            return False
        return True

    def iterdir(self) -> Iterator["Remote"]:
        """Yield what is in a folder, by name; nothing where the folder is absent.

        InputError: an HTTP server that shows no index of the folder.
        """
        try:
            with reaching(self):
                urls = self.fs.ls(f"{self.url}/", detail=False)
        except FileNotFoundError:
            if not self.is_http:
                return
            raise InputError(
                f"no list of what is in {self}: the server has no such folder, or shows no index page of it.\n"
                f"Name a store itself, {self}/NAME.zarr, which needs none."
            ) from None
        names = {url.rstrip("/").rpartition("/")[2] for url in urls}
        for name in sorted(unquote(name) if self.is_http else name for name in names):
            if name not in ("", ".", "..") and not set(name) & set("/\\?#"):  # of the page's own making
                yield self / name

    def write_bytes(self, data: bytes, new: bool = False) -> None:
        """Write an object (s3 only). FileExistsError: it must be ``new`` and is not, on servers that can tell."""
        with reaching(self):
            self.fs.pipe_file(self.url, data, mode="create" if new else "overwrite")

    def upload(self, file: Path) -> None:
        """Write a local file's content (s3 only)."""
        with reaching(self):
            self.fs.put_file(str(file), self.url)

    def unlink(self) -> None:
        """Remove an object, if it is there (s3 only)."""
        with reaching(self):
            self.fs.rm_file(self.url)


def parse_place(text: str | Path | Place) -> Place:
    """Parse a folder or URL as users type it. InputError: an unknown scheme, a malformed URL, or one with secrets."""
    if isinstance(text, Place):
        return text
    scheme, mark, rest = text.partition("://")
    if not mark:
        if re.match(r"(s3|https?|file):", text):
            raise InputError(f"{text!r} is no URL: expected two slashes after the colon, as in s3://BUCKET/FOLDER.")
        return Path(text)
    scheme = scheme.lower()
    if scheme == "file":
        return Path(url2pathname(rest))
    if scheme not in SCHEMES:
        raise InputError(
            f"{scheme}:// is not known: expected a folder, s3://BUCKET/FOLDER, or http(s)://HOST/FOLDER to read only."
        )
    try:
        parts = urlsplit(f"{scheme}://{rest}")
    except ValueError as error:
        raise InputError(f"{scheme}:// followed by no address: {error}.") from None
    if "@" in parts.netloc:
        where = "~/.netrc" if scheme != "s3" else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials"
        raise InputError(
            f"{scheme}://…@{parts.netloc.rpartition('@')[2]} carries a user or password, which shells and results "
            f"would keep.\nPut them in {where}."
        )
    if parts.query or parts.fragment:
        raise InputError(f"{scheme}://{parts.netloc}{parts.path}: a URL of stores has no ? or # after it.")
    names = [name for name in parts.path.split("/") if name]
    if not parts.netloc or any(_leads_elsewhere(unquote(name)) for name in names):
        raise InputError(
            f"{text!r} names no place: expected {scheme}://{'BUCKET' if scheme == 's3' else 'HOST'}/FOLDER."
        )
    return Remote("/".join([f"{scheme}://{parts.netloc}", *names]))


def _leads_elsewhere(name: str) -> bool:
    """Return whether a part of a URL, ``..%2Fx.zarr`` say, would lead out of its folder as a file of this machine."""
    return name in (".", "..") or bool(set(name) & set("/\\\0"))


def is_local(where: Place) -> bool:
    """Return whether this is on one of this machine's file systems, NFS included."""
    return isinstance(where, Path)


def local_folder(where: Place, option: str) -> Path:
    """Return the folder. InputError: it is a URL, where only a folder will do."""
    if isinstance(where, Path):
        return where
    raise InputError(
        f"{option} {where}: expected a folder of this machine.\n"
        f"What is in one can be shared with `mlemiss store push FOLDER/NAME.zarr {where}`."
    )


class NotRegularError(OSError):
    """A file is a link, which may lead elsewhere, or a pipe, folder or device, which may never end."""


def open_regular(file: Path, mode: str = "rb") -> IO[bytes]:
    """Open a file that may be somebody else's. NotRegularError: it is a link, a pipe, a folder or the like."""
    return open(file, mode, opener=_open_regular)


def _open_regular(file: Path, flags: int) -> int:
    try:
        opened = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # ENXIO: a socket, or a pipe nobody reads
            raise
        raise NotRegularError(errno.ELOOP, "a link, socket or the like, not a regular file", str(file)) from None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise NotRegularError(errno.EINVAL, "a pipe, folder or device, not a regular file", str(file))
    return opened


def file_of(store: Place, name: str) -> Place:
    """Return the path of a store's file. NotRegularError: it is reached through a link."""
    if is_local(store):
        path = f"{os.path.realpath(store)}/{name}"
        if os.path.realpath(path) != path:
            raise NotRegularError(errno.ELOOP, "a link, and stores have regular files only", str(store / name))
    return store / name


def read_document(file: Place, most: int = DOCUMENT_BYTES) -> bytes:
    """Read a small file of a store whole.

    Raises:
        FileNotFoundError: it is absent.
        NotRegularError: it is a link, a pipe or the like.
        InputError: it is larger than ``most`` bytes.
    """
    content = bytearray()
    read_blocks(file, content.extend, most)
    if len(content) > most:
        raise InputError(f"{file} is larger than {most >> 10} kB: expected a small document.")
    return bytes(content)


class _TooLongError(Exception):
    """A file goes on beyond what was asked for."""


def read_blocks(file: Place, take: Callable[[bytes], object], most: int | None = None) -> None:
    """Read a file a block at a time, in bounded memory.

    Args:
        file: what to read.
        take: called with each block.
        most: stop after the block that goes beyond this many bytes.

    Raises:
        FileNotFoundError: the file is absent.
    """
    size = 0

    def count(block: bytes) -> None:
        nonlocal size
        take(block)
        size += len(block)
        if most is not None and size > most:
            raise _TooLongError

    with suppress(_TooLongError), reaching(file):
        if not is_local(file) and file.is_http:
            file.fs.get_file(file.url, _Sink(count), chunk_size=BLOCK_BYTES)  # one request, whatever the size
            return
        opened = open_regular(file) if is_local(file) else file.fs.open(file.url, "rb", block_size=8 * BLOCK_BYTES)
        with opened as stream:
            while block := stream.read(BLOCK_BYTES):
                count(block)


class _Sink:
    """An object that fsspec takes for an open file; fsspec only writes to it."""

    read = close = tell = None

    def __init__(self, write: Callable[[bytes], object]):
        self.write = write


def file_sizes(folder: Place) -> dict[str, int]:
    """Return the bytes of every file below a local or s3:// folder, by name relative to the folder.

    A link or pipe counts as a file, and is not followed.
    """
    if is_local(folder):
        states = ((path.relative_to(folder).as_posix(), path.lstat()) for path in folder.rglob("*"))
        return {name: state.st_size for name, state in states if not stat.S_ISDIR(state.st_mode)}
    with reaching(folder):
        entries = folder.fs.find(folder.url, detail=True)
    below = folder.url.removeprefix("s3://") + "/"
    return {name.removeprefix(below): entry["size"] for name, entry in entries.items()}


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Call a function on each item in a few threads; yield items with results as they come; the first error ends it."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {pool.submit(function, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


# ---- file systems and their errors ----


@lru_cache
def _options(scheme: str) -> dict:
    if scheme == "s3":
        tries = {"mode": "standard", "total_max_attempts": 3}
        config = {"connect_timeout": CONNECT, "read_timeout": READ, "retries": tries}
        return {"use_listings_cache": False, "config_kwargs": config}
    try:
        from aiohttp import ClientTimeout
    except ImportError:
        raise _not_installed(scheme, "aiohttp") from None
    timeout = ClientTimeout(total=None, sock_connect=3 * CONNECT, sock_read=READ)
    return {"simple_links": False, "client_kwargs": {"timeout": timeout, "trust_env": True}}


@lru_cache
def _file_system(scheme: str) -> Any:
    import fsspec

    options = _options(scheme)
    try:
        file_system = fsspec.filesystem(scheme, **options)
    except ImportError:
        raise _not_installed(scheme, "s3fs" if scheme == "s3" else "aiohttp") from None
    if scheme == "s3":
        file_system.retries = 2  # of what botocore has tried already
    return file_system


@lru_cache
def _contacted(scheme: str, host: str) -> Any:
    """Return the file system of a scheme after a first question to the server, so that one that hangs is found soon."""
    from fsspec.asyn import sync

    fs, root = _file_system(scheme), Remote(f"{scheme}://{host}")
    question = (fs._exists, f"{root}/") if root.is_http else (fs._call_s3, "head_bucket")
    try:
        sync(fs.loop, *question, timeout=CONTACT, **({} if root.is_http else {"Bucket": host}))
    except TimeoutError:
        raise ConnectionError(f"no answer within {CONTACT} s") from None
    except OSError:
        pass  # an answer: the next question tells more
    return fs


def _not_installed(scheme: str, package: str) -> InputError:
    return InputError(f"{scheme}:// needs the package {package}, which is not installed.\nInstall it: {REMOTE_EXTRA}")


@contextmanager
def reaching(where: Place) -> Iterator[None]:
    """Turn errors between here and a server into errors for a person, as `Remote` says.

    FileNotFoundError and FileExistsError pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(where, Path) or isinstance(error, InputError | MachineError):
            raise
        explained = _explain(where, error)
        if explained is None:
            raise
        raise explained from error


def _explain(where: Remote, error: Exception) -> InputError | MachineError | None:
    """Return the error to show a person for one of fsspec, s3fs, botocore or aiohttp; None: it is another error."""
    code = (getattr(error.__cause__, "response", None) or {}).get("Error", {}).get("Code")
    status, library = getattr(error, "status", None), type(error).__module__.partition(".")[0]
    said = str(error) or type(error).__name__
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    if code == "NoSuchBucket":
        bucket = urlsplit(where.url).netloc
        return InputError(
            f"{where}: there is no bucket {bucket} at {endpoint}.\nMake it there, or check AWS_ENDPOINT_URL."
        )
    if isinstance(error, FileNotFoundError | FileExistsError):
        return None
    if isinstance(error, PermissionError) or status in (401, 403):
        keys = "~/.netrc" if where.is_http else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return InputError(f"{where}: access denied ({said}).\nCheck {keys}, and what they give rights to.")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return InputError(f"{where}: {said}.\nSet AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.")
    if status is not None or code is not None:
        return InputError(f"{where}: the server refused ({said}).\nTry again; if it stays, ask who runs the server.")
    if library in ("aiohttp", "botocore", "aiobotocore") or isinstance(error, OSError) or "endpoint" in said:
        at = urlsplit(where.url).netloc if where.is_http else endpoint
        check = "the address and the network" if where.is_http else "AWS_ENDPOINT_URL and the network"
        return MachineError(f"{where}: cannot reach {at} ({said}).\nCheck {check}, and that the server runs.")
    return None
