"""Shapes that an exported module reshapes by, changed to another number of heads or channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from compressors.attention import head_count, head_widths


def resize_heads(node: onnx.NodeProto, module: nn.Module, count: int) -> None:
    """Changes a constant of an attention module's graph, in place, if it is a shape over its heads.

    Args:
        node: any; only constants of the module's own code matter.
        module: as it was exported, with all its heads.
        count: heads to keep.
    """
    values = _shape(node)
    if values is not None:
        _replace(node, _resized(values, module, count))


def holds_width(node: onnx.NodeProto, width: int) -> bool:
    """Whether a node is a constant shape that has a width just once."""
    values = _shape(node)
    return values is not None and values.count(width) == 1


def resize_width(node: onnx.NodeProto, width: int, kept: int) -> None:
    """Changes a constant of a module's graph, in place, if it is a shape with the width that the module holds."""
    values = _shape(node)
    if values is not None and values.count(width) == 1:
        _replace(node, [kept if size == width else size for size in values])


def _shape(node: onnx.NodeProto) -> list[int] | None:
    """What a constant holds, if that may be the shape of a tensor with channels."""
    if node.op_type != "Constant" or not node.attribute or node.attribute[0].name != "value":
        return None
    values = numpy_helper.to_array(node.attribute[0].t)
    if values.dtype != np.int64 or values.ndim != 1 or len(values) <= 2:
        return None
    return [int(size) for size in values]


def _replace(node: onnx.NodeProto, shape: Sequence[int]) -> None:
    tensor = node.attribute[0].t
    tensor.CopyFrom(numpy_helper.from_array(np.array(shape, dtype=np.int64), tensor.name))


def _resized(shape: Sequence[int], module: nn.Module, count: int) -> list[int]:
    heads, resized = head_count(module), list(shape)
    assert heads is not None
    # [..., 3, heads, width of one]: of two equal sizes the last that is not the innermost counts the heads.
    axes = [k for k, size in enumerate(shape[:-1]) if k > 0 and size == heads]
    if len(shape) > 3 and axes:
        resized[axes[-1]] = count
    elif shape[-1] in head_widths(module):
        resized[-1] = shape[-1] // heads * count
    return resized
