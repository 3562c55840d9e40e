"""One self-contained HTML file of one or more finished runs: it opens offline and prints."""

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ...pipeline import page
from ...pipeline.errors import InputError
from .comparisons import compare, corrected, family_key, family_of, several_marginals, side, significant
from .figures import accuracy_by_epoch, accuracy_by_rate, confusion_matrices, epochs_before, groups
from .tables import (
    Section,
    by_clip_text,
    comparisons_text,
    grouped_text,
    mean_text,
    missing_text,
    score_text,
    sections,
    side_row,
    signed_text,
    units_text,
)

OPEN_ROWS = 30  # tables longer than this are folded away
OPEN_MATRICES = 4
CSS = """
td.seeds { white-space: normal; }
tbody.of tr:last-child td { border-bottom-color: #888; } .many th, .many td { padding: .25em .5em; font-size: .9em; }
.squares { display: flex; flex-wrap: wrap; gap: 0 1.5em; } .squares figure { margin: .4em 0; max-width: 100%; }
.pairs th, .pairs td { padding: .2em .3em; font-size: .8em; } .pairs td { min-width: 3.2em; }
.pairs th:first-child { white-space: nowrap; font-weight: 400; background: none; }
"""  # beside page.CSS


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


def load_runs(runs: Sequence[Path]) -> tuple[list[dict], list[dict]]:
    """The documents of runs, and the paired comparisons between all of their results.

    Comparisons of results whose predictions are gone are those that the runs themselves recorded, with an entry
    ``recorded`` True; Holm's correction is over all. InputError: as `load_results`, or a damaged predictions file.
    """
    documents = [load_results(run) for run in runs]
    for run, document in zip(runs, documents, strict=True):
        folder = (run if run.is_dir() else run.parent).absolute()
        for result in document["results"]:
            if result.get("predictions"):
                result["predictions"] = str(folder / result["predictions"])
    together = [result for section in sections(documents) for result in section.results]
    entries = {_pair(entry): entry for entry in compare(together, Path())}
    for document in documents:
        for entry in _recorded(document, together):
            entries.setdefault(_pair(entry), entry)
    return documents, corrected(list(entries.values()))


def _pair(entry: dict) -> tuple:
    """What a comparison is between, in either order."""
    return family_key(entry), entry["missing"], frozenset(json.dumps(entry[s], sort_keys=True) for s in ("a", "b"))


def _recorded(document: dict, together: Sequence[dict]) -> list[dict]:
    """A document's own comparisons of results that stand in the report and of which one's predictions are gone."""
    families: dict[str, list[dict]] = {}
    for result in together:
        families.setdefault(family_key(result), []).append(result)
    several = {key: several_marginals(results) for key, results in families.items()}
    standing = {id(result) for result in together}
    own: dict[tuple, list[dict]] = {}
    for result in document["results"]:
        own.setdefault((result["missing"], result["method"], result["fusion"]), []).append(result)
    found = []
    for entry in document.get("comparisons", []):
        # What an entry has of its results' family, and of a marginal, must agree: not every version recorded all.
        pair = [
            next((r for r in own.get((entry["missing"], s["method"], s["fusion"]), []) if _is_of(entry, s, r)), None)
            for s in (entry["a"], entry["b"])
        ]
        if all(id(r) in standing for r in pair) and not all(_has_predictions(r) for r in pair):
            a, b = (side(r, several[family_key(r)]) for r in pair)
            found.append(entry | family_of(pair[0]) | {"a": a, "b": b, "recorded": True})
    return found


def _is_of(entry: dict, named: dict, result: dict) -> bool:
    """Whether a result is the one that a side of a recorded comparison names."""
    family = family_of(result)
    return named.get("marginal", result.get("marginal")) == result.get("marginal") and all(
        entry[name] == value for name, value in family.items() if name in entry
    )


def _has_predictions(result: dict) -> bool:
    return bool(result.get("predictions")) and Path(result["predictions"]).is_file()


def write_report(documents: Sequence[dict], out: Path, comparisons: Sequence[dict] | None = None) -> None:
    """Write the report of one or more results documents to the file ``out``.

    comparisons: between all of their results, as `load_runs` gives them; by default those the documents record.
    """
    page.write_page(render(documents, comparisons), out)


def render(documents: Sequence[dict], comparisons: Sequence[dict] | None = None) -> str:
    """The whole page; arguments as for `write_report`."""
    if comparisons is None:
        comparisons = [entry for document in documents for entry in document.get("comparisons", [])]
    parts = sections(documents)
    headline = "; ".join(dict.fromkeys(f"{p.data}, {p.features}" for p in parts))
    body = [f"<h1>Learning with missing modalities: {escape(headline)}</h1>"]
    if any(part.untrained for part in parts):
        body.append(
            '<p class="loud">Random weights: features marked RANDOM come from networks that were never trained. '
            "Their accuracies say nothing about pretrained features.</p>"
        )
    body += [_beside_the_paper(d["compared"]) for d in documents if d.get("compared")]
    body.append(_facts(documents, parts, comparisons))
    body += [_section(part, part.compared(comparisons)) for part in parts]
    skipped = [entry for document in documents for entry in document.get("skipped", [])]
    if skipped:
        grouped = grouped_text([(s["cell"], s["reason"]) for s in skipped])
        items = "".join(f"<li><b>{escape(cells)}</b>: {escape(reason)}</li>" for cells, reason in grouped)
        body.append(f"<h2>Skipped combinations</h2><ul>{items}</ul>")
    return page.document(f"mlemiss: {headline}", body, CSS)


def _beside_the_paper(compared: dict) -> str:
    """Ours and the paper's numbers, and what ours ran on: loud where that is not what the paper used."""
    ran_on = "".join(
        f"<p{' class=loud' if re.search(r'[A-Z]{5}', line) else ''}>Ran on {escape(line)}.</p>"
        for line in compared["ran_on"]
    )
    columns = list(dict.fromkeys(cell["missing"] for cell in compared["cells"]))
    rows: dict[tuple, dict[str, str]] = {}
    for cell in compared["cells"]:
        text = score_text(cell)
        if cell["paper"] is not None:
            text += f" ({cell['paper']:.2f}, {cell['difference']:+.1f})"
        key = (f"by {cell['split']}", cell["features"], cell["method"], cell["fusion"])
        rows.setdefault(key, {})[cell["missing"]] = text
    table = _plain_table(
        ["split", "features", "method", "fusion", *(f"missing {name}" for name in columns)],
        [[*key, *(values.get(name, "–") for name in columns)] for key, values in rows.items()],
        "wide",
    )
    note = f"Ours, mean ± standard deviation over seeds; in brackets the paper's, and ours less it. {compared['paper']}"
    left_out = "".join(f"<li>{escape(line)}</li>" for line in compared["left_out"])
    return "\n".join(
        [f"<h2>{escape(compared['title'])}</h2>", ran_on, table, f"<p class=notes>{escape(note)}</p>"]
        + [f"<p>Left out:</p><ul>{left_out}</ul>"] * bool(left_out)
    )


def _facts(documents: Sequence[dict], parts: Sequence[Section], comparisons: Sequence[dict]) -> str:
    """What was run: everything a reader needs to judge or repeat the numbers."""
    results = [r for part in parts for r in part.results]
    splits = dict.fromkeys(
        f"by {part.split}"
        + (f" ({by_clip_text(part.compared(comparisons))}: this says nothing of new speakers)" * (part.split == "clip"))
        for part in parts
    )
    versions = dict.fromkeys(", ".join(f"{n} {v}" for n, v in r["versions"].items()) for r in results)
    settings = dict.fromkeys(", ".join(f"{n.replace('_', ' ')} {v}" for n, v in r["settings"].items()) for r in results)
    facts = {
        "Data": dict.fromkeys(part.data for part in parts),
        "Features": dict.fromkeys(
            f"{part.source}, hash {part.results[0].get('weights_hash')}, store {part.store}" for part in parts
        ),
        "Split": splits,
        "Missing in training": [", ".join(dict.fromkeys(r["missing"] for r in results))],
        "Missing in test": dict.fromkeys(part.missing_test for part in parts),
        "Given files": dict.fromkeys(
            f"{kind} {f['file']}, sha256 {f['sha256'][:12]}"
            for r in results
            for kind, f in (r.get("given") or {}).items()
        ),
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


def _section(part: Section, compared: Sequence[dict]) -> str:
    loud = ' class="loud"' if part.untrained else ""
    out = [f"<h2>{escape(part.title)}</h2>", _table(part)]
    out += [
        f"<p{loud if note.startswith('RANDOM') else ' class=notes'}>{escape(note)}</p>" for note in part.notes(compared)
    ]
    out.append("<p class=notes>The highest mean of each column is bold; whether it differs is said below.</p>")
    out.append(_details(part))
    out += [*_rates(part), _comparisons(part, compared), *_epochs(part), *_confusions(part)]
    return "\n".join(out)


def _rates(part: Section) -> list[str]:
    caption = (
        "Test accuracy against the missing rate; bars are one standard deviation over seeds. Rates are set evenly "
        "apart, methods a little beside each other."
    )
    figures = [svg for lines in groups(part) if (svg := accuracy_by_rate(part, lines))]
    return ["<h3>Accuracy against missing rate</h3>", page.figure(figures, caption)] if figures else []


def _epochs(part: Section) -> list[str]:
    caption = (
        "Test accuracy after each epoch of the classifier, mean over seeds. It is shown, not used: validation clips "
        "choose the epoch."
    )
    if any(map(epochs_before, part.results)):
        caption += " “After N epochs”: what a method's autoencoder trained before its classifier began."
    drawn = [(lines.title, svg) for lines in groups(part) if (svg := accuracy_by_epoch(part, lines))]
    (_, first), *more = drawn
    out = ["<h3>Accuracy against epoch</h3>", page.figure([first], caption)]
    return out + [_folded(f"Against epoch, {title}", page.figure([svg], caption)) for title, svg in more]


def _confusions(part: Section) -> list[str]:
    figures = ["<h3>Confusion matrices</h3>"]
    for missing in part.columns:
        caption = (
            f"Confusion of test clips, in training {missing_text(missing)}. Rows: the true class, in percent of it "
            "over all seeds; columns: the predicted class."
        )
        is_open = len(part.rows) <= OPEN_MATRICES
        figures.append(
            _folded(missing_text(missing), page.figure([confusion_matrices(part, missing)], caption), is_open)
        )
    return figures


def _table(part: Section) -> str:
    """Accuracies: rows of methods and fusions, a rule above each method where it has several rows."""
    head = "".join(f"<th>{escape(missing_text(m))}</th>" for m in part.columns)
    best = {m: part.best(m) for m in part.columns}
    rows: dict[str, str] = {}
    for row in part.rows:
        scores = "".join(f"<td>{_bold(score_text(part.cell(*row, m)), row in best[m])}</td>" for m in part.columns)
        line = f'<tr><td>{escape(row[0])}</td><td class="text">{escape(row[1])}</td>{scores}</tr>'
        rows[row[0]] = rows.get(row[0], "") + line
    several = len(part.rows) > len(rows)
    body = "".join(f'<tbody class="{"of" if several else ""}">{lines}</tbody>' for lines in rows.values())
    look = "wide many" if len(part.columns) > 6 else "wide"
    return (
        f'<div class="{look}"><table><thead><tr><th>method</th><th class="text">fusion</th>{head}</tr></thead>'
        f"{body}</table></div>"
    )


def _interval_text(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _details(part: Section) -> str:
    """Every cell with all measures, and seed by seed, for those who want to look closer."""
    names = ["method", "fusion", "missing", "accuracy", "95 % interval", "macro F1", "interval", "UAR", "interval"]
    names += ["validation", "complete clips", "epochs (in all)", "seconds"]
    rows, seeds = [], []
    for r in part.results:
        values = [*part.row(r), r["missing"], score_text(r), _interval_text(r.get("interval"))]
        for name in ("macro_f1", "uar"):
            values += [mean_text(r[name]), _interval_text(r.get(f"{name}_interval"))]
        values += [mean_text(r["val_accuracy"]), _span(r["n_complete"])]
        rows.append([*values, f"{r['epochs']} ({r['epochs'] + epochs_before(r)})", f"{r['seconds']:.1f}"])
        scores = ", ".join(f"{n:.1f}" for n in r["test_accuracy"])
        seeds.append([*values[:3], scores, ", ".join(map(str, r["best_epoch"]))])
    note = (
        "Accuracy, macro F1, UAR (unweighted average recall) and validation accuracy in percent, mean ± standard "
        "deviation over seeds. The 95 % intervals of the means are Student's t over seeds, whose split, mask and "
        "initial weights vary together; it is about more seeds on these clips, not about other clips or speakers. "
        "Epochs are the classifier's, in brackets with those trained before it."
    )
    table = f'<p class="notes">{note}</p>{_plain_table(names, rows, "wide many")}'
    names = ["method", "fusion", "missing", "accuracy of each seed", "best epoch of each seed"]
    return _folded("Every cell: intervals, macro F1, UAR, epochs, seconds", table, len(rows) <= OPEN_ROWS) + _folded(
        "Every cell, seed by seed", _plain_table(names, seeds, "wide many")
    )


def _comparisons(part: Section, compared: Sequence[dict]) -> str:
    """The paired comparisons: a list where they are few, else a square of differences for each missing spec."""
    if not compared:
        return ""
    how = (
        "Differences in percentage points of the same test clips, each clip's correctness averaged over its seeds. "
        "95 % interval by bootstrap and p by sign flips over speakers (clips where speakers are not known or fewer "
        "than 6), Holm's correction over all comparisons of this section. Bold: significant at 5 % after it. This is "
        "inference for these seeds, whose training sets overlap."
    )
    notes = "".join(f'<p class="notes">{escape(line)}</p>' for line in [*comparisons_text(compared), how])
    names = ["missing", "A", "B", "A − B", "95 % interval", "p", "p (Holm)", "units"]
    rows = []
    for c in compared:
        low, high = c["interval"]
        values = [c["missing"], *(", ".join(side_row(c[s])) for s in ("a", "b")), signed_text(c["difference"])]
        values += [f"{signed_text(low)} to {signed_text(high)}", f"{c['p']:.2g}", f"{c['p_holm']:.2g}", units_text(c)]
        rows.append((values, significant(c)))
    body = [[_bold(escape(v), bold) for v in values] for values, bold in rows]
    listed = _plain_table(names, body, "wide many", escaped=True)
    out = ["<h3>Paired comparisons</h3>", notes]
    if len(rows) <= OPEN_ROWS:
        return "\n".join([*out, listed])
    squares = "".join(_square(part, missing, compared) for missing in part.columns)
    out.append(f'<div class="squares">{squares}</div>')
    return "\n".join([*out, _folded(f"All {len(rows)} comparisons, with intervals and p-values", listed)])


def _square(part: Section, missing: str, compared: Sequence[dict]) -> str:
    """Row minus column, for one missing spec; columns are numbered as the rows are."""
    cells: dict[tuple, str] = {}
    for c in compared:
        if c["missing"] == missing:
            a, b = side_row(c["a"]), side_row(c["b"])
            for pair, difference in (((a, b), c["difference"]), ((b, a), -c["difference"])):
                cells[pair] = _bold(signed_text(difference), significant(c))
            units = units_text(c)
    rows = [row for row in part.rows if any(row in pair for pair in cells)]
    if not rows:
        return ""
    head = "".join(f"<th>{n}</th>" for n in range(1, len(rows) + 1))
    body = ""
    alone = len({fusion for _, fusion in part.rows}) == 1
    for number, row in enumerate(rows, 1):
        name = row[0] if alone else ", ".join(row)
        line = "".join(f"<td>{cells.get((row, column), '')}</td>" for column in rows)
        body += f"<tr><th>{number} {escape(name)}</th>{line}</tr>"
    caption = f"<p class=notes><b>{escape(missing_text(missing))}</b>: row minus column ({units})</p>"
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<figure>{caption}<div class="wide pairs">{table}</div></figure>'


def _plain_table(names: Sequence[str], rows: Sequence[Sequence[str]], look: str, escaped: bool = False) -> str:
    """Rows of values; the first three columns are text, those of each seed may fold."""
    kinds = ["text" if i < 3 else "seeds" if "each seed" in name else "" for i, name in enumerate(names)]
    classes = [f' class="{kind}"' if kind else "" for kind in kinds]
    head = "".join(f"<th{c}>{name}</th>" for c, name in zip(classes, names, strict=True))
    body = ""
    for row in rows:
        cells = zip(classes, row if escaped else map(escape, row), strict=True)
        body += f"<tr>{''.join(f'<td{c}>{value}</td>' for c, value in cells)}</tr>"
    return f'<div class="{look}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _folded(summary: str, content: str, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{content}</details>"


def _bold(text: str, bold: bool) -> str:
    return f"<b>{text}</b>" if bold else text


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{min(numbers)} to {max(numbers)}"
