"""The places of stores: a folder (local or NFS), or a URL.

s3://BUCKET/FOLDER        read and written; keys and endpoint as botocore finds them (AWS_PROFILE, ~/.aws, …)
http(s)://HOST/FOLDER     read only; user and password from ~/.netrc, proxies from the environment

Secrets never stand in a place's name, so that results, messages and logs may show it.
"""

import errno
import html
import os
import re
import stat
from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import url2pathname

from ..errors import InputError, MachineError

BLOCK_BYTES = 1 << 20  # bytes read at once
DOCUMENT_BYTES = 64 << 20  # bytes: no JSON document of a store is larger
INDEX_BYTES = 4 << 20  # bytes of the page that lists a folder
AT_ONCE = 4  # files under way at the same time
CONNECT, READ = 9, 30  # seconds that a web server may take to accept, and to go on
SCHEMES = ("s3", "http", "https")

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
        """Return s3fs's file system, after a first contact with the server (s3 only)."""
        from ..s3 import contacted

        return contacted(urlsplit(self.url).netloc)

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
        if not self.is_http:
            names = {name.rstrip("/") for name in _s3_files(self, "/")}
        else:
            try:
                page = read_document(Remote(f"{self.url}/"), INDEX_BYTES)
            except FileNotFoundError:
                raise InputError(
                    f"no list of what is in {self}: the server has no such folder, or shows no index page of it.\n"
                    f"Name a store itself, {self}/NAME.zarr, which needs none."
                ) from None
            names = _linked(page.decode(errors="replace"), f"{self.url}/")
        for name in sorted(names):
            if name not in ("", ".", "..") and not set(name) & set("/\\?#"):
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
        if not is_local(file):
            for block in _web_blocks(file.url) if file.is_http else _s3_blocks(file):
                count(block)
            return
        with open_regular(file) as stream:
            while block := stream.read(BLOCK_BYTES):
                count(block)


def file_sizes(folder: Place) -> dict[str, int]:
    """Return the bytes of every file below a local or s3:// folder, by name relative to the folder.

    A link or pipe counts as a file, and is not followed.
    """
    if is_local(folder):
        states = ((path.relative_to(folder).as_posix(), path.lstat()) for path in folder.rglob("*"))
        return {name: state.st_size for name, state in states if not stat.S_ISDIR(state.st_mode)}
    return _s3_files(folder)


def _s3_files(folder: Remote, delimiter: str = "") -> dict[str, int]:
    from ..s3 import listed

    with reaching(folder):
        return listed(folder.fs, folder.url, delimiter)


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Call a function on each item in a few threads; yield items with results as they come; the first error ends it."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {pool.submit(function, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


# ---- servers ----

LINK = re.compile(r"""\bhref\s{0,9}=\s{0,9}["']([^"'<>]{1,2000})["']""", re.IGNORECASE)  # bounded, so in linear time


def _s3_blocks(file: Remote) -> Iterator[bytes]:
    from ..s3 import object_blocks

    return object_blocks(file.fs, file.url)


def _web_blocks(url: str) -> Iterator[bytes]:
    from urllib3 import Retry, Timeout

    from .. import web

    # Twice more, as connections that were kept open may have been closed meanwhile.
    again = Retry(2, connect=0, status=0, other=0, redirect=False)
    with web.answer(url, again, Timeout(connect=CONNECT, read=READ), login=True) as response:
        if response.status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, "not on the server", url)
        if response.status != 200:
            raise web.WebError(f"{response.status} {response.reason}", response.status)
        yield from web.blocks(response)


def _linked(page: str, url: str) -> set[str]:
    """Return the names of what is right below a URL, by the links of its index page."""
    names = set()
    for link in LINK.findall(page):
        with suppress(ValueError):
            there, base = urlsplit(urljoin(url, html.unescape(link))), urlsplit(url)
            folder, _, name = there.path.rstrip("/").rpartition("/")
            if there.netloc == base.netloc and unquote(folder) == unquote(base.path.rstrip("/")):
                names.add(unquote(name))
    return names


# ---- errors ----


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
    """Return the error to show a person for one of urllib3, s3fs, botocore or aiohttp; None: it is another error."""
    from .. import web

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
    if isinstance(error, web.TooSlowError):
        return MachineError(f"{where}: the server is too slow ({said}).\nTry again later, or ask who runs the server.")
    if isinstance(error, web.WebError):
        return InputError(f"{where}: {said}.\nSee whether the address is right; name the one it should lead to.")
    if library in ("urllib3", "aiohttp", "botocore", "aiobotocore") or isinstance(error, OSError) or "endpoint" in said:
        at = urlsplit(where.url).netloc if where.is_http else endpoint
        check = "the address and the network" if where.is_http else "AWS_ENDPOINT_URL and the network"
        return MachineError(f"{where}: cannot reach {at} ({said}).\nCheck {check}, and that the server runs.")
    return None
