"""A preview's strips of a media store: of every few segments the central frame and the log-Mel, with their time."""

from html import escape

import cv2
import numpy as np

from .. import page
from ..media.decode import segment_centres
from .preview_clips import Shown, count_text, describe
from .store import FeatureStore

COLUMNS = 8  # segments of a strip, evenly spaced from the first to the last
SIDE, MEL_HEIGHT, GAP = 96, 64, 2  # pixels of one segment's pictures, and between them
LOWEST_DB = -80.0  # white; 0 dB is black, as the networks see it
EDGE = 200  # light grey, between pictures that may be white themselves
QUALITY = 80  # of JPEG
CSS = f"""
.clip {{ break-inside: avoid; border-top: 1px solid #ddd; padding: .6em 0; display: grid;
        grid-template-columns: 13em minmax(0, {COLUMNS * (SIDE + GAP)}px); gap: 0 1.2em; overflow-wrap: anywhere; }}
.clip h3 {{ margin: 0; font-size: 1em; }} .clip p {{ margin: .15em 0; }}
.strip img {{ display: block; box-sizing: border-box; width: 100%; margin-bottom: 2px; border: 1px solid #c8c8c8; }}
.times {{ display: grid; grid-template-columns: repeat({COLUMNS}, 1fr); font-size: .8em; text-align: center;
        color: #333; font-variant-numeric: tabular-nums; }}
.strip .absent {{ border: 1px dashed #777; padding: .5em; margin: 0 0 2px; color: #333; text-align: center; }}
@media (max-width: 700px) {{ .clip {{ grid-template-columns: minmax(0, 1fr); }} }}
"""


def sections(store: FeatureStore, shown: Shown) -> list[str]:
    """The clips that did not fail: those that lack a modality, then the others."""
    legend = (
        f"Of {COLUMNS} segments, evenly spaced over the clip: the central frame, below it the log-Mel spectrogram of "
        f"the half second around it (mel bands upward, {LOWEST_DB:g} dB white to 0 dB black, the same for all clips), "
        f"below that its centre in seconds."
    )
    parts = [("Clips without a modality", shown.lacking, shown.all_lacking)]
    parts += [("Complete clips", shown.complete, shown.all_complete)]
    body = [f'<p class="notes">{escape(legend)}</p>']
    for name, places, there in parts:
        if there:
            body.append(f"<h2>{name}: {count_text(len(places), there)}</h2>")
            body += [_clip(store, place) for place in places]
    return body


def _clip(store: FeatureStore, place: int) -> str:
    name, label, subject, duration = map(escape, describe(store, place))
    states = zip(store.modalities, store.present[place], strict=True)
    presence = ", ".join(f"{modality} {'present' if there else 'missing'}" for modality, there in states)
    cause = f"<p><b>{escape(str(store.error[place]))}</b></p>" if store.error[place] else ""
    centres = segment_centres(float(store.duration[place]))
    times = "".join(f"<span>{time:.2f}</span>" for time in centres[_segments(len(centres))])
    strips = "".join(_strip(store, place, modality) for modality in store.modalities)
    return (
        f'<section class="clip"><div><h3>{name}</h3><p>{label}, subject {subject}</p><p>{duration}, {presence}</p>'
        f'{cause}</div>\n<div class="strip">{strips}<div class="times">{times}</div></div></section>'
    )


def _strip(store: FeatureStore, place: int, modality: str) -> str:
    """One modality's pictures side by side, or that there are none."""
    array, what, draw = ARRAYS[modality]
    if not store.present[place, store.modalities.index(modality)]:
        return f'<p class="absent">{escape(modality)} missing</p>'
    (segments,) = store.read(array, slice(place, place + 1))  # the clip's own chunk
    strip = np.concatenate([draw(segments[s]) for s in _segments(len(segments))], axis=1)[:, :-GAP]
    _, encoded = cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return page.picture(encoded.tobytes(), "image/jpeg", f"{what} of {store.clip_id[place]}")


def _segments(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, COLUMNS).round().astype(int)


def _frame(frame: np.ndarray) -> np.ndarray:
    """uint8 [256, 256, 3] RGB -> BGR, small, with a gap to its right."""
    small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., ::-1]
    return np.pad(small, ((0, 0), (0, GAP), (0, 0)), constant_values=EDGE)


def _log_mel(image: np.ndarray) -> np.ndarray:
    """float16 [channel, mel, time], the first channel in dB -> grey, low bands at the bottom, a gap to its right."""
    loudness = 1 - np.nan_to_num(image[0].astype(np.float32), nan=LOWEST_DB) / LOWEST_DB
    grey = (255 * (1 - np.clip(loudness, 0, 1))).round().astype(np.uint8)[::-1]
    grey = cv2.resize(grey, (SIDE, MEL_HEIGHT), interpolation=cv2.INTER_LINEAR)
    return np.pad(grey, ((0, 0), (0, GAP)), constant_values=EDGE)


# of each modality the array, what it shows, and how one segment is drawn
ARRAYS = {"visual": ("frames", "central frames", _frame), "audio": ("logmel", "log-Mel spectrograms", _log_mel)}
