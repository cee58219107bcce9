"""The learning rate of a fine-tuning, step by step: one rule for every network, nothing to set by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Peak of a long training at a batch of 128, as He et al. 2016 (arXiv 1512.03385, section 4.2) train on CIFAR-10.
BASE_RATE, BASE_BATCH = 0.1, 128
# A training this long may leave the start behind; a shorter one must stay near it.
LONG_EPOCHS = 100
# Learned grids of few bits want a tenth (Esser et al. 2020, arXiv 1902.08153, section 3: 0.01 in place of 0.1).
FEW_BITS_SHARE = 0.1
# Folded networks have no norms that make up for a step too large.
FOLDED_RATE = 0.001
WARM_UP_SHARE = 0.05


def peak_rate(batch: int, epochs: int, few_bits: bool = False) -> float:
    """Highest learning rate of a training with norms in place.

    In proportion to the batch (Goyal et al. 2017, arXiv 1706.02677) and to the root of the length up to 100 epochs:
    a pruned and refitted network starts near its goal, and what a step too large destroys a few epochs cannot repair.

    Args:
        few_bits: layers compute with weights of less than 8 bits.
    """
    share = FEW_BITS_SHARE if few_bits else 1.0
    return share * BASE_RATE * batch / BASE_BATCH * min(1.0, math.sqrt(epochs / LONG_EPOCHS))


def folded_rate(batch: int) -> float:
    """Highest learning rate once norms are folded and tensors quantized."""
    return FOLDED_RATE * batch / BASE_BATCH


def cosine_rates(steps: int, peak: float) -> Tensor:
    """Learning rate of every step, float32 [steps]: linear warm-up over a twentieth, then a cosine to zero.

    Loshchilov and Hutter 2017 (arXiv 1608.03983, eq. 5, without restarts).
    """
    step = torch.arange(steps, dtype=torch.float64)
    warm = max(1, round(steps * WARM_UP_SHARE))
    falling = 0.5 * (1 + torch.cos(math.pi * (step - warm) / max(1, steps - warm)))
    return (peak * torch.where(step < warm, (step + 1) / warm, falling)).float()


def cubic_shares(steps: int) -> Tensor:
    """What is left of a channel that is being masked, float32 [steps]: from 1 to 0 over the first half.

    ``(1 - t)^3``, the schedule of Zhu and Gupta 2017 (arXiv 1710.01878, eq. 1) for the strength of the mask where
    theirs is for the share of weights; the second half trains what is left.
    """
    span = max(1, steps // 2)
    return (1 - (torch.arange(steps, dtype=torch.float32) + 1) / span).clamp_min(0) ** 3
