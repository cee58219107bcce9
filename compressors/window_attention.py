"""Attention within shifted windows, as torchvision's Swin has it, whose heads can be taken out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

# Added to the scores of positions that a shift brought together from opposite edges.
_APART = -100.0
# Largest factor of cosine similarities (Swin V2, section 3.2).
_STEEPEST = 100.0


class WindowAttention(nn.Module):
    """Attention within the windows of a map, which may be shifted cyclically by half a window.

    Liu et al. 2021, "Swin Transformer" (arXiv 2103.14030), section 3.2, eq. 4; of V2 (arXiv 2111.09883, section 3.2)
    cosine similarities and positions by a small network. Computes what torchvision's ``ShiftedWindowAttention`` and
    ``ShiftedWindowAttentionV2`` do; deviation: the heads' common width need not be that of the map.

    Args:
        source: one of those. Its layers and parameters are taken over, under their names.
    """

    qkv: nn.Linear
    proj: nn.Linear
    relative_position_index: Tensor
    relative_coords_table: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.qkv, self.proj = source.qkv, source.proj
        self.num_heads: int = source.num_heads
        self.head_dim = self.proj.in_features // self.num_heads
        self.attn_dim = self.num_heads * self.head_dim
        self.window_size: tuple[int, ...] = tuple(source.window_size)
        self.shift_size: tuple[int, ...] = tuple(source.shift_size)
        self.dropouts: tuple[float, float] = (source.attention_dropout, source.dropout)
        self.register_buffer("relative_position_index", source.relative_position_index)
        self.cosine = hasattr(source, "logit_scale")
        if self.cosine:
            self.logit_scale: Tensor = source.logit_scale
            self.cpb_mlp: nn.Module = source.cpb_mlp
            self.register_buffer("relative_coords_table", source.relative_coords_table)
            if self.qkv.bias is not None:  # keys have none there
                self.qkv.bias.data.view(3, -1)[1] = 0
        else:
            self.relative_position_bias_table: Tensor = source.relative_position_bias_table
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Attention over x, float [N, H, W, C]; of the same shape."""
        (height, width), (rows, columns) = map(int, x.shape[1:3]), self.window_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        tall, wide = int(x.shape[1]), int(x.shape[2])
        # A window that holds the whole map is not shifted.
        down = self.shift_size[0] if rows < tall else 0
        right = self.shift_size[1] if columns < wide else 0
        if down or right:
            x = x.roll((-down, -right), (1, 2))
        grid = (tall // rows, wide // columns)
        # Widths are left to follow by themselves: an exported graph then fits any number of channels.
        x = x.view(len(x), grid[0], rows, grid[1], columns, -1)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(len(x) * math.prod(grid), rows * columns, -1)
        mask = None
        if down or right:
            apart = shift_mask((tall, wide), (rows, columns), (down, right))
            mask = torch.from_numpy(apart).to(x.device)
        x = self._attention(x, mask)
        x = x.view(len(x) // math.prod(grid), *grid, rows, columns, -1)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(len(x), tall, wide, -1)
        if down or right:
            x = x.roll((down, right), (1, 2))
        return x[:, :height, :width, :].contiguous()

    def _attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention over windows float [N * windows, positions, C]."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.cosine:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * self.logit_scale.clamp(max=math.log(_STEEPEST)).exp()
        else:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        scores = scores + self._positions()
        if mask is not None:
            scores = scores + mask.unsqueeze(1).repeat(len(x) // len(mask), 1, 1, 1)
        weights = F.dropout(scores.softmax(-1), self.dropouts[0], self.training)
        out = (weights @ v).transpose(1, 2).reshape(*x.shape[:2], self.attn_dim)
        return F.dropout(self.proj(out), self.dropouts[1], self.training)

    def _positions(self) -> Tensor:
        """Bias of every pair of positions, float [1, heads, positions, positions]."""
        positions = math.prod(self.window_size)
        if self.cosine:
            table: Tensor = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        else:
            table = self.relative_position_bias_table
        bias = table[self.relative_position_index].view(positions, positions, -1)
        bias = bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        return 16 * bias.sigmoid() if self.cosine else bias


def shift_mask(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> NDArray[np.float32]:
    """What is added to the scores, float32 [windows, positions, positions].

    Args:
        size: of the map, multiples of the window's.
        window: rows and columns.
        shift: rows and columns by which the map was rolled up and left; positions that came together only by that do
            not attend to each other.
    """
    # Three stripes along each axis: whole windows, the rest that was there before, what the roll brought in.
    down, across = (
        np.searchsorted([n - w, n - s], np.arange(n), side="right")
        for n, w, s in zip(size, window, shift)
    )
    region = 3 * down[:, None] + across[None, :]
    tiles: NDArray[np.int64] = region.reshape(
        size[0] // window[0], window[0], size[1] // window[1], window[1]
    )
    tiles = tiles.transpose(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    return np.where(tiles[:, :, None] == tiles[:, None, :], 0, _APART).astype(np.float32)
