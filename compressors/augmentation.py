"""Random crop, mirror and cutout, drawn in advance: a step needs no random numbers of its own.

All draws of an epoch come from a generator seeded by the training's seed and the epoch. A training that is resumed
sees the same images again, on any device, and a step can be recorded as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns of the draws: which image, offsets of the crop, mirrored or not, corner of the hole.
COLUMNS = 6
NAMES = ("none", "crop_flip", "crop_flip_cutout")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to each image [channels, height, width], each its own.

    Attributes:
        pad: pixels around the image (zeros: the mean of a normalised image) out of which it is cropped again.
        mirror: half of the images are mirrored.
        cutout: side of a square set to zero (DeVries and Taylor 2017, arXiv 1708.04552); 0 for none. Its corner may
            lie outside the image, so that some images lose less.
    """

    pad: int = 0
    mirror: bool = False
    cutout: int = 0

    @classmethod
    def named(cls, name: str, height: int) -> Augmentation:
        """``none``, ``crop_flip`` (pad by an eighth), ``crop_flip_cutout`` (and a hole of a quarter).

        Raises:
            ValueError: another name.
        """
        if name not in NAMES:
            raise ValueError(f"unknown augmentation {name!r}; known: {', '.join(NAMES)}")
        if name == "none":
            return cls()
        return cls(
            max(1, height // 8), True, max(1, height // 4) if name == "crop_flip_cutout" else 0
        )


def epoch_draws(
    count: int,
    batch: int,
    augmentation: Augmentation,
    shape: tuple[int, ...],
    seed: int,
    epoch: int,
) -> Tensor:
    """Every random number of one epoch, int64 [count // batch, batch, 6].

    The images of an incomplete last batch wait for another epoch's order.

    Args:
        count: images to train on.
        shape: of one image, [C, H, W]; other inputs are only put in order.
    """
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    steps = count // batch
    order = torch.randperm(count, generator=generator)[: steps * batch]
    draws = torch.zeros((steps * batch, COLUMNS), dtype=torch.int64)
    draws[:, 0] = order

    def uniform(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (len(order),), generator=generator)

    if len(shape) == 3:
        draws[:, 1], draws[:, 2] = (uniform(0, 2 * augmentation.pad + 1) for _ in range(2))
        draws[:, 3] = uniform(0, 2) if augmentation.mirror else 0
        if augmentation.cutout:
            half = augmentation.cutout // 2
            draws[:, 4] = uniform(-half, shape[1] - half)
            draws[:, 5] = uniform(-half, shape[2] - half)
    return draws.view(steps, batch, COLUMNS)


def augmented(images: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """Crops, mirrors and holes as drawn.

    Args:
        images: float [n, channels, height, width]; inputs of other shapes come back as they are.
        draws: int64 [n, 6] on the same device, see ``epoch_draws``.
    """
    if images.dim() != 4:
        return images
    n, _, height, width = images.shape
    device = images.device
    if augmentation.pad or augmentation.mirror:
        down = torch.arange(height, device=device).view(1, height, 1)
        across = torch.arange(width, device=device).view(1, 1, width)
        mirrored = draws[:, 3].view(n, 1, 1).bool()
        rows = draws[:, 1].view(n, 1, 1) + down
        columns = draws[:, 2].view(n, 1, 1) + torch.where(mirrored, width - 1 - across, across)
        which = torch.arange(n, device=device).view(n, 1, 1)
        padded = F.pad(images, (augmentation.pad,) * 4)
        # Channels come out innermost, the layout that convolutions want.
        images = padded[which, :, rows, columns].permute(0, 3, 1, 2)
    if augmentation.cutout:
        down = torch.arange(height, device=device).view(1, height) - draws[:, 4].view(n, 1)
        across = torch.arange(width, device=device).view(1, width) - draws[:, 5].view(n, 1)
        side = augmentation.cutout
        inside_rows = ((down >= 0) & (down < side)).view(n, 1, height, 1)
        inside_columns = ((across >= 0) & (across < side)).view(n, 1, 1, width)
        images = images.masked_fill(inside_rows & inside_columns, 0.0)
    return images
