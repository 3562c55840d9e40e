"""Maximum likelihood with missing modalities."""

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..batches import Batch, Patterns, Stage
from ..likelihood import log_posterior
from ..marginal import BY_NAME, BY_NAME_END_TO_END, SupportRows
from ..method import FusionClassifier, negative_log_likelihood


class MaximumLikelihood(FusionClassifier):
    """Maximum likelihood: complete rows by equation 4, rows that lack a modality by equation 5.

    Objective: equation 2, the mean over all training rows of -log Q(z | what is observed), both kinds unweighted.
    Source: Ma, Xu, Huang, Zhang, "Maximum Likelihood Estimation for Multimodal Learning with Missing Modality", 2021.
    The paper leaves open how the sum over y' in equation 5 is taken in training (here: ``Settings.marginal``), the
    encoders, k and the optimiser (here: the same for every method), and prediction from incomplete data (here:
    equation 5 over all training rows in which the missing modality is observed; of clips with nothing observed the
    classes' frequencies).
    """

    marginalises = True

    @cached_property
    def _marginals(self) -> dict:
        """Make the marginals of the modalities that training lacks somewhere, when training begins."""
        kind = (BY_NAME_END_TO_END if self.runs.features_change else BY_NAME)[self.settings.marginal]
        return {m: kind(self.runs, m, self.encoders[m]) for m, lacking in enumerate(self.runs.lacking) if lacking}

    def begin_epoch(self, stage: Stage, steps: int) -> None:
        """Draw the marginals' rows of the epoch."""
        for marginal in self._marginals.values():
            marginal.begin_epoch(steps)

    def loss(self, batch: Batch) -> Tensor:
        """Return each run's mean of -log Q(label | what is observed): [R]."""
        embeddings = self.encode(batch.x, batch.observed)
        supports = [
            self._marginals[m](batch, embedding) if m in self._marginals else (None, None)
            for m, embedding in enumerate(embeddings)
        ]
        log_probability = self._posterior(embeddings, batch.observed, supports, batch.patterns)
        return negative_log_likelihood(log_probability, batch.label, batch.weight)

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
