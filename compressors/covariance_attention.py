"""Cross-covariance attention, as timm's XCiT and EdgeNeXt have it, whose heads can be taken out."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class CovarianceAttention(nn.Module):
    """Attention of channels to channels: each head's [d, d] weights come from its keys' and queries' covariance.

    El-Nouby et al. 2021, "XCiT: Cross-Covariance Image Transformers" (arXiv 2106.09681), eq. 2. Computes what timm's
    ``XCA`` and ``CrossCovarianceAttn`` do; deviation: the heads' common width need not be that of the input.

    Args:
        source: one of those. Its layers and parameters are taken over, under their names.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.qkv: nn.Linear = source.qkv
        self.proj: nn.Linear = source.proj
        self.num_heads: int = source.num_heads
        self.head_dim = self.proj.in_features // self.num_heads
        self.attn_dim = self.num_heads * self.head_dim
        self.temperature: Tensor = source.temperature
        self.attn_drop: nn.Module = source.attn_drop
        self.proj_drop: nn.Module = source.proj_drop
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Attention over x, float [N, positions, C]; of the same shape."""
        n, positions = x.shape[:2]
        qkv = self.qkv(x).reshape(n, positions, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)  # each [N, heads, d, positions]
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        weights = self.attn_drop((scores * self.temperature).softmax(-1))
        out = (weights @ v).permute(0, 3, 1, 2).reshape(n, positions, self.attn_dim)
        made: Tensor = self.proj_drop(self.proj(out))
        return made
