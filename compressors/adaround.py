"""Adaptive rounding: each weight goes up or down by what its layer's output needs, not to the nearest integer.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressors.plan import WeightScale
from compressors.weight_grid import quantize_weight, steps_of

STEPS = 400
_RATE = 0.05
# The rectified sigmoid's stretch (eq. 23), the regulariser's exponent from start to end (section 3.2) and its weight
# against an error that nearest rounding brings to one a weight.
_BELOW, _ABOVE = -0.1, 1.1
_EXPONENTS = (20.0, 2.0)
_PRESSURE = 10.0
_WARM = 0.2  # share of the steps before the regulariser sets in
_TINY = 1e-12
# The products of a layer's inputs are a square matrix of them.
MOST_FEATURES = 5000


def adaptive_round(
    module: nn.Conv2d | nn.Linear,
    scale: WeightScale,
    inputs: Tensor,
    targets: Tensor,
    steps: int = STEPS,
) -> Tensor:
    """Integers float32 of the weight's shape, on the grid of ``scale``.

    Minimises ``|X w~^T - T|^2`` plus a regulariser that drives every rounding to 0 or 1 (eqs. 21 to 25), by Adam.
    ``X`` is what the quantized layers before give (asymmetric reconstruction, eq. 25), ``T`` what the float layer
    gave on its own inputs. Deviations: rows enter through ``X^T X`` and ``X^T T``, so that every step sees all of
    them at the price of one small product, and a few hundred steps do; the rectifier behind the layer is left out,
    which would make the error no square. Exact zeros stay zero, so that pruned weights do. Where the result is no
    better than nearest rounding, and for outputs of more than ``MOST_FEATURES`` inputs, nearest rounding it is.

    Args:
        module: float; not changed.
        scale: of 2 to 8 bits.
        inputs: float [rows, groups * features], see ``patches``.
        targets: float [rows, out_channels], bias included.
        steps: of Adam.
    """
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    nearest = quantize_weight(module.weight, scale)
    if module.weight[0].numel() > MOST_FEATURES:
        return nearest
    if module.bias is not None:
        targets = targets - module.bias.detach()

    def grouped(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), groups, -1).transpose(0, 1)

    def by_group(weight: Tensor) -> Tensor:
        return weight.reshape(groups, -1, module.weight[0].numel())

    x, t = grouped(inputs), grouped(targets)
    objective = _Objective(
        x.mT @ x, x.mT @ t, by_group(steps_of(scale, module.weight).expand_as(nearest))
    )
    ratio = by_group(torch.div(module.weight.detach(), steps_of(scale, module.weight)))
    start = by_group(nearest)
    found = _search(objective, ratio, start, scale.limit, steps)
    better = objective.error(found) < objective.error(start)
    return torch.where(better, found, start).reshape(nearest.shape)


class _Objective:
    """Squared error of a layer's outputs as a function of its integers.

    Args:
        gram: float [groups, features, features].
        cross: float [groups, features, out].
        scale: float [groups, out, features].
    """

    def __init__(self, gram: Tensor, cross: Tensor, scale: Tensor) -> None:
        self._gram, self._cross, self._scale = gram, cross.mT, scale

    def gradient(self, integers: Tensor) -> Tensor:
        return 2 * self._scale * ((integers * self._scale) @ self._gram - self._cross)

    def error(self, integers: Tensor) -> Tensor:
        """Of each output channel, less a constant: float64 [groups, out, 1]."""
        weight = (integers * self._scale).double()
        pull = weight @ self._gram.double() - 2 * self._cross.double()
        return (weight * pull).sum(2, keepdim=True)

    def curvature(self) -> Tensor:
        """Mean second derivative by an integer, float [groups, out, 1]."""
        diagonal = self._gram.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
        return 2 * diagonal * self._scale[..., :1].square()


def _search(objective: _Objective, ratio: Tensor, start: Tensor, limit: int, steps: int) -> Tensor:
    floor = ratio.floor()
    held = (start == 0) & (ratio == 0)
    share = ((ratio - floor).clamp(0, 1) - _BELOW) / (_ABOVE - _BELOW)
    logits = torch.logit(share)
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    # An error of one a weight: rounding to the nearest leaves a twelfth of a square step on average.
    unit = objective.curvature().clamp_min(_TINY) / 24
    for step in range(steps):
        sigmoid = torch.sigmoid(logits)
        stretched = sigmoid * (_ABOVE - _BELOW) + _BELOW
        up = stretched.clamp(0, 1)
        wanted = floor + up
        gradient = objective.gradient(wanted.clamp(-limit, limit)) / unit
        gradient.mul_(wanted.abs() <= limit)
        progress = (step / steps - _WARM) / (1 - _WARM)
        if progress > 0:
            exponent = _EXPONENTS[1] + (_EXPONENTS[0] - _EXPONENTS[1]) * (1 - progress)
            off = 2 * up - 1
            gradient -= 2 * _PRESSURE * exponent * off.abs().pow(exponent - 1) * off.sign()
        gradient *= (stretched > 0) & (stretched < 1)
        gradient *= sigmoid * (1 - sigmoid)
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.001)
        rate = _RATE / (1 - 0.9 ** (step + 1))
        logits -= rate * mean / ((square / (1 - 0.999 ** (step + 1))).sqrt() + _TINY)
    up = (torch.sigmoid(logits) * (_ABOVE - _BELOW) + _BELOW).clamp(0, 1).round()
    return torch.where(held, 0.0, (floor + up).clamp(-limit, limit))
