"""Stores: readable by others, refused unless whole, found by what they hold."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores import store
from mlemiss.pipeline.stores.catalogue import find_store, store_facts, store_row
from mlemiss.pipeline.stores.checksums import damaged_files
from mlemiss.pipeline.stores.mask_files import export_masks, read_masks
from mlemiss.pipeline.stores.masks import MODALITIES, TRAIN, missing_clips, parse_missing, split_clips
from mlemiss.pipeline.stores.store import FeatureStore, store_name


def make_store(
    folder: Path,
    dataset: str = "toy",
    features: str = "resnet50",
    fingerprint: str = "abc",
    modalities: tuple[str, ...] = MODALITIES,
) -> Path:
    """A whole store of 40 clips with random features; clip 3 failed, clip 5 lacks the second modality (audio)."""
    clips, rng = 40, np.random.default_rng(0)
    built, final = folder / "building", folder / store_name(dataset, features, fingerprint)
    group = store.open_group(built)
    present = np.ones((clips, len(modalities)), bool)
    present[3], present[5, 1:2] = False, False
    for position, modality in enumerate(modalities):
        array = store.create_array(
            group, modality, (clips, 3, 4), (32, 3, 4), "float16", ("clip", "segment", "feature")
        )
        values = rng.normal(size=array.shape).astype(np.float16)
        values[~present[:, position]] = np.nan
        array[:] = values
    table = {
        "clip_id": [f"ä{i:02d}" for i in range(clips)],
        "label": np.arange(clips) % 4,
        "subject": [f"s{i // 10}" for i in range(clips)],
        "take": ["" for _ in range(clips)],
        "sha256": ["0" * 64] * clips,
        "status": ["failed" if i == 3 else "done" for i in range(clips)],
        "error": ["audio: digital silence" if i == 5 else "" for i in range(clips)],
        "duration": np.ones(clips),
    }
    store.write_table(group, table, present, modalities)
    described = (dataset, features, fingerprint, list("wxyz"), {}, {"name": "random", "hash": "f00"}, {"mlemiss": "0"})
    group.attrs.put(store.attributes(*described, modalities=modalities))
    store.publish(built, final)
    return final


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores"))


def test_reads_back(toy):
    opened = FeatureStore.open(toy)
    assert opened.classes == tuple("wxyz") and opened.weights == {"name": "random", "hash": "f00"}
    assert opened.clip_id[7] == "ä07" and set(opened.columns) == {"subject", "take"}
    assert opened.status[3] == "failed" and opened.error[5] == "audio: digital silence"
    visual, audio = opened.read("visual"), opened.read("audio")
    assert visual.dtype == np.float16 and visual.shape == (40, 3, 4)
    assert np.isnan(visual[3]).all() and np.isnan(audio[5]).all() and not np.isnan(np.delete(audio, [3, 5], 0)).any()
    assert damaged_files(toy) == []


def test_splits_and_masks_are_the_functions_values(toy):
    opened = FeatureStore.open(toy)
    spec = parse_missing("audio:0.8")
    for seed in (0, 9, 10):  # ten seeds are stored, the eleventh is computed
        split = opened.split(seed)
        np.testing.assert_array_equal(split, split_clips(opened.clip_id, opened.label, seed))
        expected = missing_clips(opened.clip_id, opened.label, split == TRAIN, spec, seed)
        np.testing.assert_array_equal(opened.missing(spec, seed, split == TRAIN), expected)
    by_subject = opened.split(0, by="subject")
    assert all(len(set(by_subject[opened.subject == subject])) == 1 for subject in set(opened.subject))
    with pytest.raises(InputError, match="no such column"):
        opened.split(0, by="nope")


def test_a_store_of_three_modalities(tmp_path):
    names = ("visual", "audio", "text")
    opened = FeatureStore.open(make_store(tmp_path, modalities=names))
    assert opened.modalities == names and set(opened.segment_arrays) == set(names)
    assert set(opened.columns) == {"subject", "take"} and opened.present.shape == (40, 3)
    assert len(opened.attrs["settings"]) == 12 and opened.attrs["settings"][4] == "text:0.5"
    train = opened.split(2) == TRAIN
    for text in ("text:0.8", "visual:0.95", "text:0.3+visual:0.3+audio:0.3"):
        spec = parse_missing(text, names)
        hidden = opened.missing(spec, 2, train)
        np.testing.assert_array_equal(hidden, missing_clips(opened.clip_id, opened.label, train, spec, 2, names))
        assert hidden.sum(0).tolist() == [round(dict(spec.rates).get(name, 0) * train.sum()) for name in names]
        assert hidden.sum(1).max() == 1
    _, written = export_masks(opened, tmp_path / "files", 3, ["text:0.8", "audio:0.2+text:0.5"], "clip")
    masks = read_masks(written, names)
    mask = masks.mask(opened, "audio:0.2+text:0.5", 2)
    np.testing.assert_array_equal(mask, opened.missing(parse_missing("audio:0.2+text:0.5", names), 2, train))
    assert store_row(opened)["missing"] == {"visual": 0, "audio": 1, "text": 0}
    assert set(store_facts(opened)["arrays"]) == set(names)


def test_a_store_of_one_modality(tmp_path):
    opened = FeatureStore.open(make_store(tmp_path, modalities=("text",)))
    assert opened.read("text").shape == (40, 3, 4) and opened.attrs["settings"] == []
    with pytest.raises(InputError, match=r"has no array 'audio'.\nExpected one of .*text"):
        opened.read("audio")
    assert damaged_files(opened.path) == [] and opened.split(0).shape == (40,)
    assert not opened.missing(parse_missing("none", ["text"]), 0, opened.split(0) == TRAIN).any()


def test_xarray_and_zarr_read_it_without_us_and_without_warnings(toy):
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xarray.open_zarr(toy)
        group = zarr.open_group(toy, mode="r")
        assert group["visual"][0].shape == (3, 4)
    assert dataset["visual"].dims == ("clip", "segment", "feature")
    assert dataset["missing"].dims == ("setting", "seed", "clip", "modality")
    assert dataset["missing"].shape[0] == len(dataset.attrs["settings"])
    assert str(dataset["clip_id"].values[7]) == "ä07"


def test_every_chunk_is_a_file(toy):
    """Chunks of only fill values too, so that an absent file always means damage."""
    assert (toy / "present" / "c" / "0" / "0").is_file()
    assert len(list((toy / "missing" / "c").rglob("0"))) >= 8


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda p: (p / "COMPLETE.json").unlink(), "incomplete"),
        (lambda p: (p / "zarr.json").unlink(), "no mlemiss store"),
        (lambda p: (p / "zarr.json").write_text("{"), "no mlemiss store"),
        (lambda p: shutil.rmtree(p), "no store at"),
    ],
)
def test_refuses_what_is_not_whole(tmp_path, damage, why):
    path = make_store(tmp_path)
    damage(path)
    with pytest.raises(InputError, match=why):
        FeatureStore.open(path)


def test_refuses_another_schema_version(tmp_path):
    path = make_store(tmp_path)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["schema"] = 99
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="schema version 99, this version of mlemiss reads 1"):
        FeatureStore.open(path)


def test_checksums_name_damaged_absent_and_unexpected_files(tmp_path):
    path = make_store(tmp_path)
    chunk = path / "visual" / "c" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    (path / "label" / "c" / "0").unlink()
    (path / "stray").touch()
    assert damaged_files(path) == ["label/c/0", "stray", "visual/c/0/0/0"]


def test_an_absent_or_cut_chunk_is_not_read_as_fill_values(tmp_path, mlemiss):
    path = make_store(tmp_path)
    (path / "visual" / "c" / "1" / "0" / "0").unlink()
    chunk = path / "audio" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    opened = FeatureStore.open(path)
    assert opened.read("visual", slice(0, 32)).shape == (32, 3, 4)  # what is whole is read
    for name, why in (("visual", "visual/c/1/0/0 is absent"), ("audio", r"audio/c/0/0/0 is \d+ bytes, recorded with")):
        with pytest.raises(InputError, match=rf"{why}[^\n]*\n`mlemiss store verify"):
            opened.read(name)
    found = json.loads(mlemiss("store", "verify", path, "--json").stdout)
    assert len(found["damaged"]) == 2 and found["of_clips"] == 40
    (path / "label" / "c" / "0").unlink()
    listed = mlemiss("store", "ls", tmp_path)
    assert listed.returncode == 0 and f"not usable: {path.name}, its file label/c/0 is absent" in listed.stderr


def test_finds_the_one_store_that_fits(tmp_path):
    with pytest.raises(InputError, match="no finished store of resnet50"):
        find_store(tmp_path / "absent", "resnet50")
    path = make_store(tmp_path)
    assert find_store(tmp_path, "resnet50") == path
    with pytest.raises(InputError, match=r"no finished store of vgg16.*toy-resnet50-abc"):
        find_store(tmp_path, "vgg16")
    make_store(tmp_path, fingerprint="def")
    with pytest.raises(InputError, match=r"2 stores[\s\S]*--store PATH"):
        find_store(tmp_path, "resnet50", "toy")
    make_store(tmp_path, dataset="other", features="vgg16")
    with pytest.raises(InputError, match=r"several datasets.*other, toy"):
        find_store(tmp_path, "vgg16")  # even where one store alone would fit
    make_store(tmp_path, dataset="other")
    with pytest.raises(InputError, match=r"several datasets.*other, toy"):
        find_store(tmp_path, "resnet50")
    assert find_store(tmp_path, "resnet50", "other").name.startswith("other-")
