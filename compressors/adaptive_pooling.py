"""Adaptive average pooling in exported files, to any number of bins.

ONNX has no adaptive pooling, and torch's exporter writes it only where all bins are of one size. On images of a fixed
size it is a linear map of rows and one of columns, so elsewhere the file holds two products with constants.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.onnx import symbolic_helper
from torch.onnx.utils import register_custom_op_symbolic, unregister_custom_op_symbolic

from compressors.errors import ExportError

_OPERATOR = "aten::adaptive_avg_pool2d"


def pooling_matrix(positions: int, bins: int) -> Tensor:
    """What adaptive average pooling does along one axis, float32 [bins, positions].

    Bin ``i`` is the mean of the positions from ``floor(i * positions / bins)`` to
    ``ceil((i + 1) * positions / bins)``, as in ``torch.nn.AdaptiveAvgPool2d``.
    """
    matrix = torch.zeros(bins, positions)
    for i in range(bins):
        start, end = i * positions // bins, -(-(i + 1) * positions // bins)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@contextlib.contextmanager
def adaptive_pooling(opset: int) -> Iterator[None]:
    """While it lasts, torch's TorchScript exporter writes adaptive average pooling to any number of bins."""
    register_custom_op_symbolic(_OPERATOR, _symbolic, opset)
    try:
        yield
    finally:
        unregister_custom_op_symbolic(_OPERATOR, opset)


def _symbolic(graph: Any, x: Any, output_size: Any) -> Any:
    bins = symbolic_helper._parse_arg(output_size, "is")
    positions = symbolic_helper._get_tensor_sizes(x)[-2:]
    if list(bins) == [1, 1]:
        return graph.op("GlobalAveragePool", x)
    if None in positions:
        raise ExportError(f"adaptive pooling into {list(bins)} bins of a map of unknown size")
    if all(p % b == 0 for p, b in zip(positions, bins)):
        each = [p // b for p, b in zip(positions, bins)]
        return graph.op("AveragePool", x, kernel_shape_i=each, strides_i=each)
    rows, columns = (pooling_matrix(p, b) for p, b in zip(positions, bins))
    x = graph.op("MatMul", x, graph.op("Constant", value_t=columns.T.contiguous()))
    return graph.op("MatMul", graph.op("Constant", value_t=rows), x)
