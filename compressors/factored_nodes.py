"""The nodes of a factored layer in an exported graph, made from the node of the whole layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressors.low_rank import Ranks, factors

# Any grid serves: times depend on none. They are those of ``skeleton``, whose biases keep the product of both.
ACTIVATION_STEP = 0.02
WEIGHT_STEP = 0.01


@dataclass(frozen=True)
class FactoredNodes:
    """What stands for one layer's node.

    Attributes:
        nodes: in order; the last one writes what the layer wrote.
        initializers: by name.
    """

    nodes: tuple[onnx.NodeProto, ...]
    initializers: dict[str, onnx.TensorProto]


def factored_nodes(
    node: onnx.NodeProto,
    path: str,
    ranks: Ranks,
    inputs: int,
    outputs: int,
    integer: bool,
) -> FactoredNodes:
    """See ``FactoredNodes``; the same nodes as ``exporter.export_onnx`` writes for the factored network.

    Args:
        node: a Conv, Gemm or MatMul that computes the whole layer; its bias stays on the last factor.
        path: the layer's.
        inputs, outputs: its channels, as pruned.
        integer: whether the factors' weights and what is between them are quantized.
    """
    widths = (inputs, *ranks, outputs)
    names = factors(path, ranks)
    last = len(names) - 1
    made: list[onnx.NodeProto] = []
    initializers: dict[str, onnx.TensorProto] = {}

    def hold(name: str, array: NDArray[np.generic]) -> str:
        initializers[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    read = node.input[0]
    for k, factor in enumerate(names):
        shape, kind, attributes = _factor(node, k, last, widths)
        # A product without bias is written with its weight turned round.
        axis = 1 if kind == "MatMul" else 0
        weight = f"{factor}.weight"
        if integer:
            steps = np.full(shape[axis], WEIGHT_STEP, dtype=np.float32)
            held = [
                hold(f"{weight}_quantized", np.zeros(shape, dtype=np.int8)),
                hold(f"{weight}_scale", steps),
                hold(f"{weight}_zero_point", np.zeros(shape[axis], dtype=np.int8)),
            ]
            weight = f"{weight}_dequantized"
            made.append(_node("DequantizeLinear", held, weight, path, axis=axis))
        else:
            hold(weight, np.zeros(shape, dtype=np.float32))
        bias = list(node.input[2:]) if k == last else []
        out = node.output[0] if k == last else f"{factor}_output"
        made.append(_node(kind, [read, weight, *bias], out, path))
        made[-1].attribute.extend(attributes)
        read = out
        if integer and k < last:
            grid = [
                hold(f"{factor}.step", np.array(ACTIVATION_STEP, dtype=np.float32)),
                hold(f"{factor}.zero", np.array(128, dtype=np.uint8)),
            ]
            made.append(_node("QuantizeLinear", [out, *grid], f"{out}_quantized", path))
            read = f"{out}_dequantized"
            made.append(_node("DequantizeLinear", [f"{out}_quantized", *grid], read, path))
    for k, one in enumerate(made):
        one.name = f"{node.name}_factor_{k}"
    return FactoredNodes(tuple(made), initializers)


def _node(
    kind: str, inputs: list[str], output: str, path: str, **attributes: int
) -> onnx.NodeProto:
    made: onnx.NodeProto = helper.make_node(kind, inputs, [output], f"/{path}/{kind}", **attributes)
    return made


def _factor(
    node: onnx.NodeProto, k: int, last: int, widths: tuple[int, ...]
) -> tuple[tuple[int, ...], str, list[onnx.AttributeProto]]:
    """Weight shape, operator and attributes of the k-th factor."""
    into, out = widths[k], widths[k + 1]
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and k < last):
        return (into, out), "MatMul", []
    if node.op_type == "Gemm":
        return (out, into), "Gemm", list(node.attribute)
    own = {a.name: a for a in node.attribute}
    kernel = list(own["kernel_shape"].ints)
    # The core is the middle one of three, the first of two.
    if k == (1 if last == 2 else 0):
        return (out, into, *kernel), "Conv", list(node.attribute)
    plain = {
        "dilations": [1] * len(kernel),
        "group": 1,
        "kernel_shape": [1] * len(kernel),
        "pads": [0] * (2 * len(kernel)),
        "strides": [1] * len(kernel),
    }
    made = [helper.make_attribute(name, value) for name, value in plain.items()]
    return (out, into, *[1] * len(kernel)), "Conv", made
