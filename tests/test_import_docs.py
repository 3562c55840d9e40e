"""The pages about features of other programs: their commands run, in order, on small files of those programs' forms."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from mlemiss.pipeline.stores.store import FeatureStore

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page, language, section=""):
    """Return the code blocks of a page in one language, from a heading on."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text[text.index(section) :], re.S)


def run(mlemiss, folder, page):
    """Run a page's commands with few epochs; returns what they printed."""
    told = ""
    for line in "".join(blocks(page, "bash")).splitlines():
        words = [found for word in shlex.split(line) for found in matching(folder, word)]
        done = mlemiss(*words[1:], *(["--seeds", 2, "--epochs", 1] if words[1] == "train" else []))
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        told += done.stdout + done.stderr
    return told


def matching(folder, word):
    """Return what a shell makes of a word."""
    return (sorted(str(path) for path in folder.glob(word)) if "*" in word and "=" not in word else []) or [word]


def store_of(folder):
    (made,) = (folder / "stores").glob("*.zarr")
    return FeatureStore.open(made)


@pytest.mark.slow
def test_from_mertools(tmp_path, mlemiss, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, corpus = np.random.default_rng(0), {}
    for i in range(48):
        corpus[f"sample_{i:08d}"] = {"emo": ("happy", "sad", "worried")[i % 3], "val": 0.5}
        for name, width in (("clip-vit-large-patch14-FRA", 8), ("chinese-hubert-large-FRA", 12)):
            steps = rng.normal(np.eye(width)[i % 3], 1, (rng.integers(3, 200), width)).astype(np.float32)
            (tmp_path / "features" / name).mkdir(parents=True, exist_ok=True)
            faceless = i == 5 and width == 8
            np.save(tmp_path / "features" / name / f"sample_{i:08d}.npy", np.zeros((1, 8)) if faceless else steps)
        text = tmp_path / "features" / "chinese-roberta-wwm-ext-large-UTT"
        text.mkdir(exist_ok=True)
        np.save(text / f"sample_{i:08d}.npy", rng.normal(size=6).astype(np.float32))
    np.savez("label-6way.npz", train_corpus=np.array(corpus, dtype=object))
    (script,) = blocks("from-mertools.md", "python")
    exec(script, {})
    assert "┃ method " in run(mlemiss, tmp_path, "from-mertools.md")
    opened = store_of(tmp_path)
    assert opened.modalities == ("visual", "audio", "text") and opened.shape("audio") == (48, 30, 12)
    assert list(np.flatnonzero(~opened.present[:, 0])) == [5] and opened.present[:, 1:].all()
    assert (tmp_path / "table.html").is_file() and (tmp_path / "preview.html").is_file()


@pytest.mark.slow
def test_from_openface_and_opensmile(tmp_path, mlemiss):
    rng = np.random.default_rng(0)
    (tmp_path / "openface").mkdir()
    listed, voices = ["clip_id,path,label,subject"], ["file,start,end,F0_amean,loudness_amean"]
    for actor in range(12):
        for c, emotion in enumerate(("happy", "sad")):
            clip = f"{actor}_{emotion}_1"
            listed.append(f"{clip},videos/{clip}.mp4,{emotion},{actor}")
            units = rng.normal(c, 0.3, (int(rng.integers(20, 90)), 2))
            rows = [
                f"{i}, 0, {i / 30:.3f}, 0.98, {int(actor != 3)}, {a:.2f}, {b:.2f}, 1" for i, (a, b) in enumerate(units)
            ]
            head = "frame, face_id, timestamp, confidence, success, AU01_r, AU02_r, AU01_c"
            (tmp_path / "openface" / f"{clip}.csv").write_text("\n".join([head, *rows]))
            voices.append(f"wavs/{clip}.wav,0 days,0 days 00:00:03,{rng.normal(c)},{rng.random()}")
    (tmp_path / "mine.csv").write_text("\n".join(listed))
    (tmp_path / "egemaps.csv").write_text("\n".join(voices))
    run(mlemiss, tmp_path, "from-openface-opensmile.md")
    opened = store_of(tmp_path)
    assert opened.shape("visual") == (24, 30, 2) and opened.attrs["spec"]["audio"] == ["F0_amean", "loudness_amean"]
    assert list(opened.present[:, 0]) == [
        subject != "3" for subject in opened.subject
    ]  # no frame of actor 3 had a face


@pytest.mark.slow
def test_from_arrays_in_python(tmp_path, mlemiss, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(blocks("own-features.md", "python", "## From arrays")[0], {})
    done = mlemiss(*shlex.split(blocks("own-features.md", "bash", "## From arrays")[0])[1:])
    assert done.returncode == 0, done.stderr
    speech = store_of(tmp_path)
    assert speech.read("audio").shape == (20, 1, 768) and list(np.flatnonzero(~speech.present[:, 1])) == [1]
