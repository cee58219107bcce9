"""A part of a split that can stand for the whole, and images in no order."""

from __future__ import annotations

import torch
from torch import Tensor


def some_of(whole: int, count: int) -> range:
    """At most so many places at equal distances: a split may be in the order of its classes."""
    return range(0, whole, -(-whole // max(1, min(count, whole))))


def shuffled(seed: int, *tensors: Tensor) -> list[Tensor]:
    """Tensors of one length in another order, the same for all."""
    order = torch.randperm(len(tensors[0]), generator=torch.Generator().manual_seed(seed))
    return [tensor[order] for tensor in tensors]
