"""Grids of 1 to 8 bits for weights: one positive scale a output channel, integers symmetric around zero."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compressors.errors import QuantizationError
from compressors.plan import ActivationScale, WeightScale

# The largest integer whose 8-bit products do not saturate on any processor.
REDUCED = 63
# Clippings tried below 8 bits, as shares of a channel's largest weight; least squares goes on from the best.
_CLIPPINGS = tuple(1 - 0.8 * (k / 19) ** 1.5 for k in range(20))
_REFINEMENTS = 3


def grid_limit(bits: int, reduce_range: bool = False) -> int:
    """Largest integer of a grid: ``2^(bits - 1) - 1``, and 1 for one bit, whose grid is -1 and 1.

    Args:
        bits: 1 to 8.
        reduce_range: keep 8-bit integers within 63 (7 of the 8 bits), for processors whose product of an unsigned
            and a signed byte saturates at 16 bits. Every smaller grid lies within that already.

    Raises:
        QuantizationError: no such bit width.
    """
    if bits not in range(1, 9):
        raise QuantizationError(f"weights are quantized to 1 to 8 bits, not {bits}")
    limit: int = max(1, 2 ** (bits - 1) - 1)
    return min(limit, REDUCED) if reduce_range else limit


def fit_weight(weight: Tensor, bits: int = 8, reduce_range: bool = False) -> WeightScale:
    """Scales of a weight's output channels.

    At 8 bits by each channel's largest magnitude (Jacob et al. 2018, arXiv 1712.05877, zero point 0): clipping
    gains nothing there. Below, by least squared error of the weights:

    - 3 to 7 bits: the best of a few clippings, then alternately integers for the scale and the least-squares scale
      for the integers, ``s = <w, q> / <q, q>``, of which neither step can raise the error.
    - 2 bits are ternary: -s, 0, s (Li and Liu 2016, "Ternary Weight Networks", arXiv 1605.04711). Their threshold
      problem (eq. 6) is solved exactly by sorting where they approximate it by ``0.7 mean |w|``; the threshold
      of the solution is s / 2, so that rounding to the nearest value gives it.
    - 1 bit is the sign times the mean magnitude (Rastegari et al. 2016, "XNOR-Net", arXiv 1603.05279, eq. 6). A
      weight of zero counts as positive: a binary grid has no zero.

    Args:
        weight: float [out_channels, ...].
        bits: 1 to 8.
        reduce_range: see ``grid_limit``.

    Raises:
        QuantizationError: no such bit width.
    """
    limit = grid_limit(bits, reduce_range)
    rows = weight.detach().to(torch.float32).flatten(1)
    if bits == 1:
        scale = rows.abs().mean(1)
    elif bits == 2:
        scale = _ternary(rows)
    elif bits == 8:
        scale = rows.abs().amax(1) / limit
    else:
        scale = _least_squares(rows, limit)
    # An all-zero channel still needs a scale that divides.
    scale = scale.clamp_min(1e-12 / limit)
    return WeightScale(tuple(scale.tolist()), bits, limit)


def _ternary(rows: Tensor) -> Tensor:
    """The scale [out] that leaves the least squared error with -s, 0 and s.

    With the k largest magnitudes kept the best s is their mean and the error falls by ``(sum of them)^2 / k``.
    """
    sums = rows.abs().sort(1, descending=True).values.cumsum(1, dtype=torch.float64)
    counts = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device)
    best = (sums.square() / counts).argmax(1, keepdim=True)
    return (sums.gather(1, best) / (best + 1)).squeeze(1).to(torch.float32)


def _least_squares(rows: Tensor, limit: int) -> Tensor:
    largest = rows.abs().amax(1, keepdim=True).clamp_min(1e-12)
    best, least = largest / limit, torch.full_like(largest, torch.inf)
    for clipping in _CLIPPINGS:
        scale = largest * (clipping / limit)
        kept = torch.div(rows, scale).round_().clamp_(-limit, limit).mul_(scale)
        error = kept.sub_(rows).square_().sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    for _ in range(_REFINEMENTS):
        integers = torch.div(rows, best).round_().clamp_(-limit, limit)
        norm = integers.square().sum(1, keepdim=True)
        fitted = (integers * rows).sum(1, keepdim=True) / norm.clamp_min(1)
        best = torch.where((norm > 0) & (fitted > 0), fitted, best)
    return best.squeeze(1)


def steps_of(scale: WeightScale, weight: Tensor) -> Tensor:
    """Scales float32 [out_channels, 1, ...] beside the weight."""
    steps = torch.tensor(scale.scale, dtype=torch.float32, device=weight.device)
    return steps.view(-1, *[1] * (weight.dim() - 1))


def to_grid(weight: Tensor, steps: Tensor, bits: int, limit: int) -> Tensor:
    """Integers float32 of the weight's shape: rounded half to even; of one bit, the sign.

    Args:
        steps: float32, broadcasts against the weight.
    """
    if bits == 1:
        return torch.where(weight >= 0, 1.0, -1.0)
    return torch.div(weight, steps).round_().clamp_(-limit, limit)


def quantize_weight(weight: Tensor, scale: WeightScale) -> Tensor:
    """Integers float32 [out_channels, ...] of a weight on its grid."""
    weight = weight.detach()
    return to_grid(weight, steps_of(scale, weight), scale.bits, scale.limit)


def fake_quantize_weight(weight: Tensor, scale: WeightScale) -> Tensor:
    """The weight's nearest values on its grid, same shape."""
    return quantize_weight(weight, scale) * steps_of(scale, weight)


def round_bias(bias: Tensor, weight: WeightScale, activation: ActivationScale) -> Tensor:
    """A bias on the grid of the integer accumulator, ``scale_x * scale_w[c]``, as the exporter stores it.

    The step is tiny, but where a sum falls between two activation levels it decides which; left out, such
    flips add up over the layers to one answer in a hundred.
    """
    step = np.float64(activation.scale) * np.array(weight.scale, dtype=np.float64)
    bound = 2**31 - 1
    integers = np.rint(bias.detach().cpu().numpy() / step).clip(-bound, bound)
    rounded = torch.from_numpy((integers * step.astype(np.float32)).astype(np.float32))
    return rounded.to(bias.device)
