"""Trained weights: kept with a run, loaded without its data, applied to a store; and what does not fit is said."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlemiss.pipeline.encoders.images import EXECUTION
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import TEST, parse_missing
from mlemiss.trainer import methods as registry
from mlemiss.trainer.data import Clips, Dataset, RunSpec
from mlemiss.trainer.experiments import run_folder, weights
from mlemiss.trainer.fit import fit
from safetensors import safe_open

from .feature_stores import QUICK, grid, write_store

torch.set_num_threads(1)  # small networks
CPU = torch.device("cpu")
DEVICES = {"cuda": 16, "cpu": 1}.items()  # pieces of sound at a time
EVERY = [(name, fusion) for name in registry.method_names() for fusion in registry.load(name).fusions]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Several clips lack audio by nature, so that some are test clips whatever the split."""
    return write_store(tmp_path_factory.mktemp("stores"), without_audio=tuple(range(3, 72, 4)), failed=(5,))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A run of one seed with every method and fusion, and its results document."""
    out = tmp_path_factory.mktemp("run")
    names, fusions = registry.method_names(), ["addition", "concatenation", "outer"]
    options = {"methods": names, "fusions": fusions, "missing": ["audio:0.3+visual:0.3"], "seeds": [1]}
    return out, grid([store], out, save_weights=True, **options)


def kept_predictions(out, result):
    with np.load(out / result["predictions"]) as file:
        return file["clip_id"], file["probabilities"]


@pytest.mark.parametrize(("method", "fusion"), EVERY)
def test_loaded_weights_predict_as_the_run_did(run, store, method, fusion):
    out, document = run
    (result,) = [r for r in document["results"] if (r["method"], r["fusion"]) == (method, fusion)]
    path, header = weights.choose(out, "toy", method=method, fusion=fusion)
    assert path == out / result["weights_file"]
    found = weights.predict(path, header, store, CPU)
    clip_id, (expected,) = kept_predictions(out, result)
    tested = ~np.isnan(expected[:, 0])
    assert tested.any() and not store.present[np.isin(store.clip_id, clip_id[tested])].all()  # incomplete ones too
    assert list(found.clip_id) == list(clip_id) and found.probability.shape == (71, 3)
    np.testing.assert_allclose(found.probability[tested], expected[tested], atol=2e-6)
    np.testing.assert_allclose(found.probability.sum(1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mle", "ae1"])
def test_several_seeds_are_averaged_each_with_its_own_weights(store, tmp_path, method):
    """By subject seeds differ in steps an epoch, so they are trained in several groups, beside another cell's runs."""
    options = {"methods": [method], "missing": ["audio:0.5", "audio:0.2+visual:0.2"], "splits": ["subject"], "seeds": 3}
    document = grid([store], tmp_path, save_weights=True, **options)
    singles = []
    for seed in range(3):
        grid([store], tmp_path / f"{seed}", save_weights=True, **(options | {"seeds": [seed]}))
        path, header = weights.choose(tmp_path / f"{seed}", "toy", missing="audio:0.5")
        singles.append(weights.predict(path, header, store, CPU).probability)
    path, header = weights.choose(tmp_path, "toy", missing="audio:0.5")
    assert sorted(seed for part in header["parts"] for seed in part["seeds"]) == [0, 1, 2]
    np.testing.assert_allclose(weights.predict(path, header, store, CPU).probability, np.mean(singles, 0), atol=2e-5)
    _, expected = kept_predictions(tmp_path, document["results"][0])
    for values, single in zip(expected, singles, strict=True):
        tested = ~np.isnan(values[:, 0])
        np.testing.assert_allclose(single[tested], values[tested], atol=2e-5)
    assert not np.allclose(singles[0], singles[1], atol=1e-3)


def test_the_best_epochs_weights_are_kept_not_the_last(tmp_path):
    store = write_store(tmp_path, separation=0.2)  # little to learn, much to learn by heart
    document = grid([store], tmp_path, seeds=1, settings=replace(QUICK, epochs=12), save_weights=True)
    (result,) = document["results"]
    curve = result["curve"]["val_accuracy"][0]
    assert curve[-1] < max(curve)  # else this test would show nothing
    path, header = weights.choose(tmp_path, "toy")
    found = weights.predict(path, header, store, CPU).probability
    part = store.split(0)[store.status == "done"]
    right = (found.argmax(1) == store.label[store.status == "done"])[part == TEST].mean()
    assert 100 * right == pytest.approx(result["test_accuracy"][0])


def test_a_file_holds_tensors_with_the_seeds_first_and_says_what_it_is(store, tmp_path):
    grid([store], tmp_path, methods=["mle"], seeds=[0, 3], save_weights=True)
    (path,) = (tmp_path / "weights").glob("*.safetensors")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["mlemiss"])
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert all(shape[0] == 2 for shape in shapes.values())
    assert {"0.state.log_prior", "0.prepared.support 0", "0.prepared.support 1"} <= set(shapes)
    wanted = {"dataset": "toy", "features": "toy", "store": "0123abcd", "method": "mle", "fusion": "addition"}
    wanted |= {"missing": "audio:0.5", "seeds": [0, 3], "widths": {"visual": 12, "audio": 10}, "weights_hash": "0"}
    assert {name: header[name] for name in wanted} == wanted
    assert header["classes"] == list(store.classes) and header["versions"]["mlemiss"]


def test_nothing_is_kept_unless_asked_for(store, tmp_path):
    document = grid([store], tmp_path, seeds=1)
    assert "weights_file" not in document["results"][0] and not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_a_loaded_method_asks_for_no_data(store, tmp_path):
    """Predicting another store: fewer clips, other ids, every pattern of what is missing."""
    clips = Clips(store)
    run = clips.run(RunSpec(0, parse_missing("visual:0.5")))
    kept = []
    for name, fusion in EVERY:
        fit(
            registry.load(name),
            Dataset(clips),
            [run],
            QUICK,
            fusion,
            on_trained=lambda method: kept.extend(weights.parts_of(method, [[0]])),
        )
    other = write_store(tmp_path, clips=24, failed=(), without_audio=tuple(range(0, 24, 2)))
    for (name, fusion), part in zip(EVERY, kept, strict=True):
        described = {"method": name, "fusion": fusion, "settings": vars(QUICK), "classes": list(store.classes)}
        described |= {"features": "toy", "weights": "random", "weights_hash": "0", "versions": {"mlemiss": "0"}}
        weights.save(tmp_path / "one.safetensors", described | weights.describe_inputs(store), [part])
        header = weights.read_header(tmp_path / "one.safetensors")
        found = weights.predict(tmp_path / "one.safetensors", header, other, CPU)
        assert found.probability.shape == (24, 3) and np.isfinite(found.probability).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "other"}, "take toy features, and the store has other features"),
        ({"weights_hash": "1"}, "trained on features of weights"),
        ({"weights": "imagenet"}, "trained on features of weights"),
    ],
)
def test_stores_of_other_features_are_refused(run, tmp_path, change, message):
    other = write_store(tmp_path, **change)
    with pytest.raises(InputError, match=message):
        path, header = weights.choose(run[0], other.features, method="mle", fusion="addition")
        weights.predict(path, header, other, CPU)


def test_specs_are_compared_without_the_device(run, store):
    made_on = [{"device": kind, "execution": EXECUTION[kind], "batch": batch} for kind, batch in DEVICES]
    spec = {"segments": 30, "backbone": {"tag": "a.b", "precision": "fp32"} | made_on[0]}
    _, header = weights.choose(run[0], "toy", method="mle", fusion="addition")
    header = header | {"spec": spec}
    store = type(store)(store.path, store.chunks)
    store.attrs["spec"] = spec | {"backbone": spec["backbone"] | made_on[1]}
    weights.check_store(header, store)
    store.attrs["spec"] = spec | {"backbone": spec["backbone"] | {"tag": "c.d"}}
    with pytest.raises(InputError, match=r"backbone's tag a\.b, found c\.d"):
        weights.check_store(header, store)
    with pytest.raises(InputError, match=r"features a modality \{'visual': 512.*found \{'visual': 12"):
        weights.check_store(header | {"widths": {"visual": 512, "audio": 512}}, store)


def test_names_of_files_are_short_and_differ(run):
    """Joined features may have names that no file system takes together."""
    result = {**run[1]["results"][0], "features": ",".join(f"m{n}=hf:organisation/model-large@-4:" for n in range(9))}
    stems = {run_folder._words({**result, "missing": f"{missing}:0.5"}) for missing in ("m0", "m1")}
    assert len(stems) == 2 and all(len(stem.encode()) < 200 for stem in stems)


def test_a_method_of_one_modality_needs_it(run, store):
    _, header = weights.choose(run[0], "toy", method="visual-only")
    alone = type(store)(store.path, store.chunks)
    alone.modalities = ("audio",)
    with pytest.raises(InputError, match="the modality visual, found audio"):
        weights.check_store(header, alone)


def test_clips_without_any_modality_are_not_predicted(run, store):
    path, header = weights.choose(run[0], "toy", method="mle", fusion="addition")
    fewer = type(store)(store.path, store.chunks)
    fewer.present = store.present.copy()
    fewer.present[:3] = False
    every, some = (weights.predict(path, header, one, CPU) for one in (store, fewer))
    assert list(some.clip_id) == list(every.clip_id[3:])
    np.testing.assert_allclose(some.probability, every.probability[3:], atol=1e-6)


@pytest.mark.parametrize("damage", ["cut short", "changed", "emptied"])
def test_damaged_weights_are_told(run, store, tmp_path, damage):
    path, _ = weights.choose(run[0], "toy", method="zero-padding", fusion="addition")
    data = bytearray(path.read_bytes())
    if damage == "changed":
        data[-5] ^= 1
    copy = tmp_path / "weights" / path.name
    copy.parent.mkdir()
    copy.write_bytes({"cut short": data[:-10], "changed": data, "emptied": b""}[damage])
    with pytest.raises(InputError, match=r"(?s)is damaged.*--save-weights"):
        path, header = weights.choose(tmp_path, "toy")
        weights.predict(path, header, store, CPU)


@pytest.mark.parametrize(("fusion", "now"), [("addition", "labels"), ("concatenation", "shared")])
def test_weights_of_hgr_with_two_label_embeddings_are_refused(run, store, tmp_path, fusion, now):
    """Which earlier versions had: read as one, they would predict something else."""
    path, header = weights.choose(run[0], "toy", method="hgr", fusion=fusion)
    with safe_open(path, "pt") as file:
        tensors = {name.removeprefix("0."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    before = {name.replace(f"state.{now}.", "state.correlated."): value for name, value in tensors.items()}
    (part,) = header["parts"]
    described = {name: value for name, value in header.items() if name not in ("parts", "digest", "schema")}
    kept = {name: value.clone() for name, value in (before | (tensors if fusion == "addition" else {})).items()}
    weights.save(tmp_path / "one.safetensors", described, [weights.TrainedRuns(**part, tensors=kept)])
    with pytest.raises(InputError, match=r"this version builds hgr differently[^$]*--save-weights"):
        weights.load(tmp_path / "one.safetensors", CPU)


def test_predict_as_a_user(store, run, tmp_path, mlemiss):
    several = mlemiss("predict", run[0], "--store", store.path, "--method", "mle")
    assert several.returncode == 2 and "3 cells (" in several.stderr and several.stdout == ""
    options = ["--method", "mle", "--fusion", "outer", "--missing", "visual:0.3+audio:0.3"]
    printed = mlemiss("predict", run[0], "--store", store.path, *options)
    assert printed.returncode == 0 and "trained on clips of this very store" in printed.stderr
    written = mlemiss("predict", run[0], "--store", store.path, *options, "--out", "new/p.csv")
    assert written.stdout == "" and (tmp_path / "new" / "p.csv").read_text() == printed.stdout
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert list(rows[0]) == ["clip_id", "label", "predicted", *(f"p_{name}" for name in store.classes)]
    assert [row["clip_id"] for row in rows] == list(store.clip_id[store.status == "done"])
    for row in rows:
        assert row["label"] in store.classes
        assert row["predicted"] == max(store.classes, key=lambda name: float(row[f"p_{name}"]))


@pytest.mark.slow
def test_training_with_the_option_and_runs_without_it(tmp_path, mlemiss):
    toy = write_store(tmp_path / "stores")
    quick = ["--missing", "audio:0.5", "--seeds", 1, "--epochs", 1, "--store", toy.path]
    assert mlemiss("train", *quick, "--out", "with", "--save-weights").returncode == 0
    done = mlemiss("predict", "with", "--store", toy.path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 72  # a header and 71 done clips
    grid([toy], tmp_path / "without", seeds=1)
    with pytest.raises(InputError, match=r"(?s)keeps no trained weights.*--save-weights"):
        weights.choose(tmp_path / "without", "toy")
    missing = mlemiss("predict", "nowhere", "--store", toy.path)
    assert missing.returncode == 2 and "no run at nowhere" in missing.stderr and "--save-weights" in missing.stderr
