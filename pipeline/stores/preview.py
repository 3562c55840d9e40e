"""One HTML page of a store: what became of its clips, failures first. It opens offline and prints.

A media store shows each clip's central frames and log-Mel images, a feature store norms and a projection. Everything
that a store says is text somebody else wrote: it is escaped. Clips are read one chunk at a time.
"""

from html import escape
from pathlib import Path

import numpy as np

from .. import page
from . import preview_features, preview_media
from .preview_clips import COLUMNS, TEXT, Shown, choose, describe
from .store import DONE, MEDIA, FeatureStore

CSS = f"""
td.text:last-child {{ white-space: normal; overflow-wrap: anywhere; min-width: 20em; }}
tbody td {{ vertical-align: top; }}
@media print {{ td:not(:first-child):not(:last-child) {{ white-space: nowrap; }} }}
{preview_media.CSS}"""


def write_preview(store: FeatureStore, out: Path, limit: int) -> tuple[Shown, int]:
    """Write the page to the file ``out``: the failed clips and ``limit`` others.

    Returns what is shown and the page's size in bytes. InputError: damaged chunks.
    """
    shown = choose(store, limit)
    return shown, page.write(render(store, shown), out)


def render(store: FeatureStore, shown: Shown) -> str:
    """The whole page."""
    kind = preview_media if store.features == MEDIA else preview_features
    title = f"{store.dataset}: {'frames and log-Mels' if kind is preview_media else f'{store.features} features'}"
    body = [f"<h1>{escape(title)}</h1>", *_warnings(store), page.definitions(_facts(store, shown)), _classes(store)]
    body += [_failures(store, shown), *kind.sections(store, shown)]
    return page.document(f"mlemiss: {title}", body, CSS)


def _warnings(store: FeatureStore) -> list[str]:
    """What nobody may overlook."""
    said = []
    if store.synthetic:
        said.append("SYNTHETIC clips: drawn faces and made voices. They say nothing about recorded ones.")
    if store.weights.get("name") == "random":
        said.append("RANDOM weights: these features come from a network that was never trained.")
    return [f'<p class="loud">{escape(text)}</p>' for text in said]


def _facts(store: FeatureStore, shown: Shown) -> dict[str, str]:
    seconds = store.duration[np.isfinite(store.duration) & (store.status == DONE)]
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


def _classes(store: FeatureStore) -> str:
    """Clips of each class, and how many of them failed or lack a modality."""
    failed = store.status != DONE
    names = ["class", "clips", "failed", *(f"without {modality}" for modality in store.modalities), "subjects"]
    rows = []
    for code, name in enumerate(store.classes):
        of = store.label == code
        lacks = [int((of & ~failed & ~present).sum()) for present in store.present.T]
        rows.append([name, of.sum(), (of & failed).sum(), *lacks, len(set(store.subject[of]) - {""}) or "–"])
    total = [sum(row[i] for row in rows) for i in range(1, len(names) - 1)]
    return page.table(names, [*rows, ["all", *total, len(set(store.subject) - {""}) or "–"]])


def _failures(store: FeatureStore, shown: Shown) -> str:
    if not len(shown.failed):
        return "<h2>Failed clips: 0</h2>"
    rows = [[*describe(store, place), store.error[place] or "no cause recorded"] for place in shown.failed]
    return f"<h2>Failed clips: {len(rows)}</h2>{page.table([*COLUMNS, 'cause'], rows, TEXT)}"
