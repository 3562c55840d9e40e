"""Features of each modality from a store of its own, joined on the clip's id."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.importing.importing import Request, import_features
from mlemiss.pipeline.importing.sources import Map
from mlemiss.pipeline.stores.catalogue import open_features, open_store, parse_features
from mlemiss.pipeline.stores.joined import JoinedStore
from mlemiss.pipeline.stores.mask_files import export_masks, read_given
from mlemiss.pipeline.stores.masks import TRAIN, parse_missing
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.data import Clips, RunSpec
from mlemiss.trainer.experiments.experiments import run_grid, run_plan
from mlemiss.trainer.experiments.grid import Grid, notes_on, plan_grid
from mlemiss.trainer.settings import Settings

from .test_docs import blocks

CLIPS, SEGMENTS, CLASSES = 90, 4, 3


def drawn(seed: int = 0) -> SimpleNamespace:
    """Return clips that each modality tells a little of."""
    random = np.random.default_rng(seed)
    label = random.integers(CLASSES, size=CLIPS)
    widths = {"visual": 6, "audio": 5, "text": 4}
    features = {
        name: (random.normal(size=(CLIPS, SEGMENTS, width)) + 1.5 * np.eye(width)[label][:, None]).astype("float32")
        for name, width in widths.items()
    }
    ids = np.array([f"clip{number:03d}" for number in random.permutation(CLIPS)])
    subject = np.array([f"speaker{number % 9}" for number in range(CLIPS)])
    return SimpleNamespace(
        features=features, label=np.array(["calm", "happy", "sad"])[label], clip=ids, subject=subject
    )


def stored(folder, name: str, data: SimpleNamespace, modalities: dict, dataset: str = "talk") -> FeatureStore:
    """Import features {modality: [clip, …]} as a store of their own."""
    path = folder / f"{name}.npz"
    np.savez(path, label=data.label, clip=data.clip, subject=data.subject, **modalities)
    maps = tuple(Map(modality, modality) for modality in modalities)
    request = Request(path, dataset, name, maps, label="label", clip="clip", subject="subject")
    return FeatureStore.open(import_features(request, folder / "stores"))


def some(data: SimpleNamespace, rows: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(label=data.label[rows], clip=data.clip[rows], subject=data.subject[rows])


def trained(store: FeatureStore, *missing: str, **grid) -> list[dict]:
    found = run_grid(
        [store], Grid(missing=missing, seeds=2, **grid), Settings(dropout=0.0, epochs=2, hidden=8, dim=4), "cpu"
    )
    return found["results"]


SAME = ("missing", "test_accuracy", "val_accuracy", "curve", "confusion", "n_train", "n_complete", "classes")


def test_joined_stores_train_to_the_numbers_of_one_store_of_both(tmp_path):
    data = drawn()
    visual, audio = data.features["visual"], data.features["audio"]
    both = stored(tmp_path, "both", data, {"visual": visual, "audio": audio})
    joined = JoinedStore(
        {
            "audio": stored(tmp_path, "a", data, {"audio": audio}),
            "visual": stored(tmp_path, "v", data, {"visual": visual}),
        }
    )
    assert joined.modalities == ("visual", "audio") and joined.features == "visual=v,audio=a"
    methods = {"methods": ["mle", "zero-padding", "audio-only"], "splits": ["clip", "subject"]}
    pairs = list(zip(*(trained(store, "audio:0.5", "none", **methods) for store in (both, joined)), strict=True))
    assert len(pairs) == 12
    for one, other in pairs:
        assert [one[name] for name in SAME] == [other[name] for name in SAME]
    assert pairs[0][0]["joined"] is None
    sources = pairs[0][1]["joined"]
    assert [one["store"] for one in sources.values()] == [store.fingerprint for store in joined.sources.values()]


def test_splits_and_masks_are_those_of_any_store_of_these_clips(tmp_path):
    data = drawn()
    both = stored(tmp_path, "both", data, {name: data.features[name] for name in ("visual", "audio")})
    joined = JoinedStore({"visual": both, "audio": both})
    for seed, spec in ((0, "audio:0.5"), (7, "visual:0.3+audio:0.3")):
        for by in ("clip", "subject"):
            part = joined.split(seed, by)
            np.testing.assert_array_equal(part, both.split(seed, by))
            masks = [one.missing(parse_missing(spec, one.modalities), seed, part == TRAIN) for one in (both, joined)]
            np.testing.assert_array_equal(*masks)


def test_masks_do_not_depend_on_the_order_of_modalities(tmp_path):
    """Neither those that are drawn nor those that a store holds, of two modalities and of three."""
    data, everything = drawn(), np.ones(CLIPS, bool)
    names = ["text", "pose", "hands"]
    features = {name: data.features[other] for name, other in zip(names, ("text", "visual", "audio"), strict=True)}
    alone = {name: stored(tmp_path, f"only-{name}", data, {name: features[name]}) for name in names}
    for chosen in (names[:2], names[::2], names):
        one = stored(tmp_path, "-".join(chosen), data, {name: features[name] for name in chosen})
        joined = JoinedStore({name: alone[name] for name in sorted(chosen)})
        assert list(one.modalities) == chosen != list(joined.modalities)
        places = [chosen.index(name) for name in joined.modalities]
        for text in ("text:0.5", "text:0.3", f"{chosen[1]}:0.5", f"{chosen[1]}:0.3+text:0.3"):
            spec = parse_missing(text, chosen)
            for among in (one.split(3) == TRAIN, everything):
                np.testing.assert_array_equal(joined.missing(spec, 3, among), one.missing(spec, 3, among)[:, places])
        held = one.read("missing")[one.attrs["settings"].index("text:0.5"), 3]
        np.testing.assert_array_equal(held, one.missing(parse_missing("text:0.5", chosen), 3, one.split(3) == TRAIN))


def test_joins_of_other_clips_are_not_to_be_compared(tmp_path):
    data = drawn()
    few = some(data, np.arange(CLIPS - 9))
    whole = stored(tmp_path, "visual", data, {"visual": data.features["visual"]})
    audio = stored(tmp_path, "audio", data, {"audio": data.features["audio"]})
    fewer = [stored(tmp_path, f"few-{n}", few, {n: data.features[n][: CLIPS - 9]}) for n in ("visual", "audio")]
    joins = [JoinedStore({"visual": v, "audio": a}) for v, a in ((whole, audio), tuple(fewer))]
    plan = plan_grid(joins, Grid(["mle"], seeds=1), Settings())
    (note,) = notes_on(plan.cells)
    assert f"{CLIPS}, " in note and f"{CLIPS - 9})" in note and "do not compare them" in note
    assert notes_on(plan_grid(joins[:1], Grid(["mle"], seeds=1), Settings()).cells) == []


def test_a_clip_that_a_store_lacks_lacks_that_modality(tmp_path):
    data, random = drawn(), np.random.default_rng(1)
    here, there = np.sort(random.permutation(CLIPS)[:70]), random.permutation(CLIPS)[:60]
    visual = stored(tmp_path, "v", some(data, here), {"visual": data.features["visual"][here]})
    audio = stored(tmp_path, "a", some(data, there), {"audio": data.features["audio"][there]})
    joined = JoinedStore({"visual": visual, "audio": audio})
    ids = np.union1d(data.clip[here], data.clip[there])
    assert joined.clip_id.tolist() == ids.tolist() and joined.done.all()
    np.testing.assert_array_equal(joined.present[:, 0], np.isin(ids, data.clip[here]))
    np.testing.assert_array_equal(joined.present[:, 1], np.isin(ids, data.clip[there]))
    rows = {clip: row for row, clip in enumerate(data.clip.tolist())}
    everything = np.array([rows[clip] for clip in ids.tolist()])
    np.testing.assert_array_equal(np.array(joined.classes)[joined.label], data.label[everything])
    np.testing.assert_array_equal(joined.subject, data.subject[everything])
    for m, name in enumerate(joined.modalities):
        for part in (slice(None), slice(5, 30), slice(70, 1000)):
            values, seen = joined.read(name, part), joined.present[part, m]
            expected = data.features[name][everything[part]].astype("float16")
            np.testing.assert_array_equal(values[seen], expected[seen])
            assert np.isnan(values[~seen]).all()
    lacking = str(joined.error[~joined.present[:, 1]][0])
    assert lacking == f"audio: not in {audio.path.name}"
    assert trained(joined, "audio:0.5")[0]["n_complete"][0] > 0


def test_one_segment_a_clip_counts_for_each_segment(tmp_path):
    data = drawn()
    visual = stored(tmp_path, "v", data, {"visual": data.features["visual"]})
    text = data.features["text"][:, :1]
    once = JoinedStore({"visual": visual, "text": stored(tmp_path, "once", data, {"text": text[:, 0]})})
    repeated = np.repeat(text, SEGMENTS, 1)
    often = JoinedStore({"visual": visual, "text": stored(tmp_path, "often", data, {"text": repeated})})
    assert once.shape("text")[1] == 1 and often.shape("text")[1] == SEGMENTS
    for one, other in zip(*(trained(s, "text:0.5", methods=["mle", "ae1", "hgr"]) for s in (once, often)), strict=True):
        np.testing.assert_allclose(one["val_accuracy"], other["val_accuracy"], atol=8)  # of 14 clips, at most one
        assert [one[name] for name in ("n_train", "n_complete")] == [other[name] for name in ("n_train", "n_complete")]
    three = stored(tmp_path, "three", data, {"text": repeated[:, :3]})
    with pytest.raises(InputError, match="segments a clip are visual 4, text 3"):
        JoinedStore({"visual": visual, "text": three})


def test_what_cannot_be_joined(tmp_path):
    data = drawn()
    stores = {"v": stored(tmp_path, "v", data, {"visual": data.features["visual"]})}

    def refused(words: str, **changed) -> None:
        other = SimpleNamespace(**(vars(data) | changed))
        dataset = changed.get("dataset", "talk")
        audio = stored(tmp_path, f"a{len(stores)}", other, {"audio": data.features["audio"]}, dataset)
        stores[audio.features] = audio
        with pytest.raises(InputError, match=words):
            JoinedStore({"visual": stores["v"], "audio": audio})

    refused("data sets are talk, and song", dataset="song")
    refused(
        "classes are calm, happy, sad, and bored, happy, sad", label=np.where(data.label == "calm", "bored", data.label)
    )
    swapped = np.where(data.label == "calm", "sad", np.where(data.label == "sad", "calm", data.label))
    refused(r"the label of \d+ clips differs \(clip\d+, .* more; first '(sad|calm)' and", label=swapped)
    refused("the subject of 90 clips differs", subject=np.roll(data.subject, 1))
    refused("no clip is in both .ids such as 'clip000' and 'x_clip000'", clip=np.char.add("x_", data.clip))
    with pytest.raises(InputError, match="has no audio, it has visual"):
        JoinedStore({"audio": stores["v"]})


def test_somebodys_splits_and_masks_of_joined_stores(tmp_path):
    data = drawn()
    sources = {name: stored(tmp_path, name, data, {name: data.features[name]}) for name in ("visual", "audio")}
    joined = JoinedStore(sources)
    files = export_masks(joined, tmp_path, 2, ["audio:0.5"], "clip")
    given = read_given(*files, [joined])
    with_files = given.apply(joined, range(2), [given.setting("audio:0.5")])
    (plain,) = trained(joined, "audio:0.5")
    (result,) = trained(with_files, given.setting("audio:0.5"), splits=[given.split_name("clip")])
    assert [plain[name] for name in SAME] == [result[name] for name in SAME]
    assert result["given"].keys() == {"splits", "masks"} and result["joined"] == plain["joined"]


@pytest.mark.slow
def test_the_documents_dataset_of_stores_to_be_joined(tmp_path, monkeypatch):
    """The second example of docs/training.md gives the training clips with what a setting leaves of them."""
    monkeypatch.chdir(tmp_path)
    data, fewer = drawn(), np.arange(CLIPS - 7)
    visual = stored(tmp_path, "v", data, {"visual": data.features["visual"]})
    audio = stored(tmp_path, "a", some(data, fewer), {"audio": data.features["audio"][fewer, :1]})
    joined = JoinedStore({"visual": visual, "audio": audio})
    export_masks(joined, Path("protocol"), 1, ["audio:0.5"], "clip")
    code, found = blocks("docs/training.md", "python")[1], {}
    exec(code.replace("VISUAL", repr(str(visual.path))).replace("AUDIO", repr(str(audio.path))), found)
    train = joined.split(0) == TRAIN
    observed = (joined.present & ~joined.missing(parse_missing("audio:0.5"), 0, train))[train]
    x, y, seen, label = (tensor.numpy() for tensor in found["dataset"].tensors)
    np.testing.assert_array_equal(seen, observed)
    np.testing.assert_array_equal(label, joined.label[train])
    for m, values in enumerate((x, y)):
        expected = joined.read(joined.modalities[m])[train]
        np.testing.assert_array_equal(values, np.where(observed[:, m, None, None], expected, 0))


def test_three_stores_disagree_in_pairs(tmp_path):
    """Of clips that the first store lacks, too; and a store of another revision is another joined one."""
    data, first = drawn(), np.arange(CLIPS // 2)
    sources = {
        "visual": stored(tmp_path, "v", some(data, first), {"visual": data.features["visual"][first]}),
        "audio": stored(tmp_path, "a", data, {"audio": data.features["audio"]}),
    }
    data.label[-1] = "calm" if data.label[-1] != "calm" else "sad"
    sources["text"] = stored(tmp_path, "t", data, {"text": data.features["text"]})
    with pytest.raises(InputError, match=r"talk-a-.* and talk-t-.*the label of 1 clip differs"):
        JoinedStore(sources)
    two = {name: sources[name] for name in ("visual", "audio")}
    before = JoinedStore(two).fingerprint
    sources["audio"].attrs["revision"] += 1
    assert JoinedStore(two).fingerprint != before


def test_clips_that_nothing_is_left_of_are_counted(tmp_path):
    data, first, last = drawn(), np.arange(60), np.arange(30, CLIPS)
    joined = JoinedStore(
        {
            "visual": stored(tmp_path, "v", some(data, first), {"visual": data.features["visual"][first]}),
            "audio": stored(tmp_path, "a", some(data, last), {"audio": data.features["audio"][last]}),
        }
    )
    said = []
    plan = plan_grid([joined], Grid(missing=["audio:0.5"], seeds=1), Settings(epochs=1))
    run_plan(plan, torch.device("cpu"), say=said.append)
    run = Clips(joined).run(RunSpec(0, parse_missing("audio:0.5")))
    count = int((~run.observed.any(1) & (run.part == TRAIN)).sum())
    (note,) = [line for line in said if "no modality" in line]
    assert count > 0 and f"audio:0.5, seed 0: {count} training clips of visual=talk-v-" in note


def test_what_features_asks_for():
    assert parse_features(["resnet50, vgg16", "resnet50"]) == ["resnet50", "vgg16"]
    assert parse_features(["visual=a|b, audio=c"]) == [
        (("visual", "a"), ("audio", "c")),
        (("visual", "b"), ("audio", "c")),
    ]
    assert parse_features(["visual=hf:x@-4,text=b", "z"]) == [(("visual", "hf:x@-4"), ("text", "b")), "z"]
    for wrong in ("visual=", "visual=a,visual=b", "visual=a,b", "1=a", "visual=a||b", "=a", "a=b,,c=d"):
        with pytest.raises(InputError, match=r"expected MODALITY=NAME"):
            parse_features([wrong])
    with pytest.raises(InputError, match="visual and Visual differ in case alone"):
        parse_features(["visual=a,Visual=b"])
    with pytest.raises(InputError, match=r"visual=A\.zarr,audio=B\.zarr"):
        open_store("visual=a,audio=b.zarr")


def test_a_store_is_found_by_its_modality(tmp_path):
    data = drawn()
    visual, audio = (stored(tmp_path, "x", data, {m: data.features[m]}) for m in ("visual", "audio"))
    wanted = (("visual", "x"), ("audio", "x"))
    joined = open_features(wanted, tmp_path / "stores")
    assert [one.fingerprint for one in joined.sources.values()] == [visual.fingerprint, audio.fingerprint]
    with pytest.raises(InputError, match="no finished store of x features with text"):
        open_features((("text", "x"), ("audio", "x")), tmp_path / "stores")
    with pytest.raises(InputError, match=r"y features with audio [^\n]*\nName what is there with --features \(x\)"):
        stored(tmp_path, "z", data, {"visual": data.features["visual"]})
        open_features((("visual", "x"), ("audio", "y")), tmp_path / "stores")


@pytest.mark.slow
def test_joined_from_command_line_to_report(tmp_path, mlemiss):
    """A grid over alternatives, its report, predictions and the preview all name what was joined."""
    data = drawn()
    for name in ("va", "vb"):
        stored(tmp_path, name, data, {"visual": data.features["visual"]})
    audio = stored(tmp_path, "a", data, {"audio": data.features["audio"]})
    how = ["--missing", "audio:0.5", "--method", "mle", "--epochs", 1, "--seeds", 1, "--save-weights"]
    run = mlemiss("train", "--features", f"visual=va|vb,audio={audio.path}", *how, "--out", "run", "--json")
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)["results"]
    assert [one["features"] for one in results] == ["visual=va,audio=a", "visual=vb,audio=a"]
    assert audio.fingerprint in (tmp_path / "run" / "report.html").read_text()
    first = next((tmp_path / "stores").glob("talk-va-*.zarr"))
    named = f"visual={first},audio={audio.path}"
    predicted = mlemiss("predict", "run", "--store", named)
    assert predicted.returncode == 0 and predicted.stdout.count("\n") == CLIPS + 1, predicted.stderr
    assert "trained on clips of this very store" in predicted.stderr
    # One store alone, or the other with few clips: what a store has not is missing.
    (tmp_path / "few").mkdir()
    rows = np.unique(data.label, return_index=True)[1]  # one of each class
    few = stored(tmp_path / "few", "a", some(data, rows), {"audio": data.features["audio"][rows]})
    alone, with_few = (
        mlemiss("predict", "run", "--store", f"visual={first}{more}") for more in ("", f",audio={few.path}")
    )
    assert alone.returncode == 0 and "has no audio: its clips are predicted without" in alone.stderr, alone.stderr
    assert "trained on clips of this very store" in alone.stderr
    same = set(alone.stdout.splitlines()) & set(with_few.stdout.splitlines())
    assert len(same) == CLIPS - 3 + 1 and with_few.stdout != predicted.stdout
    lost = mlemiss("store", "preview", f"visual=http://127.0.0.1:1/v.zarr,audio={audio.path}")
    assert lost.returncode == 2 and "http://127.0.0.1:1/v.zarr" in lost.stderr and "not known" not in lost.stderr
    told = mlemiss("predict", "run", "--store", audio.path)
    assert told.returncode == 2 and "visual=PATH,audio=PATH" in told.stderr
    shown = mlemiss("store", "preview", named, "--out", "page.html")
    assert shown.returncode == 0 and "visual=va,audio=a" in (tmp_path / "page.html").read_text(), shown.stderr
