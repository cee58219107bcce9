"""Timing kernels alone in ONNX Runtime.

A kernel's time is the slope between a session with many copies of it (each
with its own weights, all with the same input) and a session with one, so that the fixed cost of a
run cancels. It is taken as a ratio to a reference network timed right beside it, over several
interleaved rounds, so that the machine's drift cancels as well. The median over the rounds is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latency_tables.errors import KernelError
from latency_tables.kernel import ITEM_BYTES, Kernel, TensorSpec
from latency_tables.latency import median_ci95, now, quiet_rounds
from latency_tables.ort_graph import open_session, plain_options, sample_input, session_options
from latency_tables.round_robin import no_garbage_collection
from latency_tables.row import Row

COPIES = 9
ROUNDS = 7
EXTRA_ROUNDS = 8
# A kernel whose interval is wider than this share of its time after ROUNDS gets EXTRA_ROUNDS more.
SETTLED = 0.03
_COPIED_BYTES = 256 * 2**20
# Seconds a round spends on the many copies and on the one; single runs scatter by 10 %.
_MANY_SECONDS = 0.005
_ONE_SECONDS = 0.0015
_LEAST_REPEATS = 4
_MOST_REPEATS = 40
_REFERENCE_REPEATS = 5

NUMBERS: Mapping[str, int] = {
    {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower()): number
    for name, number in onnx.TensorProto.DataType.items()
}


class Timed:
    """A session with its inputs, ready to be timed."""

    def __init__(self, session: Any, feeds: Mapping[str, Any]) -> None:
        self.session = session
        self.feeds = dict(feeds)
        self.outputs = [session.get_outputs()[0].name]

    def once(self) -> float:
        """Seconds of one run."""
        start = time.perf_counter()
        self.session.run(self.outputs, self.feeds)
        return time.perf_counter() - start

    def samples(self, repeats: int) -> list[float]:
        """Seconds of ``repeats`` runs after one that is not counted."""
        self.once()
        return [self.once() for _ in range(repeats)]

    def median(self, repeats: int) -> float:
        """Median seconds of a run."""
        return float(np.median(self.samples(repeats)))


def reference(threads: int, arithmetic: str = "float") -> Timed:
    """The network every time is a ratio to: six 3x3 convolutions of 32 channels on a 16x16 map.

    Integer kernels have one of their own, the same in int8: a busy neighbour on the same core slowed
    float networks to 1.35 and integer ones to 1.65 times their time.
    Never change them: rows measured against others cannot share a table.
    """
    if arithmetic == "integer":
        return _integer_reference(threads)
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(6):
        weight = generator.uniform(-0.1, 0.1, (32, 32, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes += [
            helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]),
        ]
    shape = [1, 32, 16, 16]
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("x6", onnx.TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(model.SerializeToString(), session_options(threads))
    return Timed(session, {"x0": generator.uniform(0.1, 1, shape).astype(np.float32)})


def empty_network(threads: int) -> Timed:
    """A network that does nothing: what a run costs beside its kernels."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "empty",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.ValueInfoProto(name="y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(model.SerializeToString(), plain_options(threads))
    return Timed(session, {"x": np.zeros(1, np.float32)})


def constant(spec: TensorSpec, name: str, generator: np.random.Generator) -> Any:
    """An initializer of the given shape; made-up values where the kernel keeps none."""
    number = NUMBERS.get(spec.dtype)
    if number is None:
        raise KernelError(f"cannot make a constant of type {spec.dtype}")
    if spec.dtype not in ITEM_BYTES or spec.dtype in ("bfloat16", "int4", "uint4"):
        size = int(np.ceil(spec.elements * ITEM_BYTES.get(spec.dtype, 1)))
        return helper.make_tensor(name, number, spec.shape, bytes(size), raw=True)
    dtype = np.dtype(spec.dtype)
    if spec.values is not None:
        array = np.asarray(spec.values, dtype).reshape(spec.shape)
    elif dtype.kind == "f":
        # Positive, so that it will do as a scale or a variance, and small enough for deep sums.
        array = generator.uniform(0.01, 0.03, spec.shape).astype(dtype)
    elif dtype in (np.int8, np.uint8) and len(spec.shape) < 2:
        # Zero points; those of signed weights must be 0.
        array = np.full(spec.shape, 128 if dtype == np.uint8 else 0, dtype)
    elif dtype in (np.int8, np.uint8):
        array = sample_input(spec.dtype, spec.shape, generator)
    else:
        array = np.zeros(spec.shape, dtype)
    return numpy_helper.from_array(array, name)


def made_up_input(spec: TensorSpec, name: str, generator: np.random.Generator) -> tuple[Any, Any]:
    """An input of a model and a value for it.

    Raises:
        KernelError: of such a type none can be made up.
    """
    if spec.dtype not in NUMBERS or spec.dtype not in ITEM_BYTES:
        raise KernelError(f"cannot make an input of type {spec.dtype}")
    try:
        value = sample_input(spec.dtype, spec.shape, generator)
    except TypeError as error:
        raise KernelError(f"cannot make an input of type {spec.dtype}") from error
    return helper.make_tensor_value_info(name, NUMBERS[spec.dtype], spec.shape), value


def make_attribute(name: str, kind: str, value: Any) -> Any:
    kinds = onnx.AttributeProto
    types = {
        "f": kinds.FLOAT,
        "i": kinds.INT,
        "s": kinds.STRING,
        "fs": kinds.FLOATS,
        "is": kinds.INTS,
        "ss": kinds.STRINGS,
    }
    if kind == "t":
        dtype, shape, values = value
        tensor = helper.make_tensor(name, NUMBERS[dtype], shape, values)
        return helper.make_attribute(name, tensor)
    if kind not in types:
        raise KernelError(f"attribute {name!r} is a graph or a large tensor")
    return helper.make_attribute(name, value, attr_type=types[kind])


def build_kernel(kernel: Kernel, copies: int) -> tuple[bytes, dict[str, Any]]:
    """A model of ``copies`` independent nodes, and its inputs.

    Only the last node's results are outputs of the model: fetching a tensor costs time that a node
    in the middle of a network does not pay.

    Raises:
        KernelError: an input or output has a type that cannot be made up.
    """
    generator = np.random.default_rng(1)
    inputs, weights, nodes, feeds = [], [], [], {}
    outputs: list[str] = []
    for position, spec in enumerate(kernel.inputs):
        if spec is not None and not spec.constant:
            info, feeds[f"x{position}"] = made_up_input(spec, f"x{position}", generator)
            inputs.append(info)
    for copy in range(copies):
        names = []
        for position, spec in enumerate(kernel.inputs):
            if spec is None:
                names.append("")
            elif spec.constant:
                names.append(f"c{position}_{copy}")
                weights.append(constant(spec, names[-1], generator))
            else:
                names.append(f"x{position}")
        outputs = [f"y{i}_{copy}" if spec else "" for i, spec in enumerate(kernel.outputs)]
        node = helper.make_node(kernel.op_type, names, outputs, domain=kernel.domain)
        node.attribute.extend(make_attribute(*attribute) for attribute in kernel.attributes)
        nodes.append(node)
    graph = helper.make_graph(
        nodes, "kernel", inputs, [onnx.ValueInfoProto(name=n) for n in outputs if n], weights
    )
    opsets = {"": 17, kernel.domain: kernel.version}
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*pair) for pair in opsets.items()], ir_version=10
    )
    return model.SerializeToString(), feeds


def _integer_reference(threads: int) -> Timed:
    generator = np.random.default_rng(0)
    scale, zero = np.float32(0.02), np.uint8(128)
    weights = [
        numpy_helper.from_array(np.asarray(scale), "s"),
        numpy_helper.from_array(np.asarray(zero), "z"),
        numpy_helper.from_array(np.asarray(np.int8(0)), "wz"),
    ]
    nodes = []
    for layer in range(6):
        weight = generator.integers(-127, 128, (32, 32, 3, 3), dtype=np.int8)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        inputs = [f"x{layer}", "s", "z", f"w{layer}", "s", "wz", "s", "z"]
        nodes.append(helper.make_node("QLinearConv", inputs, [f"x{layer + 1}"], pads=[1, 1, 1, 1]))
    shape = [1, 32, 16, 16]
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("x0", onnx.TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("x6", onnx.TensorProto.UINT8, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(model.SerializeToString(), session_options(threads))
    return Timed(session, {"x0": sample_input("uint8", shape, generator)})


class KernelTimer:
    """One kernel's pair of sessions and the ratios measured so far.

    Raises:
        KernelError: the kernel cannot be built or run alone.
    """

    def __init__(self, kernel: Kernel, threads: int) -> None:
        self.kernel = kernel
        weights = sum(spec.bytes for spec in kernel.inputs if spec is not None and spec.constant)
        self.copies = int(max(2, min(COPIES, _COPIED_BYTES // max(weights, 1))))
        options = plain_options(threads)
        try:
            self.one, self.many = (
                Timed(open_session(model, options), feeds)
                for model, feeds in (build_kernel(kernel, 1), build_kernel(kernel, self.copies))
            )
            self.one.once()
            self.many.once()
            one, many = min(self.one.once(), self.one.once()), self.many.once()
        except KernelError:
            raise
        except Exception as error:
            raise KernelError(f"does not run alone: {error}") from error
        self.repeats_one = _repeats(one, _ONE_SECONDS)
        self.repeats_many = _repeats(many, _MANY_SECONDS)
        self.ratios: list[float] = []
        self.beside: list[float] = []

    def slope(self) -> float:
        """Seconds of one copy, in one round."""
        one = self.one.median(self.repeats_one)
        return (self.many.median(self.repeats_many) - one) / (self.copies - 1)

    @property
    def settled(self) -> bool:
        middle, low, high = median_ci95(self.ratios)
        return middle > 0 and (high - low) / 2 <= SETTLED * middle

    def row(self, reference_us: float, floor: float) -> Row:
        """The row at a reference time in microseconds; rounds in which the machine was disturbed do not count.

        Args:
            floor: seconds the reference takes undisturbed.

        Raises:
            KernelError: the kernel is too short to tell its time from nothing.
        """
        ratios = np.asarray(self.ratios)[quiet_rounds(self.beside, floor)].tolist()
        middle, low, high = (value * reference_us for value in median_ci95(ratios))
        if middle <= 0:
            raise KernelError(f"{self.kernel.describe()}: too short to be timed")
        p10, p90 = (max(0.0, float(np.quantile(ratios, q))) * reference_us for q in (0.1, 0.9))
        return Row(
            kernel=self.kernel,
            count=len(ratios),
            median_us=middle,
            p10_us=p10,
            p90_us=p90,
            ci95=(low, high),
            time=now(),
            reference_us=reference_us,
            run_reference_us=reference_us,
        )


def _repeats(seconds: float, share: float) -> int:
    return int(max(_LEAST_REPEATS, min(_MOST_REPEATS, share / max(seconds, 1e-7))))


def time_rounds(timers: Sequence[KernelTimer], reference: Timed, rounds: int) -> list[float]:
    """Adds one ratio a round to each timer; gives the reference's times, seconds.

    The reference runs between every two kernels, and a slope is taken relative to the four runs of
    it nearest in time. The rounds go through all kernels before they come back to the first, so
    that one disturbance spoils one round of a few kernels.
    """
    times: list[float] = []
    with no_garbage_collection():
        for _ in range(rounds):
            beside, slopes = [reference.median(_REFERENCE_REPEATS)], []
            for timer in timers:
                slopes.append(timer.slope())
                beside.append(reference.median(_REFERENCE_REPEATS))
            for index, (timer, slope) in enumerate(zip(timers, slopes)):
                near = beside[max(0, index - 1) : index + 3]
                timer.beside.append(float(np.median(near)))
                timer.ratios.append(slope / timer.beside[-1])
            times += beside
    return times
