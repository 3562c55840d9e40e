"""Links and pipes that somebody planted in a folder where others write: refused by name, and nothing is followed."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlemiss.pipeline.clips import synth
from mlemiss.pipeline.clips.datasets import collect
from mlemiss.pipeline.clips.manifest import Collection
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.files import whole_file
from mlemiss.pipeline.run import run
from mlemiss.pipeline.run.plan import FeatureRequest, Plan, make_plan
from mlemiss.pipeline.stores import claim, share, store
from mlemiss.pipeline.stores.checksums import COMPLETE
from mlemiss.pipeline.stores.claim import only_one

from .hostile_stores import attribute, seal
from .test_store import make_store


@pytest.fixture
def victim(tmp_path) -> Path:
    """Somebody's folder with a file, which must stay as it is."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    (folder / "x.partial").write_text("precious")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("precious", "x.partial"), "precious"
    )


def plant(path: Path, victim: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim if kind == "folder" else victim / kind)


def refused(path: Path):
    return pytest.raises(InputError, match=rf"^{re.escape(str(path))} is a link, pipe or the like.*\nSee what it is")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".partial", "folder"),
        (".partial", "pipe"),
        *(
            (f".partial/x.lock{end}", kind)
            for end in ("", ".json")
            for kind in ("precious", "absent", "folder", "pipe")
        ),
    ],
)
def test_a_planted_lock_or_claim(name, kind, victim, tmp_path):
    planted = tmp_path / "stores" / name
    plant(planted, victim, kind)
    with refused(planted), only_one(tmp_path / "stores" / ".partial" / "x.lock", "X"):
        pytest.fail("taken")


def test_a_folder_of_stores_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "stores").symlink_to(tmp_path / "disk")
    with only_one(tmp_path / "stores" / ".partial" / "x.lock", "X"), only_one(tmp_path / "stores" / "y.lock", "Y"):
        pass


def test_temporary_names_cannot_be_taken_before(victim, tmp_path):
    """Neither by a process's number nor by the token that a claim shows."""
    plant(tmp_path / f"x.json.{os.getpid()}.partial", victim, "precious")
    with whole_file(tmp_path / "x.json") as file:
        file.write(b"new")
    held = claim.Claim(tmp_path / "x.lock.json", "X")
    plant(tmp_path / f"x.lock.json.{held.document['token']}.partial", victim, "precious")
    held._write(new=True)
    assert (tmp_path / "x.json").read_bytes() == b"new"
    assert json.loads((tmp_path / "x.lock.json").read_text())["token"] == held.document["token"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize(
    ("inside", "kind"), [("", "folder"), ("visual", "folder"), ("label/c/0", "precious"), ("RUN.json", "pipe")]
)
def test_a_planted_copy(inside, kind, toy, victim, tmp_path):
    """Nothing is copied through it, and what is not the store's is not deleted behind it."""
    incoming = tmp_path / "there" / ".partial" / f"{toy.stem}.incoming"
    plant(incoming / inside, victim, kind)
    for copy in (share.push, share.pull):
        with refused(incoming / inside):
            copy(toy, tmp_path / "there")


def test_a_link_in_the_place_of_a_store(toy, victim, tmp_path):
    plant(tmp_path / "there" / toy.name, victim, "folder")
    with refused(tmp_path / "there" / toy.name):
        share.push(toy, tmp_path / "there")


@pytest.mark.parametrize("suffix", [".replaced", ".set-aside"])
def test_a_link_in_the_way_of_an_older_one(suffix, toy, victim, tmp_path):
    newer = shutil.copytree(toy, tmp_path / "newer" / toy.name)
    attribute("revision", 2)(newer)
    seal(newer)
    shutil.copytree(toy, tmp_path / toy.name)
    if suffix == ".set-aside":  # where what is incomplete goes, as another copy is under way
        (tmp_path / toy.name / COMPLETE).unlink()
        (tmp_path / ".partial" / f"{toy.stem}.incoming").mkdir(parents=True)
    plant(tmp_path / ".partial" / f"{toy.stem}{suffix}", victim, "folder")
    assert share.push(newer, tmp_path).path == tmp_path / toy.name
    assert not (tmp_path / toy.name).is_symlink() and (tmp_path / toy.name / COMPLETE).is_file()


@pytest.fixture
def planned(synthetic_ravdess, tmp_path) -> Callable[[int], Plan]:
    def plan(clips: int) -> Plan:
        every = collect("ravdess", synthetic_ravdess, None)
        some = Collection(every.dataset, every.root, every.classes, every.clips[:clips])
        return make_plan(some, tmp_path / "stores", FeatureRequest(media="only"))

    return plan


@pytest.mark.parametrize(
    ("inside", "kind"), [("", "folder"), ("clips", "folder"), ("clips/x.npz", "pipe"), ("store.zarr", "folder")]
)
def test_a_planted_work_folder_of_preprocess(inside, kind, planned, victim):
    plan = planned(2)
    planted = plan.outputs[0].work / inside
    plant(planted, victim, kind)
    with refused(planted), run.claimed(plan):
        pytest.fail("claimed")


@pytest.mark.parametrize(
    ("inside", "kind"), [("", "folder"), ("store.zarr/zarr.json", "pipe"), ("clips/KEY.npz", "pipe")]
)
def test_planted_work_of_another_store_is_not_taken_over(inside, kind, planned, victim, tmp_path, capsys):
    plan = planned(2)
    other = tmp_path / "stores" / ".partial" / "other.zarr"
    if inside == "clips/KEY.npz":
        group = store.open_group(other / "store.zarr")
        group.attrs.put({"features": plan.outputs[0].features, "spec": plan.outputs[0].spec})
    plant(other / inside.replace("KEY", plan.keys[0]), victim, kind)
    with run.claimed(plan):
        assert len(run.lacking(plan)) == 2
    assert ("not usable" in capsys.readouterr().err) == bool(inside)


def test_clips_that_are_drawn_follow_no_link(victim, tmp_path):
    plant(tmp_path / ".x.mp4.partial", victim, "precious")
    plant(tmp_path / "x.mp4", victim, "precious")
    synth._encode(tmp_path / "x.mp4", np.zeros((2, 64, 64, 3), np.uint8), np.zeros(8000), "none")
    assert (tmp_path / "x.mp4").stat().st_size > 500 and not (tmp_path / "x.mp4").is_symlink()
