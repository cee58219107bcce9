"""Parts of an exported graph that OpenVINO executes as one node, so described that they can be built again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latency_tables.errors import KernelError
from latency_tables.kernel import TensorSpec

# Constants up to this size may be shapes, axes or bounds.
_KEPT_VALUES = 64
# Operators whose time depends on the value of a small float constant.
_VALUED = frozenset({"Clip", "Pow", "Resize", "Upsample", "Range", "TopK"})
# What OpenVINO appends to the name of a node that it took apart.
_SUFFIXES = ("/WithoutBiases", "_original", "/DequantizationSubtract", "/DequantizationMultiply")
_NAMES: Mapping[int, str] = {
    number: {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
    for name, number in onnx.TensorProto.DataType.items()
}
NUMBERS: Mapping[str, int] = {name: number for number, name in _NAMES.items()}
# How far up a quantizer's zero point is looked for, and how many suffixes a name may have.
_FAR = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes of an exported graph.

    Attributes:
        text: the nodes with numbered tensors, canonical JSON: two parts of one shape of work have one text, whatever
            their names and sizes.
        inputs: names of the tensors it reads that are not constants.
        constants: type, shape and (small and structural) values of the constants it reads.
        outputs: names of the tensors that others read, or the last one.
        group: groups of its convolution; the text does not hold it, since it is a size.
    """

    text: str
    inputs: tuple[str, ...]
    constants: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    group: int


class ExportedGraph:
    """An ONNX file with what is asked about its nodes.

    Raises:
        KernelError: it is not one.
    """

    def __init__(self, model: bytes | Path) -> None:
        try:
            loaded = (
                onnx.load_from_string(model)
                if isinstance(model, bytes)
                else onnx.load(str(model), load_external_data=False)
            )
        except Exception as error:  # protobuf's own classes have no common base but this
            raise KernelError(f"not an ONNX file: {error}") from error
        self.graph = loaded.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.nodes = []
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
            else:
                self.nodes.append(node)
        self.makers = {name: i for i, n in enumerate(self.nodes) for name in n.output if name}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.readers.setdefault(name, []).append(i)
        self._by_name = {node.name: i for i, node in enumerate(self.nodes) if node.name}
        self._results = {value.name for value in self.graph.output}

    @cached_property
    def _constant_nodes(self) -> frozenset[int]:
        """Nodes that compute nothing but constants, such as the dequantizers of weights."""
        found: set[int] = set()
        for i, node in enumerate(self.nodes):
            if node.input and all(
                not name or name in self.constants or self.makers.get(name) in found
                for name in node.input
            ):
                found.add(i)
        return frozenset(found)

    def find(self, name: str) -> int | None:
        """The node that OpenVINO means by a name, None for a node of its own."""
        for _ in range(_FAR):
            if name in self._by_name:
                return self._by_name[name]
            if name in self.makers:
                return self.makers[name]
            suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
            if suffix is None:
                break
            name = name.removesuffix(suffix)
        return None

    def part(self, indices: Iterable[int]) -> Part | None:
        """The part of the named nodes, of those between them, and of what makes their constants.

        None where nothing but constants would be left, or a node holds a graph or large tensor.
        """
        chosen = self._closed({i for i in indices if i not in self._constant_nodes})
        if not chosen:
            return None
        order = sorted(chosen | self._feeding(chosen))
        made = {name for i in order for name in self.nodes[i].output if name}
        inputs: list[str] = []
        constants: list[str] = []
        for i in order:
            for name in self.nodes[i].input:
                if name and name not in made:
                    known = constants if name in self.constants else inputs
                    if name not in known:
                        known.append(name)
        numbers = {name: k for k, name in enumerate([*inputs, *constants])}
        group = 1
        lines = []
        for i in order:
            node = self.nodes[i]
            for name in node.output:
                numbers.setdefault(name, len(numbers))
            settings = []
            for attribute in sorted(node.attribute, key=lambda a: str(a.name)):
                if node.op_type == "Conv" and attribute.name == "group":
                    group = max(group, attribute.i)
                    continue
                plain = _setting(attribute)
                if plain is None:
                    return None
                settings.append(plain)
            read = [numbers[name] if name else None for name in node.input]
            lines.append([node.op_type, settings, read, [numbers[name] for name in node.output]])
        outputs = [
            name
            for i in order
            for name in self.nodes[i].output
            if name in self._results or any(r not in order for r in self.readers.get(name, ()))
        ]
        text = {"nodes": lines, "inputs": len(inputs), "outputs": [numbers[n] for n in outputs]}
        return Part(
            json.dumps(text, separators=(",", ":")),
            tuple(inputs),
            tuple(self._constant(name) for name in constants),
            tuple(outputs),
            group,
        )

    def _closed(self, chosen: set[int]) -> set[int]:
        """With the nodes on ways from one chosen node to another."""
        if len(chosen) < 2:
            return chosen
        first, last = min(chosen), max(chosen)
        after, before = set(chosen), set(chosen)
        for i in range(first, last + 1):
            if any(self.makers.get(name) in after for name in self.nodes[i].input):
                after.add(i)
        for i in range(last, first - 1, -1):
            if any(
                r in before for name in self.nodes[i].output for r in self.readers.get(name, ())
            ):
                before.add(i)
        return (after & before) - self._constant_nodes

    def _feeding(self, chosen: set[int]) -> set[int]:
        """Constant nodes that the chosen ones read from, whatever lies between."""
        found: set[int] = set()
        front = list(chosen)
        while front:
            for name in self.nodes[front.pop()].input:
                maker = self.makers.get(name)
                if maker in self._constant_nodes and maker not in found:
                    found.add(maker)
                    front.append(maker)
        return found

    def _constant(self, name: str) -> TensorSpec:
        tensor = self.constants[name]
        dtype, shape = _NAMES[tensor.data_type], tuple(tensor.dims)
        values: tuple[int | float, ...] | None = None
        size = int(np.prod(shape, dtype=np.int64))
        if size <= _KEPT_VALUES:
            readers = {self.nodes[i].op_type for i in self.readers.get(name, ())}
            quantized = any("Quantize" in kind or "quantize" in kind for kind in readers)
            structural = dtype == "int64" or (dtype == "int32" and not quantized)
            if structural or (dtype.startswith("float") and readers & _VALUED):
                values = tuple(numpy_helper.to_array(tensor).reshape(-1).tolist())
        return TensorSpec(dtype, shape, True, values)

    def zero_point(self, name: str) -> int:
        """0 where the 8-bit numbers that become a tensor have a zero point of 0, else 100."""
        for _ in range(_FAR):
            index = self.makers.get(name)
            if index is None:
                break
            node = self.nodes[index]
            if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
                if len(node.input) > 2 and node.input[2] in self.constants:
                    zero = numpy_helper.to_array(self.constants[node.input[2]])
                    return 100 if np.any(zero) else 0
                return 0
            if not node.input:
                break
            name = node.input[0]
        return 0


def _setting(attribute: Any) -> list[Any] | None:
    """An attribute as [name, kind, value]; None for graphs and large tensors."""
    kinds = onnx.AttributeProto
    name = attribute.name
    if attribute.type == kinds.FLOAT:
        return [name, "f", float(attribute.f)]
    if attribute.type == kinds.INT:
        return [name, "i", int(attribute.i)]
    if attribute.type == kinds.STRING:
        return [name, "s", attribute.s.decode(errors="replace")]
    if attribute.type == kinds.FLOATS:
        return [name, "fs", [float(item) for item in attribute.floats]]
    if attribute.type == kinds.INTS:
        return [name, "is", [int(item) for item in attribute.ints]]
    if attribute.type == kinds.TENSOR and int(np.prod(attribute.t.dims)) <= _KEPT_VALUES:
        array = numpy_helper.to_array(attribute.t)
        return [
            name,
            "t",
            [_NAMES[attribute.t.data_type], list(array.shape), array.ravel().tolist()],
        ]
    return None


def make_attribute(name: str, kind: str, value: Any) -> Any:
    """The ``onnx.AttributeProto`` of what ``Part.text`` holds."""
    kinds = onnx.AttributeProto
    if kind == "t":
        dtype, shape, values = value
        return helper.make_attribute(name, helper.make_tensor(name, NUMBERS[dtype], shape, values))
    types = {
        "f": kinds.FLOAT,
        "i": kinds.INT,
        "s": kinds.STRING,
        "fs": kinds.FLOATS,
        "is": kinds.INTS,
    }
    return helper.make_attribute(name, value, attr_type=types[kind])


def made_up_constant(spec: TensorSpec, name: str, generator: np.random.Generator) -> Any:
    """An initializer of the given shape; made-up values where the kernel keeps none.

    Raises:
        KernelError: of such a type none can be made up.
    """
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError as error:
        raise KernelError(f"cannot make a constant of type {spec.dtype}") from error
    if spec.values is not None:
        array = np.asarray(spec.values, dtype).reshape(spec.shape)
    elif dtype.kind == "f":
        # Positive, so that it will do as a scale or a variance.
        array = generator.uniform(0.01, 0.03, spec.shape).astype(dtype)
    elif dtype in (np.int8, np.uint8) and len(spec.shape) > 1:
        array = generator.integers(-127, 127, spec.shape).astype(dtype)
    else:
        # Zero points of weights, biases.
        array = np.zeros(spec.shape, dtype)
    return numpy_helper.from_array(array, name)


def operators(text: str) -> Sequence[str]:
    """Kinds of the nodes in a part's text."""
    return [line[0] for line in json.loads(text)["nodes"]]
