"""Preprocessing as a user meets it: real clips, real processes, killed ones too; the same bytes every way."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlemiss.pipeline.media import decode as media
from mlemiss.pipeline.media.process import ffmpeg_binary
from mlemiss.pipeline.preprocess import Summary
from mlemiss.pipeline.stores.checksums import COMPLETE, RUN, damaged_files
from mlemiss.pipeline.stores.store import FeatureStore
from threadpoolctl import threadpool_limits

from .preprocessing import NETWORK, SIX, SMALL, content, kill_at, left_running, options, staged


def test_summary_and_store(six):
    summary = six.summary
    assert set(summary) == {"stores", "clips", "done", "failed", "absent", "unexpected", "remarks", "seconds", "limit"}
    assert (summary["clips"], summary["done"], summary["failed"], summary["absent"]) == (6, 6, [], 1116)
    assert set(summary["seconds"]) == {"decode", "cnn", "write", "total"}
    assert summary["limit"] in {"decode", "cnn", "write", "start"}
    media_store, features = (FeatureStore.open(path) for path in summary["stores"])
    assert (media_store.features, features.features) == ("media", SMALL)
    assert features.weights["name"] == "random" and len(features.weights["hash"]) == 16
    assert features.read("visual").shape == (6, 30, 256) and not np.isnan(features.read("audio")).any()
    assert features.chunks.group["visual"].chunks == (6, 30, 256)
    assert media_store.chunks.group["frames"].chunks == (1, 30, 256, 256, 3)
    assert list(features.clip_id) == sorted(features.clip_id) and features.present.all()
    assert all(damaged_files(Path(path)) == [] for path in summary["stores"])


@pytest.mark.slow
def test_media_are_what_decoding_gives(six, synthetic_ravdess):
    stored = FeatureStore.open(six.summary["stores"][0])
    with threadpool_limits(1):  # as workers have it; several add in another order
        clip = media.read_clip(next(synthetic_ravdess.rglob(f"{stored.clip_id[2]}.mp4")))
    np.testing.assert_array_equal(stored.chunks.group["frames"][2], clip.frames)
    np.testing.assert_array_equal(stored.chunks.group["logmel"][2], clip.logmel)
    assert stored.duration[2] == clip.duration


@pytest.mark.slow
def test_parallel_run_gives_the_same_bytes(six, synthetic_ravdess, tmp_path, mlemiss):
    result = mlemiss(*options(synthetic_ravdess, tmp_path / "s", *SIX, "--workers", 2))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and "6 done, 0 failed, 1116 absent" in result.stderr
    awaited = (f"loading {SMALL} …", "waiting for 2 worker processes to start …", "2 workers\n")
    loading, starting, started = map(result.stderr.index, awaited)
    assert loading < starting < started, "what is awaited is said before it is there"
    assert content(tmp_path / "s") == six.content


@pytest.mark.slow
def test_media_need_no_torch(synthetic_ravdess, tmp_path):
    """Which would cost each process that decodes seconds and memory."""
    script = "import sys; from mlemiss.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    arguments = ["--dataset", "ravdess", "--root", synthetic_ravdess, "--stores", tmp_path, "--media", "only"]
    command = [sys.executable, "-c", script, "preprocess", *arguments, "--limit", 1, "--workers", 0]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    assert len(list(tmp_path.glob("*.zarr"))) == len(list(tmp_path.glob("*-media-*.zarr"))) == 1


def test_rerun_has_nothing_to_do(six, synthetic_ravdess, mlemiss):
    before = {path: path.stat().st_mtime_ns for path in six.stores.rglob("*") if path.is_file()}
    result = mlemiss(*options(synthetic_ravdess, six.stores, *SIX))
    assert result.returncode == 0 and "nothing left to do" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in six.stores.rglob("*") if path.is_file()} == before


def test_moved_folder_is_still_known(six, synthetic_ravdess, tmp_path, mlemiss):
    """Fingerprints are of contents, never of paths."""
    shutil.copytree(synthetic_ravdess, tmp_path / "moved" / "deeper")
    result = mlemiss(*options(tmp_path / "moved", six.stores, "--limit", 6))
    assert result.returncode == 0 and "nothing left to do" in result.stderr


@pytest.mark.slow
def test_another_backbone_from_cached_media(six, synthetic_ravdess, tmp_path, mlemiss):
    """The media store saves the decoding and gives the same bytes as decoding does."""
    other = ["--dataset", "ravdess", "--root", synthetic_ravdess, "--features", "timm:test_resnet"]
    other += ["--weights", "random", "--limit", 6, "--workers", 0]
    decoded = mlemiss("preprocess", "--stores", tmp_path / "decoded", *other)
    assert decoded.returncode == 0, decoded.stderr
    (media_store,) = six.stores.glob("*-media-*.zarr")
    shutil.copytree(media_store, tmp_path / "cached" / media_store.name)
    cached = mlemiss("preprocess", "--stores", tmp_path / "cached", *other)
    assert cached.returncode == 0 and "no decoding" in cached.stderr, cached.stderr
    found = {name: data for name, data in content(tmp_path / "cached").items() if "-media-" not in name}
    assert found == content(tmp_path / "decoded")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for left processes in /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_rerun_gives_the_same_bytes(workers, six, synthetic_ravdess, tmp_path, mlemiss):
    """SIGKILL as the first results appear and past half-way; then a run that ends."""
    stores, tag = tmp_path / "stores", f"MLEMISS_TEST_TAG={tmp_path.name}"
    alone = ("--media", "only") if workers else ()  # with networks: test_three_workers_one_killed_give_the_serial_bytes
    arguments = options(synthetic_ravdess, stores, *SIX, *alone, "--workers", workers)
    for enough in (1, 4) if workers else (7,):  # of six results, or twelve in two stores
        process = mlemiss.start(*arguments, **dict([tag.split("=")]))
        while staged(stores) < enough and process.poll() is None:
            time.sleep(0.01)
        assert process.kill() == -signal.SIGKILL, "the run ended before it could be killed"
        assert left_running(tag) == []
        assert content(stores) == {}, "an unfinished store looks finished"
        assert staged(stores) >= enough
    result = mlemiss(*arguments)
    assert result.returncode == 0, result.stderr
    assert content(stores) == (six.media if workers else six.content)
    assert not list(stores.glob(".partial/*.zarr")) and not list(stores.rglob("*.npz"))


@pytest.fixture(scope="module")
def computed(commands, synthetic_ravdess, tmp_path_factory) -> Path:
    """The folder of a run that was killed with every clip's result kept and nothing published. To copy."""
    stores = tmp_path_factory.mktemp("computed") / "stores"
    killed = commands(*options(synthetic_ravdess, stores, *SIX, "--workers", 0), before=kill_at("run.run.load_parts"))
    assert killed.returncode == -signal.SIGKILL and content(stores) == {} and staged(stores) == 12
    return stores


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["run.run.load_parts", "stores.store.publish", "COMPLETE", "run.run.remove_tree"])
def test_killed_while_publishing(moment, computed, six, synthetic_ravdess, tmp_path, mlemiss):
    """SIGKILL inside the last stage: a store is absent until it is whole, and the rerun makes the same bytes."""
    stores = shutil.copytree(computed, tmp_path / "stores")
    arguments = options(synthetic_ravdess, stores, *SIX, "--workers", 0)
    assert mlemiss(*arguments, before=kill_at(moment)).returncode == -signal.SIGKILL
    assert content(stores).items() <= six.content.items()
    rerun = mlemiss(*arguments)
    assert rerun.returncode == 0, rerun.stderr
    assert content(stores) == six.content
    assert not list(stores.glob(".partial/*.zarr"))
    records = [json.loads(path.read_text()) for path in stores.glob("*.zarr/RUN.json")]
    assert len(records) == 2 and all({"command", "finished", "host"} <= set(record) for record in records)


def killed_ffmpeg(folder: Path) -> Path:
    """An ffmpeg that something else kills, as the system does where memory runs out."""
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\ncase "$*" in *framecrc*) kill -9 $$;; esac\nexec {ffmpeg_binary()} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.slow
def test_faults_of_the_machine_are_not_recorded_as_the_clips(synthetic_ravdess, tmp_path, mlemiss):
    """A killed ffmpeg stops the run; nothing is published, and a healthy rerun finds every clip."""
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--workers", 0, "--limit", 3)
    result = mlemiss(*arguments, MLEMISS_FFMPEG=str(killed_ffmpeg(tmp_path)))
    assert result.returncode == 2 and "ffmpeg was ended from outside" in result.stderr
    assert content(tmp_path / "stores") == {}
    result = mlemiss(*arguments)
    assert result.returncode == 0 and "3 done, 0 failed" in result.stderr


@pytest.mark.slow
def test_synthetic_clips_are_told_apart(synthetic_ravdess, tmp_path, mlemiss):
    """The same files without their marker make another store: what says SYNTHETIC must not be lost."""
    unmarked = tmp_path / "unmarked"
    shutil.copytree(synthetic_ravdess, unmarked)
    (unmarked / "SYNTHETIC.json").unlink()
    for root in (synthetic_ravdess, unmarked):
        arguments = options(root, tmp_path / "stores", "--workers", 0, "--limit", 1, "--media", "only")
        assert mlemiss(*arguments).returncode == 0
    assert sorted(FeatureStore.open(path).synthetic for path in (tmp_path / "stores").glob("*.zarr")) == [False, True]


@pytest.mark.slow
def test_two_at_once_do_not_harm_each_other(six, synthetic_ravdess, tmp_path, mlemiss):
    stores = tmp_path / "stores"
    arguments = options(synthetic_ravdess, stores, *SIX, "--workers", 0)
    first = mlemiss.start(*arguments)
    while not staged(stores) and first.poll() is None:
        time.sleep(0.01)
    second = mlemiss(*arguments)
    assert second.returncode == 2 and f"process {first.pid}" in second.stderr
    assert first.wait() == 0
    assert content(stores) == six.content


@pytest.mark.slow
def test_others_read_the_stores_without_us_and_without_warnings(six):
    """In a process that has never heard of mlemiss: dimensions are named, values are what we read."""
    paths = six.summary["stores"]
    done = subprocess.run([sys.executable, "-W", "error", "-c", OTHERS, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    dimensions = {
        "frames": ["clip", "segment", "row", "column", "channel"],
        "logmel": ["clip", "segment", "channel", "mel", "time"],
        "visual": ["clip", "segment", "feature"],
        "audio": ["clip", "segment", "feature"],
        "present": ["clip", "modality"],
        "split": ["seed", "clip"],
        "missing": ["setting", "seed", "clip", "modality"],
    }
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        read, opened = json.loads(line), FeatureStore.open(path)
        named = read["dimensions"]
        assert all(found == dimensions.get(name, ["clip"]) for name, found in named.items())
        assert {"clip_id", "label", "subject", "status", "error", "duration", "sha256", "present", "split"} < set(named)
        for name in ("frames", "logmel") if opened.features == "media" else ("visual", "audio"):
            assert read["sums"][name] == [float(opened.chunks.group[name][2].astype(np.float64).sum())] * 2
        assert read["ids"] == list(opened.clip_id)


OTHERS = """
import json, sys, numpy, xarray, zarr
for path in sys.argv[1:]:
    dataset, group = xarray.open_zarr(path), zarr.open_group(path, mode="r")
    large = [name for name in dataset.variables if dataset[name].ndim > 2 and name != "missing"]
    sums = {n: [float(a[2].astype(numpy.float64).sum()) for a in (dataset[n].values, group[n])] for n in large}
    dimensions = {name: list(dataset[name].dims) for name in dataset.variables}
    print(json.dumps({"dimensions": dimensions, "sums": sums, "ids": dataset["clip_id"].values.tolist()}))
assert "mlemiss" not in sys.modules
"""


@pytest.mark.slow
def test_incomplete_store_is_made_again(synthetic_ravdess, tmp_path, mlemiss):
    """A store that lost its marker (a copy cut short) is moved aside and kept."""
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--workers", 0, "--limit", 1)
    assert mlemiss(*arguments).returncode == 0
    whole = content(tmp_path / "stores")
    (store,) = (tmp_path / "stores").glob("*.zarr")
    (store / COMPLETE).unlink()
    train = mlemiss("train", "--stores", tmp_path / "stores", "--features", SMALL, "--missing", "none")
    assert train.returncode == 2 and "not usable" in train.stderr and "incomplete" in train.stderr
    result = mlemiss(*arguments)
    assert result.returncode == 0 and "was incomplete" in result.stderr
    assert content(tmp_path / "stores") == whole and list((tmp_path / "stores").glob(".partial/*.set-aside"))
    (store / "zarr.json").write_text("{")
    result = mlemiss(*arguments)
    assert result.returncode == 0 and "was damaged" in result.stderr and content(tmp_path / "stores") == whole
    record = json.loads((store / RUN).read_text())
    assert record["command"].startswith("mlemiss preprocess") and record["clips"] == 1 and record["started"]
    (store / RUN).unlink()  # a store pulled without its record, say
    assert mlemiss(*arguments).returncode == 0 and not (store / RUN).exists()
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["schema"] = 99
    (store / "zarr.json").write_text(json.dumps(document))
    result = mlemiss(*arguments)
    assert result.returncode == 2 and "schema version 99" in result.stderr


@pytest.fixture
def broken(tmp_path, synthetic_ravdess) -> Path:
    """A CSV dataset: good clips, one without sound, one without picture, and broken ones."""
    root = tmp_path / "root"
    root.mkdir()
    good = sorted(synthetic_ravdess.rglob("*.mp4"))[:2]
    shutil.copy(good[0], root / "good.mp4")
    for name, drop in (("mute.mp4", "-an"), ("blind.mp4", "-vn")):
        command = [ffmpeg_binary(), "-v", "error", "-i", good[1], "-c", "copy", drop, root / name]
        subprocess.run(command, check=True)
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("this is no film\n" * 100)
    data = good[0].read_bytes()
    (root / "cut.mp4").write_bytes(data[: len(data) // 2])
    names = ["good", "mute", "blind", "empty", "text", "cut"]
    rows = [f"{name},{name}.mp4,{'glad' if i % 2 else 'sad'},s{i}" for i, name in enumerate([*names, "gone"])]
    (root / "mine.csv").write_text("\n".join(["clip_id,path,label,subject", *rows]) + "\n")
    return root


@pytest.mark.slow
def test_a_bad_clip_costs_that_clip(broken, tmp_path, mlemiss):
    arguments = ["preprocess", "--dataset", broken / "mine.csv", "--stores", tmp_path / "stores", "--json"]
    arguments += NETWORK
    for _ in range(2):  # a rerun tells the same from the store
        result = mlemiss(*arguments, "--workers", 0)
        assert result.returncode == 1, result.stderr
        summary = json.loads(result.stdout)
        assert (summary["clips"], summary["done"], summary["absent"]) == (6, 3, 1)
        causes = {failure["clip_id"]: failure["cause"] for failure in summary["failed"]}
        assert set(causes) == {"empty", "text", "cut"}
        for cause in causes.values():
            assert cause and str(tmp_path) not in cause and "0x" not in cause
        assert "gone" in result.stderr
    stored = FeatureStore.open(summary["stores"][0])
    rows = dict(zip(stored.clip_id, stored.present.tolist(), strict=True))
    assert rows["good"] == [True, True] and rows["mute"] == [True, False] and rows["blind"] == [False, True]
    assert rows["cut"] == [False, False] and dict(zip(stored.clip_id, stored.status, strict=True))["cut"] == "failed"
    mute, blind = (list(stored.clip_id).index(name) for name in ("mute", "blind"))
    assert "audio" in stored.error[mute] and "visual" in stored.error[blind]
    assert np.isnan(stored.read("audio")[mute]).all() and np.isfinite(stored.read("visual")[mute]).all()


@pytest.mark.slow
def test_real_clips(shared_data, tmp_path, mlemiss):
    root = shared_data / "ravdess_sample"
    result = mlemiss(*options(root, tmp_path / "stores", "--media", "keep", "--workers", 0, "--json"))
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["clips"], summary["done"], summary["absent"]) == (4, 4, 1148)
    stored = FeatureStore.open(summary["stores"][0])
    assert stored.present.all() and ((stored.duration > 2.9) & (stored.duration < 5.3)).all()


@pytest.mark.slow
def test_files_decoders_trip_over(shared_data, tmp_path, mlemiss):
    """Each is done or failed with its cause; none costs the run."""
    folder = shared_data / "decoder_oddities"
    names = sorted(path.name for path in folder.iterdir())
    rows = [f"{name},{name},{'ab'[i % 2]},s" for i, name in enumerate(names)]
    (tmp_path / "odd.csv").write_text("\n".join(["clip_id,path,label,subject", *rows]))
    arguments = ["--root", folder, "--stores", tmp_path / "stores", "--media", "only"]
    result = mlemiss("preprocess", "--dataset", tmp_path / "odd.csv", *arguments, "--json")
    summary = json.loads(result.stdout)
    assert result.returncode == 1 and summary["clips"] == len(names) and summary["absent"] == 0
    stored = FeatureStore.open(summary["stores"][0])
    present = dict(zip(stored.clip_id, stored.present.tolist(), strict=True))
    assert {"mpeg4.mp4", "sample.mkv"} <= {failure["clip_id"] for failure in summary["failed"]}
    assert present["big_buck_bunny_small.mp4"] == present["nasa_13013.mp4"] == [True, True]
    assert present["var_fps_video.mp4"][0] and present["video_90.mov"][0] and not present["corrupted.mp4"][0]
    causes = {failure["clip_id"]: failure["cause"] for failure in summary["failed"]}
    assert "silence" in causes["issue55.flv"]  # its sound stays below half a step of 16 bits


@pytest.mark.slow
def test_dry_run_computes_nothing(synthetic_ravdess, tmp_path, mlemiss):
    result = mlemiss(*options(synthetic_ravdess, tmp_path / "stores", "--dry-run"))
    assert result.returncode == 0 and "36 clips to compute" in result.stderr and "GB on disk" in result.stderr
    assert not list((tmp_path / "stores").glob("*.zarr")) and not (tmp_path / "stores" / ".partial").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--dataset", "nope"], "unknown dataset 'nope'"),
        (["--dataset", "nope.csv"], "nope.csv"),
        (["--dataset", "ravdess", "--root", "nowhere"], "no folder nowhere"),
        (["--dataset", "ravdess", "--features", "resnet51"], "unknown features 'resnet51'"),
        (["--dataset", "ravdess", "--precision", "fp8"], "'fp8' is not one of 'fp32', 'tf32', 'bf16'"),
        (["--dataset", "ravdess", "--precision", "tf32", "--device", "cpu"], "--precision tf32 is of CUDA GPUs"),
        (["--dataset", "ravdess", "--media", "perhaps"], "'perhaps' is not one of 'keep', 'only'"),
        (["--dataset", "ravdess", "--workers", "-1"], "'--workers': Input should be greater than or equal to 0"),
        (["--dataset", "ravdess", "--limit", "0"], "'--limit': Input should be greater than or equal to 1"),
        (["--dataset", "ravdess", "--weights", "nothing.pth"], "neither imagenet nor random"),
        (["--dataset", "ravdess", "--device", "cuda9"], "'cuda9' is not one of 'auto', 'cpu', 'cuda'"),
        ([], "--dataset"),
    ],
)
def test_wrong_usage(arguments, why, synthetic_ravdess, mlemiss):
    root = [] if "--root" in arguments or "--dataset" not in arguments else ["--root", synthetic_ravdess]
    result = mlemiss("preprocess", *arguments, *root)
    assert result.returncode == 2 and why in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert "loading" not in result.stderr


@pytest.mark.parametrize(
    ("spent", "start", "limit"), [((14, 0, 2), 1.0, "decode"), ((14, 0, 2), 4.0, "start"), ((0, 0, 1), None, "nothing")]
)
def test_the_limit_of_a_run(spent, start, limit):
    """Stages are summed over workers; two clips are computed in less time than workers start."""
    seconds = dict(zip(("decode", "cnn", "write"), spent, strict=True)) | {"total": 6.0}
    computed = 0 if start is None else 2
    assert Summary(["a"], 2, 2, [], (), seconds, computed, start or 0.0).limit == limit
