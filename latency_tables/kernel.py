"""Kernels: operators as the target's runtime executes them.

A kernel is a node of ONNX Runtime's *optimized* graph (fused, in blocked layout) without its
weights' values: everything its time depends on and nothing else, so that two layers of the same
shape share one row of the table.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from latency_tables.errors import KernelError

Scalar: TypeAlias = "int | float | str | bool"
Value: TypeAlias = "Scalar | tuple[Value, ...]"
Attribute: TypeAlias = "tuple[str, str, Value]"

ITEM_BYTES: Mapping[str, float] = {
    "float64": 8,
    "int64": 8,
    "uint64": 8,
    "float32": 4,
    "int32": 4,
    "uint32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "uint16": 2,
    "int8": 1,
    "uint8": 1,
    "float8e4m3fn": 1,
    "float8e5m2": 1,
    "bool": 1,
    "int4": 0.5,
    "uint4": 0.5,
}
CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcFusedConv"})
PRODUCTS = frozenset(
    {
        "Gemm",
        "MatMul",
        "FusedGemm",
        "FusedMatMul",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    }
)


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a kernel.

    Attributes:
        dtype: numpy's name of the element type (``float32``, ``uint8``, ``bfloat16``...).
        shape: sizes; a blocked tensor (NCHWc) has its logical four.
        constant: the values are fixed in the file (weights, scales, shapes).
        values: a small constant's flattened values where the time depends on them, else None.
    """

    dtype: str
    shape: tuple[int, ...]
    constant: bool = False
    values: tuple[Scalar, ...] | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        return self.elements * ITEM_BYTES.get(self.dtype, 4)

    def to_json(self) -> list[Any]:
        values = None if self.values is None else list(self.values)
        return [self.dtype, list(self.shape), self.constant, values]

    @classmethod
    def from_json(cls, data: Any) -> TensorSpec:
        dtype, shape, constant, values = data
        return cls(
            str(dtype),
            tuple(int(size) for size in shape),
            bool(constant),
            None if values is None else tuple(values),
        )


@dataclass(frozen=True)
class Kernel:
    """One operator with the shapes, types and settings it runs with.

    (No slots: ``key`` is cached on the instance, since a search looks rows up millions of times.)

    Attributes:
        domain: operator set, "" for ONNX's own.
        op_type: operator name.
        version: the operator set version that last changed the operator.
        attributes: sorted (name, kind, value); kind is ``i f s is fs ss t g`` as in ONNX.
        inputs: one spec an input; None for an optional one left out.
        outputs: likewise.
    """

    domain: str
    op_type: str
    version: int
    attributes: tuple[Attribute, ...]
    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec | None, ...]

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of the SHA-256 over the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def attribute(self, name: str, default: Value = 0) -> Value:
        return next((value for key, _, value in self.attributes if key == name), default)

    @property
    def weight(self) -> TensorSpec | None:
        """The largest constant of rank 2 or more."""
        weights = [spec for spec in self.inputs if spec and spec.constant and len(spec.shape) > 1]
        return max(weights, key=lambda spec: spec.elements, default=None)

    @property
    def macs(self) -> int:
        """Multiply-accumulates; 0 for operators that are neither convolution nor product."""
        output = self.outputs[0] if self.outputs else None
        if output is None:
            return 0
        if self.op_type in CONVOLUTIONS and self.weight is not None:
            return output.elements * math.prod(self.weight.shape[1:])
        if self.op_type in PRODUCTS and self.inputs and self.inputs[0] is not None:
            shape = self.inputs[0].shape
            inner = shape[0] if self.attribute("transA") and len(shape) == 2 else shape[-1]
            return output.elements * inner
        return 0

    @property
    def moved_bytes(self) -> float:
        """Bytes read and written, each tensor once."""
        return sum(spec.bytes for spec in (*self.inputs, *self.outputs) if spec is not None)

    @property
    def bits(self) -> int:
        """Bits of the arithmetic: 8 when the first input or output of the operator is an 8-bit
        one.
        """
        specs = [spec for spec in (*self.inputs[:1], *self.outputs[:1]) if spec is not None]
        return int(min((ITEM_BYTES.get(spec.dtype, 4) * 8 for spec in specs), default=32))

    @property
    def arithmetic(self) -> str:
        """``integer`` for 8 bits, else ``float``: which reference network the kernel is timed beside."""
        return "integer" if self.bits == 8 else "float"

    def describe(self) -> str:
        """Short text such as ``nchwc.Conv 3x3/2 float32 1x16x32x32 -> 1x32x16x16 Relu``."""

        def sizes(spec: TensorSpec | None) -> str:
            return "-" if spec is None else "x".join(map(str, spec.shape)) or "scalar"

        words = [
            f"{self.domain.rpartition('.')[2]}.{self.op_type}" if self.domain else self.op_type
        ]
        window = self.attribute("kernel_shape", ())
        if isinstance(window, tuple) and window:
            strides = self.attribute("strides", ())
            stride = strides[0] if isinstance(strides, tuple) and strides else 1
            words.append("x".join(map(str, window)) + (f"/{stride}" if stride != 1 else ""))
        inputs = [spec for spec in self.inputs if spec is not None and not spec.constant]
        first = inputs[0] if inputs else next((spec for spec in self.inputs if spec), None)
        words.append(first.dtype if first else "")
        words.append(
            f"{' + '.join(map(sizes, inputs)) or sizes(first)} -> "
            f"{', '.join(map(sizes, self.outputs))}"
        )
        group, activation = self.attribute("group", 1), self.attribute("activation", "")
        words += [f"groups {group}"] * (group != 1) + [str(activation)] * bool(activation)
        return " ".join(word for word in words if word)

    def to_json(self) -> dict[str, Any]:
        return {
            "domain": self.domain,
            "op_type": self.op_type,
            "version": self.version,
            "attributes": _as_lists(self.attributes),
            "inputs": [spec and spec.to_json() for spec in self.inputs],
            "outputs": [spec and spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kernel:
        """Reads what ``to_json`` wrote.

        Raises:
            KernelError: a field is missing or of the wrong shape.
        """
        try:
            return cls(
                domain=str(data["domain"]),
                op_type=str(data["op_type"]),
                version=int(data["version"]),
                attributes=_as_tuples(data["attributes"]),
                inputs=tuple(spec and TensorSpec.from_json(spec) for spec in data["inputs"]),
                outputs=tuple(spec and TensorSpec.from_json(spec) for spec in data["outputs"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise KernelError(f"not a kernel: {error!r}") from error


@dataclass(frozen=True, slots=True)
class KernelUse:
    """One occurrence of a kernel in a network.

    Attributes:
        kernel: what runs.
        scope: path of the module it belongs to, "" for the root.
        name: the node's name in the optimized graph.
        count: how many times; more than 1 only after ``merge_uses``.
    """

    kernel: Kernel
    scope: str = ""
    name: str = ""
    count: int = 1


def merge_uses(uses: Iterable[KernelUse]) -> list[KernelUse]:
    """One use a kernel with the counts added up, in order of occurrence; scopes are dropped."""
    merged: dict[str, KernelUse] = {}
    for use in uses:
        first = merged.get(use.kernel.key)
        if first is None:
            merged[use.kernel.key] = replace(use, scope="", name="")
        else:
            merged[use.kernel.key] = replace(first, count=first.count + use.count)
    return list(merged.values())
