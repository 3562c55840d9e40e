"""Folders as they are: eNTERFACE'05 and its irregularities, RAVDESS copied twice and misfiled, other classes."""

import csv
import os
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from mlemiss.pipeline.clips import manifest as listing
from mlemiss.pipeline.clips import synth
from mlemiss.pipeline.clips.datasets import collect, load_dataset
from mlemiss.pipeline.errors import InputError

from .preprocessing import SMALL


def link(root: Path, source: Path, *paths: str) -> Path:
    """Hard links to one file at all these paths below the root."""
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    return root


def notes_with(found, text: str) -> str:
    (note,) = [note for note in found.notes if text in note]
    return note


@pytest.fixture(scope="module")
def avi(tmp_path_factory) -> Path:
    """One real clip of the layout enterface05."""
    root = tmp_path_factory.mktemp("avi")
    return synth.synthesize(root, layout="enterface05", subjects=1, clips_per_subject=1, workers=1)[0]


@pytest.fixture(scope="module")
def whole_enterface05(avi, tmp_path_factory) -> Path:
    """The whole of eNTERFACE'05, all of its clips hard links to one. Read only."""
    paths = [clip.path for clip in synth.plan_enterface05(44, 30)]
    return link(tmp_path_factory.mktemp("whole"), avi, *paths)


@pytest.fixture(scope="module")
def mp4(synthetic_ravdess) -> Path:
    return next(synthetic_ravdess.rglob("*.mp4"))


def ravdess_names(classes) -> list[str]:
    return listing.known_clips("ravdess", classes)


def test_the_whole_of_enterface05_is_found(whole_enterface05):
    found = collect("enterface05", whole_enterface05)
    assert len(found.clips) == 1293 and found.absent == found.unexpected == ()
    emotions = Counter(clip.label for clip in found.clips)
    assert emotions == {label: 213 if label == "happiness" else 216 for label in found.classes}
    assert found.classes == ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
    for clip in found.clips:  # the folder decides the subject
        subject, code, sentence = clip.clip_id.split("-")
        assert f"subject {subject}/{clip.label}/" in clip.path and clip.subject == subject
        assert dict(clip.columns) == {"sentence": sentence} and clip.label.startswith(code)
    by_id = {clip.clip_id: clip.path.removeprefix("enterface database/") for clip in found.clips}
    assert by_id["11-an-1"] == "subject 11/anger/sentence 1/s12_an_1.avi"
    assert by_id["12-an-1"] == "subject 12/anger/sentence 1/s12_an_1.avi"
    assert by_id["3-fe-4"] == "subject 3/fear/sentence 4/s3_fe_4.avi"
    assert by_id["3-fe-5"] == "subject 3/fear/sentence 5/s_3_fe_5.avi"
    assert by_id["16-su-3"] == "subject 16/surprise/sentence 3/s16_su_3avi.avi"
    assert by_id["6-sa-0"] == "subject 6/sadness/s6_sa.avi" and "6-sa-1" not in by_id
    assert by_id["2-sa-5"] == "subject 2/sadness/s2_sa_5.avi"
    assert "6 files are unsegmented (sentence 0)" in notes_with(found, "unsegmented")
    assert "30 names tell another subject than their folder" in notes_with(found, "another subject")


def test_enterface05_counts_tell_what_lacks_and_what_is_too_much(whole_enterface05, avi, tmp_path):
    base = "enterface database"
    paths = [path.relative_to(whole_enterface05).as_posix() for path in whole_enterface05.rglob("*.avi")]
    gone = ("subject 40/fear/sentence 2", "subject 6/anger/", "subject 9/happiness", "subject 44/happiness/sentence 1")
    root = link(tmp_path / "part", avi, *(path for path in paths if not any(name in path for name in gone)))
    extra = [f"{base}/subject 5/anger/s5_an_6.avi", f"{base}/subject 45/anger/sentence 1/s45_an_1.avi"]
    found = collect("enterface05", link(root, avi, *extra))
    # which subject lacks its happiness is not known where three lack theirs in the dataset itself
    assert Counter(found.absent) == {"40-fear-?": 1, "6-anger-?": 1, "?-happiness-?": 5, "44-happiness-?": 1}
    assert set(found.unexpected) == {"5-an-6", "45-an-1"} and len(found.clips) == 1293 - 8 + 2
    known = [f"{base}/subject 23/happiness/sentence {sentence}/s23_ha_{sentence}.avi" for sentence in (3, 4)]
    more = collect("enterface05", link(tmp_path / "more", avi, *paths, *known))
    assert (more.absent, more.unexpected) == ((), ("?-happiness-?",) * 2)


def test_what_of_enterface05_is_odd_is_reported_not_dropped(avi, tmp_path):
    s = "subject 1/anger"
    regular = [f"{s}/sentence 1/s1_an_1.avi", "Subject 02/FEAR/Sentence 3/S2_FE_3.AVI", f"{s}/s1_an_4.avi"]
    told = [f"{s}/sentence 2/typing error.avi", f"{s}/sentence 3/s1_di_5.avi"]
    second = [f"{s}/s1_an_1.avi", f"{s}/sentence 1/again.avi"]
    lost = ["s9_an_1.avi", "subject 3/s3_xx_1.avi", f"{s}/holiday.avi"]
    root = link(tmp_path / "odd", avi, *regular, *told, *second, *lost, "subject 1/anger/._s1_an_5.avi")
    (root / second[1]).unlink()
    (root / second[1]).write_bytes(b"of another size")
    found = collect("enterface05", root)
    ids = {clip.clip_id: clip.path for clip in found.clips}
    assert ids == {
        "1-an-1": second[0],  # lies less deep
        "1-an-2": told[0],
        "1-an-3": told[1],
        "1-an-4": regular[2],
        "2-fe-3": regular[1],
    }
    assert notes_with(found, f"{regular[0]} is a second copy of {second[0]}")
    assert "not of the kept file's size" in notes_with(found, f"{second[1]} is a second copy of {second[0]}")
    assert notes_with(found, "do not tell which clip").startswith("3 avi files")
    assert all(path in notes_with(found, "do not tell which clip") for path in lost)
    assert told[0] in notes_with(found, "not named as clips")
    assert told[1] in notes_with(found, "another emotion") and told[1] in notes_with(found, "another sentence")


def test_a_second_copy_of_everything_is_one_note(whole_enterface05, avi, tmp_path):
    paths = [path.relative_to(whole_enterface05).as_posix() for path in whole_enterface05.rglob("*.avi")]
    root = link(tmp_path / "both", avi, *paths, *(f"backup/{path}" for path in paths))
    found = collect("enterface05", root)
    assert len(found.clips) == 1293 and not any(clip.path.startswith("backup") for clip in found.clips)
    assert "1293 files in backup are second copies of clips in the root" in notes_with(found, "second cop")


@pytest.mark.slow
def test_nested_and_misfiled_ravdess_is_1152_clips(mp4, tmp_path):
    names = ravdess_names(load_dataset("ravdess").CLASSES)
    assert len(names) == 1152
    # one of them only under another actor, two there as well; a whole second copy below a folder of its own
    first, second, third = [name for name in names if name.endswith("-07")][:3]
    places = [f"Actor_{name[-2:]}/{name}.mp4" for name in names if name != first]
    misfiled = [f"Actor_08/{name}.mp4" for name in (first, second, third)]
    nested = [f"audio_speech_actors_01-24/Actor_{name[-2:]}/{name}.mp4" for name in names if name != first]
    unwanted = ["Actor_01/02-01-03-01-01-01-01.mp4", "Actor_01/03-01-03-01-01-01-01.wav"]
    unwanted += ["Actor_01/01-02-03-01-01-01-01.mp4", "Actor_01/01-01-01-01-01-01-01.mp4", "Actor_01/take one.mp4"]
    found = collect("ravdess", link(tmp_path / "ravdess", mp4, *places, *misfiled, *nested, *unwanted))
    assert sorted(clip.clip_id for clip in found.clips) == sorted(names)
    assert found.absent == found.unexpected == ()
    assert all(clip.subject == clip.clip_id[-2:] for clip in found.clips)
    paths = {clip.clip_id: clip.path for clip in found.clips}
    assert paths[first] == misfiled[0] and paths[second] == f"Actor_07/{second}.mp4"
    note = notes_with(found, "in Actor_08 are second copies of clips in Actor_07")
    assert note.startswith("2 files") and misfiled[1] in note
    assert notes_with(found, "in audio_speech_actors_01-24 are second copies").startswith("1151 files")
    assert misfiled[0] in notes_with(found, "lie with another actor")
    counted = (
        "3 files of RAVDESS that are not audio-visual speech are left out (audio-only speech 1, audio-visual song 1"
    )
    assert counted in notes_with(found, "not audio-visual speech")
    assert "take one.mp4" in notes_with(found, "not named as RAVDESS's")
    assert "(neutral 1)" in notes_with(found, "other classes")


@pytest.mark.slow
def test_eight_classes_of_ravdess(mp4, tmp_path):
    eight = load_dataset("ravdess").ALL_CLASSES
    names = ravdess_names(eight)
    assert len(names) == 1440
    strange = "01-01-01-02-01-01-01"  # neutral has no strong intensity
    root = link(tmp_path / "eight", mp4, *(f"{name}.mp4" for name in [*names[1:], strange]))
    found = collect("ravdess", root, eight)
    assert found.classes == eight and len(found.clips) == 1440
    assert (found.absent, found.unexpected) == ((names[0],), (strange,))
    assert {clip.label for clip in found.clips if clip.clip_id[6:8] == "02"} == {"calm"}
    two = collect("ravdess", root, ["calm", "neutral"])
    assert two.classes == ("calm", "neutral") and len(two.clips) == 192 + 96
    six = collect("ravdess", root)
    assert len(six.clips) == 1152 and six.absent == six.unexpected == ()


def test_official_names_of_eight_classes(shared_data):
    lines = (shared_data / "ravdess_expected_7356.csv").read_text().splitlines()
    official = {line.split(".")[0] for line in lines if line.startswith("01-01-")}
    assert set(ravdess_names(load_dataset("ravdess").ALL_CLASSES)) == official


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["happy", "furious"], r"unknown class furious\.\nExpected two or more of neutral, calm, happy, sad"),
        (["happy"], r"only one class, happy\.\nExpected two or more of neutral"),
    ],
)
def test_wrong_classes(mp4, tmp_path, asked, said):
    root = link(tmp_path / "r", mp4, "01-01-03-01-01-01-01.mp4")
    with pytest.raises(InputError, match=said):
        collect("ravdess", root, asked)


def test_only_clips_of_other_classes(mp4, tmp_path):
    root = link(tmp_path / "r", mp4, "01-01-01-01-01-01-01.mp4")
    with pytest.raises(InputError, match=r"no clip of ravdess.*\n1 clips of other classes.*neutral 1.*--classes"):
        collect("ravdess", root)


def test_classes_of_a_manifest(mp4, tmp_path):
    link(tmp_path, mp4, "a.mp4", "b.mp4", "c.mp4")
    rows = ["clip_id,path,label,subject", "a,a.mp4,x,1", "b,b.mp4,y,1", "c,c.mp4,z,1", "d,d.mp4,z,1", "e,e.mp4,y,1"]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(rows))
    found = collect(str(path), None, ["z", "x"])
    assert found.classes == ("z", "x") and [clip.clip_id for clip in found.clips] == ["a", "c"]
    assert found.absent == ("d",) and "(y 2)" in notes_with(found, "other classes")
    with pytest.raises(InputError, match=r"unknown class w\.\nExpected two or more of x, y, z"):
        collect(str(path), None, ["x", "w"])


@pytest.mark.slow
def test_preprocess_takes_classes_and_avi(avi, mp4, tmp_path, mlemiss):
    """Through the command: an avi of every irregular kind is decoded; label codes follow --classes."""
    from mlemiss.pipeline.stores.store import FeatureStore

    irregular = ("subject 3/happiness/sentence 1/s_3_ha_1", "subject 6/anger/s6_an", "subject 16/surprise/s16_su_3avi")
    root = link(tmp_path / "avi", avi, *(f"{path}.avi" for path in irregular))
    common = ["--features", SMALL, "--weights", "random", "--workers", 0, "--stores", tmp_path / "stores", "--json"]
    result = mlemiss("preprocess", "--dataset", "enterface05", "--root", root, *common)
    assert result.returncode == 0, result.stderr
    assert "3 done, 0 failed, 1290 absent, 0 unexpected" in result.stderr and '"unexpected": 0' in result.stdout
    root = link(
        tmp_path / "mp4", mp4, "01-01-02-01-01-01-09.mp4", "01-01-03-01-01-01-09.mp4", "01-01-04-01-01-01-99.mp4"
    )
    result = mlemiss("preprocess", "--dataset", "ravdess", "--root", root, "--classes", "sad,calm", *common)
    assert result.returncode == 0, result.stderr
    assert "classes: sad, calm" in result.stderr and '"unexpected": 1' in result.stdout
    assert "unexpected: 01-01-04-01-01-01-99" in result.stderr
    (path,) = (tmp_path / "stores").glob("ravdess-*.zarr")
    store = FeatureStore.open(path)
    assert store.classes == ("sad", "calm")
    assert store.label.tolist() == [1, 0] and list(store.clip_id) == ["01-01-02-01-01-01-09", "01-01-04-01-01-01-99"]


@pytest.mark.slow
def test_the_page_on_own_videos_runs(synthetic_ravdess, tmp_path, monkeypatch, mlemiss, capsys):
    """Its commands and code in their order, with a small network of random weights and a clip that is broken."""
    text = (Path(__file__).parent.parent / "docs" / "your-own-videos.md").read_text(encoding="utf-8")
    speakers = {"01": "anna", "02": "ben", "03": "carl"}
    one_each = {(clip.subject, clip.label): clip for clip in collect("ravdess", synthetic_ravdess).clips}
    for clip in one_each.values():
        name = f"{speakers[clip.subject]}_{clip.label}_{clip.clip_id.replace('-', '')}.mp4"
        link(tmp_path, synthetic_ravdess / clip.path, f"videos/{name}")
    (tmp_path / "videos" / "anna_sad_broken.mp4").write_bytes(b"no video")
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, flags=re.S):
        if language == "python":
            (store,) = tmp_path.glob("stores/mine-timm*.zarr") if "STORE" in block else [None]
            exec(block.replace("STORE", repr(str(store))), {})
            continue
        for command in block.splitlines():
            words = [
                found
                for word in shlex.split(command.replace("resnet50", SMALL))[1:]
                for found in sorted(map(str, tmp_path.glob(word.replace("timm:", "timm.")))) or [word]
            ]
            if "new.csv" in words:
                header, *rows = (tmp_path / "mine.csv").read_text().splitlines()
                rows = [row.replace(",happy,", ",unknown,") for row in rows if "happy" in row or "broken" in row]
                (tmp_path / "new.csv").write_text("\n".join([header, *rows]))
            small = {"preprocess": ["--weights", "random", "--workers", 0], "train": ["--seeds", 1, "--epochs", 1]}
            result = mlemiss(*words, *small.get(words[0], []))
            fails = words[0] == "preprocess" and "--dry-run" not in words  # by the one broken clip
            assert result.returncode == fails, f"{command}\n{result.stderr}"
            assert ("failed: videos/anna_sad_broken.mp4" in result.stderr) == fails
    assert capsys.readouterr().out.startswith("anna_sad_broken failed visual: not readable")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        predicted = list(csv.DictReader(file))
    assert len(predicted) == 3 and all("happy" in row["clip_id"] and row["label"] == "" for row in predicted)
    assert Path("runs/mine/report.html").is_file() and Path("runs/mine/results.csv").is_file()
    assert len(list(Path("three-emotions").glob("mine-*.zarr"))) == 1
