"""Splits and simulated missingness: the same for every method, every machine and every team member.

Both are pure functions of the clips' ids, labels, group, the rate and the seed. Clips are put in one order, a
stratified shuffle, and a rate takes a prefix of it, so whatever is missing at 0.8 is also missing at 0.9.

Labels go missing in the same way, in an order of their own: which clips lack their label says nothing of what else
they lack.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..console import name_some
from ..errors import InputError
from .schema import MODALITIES

TRAIN, VALIDATION, TEST = 0, 1, 2
HELD_OUT = 0.15  # of all clips, for validation and for test each

# A modality that is missing by class: in this many clips of one class alone, or at rates that lie so far apart.
TELLING_CLIPS, TELLING_RATE = 5, 0.5

STORED_RATES = (0.5, 0.8, 0.9, 0.95)  # of the masks that every store carries, so that a team trains on the same ones
NAMES_SHOWN = 12  # values that an error lists
LABEL_ENTRY = "label"  # in a missing spec; never the name of a modality
HELD_OUT_LABELS = "in what validation and test clips lack, labels cannot be: clips are scored by them"


@dataclass(frozen=True)
class Missing:
    """A share of the clips for each modality that they lack, for example ``audio:0.3+visual:0.3``.

    The clips are disjoint where the rates add up to less than 1, and of two modalities always. ``label`` is the share
    that lacks its label, whatever else it lacks. ``where`` has shares of the clips with a value in a column: modality,
    rate, column, value; ``rates`` are then those of all other clips.
    """

    rates: tuple[tuple[str, float], ...] = ()
    label: float = 0.0
    where: tuple[tuple[str, float, str, str], ...] = ()

    @property
    def entries(self) -> tuple[tuple[str, float], ...]:
        """Return the rates of modalities, then that of labels where some are missing."""
        return (*self.rates, (LABEL_ENTRY, self.label)) if self.label else self.rates

    @property
    def name(self) -> str:
        """Return the canonical spelling; ``none`` for complete data."""
        by_value = [f"{modality}:{rate:g}@{column}={value}" for modality, rate, column, value in self.where]
        plain = [f"{name}:{rate:g}" for name, rate in self.entries]
        return "+".join(plain[: len(self.rates)] + by_value + plain[len(self.rates) :]) or "none"


@dataclass(frozen=True)
class Setting:
    """A setting of a masks file, by its name; stands where a `Missing` does."""

    name: str


def stored_settings(modalities: Sequence[str] = MODALITIES) -> tuple[str, ...]:
    """Return the specs whose masks a store of these modalities carries: ``audio:0.5`` … ``visual:0.95``."""
    if len(modalities) < 2:
        return ()  # a clip without its only modality has nothing
    return tuple(f"{modality}:{rate}" for modality in sorted(modalities) for rate in STORED_RATES)


def missing_by_class(present: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> str:
    """Return which classes lack a modality where that alone tells the class; empty where it does not.

    Args:
        present: which clips have the modality: bool [clip].
        label: codes of the clips' classes: [clip].
        classes: their names.
    """
    clips = np.bincount(label, minlength=len(classes))
    lacking = np.bincount(label[~present], minlength=len(classes))
    rates = (lacking / np.maximum(clips, 1))[clips >= TELLING_CLIPS]
    one_alone = lacking.max(initial=0) == lacking.sum() >= TELLING_CLIPS
    if len(rates) < 2 or not (one_alone or np.ptp(rates) >= TELLING_RATE):
        return ""
    return ", ".join(f"{name} {some} of {all_}" for name, some, all_ in zip(classes, lacking, clips, strict=True))


def parse_missing(text: str, modalities: Sequence[str] | None = MODALITIES, labels_stay: str | None = None) -> Missing:
    """Parse ``none``, ``audio:0.5``, ``audio:0.3+label:0.5`` or ``audio:0.8@COLUMN=VALUE``. InputError: anything else.

    modalities: those there are; None takes any name. labels_stay: why no labels may go missing, or None if they may.
    """

    def wrong(why: str) -> InputError:
        there = ", ".join(modalities) if modalities else "the store's"
        return InputError(
            f"missing spec {text!r}: {why}.\n"
            f"Write MODALITY:RATE, for example audio:0.5, or several joined by '+' (audio:0.3+visual:0.3), or none; "
            f"modalities are {there}, rates lie between 0 and 1. MODALITY:RATE@COLUMN=VALUE is for clips with a value."
            + ("" if labels_stay else f" {LABEL_ENTRY}:RATE takes labels away.")
        )

    if text.strip() == "none":
        return Missing()
    rates: dict[str, float] = {}
    where: dict[tuple[str, str, str], float] = {}
    for part in text.split("+"):
        modality, separator, number = part.strip().partition(":")
        number, at, condition = number.partition("@")
        column, equals, value = map(str.strip, condition.partition("="))
        if at and not (column and equals and value):
            raise wrong(f"{part.strip()!r} has {condition!r} after '@': expected COLUMN=VALUE")
        if at and modality == LABEL_ENTRY:
            raise wrong("labels go missing at one rate, whatever the value of a column")
        if at and any((m, c) != (modality, column) for m, c, _ in where if m == modality):
            raise wrong(f"the rates of {modality} are by values of two columns, and a clip would have two rates")
        if modality == LABEL_ENTRY and labels_stay:
            raise wrong(labels_stay)
        if not separator or (modalities and modality not in (*modalities, LABEL_ENTRY)):
            raise wrong(f"{part.strip()!r} names no known modality with a rate")
        if (modality, column, value) in where if at else modality in rates:
            raise wrong(f"{modality}{at}{condition} is named twice")
        try:
            rate = float(number)
        except ValueError:
            raise wrong(f"{number!r} is no number") from None
        if not 0 <= rate <= 1:
            raise wrong(f"rate {number} is not between 0 and 1")
        if modality == LABEL_ENTRY and rate == 1:
            raise wrong("no training clip would have a label")
        if modalities and len(modalities) == 1 and modality != LABEL_ENTRY:
            raise wrong(f"{modality} is the only modality, and a clip without it has nothing")
        if at:
            where[modality, column, value] = rate
        else:
            rates[modality] = rate
    label = rates.pop(LABEL_ENTRY, 0.0)
    if modalities and len(rates) == len(modalities) and sum(rates.values()) > len(rates) - 1 + 1e-9:
        raise wrong(
            f"the rates of all {len(rates)} modalities add up to {sum(rates.values()):g}, which is more than "
            f"{len(rates) - 1}, and some clips would have nothing"
        )
    plain = tuple((modality, rates[modality]) for modality in sorted(rates) if rates[modality] > 0)
    by_value = tuple((m, rate, c, v) for (m, c, v), rate in sorted(where.items()) if rate > 0 or m in dict(plain))
    return Missing(plain, label, by_value)


def in_order(modalities: Iterable[str]) -> tuple[str, ...]:
    """Return modalities in an order of their own, whatever that of a store: visual, audio, the others by name."""
    return (*(name for name in MODALITIES if name in modalities), *sorted(set(modalities) - {*MODALITIES}))


def split_clips(
    clip_ids: Sequence[str], labels: Sequence[int], seed: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Split clips into train (0), validation (1) and test (2).

    Without groups test and validation get round(0.15 n) clips each, stratified by class. With groups (a subject per
    clip, say) clips that share a group stay together: whole groups are taken in a shuffled order, each held-out part
    as near to its share of the clips as whole groups come, and at least one group each. Of two groups (RAVDESS's
    statements) one is the test part, and validation is round(0.15 n) clips of the other, stratified by
    class: the test's group is unseen, validation's is not.

    Args:
        clip_ids: str [clip].
        labels: int [clip].
        seed: of the shuffle.
        groups: str [clip], or None.

    Returns:
        int8 [clip].

    Raises:
        InputError: there is one group alone.
    """
    n = len(clip_ids)
    held_out = round(HELD_OUT * n)
    parts = np.full(n, TRAIN, np.int8)
    if groups is None:
        order = stratified_order(clip_ids, labels, f"split:{seed}")
        parts[order[:held_out]] = TEST
        parts[order[held_out : 2 * held_out]] = VALIDATION
        return parts
    names, members = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"a split by group needs at least 2 groups, found {len(names)}: {', '.join(names)}.\n"
            "Split by another column, or by clip."
        )
    sizes = np.bincount(members)
    waiting = sorted(range(len(names)), key=lambda g: _key(f"group:{seed}", names[g]))
    if len(names) == 2:
        parts[members == waiting[0]] = TEST
        others = np.flatnonzero(members == waiting[1])
        order = stratified_order([clip_ids[i] for i in others], np.asarray(labels)[others], f"split:{seed}")
        parts[others[order[:held_out]]] = VALIDATION
        return parts
    for part in (TEST, VALIDATION):
        taken, reserve = 0, 1 if part == VALIDATION else 2  # groups that must be left for the other parts
        while len(waiting) > reserve:
            size = sizes[waiting[0]]
            if taken and abs(taken + size - held_out) >= abs(taken - held_out):
                break
            parts[members == waiting.pop(0)] = part
            taken += size
    return parts


def missing_clips(
    clip_ids: Sequence[str],
    labels: Sequence[int],
    among: np.ndarray,
    spec: Missing,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
) -> np.ndarray:
    """Draw which clips lack which modality: exactly round(rate · n) of n clips for each, stratified by class.

    Of two modalities, and of more whose rates add up to less than 1, all take from one order of the clips and never
    the same clip, so that no clip lacks two: the second one (`in_order`) from its end, the others from its start, one
    after another. Each is nested over its own rates, the others' being the same; of two modalities each whatever the
    other's rate is.

    Else each modality takes from an order of its own, and a clip may lack several, never all: the last modality passes
    over clips that lack all others.

    Args:
        clip_ids: str [clip].
        labels: int [clip].
        among: bool [clip], the clips to draw from.
        spec: the rates.
        seed: of the order.
        modalities: the names of the mask's last axis.

    Returns:
        bool [clip, modality], True where a modality is missing.

    Raises:
        InputError: so many clips lack all modalities but the last that its rate cannot be had.
    """
    if len(modalities) > 2 and sum(rate for _, rate in spec.rates) > 1 - 1e-9:
        return _overlapping_clips(clip_ids, labels, among, spec, seed, modalities)
    mask = np.zeros((len(clip_ids), len(modalities)), bool)
    chosen = np.flatnonzero(among)
    order = chosen[stratified_order([clip_ids[i] for i in chosen], np.asarray(labels)[chosen], f"missing:{seed}")]
    counts: dict[str, int] = {}
    for modality, rate in spec.rates:
        counts[modality] = min(round(rate * len(order)), len(order) - sum(counts.values()))  # roundings add up
    start = 0
    for place, modality in enumerate(in_order(modalities)):
        count, m = counts.get(modality, 0), list(modalities).index(modality)
        if place == 1:
            mask[order[len(order) - count :], m] = True
        else:
            mask[order[start : start + count], m] = True
            start += count
    return mask


def _overlapping_clips(
    clip_ids: Sequence[str],
    labels: Sequence[int],
    among: np.ndarray,
    spec: Missing,
    seed: int,
    modalities: Sequence[str],
) -> np.ndarray:
    """Draw as `missing_clips` does where a clip may lack several modalities: bool [clip, modality]."""
    mask = np.zeros((len(clip_ids), len(modalities)), bool)
    chosen = np.flatnonzero(among)
    ids, of_class = [clip_ids[i] for i in chosen], np.asarray(labels)[chosen]
    for modality, rate in spec.rates:
        order = chosen[stratified_order(ids, of_class, f"missing:{seed}:{modality}")]
        order = order[mask[order].sum(1) < len(modalities) - 1]
        count = round(rate * len(chosen))
        if count > len(order):
            raise InputError(
                f"missing spec {spec.name!r}: {len(chosen) - len(order)} of {len(chosen)} clips have {modality} alone, "
                f"so that at most {len(order)} can lack it, not {count}.\nLower a rate."
            )
        mask[order[:count], list(modalities).index(modality)] = True
    return mask


def unlabelled_clips(
    clip_ids: Sequence[str], labels: Sequence[int], among: np.ndarray, rate: float, seed: int, usable: np.ndarray
) -> np.ndarray:
    """Draw which clips lack their label: round(rate · n) of n clips, stratified by class, in the seed's own order.

    Each class keeps a label: its last usable clip in that order is passed over, so that fewer clips than that lack
    theirs where a class is so small, or the rate so high.

    Args:
        clip_ids: str [clip].
        labels: int [clip].
        among: bool [clip], the clips to draw from.
        rate: below 1.
        seed: of the order.
        usable: bool [clip], the clips that can be trained on.

    Returns:
        bool [clip], True where the label is missing.
    """
    labels, mask = np.asarray(labels), np.zeros(len(clip_ids), bool)
    chosen = np.flatnonzero(among)
    order = chosen[stratified_order([clip_ids[i] for i in chosen], labels[chosen], f"missing:{seed}:{LABEL_ENTRY}")]
    last = {labels[i]: i for i in order if usable[i]}  # of each class
    drawn = order[~np.isin(order, list(last.values()))]
    mask[drawn[: round(rate * len(order))]] = True
    return mask


def missing_in_store(store: Any, spec: Missing, seed: int, among: np.ndarray) -> np.ndarray:
    """Draw as `missing_clips` does which clips of a store lack which modality: bool [clip, modality].

    Where rates depend on values, clips that the same of the spec's entries are about are drawn from by themselves: of
    each value the share is exact, stratified by class, and nested over its rates.

    InputError: an unknown column or value, or clips of some value would have nothing.
    """
    table = (store.clip_id, store.label)
    if not spec.where:
        return missing_clips(*table, among, spec, seed, store.modalities)
    check_values(store, spec)
    followed = np.full((len(store.clip_id), len(store.modalities)), -1)  # which entry of the spec, -1 the plain rate
    for place, (modality, _, column, value) in enumerate(spec.where):
        followed[column_values(store, column) == value, store.modalities.index(modality)] = place
    mask = np.zeros(followed.shape, bool)
    for entries in np.unique(followed[among], axis=0):
        rates = dict(spec.rates) | {spec.where[e][0]: spec.where[e][1] for e in entries if e >= 0}
        plain = "+".join(f"{modality}:{rate!r}" for modality, rate in rates.items()) or "none"
        here = among & (followed == entries).all(1)
        try:
            drawn = missing_clips(*table, here, parse_missing(plain, store.modalities), seed, store.modalities)
        except InputError as error:
            named = dict.fromkeys(f"{spec.where[e][2]} {spec.where[e][3]!r}" for e in entries if e >= 0)
            of = " and ".join(named) or "other values"
            raise InputError(f"missing spec {spec.name!r}: of the clips of {of}: {error}") from None
        mask |= drawn
    return mask


def check_values(store: Any, spec: Missing) -> None:
    """Check that a store has the columns and values that a spec names. InputError: it lacks one."""
    for _, _, column, value in spec.where:
        if value not in (values := column_values(store, column)):
            raise InputError(
                f"missing spec {spec.name!r}: no clip of {store.path.name} has {column} {value!r}.\n"
                f"Values of {column} are {name_some(sorted(set(values.tolist())), NAMES_SHOWN)}."
            )


def column_values(store: Any, column: str) -> np.ndarray:
    """Return each clip's value of a store's column, of ``label`` its class: str [clip]. InputError: no such column."""
    if column == LABEL_ENTRY:
        return np.array(store.classes)[store.label]
    if column not in store.columns:
        raise InputError(
            f"a missing spec names the column {column!r}, which {store.path.name} lacks.\n"
            f"Columns are {LABEL_ENTRY}, {', '.join(store.columns)}."
        )
    return store.columns[column]


def _key(purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{purpose}\0{name}".encode()).digest()


def stratified_order(clip_ids: Sequence[str], labels: Sequence[int], purpose: str) -> np.ndarray:
    """Shuffle so that every prefix holds each class in its overall proportion, to one clip: int64 [clip].

    Within its class a clip's position is its hash's rank; over all classes clips are ordered by relative rank.
    """
    keys = [_key(purpose, str(clip)) for clip in clip_ids]
    labels = np.asarray(labels)
    relative = np.empty(len(keys))
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        ranked = sorted(of_class, key=lambda i: keys[i])
        relative[ranked] = (np.arange(len(ranked)) + 0.5) / len(ranked)
    return np.array(sorted(range(len(keys)), key=lambda i: (relative[i], keys[i])), dtype=np.int64)
