"""Features of one file a clip, from several sources: any number of steps, ids that differ, values that are none.

The files are written here as MERTools, OpenFace and openSMILE write them.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.importing import importing
from mlemiss.pipeline.importing.importing import Request, import_features, parse_maps
from mlemiss.pipeline.importing.matching import match_ids
from mlemiss.pipeline.importing.sources import open_source
from mlemiss.pipeline.importing.steps import Rules, average
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.experiments import weights

CLIPS = [f"c{i:02d}" for i in range(12)]


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """Write labels of twelve clips, and work beside them."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{clip},{('happy', 'sad', 'calm')[i % 3]},s{i % 4}" for i, clip in enumerate(CLIPS)]
    (tmp_path / "labels.csv").write_text("\n".join(["name,emotion,actor", *rows]))
    return tmp_path


def load(folder, *maps, clip="name", **rules):
    """Import, and return the opened store."""
    wanted = parse_maps(maps)
    request = Request(folder / "labels.csv", "mine", "own", wanted, "emotion", clip, "actor", rules=Rules(**rules))
    return FeatureStore.open(import_features(request, folder / "stores"))


def arrays(folder, name, steps, width=4, clips=CLIPS, seed=0):
    """Write one .npy a clip: [T, D], or [D] where T is 0. Returns them."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(exist_ok=True)
    found = {}
    for i, clip in enumerate(clips):
        T = steps[i % len(steps)]
        found[clip] = rng.normal(size=(T, width) if T else width).astype(np.float32)
        np.save(folder / name / f"{clip}.npy", found[clip])
    return found


def slow_average(values, kept, windows, spread=False):
    """Average in a loop, in float64: each step's middle decides; an empty window takes the nearest step."""
    T, out = len(values), []
    for w in range(windows):
        inside = [i for i in range(T) if kept[i] and w / windows <= (i + 0.5) / T < (w + 1) / windows]
        if not inside:
            middle = (w + 0.5) / windows
            inside = [min((i for i in range(T) if kept[i]), key=lambda i: (round(abs((i + 0.5) / T - middle), 9), i))]
        rows = values[inside].astype(np.float64)
        out.append(np.concatenate([rows.mean(0), rows.std(0)]) if spread else rows.mean(0))
    return np.array(out)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.sampled_from([1, 2, 3, 7, 30]), st.booleans(), st.data())
def test_windows_equal_a_loop(T, windows, spread, data):
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=T, max_size=T)))
    kept[data.draw(st.integers(0, T - 1))] = True
    exact = [k for k in range(1, 64) if (2 * k * T) % windows]  # middles on a border differ by rounding in the loop
    values = np.random.default_rng(T).normal(1000, 1, (T, 3)).astype(np.float32)
    border = [(i, w) for i in range(T) for w in range(windows) if (2 * i + 1) * windows == 2 * T * w]
    if border and exact:
        return
    np.testing.assert_allclose(average(values, kept, windows, spread), slow_average(values, kept, windows, spread))


def test_a_middle_on_a_border_belongs_to_the_later_window():
    values = np.arange(3.0)[:, None]  # the middle of the second of three steps is the border of two windows
    np.testing.assert_array_equal(average(values, np.ones(3, bool), 2), [[0], [1.5]])


# ---- folders of .npy ----


def test_numbers_of_steps_that_differ_are_averaged_over_thirty_windows(labels, capsys):
    visual, audio = arrays(labels, "clip-FRA", [3, 90, 31]), arrays(labels, "hubert-FRA", [900, 30, 59], 6, seed=1)
    text = arrays(labels, "roberta-UTT", [0], 5, seed=2)
    opened = load(labels, "visual=@clip-FRA", "audio=@hubert-FRA", "text=@roberta-UTT")
    assert opened.modalities == ("visual", "audio", "text") and opened.present.all()
    for name, found in (("visual", visual), ("audio", audio)):
        for i, clip in enumerate(CLIPS):
            expected = slow_average(found[clip], np.ones(len(found[clip]), bool), 30)
            np.testing.assert_allclose(opened.read(name)[i], expected, rtol=2e-3, atol=1e-6)
    for i, clip in enumerate(CLIPS):
        np.testing.assert_array_equal(opened.read("text")[i], text[clip].astype(np.float16)[None])  # stored once
    assert opened.attrs["spec"]["visual"] == ["clip-FRA"] and opened.attrs["spec"]["segments"] == 30
    assert "note: visual: 4 clips of fewer than 30 steps" in capsys.readouterr().err


def test_as_many_steps_in_all_clips_are_the_segments(labels):
    visual = arrays(labels, "v", [7])
    np.testing.assert_array_equal(
        load(labels, "visual=@v").read("visual"), np.stack([visual[c] for c in CLIPS]).astype(np.float16)
    )
    assert load(labels, "visual=@v", segments=2).read("visual").shape == (12, 2, 4)


def test_deviations_that_float16_cannot_tell_apart(labels):
    """No scaling of the features helps there."""
    (labels / "v").mkdir()
    for i, clip in enumerate(CLIPS):
        np.save(labels / "v" / f"{clip}.npy", (i + np.array([[-1.0], [1]]) * (1 + 1e-6 * i)).astype(np.float32))
    with pytest.raises(InputError, match=r"first deviation of .*\n.*--pool mean\) and import again"):
        load(labels, "visual=@v", pool="mean+std")
    load(labels, "visual=@v", pool="mean")


def test_a_clip_is_one_row_with_pool(labels):
    visual = arrays(labels, "v", [3, 40, 0])  # 0: one vector [D]
    means = load(labels, "visual=@v", pool="mean").read("visual")
    both = load(labels, "visual=@v", pool="mean+std").read("visual")
    for i, clip in enumerate(CLIPS):
        rows = np.atleast_2d(visual[clip]).astype(np.float64)
        np.testing.assert_allclose(means[i, 0], rows.mean(0), atol=2e-3)
        np.testing.assert_allclose(both[i, 0], np.concatenate([rows.mean(0), rows.std(0)]), atol=2e-3)


def test_a_folder_of_npy_for_each_clip_is_read_in_the_order_of_numbers(labels):
    for clip in CLIPS:
        (labels / "v" / clip).mkdir(parents=True)
        for frame in range(12):
            np.save(labels / "v" / clip / f"{frame}.npy", np.full(3, float(frame)))
    np.testing.assert_array_equal(load(labels, "visual=@v").read("visual")[5, :, 0], np.arange(12))


def test_a_clip_without_a_file_or_without_steps_lacks_the_modality(labels, capsys):
    arrays(labels, "v", [5], clips=CLIPS[:-1]), arrays(labels, "a", [5])
    np.save(labels / "v" / "c00.npy", np.zeros((0, 4)))
    np.save(labels / "v" / "c01.npy", np.zeros((1, 0)))  # MERTools, of a clip without a face
    opened = load(labels, "visual=@v", "audio=@a")
    assert list(np.flatnonzero(~opened.present[:, 0])) == [0, 1, 11] and opened.present[:, 1].all()
    assert opened.error[11] == "visual: not in v" and opened.error[0] == "visual: no segment is left of 0"
    err = capsys.readouterr().err
    assert "note: v lacks 1 clip of labels.csv: 'c11'\n" in err and "visual is missing in 2 clips" in err


@pytest.mark.slow
def test_two_hundred_clips_of_3_to_900_steps_import_and_train(tmp_path, mlemiss):
    rng = np.random.default_rng(0)
    lines = ["name,discrete,speaker"]
    for i in range(200):
        lines.append(f"sample_{i:05d},{['happy', 'sad', 'angry', 'neutral'][i % 4]},s{i % 20}")
        for folder, width in (("clip-vit-FRA", 16), ("hubert-FRA", 24)):
            (tmp_path / folder).mkdir(exist_ok=True)
            T = (3, 900)[i] if i < 2 else int(rng.integers(3, 901))
            steps = rng.normal(np.eye(width)[i % 4] * 2, 1, (T, width)).astype(np.float32)
            np.save(tmp_path / folder / f"sample_{i:05d}.npy", steps)
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    maps = ["--map", "visual=@clip-vit-FRA", "--map", "audio=@hubert-FRA"]
    names = ["--clip", "name", "--label", "discrete", "--subject", "speaker"]
    made = mlemiss("store", "import", "labels.csv", "--dataset", "mer", "--features", "two", *names, *maps)
    assert made.returncode == 0 and "200 clips of 30 segment(s), 4 classes, 16 visual, 24 audio" in made.stderr
    quick = ["--missing", "audio:0.5", "--split", "subject", "--seeds", 1, "--epochs", 4, "--json"]
    trained = mlemiss("train", "--features", "two", *quick)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["results"][0]["mean"] > 80


# ---- ids of several sources ----


def renamed(folder, rename):
    """Rename the files of v."""
    for path in sorted((folder / "v").iterdir()):
        path.rename(path.with_name(rename(path.name)))


@pytest.mark.parametrize(
    ("rename", "why"),
    [
        (lambda name: f"new_{name}", r"no clip id in common: 'new_c00' \(nearest on the other side: 'c00'\)[\s\S]*"
         r"; 12 ids would match without 'new_' before them"),
        (lambda name: name.replace(".npy", "-v2.npy"), "12 ids would match without '-v2' after them"),
        (lambda name: f"zz{hash(name) % 10**9}.npy", "no clip id in common"),
        (lambda name: name.replace("c03", "C03"), r"v has 'C03' and .*labels.csv has 'c03', which differ only in how"),
        (lambda name: name.replace("c03", "C03.wav"), "has 'C03.wav' .* has 'c03', which differ only in how"),
    ],
)  # fmt: skip
def test_ids_that_do_not_match_are_told_with_the_nearest(labels, rename, why):
    arrays(labels, "v", [5])
    renamed(labels, rename)
    with pytest.raises(InputError, match=why):
        load(labels, "visual=@v")
    assert not (labels / "stores").exists()


def test_some_ids_that_do_not_match_are_noted(labels, capsys):
    arrays(labels, "v", [5])
    renamed(labels, lambda name: name.replace("c1", "take_c1"))
    opened = load(labels, "visual=@v")
    assert opened.present.sum() == 10
    err = capsys.readouterr().err
    near = "'c10' (nearest on the other side: 'take_c10'), 'c11' (nearest on the other side: 'take_c11')"
    assert f"note: v lacks 2 clips of labels.csv: {near}; 2 ids would match without 'take_' before them" in err
    assert "note: 2 clips of v have no label in labels.csv and are left out: 'take_c10'" in err


def test_tables_are_joined_on_the_id_too(labels):
    rng = np.random.default_rng(0)
    np.savez(labels / "more.npz", face=rng.normal(size=(12, 3)), name=np.array(CLIPS[::-1]))
    rows = [f"{clip};{i}.5;{i * i}" for i, clip in reversed(list(enumerate(CLIPS)))]
    (labels / "voice.csv").write_text("\n".join(["name;f0;energy", *rows]))
    opened = load(labels, "visual=face@more.npz", "audio=f0@voice.csv", "audio=energy@voice.csv")
    np.testing.assert_array_equal(opened.read("audio")[:, 0, 0], np.arange(12) + 0.5)
    np.testing.assert_array_equal(opened.read("visual")[:, 0], np.load("more.npz")["face"][::-1].astype(np.float16))
    assert opened.attrs["spec"]["audio"] == ["f0", "energy"]


# ---- values that are no features ----


def spoiled(folder, clip="c04", step=2, feature=1, value=np.nan, dtype=np.float64):
    arrays(folder, "v", [5])
    values = np.load(folder / "v" / f"{clip}.npy").astype(dtype)
    values[step, feature] = value
    np.save(folder / "v" / f"{clip}.npy", values)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.nan, r"clip 'c04', segment 2: visual feature v\[1\] is nan .*: 1 value in 1 clip not finite"),
        (-np.inf, r"clip 'c04', segment 2: visual feature v\[1\] is -inf"),
        (1e39, r"1 visual features have values beyond float16's 65504.* \(up to 1e\+39\); 1 value in 1 clip"),
        (-70000.0, r"beyond float16's 65504"),
    ],
)  # fmt: skip
def test_values_that_are_no_features_are_counted_and_treated_as_asked(labels, capsys, value, why):
    spoiled(labels, value=value)
    with pytest.raises(InputError, match=why):
        load(labels, "visual=@v")
    missing = load(labels, "visual=@v", not_finite="missing")
    assert list(np.flatnonzero(~missing.present[:, 0])) == [4]
    assert missing.error[4] == "visual: 1 value not finite or beyond float16's 65504"
    assert "visual is missing in 1 clip: values not finite or beyond float16's 65504" in capsys.readouterr().err
    dropped = load(labels, "visual=@v", not_finite="drop", pool="mean")
    rows = np.delete(np.load("v/c04.npy"), 2, 0)
    np.testing.assert_allclose(dropped.read("visual")[4, 0], rows.mean(0), atol=2e-3)
    assert "visual: 1 of 60 steps are left out: not finite or beyond float16's 65504" in capsys.readouterr().err


def test_a_clip_of_nan_alone_is_missing_as_ever(labels):
    arrays(labels, "v", [5])
    np.save(labels / "v" / "c04.npy", np.full((5, 4), np.nan))
    assert load(labels, "visual=@v").error[4] == "visual: NaN in the imported file"


def test_steps_of_zeros_are_told_and_treated_as_asked(labels, capsys):
    arrays(labels, "v", [5])
    np.save(labels / "v" / "c04.npy", np.zeros((5, 4)))
    half = np.load(labels / "v" / "c05.npy")
    half[:3] = 0
    np.save(labels / "v" / "c05.npy", half)
    assert load(labels, "visual=@v").present.all()
    assert "all visual features are 0 in 8 of 60 segments; where that means missing" in capsys.readouterr().err
    opened = load(labels, "visual=@v", zero="missing")
    assert list(np.flatnonzero(~opened.present[:, 0])) == [4]
    assert opened.error[4] == "visual: no segment is left of 5: 5 all zero"
    np.testing.assert_array_equal(opened.read("visual")[5], half[[3, 3, 3, 3, 4]].astype(np.float16))
    assert opened.attrs["spec"]["zero"] == "missing"


# ---- files of other programs ----


def openface(folder, frames=40, clips=CLIPS, header="", cut=True):
    """Write OpenFace's CSVs: blanks after commas; c01 has a face in its second half only, c02 in no frame."""
    (folder / "openface").mkdir(exist_ok=True)
    head = header or "frame, face_id, timestamp, confidence, success, gaze_0_x, AU01_r, AU12_r, AU01_c"
    for i, clip in enumerate(clips):
        lines = [head]
        for frame in range(frames + i):
            found = clip != "c02" and (clip != "c01" or frame >= (frames + i) // 2)
            sure = 0.98 if frame % 4 else 0.6
            units = f"{i}.25, 1.50, 1.0" if found else "0.00, 0.00, 0.0"
            lines.append(f"{frame + 1}, 0, {frame / 30:.3f}, {sure if found else 0:.2f}, {int(found)}, 0.1, {units}")
        (folder / "openface" / f"{clip}.csv").write_text("\n".join(lines) + "\n")


def test_openfaces_files_as_it_writes_them(labels, capsys):
    openface(labels)
    (labels / "openface" / "c00.hog").write_bytes(b"\1")
    (labels / "openface" / "c00_aligned").mkdir()
    (labels / "openface" / "._c00.csv").write_bytes(b"\0\5\x16\7")
    opened = load(labels, "visual=AU*_r@openface")
    assert opened.read("visual").shape == (12, 30, 2) and opened.attrs["spec"]["visual"] == ["AU01_r", "AU12_r"]
    np.testing.assert_array_equal(opened.read("visual")[7], np.tile([7.25, 1.5], (30, 1)).astype(np.float16))
    np.testing.assert_array_equal(opened.read("visual")[1, :, 0], 1.25)  # frames without a face do not count
    assert list(np.flatnonzero(~opened.present[:, 0])) == [2]
    assert opened.error[2] == "visual: no step is left of 42: 42 without success"
    err = capsys.readouterr().err
    assert "'AU*_r' took AU01_r, AU12_r\n" in err and "openface: not read are ._c00.csv, c00.hog, c00_aligned" in err
    assert "visual: 62 of 546 steps are left out: without success" in err


def test_openfaces_frames_below_a_confidence_are_left_out(labels, capsys):
    openface(labels)
    load(labels, "visual=AU*_r@openface", confidence=0.8)
    left_out = sum(math.ceil((40 + i) / 4) for i in range(12) if i not in (1, 2)) + 42 + 20 + 6
    assert f"visual: {left_out} of 546 steps are left out: without success or below" in capsys.readouterr().err
    with pytest.raises(InputError, match="no clip has any visual: of most, the cause is: no step is left"):
        load(labels, "visual=AU*_r@openface", confidence=0.99)


def test_a_glob_takes_no_column_about_a_frame(labels):
    openface(labels)
    assert load(labels, "visual=*@openface").attrs["spec"]["visual"] == ["gaze_0_x", "AU01_r", "AU12_r", "AU01_c"]
    both = load(labels, "face=AU*_r@openface", "gaze=gaze_*@openface")
    assert both.modalities == ("face", "gaze") and both.read("gaze").shape == (12, 30, 1)


def test_nan_as_windows_writes_it(labels):
    openface(labels)
    path = labels / "openface" / "c03.csv"
    path.write_text(path.read_text().replace("3.25", "-nan(ind)"))
    with pytest.raises(InputError, match=r"clip 'c03', step 0: visual feature AU01_r is nan .*43 values in 1 clip"):
        load(labels, "visual=AU*_r@openface")


@pytest.mark.parametrize(
    ("change", "maps", "rules", "why"),
    [
        (lambda text: text.replace("\n2, 0,", "\n2, 1,"), (), {}, r"c03.csv is about 2 faces \(face_id 0, 1\)"),
        (lambda text: text.replace("AU12_r", "AU14_r"), (), {}, "has other columns than .*c00.csv: AU12_r, AU14_r"),
        (lambda text: text.replace(", 1.50,", ", high,", 1), (), {}, "line 2, column 'AU12_r': expected a number"),
        (lambda text: text[:-9], (), {}, "c03.csv, line 44: expected 9 fields"),
        (lambda text: "", (), {}, "c03.csv: this is an empty file"),
        (lambda text: "<html>503", (), {}, "c03.csv: this is a web page"),
        (lambda text: text, ("visual=AU99@openface",), {}, "has no 'AU99'.\nThere are: gaze_0_x, AU01_r"),
        (lambda text: text, ("visual=@openface",), {}, "has no ''"),
        (lambda text: text, ("visual=AU*@openface", "face=AU01_r@openface"), {}, "'AU01_r' is mapped twice"),
    ],
)  # fmt: skip
def test_bad_files_of_openface(labels, change, maps, rules, why):
    openface(labels)
    path = labels / "openface" / "c03.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=why):
        load(labels, *(maps or ("visual=AU*_r@openface",)), **rules)
    assert not (labels / "stores").exists()


def opensmile(folder, kind, rows=1):
    """Write what openSMILE writes of each clip: its csvSink, its arffSink, its Python package; a row or a course."""
    values = {
        clip: [(i + 0.5 * (row + 1), -i / 4) for row in range(rows + i % 3 * (rows > 1))]
        for i, clip in enumerate(CLIPS)
    }
    head = ["F0semitoneFrom27.5Hz_sma3nz_amean", "loudness_sma3_amean"]
    if kind == "python.csv":
        lines = ["file,start,end," + ",".join(head)]
        lines += [
            f"/data/wavs/{clip}.wav,0 days 00:00:0{row}.000000,0 days 00:00:03.2699,{a},{b}"
            for clip, course in values.items() for row, (a, b) in enumerate(course)
        ]  # fmt: skip
    elif kind == "sink.csv":
        lines = ["name;frameTime;" + ";".join(head)]
        lines += [f"'{clip}';{row:.6f};{a:e};{b:e}" for clip, v in values.items() for row, (a, b) in enumerate(v)]
    else:
        lines = ["@relation smile", "", "@attribute name string", "@attribute frameTime numeric"]
        lines += [f"@attribute {name} numeric" for name in head]
        lines += ["@attribute class {0,1,2,3}", "", "@data", ""]
        lines += [f"'{clip}',{row:.6f},{a:e},{b:e},0" for clip, v in values.items() for row, (a, b) in enumerate(v)]
    (folder / kind).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", ["sink.csv", "sink.arff", "python.csv"])
def test_opensmiles_files_as_it_writes_them(labels, kind):
    opensmile(labels, kind)
    opened = load(labels, f"audio=*@{kind}")
    assert opened.attrs["spec"]["audio"] == ["F0semitoneFrom27.5Hz_sma3nz_amean", "loudness_sma3_amean"]
    np.testing.assert_array_equal(opened.read("audio")[:, 0, 1], -np.arange(12) / 4)
    opensmile(labels, kind, rows=40)  # low-level descriptors: as many rows as the clip is long
    course = load(labels, f"audio=*@{kind}")
    assert course.read("audio").shape == (12, 30, 2) and course.present.all()
    np.testing.assert_array_equal(course.read("audio")[5, :, 1], -1.25)


def test_a_folder_of_opensmiles_files_goes_by_the_files_names(labels):
    """Without an option its name for every clip is `unknown`."""
    (labels / "smile").mkdir()
    for i, clip in enumerate(CLIPS):
        (labels / "smile" / f"{clip}.csv").write_text(f"name;frameTime;F0;HNR\n'unknown';0.000000;{i:e};2.5e+00\n")
    np.testing.assert_array_equal(load(labels, "audio=*@smile").read("audio")[:, 0, 0], np.arange(12))
    (labels / "all.csv").write_text("name;frameTime;F0\n" + "".join(f"'unknown';0;{i}\n" for i in range(12)))
    with pytest.raises(InputError, match=r"all.csv names no clip: openSMILE writes 'unknown'.*\n.*-instname"):
        load(labels, "audio=F0@all.csv")


def test_the_labels_may_be_opensmiles_own(tmp_path):
    rows = "".join(f"'c{i}',{i}.5,{('sad', 'happy')[i % 2]}\n" for i in range(10))
    head = "% made by hand\n@RELATION x\n@ATTRIBUTE name string\n@ATTRIBUTE 'F0 mean' numeric\n"
    head += "@attribute emotion {sad,happy}\n"
    (tmp_path / "labels.arff").write_text(f"{head}@DATA\n{rows}'c 10',?,sad\n")
    request = Request(tmp_path / "labels.arff", "mine", "own", parse_maps(["audio=F0 mean"]), "emotion", "name")
    opened = FeatureStore.open(import_features(request, tmp_path / "stores"))
    assert opened.present.sum() == 10 and opened.clip_id[0] == "c 10"


def test_two_of_opensmiles_names_are_never_one_clip(labels):
    """Splits of a data set may have files of one name; an ending is an ending only at the end."""
    end = "wav,0 days,0 days 00:00:01"
    rows = [f"{folder}/{clip}.{end},{i}" for folder in ("train", "dev") for i, clip in enumerate(CLIPS)]
    (labels / "own.csv").write_text("\n".join(["file,start,end,F0", *rows]))
    with pytest.raises(InputError, match=r"'dev/c00.wav' and 'train/c00.wav' would both be clip 'c00'.\n.*--clip"):
        load(labels, "audio=F0@own.csv", pool="mean")
    rows = [f"{clip}.movement3.{end},{i}" for i, clip in enumerate(CLIPS)]
    (labels / "own.csv").write_text("\n".join(["file,start,end,F0", *rows]))
    head, *text = (labels / "labels.csv").read_text().splitlines()
    (labels / "labels.csv").write_text("\n".join([head, *(line.replace(",", ".movement3,", 1) for line in text)]))
    np.testing.assert_array_equal(load(labels, "audio=F0@own.csv").read("audio")[:, 0, 0], np.arange(12))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("@relation x\n@attribute name string\n", "no line @data"),
        ("@relation x\n@attribute name string\n@attribute F 0\n@data\n{0 'a', 1 2.5}\n", "line 5: sparse ARFF"),
        ("@relation x\n@attribute name string\n@attribute F 0\n@data\n\n'c00',1,2\n", "line 6: expected 2 fields"),
    ],
)  # fmt: skip
def test_bad_arff(labels, text, why):
    (labels / "own.arff").write_text(text)
    with pytest.raises(InputError, match=why):
        load(labels, "audio=F@own.arff")


# ---- what cannot be ----


def test_folders_that_cannot_be(labels):
    arrays(labels, "v", [5]), openface(labels)
    for name in ("mixed", "none"):
        (labels / name).mkdir()
    np.save(labels / "mixed" / "c00.npy", np.ones(3))
    (labels / "mixed" / "c01.csv").write_text("a\n1\n")
    (labels / "twice" / "c00").mkdir(parents=True)
    for path in ("c00/0.npy", "c00.npy"):
        np.save(labels / "twice" / path, np.ones(3))
    for maps, why in (
        (["visual=@nowhere"], "no file or folder nowhere"),
        (["visual=@mixed"], "mixed holds 1 .npy and 1 .csv"),
        (["visual=@none"], "none holds nothing"),
        (["visual=@twice"], "are both clip 'c00'"),
        (["visual=face@v"], "v holds .npy files, which have no names in them"),
        (["visual=@v", "audio=@v"], "v holds .npy files"),
        (["visual=@v", "visual=AU*_r@openface"], "visual is made of v and openface"),
        (["visual=@"], "expected MODALITY=ARRAY"),
    ):
        with pytest.raises(InputError, match=why):
            load(labels, *maps)
    with pytest.raises(InputError, match="--confidence is about OpenFace's files"):
        load(labels, "visual=@v", confidence=0.5)
    with pytest.raises(InputError, match="name the column of clip ids with --clip"):
        load(labels, "visual=@v", clip=None)
    with pytest.raises(InputError, match=r"v is a folder, expected the table with --label emotion"):
        import_features(Request(labels / "v", "mine", "own", parse_maps(["visual=@v"]), "emotion"), labels / "stores")
    assert not (labels / "stores").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (np.ones((2, 3, 4)), r"c03.npy holds float64 \[2, 3, 4\], expected numbers \[feature\] or \[step, feature\]"),
        (np.array("word"), "expected numbers"),
        (np.ones((5, 3)), r"c03.npy has 3 features and .*c00.npy has 4"),
        (np.array([[1, 2], [3]], object), "c03.npy is no .npy of numbers"),
        (b"\x93NUMPY\1\0", "c03.npy is no .npy of numbers"),
        (b"version https://git-lfs.github.com/spec/v1\n", "c03.npy: this is a Git LFS pointer"),
        (b"PK\3\4", "c03.npy: this is a zip archive"),
        (b"", "an empty file"),
        (None, "c03.npy is no .npy of numbers, or a damaged one"),
    ],
)
def test_bad_npy(labels, content, why):
    arrays(labels, "v", [5])
    path = labels / "v" / "c03.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    with pytest.raises(InputError, match=why):
        load(labels, "visual=@v")
    assert not (labels / "stores").exists()


def test_rows_of_a_table_are_averaged_where_asked(labels):
    """Rows that share an id are segments, and a clip that lost one is an error, unless they are said to be steps."""
    rows = [f"{clip},{i}.5" for i, clip in enumerate(CLIPS) for _ in range(3 + i % 2)]
    (labels / "own.csv").write_text("\n".join(["name,f0", *rows]))
    with pytest.raises(InputError, match=r"'c00' has 3 rows and 'c01' has 4[\s\S]*`--segments N`"):
        load(labels, "audio=f0@own.csv")
    np.testing.assert_array_equal(load(labels, "audio=f0@own.csv", segments=2).read("audio")[3, :, 0], [3.5, 3.5])


@pytest.mark.parametrize("where", ["beside the labels", "in a file of its own", "of the older header"])
def test_frames_without_success_are_left_out_wherever_they_stand(labels, where):
    rows = [(clip, frame, int(frame > 1), 9 if frame <= 1 else i) for i, clip in enumerate(CLIPS) for frame in range(4)]
    about = "frame,face_id,timestamp,confidence,success"
    if where == "of the older header":
        (labels / "openface").mkdir()
        for clip in CLIPS:
            lines = [f"{f}, 0.1, 0.9, {ok}, {value}" for name, f, ok, value in rows if name == clip]
            text = "\n".join(["frame, timestamp, confidence, success, AU01_r", *lines])
            (labels / "openface" / f"{clip}.csv").write_text(text)
        opened = load(labels, "visual=AU*_r@openface", pool="mean")
    elif where == "in a file of its own":
        lines = [f"{clip},{f},0,0.1,0.9,{ok},{value}" for clip, f, ok, value in rows]
        (labels / "all.csv").write_text("\n".join([f"name,{about},AU01_r", *lines]))
        opened = load(labels, "visual=AU*_r@all.csv", pool="mean")
    else:
        words = {line.split(",")[0]: line for line in (labels / "labels.csv").read_text().splitlines()}
        lines = [f"{words[clip]},{f},0,0.1,0.9,{ok},{value}" for clip, f, ok, value in rows]
        (labels / "labels.csv").write_text("\n".join([f"name,emotion,actor,{about},AU01_r", *lines]))
        opened = load(labels, "visual=AU*_r", pool="mean")
    np.testing.assert_array_equal(opened.read("visual")[:, 0, 0], np.arange(12))


def test_files_of_several_steps_of_one_clip(labels):
    """A clip's folder may hold arrays of steps, and one without any."""
    expected = []
    for i, clip in enumerate(CLIPS):
        (labels / "v" / clip).mkdir(parents=True)
        parts = [np.full((5 + i, 4), i + part / 4, np.float32) for part in range(3)]
        parts[2] = parts[2][:0] if i == 1 else parts[2]
        for part, values in enumerate(parts):
            np.save(labels / "v" / clip / f"{part}.npy", values)
        steps = np.concatenate(parts)
        expected.append(slow_average(steps, np.ones(len(steps), bool), 30))
    np.testing.assert_allclose(load(labels, "visual=@v").read("visual"), np.float16(expected), rtol=1e-3)


def test_modalities_that_swap_their_arrays_make_another_store(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(12, 4)), "y": 5 + rng.normal(size=(12, 4))}
    np.savez(tmp_path / "own.npz", label=np.array(["a", "b"] * 6), **arrays)
    opened = [
        FeatureStore.open(
            import_features(
                Request(tmp_path / "own.npz", "mine", "own", parse_maps(maps), "label"), tmp_path / "stores"
            )
        )
        for maps in (["text=x", "face=y"], ["face=x", "text=y"])
    ]
    assert opened[0].path != opened[1].path and opened[1].read("face").mean() < 1 < opened[1].read("text").mean()


def test_weights_of_other_step_rules_are_refused(labels):
    arrays(labels, "v", [8])
    values = np.load(labels / "v" / "c03.npy")
    np.save(labels / "v" / "c03.npy", np.where(np.arange(8)[:, None] < 4, 0, values))
    kept, left_out = load(labels, "visual=@v", segments=4), load(labels, "visual=@v", segments=4, zero="missing")
    header = {"method": "mle", "dataset": "mine", "features": "own", "store": kept.fingerprint}
    header |= {"weights": kept.weights["name"], "weights_hash": kept.weights["hash"]} | weights.describe_inputs(kept)
    weights.check_store(header, kept)
    with pytest.raises(InputError, match="trained on zero None, found missing"):
        weights.check_store(header, left_out)


def test_ids_that_almost_match(labels):
    """What is said would make them match does."""
    for name, ids, said in (
        ("zeros", [f"{i:03d}" for i in range(12)], "12 ids would match without the zeros before them"),
        ("after", [f"{clip}_x" for clip in CLIPS], "12 ids would match without '_x' after them"),
        ("differ", [f"{clip}_{i:02d}" for i, clip in enumerate(CLIPS)], "1 id would match without '_00' after them"),
    ):
        arrays(labels, name, [3], clips=ids)
        text = ["name,emotion,actor", *(f"{i if name == 'zeros' else c},{'ab'[i % 2]},s" for i, c in enumerate(CLIPS))]
        (labels / "labels.csv").write_text("\n".join(text))
        with pytest.raises(InputError, match=said):
            load(labels, f"visual=@{name}")
    (labels / "nested" / "Actor_01").mkdir(parents=True)
    np.save(labels / "nested" / "Actor_01" / "c00.npy", np.ones(3))
    with pytest.raises(InputError, match="A folder in it, such as Actor_01, is taken for the steps of one clip"):
        load(labels, "visual=@nested")


@pytest.mark.parametrize(("here", "there"), [("1_11", "11_1"), ("3.1", "3.10"), ("1", "01"), ("a_b", "ab")])
def test_ids_of_different_clips_are_noted(here, there):
    notes = match_ids(Path("labels.csv"), ["same", here], Path("v"), ["same", there])
    assert len(notes) == 2 and f"v lacks 1 clip of labels.csv: {here!r}" in notes[0] and repr(there) in notes[1]


def test_ids_that_differ_in_what_separates_them():
    with pytest.raises(InputError, match=r"v has '1 - A' and labels\.csv has '1_a', which differ only in how"):
        match_ids(Path("labels.csv"), ["same", "1_a"], Path("v"), ["same", "1 - A"])


def test_a_sources_clips_are_not_gone_through_for_every_clip(labels, monkeypatch):
    passes = []

    class Counted(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    def counted(*described):
        source = open_source(*described)
        source.clips = Counted(source.clips)
        return source

    arrays(labels, "v", [3])
    monkeypatch.setattr(importing, "open_source", counted)
    assert load(labels, "visual=@v").present.all() and 0 < len(passes) < len(CLIPS)


def test_a_modality_and_a_column_of_one_name(labels):
    wanted = parse_maps(["text=F0"])
    request = Request(labels / "labels.csv", "mine", "own", wanted, "emotion", "name", columns=("text",))
    with pytest.raises(InputError, match="--column text and --map text=… have one name"):
        import_features(request, labels / "stores")


def test_an_import_of_before_has_the_same_fingerprint(tmp_path):
    visual = (np.arange(360).reshape(24, 3, 5) * 37 % 101 / 8).astype("f4")
    visual[4] = np.nan
    audio = np.repeat((np.arange(96).reshape(24, 1, 4) * 13 % 29), 3, 1)
    words = {"y": np.array(["sad", "happy"] * 12), "id": np.arange(24)[::-1]}
    np.savez(tmp_path / "own.npz", v=visual, a=audio, **words)
    request = Request(tmp_path / "own.npz", "mine", "own", parse_maps(["visual=v", "audio=a"]), "y", clip="id")
    assert import_features(request, tmp_path / "stores").name == "mine-own-c616c6d926fc.zarr"
