"""Keeps float layers float between quantized tensors.

ONNX Runtime (1.22 and later, ``WeightBiasQuantization``) quantizes the float weight of a convolution or matrix product
between a dequantizer and a quantizer by itself: one scale for the whole tensor and a zero point beside zero. A layer
that a policy or the user left float would run in integers, less accurately than our own per-channel weights and up
to seven times slower (1x1, 24 to 144 channels on 32x32: 396 instead of 55 microseconds). It only does so where the
dequantizer feeds the layer directly. An operator that computes the identity but is not removed as one stands in
between: a leaky rectifier with slope 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SHIELD = "LeakyRelu"
# The runtime moves dequantizers past these.
_MOVERS = (
    "Flatten",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def keep_float(graph: onnx.GraphProto) -> int:
    """Puts the shield before every float layer that the runtime would quantize.

    Returns:
        How many.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    parameters = {initializer.name for initializer in graph.initializer}
    outputs = {output.name for output in graph.output}
    nodes: list[onnx.NodeProto] = []
    shielded = 0
    for node in graph.node:
        if (
            node.op_type in LAYERS
            and node.input[1] in parameters
            and _reads_dequantized(node, makers)
            and _reaches_quantizer(node, readers, outputs)
        ):
            scope = node.name.rpartition("/")[0]
            name = f"{scope}/{_SHIELD}_{shielded}"
            made = helper.make_node(
                _SHIELD, [node.input[0]], [f"{name}_output_0"], name=name, alpha=1.0
            )
            node.input[0] = made.output[0]
            nodes.append(made)
            shielded += 1
        nodes.append(node)
    if shielded:
        del graph.node[:]
        graph.node.extend(nodes)
    return shielded


def _reads_dequantized(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether the layer's input comes from a dequantizer, perhaps moved."""
    maker = makers.get(node.input[0])
    while maker is not None and maker.op_type in _MOVERS:
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"


def _reaches_quantizer(
    node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], outputs: set[str]
) -> bool:
    """Whether a path without branches leads from the layer to a quantizer."""
    for _ in range(16):
        following = readers.get(node.output[0], [])
        if len(following) != 1 or node.output[0] in outputs:
            return False
        (node,) = following
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type in LAYERS:
            return False
    return False
