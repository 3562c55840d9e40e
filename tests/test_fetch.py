"""`fetch` against a real HTTP server on loopback that answers as the record's API does, and misbehaves."""

import base64
import hashlib
import json
import os
import random
import re
import stat
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlemiss.pipeline import commands
from mlemiss.pipeline.clips import datasets, fetch
from mlemiss.pipeline.clips.datasets import ravdess
from mlemiss.pipeline.clips.manifest import Clip, Download, files_below
from mlemiss.pipeline.errors import InputError, MachineError

RECORD = "/api/records/1188976"
ZIPS = ravdess.DOWNLOAD.zips


def names_of(actor: int) -> list[str]:
    return [path.partition("/")[2] for path in ravdess.DOWNLOAD.clips(actor).values()]


def content_of(name: str) -> bytes:
    return random.Random(name).randbytes(3000)


def make_zip(path: Path, members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


def actor_zip(folder: Path, actor: int) -> bytes:
    """As in the record: the audio-visual clips of an actor and the video-only ones."""
    members = {f"Actor_{actor:02}/": b""}
    for name in names_of(actor):
        members[f"Actor_{actor:02}/{name}"] = content_of(name)
        members[f"Actor_{actor:02}/02{name[2:]}"] = content_of(f"02{name[2:]}")
    return make_zip(folder / f"{actor}.zip", members)


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path with Range; ``faults[path]`` are taken one a request, from the first.

    A fault is an HTTP status with headers, ("cut", bytes) that ends the connection early, ("cut unsized", bytes) that
    does so without a Content-Length, ("whole",) that ignores Range, with bytes to be cut after, or ("pause", bytes)
    that sends so much and then nothing more for a long time.
    """

    daemon_threads = True

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list] = {}
        self.asked: list[tuple[str, str | None]] = []  # path and Range of every request
        self.authorisations: set[str | None] = set()  # to a proxy
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add_record(self, zips: dict[int, bytes], **changed) -> None:
        files = []
        for actor, content in zips.items():
            key = ZIPS[actor]
            path = f"{RECORD}/files/{key}/content"
            self.files[path] = content
            checksum = "md5:" + hashlib.md5(content).hexdigest()
            entry = {"id": f"x{actor}", "key": key, "size": len(content), "checksum": checksum}
            files.append(entry | {"links": {"self": self.url + path}} | changed)
        song = {"key": "Video_Song_Actor_01.zip", "size": 5, "checksum": "md5:" + "0" * 32}
        files.append(song | {"links": {"self": self.url + "/song"}})
        self.files[RECORD] = json.dumps({"id": 1188976, "files": files}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server: Server = self.server
        asked = self.headers.get("Range")
        server.asked.append((self.path, asked))
        server.authorisations.add(self.headers.get("Proxy-Authorization"))
        faults = server.faults.get(self.path)
        kind, *more = faults.pop(0) if faults else (None,)
        content = server.files.get(self.path)
        if isinstance(kind, int) or content is None:
            self.send_response(kind or 404)
            for name, value in more:
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and kind != "whole" else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if kind != "cut unsized":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + more[0] if more else None
        self.wfile.write(content[start:stop])
        if kind == "pause":
            self.wfile.flush()
            time.sleep(60)
        if stop is not None:
            self.close_connection = True


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch, "REPEATS", fetch.REPEATS.new(backoff_factor=0.01))
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def zips(tmp_path_factory) -> dict[int, bytes]:
    folder = tmp_path_factory.mktemp("zips")
    return {actor: actor_zip(folder, actor) for actor in (1, 2)}


def get(web: Server, root: Path, *actors: int) -> fetch.Fetched:
    return fetch.fetch_dataset(ravdess, root, actors or (1, 2), web.url + RECORD)


def asked_for(web: Server, actor: int) -> list[str | None]:
    return [span for path, span in web.asked if path.endswith(f"{ZIPS[actor]}/content")]


def holds_all(root: Path, *actors: int) -> bool:
    """Exactly the audio-visual clips of these actors, whole; nothing of the work is left but the lock."""
    there = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    wanted = {f"Actor_{actor:02}/{name}": content_of(name) for actor in actors for name in names_of(actor)}
    return {name: path.read_bytes() for name, path in there.items() if name != ".fetch/lock"} == wanted


@pytest.mark.slow
def test_the_command_fetches_what_is_not_there_and_preprocess_would_find_it(web, zips, tmp_path, mlemiss):
    web.add_record(zips)
    root = tmp_path / "raw" / "ravdess"
    options = ["fetch", "ravdess", "--root", root, "--record", web.url + RECORD, "--actors"]
    result = mlemiss(*options, "2")
    assert result.returncode == 0, result.stderr
    assert holds_all(root, 2) and "60 clips unpacked, 60 other files left out" in result.stderr
    assert f"mlemiss preprocess --dataset ravdess --root {root}" in result.stderr and result.stdout == ""
    result = mlemiss(*options, "1-2")
    assert result.returncode == 0 and holds_all(root, 1, 2)
    assert "1 of 2 actors are in" in result.stderr and asked_for(web, 2) == asked_for(web, 1) == [None]
    assert len(ravdess.find(root, files_below(root)[0])[0]) == 120
    before = len(web.asked)
    left = root / ".fetch" / "Video_Speech_Actor_02.zip"  # as by a kill after its last clip
    left.touch()
    assert mlemiss(*options, "1,2").returncode == 0 and len(web.asked) == before and not left.exists()
    for wrong in ("0", "25", "1-99999", "a", ""):
        result = mlemiss(*options, wrong)
        assert result.returncode == 2 and "expected numbers from 1 to 24" in result.stderr
    result = mlemiss("fetch", "enterface05")
    assert result.returncode == 2 and "only ravdess can be downloaded" in result.stderr


def test_a_dataset_of_another_package_is_fetched_by_what_it_declares(web, tmp_path, monkeypatch):
    """Its entry point names a module with a DOWNLOAD; its folder, parts and record need not be RAVDESS's."""

    def find(root, files):
        videos = [path for path in files if path.suffix == ".avi"]
        return [Clip(path.stem, path.relative_to(root).as_posix(), "glad", "s") for path in videos], []

    ids = {1: ("a1", "a2"), 7: ("b1",)}
    download = Download(
        web.url + "/list.json",
        {1: "first.zip", 7: "rest.zip"},
        lambda part: {clip_id: f"videos/{clip_id}.avi" for clip_id in ids[part]},
    )
    mine = SimpleNamespace(
        NAME="mine", SUMMARY="mine", CLASSES=("glad",), EXAMPLE="a.avi", find=find, DOWNLOAD=download
    )
    lacking = SimpleNamespace(**vars(mine) | {"NAME": "lacking"})
    del lacking.DOWNLOAD
    plugins = [SimpleNamespace(name=module.NAME, load=lambda module=module: module) for module in (mine, lacking)]
    monkeypatch.setattr(datasets, "entry_points", lambda group: plugins)
    entries = []
    for part, name in download.zips.items():
        content = make_zip(tmp_path / name, {f"{clip_id}.avi": content_of(clip_id) for clip_id in ids[part]})
        web.files[f"/{name}"] = content
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        links = {"self": f"{web.url}/{name}"}
        entries.append({"key": name, "size": len(content), "checksum": checksum, "links": links})
    web.files["/list.json"] = json.dumps({"files": entries}).encode()
    monkeypatch.setenv("MLEMISS_DATA", str(tmp_path / "data"))
    assert commands.fetch("mine", parts="7") == 0
    assert {path.name for path in (tmp_path / "data" / "mine" / "videos").iterdir()} == {"b1.avi"}
    assert commands.fetch("mine") == 0 and [path for path, _ in web.asked].count("/rest.zip") == 1
    for clip_id in ("a1", "a2", "b1"):
        assert (tmp_path / "data" / "mine" / "videos" / f"{clip_id}.avi").read_bytes() == content_of(clip_id)
    with pytest.raises(InputError, match=r"--parts '8': expected numbers from 1 to 7"):
        commands.fetch("mine", parts="8")
    with pytest.raises(InputError, match="cannot fetch 'lacking': only ravdess, mine can be downloaded"):
        commands.fetch("lacking")
    with pytest.raises(InputError, match="unknown dataset 'other'"):
        commands.fetch("other")


def test_what_was_deleted_or_is_empty_is_fetched_again(web, zips, tmp_path):
    web.add_record(zips)
    get(web, tmp_path, 1)
    lost, empty = (tmp_path / "Actor_01" / name for name in names_of(1)[:2])
    lost.unlink()
    empty.write_bytes(b"")
    assert get(web, tmp_path, 1).unpacked == [1] and holds_all(tmp_path, 1)


def test_cut_connections_are_resumed(web, zips, tmp_path, capsys):
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.faults = {RECORD: [(503,), ("cut", 100)], path: [("cut", 50_000), (429, ("Retry-After", "0")), ("cut", 7)]}
    assert get(web, tmp_path, 1).unpacked == [1] and holds_all(tmp_path, 1)
    assert asked_for(web, 1) == [None, "bytes=50000-", "bytes=50000-", "bytes=50007-"]
    said = capsys.readouterr().err
    assert re.search(r"Video_Speech_Actor_01\.zip/content: .*50000 bytes read.*; again in", said) and "429" in said


def test_a_server_without_ranges_starts_over(web, zips, tmp_path):
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.faults = {path: [("cut", 50_000), ("whole",)]}
    assert get(web, tmp_path, 1).unpacked == [1] and holds_all(tmp_path, 1)


def test_a_cut_without_a_content_length_is_resumed(web, zips, tmp_path):
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.faults = {path: [("cut unsized", 50_000), ("cut unsized", 7)]}
    assert get(web, tmp_path, 1).unpacked == [1] and holds_all(tmp_path, 1)
    assert asked_for(web, 1) == [None, "bytes=50000-", "bytes=50007-"]


def test_an_end_without_a_content_length_costs_that_actor_if_the_file_is_shorter_than_listed(web, zips, tmp_path):
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.files[path] = short = zips[1][:-10]
    web.faults = {path: [("cut unsized", len(short))]}
    result = get(web, tmp_path, 1)
    assert "expected md5" in result.failed[ZIPS[1]] and asked_for(web, 1) == [None, f"bytes={len(short)}-"]


def test_a_server_without_ranges_that_always_cuts_is_given_up(web, zips, tmp_path):
    """Whatever it sends again is no progress: no request without end."""
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.faults = {path: [("whole", 50_000)] * 50}
    with pytest.raises(MachineError, match="no connection, after repeated attempts"):
        get(web, tmp_path, 1)
    assert len(asked_for(web, 1)) < 10


def test_a_server_that_never_gets_on_is_given_up_and_resumed_later(web, zips, tmp_path):
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.faults = {path: [("cut", 60_000)] + [(500,)] * 6}
    with pytest.raises(MachineError, match=r"no connection, after repeated attempts \(500 .*\)\.\nRun the same"):
        get(web, tmp_path, 1)
    assert get(web, tmp_path, 1).unpacked == [1] and holds_all(tmp_path, 1)
    assert asked_for(web, 1)[-1] == "bytes=60000-"


def test_a_file_that_is_shorter_than_listed_costs_that_actor(web, zips, tmp_path):
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.files[path] = zips[1][:-10]
    result = get(web, tmp_path, 1)
    assert "expected md5" in result.failed[ZIPS[1]] and asked_for(web, 1) == [None]


def test_a_proxy_of_the_environment_is_used(web, zips, tmp_path, monkeypatch):
    web.add_record(zips)
    host = "http://record.invalid"  # only the proxy can know it
    web.files = {host + path: content.replace(web.url.encode(), host.encode()) for path, content in web.files.items()}
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", web.url.replace("http://", "http://user:pass%40word@"))
    assert fetch.fetch_dataset(ravdess, tmp_path, [1], host + RECORD).unpacked == [1]
    assert holds_all(tmp_path, 1) and all(path.startswith(host) for path, _ in web.asked)
    user_and_password = base64.b64encode(b"user:pass@word").decode()
    assert web.authorisations == {f"Basic {user_and_password}"}


def test_killed_it_goes_on_where_it_was(web, zips, tmp_path, mlemiss):
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.faults = {path: [("pause", 70_000)]}
    arguments = ["fetch", "ravdess", "--root", tmp_path, "--actors", 1, "--record", web.url + RECORD]
    process = mlemiss.start(*arguments)
    partial = tmp_path / ".fetch" / f"{ZIPS[1]}.partial"
    while not (partial.is_file() and partial.stat().st_size == 70_000):
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    with pytest.raises(InputError, match="another mlemiss"):
        get(web, tmp_path, 1)
    process.kill()
    assert get(web, tmp_path, 1).unpacked == [1] and holds_all(tmp_path, 1)
    assert asked_for(web, 1) == [None, "bytes=70000-"]


def test_leftovers_that_do_not_fit_cost_one_more_download(web, zips, tmp_path):
    web.add_record(zips)
    partial = tmp_path / ".fetch" / f"{ZIPS[1]}.partial"
    for leftover in (b"x" * 5000, b"x" * (len(zips[1]) + 1), b"x" * len(zips[1])):
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(leftover)
        (tmp_path / "Actor_01" / names_of(1)[0]).unlink(missing_ok=True)
        assert get(web, tmp_path, 1).unpacked == [1] and holds_all(tmp_path, 1)


def test_one_bad_zip_costs_that_actor(web, zips, tmp_path, mlemiss):
    """Another content than the checksum's, a file that is gone, one that is longer than listed: listed, status 1."""
    web.add_record(zips)
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    options = ["fetch", "ravdess", "--root", tmp_path / "r", "--record", web.url + RECORD, "--actors", "1-2"]
    for wrong, said in (
        (zips[1][:-1] + b"x", "expected md5 .*, found .*: what arrived is thrown away"),
        (None, "the server answers 404"),
        (zips[1] + b"more", "expected .* bytes, found more"),
    ):
        web.files[path] = wrong
        result = mlemiss(*options)
        assert result.returncode == 1
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("failed: Video_Speech_Actor_01.zip")]
        assert re.search(said, line)
        assert holds_all(tmp_path / "r", 2)
    web.files[path] = zips[1]
    assert mlemiss(*options).returncode == 0 and holds_all(tmp_path / "r", 1, 2)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, r"the record: .*404.*\nSee whether it has moved"),
        (b"<html>maintenance</html>", r"found something that is not JSON\.\nThe record or its API has changed"),
        (b"[]", "found TypeError"),
        (b'{"entries": []}', "found KeyError 'files'"),
        (b'{"files": []}', r"found no Video_Speech_Actor_01\.zip among its files"),
        ({"checksum": "md5:123"}, "found ValueError checksum 'md5:123'"),
        ({"checksum": None}, "found AttributeError"),
        ({"size": "big"}, "found ValueError size 'big'"),
        ({"links": {"self": "file:///etc/passwd"}}, "found ValueError link 'file:///etc/passwd'"),
    ],
)
def test_a_record_of_another_shape(web, zips, tmp_path, record, said):
    if isinstance(record, dict):
        web.add_record({1: zips[1]}, **record)
    elif record is not None:
        web.files[RECORD] = record
    with pytest.raises(InputError, match=said):
        get(web, tmp_path, 1)
    assert not list(tmp_path.rglob("*.zip*"))


@pytest.mark.parametrize("record", [b"[" * 200_000, b'{"files": ' + b"9" * 6000 + b"}", b"\xff", b'{"files": NaN}'])
def test_a_record_of_hostile_json(web, zips, tmp_path, record):
    web.files[RECORD] = record
    with pytest.raises(InputError, match="The record or its API has changed"):
        get(web, tmp_path, 1)


@pytest.mark.parametrize("wait", ["9" * 5000, "Fri, 31 Dec 99999999999 23:59:59 GMT", "soon"])
def test_a_wait_out_of_this_world(web, zips, tmp_path, wait, monkeypatch):
    monkeypatch.setattr(fetch, "LONGEST_WAIT", 0.01)
    web.add_record({1: zips[1]})
    web.faults[RECORD] = [(503, ("Retry-After", wait))]
    assert get(web, tmp_path, 1).unpacked == [1]


def test_a_range_out_of_this_world(web, zips, tmp_path):
    web.add_record({1: zips[1]})
    path = f"{RECORD}/files/{ZIPS[1]}/content"
    web.faults[path] = [("cut", 1000), (206, ("Content-Range", "bytes " + "9" * 6000 + "-"))]
    assert get(web, tmp_path, 1).failed


def test_addresses_that_are_no_web_addresses(tmp_path):
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(InputError, match="begins with https://"):
        fetch.fetch_dataset(ravdess, tmp_path / "r", [1], (tmp_path / "record.json").as_uri())


def test_too_little_room_is_said_before_anything_is_fetched(web, zips, tmp_path):
    web.add_record({1: zips[1]}, size=10**17)
    with pytest.raises(InputError, match=r"about 150000000\.0 GB are needed.*\nMake room"):
        get(web, tmp_path, 1)
    assert asked_for(web, 1) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_no_lost_connection(web, zips, tmp_path, monkeypatch):
    web.add_record(zips)
    monkeypatch.setattr(fetch, "open_regular", lambda _, mode: open("/dev/full", mode))  # noqa: PTH123, SIM115
    with pytest.raises(MachineError, match=r"No space left on device; what arrived is kept\.\nMake room"):
        get(web, tmp_path, 1)
    assert len(asked_for(web, 1)) == 1  # not tried again


@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_what_somebody_planted_among_unfinished_zips_is_refused(planted, web, zips, tmp_path):
    web.add_record(zips)
    (victim := tmp_path / "victim").write_text("precious")
    (tmp_path / "clips" / ".fetch").mkdir(parents=True)
    partial = tmp_path / "clips" / ".fetch" / f"{ZIPS[1]}.partial"
    partial.symlink_to(victim) if planted == "link" else os.mkfifo(partial)
    with pytest.raises(InputError, match=f"{re.escape(str(partial))} is a link, pipe or the like"):
        get(web, tmp_path / "clips", 1)
    assert victim.read_text() == "precious" and asked_for(web, 1) == []


def link_member(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


CLIP = "01-01-03-01-01-01-01.mp4"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("/tmp/" + CLIP, b"x")], "leads out of the zip's own folder"),
        ([("Actor_01/../../" + CLIP, b"x")], "leads out of the zip's own folder"),
        ([("..\\..\\" + CLIP, b"x")], "leads out of the zip's own folder"),
        ([("C:\\" + CLIP, b"x")], "leads out of the zip's own folder"),
        ([link_member("Actor_01/" + CLIP, "/etc/passwd")], "is a link or a device"),
        ([link_member("Actor_01", "/tmp"), ("Actor_01/" + CLIP, b"x")], "is a link or a device"),
        ([("Actor_01/" + CLIP, b"x"), ("copy/" + CLIP, b"y")], "is there twice"),
        ([("Actor_01/" + CLIP, bytes(10**7))], "would unpack to 10000000, expected at most 3 times"),
        ([(f"{number}", b"") for number in range(10_001)], "10001 members"),
    ],
)
def test_hostile_zips_write_nothing(tmp_path, members, said):
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    root = tmp_path / "inner" / "root"
    root.mkdir(parents=True)
    with pytest.raises(fetch.ZipError, match=said):
        fetch.unpack(path, {CLIP: root / "Actor_01" / CLIP}, root)
    assert not any(root.iterdir()) and [entry.name for entry in tmp_path.iterdir()] == ["hostile.zip", "inner"]


def test_zips_that_lie_or_are_broken(tmp_path):
    path, target = tmp_path / "broken.zip", tmp_path / "Actor_01" / CLIP
    content = os.urandom(4000)
    whole = make_zip(path, {"Actor_01/" + CLIP: content, "README.txt": b"not wanted"})
    middle = whole.index(content[:50])
    lies = whole.replace((4000).to_bytes(4, "little"), (40).to_bytes(4, "little"))  # sizes smaller than what is packed
    for broken in (whole[:-10], b"no zip", whole[:middle] + b"bad" + whole[middle + 3 :], lies):
        path.write_bytes(broken)
        with pytest.raises(fetch.ZipError, match="the zip is broken"):
            fetch.unpack(path, {CLIP: target}, tmp_path)
        assert not target.exists() and not list(tmp_path.glob("*.partial"))
    path.write_bytes(whole)
    assert fetch.unpack(path, {CLIP: target, "other.mp4": tmp_path / "other.mp4"}, tmp_path) == (["other.mp4"], 1)
    assert target.read_bytes() == content and not (tmp_path / "README.txt").exists()


def test_a_zip_that_lacks_clips_or_is_hostile_is_reported(web, zips, tmp_path):
    part = make_zip(tmp_path / "part.zip", {f"Actor_01/{name}": content_of(name) for name in names_of(1)[1:]})
    bomb = make_zip(tmp_path / "bomb.zip", {f"Actor_02/{name}": bytes(100_000) for name in names_of(2)})
    web.add_record({1: part, 2: bomb})
    root = tmp_path / "root"
    result = get(web, root, 1, 2)
    assert result.unpacked == [] and list(result.failed) == [ZIPS[1], ZIPS[2]]
    assert f"1 of 60 expected clips are not in it, the first {names_of(1)[0]}" in result.failed[ZIPS[1]]
    assert "would unpack to 6000000" in result.failed[ZIPS[2]]
    assert len(list(root.rglob("*.mp4"))) == 59 and (root / ".fetch" / ZIPS[2]).read_bytes() == bomb
