"""From node names back to module paths.

``torch.onnx.export(dynamo=False)`` names a node after the modules whose ``forward`` was running and
the operator: ``/layer1/layer1.0/conv2/Conv``. A child reached through a container repeats the
container's name (``layer1.0``), any other child has its attribute's name alone (``conv2``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def is_scoped(name: str) -> bool:
    """True for names the exporter derived from modules; generated nodes have no leading slash."""
    return name.startswith("/")


def scope_of(name: str) -> str:
    """The module path in a node's or tensor's name.

    ``/layer1/layer1.0/conv2/Conv_output_0_nchwc`` gives ``layer1.0.conv2`` and
    ``/features/features.1/conv/conv.0/conv.0.0/Conv`` gives ``features.1.conv.0.0``; names without
    modules (``/ReduceMean``, ``ReorderOutput_token_46``) give "".

    A module that calls an attribute of its own name through a ``ModuleList`` (``a`` with ``a.a.0``)
    cannot be told from a ``Sequential`` and reads as ``a.0``.
    """
    if not is_scoped(name):
        return ""
    path: list[str] = []
    for piece in name.split("/")[1:-1]:
        if path and piece.startswith(path[-1] + "."):
            path[-1] = piece
        elif piece:
            path.append(piece)
    return ".".join(path)


def node_scopes(graph: Any, original: Any) -> list[str]:
    """The scope of each node of an optimized graph.

    A fused node is often named after its last part (``/layer1/layer1.0/Relu_output_0_nchwc`` is a
    convolution); the exported graph says which node of the same kind fed it. Nodes the runtime made
    itself (reorders, transposes) take the scope of the nearest named one, downstream first.

    Args:
        graph: ``onnx.GraphProto`` that the runtime optimized.
        original: ``onnx.GraphProto`` it was made from.
    """
    makers = {name: node for node in original.node for name in node.output}
    exported = {node.name for node in original.node}
    named: dict[int, str] = {}
    for index, node in enumerate(graph.node):
        for name in (node.name, *node.output):
            if is_scoped(name):
                named[index] = scope_of(_origin(node.op_type, name, makers, exported) or name)
                break
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    after: dict[int, list[int]] = {i: [] for i in range(len(graph.node))}
    before: dict[int, list[int]] = {i: [] for i in range(len(graph.node))}
    for i, node in enumerate(graph.node):
        for name in node.input:
            if name in producer:
                after[producer[name]].append(i)
                before[i].append(producer[name])

    def scope(index: int) -> str:
        if index in named:
            return named[index]
        downstream = _nearest(index, after, named)
        return downstream if downstream is not None else _nearest(index, before, named) or ""

    return [scope(index) for index in range(len(graph.node))]


def _origin(
    op_type: str, name: str, makers: Mapping[str, Any], exported: Collection[str]
) -> str | None:
    """Name of the exported node that became node or tensor ``name`` of the optimized graph.

    A tensor's maker is followed upwards to the node of kind ``op_type`` that was fused into it. A
    node the runtime renamed (``/fc1/MatMul/MatMulAddFusion``) is found by its leading pieces.
    """
    kind = op_type.removeprefix("Fused").removeprefix("QLinear").removeprefix("Q")
    node = makers.get(name.removesuffix("_nchwc"))
    for _ in range(6):
        if node is None:
            break
        if node.op_type == kind:
            return str(node.name)
        node = makers.get(node.input[0]) if node.input else None
    while is_scoped(name):
        if name in exported:
            return name
        if (
            name in makers
        ):  # ``/conv1/DequantizeLinear_11_output_0/Transpose`` was made from that tensor
            return str(makers[name].name)
        name = name.rpartition("/")[0]
    return None


def _nearest(start: int, edges: Mapping[int, list[int]], named: Mapping[int, str]) -> str | None:
    """Scope of the nearest named node along edges, breadth first."""
    front, seen = [start], {start}
    while front:
        following = list(dict.fromkeys(n for i in front for n in edges[i] if n not in seen))
        for node in following:
            if node in named:
                return named[node]
        seen.update(following)
        front = following
    return None
