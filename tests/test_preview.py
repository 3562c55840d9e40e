"""Previews: pages of real stores, read as a browser would, failures first, nothing fetched, nothing trusted."""

import base64
import csv
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from mlemiss.pipeline.encoders import Weights
from mlemiss.pipeline.media import decode as media
from mlemiss.pipeline.media.process import ffmpeg_binary
from mlemiss.pipeline.preprocess import ClipRequest, preprocess
from mlemiss.pipeline.preview.features import measure_features, principal_components
from mlemiss.pipeline.preview.preview import choose_clips, write_preview
from mlemiss.pipeline.run.plan import FeatureRequest
from mlemiss.pipeline.stores import store
from mlemiss.pipeline.stores.store import FeatureStore

from .feature_stores import write_store
from .preprocessing import SMALL

EVIL = "<script>alert('1')</script>\"&</table>$\\frac"


HARMLESS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "b", "dl", "dt", "dd", "div"}
HARMLESS |= {"span", "section", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img"}


class Page(HTMLParser):
    """What stands on a page: its elements with their attributes, its text, and below which heading."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.text, self._parts, self._open = [], "", [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []  # every element is closed
        self.parts: dict[str, str] = dict(self._parts)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("img", "meta"):
            self._open.append(tag)
        if tag == "h2":
            self._parts.append(["", ""])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if self._open[-1:] == ["style"]:
            assert "url(" not in text and "@import" not in text
            return
        self.text += text
        if self._parts:
            self._parts[-1][self._open[-1:] != ["h2"]] += text

    def pictures(self) -> list[tuple[str, bytes, str]]:
        """Kind, bytes and alternative text of each."""
        found = [attributes for tag, attributes in self.elements if tag == "img"]
        pattern = re.compile(r"data:image/(jpeg|svg\+xml);base64,([\w+/=]+)")
        matched = [(pattern.fullmatch(image["src"]), image["alt"]) for image in found]
        return [(match[1], base64.b64decode(match[2]), alternative) for match, alternative in matched]


def check_is_self_contained(page: Page) -> None:
    """No script, style sheet, font, frame or picture from elsewhere, and no handler of events."""
    assert {tag for tag, _ in page.elements} <= HARMLESS
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "background")]
    for kind, data, _ in page.pictures():  # every src is data
        if kind == "svg+xml":
            text = data.decode()
            assert "<script" not in text and not re.search(r'href="(?!#)(?!data:image/png)', text)


@pytest.fixture(scope="module")
def stores(synthetic_ravdess, tmp_path_factory) -> dict[str, FeatureStore]:
    """A media and a feature store of the pipeline: four good clips, a mute, a blind, a cut one; names not to trust."""
    root, folder = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("stores")
    *good, other = sorted(synthetic_ravdess.rglob("*.mp4"))[:5]
    names = [f"good{i}.mp4" for i in range(4)]
    for name, path in zip(names, good, strict=True):
        shutil.copy(path, root / name)
    for name, drop in (("mute.mp4", "-an"), ("blind.mp4", "-vn")):
        subprocess.run([ffmpeg_binary(), "-v", "error", "-i", other, "-c", "copy", drop, root / name], check=True)
    (root / "cut.mp4").write_bytes(other.read_bytes()[:2000])
    with (root / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "path", "label", "subject"])
        for i, name in enumerate([*names, "mute.mp4", "blind.mp4", "cut.mp4"]):
            writer.writerow([f"{Path(name).stem} {EVIL}", name, f"{'sad' if i % 2 else '_glad'}{EVIL}", EVIL])
    preprocess(ClipRequest(str(root / "mine.csv")), FeatureRequest({SMALL: Weights("random")}, media="keep"), folder)
    opened = [FeatureStore.open(path) for path in folder.glob("*.zarr")]
    return {"media" if s.features == "media" else "features": s for s in opened}


def written(opened: FeatureStore, folder: Path, limit: int = 96) -> Page:
    _, size = write_preview(opened, folder / "new" / "page.html", limit)
    assert (folder / "new" / "page.html").stat().st_size == size
    return Page(folder / "new" / "page.html")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["media", "features"])
def test_failures_come_first_and_names_are_text(stores, kind, tmp_path):
    page = written(stores[kind], tmp_path)
    check_is_self_contained(page)
    heads = list(page.parts)
    assert heads[0] == "Failed clips: 1" and heads[1] == "Clips without a modality or with a remark: 2"
    assert heads[-1] == "Complete clips: 4"
    assert f"cut {EVIL}" in page.parts[heads[0]] and "not readable" in page.parts[heads[0]]
    assert "no audio stream" in page.parts[heads[1]] and "no video stream" in page.parts[heads[1]]
    for name in stores[kind].clip_id:
        assert str(name) in page.text
    assert EVIL in stores[kind].classes[0] and EVIL in stores[kind].clip_id[0]
    loud = [attributes for _, attributes in page.elements if attributes.get("class") == "loud"]
    assert len(loud) == (kind == "features") and ("RANDOM" in page.text) == (kind == "features")


@pytest.mark.slow
def test_strips_show_the_clips_own_frames_and_log_mels(stores, tmp_path):
    """Also of clips that lack a modality; the pictures are what is cached, below them stand the segments' centres."""
    opened = stores["media"]
    page = written(opened, tmp_path)
    pictures = page.pictures()
    assert len(pictures) == 2 + 2 * 4 and {kind for kind, _, _ in pictures} == {"jpeg"}
    assert page.text.count("visual missing") == page.text.count("audio missing") == 2  # in words and in the strip
    place = int(np.flatnonzero(opened.present.all(1))[0])
    frames, mels = (
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(float)
        for _, data, alternative in pictures
        if str(opened.clip_id[place]) in alternative
    )
    segments = np.linspace(0, 29, 8).round().astype(int)
    width = (frames.shape[1] + 2) // 8
    for column, segment in enumerate(segments):
        shown = frames[:, column * width : (column + 1) * width - 2]
        cached = cv2.resize(opened.read("frames", (place, segment)), shown.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(shown[..., ::-1] - cached).mean() < 4
        low, high = np.split(mels[:, column * width : (column + 1) * width - 2].mean((1, 2))[::-1], 2)
        decibels = opened.chunks.group["logmel"][place, segment, 0].astype(float).clip(-80, 0)
        loud_low, loud_high = np.split(decibels.mean(1), 2)
        assert low.mean() == pytest.approx(-255 / 80 * loud_low.mean(), abs=3)  # louder is darker
        assert high.mean() == pytest.approx(-255 / 80 * loud_high.mean(), abs=3)
    centres = media.segment_centres(float(opened.duration[place]))[segments]
    assert "".join(f"{time:.2f}" for time in centres) in page.text


def test_a_sample_keeps_all_failures_and_every_class(tmp_path):
    opened = write_store(tmp_path, failed=(5, 6), without_audio=tuple(range(7, 37)))
    shown = choose_clips(opened, 12)
    assert list(shown.failed) == [5, 6] and len(shown.lacking) == len(shown.complete) == 6
    for places in (shown.lacking, shown.complete):
        assert (np.bincount(opened.label[places], minlength=3) == 2).all()
    assert shown.text() == (
        "2 failed, 6 of 30 without a modality or with a remark, 6 of 40 complete; 58 left out, "
        "those shown balanced over classes (--limit shows more)"
    )
    page = written(opened, tmp_path, limit=12)
    assert shown.text() in page.text and "Complete clips: 6 of 40" in page.parts
    everything = choose_clips(opened, 1000)
    assert everything.left_out == 0 and "left out" not in everything.text()
    few = choose_clips(opened, 60)  # there are fewer complete ones than half of it
    assert (len(few.lacking), len(few.complete)) == (30, 30)
    most = choose_clips(write_store(tmp_path / "b", failed=(), without_audio=tuple(range(70))), 60)
    assert (len(most.lacking), len(most.complete)) == (58, 2)


def store_of(folder: Path, **features: np.ndarray) -> FeatureStore:
    """A store of these features, float16 [clip, segment, feature], two classes, everything present."""
    group = store.open_group(folder / "built")
    for modality, values in features.items():
        chunks, dimensions = (16, *values.shape[1:]), ("clip", "segment", "feature")
        store.create_array(group, modality, values.shape, chunks, "float16", dimensions)[:] = values
    clips = len(values)
    words = dict.fromkeys(("subject", "error", "sha256"), [""] * clips) | {"status": ["done"] * clips}
    table = {"clip_id": [f"c{i:02d}" for i in range(clips)], "label": np.arange(clips) % 2, **words}
    store.write_table(group, table | {"duration": np.full(clips, np.nan)}, np.ones((clips, 2), bool))
    group.attrs.put(store.attributes("toy", "own", "abc", ["sad", "glad"], {}, {"name": "imported"}, {}))
    store.publish(folder / "built", folder / "toy.zarr")
    return FeatureStore.open(folder / "toy.zarr")


def test_conspicuous_clips_and_features_are_named(tmp_path):
    values = np.random.default_rng(0).normal(3, 1, (40, 4, 6)).astype(np.float16)
    values[3], values[4], values[:, :, 1] = 0, values[4, :1], 0
    values[5] *= 30
    values[6, 0, 0] = np.inf
    opened = store_of(tmp_path, visual=values, audio=np.repeat(values[:, :1, 2:4], 4, axis=1))
    visual, audio = measure_features(opened, "visual"), measure_features(opened, "audio")
    finite = np.delete(values, 6, 0).astype(float)
    norm = np.linalg.norm(finite, axis=2).mean(1)
    np.testing.assert_allclose(np.delete(visual.norm, 6), norm)
    far = f"norm far from the median {np.median(norm):.4g}"
    assert visual.remarks == {
        3: ["visual: all features are 0"],
        4: ["visual: all 4 segments are the same"],
        5: [f"visual: {far}"],
        6: ["visual: values that are not finite"],
    }
    assert visual.notes == ["visual: features that never vary: 1 of 6, 1 of them always 0 (numbers 1)."]
    assert audio.notes == ["audio: in 39 of 40 clips all 4 segments are the same."]  # the rule: no remark on each
    assert sorted(audio.remarks) == [3, 5]
    assert set(visual.projected) == set(range(40)) - set(visual.remarks)
    page = written(opened, tmp_path)
    listed = page.parts["Conspicuous clips: 4"]
    assert all(name in listed for name in ("c03", "c04", "c05", "c06")) and far in listed
    assert visual.notes[0] in page.text and audio.notes[0] in page.text
    assert [kind for kind, _, _ in page.pictures()] == ["svg+xml", "svg+xml"]


@pytest.mark.parametrize("shape", [(200, 12), (12, 200)])
def test_projection_is_the_principal_components(shape):
    """As numpy's singular values have it, up to the sign: the largest weight is positive."""
    x = np.random.default_rng(0).normal(size=shape) @ np.diag(np.linspace(1, 3, shape[1]))
    x[:, 3] = 7
    scores, share = principal_components(x)
    z = np.delete(x, 3, 1)
    z = (z - z.mean(0)) / z.std(0)
    u, s, vt = np.linalg.svd(z, full_matrices=False)
    signs = np.sign(vt[np.arange(2), np.abs(vt[:2]).argmax(1)])
    np.testing.assert_allclose(scores, u[:, :2] * s[:2] * signs, atol=1e-8)
    np.testing.assert_allclose(share, s[:2] ** 2 / (s**2).sum())


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.ones((2, 3)), np.ones((9, 3))])
def test_nothing_to_project(x):
    assert principal_components(x) == (None, None)


def test_one_feature_projects_onto_a_line():
    scores, share = principal_components(np.array([[1.0], [2.0], [6.0]]))
    assert scores[2, 0] > scores[1, 0] > scores[0, 0] and not scores[:, 1].any() and list(share) == [1, 0]


def test_command_writes_here_says_the_size_and_refuses_damage(stores, tmp_path, mlemiss):
    path = stores["media"].path
    result = mlemiss("store", "preview", path, "--limit", 3)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{path.stem}.html\n"
    assert "1 failed, 1 of 2 without a modality or with a remark, 2 of 4" in result.stderr
    assert f"{(tmp_path / f'{path.stem}.html').stat().st_size / 1e6:.1f} MB" in result.stderr
    shutil.copytree(path, tmp_path / "damaged.zarr")
    for chunk in (tmp_path / "damaged.zarr" / "frames" / "c").rglob("0"):
        if chunk.is_file():
            chunk.write_bytes(b"damage")
    result = mlemiss("store", "preview", "damaged.zarr", "--out", "new.html")
    assert result.returncode == 2 and "its file frames/c/6" in result.stderr
    assert not (tmp_path / "new.html").exists()
    assert mlemiss("store", "preview", path, "--out", ".").returncode == 2
