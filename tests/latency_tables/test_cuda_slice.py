"""Slices of the CUDA interpreter against ONNX Runtime's, forwards and backwards."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from latency_tables.cuda_graph import Network, load_program

LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(0, 7, 1), (1, 6, 2), (-3, LARGEST, 1), (-1, -LARGEST, -1), (5, 1, -2), (LARGEST, 0, -3), (2, 5, -1)],
)  # fmt: skip
def test_as_onnx_runtime(start: int, end: int, step: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["y"])],
        "slice",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 7])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in zip(("starts", "ends", "axes", "steps"), (start, end, 1, step))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = model.SerializeToString()
    x = np.arange(14, dtype=np.float32).reshape(2, 7)
    (wanted,) = onnxruntime.InferenceSession(data).run(None, {"x": x})
    (found,) = Network(load_program(data), "cpu")(torch.from_numpy(x))
    np.testing.assert_array_equal(found.numpy(), wanted)
