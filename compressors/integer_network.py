"""A quantized network computed as ONNX Runtime computes its file: products summed in integers, rounded once.

Where fake quantization sums floats, a sum near the middle between two levels may round to either. Here a quantized
layer's sum is exact and its one rounding is the runtime's, so that its integers are the runtime's integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressors.call_graph import INPUT_SITE, SiteMode, function_name, module_stack
from compressors.plan import ActivationScale, Plan, WeightScale
from compressors.quantization import QuantizedNetwork
from compressors.structure import analyse
from compressors.weight_grid import quantize_weight

# Sums of integers below this are exact in float32, in any order.
_EXACT = 2**24


@dataclass(frozen=True, slots=True)
class IntegerLayer:
    """The grids of one quantized layer.

    Attributes:
        weight: of its weight.
        reads: of its input.
        writes: of its output; None where the runtime leaves it float.
        adds: whether its bias is an integer that the sum starts from; else it is added to the float output.
    """

    weight: WeightScale
    reads: ActivationScale
    writes: ActivationScale | None
    adds: bool

    def __call__(
        self, function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None,
        *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """The layer's output float32 on the grid it writes.

        ``y = clamp(round(sum * (s_x s_w / s_y)))`` times ``s_y``, each step rounded to float32 as the runtime
        does (Jacob et al. 2018, arXiv 1712.05877, eq. 4, with the multiplier in floating point).

        Args:
            function: ``conv2d`` or ``linear``.
            x: float, on the grid of ``reads``.
            weight: float, on its grid.
            args, kwargs: what else the function takes.
        """
        levels = torch.div(x, self.reads.scale).round_()
        integers = quantize_weight(weight, self.weight)
        steps = np.float32(self.reads.scale) * np.array(self.weight.scale, dtype=np.float32)
        start = None
        if bias is not None and self.adds:
            step = np.float64(self.reads.scale) * np.array(self.weight.scale, dtype=np.float64)
            start = torch.from_numpy(np.rint(bias.detach().double().numpy() / step))
        reach = integers.abs().flatten(1).sum(1).double() * (2**self.reads.bits - 1)
        if float((reach if start is None else reach + start.abs()).max()) >= _EXACT:
            levels, integers = levels.double(), integers.double()
        if start is not None:
            start = start.to(levels.dtype)
        total = function(levels, integers, start, *args, **kwargs).float()
        shape = (1, -1) + (1,) * (total.dim() - 2) if weight.dim() == 4 else (-1,)
        if self.writes is None:
            out = total.mul_(torch.from_numpy(steps).view(shape))
            return out if bias is None or self.adds else out.add_(bias)
        total.mul_(torch.from_numpy(steps / np.float32(self.writes.scale)).view(shape))
        low = -self.writes.zero_point
        total.round_().clamp_(low, 2**self.writes.bits - 1 + low)
        return total.mul_(self.writes.scale)


class IntegerNetwork(QuantizedNetwork):
    """A compressed network whose quantized layers compute in integers. Input and output as the inner network's.

    Float operators between them (additions, means) may still differ from the runtime's in the last bit, and a
    rounding after them in one level.

    Args:
        network: built from the plan, on the CPU, weights of quantized layers on their grid.
        plan: its quantizers.
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        super().__init__(network, plan.activations)
        self.layers = integer_layers(network, plan)

    def forward(self, x: Tensor) -> Any:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return super().forward(x)  # as quantize/dequantize pairs, which runtimes know
        x = self._quantize(INPUT_SITE, x)
        with (
            torch.no_grad(),
            module_stack(self.inner_network) as stack,
            _IntegerMode(stack, self._quantize, self._with_weights()),
        ):
            return self.inner_network(x)

    def _with_weights(self) -> dict[str, tuple[IntegerLayer, Tensor]]:
        modules = {path: self.inner_network.get_submodule(path) for path in self.layers}
        return {
            path: (self.layers[path], module.weight)
            for path, module in modules.items()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }


def integer_layers(network: nn.Module, plan: Plan) -> dict[str, IntegerLayer]:
    """The quantized layers of a compressed network by path."""
    structure = analyse(network, torch.zeros(1, *plan.input_shape))
    found = {}
    for layer in structure.layers:
        if layer.path in plan.weights and layer.input in plan.activations:
            # On more than vectors the exporter writes a matrix product and a float addition.
            fused = layer.kind != "linear" or len(layer.input_shape) == 2
            found[layer.path] = IntegerLayer(
                plan.weights[layer.path],
                plan.activations[layer.input],
                plan.activations.get(layer.output) if fused else None,
                fused,
            )
    return found


class _IntegerMode(SiteMode):
    """Computes the named layers' calls in integers, where they use the layer's weight as it is."""

    def __init__(
        self,
        stack: list[str],
        on_output: Callable[[str, Tensor], Tensor],
        layers: Mapping[str, tuple[IntegerLayer, Tensor]],
    ) -> None:
        super().__init__(stack, on_output)
        self._layers = layers

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = function_name(func)
        found = self._layers.get(self._stack[-1]) if name in ("conv2d", "linear") else None
        if found is None:
            return super().__torch_function__(func, types, args, kwargs)
        layer, own = found

        def computed(
            x: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Any, **named: Any
        ) -> Tensor:
            if weight is not own:
                return func(x, weight, bias, *more, **named)  # type: ignore[no-any-return]
            return layer(func, x, weight, bias, *more, **named)

        computed.__name__ = name
        return super().__torch_function__(computed, types, args, kwargs)
