"""Autoencoders that impute a missing modality from the others, then the classifier of complete data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..batches import Batch, Stage, complete_rows
from ..data import Blueprint
from ..method import FusionClassifier
from ..networks import RunLinear, Standardise
from ..settings import Settings


class Imputer(nn.Module):
    """Predict the standardised features of modality m from those of all others: one hidden layer.

    moments: M pairs of mean and deviation, [R, D] each. clamp: of the inputs, see `Standardise`.
    """

    def __init__(self, moments: Sequence, m: int, hidden: int, clamp: float, generators: Sequence[torch.Generator]):
        super().__init__()
        self.others = [n for n in range(len(moments)) if n != m]
        self.inputs = nn.ModuleList(Standardise(*moments[n], clamp) for n in self.others)
        self.hidden = RunLinear(sum(moments[n][0].shape[1] for n in self.others), hidden, generators)
        self.output = RunLinear(hidden, moments[m][0].shape[1], generators)

    def forward(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Map x, M tensors [R, n, D], and observed, bool [R, n, M], to [R, n, D_m]."""
        seen = [part(x[n], observed[..., n]) for n, part in zip(self.others, self.inputs, strict=True)]
        return self.output(self.hidden(torch.cat(seen, -1)).relu())


class Autoencoder1(FusionClassifier):
    """Autoencoder 1: reconstruct the missing modality by a network fitted on complete clips, then classify.

    Objective: first, on complete rows, the mean squared error of modality y reconstructed from the others,
    standardised; then, with the reconstructions in place of what is missing, the mean over all rows of -log Q(z | f, g)
    by equation 4. E epochs each.
    Source: section 3.3 of the paper (Ma and others, 2021), after Tran and others (2017).
    The paper leaves the autoencoder's shape open (here one hidden layer of the encoders' width), and what an incomplete
    test clip is given (here the reconstruction too). Every modality that is missing somewhere in training, validation
    or test has its own autoencoder; for any other, should it be missing later, its mean stands in.
    """

    replays = True
    stages = (
        Stage("autoencoder", "reconstruction", complete_rows, parts=("imputers",), selects=False, hides=False),
        Stage("classifier", parts=("encoders", "labels")),
    )
    least_complete = 1
    reconstructs = True

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        self.imputers = nn.ModuleDict(
            {
                str(m): Imputer(
                    runs.moments, m, settings.hidden, settings.clamp, runs.generators(f"imputer:{modality}")
                )
                for m, modality in enumerate(runs.modalities)
                if runs.lacking[m] or runs.lacking_held_out[m]
            }
        )
        self.to(runs.device)

    def reconstruction(self, batch: Batch) -> Tensor:
        """Return the mean squared error of each modality that has an autoencoder, summed: [R]."""
        total = torch.zeros(len(self.runs), device=self.runs.device)
        for m, imputer in self.imputers.items():
            target = self._standardised(int(m), batch)
            total = total + _squared_error(imputer(batch.x, batch.observed), target, batch.weight)
        return total

    def _standardised(self, m: int, batch: Batch) -> Tensor:
        return self.encoders[m].standardise(batch.x[m], batch.observed[..., m])

    def predict(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return log-probabilities [R, B, C]; missing modalities are imputed first."""
        filled, known = list(x), observed.clone()
        for m, imputer in self.imputers.items():
            place = int(m)
            with torch.no_grad():
                guess = self.encoders[place].standardise.undo(imputer(x, observed))
            filled[place] = torch.where(observed[..., place, None], x[place], guess)
            known[..., place] = True
        return self.classify(self.encode(filled, known))


class Autoencoder2(Autoencoder1):
    """Autoencoder 2: like autoencoder 1, which then trains itself on its own predictions too.

    Objective: as for autoencoder 1, except that from its second epoch on the autoencoder is fitted on incomplete rows
    too, whose missing modality is what it predicted before the epoch: an iteration is to impute again, then one epoch.
    Source: section 3.3 of the paper (Ma and others, 2021), after self-training.
    The paper leaves open how rows are weighed (here all alike) and how many iterations there are (here E - 1, so that
    both autoencoders train the same number of epochs).
    """

    stages = (
        Stage("autoencoder", "reconstruction", parts=("imputers",), selects=False, hides=False),
        Stage("classifier", parts=("encoders", "labels")),
    )

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        # The autoencoders' weights before the epoch: predictions are made from them batch by batch, never stored.
        self._before = {
            m: {n: p.detach().clone() for n, p in imputer.named_parameters()} for m, imputer in self.imputers.items()
        }
        self._epochs = torch.full((), -1, device=runs.device)  # that the autoencoders have been trained

    def begin_epoch(self, stage: Stage, steps: int) -> None:
        """Keep the autoencoders' weights before the epoch, to predict what is missing."""
        if stage.name == "autoencoder":
            self._epochs += 1
            for m, imputer in self.imputers.items():
                for name, parameter in imputer.named_parameters():
                    self._before[m][name].copy_(parameter.detach())

    def training_state(self) -> dict:
        """Return how many epochs the autoencoders have been trained, too."""
        return super().training_state() | {"epochs": self._epochs.item()}

    def load_training_state(self, state: dict) -> None:
        """Go on from `training_state`."""
        super().load_training_state(state)
        self._epochs.fill_(state["epochs"])

    def reconstruction(self, batch: Batch) -> Tensor:
        """Return the mean squared error on observed values and on earlier predictions: [R]."""
        total = torch.zeros(len(self.runs), device=self.runs.device)
        for m, imputer in self.imputers.items():
            observed = batch.observed[..., int(m)]
            target = self._standardised(int(m), batch)
            others = batch.observed[..., imputer.others].any(-1)
            weight = batch.weight * others * (observed | (self._epochs > 0))  # in the first epoch observed values alone
            with torch.no_grad():
                pseudo = functional_call(imputer, self._before[m], (batch.x, batch.observed))
            target = torch.where(observed[..., None], target, self.encoders[int(m)].standardise.bounded(pseudo))
            total = total + _squared_error(imputer(batch.x, batch.observed), target, weight)
        return total


def _squared_error(found: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over the rows that count and over features: [R, n, D] and weight [R, n] to [R]."""
    return ((found - target).square().mean(-1) * weight).sum(-1) / weight.sum(-1).clamp_min(1)
