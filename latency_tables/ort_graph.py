"""ONNX Runtime's own optimized graph, read as kernels.

Summing separately timed layers of the exported graph misses what the runtime adds (layout reorders)
and what it takes away (fusions). The graph it writes with ``optimized_model_filepath`` lists what
it executes.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from latency_tables.errors import KernelError
from latency_tables.kernel import Attribute, Kernel, KernelUse, TensorSpec, Value
from latency_tables.scope import node_scopes

# Operators whose time depends on the value of a small float constant.
_VALUED = frozenset({"Clip", "Pow", "Resize", "Upsample", "Range", "TopK"})
_KEPT_VALUES = 64
# int32 constants of these are biases and zero points, not shapes.
_QUANTIZED = (
    "QLinear",
    "QGemm",
    "QAttention",
    "ConvInteger",
    "MatMulInteger",
    "Dequantize",
    "Quantize",
)

_DTYPES: Mapping[int, str] = {
    number: {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
    for name, number in onnx.TensorProto.DataType.items()
}
_ORT_DTYPES: Mapping[str, str] = {"float": "float32", "double": "float64"}


def session_options(threads: int) -> Any:
    """ONNX Runtime's defaults but for the threads, and quiet."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def plain_options(threads: int) -> Any:
    """As ``session_options``, running the graph as it is written."""
    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def open_session(model: bytes | Path, options: Any) -> Any:
    """An inference session on the CPU.

    Raises:
        KernelError: the runtime does not take the model.
    """
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own classes have no common base but this
        raise KernelError(f"ONNX Runtime does not load the model: {error}") from error


def sample_input(dtype: str, shape: Iterable[int], generator: np.random.Generator) -> Any:
    """Plausible numbers: positive and normal floats (no denormals), any 8-bit value, index 0."""
    shape = tuple(shape)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return generator.uniform(0.1, 1.0, shape).astype(kind)
    if kind == np.int8 or kind == np.uint8:
        span = np.iinfo(kind)
        return generator.integers(span.min, span.max, shape, dtype=kind, endpoint=True)
    return np.ones(shape, kind) if kind == np.bool_ else np.zeros(shape, kind)


def input_specs(session: Any) -> dict[str, TensorSpec]:
    """Type and fixed shape of each input of a session.

    Raises:
        KernelError: a size is not fixed.
    """
    return {
        value.name: TensorSpec(_tensor_dtype(value.type), _fixed(value.name, value.shape))
        for value in session.get_inputs()
    }


def _tensor_dtype(text: str) -> str:
    """``tensor(float)`` to ``float32``; what is no tensor keeps its text."""
    if not text.startswith("tensor("):
        return text
    return _ORT_DTYPES.get(text[7:-1], text[7:-1])


def _fixed(name: str, shape: Iterable[Any]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise KernelError(
            f"input {name!r} has the shape {list(sizes)}; "
            "export with every size fixed, the batch too"
        )
    return sizes


def optimized_graph(model: bytes | Path, threads: int) -> Any:
    """The ``onnx.ModelProto`` ONNX Runtime makes of a model at its default optimization level.

    Raises:
        KernelError: the runtime does not take the model.
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = session_options(threads)
        options.optimized_model_filepath = str(path)
        open_session(model, options)
        return onnx.load(str(path))


def tensor_specs(model: Any, threads: int = 1) -> dict[str, TensorSpec]:
    """Type and shape of every tensor in an optimized graph.

    ``onnx.shape_inference`` does not know the blocked and com.microsoft operators. ONNX Runtime
    does: with every tensor made an output it states nearly all shapes on loading, and running the
    graph once (on made-up numbers) gives the rest.

    Raises:
        KernelError: an input's size is not fixed, or the graph does not run.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    outputs = {value.name for value in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name]
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs
    )
    session = open_session(probe.SerializeToString(), plain_options(threads))
    specs = input_specs(session)
    unknown = []
    for value in session.get_outputs():
        dtype = _tensor_dtype(value.type)
        if all(isinstance(size, int) for size in value.shape or ()) and value.shape is not None:
            specs[value.name] = TensorSpec(dtype, tuple(value.shape))
        else:
            unknown.append((value.name, dtype))
    if unknown:
        generator = np.random.default_rng(0)
        feeds = {v.name: specs[v.name] for v in session.get_inputs()}
        try:
            arrays = session.run(
                [name for name, _ in unknown],
                {name: sample_input(s.dtype, s.shape, generator) for name, s in feeds.items()},
            )
        except Exception as error:
            raise KernelError(f"the optimized graph does not run: {error}") from error
        for (name, dtype), array in zip(unknown, arrays):
            shape = array.shape if isinstance(array, np.ndarray) else ()
            specs[name] = TensorSpec(dtype, tuple(int(size) for size in shape))
    return specs


def _constant_spec(tensor: Any, op_type: str) -> TensorSpec:
    """Shape and type of an initializer; values only where they are shapes, axes, bounds and the
    like.
    """
    dtype, shape = _DTYPES[tensor.data_type], tuple(tensor.dims)
    values: tuple[int | float, ...] | None = None
    size = int(np.prod(shape, dtype=np.int64))
    if size <= _KEPT_VALUES:
        structural = dtype == "int64" or (dtype == "int32" and not op_type.startswith(_QUANTIZED))
        if structural or (op_type in _VALUED and dtype.startswith("float")):
            values = tuple(onnx.numpy_helper.to_array(tensor).reshape(-1).tolist())
    return TensorSpec(dtype, shape, True, values)


def _attribute(attribute: Any) -> Attribute:
    """An attribute as (name, kind, value); subgraphs keep only a digest and cannot be run alone."""
    name, kinds = attribute.name, onnx.AttributeProto
    value: Value
    if attribute.type == kinds.FLOAT:
        return name, "f", float(attribute.f)
    if attribute.type == kinds.INT:
        return name, "i", int(attribute.i)
    if attribute.type == kinds.STRING:
        return name, "s", attribute.s.decode(errors="replace")
    if attribute.type == kinds.FLOATS:
        return name, "fs", tuple(float(item) for item in attribute.floats)
    if attribute.type == kinds.INTS:
        return name, "is", tuple(int(item) for item in attribute.ints)
    if attribute.type == kinds.STRINGS:
        return name, "ss", tuple(item.decode(errors="replace") for item in attribute.strings)
    if attribute.type == kinds.TENSOR and int(np.prod(attribute.t.dims)) <= _KEPT_VALUES:
        array = onnx.numpy_helper.to_array(attribute.t)
        value = (_DTYPES[attribute.t.data_type], tuple(array.shape), tuple(array.ravel().tolist()))
        return name, "t", value
    return name, "g", hashlib.sha256(attribute.SerializeToString()).hexdigest()[:16]


def _since(op_type: str, domain: str, opset: int) -> int:
    """The version that last changed an operator, so that newer exports find older rows."""
    try:
        return int(onnx.defs.get_schema(op_type, opset, domain).since_version)
    except Exception:  # com.microsoft operators have no schema in onnx
        return opset if domain == "" else 1


def read_kernels(model: bytes | Path, threads: int, batch: int | None = None) -> list[KernelUse]:
    """The kernels of an exported network, in the order ONNX Runtime lists them.

    Args:
        model: an ONNX file, or its bytes, with fixed shapes.
        threads: intra-op threads of the target.
        batch: when given, the first input's first size must be this.

    Raises:
        KernelError: ONNX Runtime does not load it, or its shapes are not those of the target.
    """
    optimized = optimized_graph(model, threads)
    specs = tensor_specs(optimized)
    graph = optimized.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    fed = next((value.name for value in graph.input if value.name not in constants), None)
    if batch is not None and fed is not None:
        shape = specs[fed].shape
        if not shape or shape[0] != batch:
            raise KernelError(
                f"input {fed!r} has the shape {list(shape)}, but the target's batch is {batch}"
            )
    opsets = {entry.domain: entry.version for entry in optimized.opset_import}
    scopes = node_scopes(graph, _original(model))
    uses = []
    for index, node in enumerate(graph.node):

        def spec(name: str, op_type: str = node.op_type) -> TensorSpec | None:
            if not name:
                return None
            if name in constants:
                return _constant_spec(constants[name], op_type)
            return specs.get(name)

        kernel = Kernel(
            domain=node.domain,
            op_type=node.op_type,
            version=_since(node.op_type, node.domain, opsets.get(node.domain, 1)),
            attributes=tuple(sorted(_attribute(attribute) for attribute in node.attribute)),
            inputs=tuple(spec(name) for name in node.input),
            outputs=tuple(spec(name) for name in node.output),
        )
        uses.append(KernelUse(kernel, scopes[index], node.name or node.output[0]))
    return uses


def _original(model: bytes | Path) -> Any:
    """The exported graph without the data of its weights in other files."""
    if isinstance(model, bytes):
        return onnx.load_from_string(model).graph
    return onnx.load(str(model), load_external_data=False).graph
