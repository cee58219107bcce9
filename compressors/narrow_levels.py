"""Tensors of fewer than 8 bits in a file whose integers have 8.

``QuantizeLinear`` saturates at 0 and 255. A grid with fewer levels ends at a ``Clip`` of the unsigned bytes, between
the quantizer and the dequantizer, where the runtime's integer kernels on either side stay whole. A ``Clip`` of a
weight's integers to the range they lie in anyway says their width (as Brevitas exports both, "QCDQ"); ONNX Runtime
folds it away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compressors.errors import ExportError
from compressors.plan import ActivationScale


def narrow_levels(
    graph: onnx.GraphProto, sites: Sequence[str], activations: Mapping[str, ActivationScale]
) -> None:
    """Ends every grid of fewer than 8 bits at its own largest level, in place.

    A capped rectifier (ReLU6) before such a quantizer goes, as its own range reaches beyond the grid's: 8-bit
    quantizers, whose scales lie below the cap, take theirs in by themselves.

    Args:
        graph: exported from a ``QuantizedNetwork``.
        sites: the quantized sites in the order of their calls.
        activations: by site.

    Raises:
        ExportError: the graph's quantizers are not those of the sites.
    """
    if all(activations[site].bits == 8 for site in sites):
        return
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    if len(quantizers) != len(sites):
        raise ExportError(
            f"{len(quantizers)} quantizers in the exported graph for {len(sites)} tensors"
        )
    narrow = {id(q): activations[s] for q, s in zip(quantizers, sites) if activations[s].bits < 8}
    makers = {name: node for node in graph.node for name in node.output}
    values = _values(graph)
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        for k, name in enumerate(node.input):
            node.input[k] = renamed.get(name, name)
        nodes.append(node)
        scale = narrow.get(id(node))
        if scale is None:
            continue
        cap = makers.get(node.input[0])
        if cap is not None and _reaches_beyond(cap, scale, values):
            node.input[0] = cap.input[0]
        top = f"{node.output[0]}_top"
        graph.initializer.append(
            numpy_helper.from_array(np.array(2**scale.bits - 1, dtype=np.uint8), top)
        )
        ended = f"{node.output[0]}_ended"
        name = node.name.rpartition("/")[0] + f"/Clip_{len(nodes)}_levels"
        nodes.append(helper.make_node("Clip", [node.output[0], "", top], [ended], name=name))
        renamed[node.output[0]] = ended
    _keep_alive(graph, nodes)


def narrow_weights(graph: onnx.GraphProto, limits: Mapping[str, int]) -> None:
    """Says the width of weights by a ``Clip`` to their range before they are dequantized, in place.

    Args:
        graph: exported, with integer weights.
        limits: largest integer of a layer's weight, by path; layers left out stay as they are.

    Raises:
        ExportError: a layer has no integer weight in the graph.
    """
    if not limits:
        return
    names = {f"{path}.weight_quantized": path for path in limits}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        path = names.pop(node.input[0], None) if node.op_type == "DequantizeLinear" else None
        if path is not None:
            ends = [f"{path}.weight_lowest", f"{path}.weight_highest"]
            for name, value in zip(ends, (-limits[path], limits[path])):
                graph.initializer.append(numpy_helper.from_array(np.array(value, np.int8), name))
            clipped = f"{path}.weight_ended"
            nodes.append(
                helper.make_node(
                    "Clip", [node.input[0], *ends], [clipped], name=f"/{path}/Clip_weight"
                )
            )
            node.input[0] = clipped
        nodes.append(node)
    if names:
        raise ExportError(f"no integer weight in the exported graph of {', '.join(names.values())}")
    del graph.node[:]
    graph.node.extend(nodes)


def _keep_alive(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Sets a graph's nodes, without those that nothing reads any more."""
    wanted = {output.name for output in graph.output}
    alive = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            alive.append(node)
            wanted |= set(node.input)
    del graph.node[:]
    graph.node.extend(reversed(alive))


def _values(graph: onnx.GraphProto) -> dict[str, float]:
    """Constants of one value."""
    found = [(i.name, i) for i in graph.initializer]
    found += [
        (node.output[0], node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    ]
    return {
        name: float(numpy_helper.to_array(tensor).reshape(()))
        for name, tensor in found
        if len(tensor.dims) == 0 or list(tensor.dims) == [1]
    }


def _reaches_beyond(
    node: onnx.NodeProto, scale: ActivationScale, values: Mapping[str, float]
) -> bool:
    """Whether a node clips to a range that holds all of a grid, which starts at zero."""
    if node.op_type != "Clip" or scale.zero_point != 0 or len(node.input) != 3:
        return False
    low, high = (values.get(name) for name in node.input[1:])
    if low is None or high is None:
        return False
    return low == 0 and high >= scale.scale * (2**scale.bits - 1)
