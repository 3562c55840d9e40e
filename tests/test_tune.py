"""Tuning: the same draws for every method, chosen on validation clips of seeds that are not reported."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.mask_files import export_masks
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.door.training import train
from mlemiss.trainer.experiments import tune
from mlemiss.trainer.experiments.grid import Grid, notes_on, plan_grid
from mlemiss.trainer.experiments.space import COMMON, Space, parse_space
from mlemiss.trainer.experiments.tuned import Tuned
from mlemiss.trainer.report.comparisons import family_key
from mlemiss.trainer.settings import Rate, Settings

from .feature_stores import write_store

TWO = ("lr", "weight_decay")
QUICK = ["--epochs", 2, "--missing", "audio:0.5,visual:0.5", "--seeds", 1]


# ---- draws ----


def test_draws_are_those_of_their_number_and_setting():
    space, rates = Space(), {"gate": Rate(0.01, 0.001, 0.1)}
    some, more, another = (space.settings(Settings(), own, n) for own, n in (({}, 5), ({}, 40), (rates, 5)))
    assert some == more[:5] and some[0] == Settings()
    assert all(a == Settings(**{**vars(b), "own": {}}) for a, b in zip(some, another, strict=True))
    assert another[0].own == {} and all(0.001 <= one.own["gate"] <= 0.1 for one in another[1:])
    for name, of in COMMON.items():
        values = [getattr(one, name) for one in more]
        assert all(value is None or value in of for value in values)
        assert len(set(values)) > 1
    assert 8 <= sum(one.hide == 0 for one in more) <= 32  # half of the draws leave it as it is
    lr = np.log([one.lr for one in more])
    assert abs(lr.mean() - np.log(3e-3)) < 0.5  # even in the logarithm
    lr, decay = (np.log([getattr(one, name) for one in space.settings(Settings(), {}, 41)[1:]]) for name in TWO)
    assert abs(np.corrcoef(lr, decay)[0, 1]) < 0.5  # each setting is drawn by itself
    gates = [one.own["gate"] for one in space.settings(Settings(), rates, 40)[1:]]
    assert 0.005 < np.median(gates) < 0.02  # a method's own, too
    narrowed = [one.lr for one in parse_space(["lr=1e-6..1"], {}).settings(Settings(), {}, 40)[1:]]
    assert 1e-4 < np.median(narrowed) < 1e-2


def test_a_space_of_ones_own():
    space = parse_space(
        ["lr=1e-4..1e-2", "hidden=32|48", "weight-decay=0", "gate=0.5"], {"gate": Rate(0.01, 0.001, 0.1)}
    )
    drawn = space.settings(Settings(), {"gate": Rate(0.01, 0.001, 0.1)}, 30)
    assert drawn[0].lr == Settings.lr  # the default is in the range
    assert all(1e-4 <= one.lr <= 1e-2 for one in drawn)
    assert {one.hidden for one in drawn} == {32, 48} and {one.weight_decay for one in drawn} == {0}
    assert {one.own["gate"] for one in drawn} == {0.5}


def test_a_space_tells_the_ranges_of_methods_own_settings():
    gate, slower = Rate(0.01, 0.001, 0.1), Rate(0.1, 0.02, 0.5)
    told = Space().describe({"mle": {}, "a": {"gate": gate}, "b": {"gate": slower, "ranking": gate}})
    assert [*told.items()][len(COMMON) :] == [
        ("gate of a", "0.001..0.1"),
        ("gate of b", "0.02..0.5"),
        ("ranking", "0.001..0.1"),
    ]
    narrowed = parse_space(["gate=0.5", "lr=1e-4..1e-3"], {"gate": gate}).describe({"a": {"gate": gate}})
    assert narrowed["gate"] == "0.5" and narrowed["lr"] == "0.0001..0.001"
    assert [*Space().describe({"mle": {}})] == [*COMMON]


def test_narrow_ranges_are_kept():
    for text, name in (
        ("weight_decay=0..1e-3", "weight_decay"),
        ("hide=0.9994..0.9999", "hide"),
        ("complete_share=0.9994..0.9999", "complete_share"),
        ("lr=0.00123456..0.00123457", "lr"),
    ):
        space = parse_space([text], {})
        values = [getattr(one, name) for one in space.settings(Settings(), {}, 40)[1:]]
        assert all(one in space.narrowed[name] for one in values), text
        assert len(set(values)) > (15 if name != "lr" else 0), text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lr=2..1", "holds no valid draw: 2 is more than 1"),
        ("lr=-1..1", "--space lr=-1..1: lr -1 is out of range"),
        ("dropout=0..2", "--space dropout=0..2: dropout 2.0 is out of range"),
        ("hidden=1..64", "Name them: hidden=1|64"),
        ("hidden=6.5", "expected hidden=LOW..HIGH"),
        ("lr", "expected lr=LOW..HIGH"),
        ("lr=1..2..3", "expected lr=LOW..HIGH"),
        ("epochs=3", "expected one of lr, weight_decay"),
        ("gate=-1", "gate -1.0 is out of range"),
    ],
)
def test_spaces_that_are_none(text, why):
    with pytest.raises(InputError, match=why):
        parse_space([text], {"gate": Rate(0.01, 0.001, 0.1)})
    with pytest.raises(InputError, match="twice"):
        parse_space(["lr=1", "lr=2"], {})


# ---- by the command ----


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores")).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tuned") / "t"


@pytest.fixture
def tuned(store, folder, mlemiss):
    """A tuning of two methods and a reference, in two commands: the second goes on."""
    if not folder.exists():
        first = mlemiss(*tune_command(store, folder), "--draws", 2)
        assert first.returncode == 0, first.stderr
        more = mlemiss(*tune_command(store, folder), "--draws", 4)
        assert more.returncode == 0 and "12 of 24 cells are finished and kept" in more.stderr
    return folder


def test_tune_chooses_by_one_test(store, tmp_path, mlemiss):
    wrong = mlemiss(*tune_command(store, tmp_path / "t"), "--missing-test", "none,audio:1")
    assert wrong.returncode == 2 and "tune chooses by one, found several" in wrong.stderr


def tune_command(store, out):
    return ["tune", "--store", store, "--method", "mle,flex-moe,only:audio", *QUICK, "--out", out]


@pytest.mark.slow
def test_the_choice_is_the_draw_with_the_highest_validation_accuracy(tuned):
    document, results = (json.loads((tuned / name).read_text()) for name in ("tuned.json", "results.json"))
    assert document["space"]["gate"] == "0.001..0.1"  # flex-moe's own
    assert document["draws"] == 4 and document["seeds"] == [1000] and len(document["rows"]) == 6
    assert len(results["results"]) == 24 and results["comparisons"] == []
    for row in document["rows"]:
        of = [r for r in results["results"] if all(r[n] == row[n] for n in ("method", "missing"))]
        scores = [np.mean(r["val_accuracy"]) for r in of]
        assert row["validation"] == pytest.approx(scores, abs=1e-3)
        assert row["draw"] == int(np.argmax(scores)) and row["settings"] == of[row["draw"]]["settings"]
        own = {"gate": 0.01} if row["method"] == "flex-moe" else {}  # the page shows defaults, too
        assert [{**r["settings"], "own": own | r["settings"]["own"]} for r in of] == row["drawn"]
    common = [[{**one, "own": {}} for one in row["drawn"]] for row in document["rows"]]
    assert all(drawn == common[0] for drawn in common)  # the same draws for every row
    page = (tuned / "tune.html").read_text()
    assert page.count("<h2>") == 2 and page.count("data:image/svg+xml") == 2 and "4 of each row" in page
    assert "gate 0.001..0.1" in page


@pytest.mark.slow
def test_training_with_what_was_chosen(tuned, store, tmp_path, mlemiss):
    how = ["train", "--store", store, "--method", "mle,flex-moe,only:audio", "--missing", "audio:0.5", "--tuned", tuned]
    done = mlemiss(*how, "--seeds", 2, "--out", tmp_path / "run", "--json")
    assert done.returncode == 0 and "chosen among 4 draws of each row" in done.stderr, done.stderr
    document, rows = json.loads(done.stdout), json.loads((tuned / "tuned.json").read_text())["rows"]
    for result in document["results"]:
        (row,) = [r for r in rows if all(r[n] == result[n] for n in ("method", "missing"))]
        assert result["settings"] == row["settings"] and result["tuned"]["draws"] == 4
        assert result["tuned"]["validation"] == row["validation"][row["draw"]]
    assert len({json.dumps(r["settings"]) for r in document["results"]}) > 1
    named = {"missing": "audio:0.5", "method": "mle,flex-moe,only:audio", "seeds": 2, "verbose": False}
    in_python = train(store, **named, tuned=tuned, device="cpu").document["results"]
    assert [r["test_accuracy"] for r in in_python] == [r["test_accuracy"] for r in document["results"]]
    with pytest.raises(InputError, match="Leave out lr, or tuned"):
        train(store, **named, tuned=tuned, lr=0.1)
    assert len(document["comparisons"]) == 3  # one table, though each method has settings of its own
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Paired comparisons: 3 differences" in page and "4 draws for each row on seeds 1000" in page
    for options, why in (
        (["--lr", 0.1], "--tuned and settings of your own exclude each other"),
        (["--seeds", 1001], "seeds [1000] were tuned on"),
        (["--method", "ae1"], "has tuned nothing for toy toy ae1 addition audio:0.5: method ae1 (tuned: mle, flex-moe"),
        (["--missing", "audio:0.7"], "missing audio:0.7 (tuned: audio:0.5, visual:0.5)"),
        (["--tuned", tmp_path], "no tuned.json in the folder"),
    ):
        wrong = mlemiss(*how, *options, "--out", tmp_path / "none")
        assert wrong.returncode == 2 and why in wrong.stderr, wrong.stderr
        assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_choices_are_of_the_same_splits_and_masks(store, tmp_path, mlemiss):
    """By their content, and also where one of the two has none; a folder of another run is left as it is."""
    export_masks(FeatureStore.open(store), tmp_path / "f", 3, ["audio:0.5"], "clip")
    how = ["--store", store, "--missing", "audio:0.5", "--method", "mle", "--epochs", 1, "--seeds", 1]
    given = ["--splits", "f/splits.csv", "--masks", "f/masks.csv"]
    for files, out in ((given, "with"), ([], "without")):
        done = mlemiss("tune", *how, *files, "--first-seed", 2, "--draws", 2, "--out", out)
        assert done.returncode == 0, done.stderr
    how = [*how[:-4], "--seeds", 1]
    same = mlemiss("train", *how, *given, "--tuned", "with", "--out", "run")
    assert same.returncode == 0, same.stderr
    path = tmp_path / "f" / "masks.csv"
    for files, tuned in ((given[:2], "with"), (given[2:], "without")):
        wrong = mlemiss("train", *how, *files, "--tuned", tuned, "--out", "none")
        assert wrong.returncode == 2, wrong.stderr
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    wrong = mlemiss("train", *how, *given, "--tuned", "with", "--out", "none")
    assert wrong.returncode == 2 and "with was tuned with other splits or masks" in wrong.stderr
    before = sorted((tmp_path / "run").iterdir())
    wrong = mlemiss("tune", *how, "--out", "run")
    assert wrong.returncode == 2 and "results of another run" in wrong.stderr
    assert sorted((tmp_path / "run").iterdir()) == before


@pytest.mark.slow
def test_other_features_and_damaged_choices(tuned, tmp_path, mlemiss):
    other = write_store(tmp_path, features="others", weights_hash="1").path
    wrong = mlemiss("train", "--store", other, "--missing", "audio:0.5", "--tuned", tuned, "--out", tmp_path / "r")
    assert wrong.returncode == 2 and "features others (tuned: toy)" in wrong.stderr
    shutil.copytree(tuned, tmp_path / "t")
    for text in ("{}", "no json", '{"rows": [1]}'):
        (tmp_path / "t" / "tuned.json").write_text(text)
        wrong = mlemiss("train", "--store", other, "--missing", "audio:0.5", "--tuned", tmp_path / "t")
        assert wrong.returncode == 2 and "cannot be read as what `mlemiss tune` chose" in wrong.stderr
    refused = mlemiss("report", tuned)
    assert refused.returncode == 2 and "See tune.html" in refused.stderr


@pytest.mark.slow
def test_a_diverging_draw_has_lost(store, tmp_path, mlemiss):
    wild = [*tune_command(store, tmp_path / "t")[:3], "--method", "mle", *QUICK, "--out", tmp_path / "t", "--json"]
    done = mlemiss(*wild, "--space", "lr=1e-3|1e30", "--draws", 8)
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)["rows"]:
        lr = [one["lr"] for one in row["drawn"]]
        assert {score > 0 for score, rate in zip(row["validation"], lr, strict=True) if rate == 1e30} == {False}
        assert row["settings"]["lr"] < 1 and min(lr) < 1 < max(lr)


@pytest.mark.parametrize(
    ("best_epoch", "accuracies", "diverged"),
    [(2, [50.0, 90.0, 0.0], True), (0, [0.0, 0.0], True), (1, [0.0, 0.0], False), (2, [50.0, 90.0, 40.0], False)],
)
def test_a_draw_that_diverges_late_has_lost_too(best_epoch, accuracies, diverged):
    """Its last epochs have nothing right; one that never had anything right may just be bad."""
    run = SimpleNamespace(best_epoch=best_epoch, val_accuracy=accuracies)
    fine = SimpleNamespace(best_epoch=1, val_accuracy=[80.0, 70.0])
    cell = SimpleNamespace(results={0: fine, 1: run})
    assert tune._diverged(cell) == diverged
    assert tune._validation(cell) == (0 if diverged else (80 + accuracies[best_epoch - 1]) / 2)


def test_a_bad_draw_is_chosen_before_one_that_diverged_and_the_first_of_equals():
    def draw(best_epoch, accuracy):
        return SimpleNamespace(results={0: SimpleNamespace(best_epoch=best_epoch, val_accuracy=[accuracy])})

    assert tune._best([draw(0, 0.0), draw(1, 0.0), draw(1, 0.0)]) == 1
    assert tune._best([draw(1, 50.0), draw(1, 60.0), draw(1, 60.0)]) == 1


@pytest.mark.slow
def test_what_a_budget_cuts_is_judged_on_the_draws_of_all_rows(store, tmp_path, monkeypatch):
    real, calls = tune.run_plan, []

    def cut(plan, *args, **other):
        """Leave the second draw of one row out, as if the time were over then."""
        calls.append(plan)
        real(plan, *args, **other)
        if len(calls) == 2:
            [cell for cell in plan.cells if cell.method == "mle"][1].results.clear()
            (better,) = [cell for cell in plan.cells if cell.method == "zero-padding"][1].results.values()
            better.val_accuracy[better.best_epoch - 1] = 200.0

    monkeypatch.setattr(tune, "run_plan", cut)
    grid = Grid(["mle", "zp"], missing=["audio:0.5"], seeds=[1000])
    settings = Settings(epochs=1)
    document = tune.tune([FeatureStore.open(store)], tmp_path / "t", grid, settings, Space(), 4, "cpu", hours=1)
    assert len(calls) == 2 and document["draws"] == 1
    assert [len(row["validation"]) for row in document["rows"]] == [1, 1]
    assert [row["draw"] for row in document["rows"]] == [0, 0]


def test_a_kill_in_a_later_tuning_leaves_no_choice_of_the_earlier(store, tmp_path, monkeypatch):
    def tuned(draws):
        grid = Grid(["zp"], missing=["audio:0.5"], seeds=[1000])
        return tune.tune([FeatureStore.open(store)], tmp_path, grid, Settings(epochs=1), Space(), draws, "cpu")

    def killed(*_, **__):
        raise KeyboardInterrupt

    tuned(1)
    assert Tuned(tmp_path).facts["draws"] == 1
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tune, "run_plan", killed)
        tuned(2)
    with pytest.raises(InputError, match="tuning has not ended"):
        Tuned(tmp_path)
    tuned(2)
    assert Tuned(tmp_path).facts["draws"] == 2


def test_two_groups_to_split_by_are_told(tmp_path):
    store = write_store(tmp_path)
    store.columns = {
        "subject": store.columns["subject"],
        "hall": np.array(["a", "b"])[np.arange(len(store.clip_id)) % 2],
    }
    plan = plan_grid([store], Grid(["mle"], splits=["hall", "subject"], seeds=1), Settings())
    (note,) = notes_on(plan.cells)
    assert "has 2 of hall: one is the test's" in note


@pytest.mark.slow
def test_somebody_elses_choice_is_not_replaced(store, tmp_path, mlemiss):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tuned.json").write_text("mine")
    done = mlemiss(*tune_command(store, tmp_path / "t"), "--draws", 1)
    assert done.returncode == 2 and "no results.json of its draws" in done.stderr
    assert (tmp_path / "t" / "tuned.json").read_text() == "mine"


@pytest.mark.slow
def test_tuned_by_several_splits(store, tmp_path, mlemiss):
    done = mlemiss(*tune_command(store, tmp_path / "t"), "--draws", 1, "--split", "clip,subject", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["split"] for row in json.loads(done.stdout)["rows"]} == {"clip", "subject"}


@pytest.mark.slow
def test_all_draws_diverge(store, tmp_path, mlemiss):
    wild = ["tune", "--store", store, "--method", "mle", *QUICK, "--out", tmp_path / "t", "--space", "lr=1e30"]
    done = mlemiss(*wild, "--draws", 2)
    assert done.returncode == 2 and "all 2 draws of toy toy mle addition audio:0.5" in done.stderr
    assert not (tmp_path / "t" / "tuned.json").exists()
    none = mlemiss(
        "tune", "--store", store, *QUICK, "--fusion", "outer", "--space", "dim=4096", "--out", tmp_path / "n"
    )
    assert none.returncode == 2 and "the outer product" in none.stderr and not (tmp_path / "n").exists()
    fixed = [f"{name}={value}" for name, value in {"lr": 0.01, "hide": 0.0, "complete_share": 0.5}.items()]
    fixed += ["weight_decay=0", "dropout=0", "hidden=8", "dim=4"]
    spaces = [part for text in fixed for part in ("--space", text)]
    point = mlemiss("tune", "--store", store, "--method", "mle", *QUICK, *spaces, "--out", tmp_path / "n")
    assert point.returncode == 2 and "the space is one point" in point.stderr and not (tmp_path / "n").exists()


@pytest.mark.slow
def test_what_is_not_the_same_row(tuned, store, tmp_path, mlemiss):
    """Another condition of the test clips, a default that is named, rows that another command tuned."""
    how = ["train", "--store", store, "--method", "mle", "--missing", "audio:0.5", "--tuned", tuned, "--seeds", 1]
    other = mlemiss(*how, "--missing-test", "visual:0.5", "--out", tmp_path / "r")
    assert other.returncode == 2 and "missing_test visual:0.5 (tuned: none)" in other.stderr
    named = mlemiss(*how, "--epochs", Settings.epochs, "--out", tmp_path / "r")
    assert named.returncode == 2 and "Leave out --epochs" in named.stderr
    shutil.copytree(tuned, tmp_path / "t")
    document = json.loads((tmp_path / "t" / "tuned.json").read_text())
    gone = document["rows"].pop(0)
    document["skipped"].append({"cell": "toy toy mle addition audio:0.5", "reason": "a seed of its own"})
    assert (gone["method"], gone["missing"]) == ("mle", "audio:0.5")
    (tmp_path / "t" / "tuned.json").write_text(json.dumps(document))
    skipped = mlemiss(*how, "--tuned", tmp_path / "t", "--out", tmp_path / "r")
    assert skipped.returncode == 2 and "has tuned nothing for toy toy mle addition audio:0.5" in skipped.stderr
    fewer = mlemiss("tune", "--store", store, "--method", "mle", *QUICK, "--draws", 2, "--out", tmp_path / "t")
    assert fewer.returncode == 0, fewer.stderr
    assert "is replaced: it was chosen among 4 draws of each row; 4 rows of it are not of this command" in fewer.stderr


@pytest.mark.slow
def test_the_choice_of_an_earlier_command_is_refused_until_the_later_one_has_ended(tuned, store, tmp_path, mlemiss):
    shutil.copytree(tuned, tmp_path / "t")
    how = ["train", "--store", store, "--method", "mle", "--missing", "audio:0.5", "--seeds", 1, "--tuned"]
    later = ["tune", "--store", store, "--method", "mle", *QUICK, "--space", "lr=1e-4..1e-3", "--draws", 2]
    short = mlemiss(*later, "--budget", 1e-9, "--out", tmp_path / "t")
    assert short.returncode == 2 and "tuned.json is still of an earlier command" in short.stderr
    refused = mlemiss(*how, tmp_path / "t", "--out", tmp_path / "r")
    assert refused.returncode == 2 and "whose tuning has not ended" in refused.stderr and "--draws 4" in refused.stderr
    ended = mlemiss(*later, "--out", tmp_path / "t")
    assert ended.returncode == 0 and "tuned.json is replaced" in ended.stderr
    taken = mlemiss(*how, tmp_path / "t", "--out", tmp_path / "r")
    assert taken.returncode == 0 and "chosen among 2 draws" in taken.stderr


def test_two_tunings_are_two_tables():
    facts = {"run": "tune", "draws": 3, "seeds": [1000], "draw": 0, "validation": 50.0}
    result = {"settings": {"lr": 1.0}, "tuned": facts | {"digest": "a"}}
    assert family_key(result) == family_key(result | {"settings": {"lr": 2.0}})
    assert family_key(result) != family_key(result | {"tuned": facts | {"digest": "b"}})


@pytest.mark.slow
def test_a_budget(store, tmp_path, mlemiss):
    short = mlemiss(*tune_command(store, tmp_path / "t"), "--draws", 4, "--budget", 1e-9)
    assert short.returncode == 2 and "too short for one draw of each of 6 rows" in short.stderr
    assert not (tmp_path / "t" / "tuned.json").exists()
    enough = mlemiss(*tune_command(store, tmp_path / "t"), "--draws", 2, "--budget", 1)
    assert enough.returncode == 0 and json.loads((tmp_path / "t" / "tuned.json").read_text())["draws"] == 2


@pytest.mark.slow
def test_rows_that_cannot_be_trained_are_skipped_in_both(store, tmp_path, mlemiss):
    both = ["--store", store, "--method", "zp,mle", "--fusion", "outer", "--missing", "audio:0.5", "--seeds", 1]
    done = mlemiss("tune", *both, "--epochs", 1, "--draws", 2, "--out", tmp_path / "t", "--json")
    assert done.returncode == 0 and [row["method"] for row in json.loads(done.stdout)["rows"]] == ["mle"]
    trained = mlemiss("train", *both, "--tuned", tmp_path / "t", "--out", tmp_path / "r", "--json")
    assert trained.returncode == 0 and len(json.loads(trained.stdout)["skipped"]) == 1
    for option, value in (("--draws", 0), ("--seeds", 0), ("--budget", 0)):
        wrong = mlemiss("tune", *both, option, value, "--out", tmp_path / "n")
        assert wrong.returncode == 2 and "out of range" in wrong.stderr and not (tmp_path / "n").exists()
