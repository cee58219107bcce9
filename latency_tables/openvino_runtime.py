"""OpenVINO on the processor: networks compiled for it, run, and its own account of what ran."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from latency_tables.errors import KernelError
from latency_tables.kernel import TensorSpec

# Layer types of the runtime's graph that compute nothing, and what they stand for in profiles.
SILENT = frozenset({"Input", "Output", "Const", "Reshape", "MemoryInput", "MemoryOutput"})
DTYPES: Mapping[str, str] = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "boolean": "bool",
    **{f"i{bits}": f"int{bits}" for bits in (4, 8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (1, 4, 8, 16, 32, 64)},
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How networks are compiled: OpenVINO's defaults for one request at a time, but for the threads.

    Attributes:
        threads: of inference.
        bf16: float layers are computed in bfloat16. OpenVINO would do so unasked where it can; without this
            float layers are computed in float32.
    """

    threads: int = 1
    bf16: bool = False

    def properties(self, profile: bool = False) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": "bf16" if self.bf16 else "f32",
            "PERF_COUNT": profile,
            # OpenVINO would keep the thread on its first processor, be it busy or not; see ``affinity.Pin``.
            "ENABLE_CPU_PINNING": False,
        }


@dataclass(frozen=True, slots=True)
class ExecutedNode:
    """A node of the graph that OpenVINO executes.

    Attributes:
        name: unique in the graph.
        kind: OpenVINO's layer type, such as ``Convolution``, ``Subgraph``, ``Reorder``.
        primitive: the code that runs, such as ``brgconv_avx512_amx_I8``.
        originals: names of the nodes of the file it was made from; some are OpenVINO's own.
        inputs: type and shape of what it reads, without constants.
        input_layouts: order of dimensions in memory of each, such as ``acdb`` for channels last.
        outputs, output_layouts: likewise.
        sources: names of the nodes it reads from, one an input.
    """

    name: str
    kind: str
    primitive: str
    originals: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    input_layouts: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    output_layouts: tuple[str, ...]
    sources: tuple[str, ...]


@cache
def _core() -> Any:
    core = ov.Core()
    # It looks for processors once: it must see all of them, not those a timing thread is kept on.
    core.get_property("CPU", "FULL_DEVICE_NAME")
    return core


def prepare() -> None:
    """Lets OpenVINO look at the machine; to be called before a thread is kept on some processors."""
    _core()


def read_model(model: bytes | Path) -> Any:
    """An ``openvino.Model`` of an ONNX file or its bytes.

    Raises:
        KernelError: OpenVINO does not read it, or a size is not fixed.
    """
    try:
        network = _core().read_model(model=model if isinstance(model, bytes) else str(model))
    except Exception as error:  # OpenVINO's own classes have no common base but this
        raise KernelError(f"OpenVINO does not read the model: {_line(error)}") from error
    for value in network.inputs:
        if value.get_partial_shape().is_dynamic:
            raise KernelError(
                f"input {value.get_any_name()!r} has the shape {value.get_partial_shape()}; "
                "export with every size fixed, the batch too"
            )
    return network


def compile_model(network: Any, settings: Settings, profile: bool = False) -> Any:
    """An ``openvino.CompiledModel`` on the processor.

    Raises:
        KernelError: OpenVINO does not take the network.
    """
    try:
        return _core().compile_model(network, "CPU", settings.properties(profile))
    except Exception as error:
        raise KernelError(f"OpenVINO does not compile the model: {_line(error)}") from error


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def input_specs(compiled: Any) -> list[TensorSpec]:
    """Type and shape of each input of a compiled network."""
    return [_spec(value) for value in compiled.inputs]


def _spec(value: Any) -> TensorSpec:
    name = value.get_element_type().get_type_name()
    return TensorSpec(DTYPES.get(name, name), tuple(int(size) for size in value.get_shape()))


def executed_nodes(compiled: Any) -> list[ExecutedNode]:
    """What is executed in every run, in order; nodes that only hold or name tensors are left out.

    Raises:
        KernelError: a shape is only known while running.
    """
    ordered = compiled.get_runtime_model().get_ordered_ops()
    facts = {op.get_friendly_name(): _facts(op) for op in ordered}
    constant: set[str] = set()
    nodes = []
    for op in ordered:
        name = op.get_friendly_name()
        kind, primitive, originals, layouts = facts[name]
        sources = [value.get_source_output() for value in op.inputs()]
        makers = [source.get_node().get_friendly_name() for source in sources]
        if kind == "Const" or (makers and all(maker in constant for maker in makers)):
            constant.add(name)
            continue
        if kind in SILENT:
            continue
        if any(v.get_partial_shape().is_dynamic for v in (*sources, *op.outputs())):
            raise KernelError(f"shapes at {name!r} are only known while running")
        moving = [(s, m) for s, m in zip(sources, makers) if m not in constant]
        outputs = tuple(_spec(value) for value in op.outputs())
        nodes.append(
            ExecutedNode(
                name=name,
                kind=kind,
                primitive=primitive,
                originals=originals,
                inputs=tuple(_spec(source) for source, _ in moving),
                input_layouts=tuple(_at(facts[m][3], s.get_index()) for s, m in moving),
                outputs=outputs,
                output_layouts=tuple(_at(layouts, port) for port in range(len(outputs))),
                sources=tuple(maker for _, maker in moving),
            )
        )
    return nodes


def _facts(op: Any) -> tuple[str, str, tuple[str, ...], list[str]]:
    info = op.get_rt_info()

    def text(key: str) -> str:
        return str(info[key].astype(str)) if key in info else ""

    originals = tuple(name for name in text("originalLayersNames").split(",") if name)
    return text("layerType"), text("primitiveType"), originals, text("outputLayouts").split(",")


def _at(layouts: Sequence[str], port: int) -> str:
    """Layouts are stated once where all outputs have the same."""
    return layouts[port] if port < len(layouts) else layouts[0]


def sample_input(spec: TensorSpec, generator: np.random.Generator) -> Any:
    """Plausible numbers: positive and normal floats (no denormals), any 8-bit value, index 0.

    Raises:
        KernelError: of such a type none can be made up.
    """
    try:
        kind = np.dtype(spec.dtype)
    except TypeError as error:
        raise KernelError(f"cannot make an input of type {spec.dtype}") from error
    if kind.kind == "f":
        return generator.uniform(0.1, 1.0, spec.shape).astype(kind)
    if kind in (np.int8, np.uint8):
        span = np.iinfo(kind)
        return generator.integers(span.min, span.max, spec.shape, dtype=kind, endpoint=True)
    return np.zeros(spec.shape, kind)


class Running:
    """A compiled network with made-up inputs, ready to be timed."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.request = compiled.create_infer_request()
        generator = np.random.default_rng(0)
        self.inputs = [sample_input(spec, generator) for spec in input_specs(compiled)]
        for index, array in enumerate(self.inputs):
            self.request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))

    def once(self) -> float:
        """Seconds of one run."""
        start = time.perf_counter()
        self.request.infer()
        return time.perf_counter() - start

    def samples(self, repeats: int) -> list[float]:
        """Seconds of ``repeats`` runs after one that is not counted."""
        self.once()
        return [self.once() for _ in range(repeats)]

    def median(self, repeats: int) -> float:
        """Median seconds of a run."""
        return float(np.median(self.samples(repeats)))

    def recorded_us(self) -> dict[str, int]:
        """OpenVINO's record of each node: the mean over all runs so far, cut to whole microseconds."""
        return {
            info.node_name: round(info.real_time.total_seconds() * 1e6)
            for info in self.request.get_profiling_info()
        }
