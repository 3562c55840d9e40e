"""The leaderboard of `report --site`: what it shows of real runs, what it refuses, and that a browser sorts it."""

import copy
import csv
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.files import csv_text
from mlemiss.trainer.experiments.tuned import DRAWS
from mlemiss.trainer.report import site
from mlemiss.trainer.report.site import mark_best, write_site
from mlemiss.trainer.report.tables import Section
from mlemiss.trainer.settings import Settings

from .feature_stores import grid, write_store

torch.set_num_threads(1)  # small networks

DATA = "toy, toy features (RANDOM weights, never trained), by clip, "
TOY = f"Accuracy, {DATA}lr 0.003, test clips complete"
QUICK = Settings(dropout=0.0, epochs=2, batch_size=64, hidden=8, dim=4)
EVIL = "<script>alert('1')</script>\"&</table>{{ 7 * 7 }} onload=\u202e"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of runs by name: two of one table, others that differ in one thing, one that was interrupted."""
    folder = tmp_path_factory.mktemp("site")
    toy, other = write_store(folder, clips=144), write_store(folder, clips=48, dataset="other", features="deep")
    missing = ["audio:0.8", "none", "audio:0.5"]
    grid([toy], folder / "first", settings=QUICK, methods=["mle", "zp", "audio-only"], missing=missing, seeds=5)
    grid([toy], folder / "more", settings=QUICK, methods=["mle", "hgr"], missing=["audio:0.5"], seeds=2)
    grid(
        [toy],
        folder / "faster",
        settings=Settings(2, 64, 0.01, hidden=8, dim=4, dropout=0.0),
        missing=["audio:0.5"],
        seeds=2,
    )
    grid([toy], folder / "lacking", settings=QUICK, missing=["audio:0.5"], missing_test="audio:0.5", seeds=2)
    grid([toy], folder / "subject", settings=QUICK, missing=["audio:0.5"], splits=["subject"], seeds=2)
    grid([other], folder / "other", settings=QUICK, missing=["audio:0.5"], seeds=1)

    def stop(progress):
        if (folder / "cut" / "results.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        options = {"methods": ["mle", "zp"], "missing": ["audio:0.5"], "seeds": 1, "progress": stop}
        grid([other], folder / "cut", settings=QUICK, **options)
    return folder


@pytest.fixture(scope="session")
def whole(runs, tmp_path_factory):
    """The leaderboard of all of them, and what was told."""
    folder = tmp_path_factory.mktemp("whole") / "site"
    names = ("first", "more", "faster", "lacking", "subject", "other", "cut")
    return folder, write_site([runs / name for name in names], folder)


class Page(HTMLParser):
    """Tables as rows of texts and values, links, ids, heads, elements and visible text of a page."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tables, self.links, self.ids, self.scopes, self.text = [], [], [], [], Counter(), ""
        self.elements = Counter()  # with the names of their attributes
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements[" ".join([tag, *sorted(attrs)])] += 1
        self.links += [attrs["href"]] if "href" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in ("meta", "br", "img", "wbr"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append({"label": attrs["aria-label"], "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.scopes[tag, attrs.get("scope")] += 1
            self.tables[-1]["rows"][-1].append(["", attrs.get("data-value")])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.tables[-1]["rows"][-1][-1][0] += data

    def table(self, start):
        """The only table whose label begins so, as rows of cells [text, value]."""
        (found,) = [table["rows"] for table in self.tables if table["label"].startswith(start)]
        return found


def page_of(folder):
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: csv_text(value) for name, value in row.items()} for row in csv.DictReader(file)]


def results_of(*runs):
    return [r for run in runs for r in json.loads((run / "results.json").read_text())["results"]]


def test_one_page_of_many_runs(runs, whole):
    folder, _ = whole
    html = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == [] and not re.search(r"https?://|@import|<link", html)
    assert html.count("<h2") == 3 + 1  # toy by clip and by subject, other, the runs
    assert "3 tables, not comparable with each other" in page.text
    for said in ("lr 0.003, test clips complete", "lr 0.01, ", "test clips missing audio:0.5", "lack audio:0.5 too"):
        assert said in page.text
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:  # each leads to a place of the page or a file beside it
        assert link[1:] in page.ids if link.startswith("#") else (folder / link).is_file()
    assert page.scopes["th", None] == 0 and page.scopes["th", "col"] and page.scopes["th", "row"]
    assert {names for names in page.elements if names.startswith("img")} == {"img alt src"}
    assert "RANDOM weights" in page.text and page.text.count("Settings: epochs 2, batch size 64") == 5
    heads, *rows = page.table(TOY)
    assert [text for text, _ in heads] == [
        *("method", "fusion", "complete", "missing audio:0.5", "missing audio:0.8", "seeds", "run")
    ]
    shown = results_of(runs / "first", runs / "more")
    assert {row[0][0] for row in rows} == {"mle", "zero-padding", "audio-only", "hgr"}
    for row in rows:
        for (text, value), missing in zip(row[2:5], ("none", "audio:0.5", "audio:0.8"), strict=True):
            found = [r for r in shown if r["method"] == row[0][0] and r["missing"] == missing]
            if not found:
                assert (text, value) == ("–", "")
                continue
            best = max(found, key=lambda r: len(r["seeds"]))
            half = max(best["mean"] - best["interval"][0], best["interval"][1] - best["mean"])  # one may be cut
            assert float(value) == best["mean"] and text.startswith(f"{best['mean']:.1f} ± {half:.1f}")
    assert {row[0][0]: row[-2][0] for row in rows} == {"mle": "5", "zero-padding": "5", "audio-only": "5", "hgr": "2"}
    assert {row[0][0]: row[-1][0] for row in rows} == {"mle": "1", "zero-padding": "1", "audio-only": "1", "hgr": "2"}
    means = [float(row[3][1]) for row in rows]  # of the column that all have
    assert means == sorted(means, reverse=True)


def test_files_hold_what_results_hold(runs, whole):
    folder, _ = whole
    rows = rows_of(folder / "results.csv")
    # `more` has a cell with fewer seeds than `first`, `other` one that `cut`, which is named later, has as well.
    assert Counter(row["run"] for row in rows) == {"first": 9, "more": 1, "faster": 1, "lacking": 1} | {
        "subject": 1,
        "cut": 1,
    }
    for row in rows:
        (r,) = [
            r
            for r in results_of(runs / row["run"])
            if all(r[name] == row[name] for name in ("method", "fusion", "missing"))
        ]
        assert float(row["mean"]) == r["mean"] and float(row["lr"]) == r["settings"]["lr"]
        assert [float(score) for score in row["test_accuracy"].split()] == r["test_accuracy"]
        assert r["interval"] is None or [float(row["low"]), float(row["high"])] == r["interval"]
    tables = sorted((folder / "tables").iterdir())
    assert [path.name[:2] for path in tables] == [f"{i:02}" for i in range(1, 6)]
    assert [list(row.values()) for path in tables for row in rows_of(path)] == [list(row.values()) for row in rows]
    pairs = rows_of(folder / "comparisons.csv")
    recorded = json.loads((runs / "first" / "results.json").read_text())["comparisons"]
    assert len(pairs) == len(recorded) + 3  # hgr against the three of its column
    written = {(c["missing"], c["a_method"], c["b_method"]): float(c["difference"]) for c in pairs}
    for c in recorded:
        assert written[c["missing"], c["a"]["method"], c["b"]["method"]] == pytest.approx(c["difference"])


def test_tests_of_each_training_are_shown_and_written(tmp_path):
    crossed = {"missing": ["audio:0.5"], "missing_test": ["none", "visual:1"], "seeds": 1}
    grid([write_store(tmp_path)], tmp_path / "crossed", settings=QUICK, **crossed)
    write_site([tmp_path / "crossed"], tmp_path / "site")
    page, (result,) = page_of(tmp_path / "site"), results_of(tmp_path / "crossed")
    heads, row = page.table("Tests, toy")
    assert [text for text, _ in heads][3:] == ["test complete", "test missing visual:1"]
    assert [float(value) for _, value in row[3:]] == [test["mean"] for test in result["tests"]]
    written = rows_of(tmp_path / "site" / "tests.csv")
    assert [(r["run"], r["missing_test"]) for r in written] == [("crossed", "none"), ("crossed", "visual:1")]
    assert "tests.csv" in page.links


def test_half_of_an_interval_that_is_cut_at_one_end():
    assert site._score({"mean": 98.0, "interval": [91.5, 100.0]}, "")[1] == "98.0 ± 6.5"
    assert site._score({"mean": 2.0, "interval": [0.0, 8.5]}, "")[1] == "2.0 ± 6.5"


def test_runs_are_told(runs, whole):
    folder, notes = whole
    page = page_of(folder)
    rows = {row[1][0]: [text for text, _ in row] for row in page.table("Runs")[1:]}
    assert list(rows) == ["first", "more", "faster", "lacking", "subject", "other", "cut"]
    assert rows["first"][2] == "finished" and rows["cut"][2] == "unfinished: 1 planned cell left"
    assert rows["first"][3:5] == ["9", "5"] and rows["more"][3:5] == ["1", "2"]
    assert notes[-1] == "cut: unfinished: 1 planned cell left" and len(notes) == 3
    assert (
        "toy toy mle addition audio:0.5: both in more and in first, which counts as it has 5 seeds, not 2" in notes[0]
    )
    assert "both in other and in cut, which counts as it is named later; the means are the same" in page.text
    assert "Tested: 96" not in page.text and re.search(r"Tested: \d+ speakers, \d+ clips, 2 seeds; ", page.text)


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    for name in "ab":
        write_site([runs / "first", runs / "cut"], tmp_path / name)
    for path in sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_a_run_named_twice_counts_once(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "more", tmp_path / "deep" / "more")
    monkeypatch.chdir(runs)
    given = [runs / "more", runs / "more" / "results.json", type(runs)("more"), tmp_path / "deep" / "more"]
    notes = write_site(given, tmp_path / "site")
    assert [note for note in notes if note.endswith("named twice: it counts once")] == [
        f"{runs / 'more' / 'results.json'} is named twice: it counts once",
        "more is named twice: it counts once",
    ]
    assert "2 combinations" not in notes[2] and "which counts as it is named later" in notes[2]
    rows = page_of(tmp_path / "site").table("Runs")[1:]
    assert [row[1][0] for row in rows] == [str(runs / "more"), str(tmp_path / "deep" / "more")]  # names apart
    assert [row[3][0] for row in rows] == ["0", "2"]


def test_tuned_results_are_a_table_that_tells_the_settings_of_each(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "tuned")
    document = json.loads((tmp_path / "tuned" / "results.json").read_text())
    for result in document["results"]:
        result["tuned"] = {"run": "draws", "draws": 30, "seeds": [1000], "digest": "ab"}
        result["settings"]["lr"] = {"mle": 0.1, "zero-padding": 0.2, "audio-only": 0.3}[result["method"]]
    (tmp_path / "tuned" / "results.json").write_text(json.dumps(document))
    write_site([runs / "first", runs / "faster", tmp_path / "tuned"], tmp_path / "site")
    page = page_of(tmp_path / "site")
    for said in ("lr 0.003, not tuned", "lr 0.01, not tuned", "tuned (30 draws, seeds 1000, choice ab)"):
        assert said in page.text
    assert "marginal bank, dropout 0.0" in page.text and "draws for each row, by mlemiss tune (run draws)" in page.text
    heads, *rows = page.table(f"All results, {DATA}tuned")
    assert heads[-1][0].startswith("settings") and {(row[0][0], row[-1][0]) for row in rows} == {
        ("mle", "lr 0.1"),
        ("zero-padding", "lr 0.2"),
        ("audio-only", "lr 0.3"),
    }
    (path,) = (tmp_path / "site" / "tables").glob("03-*.csv")
    assert {(row["method"], row["lr"]) for row in rows_of(path)} == {
        ("mle", "0.1"),
        ("zero-padding", "0.2"),
        ("audio-only", "0.3"),
    }


def test_predictions_that_are_gone(runs, tmp_path):
    odd = tmp_path / "odd\u202e"  # its name is shown changed, and its predictions are found all the same
    shutil.copytree(runs / "first", odd)
    write_site([odd], tmp_path / "site")
    assert "could not be recomputed" not in page_of(tmp_path / "site").text
    pairs = rows_of(tmp_path / "site" / "comparisons.csv")
    shutil.rmtree(odd / "predictions")
    write_site([odd], tmp_path / "site")
    text = page_of(tmp_path / "site").text
    assert "how many speakers were tested is not known" in text and "9 of them could not be recomputed" in text
    again = rows_of(tmp_path / "site" / "comparisons.csv")
    assert [(c["difference"], c["verdict"]) for c in again] == [(c["difference"], c["verdict"]) for c in pairs]


def entry(a, b, difference, verdict, missing="none"):
    sides = {"a": {"method": a, "fusion": "addition"}, "b": {"method": b, "fusion": "addition"}}
    return {"missing": missing, "difference": difference, "verdict": verdict} | sides


def test_best_is_marked_as_far_as_comparisons_allow():
    means = {"x": 80.0, "y": 79.0, "z": 60.0, "w": 70.0}
    part = Section(
        tuple({"missing": "none", "method": m, "fusion": "addition", "mean": mean} for m, mean in means.items())
    )

    def marks(*entries):
        return {method: mark for (method, _), mark in mark_best(part, entries, "none").items()}

    held = [entry("x", "y", 1.0, False), entry("z", "x", -20.0, True), entry("y", "z", 19.0, True)]
    assert marks(*held) == {"x": "highest", "y": "level", "w": "unknown"}
    assert marks(*held, entry("w", "x", -10.0, None)) == {"x": "highest", "y": "level", "w": "unknown"}
    assert marks() == marks(entry("x", "y", 1.0, None)) == marks(entry("y", "z", 19.0, True)) == {}
    assert marks(entry("x", "y", 1.0, False, "audio:0.5")) == {}  # of another column
    # Over the seeds that both have, the other is higher, and that holds: then neither is called lower.
    assert marks(entry("x", "y", -1.0, True))["y"] == "level"


def test_marks_of_the_page_are_those_of_its_comparisons(whole):
    folder, _ = whole
    pairs = [c for c in rows_of(folder / "comparisons.csv") if c["verdict"] and c["missing"] == "audio:0.8"]
    _, *rows = page_of(folder).table(TOY)
    column = {row[0][0]: row[4][0] for row in rows}
    (top,) = [method for method, text in column.items() if "highest" in text and "not told apart" not in text]
    verdict = {frozenset((c["a_method"], c["b_method"])): c["verdict"] == "True" for c in pairs}
    assert len(verdict) == 3
    for method in {"mle", "zero-padding", "audio-only"} - {top}:
        assert ("○" in column[method]) != verdict[frozenset((top, method))]
    assert column["hgr"] == "–"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda run: None, "no results at"),
        (lambda run: run.mkdir(), "no results at"),
        (lambda run: run.write_text("{}"), "is no results file"),
        (lambda run: write(run, {"results": []}), "holds no finished result yet"),
        (lambda run: write(run, {"schema": 7}), "schema 1, found 7"),
        (lambda run: write(run, {"results": [{"mean": 3}]}), "result 1 is damaged"),
        (lambda run: write(run, {"results": [None]}), "is no results file"),
        (lambda run: write(run, lambda r: r | {"mean": float("nan")}), "result 1 is damaged"),
        (lambda run: write(run, lambda r: r | {"test_accuracy": r["test_accuracy"][1:]}), "result 1 is damaged"),
        (lambda run: write(run, lambda r: r | {"method": 3}), "result 1 is damaged"),
        (lambda run: write(run, lambda r: r | {"settings": [1]}), "result 1 is damaged"),
        (lambda run: write(run, lambda r: {k: v for k, v in r.items() if k != "device"}), "result 1 is damaged"),
    ],
)
def test_what_is_no_run_is_named_and_nothing_is_written(runs, tmp_path, make, why):
    write.of = results_of(runs / "more")[0]
    make(tmp_path / "bad")
    with pytest.raises(InputError) as told:
        write_site([runs / "first", tmp_path / "bad", tmp_path / "absent"], tmp_path / "site")
    text = str(told.value)
    assert text.startswith("2 of 3 runs cannot be read, so nothing was written:\n")
    assert why in text and str(tmp_path / "bad") in text and f"no results at {tmp_path / 'absent'}" in text
    assert {path.name for path in tmp_path.iterdir()} <= {"bad"}


def write(run, change):
    """A results.json: a document's changes, or those of its only result."""
    document = {"schema": 1, "results": [write.of], "comparisons": []}
    document |= change if isinstance(change, dict) else {"results": [change(write.of)]}
    run.mkdir()
    (run / "results.json").write_text(json.dumps(document))


def test_an_older_leaderboard_is_replaced_whole(runs, tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()  # an empty folder will do
    write_site([runs / "first", runs / "other"], folder)
    assert (folder / "tables" / "02-other-deep.csv").exists()
    (tmp_path / "link").symlink_to(folder)
    write_site([runs / "more"], tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "site"] and (tmp_path / "link").is_symlink()
    assert [path.name for path in (folder / "tables").iterdir()] == ["01-toy-toy.csv"]
    assert [row[1][0] for row in page_of(folder).table("Runs")[1:]] == ["more"]


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ({"thesis.txt": "mine"}, "no leaderboard of mlemiss, but other things: thesis.txt"),
        ({"index.html": "<html>", "site.json": "{}"}, "other things: index.html and 1 more."),
        ({"index.html": "<html>", "site.json": '{"mlemiss_site": 1, "files": 3}'}, "no leaderboard of mlemiss"),
        (None, "a leaderboard and other things: .git/config"),
    ],
)
def test_a_folder_with_other_things_is_left_alone(runs, tmp_path, there, why):
    folder = tmp_path / "site"
    if there is None:
        write_site([runs / "more"], folder)
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("mine")
    for name, text in (there or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=re.escape(why)):
        write_site([runs / "more"], folder)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("fails", ["write_page", "_move", "write_json"])
def test_what_fails_half_way_leaves_the_old_page(runs, tmp_path, monkeypatch, fails):
    folder = tmp_path / "site"
    write_site([runs / "more"], folder)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site, fails, full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_site([runs / "first"], folder)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_the_old_page_is_put_back_where_the_new_one_cannot_take_its_place(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("old")
    with pytest.raises(OSError):
        site._move(tmp_path / "absent", tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_hostile_text_is_shown_and_does_nothing(runs, tmp_path):
    """Whatever a name, a setting or a command holds: the page has no other elements, and shows the text."""
    shutil.copytree(runs / "more", tmp_path / "plain")
    document = json.loads((tmp_path / "plain" / "results.json").read_text())
    evil = copy.deepcopy(document)
    for result in evil["results"]:
        names = ("dataset", "features", "store", "weights", "split", "missing_test", "device")
        result |= {name: f"{name} {EVIL}" for name in names} | {"versions": {EVIL: EVIL}}
        result |= {name: f"{result[name]} {name} {EVIL}" for name in ("method", "fusion", "missing")}
        result["settings"] |= {f"setting {EVIL}": f"value {EVIL}"}
        del result["predictions"]
    evil |= {"command": f"command {EVIL}", "created": f"created {EVIL}", "comparisons": []}
    evil["skipped"] = [{"cell": f"cell {EVIL}", "reason": f"reason {EVIL}"}]
    folder = tmp_path / f"run {EVIL}".replace("/", "⁄")
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(evil))
    write_site([folder, tmp_path / "plain"], tmp_path / "site")
    html = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == [] and page.elements["script"] == 1 and html.count("<script") == 1
    write_site([tmp_path / "plain"], tmp_path / "clean")
    assert set(page.elements) <= set(page_of(tmp_path / "clean").elements) | {"wbr", "details", "li", "h3"}
    assert "\u202e" not in html and "7 * 7" in html
    names = ("dataset", "features", "split", "missing_test", "device", "method", "fusion", "missing")
    for name in (*names, "setting", "value", "command", "created", "cell", "reason"):
        assert f"{name} <script>alert('1')</script>\"&</table>{{{{ 7 * 7 }}}} onload=?" in page.text
    assert all(path.name.isascii() for path in (tmp_path / "site").rglob("*"))
    assert any(row["method"].endswith("onload=?") for row in rows_of(tmp_path / "site" / "results.csv"))


@pytest.mark.slow
def test_the_command(runs, tmp_path, mlemiss):
    shutil.copytree(runs / "more", tmp_path / "runs" / "one")
    shutil.copytree(runs / "other", tmp_path / "runs" / "two")
    shutil.copytree(runs / "other", tmp_path / "runs" / "draws")
    (tmp_path / "runs" / "draws" / DRAWS).touch()  # of `mlemiss tune`, which are no results
    (tmp_path / "file").touch()
    done = mlemiss("report", "--site", "site")  # all in runs/
    assert done.returncode == 0 and done.stderr == "leaderboard: site/index.html\n" and done.stdout == ""
    assert len(rows_of(tmp_path / "site" / "results.csv")) == 3
    for arguments, why in (
        (["--site", "site", "--csv"], "--site and --csv exclude each other"),
        (["--site", "site", "--out", "x.html"], "--site and --out exclude each other"),
        (["--site", "file"], "is a file"),
        (["--site", "file/below"], "is a file"),
        (["--site", "a" * 300], "File name too long"),
        (["--site", "runs"], "no leaderboard of mlemiss, but other things"),
        (["runs/one", "file", "--site", "new"], "file is no results file"),
    ):
        done = mlemiss("report", *arguments)
        assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "runs", "site"]


def dump(page, folder, *flags):
    """The page as a browser has it after its script ran."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        *flags,
        "--dump-dom",
    ]
    done = subprocess.run(["chromium", *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
    return done.stdout.decode()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_heads_sort_in_a_browser(whole, tmp_path):
    folder, _ = whole
    heads = page_of(folder).scopes["th", "col"]
    assert dump(folder / "index.html", tmp_path).count("<button") == heads  # under the page's own policy
    html = (folder / "index.html").read_text(encoding="utf-8")
    html = re.sub(r"<meta http-equiv[^>]*>", "", html)  # which runs no other script, such as the clicks below

    def clicked(*columns):
        click = "".join(
            f"document.querySelectorAll('table')[0].querySelectorAll('button')[{i}].click();" for i in columns
        )
        (tmp_path / "page.html").write_text(html.replace("</body>", f"<script>{click}</script></body>"))
        dumped = dump(tmp_path / "page.html", tmp_path)
        head = dumped[dumped.index("<thead") : dumped.index("</thead>")]
        states = re.findall(r'<th [^>]*?(?:aria-sort="(\w+)")?>', head)
        return Page(dumped).tables[0]["rows"][1:], states

    rows, states = clicked(4)
    values = [row[4][1] for row in rows]
    numbers = [float(value) for value in values if value]
    assert numbers == sorted(numbers, reverse=True) and len(numbers) == 3 and values[3] == ""  # none stays last
    assert states == ["", "", "", "", "descending", "", ""]
    rows, states = clicked(4, 4)
    assert [float(row[4][1]) for row in rows[:3]] == numbers[::-1] and rows[3][4][1] == ""
    assert states[4] == "ascending"
    rows, states = clicked(4, 0)
    assert [row[0][0] for row in rows] == ["audio-only", "hgr", "mle", "zero-padding"]
    assert states == ["ascending", "", "", "", "", "", ""]
    # On a phone the page is as wide as the screen, whatever is folded open; tables and curves scroll by themselves.
    widths = "document.querySelectorAll('details').forEach(one => one.open = true);"
    widths += "const all = document.documentElement; document.title = all.scrollWidth <= all.clientWidth;"
    widths += (
        "document.title += document.querySelector('.wide').scrollWidth > document.querySelector('.wide').clientWidth;"
    )
    (tmp_path / "page.html").write_text(html.replace("</body>", f"<script>{widths}</script></body>"))
    assert "<title>truetrue</title>" in dump(tmp_path / "page.html", tmp_path, "--window-size=400,900")
