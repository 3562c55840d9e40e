"""Missing rates by value of a column: exact, nested, the same everywhere; and what cannot be is told."""

import re

import numpy as np
import pytest
import torch
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.mask_files import export_masks, read_given
from mlemiss.pipeline.stores.masks import TEST, TRAIN, column_values, missing_clips, parse_missing
from mlemiss.trainer.experiments.grid import Grid, plan_grid
from mlemiss.trainer.report.figures import rates
from mlemiss.trainer.report.tables import sections

from .feature_stores import QUICK, grid, write_store

torch.set_num_threads(1)  # small networks


@pytest.fixture(scope="module")
def valued(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("valued"), clips=240)


def hidden_shares(store, spec, column, seed=0):
    """Which share of the training clips of each value of a column lacks each modality."""
    among = store.split(seed) == TRAIN
    mask = store.missing(parse_missing(spec, store.modalities), seed, among)
    assert not mask[~among].any()
    values = column_values(store, column)
    return {v: mask[among & (values == v)].mean(0) for v in np.unique(values[among])}, mask


@pytest.mark.parametrize("seed", [0, 3])
def test_each_value_has_its_rate(valued, seed):
    among = valued.split(seed) == TRAIN
    shares, mask = hidden_shares(valued, "audio:0.3+audio:0.8@subject=s5+audio:0@subject=s7", "subject", seed)
    others = among & ~np.isin(valued.subject, ["s5", "s7"])
    of_five = among & (valued.subject == "s5")
    assert mask[of_five, 1].sum() == round(0.8 * of_five.sum()) and shares["s7"].tolist() == [0, 0]
    assert mask[others, 1].sum() == round(0.3 * others.sum()) and not mask[:, 0].any()
    for part, rate in ((of_five, 0.8), (others, 0.3)):
        of_class = [(mask[part & (valued.label == z), 1].sum(), (part & (valued.label == z)).sum()) for z in range(3)]
        assert all(abs(lacking - rate * n) <= 1 for lacking, n in of_class)
    only, _ = hidden_shares(valued, "audio:0.5@label=happy", "label", seed)
    assert only["angry"].tolist() == only["sad"].tolist() == [0, 0] and only["happy"][1] == pytest.approx(0.5, abs=0.02)


def test_rates_by_value_are_plain_ones_of_the_value_and_of_the_rest(valued):
    """Drawn by two plain specs, of the value's clips alone and of the others; nested over a value's rates."""
    among, value = valued.split(2) == TRAIN, valued.subject == "s4"
    table = (valued.clip_id, valued.label)
    for rate in (0.2, 0.6):
        mask = valued.missing(parse_missing(f"audio:{rate}@subject=s4+visual:0.4"), 2, among)
        expected = missing_clips(*table, among & value, parse_missing(f"audio:{rate}+visual:0.4"), 2)
        expected |= missing_clips(*table, among & ~value, parse_missing("visual:0.4"), 2)
        np.testing.assert_array_equal(mask, expected)
    few, many = (hidden_shares(valued, f"audio:{r}@label=sad", "label", 1)[1] for r in (0.4, 0.7))
    assert (few <= many).all() and few.sum() < many.sum()


def test_rates_by_value_of_two_columns_and_several_modalities(valued):
    among = valued.split(0) == TRAIN
    spec = parse_missing("audio:0.5@label=happy+visual:0.5@subject=s6", valued.modalities)
    mask = valued.missing(spec, 0, among)
    happy, six = valued.label == 1, valued.subject == "s6"
    assert not mask.all(1).any() and not mask[among & ~happy, 1].any() and not mask[among & ~six, 0].any()
    assert mask[among & happy, 1].sum() == pytest.approx(0.5 * (among & happy).sum(), abs=1)
    assert mask[among & six, 0].sum() == pytest.approx(0.5 * (among & six).sum(), abs=1)


def test_a_stored_mask_is_not_taken_for_one_by_value(valued):
    """The store keeps masks of audio:0.5; by value it is another mask."""
    among = valued.split(0) == TRAIN
    plain, by_value = (parse_missing(text) for text in ("audio:0.5", "audio:0.5+audio:0@label=sad"))
    mask = valued.missing(by_value, 0, among)
    assert not mask[valued.label == 2].any() and mask.sum() < valued.missing(plain, 0, among).sum()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("audio:0.80@ label = sad ", "audio:0.8@label=sad"),
        ("audio:0.8@label=sad+audio:0.3+visual:0.1", "audio:0.3+visual:0.1+audio:0.8@label=sad"),
        ("audio:0@label=sad", "none"),  # as without
        ("audio:0@label=sad+audio:0.3", "audio:0.3+audio:0@label=sad"),
        ("label:0.2+audio:0.8@text=a:b=c@d e", "audio:0.8@text=a:b=c@d e+label:0.2"),
    ],
)
def test_rates_by_value_have_one_spelling(text, name):
    assert parse_missing(text).name == name and parse_missing(name) == parse_missing(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("audio:0.5@label", "'label' after '@': expected COLUMN=VALUE"),
        ("audio:0.5@", "'' after '@'"),
        ("audio:0.5@=sad", "expected COLUMN=VALUE"),
        ("audio:x@label=sad", "'x' is no number"),
        ("audio:1.5@label=sad", "not between 0 and 1"),
        ("smell:0.5@label=sad", "no known modality"),
        ("audio:0.5@label=sad+audio:0.6@label=sad", "audio@label=sad is named twice"),
        ("audio:0.5@label=sad+audio:0.6@subject=s1", "by values of two columns"),
        ("label:0.5@subject=s1", "labels go missing at one rate"),
    ],
)
def test_wrong_rates_by_value_are_told(text, why):
    with pytest.raises(InputError, match=re.escape(why)):
        parse_missing(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "audio:0.5@mood=sad",
            "names the column 'mood', which toy-toy-0123abcd.zarr lacks.\nColumns are label, subject.",
        ),
        ("audio:0.5@label=glad", "has label 'glad'.\nValues of label are angry, happy, sad."),
        ("audio:0.8@label=sad+visual:0.3", "of the clips of label 'sad': missing spec 'visual:0.3+audio:0.8'"),
        ("audio:0.8@label=sad+visual:0.3@label=sad", "of the clips of label 'sad': missing spec"),
    ],
)
def test_values_that_a_store_lacks_and_clips_with_nothing_are_told(valued, text, why):
    with pytest.raises(InputError, match=re.escape(why)):
        valued.missing(parse_missing(text), 0, valued.split(0) == TRAIN)


def test_a_grid_with_an_unknown_value_is_refused_whatever_else_is_in_it(valued):
    for more in ({"missing": ["none", "audio:0.5@label=glad"]}, {"missing_test": ["none", "audio:0.5@label=glad"]}):
        with pytest.raises(InputError, match="has label 'glad'"):
            plan_grid([valued], Grid(["zp"], seeds=1, **more), QUICK)
    plan = plan_grid([valued], Grid(["zp"], missing=["none", "audio:0.8@label=sad+visual:0.3"], seeds=1), QUICK)
    assert (
        len(plan.cells) == 1 and "of the clips of label 'sad'" in plan.skipped[0]["reason"]
    )  # they would have nothing


def test_trained_and_tested_by_value(valued, tmp_path):
    spec, test = "audio:0.8@label=sad+audio:0.1", "visual:1@subject=s6"
    document = grid(
        [valued], tmp_path, methods=["zp"], missing=[spec, "audio:0.5"], missing_test=["none", test], seeds=2
    )
    result, plain = document["results"]
    assert result["missing"] == "audio:0.1+audio:0.8@label=sad" and result["missing_tests"] == ["none", test]
    train = valued.split(0) == TRAIN
    lacking = valued.missing(parse_missing(spec), 0, train)[train].any(1).sum()
    assert result["n_complete"][0] == pytest.approx(train.sum() - lacking, abs=2)  # two clips lack audio by nature
    with np.load(tmp_path / result["predictions"]) as file:
        (other,), first = file["more_probabilities"], file["probabilities"]
    six = (valued.subject == "s6")[valued.done]
    tested = (valued.split(0) == TEST)[valued.done]
    np.testing.assert_array_equal(other[0, tested & ~six], first[0, tested & ~six])
    assert (other[0, tested & six] != first[0, tested & six]).all()
    (part,) = sections([document])
    assert rates(part) == {}  # no one rate
    assert "What is missing depends on label and subject, so it is not missing at random." in part.notes()
    alone = sections([document | {"results": [plain | {"missing_tests": None}]}])[0]
    assert not any("depends on" in note for note in alone.notes())


def test_masks_of_rates_by_value_as_files_give_the_same_numbers(valued, tmp_path):
    spec = "audio:0.8@label=sad"
    splits, masks = export_masks(valued, tmp_path, 1, [spec], "clip")
    files = read_given(splits, masks, [valued])
    given = files.apply(valued, range(1), [files.setting(spec)])
    own = grid([valued], tmp_path / "own", methods=["zp"], missing=[spec], seeds=1)["results"][0]
    other = grid([given], tmp_path / "given", methods=["zp"], missing=[files.setting(spec)], seeds=1)["results"][0]
    assert own["missing"] == other["missing"] == spec and own["test_accuracy"] == other["test_accuracy"]


@pytest.mark.slow
def test_an_unknown_column_as_a_user(valued, mlemiss):
    bad = mlemiss("train", "--store", valued.path, "--missing", "audio:0.5@mood=sad")
    assert bad.returncode == 2 and "Columns are label, subject." in bad.stderr and "Traceback" not in bad.stderr


def test_joined_stores_have_the_same_masks(valued, tmp_path):
    from mlemiss.pipeline.stores.catalogue import open_store

    joined = open_store(f"visual={valued.path},audio={valued.path}")
    spec = parse_missing("audio:0.3+audio:0.8@subject=s5")
    among = valued.split(1) == TRAIN
    np.testing.assert_array_equal(joined.missing(spec, 1, among), valued.missing(spec, 1, among))
