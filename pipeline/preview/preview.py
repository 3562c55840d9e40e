"""Write one HTML page of a store: what became of its clips, failures first. The page opens offline and prints.

A media store shows each clip's central frames and log-Mel images, a feature store norms and a projection. Clips are
read one chunk at a time. What a store says is text that somebody else wrote: the template, `preview.html`, escapes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..encoders import are_random
from ..media.decode import segment_centres
from ..page import TEMPLATES, render, write_page
from ..stores.schema import FACE_BOX
from ..stores.store import MEDIA, FeatureStore
from .features import Features, balanced, draw_norms, draw_projections, measure_features

CLIP_COLUMNS = ("clip", "class", "subject", "duration")
STRIP_SEGMENTS = 8  # evenly spaced from a clip's first to its last
SIDE, MEL_HEIGHT, GAP = 96, 64, 2  # pixels of one segment's pictures, and between them
LOWEST_DB = -80.0  # white; 0 dB is black, as the networks see it
SCENE = 2 * SIDE  # pixels of the longer side of the picture in which the face's box is drawn
EDGE = 200  # light grey, between pictures that may be white themselves
LACKING = "Clips without a modality or with a remark"
QUALITY = 80  # of JPEG
BOX_COLOUR = (0, 140, 255)  # orange, as blue, green, red


@dataclass(frozen=True)
class Shown:
    """The clips on a page, as sorted indices: every failed one, and of the others as many as were asked for."""

    failed: np.ndarray
    lacking: np.ndarray  # without one modality, or with a remark on one
    complete: np.ndarray
    all_lacking: int
    all_complete: int

    @property
    def left_out(self) -> int:
        """Return the number of clips that are not on the page."""
        return self.all_lacking + self.all_complete - len(self.lacking) - len(self.complete)

    def text(self) -> str:
        """Say in one line how much is shown."""
        parts = [
            f"{len(self.failed)} failed",
            f"{count_text(len(self.lacking), self.all_lacking)} without a modality or with a remark",
            f"{count_text(len(self.complete), self.all_complete)} complete",
        ]
        sample = f"; {self.left_out} left out, those shown balanced over classes (--limit shows more)"
        return ", ".join(parts) + sample * bool(self.left_out)


def count_text(shown: int, there: int) -> str:
    """Return ``6 of 40``, or ``40`` where all are shown."""
    return f"{shown} of {there}" if shown < there else str(there)


def choose_clips(store: FeatureStore, limit: int) -> Shown:
    """Choose every failed clip and ``limit`` others, balanced over classes.

    Clips that lack a modality or have a remark are at most half of the others, unless there are too few complete ones.
    """
    done, whole = store.done, store.present.all(1) & (store.error == "")
    lacking, complete = np.flatnonzero(done & ~whole), np.flatnonzero(done & whole)
    some = balanced(store, lacking, max(limit // 2, limit - len(complete)))
    others = balanced(store, complete, limit - len(some))
    return Shown(np.flatnonzero(~done), some, others, len(lacking), len(complete))


def write_preview(store: FeatureStore, out: Path, limit: int) -> tuple[Shown, int]:
    """Write the page to the file ``out``: the failed clips and ``limit`` others.

    Returns:
        The clips shown, and the page's size in bytes.

    Raises:
        InputError: chunks of the store are damaged.
    """
    shown = choose_clips(store, limit)
    is_media = store.features == MEDIA
    failures = [[*_describe(store, clip), store.error[clip] or "no cause recorded"] for clip in shown.failed]
    facts = {
        "title": f"{store.dataset}: {'frames and log-Mels' if is_media else f'{store.features} features'}",
        "synthetic": store.synthetic,
        "untrained": are_random(store.weights.get("name")),
        "facts": _facts(store, shown),
        "classes": _classes(store),
        "failures": {"names": [*CLIP_COLUMNS, "cause"], "rows": failures},
        "strips": _strips(store, shown) if is_media else None,
        "features": None if is_media else _features(store, shown),
    }
    return shown, write_page(render(TEMPLATES, "preview.html", **facts), out)


def _facts(store: FeatureStore, shown: Shown) -> dict[str, str]:
    seconds = store.duration[(store.duration > 0) & np.isfinite(store.duration) & store.done]  # a text lasts 0
    subjects = set(store.subject) - {""}
    return {
        "Store": f"fingerprint {store.fingerprint}, revision {store.attrs['revision']}",
        "Weights": ", hash ".join(str(store.weights[name]) for name in ("name", "hash") if store.weights.get(name)),
        "Clips": f"{len(store.status)} of {len(store.classes)} classes",
        "Shown": shown.text(),
        "Duration": f"{seconds.min():.2f} to {seconds.max():.2f} s, median {np.median(seconds):.2f} s"
        if len(seconds)
        else "not known",
        "Subjects": str(len(subjects)) if subjects else "not known",
        "Versions": ", ".join(f"{name} {version}" for name, version in (store.attrs.get("versions") or {}).items()),
    }


def _classes(store: FeatureStore) -> dict:
    """Count the clips of each class, and how many of them failed or lack a modality."""
    failed = ~store.done
    names = ["class", "clips", "failed", *(f"without {modality}" for modality in store.modalities), "subjects"]
    members = [(name, store.label == code) for code, name in enumerate(store.classes)]
    rows = []
    for name, of in [*members, ("all", np.ones(len(failed), bool))]:
        lacks = [int((of & ~failed & ~present).sum()) for present in store.present.T]
        rows.append([name, of.sum(), (of & failed).sum(), *lacks, len(set(store.subject[of]) - {""}) or "–"])
    return {"names": names, "rows": rows}


def _describe(store: FeatureStore, clip: int) -> list[str]:
    """Return one clip's values of CLIP_COLUMNS, as text."""
    seconds = store.duration[clip]
    known = np.isfinite(seconds) and seconds > 0
    return [
        str(store.clip_id[clip]),
        store.classes[store.label[clip]],
        str(store.subject[clip]) or "–",
        f"{seconds:.2f} s" if known else "–",
    ]


# ---- a feature store: norms, conspicuous clips, projection ----


def _features(store: FeatureStore, shown: Shown) -> dict:
    """Measure every modality's features: the tables of clips, the figures and what must be said beside them."""
    found = [measure_features(store, modality) for modality in store.modalities]
    conspicuous = np.array(sorted({clip for features in found for clip in features.remarks}), int)
    most = max(len(shown.lacking) + len(shown.complete), 1)
    groups = [("Conspicuous clips", conspicuous[:most], len(conspicuous))]
    if shown.all_lacking:
        groups.insert(0, (LACKING, shown.lacking, shown.all_lacking))
    counts = [f"{f.modality} {count_text(len(f.projected), np.isfinite(f.norm).sum())}" for f in found]
    return {
        "names": [*CLIP_COLUMNS, *(f"{features.modality} norm" for features in found), "remarks"],
        "groups": [
            (title, count_text(len(clips), there), _rows(store, found, clips)) for title, clips, there in groups
        ],
        "notes": [note for features in found for note in features.notes],
        "norms": draw_norms(store, found),
        "projection": draw_projections(store, found),
        "projected": ", ".join(counts),
        "complete": (count_text(len(shown.complete), shown.all_complete), _rows(store, found, shown.complete)),
    }


def _rows(store: FeatureStore, found: Sequence[Features], clips: np.ndarray) -> list[list[str]]:
    """Return clips with their norms, causes and remarks."""
    rows = []
    for clip in clips.tolist():
        norms = ["–" if np.isnan(features.norm[clip]) else f"{features.norm[clip]:.4g}" for features in found]
        causes = [str(store.error[clip])] * bool(store.error[clip])
        remarks = [text for features in found for text in features.remarks.get(clip, [])]
        rows.append([*_describe(store, clip), *norms, "; ".join(causes + remarks)])
    return rows


# ---- a media store: of every few segments the central frame and the log-Mel ----


def _strips(store: FeatureStore, shown: Shown) -> dict:
    """Draw the clips that did not fail: those that lack a modality, then the others."""
    groups = [(LACKING, shown.lacking, shown.all_lacking)]
    groups += [("Complete clips", shown.complete, shown.all_complete)]
    return {
        "segments": STRIP_SEGMENTS,
        "width": STRIP_SEGMENTS * (SIDE + GAP),
        "lowest": f"{LOWEST_DB:g}",
        "faces": FACE_BOX in store.arrays,
        "groups": [
            (title, count_text(len(clips), there), [_clip(store, clip) for clip in clips])
            for title, clips, there in groups
            if there
        ],
    }


def _clip(store: FeatureStore, clip: int) -> dict:
    states = zip(store.modalities, store.present[clip], strict=True)
    centres = segment_centres(float(store.duration[clip]))
    return {
        "described": _describe(store, clip),
        "presence": ", ".join(f"{modality} {'present' if there else 'missing'}" for modality, there in states),
        "cause": str(store.error[clip]),
        "times": [f"{time:.2f}" for time in centres[_shown_segments(len(centres))]],
        "scene": _scene(store, clip),
        "pictures": [(modality, *_strip(store, clip, modality)) for modality in store.modalities],
    }


def _strip(store: FeatureStore, clip: int, modality: str) -> tuple[bytes | None, str]:
    """Draw one modality's pictures side by side: a JPEG (None where missing), and what it shows."""
    array, what, draw = STRIPS[modality]
    if not store.present[clip, store.modalities.index(modality)]:
        return None, what
    (segments,) = store.read(array, slice(clip, clip + 1))  # the clip's own chunk
    strip = np.concatenate([draw(segments[s]) for s in _shown_segments(len(segments))], axis=1)[:, :-GAP]
    _, encoded = cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return encoded.tobytes(), what


def _scene(store: FeatureStore, clip: int) -> bytes | None:
    """Draw where in the picture the face's box is, a JPEG: the middle frame as it is cut, in an outline of the whole.

    None where there is no box. The box is square, so that its shares of width and height tell the picture's shape.
    """
    if FACE_BOX not in store.arrays or store.arrays[FACE_BOX].dimensions == ("clip",):
        return None
    left, top, right, bottom = box = store.read(FACE_BOX)[clip].astype(float)
    if not store.present[clip, 0] or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # or NaN
        return None
    width, height = 1 / (right - left), 1 / (bottom - top)  # in sides of the box
    size = np.array([width, height]) * SCENE / max(width, height)
    columns, rows = np.maximum(size.round().astype(int), 1)
    x0, y0, x1, y1 = (box * [columns, rows, columns, rows]).round().astype(int)
    scene = np.full((rows, columns, 3), EDGE, np.uint8)
    (segments,) = store.read("frames", slice(clip, clip + 1))
    if x1 > x0 and y1 > y0:
        middle = segments[len(segments) // 2]
        scene[y0:y1, x0:x1] = cv2.resize(middle, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_AREA)[..., ::-1]
        cv2.rectangle(scene, (int(x0), int(y0)), (int(x1) - 1, int(y1) - 1), BOX_COLOUR, 2)
    _, encoded = cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return encoded.tobytes()


def _shown_segments(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, STRIP_SEGMENTS).round().astype(int)


def _draw_frame(frame: np.ndarray) -> np.ndarray:
    """Make uint8 [256, 256, 3] RGB small and BGR, with a gap to its right."""
    small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., ::-1]
    return np.pad(small, ((0, 0), (0, GAP), (0, 0)), constant_values=EDGE)


def _draw_log_mel(image: np.ndarray) -> np.ndarray:
    """Make float16 [channel, mel, time], the first channel in dB, grey; low bands at the bottom, a gap to its right."""
    loudness = 1 - np.nan_to_num(image[0].astype(np.float32), nan=LOWEST_DB) / LOWEST_DB
    grey = (255 * (1 - np.clip(loudness, 0, 1))).round().astype(np.uint8)[::-1]
    grey = cv2.resize(grey, (SIDE, MEL_HEIGHT), interpolation=cv2.INTER_LINEAR)
    return np.pad(grey, ((0, 0), (0, GAP)), constant_values=EDGE)


# of each modality the array, what it shows, and how one segment is drawn
STRIPS = {
    "visual": ("frames", "central frames", _draw_frame),
    "audio": ("logmel", "log-Mel spectrograms", _draw_log_mel),
}
