"""Zero padding of missing features."""

from collections.abc import Sequence

from torch import Tensor

from ..method import FusionClassifier


class ZeroPadding(FusionClassifier):
    """Zero padding: the embedding of a missing modality is zero, then the classifier of complete data.

    Objective: the mean over all training rows of -log Q(z | f, g) by equation 4, with f or g zero where missing.
    Source: section 3.3 of the paper (Ma and others, 2021). It pads "the feature representations": here the
    embeddings, not the encoders' inputs, in training and prediction alike. With the outer product a zero embedding
    would zero the whole fusion, so that fusion is not offered.
    """

    replays = True
    fusions = ("addition", "concatenation")

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C]; embeddings of missing modalities are zero."""
        padded = [e.masked_fill(~observed[..., m, None], 0) for m, e in enumerate(self.encode(x, observed))]
        return self.classify(padded)
