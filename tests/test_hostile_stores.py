"""Stores from elsewhere: a hostile one costs that store, in bounded time and memory, and is told with its file."""

import json
import math
import re
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.preview.preview import write_preview
from mlemiss.pipeline.stores import schema
from mlemiss.pipeline.stores.catalogue import catalogue, find_store, store_facts
from mlemiss.pipeline.stores.checksums import verify_store
from mlemiss.pipeline.stores.schema import parse_json, parse_schema
from mlemiss.pipeline.stores.store import FeatureStore

from .feature_stores import write_store
from .hostile_stores import HARMLESS, IN_FEATURES, KINDS, attribute, hostile, seal

CLIPS = 36
SOME = [pytest.param(kind, marks=[pytest.mark.slow] * (n % 6 > 0)) for n, kind in enumerate(KINDS)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MANY = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = write_store(tmp_path_factory.mktemp("good"), clips=CLIPS, classes=6, widths={"visual": 64, "audio": 48}).path
    (path / "RUN.json").write_text(json.dumps({"command": "mlemiss preprocess", "host": "here", "failed": 1}))
    return path


@pytest.mark.parametrize("kind", SOME)
def test_a_hostile_store_is_refused_by_its_name_and_the_file(kind, good, tmp_path):
    begin = time.monotonic()
    path = hostile(good, tmp_path, kind)
    rows, unusable = catalogue(tmp_path)
    if kind in HARMLESS | IN_FEATURES:
        assert [row["store"] for row in rows] == [path.name] and unusable == []
        opened = FeatureStore.open(path)
        assert store_facts(opened)["clips"] == CLIPS
        if kind in IN_FEATURES:
            with pytest.raises(InputError, match=f"{path}: its file visual/c/"):
                opened.read("visual")
    else:
        ((where, why),) = unusable
        assert rows == [] and where == path and re.search("its |no mlemiss store|incomplete|is larger", why)
        with pytest.raises(InputError, match=str(path)):
            FeatureStore.open(path)
    for use in (
        lambda: verify_store(path),
        lambda: write_preview(FeatureStore.open(path), tmp_path / "page.html", 9),
    ):
        try:
            use()
        except InputError as error:
            assert str(path) in str(error)
    assert time.monotonic() - begin < 60  # against a hang


@pytest.mark.slow
def test_a_hostile_store_stops_no_other(good, tmp_path, mlemiss):
    """Of the same data set and network, so that it would be the one to use."""
    for place, kind in enumerate(("labels above", "deep", "2^31 texts", "pipe as zarr.json", "shorter column")):
        path = hostile(good, tmp_path / "made", kind)
        path.rename(tmp_path / f"{place}-{path.name}")
    shutil.copytree(good, tmp_path / good.name)
    assert find_store(tmp_path, "toy") == tmp_path / good.name
    listed = mlemiss("store", "ls", tmp_path, "--json")
    assert [row["store"] for row in json.loads(listed.stdout)] == [good.name]
    quick = ("--missing", "none", "--epochs", 1, "--seeds", 1, "--method", "zero-padding", "--device", "cpu")
    trained = mlemiss("train", "--stores", tmp_path, "--features", "toy", *quick, "--out", tmp_path / "run")
    assert listed.returncode == trained.returncode == 0, trained.stderr
    for said in (listed.stderr, trained.stderr):
        assert said.count("not usable: ") == 5 and "its array label has other values than 0 to 5" in said, said


@pytest.mark.parametrize("name", ["label/c/0", "clip_id/c/0", "split/c/0/0", "missing/c/0/0/0/0", "zarr.json"])
def test_a_changed_byte_in_what_is_small_is_told_when_the_store_is_opened(name, good, tmp_path):
    path = tmp_path / good.name
    shutil.copytree(good, path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{path}(: its file {name} differs from| is no mlemiss store: its zarr.json)"):
        FeatureStore.open(path)


def test_what_a_codec_raises_names_the_file(good, tmp_path):
    path = tmp_path / good.name
    shutil.copytree(good, path)
    chunk = path / "audio" / "c" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[2] = 0x21  # compressed by LZ4, which the rest is not
    data[16:] = b"\xff" * (len(data) - 16)
    chunk.write_bytes(data)
    with pytest.raises(InputError, match=f"{path}: its file audio/c/1/0/0 cannot be decoded"):
        FeatureStore.open(path).read("audio")


@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@MANY
def test_any_json_is_parsed_or_a_value_error(content):
    try:
        value = parse_json(content)
    except ValueError:
        return
    assert json.dumps(value) == json.dumps(json.loads(content))  # numbers, too, which NaN would not be equal to


@given(name=st.sampled_from(sorted(schema.EXPECTED)), value=JSON)
@MANY
def test_any_attribute_is_refused_or_harmless(name, value, good, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / good.name
    shutil.copytree(good, path)
    try:
        attribute(name, value)(path)
    except UnicodeEncodeError:  # of the test's own writing
        return
    seal(path)
    rows, unusable = catalogue(path.parent)
    assert len(rows) + len(unusable) == 1
    if rows:
        store_facts(FeatureStore.open(path))


@given(data=st.data())
@MANY
def test_any_description_of_an_array_is_refused_or_an_error_of_the_file(data, good):
    document = json.loads((good / "zarr.json").read_bytes())
    arrays = document["consolidated_metadata"]["metadata"]
    name = data.draw(st.sampled_from(sorted(arrays)))
    member = data.draw(st.sampled_from(sorted(arrays[name])))
    shapes = st.lists(st.integers(-1, 2**40), max_size=4)
    arrays[name][member] = data.draw(JSON | shapes)
    if data.draw(st.booleans()):
        arrays[data.draw(st.text(max_size=5))] = data.draw(JSON)
    content = json.dumps(document).encode()
    try:
        found = parse_schema("STORE", content)
    except InputError as error:
        assert str(error).startswith("STORE is no mlemiss store: its zarr.json ")
        return
    assert all(math.prod(array.chunks) * 8 < 2**32 for array in found.arrays.values())
    assert {name: array.shape[-1] for name, array in found.arrays.items() if array.dimensions[-1] == "clip"}
