"""Shapes that an exported attention module reshapes by, changed to another number of heads."""

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
    if node.op_type != "Constant" or not node.attribute or node.attribute[0].name != "value":
        return
    values = numpy_helper.to_array(node.attribute[0].t)
    if values.dtype == np.int64 and values.ndim == 1 and len(values) > 2:
        resized = np.array(_resized(values.tolist(), module, count), dtype=np.int64)
        node.attribute[0].t.CopyFrom(numpy_helper.from_array(resized, node.attribute[0].t.name))


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
