"""Reference rows: one modality alone."""

from collections.abc import Sequence

from torch import Tensor

from ..batches import Stage, rows_with
from ..method import FusionClassifier


class SingleModality(FusionClassifier):
    """One modality only: the classifier of that one alone, for reference.

    Objective: the mean over the training rows that have the modality of -log Q(z | g), equation 4 with one modality.
    Source: none; a reference for what the others add.
    A clip that lacks the modality is given the classes' frequencies. Fusion does not apply.
    """

    replays = True
    fusions, fuses, reference = ("addition",), False, True

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C]; the prior's where the modality is missing."""
        (m,) = self._places
        (embedding,) = self.encode(x, observed)
        return self.classify([embedding.masked_fill(~observed[..., m, None], 0)])


def only(modality: str) -> type[SingleModality]:
    """Make the method that looks at one modality, of any name."""
    members = {"modalities": (modality,), "stages": (Stage(rows=rows_with(modality), hides=False),)}
    doc = (SingleModality.__doc__ or "").replace("One modality", modality.capitalize(), 1)
    return type(f"Only_{modality}", (SingleModality,), members | {"__doc__": doc})


AudioOnly, VisualOnly = only("audio"), only("visual")
