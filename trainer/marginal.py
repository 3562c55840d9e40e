"""Averaging over a missing modality in training: the embeddings of the support at each step.

All give `likelihood.log_posterior` a support [R, N, k]; it need not know which.

- ``full``: every training row in which the modality is observed, embedded anew each step. Exact, and N / B times the
  work.
- ``bank``: the latest embedding of every such row. The marginal's *value* runs over all N of them, its *gradient*
  through a few drawn uniformly and embedded anew, each scaled by N over their number, which makes it unbiased.
- ``batch``: the batch's own observed rows.

The support is embedded without dropout, as it is where predictions average over it; the batch's own rows have it where
they are classified.

Where training changes what features are (`end_to_end`), a row embedded anew is a whole network's work. There ``bank``
is `Latest`, a bank of features, whose gradient goes through the rows that the batch holds; there is no ``batch``.

Shapes: R runs, B batch, N support rows, S segments a clip, k embedding.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .batches import Batch
from .data import Runs
from .method import in_blocks, rows_at_once
from .networks import Encoder

DRAWN = 16  # rows of the bank embedded anew each step


class PerStep:
    """Rows that are drawn for every step of an epoch at once: [steps, R, n].

    A step takes its own by a counter on the device, and another epoch's are copied into the same place: so a recorded
    step can be replayed (`fit.Step`).
    """

    def __init__(self, device: torch.device):
        self.drawn = torch.empty(0, dtype=torch.long, device=device)
        self.at = torch.zeros(1, dtype=torch.long, device=device)

    def fill(self, drawn: Tensor) -> None:
        """Take the draws of a new epoch, from the host."""
        if self.drawn.shape != drawn.shape:
            self.drawn = torch.empty_like(drawn, device=self.drawn.device)
        self.drawn.copy_(drawn)
        self.at.zero_()

    def take(self) -> Tensor:
        """Return the next step's rows: [R, n]."""
        rows = self.drawn.index_select(0, self.at).squeeze(0)
        self.at += 1
        return rows


class SupportRows:
    """The rows that modality m is marginalised over: training rows in which it is observed.

    rows: [R, N], N the most of any run; mask: bool [R, N], or None where all runs have N; count: each run's own N.
    """

    def __init__(self, runs: Runs, m: int):
        self.runs, self.m = runs, m
        observed = runs.observed[..., m].cpu().numpy()
        kept = runs.trained_on & observed
        clips, counted = runs.padded_clips(kept)  # [R, c]
        self.rows = runs.rows_of(clips)
        self.mask = None if counted.all() else counted.repeat_interleave(runs.segments, dim=1)
        self.count = (counted.sum(1) * runs.segments).tolist()
        here = torch.as_tensor(kept, device=runs.device)
        self._slot = torch.where(here, here.cumsum(1) - 1, clips.shape[1])  # [R, clip]

    def position(self, rows: Tensor) -> Tensor:
        """Return the positions of rows [R, B] in the support; at least N for rows outside it."""
        S = self.runs.segments
        return self._slot.gather(1, torch.div(rows, S, rounding_mode="floor")) * S + rows % S

    def features(self, rows: Tensor) -> Tensor:
        """Return the features [R, n, D] of rows [R, n] of the support."""
        return self.runs.gather_modality(self.m, rows, self.runs.observed_rows(rows)[..., self.m])

    def embed(self, encoder: Encoder, rows: Tensor | None = None) -> Tensor:
        """Return the embeddings [R, n, k] of rows (default: all); large ones in blocks that are recomputed backward."""

        def block(part: Tensor) -> Tensor:
            return encoder(self.features(part), self.runs.observed_rows(part)[..., self.m], drop=False)

        def light(part: Tensor) -> Tensor:
            return checkpoint(block, part, use_reentrant=False, preserve_rng_state=False)

        rows = self.rows if rows is None else rows
        most = rows_at_once(self.runs.device)
        many = rows.numel() > most and not self.runs.features_change  # trunks see to their memory themselves
        return in_blocks(light if many and torch.is_grad_enabled() else block, rows, most)


class Full:
    """Every row of the support, embedded again at each step."""

    def __init__(self, runs: Runs, m: int, encoder: Encoder):
        self.support, self.encoder = SupportRows(runs, m), encoder

    def begin_epoch(self, steps: int) -> None:
        """Do nothing: nothing is drawn."""

    def state(self) -> dict:
        """Return what a checkpoint keeps: tensors and plain values."""
        return {}

    def load_state(self, state: dict) -> None:
        """Go on from `state`."""

    def __call__(self, batch: Batch, fresh: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the support [R, N, k] and its mask; ``fresh`` [R, B, k] is the batch embedded without dropout."""
        return self.support.embed(self.encoder), self.support.mask


class InBatch:
    """The batch's observed rows; one row drawn from all stands in where a batch has none."""

    def __init__(self, runs: Runs, m: int, encoder: Encoder):
        self.support, self.encoder, self.m = SupportRows(runs, m), encoder, m
        self.generators = runs.generators(f"support:{runs.modalities[m]}")
        self._drawn = PerStep(runs.device)

    def begin_epoch(self, steps: int) -> None:
        """Draw the spare row of each step."""
        drawn = [
            torch.randint(n, (steps,), generator=g) for n, g in zip(self.support.count, self.generators, strict=True)
        ]
        self._drawn.fill(torch.stack(drawn, 1)[..., None])  # [steps, R, 1]

    def __call__(self, batch: Batch, fresh: Tensor) -> tuple[Tensor, Tensor | None]:
        spare = self.support.embed(self.encoder, self.support.rows.gather(1, self._drawn.take()))
        mask = batch.observed[..., self.m] & (batch.weight > 0)
        return torch.cat([fresh, spare], 1), torch.cat([mask, ~mask.any(1, keepdim=True)], 1)


class Bank:
    """The latest embedding of every support row; unbiased gradients through a few drawn ones."""

    def __init__(self, runs: Runs, m: int, encoder: Encoder):
        self.support, self.encoder, self.m = SupportRows(runs, m), encoder, m
        self.generators = runs.generators(f"support:{runs.modalities[m]}")
        self._drawn = PerStep(runs.device)
        with torch.no_grad():
            filled = self.support.embed(encoder)
        # One more clip's worth of entries at the end takes what belongs nowhere, and is never part of the support.
        self.bank = torch.cat([filled, torch.zeros_like(filled[:, : runs.segments])], 1)
        self.N = self.support.rows.shape[1]
        self.rows = torch.cat([self.support.rows, self.support.rows[:, :1]], 1)
        drawn = torch.tensor([min(DRAWN, n) for n in self.support.count], device=runs.device)
        self.scale = (torch.tensor(self.support.count, device=runs.device) / drawn)[:, None, None]  # N / J

    def begin_epoch(self, steps: int) -> None:
        """Draw for all steps: within a step without replacement, as consecutive parts of a shuffle."""
        drawn = torch.full((len(self.generators), steps, DRAWN), self.N)
        for r, (n, g) in enumerate(zip(self.support.count, self.generators, strict=True)):
            j = min(DRAWN, n)
            done, windows = 0, n // j  # a shuffle serves so many steps
            while done < steps:
                part = torch.randperm(n, generator=g)[: min(windows, steps - done) * j].view(-1, j)
                drawn[r, done : done + len(part), :j] = part
                done += len(part)
        self._drawn.fill(drawn.transpose(0, 1))  # [steps, R, J]

    def state(self) -> dict:
        """Return what a checkpoint keeps."""
        return {"bank": self.bank, "generators": [g.get_state() for g in self.generators]}

    def load_state(self, state: dict) -> None:
        """Go on from `state`."""
        self.bank = state["bank"].to(self.bank.device)
        for g, drawn in zip(self.generators, state["generators"], strict=True):
            g.set_state(drawn.cpu())

    def __call__(self, batch: Batch, fresh: Tensor) -> tuple[Tensor, Tensor | None]:
        k = fresh.shape[-1]
        counted = batch.observed[..., self.m] & (batch.weight > 0)
        written = torch.where(counted, self.support.position(batch.rows), self.N)
        drawn = self._drawn.take()
        g = self.support.embed(self.encoder, self.rows.gather(1, drawn))  # [R, J, k]
        drawn = drawn[..., None].expand(-1, -1, k)
        self.bank.scatter_(1, written[..., None].expand(-1, -1, k), fresh.detach())
        self.bank.scatter_(1, drawn, g.detach())
        scaled = g.detach() + (g - g.detach()) * self.scale  # the value of g, N / J times its gradient
        support = self.bank.scatter(1, drawn, scaled)[:, : self.N]
        return support, self.support.mask


class Latest:
    """The bank where a row's features are a whole network's work: the latest features of every support row.

    They are embedded anew each step, which costs little, so only the network's own share of an embedding is old. The
    encoder's gradient runs over all of them, the network's through the batch's observed rows. A batch that holds more
    rows of a pattern than occur weighs them less (`batches.Strata`): with N_p of N rows of a pattern and J_p of B in a
    batch, N_p / J_p is a row's weight times N / B. Each fresh row stands for so many of the support, and the gradient
    is unbiased but for the age of the other features.
    """

    def __init__(self, runs: Runs, m: int, encoder: Encoder):
        self.runs, self.support, self.encoder, self.m = runs, SupportRows(runs, m), encoder, m
        with torch.no_grad():
            filled = in_blocks(self.support.features, self.support.rows, rows_at_once(runs.device))
        # One more clip's worth of entries at the end takes what belongs nowhere, and is never part of the support.
        self.bank = torch.cat([filled, torch.zeros_like(filled[:, : runs.segments])], 1)
        self.N = filled.shape[1]
        rows = [int(kept.sum()) * runs.segments for kept in runs.trained_on]
        self.trained = torch.tensor(rows, device=runs.device)[:, None, None]  # N

    def begin_epoch(self, steps: int) -> None:
        """Do nothing: nothing is drawn."""

    def state(self) -> dict:
        """Return what a checkpoint keeps."""
        return {"bank": self.bank}

    def load_state(self, state: dict) -> None:
        """Go on from `state`."""
        self.bank = state["bank"].to(self.bank.device)

    def __call__(self, batch: Batch, fresh: Tensor) -> tuple[Tensor, Tensor | None]:
        counted = batch.observed[..., self.m] & (batch.weight > 0)
        x = batch.x[self.m].masked_fill(~counted[..., None], 0)
        written = torch.where(counted, self.support.position(batch.rows), self.N)[..., None].expand_as(x)
        share = self.runs.draws.shares(batch.rows.cpu()[None])  # of the loss, which is none of what a row stands for
        weight = batch.weight if isinstance(share, float) else batch.weight / share[0].to(x.device)
        scale = weight[..., None] * (self.trained / (weight > 0).sum(1)[:, None, None])
        self.bank.scatter_(1, written, x.detach())
        scaled = x.detach() + (x - x.detach()) * scale  # the value of x, N_p / J_p times its gradient
        return self._embed(self.bank.scatter(1, written, scaled)[:, : self.N]), self.support.mask

    def _embed(self, features: Tensor) -> Tensor:
        """Embed [R, N, D] to [R, N, k], in blocks that are recomputed backward where there are several."""
        present = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        most = rows_at_once(features.device)
        parts = list(zip(features.split(most, 1), present.split(most, 1), strict=True))
        if len(parts) == 1:
            return self.encoder(*parts[0], drop=False)
        how = {"drop": False, "use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(self.encoder, *part, **how) for part in parts], 1)


BY_NAME_END_TO_END = {"full": Full, "bank": Latest}
BY_NAME = {"full": Full, "bank": Bank, "batch": InBatch}
