"""Made-up kernels, rows and networks for the latency-table tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latency_tables import Kernel, Row, TensorSpec


def conv_kernel(inner: int = 16, outer: int = 16, size: int = 8, group: int = 1) -> Kernel:
    """A 3x3 convolution in plain layout."""
    return Kernel(
        domain="",
        op_type="Conv",
        version=11,
        attributes=(
            ("group", "i", group),
            ("kernel_shape", "is", (3, 3)),
            ("pads", "is", (1, 1, 1, 1)),
            ("strides", "is", (1, 1)),
        ),
        inputs=(
            TensorSpec("float32", (1, inner, size, size)),
            TensorSpec("float32", (outer, inner // group, 3, 3), True),
        ),
        outputs=(TensorSpec("float32", (1, outer, size, size)),),
    )


def made_up_row(kernel: Kernel, us: float, time: str = "2026-01-01T00:00:00+00:00") -> Row:
    """A row that nothing measured, for tests of tables."""
    return Row(kernel, 7, us, us * 0.95, us * 1.05, (us * 0.98, us * 1.02), time, 200.0, 200.0)


def chain(
    *nodes: Any, shape: tuple[int, ...], outputs: list[str], weights: dict[str, Any]
) -> bytes:
    """An ONNX file from nodes with one float input ``x`` of a fixed shape."""
    graph = helper.make_graph(
        list(nodes),
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
