"""Python's door: the scikit-learn estimator by scikit-learn's own checks, `train` and its results, the page on them."""

import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace

import mlemiss
import numpy as np
import pytest
import torch
from mlemiss import InputError, MissingModalityClassifier
from mlemiss.pipeline.stores.masks import TRAIN, VALIDATION
from mlemiss.trainer.data import RunSpec
from mlemiss.trainer.door.arrays import ArrayClips
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from .feature_stores import grid, write_store
from .test_docs import blocks

torch.set_num_threads(1)  # small networks

QUICK = {"epochs": 3, "hidden": 16, "dim": 4, "random_state": 0, "device": "cpu"}
WIDTHS = {"visual": 6, "audio": 3}


@pytest.fixture(scope="module")
def rows() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return 90 rows of two modalities, each missing in some, and labels of three classes."""
    rng = np.random.default_rng(0)
    y = np.array(["calm", "happy", "sad"])[np.arange(90) % 3]
    X = {name: 2 * np.eye(3, width)[np.arange(90) % 3] + rng.normal(size=(90, width)) for name, width in WIDTHS.items()}
    X["audio"][10:50] = np.nan
    X["visual"][60:70] = np.nan
    return X, y


def test_a_failed_fit_forgets_the_earlier_one(rows):
    X, y = rows
    model = MissingModalityClassifier(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match="not finite"):
        model.set_params(lr=1e30, clamp=0.0).fit(X, np.char.upper(y))
    with pytest.raises(NotFittedError):
        model.predict(X)
    assert not hasattr(model, "trained_")


def test_validation_rows_are_of_two_classes(rows):
    rng = np.random.default_rng(0)
    y = np.array([0] * 200 + [1] * 3)
    for seed in range(5):
        cell = MissingModalityClassifier(random_state=seed)
        parts, observed, label = cell._training_rows(rng.normal(size=(203, 3)), y)
        (run,) = cell._plan(cell._settings(), parts, observed, label).runs
        assert set(label[run.part == VALIDATION]) == set(label[run.part == TRAIN]) == {0, 1}


@pytest.mark.parametrize("method", ["mle", "lower-bound"])
def test_where_validation_takes_the_only_rows_with_a_modality(rows, method):
    X, y = {name: np.nan_to_num(part) for name, part in rows[0].items()}, rows[1]
    model = MissingModalityClassifier(method, **QUICK)
    (run,) = model._plan(model._settings(), *model._training_rows(X, y)).runs
    X["audio"][run.part != VALIDATION] = np.nan
    with pytest.raises(ValueError, match=r"expected .*\nGive more such rows, or lower validation_fraction"):
        model.fit(X, y)


# ---- scikit-learn's conventions ----

SIDES = {"first": slice(0, 1), "others": slice(1, None)}  # of any width
# Fail, and are right to: they put NaN into single features, where a modality is missing as a whole or not at all.
WITH_SINGLE_NAN = {"check_estimators_pickle": "see test_what_is_fitted_holds_no_training_data_and_pickles"}
# scikit-learn skips this one itself, unless SCIPY_ARRAY_API is set: it is for arrays of other libraries.
SKIPPED = {"check_array_api_input"}


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [None, SIDES], ids=["one modality", "two"])
def test_scikit_learns_own_checks(modalities):
    estimator = MissingModalityClassifier(modalities=modalities, device="cpu", epochs=12, lr=0.02, hidden=32, dim=8)
    done = check_estimator(estimator, on_skip=None, on_fail=None, expected_failed_checks=WITH_SINGLE_NAN)
    assert [(one["check_name"], one["exception"]) for one in done if one["status"] == "failed"] == []
    assert {one["check_name"] for one in done if one["status"] == "xfail"} == set(WITH_SINGLE_NAN)
    assert {one["check_name"] for one in done if one["status"] == "skipped"} <= SKIPPED
    assert len(done) > 40


@pytest.mark.parametrize("method", ["mle", "zp", "hgr", "transformer"])
def test_the_first_row_may_lack_a_modality(rows, method):
    """There is no test part; what stands in for it must not be scored."""
    X, y = rows
    lacking = {name: np.nan_to_num(part) for name, part in X.items()}
    lacking["audio"][0] = np.nan
    for state in range(3):
        fitted = MissingModalityClassifier(**QUICK | {"method": method, "random_state": state}).fit(lacking, y)
        assert np.isfinite(fitted.predict_proba(lacking)).all() and fitted.validation_accuracy_[0] > 0


def test_validation_has_two_classes_and_a_dict_its_own_names(rows):
    X, y = rows
    clips = ArrayClips({"a": np.zeros((50, 1))}, np.arange(50) % 2, ["p", "q"], np.ones((50, 1), bool), 0.003)
    part = clips.run(RunSpec(0)).part
    assert sorted(clips.label[part == VALIDATION].tolist()) == [0, 1]
    with pytest.raises(ValueError, match=r"modalities: expected .*, which X has, found x, y\."):
        MissingModalityClassifier(**QUICK, modalities=["x", "y"]).fit(X, y)


@pytest.mark.slow
def test_cross_validation_and_grid_search(rows):
    X, y = rows
    one, options = np.hstack(list(X.values())), {"modalities": WIDTHS, "lr": 0.02}
    estimator = MissingModalityClassifier(**QUICK | options | {"epochs": 10})
    assert cross_val_score(estimator, one, y, cv=3).mean() > 0.6
    search = GridSearchCV(estimator, {"fusion": ["addition", "outer"], "dropout": [0, 0.2]}, cv=2).fit(one, y)
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()
    assert search.predict(one).dtype == y.dtype


def test_what_numpy_masks_is_missing(rows):
    X, y = rows
    masked = {name: np.ma.array(np.nan_to_num(part), mask=np.isnan(part)) for name, part in X.items()}
    model = MissingModalityClassifier(**QUICK)
    expected = model.fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(model.fit(masked, y).predict_proba(masked), expected)
    one, nan = np.ma.hstack(list(masked.values())), np.hstack(list(X.values()))
    assert one.mask.any() and np.isnan(nan).any()
    model.set_params(modalities=WIDTHS)
    found = model.fit(one, y).predict_proba(one)
    np.testing.assert_array_equal(found, model.fit(nan, y).predict_proba(nan))


def test_what_is_no_array_of_two_axes_is_named(rows):
    X, y = rows
    model = MissingModalityClassifier(**QUICK)
    for wrong, words in (
        (X["audio"][:, 0], r"X\['audio'\] has 1 axes: expected two, rows and features"),
        (X["audio"][None], r"X\['audio'\] has 3 axes"),
        (np.full((90, 2), "x"), r"X\['audio'\]: could not convert string"),
    ):
        with pytest.raises(ValueError, match=words):
            model.fit(X | {"audio": wrong}, y)
    with pytest.raises(ValueError, match="Use dim 256 or less, or another fusion"):
        MissingModalityClassifier(fusion="outer", dim=300).fit(X, y)


def test_dict_list_and_one_array_are_the_same(rows):
    X, y = rows
    expected = MissingModalityClassifier(**QUICK).fit(X, y).predict_proba(X)
    assert expected.shape == (90, 3) and np.allclose(expected.sum(1), 1)
    several = MissingModalityClassifier(**QUICK, modalities=list(WIDTHS)).fit(list(X.values()), y)
    np.testing.assert_array_equal(several.predict_proba(list(X.values())), expected)
    one = np.hstack(list(X.values()))
    for modalities in (WIDTHS, {"visual": slice(6), "audio": [6, 7, -1]}):
        fitted = MissingModalityClassifier(**QUICK, modalities=modalities).fit(one, y)
        np.testing.assert_array_equal(fitted.predict_proba(one), expected)


def test_columns_of_a_frame_by_name(rows):
    pandas = pytest.importorskip("pandas")
    X, y = rows
    names = [f"{name}{i}" for name, width in WIDTHS.items() for i in range(width)]
    frame = pandas.DataFrame(np.hstack(list(X.values())), columns=names)
    modalities = {name: [c for c in names if c.startswith(name)] for name in WIDTHS}
    fitted = MissingModalityClassifier(**QUICK, modalities=modalities).fit(frame, y)
    np.testing.assert_array_equal(fitted.predict(frame), MissingModalityClassifier(**QUICK).fit(X, y).predict(X))


def test_a_modality_may_be_absent_in_prediction(rows):
    X, y = rows
    fitted = MissingModalityClassifier(**QUICK).fit(X, y)
    seen = ~np.isnan(X["visual"]).any(1)
    without = {"visual": X["visual"][seen], "audio": np.full((seen.sum(), 3), np.nan)}
    np.testing.assert_array_equal(fitted.predict_proba({"visual": X["visual"][seen]}), fitted.predict_proba(without))


@pytest.mark.parametrize("method", ["zero-padding", "lower-bound", "hgr", "ae2", "only:visual"])
def test_other_methods(rows, method):
    X, y = rows
    probability = MissingModalityClassifier(method, **QUICK, seeds=2).fit(X, y).predict_proba(X)
    assert np.allclose(probability.sum(1), 1)


def test_units_do_not_matter(rows):
    X, y = rows
    expected = MissingModalityClassifier(**QUICK).fit(X, y).predict_proba(X)
    scaled = {"visual": 1e9 + 1e5 * X["visual"], "audio": 1e-12 * X["audio"]}
    np.testing.assert_allclose(
        MissingModalityClassifier(**QUICK).fit(scaled, y).predict_proba(scaled), expected, atol=1e-4
    )


def test_values_too_large(rows):
    X, y = rows
    with pytest.raises(ValueError, match="visual in X has values too large"):
        MissingModalityClassifier(**QUICK).fit(changed(X, "visual", (0, 0), 1e300), y)
    fitted = MissingModalityClassifier(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match="audio in X has values too large"):
        fitted.predict(changed(X, "audio", (0, 0), 1e60))


def test_what_is_fitted_holds_no_training_data_and_pickles(rows):
    X, y = rows
    fitted = MissingModalityClassifier("zero-padding", **QUICK).fit(X, y)
    more = {name: np.tile(part, (20, 1)) for name, part in X.items()}
    wide = clone(fitted).fit(more, np.tile(y, 20))
    assert len(pickle.dumps(wide)) < len(pickle.dumps(fitted)) + 100
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), fitted.predict(X))


# ---- bad input ----


def changed(X, modality, row, value):
    part = X[modality].copy()
    part[row] = value
    return X | {modality: part}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X: X | {"audio": X["audio"][:80]}, "unequal lengths.*visual 90, audio 80"),
        (lambda X: changed(X, "visual", 12, np.nan), "row 12 of X lacks every modality"),
        (lambda X: changed(X, "visual", (3, 2), np.nan), "row 3 of visual in X is NaN in 1 of 6 features"),
        (lambda X: changed(X, "audio", (2, 0), -np.inf), "row 2 of audio in X holds infinity"),
        (lambda X: X | {"audio": X["audio"][:, 0]}, "'audio'. has 1 axes"),
        (lambda X: {}, "no arrays"),
    ],
)
def test_bad_rows(rows, change, words):
    X, y = rows
    with pytest.raises(ValueError, match=words):
        MissingModalityClassifier(**QUICK).fit(change(X), y)
    if X:
        fitted = MissingModalityClassifier(**QUICK | {"epochs": 1}).fit(X, y)
        with pytest.raises(ValueError, match=words):
            fitted.predict(change(X))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"method": "audio-only", "modalities": ["m", "n"]}, "looks at audio, and X has m, n"),
        ({"fusion": "sum"}, "unknown fusion"),
        ({"method": "zero-padding", "fusion": "outer"}, "cannot use the fusion outer"),
        ({"lr": -1}, "lr -1 is out of range"),
        ({"lr": "x"}, "lr: expected a number, found 'x'"),
        ({"epochs": 1.5}, "epochs: expected a whole number, found 1.5"),
        ({"own": 3}, "own 3 is no dict"),
        ({"method": 3}, "method: expected one name, found 3"),
        ({"device": 3}, "unknown device 3"),
        ({"validation_fraction": "x"}, "validation_fraction x is out of range"),
        ({"own": {"magic": 1}}, "mle has no setting magic"),
        ({"validation_fraction": 0}, "validation_fraction 0 is out of range"),
        ({"seeds": 0}, "expected at least one"),
        ({"seeds": "x"}, "seeds: expected a whole number, found 'x'"),
        ({"seeds": 1.5}, "seeds: expected a whole number, found 1.5"),
        ({"seeds": True}, "seeds: expected a whole number, found True"),
        ({"method": ["mle"]}, "method: expected one name"),
        ({"fusion": ["addition"]}, "fusion: expected one name"),
        ({"device": "tpu"}, "unknown device"),
        ({"modalities": 5}, "modalities is 5: expected the names of 2 arrays"),
        ({"modalities": ["one"]}, "expected 1: one"),
    ],
)
def test_bad_settings(rows, settings, words):
    X, y = rows
    with pytest.raises(ValueError, match=words):
        MissingModalityClassifier(**QUICK | settings).fit(list(X.values()) if "modalities" in settings else X, y)


@pytest.mark.parametrize(
    ("modalities", "words"),
    [
        ({"visual": 6, "audio": 4}, "in sum X's 9"),
        ({"visual": [0, 1], "audio": [9]}, "no such"),
        ({"visual": ["v"]}, "no such"),
        ({"visual": slice(9, 20)}, "no column"),
        ({"visual": slice(0, 6), "audio": slice(5, 9)}, "column 5 of X is in visual and in audio"),
        ({"visual": [0, 0]}, "column 0 of X is in visual and in visual: expected it once"),
        (["visual", "audio"], "expected a dict"),
        ({"visual": 6, "audio": [7, 8]}, "the width of each, or the columns of each"),
    ],
)
def test_bad_columns(rows, modalities, words):
    X, y = rows
    with pytest.raises(ValueError, match=words):
        MissingModalityClassifier(**QUICK, modalities=modalities).fit(np.hstack(list(X.values())), y)


def test_bad_labels(rows):
    X, y = rows
    with pytest.raises(ValueError, match="y holds 1 class"):
        MissingModalityClassifier(**QUICK).fit(X, np.repeat("calm", 90))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        MissingModalityClassifier(**QUICK).fit(X, y[:80])
    with pytest.raises(ValueError, match="no row is left to train on of class"):
        MissingModalityClassifier(**QUICK).fit({"visual": X["visual"][:2]}, y[:2])
    with pytest.raises(ValueError, match="no row of X has audio"):
        MissingModalityClassifier(**QUICK).fit(X | {"audio": np.full((90, 3), np.nan), "visual": np.ones((90, 6))}, y)


def test_predicting_before_fit_or_something_else(rows):
    X, y = rows
    with pytest.raises(NotFittedError):
        MissingModalityClassifier(**QUICK).predict(X)
    fitted = MissingModalityClassifier(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match="X has text, and fit saw visual, audio alone"):
        fitted.predict(X | {"text": X["audio"]})
    with pytest.raises(ValueError, match="X has 2 features of audio: expected 3"):
        fitted.predict(X | {"audio": X["audio"][:, :2]})
    with pytest.raises(ValueError, match="X is one array: expected a dict or list"):
        fitted.predict(np.hstack(list(X.values())))


# ---- train, and its results ----


@pytest.mark.slow
def test_train_gives_the_commands_numbers(tmp_path):
    store = write_store(tmp_path)
    combined = {"methods": ["mle", "zero-padding"], "missing": ["audio:0.5"], "seeds": 2}
    expected = grid([store], tmp_path / "command", **combined)
    quick = {
        "epochs": 3,
        "batch_size": 32,
        "lr": 1e-2,
        "hidden": 16,
        "dim": 6,
        "dropout": 0,
        "device": "cpu",
        "verbose": False,
    }
    results = mlemiss.train(store.path, "audio:0.5", "mle,zero-padding", seeds=2, **quick)
    for ours, theirs in zip(results.document["results"], expected["results"], strict=True):
        assert ours["test_accuracy"] == theirs["test_accuracy"]
    assert results.document["comparisons"] == expected["comparisons"]
    pandas = pytest.importorskip("pandas")
    assert results.to_pandas()["mean"].tolist() == [r["mean"] for r in expected["results"]]
    by_seed = results.to_pandas("seeds")
    assert isinstance(by_seed, pandas.DataFrame) and by_seed["seed"].tolist() == [0, 1, 0, 1]
    assert len(results.to_pandas("comparisons")) == len(expected["comparisons"])
    with pytest.raises(InputError, match="expected one of cells, seeds, comparisons"):
        results.to_pandas("clips")
    assert "mle addition audio:0.5" in repr(results)
    shown = results._repr_html_()
    assert shown.count("<tr>") == 3 and "missing audio:0.5" in shown
    assert results.report(tmp_path / "new" / "report.html").read_text().startswith("<!DOCTYPE html>")
    kept = results.folder
    assert list(kept.glob("predictions/*.npz"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del results
    assert not kept.exists()


def test_train_keeps_a_run_and_says_what_it_leaves_out(tmp_path):
    store, quick = write_store(tmp_path), {"seeds": 1, "epochs": 1, "verbose": False}
    with pytest.warns(UserWarning, match="zero-padding outer audio:0.5 is left out"):
        missing, fusions = (name for name in ["audio:0.5"]), iter(["outer"])
        results = mlemiss.train([store], missing, ["zp", "lb"], fusions, out=tmp_path / "run", **quick)
    assert "left out" in results._repr_html_()
    assert {"results.json", "report.html", "weights", "predictions"} == {p.name for p in (tmp_path / "run").iterdir()}
    for wrong, words in (
        ({"out": tmp_path / "run"}, "holds the results of another run"),
        ({"layers": 3}, "unknown setting 'layers'"),
        ({"lr": -1}, "out of range"),
        ({"out": 5}, "out: expected a path, found 5"),
        ({"seeds": True}, "seeds True: expected how many"),
        ({"device": "tpu"}, "unknown device"),
        ({"missing": "text:0.5"}, "text:0.5"),
        ({"missing": 0.5}, "missing: expected a text, or several, found 0.5"),
        ({"missing": [0.5]}, "missing: expected a text, or several, found"),
        ({"missing": {"audio": 0.5}}, "missing: expected a text, or several, found"),
        ({"method": []}, "method: expected a text, or several, found"),
        ({"seeds": 0}, "seeds: expected at least one, found none"),
    ):
        with pytest.raises(InputError, match=words):
            mlemiss.train(store, **{"missing": "audio:0.5"} | quick | wrong)
    with pytest.raises(InputError, match="tuned: expected a path, found 5"):
        mlemiss.train(store, "audio:0.5", tuned=5)
    for wrong in (None, 5):
        with pytest.raises(InputError, match=f"expected a store's path or URL, found {wrong}"):
            mlemiss.open_store(wrong)
        with pytest.raises(InputError, match=f"report: expected a path, found {wrong}"):
            results.report(wrong)
    twice = mlemiss.train([store, store.path, str(store.path)], "audio:0.5", "lb", **quick | {"seeds": [1, 1]})
    assert [r["seeds"] for r in twice.document["results"]] == [[1]]


@pytest.mark.parametrize("at_once", [16, 1])
def test_seeds_of_the_estimator_are_averaged(rows, monkeypatch, at_once):
    """Also where they are trained one after the other."""
    X, y = rows
    monkeypatch.setattr("mlemiss.trainer.door.estimator.MOST_RUNS", {"cpu": at_once})

    class Drawn(np.random.RandomState):
        def randint(self, *_):
            return self.first

    def fitted(first, seeds=1):
        state = Drawn()
        state.first = first
        return MissingModalityClassifier(**QUICK | {"random_state": state, "seeds": seeds}).fit(X, y)

    one, two, both = fitted(7), fitted(8), fitted(7, seeds=2)
    assert both.validation_accuracy_ == [*one.validation_accuracy_, *two.validation_accuracy_]
    assert not np.allclose(one.predict_proba(X), two.predict_proba(X), atol=1e-3)
    mean = (one.predict_proba(X) + two.predict_proba(X)) / 2
    np.testing.assert_allclose(both.predict_proba(X), mean, atol=1e-4)
    same, again, other = (MissingModalityClassifier(**QUICK | {"random_state": s}).fit(X, y) for s in (1, 1, 2))
    assert np.array_equal(same.predict_proba(X), again.predict_proba(X))
    assert not np.allclose(same.predict_proba(X), other.predict_proba(X), atol=1e-3)


def test_a_notebook_shows_a_bar(rows, monkeypatch, capsys):
    """IPython as far as a bar needs it; where it is installed its kernel shows the same."""
    shown: list[dict] = []

    class Handle:
        def update(self, picture, raw):
            shown.append(picture)

    def display(picture, raw, display_id):
        shown.append(picture)
        return Handle()

    kernel = SimpleNamespace(kernel="of a notebook")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    X, y = rows
    MissingModalityClassifier(**QUICK, verbose=True).fit(X, y)
    assert 'value="0"' in shown[0]["text/html"] and "mle: 0/" in shown[0]["text/plain"]
    total = QUICK["epochs"] * (90 - round(0.15 * 90))
    assert f'<progress value="{total}" max="{total}">' in shown[-1]["text/html"]
    assert capsys.readouterr().err == ""


def test_importing_loads_nothing():
    code = "import sys, mlemiss; dir(mlemiss); mlemiss.__version__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "sklearn", "zarr", "typer"} & set(loaded)
    assert {"train", "open_store", "MissingModalityClassifier"} <= set(dir(mlemiss))
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        mlemiss.magic  # noqa: B018


@pytest.mark.slow
def test_the_pages_cells_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "stores", dataset="ravdess", features="resnet50")
    found: dict = {}
    for cell in blocks("docs/python.md", "python"):
        exec(cell, found)
    assert (tmp_path / "report.html").is_file()
