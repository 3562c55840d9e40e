"""The paper's exhibits of networks trained end to end: Table 1, Figures 4 and 5."""

import json
from dataclasses import replace

import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.trainer.end_to_end.end_to_end import MediaClips
from mlemiss.trainer.experiments import estimate_end_to_end, paper
from mlemiss.trainer.experiments.grid import plan_grid
from mlemiss.trainer.experiments.job import clips_as
from mlemiss.trainer.experiments.paper import EXHIBITS
from mlemiss.trainer.experiments.reproduce import SMALLEST_CUT, choose_stores, reproduce, within_budget
from mlemiss.trainer.fit import fit
from mlemiss.trainer.methods import load
from mlemiss.trainer.settings import Settings

from .media_stores import TINY, tiny, write_media

QUICK = Settings(epochs=1, batch_size=32, hidden=8, dim=4)
TABLE1 = EXHIBITS["table1"]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("media"), clips=96, without_audio=())


def run(exhibit, media, out, **options):
    plain = {"fusions": exhibit.fusions, "splits": exhibit.splits, "seeds": 1, "settings": QUICK, "device": "cpu"}
    return reproduce(exhibit, [media], out, **(plain | {"end_to_end": tiny()} | options))


def test_table1_has_the_papers_rows_and_numbers(media, tmp_path):
    assert TABLE1.missing == paper.TABLE1_COLUMNS
    table = replace(TABLE1, missing=("visual:0.8", "audio:0.95"))  # two of the columns, to be quick
    document = run(table, media, tmp_path)
    cells = document["cells"]
    rows = dict.fromkeys((cell["method"], cell["fusion"]) for cell in cells)
    assert list(rows) == list(paper.TABLE1)
    assert len(cells) == 22
    for cell in cells:
        value = paper.TABLE1[cell["method"], cell["fusion"]][paper.TABLE1_COLUMNS.index(cell["missing"])]
        assert cell["paper"] == value and cell["difference"] == pytest.approx(cell["mean"] - value, abs=0.01)
        assert cell["features"] == TINY
    text = (tmp_path / "table1.md").read_text()
    assert "| method | fusion | visual:0.8 |" in text and "arXiv:2108.10513, Table 1" in text
    assert "ANOTHER BACKBONE than the paper's resnet50" in text and "ANOTHER DATA SET" in text
    assert "trained end to end (from random weights)" in text and "autoencoder" not in text
    assert not list((tmp_path / "checkpoints").iterdir())
    again = run(table, media, tmp_path)
    assert again["cells"] == cells  # seconds too: nothing was trained again


def test_figure4_is_a_curve_over_rates(media, tmp_path):
    document = run(EXHIBITS["figure4"], media, tmp_path)
    assert document["missing"] == ["audio:0.5", "audio:0.8", "audio:0.9", "audio:0.95"]
    assert {(c["method"], c["fusion"]) for c in document["cells"]} == {
        row for row in paper.TABLE1 if row[0] in ("zero-padding", "mle")
    }
    assert {c["missing"] for c in document["cells"] if c["paper"] is None} == {"audio:0.5"}
    assert "Accuracy against missing rate" in (tmp_path / "report.html").read_text()


def test_figure5_shows_confusions(media, tmp_path):
    document = run(EXHIBITS["figure5"], media, tmp_path)
    assert [c["method"] for c in document["cells"]] == list(EXHIBITS["figure5"].methods)
    raw = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [c["confusion"] for c in document["cells"]] == [r["confusion"] for r in raw]
    text = (tmp_path / "figure5.md").read_text()
    counts = raw[0]["confusion"][0]
    row = " | ".join(f"{100 * n / sum(counts):.0f}" for n in counts)
    assert f"| angry | {sum(counts)} | {row} |" in text
    assert "lower-bound, addition, visual:0.95: rows true" in text


def test_a_budget_takes_seeds_then_fusions_column_by_column(media):
    grid = {"methods": TABLE1.methods, "fusions": TABLE1.fusions, "missing": TABLE1.missing, "seeds": 5}
    plan = plan_grid([media], **grid, clips_of=clips_as(tiny()))
    assert len(plan.cells) == 66
    seconds = dict.fromkeys(plan.cells, 50.0)  # 10 s a run, 3300 s in all

    def chosen(budget):
        cells, gone, cost = within_budget(plan.cells, seconds, budget, SMALLEST_CUT)
        assert cost <= budget
        return cells, gone

    cells, gone = chosen(1400)
    assert len(cells) == 66 and {len(c.runs) for c in cells} == {2} and len(gone) == 1
    cells, gone = chosen(1000)
    assert {c.fusion for c in cells if c.missing.name == "audio:0.95"} == {"addition", "concatenation"}
    assert "all methods of outer with audio:0.95 by clip" in gone
    assert len({c.method for c in cells if c.fusion == "addition" and c.missing.name == "visual:0.8"}) == 4
    cells, _ = chosen(45)
    assert [(c.method, c.fusion, c.missing.name, len(c.runs)) for c in cells] == [
        (method, "addition", "visual:0.8", 1) for method in TABLE1.methods
    ]
    with pytest.raises(InputError, match="a smaller --end-to-end"):
        chosen(30)


@pytest.mark.parametrize(
    ("method", "frozen"), [("mle", False), ("mle", True), ("lower-bound", False), ("zero-padding", True)]
)
def test_an_estimate_counts_the_images_that_training_computes(media, method, frozen, monkeypatch):
    """With a second for an image, however computed."""
    one = estimate_end_to_end.Cost(1.0, 1.0, 0.0)
    monkeypatch.setattr(estimate_end_to_end, "_measure", lambda *_: one)
    settings = Settings(epochs=3, batch_size=32, hidden=8, dim=4)
    plan = plan_grid([media], methods=[method], missing=["audio:0.8"], seeds=1, clips_of=clips_as(tiny(frozen=frozen)))
    (seconds,) = estimate_end_to_end.estimate(plan.cells, settings, torch.device("cpu")).values()
    clips = MediaClips(media, tiny(frozen=frozen))
    computed = []
    whole = clips.reader.read
    clips.reader.read = lambda m, rows: computed.append(len(rows)) or whole(m, rows)
    (drawn,) = [clips.run(cell.runs[0].spec) for cell in plan.cells]
    assert drawn.spec.missing == parse_missing("audio:0.8")
    fit(load(method), clips.load(torch.device("cpu")), [drawn], settings, "addition")
    assert seconds == pytest.approx(sum(computed), rel=0.02)


def test_it_runs_on_media(media, tmp_path):
    chosen, absent = choose_stores(TABLE1, media.path.parent, None, None)
    assert [store.path for store in chosen] == [media.path] and absent == []
    with pytest.raises(InputError, match=r"(?s)no store of media.*--dataset enterface05 --media only`\.$"):
        choose_stores(TABLE1, tmp_path, None, None)
