"""Places as a user types them, what goes wrong on the way, and what `ls` and `info` say of what is there."""

import json
import shutil
import threading
from base64 import b64encode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

import pytest
from mlemiss.pipeline.errors import InputError, MachineError
from mlemiss.pipeline.stores import share, store
from mlemiss.pipeline.stores.catalogue import catalogue, find_store, listing
from mlemiss.pipeline.stores.checksums import RUN
from mlemiss.pipeline.stores.remote import parse_place
from mlemiss.pipeline.stores.store import FeatureStore
from rich.console import Console

from .servers import forget_clients, free_port
from .test_share import MADE, NAME
from .test_store import make_store


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    path = make_store(tmp_path_factory.mktemp("stores"))
    (path / RUN).write_text(json.dumps(MADE))
    return path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gs://bucket/x", "gs:// is not known"),
        ("s3:/bucket/x", "expected two slashes"),
        ("s3://", "names no place"),
        ("https://u:hunter2@host/x", "netrc"),
        ("s3://key:hunter2@bucket/x", "AWS_ACCESS_KEY_ID"),
        ("https://host/x?X-Amz-Signature=hunter2", "no [?] or #"),
        ("https://host/stores/..%2F..%2Foutside.zarr", "names no place"),
        ("https://host/stores/..%5Coutside.zarr", "names no place"),
        ("https://host/%2e%2e/outside.zarr", "names no place"),
        ("https://host/./outside.zarr", "names no place"),
        ("s3://bucket/outside%00.zarr", "names no place"),
    ],
)
def test_what_is_no_place(text, why, mlemiss):
    result = mlemiss("store", "ls", text)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "hunter2" not in result.stderr
    with pytest.raises(InputError, match=why):
        parse_place(text)


@pytest.mark.slow
def test_what_can_go_wrong_on_the_way_is_told(toy, s3, http, tmp_path, monkeypatch):
    nobody = f"http://127.0.0.1:{free_port()}"

    def told(why: str, where: str, error: type = InputError) -> None:
        with pytest.raises(error, match=why):
            share.push(toy, parse_place(where)) if where.startswith("s3") else FeatureStore.open(where)
        with pytest.raises(error, match=why):
            find_store(parse_place(where), "toy")

    told("there is no bucket nobucket", "s3://nobucket/x")
    told("no store at|no list of what is in", f"{http.url}/nowhere")
    told("cannot reach", f"{nobody}/x", MachineError)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrongsecret")
    forget_clients()
    told("access denied", "s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    forget_clients()
    told(f"cannot reach {nobody}", "s3://bucket/x", MachineError)
    monkeypatch.undo()
    forget_clients()
    with pytest.raises(InputError, match="can only be read"):
        share.push(toy, parse_place(http.url))
    with pytest.raises(InputError, match=r"does not end in \.zarr"):
        share.pull(parse_place("s3://bucket"), tmp_path)


def test_what_is_not_installed_is_named(mlemiss):
    result = mlemiss("store", "ls", "s3://bucket/x", before='import sys; sys.modules["s3fs"] = None')
    assert result.returncode == 2 and "needs the package s3fs" in result.stderr
    assert "mlemiss[remote]" in result.stderr


def test_http_needs_no_other_package(http, mlemiss):
    without = 'import sys; sys.modules["s3fs"] = sys.modules["aiohttp"] = sys.modules["fsspec"] = None'
    assert mlemiss("store", "ls", http.url, before=without).returncode == 0


def test_info_says_what_one_wants_to_know(toy, http, mlemiss):
    shutil.copytree(toy, http.folder / "info" / NAME)
    url = f"{http.url}/info/{NAME}"
    facts = json.loads(mlemiss("store", "info", url, "--json").stdout)
    assert facts["weights"] == {"name": "random", "hash": "f00"} and list(facts["classes"].values()) == [10, 10, 10, 9]
    assert facts["lacking"] == [{"clip_id": "ä05", "cause": "audio: digital silence"}]
    assert facts["arrays"]["visual"] == {"shape": [40, 3, 4], "type": "float16"} and facts["run"] == MADE
    text = mlemiss("store", "info", url).stdout
    assert all(
        part in text for part in ("hash f00", "w 10", "digital silence", "node7", MADE["command"], "revision  1")
    )


def test_ls_is_complete_in_a_pipe_and_folded_on_a_terminal(tmp_path, mlemiss):
    command = "mlemiss preprocess --dataset toy --features " + ",".join(f"timm:a_backbone_{i}" for i in range(20))
    stored = [make_store(tmp_path / "stores", features=name) for name in ("resnet50", "timm:" + 12 * "long_name_")]
    for path in stored:
        (path / RUN).write_text(json.dumps(MADE | {"command": command}))
    told = mlemiss("store", "ls").stdout
    assert all(sum(line.endswith(part) for line in told.splitlines()) == 1 for part in [path.name for path in stored])
    assert told.count(command) == 2 and told.count("on node7") == 2 and "─" in told and "…" not in told
    plain = mlemiss("store", "ls", PYTHONIOENCODING="ascii").stdout  # no box characters there
    assert plain.isascii() and plain.count(command) == 2
    rows, _ = catalogue(tmp_path / "stores")
    drawn = StringIO()
    Console(file=drawn, width=80, force_terminal=True, color_system=None).print(listing(rows))
    lines = drawn.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    folded = "".join("".join(line.split()) for line in lines)
    assert folded.count(command.replace(" ", "")) == 2 and all(path.name in folded for path in stored)


def test_a_record_from_elsewhere_cannot_write_on_the_terminal(toy, tmp_path, mlemiss):
    shutil.copytree(toy, tmp_path / "stores" / NAME)
    (tmp_path / "stores" / NAME / RUN).write_text(json.dumps(MADE | {"command": "\x1b[2Jx\ny"}))
    for result in (mlemiss("store", "ls"), mlemiss("store", "info", f"stores/{NAME}")):
        assert "\x1b" not in result.stdout and "?[2Jx?y" in result.stdout
    (tmp_path / "stores" / NAME / RUN).write_text("[")
    assert store.run_record(tmp_path / "stores" / NAME) == {} and mlemiss("store", "ls").returncode == 0


@pytest.mark.slow
def test_a_password_comes_from_netrc(toy, tmp_path, monkeypatch):
    """A real server behind basic authentication: 401 without, all of the store with it."""
    shutil.copytree(toy, tmp_path / "root" / NAME)

    class Guarded(SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.headers["Authorization"] == f"Basic {b64encode(b'team:hunter2').decode()}":
                super().do_GET()
            else:
                self.send_error(401)

        def log_message(self, *_):
            pass

    handler = partial(Guarded, directory=str(tmp_path / "root"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{NAME}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        (tmp_path / "netrc").write_text("")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with pytest.raises(InputError, match=r"access denied \(401[\s\S]*netrc"):
            FeatureStore.open(url)
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login team password hunter2\n")
        assert share.pull(parse_place(url), tmp_path / "here").sent == 36
        server.shutdown()
