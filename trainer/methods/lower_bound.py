"""Discarding incomplete data."""

from ..batches import Stage, complete_rows
from .mle import MaximumLikelihood


class LowerBound(MaximumLikelihood):
    """Lower bound: the maximum-likelihood model trained on complete clips only, those with a label.

    Objective: the first sum of equation 2, -log Q(z | x, y) by equation 4; no marginal is computed in training.
    Source: section 3.3 of the paper (Ma and others, 2021), which discards incomplete data.
    The paper tests on complete data only; here an incomplete clip is predicted by equation 5, over the complete
    training rows. Prior and support are those of the rows trained on; standardisation is the run's, as for all.
    """

    stages = (Stage(rows=complete_rows),)
    marginalises = False
