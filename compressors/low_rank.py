"""What a factored layer looks like: its ranks, its factors' names and shapes.

A layer of low rank becomes an ``nn.Sequential`` in its place, ``path.0``, ``path.1`` (and ``path.2``), whose factors
are layers of their own: each is quantized, exported and priced like any other. A linear layer and a 1x1 convolution
become two of their kind with ``r`` channels between them (truncated SVD); a k x k convolution becomes 1x1, k x k and
1x1 (Tucker-2, Kim et al. 2016, "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications", arXiv 1511.06530, section 3). A policy names one rank a layer; the input rank of a k x k convolution
is the same share of its inputs, where the paper picks the two apart by variational Bayes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressors.errors import PruningError
from compressors.preparation import set_submodule
from compressors.pruner import Channels, Skip
from compressors.structure import Layer, Structure, inside

# Ranks of a factored layer: (r,) between two factors, (r_in, r_out) around a k x k core.
Ranks = tuple[int, ...]
# Input ranks are multiples of what vector units hold.
_STEP = 16


def factorable(module: nn.Module, layer: Layer) -> bool:
    """Whether the layer has a low-rank form: a dense convolution padded with zeros, or a linear layer."""
    if layer.kind == "linear":
        return type(module) is nn.Linear
    return (
        layer.kind == "conv"
        # A subclass may pad or scale its weight in a way of its own.
        and type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and (positions(module) > 1 or not any(module.padding))
    )


def positions(module: nn.Conv2d | nn.Linear) -> int:
    """Kernel positions: 9 of a 3x3 convolution, 1 of a linear layer."""
    return int(module.weight[0, 0].numel())


def kernel_positions(layer: Layer) -> int:
    """The same, read off the structure."""
    return layer.weights // (layer.in_channels * layer.out_channels) if layer.kind == "conv" else 1


def full_rank(layer: Layer, kernel: int) -> int:
    """The rank at which nothing is lost, which a policy names to leave the layer whole.

    Args:
        kernel: kernel positions.
    """
    return min(layer.in_channels, layer.out_channels) if kernel == 1 else layer.out_channels


def split_rank(
    layer: Layer,
    kernel: int,
    rank: NDArray[np.float64],
    inputs: NDArray[np.float64],
    outputs: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Input and output rank of a layer that pruning left so many channels, the two equal where the kernel is 1.

    Args:
        layer: uncompressed.
        kernel: kernel positions.
        rank: as a policy names it.
        inputs, outputs: channels left; all arrays broadcast.
    """
    if kernel == 1:
        both = np.minimum(np.minimum(rank, inputs), outputs)
        return both, both
    share = rank * layer.in_channels / layer.out_channels
    into = np.ceil(share / _STEP) * _STEP
    return np.minimum(into, inputs), np.minimum(rank, outputs)


def factor_sizes(
    kernel: int,
    into: NDArray[np.float64],
    out: NDArray[np.float64],
    inputs: NDArray[np.float64],
    outputs: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the three factors; of two the middle one has none."""
    core = kernel * into * out if kernel > 1 else np.zeros_like(into)
    return inputs * into, core, out * outputs


def ranks_of(
    structure: Structure,
    network: nn.Module,
    channels: Channels,
    wanted: Mapping[str, int],
    dropped: tuple[str, ...] = (),
) -> dict[str, Ranks]:
    """Ranks of the layers that are factored, clipped to what pruning left of them.

    A layer whose factors would hold no fewer weights than the pruned layer itself stays whole.

    Args:
        structure, network: uncompressed, norms folded.
        channels: kept positions.
        wanted: layer path to rank.
        dropped: residual blocks left out.

    Raises:
        PruningError: a path is no layer, the layer has no low-rank form, or a rank is not positive.
    """
    found: dict[str, Ranks] = {}
    layers = {layer.path: layer for layer in structure.layers}
    for path, rank in wanted.items():
        layer = layers.get(path)
        if layer is None:
            raise PruningError(f"no layer {path!r} to factor in this network")
        if rank < 1:
            raise PruningError(f"{path}: rank must be at least 1, not {rank}")
        module = network.get_submodule(path)
        if not factorable(module, layer):
            raise PruningError(
                f"{path} has no low-rank form: linear layers and dense zero-padded convolutions have"
            )
        assert isinstance(module, nn.Conv2d | nn.Linear)
        if inside(path, dropped):
            continue
        axes = channels.get(path, {})
        inputs = float(len(axes.get("in", range(layer.in_channels))))
        outputs = float(len(axes.get("out", range(layer.out_channels))))
        kernel = positions(module)
        into, out = (
            float(r)
            for r in split_rank(
                layer, kernel, np.array(float(rank)), np.array(inputs), np.array(outputs)
            )
        )
        sizes = factor_sizes(
            kernel, np.array(into), np.array(out), np.array(inputs), np.array(outputs)
        )
        if float(sum(sizes)) < kernel * inputs * outputs:
            found[path] = (int(out),) if kernel == 1 else (int(into), int(out))
    return found


def installed_ranks(structure: Structure, network: nn.Module) -> dict[str, Ranks]:
    """Ranks of the layers that a network holds as factors.

    Args:
        structure: of the uncompressed network.
    """
    modules = dict(network.named_modules())
    found: dict[str, Ranks] = {}
    for layer in structure.layers:
        module = modules.get(layer.path)
        if isinstance(module, nn.Sequential):
            widths = [
                part.weight.shape[0] for part in module if isinstance(part, nn.Conv2d | nn.Linear)
            ]
            found[layer.path] = tuple(int(width) for width in widths[:-1])
    return found


def factors(path: str, ranks: Ranks) -> tuple[str, ...]:
    """Paths of a factored layer's factors."""
    return tuple(f"{path}.{k}" for k in range(1 + len(ranks)))


def last_factor(path: str, ranks: Mapping[str, Ranks]) -> str:
    """The layer that ends what ``path`` computes: its last factor, or itself where it is whole."""
    return factors(path, ranks[path])[-1] if path in ranks else path


def shell(module: nn.Conv2d | nn.Linear, ranks: Ranks) -> nn.Sequential:
    """Factors of the right shapes, weights zero, the bias on the last one.

    Raises:
        PruningError: a rank is larger than the layer allows, or there are too many or too few.
    """
    like: dict[str, Any] = {"dtype": module.weight.dtype, "device": module.weight.device}
    bias = module.bias is not None
    outputs, inputs = module.weight.shape[:2]
    spatial = positions(module) > 1
    bounds = (inputs, outputs) if spatial else (min(inputs, outputs),)
    if len(ranks) != len(bounds) or not all(1 <= r <= b for r, b in zip(ranks, bounds)):
        raise PruningError(f"ranks {list(ranks)} do not fit a layer that allows {list(bounds)}")
    parts: list[nn.Module]
    if isinstance(module, nn.Linear):
        (r,) = ranks
        parts = [nn.Linear(inputs, r, bias=False, **like), nn.Linear(r, outputs, bias, **like)]
    else:
        assert not isinstance(module.padding, str)
        last = nn.Conv2d(ranks[-1], outputs, 1, bias=bias, **like)
        stride: dict[str, Any] = {"stride": module.stride}
        if spatial:
            kernel = (module.kernel_size[0], module.kernel_size[1])
            around: dict[str, Any] = {"padding": module.padding, "dilation": module.dilation}
            core = nn.Conv2d(ranks[0], ranks[1], kernel, bias=False, **stride, **around, **like)
            parts = [nn.Conv2d(inputs, ranks[0], 1, bias=False, **like), core, last]
        else:
            parts = [nn.Conv2d(inputs, ranks[0], 1, bias=False, **stride, **like), last]
    made = nn.Sequential(*parts).train(module.training)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_().requires_grad_(module.weight.requires_grad)
    return made


def install(network: nn.Module, ranks: Mapping[str, Ranks]) -> dict[str, nn.Conv2d | nn.Linear]:
    """Puts shells where layers are to be factored, in place; those factored already are left alone.

    Layers inside a dropped block no longer exist and are passed over.

    Returns:
        The layers that were replaced, by path: what the shells are to be filled from.

    Raises:
        PruningError: no such layer, or ranks that do not fit it.
    """
    modules = dict(network.named_modules())
    gone = tuple(path for path, module in modules.items() if isinstance(module, Skip))
    replaced: dict[str, nn.Conv2d | nn.Linear] = {}
    for path, wanted in ranks.items():
        if inside(path, gone):
            continue
        module = modules.get(path)
        if isinstance(module, nn.Sequential) and len(module) == 1 + len(wanted):
            continue
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise PruningError(
                f"the network has no layer {path!r} to factor; it is not the one the plan was made for"
            )
        try:
            made = shell(module, wanted)
        except PruningError as error:
            raise PruningError(f"{path}: {error}") from None
        set_submodule(network, path, made)
        replaced[path] = module
    return replaced
