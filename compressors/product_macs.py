"""Multiply-accumulates of matrix products that no layer makes: those of attention."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

_PRODUCTS = ("matmul", "bmm", "baddbmm")


def product_macs(function: str, args: Sequence[Any], out: Tensor) -> int:
    """Multiply-accumulates of one call, over the whole batch; 0 of a call that is no product of matrices.

    Args:
        function: as ``call_graph.function_name`` has it.
        args: its arguments by position.
        out: what it gave.
    """
    tensors = [t for t in args if isinstance(t, Tensor)]
    if function in _PRODUCTS and len(tensors) >= 2:
        return out.numel() * tensors[-2].shape[-1]
    if function == "scaled_dot_product_attention" and len(tensors) >= 3:
        query, key, value = tensors[:3]
        scores = prod(out.shape[:-2]) * query.shape[-2] * key.shape[-2]
        return scores * (query.shape[-1] + value.shape[-1])
    if function == "einsum" and isinstance(args[0], str):
        return _einsum(args[0], tensors)
    return 0


def _einsum(equation: str, operands: Sequence[Tensor]) -> int:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if "." in equation or len(terms) != 2 or len(operands) != 2:
        return 0
    return prod({k: n for term, t in zip(terms, operands) for k, n in zip(term, t.shape)}.values())
