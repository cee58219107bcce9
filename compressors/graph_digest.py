"""A digest of what an ONNX graph computes, whatever its tensors and nodes are called."""

from __future__ import annotations

import hashlib

import onnx
from onnx import numpy_helper


def graph_digest(model: onnx.ModelProto) -> bytes:
    """Equal for two models with the same operators, attributes, numbers and wiring.

    A hash tree (Merkle 1987, "A Digital Signature Based on a Conventional Encryption Function"): every tensor's digest
    is that of the node that makes it and of the tensors the node reads, so that names and the order of independent
    nodes do not count.
    """
    graph = model.graph
    found = {i.name: _tensor(i) for i in graph.initializer}
    # A file may list its initializers among its inputs.
    inputs = [i for i in graph.input if i.name not in found]
    for k, given in enumerate(inputs):
        found[given.name] = _hash(b"input", str(k).encode(), given.type.SerializeToString())
    for node in graph.node:
        made = _node(node, found)
        for k, name in enumerate(node.output):
            found[name] = _hash(made, str(k).encode())
    opsets = sorted(f"{o.domain}:{o.version}" for o in model.opset_import)
    return _hash(*(s.encode() for s in opsets), *(found[o.name] for o in graph.output))


def _node(node: onnx.NodeProto, found: dict[str, bytes]) -> bytes:
    attributes = sorted((a.name, _attribute(a)) for a in node.attribute)
    read = [found[name] if name else b"" for name in node.input]
    return _hash(
        node.op_type.encode(),
        node.domain.encode(),
        *(part for name, value in attributes for part in (name.encode(), value)),
        *read,
    )


def _attribute(attribute: onnx.AttributeProto) -> bytes:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _tensor(attribute.t)
    data: bytes = attribute.SerializeToString()
    return data


def _tensor(tensor: onnx.TensorProto) -> bytes:
    array = numpy_helper.to_array(tensor)
    return _hash(b"tensor", str(array.dtype).encode(), str(array.shape).encode(), array.tobytes())


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
