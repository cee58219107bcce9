"""Which ranks a layer is offered, and what its factors weigh."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors.low_rank import (
    factor_sizes,
    factorable,
    full_rank,
    install,
    kernel_positions,
    ranks_of,
    split_rank,
)
from compressors.structure import Layer, Structure, inside
from latency_tables import Target

# Shares of a layer's multiply-accumulates that its ranks are chosen to leave.
SHARES = (0.125, 0.25, 0.5, 0.75)
# Narrower layers have too little to give: their factors are narrower still, and every one is a kernel more to start.
LEAST_WIDTH = 64

# Layer path to the ranks offered, increasing, the full one last.
RankValues = Mapping[str, tuple[int, ...]]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OfferedRanks:
    """Which layers a search may factor.

    Attributes:
        values: ranks by layer path.
        withheld: layer path to the reason that a layer with a low-rank form is left whole.
    """

    values: RankValues = field(default_factory=dict)
    withheld: Mapping[str, str] = field(default_factory=dict)


# Decides which ranks are offered, given the network (prepared, norms folded), its structure and an example input.
RankOffer = Callable[[nn.Module, Structure, Tensor], OfferedRanks]


def rank_values(layer: Layer, target: Target) -> tuple[int, ...]:
    """Ranks that leave about ``SHARES`` of the layer's multiply-accumulates, and the full rank; empty where none does.

    All are multiples of what the target likes, and none leaves more than the largest share.
    """
    kernel = kernel_positions(layer)
    full = full_rank(layer, kernel)
    step = target.channel_step(full)
    offered = np.arange(step, full, step, dtype=np.float64)
    if min(layer.in_channels, layer.out_channels) < LEAST_WIDTH or not len(offered):
        return ()
    width = np.float64(layer.in_channels), np.float64(layer.out_channels)
    into, out = split_rank(layer, kernel, offered, np.asarray(width[0]), np.asarray(width[1]))
    macs = factored_macs(layer, into, out, np.asarray(width[0]), np.asarray(width[1]))
    found = {int(offered[fits][-1]) for s in SHARES if (fits := macs <= s * layer.macs).any()}
    return (*sorted(found), full) if found else ()


def rank_candidates(
    network: nn.Module,
    structure: Structure,
    example: Tensor,
    target: Target,
    exclude: tuple[str, ...] = (),
) -> dict[str, tuple[int, ...]]:
    """Layers that may be factored, with the ranks to choose from.

    A network may reach into a layer (its weight handed to a function, its stride read): what no longer runs once the
    layer is a sequence of factors is left out.

    Args:
        network: prepared, norms folded.
        example: float [batch, C, H, W].
        exclude: module paths left as they are.
    """
    found: dict[str, tuple[int, ...]] = {}
    for layer in structure.layers:
        values = rank_values(layer, target)
        if values and not inside(layer.path, exclude):
            module = network.get_submodule(layer.path)
            if factorable(module, layer):
                found[layer.path] = values
    if not found or _runs(network, structure, example, found):
        return found
    return {p: v for p, v in found.items() if _runs(network, structure, example, {p: v})}


def _runs(network: nn.Module, structure: Structure, example: Tensor, values: RankValues) -> bool:
    """Whether the network still gives outputs of its shape with layers replaced by factors."""
    work = copy.deepcopy(network)
    install(work, ranks_of(structure, network, {}, {path: v[0] for path, v in values.items()}))
    try:
        with torch.no_grad():
            out = work(example)
    except Exception:
        return False
    return isinstance(out, Tensor) and tuple(out.shape[1:]) == structure.graph.output_shape[1:]


def factored_macs(layer: Layer, into: Array, out: Array, inputs: Array, outputs: Array) -> Array:
    """Multiply-accumulates of a factored layer for one example.

    Args:
        into, out: its ranks.
        inputs, outputs: channels left; all arrays broadcast.
    """
    kernel = kernel_positions(layer)
    first, core, last = factor_sizes(kernel, into, out, inputs, outputs)
    before = after = layer.macs / layer.weights  # positions of an example
    if layer.kind != "linear":
        before *= float(np.prod(layer.input_shape[2:]) / np.prod(layer.output_shape[2:]))
    if kernel == 1:
        before = after  # the stride is the first factor's
    return np.asarray(first * before + (core + last) * after, dtype=np.float64)
