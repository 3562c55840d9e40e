"""What is there is not made again: growing data sets, failed clips retried, results of equal content shared."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from mlemiss.pipeline.media.process import due_to_limit, ffmpeg_binary
from mlemiss.pipeline.stores import store
from mlemiss.pipeline.stores.checksums import damaged_files
from mlemiss.pipeline.stores.claim import only_one
from mlemiss.pipeline.stores.store import FeatureStore

from . import preprocessing
from .hostile_stores import hostile
from .preprocessing import NETWORK, content, kill_at


def options(root: Path, stores: Path, *more: object) -> list:
    return preprocessing.options(root, stores, "--workers", 0, *more)


def four_clips(synthetic_ravdess: Path, root: Path) -> Path:
    """Make a root of four clips of the first subject; the others' are at hand."""
    (root / "Actor_01").mkdir(parents=True)
    for path in sorted((synthetic_ravdess / "Actor_01").glob("*.mp4"))[::3]:
        shutil.copy(path, root / "Actor_01")
    shutil.copy(synthetic_ravdess / "SYNTHETIC.json", root)
    return root


@pytest.fixture
def grown(synthetic_ravdess, tmp_path) -> Path:
    return four_clips(synthetic_ravdess, tmp_path / "root")


@pytest.fixture
def counting(tmp_path) -> tuple[dict[str, str], Path]:
    """An ffmpeg that writes down what it decodes: the environment that names it, and its list."""
    program, log = tmp_path / "ffmpeg", tmp_path / "decoded.txt"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *rawvideo*) echo "$*" | grep -o "[^/]*.mp4" >> {log};; esac\n'
        f'exec {ffmpeg_binary()} "$@"\n'
    )
    program.chmod(0o755)
    return {"MLEMISS_FFMPEG": str(program)}, log


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blosc bomb", "noise in features"])
def test_chunks_that_are_none_cost_their_store(grown, tmp_path, mlemiss, kind):
    """A colleague's store whose checksums are right, and whose chunks are none: the clips are computed again."""
    assert mlemiss(*options(grown, tmp_path / "good")).returncode == 0
    good = {each.name.split("-")[1]: each for each in (tmp_path / "good").glob("*.zarr")}
    name = next(iter(good))
    hostile(good[name], tmp_path / "stores", kind)
    next((grown / "Actor_01").glob("*.mp4")).unlink()
    result = mlemiss(*options(grown, tmp_path / "stores"))
    assert result.returncode == 0 and f"not usable: {good[name].name}" in result.stderr, result.stderr
    assert mlemiss(*options(grown, tmp_path / "fresh")).returncode == 0
    assert content(tmp_path / "fresh").items() <= content(tmp_path / "stores").items()


@pytest.mark.slow
def test_a_clip_more_costs_one_clip(grown, synthetic_ravdess, tmp_path, mlemiss, counting):
    """Added, renamed or removed: only content that no store has is decoded, and the bytes are a fresh run's."""
    stores, (environment, log) = tmp_path / "stores", counting
    assert mlemiss(*options(grown, stores, "--media", "keep")).returncode == 0
    new = sorted((synthetic_ravdess / "Actor_02").glob("*.mp4"))[0]
    (grown / "Actor_02").mkdir()
    shutil.copy(new, grown / "Actor_02")
    result = mlemiss(*options(grown, stores, "--media", "keep"), **environment)
    assert result.returncode == 0 and "4 of 5 clips taken over" in result.stderr, result.stderr
    assert log.read_text().split() == [new.name]
    assert mlemiss(*options(grown, tmp_path / "fresh", "--media", "keep")).returncode == 0
    fresh = content(tmp_path / "fresh")
    assert fresh.items() <= content(stores).items() and len(fresh) > 10

    # A renamed clip (its name says another actor) and a removed one; features alone, from features alone.
    for path in stores.glob("*-media-*.zarr"):
        shutil.rmtree(path)
    (grown / "Actor_02" / new.name).rename(grown / "Actor_02" / new.name.replace("-02.mp4", "-07.mp4"))
    next((grown / "Actor_01").glob("*.mp4")).unlink()
    result = mlemiss(*options(grown, stores), **environment)
    assert result.returncode == 0 and "4 of 4 clips taken over" in result.stderr, result.stderr
    assert log.read_text().split() == [new.name]


@pytest.mark.slow
def test_one_clip_more_in_a_store_of_fifty(synthetic_ravdess, tmp_path, mlemiss, counting):
    """Fifty-one different contents: short copies of a clip, each with other bytes after its end."""
    root, stores, (environment, log) = tmp_path / "root", tmp_path / "stores", counting
    root.mkdir()
    short = tmp_path / "short.mp4"
    clip = next(synthetic_ravdess.rglob("*.mp4"))
    cut = [ffmpeg_binary(), "-v", "error", "-i", clip, "-t", "0.3", "-vf", "scale=64:48", "-g", "1", short]
    subprocess.run(list(map(str, cut)), check=True)
    rows = ["clip_id,path,label,subject"]
    for i in range(51):
        (root / f"{i:03}.mp4").write_bytes(short.read_bytes() + b"\0\0\0\x0cfree" + i.to_bytes(4, "big"))
        rows.append(f"c{i:03},{i:03}.mp4,{'ab'[i % 2]},s{i % 9}")
    arguments = ["preprocess", "--dataset", root / "mine.csv", "--stores", stores, "--media", "only", "--workers", 0]
    for count in (50, 51):
        (root / "mine.csv").write_text("\n".join(rows[: count + 1]) + "\n")
        result = mlemiss(*arguments, **environment)
        assert result.returncode == 0, result.stderr
        decoded = set(log.read_text().split())
        log.unlink()
        assert len(decoded) == (50 if count == 50 else 1)
    assert "50 of 51 clips taken over" in result.stderr and decoded == {"050.mp4"}


@pytest.mark.slow
def test_interrupted_work_serves_a_grown_data_set(grown, synthetic_ravdess, tmp_path, mlemiss):
    """Killed before it published, and then a clip is added: what was finished is not lost."""
    stores = tmp_path / "stores"
    arguments = options(grown, stores, "--media", "keep")
    killed = mlemiss(*arguments, before=kill_at("run.run.finish"))
    assert killed.returncode == -9 and content(stores) == {}
    shutil.copy(sorted((synthetic_ravdess / "Actor_03").glob("*.mp4"))[0], grown)
    result = mlemiss(*arguments)
    assert result.returncode == 0 and "4 of 5 clips taken over" in result.stderr, result.stderr
    assert mlemiss(*options(grown, tmp_path / "fresh", "--media", "keep")).returncode == 0
    assert content(stores) == content(tmp_path / "fresh")


@pytest.mark.slow
def test_equal_clips_are_computed_once(synthetic_ravdess, tmp_path, mlemiss, counting):
    environment, log = counting
    root = tmp_path / "root"
    root.mkdir()
    clip = next(synthetic_ravdess.rglob("*.mp4"))
    rows = []
    for i in range(6):
        (root / f"{i}.mp4").hardlink_to(clip) if i < 5 else shutil.copy(clip, root / f"{i}.mp4")
        rows.append(f"c{i},{i}.mp4,{'ab'[i % 2]},s{i}")
    (root / "mine.csv").write_text("\n".join(["clip_id,path,label,subject", *rows]))
    arguments = ["preprocess", "--dataset", root / "mine.csv", "--stores", tmp_path / "s", "--workers", 0, "--json"]
    result = mlemiss(*arguments, *NETWORK, "--media", "keep", **environment)
    assert result.returncode == 0, result.stderr
    assert len(log.read_text().split()) == 1
    media, features = (FeatureStore.open(path) for path in json.loads(result.stdout)["stores"])
    assert features.present.all() and len(set(map(bytes, features.read("visual")))) == 1
    assert len({media.chunks.group["frames"][i].tobytes() for i in range(6)}) == 1


@pytest.fixture(scope="module")
def timed_out(commands, synthetic_ravdess, tmp_path_factory) -> tuple[Path, Path]:
    """A root, and a folder with a finished store in which two clips failed, of a time limit that no longer holds."""
    folder = tmp_path_factory.mktemp("slow")
    root, program = four_clips(synthetic_ravdess, folder / "root"), folder / "ffmpeg"
    names = sorted(path.name for path in root.rglob("*.mp4"))[:2]
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *{names[0]}*|*{names[1]}*) exec sleep 60;; esac\nexec {ffmpeg_binary()} "$@"\n'
    )
    program.chmod(0o755)
    arguments = options(root, folder / "stores", "--json")
    result = commands(*arguments, "--clip-timeout", 1, MLEMISS_FFMPEG=str(program))
    assert result.returncode == 1, result.stderr
    summary = json.loads(result.stdout)
    assert [failure["path"].rpartition("/")[2] for failure in summary["failed"]] == names
    assert all("longer than the time allowed" in failure["cause"] for failure in summary["failed"])
    return root, folder / "stores"


@pytest.fixture
def slow(timed_out, tmp_path) -> tuple[list, Path]:
    """A copy of that store, and the arguments of the run over its clips."""
    root, stores = timed_out
    copy = shutil.copytree(stores, tmp_path / "stores")
    (path,) = copy.glob("*.zarr")
    return options(root, copy, "--json"), path


@pytest.mark.slow
def test_failed_clips_are_retried_alone(slow, mlemiss, counting):
    arguments, path = slow
    before = FeatureStore.open(path)
    kept = before.read("visual")[before.status == "done"]
    result = mlemiss(*arguments)
    assert result.returncode == 1 and "nothing left to do" in result.stderr  # failed clips stand as they are
    environment, log = counting
    result = mlemiss(*arguments, "--retry-failed", **environment)
    assert result.returncode == 0 and json.loads(result.stdout)["failed"] == [], result.stderr
    assert len(log.read_text().split()) == 2
    after = FeatureStore.open(path)
    assert (before.attrs["revision"], after.attrs["revision"]) == (1, 2) and (after.status == "done").all()
    assert (after.read("visual")[before.status == "done"] == kept).all() and damaged_files(path) == []
    assert not list(path.parent.glob(".partial/*.zarr*")) and mlemiss(*arguments, "--retry-failed").returncode == 0
    assert FeatureStore.open(path).attrs["revision"] == 2  # nothing failed, so nothing was made anew

    leftover = path.parent / ".partial" / f"{path.name}.2"  # of a kill right after publishing
    (leftover / "clips").mkdir(parents=True)
    with only_one(leftover.with_name(f"{path.stem}.lock"), path.name):
        assert mlemiss(*arguments).returncode == 0 and leftover.exists()  # somebody is at work there
    assert mlemiss(*arguments).returncode == 0 and not leftover.exists()


@pytest.mark.slow
def test_what_a_limit_took_is_retried(grown, tmp_path, mlemiss):
    """A clip that is done, but without its picture because of a limit: from whatever store its result could come."""
    arguments = options(grown, tmp_path / "stores", "--limit", 1, "--media", "keep", "--json")
    result = mlemiss(*arguments, "--clip-pixels", 100)
    assert result.returncode == 0 and "1 done without visual" in result.stderr, result.stderr
    paths = json.loads(result.stdout)["stores"]
    assert all(due_to_limit(FeatureStore.open(path).error[0]) for path in paths)
    assert mlemiss(*arguments).returncode == 0 and not FeatureStore.open(paths[0]).present.all()
    retried = mlemiss(*arguments, "--retry-failed")
    assert retried.returncode == 0, retried.stderr
    for store_now in map(FeatureStore.open, paths):
        assert store_now.present.all() and store_now.attrs["revision"] == 2 and store_now.error[0] == ""


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ("decoding was stopped: it took longer than the time allowed", True),
        ("decoding was stopped: it gave more than the memory or length allowed", True),
        ("the decoder crashed, or needs more than the 4 GiB of memory allowed", True),
        ("the clip lasts 10800 s, longer than the 1800 s allowed", True),
        ("the file holds 9 bytes, more than the 8 allowed", True),
        ("visual: the video does not decode: Picture size 9x9 exceeds specified max pixel count 4", True),
        ("a link that leaves the root, which --follow-links allows", False),
        ("audio: the audio is digital silence", False),
        ("", False),
    ],
)
def test_limits_are_told_from_other_causes(cause, expected):
    assert due_to_limit(cause) == expected


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["replace", "rename"])
def test_killed_while_replacing_a_revision(moment, slow, mlemiss):
    """At any instant the store that opens is whole: the old revision or the new one."""
    arguments, path = slow
    killer = f"""
import os
from pathlib import Path
real = Path.{moment}  # of the built store to its place, or of a whole COMPLETE.json to its name
def move(self, target):
    if self.name == "store.zarr" or Path(target).name == "COMPLETE.json":
        os.kill(os.getpid(), 9)
    return real(self, target)
Path.{moment} = move
"""
    assert mlemiss(*arguments, "--retry-failed", before=killer).returncode == -9
    assert path.exists() == (moment != "rename")
    result = mlemiss(*arguments)  # what stood there comes back
    assert result.returncode == 1 and FeatureStore.open(path).attrs["revision"] == 1 and damaged_files(path) == []
    assert mlemiss(*arguments, "--retry-failed").returncode == 0
    assert FeatureStore.open(path).attrs["revision"] == 2 and damaged_files(path) == []
    assert not list(path.parent.glob(".partial/*.zarr*"))


def _spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_nothing_is_taken_over_from_damaged_chunks(grown, tmp_path, mlemiss, counting, monkeypatch):
    """Neither results nor media: the clips they hold are decoded again, the others are not."""
    stores, fresh, (environment, log) = tmp_path / "stores", tmp_path / "fresh", counting
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    clips = sorted(path.name for path in grown.rglob("*.mp4"))
    assert mlemiss(*options(grown, stores, "--media", "only")).returncode == 0
    log.unlink()
    (media_store,) = stores.glob("*.zarr")
    (media_store / "frames" / "c" / "1" / "0" / "0" / "0" / "0").unlink()
    _spoil(media_store / "logmel" / "c" / "2" / "0" / "0" / "0" / "0")
    result = mlemiss(*options(grown, stores))
    assert result.returncode == 0 and result.stderr.count("is damaged") == 1, result.stderr
    assert sorted(log.read_text().split()) == clips[1:3]
    next((grown / "Actor_01").glob(clips[-1])).unlink()  # another data set, of clips that the stores have
    for path in stores.glob("*-media-*.zarr"):
        shutil.rmtree(path)
    (features,) = stores.glob("*.zarr")
    for damage in (
        lambda: (features / "visual" / "c" / "0" / "0" / "0").unlink(),
        lambda: _spoil(features / "status" / "c" / "0"),
    ):
        log.unlink()
        damage()
        result = mlemiss(*options(grown, stores))
        told = result.stderr.count(".zarr is damaged") + result.stderr.count("not usable: ")
        assert result.returncode == 0 and told == 1, result.stderr
        assert sorted(log.read_text().split()) == clips[:-1]
        for path in set(stores.glob("*.zarr")) - {features}:
            assert damaged_files(path) == []
            made = content(stores)
            shutil.rmtree(path)
    assert mlemiss(*options(grown, fresh)).returncode == 0
    assert content(fresh).items() <= made.items()


def test_a_worker_reads_the_revision_that_stands(grown, tmp_path, mlemiss):
    """A worker of a cluster serves many runs: what it has open may have been replaced meanwhile."""
    from mlemiss.pipeline.run import extract
    from mlemiss.pipeline.run.plan import Row

    arguments = options(grown, tmp_path / "stores", "--media", "only", "--limit", 1)
    assert mlemiss(*arguments).returncode == 0
    (path,) = (tmp_path / "stores").glob("*.zarr")
    assert extract._open_media(path, 1) is extract._open_media(path, 1)
    old = extract._cached_media(Row(path, 0, 1), {"frames"}).frames.copy()
    with_other = path.with_name("built")
    shutil.copytree(path, with_other)
    (with_other / "COMPLETE.json").unlink()
    group = store.open_group(with_other)
    group["frames"][0] = 255 - group["frames"][0]
    group.attrs["revision"] = 2
    store.publish(with_other, path, tmp_path / "replaced")
    assert (extract._cached_media(Row(path, 0, 2), {"frames"}).frames == 255 - old).all()


@pytest.mark.slow
def test_a_foreign_store_without_a_spec_is_passed_by(grown, tmp_path, mlemiss):
    arguments = options(grown, tmp_path / "stores", "--media", "keep", "--limit", 1)
    assert mlemiss(*arguments).returncode == 0
    for path in (tmp_path / "stores").glob("*.zarr"):
        built = path.with_name("built")
        path.rename(built)
        (built / "COMPLETE.json").unlink()
        group = store.open_group(built)
        attributes = {name: value for name, value in group.attrs.items() if name not in ("spec", "versions")}
        group.attrs.put(attributes)
        store.publish(built, path.with_name(f"other-{path.name}"))
    result = mlemiss(*arguments)
    assert result.returncode == 0 and "taken over" not in result.stderr, result.stderr
