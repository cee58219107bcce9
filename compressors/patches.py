"""What a layer reads and gives at sampled places of its output."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from compressors.structure import Layer


def grid(layer: Layer, batch: int) -> tuple[int, int]:
    """Height and width of a layer's output; everything but the features of a linear layer counts as height.

    Args:
        batch: images in the pass that found the layer.
    """
    shape = layer.output_shape
    if layer.kind == "linear":
        return prod(shape[:-1]) // batch, 1
    return shape[2], shape[3]


def outputs_at(module: nn.Module, out: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Outputs [images * places, channels] of a layer at sampled places.

    Args:
        out: what the convolution or linear layer gave, any number of axes for a linear one.
        rows, columns: int64 [images, places], see ``grid``.
    """
    images = torch.arange(len(rows), device=rows.device).view(-1, 1)
    if isinstance(module, nn.Linear):
        return out.reshape(len(rows), -1, out.shape[-1])[images, rows].reshape(-1, out.shape[-1])
    return out[images, :, rows, columns].reshape(-1, out.shape[1])


def patches(module: nn.Conv2d | nn.Linear, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Inputs [images * places, groups * features] that the layer reads for the sampled outputs.

    Features are in the weight's order; of a grouped convolution those of all groups follow each other.
    """
    return patches_of_groups(module, x, rows, columns).transpose(0, 1).flatten(1)


def patches_of_groups(
    module: nn.Conv2d | nn.Linear, x: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Inputs [groups, images * places, features] that each group of the layer reads for the sampled outputs.

    Args:
        x: the layer's input.
        rows, columns: int64 [images, places], see ``grid``.
    """
    if isinstance(module, nn.Linear):
        return outputs_at(module, x, rows, columns)[None]
    images = torch.arange(len(x), device=x.device).view(-1, 1)
    (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
    assert not isinstance(module.padding, str)
    ph, pw = module.padding
    if kh == kw == module.groups == 1 and ph == pw == 0:
        return x[images, :, rows * sh, columns * sw].reshape(1, -1, x.shape[1])
    height, width = x.shape[2:]
    down, across = (torch.arange(k, device=x.device) * d for k, d in ((kh, dh), (kw, dw)))
    r = (rows * sh - ph).view(*rows.shape, 1, 1) + down.view(1, 1, kh, 1)
    c = (columns * sw - pw).view(*columns.shape, 1, 1) + across.view(1, 1, 1, kw)
    # Padding the whole map to read a few places of it would cost more than all the rest.
    at = (images.view(-1, 1, 1, 1), slice(None), r.clamp(0, height - 1), c.clamp(0, width - 1))
    taken = x[at]  # [images, places, kh, kw, channels]
    inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
    taken *= inside.unsqueeze(-1)
    grouped = taken.reshape(*taken.shape[:4], module.groups, -1).permute(4, 0, 1, 5, 2, 3)
    # Products of small strided matrices take twenty times as long.
    return grouped.reshape(module.groups, rows.numel(), -1).contiguous()


def readable(module: nn.Module) -> bool:
    """Whether it is known which inputs an output reads: not where a layer pads in a way of its own."""
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is nn.Conv2d
        and not isinstance(module.padding, str)
        and module.padding_mode == "zeros"
    )
