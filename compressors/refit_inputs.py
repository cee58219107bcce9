"""What a layer that is refitted reads, channels innermost.

Features in the order of memory are copied once, a run of channels at a time; in the order of the weight
(``patches``) the same rows take four times as long, more than the forward pass of the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def innermost(module: nn.Conv2d, x: Tensor) -> bool:
    """Whether ``read_innermost`` tells what the layer reads: not of a grouped convolution, whose groups are problems of
    their own, and not where another layout of ``x`` would have to be turned whole.
    """
    return module.groups == 1 and x.is_contiguous(memory_format=torch.channels_last)


def read_innermost(module: nn.Conv2d, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Inputs [images * places, kernel height * kernel width * channels] for the sampled outputs, a fresh tensor.

    Args:
        module, x: see ``innermost``.
        rows, columns: int64 [images, places], see ``patches.grid``.
    """
    images, channels, height, width = x.shape
    (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
    assert not isinstance(module.padding, str)
    ph, pw = module.padding
    down, across = (torch.arange(k, device=x.device) * d for k, d in ((kh, dh), (kw, dw)))
    r = (rows * sh - ph).view(*rows.shape, 1, 1) + down.view(1, 1, kh, 1)
    c = (columns * sw - pw).view(*columns.shape, 1, 1) + across.view(1, 1, 1, kw)
    first = torch.arange(images, device=x.device).view(-1, 1, 1, 1) * (height * width)
    at = first + r.clamp(0, height - 1) * width + c.clamp(0, width - 1)
    taken = x.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, at.flatten())
    outside = (r < 0) | (r >= height) | (c < 0) | (c >= width)
    taken[outside.flatten()] = 0
    return taken.view(rows.numel(), -1)


def weight_innermost(module: nn.Conv2d) -> Tensor:
    """The weight [out_channels, kernel height * kernel width * channels] in the order of ``read_innermost``."""
    return module.weight.detach().permute(0, 2, 3, 1).flatten(1)


def weight_of(innermost: Tensor, module: nn.Conv2d) -> Tensor:
    """The inverse of ``weight_innermost``: [out_channels, channels, kernel height, kernel width]."""
    kernel = (len(innermost), *module.kernel_size, -1)
    # Flat in between: of a 1x1 kernel a permuted tensor counts as contiguous but keeps strides by which torch takes it
    # for one with channels last, and runs it by another algorithm than the same weight read from a file.
    return innermost.reshape(kernel).permute(0, 3, 1, 2).flatten(1).reshape(module.weight.shape)
