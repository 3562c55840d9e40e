"""Backbones that are trained: media of segments in, features out, on whatever device.

Shapes: n segments, D features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from ...pipeline.encoders.images import Backbone, frame_pictures, logmel_pictures

PICTURES = {"visual": frame_pictures, "audio": logmel_pictures}
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
SHIFT = 16  # pixels of a frame's 256 by which a crop may move
BRIGHTNESS, CONTRAST, COLOUR = 0.2, 0.2, 0.1  # most by which a frame's light, contrast and colours are changed
MASKED_MELS, MASKED_TIMES = 12, 10  # most mels (of 64) and steps (of 51) of a spectrogram that are masked


class Trunk(nn.Module):
    """One modality's backbone.

    frozen: it stays as it is, in evaluation mode. micro_batch: most segments computed at once; of a larger batch the
    activations are made again in the backward pass, so that memory hardly grows with the batch and the gradient is the
    whole batch's, whatever the loss couples (batch norms see the segments computed at once). precision: fp32, tf32, or
    bf16 for mixed precision. compiled: by torch.compile at first use.
    """

    def __init__(
        self,
        modality: str,
        network: Backbone,
        *,
        frozen: bool,
        augment: bool,
        micro_batch: int,
        precision: str,
        compiled: bool = False,
    ):
        super().__init__()
        self.modality, self.info = modality, network
        self.network = network.model.to(memory_format=torch.channels_last).requires_grad_(not frozen)
        if compiled:
            if torch.cuda.is_available():
                torch.cuda.init()  # else compiling does, within a checkpoint, which refuses it
            self.network.compile(dynamic=True)  # how many segments show a modality changes from step to step
        self.frozen, self.augment, self.micro_batch, self.precision = frozen, augment, micro_batch, precision

    def train(self, mode: bool = True) -> "Trunk":
        """Set training mode; a frozen network stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, media: Tensor, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Compute the features, float32 [n, D], of media on the host (see `media.MediaReader`).

        generator: what augmentation is drawn from, in training.
        """
        if not len(media):
            return torch.zeros(0, self.info.dimension, device=device)
        parts = media.tensor_split(-(-len(media) // self.micro_batch))  # of equal size, for batch norms
        images = (self._images(part, device, generator) for part in parts)
        if len(parts) > 1 and torch.is_grad_enabled() and not self.frozen:
            found = [
                checkpoint(self._features, part, use_reentrant=False, context_fn=self._contexts) for part in images
            ]
        else:
            found = [self._features(part) for part in images]
        return torch.cat(found)

    @torch.no_grad()
    def _images(self, media: Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
        pictures = PICTURES[self.modality](media.to(device, non_blocking=True))
        if self.augment and self.training and generator is not None:
            pictures = AUGMENT[self.modality](pictures, generator)
        return self.info.images(pictures).contiguous(memory_format=torch.channels_last)

    def _features(self, images: Tensor) -> Tensor:
        mixed = torch.autocast(images.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with mixed, nullcontext() if not self.frozen else torch.no_grad():
            return self.network(images).float()

    def _contexts(self):
        return nullcontext(), self.keeping_statistics()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Stay in evaluation mode within the context."""
        before = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(before)

    @contextmanager
    def keeping_statistics(self) -> Iterator[None]:
        """Keep batch norms' running statistics as they are: what passes has counted already."""
        norms = [module for module in self.network.modules() if isinstance(module, BatchNorm)]
        before = [(module.momentum, module.num_batches_tracked) for module in norms]
        for module in norms:
            module.momentum = 0.0
            module.num_batches_tracked = None
        try:
            yield
        finally:
            for module, (momentum, tracked) in zip(norms, before, strict=True):
                module.momentum, module.num_batches_tracked = momentum, tracked


@contextmanager
def averaging_statistics(trunks: Sequence[Trunk]) -> Iterator[None]:
    """Make batch norms' running statistics the plain mean over all batches that pass within the context."""
    norms = [module for trunk in trunks for module in trunk.network.modules() if isinstance(module, BatchNorm)]
    before = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None
    try:
        yield
    finally:
        for module, momentum in zip(norms, before, strict=True):
            module.momentum = momentum


def augment_frames(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, crop and recolour each frame at random: float [n, 3, row, column] in [0, 1]."""
    n, _, height, width = pictures.shape
    draw = torch.rand(n, 8, generator=generator).to(pictures.device)
    pictures = torch.where(draw[:, 0, None, None, None] < 0.5, pictures.flip(-1), pictures)
    padded = pad(pictures, (SHIFT, SHIFT, SHIFT, SHIFT), mode="reflect")
    top, left = (draw[:, 1:3] * (2 * SHIFT + 1)).long().unbind(1)
    rows = top[:, None] + torch.arange(height, device=pictures.device)
    columns = left[:, None] + torch.arange(width, device=pictures.device)
    each = torch.arange(n, device=pictures.device)[:, None, None, None]
    channels = torch.arange(3, device=pictures.device)[None, :, None, None]
    pictures = padded[each, channels, rows[:, None, :, None], columns[:, None, None, :]]
    signed = 2 * draw[:, 3:, None, None] - 1  # [n, 5, 1, 1]
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = (pictures - mean) * (1 + CONTRAST * signed[:, :1]) + mean * (1 + BRIGHTNESS * signed[:, 1:2])
    return (pictures * (1 + COLOUR * signed[:, 2:5])).clamp(0, 1)


def augment_logmels(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Set a band of mels and a stretch of time of each log-Mel image to its mean: float [n, 3, mel, time] in [0, 1].

    After SpecAugment (Park and others, Interspeech 2019), one mask of each kind.
    """
    n, _, mels, times = pictures.shape
    draw = torch.rand(n, 4, generator=generator).to(pictures.device)
    masked = torch.zeros(n, 1, mels, times, dtype=torch.bool, device=pictures.device)
    for axis, (size, most) in enumerate(((mels, MASKED_MELS), (times, MASKED_TIMES))):
        length = (draw[:, 2 * axis] * (most + 1)).floor()
        start = (draw[:, 2 * axis + 1] * (size - length + 1)).floor()
        place = torch.arange(size, device=pictures.device)
        inside = (place >= start[:, None]) & (place < (start + length)[:, None])  # [n, size]
        masked |= inside[:, None, :, None] if axis == 0 else inside[:, None, None, :]
    return torch.where(masked, pictures.mean((2, 3), keepdim=True), pictures)


AUGMENT = {"visual": augment_frames, "audio": augment_logmels}
