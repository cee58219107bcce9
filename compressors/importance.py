"""Which channels of a pruning group matter most."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors.groups import PruningGroup

CRITERIA = ("l1", "l2")


def importance(
    network: nn.Module, group: PruningGroup, criterion: str = "l1"
) -> NDArray[np.float64]:
    """Magnitude of each channel (Li et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710).

    We sum over every layer of the group that makes or reads the channel, each scaled to mean 1, where the paper
    looks only at the filters that make it.

    Args:
        network: with its batch norms folded, so that their gains count.
        criterion: ``l1`` or ``l2``.

    Returns:
        float64 [channels], larger matters more.
    """
    total = np.zeros(group.channels)
    for member in group.members:
        module = network.get_submodule(member.path)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        size = _size(module.weight.detach(), 1 if member.axis == "in" else 0, criterion)
        per_channel = size[member.positions].sum(axis=1)
        total += per_channel / max(float(per_channel.mean()), 1e-30)
    return total


def _size(weight: Tensor, dim: int, criterion: str) -> NDArray[np.float64]:
    flat = weight.transpose(0, dim).flatten(1).double()
    size = flat.abs().sum(1) if criterion == "l1" else flat.square().sum(1).sqrt()
    return np.asarray(torch.nan_to_num(size).numpy())


def ranking(network: nn.Module, group: PruningGroup, criterion: str = "l1") -> NDArray[np.int64]:
    """Channels from most to least important, int64 [channels]; ties by index, so that it is reproducible."""
    return np.argsort(-importance(network, group, criterion), kind="stable")
