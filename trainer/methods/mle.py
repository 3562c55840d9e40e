"""Maximum likelihood with missing modalities and missing labels.

A row without a label has no part in the paper's likelihood (equation 1), which is of z given what is observed. But
equation 3 is a distribution of x, y and z, and says how likely x and y are, z summed out. Write

    A(x, y) = sum over z of R_Z(z) exp(phi(f(x), g(y)) . h(z)),   D = sum over x', y' of R_X(x') R_Y(y') A(x', y'),

D the denominator of equation 3, over all x' and y' of training, each by itself. Then

    Q(x, y) = R_X(x) R_Y(y) A(x, y) / D,     and where y is missing too,  Q(x) = R_X(x) mean over y' of A(x, y') / D.

Where a row's label is missing whatever the row is, the likelihood of all rows is that of equation 1 for labelled ones
times Q(x, y) or Q(x) for the others. So these add to equation 2 log D - log A(x, y), or log D - log mean over y' of
A(x, y'); R_X(x) and R_Y(y) do not depend on the model. R_Z are the labelled rows' frequencies, R_X and R_Y all rows'.

log D is the same for all rows: it is the logarithm of equation 3's sum over z for a row that observes nothing. With
addition and concatenation D = sum over z of R_Z(z) times, for each modality, the mean over its support of
exp(f(x') . h(z)): one vector over the classes each, as for a missing modality, and exact. The outer product takes as
many pairs of x' and y' as `likelihood` does for two missing modalities. ``Settings.marginal`` says what the supports
are, all of training or the batch. With addition and concatenation x and y are independent given z, so that rows without
a label fit a mixture of C classes, which the labelled ones name.

How likely x and y are is asked of whole embeddings, as the supports are: dropout is for rows with a label alone. D and
A(x, y) would else be of different encoders, which cost 2 to 4 points of accuracy on six views (docs/choices.md).

A mixture's likelihood has many maxima. Where nearly all labels are missing the plain sum finds one whose classes are
not those of the labels (docs/choices.md), so unlabelled rows have at most 30 % of the loss. Any share keeps each term
a likelihood of the same distribution. ``Settings.complete_share`` sets another; that of the clips gives the plain sum.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..batches import NO_LABEL, Batch, Patterns, Stage
from ..likelihood import log_posterior, log_weights
from ..marginal import BY_NAME, BY_NAME_END_TO_END, SupportRows
from ..method import FusionClassifier, mean_over_rows, negative_log_likelihood
from ..settings import Settings

UNLABELLED = 0.3  # most of the loss that rows without a label have


class MaximumLikelihood(FusionClassifier):
    """Maximum likelihood: complete rows by equation 4, rows that lack a modality by equation 5.

    Objective: equation 2, the mean over all training rows of -log Q(z | what is observed), both kinds unweighted; of
    rows without a label -log Q(what is observed) of the same distribution, equation 3, with 30 % of the loss at most
    (see the module).
    Source: Ma, Xu, Huang, Zhang, "Maximum Likelihood Estimation for Multimodal Learning with Missing Modality", 2021.
    The paper leaves open how the sum over y' in equation 5 is taken in training (here: ``Settings.marginal``), the
    encoders, k and the optimiser (here: the same for every method), and prediction from incomplete data (here:
    equation 5 over all training rows in which the missing modality is observed; of clips with nothing observed the
    classes' frequencies).
    """

    replays = True
    marginalises = True
    stages = (Stage(unlabelled=True),)

    @cached_property
    def _marginals(self) -> dict:
        """Make the marginals, when training begins: of modalities that it lacks, of all where labels are missing."""
        # The lower bound has one only where `Settings.hide` hides; its results say that the choice does not matter.
        chosen = self.settings.marginal if self.marginalises else Settings.marginal
        kind = (BY_NAME_END_TO_END if self.runs.features_change else BY_NAME)[chosen]
        return {
            m: kind(self.runs, m, self.encoders[m])
            for m, lacks in enumerate(self.runs.lacking)
            if lacks or self.runs.unlabelled
        }

    def begin_epoch(self, stage: Stage, steps: int) -> None:
        """Draw the marginals' rows of the epoch."""
        for marginal in self._marginals.values():
            marginal.begin_epoch(steps)

    def loss(self, batch: Batch) -> Tensor:
        """Return each run's mean of -log Q(label | what is observed), without a label -log Q(what is observed): [R]."""
        observed = batch.observed.unbind(-1)
        both = [encoder.both(*pair) for encoder, *pair in zip(self.encoders, batch.x, observed, strict=True)]
        embeddings, whole = map(list, zip(*both, strict=True))  # with dropout, and without
        supports = [
            self._marginals[m](batch, embedding) if m in self._marginals else (None, None)
            for m, embedding in enumerate(whole)
        ]
        if self.runs.unlabelled:
            unlabelled = (batch.label == NO_LABEL)[..., None]
            embeddings = [torch.where(unlabelled, *pair) for pair in zip(whole, embeddings, strict=True)]
            share = self._shares.gather(1, (batch.label == NO_LABEL).long())
            return -mean_over_rows(self._log_likelihood(embeddings, batch, supports) * share, batch.weight)
        log_probability = self._posterior(embeddings, batch.observed, supports, batch.patterns)
        return negative_log_likelihood(log_probability, batch.label, batch.weight)

    @cached_property
    def _shares(self) -> Tensor:
        """Return how much more or less than one row labelled and unlabelled rows count in the loss: [R, 2]."""
        trained = torch.as_tensor(self.runs.trained_on, device=self.runs.device)
        of_all = (trained & ~self.runs.labelled).sum(1) / trained.sum(1)
        given = torch.as_tensor(self.runs.draws.shared, device=self.runs.device)
        share = torch.where(given, of_all, of_all.clamp_max(UNLABELLED))
        return torch.stack([(1 - share) / (1 - of_all), share / of_all.clamp_min(1e-12)], 1)

    def _log_likelihood(self, embeddings: Sequence[Tensor], batch: Batch, supports: Sequence[tuple]) -> Tensor:
        """Return log Q of each row's label, or where it has none of what is observed, less log R of that: [R, B]."""
        keys, masks = zip(*supports, strict=True)
        one_more = [pad(e, (0, 0, 0, 1)) for e in embeddings]  # a row with nothing observed
        observed, patterns = pad(batch.observed, (0, 0, 0, 1)), {**batch.patterns, (False,) * len(embeddings): 1}
        args = (one_more, observed, self.labels(), self.log_prior, keys, self.fusion, masks, patterns)
        weights = log_weights(*args)  # [R, B + 1, C]
        total = weights.logsumexp(-1)
        of_rows, log_denominator = total[:, :-1], total[:, -1:]
        of_label = weights[:, :-1].gather(-1, batch.label.clamp_min(0)[..., None])[..., 0]
        return torch.where(batch.label == NO_LABEL, of_rows - log_denominator, of_label - of_rows)

    def training_state(self) -> dict:
        """Return the marginals' states."""
        return super().training_state() | {m: marginal.state() for m, marginal in self._marginals.items()}

    def load_training_state(self, state: dict) -> None:
        """Go on from `training_state`."""
        super().load_training_state(state)
        for m, marginal in self._marginals.items():
            marginal.load_state(state[m])

    def prepare_predictions(self, lacking: Sequence[bool]) -> None:
        """Embed the support of each modality that predicted clips lack."""
        self.prepared = {}
        for m in itertools.compress(range(len(lacking)), lacking):
            support = SupportRows(self.runs, m)  # all rows trained on that have modality m
            self.prepared[f"support {m}"] = support.embed(self.encoders[m])
            if support.mask is not None:
                self.prepared[f"mask {m}"] = support.mask

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C] by equations 3 to 5."""
        supports = [(self.prepared.get(f"support {m}"), self.prepared.get(f"mask {m}")) for m in range(len(x))]
        # Of a row with nothing observed the outer product would sum over all pairs of two whole supports, to say little
        # more than how frequent the classes are.
        nothing = ~observed.any(-1, keepdim=True)
        log_probability = self._posterior(self.encode(x, observed), observed | nothing, supports)
        return torch.where(nothing, self.log_prior[:, None], log_probability)

    def _posterior(
        self,
        embeddings: Sequence[Tensor],
        observed: Tensor,
        supports: Sequence[tuple],
        patterns: Patterns | None = None,
    ) -> Tensor:
        keys, masks = zip(*supports, strict=True)
        return log_posterior(embeddings, observed, self.labels(), self.log_prior, keys, self.fusion, masks, patterns)
