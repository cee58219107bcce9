"""Differentiable fake quantization: rounds in the forward pass, lets gradients through in the backward pass.

Esser et al. 2020, "Learned Step Size Quantization" (LSQ, arXiv 1902.08153): the gradient of what is quantized is
that of a clamp (the straight-through estimator of Bengio et al. 2013, arXiv 1308.3432; eq. 5), the gradient of a
learned step is eq. 3, times ``1 / sqrt(n Q_P)`` where n is the number of values a step serves in one example or
output channel and ``Q_P`` the largest level (section 2.2). Forward values are those of ``weight_grid`` and
``QuantizedNetwork`` to the last bit, in training and in eval mode, on CPU and GPU.

Deviations: weights have one step a output channel, as exported; zero points stay as calibrated; one-bit weights
let every gradient through, whatever their size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from compressors.plan import ActivationScale, WeightScale
from compressors.weight_grid import to_grid

_SMALLEST_STEP = 1e-20


class _RoundWeight(torch.autograd.Function):
    """``step * q(weight / step)`` with LSQ's gradients."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, bits: int, limit: int) -> Tensor:
        ctx.save_for_backward(weight, step)
        ctx.bits, ctx.limit = bits, limit
        return to_grid(weight, step, bits, limit) * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, step = ctx.saved_tensors
        level = to_grid(weight, step, ctx.bits, ctx.limit)
        if ctx.bits == 1:
            for_weight, by_step = gradient, level
        else:
            ratio = weight / step
            within = ratio.abs() <= ctx.limit
            for_weight = gradient * within
            by_step = torch.where(within, level - ratio, level)
        for_step = None
        if ctx.needs_input_grad[1]:
            share = 1 / math.sqrt(weight[0].numel() * ctx.limit)
            others = tuple(range(1, weight.dim()))
            for_step = (gradient * by_step).sum(others, keepdim=True) * share
        return for_weight, for_step, None, None


class _RoundActivation(torch.autograd.Function):
    """``step * clamp(round(x / step), low, high)`` with LSQ's gradients; ``step`` float32 [1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.low, ctx.high = low, high
        return torch.div(x, step).round_().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, step = ctx.saved_tensors
        ratio = x / step
        within = (ratio >= ctx.low) & (ratio <= ctx.high)
        for_step = None
        if ctx.needs_input_grad[1]:
            kept = ratio.clamp(ctx.low, ctx.high)
            by_step = torch.where(within, kept.round() - kept, kept)
            share = 1 / math.sqrt(x[0].numel() * (ctx.high - ctx.low))
            for_step = ((gradient * by_step).sum() * share).view(1)
        return gradient * within, for_step, None, None


class WeightQuantizer(nn.Module):
    """Puts a weight on its grid; gradients pass to the weight and, where learned, to the steps.

    Under autocast it computes in float32 and returns float32.

    Args:
        scale: the grid to start from (``weight_grid.fit_weight``).
        learned: whether the steps are parameters; else buffers.
    """

    step: Tensor

    def __init__(self, scale: WeightScale, learned: bool = True) -> None:
        super().__init__()
        self.bits, self.limit = scale.bits, scale.limit
        step = torch.tensor(scale.scale, dtype=torch.float32)
        if learned:
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)

    def forward(self, weight: Tensor) -> Tensor:
        """Values float32 on the grid, of the weight's shape [out_channels, ...]."""
        with torch.autocast(weight.device.type, enabled=False):
            step = _positive(self.step).view(-1, *[1] * (weight.dim() - 1))
            made: Tensor = _RoundWeight.apply(weight.float(), step, self.bits, self.limit)
            return made

    def scale(self) -> WeightScale:
        """The grid as a plan keeps it."""
        steps = _positive(self.step.detach()).tolist()
        return WeightScale(tuple(steps), self.bits, self.limit)


class ActivationQuantizer(nn.Module):
    """Puts a tensor on its unsigned affine grid; gradients pass to it and, where learned, to the step.

    Under autocast it computes in float32 and returns float32.

    Args:
        scale: the grid to start from.
        learned: whether the step is a parameter; else a buffer.
        largest: the step never exceeds it. After a capped rectifier (ReLU6) give the calibrated ``scale.scale``:
            a step beyond what the cap lets through keeps the cap, and with it the layer, float in the runtime.
    """

    step: Tensor

    def __init__(
        self, scale: ActivationScale, learned: bool = True, largest: float = math.inf
    ) -> None:
        super().__init__()
        self.bits, self.zero_point, self.largest = scale.bits, scale.zero_point, largest
        step = torch.tensor([scale.scale], dtype=torch.float32)
        if learned:
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)

    def forward(self, x: Tensor) -> Tensor:
        """Values float32 on the grid, of the tensor's shape [n, ...]."""
        low, high = -self.zero_point, 2**self.bits - 1 - self.zero_point
        with torch.autocast(x.device.type, enabled=False):
            made: Tensor = _RoundActivation.apply(x.float(), self._used(), low, high)
            return made

    def scale(self) -> ActivationScale:
        """The grid as a plan keeps it."""
        return ActivationScale(float(self._used().detach()), self.zero_point, self.bits)

    def _used(self) -> Tensor:
        step = _positive(self.step)
        # Its gradient passes beyond the bound too, so that the step can come back.
        return torch.where(step > self.largest, step - step.detach() + self.largest, step)


def _positive(step: Tensor) -> Tensor:
    """Training may carry a step past zero; its sign means nothing."""
    return step.abs().clamp_min(_SMALLEST_STEP)
