"""Web and S3 servers that mean harm: real ones on loopback, which drip, never end, pack bombs or lead elsewhere."""

import gzip
import ipaddress
import shutil
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from mlemiss.pipeline import s3, web
from mlemiss.pipeline.clips import fetch
from mlemiss.pipeline.errors import InputError, MachineError
from mlemiss.pipeline.stores import remote
from mlemiss.pipeline.stores.catalogue import catalogue
from mlemiss.pipeline.stores.checksums import checksum
from mlemiss.pipeline.stores.remote import Remote, read_document
from mlemiss.pipeline.stores.store import FeatureStore

from .servers import KEYS, forget_clients
from .test_store import make_store

OK = b"HTTP/1.1 200 OK\r\n"
FAST, ENDLESS = 0.0, 1 << 40
Answer = Callable[[str], Iterator[bytes]]  # of a request's first line


class Raw(socketserver.ThreadingTCPServer):
    """Answers every request with what ``answers`` yields for its path, byte for byte, until the client goes."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, address: str, answers: dict[str, Answer]):
        self.answers, self.asked, self.logins = answers, [], 0
        super().__init__((address, 0), Once)
        self.url = f"http://{address}:{self.server_address[1]}"


class Once(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().decode()
        while (header := self.rfile.readline()) not in (b"\r\n", b""):
            self.server.logins += header.lower().startswith(b"authorization: basic")
        if not line:  # a connection over which nothing was sent
            return
        path = line.split()[1].partition("?")[0]
        self.server.asked.append(line.strip())
        with suppress(OSError):
            for part in self.server.answers.get(path, self.server.answers.get("*", nothing))(line):
                self.wfile.write(part)


@contextmanager
def serving(address: str = "127.0.0.1", **answers: Answer) -> Iterator[Raw]:
    with Raw(address, {("/" + path) if path != "*" else path: answer for path, answer in answers.items()}) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def nothing(_: str) -> Iterator[bytes]:
    yield b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def answer(body: bytes, *headers: str) -> Answer:
    head = OK + "".join(f"{header}\r\n" for header in headers).encode()
    return lambda _: iter([head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body])


def drip(before: bytes, again: bytes, pause: float = 0.05) -> Answer:
    """Answer with ``before``, then with ``again`` for ever."""

    def parts(_: str) -> Iterator[bytes]:
        yield before
        while True:
            time.sleep(pause)
            yield again

    return parts


def redirect(to: str, status: str = "302 Found") -> Answer:
    return lambda _: iter([f"HTTP/1.1 {status}\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()])


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "head": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": drip(OK + b"Content-Length: 100000\r\n\r\n", b"x"),
    "chunk_size": drip(CHUNKED, b"0"),
    "chunks": drip(CHUNKED, b"1\r\nx\r\n"),
    "trailers": drip(CHUNKED + b"0\r\n", b"X: x\r\n", FAST),
}


@pytest.fixture(scope="module")
def hostile():
    bomb = gzip.compress(bytes(50 << 20))
    fast = drip(OK + b"Content-Type: text/html\r\n\r\n", b'<a href="x.zarr">' * 4000, FAST)
    with serving(**DRIPS, bomb=answer(bomb, "Content-Encoding: gzip"), **{"": fast, "endless": fast}) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(web, "SLOW_SECONDS", 0.2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2,inside.example")


@pytest.mark.parametrize("kind", DRIPS)
def test_a_server_that_drips_is_given_up(kind, hostile, impatient):
    with pytest.raises(MachineError, match=rf"/{kind}: the server is too slow \(.* less than 60 kB.*\nTry again later"):
        read_document(Remote(f"{hostile.url}/{kind}"))
    with pytest.raises(MachineError, match=rf"/{kind}: less than 60 kB.*given up\.\nRun the same command again later"):
        list(fetch._blocks(f"{hostile.url}/{kind}"))


def test_the_readers_own_time_does_not_count(impatient):
    with serving(x=answer(bytes(3 << 20))) as server:
        size = 0
        for _, block in fetch._blocks(f"{server.url}/x"):
            size += len(block)
            if size < 2 << 20:
                time.sleep(0.1)
        assert size == 3 << 20


def test_no_body_is_read_beyond_its_bound(hostile, impatient):
    with pytest.raises(InputError, match="larger than 65536 kB"):
        read_document(Remote(f"{hostile.url}/endless"))
    assert checksum(Remote(f"{hostile.url}/endless"), 1000)["bytes"] < 3 << 20
    with pytest.raises(InputError, match="larger than 4096 kB"):
        catalogue(Remote(hostile.url))
    with pytest.raises(InputError, match="more than 10000000 bytes"):
        fetch._read_record(f"{hostile.url}/endless", ["x"])


def test_nothing_is_unpacked_on_the_way(hostile, impatient):
    assert len(read_document(Remote(f"{hostile.url}/bomb"))) < 100_000


def test_chunks_of_a_store_are_read_up_to_their_recorded_size(http, tmp_path):
    store = shutil.copytree(make_store(tmp_path), http.folder / "long.zarr")
    url = f"{http.url}/long.zarr"
    assert FeatureStore.open(url).read("visual").shape == (40, 3, 4)
    with (store / "visual/c/0/0/0").open("ab") as file:
        file.truncate(1 << 36)  # sparse
    with pytest.raises(InputError, match=r"visual/c/0/0/0 is at least \d+ bytes, recorded with"):
        FeatureStore.open(url).read("visual")


@pytest.mark.parametrize("page", ["<a " + " " * 500_000, "<a href=" * 100_000, "href='" * 100_000, "href = " * 100_000])
def test_an_index_is_searched_in_linear_time(page):
    begin = time.process_time()
    remote._linked(page, "http://x/y/")
    assert time.process_time() - begin < 20  # backtracking takes hours


def test_names_of_an_index(tmp_path):
    page = """<a href="b%20c.zarr/">, <A HREF='/top/d.zarr'>, <a class="x" href="http://h/top/e&amp;f.zarr">
        <a href="http://other/top/g.zarr"><a href="../up.zarr"><a href="deep/h.zarr"><a href="?C=N"><a href="http://[">"""
    assert remote._linked(page, "http://h/top/") - {""} == {"b c.zarr", "d.zarr", "e&f.zarr"}


# ---- redirects ----


@pytest.mark.parametrize(
    ("address", "private"),
    [
        *(
            (text, True)
            for text in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0")
        ),
        *(
            (text, True)
            for text in ("::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "100.64.0.1")
        ),
        *((text, False) for text in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8")),
    ],
)
def test_what_is_a_private_address(address, private):
    assert web.is_private(address) is private


def test_a_connection_that_was_closed_meanwhile_is_opened_again(impatient, monkeypatch):
    monkeypatch.setattr("urllib3.connectionpool.is_connection_dropped", lambda _: False)  # not seen beforehand
    with serving(x=answer(b"first")) as server:
        for _ in range(3):  # the server closes after each answer, and says nothing of it
            assert read_document(Remote(f"{server.url}/x")) == b"first"
            time.sleep(0.01)


@pytest.fixture
def outside_and_inside(monkeypatch, impatient):
    """Two servers: 127.0.0.1 counts as a public address, 127.0.0.2, or inside.example, as a private one."""
    public = ipaddress.ip_address("127.0.0.1")
    monkeypatch.setattr(web, "is_private", lambda address: ipaddress.ip_address(address) != public)
    found = socket.getaddrinfo
    names = {"inside.example": "127.0.0.2"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **how: found(names.get(host, host), *more, **how))
    with serving() as outside, serving("127.0.0.2", secret=answer(b"secret")) as inside:
        yield outside, inside


@pytest.mark.parametrize("host", ["127.0.0.2", "inside.example"])
def test_a_public_address_leads_to_no_private_one(host, outside_and_inside):
    outside, inside = outside_and_inside
    there = f"{inside.url.replace('127.0.0.2', host)}/secret"
    outside.answers["/x"] = redirect("/y", "301 Moved Permanently")
    outside.answers["/y"] = redirect(there, "307 Temporary Redirect")
    with pytest.raises(
        InputError, match=rf"{host}.*redirected there, to a private address, from a public one: refused"
    ):
        read_document(Remote(f"{outside.url}/x"))
    with pytest.raises(fetch.ZipError, match="to a private address"):
        list(fetch._blocks(f"{outside.url}/x"))
    assert inside.asked == []
    assert read_document(Remote(there)) == b"secret"  # as the user names it
    inside.answers["/again"] = redirect("/secret")
    assert read_document(Remote(there.replace("secret", "again"))) == b"secret"
    outside.answers["/z"], outside.answers["/there"] = redirect("/there"), answer(b"public")
    assert read_document(Remote(f"{outside.url}/z")) == b"public"


def test_a_record_leads_to_no_private_address(outside_and_inside):
    outside, inside = outside_and_inside
    body = (
        '{"files": [{"key": "a.zip", "size": 6, "checksum": "md5:' + "0" * 32 + '", "links": {"self": "'
    ) + f'{inside.url}/secret"}}}}]}}'
    for server, allowed in ((outside, False), (inside, True)):
        server.answers["/record"] = answer(body.encode())
        (file,) = fetch._read_record(f"{server.url}/record", ["a.zip"])
        inside.asked.clear()
        if allowed:
            assert list(fetch._blocks(file.url, anywhere=file.anywhere)) == [(0, b"secret")]
        else:
            with pytest.raises(fetch.ZipError, match="to a private address"):
                list(fetch._blocks(file.url, anywhere=file.anywhere))
            assert inside.asked == []


@pytest.mark.parametrize("there", ["http://127.0.0.1/x", "http://localhost:80/x", "http://[::1]/x"])
def test_nor_through_a_proxy(there, monkeypatch):
    """Which looks up names itself: what stands there as private is not asked for."""
    with serving(**{"*": redirect(there)}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.raises(InputError, match="to a private address, from a public one"):
            read_document(Remote("http://files.example/x"))
        assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    ("to", "why"),
    [("/x", "redirects more than 5 times"), ("file:///etc/passwd", "no web address"), ("http://[", "no web address")],
)
def test_redirects_that_lead_nowhere(to, why, impatient):
    with serving(x=redirect(to)) as server, pytest.raises(InputError, match=why):
        read_document(Remote(f"{server.url}/x"))


def test_a_password_is_for_its_server_alone(tmp_path, monkeypatch, impatient):
    (tmp_path / "netrc").write_text("default login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving() as first, serving(y=answer(b"y")) as second:
        first.answers["/x"], first.answers["/z"] = redirect("/z"), redirect(f"{second.url}/y")
        assert read_document(Remote(f"{first.url}/x")) == b"y"
        assert (first.logins, second.logins) == (2, 0)


# ---- S3 ----


@pytest.fixture
def bucket(monkeypatch, impatient):
    """An S3 server that answers as a test wants; s3://bucket."""
    with serving(**{"*": answer(b"")}) as server:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": server.url}).items():
            monkeypatch.setenv(name, value)
        forget_clients()
        yield server
    forget_clients()


@pytest.mark.parametrize("kind", ["head", "body"])
def test_an_s3_server_that_drips_is_given_up(kind, bucket, monkeypatch):
    monkeypatch.setattr(s3, "SLOW_SECONDS", 0.2)
    bucket.answers["/bucket/x"] = DRIPS[kind]
    with pytest.raises(MachineError, match=r"s3://bucket/x: the server is too slow.*\nTry again later"):
        read_document(Remote("s3://bucket/x"))


def test_no_more_is_read_from_s3_than_asked_for(bucket):
    bucket.answers["/bucket/x"] = drip(OK + f"Content-Length: {ENDLESS}\r\n\r\n".encode(), bytes(1 << 16), FAST)
    assert checksum(Remote("s3://bucket/x"), 1000)["bytes"] < 3 << 20


def page(line: str, number: list = []) -> Iterator[bytes]:  # noqa: B006
    number.append(0)
    body = f"""<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t
        </NextContinuationToken><Contents><Key>x/{len(number)}</Key><Size>1</Size></Contents></ListBucketResult>"""
    return answer(body.encode(), "Content-Type: application/xml")(line)


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        (page, "lists too many files, or without end"),
        (lambda _: page("", []), "lists too many files, or without end"),
        (drip(OK + b"Content-Type: application/xml\r\n\r\n", b"<x>" * 10_000, FAST), "answers with more than 4 MB"),
    ],
)
def test_lists_of_s3_have_an_end(listing, why, bucket, monkeypatch):
    monkeypatch.setattr(s3, "MOST_LISTED", 20)
    bucket.answers["/bucket"] = bucket.answers["/bucket/"] = lambda line: (
        listing(line) if line.startswith("GET") else answer(b"")(line)
    )
    with pytest.raises(InputError, match=why):
        remote.file_sizes(Remote("s3://bucket/x"))


def test_s3_follows_no_redirect(bucket):
    with serving("127.0.0.2", **{"*": answer(b"secret")}) as inside:
        bucket.answers["/bucket/x"] = redirect(f"{inside.url}/secret")
        with pytest.raises(InputError, match="the server refused"):
            read_document(Remote("s3://bucket/x"))
        assert inside.asked == []
