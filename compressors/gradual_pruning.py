"""Pruning while training: channels fade out and are removed at the end.

He et al. 2018, "Soft Filter Pruning" (arXiv 1808.06866) lets pruned filters live on in the training; Zhu and Gupta
2017 (arXiv 1710.01878) prune step by step. We fade what reads the channels, not what makes them: a layer that
multiplies an input by zero computes the same as one without it, whatever activation lies between.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compressors.pruner import Channels


class InputFade(nn.Module):
    """Multiplies the weights that read removed channels by ``share``.

    Args:
        weight: of the layer, [out, in, ...].
        kept: positions along the input that stay.
    """

    share: Tensor
    kept: Tensor

    def __init__(self, weight: Tensor, kept: Iterable[int]) -> None:
        super().__init__()
        mask = torch.zeros(weight.shape[1], dtype=torch.float32)
        mask[list(kept)] = 1.0
        self.register_buffer("kept", mask.view(1, -1, *[1] * (weight.dim() - 2)))
        self.register_buffer("share", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.kept + (1 - self.kept) * self.share)


def mixes_channels(module: nn.Module) -> bool:
    """Whether a module normalises over channels (layer norms, RMS norms, group norms): what it gives for one depends
    on the others."""
    return isinstance(module, nn.GroupNorm) or hasattr(module, "normalized_shape")


def fade(network: nn.Module, channels: Channels) -> list[InputFade]:
    """Attaches a fade to every layer that reads channels to be removed, in place.

    Args:
        channels: that stay; none goes that reaches a norm over channels, which computes another function without it.
    """
    modules = dict(network.named_modules())
    fades = []
    for path, axes in channels.items():
        module = modules.get(path)
        if module is not None and "in" in axes and isinstance(module, nn.Conv2d | nn.Linear):
            one = InputFade(module.weight, axes["in"])
            parametrize.register_parametrization(module, "weight", one)
            fades.append(one)
    return fades
