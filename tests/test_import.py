"""Features computed elsewhere become stores like ours, and whatever is wrong with them is told before anything is."""

import csv
import json
import os
import pickle
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.importing import importing
from mlemiss.pipeline.importing.importing import Request, import_features, parse_maps
from mlemiss.pipeline.importing.steps import Rules
from mlemiss.pipeline.stores.checksums import damaged_files
from mlemiss.pipeline.stores.store import FeatureStore

CLIPS, SEGMENTS = 24, 3
EMOTIONS = np.array(["sad", "happy", "angry"])


def arrays(seed=0):
    """Segment-level faces, voices of which clips 4 and 9 have none and 9 has no face either, words as labels."""
    rng = np.random.default_rng(seed)
    face, voice = rng.normal(size=(CLIPS, SEGMENTS, 5)), rng.normal(size=(CLIPS, SEGMENTS, 4)).astype(np.float32)
    voice[[4, 9]] = np.nan
    face[9] = np.nan
    found = {"face": face, "voice": voice, "emotion": EMOTIONS[np.arange(CLIPS) % 3]}
    return found | {"actor": np.arange(CLIPS) // 6, "take": np.arange(CLIPS) % 2, "id": np.arange(CLIPS)[::-1]}


def load(path, stores=None, *, maps=("visual=face", "audio=voice"), label="emotion", **options):
    request = Request(path, "mine", "own", parse_maps(maps), label, **options)
    return import_features(request, stores or path.parent / "stores")


@pytest.fixture
def npz(tmp_path):
    def write(**changed):
        np.savez(tmp_path / "own.npz", **{name: v for name, v in (arrays() | changed).items() if v is not None})
        return tmp_path / "own.npz"

    return write


def write_csv(path, rows, separator=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(found, segments=SEGMENTS):
    """One row a segment, as columns face_0 …, an empty field for NaN."""
    rows = []
    for s in range(segments):  # clips' rows need not stand together
        for c in range(CLIPS):
            row = {"id": f"c{c:02d}", "emotion": found["emotion"][c], "actor": found["actor"][c]}
            for name in ("face", "voice"):
                values = found[name][c, s]
                row |= {f"{name}_{i}": "" if np.isnan(v) else repr(float(v)) for i, v in enumerate(values)}
            rows.append(row)
    return rows


def test_arrays_become_a_store_sorted_by_clip(npz):
    found = arrays()
    path = load(npz(), clip="id", subject="actor", columns=("take",))
    opened = FeatureStore.open(path)
    assert damaged_files(path) == [] and path.name.startswith("mine-own-") and not list(path.parent.glob(".*"))
    assert opened.classes == ("angry", "happy", "sad") and set(opened.columns) == {"subject", "take"}
    order = np.argsort(found["id"].astype(str))
    np.testing.assert_array_equal(opened.clip_id, found["id"].astype(str)[order])
    np.testing.assert_array_equal(np.array(opened.classes)[opened.label], found["emotion"][order])
    np.testing.assert_array_equal(opened.subject, found["actor"].astype(str)[order])
    for m, name in enumerate(("face", "voice")):
        np.testing.assert_array_equal(opened.read(opened.modalities[m]), found[name].astype(np.float16)[order])
        np.testing.assert_array_equal(opened.present[:, m], ~np.isnan(found[name][order]).any((1, 2)))
    at = {int(clip): i for i, clip in enumerate(opened.clip_id)}
    failed, voiceless = at[int(found["id"][9])], at[int(found["id"][4])]
    assert opened.status[failed] == "failed" and (opened.status == "failed").sum() == 1
    assert opened.error[voiceless] == "audio: NaN in the imported file" and opened.status[voiceless] == "done"
    assert opened.weights["name"] == "imported" and len(opened.weights["hash"]) == 64
    assert opened.attrs["spec"]["visual"] == ["face"] and opened.attrs["spec"]["file"] == "own.npz"


def test_clip_level_arrays_are_one_segment_and_ids_are_row_numbers(npz):
    found = arrays()
    path = load(
        npz(face=found["face"][:, 0], voice=found["voice"][:, 0], emotion=np.arange(CLIPS) % 12), label="emotion"
    )
    opened = FeatureStore.open(path)
    assert opened.read("visual").shape == (CLIPS, 1, 5) and list(opened.clip_id[:2]) == ["00", "01"]
    assert opened.classes == tuple(map(str, range(12)))  # whole numbers in their own order
    assert set(opened.subject) == {""}


@pytest.mark.parametrize("kind", [str, bytes])
def test_blanks_around_words_do_not_count(npz, kind):
    ids = np.array([f" clip {c:02} " for c in range(CLIPS)])
    words = {"id": ids.astype(kind), "emotion": np.char.add(arrays()["emotion"], " ").astype(kind)}
    opened = FeatureStore.open(load(npz(**words), clip="id"))
    assert opened.clip_id[0] == "clip 00" and opened.classes == ("angry", "happy", "sad")


def test_large_whole_numbers_that_are_exact_pass(npz):
    ids = 2.0**53 - 1 - np.arange(CLIPS)
    assert str(2**53 - 1) in FeatureStore.open(load(npz(id=ids), clip="id")).clip_id


def test_several_arrays_are_joined(npz):
    found = arrays()
    path = load(npz(extra=found["face"][..., :2] + 1), maps=("visual=face", "visual=extra", "audio=voice"))
    visual = FeatureStore.open(path).read("visual")
    np.testing.assert_array_equal(visual[..., 5:], (found["face"][..., :2] + 1).astype(np.float16))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_rows_that_share_a_clip_are_its_segments(tmp_path, npz, separator):
    found = arrays()
    table = write_csv(tmp_path / "own.csv", rows_of(found), separator)
    path = load(table, maps=("visual=face_*", "audio=voice_*"), clip="id", subject="actor")
    opened = FeatureStore.open(path)
    np.testing.assert_array_equal(opened.read("visual"), found["face"].astype(np.float16))
    np.testing.assert_array_equal(opened.read("audio"), found["voice"].astype(np.float16))
    assert opened.attrs["spec"]["visual"] == [f"face_{i}" for i in range(5)]
    ids = np.array([f"c{i:02d}" for i in range(CLIPS)])
    assert load(npz(id=ids), path.parent, clip="id", subject="actor") == path  # same content: the same store


def test_parquet_columns_and_lists(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    found = arrays()
    rows = rows_of(found)
    plain = {name: [row[name] for row in rows] for name in ("id", "emotion", "actor")}
    for name in rows[0].keys() - plain.keys():
        plain[name] = [float(row[name]) if row[name] else None for row in rows]
    parquet.write_table(pyarrow.table(plain), tmp_path / "rows.parquet")
    lists = {name: found[name].tolist() for name in ("face", "voice")} | {"id": plain["id"][:CLIPS]}
    lists["voice"][4] = None
    lists |= {"emotion": found["emotion"].tolist(), "actor": found["actor"].tolist()}
    parquet.write_table(pyarrow.table(lists), tmp_path / "lists.parquet")
    names = {"clip": "id", "subject": "actor"}
    maps = tuple(f"{modality}={name}_{i}" for modality, name in (("visual", "face"),) for i in range(5))
    path = load(tmp_path / "rows.parquet", maps=(*maps, *(f"audio=voice_{i}" for i in range(4))), **names)
    np.testing.assert_array_equal(FeatureStore.open(path).read("audio"), found["voice"].astype(np.float16))
    assert load(tmp_path / "lists.parquet", **names) == path
    lists["face"][0] = [[1.0]]
    parquet.write_table(pyarrow.table(lists), tmp_path / "ragged.parquet")
    with pytest.raises(InputError, match=r"'face' .* holds rows of different lengths"):
        load(tmp_path / "ragged.parquet", **names)
    (tmp_path / "no.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match="no parquet file"):
        load(tmp_path / "no.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "own.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"mlemiss\[parquet\]"):
        load(tmp_path / "own.parquet")


def words_file(path, emotion, actor=None):
    """A file with these labels, a None being what its kind writes for no value."""
    rows = len(emotion)
    columns = {"face": [float(i % 7) for i in range(rows)], "voice": [float(i % 5 + 1) for i in range(rows)]}
    columns |= {"emotion": emotion, "actor": actor or [f"s{i}" for i in range(rows)]}
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".csv":
        write_csv(path, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    else:
        numbers = not any(isinstance(word, str) for word in emotion)
        columns["emotion"] = np.array(emotion, float if numbers else str)  # a None is nan then, or "None"
        np.savez(path, **columns | {name: np.array(columns[name])[:, None] for name in ("face", "voice")})
    return path


FILES = [".npz", ".csv", ".parquet"]


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize(
    ("emotion", "why"),
    [
        (["sad", "happy", "nan"], r"label 'nan' stands for no value \(8 clips\)"),
        (["sad", "happy", "NA"], "label 'NA' stands for no value"),
        (["happy", "Happy ", " HAPPY"], r"label 'HAPPY' \(8 clips\), 'Happy' .*, 'happy' .* differ only in how they"),
        (["very sad", "very  sad", "x"], "'very  sad' .* 'very sad' .* differ only"),
        (["1", "1.0", "high"], "'1' .* '1.0' .* differ only"),
        ([1.0, None, 2.0], r"empty label \(8 such clips\)"),
        (["sad", None, "happy"], "empty label|'None' stands for no value"),
    ],
)
def test_labels_that_are_none_or_written_in_two_ways_are_told(tmp_path, suffix, emotion, why):
    with pytest.raises(InputError, match=why):
        load(words_file(tmp_path / f"own{suffix}", emotion * 8))


def test_a_character_nul_is_refused(tmp_path):
    """Numpy would drop it at the end of a word."""
    for suffix in (".csv", ".parquet"):
        with pytest.raises(InputError, match="'emotion' holds a character NUL"):
            load(words_file(tmp_path / f"own{suffix}", ["sad", "happy\0"]))


def test_a_person_written_in_two_ways_is_told(tmp_path):
    """A split by subject would take them for two."""
    with pytest.raises(InputError, match=r"subject 'S1' .*, 's1' .* differ only"):
        load(words_file(tmp_path / "own.csv", ["a", "b"], ["s1", "S1"]), subject="actor")


def test_whole_numbers_are_the_same_classes_in_every_file(tmp_path, capsys):
    """A gap makes programs write a column of whole numbers with fractions; sorted as words, 10.0 came before 2.0."""
    numbers = [float(i % 11) for i in range(44)]
    mixed = [f"{number:.0f}{'.0' * (i % 2)}" for i, number in enumerate(numbers)]
    stores = tmp_path / "stores"
    made = {load(words_file(tmp_path / f"own{suffix}", numbers), stores) for suffix in FILES}
    made |= {load(words_file(tmp_path / f"own{suffix}", mixed), stores) for suffix in FILES}
    assert len(made) == 1
    assert FeatureStore.open(made.pop()).classes == tuple(map(str, range(11)))
    assert "note: 'emotion' holds whole numbers: 0.0 is read as 0" in capsys.readouterr().err


def test_what_is_often_a_mistake_is_noted(npz, capsys):
    label = np.arange(CLIPS) % 2
    face, voice = np.ones((CLIPS, SEGMENTS, 5)), np.ones((CLIPS, SEGMENTS, 4))
    face[:6] = 0
    voice[label == 1] = np.nan
    load(npz(face=face, voice=voice, emotion=label))
    err = capsys.readouterr().err
    assert "classes: 0 12, 1 12\n" in err
    assert "note: all visual features are 0 in 18 of 72 segments; where that means missing, write NaN" in err
    assert "note: that audio is missing tells the class by itself: 0 0 of 12, 1 12 of 12" in err
    load(npz())
    assert "note" not in capsys.readouterr().err


def test_the_columns_that_a_pattern_took_are_told_and_long_fields_are_read(tmp_path, capsys):
    rows = rows_of(arrays())
    for row in rows:
        row |= {"face_time": row["face_0"], "notes": "x" * 140_000}
    load(write_csv(tmp_path / "own.csv", rows), maps=("visual=face_*", "audio=voice_0"), clip="id")
    err = capsys.readouterr().err
    assert "note: 'face_*' took face_0, face_1, face_2, face_3, face_4, face_time\n" in err and "'voice_0'" not in err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fl2.csv", "classes: 1 16, 2 8\n"),
        ("fl3.csv", "classes: 0 2, 1 2, 2 2"),
        ("lc.csv", "'HAPPY' (6 clips), 'Happy' (6 clips), 'happy' (6 clips) differ only"),
        ("of3.csv", "'*_r' took timestamp_r, AU01_r, AU02_r, AU45_r\n"),
        ("ln.npz", "label 'nan' stands for no value (1 clip)"),
        ("on.npz", "that audio is missing tells the class by itself: happy 12 of 12, sad 0 of 12\n"),
        ("t5.npz", "all audio features are 0 in 12 of 24 clips"),
    ],
)
def test_faults_of_the_field_are_told(shared_data, tmp_path, capsys, name, told):
    tabular, error = name.endswith(".csv"), ""
    names = {"label": "emotion" if tabular else "z", "clip": "clip", "subject": "subject" if tabular else "s"}
    maps = ("visual=*_r", "audio=voice_*") if tabular else ("visual=v", "audio=a")
    try:
        load(shared_data / "field_faults" / name, tmp_path, maps=maps, **names)
    except InputError as raised:
        error = str(raised)
    assert told in capsys.readouterr().err + error


def ragged():
    rows = np.empty(CLIPS, object)
    rows[:] = [np.ones(1 + i % 2) for i in range(CLIPS)]
    return rows


def changed(name, place, value):
    values = arrays()[name]
    values[place] = value
    return {name: values}


def tight(offset, scale):
    face = np.random.default_rng(1).normal(offset, scale, (CLIPS, SEGMENTS, 5))
    face[..., :3] = 1.0  # features that never vary are no loss
    return {"face": face}


@pytest.mark.parametrize(
    ("change", "options", "why"),
    [
        ({}, {"maps": ("visual=faces", "audio=voice")}, r"no 'faces'.\nThere are: face, voice, emotion, actor"),
        ({}, {"label": "mood"}, "no 'mood'"),
        ({}, {"clip": "name"}, "no 'name'"),
        ({}, {"maps": ("visual=face", "smell")}, "expected MODALITY=ARRAY"),
        ({}, {"maps": ("visual=face", "2d=voice")}, "'2d' is no name of a modality"),
        ({}, {"maps": ("visual=face", "label=voice")}, "label is a name of the store's own"),
        ({}, {"maps": ("visual=face", "Visual=voice")}, "visual and Visual differ in case alone"),
        ({}, {"maps": ("visual=face", "audio=face")}, "'face' is mapped twice"),
        ({}, {"maps": ("visual=face", "audio=voice", "audio=take"), "label": "take"}, "would tell the answer"),
        ({"voice": ragged()}, {}, "'voice' is pickled .* never loaded"),
        ({"emotion": np.array(["a", 1] * 12, object)}, {}, "'emotion' is pickled"),
        ({"actor": np.arange(5)}, {"subject": "actor"}, "different lengths: face 24, voice 24, emotion 24, actor 5"),
        ({"voice": arrays()["voice"][:-1]}, {}, "different lengths: face 24, voice 23"),
        ({"voice": arrays()["voice"][:, :2]}, {}, "segments a clip differ: visual 3, audio 2"),
        ({"voice": np.ones(CLIPS)}, {}, r"'voice' has shape \[24\], expected \[clip, feature\]"),
        ({"voice": np.ones((CLIPS, 1, 1, 1))}, {}, r"'voice' has shape \[24, 1, 1, 1\]"),
        ({"voice": np.ones((CLIPS, 0))}, {}, r"'voice' has shape \[24, 0\]"),
        ({"voice": np.full((CLIPS, 2), "a")}, {}, "expected numbers in 'voice'"),
        ({"emotion": np.ones((CLIPS, 2))}, {}, r"'emotion' has shape \[24, 2\]"),
        ({"emotion": np.linspace(0, 1, CLIPS)}, {}, "no words or whole numbers"),
        (changed("emotion", 3, ""), {}, "clip '03' has an empty label"),
        (changed("emotion", 3, " "), {}, "clip '03' has an empty label"),
        ({"emotion": np.array([1.0, 1e300] * 12)}, {}, r"'emotion', row 1: 1e\+300 is beyond 2\^53"),
        ({"id": 2.0**53 + 2 * np.arange(CLIPS)}, {"clip": "id"}, r"'id', row 0: .* beyond 2\^53"),
        ({"id": (2.0**24 + 2 * np.arange(CLIPS)).astype("f4")}, {"clip": "id"}, r"'id', row 0: .* beyond 2\^24"),
        ({"id": np.zeros(CLIPS, int)}, {"clip": "id"}, "clip id '0' stands 24 times"),
        ({"id": np.full(CLIPS, "")}, {"clip": "id"}, "empty clip id"),
        (changed("voice", (2, 1, 3), np.nan), {}, r"clip '02', segment 1: audio feature voice\[3\] is nan"),
        (changed("voice", (2, 1), np.nan), {}, r"clip '02', segment 1: audio feature voice\[0\] is nan"),
        (changed("face", (6, 0, 4), np.inf), {}, r"clip '06', segment 0: visual feature face\[4\] is inf"),
        ({"voice": np.full((CLIPS, SEGMENTS, 4), np.nan)}, {}, "no clip has any audio"),
        (
            changed("face", (6, 0, 4), 1e6),
            {},
            r"1 visual features have values beyond .* first face\[4\] \(up to 1e\+06",
        ),
        (tight(1000, 0.1), {}, r"2 visual features vary too little .* first face\[3\] [\s\S]*Centre and scale"),
        (tight(0, 1e-9), {}, "vary too little"),
        ({}, {"columns": ("label",)}, "'label' cannot be kept"),
    ],
)
def test_bad_arrays_are_told_and_leave_nothing_behind(npz, change, options, why):
    path = npz(**change)
    with pytest.raises(InputError, match=why):
        load(path, **options)
    assert [p.name for p in path.parent.iterdir()] == ["own.npz"]


def test_a_modality_has_no_name_that_the_store_itself_uses(npz):
    spec = FeatureStore.open(load(npz(), maps=("face=face", "voice=voice"))).attrs["spec"]
    taken = {"face_box", "waveform", "backbone", *spec, *asdict(Rules())} - {"face", "voice"}
    assert taken > {"columns", "segments", "pool", "zero", "confidence"}
    for name in taken:
        with pytest.raises(InputError, match=f"{name} is a name of the store's own.\nName the modality otherwise"):
            parse_maps([f"{name}=face"])


def test_a_constant_feature_and_one_just_wide_enough_pass(npz):
    path = npz(**tight(10, 1))
    load(path)
    (stored,) = (path.parent / "stores").glob("*.zarr")
    assert (FeatureStore.open(stored).read("visual")[..., :3] == 1).all()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pickle.dumps({"face": 1}), "no .npz of plain arrays"),
        (b"PK\x03\x04 cut short", "no .npz of plain arrays"),
        (b"", "an empty file"),
    ],
)
def test_what_is_no_npz(tmp_path, content, why):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(InputError, match=why):
        load(tmp_path / "own.npz")


def test_files_that_cannot_be(tmp_path):
    for name, why in (("own.mat", "expected a file that ends in"), ("own.npz", "no file")):
        with pytest.raises(InputError, match=why):
            load(tmp_path / name)
    np.save(tmp_path / "bare.npy", np.ones(3))
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    with pytest.raises(InputError, match="one bare array"):
        load(tmp_path / "bare.npz")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows[5].update(face_2="high"), "line 7, column 'face_2': expected a number, found 'high'"),
        (lambda rows: rows[5].update(face_2=""), r"clip 'c05', segment 0: visual feature face_2 is nan"),
        (lambda rows: rows.pop(), "'c23' has 2 rows and 'c00' has 3: .* every clip needs as many"),
        (lambda rows: rows[30].update(emotion="calm"), "'emotion' differs between the segments of clip 'c06'"),
        (lambda rows: rows[30].update(id=" "), "empty clip id"),
    ],
)
def test_bad_rows_of_a_csv(tmp_path, change, why):
    rows = rows_of(arrays())
    change(rows)
    with pytest.raises(InputError, match=why):
        load(write_csv(tmp_path / "own.csv", rows), maps=("visual=face_*", "audio=voice_*"), clip="id")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an empty file"),
        ("emotion,face_0,voice_0\n", "holds no clips"),
        ("emotion,face_0,face_0,voice_0\n", "column 'face_0' stands twice"),
        ("emotion,face_0,voice_0\nsad,1\n", "line 2: expected 3 fields, found 2"),
        ('emotion,face_0,voice_0\n"sad,1,1', "unexpected end of data"),
    ],
)
def test_bad_csv(tmp_path, text, why):
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(InputError, match=why):
        load(tmp_path / "own.csv", maps=("visual=face_*", "audio=voice_*"))


def test_a_finished_store_is_left_alone_and_an_error_while_building_leaves_nothing(npz, monkeypatch, capsys):
    path = npz()
    stores = path.parent / "deep" / "stores"

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(importing.store, "publish", full)
        with pytest.raises(OSError, match="no space"):
            load(path, stores)
    assert not (path.parent / "deep").exists()
    made = load(path, stores)
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    assert load(path, stores) == made and "nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before
    assert load(npz(**changed("face", (0, 0, 0), 0.5)), stores) != made
    (made / "COMPLETE.json").unlink()
    with pytest.raises(InputError, match="incomplete"):
        load(npz(), stores)


def test_two_imports_of_one_content_at_once(npz, monkeypatch, capsys):
    path, publish = npz(), importing._publish

    def late(*built):
        with monkeypatch.context() as patched:  # another import is done in the meantime
            patched.setattr(importing, "_publish", publish)
            load(path)
        publish(*built)

    monkeypatch.setattr(importing, "_publish", late)
    made = load(path)
    assert damaged_files(made) == [] and [p.name for p in made.parent.iterdir()] == [made.name]
    assert capsys.readouterr().err.endswith(f"{made} holds exactly these features already; nothing to do\n")

    def half(*built):
        made.mkdir(parents=True)
        (made / "zarr.json").write_text("{}")
        publish(*built)

    shutil.rmtree(made)
    monkeypatch.setattr(importing, "_publish", half)
    with pytest.raises(InputError, match="is no mlemiss store"):
        load(path)


@pytest.mark.slow
def test_an_imported_store_trains_as_any_other(npz, mlemiss):
    rng, label = np.random.default_rng(0), np.arange(90) % 3
    path = npz(
        face=rng.normal(label[:, None], 0.3, (90, 4)),
        voice=rng.normal(-label[:, None], 0.3, (90, 3)),
        emotion=label,
        actor=np.arange(90) // 9,
        take=None,
        id=None,
    )
    options = ["--map", "visual=face,audio=voice", "--label", "emotion", "--subject", "actor"]
    made = mlemiss("store", "import", path, "--dataset", "mine", "--features", "votes", *options)
    assert made.returncode == 0 and "90 clips of 1 segment(s), 3 classes, 4 visual, 3 audio" in made.stderr
    assert made.stdout.startswith("stores/mine-votes-") and made.stdout.count("\n") == 1
    trained = mlemiss(
        "train", "--features", "votes", "--missing", "audio:0.5", "--split", "subject", "--seeds", 1, "--epochs", 12,
        "--lr", 0.02, "--json",
    )  # fmt: skip
    result, *_ = json.loads(trained.stdout)["results"]
    assert result["weights"] == "imported" and result["mean"] > 90
    bad = mlemiss("store", "import", path, "--dataset", "a/b", "--features", "votes", *options)
    assert bad.returncode == 2 and "--dataset 'a/b'" in bad.stderr and "Traceback" not in bad.stderr


@pytest.mark.slow
def test_what_was_trained_on_one_file_predicts_another(npz, tmp_path, mlemiss):
    """New clips come in a new file, whose hash cannot be the trained one's; other columns are refused.

    Their class need not be known: one word for all of them can be predicted, and not trained on.
    """
    store = load(npz())
    quick = ["--missing", "audio:0.2", "--seeds", 1, "--epochs", 1, "--out", "run", "--save-weights"]
    assert mlemiss("train", "--store", store, *quick).returncode == 0
    np.savez(tmp_path / "new.npz", **arrays(seed=1), other=arrays(seed=2)["face"])
    new = load(tmp_path / "new.npz", tmp_path / "new")
    done = mlemiss("predict", "run", "--store", new)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 + CLIPS - 1, done.stderr
    np.savez(tmp_path / "unknown.npz", **arrays(seed=1) | {"emotion": np.full(CLIPS, "unknown")})
    unknown = load(tmp_path / "unknown.npz", tmp_path / "unknown")
    assert len(mlemiss("predict", "run", "--store", unknown).stdout.splitlines()) == 1 + CLIPS - 1
    refused = mlemiss("train", "--store", unknown, "--missing", "audio:0.2")
    assert refused.returncode == 2 and "at least two classes" in refused.stderr
    swapped = load(tmp_path / "new.npz", tmp_path / "swapped", maps=("visual=other", "audio=voice"))
    refused = mlemiss("predict", "run", "--store", swapped)
    assert refused.returncode == 2 and "trained on visual ['face'], found ['other']" in refused.stderr, refused.stderr


@pytest.mark.slow
def test_the_documents_commands_on_crema_d(shared_data, tmp_path, mlemiss):
    path = shared_data / "crema_d_votes" / "crema_votes_two_modality.npz"
    if not path.is_file():
        pytest.skip("no votes of CREMA-D there")
    (tmp_path / path.name).symlink_to(path)
    text = (Path(__file__).parent.parent / "docs" / "own-features.md").read_text(encoding="utf-8")
    commands = [
        line for line in text.splitlines() if line.startswith("mlemiss ") and (path.name in line or "crema_d" in line)
    ]
    assert len(commands) == 4
    for command in commands:
        words = shlex.split(command.replace("mle,zero-padding,lower-bound", "mle"))
        words = [found for word in words for found in sorted(map(str, tmp_path.glob(word))) or [word]]
        result = mlemiss(*words[1:], *(["--seeds", 1, "--epochs", 1] if words[1] == "train" else []))
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    (made,) = (tmp_path / "stores").glob("*.zarr")
    opened = FeatureStore.open(made)
    assert len(opened.clip_id) == 7442 and opened.classes == tuple("012345") and len(set(opened.subject)) == 91
    assert opened.present.all() and opened.read("visual").max() == 12


SIX = Path(os.environ.get("MLEMISS_SHARED_DATA", "nowhere")) / "handwritten_six_views" / "handwritten.npz"
VIEWS = ("pixels", "fourier", "profiles", "zernike", "karhunen", "morphology")


@pytest.mark.slow
@pytest.mark.skipif(not SIX.exists(), reason="no six views here")
def test_six_views_of_digits(tmp_path, mlemiss):
    """Six modalities of a user, one, two and four of them missing, from the file to predictions."""
    maps = [part for view in VIEWS for part in ("--map", f"{view}={view}")]
    where = ["--dataset", "digits", "--features", "views", "--label", "digit", "--clip", "clip"]
    assert mlemiss("store", "import", SIX, *where, *maps).returncode == 0
    specs = ["pixels:0.5", "fourier:0.5+zernike:0.4", "+".join(f"{view}:0.5" for view in VIEWS[:4])]
    grid = ["--missing", ",".join(specs), "--method", "mle,zero-padding,only:morphology", "--seeds", 1, "--epochs", 4]
    run = mlemiss("train", "--features", "views", *grid, "--save-weights", "--out", "run", "--json")
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)["results"]
    assert len(results) == 9
    means = {(r["method"], r["missing"]): r["mean"] for r in results}
    for spec in {r["missing"] for r in results}:
        assert means["mle", spec] > 90 and means["only:morphology", spec] < 80
    assert [r["n_complete"][0] for r in results[:3]] == [700, 140, 80]
    store = next((tmp_path / "stores").glob("*.zarr"))
    cell = ["--method", "mle", "--missing", specs[1], "--store", store]
    predicted = mlemiss("predict", "run", *cell)
    assert predicted.returncode == 0 and predicted.stdout.count("\n") == 2001, predicted.stderr
    told = mlemiss("train", "--features", "views", "--missing", "smell:0.5")
    assert told.returncode == 2 and "modalities are pixels, fourier, profiles" in told.stderr


@pytest.mark.slow
def test_a_clip_level_modality_is_stored_once_and_counts_for_every_segment(tmp_path, mlemiss):
    """A vector a clip beside five segments trains to the numbers of that vector five times."""
    rng, label = np.random.default_rng(0), np.arange(60) % 3
    face, text = rng.normal(label[:, None, None], 1, (60, 5, 4)), rng.normal(label[:, None], 1, (60, 3))
    found = []
    for name, values in (("once", text), ("repeated", np.repeat(text[:, None], 5, 1))):
        np.savez(tmp_path / f"{name}.npz", face=face, text=values, emotion=label)
        store = load(tmp_path / f"{name}.npz", tmp_path / name, maps=("visual=face", "audio=text"))
        assert FeatureStore.open(store).shape("audio") == (60, 1 if name == "once" else 5, 3)
        quick = ["--missing", "audio:0.5", "--seeds", 1, "--epochs", 2, "--json"]
        result, *_ = json.loads(mlemiss("train", "--store", store, *quick).stdout)["results"]
        found.append(result["test_accuracy"])
    assert found[0] == found[1]
