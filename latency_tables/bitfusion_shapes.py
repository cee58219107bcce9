"""Shapes of every tensor of an exported network, constants folded where shapes depend on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from latency_tables.errors import KernelError

# Constants up to this many elements are computed with: shapes, pads, axes; not weights.
_SMALL = 4096
# Rounds of folding and inferring: each can show the next shapes.
_ROUNDS = 8


def with_shapes(model: Any) -> Any:
    """The ``onnx.ModelProto`` with ``value_info`` of its tensors and constants for what is computed from shapes.

    The one given is left alone; weights become inputs, since their values do not matter and take time to copy. A
    tensor whose shape stays unknown has no shape there.

    Raises:
        KernelError: shapes that do not fit together.
    """
    model = _without_weights(model)
    _fold(model)
    for _ in range(_ROUNDS):
        try:
            model = shape_inference.infer_shapes(model, data_prop=True)
        except Exception as error:
            raise KernelError(f"the shapes of the network do not fit together: {error}") from error
        if not _fold(model):
            break
    return model


def _without_weights(model: Any) -> Any:
    small = onnx.ModelProto(ir_version=model.ir_version)
    small.opset_import.extend(model.opset_import)
    graph, source = small.graph, model.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        else:
            kind, dims = tensor.data_type, list(tensor.dims)
            graph.input.append(helper.make_tensor_value_info(tensor.name, kind, dims))
    return small


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Shape of a ``ValueInfoProto``, None where a size is not known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = tuple(d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim)
    return sizes if all(sizes) else None


def _fold(model: Any) -> bool:
    """Replaces nodes by their results where those follow from small constants and known shapes."""
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: shape_of(value) for value in values}
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if math.prod(tensor.dims) <= _SMALL
    }
    kept: list[Any] = []
    found: dict[str, NDArray[Any]] = {}
    for node in graph.node:
        results = _results(node, constants, shapes, model.opset_import)
        if results is None:
            kept.append(node)
            continue
        made = dict(zip(node.output, results))
        constants |= made
        found |= made
    if not found:
        return False
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in found.items())
    return True


def _results(
    node: Any,
    constants: dict[str, NDArray[Any]],
    shapes: dict[str, tuple[int, ...] | None],
    opsets: Any,
) -> list[NDArray[Any]] | None:
    """What a node gives, None where it depends on data or is more than arithmetic on shapes."""
    if node.op_type == "Shape" and not node.attribute:
        shape = shapes.get(node.input[0])
        return None if shape is None else [np.array(shape, dtype=np.int64)]
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        tensor = node.attribute[0].t
        return [numpy_helper.to_array(tensor)] if math.prod(tensor.dims) <= _SMALL else None
    given = [name for name in node.input if name]
    if node.domain not in ("", "ai.onnx") or not all(name in constants for name in given):
        return None
    # Quantized weights and their ranges stay visible.
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Clip"):
        return None
    try:
        graph = helper.make_graph(
            [node],
            "constant",
            [_described(name, constants[name]) for name in dict.fromkeys(given)],
            [onnx.ValueInfoProto(name=name) for name in node.output],
        )
        alone = helper.make_model(graph, opset_imports=list(opsets))
        results = ReferenceEvaluator(alone).run(None, {name: constants[name] for name in given})
    except Exception:
        return None  # whatever cannot be computed stays a node
    arrays = [np.asarray(result) for result in results]
    return arrays if all(array.size <= _SMALL for array in arrays) else None


def _described(name: str, array: NDArray[Any]) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape)
