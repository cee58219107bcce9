"""Fake quantization of weights and activations, and where a runtime puts its quantized tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressors.call_graph import INPUT_SITE, SiteMode, module_stack
from compressors.plan import ActivationScale, WeightScale
from compressors.structure import MOVERS, Structure


def quantized_sites(
    structure: Structure, layers: Iterable[str], dropped: Iterable[str] = ()
) -> dict[str, str]:
    """Tensors that are quantized when the given layers run in integers.

    The input of each layer, and the output of each convolution after its rectifier: ONNX Runtime fuses a
    convolution into integers only between a quantized input and a quantized output. Linear layers may leave
    their output float.

    Args:
        structure: of the uncompressed network.
        layers: paths of the integer layers, none inside a dropped block.
        dropped: paths of dropped blocks; what read a dropped block's output reads its input.

    Returns:
        Site to the site whose scale it shares: through calls that only move values (pooling by maximum,
        reshapes) a tensor keeps its scale, else the runtime would requantize there.
    """
    chosen = set(layers)
    resolve = past_dropped(structure, dropped)
    sites: dict[str, str] = {}
    for layer in structure.layers:
        if layer.path in chosen:
            sites[resolve(layer.input)] = ""
            if layer.kind != "linear":
                sites[resolve(layer.output)] = ""
    producer = structure.graph.by_site()
    for site in sites:
        root = site
        while root in producer and producer[root].function in MOVERS:
            before = resolve(producer[root].inputs[0])
            if before not in sites:
                break
            root = before
        sites[site] = root
    return sites


def past_dropped(structure: Structure, dropped: Iterable[str]) -> Callable[[str], str]:
    """Maps a site to the one that is read in its place when blocks are dropped."""
    gone = set(dropped)
    alias = {b.output: b.input for b in structure.blocks if b.path in gone}

    def resolve(site: str) -> str:
        while site in alias:
            site = alias[site]
        return site

    return resolve


def round_bias(bias: Tensor, weight: WeightScale, activation: ActivationScale) -> Tensor:
    """A bias on the grid of the integer accumulator, ``scale_x * scale_w[c]``, as the exporter stores it.

    The step is tiny, but where a sum falls between two activation levels it decides which; left out, such
    flips add up over the layers to one answer in a hundred.
    """
    step = np.float64(activation.scale) * np.array(weight.scale, dtype=np.float64)
    bound = 2**31 - 1
    integers = np.rint(bias.detach().numpy() / step).clip(-bound, bound)
    return torch.from_numpy((integers * step.astype(np.float32)).astype(np.float32))


def fit_weight(weight: Tensor, limit: int = 127) -> WeightScale:
    """Scale from each output channel's largest magnitude (Jacob et al. 2018, arXiv 1712.05877, zero point 0).

    Args:
        weight: float [out_channels, ...].
        limit: largest integer used.
    """
    largest = weight.detach().abs().flatten(1).amax(1)
    # An all-zero channel still needs a scale that divides.
    scale = largest.clamp_min(1e-12).to(torch.float32) / limit
    return WeightScale(tuple(float(s) for s in scale), 8, limit)


def quantize_weight(weight: Tensor, scale: WeightScale) -> Tensor:
    """Integers float32 [out_channels, ...] of a weight on its grid, rounded half to even."""
    steps = torch.tensor(scale.scale, dtype=torch.float32).view(-1, *[1] * (weight.dim() - 1))
    return (weight.detach() / steps).round().clamp(-scale.limit, scale.limit)


def fake_quantize_weight(weight: Tensor, scale: WeightScale) -> Tensor:
    """The weight's nearest values on its grid, same shape."""
    steps = torch.tensor(scale.scale, dtype=torch.float32).view(-1, *[1] * (weight.dim() - 1))
    return quantize_weight(weight, scale) * steps


def fit_activation(low: float, high: float) -> ActivationScale:
    """Unsigned 8-bit scale covering ``[min(low, 0), max(high, 0)]`` (min-max calibration).

    Unsigned because ONNX Runtime is 2.5 times slower on ResNet-56 with signed activations.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-8:
        high = low + 1e-8
    scale = np.float32((high - low) / 255)
    if low == 0.0:
        # Never above what a cap (ReLU6) lets through, or the runtime keeps the cap as a float node.
        scale = np.nextafter(scale, np.float32(0))
    return ActivationScale(float(scale), round(-low / float(scale)))


class RangeObserver:
    """Collects the smallest and largest value of each site over calibration batches."""

    def __init__(self, sites: Iterable[str]) -> None:
        self.ranges: dict[str, tuple[float, float]] = {}
        self._sites = set(sites)

    def see(self, site: str, value: Tensor) -> Tensor:
        if site in self._sites:
            innermost = value.is_contiguous(memory_format=torch.channels_last)
            # In the order of memory, or aminmax makes a copy first.
            low, high = (value.permute(0, 2, 3, 1) if innermost else value).aminmax()
            seen = self.ranges.get(site, (float("inf"), float("-inf")))
            self.ranges[site] = (min(seen[0], float(low)), max(seen[1], float(high)))
        return value


def activation_scales(
    sites: Mapping[str, str], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, ActivationScale]:
    """Scale of every quantized site from observed ranges of the sites they share with."""
    scales = {root: fit_activation(*ranges[root]) for root in set(sites.values())}
    return {site: scales[root] for site, root in sorted(sites.items())}


class QuantizedNetwork(nn.Module):
    """A network whose tensors pass the plan's quantizers. Input and output as the inner network's.

    Weights of quantized layers are expected on their grid already (``fake_quantize_weight``).
    """

    def __init__(self, network: nn.Module, activations: Mapping[str, ActivationScale]) -> None:
        super().__init__()
        self.inner_network = network
        self.activations = dict(activations)

    def forward(self, x: Tensor) -> Any:
        if not self.activations:
            return self.inner_network(x)
        x = self._quantize(INPUT_SITE, x)
        with module_stack(self.inner_network) as stack, SiteMode(stack, self._quantize):
            return self.inner_network(x)

    def _quantize(self, site: str, value: Tensor) -> Tensor:
        scale = self.activations.get(site)
        if scale is None:
            return value
        top = 2**scale.bits - 1
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return torch.fake_quantize_per_tensor_affine(
                value, scale.scale, scale.zero_point, 0, top
            )
        # The same numbers as QuantizeLinear gives (division, half to even), three times as fast as the operator
        # above, which also fills a gradient mask.
        value = torch.div(value, scale.scale).round_()
        return value.clamp_(-scale.zero_point, top - scale.zero_point).mul_(scale.scale)
