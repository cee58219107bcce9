"""Multi-head attention whose heads can be taken out.

``torch.nn.MultiheadAttention`` is one opaque call and asks for as many channels over all heads as its input has, so
neither its heads nor the stream through it could shrink. The module here computes the same from the same weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """``softmax(Q K^T / sqrt(d)) V`` over heads of width ``d``, then a projection.

    Vaswani et al. 2017, "Attention Is All You Need" (arXiv 1706.03762), section 3.2. Calls, masks and outputs are
    those of ``torch.nn.MultiheadAttention``; deviations: the heads' common width need not be that of the input, and the
    in-projection is a linear layer (three of them where keys or values have another width).

    Args:
        source: without ``add_bias_kv`` and ``add_zero_attn``. Weights are copied.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.attn_dim = source.num_heads * source.head_dim
        self.batch_first, self.dropout = source.batch_first, source.dropout
        # torch's encoder layers read these to choose a fused path, which knows only their own module.
        self.in_proj_bias, self._qkv_same_embed_dim = None, False
        bias = source.in_proj_bias
        self.in_proj: nn.Linear | None = None
        if source.in_proj_weight is not None:
            self.in_proj = _linear(source.in_proj_weight, bias)
        else:
            assert source.q_proj_weight is not None and source.k_proj_weight is not None
            assert source.v_proj_weight is not None
            q_bias, k_bias, v_bias = (None, None, None) if bias is None else bias.chunk(3)
            self.q_proj = _linear(source.q_proj_weight, q_bias)
            self.k_proj = _linear(source.k_proj_weight, k_bias)
            self.v_proj = _linear(source.v_proj_weight, v_bias)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)
        self.train(source.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``torch.nn.MultiheadAttention.forward``.

        Args:
            query: float [L, N, E], [N, L, E] with ``batch_first``, or [L, E]; so are ``key`` and ``value``.
            key_padding_mask: bool (true is left out) or float (added) [N, S] or [S].
            attn_mask: bool or float [L, S] or [N * heads, L, S].

        Returns:
            Output of the query's shape, and, with ``need_weights``, the attention [N, L, S] or [N, heads, L, S].

        Raises:
            RuntimeError: ``is_causal`` without the mask it is a hint about, as in torch.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
        q, k, v = self._heads(query, key, value)
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q / math.sqrt(self.head_dim) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if query.dim() == 3 else weights.squeeze(0)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.out_proj(self._joined(out, query)), weights

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Takes the names of ``torch.nn.MultiheadAttention`` too: files from before this module have them."""
        parts = ("q_proj", "k_proj", "v_proj")
        for name in ("in_proj", *parts):
            if f"{prefix}{name}_weight" in state_dict:
                state_dict[f"{prefix}{name}.weight"] = state_dict.pop(f"{prefix}{name}_weight")
        bias = state_dict.pop(f"{prefix}in_proj_bias", None)
        if bias is not None and self.in_proj is not None:
            state_dict[f"{prefix}in_proj.bias"] = bias
        elif bias is not None:
            state_dict |= {f"{prefix}{n}.bias": b for n, b in zip(parts, bias.chunk(3))}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [N, heads, positions, width of one]."""
        if self.in_proj is not None and query is key and key is value:
            made = self.in_proj(query)
            made = made if made.dim() == 3 else made.unsqueeze(self._batch_axis)
            made = made.reshape(*made.shape[:2], 3, self.num_heads, self.head_dim)
            order = (2, 0, 3, 1, 4) if self.batch_first else (2, 1, 3, 0, 4)
            q, k, v = made.permute(order).unbind(0)
            return q, k, v
        if self.in_proj is None:
            made_of = [self.q_proj(query), self.k_proj(key), self.v_proj(value)]
        else:
            bias = self.in_proj.bias
            biases = [None, None, None] if bias is None else bias.chunk(3)
            given = zip((query, key, value), self.in_proj.weight.chunk(3), biases)
            made_of = [F.linear(x, weight, b) for x, weight, b in given]
        q, k, v = (self._split(x) for x in made_of)
        return q, k, v

    @property
    def _batch_axis(self) -> int:
        return 0 if self.batch_first else 1

    def _split(self, x: Tensor) -> Tensor:
        x = x if x.dim() == 3 else x.unsqueeze(self._batch_axis)
        x = x.reshape(*x.shape[:2], self.num_heads, self.head_dim)
        return x.permute((0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3))

    def _joined(self, out: Tensor, query: Tensor) -> Tensor:
        """Heads [N, heads, L, width of one] side by side, in the query's layout."""
        out = out.permute((0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3))
        out = out.reshape(*out.shape[:2], self.attn_dim)
        return out if query.dim() == 3 else out.squeeze(self._batch_axis)

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, attention: Tensor | None
    ) -> Tensor | None:
        """Both masks as one that is added to the scores and broadcasts to [N, heads, L, S]."""
        found = None
        if attention is not None:
            found = _added(attention, q)
            if found.dim() == 3:
                found = found.view(len(q), self.num_heads, q.shape[2], k.shape[2])
        if padding is not None:
            padded = _added(padding, q).view(len(q), 1, 1, k.shape[2])
            found = padded if found is None else found + padded
        return found


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # Made without drawing random numbers that a caller's seed was meant for.
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to be added: minus infinity where a bool one says to leave out."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
