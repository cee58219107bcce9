"""Multiply-accumulates of matrix products that no layer makes: those of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

from torch import Tensor

# Names of the parameters that take factors, in their order.
_FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "matmul": ("input", "other"),
        "bmm": ("input", "mat2"),
        "baddbmm": ("input", "batch1", "batch2"),
        "scaled_dot_product_attention": ("query", "key", "value"),
    }
)


def product_macs(function: str, args: Sequence[Any], named: Mapping[str, Any], out: Tensor) -> int:
    """Multiply-accumulates of one call, over the whole batch; 0 of a call that is no product of matrices.

    Args:
        function: as ``call_graph.function_name`` has it.
        args: its arguments by position.
        named: those by name.
        out: what it gave.
    """
    if function == "einsum":
        equation, *operands = args
        # Operands come one by one or as one sequence; in the other form the equation is in numbers.
        listed = (
            operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
        )
        return _einsum(equation, listed) if isinstance(equation, str) else 0
    if function not in _FACTORS:
        return 0
    names = _FACTORS[function]
    given = [*args[: len(names)], *(named[n] for n in names[len(args) :] if n in named)]
    if len(given) < len(names) or not all(isinstance(t, Tensor) for t in given):
        return 0
    if function == "scaled_dot_product_attention":
        query, key, value = given
        scores = prod(out.shape[:-2]) * query.shape[-2] * key.shape[-2]
        macs: int = scores * (query.shape[-1] + value.shape[-1])
    else:
        macs = out.numel() * given[-2].shape[-1]
    return macs


def _einsum(equation: str, operands: Sequence[Tensor]) -> int:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if "." in equation or len(terms) != 2 or len(operands) != 2:
        return 0
    return prod({k: n for term, t in zip(terms, operands) for k, n in zip(term, t.shape)}.values())
