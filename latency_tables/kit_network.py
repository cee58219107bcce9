"""Networks as small ONNX files whose weights are made up again where they are needed.

No kernel's time depends on what its weights are, but a file of a few megabytes a policy does not
travel. ``compact`` puts a ConstantOfShape node in place of every large weight, which leaves a valid
file of some ten kilobytes; ``expanded`` puts random weights back. Runtimes fuse and lay out weights
only where those are constants of the file, so a compact file is not what is to be measured.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# Tensors up to this size stay: they may be shapes, bounds or axes, which kernels do depend on.
KEPT = 64
_RANDOM = "made-up weight "
_UNIFORM = "uniform constant "
_SHAPE = " (shape)"


def compact(model: Any) -> Any:
    """The ``onnx.ModelProto`` without large weights; the one given is left alone.

    Weights (rank 2 or more, floats and 8-bit integers) lose their values. Other tensors are left
    out only where all their elements are equal, which is kept exactly.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    kept, makers = [], []
    for tensor in graph.initializer:
        value = _replacement(tensor)
        if value is None:
            kept.append(tensor)
            continue
        weight = _is_weight(tensor)
        shape = np.asarray(tensor.dims, np.int64)
        kept.append(numpy_helper.from_array(shape, tensor.name + _SHAPE))
        maker = helper.make_node(
            "ConstantOfShape",
            [tensor.name + _SHAPE],
            [tensor.name],
            name=(_RANDOM if weight else _UNIFORM) + tensor.name,
        )
        maker.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value)))
        makers.append(maker)
    nodes = list(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(makers + nodes)
    graph.initializer.extend(kept)
    return result


def expanded(model: Any) -> Any:
    """What ``compact`` was given, with random weights (the same in every call)."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    generator = np.random.default_rng(0)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if not node.name.startswith((_RANDOM, _UNIFORM)):
            nodes.append(node)
            continue
        shape = tuple(int(size) for size in numpy_helper.to_array(tensors.pop(node.input[0])))
        value = numpy_helper.to_array(node.attribute[0].t)
        if node.name.startswith(_RANDOM):
            array = _random(shape, value.dtype, generator)
        else:
            array = np.full(shape, value[0], value.dtype)
        tensors[node.output[0]] = numpy_helper.from_array(array, node.output[0])
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors.values())
    return result


def _is_weight(tensor: Any) -> bool:
    kinds = onnx.TensorProto
    return len(tensor.dims) > 1 and tensor.data_type in (kinds.FLOAT, kinds.FLOAT16, kinds.INT8)


def _replacement(tensor: Any) -> NDArray[Any] | None:
    """[1]: what a ConstantOfShape node is to repeat; None where the tensor must stay."""
    if math.prod(tensor.dims) <= KEPT:
        return None
    array: NDArray[Any] = numpy_helper.to_array(tensor)
    if _is_weight(tensor):
        return np.zeros(1, array.dtype)
    first = array.reshape(-1)[:1]
    return first if array.dtype.kind in "fiu" and bool(np.all(array == first[0])) else None


def _random(shape: tuple[int, ...], dtype: Any, generator: np.random.Generator) -> NDArray[Any]:
    if np.dtype(dtype) == np.int8:
        return generator.integers(-127, 127, shape, dtype=np.int8, endpoint=True)
    # He et al. 2015 (arXiv 1502.01852): what flows through a deep network neither grows nor dies out.
    bound = math.sqrt(6 / math.prod(shape[1:]))
    return generator.uniform(-bound, bound, shape).astype(dtype)
