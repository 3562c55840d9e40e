"""The report and the terminal's table: what they say, and that a file opens on its own."""

import base64
import copy
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from mlemiss.pipeline.errors import InputError
from mlemiss.trainer.experiments import run_grid
from mlemiss.trainer.report import load_results, render, write_report
from mlemiss.trainer.settings import Settings
from mlemiss.trainer.tables import print_results, results_table, sections
from rich.console import Console

from .feature_stores import write_store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run_grid(
        [write_store(folder)],
        methods=["mle", "zp"],
        fusions=["addition", "outer"],
        missing=["audio:0.5", "audio:0.8", "none"],
        seeds=2,
        settings=Settings(epochs=2, batch_size=64, hidden=8, dim=4),
        device="cpu",
        out=folder / "run",
        command="mlemiss train --features toy --missing <audio:0.5>",
    )
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
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
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
    assert len(page.images) == 1 + 1 + 3  # rates, epochs, a confusion figure a column
    for image in page.images:
        assert image["alt"]
        ElementTree.fromstring(base64.b64decode(image["src"].split(",")[1]))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_report_says_what_was_run(run):
    document = load_results(run)
    text = Page(render([document])).text
    for said in (
        "toy, toy",
        "RANDOM weights, never trained",
        "Random weights:",
        "share speakers",
        "0, 1",
        "mlemiss train --features toy --missing <audio:0.5>",
        f"torch {document['results'][0]['versions']['torch']}",
        "zero-padding cannot use the fusion outer",
        document["created"],
    ):
        assert said in text
    for result in document["results"]:
        assert f"{result['mean']:.1f} ± {result['std']:.1f}" in text


def test_pretrained_weights_are_named_without_alarm(run):
    document = copy.deepcopy(load_results(run))
    for result in document["results"]:
        result["weights"] = "imagenet"
    page = Page(render([document]))
    assert "imagenet weights" in page.text and "andom weights" not in page.text and "RANDOM" not in page.text


def test_other_splits_say_what_stays_together(run):
    document = copy.deepcopy(load_results(run))
    for result in document["results"]:
        result["split"] = "subject"
    assert "share speakers" not in render([document]) + printed(document)
    assert "no subject is in both" in printed(document)


def test_one_rate_and_one_seed_still_make_a_report(run):
    document = copy.deepcopy(load_results(run))
    document["results"] = [r | {"std": None} for r in document["results"] if r["missing"] == "audio:0.5"]
    page = Page(render([document]))
    assert len(page.images) == 2  # no figure over rates
    assert "±" not in re.sub(r"mean ± standard", "", page.text)


def test_several_runs_share_a_report(run):
    document = load_results(run)
    other = copy.deepcopy(document)
    for result in other["results"]:
        result["features"] = "resnet"
    text = Page(render([document, other])).text
    assert "toy, toy; toy, resnet" in text
    assert len(sections([document, other])) == 2
    assert len(sections([document, document])) == 1


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
    for said in ("RANDOM weights, never trained", "share speakers", "2 seed(s)"):
        assert said in " ".join(text.split())
    for result in document["results"]:
        assert f"{result['mean']:.1f} ± {result['std']:.1f}" in text
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
