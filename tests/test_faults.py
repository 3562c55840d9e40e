"""Clips and machines that misbehave: each costs what it must and no more, with its cause on record."""

import ctypes
import json
import os
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from mlemiss.pipeline.clips.datasets import collect
from mlemiss.pipeline.media.process import ffmpeg_binary
from mlemiss.pipeline.run.parts import Part
from mlemiss.pipeline.run.sources import read_sources
from mlemiss.pipeline.stores.store import FeatureStore

from .preprocessing import NETWORK, SIX, SMALL, content, left_running, options, staged

GOOD, KINDS = 180, 6  # clips, and how many different ones they are links to


def make(path: Path, *arguments: object) -> Path:
    subprocess.run([ffmpeg_binary(), "-v", "error", "-y", *map(str, arguments), path], check=True)
    return path


def picture_file(width: int, height: int) -> bytes:
    """A PNG of black pixels, one bit each, of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def hostile_clips(root: Path, good: Path, outside: Path) -> dict[str, str]:
    """Twenty files that are no clips, each in its own way -> a word of the cause each must be given."""
    data = good.read_bytes()

    def write(name: str, content: bytes) -> str:
        (root / name).write_bytes(content)
        return name

    causes = {
        write("empty.mp4", b""): "empty",
        write("text.mp4", b"not a film\n" * 200): "not readable",
        write("noise.mp4", os.urandom(40_000)): "not readable",
        write("zeros.mp4", bytes(40_000)): "zeros only",
        write("cut_front.mp4", data[len(data) // 2 :]): "not readable",
        write("cut_end.mp4", data[: len(data) // 2]): "not readable",
        write("header_only.mp4", data[:64]): "",
        write("playlist.mp4", f"ffconcat version 1.0\nfile '{outside}'\n".encode()): "a playlist",
        write("hls.mp4", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{outside}\n".encode()): "a playlist",
        write("sdp.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"): "",
        write("image.mp4", picture_file(30_000, 30_000)): "30000x30000",
        write("script.mp4", b"#!/bin/sh\ntouch /tmp/owned\n"): "",
        write("zip.mp4", b"PK\x03\x04" + os.urandom(5000)): "",
        write("large.mp4", data + bytes(3_000_000)): "more than the 2500000 allowed",
    }
    (root / "link.mp4").symlink_to(outside)
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    os.mkfifo(root / "pipe.mp4")
    causes |= {"link.mp4": "leaves the root", "loop.mp4": "link", "pipe.mp4": "not a regular file"}
    # A video of pictures of 108 million pixels that compress to nothing, hours of silence, and what takes too long.
    (root.parent / "large.png").write_bytes(picture_file(12_000, 9_000))
    make(root / "huge.mkv", "-loop", 1, "-framerate", 5, "-t", 1, "-i", root.parent / "large.png", "-c", "copy")
    make(root / "silence.flac", "-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", 3 * 3600)
    second = make(root.parent / "second.mp4", "-f", "lavfi", "-i", "color=d=1:s=1920x1080:r=60", "-preset", "ultrafast")
    make(root / "slow.mp4", "-stream_loop", 300, "-i", second, "-c", "copy")
    return causes | {"huge.mkv": "exceeds", "silence.flac": "longer than", "slow.mp4": "time allowed"}


@pytest.fixture(scope="module")
def folder(synthetic_ravdess, tmp_path_factory) -> tuple[Path, dict[str, str], Path]:
    """180 good clips (hard links) and 20 hostile ones as a CSV; the causes; a file outside that nobody may read."""
    top = tmp_path_factory.mktemp("hostile")
    root, outside = top / "root", top / "outside.mp4"
    root.mkdir()
    good = sorted(synthetic_ravdess.rglob("*.mp4"))[:KINDS]
    shutil.copy(good[0], outside)
    for i in range(GOOD):
        (root / f"good{i:03}.mp4").hardlink_to(good[i % KINDS])
    causes = hostile_clips(root, good[0], outside)
    assert len(causes) == 20
    names = [*causes, *(f"good{i:03}.mp4" for i in range(GOOD))]
    rows = [f"{name.rpartition('.')[0]},{name},{'ab'[i % 2]},s{i % 9}" for i, name in enumerate(names)]
    (root / "mine.csv").write_text("\n".join(["clip_id,path,label,subject", *rows]) + "\n")
    return root, causes, outside


@contextmanager
def watched(path: Path) -> Iterator[Callable[[], bool]]:
    """Tells whether any process opened a file since: by inotify, as many mounts keep no times of access."""
    libc = ctypes.CDLL(None, use_errno=True)
    events = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(events, bytes(path), 0x20) >= 0  # IN_OPEN

    def opened() -> bool:
        with suppress(BlockingIOError):
            return bool(os.read(events, 4096))
        return False

    yield opened
    os.close(events)


LIMITS = ("--clip-timeout", 2, "--clip-bytes", 2_500_000)


@pytest.mark.slow
def test_two_hundred_clips_twenty_of_them_hostile(folder, tmp_path, mlemiss):
    root, causes, outside = folder
    arguments = ["--dataset", root / "mine.csv", "--stores", tmp_path / "stores", "--json", "--workers", 2]
    tag = f"MLEMISS_TEST_TAG={tmp_path.name}"
    with watched(outside) as was_opened:
        result = mlemiss("preprocess", *arguments, *LIMITS, *NETWORK, **dict([tag.split("=")]))
        assert not was_opened(), "a file outside the root was read"
        outside.open("rb").close()
        assert was_opened(), "here it cannot be told whether a file is read"
    assert result.returncode == 1, result.stderr
    summary = json.loads(result.stdout)
    found = {failure["path"]: failure["cause"] for failure in summary["failed"]}
    assert (summary["clips"], summary["done"], len(found)) == (200, 180, 20)
    for name, word in causes.items():
        assert found[name] and word in found[name], (name, found[name])
        assert str(tmp_path) not in found[name] and " 0x" not in found[name]
    assert left_running(tag) == []
    stored = FeatureStore.open(summary["stores"][0])
    assert (stored.status == "done").sum() == 180 and stored.present[stored.status == "done"].all()
    assert stored.chunks.group["visual"].chunks == (32, 30, 256)


@pytest.mark.slow
def test_too_many_failures_are_an_error(folder, tmp_path, mlemiss):
    root, _, _ = folder
    arguments = ["preprocess", "--dataset", root / "mine.csv", "--stores", tmp_path / "stores", "--workers", 0]
    arguments += ["--media", "only", *LIMITS]
    result = mlemiss(*arguments, "--max-failures", 3)
    assert result.returncode == 2 and "4 clips failed, more than --max-failures 3" in result.stderr, result.stderr
    assert content(tmp_path / "stores") == {}
    failed = [path for path in (tmp_path / "stores").rglob("*.npz") if Part.load(path).failed]
    result = mlemiss(*arguments, "--max-failures", 3)  # those four count, before anything else is decoded
    assert result.returncode == 2 and "4 clips failed, more than --max-failures 3" in result.stderr, result.stderr
    assert [path for path in (tmp_path / "stores").rglob("*.npz") if Part.load(path).failed] == failed
    assert mlemiss(*arguments).returncode == 1
    result = mlemiss(*arguments, "--max-failures", 19)
    assert result.returncode == 2 and "20 clips of mine-media" in result.stderr, result.stderr
    assert mlemiss(*arguments, "--max-failures", 20).returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["run.reuse.fill", "stores.store.write_table"])
def test_a_lost_claim_stops_before_publishing(moment, synthetic_ravdess, tmp_path, mlemiss):
    """Taken over by another machine, as after a suspension, before the last stage or within it: whoever wakes up must
    not publish beside it."""
    module, name = moment.rsplit(".", 1)
    takeover = f"""
import json
import mlemiss.pipeline.{module} as module
from pathlib import Path
real = module.{name}
def taken(*arguments):
    for file in Path({str(tmp_path)!r}).rglob("*.lock.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {{"token": "another", "host": "elsewhere"}}))
    return real(*arguments)
module.{name} = taken
"""
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--limit", 2, "--workers", 0, "--media", "only")
    done = mlemiss(*arguments, before=takeover)
    assert done.returncode == 2 and "elsewhere" in done.stderr, done.stderr
    assert content(tmp_path / "stores") == {}


def test_a_clip_that_changes_meanwhile_is_not_filed_under_its_old_content(synthetic_ravdess, tmp_path, mlemiss):
    """Still being copied, say, when it was hashed."""
    root = tmp_path / "root"
    root.mkdir()
    for clip in sorted(synthetic_ravdess.rglob("*.mp4"))[:4]:
        shutil.copy(clip, root)
    names = sorted(path.name for path in root.iterdir())[:2]
    change = f"""
from mlemiss.pipeline.media import decode as media
real = media.read_clip
def read_clip(path, limits):
    if path.name == {names[0]!r}:
        path.write_bytes(path.read_bytes() + bytes(8))
    elif path.name == {names[1]!r}:
        path.unlink()
    return real(path, limits)
media.read_clip = read_clip
"""
    arguments = options(root, tmp_path / "stores", "--workers", 0, "--media", "only", "--json")
    done = mlemiss(*arguments, before=change)
    assert done.returncode == 1, done.stderr
    failed = json.loads(done.stdout)["failed"]
    assert [failure["path"].rpartition("/")[2] for failure in failed] == names
    assert all("changed after its content was hashed" in failure["cause"] for failure in failed)


@pytest.mark.parametrize("text", ["[1, 2]", "7", '{"x": 3}', "null", "{"])
def test_a_damaged_list_of_hashes_is_made_again(text, synthetic_ravdess, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    collection = collect("ravdess", synthetic_ravdess, None)
    collection = replace(collection, clips=collection.clips[:1])
    first = read_sources(collection, 1 << 30, False)
    (kept,) = (tmp_path / "mlemiss").iterdir()
    kept.write_text(text.replace("x", str(synthetic_ravdess / collection.clips[0].path)))
    assert len(first[0].sha256) == 64 and read_sources(collection, 1 << 30, False) == first


def test_limits_are_checked(synthetic_ravdess, mlemiss):
    for option in ("--clip-timeout", "--clip-seconds", "--clip-pixels", "--clip-bytes", "--clip-memory"):
        result = mlemiss("preprocess", "--dataset", "ravdess", "--root", synthetic_ravdess, option, 0)
        assert result.returncode == 2 and option in result.stderr
    most = {"--clip-timeout": "inf", "--clip-memory": 10**23, "--clip-pixels": 2**31, "--workers": 10**8}
    for option, value in most.items():
        result = mlemiss("preprocess", "--dataset", "ravdess", "--root", synthetic_ravdess, option, value)
        assert result.returncode == 2 and f"'{option}': Input should be less" in result.stderr
    result = mlemiss("preprocess", "--dataset", "ravdess", "--root", synthetic_ravdess, "--max-failures", -1)
    assert result.returncode == 2 and "'--max-failures': Input should be greater" in result.stderr


@pytest.fixture
def small_disk(tmp_path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_ends_in_a_clear_error_and_resumes(workers, small_disk, six, synthetic_ravdess, mlemiss):
    stores = small_disk / "stores"
    arguments = options(synthetic_ravdess, stores, *SIX, "--media", "only", "--workers", workers)
    result = mlemiss(*arguments)
    assert result.returncode == 2 and "No space left on device" in result.stderr, result.stderr
    assert "Make room" in result.stderr and "Traceback" not in result.stderr
    assert content(stores) == {}
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    result = mlemiss(*arguments)
    assert result.returncode == 0 and "going on" in result.stderr, result.stderr
    assert content(stores) == six.media


@pytest.mark.slow
def test_ten_random_kills_lose_nothing(mlemiss):
    """The script that does a hundred, with ten."""
    script = (Path(__file__).parents[1] / "benchmarks" / "kills.py").read_text(encoding="utf-8")
    done = mlemiss("--kills", 10, "--clips", 4, "--workers", 0, "--features", SMALL, code=script)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["kills"], found["all_as_expected"]) == (10, True)


@pytest.mark.slow
def test_a_dead_lock_is_taken_over(six, synthetic_ravdess, tmp_path, mlemiss):
    """The lock goes with its holder, however that ends; what the holder finished is kept."""
    stores = tmp_path / "stores"
    arguments = options(synthetic_ravdess, stores, *SIX, "--media", "only", "--workers", 0)
    holder = mlemiss.start(*arguments)
    while not staged(stores) and holder.poll() is None:
        time.sleep(0.01)
    told = mlemiss(*arguments)
    assert told.returncode == 2 and f"process {holder.pid}" in told.stderr, told.stderr
    holder.kill()
    result = mlemiss(*arguments)
    assert result.returncode == 0, result.stderr
    assert content(stores) == six.media
