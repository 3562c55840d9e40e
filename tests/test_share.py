"""Stores shared through real servers: pushed, pulled, killed midway and resumed, checked, trained from."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores import checksums, claim, share, store
from mlemiss.pipeline.stores.catalogue import find_store
from mlemiss.pipeline.stores.checksums import COMPLETE, PUSHING, RUN, verify_store
from mlemiss.pipeline.stores.remote import parse_place
from mlemiss.pipeline.stores.store import FeatureStore

from .feature_stores import grid, write_store
from .preprocessing import SMALL
from .servers import KEYS, STALE
from .test_store import make_store

NAME = "toy-resnet50-abc.zarr"
MADE = {"command": "mlemiss preprocess --dataset toy", "finished": "2026-11-24T14:02:11+00:00", "host": "node7"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A finished store of 40 clips in two chunks, made by a recorded command."""
    path = make_store(tmp_path_factory.mktemp("stores"))
    (path / RUN).write_text(json.dumps(MADE))
    return path


@pytest.fixture
def impatient(monkeypatch):
    """Claims without a sign of life for a second are dead."""
    monkeypatch.setattr(claim, "DEAD", 1.0)
    monkeypatch.setattr(claim, "BEAT", 0.3)
    monkeypatch.setattr(claim, "SETTLE", 0.1)


def content(path: Path) -> dict[str, bytes]:
    """Every file but RUN.json."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != RUN)
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def revised(path: Path, folder: Path, revision: int = 2, value: float = 1.0) -> Path:
    """The same store at another revision, with one feature changed, a file less and one more."""
    built = folder / "built"
    shutil.copytree(path, built)
    (built / COMPLETE).unlink()
    group = store.open_group(built)
    group["visual"][0, 0, 0] = value
    group.attrs["revision"] = revision
    if revision > 1:
        shutil.rmtree(built / "take")
        store.create_array(group, "dose", [40], [40], "int8", ["clip"])[:] = 1
    store.publish(built, folder / path.name)
    return folder / path.name


KILLER = """
import os, signal, sys
from mlemiss.pipeline.stores import remote, share
owner, name, enough = {"push": (remote.Remote, "upload", 12), "pull": (share._Folder, "receive", 12)}[sys.argv[2]]
real, calls = getattr(owner, name), []
def counted(*arguments):
    done = real(*arguments)
    calls.append(1)
    if len(calls) == enough:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(owner, name, counted)
"""


@pytest.fixture
def killed(mlemiss):
    """Run a command that SIGKILL ends after a dozen files."""

    def run(*arguments: object) -> None:
        assert mlemiss(*arguments, before=KILLER).returncode == -signal.SIGKILL

    return run


@pytest.mark.slow
def test_push_list_and_pull_through_s3(toy, s3, tmp_path, mlemiss):
    pushed = mlemiss("store", "push", toy, "s3://bucket/whole")
    assert pushed.returncode == 0 and pushed.stdout == f"s3://bucket/whole/{NAME}\n", pushed.stderr
    assert content(s3.folder / "whole" / NAME) == content(toy)
    again = mlemiss("store", "push", toy, f"s3://bucket/whole/{NAME}")
    assert again.returncode == 0 and "there already" in again.stderr
    (row,) = json.loads(mlemiss("store", "ls", "s3://bucket/whole", "--json").stdout)
    assert (row["store"], row["clips"], row["failed"], row["missing"]) == (NAME, 40, 1, {"visual": 0, "audio": 1})
    assert row["command"] == MADE["command"] and row["bytes"] == sum(map(len, content(toy).values())) - len(
        (toy / COMPLETE).read_bytes()
    )
    listed = mlemiss("store", "ls", "--stores", "s3://bucket/whole").stdout
    assert MADE["command"] in listed and max(map(len, listed.splitlines())) <= 80
    assert mlemiss("store", "verify", pushed.stdout.strip()).returncode == 0
    pulled = mlemiss("store", "pull", pushed.stdout.strip(), "--stores", tmp_path / "here")
    assert pulled.returncode == 0 and pulled.stdout == f"{tmp_path / 'here' / NAME}\n"
    assert content(tmp_path / "here" / NAME) == content(toy)
    assert json.loads((tmp_path / "here" / NAME / RUN).read_text()) == MADE


@pytest.mark.slow
def test_killed_push_goes_on_and_sends_nothing_twice(toy, s3, impatient, killed):
    target = parse_place(f"s3://bucket/killed/{NAME}")
    start = s3.mark()
    killed("store", "push", toy, "s3://bucket/killed")
    whole = content(toy)
    sent = {name for name, data in content(s3.folder / "killed" / NAME).items() if whole.get(name) == data}
    assert len(sent) >= 12  # what was on its way when it was killed does not count
    with pytest.raises(InputError, match=r"incomplete[\s\S]*process \d+ on .* was or is pushing it"):
        FeatureStore.open(target)
    start = s3.mark()
    done = share.push(toy, parse_place("s3://bucket/killed"))
    assert (done.sent, done.there) == (36 - done.there, done.there) and done.there >= 12
    resent = {line.split()[-1].partition(f"{NAME}/")[2] for line in s3.requests("CREATE OBJECT", start)}
    assert len(resent) >= 36 - done.there and not resent & sent
    assert content(s3.folder / "killed" / NAME) == whole  # no claim is left


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_killed_pull_goes_on_and_asks_for_nothing_twice(kind, toy, request, tmp_path, killed):
    served = request.getfixturevalue(kind)
    if not (served.folder / "pull").exists():
        shutil.copytree(toy, served.folder / "pull" / NAME)
    time.sleep(STALE)
    url, got = f"{served.url}/pull/{NAME}", "GET OBJECT" if kind == "s3" else '"GET '
    killed("store", "pull", url, "--stores", tmp_path)
    assert not (tmp_path / NAME).exists()
    here = content(tmp_path / ".partial" / f"{Path(NAME).stem}.incoming")
    start = served.mark()
    done = share.pull(parse_place(url), tmp_path)
    assert done.there >= 12 and done.sent == 36 - done.there
    asked = {line.partition(f"{NAME}/")[2].split()[0] for line in served.requests(f"{NAME}/", start) if got in line}
    assert len(here) >= 12 and len(asked) >= 36 - done.there and asked & set(here) <= {"zarr.json"}
    assert content(tmp_path / NAME) == content(toy) and not list((tmp_path / ".partial").glob("*.incoming"))


@pytest.mark.slow
def test_newer_revisions_are_never_overwritten(toy, s3, tmp_path, impatient):
    newer = revised(toy, tmp_path / "new")
    for where in (parse_place("s3://bucket/revised"), tmp_path / "nfs"):
        share.push(toy, where)
        assert share.push(newer, where).sent > 0  # an older one makes way
        found = tmp_path / "found"
        share.pull(where / NAME, found)
        assert content(found / NAME) == content(newer) and not (found / NAME / "take").exists()
        with pytest.raises(InputError, match="is revision 2, newer than revision 1"):
            share.push(toy, where)
        with pytest.raises(InputError, match="is revision 2, newer than revision 1"):
            share.pull(toy, found)
        other = revised(toy, tmp_path / f"other-{len(str(where))}", value=2.0)
        with pytest.raises(InputError, match=r"revision 2 too, with other bytes in 1 of \d+ files \(visual\).*node7"):
            share.push(other, where)
        assert content(found / NAME) == content(newer)
        shutil.rmtree(found)


@pytest.mark.slow
def test_killed_while_replacing_an_older_revision(toy, s3, tmp_path, impatient, killed):
    newer = revised(toy, tmp_path / "new")
    share.push(toy, parse_place("s3://bucket/replaced"))
    killed("store", "push", _all_changed(newer, tmp_path), "s3://bucket/replaced")
    with pytest.raises(InputError, match="incomplete"):
        FeatureStore.open(f"s3://bucket/replaced/{NAME}")
    with pytest.raises(InputError, match="unfinished copy of revision 2, newer than revision 1"):
        share.push(toy, parse_place("s3://bucket/replaced"))
    share.push(tmp_path / "changed" / NAME, parse_place("s3://bucket/replaced"))
    assert content(s3.folder / "replaced" / NAME) == content(tmp_path / "changed" / NAME)


def test_killed_between_the_renames_of_a_folder_push(toy, tmp_path, monkeypatch):
    """The older revision is moved away, the newer one not yet in its place: the next push puts it there."""
    newer, folder = revised(toy, tmp_path / "new"), tmp_path / "nfs"
    share.push(toy, folder)

    rename = Path.rename

    def cut(built, target):
        if target.suffix == ".zarr":
            raise KeyboardInterrupt
        rename(built, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", cut)
        share.push(newer, folder)
    assert not (folder / NAME).exists()
    assert share.push(newer, folder).sent == 0
    assert content(folder / NAME) == content(newer)
    assert [path.suffix for path in (folder / share.WORK).iterdir()] == [".lock"]


def _all_changed(path: Path, folder: Path) -> Path:
    """A newer revision whose every metadata file differs, so that a dozen files are sent."""
    built = folder / "changed" / "built"
    shutil.copytree(path, built)
    (built / COMPLETE).unlink()
    for array in dict(zarr.open_group(built, mode="a").arrays()).values():
        array.attrs["note"] = "changed"
    store.publish(built, folder / "changed" / NAME)
    return folder / "changed" / NAME


HOLDER = """
import sys, time
from mlemiss.pipeline.stores import claim, remote
claim.BEAT = 0.3
with claim.Claim(remote.parse_place(sys.argv[1]), "it is being pushed").held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_the_second_to_push_is_told_who_is_at_work(toy, s3, impatient, monkeypatch, mlemiss):
    monkeypatch.setattr(claim, "DEAD", 30.0)  # a living holder, on a busy machine too, has time to show it
    target = parse_place(f"s3://bucket/two/{NAME}")
    holder = mlemiss.start(target / PUSHING, code=HOLDER)
    holder.until("held")
    with pytest.raises(InputError, match=rf"{NAME} is being pushed by another mlemiss \(process {holder.pid} on"):
        share.push(toy, parse_place("s3://bucket/two"))
    holder.kill()
    monkeypatch.setattr(claim, "DEAD", 1.0)
    assert share.push(toy, parse_place("s3://bucket/two")).sent == 36  # a dead claim is taken over


def test_a_push_whose_claim_is_lost_publishes_nothing(toy, s3, monkeypatch, impatient):
    target = parse_place(f"s3://bucket/lost/{NAME}")
    monkeypatch.setattr(claim, "BEAT", 60.0)  # no sign of life into the usurper's face
    real = share.Progress.__exit__

    def usurp(*arguments):
        other = claim.Claim(target / PUSHING, "usurped")
        other._write()
        real(*arguments)

    monkeypatch.setattr(share.Progress, "__exit__", usurp)
    with pytest.raises(InputError, match="is being pushed by another mlemiss now"):
        share.push(toy, parse_place("s3://bucket/lost"))
    assert not (s3.folder / "lost" / NAME / COMPLETE).exists() and (s3.folder / "lost" / NAME / PUSHING).exists()


def damage(path: Path) -> None:
    """Flip a bit, lose a chunk, swap two, add a stray file."""
    chunk = path / "visual" / "c" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    (path / "label" / "c" / "0").unlink()
    first, second = (path / "audio" / "c" / number / "0" / "0" for number in "01")
    swapped = first.read_bytes(), second.read_bytes()
    first.write_bytes(swapped[1])
    second.write_bytes(swapped[0])
    (path / "stray").write_text("?")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", pytest.param("s3", marks=pytest.mark.slow), "http"])
def test_verify_finds_damage_and_the_clips_it_hits(kind, toy, request, tmp_path, mlemiss):
    served = None if kind == "folder" else request.getfixturevalue(kind)
    folder = (served.folder if served else tmp_path) / "damaged"
    shutil.copytree(toy, folder / NAME)
    damage(folder / NAME)
    time.sleep(STALE if served else 0)
    where = f"{served.url}/damaged/{NAME}" if served else folder / NAME
    result = mlemiss("store", "verify", where, "--json")
    assert result.returncode == 1, result.stderr
    found = json.loads(result.stdout)
    last = [f"ä{clip:02d}" for clip in range(32, 40)]
    states = {entry["file"]: (entry["state"], len(entry["clips"])) for entry in found["damaged"]}
    stray = {} if kind == "http" else {"stray": ("unexpected", 0)}
    assert states == stray | {
        "visual/c/1/0/0": ("damaged", 8),
        "audio/c/0/0/0": ("damaged", 32),
        "audio/c/1/0/0": ("damaged", 8),
        "label/c/0": ("absent", 40),
    }
    assert next(e["clips"] for e in found["damaged"] if e["file"] == "visual/c/1/0/0") == last
    assert len(found["clips"]) == found["of_clips"] == 40
    said = mlemiss("store", "verify", where)
    assert "damaged: visual/c/1/0/0: clips ä32, ä33, ä34, ä35, ä36 and 3 more" in said.stdout
    with pytest.raises(InputError, match=r"differs from its checksum|is absent, and its store vouches for it"):
        share.pull(parse_place(str(where)), tmp_path / "pulled")
    assert not list((tmp_path / "pulled").glob("*.zarr"))


def test_damaged_metadata_hits_every_clip_and_a_damaged_copy_is_mended(toy, tmp_path):
    shutil.copytree(toy, tmp_path / NAME)
    (tmp_path / NAME / "zarr.json").write_text("{")
    found = verify_store(tmp_path / NAME)
    assert [(e["file"], e["every_clip"]) for e in found["damaged"]] == [("zarr.json", True)]
    (tmp_path / NAME / COMPLETE).unlink()
    assert (share.pull(toy, tmp_path).sent, content(tmp_path / NAME)) == (1, content(toy))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: f | {"../outside": f["zarr.json"]}, "no file inside"),
        (lambda f: f | {"/tmp/outside": f["zarr.json"]}, "no file inside"),
        (lambda f: f | {"a//b": f["zarr.json"]}, "no file inside"),
        (lambda f: f | {"..\\outside": f["zarr.json"]}, "no file inside"),
        (lambda f: f | {"a\x1b[2J": f["zarr.json"]}, "no file inside"),
        (lambda f: f | {"x" * 300: f["zarr.json"]}, "no file inside"),
        (lambda f: f | {"RUN.json": f["zarr.json"]}, "no file inside"),
        (lambda f: f | {"visual": f["zarr.json"]}, "as a file and as a folder"),
        (lambda f: f | {"more": {"sha256": "0" * 64, "bytes": -1}}, "no size of more"),
        (lambda f: f | {"more": {"sha256": "0" * 64, "bytes": True}}, "no size of more"),
        (lambda f: f | {"more": {"sha256": "../x", "bytes": 1}}, "no sha256 of more"),
        (
            lambda files: files | {f"more{i}": {"sha256": "0" * 64, "bytes": 2**28} for i in range(100_000)},
            "GB more are needed",
        ),
        (lambda f: f | {"more": 7}, "unreadable"),
        (lambda f: [], "unreadable"),
        (lambda f: {}, "does not name zarr.json"),
    ],
)
def test_hostile_listings_are_refused(change, why, toy, http, tmp_path):
    served = http.folder / "hostile" / NAME
    shutil.rmtree(served, ignore_errors=True)
    shutil.copytree(toy, served)
    document = json.loads((served / COMPLETE).read_text())
    document["files"] = change(document["files"])
    (served / COMPLETE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=why):
        share.pull(parse_place(f"{http.url}/hostile/{NAME}"), tmp_path / "a" / "b")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json")]
    assert written == [] and not Path("/tmp/outside").exists()


def test_no_more_is_read_than_was_recorded(toy, http, tmp_path):
    served = http.folder / "endless" / NAME
    shutil.copytree(toy, served)
    with (served / "label" / "c" / "0").open("ab") as file:
        file.truncate(1 << 32)  # sparse
    with pytest.raises(InputError, match="label/c/0 differs from its checksum"):
        share.pull(parse_place(f"{http.url}/endless/{NAME}"), tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 1 << 20
    assert checksums.find_damage(parse_place(f"{http.url}/endless/{NAME}"), checksums.recorded_files(toy)) == {
        "label/c/0": "damaged"
    }


@pytest.mark.slow
def test_training_reads_straight_from_s3_and_http(s3, http, tmp_path, mlemiss):
    local = write_store(tmp_path / "stores")
    share.push(local.path, parse_place("s3://bucket/trained"))
    shutil.copytree(local.path, http.folder / "trained" / local.path.name)
    options = {"methods": ["mle"], "missing": ["audio:0.5"], "seeds": 2}
    expected = grid([local], tmp_path / "local", **options)["results"]
    for served in (s3, http):
        found = find_store(parse_place(f"{served.url}/trained"), "toy")
        result = grid([FeatureStore.open(found)], tmp_path / found.url[:4], **options)["results"]
        timeless = ({k: v for k, v in r[0].items() if k != "seconds"} for r in (result, expected))
        assert next(timeless) == next(timeless)
    quick = ["train", "--missing", "audio:0.5", "--seeds", 1, "--epochs", 1, "--json"]
    told = mlemiss(*quick, "--stores", "s3://bucket/trained", "--features", "toy")
    assert told.returncode == 0 and f"store s3://bucket/trained/{local.path.name}" in told.stderr, told.stderr
    assert not any(secret in told.stdout + told.stderr for secret in KEYS.values())
    assert [r["method"] for r in json.loads(told.stdout)["results"]] == ["mle", "only:visual", "only:audio"]


@pytest.mark.slow
def test_preprocess_into_a_bucket(synthetic_ravdess, s3, tmp_path, mlemiss):
    options = ["preprocess", "--dataset", "ravdess", "--root", synthetic_ravdess, "--features", SMALL]
    options += ["--weights", "random", "--workers", 0, "--limit", 2, "--json", "--stores", "s3://bucket/made"]
    first = mlemiss(*options, "--local", "work")
    assert first.returncode == 0, first.stderr
    (url,) = json.loads(first.stdout)["stores"]
    assert url.startswith("s3://bucket/made/ravdess-") and str(tmp_path / "work") in first.stderr
    here = tmp_path / "work" / url.rpartition("/")[2]
    assert content(s3.folder / "made" / here.name) == content(here)
    second = mlemiss(*options, "--local", "elsewhere")  # on another machine: nothing is made again
    assert second.returncode == 0 and "nothing left to do" in second.stderr, second.stderr
    assert json.loads(second.stdout)["stores"] == [url] and not list((tmp_path / "elsewhere").glob("*.zarr"))
    refused = mlemiss(*options[:-1], "http://127.0.0.1:9/x")
    assert refused.returncode == 2 and "can only be read" in refused.stderr


def test_failed_push_of_preprocess_says_how_to_go_on(toy, tmp_path):
    with pytest.raises(InputError, match=rf"Finished in {toy}; to go on: mlemiss store push {toy} s3://nobucket/x"):
        share.push_made([str(toy)], parse_place("s3://nobucket/x"))


@pytest.mark.slow
def test_reads_are_the_same_from_anywhere(toy, s3, http):
    share.push(toy, parse_place("s3://bucket/read"))
    shutil.copytree(toy, http.folder / "read" / NAME)
    here = FeatureStore.open(toy)
    for served in (s3, http):
        opened = FeatureStore.open(f"{served.url}/read/{NAME}")
        np.testing.assert_array_equal(opened.read("visual"), here.read("visual"))
        np.testing.assert_array_equal(opened.split(3), here.split(3))
        assert opened.clip_id.tolist() == here.clip_id.tolist() and set(opened.columns) == set(here.columns)


@pytest.mark.slow
def test_the_commands_of_the_page_run(s3, http, tmp_path, mlemiss):
    """All of docs/sharing.md but preprocessing (above), over stores of its names, a bucket and a server of our own."""
    page = (Path(__file__).parent.parent / "docs" / "sharing.md").read_text(encoding="utf-8")
    shared = tmp_path / "team" / "stores"
    made = write_store(tmp_path / "stores", dataset="ravdess", features="resnet50").path
    shutil.copytree(made, http.folder / "stores" / made.name)
    places = {"s3://team": "s3://bucket", "https://files.example.org": http.url, "/mnt/team": str(shared.parent)}
    places |= {"ravdess-resnet50-1692980eb5e8.zarr": made.name, "stores/ravdess-resnet50-*.zarr": f"stores/{made.name}"}
    commands = [line for line in page.splitlines() if line.startswith("mlemiss ") and " preprocess " not in line]
    assert len(commands) >= 14
    for command in sorted(commands, key=lambda line: "store push" not in line):  # what others put there comes first
        for text, place_here in places.items():
            command = command.replace(text, place_here)
        quick = ["--seeds", 1, "--epochs", 1] if " train " in command else []
        result = mlemiss(*command.split()[1:], *quick)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    assert content(shared / made.name) == content(made) == content(tmp_path / "mirrored" / made.name)


def test_a_group_that_cannot_read_what_is_pushed_is_told(toy, tmp_path, capsys):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    before = os.umask(0o077)
    try:
        share.push(toy, tmp_path / "shared")
        assert f"note: the group of {tmp_path}/shared cannot read {NAME}" in capsys.readouterr().err
        (tmp_path / "shared").chmod(0o700)
        share.push(revised(toy, tmp_path), tmp_path / "shared")
    finally:
        os.umask(before)
    share.push(toy, tmp_path / "other")
    assert "cannot read" not in capsys.readouterr().err
