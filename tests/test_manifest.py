"""Manifests and datasets: what is found, what is absent, and a message for whatever is wrong."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from mlemiss.pipeline.clips.datasets import collect, dataset_names, expected_clips, load_dataset
from mlemiss.pipeline.clips.manifest import Clip, Collection, files_below, limit_clips, read_manifest
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.files import write_csv
from mlemiss.pipeline.run.plan import FeatureRequest, make_plan
from mlemiss.pipeline.run.sources import read_sources

HEADER = "clip_id,path,label,subject"


def manifest(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_manifest_is_read_as_it_was_written(tmp_path):
    rows = [("a", "x/ä b.mp4", "glad", "s1", "1, 2"), ("b", "y.mp4", "sad", "", "")]
    write_csv(tmp_path / "m.csv", [*HEADER.split(","), "take"], iter(rows))
    assert read_manifest(tmp_path / "m.csv") == [Clip(*row, (("take", take),)) for *row, take in rows]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "line 1: the file is empty|no clips|column"),
        (["clip_id,path,label"], "line 1: column subject is missing"),
        ([HEADER.replace(",", ";"), "a;a.mp4;glad;s1"], "separated by semicolons, not commas"),
        ([HEADER], "no rows below the header"),
        ([HEADER, "a,a.mp4,glad,s1", "b,b.mp4,sad"], "line 3: expected 4 fields, found 3"),
        ([HEADER, "a,a.mp4,,s1"], "line 2: label is empty"),
        ([HEADER, "a,a.mp4,glad,s1", "a,b.mp4,sad,s1"], "line 3: clip_id 'a' is on line 2 already"),
        ([HEADER, "a,../a.mp4,glad,s1"], "is outside the root"),
        ([HEADER, "a,/etc/passwd,glad,s1"], "is outside the root"),
        ([HEADER + ",split", "a,a.mp4,glad,s1,x"], "a name that the store itself uses"),
        ([HEADER + ",face_box", "a,a.mp4,glad,s1,x"], "a name that the store itself uses"),
        ([HEADER + ",x,x", "a,a.mp4,glad,s1,1,2"], "appears twice"),
        ([HEADER, 'a,"a.mp4,glad,s1'], "line"),
        ([HEADER, "a\0b,a.mp4,glad,s1"], "line 2: a character NUL"),
        ([HEADER, "a,a.mp4,nan,s1", "b,b.mp4,sad,s1"], r"label 'nan' stands for no value \(1 clip\)"),
        ([HEADER, "a,a.mp4,glad,s1", "b,b.mp4,sad,None"], "subject 'None' stands for no value"),
        ([HEADER, "a,a.mp4,glad,s1", "b,b.mp4,Glad,s1"], r"label 'Glad' \(1 clip\), 'glad' .* differ only in how"),
        ([HEADER, "a,a.mp4,1,s1", "b,b.mp4,1.0,s1"], "label '1' .* '1.0' .* differ only"),
        ([HEADER, "a,a.mp4,1,1", "b,b.mp4,2,01"], "subject '01' .* '1' .* differ only"),
    ],
)
def test_malformed_manifests_name_the_line(tmp_path, lines, why):
    with pytest.raises(InputError, match=why):
        read_manifest(manifest(tmp_path, *lines))


def test_long_fields_are_read(tmp_path):
    (clip,) = read_manifest(manifest(tmp_path, HEADER + ",words", f"a,a.mp4,glad,s1,{'x' * 140_000}"))
    assert len(clip.columns[0][1]) == 140_000


def test_manifest_that_is_no_text(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(b"clip_id,path,label,subject\n\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_manifest(path)


def test_own_csv_finds_and_misses(tmp_path):
    (tmp_path / "a.mp4").touch()
    found = collect(str(manifest(tmp_path, HEADER, "b,b.mp4,sad,s1", "a,a.mp4,glad,s1")))
    assert (found.dataset, [c.clip_id for c in found.clips], found.absent) == ("mine", ["a"], ("b",))
    assert found.classes == ("glad", "sad")  # of the whole manifest, so that a late clip changes no label code


def test_absolute_paths_below_the_root_are_taken_as_relative_ones(tmp_path, monkeypatch):
    """Whether the root is named relative, absolute or by a link; the clips, and so the store, are the same."""
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "x", other):
        folder.mkdir(parents=True)
        (folder / "a.mp4").touch()
    (tmp_path / "link").symlink_to(root)
    (root / "out").symlink_to(other)
    monkeypatch.chdir(other)
    expected = collect(str(manifest(tmp_path, HEADER, "a,x/a.mp4,glad,s1", "b,y/b.mp4,sad,s1")), root)
    assert [clip.path for clip in expected.clips] == ["x/a.mp4"] and expected.absent == ("b",)
    for given in (root, Path("../root"), tmp_path / "link", Path("../other/../link")):
        listed = manifest(tmp_path, HEADER, f"a,{root}/x/a.mp4,glad,s1", f"b,{root}//y/b.mp4,sad,s1")
        found = collect(str(listed), given)
        assert (found.clips, found.absent) == (expected.clips, expected.absent)
    listed = manifest(root, HEADER, f"a,{root}/x/a.mp4,glad,s1", "b,y/b.mp4,sad,s1")
    assert collect(str(listed)).clips == expected.clips  # the root is the CSV's folder
    for outside in (other / "a.mp4", f"{root}/../other/a.mp4", f"{root}-2/a.mp4", "/etc/passwd"):
        with pytest.raises(InputError, match=r"line 2: path .* is outside the root"):
            collect(str(manifest(tmp_path, HEADER, f"a,{outside},glad,s1")), root)
    (clip,) = collect(str(manifest(tmp_path, HEADER, f"a,{root}/out/a.mp4,glad,s1")), root).clips
    (source,) = sources_of(root, clip.path)
    assert clip.path == "out/a.mp4" and "leaves the root" in source.fault  # through a link, as with a relative path


def test_own_csv_without_any_clip(tmp_path):
    with pytest.raises(InputError, match=r"none of the 1 clips.*first looked for: a\.mp4"):
        collect(str(manifest(tmp_path, HEADER, "a,a.mp4,glad,s1")))


def test_linked_folders_are_entered_where_allowed(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "Actor_01", elsewhere):
        folder.mkdir(parents=True)
    (root / "Actor_01" / "01-01-03-01-01-01-01.mp4").touch()
    (elsewhere / "01-01-03-01-01-01-02.mp4").touch()
    (root / "Actor_02").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(root)
    (root / "again").symlink_to(elsewhere)
    found = collect("ravdess", root)
    assert len(found.clips) == 1 and "--follow-links allows: Actor_02, again" in found.notes[0]
    followed = collect("ravdess", root, follow_links=True)
    assert len(followed.clips) == 2 and not followed.notes  # each folder once, whatever leads there


@pytest.mark.parametrize("name", dataset_names())
def test_every_dataset_keeps_the_contract(name, tmp_path):
    module = load_dataset(name)
    assert name == module.NAME
    assert len(module.SUMMARY) < 120 and module.EXAMPLE and len(set(module.CLASSES)) == len(module.CLASSES)
    (tmp_path / "unrelated.txt").touch()
    with pytest.raises(InputError, match="no clip of"):
        collect(name, tmp_path)
    with pytest.raises(InputError, match="no folder"):
        collect(name, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        collect(name, tmp_path / "empty")


def test_ravdess_listing_is_the_official_one(shared_data):
    official = {line.split(",")[0] for line in (shared_data / "ravdess_expected_7356.csv").read_text().splitlines()}
    expected = expected_clips("ravdess")
    assert len(set(expected)) == 1152 and all(f"{clip}.mp4" in official for clip in expected)


def test_ravdess_sample(shared_data):
    found = collect("ravdess", shared_data / "ravdess_sample")
    # neutral (01) and video-only (02) are no clips of the six classes
    assert [clip.label for clip in found.clips] == ["happy", "sad", "fearful", "surprised"]
    assert len(found.absent) == 1148
    assert dict(found.clips[0].columns)["take"] == "03-01-01-05"


def test_ravdess_duplicates_are_reported(tmp_path):
    for folder in ("Actor_01", "copy/Actor_01"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "01-01-03-01-01-01-01.mp4").touch()
    found = collect("ravdess", tmp_path)
    assert len(found.clips) == 1 and "second copy" in found.notes[0]


def test_unknown_dataset():
    with pytest.raises(InputError, match=r"unknown dataset 'nope'.*\n.*list datasets"):
        collect("nope")


def test_limit_is_balanced():
    clips = [Clip(f"c{i:02d}", f"{i}", "abc"[i % 3], "") for i in range(30)]
    kept = limit_clips(clips, 6)
    assert sorted(clip.label for clip in kept) == list("aabbcc")
    assert [c.clip_id for c in kept] == sorted(c.clip_id for c in kept)


def sources_of(root: Path, *paths: str, max_bytes: int = 1 << 20, follow_links: bool = False):
    clips = tuple(Clip(path, path, "glad", "s") for path in paths)
    return read_sources(Collection("mine", root, ("glad",), clips), max_bytes, follow_links)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlemiss"


def test_hashes_are_remembered_until_a_file_changes(cache, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(b"one")
    (first,) = sources_of(root, "a")
    assert first.sha256 == hashlib.sha256(b"one").hexdigest() and not first.fault
    (kept,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    kept.write_text(kept.read_text().replace(first.sha256, "0" * 64))  # proof that the file is not read again
    assert sources_of(root, "a")[0].sha256 == "0" * 64
    (root / "a").write_bytes(b"three")
    assert sources_of(root, "a")[0].sha256 not in ("0" * 64, first.sha256)


def open_to_others(cache: Path) -> None:
    cache.chmod(0o775)


def somebody_elses(cache: Path) -> None:
    os.chown(cache, 12345, -1)


def linked(cache: Path) -> None:
    cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to("elsewhere")


@pytest.mark.parametrize("change", [open_to_others, somebody_elses, linked])
def test_hashes_that_others_can_write_are_not_believed(change, cache, tmp_path, capsys):
    if change is somebody_elses and os.geteuid():
        pytest.skip("giving a folder away needs root")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(b"one")
    (first,) = sources_of(root, "a")
    (kept,) = cache.iterdir()
    kept.write_text(kept.read_text().replace(first.sha256, "0" * 64))
    change(cache)
    assert sources_of(root, "a") == [first]
    assert "hashes are not kept, so that the next run reads every clip again" in capsys.readouterr().err


def test_hashes_in_a_shared_folder_are_not_believed(cache, tmp_path):
    """Where earlier versions kept them, beside the stores."""
    root, stores = tmp_path / "root", tmp_path / "stores"
    (stores / ".cache").mkdir(parents=True)
    root.mkdir()
    (root / "a").write_bytes(b"one")
    state = (root / "a").stat()
    entry = {str(root / "a"): [state.st_size, state.st_mtime_ns, "0" * 64]}
    (stores / ".cache" / "sha256.json").write_text(json.dumps(entry))
    collection = Collection("mine", root, ("glad",), (Clip("a", "a", "glad", "s"),))
    plan = make_plan(collection, stores, FeatureRequest(media="only"))
    assert plan.sources[0].sha256 == hashlib.sha256(b"one").hexdigest()


def test_what_may_not_be_read_is_not_opened(tmp_path):
    """Links out of the root, pipes (which would never end), what is too large: each costs its clip, with a cause."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "inside").write_bytes(b"inside")
    (root / "empty").touch()
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "link").symlink_to(root / "inside")
    (root / "loop").symlink_to(root / "loop")
    (root / "large").write_bytes(bytes(200))
    os.mkfifo(root / "pipe")
    names = ("inside", "link", "out", "up/secret", "gone", "loop", "pipe", "large", "empty")
    found = dict(zip(names, sources_of(root, *names, max_bytes=100), strict=True))
    assert found["link"] == found["inside"] and not found["inside"].fault
    assert "leaves the root" in found["out"].fault and "leaves the root" in found["up/secret"].fault
    assert found["gone"].fault == "No such file or directory" and "links" in found["loop"].fault
    assert found["pipe"].fault == "not a regular file" and found["empty"].fault == "the file is empty"
    assert "200 bytes, more than the 100 allowed" in found["large"].fault
    assert {source.sha256 for source in found.values() if source.fault} == {"unread"}
    allowed = sources_of(root, "out", follow_links=True)[0]
    assert allowed.sha256 == hashlib.sha256(b"secret").hexdigest() and not allowed.fault


def test_what_cannot_be_read_is_not_absent(tmp_path, monkeypatch):
    """A folder that may not be entered: its listed clips fail, with their cause; in a listing it is an error."""
    for name in ("a/a.mp4", "b/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    lstat, scandir, locked = os.lstat, os.scandir, tmp_path / "b"

    def refused(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", lambda path: refused(path) if locked in path.parents else lstat(path))
    monkeypatch.setattr(os, "scandir", lambda path: refused(path) if Path(path) == locked else scandir(path))
    found = collect(str(manifest(tmp_path, HEADER, "a,a/a.mp4,x,s", "b,b/b.mp4,y,s", "c,c/c.mp4,y,s")))
    assert [clip.clip_id for clip in found.clips] == ["a", "b"] and found.absent == ("c",)
    with pytest.raises(InputError, match=r"the folder .*/b cannot be read: Permission denied"):
        files_below(tmp_path)
