"""Ask web servers that may be hostile: they answer in time or are given up, and lead nobody into a private network.

A body is handed on a block at a time, never decoded (a gzip bomb stays small) and never held: whoever reads says how
much. Knows nothing of stores.
"""

import io
import ipaddress
import netrc
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager, Retry
from urllib3 import make_headers as headers_of
from urllib3.exceptions import HTTPError as HTTPError

BLOCK = 1 << 20  # bytes read at once
SLOW_SECONDS, SLOW_BYTES = 60.0, 60 << 10  # a server that sends less in that time is given up
MOST_REDIRECTS = 5
CONNECTIONS = 10  # kept open to one server
HEADERS = {"User-Agent": "mlemiss", "Accept-Encoding": "identity"}
LOCAL_NAMES = ("localhost", "localhost.localdomain")


class WebError(Exception):
    """A server answers with what it should not; the message is one line. ``status`` is HTTP's, if that is why."""

    def __init__(self, text: str, status: int | None = None):
        super().__init__(text)
        self.status = status


class TooSlowError(WebError):
    """A server sends, but hardly: nobody would see its end."""


@contextmanager
def answer(
    url: str,
    retries: Retry,
    timeout: Any,
    headers: Mapping[str, str] | None = None,
    login: bool = False,
    anywhere: bool = True,
) -> Iterator[BaseHTTPResponse]:
    """Ask for a URL, and yield the answer, whatever its status; redirects are followed.

    Args:
        url: http:// or https://.
        retries: urllib3's, of each address on the way.
        timeout: urllib3's, of a connection and of each wait for a byte.
        headers: more of them.
        login: send the user and password that ~/.netrc has for this server.
        anywhere: the user named the URL, so it may be a private address; else `may_lead_inside` says whether.

    Raises:
        WebError: redirects without end, to something else than the web, or from a public address to a private one.
        TooSlowError: as `blocks`.
        HTTPError: urllib3's, where there is no answer.
    """
    here = url
    for _ in range(MOST_REDIRECTS + 1):
        connections, proxied = _connections(here, anywhere)
        if not anywhere and proxied and _names_private(here):
            raise _private(here)
        own = _login(here) if login and urlsplit(here)[:2] == urlsplit(url)[:2] else {}
        asked = {"headers": HEADERS | dict(headers or {}) | own, "retries": retries, "timeout": timeout}
        PACE.start(here)
        with connections.request("GET", here, redirect=False, preload_content=False, **asked) as response:
            following = response.get_redirect_location()
            if not following:
                yield response
                return
        anywhere = anywhere and may_lead_inside(here)
        here = _followed(here, following)
    raise WebError(f"{url}: redirects more than {MOST_REDIRECTS} times")


def blocks(response: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the body of an answer as it comes, undecoded.

    Raises:
        TooSlowError: less than `SLOW_BYTES` came in `SLOW_SECONDS`; what the reader does meanwhile does not count.
        HTTPError: urllib3's, where the connection is cut.
    """
    while block := response.read1(BLOCK, decode_content=False):
        with PACE.paused(len(block)):
            yield block


def is_private(address: str) -> bool:
    """Return whether an IP address is of this machine or a private network: loopback, link-local, RFC 1918, …"""
    found = ipaddress.ip_address(address.partition("%")[0])
    return not (getattr(found, "ipv4_mapped", None) or found).is_global


def may_lead_inside(url: str) -> bool:
    """Return whether what a server says may lead to a private address: it has one itself, as was seen when asked."""
    if _connections(url, True)[1]:
        return _names_private(url)
    peer = PEERS.get(urlsplit(url).hostname)
    return peer is not None and is_private(peer)


def _names_private(url: str) -> bool:
    """Return whether a URL's host is a private address as it stands; a proxy looks up what it would be else."""
    host = urlsplit(url).hostname or ""
    try:
        return is_private(host)
    except ValueError:
        return host.rstrip(".") in LOCAL_NAMES


def _private(url: str) -> WebError:
    return WebError(f"{url}: redirected there, to a private address, from a public one: refused")


def _followed(here: str, following: str) -> str:
    try:
        there = urljoin(here, following)
        known = urlsplit(there).scheme in ("http", "https") and urlsplit(there).hostname and urlsplit(there).port != 0
    except ValueError:
        known = False
    if not known:
        raise WebError(f"{here}: redirects to {following[:200]!r}, which is no web address")
    return there


def _login(url: str) -> dict[str, str]:
    """Return the header for the user and password of ~/.netrc (or $NETRC). WebError: it cannot be read."""
    file = Path(os.environ.get("NETRC") or Path("~/.netrc").expanduser())
    try:
        found = netrc.netrc(file).authenticators(urlsplit(url).hostname or "")
    except FileNotFoundError:
        return {}
    except (OSError, netrc.NetrcParseError) as error:
        raise WebError(f"{file} cannot be read ({error})") from None
    return headers_of(basic_auth=f"{found[0]}:{found[2]}") if found else {}


# ---- the pace of the answer that this thread reads ----


class Pace(threading.local):
    """The time that a server takes, and what it sends in it."""

    url = ""

    def start(self, url: str | None = None) -> None:
        """Begin to count, with each answer."""
        self.url, self.since, self.got = url or self.url, time.monotonic(), 0

    def check(self) -> None:
        """Raise TooSlowError where too little came for too long."""
        if (now := time.monotonic()) - self.since > SLOW_SECONDS:
            if self.got < SLOW_BYTES:
                raise TooSlowError(f"{self.url}: less than {SLOW_BYTES >> 10} kB in {SLOW_SECONDS:.0f} s: given up")
            self.since, self.got = now, 0

    @contextmanager
    def paused(self, size: int) -> Iterator[None]:
        """Count a block, and leave out the time in which its reader works on it."""
        self.got += size
        begin = time.monotonic()
        yield
        self.since += time.monotonic() - begin


PACE = Pace()


class _PacedSocket:
    """A socket; whatever is read of an answer, headers and chunk sizes too, has to come in time."""

    def __init__(self, sock: socket.socket):
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def makefile(self, mode: str, *_: Any, **__: Any) -> io.BufferedReader:
        """Return the file that an answer is read from."""
        PACE.start()
        return io.BufferedReader(_PacedFile(self._sock.makefile(mode, buffering=0)))


class _PacedFile(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase):
        self._raw = raw

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Receive what there is. TooSlowError: it is too little for the time."""
        size = self._raw.readinto(buffer)
        PACE.check()
        return size

    def close(self) -> None:
        """Close it, and with it what keeps the socket open."""
        self._raw.close()
        super().close()


# ---- connections ----


PEERS: dict[str, str] = {}  # host -> the IP address that was reached last


class _Anywhere:
    """A connection that tells whom it reached."""

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        PEERS[self.host.lower()] = self.peer = sock.getpeername()[0]
        return sock

    def connect(self) -> None:
        """Connect."""
        super().connect()
        self.sock = _PacedSocket(self.sock)


class _Public(_Anywhere):
    """A connection to a public address: looked at after the name was resolved, before anything is sent."""

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        if self.proxy is None and is_private(self.peer):
            sock.close()
            raise _private(f"{self.host} ({self.peer})")
        return sock


def _pool(kind: type, connection: type) -> type:
    return type(
        kind.__name__, (kind,), {"ConnectionCls": type(connection.__name__, (connection, kind.ConnectionCls), {})}
    )


POOLS = {
    anywhere: {"http": _pool(HTTPConnectionPool, connection), "https": _pool(HTTPSConnectionPool, connection)}
    for anywhere, connection in ((True, _Anywhere), (False, _Public))
}


def _connections(url: str, anywhere: bool) -> tuple[PoolManager, bool]:
    """Return connections for a URL, and whether they go through the proxy that the environment names for it."""
    address = urlsplit(url)
    proxy = getproxies().get(address.scheme)
    if not proxy or proxy_bypass(address.netloc):
        return _manager(None, anywhere), False
    return _manager(proxy if "://" in proxy else f"http://{proxy}", anywhere), True


@lru_cache(maxsize=16)
def _manager(proxy: str | None, anywhere: bool) -> PoolManager:
    if proxy is None:
        manager = PoolManager(maxsize=CONNECTIONS)
    else:
        user = unquote(urlsplit(proxy).netloc.rpartition("@")[0])  # and password
        login = headers_of(proxy_basic_auth=user or None)
        manager = ProxyManager(proxy, maxsize=CONNECTIONS, proxy_headers=login)
    manager.pool_classes_by_scheme = POOLS[anywhere]
    return manager
