"""One self-contained HTML file of one or more finished runs: it opens offline and prints."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..pipeline.errors import InputError
from .figures import accuracy_by_epoch, accuracy_by_rate, confusion_matrices
from .tables import Section, score_text, sections, weights_text

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1080px; margin: 2em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.6em; line-height: 1.25; margin-bottom: .3em; } h2 { margin-top: 2em; border-top: 1px solid #ccc;
       padding-top: .8em; } h3 { margin-top: 1.6em; }
table { border-collapse: collapse; margin: .8em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
td { white-space: nowrap; } th { background: #f3f3f3; } th:first-child, td:first-child, .text { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1.2em; } dt { font-weight: 600; } dd { margin: 0;
       overflow-wrap: anywhere; }
code { background: #f3f3f3; padding: .1em .3em; }
.loud { border: 3px solid #D55E00; background: #fdf0e8; padding: .6em 1em; font-weight: 600; }
.notes { color: #333; } .wide { overflow-x: auto; } img { max-width: 100%; height: auto; } figure { margin: 1em 0; }
figcaption { color: #333; font-size: .93em; } details { margin: .8em 0; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } figure, tr { break-inside: avoid; }
       .wide { overflow: visible; } }
"""


def load_results(run: Path) -> dict:
    """The results document of a run's folder, or of a results.json. InputError: there is none, or another file."""
    path = run / "results.json" if run.is_dir() else run
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        results = document["results"]
    except OSError:
        raise InputError(f"no results at {path}.\nName the folder a `mlemiss train` wrote.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no results file of mlemiss train.\nName the folder it wrote.") from None
    if document.get("schema") != 1:
        raise InputError(f"{path}: expected results of schema 1, found {document.get('schema')!r}.")
    if not results:
        raise InputError(f"{path} holds no finished result yet.\nWait for the training, or run it again.")
    return document


def write_report(documents: Sequence[dict], out: Path) -> None:
    """Write the report of one or more results documents to the file ``out``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".partial")
    temporary.write_text(render(documents), encoding="utf-8")
    temporary.replace(out)


def render(documents: Sequence[dict]) -> str:
    """The whole page."""
    parts = sections(documents)
    headline = "; ".join(dict.fromkeys(f"{p.data}, {p.features}" for p in parts))
    body = [f"<h1>Learning with missing modalities: {escape(headline)}</h1>"]
    if any(part.weights == "random" for part in parts):
        body.append(
            '<p class="loud">Random weights: features marked RANDOM come from networks that were never trained. '
            "Their accuracies say nothing about pretrained features.</p>"
        )
    body.append(_facts(documents, parts))
    body += [_section(part) for part in parts]
    skipped = [entry for document in documents for entry in document.get("skipped", [])]
    if skipped:
        items = "".join(f"<li><b>{escape(s['cell'])}</b>: {escape(s['reason'])}</li>" for s in skipped)
        body.append(f"<h2>Skipped combinations</h2><ul>{items}</ul>")
    title = escape(f"mlemiss: {headline}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n'
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _facts(documents: Sequence[dict], parts: Sequence[Section]) -> str:
    """What was run: everything a reader needs to judge or repeat the numbers."""
    results = [r for part in parts for r in part.results]
    splits = dict.fromkeys(part.split for part in parts)
    caveat = " (training and test clips share speakers: this says nothing of new speakers)"
    versions = dict.fromkeys(", ".join(f"{n} {v}" for n, v in r["versions"].items()) for r in results)
    settings = dict.fromkeys(", ".join(f"{n.replace('_', ' ')} {v}" for n, v in r["settings"].items()) for r in results)
    facts = {
        "Data": dict.fromkeys(part.data for part in parts),
        "Features": dict.fromkeys(
            f"{part.features}, {weights_text(part.weights)}, hash {part.results[0].get('weights_hash')}, "
            f"store {part.store}"
            for part in parts
        ),
        "Split": [f"by {split}" + (caveat if split == "clip" else "") for split in splits],
        "Missing in training": dict.fromkeys(r["missing"] for r in results),
        "Missing in test": dict.fromkeys(part.missing_test for part in parts),
        "Seeds": dict.fromkeys(", ".join(map(str, r["seeds"])) for r in results),
        "Clips": dict.fromkeys(f"{_span(r['n_train'])} training, {_span(r['n_test'])} test" for r in results),
        "Settings": settings,
        "Selection": ["weights of the best validation epoch of each run; the test clips choose nothing"],
        "Command": [f"<code>{escape(d['command'])}</code>" for d in documents if d.get("command")],
        "Date": dict.fromkeys(d["created"] for d in documents if d.get("created")),
        "Device": dict.fromkeys(r["device"] for r in results),
        "Versions": versions,
    }
    rows = [
        f"<dt>{name}</dt><dd>{'<br>'.join(v if name == 'Command' else escape(v) for v in values)}</dd>"
        for name, values in facts.items()
        if values
    ]
    return f"<dl>{''.join(rows)}</dl>"


def _section(part: Section) -> str:
    loud = ' class="loud"' if part.weights == "random" else ""
    out = [f"<h2>{escape(part.title)}</h2>", _table(part)]
    out += [f"<p{loud if note.startswith('RANDOM') else ' class=notes'}>{escape(note)}</p>" for note in part.notes()]
    out.append(_details(part))
    by_rate = accuracy_by_rate(part)
    if by_rate:
        caption = "Test accuracy against the missing rate; bars are one standard deviation over seeds."
        out.append(_figure(by_rate, caption))
    caption = (
        "Test accuracy after each epoch, mean over seeds. It is shown, not used: validation clips choose the epoch."
    )
    out.append(_figure(accuracy_by_epoch(part), caption))
    for missing in part.columns:
        caption = (
            f"Confusion of test clips, missing in training: {missing}. Percent of each true class, over all seeds."
        )
        out.append(_figure(confusion_matrices(part, missing), caption))
    return "\n".join(out)


def _table(part: Section) -> str:
    head = "".join(f"<th>{'complete' if m == 'none' else 'missing ' + escape(m)}</th>" for m in part.columns)
    rows = ""
    for method, fusion in part.rows:
        scores = "".join(f"<td>{score_text(part.cell(method, fusion, m))}</td>" for m in part.columns)
        rows += f'<tr><td>{escape(method)}</td><td class="text">{escape(fusion)}</td>{scores}</tr>'
    return f'<div class="wide"><table><tr><th>method</th><th class="text">fusion</th>{head}</tr>{rows}</table></div>'


def _details(part: Section) -> str:
    """Every cell with its seeds, for those who want to look closer."""
    names = ("method", "fusion", "missing", "accuracy of each seed", "validation", "macro F1", "UAR")
    names += ("complete clips", "best epoch", "seconds")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = ""
    for r in part.results:
        values = [r["method"], r["fusion"], r["missing"], _list(r["test_accuracy"]), _mean(r["val_accuracy"])]
        values += [_mean(r["macro_f1"]), _mean(r["uar"]), _span(r["n_complete"])]
        values += [", ".join(map(str, r["best_epoch"])), f"{r['seconds']:.1f}"]
        rows += "<tr>" + "".join(f"<td>{escape(v)}</td>" for v in values) + "</tr>"
    table = f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
    return f"<details><summary>Every cell, seed by seed</summary>{table}</details>"


def _figure(svg: str, caption: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{min(numbers)} to {max(numbers)}"


def _list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{n:.1f}" for n in numbers)


def _mean(numbers: Sequence[float]) -> str:
    return f"{sum(numbers) / len(numbers):.1f}"
