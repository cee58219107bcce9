"""Zeros among weights: a share of a layer's smallest, or all but N of every M along the input.

They make a packed file smaller, not a network faster: no runtime we export to skips single zeros. Every mask is
idempotent, and zeros stay exactly zero on every weight grid of 2 bits and more (and in a codebook); a binary grid has
no zero, so a layer asked for 1 bit with zeros gets the ternary grid instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compressors.codebook import share_values
from compressors.errors import PruningError

if TYPE_CHECKING:
    from compressors.compressor import Choices


def magnitude_mask(weight: Tensor, share: float) -> Tensor:
    """Which weights stay, bool of the weight's shape: all but exactly ``round(share * n)`` of the smallest magnitude.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks" (arXiv 1506.02626), with the
    count prescribed instead of a threshold. Of equal magnitudes the first in memory go.

    Args:
        weight: float, any shape.
        share: of zeros, 0 up to but not 1.

    Raises:
        PruningError: the share is out of range.
    """
    if not 0 <= share < 1:
        raise PruningError(
            f"a layer's share of zeros must be at least 0 and below 1, not {share}; "
            "drop its block or its channels instead"
        )
    zeros = round(share * weight.numel())
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.detach().abs().flatten().argsort(stable=True)[:zeros]] = False
    return mask.view(weight.shape)


def pattern_mask(weight: Tensor, kept: int, of: int) -> Tensor:
    """Which weights stay, bool of the weight's shape: of every ``of`` consecutive inputs the ``kept`` largest.

    Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378), section 3: 2:4 along the input,
    for each output channel and kernel position. Where the number of inputs is no multiple, the last, smaller group
    keeps ``kept`` too, or all it has; a depthwise convolution, which reads one input an output, keeps everything.

    Args:
        weight: float [out_channels, in_channels, ...].

    Raises:
        PruningError: not 1 <= kept <= of.
    """
    if not 1 <= kept <= of:
        raise PruningError(f"a pattern keeps 1 to M of every M weights, not {kept} of {of}")
    rows = weight.detach().abs().reshape(*weight.shape[:2], -1).transpose(1, 2)
    inputs = rows.shape[-1]
    # Filled up with what is smaller than any magnitude and never kept in place of one.
    padded = nn.functional.pad(rows, (0, -inputs % of), value=-1.0)
    padded = padded.reshape(*padded.shape[:-1], -1, of)
    order = padded.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    mask = torch.zeros_like(padded, dtype=torch.bool).scatter_(-1, order, True)
    return mask.flatten(-2)[..., :inputs].transpose(1, 2).reshape(weight.shape)


def zeroed(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight with zeros (positive ones: the packed file tells the two apart) where the mask is false."""
    return weight.detach().masked_fill(~mask, 0.0)


def thins(choices: Choices) -> bool:
    """Whether any layer gets zeros or shared values."""
    return bool(_sparse(choices) or choices.codebook)


def _sparse(choices: Choices) -> set[str]:
    return {path for path, share in choices.sparsity.items() if share > 0} | set(choices.patterns)


def zero_grids(choices: Choices) -> Choices:
    """The same choices, but no grid of 1 bit, which has no zero, for a layer that gets zeros."""
    raised = {path: 2 for path in _sparse(choices) if choices.weight_bits.get(path) == 1}
    return replace(choices, weight_bits={**choices.weight_bits, **raised}) if raised else choices


def thin(network: nn.Module, choices: Choices, layers: Iterable[str]) -> dict[str, Tensor]:
    """Zeros and shared values of the given layers, in place: first patterns, then shares, then codebooks.

    Returns:
        Which weights stayed, bool, of each layer that got zeros.

    Raises:
        PruningError: a layer is to run in integers and to have shared values, or a number is out of range.
    """
    sparse = _sparse(choices)
    masks: dict[str, Tensor] = {}
    for path in layers:
        module = network.get_submodule(path)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        if path in choices.patterns:
            mask = pattern_mask(module.weight, *choices.patterns[path])
            module.weight.data = zeroed(module.weight, mask)
        if path in choices.sparsity:
            mask = magnitude_mask(module.weight, choices.sparsity[path])
            module.weight.data = zeroed(module.weight, mask)
        if path in sparse:
            masks[path] = module.weight.detach() != 0
        if path in choices.codebook:
            if path in choices.integer:
                raise PruningError(
                    f"{path} cannot run in integers with shared values; choose weight bits or a codebook"
                )
            module.weight.data = share_values(module.weight, choices.codebook[path])
    return masks


class KeptWeights(nn.Module):
    """Holds a weight's zeros while it is trained (a parametrization): no gradient passes them.

    Args:
        mask: bool of the weight's shape, which weights stay.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def keep_zeros(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Attaches the masks of ``thin`` to a network that is to be trained, in place."""
    for path, mask in masks.items():
        parametrize.register_parametrization(
            network.get_submodule(path), "weight", KeptWeights(mask)
        )


def thin_again(
    network: nn.Module,
    integer: Iterable[str],
    masks: Mapping[str, Tensor],
    codebook: Mapping[str, int],
) -> None:
    """Zeros and shared values of a network that was trained, as it was given them before, in place.

    Args:
        integer: layers whose weights lie on a grid.
        masks: from ``thin``.
        codebook: layer path to its number of shared values, found anew.
    """
    settle_zeros(network, {*integer, *masks}, masks)
    for path, count in codebook.items():
        module = network.get_submodule(path)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        module.weight.data = share_values(module.weight, count)


def settle_zeros(network: nn.Module, layers: Iterable[str], masks: Mapping[str, Tensor]) -> None:
    """Makes every zero of the layers' weights and biases a positive one and keeps those of ``thin``, in place.

    Rounding learned for a layer's output may have moved zeros.
    """
    for path in layers:
        module = network.get_submodule(path)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        weight = module.weight.detach() + 0.0
        module.weight.data = zeroed(weight, masks[path]) if path in masks else weight
        if module.bias is not None:
            module.bias.data = module.bias.detach() + 0.0
