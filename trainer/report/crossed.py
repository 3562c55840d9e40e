"""Estimate how far differences between methods would move with other speakers and other trainings.

A seed is a training (split, masks, initial weights) and its test clips; a group is the clips of a speaker or of another
unit. A cell holds the clips of group g that seed s tested, u(g, s) its share of the difference between two methods:

    difference = sum of u = mean over seeds of (accuracy of a - accuracy of b),  u(g, s) = w(g, s) y(g, s)
    y(g, s) = difference in the population + A(g) + T(s) + I(g, s)

w is the cell's share of its seed's test clips over the number of seeds. A, T and I have variances vA (groups), vT
(trainings) and vI (what is left). Then the variance of the difference is V = cA vA + cT vT + cI vI, where cA is the sum
over groups of (sum of w)^2, cT over seeds, cI over cells. It is two-way clustering, V_group + V_seed - V_cell, without
the bias that this has with few seeds or with tests that hardly overlap:

1. Sum the squares of u - w difference, added up by group, by seed and by cell. Their expectations are linear in the
   variances, with coefficients that follow from w alone: solve for vA, vT, vI.
2. Leave out vA, and vT, where the estimate is below POOLED standard deviations that it has where the truth is zero, and
   solve again. A variance below 0 counts as 0. Kept at zero, a variance would cost all degrees of freedom but S - 1;
   left out more easily, chance would be called a difference too often.
3. Degrees of freedom by Satterthwaite: 2 V^2 over the variance of V at the estimated variances. Student's t gives the
   interval and p. Groups or cells of unequal weight would have too few, as their V is far from a multiple of chi^2: the
   part of its variance that comes from such a level is made smaller, until t has its exact 95 % quantile where this
   level alone varies (Imhof, 1961). p is 0.05 where the interval ends at 0; below, it has the tail of t with S - 1
   degrees at most: after step 2, p of 0.001 would come up several times too often, and Holm's correction is by these.

More than CELLS / S groups are dealt at random into that many, which costs nothing but degrees of freedom beyond them.
A trial of simulations chose POOLED; `benchmarks/null_comparisons.py` shows what holds.

Shapes: S seeds, G groups, N cells, K methods, P = K (K - 1) / 2 pairs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.spatial.distance import pdist
from scipy.special import stdtr, stdtrit

POOLED = (0.8, 0.25)  # standard deviations: of groups, of seeds
CELLS, SEED = 2000, 0
LEVEL = 0.95
FEW = 20  # degrees of freedom; with more, t is the normal distribution within 7 %
MOST = 1e6  # degrees of freedom: t is the normal distribution
MANY = 400  # groups or cells, whose eigenvalues take long; the correction is for few
GROUP, SEEDS, CELL = range(3)


@dataclass(frozen=True)
class Estimates:
    """Of each pair of methods, [P], in the order of itertools.combinations; differences in percentage points."""

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    df: np.ndarray


def paired(right: np.ndarray, tested: np.ndarray, group: np.ndarray) -> Estimates:
    """Compare all pairs of methods over the same tests; NaN but for the difference where there is one group or seed.

    Args:
        right: which clips a method classified right, bool [K, S, clip].
        tested: which clips a seed tested, bool [S, clip]; at least one each.
        group: [clip], equal values are one group.
    """
    S, (seed, clip) = len(tested), np.nonzero(tested)
    names, place = np.unique(group[clip], return_inverse=True)
    cells, place = np.unique(_dealt(len(names), S)[place] * S + seed, return_inverse=True)
    each = 1 / (S * tested.sum(1))[seed]  # of a test, over all
    layout = Layout(*np.divmod(cells, S), np.bincount(place, each))
    u = np.stack([np.bincount(place, 100 * each * one[seed, clip], len(cells)) for one in right])
    difference = _pairs(u.sum(1))
    variance, df = layout.variance(u - u.sum(1)[:, None] * layout.w)
    half = stdtrit(df, (1 + LEVEL) / 2) * np.sqrt(variance)
    tail = np.minimum(df, max(S - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(difference == 0, 0, np.abs(difference) / half) * stdtrit(tail, (1 + LEVEL) / 2)
    known = np.where(len(names) > 1 and S > 1, 1.0, np.nan)
    found = (difference - half, difference + half, 2 * stdtr(tail, -t), df)
    return Estimates(difference, *(known * values for values in found))


def _pairs(values: np.ndarray) -> np.ndarray:
    """Return the first of each pair less the second: [K] to [P]."""
    a, b = np.triu_indices(len(values), 1)
    return values[a] - values[b]


def _positive(form: np.ndarray) -> float:
    """Return the probability that a quadratic form [n, n] of independent standard normal deviates is above 0.

    It is 1/2 + 1/pi int_0^inf sin(theta(u)) / (u rho(u)) du with theta = 1/2 sum arctan(l u), rho the product of
    (1 + l^2 u^2)^1/4 and the form's eigenvalues l (Imhof, 1961, equation 3.2), here by the logarithm of u.
    """
    values = np.linalg.eigvalsh(form)
    log_u, step = np.linspace(-25, 25, 501, retstep=True)
    scaled = values[:, None] / np.abs(values).max() * np.exp(log_u)
    theta, log_rho = np.arctan(scaled).sum(0) / 2, np.log1p(scaled**2).sum(0) / 4
    return 0.5 + step / np.pi * (np.sin(theta) * np.exp(-log_rho)).sum()


def _dealt(groups: int, S: int) -> np.ndarray:
    """Return which of at most CELLS / S larger groups each group goes to: [groups]."""
    if groups * S <= CELLS:
        return np.arange(groups)
    return np.random.default_rng(SEED).permutation(groups) % max(CELLS // S, 20)


@dataclass(frozen=True)
class Layout:
    """Which group and seed each cell is of, and its weight, [N] each; the weights add up to 1."""

    group: np.ndarray
    seed: np.ndarray
    w: np.ndarray

    @cached_property
    def _levels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the number of each cell's group, of its seed and of itself: [N] each."""
        return self.group, self.seed, np.arange(len(self.w))

    @cached_property
    def members(self) -> list[np.ndarray]:
        """Return which cells each group, seed and cell has: [level, N] for each."""
        return [(of == np.unique(of)[:, None]).astype(float) for of in self._levels]

    @cached_property
    def _squares(self) -> np.ndarray:
        """Return w(e) w(f) times what r(e) r(f) counts in each sum of squares of step 1, as of u: [3, N, N]."""
        found = []
        for of in self._levels:
            same = (of == of[:, None]).astype(float)
            by = same @ self.w
            found.append((same - by - by[:, None] + by @ self.w) * self.w * self.w[:, None])
        return np.stack(found)

    @cached_property
    def _expected(self) -> np.ndarray:
        """Return the expectation of each sum of squares (rows) for a variance of 1 (columns): [3, 3]."""
        return np.array([[one[of == of[:, None]].sum() for of in self._levels] for one in self._squares])

    def _spread(self, squares: np.ndarray) -> np.ndarray:
        """Return the variance of a combination of the sums of squares, as a form [3, 3] of the variances."""
        form = np.tensordot(squares, self._squares, 1)
        halves = [self._added(level, form) for level in (GROUP, SEEDS, CELL)]
        return 2 * np.array(
            [[(self._added(level, half.T) ** 2).sum() for level in (GROUP, SEEDS, CELL)] for half in halves]
        )

    def _added(self, level: int, form: np.ndarray) -> np.ndarray:
        """Add up the rows of each group or seed, [N, M] to [level, M]; of each cell there is one."""
        return form if level == CELL else self.members[level] @ form

    @cached_property
    def _shares(self) -> np.ndarray:
        """Return cA, cT, cI."""
        return np.array([((of @ self.w) ** 2).sum() for of in self.members])

    @cached_property
    def _told_apart(self) -> list[int]:
        """Return which of groups and seeds hold several cells, so that their variance is not that of cells."""
        return [level for level in (GROUP, SEEDS) if len(self.members[level]) < len(self.w)]

    def _solution(self, levels: tuple[int, ...]) -> np.ndarray:
        """Return the variances, those of other levels 0, for each sum of squares: [3, 3]."""
        solution = np.zeros((3, 3))
        solution[np.ix_(levels, levels)] = np.linalg.pinv(self._expected[np.ix_(levels, levels)], rcond=1e-9)
        return solution

    def variance(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the variance of each pair's difference and its degrees of freedom, [P], from [K, N]."""
        squares = np.stack([pdist(residual @ of.T, "sqeuclidean") for of in self.members])
        kept = self._kept(squares)  # [2, P]
        variance, df = np.zeros(squares.shape[1]), np.ones(squares.shape[1])
        for levels in {(*np.flatnonzero(column), CELL) for column in kept.T}:
            levels = tuple(map(int, levels))
            here = (kept == np.isin([GROUP, SEEDS], levels)[:, None]).all(0)
            solution = self._solution(levels)
            v = np.maximum(solution @ squares[:, here], 0)
            variance[here] = self._shares @ v
            spread = np.einsum("jp,kp,jk->p", v, v, self._spread_of_variance(levels, self._shares @ solution))
            with np.errstate(divide="ignore", invalid="ignore"):  # no spread: no variance, or t needs no correction
                df[here] = np.nan_to_num(2 * variance[here] ** 2 / spread, nan=1, posinf=MOST)
        return variance, np.clip(df, 1, MOST)

    def _spread_of_variance(self, levels: tuple[int, ...], combination: np.ndarray) -> np.ndarray:
        """Return `_spread` of the sums of squares that make the variance, corrected for unequal weights: step 3.

        The spread is quadratic in the variances: a level counts by the root, in its products with others too.
        """
        spread, scale = self._spread(combination), np.ones(3)
        for level in levels:
            with np.errstate(divide="ignore"):
                df = 2 * self._shares[level] ** 2 / spread[level, level]
            if df < FEW and len(self.members[level]) <= MANY:
                scale[level] = np.sqrt(df / self._exact_df(level, combination, df))
        return spread * scale * scale[:, None]

    def _exact_df(self, level: int, combination: np.ndarray, least: float) -> float:
        """Return the degrees of freedom, ``least`` or more, that t needs where this level alone varies."""
        effects = self.members[level] * self.w
        total, variance = effects.sum(1), np.zeros((len(effects), len(effects)))
        for factor, of in zip(combination, self.members, strict=True):
            by = of @ effects.T
            by -= by.sum(1, keepdims=True) * total
            variance += factor * by.T @ by

        def too_often(inverse: float) -> float:
            t = stdtrit(1 / inverse, (1 + LEVEL) / 2)
            return _positive(np.outer(total, total) - t**2 * variance) - (1 - LEVEL)

        if too_often(1 / least) >= 0:
            return least
        return 1 / brentq(too_often, 1e-6, 1 / least, xtol=1e-5) if too_often(1e-6) > 0 else np.inf

    def _kept(self, squares: np.ndarray) -> np.ndarray:
        """Return whether each pair keeps the variance of groups and of seeds: step 2, bool [2, P]."""
        kept = np.zeros((2, squares.shape[1]), bool)
        solution = self._solution((*self._told_apart, CELL))
        for level in self._told_apart:
            others = tuple(one for one in (*self._told_apart, CELL) if one != level)
            without = np.maximum(self._solution(others) @ squares, 0)
            zero = np.einsum("jp,kp,jk->p", without, without, self._spread(solution[level]))
            kept[level] = solution[level] @ squares > POOLED[level] * np.sqrt(zero)
        return kept
