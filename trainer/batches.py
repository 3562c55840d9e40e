"""The rows of a step of training, their order and their weights.

Shapes: R runs, B batch, M modalities, S segments a clip, D features. A row is a segment: clip * S + s.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NO_LABEL = -1  # the label of a row that has none, which no method that asks for it by mistake gets past
ROUND = 16  # rows that counts of a pattern are rounded up to, where one step stands for all
TOGETHER = 64  # clips of one pattern whose rows are mixed: 400 MB of media, and many more clips than a batch has rows

Rows = Callable[[np.ndarray, Sequence[str]], np.ndarray]  # observed [clip, M], names of the modalities -> bool [clip]


def all_rows(observed: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
    """Choose every clip: observed bool [clip, M] to bool [clip]."""
    return np.ones(len(observed), bool)


def complete_rows(observed: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
    """Choose the clips that lack nothing: observed bool [clip, M] to bool [clip]."""
    return observed.all(1)


def rows_with(modality: str) -> Rows:
    """Return the choice of the clips in which a modality is observed."""
    return lambda observed, modalities: observed[:, list(modalities).index(modality)]


@dataclass(frozen=True)
class Stage:
    """One training of E epochs. A method has one or more, the last of which selects.

    name: what is trained, for messages.
    loss: the name of the method's loss over a batch, ``loss(batch) -> [R]``.
    rows: the clips it trains on.
    parts: the attributes whose parameters it trains; empty means all parameters.
    selects: predictions are validated after each epoch, and the best epoch's weights are kept.
    hides: modalities of rows that have all may be hidden in it (`Settings.hide`), and clips that lack nothing may have
        a share of its loss: not where it looks at one modality.
    unlabelled: it trains on clips without a label too, else on labelled ones only.
    """

    name: str = "classifier"
    loss: str = "loss"
    rows: Rows = all_rows
    parts: tuple[str, ...] = ()
    selects: bool = True
    hides: bool = True
    unlabelled: bool = False


Patterns = Mapping[tuple[bool, ...], int]  # of observed modalities, each with the most rows of it in a run


def count_patterns(observed: np.ndarray) -> list[Patterns]:
    """Return each step's patterns of rows, with the most rows of one in a run: observed bool [steps, R, B, M]."""
    M = observed.shape[-1]
    code = sum(observed[..., m].astype(np.int64) << m for m in range(M))  # [steps, R, B]
    found = {tuple(bool(c >> m & 1) for m in range(M)): c for c in np.unique(code)}
    most = {pattern: (code == found[pattern]).sum(2).max(1).tolist() for pattern in sorted(found, reverse=True)}
    return [{pattern: n[t] for pattern, n in most.items() if n[t]} for t in range(len(code))]


def widest(patterns: Sequence[Patterns], least: Patterns, most: int) -> Patterns:
    """Return one mapping that serves every step: each pattern of any, with at least as many rows as in any.

    least: what there must be room for in any case. Counts are rounded up, to ``most`` at most: so they seldom grow.
    """
    counts = [pair for one in (least, *patterns) for pair in one.items()]
    found = {pattern: max(n for other, n in counts if other == pattern) for pattern, _ in counts}
    return {pattern: min(-(-found[pattern] // ROUND) * ROUND, most) for pattern in sorted(found, reverse=True)}


@dataclass
class Batch:
    """Training rows of R runs, B each. x: M tensors [R, B, D], NaN where the modality is missing."""

    rows: Tensor  # [R, B]
    x: list[Tensor]
    observed: Tensor  # bool [R, B, M]
    label: Tensor  # [R, B], NO_LABEL where it is missing
    # [R, B], how much a row counts, 1 in the mean over all rows: 0 where a shorter last batch is filled up; see
    # `Strata` and `Settings.complete_share`.
    weight: Tensor
    patterns: Patterns  # known on the host, so that a step reads nothing from the device


class EpochOrder:
    """Every run's rows in a new order each epoch, drawn from the run's own generator.

    Args:
        rows: of each run, the rows it trains on: int [n] on the host.
        generators: of each run.
        steps: steps an epoch.
        batch_size: rows of a run in a step.
    """

    def __init__(self, rows: Sequence[Tensor], generators: Sequence[torch.Generator], steps: int, batch_size: int):
        self.rows, self.generators, self.steps = rows, generators, steps
        self.batch_size = min(batch_size, max(map(len, rows)))  # nothing to fill up where one batch holds all
        self.drawn = 0  # epochs

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the steps of an epoch on the host: rows and weights, [R, B] each; fillers of the last one weigh 0.

        number: from 1, growing. An order is a run's number-th draw: earlier ones that were not asked for are drawn too.
        """
        for _ in range(self.drawn, number - 1):
            for rows, g in zip(self.rows, self.generators, strict=True):
                torch.randperm(len(rows), generator=g)
        self.drawn = number
        order = torch.stack([rows[:1].expand(self.steps * self.batch_size) for rows in self.rows]).clone()
        weight = torch.zeros(order.shape)
        for r, (rows, g) in enumerate(zip(self.rows, self.generators, strict=True)):
            order[r, : len(rows)] = rows[torch.randperm(len(rows), generator=g)]
            weight[r, : len(rows)] = 1
        return zip(order.split(self.batch_size, 1), weight.split(self.batch_size, 1), strict=True)


def rows_of(clips: np.ndarray, segments: int) -> Tensor:
    """Return all rows of the chosen clips (bool [clip])."""
    return (torch.as_tensor(np.flatnonzero(clips))[:, None] * segments + torch.arange(segments)).flatten()


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a generator on the CPU, so that every device draws the same numbers."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def hiding_chances(observed: np.ndarray, trained: np.ndarray, rate: float) -> np.ndarray:
    """Return how likely a step hides each modality of a complete row: [M], with the sum ``rate``.

    In proportion to the clips trained on that have the modality, so that what few clips have is seldom hidden.
    observed: bool [clip, M]; trained: bool [clip]. Zeros where there is but one modality, or no complete clip.
    """
    if observed.shape[1] < 2 or not (trained & observed.all(1)).any():
        return np.zeros(observed.shape[1])
    frequent = observed[trained].sum(0)
    return rate * frequent / frequent.sum()


class Draws:
    """What the rows of a step get beside their order: hidden modalities, and the weight of complete clips.

    Complete clips lack nothing, their label included. Modalities are hidden of labelled and unlabelled ones alike.

    Args:
        observed: of each run, bool [R, clip, M].
        labelled: bool [R, clip].
        trained_on: the clips it trains on, bool [R, clip].
        segments: rows a clip.
        seeds: of each run.
        hides: chances by `hiding_chances`, [R, M].
        shares: the loss's share for complete clips, of each run; NaN for none in particular.
    """

    def __init__(
        self,
        observed: np.ndarray,
        labelled: np.ndarray,
        trained_on: np.ndarray,
        segments: int,
        seeds: Sequence[int],
        hides: np.ndarray,
        shares: Sequence[float],
    ):
        self.segments, self.seeds = segments, seeds
        self.hides = torch.as_tensor(hides)
        self.whole = torch.as_tensor(observed.all(2))  # [R, clip], no modality is missing
        complete = observed.all(2) & labelled
        self.complete = torch.as_tensor(complete)
        kept = (trained_on & complete).sum(1) / trained_on.sum(1)  # complete ones' share of the rows
        self.shared = [not np.isnan(share) and one not in (0, 1) for share, one in zip(shares, kept, strict=True)]
        factors = [
            ((1 - share) / (1 - one), share / one) if shared else (1, 1)
            for shared, share, one in zip(self.shared, shares, kept, strict=True)
        ]
        self.factors = torch.tensor(factors, dtype=torch.float32)  # [R, 2] of incomplete and complete rows

    def _of_rows(self, chosen: Tensor, rows: Tensor) -> Tensor:
        """Return which rows [steps, R, B] are of chosen clips, bool [R, clip]."""
        clips = torch.div(rows, self.segments, rounding_mode="floor")
        return chosen.expand(len(rows), -1, -1).gather(2, clips)

    def hidden(self, stage: Stage, epoch: int, rows: Tensor, first: int = 0) -> Tensor | None:
        """Draw what the steps of an epoch hide: bool [steps, R, B, M], or None where nothing is hidden.

        rows: [steps, R, B] on the host, the steps from ``first`` on. What a run draws depends on its seed, the stage,
        the epoch's number and ``first``.
        """
        if not stage.hides or not self.hides.any():
            return None
        hidden = torch.zeros(*rows.shape, self.hides.shape[1], dtype=torch.bool)
        for r, (seed, chances) in enumerate(zip(self.seeds, self.hides, strict=True)):
            drawn = torch.rand(rows[:, r].shape, generator=generator(seed, f"hide:{stage.name}:{epoch}:{first}"))
            place = torch.bucketize(drawn, chances.cumsum(0).float(), right=True)  # M where nothing is hidden
            hidden[:, r] = place[..., None] == torch.arange(len(chances))
        return hidden & self._of_rows(self.whole, rows)[..., None]

    def weighted(self, stage: Stage, rows: Tensor, weight: Tensor) -> Tensor:
        """Return the rows' weights [steps, R, B], with complete clips' share of the loss as wanted."""
        return weight * self.shares(rows) if stage.selects and stage.hides else weight

    def shares(self, rows: Tensor) -> Tensor | float:
        """Return how much more or less than one, for complete clips' share of the loss, rows [steps, R, B] count."""
        if bool((self.factors == 1).all()):
            return 1.0
        return self.factors.expand(len(rows), -1, -1).gather(2, self._of_rows(self.complete, rows).long())


class Strata:
    """One run's batches that each hold rows of every pattern of what is observed, complete ones above all.

    Where 95 % of the clips are incomplete a batch of 32 would often hold no complete row, and neither classify both
    modalities nor have anything to marginalise over. So at least a quarter of every batch is complete, the rest is
    shared out as the patterns occur, and each row counts as often as its pattern was passed over: with N_p of N rows
    of pattern p and J_p of B rows in a batch, its weight is (N_p / N) (B / J_p), and the expected loss is equation 2.

    Clips are gone through in shuffled groups, and a group's rows in shuffled order, so that a clip is read once an
    epoch even where memory does not hold all of them. An epoch is drawn from its number alone, so that a run can go on
    from any.
    """

    def __init__(self, observed: np.ndarray, trained: np.ndarray, segments: int, batch_size: int):
        """observed: bool [clip, n], modalities and the label; trained: bool [clip], the clips trained on."""
        patterns = np.unique(observed[trained], axis=0)[::-1]
        clips = [np.flatnonzero(trained & (observed == pattern).all(1)) for pattern in patterns]
        counts = np.array([len(c) * segments for c in clips])
        self.rows, self.segments = int(counts.sum()), segments
        self.batch_size = max(min(batch_size, self.rows), len(patterns))  # a row of each pattern at least
        self.patterns, self.clips, self.shares = patterns, clips, self._shares(counts, patterns.all(1))
        self.weights = counts / self.rows * self.batch_size / self.shares
        self.steps = -(-self.rows // self.batch_size)

    def _shares(self, counts: np.ndarray, complete: np.ndarray) -> np.ndarray:
        """Return how many rows of each pattern a batch has: as they occur, at least one, a quarter of complete ones."""
        B = self.batch_size
        wanted = counts / counts.sum() * B
        if complete.any() and not complete.all():
            place = int(np.flatnonzero(complete)[0])
            wanted[place] = max(wanted[place], B / 4)
            others = np.arange(len(counts)) != place
            wanted[others] *= (B - wanted[place]) / wanted[others].sum()
        shares = np.maximum(np.floor(wanted), 1).astype(int)
        while shares.sum() < B:
            shares[np.argmax(wanted - shares)] += 1
        while shares.sum() > B and shares.max() > 1:
            shares[np.argmax(shares)] -= 1
        return shares

    def epoch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw rows [steps, B] and weights [steps, B]; a pattern's rows repeat where its share needs more."""
        rows = [self._stream(c, self.steps * n, generator) for c, n in zip(self.clips, self.shares, strict=True)]
        rows = [part.view(self.steps, -1) for part in rows]
        weights = [torch.full(part.shape, float(w)) for part, w in zip(rows, self.weights, strict=True)]
        # Mixed, so that each micro-batch, and what its batch norms see, holds every pattern.
        order, weight = torch.cat(rows, 1), torch.cat(weights, 1)
        mixed = torch.rand(order.shape, generator=generator).argsort(1)
        return order.gather(1, mixed), weight.gather(1, mixed)

    def _stream(self, clips: np.ndarray, count: int, generator: torch.Generator) -> Tensor:
        parts: list[Tensor] = []
        found = 0
        while found < count:
            shuffled = torch.as_tensor(clips)[torch.randperm(len(clips), generator=generator)]
            for group in shuffled.split(TOGETHER):
                rows = (group[:, None] * self.segments + torch.arange(self.segments)).flatten()
                parts.append(rows[torch.randperm(len(rows), generator=generator)])
                found += len(rows)
        return torch.cat(parts)[:count]
