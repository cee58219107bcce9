"""Timing kernels in OpenVINO, among copies of themselves and in company.

OpenVINO records what each node of a running network takes (``PERF_COUNT``). A kernel is timed where it is executed
just as in the networks it came from (``openvino_scene``): in a network of several copies of its scene, and, cold, in
networks of many different kernels in random order. Its neighbours and the reorders at the ends are nodes of their own
and do not count. The record is a mean over all runs, cut to whole microseconds: cut parts are added as half a
microsecond each, the first runs are taken out, and of the copies the middle ones count. Times are ratios to a reference
network timed right beside, which takes the machine's drift out.

(The other way, the slope between a network of many copies and one of a single copy, as with ONNX Runtime, needs kernels
without neighbours. OpenVINO has none: a reorder in front of a small convolution takes half as long as itself.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from latency_tables.errors import KernelError
from latency_tables.kernel import Kernel
from latency_tables.latency import median_ci95, now, quiet_rounds
from latency_tables.openvino_runtime import (
    Running,
    Settings,
    compile_model,
    executed_nodes,
    read_model,
)
from latency_tables.openvino_scene import Scene, Stage, places, same_work, scenes
from latency_tables.round_robin import no_garbage_collection
from latency_tables.row import Row

COPIES = 6
ROUNDS = 7
EXTRA_ROUNDS = 8
# A kernel whose interval is wider than this share of its time after ROUNDS gets EXTRA_ROUNDS more.
SETTLED = 0.03
# Networks each kernel is timed cold in, in other company each time, and what one run of such touches at least.
CONTEXTS = 3
FOOTPRINT = 4 * 2**20
_COPIED_BYTES = 256 * 2**20
_ROUND_SECONDS = 0.006
_COLD_RUNS = 24
_WARM_UP = 4
# A run that takes so many times the median was disturbed, and what a node then has too much at least.
_DISTURBED = 1.5
_LEAST_BEYOND_US = 20.0
_LEAST_REPEATS = 4
_MOST_REPEATS = 40
_REFERENCE_REPEATS = 8


def reference(threads: int, arithmetic: str = "float") -> Running:
    """The network every time is a ratio to: six 3x3 convolutions of 32 channels on a 16x16 map, in float32 or int8.

    Never change it: rows measured against others cannot share a table.
    """
    generator = np.random.default_rng(0)
    scale = numpy_helper.from_array(np.asarray(0.02, np.float32), "s")
    constants = [scale] + [
        numpy_helper.from_array(np.asarray(0, dtype), name)
        for name, dtype in (("z", np.uint8), ("wz", np.int8))
    ]
    nodes: list[Any] = []

    def quantized(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}q", "s", "z"], [f"{name}d"]))
        return f"{name}d"

    for layer in range(6):
        read, weight = f"x{layer}", f"w{layer}"
        if arithmetic == "integer":
            read = quantized(read)
            numbers = generator.integers(-127, 128, (32, 32, 3, 3), dtype=np.int8)
            constants.append(numpy_helper.from_array(numbers, weight))
            nodes.append(helper.make_node("DequantizeLinear", [weight, "s", "wz"], [f"{weight}d"]))
            weight += "d"
        else:
            values = generator.uniform(-0.1, 0.1, (32, 32, 3, 3)).astype(np.float32)
            constants.append(numpy_helper.from_array(values, weight))
        nodes += [
            helper.make_node("Conv", [read, weight], [f"y{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]),
        ]
    shape = [1, 32, 16, 16]
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("x6", onnx.TensorProto.FLOAT, shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    network = read_model(bytes(model.SerializeToString()))
    return Running(compile_model(network, Settings(threads)))


class Recorded:
    """A running network whose nodes are recorded.

    The record of a node is a sum over all runs. When a run took far longer than others, because another process had
    the processor meanwhile, the record is read right after it, and what the node that was running then got too much is
    taken out again.
    """

    def __init__(self, compiled: Any) -> None:
        self.running = Running(compiled)
        for _ in range(_WARM_UP):
            self.running.once()
        self._runs = _WARM_UP
        self._seconds: list[float] = []
        # What does not count, and the last sums that were read, with the runs they are of.
        self._out = self._sums()
        self._read, self._read_at = dict(self._out), self._runs

    def run(self, times: int) -> float:
        """Undisturbed seconds of so many runs."""
        samples: list[float] = []
        typical = floor(self._seconds) if len(self._seconds) > _WARM_UP else None
        for _ in range(times):
            seconds = self.running.once()
            self._runs += 1
            samples.append(seconds)
            if len(self._seconds) == _WARM_UP:
                self._read, self._read_at = self._sums(), self._runs
            elif typical is not None and seconds > _DISTURBED * typical:
                self._leave_out()
                seconds = typical
            self._seconds.append(seconds)
        return floor(samples)

    def _sums(self) -> dict[str, float]:
        """Microseconds over all runs; means are cut to whole ones, and a cut takes half of one on average."""
        return {
            name: self._runs * (mean + 0.5) for name, mean in self.running.recorded_us().items()
        }

    def _leave_out(self) -> None:
        """Takes out what the last run added to the nodes beyond what they take."""
        sums, counted = self._sums(), self._read_at - _WARM_UP
        for name, total in sums.items():
            before = self._read.get(name, 0.0)
            each = max(0.0, before - self._out.get(name, 0.0)) / counted
            beyond = total - before - (self._runs - self._read_at) * each
            # Less than the cut of a mean hides nothing, and cannot be told from it.
            if beyond > max(_LEAST_BEYOND_US, 1.5 * self._runs):
                self._out[name] = self._out.get(name, 0.0) + beyond
        self._read, self._read_at = sums, self._runs

    def node_us(self) -> tuple[dict[str, float], float]:
        """Microseconds of each node and of the whole, means over runs."""
        counted = self._runs - _WARM_UP
        nodes = {
            # Runs are cut to whole microseconds as well, which takes another half.
            name: max(0.0, total - self._out.get(name, 0.0)) / counted + 0.5
            for name, total in self._sums().items()
        }
        return nodes, 1e6 * float(np.mean(self._seconds))


class Scenes:
    """Where kernels are executed as they are in the networks they came from.

    What was found for one kernel is tried first for the next of its kind.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._known: dict[Hashable, Scene] = {}

    def set_up(self, kernel: Kernel, copies: int) -> tuple[Scene, Any, list[list[str]]]:
        """The first scene in which exactly the kernel is executed, so many times side by side.

        Returns:
            The scene, the compiled network (recorded), and the names of the nodes that are each copy.

        Raises:
            KernelError: there is none, or it cannot be built.
        """
        known = self._known.get(_kind(kernel)) or self._known.get(_types(kernel))
        reason = ""
        for scene in sorted(scenes(kernel), key=lambda scene: scene != known):
            try:
                # One is compiled faster than many.
                if scene != known and not all(
                    _executed(self.compiled([kernel], [scene]), [kernel])
                ):
                    continue
                many = [kernel] * copies
                compiled = self.compiled(many, [scene] * copies, profile=True)
                names = _executed(compiled, many)
            except KernelError as error:
                reason = f": {error}"
                continue
            if all(names):
                self._known[_kind(kernel)] = self._known[_types(kernel)] = scene
                return scene, compiled, names
        raise KernelError(
            f"OpenVINO executes {kernel.describe()} ({kernel.attribute('primitive', '')}) "
            f"otherwise alone{reason}"
        )

    def compiled(
        self,
        kernels: Sequence[Kernel],
        where: Sequence[Scene],
        profile: bool = False,
        footprint: int = 0,
        seed: int = 0,
    ) -> Any:
        """A network of the kernels, each in its scene.

        Raises:
            KernelError: it cannot be built.
        """
        stage = Stage(np.random.default_rng(seed))
        own = 0.0
        for index, (kernel, scene) in enumerate(zip(kernels, where)):
            stage.add(kernel, f"k{index}/", scene)
            own += sum(spec.bytes for spec in kernel.inputs if spec is not None)
        if footprint > own:
            stage.fill(int(footprint - own))
        return compile_model(read_model(stage.model()), self.settings, profile)


def _kind(kernel: Kernel) -> Hashable:
    """What two kernels have in common that are found in one scene."""
    return *_types(kernel), kernel.attribute("part", ""), kernel.attribute("own", ())


def _types(kernel: Kernel) -> tuple[str, ...]:
    """Operator and types, which alone mostly decide the scene."""
    read = (spec.dtype for spec in kernel.inputs if spec and not spec.constant)
    return kernel.op_type, *read, "->", *(spec.dtype for spec in kernel.outputs if spec)


def _executed(compiled: Any, kernels: Sequence[Kernel]) -> list[list[str]]:
    """Names of the nodes that are each kernel."""
    nodes = executed_nodes(compiled)
    return [
        [node.name for node in places(nodes, f"k{index}/") if same_work(node, kernel)]
        for index, kernel in enumerate(kernels)
    ]


class KernelTimer:
    """Copies of a kernel in their scene, and the rounds measured so far.

    Raises:
        KernelError: the kernel cannot be built or is not executed in any scene.
    """

    def __init__(self, kernel: Kernel, where: Scenes) -> None:
        self.kernel = kernel
        self.scene: Scene | None
        weights = sum(spec.bytes for spec in kernel.inputs if spec is not None and spec.constant)
        copies = int(max(2, min(COPIES, _COPIED_BYTES // max(weights, 1))))
        self.scene, compiled, self._nodes = where.set_up(kernel, copies)
        try:
            self._recorded = Recorded(compiled)
            once = self._recorded.run(2)
        except Exception as error:
            raise KernelError(f"{kernel.describe()} does not run alone: {error}") from error
        self._repeats = int(
            np.clip(_ROUND_SECONDS / max(once, 1e-6), _LEAST_REPEATS, _MOST_REPEATS)
        )
        self.rounds: list[float] = []
        self.beside: list[float] = []

    def time(self) -> None:
        """One round."""
        self.rounds.append(self._recorded.run(self._repeats))

    @property
    def ratios(self) -> NDArray[np.float64]:
        """The kernel's time over the reference's, by round."""
        us, whole = self._recorded.node_us()
        copies = [float(np.mean([us.get(name, 0.0) for name in names])) for names in self._nodes]
        share = middle(copies) / whole
        return np.asarray(share * np.asarray(self.rounds) / np.asarray(self.beside))

    @property
    def settled(self) -> bool:
        found, low, high = median_ci95(self.ratios.tolist())
        return found > 0 and (high - low) / 2 <= SETTLED * found

    def row(self, reference_us: float, floor: float) -> Row:
        """The row at a reference time in microseconds; rounds in which the machine was disturbed do not count.

        Args:
            floor: seconds the reference takes undisturbed.

        Raises:
            KernelError: the kernel is too short to tell its time from nothing.
        """
        ratios = self.ratios[quiet_rounds(self.beside, floor)].tolist()
        found, low, high = (value * reference_us for value in median_ci95(ratios))
        if found <= 0:
            raise KernelError(f"{self.kernel.describe()}: too short to be timed")
        p10, p90 = (float(np.quantile(ratios, q)) * reference_us for q in (0.1, 0.9))
        return Row(
            kernel=self.kernel,
            count=len(ratios),
            median_us=found,
            p10_us=p10,
            p90_us=p90,
            ci95=(low, high),
            time=now(),
            reference_us=reference_us,
            run_reference_us=reference_us,
        )


class RunTimer(KernelTimer):
    """What a run costs whatever the network: that of a network that does next to nothing."""

    def __init__(self, kernel: Kernel, where: Scenes) -> None:
        self.kernel = kernel
        self.scene = None
        stage = Stage(np.random.default_rng(0))
        stage.idle()
        self._recorded = Recorded(compile_model(read_model(stage.model()), where.settings, True))
        self._repeats = _MOST_REPEATS
        self.rounds, self.beside = [], []

    @property
    def ratios(self) -> NDArray[np.float64]:
        return np.asarray(np.asarray(self.rounds) / np.asarray(self.beside))


def floor(seconds: Sequence[float]) -> float:
    """What runs take that nobody disturbs: the 20 % quantile.

    A longer run is more likely to lose the processor to somebody else than a shorter one: of medians, that of the
    reference would stay right on a busy machine and that of the kernel would not.
    """
    return float(np.quantile(np.asarray(seconds, dtype=float), 0.2))


def middle(values: Sequence[float]) -> float:
    """Mean of the middle half or more: recorded times are whole microseconds, too coarse for a median."""
    ordered = np.sort(np.asarray(values, dtype=float))
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


def time_rounds(timers: Sequence[KernelTimer], beside: Running, rounds: int) -> list[float]:
    """Adds one round to each timer so many times; gives the reference's times, seconds.

    The reference runs between every two kernels. The rounds go through all kernels before they come back to the first,
    so that one disturbance spoils one round of a few kernels.
    """
    times: list[float] = []
    with no_garbage_collection():
        for _ in range(rounds):
            around = [floor(beside.samples(_REFERENCE_REPEATS))]
            for timer in timers:
                timer.time()
                around.append(floor(beside.samples(_REFERENCE_REPEATS)))
            for index, timer in enumerate(timers):
                timer.beside.append(float(np.median(around[max(0, index - 1) : index + 3])))
            times += around
    return times


def cold(
    timers: Mapping[Kernel, Scene], where: Scenes, beside: Running, seed: int
) -> dict[str, float]:
    """What kernels take between others, by key, as shares of the reference's time.

    Args:
        timers: kernels with the scenes they were found in.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    kernels = list(timers)
    for context in range(CONTEXTS if kernels else 0):
        order = [kernels[int(i)] for i in generator.permutation(len(kernels))]
        try:
            compiled = where.compiled(
                order, [timers[k] for k in order], True, FOOTPRINT, seed=seed + context
            )
            names = _executed(compiled, order)
            recorded = Recorded(compiled)
            around: list[float] = []
            with no_garbage_collection():
                for _ in range(_COLD_RUNS // _LEAST_REPEATS):
                    around.append(floor(beside.samples(_REFERENCE_REPEATS)))
                    recorded.run(_LEAST_REPEATS)
        except KernelError:
            continue
        us, _ = recorded.node_us()
        near = 1e6 * float(np.median(around))
        for kernel, own in zip(order, names):
            # In company a few are executed otherwise.
            if own:
                value = float(np.mean([us.get(name, 0.0) for name in own]))
                found.setdefault(kernel.key, []).append(value / near)
    return {key: float(np.median(values)) for key, values in found.items()}
