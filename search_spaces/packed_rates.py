"""How many bits a weight of each layer takes in the packed file, for every grid, codebook and share of zeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors.codebook import share_values
from compressors.sparsity import magnitude_mask, zeroed
from compressors.weight_grid import fit_weight, quantize_weight
from search_spaces.decision import FLOAT_BITS
from search_spaces.packed_decisions import KEPT_PERCENT, WEIGHT_BITS

Floats = NDArray[np.float64]
# Weights looked at of a layer: whole output channels, so that their scales are those of the layer.
LOOKED_AT = 4096
# Shares at which codebooks are fitted; between them their entropy is all but a straight line.
_CODEBOOK_KEPT = (10, 50, 100)


@dataclass(frozen=True)
class Rates:
    """Bits a weight of one layer, float64 [weight bits, kept] over ``WEIGHT_BITS`` and ``KEPT_PERCENT``.

    Attributes:
        integer: where the layer runs in integers; the last row is that of 8 bits.
        real: where it runs in float: of codebooks, the last row of the weights themselves.
    """

    integer: Floats
    real: Floats


def rates_of(module: nn.Conv2d | nn.Linear, reduce_range: bool = False) -> Rates:
    """Entropies (order 0) of a layer's weights after the very operators that would compress them.

    Args:
        module: norms folded.
        reduce_range: see ``weight_grid.grid_limit``.
    """
    weight = _some(module.weight.detach().to(torch.float32))
    shape = (len(WEIGHT_BITS), len(KEPT_PERCENT))
    integer, real = np.zeros(shape), np.zeros(shape)
    for column, kept in enumerate(KEPT_PERCENT):
        sparse = zeroed(weight, magnitude_mask(weight, 1 - kept / 100))
        for row, bits in enumerate(WEIGHT_BITS[:-1]):
            grid = fit_weight(sparse, bits, reduce_range)
            integer[row, column] = _entropy(quantize_weight(sparse, grid))
            if kept in _CODEBOOK_KEPT:
                real[row, column] = _entropy(share_values(sparse, 2**bits))
        real[-1, column] = _float_bits(sparse)
    integer[-1] = integer[WEIGHT_BITS.index(8)]
    fitted = [KEPT_PERCENT.index(kept) for kept in _CODEBOOK_KEPT]
    for row in range(len(WEIGHT_BITS) - 1):
        real[row] = np.interp(KEPT_PERCENT, _CODEBOOK_KEPT, real[row, fitted])
    assert WEIGHT_BITS[-1] == FLOAT_BITS
    return Rates(integer, real)


def _some(weight: Tensor) -> Tensor:
    """Output channels spread evenly over the layer."""
    rows = max(1, LOOKED_AT // max(1, weight[0].numel()))
    if rows >= len(weight):
        return weight
    return weight[torch.linspace(0, len(weight) - 1, rows).round().long()]


def _entropy(values: Tensor) -> float:
    """Bits a value."""
    return _of_counts(torch.unique(values, return_counts=True)[1].numpy())


def _of_counts(counts: NDArray[np.int64]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _float_bits(weight: Tensor) -> float:
    """Which weights are zero, and of the others the exponent's entropy, 23 digits and a sign."""
    values = weight.flatten().numpy()
    nonzero = values[values != 0]
    if not len(nonzero):
        return 0.0
    kept = len(nonzero) / len(values)
    exponents = np.frexp(nonzero)[1]
    digits = _of_counts(np.bincount(exponents - exponents.min())) + 24
    zeros = np.array([len(values) - len(nonzero), len(nonzero)])
    return float(kept * digits + _of_counts(zeros))
