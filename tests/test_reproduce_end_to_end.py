"""The paper's exhibits of networks trained end to end: Table 1, Figures 4 and 5."""

import json
from dataclasses import replace

import pytest
from mlemiss.pipeline.errors import InputError
from mlemiss.trainer.experiments import paper
from mlemiss.trainer.experiments.paper import EXHIBITS
from mlemiss.trainer.experiments.reproduce import choose_stores, reproduce
from mlemiss.trainer.settings import Settings

from .media_stores import TINY, tiny, write_media

QUICK = Settings(dropout=0.0, epochs=1, batch_size=32, hidden=8, dim=4)
TABLE1 = EXHIBITS["table1"]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("media"), clips=96, without_audio=())


def run(exhibit, media, out, **options):
    return reproduce(exhibit, [media], out, exhibit.grid(seeds=1), QUICK, "cpu", end_to_end=tiny(), **options)


@pytest.mark.slow
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


@pytest.mark.slow
def test_figure4_is_a_curve_over_rates(media, tmp_path):
    document = run(EXHIBITS["figure4"], media, tmp_path)
    assert document["missing"] == ["audio:0.5", "audio:0.8", "audio:0.9", "audio:0.95"]
    assert {(c["method"], c["fusion"]) for c in document["cells"]} == {
        row for row in paper.TABLE1 if row[0] in ("zero-padding", "mle")
    }
    assert {c["missing"] for c in document["cells"] if c["paper"] is None} == {"audio:0.5"}
    assert "Accuracy against missing rate" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_budget_stops_after_an_epoch_and_goes_on_from_there(media, tmp_path):
    """An epoch a call; in the end as without a budget."""
    figure5 = replace(EXHIBITS["figure5"], methods=("mle",))
    settings, grid = replace(QUICK, epochs=3), figure5.grid(seeds=1)

    def train(out, hours=None):
        return reproduce(figure5, [media], tmp_path / out, grid, settings, "cpu", end_to_end=tiny(), hours=hours)

    assert train("cut", 1e-9)["cells"] == []  # one epoch of three is no result
    assert "Left out" in (tmp_path / "cut" / "figure5.md").read_text()
    assert len(list((tmp_path / "cut").glob("checkpoints/*/seed0-*.pt"))) == 1
    train("cut", 1e-9)
    (cell,), (whole,) = train("cut", 1e-9)["cells"], train("whole")["cells"]
    assert (cell["mean"], cell["curve"], cell["confusion"]) == (whole["mean"], whole["curve"], whole["confusion"])


@pytest.mark.slow
def test_checkpoints_go_when_their_runs_results_are_kept(media, tmp_path):
    """Seed by seed, so that a budget does not fill the disk; those of other seeds stay, whatever is run."""
    figure5 = replace(EXHIBITS["figure5"], methods=("mle",))
    settings = replace(QUICK, epochs=2)

    def train(seeds, hours=1e-9):
        """Train an epoch; return the runs' checkpoints and the seeds that have results."""
        grid = figure5.grid(seeds=seeds)
        found = reproduce(figure5, [media], tmp_path, grid, settings, "cpu", end_to_end=tiny(), hours=hours)
        there = sorted(path.name.partition("-")[0] for path in tmp_path.glob("checkpoints/*/*.pt"))
        return there, [cell["seeds"] for cell in found["cells"]]

    assert train(2) == (["seed0"], [])
    assert train(2) == ([], [[0]])
    assert train(2) == (["seed1"], [[0]])
    assert train(1, None) == (["seed1"], [[0]])
    (left,) = tmp_path.glob("checkpoints/*/seed1-*.pt")
    left.with_name(left.name.replace("seed1", "seed0")).write_bytes(b"")  # as if killed before it went
    assert train(2, None) == ([], [[0, 1]])
    assert not list((tmp_path / "checkpoints").iterdir())


def test_it_runs_on_media(media, tmp_path):
    chosen, absent = choose_stores(TABLE1, media.path.parent, None, None)
    assert [store.path for store in chosen] == [media.path] and absent == []
    with pytest.raises(InputError, match=r"(?s)no store of media.*--dataset enterface05 --media only`\.$"):
        choose_stores(TABLE1, tmp_path, None, None)
