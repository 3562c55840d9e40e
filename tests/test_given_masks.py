"""Splits and masks as files: exported and given back they change nothing; somebody else's are checked line by line."""

import csv
import json

import numpy as np
import pytest
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.mask_files import export_masks, read_given, read_masks, read_splits
from mlemiss.pipeline.stores.masks import TEST, TRAIN, parse_missing
from mlemiss.trainer.report.report import render_report

from .feature_stores import grid, predictions, write_store

MISSING = ("audio:0.5", "audio:0.3+visual:0.4")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores"))


def train(store, out, *, splits=None, masks=None, missing=MISSING, split="clip", **options):
    """As the command does."""
    given = read_given(splits, masks)
    settings = [given.setting(text) for text in missing]
    options |= {"missing": settings, "splits": [given.split_name(split)], "seeds": 2}
    return grid([given.apply(store, range(2), settings)], out, **options)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def write(path, table):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("split", ["clip", "subject"])
def test_round_trip_gives_the_same_predictions(store, tmp_path, split):
    splits, masks = export_masks(store, tmp_path / "files", 2, MISSING, split)
    own = train(store, tmp_path / "own", split=split)
    both = train(store, tmp_path / "both", splits=splits, masks=masks)
    for name in MISSING:
        expected = predictions(own, tmp_path / "own", missing=name)
        np.testing.assert_array_equal(predictions(both, tmp_path / "both", missing=name), expected)
    only = train(store, tmp_path / "only", splits=splits, missing=MISSING[1:])  # whose masks the store draws
    np.testing.assert_array_equal(predictions(only, tmp_path / "only"), expected)
    for result in both["results"]:
        assert (result["split"], result["missing_test"]) == ("given:splits.csv", "none")
        assert {kind: f["file"] for kind, f in result["given"].items()} == {"splits": splits.name, "masks": masks.name}
    page = render_report([both])
    assert "Splits given by splits.csv" in page and "Masks given by masks.csv" in page
    assert all(result["given"] is None for result in own["results"])


def test_what_is_exported_is_what_the_store_says(store, tmp_path):
    splits, masks = export_masks(store, tmp_path, 3, MISSING, "clip")
    table = rows(splits)
    assert table[0] == ["seed", "clip_id", "split"] and len(table) == 1 + 3 * len(store.clip_id)
    test = {clip for seed, clip, part in table[1:] if seed == "2" and part == "test"}
    assert test == set(store.clip_id[store.split(2) == TEST])
    hidden = store.missing(parse_missing("audio:0.3+visual:0.4"), 1, store.split(1) == TRAIN)
    expected = {(store.clip_id[c], store.modalities[m]) for c, m in np.argwhere(hidden)}
    found = {(clip, modality) for name, seed, clip, modality in rows(masks)[1:] if (name, seed) == (MISSING[1], "1")}
    assert found == expected and 0 < len(expected) < len(store.clip_id)
    with pytest.raises(InputError, match="is there already"):
        export_masks(store, tmp_path, 3, MISSING, "clip")
    for seeds, settings, split, why in (
        (0, MISSING, "clip", "expected at least one"),
        (1, ["audio"], "clip", "missing spec"),
        (1, MISSING, "moon", "no such column"),
    ):
        with pytest.raises(InputError, match=why):
            export_masks(store, tmp_path / "none", seeds, settings, split)
    assert not (tmp_path / "none").exists()


def test_masks_only_hide_more_and_rows_of_held_out_clips_count_and_are_told(store, tmp_path):
    table = [["setting", "seed", "clip_id", "modality"]]
    for seed in (0, 1):
        trained, tested = (np.flatnonzero(store.split(seed) == part) for part in (TRAIN, TEST))
        table += [["mine", seed, store.clip_id[c], "audio"] for c in trained[:9]]
        table += [["theirs", seed, store.clip_id[c], "visual"] for c in (*trained[:9], *tested[:4])]
    table.append(["mine", 0, "clip007", "audio"])  # lacks it anyhow
    table = [row for i, row in enumerate(table) if row not in table[:i]]
    document = train(
        store, tmp_path / "run", masks=write(tmp_path / "m.csv", table), missing=("mine", "theirs", "none")
    )
    mine, theirs, complete = document["results"]
    assert (mine["missing_test"], theirs["missing_test"], complete["missing_test"]) == ("none", "given:m.csv", "none")
    assert mine["n_complete"][0] < complete["n_complete"][0] and mine["split"] == "clip"
    assert "lack given:m.csv too" in render_report([document])
    found = [predictions(document, tmp_path / "run", missing=name) for name in ("theirs", "none")]
    assert not np.array_equal(*found, equal_nan=True)


def test_a_failed_clip_need_not_be_in_the_file(store, tmp_path):
    splits, _ = export_masks(store, tmp_path, 2, ["none"], "clip")
    kept = [row for row in rows(splits) if row[1] != "clip005"]
    fewer = train(store, tmp_path / "run", splits=write(tmp_path / "fewer.csv", kept), missing=("audio:0.5",))
    whole = train(store, tmp_path / "run", splits=splits, missing=("audio:0.5",))
    assert fewer["results"][0]["test_accuracy"] == whole["results"][0]["test_accuracy"]


SPLITS_HEAD, MASKS_HEAD = "seed,clip_id,split\n", "setting,seed,clip_id,modality\n"


@pytest.mark.parametrize(
    ("read", "text", "why"),
    [
        (read_splits, "", "line 1: the file is empty"),
        (read_splits, SPLITS_HEAD, "no rows below the header"),
        (read_splits, SPLITS_HEAD + "0,a,dev\n", "line 2: unknown split 'dev': expected train, validation, test"),
        (read_splits, SPLITS_HEAD + "0,a,train\n0,a,test\n", "line 3: clip 'a' of seed 0 is on line 2 already"),
        (read_splits, SPLITS_HEAD + "zero,a,train\n", "line 2: seed 'zero' is no whole number"),
        (read_splits, SPLITS_HEAD + "0,a\n", "line 2: expected 3 fields, found 2"),
        (read_splits, SPLITS_HEAD + '0,"a', "unexpected end of data"),
        (read_masks, MASKS_HEAD + "m,0,a,video\n", "line 2: unknown modality 'video': expected visual, audio"),
        (read_masks, MASKS_HEAD + "m,0,a,audio\nm,0,a,audio\n", "line 3: audio of clip 'a' is hidden twice"),
        (read_masks, MASKS_HEAD + "none,0,a,audio\n", "line 2: the setting 'none' is complete data"),
        (read_masks, MASKS_HEAD + "audio:x,0,a,audio\n", "line 2: setting 'audio:x' is neither"),
        (read_masks, MASKS_HEAD + "m,-1,a,audio\n", "line 2: seed '-1'"),
    ],
)
def test_bad_lines(tmp_path, read, text, why):
    (tmp_path / "file.csv").write_text(text)
    with pytest.raises(InputError, match=why):
        read(tmp_path / "file.csv")


def test_files_that_do_not_fit_the_store(store, tmp_path):
    splits, masks = export_masks(store, tmp_path, 2, ["audio:0.5"], "clip")
    table, hidden = rows(splits), rows(masks)
    one_audio = {"missing": ("audio:0.5",)}

    def refused(why, **options):
        with pytest.raises(InputError, match=why):
            train(store, None, **one_audio | options)

    refused("line 4: clip 'who' is not in toy", splits=write(tmp_path / "a.csv", [*table[:3], [0, "who", "test"]]))
    refused("1 of the 72 clips .* absent from seed 1: clip071", splits=write(tmp_path / "b.csv", table[:-1]))
    first = [row for row in table if row[0] != "1"]
    refused(r"no split for seed 1 \(seeds there: 0\)", splits=write(tmp_path / "c.csv", first))
    refused("line 2: clip 'who'", masks=write(tmp_path / "d.csv", [hidden[0], ["audio:0.5", 0, "who", "audio"]]))
    first = [row for row in hidden if row[1] != "1"]
    refused(r"'audio:0.5' has no rows for seed 1 \(seeds there: 0\)", masks=write(tmp_path / "e.csv", first))
    third = write(tmp_path / "third.csv", [hidden[0], ["audio:0.5", 0, "clip000", "text"]])
    with pytest.raises(InputError, match=r"third.csv, line 2: the store .* has no text, only visual, audio\."):
        read_masks(third, ("visual", "audio", "text")).mask(store, "audio:0.5", 0)
    refused("no setting 'audio:0.8'.\nThere are none .*, audio:0.5", masks=masks, missing=("audio:0.8",))
    refused("--split subject and --splits .* exclude", splits=splits, split="subject")
    with pytest.raises(InputError, match="exclude each other: the file's rows say"):
        read_given(None, masks).held_out("audio:0.5")
    no_validation = [[s, c, "test" if part == "validation" else part] for s, c, part in table]
    why = "split by f.csv(?s:.*)leaves no validation clips(?s:.*)Correct"
    refused(why, splits=write(tmp_path / "f.csv", no_validation))
    for path, why in ((tmp_path / "absent.csv", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=why):
            read_given(path, None)


@pytest.mark.slow
def test_from_the_command_line(store, tmp_path, mlemiss):
    written = mlemiss("store", "masks", store.path, "--seeds", 1, "--missing", "audio:0.5,visual:0.5", "--out", "files")
    assert written.returncode == 0 and written.stdout.split() == ["files/splits.csv", "files/masks.csv"]
    given = ["--store", store.path, "--splits", "files/splits.csv", "--masks", "files/masks.csv", "--seeds", 1]
    trained = mlemiss("train", "--missing", "audio:0.50", *given, "--epochs", 1, "--json")
    result, *_ = json.loads(trained.stdout)["results"]
    assert (result["split"], result["missing"]) == ("given:splits.csv", "audio:0.5")
    drawn = ["--method", "mle", "--draws", 2, "--epochs", 1, "--out", "tuned"]
    for first, told in ((1000, "no split for seed 1000 (seeds there: 0)"), (-1, "--first-seed -1 is out of range")):
        refused = mlemiss("tune", "--missing", "audio:0.5", *given, *drawn, "--first-seed", first)
        assert refused.returncode == 2 and told in refused.stderr and not (tmp_path / "tuned").exists()
    tuned = mlemiss("tune", "--missing", "audio:0.5", *given, *drawn, "--first-seed", 0, "--json")
    (row,) = json.loads(tuned.stdout)["rows"]
    assert (row["split"], row["missing"]) == ("given:splits.csv", "audio:0.5"), tuned.stderr
    same = mlemiss("train", "--missing", "audio:0.5", *given, "--method", "mle", "--tuned", "tuned")
    assert same.returncode == 2 and "seeds [0] were tuned on" in same.stderr
    more = mlemiss("store", "masks", store.path, "--seeds", 2, "--missing", "audio:0.5", "--out", "two")
    two = ["--store", store.path, "--splits", "two/splits.csv", "--masks", "two/masks.csv", "--seeds", 1]
    tuned = mlemiss("tune", "--missing", "audio:0.5", *two, *drawn[:-1], "other", "--first-seed", 1)
    used = mlemiss("train", "--missing", "audio:0.5", *two, "--method", "mle", "--tuned", "other")
    assert (more.returncode, tuned.returncode, used.returncode) == (0, 0, 0), used.stderr
    bad = mlemiss("train", "--missing", "audio:0.8", *given)
    assert bad.returncode == 2 and "There are none (complete data), audio:0.5, visual:0.5" in bad.stderr


def test_ids_that_a_spreadsheet_would_compute(tmp_path):
    """They are written as text and read back as they were."""
    store = write_store(tmp_path, clips=12)
    ids = np.array([*["=1+1", "+1", "-x", "@SUM(A1)", "'=x", "'x", "-0.5"], *(f"c{i}" for i in range(5))])
    store.clip_id = ids
    splits, masks = export_masks(store, tmp_path / "files", 1, ["audio:0.5"], "clip")
    written = [row[1] for row in rows(splits)[1:]]
    assert written[:7] == ["'=1+1", "+1", "'-x", "'@SUM(A1)", "''=x", "'x", "-0.5"]
    assert list(read_splits(splits).parts[0]) == list(ids)
    assert {clip for clip, _, _ in read_masks(masks).hidden["audio:0.5"][0]} <= set(ids)
