"""Reference rows: one modality alone."""

from collections.abc import Sequence

from torch import Tensor

from ..batches import Batch, Stage, rows_with
from ..method import FusionClassifier, negative_log_likelihood


class AudioOnly(FusionClassifier):
    """Audio only: the classifier of the sound alone, for reference.

    Objective: the mean over the training rows that have the modality of -log Q(z | g), equation 4 with one modality.
    Source: none; a reference for what the other modality adds.
    A clip that lacks the modality is given the classes' frequencies. Fusion does not apply.
    """

    fusions, fuses = ("addition",), False
    modalities = ("audio",)
    stages = (Stage(rows=rows_with("audio")),)

    def loss(self, batch: Batch) -> Tensor:
        """Return the classifier's mean loss: [R]."""
        return negative_log_likelihood(self.predict(batch.x, batch.observed), batch.label, batch.weight)

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C]; the prior's where the modality is missing."""
        (m,) = self._places
        (embedding,) = self.encode(x, observed)
        return self.classify([embedding.masked_fill(~observed[..., m, None], 0)])


class VisualOnly(AudioOnly):
    """Visual only: the classifier of the picture alone, for reference.

    Objective: the mean over the training rows that have the modality of -log Q(z | f), equation 4 with one modality.
    Source: none; a reference for what the other modality adds.
    A clip that lacks the modality is given the classes' frequencies. Fusion does not apply.
    """

    modalities = ("visual",)
    stages = (Stage(rows=rows_with("visual")),)
