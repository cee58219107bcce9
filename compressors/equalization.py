"""Cross-layer equalization: evens out the weight ranges of neighbouring layers without changing the network.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721),
section 4.1: a channel's weights and bias divided by ``s > 0`` before a rectifier and its weights multiplied by ``s``
behind it leave what is computed as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressors.call_graph import channels_last
from compressors.structure import Layer, Structure, inside

_SWEEPS = 50
_EVEN = 1e-3  # a sweep whose factors all lie this close to 1 is the last
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers of which the second alone reads what the first gives.

    Attributes:
        first, second: layer paths.
        cap: where the rectifier between them cuts off; infinite for ReLU and for none.
    """

    first: str
    second: str
    cap: float


def equalizable(
    network: nn.Module, structure: Structure, dropped: Sequence[str] = ()
) -> list[Pair]:
    """The pairs whose ranges can be evened out.

    The second is a convolution over all channels, a depthwise one, or a linear layer behind a linear layer. What a
    droppable block reads or gives is left alone: without the block something else reads it.

    Args:
        network: norms folded.
        structure: of the network with its blocks.
        dropped: blocks left out.
    """
    graph = structure.graph
    readers, producers = graph.consumers(), graph.by_site()
    shared = {site for block in structure.blocks for site in (block.input, block.output)}
    by_input: dict[str, list[Layer]] = {}
    for layer in structure.layers:
        by_input.setdefault(layer.input, []).append(layer)
    found = []
    for layer in structure.layers:
        following = by_input.get(layer.output, [])
        if (
            inside(layer.path, dropped)
            or len(following) != 1
            or len(readers.get(layer.output, [])) != 1
            or layer.output in (*shared, graph.output)
            or following[0].kind == "grouped"
            or (following[0].kind == "linear") != (layer.kind == "linear")
        ):
            continue
        call = producers.get(layer.output)
        cap = math.inf
        if layer.rectified and call is not None:
            cap = _cap(call.function, network.get_submodule(call.module))
        if cap > 0:
            found.append(Pair(layer.path, following[0].path, cap))
    return found


def _cap(function: str, module: nn.Module) -> float:
    """Where a rectifier cuts off; 0 for one that does more than cut off at zero and at a cap."""
    if function == "relu":
        return math.inf
    if function == "relu6":
        return 6.0
    if isinstance(module, nn.Hardtanh) and module.min_val == 0:
        return float(module.max_val)
    return 0.0


def equalize(network: nn.Module, pairs: Sequence[Pair], images: Tensor) -> None:
    """Evens out the ranges of all pairs, in place.

    ``s = sqrt(r1 r2) / r2`` for every channel (eq. 11), pair after pair until nothing moves. The paper replaces ReLU6
    by ReLU; we keep it, and keep it exact on the calibration images: a channel that reaches the cap there stays
    as it is, another is raised at most until it reaches the cap.

    Args:
        network: float, norms folded.
        pairs: from ``equalizable``.
        images: float [n, C, H, W]; only run where a rectifier has a cap.
    """
    capped = [pair.first for pair in pairs if math.isfinite(pair.cap)]
    peaks = _peaks(network, capped, images) if capped else {}
    for _ in range(_SWEEPS):
        furthest = 0.0
        for pair in pairs:
            first = network.get_submodule(pair.first)
            second = network.get_submodule(pair.second)
            assert isinstance(first, nn.Conv2d | nn.Linear)
            assert isinstance(second, nn.Conv2d | nn.Linear)
            factor = _factor(first, second)
            if pair.first in peaks:
                peak = peaks[pair.first]
                factor = torch.maximum(factor, peak / pair.cap)
                factor[peak >= pair.cap] = 1.0
                peaks[pair.first] = peak / factor
            _scale(first, second, factor)
            furthest = max(furthest, float(factor.log().abs().max()))
        if furthest < _EVEN:
            return


def _factor(first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear) -> Tensor:
    before = first.weight.detach().abs().flatten(1).amax(1)
    behind = _by_input(second).detach().abs().amax(1)
    even = torch.sqrt(before / behind)
    # A channel that nothing comes out of, or that nothing reads, has no range to even out.
    return torch.where((before > 0) & (behind > 0), even, 1.0)


def _by_input(module: nn.Conv2d | nn.Linear) -> Tensor:
    """Weights [in_channels, ...] by the channel they read."""
    weight: Tensor = module.weight
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return weight.reshape(module.groups, -1)
    return weight.transpose(0, 1).flatten(1)


def _scale(first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear, factor: Tensor) -> None:
    first.weight.data = first.weight.data / factor.view(-1, *[1] * (first.weight.dim() - 1))
    if first.bias is not None:
        first.bias.data = first.bias.data / factor
    if isinstance(second, nn.Conv2d) and second.groups > 1:
        repeated = factor.repeat_interleave(second.out_channels // second.groups)
        second.weight.data = second.weight.data * repeated.view(-1, 1, 1, 1)
    else:
        second.weight.data = second.weight.data * factor.view(
            1, -1, *[1] * (second.weight.dim() - 2)
        )


def _peaks(network: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Largest output [channels] of layers over the images."""
    peaks: dict[str, Tensor] = {}
    handles = []
    for path in layers:

        def see(module: nn.Module, _i: tuple[Tensor, ...], out: Tensor, path: str = path) -> None:
            axes = tuple(range(out.dim() - 1)) if isinstance(module, nn.Linear) else (0, 2, 3)
            largest = out.amax(axes)
            peaks[path] = torch.maximum(peaks[path], largest) if path in peaks else largest

        handles.append(network.get_submodule(path).register_forward_hook(see))
    try:
        with torch.no_grad():
            for part in torch.split(images, _BATCH):
                network(channels_last(part))
    finally:
        for handle in handles:
            handle.remove()
    return peaks
