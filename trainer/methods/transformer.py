"""The late-fusion transformer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data import Blueprint
from ..layers import AttentionBlock, OwnFusion
from ..settings import Settings


class Transformer(OwnFusion):
    """Late-fusion transformer: each modality is a token, and missing ones are masked.

    Objective: the mean over all training rows of the cross-entropy, -log Q(z | what is observed).
    Source: the baseline of SimBaMM (arXiv 2512.22991, repository TillmannRheude/simple_mml_baseline), which none of 19
    methods beat. A linear map takes each modality to a token; a class token and post-norm attention blocks with the
    missing masked as keys follow; the class token is classified.
    What differs: a row is one segment, so a modality has one token and no time. Instead of position embeddings each
    map's bias says which modality a token is. Narrower, of 2 blocks instead of 4 and 4 heads instead of 8; dropout by
    the settings (there 0.2) and not of attention's weights; AdamW, batches and epochs as for every method (there
    schedule-free AdamW, warm-up, patience).
    """

    replays = True
    DEPTH = 2

    def __init__(self, runs: Blueprint, settings: Settings, fusion: str):
        super().__init__(runs, settings, fusion)
        d = self.width
        self.maps = self.tokens()
        drawn = [torch.randn(1, d, generator=g) * d**-0.5 for g in runs.generators("class token")]
        self.class_token = nn.Parameter(torch.stack(drawn))  # [R, 1, d]
        self.blocks = nn.ModuleList(
            AttentionBlock(
                d,
                self.perceptron(d, d, f"feed-forward {depth}"),
                runs.generators(f"attention {depth}"),
                self.dropout(f"attention {depth}"),
            )
            for depth in range(self.DEPTH)
        )
        self.head = self.linear(d, len(runs.classes), "head")
        self.to(runs.device)

    def logits(self, x: Sequence[Tensor], observed: Tensor) -> Tensor:
        """Return scores of the classes [R, B, C] from the class token."""
        of_class = self.class_token.expand(-1, observed.shape[1], -1)
        maps = [part(x[m], observed[..., m]) for m, part in enumerate(self.maps)]
        tokens = torch.stack([of_class, *maps], 2)  # [R, B, 1 + M, d]
        seen = torch.cat([torch.ones_like(observed[..., :1]), observed], -1)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, seen)
        return self.head(last(tokens, seen, 1)[:, :, 0])  # of the last block nothing else is asked for
