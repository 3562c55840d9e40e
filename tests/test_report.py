"""The report and the terminal's table: what they say, and that a file opens on its own."""

import base64
import copy
import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.page import COLOURS
from mlemiss.trainer.experiments.experiments import run_plan
from mlemiss.trainer.experiments.grid import Grid, plan_grid
from mlemiss.trainer.experiments.run_folder import RunFolder
from mlemiss.trainer.experiments.side_by_side import left_out, markdown
from mlemiss.trainer.report.csv_files import export_csv
from mlemiss.trainer.report.figures import accuracy_by_epoch, accuracy_by_rate, groups, offsets, rates
from mlemiss.trainer.report.latex import export_latex
from mlemiss.trainer.report.report import load_results, render_report, write_report
from mlemiss.trainer.report.tables import print_results, results_table, sections
from mlemiss.trainer.settings import Settings
from rich.console import Console

from .feature_stores import write_store

torch.set_num_threads(1)  # small networks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    grid = Grid(["mle", "zp"], ["addition", "outer"], ["audio:0.5", "audio:0.8", "none"], seeds=2)
    settings = Settings(dropout=0.0, epochs=2, batch_size=64, hidden=8, dim=4)
    command = "mlemiss train --features toy --missing <audio:0.5>"
    plan = plan_grid([write_store(folder)], grid, settings)
    run_plan(plan, torch.device("cpu"), RunFolder(folder / "run"), command=command)
    return folder / "run"


def printed(document, width=200):
    buffer = io.StringIO()
    print_results(document, Console(file=buffer, width=width))
    return buffer.getvalue()


class Page(HTMLParser):
    """Tags, attributes and visible text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.images, self.addresses, self.text = [], [], [], ""
        self.elements: set[str] = set()  # with the names of their attributes: `img src`
        self.feed(html)
        self.text = " ".join(self.text.split())  # as a browser shows it

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements |= {" ".join([tag, *attrs])}
        self.addresses += [v for k, v in attrs.items() if k in ("src", "href") and v]
        if tag == "img":
            self.images.append(attrs)
        elif tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def test_report_is_one_file_that_opens_offline(run, tmp_path):
    write_report([load_results(run)], tmp_path / "deep" / "report.html")
    html = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []  # every tag is closed
    assert page.addresses and all(a.startswith("data:image/svg+xml;base64,") for a in page.addresses)
    assert not re.search(r"https?://|@import|<script|<link", html)
    assert len(page.images) == 1 + 1 + 1 + 3  # rates, reliability, epochs, a confusion figure a column
    assert html.count("<details") == html.count("</details>") >= 3
    for image in page.images:
        assert image["alt"]
        ElementTree.fromstring(base64.b64decode(image["src"].split(",")[1]))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


@pytest.mark.slow
def test_hostile_text_is_shown_and_does_nothing(run):
    """Whatever a name, label, path or note holds: the page has no other elements, and every text is there whole."""
    evil = "<script>alert('1')</script>\"&</table>{{ 7 * 7 }} onload="
    document = copy.deepcopy(load_results(run))
    names = ("dataset", "features", "store", "weights", "weights_hash", "split", "missing_test", "device")
    for result in document["results"]:
        result |= {name: f"{name} {evil}" for name in names} | {"classes": [f"{c} {evil}" for c in result["classes"]]}
        result |= {"given": {f"kind {evil}": {"file": f"file {evil}", "sha256": "ab" * 32}}, "versions": {evil: evil}}
        result |= {f"{name}": f"{result[name]} {name} {evil}" for name in ("method", "fusion", "missing")}
        result["settings"] |= {f"setting {evil}": f"value {evil}"}
    for entry in document["comparisons"]:
        entry |= {name: document["results"][0].get(name) for name in (*names, "given", "settings")}
        entry["missing"] += f" missing {evil}"
        for side in (entry["a"], entry["b"]):
            side |= {name: f"{side[name]} {name} {evil}" for name in ("method", "fusion")}
    document |= {"command": f"command {evil}", "created": f"created {evil}"}
    document["skipped"] = [{"cell": f"cell {evil}", "reason": f"reason {evil}"}]
    cell = {name: f"{name} {evil}" for name in ("split", "features", "method", "fusion", "missing")}
    document["compared"] = {name: f"{name} {evil}" for name in ("title", "paper")} | {
        "ran_on": [f"ran on {evil}"],
        "left_out": [f"left out {evil}"],
        "cells": [cell | {"mean": 50.0, "std": None, "paper": None, "difference": None}],
    }
    html = render_report([document])
    page, plain = Page(html), Page(render_report([load_results(run) | {"compared": document["compared"]}]))
    assert page.open == [] and page.elements <= plain.elements and "script" not in page.elements
    assert "<script" not in html and "7 * 7" in html
    seen = [*names[:3], *names[4:], "kind", "file", "method", "fusion", "missing", "setting", "value", "command"]
    seen += ["created", "cell", "reason", "title", "paper", "ran on", "left out"]
    assert [name for name in seen if f"{name} {evil}" not in page.text] == []
    for image in page.images:
        assert "<script" not in base64.b64decode(image["src"].split(",")[1]).decode()


def test_report_says_what_was_run(run):
    document = load_results(run)
    text = Page(render_report([document])).text
    for said in (
        "toy, toy",
        "RANDOM weights, never trained",
        "Random weights:",
        "clips of one speaker, if there are speakers, may be in both training and test: nothing is said of new ones",
        "0, 1",
        "mlemiss train --features toy --missing <audio:0.5>",
        f"torch {document['results'][0]['versions']['torch']}",
        "zero-padding cannot use the fusion outer",
        document["created"],
        "Paired comparisons: 9 differences, without a verdict",
        "No verdict on 9 of 9: a verdict needs 5 seeds that both methods have; there are 2.",
        "clustered both ways, by seed and by speaker",
        "UAR",
        "Student's t over seeds, whose split, mask and initial weights vary together",
    ):
        assert said in text
    for result in document["results"]:
        assert f"{result['mean']:.1f} ± {result['std']:.1f}" in text
        assert f"{result['interval'][0]:.1f} to {result['interval'][1]:.1f}" in text
    document["results"][0]["missing"] = "audio:0.5+<i>:0.5"
    assert "audio:0.5<wbr>+&lt;i&gt;:0.5</th>" in render_report([document])  # may break there


@pytest.mark.slow
def test_comparisons_that_hold_are_bold_and_say_their_units(run):
    """A handful as a list; many as a square for each missing spec, row minus column."""
    document = copy.deepcopy(load_results(run))
    for entry in document["comparisons"]:
        entry |= {"difference": 3.25, "interval": [-1.0, 7.0], "p_holm": 0.2, "units": "clip", "n_clips": 19}
        entry |= {"p": 0.1, "verdict": False, "reason": None}
    first = document["comparisons"][0]
    assert (first["a"]["method"], first["b"]["method"], first["missing"]) == ("mle", "mle", "audio:0.5")
    first |= {"difference": -12.34, "interval": [-20.0, -4.0], "p_holm": 0.01, "verdict": True}
    html = render_report([document])
    assert html.count("<b>−12.3</b>") == 1 and "<b>−20.0 to −4.0</b>" in html and "<b>+3.2</b>" not in html
    assert "−1.0 to +7.0" in html and ">19 clips, 2 seeds<" in html and "1 of 9 differences hold" in html
    many = copy.deepcopy(document)
    for place in range(12):  # more methods, more pairs
        many["results"] += [r | {"method": f"m{place}"} for r in document["results"] if r["missing"] == "audio:0.5"][:1]
        sides = {"a": {"method": "mle", "fusion": "addition"}, "b": {"method": f"m{place}", "fusion": "addition"}}
        many["comparisons"] += [first | sides, first | sides | {"missing": "audio:0.8"}]
    html = render_report([many])
    assert "<th>1 mle, addition</th>" in html and "row minus column (19 clips, 2 seeds)" in html
    assert "<b>−12.3</b>" in html and "<b>+12.3</b>" in html  # the other way round
    assert "All 33 comparisons" in html and "?" not in html
    many["comparisons"][-1] |= {"verdict": None, "reason": "few seeds"}
    html = render_report([many])
    assert html.count("−12.3?") == html.count("+12.3?") == 1 and "? has no verdict" in html and "+3.2?" not in html


@pytest.mark.slow
def test_epochs_before_the_classifier_are_told(run):
    document = copy.deepcopy(load_results(run))
    assert "autoencoder" not in render_report([document])
    document["results"][0]["total_epochs"] = 4
    text = Page(render_report([document])).text
    assert "autoencoder trained before" in text and "2 (4)" in text


@pytest.mark.slow
def test_many_methods_and_fusions_are_spread_over_figures(run):
    document = copy.deepcopy(load_results(run))
    (cell, *_) = document["results"]
    document["results"] = [
        cell | {"method": f"method{m}", "fusion": fusion, "missing": missing}
        for m in range(11)
        for fusion in ("addition", "outer")
        for missing in (
            "none",
            "audio:0.5",
            "visual:0.2+audio:0.2",
            "text:0.3",
            "a:0.8+b:0.4",
            "given.csv",
            "given:0.csv",
        )
    ]
    (part,) = sections([document])
    drawn = groups(part)
    assert sorted(row for lines in drawn for row in lines.rows) == sorted(part.rows)  # none left out
    assert max(len(lines.rows) for lines in drawn) <= 9 and {lines.title for lines in drawn} == {"addition", "outer"}
    assert rates(part) == {
        "audio": [(0.0, "none"), (0.5, "audio:0.5")],
        "audio or visual": [(0.0, "none"), (0.4, "visual:0.2+audio:0.2")],
        "text": [(0.0, "none"), (0.3, "text:0.3")],
        "each of a, b (50 % of it)": [(0.0, "none"), (0.8, "a:0.8+b:0.4")],
    }
    assert all(ElementTree.fromstring(accuracy_by_rate(part, lines)) is not None for lines in drawn)


def test_methods_of_one_modality_are_drawn_in_every_figure(run):
    document = copy.deepcopy(load_results(run))
    cell = document["results"][0] | {"reference": False}
    fusions = ("addition", "concatenation", "outer")
    document["results"] = [cell | {"method": f"m{m}", "fusion": f} for m in range(8) for f in fusions]
    document["results"] += [cell | {"method": m, "fusion": "addition", "reference": True} for m in ("ears", "eyes")]
    (part,) = sections([document])
    drawn = groups(part)
    assert {lines.title for lines in drawn} == set(fusions) and max(len(lines.rows) for lines in drawn) <= 9
    assert all(lines.rows[-2:] == (("ears", "addition"), ("eyes", "addition")) for lines in drawn)
    assert sorted({row for lines in drawn for row in lines.rows}) == sorted(part.rows)
    own = [row for lines in drawn for row in lines.rows[:-2]]
    assert len(own) == len(set(own)) == 24
    assert accuracy_by_epoch(part, drawn[-1]).count("<!-- ears -->") == 1
    document["results"] = [r for r in document["results"] if r["reference"]]
    assert [lines.rows for lines in groups(*sections([document]))] == [(("ears", "addition"), ("eyes", "addition"))]


@pytest.mark.slow
def test_runs_of_other_hyper_parameters_are_tables_of_their_own(run, tmp_path):
    document = load_results(run)
    wide, full = copy.deepcopy(document), copy.deepcopy(document)
    for result in wide["results"]:
        result["settings"] |= {"hidden": 64}
        result["given"] = {"masks": {"file": "own.csv", "sha256": "ab" * 32}}
    for result in full["results"]:
        result["settings"] |= {"marginal": "full"}
        if result["marginal"] is not None:
            result |= {"marginal": "full", "mean": 1.25}
    first, second = sections([document, wide])
    assert first.title.endswith(": hidden 8, no given files")
    assert second.title.endswith(": hidden 64, masks own.csv (abababab)")
    assert len(first.compared(document["comparisons"])) == 9 and second.compared(document["comparisons"]) == []
    assert [part.title.count(":") for part in sections([document])] == [0]
    (part,) = sections([document, full])
    assert part.title.count(":") == 0 and {method for method, _ in part.rows} == {
        "mle (bank)",
        "mle (full)",
        "zero-padding",
    }
    assert part.cell("mle (full)", "outer", "none")["mean"] == 1.25
    (asked,) = (r for r in document["results"] if (r["method"], r["fusion"], r["missing"]) == ("mle", "outer", "none"))
    assert part.cell("mle (bank)", "outer", "none") is asked
    bank, other = ({"method": "mle", "fusion": "outer", "marginal": m} for m in ("bank", "full"))
    entries = [document["comparisons"][0] | {"a": bank, "b": other}]
    text = Page(render_report([document, full], entries)).text
    assert "mle (bank), outer" in text and "mle (full), outer" in text
    export_csv([document, wide], document["comparisons"], tmp_path)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["hidden"], row["given"]) for row in rows} == {("8", ""), ("64", "masks:own.csv:abababababab")}
    latex = export_latex([document, wide], tmp_path).read_text(encoding="utf-8")
    assert len(set(re.findall(r"\\label\{.*\}", latex))) == 2


@pytest.mark.slow
def test_csv_and_latex_lie_beside_the_report(run, tmp_path, mlemiss):
    done = mlemiss("report", run, "--out", tmp_path / "out" / "r.html", "--csv", "--latex")
    assert done.returncode == 0, done.stderr
    names = ("r.html", "results.csv", "comparisons.csv", "results.tex")
    assert all(str(tmp_path / "out" / name) in done.stderr for name in names)
    document = load_results(run)
    with (tmp_path / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in rows] == [r["mean"] for r in document["results"]]
    assert rows[0]["seeds"] == "0 1" and float(rows[0]["low"]) == document["results"][0]["interval"][0]
    with (tmp_path / "out" / "comparisons.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["difference"]) for row in rows] == [c["difference"] for c in document["comparisons"]]
    assert rows[0]["a_method"] == document["comparisons"][0]["a"]["method"]


def test_latex_is_escaped_and_the_best_bold(run, tmp_path):
    document = copy.deepcopy(load_results(run))
    for place, result in enumerate(document["results"]):
        result |= {"dataset": "my_set & 50% {of} $x^2$ \\ #1~", "mean": 50.0 + place, "std": 1.0}
    document["results"][0] |= {"std": None}
    text = export_latex([document], tmp_path).read_text(encoding="utf-8")
    comment, text = text.split("\n", 1)
    assert "booktabs" in comment and comment.startswith("%")
    assert r"my\_set \& 50\% \{of\} \$x\textasciicircum{}2\$ \textbackslash{} \#1\textasciitilde{}" in text
    assert not re.search(r"(?<!\\)[%_#~]", text) and text.isascii()
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    (part,) = sections([document])
    assert text.count(r"\textbf{") == len(part.columns)
    best = max(r["mean"] for r in document["results"])
    assert rf"\textbf{{{best:.1f} $\pm$ 1.0}}" in text and "& 50.0 &" in text
    for word in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(word) == 1


def test_csv_without_comparisons_has_its_head(run, tmp_path):
    results, comparisons = export_csv([load_results(run)], [], tmp_path)
    assert results.read_text().startswith("dataset,features,") and "a_method" in comparisons.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_page_in_a_browser_is_not_blank(run, tmp_path):
    write_report([load_results(run)], tmp_path / "report.html")
    picture = tmp_path / "report.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,3900"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    page = (tmp_path / "report.html").as_uri()
    subprocess.run(["chromium", *flags, page], check=True, capture_output=True, timeout=120)
    pixels = matplotlib.image.imread(picture)[..., :3]  # [row, column, channel]
    dark = (pixels.max(2) < 0.5).any(1)
    assert dark[:300].any() and dark[300:1000].any() and dark.mean() > 0.2

    def rows_of(colour: str) -> np.ndarray:
        """How many pixels of each row have a colour, given as in CSS."""
        wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return (np.abs(pixels - wanted) < 0.03).all(2).sum(1)

    # Lines and markers of both methods against the missing rate and the epoch: two figures, one below the other.
    for colour in COLOURS[:2]:
        drawn = np.flatnonzero(rows_of(colour))
        assert rows_of(colour).sum() > 400 and (np.diff(drawn) > 100).sum() >= 1
    curves = max(np.flatnonzero(rows_of(colour)).max() for colour in COLOURS[:2])
    blues = (pixels[..., 2] - pixels[..., 0] > 0.3).sum(1)  # the confusion matrices' cells, below the curves
    assert blues[curves + 50 :].sum() > 5000


@pytest.mark.slow
def test_pretrained_weights_are_named_without_alarm(run):
    document = copy.deepcopy(load_results(run))
    for result in document["results"]:
        result["weights"] = "imagenet"
    page = Page(render_report([document]))
    assert "imagenet weights" in page.text and "andom weights" not in page.text and "RANDOM" not in page.text


@pytest.mark.slow
def test_other_splits_say_what_stays_together(run):
    document = copy.deepcopy(load_results(run))
    for result in document["results"]:
        result["split"] = "subject"
    text = render_report([document]) + printed(document)
    assert "clips of one speaker" not in text
    assert "no subject is in both" in printed(document)


def test_one_rate_and_one_seed_still_make_a_report(run):
    document = copy.deepcopy(load_results(run))
    one = {"std": None, "interval": None}
    lists = ("macro_f1", "uar", "weighted_f1", "nll", "ece", "val_accuracy", "test_accuracy")
    document["results"] = [
        r | one | {name: r[name][:1] for name in lists} for r in document["results"] if r["missing"] == "audio:0.5"
    ]
    page = Page(render_report([document]))
    assert len(page.images) == 3  # no figure over rates
    assert "±" not in re.sub(r"mean ± standard", "", page.text)


def test_notes_of_a_narrow_table_have_the_terminals_width(run):
    document = copy.deepcopy(load_results(run))
    document["results"] = [document["results"][0] | {"std": None, "interval": None, "seeds": [0], "n_test": [9]}]
    lines = printed(document, width=100).splitlines()
    assert "Test accuracy in percent of clips, one seed, 9 test clips." in lines
    assert lines[0] == "toy, toy features (RANDOM weights, never trained)"
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
def test_tables_of_several_splits_name_theirs(run):
    document = load_results(run)
    other = copy.deepcopy(document)
    for result in other["results"]:
        result |= {"split": "subject", "dataset": "other"}
    assert [part.title.split(": ")[1] for part in sections([document, other])] == ["by clip", "by subject"]
    for result in other["results"]:
        result["dataset"] = "toy"
    assert [part.title.split(": ")[1] for part in sections([document, other])] == ["by clip", "by subject"]
    assert render_report([document, other]).count(": by subject</h2>") == 1


def test_a_reason_for_many_combinations_is_said_once(run):
    skipped = [{"cell": f"toy m{i}", "reason": "too few <clips>"} for i in range(18)]
    skipped += [{"cell": "toy alone", "reason": "of its own"}]
    text = Page(render_report([load_results(run) | {"skipped": skipped}])).text
    assert text.count("too few <clips>") == 1 and "18 combinations, such as toy m0; toy m1; toy m2: too few" in text
    assert "toy alone: of its own" in text
    compared = {"exhibit": "x", "title": "X", "paper": "", "ran_on": [], "command": "", "missing": [], "cells": []}
    compared |= {"end_to_end": False, "shows": ""}
    compared["left_out"] = [f"{s['cell']}: {s['reason']}" for s in skipped]
    assert [line.split(":")[1].split(",")[0] for line in left_out(compared)] == [
        " 18 combinations",
        " toy alone",
    ]
    text = markdown(compared)
    assert text.index("Left out: 19 entries, listed below") < text.index("too few <clips>")


@pytest.mark.parametrize(("rows", "number"), [(1, 2), (2, 2), (9, 2), (4, 6), (9, 6)])
def test_rows_stand_close_to_their_rate(rows, number):
    found = offsets(rows, number)
    assert len(found) == rows and abs(found.sum()) < 1e-9
    assert np.ptp(found) <= 0.25 + 1e-9 and (np.diff(found) <= 0.015 * (number - 1) + 1e-9).all()
    assert (np.diff(found) > 0).all()


@pytest.mark.slow
def test_panels_of_references_alone_are_left_out(run):
    document = copy.deepcopy(load_results(run))
    cell, specs = document["results"][0] | {"reference": False}, ("none", "audio:0.5", "visual:0.5")
    document["results"] = [cell | {"method": f"m{m}", "missing": s} for m in range(6) for s in specs]
    document["results"] += [cell | {"method": f"m{m}", "fusion": "outer", "missing": specs[1]} for m in range(6)]
    document["results"] += [cell | {"method": "ears", "reference": True, "missing": s} for s in specs]
    (part,) = sections([document])
    addition, outer = groups(part)
    assert outer.title == "outer" and [
        accuracy_by_rate(part, lines).count("<!-- training") for lines in groups(part)
    ] == [2, 1]
    assert accuracy_by_epoch(part, addition).count("<!-- missing") == 2
    assert accuracy_by_epoch(part, outer).count("<!-- missing") == 1
    only = [r for r in document["results"] if r["fusion"] == "addition" or r["missing"] == "none"]
    only += [cell | {"method": "m0", "fusion": "outer", "missing": "none"}]
    (part,) = sections([document | {"results": only}])
    assert [bool(accuracy_by_rate(part, lines)) for lines in groups(part)] == [True, False]


@pytest.mark.slow
def test_several_runs_share_a_report(run):
    document = load_results(run)
    other = copy.deepcopy(document)
    for result in other["results"]:
        result["features"] = "resnet"
    text = Page(render_report([document, other])).text
    assert "toy, toy; toy, resnet" in text
    assert len(sections([document, other])) == 2
    assert len(sections([document, document])) == 1
    assert text.count("Paired comparisons: ") == 1  # those of the second's cells are not in its record


def test_wide_tables_are_printed_in_parts(run):
    document = copy.deepcopy(load_results(run))
    (cell, *_) = document["results"]
    document["results"] = [
        cell | {"method": method, "missing": f"audio:0.{i}"} for method in ("mle", "hgr") for i in range(1, 10)
    ]
    text = printed(document, width=100)
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    assert text.count("│ hgr") == 2 and text.count("audio:0.5") == 1 and text.count("clips of one speaker") == 1


def test_terminal_table_has_rows_of_methods_and_columns_of_specs(run):
    document = load_results(run)
    table = results_table(sections([document])[0])
    assert table.row_count == 3
    assert [str(c.header) for c in table.columns] == [
        "method",
        "fusion",
        "missing\naudio:0.5",
        "missing\naudio:0.8",
        "complete",
    ]
    text = printed(document)
    for said in ("RANDOM weights, never trained", "clips of one speaker", "of 2 seeds"):
        assert said in " ".join(text.split())
    for result in document["results"]:
        assert f"{result['mean']:.1f} ± {result['std']:.1f}" in text
    document["results"][0]["method"] = "[red]own[/red]"
    assert "[red]own[/red]" in printed(document)  # a name is text
    narrow = printed(document, width=60)
    assert "…" not in narrow  # folded, never cut


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no results at"), ("{", "no results file"), ('{"schema": 9, "results": [1]}', "schema 1, found 9")],
)
def test_what_is_no_run_is_an_input_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_results(tmp_path)
