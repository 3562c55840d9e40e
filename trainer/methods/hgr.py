"""HGR maximal correlation, as Soft-HGR."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..batches import Batch
from ..data import Blueprint
from ..likelihood import matching
from ..marginal import SupportRows
from ..method import FusionClassifier, negative_log_likelihood
from ..networks import LabelEmbedding
from ..settings import Settings

LEAST_PROBABILITY = 1e-6  # of a class by the maximum a posteriori rule, which may go below zero


class MaximalCorrelation(FusionClassifier):
    """HGR maximal correlation: features that correlate most with each other and with the label.

    Objective: -[H(f, g) + H(f, h) + H(g, h)] on complete rows, -H(f, h) on rows that have only f,
    -H(g, h) on rows that have only g, each the mean over its own rows, plus the mean over complete rows of
    -log Q(z | f, g) by equation 4. H is the Soft-HGR objective (`soft_hgr`); h(z) has the width of f and g. The
    classifier scores with that h, which incomplete rows train too: with addition h is its label embedding; with the
    other fusions (f + g) . h(z) is added to the scores of a label embedding of its own, which only complete rows train.
    Source: section 3.3 of the paper (Ma and others, 2021) names the correlations; Soft-HGR is Wang, Wu, Huang, Zheng,
    Xu, Zhang, Huang, "An Efficient Approach to Informative Feature Extraction from Multimodal Data", AAAI 2019.
    The paper leaves the label rule open. Here complete clips are predicted by the classifier, others by the maximum a
    posteriori rule P(z | x) = P(z) (1 + f~(x) . h~(z)), with f~ and h~ centred over the rows trained on; where several
    but not all modalities are observed their products add up. In a batch with fewer than two rows of a kind, that
    kind's correlations are zero. The covariances are a batch's own, as in Soft-HGR: of the dozen complete rows that 5 %
    of 256 are, they are noisy, which may be part of why this method falls off where little is complete. Every kind is a
    mean over its own rows, so how much a batch weighs one kind against another (`batches.Strata`) does not enter.
    """

    replays = True
    least_complete = 2

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        if fusion != "addition":
            self.shared = LabelEmbedding(len(runs.classes), settings.dim, runs.generators("correlated labels"))
            self.to(runs.device)

    def correlated(self) -> Tensor:
        """Return h(z) of the correlations: [R, C, k]."""
        return self.labels() if self.fusion == "addition" else self.shared()

    def classify(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Return log Q(z | all modalities) by equation 4, with the correlations' h: [R, B, C]."""
        scores = super().classify(embeddings)
        if self.fusion == "addition":
            return scores
        return (scores + torch.bmm(sum(embeddings), self.shared().mT)).log_softmax(-1)

    def loss(self, batch: Batch) -> Tensor:
        """Return the classifier's mean loss on complete rows less the correlations of all rows: [R]."""
        embeddings = self.encode(batch.x, batch.observed)
        of_label = self.correlated()  # [R, C, k]
        h = of_label.gather(1, batch.label[..., None].expand(-1, -1, of_label.shape[-1]))  # [R, B, k]
        counted = (batch.weight > 0).to(h.dtype)
        correlation = torch.zeros(len(self.runs), device=h.device)
        for pattern in batch.patterns:
            weight = counted * matching(batch.observed, pattern)  # [R, B]
            variables = [*itertools.compress(embeddings, pattern), h]
            for one, other in itertools.combinations(variables, 2):
                correlation = correlation + soft_hgr(one, other, weight)
        complete = counted * batch.observed.all(-1)
        classified = negative_log_likelihood(self.classify(embeddings), batch.label, complete)
        return classified - correlation

    def prepare_predictions(self, lacking: Sequence[bool]) -> None:
        """Keep the mean embedding of each modality."""
        self.prepared = {}
        if any(lacking):
            for m, encoder in enumerate(self.encoders):
                support = SupportRows(self.runs, m)
                embedded = support.embed(encoder)
                mask = torch.ones_like(embedded[..., 0]) if support.mask is None else support.mask.to(embedded.dtype)
                total = torch.bmm(mask[:, None], embedded)
                self.prepared[f"mean {m}"] = total / mask.sum(1)[:, None, None]  # [R, 1, k]

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C]: the classifier's for complete rows, else from the correlations."""
        embeddings = self.encode(x, observed)
        if not self.prepared:
            return self.classify(embeddings)
        prior = self.log_prior.exp()[:, None]  # [R, 1, C]
        h = self.correlated()
        centred = h - torch.bmm(prior, h)  # [R, C, k]
        odds = 1  # P(z | x) / P(z)
        for m, embedding in enumerate(embeddings):
            score = torch.bmm(embedding - self.prepared[f"mean {m}"], centred.mT)
            odds = odds + score.masked_fill(~observed[..., m, None], 0)
        posterior = (prior * odds).clamp_min(LEAST_PROBABILITY)
        posterior = (posterior / posterior.sum(-1, keepdim=True)).log()
        complete = observed.all(-1, keepdim=True)
        return torch.where(complete, self.classify(embeddings), posterior)


def soft_hgr(f: Tensor, g: Tensor, weight: Tensor) -> Tensor:
    """Return H(f, g) = E[f~ . g~] - tr(cov(f) cov(g)) / 2 over rows of weight 1: f, g [R, n, k], weight [R, n], to [R].

    f~ and g~ are centred; expectation and covariances divide by the number of rows less one. Rows of weight 0 may hold
    any finite values. 0 where fewer than two rows count.
    """
    count = weight.sum(1)
    weight = weight[..., None]

    def centred(e: Tensor) -> Tensor:
        return (e - (e * weight).sum(1, keepdim=True) / count.clamp_min(1)[:, None, None]) * weight

    f, g = centred(f), centred(g)
    degrees = (count - 1).clamp_min(1)
    covariance_f, covariance_g = (torch.bmm(e.mT, e) / degrees[:, None, None] for e in (f, g))
    return (f * g).sum((1, 2)) / degrees - (covariance_f * covariance_g).sum((1, 2)) / 2
