"""Splits and masks: exact, stratified, nested, disjoint; a function of nothing but ids, labels, rate and seed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlemiss.pipeline.clips.datasets import ravdess
from mlemiss.pipeline.clips.manifest import read_manifest
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores.masks import (
    TEST,
    TRAIN,
    VALIDATION,
    Missing,
    missing_by_class,
    missing_clips,
    parse_missing,
    split_clips,
)

MANIFESTS = Path(__file__).parents[1] / "data_manifests"


def clips(n: int, classes: int = 6) -> tuple[list[str], np.ndarray]:
    return [f"clip-{i:04d}" for i in range(n)], np.arange(n) % classes


def test_split_has_the_papers_sizes():
    for n, held_out in ((1152, 173), (1293, 194)):
        parts = split_clips(*clips(n), seed=0)
        assert [(parts == part).sum() for part in (TRAIN, VALIDATION, TEST)] == [n - 2 * held_out, held_out, held_out]


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(20, 300),
    classes=st.integers(1, 8),
    seed=st.integers(0, 99),
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_masks_are_exact_stratified_and_nested(n, classes, seed, rates):
    ids, labels = clips(n, classes)
    train = split_clips(ids, labels, seed) == TRAIN
    for names in (("visual", "audio"), ("text",), ("visual", "audio", "text", "pose")):
        for position, modality in enumerate(names):
            check_nested(ids, labels, train, names, position, [((modality, rate),) for rate in rates], seed)


def check_nested(ids, labels, train, names, position, rates, seed):
    """One modality's masks at a lower and a higher rate, the others' rates being the same."""
    low, high = (missing_clips(ids, labels, train, Missing(r), seed, names) for r in rates)
    rate = dict(rates[1])[names[position]]
    assert high.shape == (len(ids), len(names))
    assert high[:, position].sum() == round(rate * train.sum())
    assert not (low & ~high)[:, position].any()
    assert not high[~train].any() and high.sum(1).max() <= 1
    for label in set(labels.tolist()):
        of_class = train & (labels == label)
        assert abs(high[of_class, position].sum() - rate * of_class.sum()) <= (2 if len(rates[1]) > 1 else 1.5)


@settings(deadline=None, max_examples=20)
@given(
    n=st.integers(20, 200),
    seed=st.integers(0, 99),
    names=st.permutations(["visual", "audio", "text"]),
    rates=st.tuples(st.floats(0.02, 0.3), st.floats(0.02, 0.3), st.floats(0.02, 0.3), st.floats(0.02, 0.3)),
)
def test_three_modalities_are_missing_in_disjoint_clips(n, seed, names, rates):
    """Any two or three of them, each as often as it should be, nested over its own rates; no clip lacks two."""
    ids, labels = clips(n, 3)
    train = split_clips(ids, labels, seed) == TRAIN
    lower, *rest = rates[1:]
    for others in ({}, {names[1]: rest[0]}, dict(zip(names[1:], rest, strict=True))):
        low, high = (tuple(sorted(({names[0]: rate} | others).items())) for rate in sorted((lower, rates[0])))
        for stored in (tuple(names), ("visual", "audio", "text")):
            check_nested(ids, labels, train, stored, stored.index(names[0]), [low, high], seed)
            mask = missing_clips(ids, labels, train, Missing(high), seed, stored)
            assert mask.sum() == sum(round(rate * train.sum()) for _, rate in high)


def test_order_of_listing_does_not_matter():
    ids, labels = clips(200)
    shuffle = np.random.default_rng(0).permutation(200)
    there = split_clips([ids[i] for i in shuffle], labels[shuffle], seed=3)
    np.testing.assert_array_equal(there, split_clips(ids, labels, seed=3)[shuffle])


def test_seeds_differ():
    ids, labels = clips(200)
    assert not np.array_equal(split_clips(ids, labels, 0), split_clips(ids, labels, 1))
    everything = np.ones(200, bool)
    half = parse_missing("audio:0.5")
    first, second = (missing_clips(ids, labels, everything, half, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_joined_specs_hide_disjoint_clips():
    ids, labels = clips(101)
    mask = missing_clips(ids, labels, np.ones(101, bool), parse_missing("visual:0.5+audio:0.5"), seed=0)
    assert not mask.all(1).any()
    assert mask.sum() in (100, 101)  # round half to even, but never more than there are


def test_groups_stay_together():
    ids, labels = clips(1152)
    groups = np.array([f"actor-{i // 48}" for i in range(1152)])
    parts = split_clips(ids, labels, 0, groups)
    for group in set(groups):
        assert len(set(parts[groups == group])) == 1
    assert {part: (parts == part).sum() for part in (VALIDATION, TEST)} == {VALIDATION: 192, TEST: 192}


def test_too_few_groups():
    with pytest.raises(InputError, match="at least 2 groups"):
        split_clips(*clips(10), seed=0, groups=["a"] * 10)


@pytest.mark.parametrize("column", ["statement", "repetition"])
def test_a_column_of_two_values_is_split(column):
    """RAVDESS has two of each: one is the test part, whichever the seed says, and never seen before it."""
    known = [clip for clip in read_manifest(MANIFESTS / "ravdess.csv") if clip.label in ravdess.CLASSES]
    values = np.array([dict(clip.columns)[column] for clip in known])
    labels = [ravdess.CLASSES.index(clip.label) for clip in known]
    tested = set()
    for seed in range(5):
        parts = split_clips([clip.clip_id for clip in known], labels, seed, values)
        (value,) = set(values[parts == 2])
        assert value not in values[parts != 2] and (parts == 2).sum() == 576
        assert (parts == 1).sum() == round(0.15 * 1152) and min(np.bincount(np.array(labels)[parts == 1])) >= 28
        tested.add(value)
    assert len(tested) == 2


def test_the_only_modality_cannot_be_missing():
    assert parse_missing("none", ["text"]).name == "none"
    with pytest.raises(InputError, match="text is the only modality"):
        parse_missing("text:0.5", ["text"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("none", "none"),
        ("audio:0.50", "audio:0.5"),
        ("visual:.3+audio:.3", "audio:0.3+visual:0.3"),
        ("audio:0", "none"),
    ],
)
def test_specs(text, name):
    assert parse_missing(text).name == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("audio:1.5", "not between 0 and 1"),
        ("audio:-0.1", "not between"),
        ("audio:nan", "not between"),
        ("audio", "no known modality"),
        ("smell:0.5", "no known modality"),
        ("audio:half", "no number"),
        ("audio:0.5+audio:0.2", "audio is named twice"),
        ("audio:0.7+visual:0.6", "add up to 1.3, which is more than 1"),
        ("", "no known modality"),
    ],
)
def test_bad_specs_say_what_is_wrong(text, why):
    with pytest.raises(InputError, match=why):
        parse_missing(text)


def test_a_modality_that_is_missing_by_class_is_told():
    label, classes = np.repeat([0, 1, 2], 10), ("calm", "happy", "sad")

    def told(*lacking: int) -> str:
        present = np.concatenate([np.arange(10) >= some for some in lacking])
        return missing_by_class(present, label, classes)

    assert told(0, 10, 0) == "calm 0 of 10, happy 10 of 10, sad 0 of 10"
    assert told(5, 0, 0) == "calm 5 of 10, happy 0 of 10, sad 0 of 10" and told(10, 10, 4)
    assert told(0, 0, 0) == told(10, 10, 10) == told(1, 0, 0) == told(3, 4, 5) == ""
    assert missing_by_class(np.zeros(0, bool), np.zeros(0, int), classes) == ""


THREE = ("visual", "audio", "text")


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(30, 200),
    seed=st.integers(0, 9),
    rates=st.tuples(*[st.sampled_from([0, 0.1, 0.3, 0.5, 0.7])] * 3),
)
def test_of_three_modalities_each_goes_missing_at_its_rate_and_no_clip_loses_all(n, seed, rates):
    ids, labels = clips(n)
    spec = Missing(tuple((m, r) for m, r in sorted(zip(THREE, rates, strict=True)) if r))
    among = np.ones(n, bool)
    try:
        mask = missing_clips(ids, labels, among, spec, seed, THREE)
    except InputError as error:
        assert sum(rates) > 1.2 and ("alone, so that at most" in str(error) or "add up to" in str(error))
        return
    assert not mask.all(1).any()
    if sum(rates) < 0.95:
        assert (mask.sum(1) <= 1).all()  # disjoint, and the counts of the last may be one off
        np.testing.assert_allclose(mask.sum(0), n * np.array(rates), atol=1)
    elif sum(rates) > 1.05:
        assert mask.sum(0).tolist() == [round(n * rate) for rate in rates]


def test_what_overlaps_is_not_the_same_clips():
    """Each modality has an order of its own: two that are missing in half the clips are so together in a quarter."""
    ids, labels = clips(2000)
    spec = parse_missing("audio:0.5+text:0.5", THREE)
    mask = missing_clips(ids, labels, np.ones(2000, bool), spec, 0, THREE)
    assert 400 < mask.all(1, where=[False, True, True]).sum() < 600
