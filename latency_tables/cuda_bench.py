"""Timing kernels and networks in CUDA graphs.

A kernel's time is the slope between a graph of many copies and one of few, each with its own weights, in rounds
interleaved with a reference network. Copies that share their input find it in the level 2 cache; where copies
with inputs of their own fit less well, that is timed too (``cold_us``): in a network it lies between.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latency_tables.cuda_graph import made_up, on_host, place
from latency_tables.cuda_operators import DTYPES, operator
from latency_tables.errors import KernelError
from latency_tables.kernel import Kernel, TensorSpec
from latency_tables.latency import Latency, Measurements, median_ci95, now
from latency_tables.row import Row

# Its classes carry no types.
_cuda: Any = torch.cuda

ROUNDS = 5
_PROBE_COPIES = 8
# Shorter graphs end before the next one is launched.
_LEAST_FEW_US = 60.0
_MANY_US = 500.0
_MOST_COPIES = 256
_TIMED_US = 1500.0
_WEIGHT_BYTES = 256 * 2**20
_MOST_WEIGHTS = 32
_CACHE_BYTES = 160 * 2**20
# Inputs that take less than this together stay in the cache whatever the order.
_WARM_BYTES = 24 * 2**20
_REFERENCE_CALLS = 20
# No launch takes less.
_LEAST_US = 0.05
_LEAST_ROUNDS = 7
_SAMPLES = 5


class Replay:
    """Work recorded as a CUDA graph.

    Args:
        work: launches it; run once before it is recorded.
        pool: of graphs that share their memory.
    """

    def __init__(self, work: Callable[[], Any], pool: Any = None) -> None:
        self.graph = torch.cuda.CUDAGraph()
        stream = _side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            work()
            stream.synchronize()
            self.graph.capture_begin(pool=pool)
            try:
                self.result = work()
            finally:
                self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(self) -> None:
        self.graph.replay()

    def us(self, repeats: int) -> float:
        """Microseconds of one replay, over several behind one that keeps the GPU busy."""
        begin, end = (_cuda.Event(enable_timing=True) for _ in range(2))
        self.graph.replay()
        begin.record()
        for _ in range(repeats):
            self.graph.replay()
        end.record()
        end.synchronize()
        return float(1e3 * begin.elapsed_time(end) / repeats)

    def samples_us(self, count: int) -> list[float]:
        """Microseconds of each of several replays in a row."""
        events = [_cuda.Event(enable_timing=True) for _ in range(count + 1)]
        self.graph.replay()
        for event in events[:-1]:
            event.record()
            self.graph.replay()
        events[-1].record()
        events[-1].synchronize()
        return [1e3 * a.elapsed_time(b) for a, b in itertools.pairwise(events)]


_streams: list[Any] = []


def _side_stream() -> Any:
    # One stream for all: the allocator keeps memory by stream.
    if not _streams:
        _streams.append(_cuda.Stream())
    return _streams[0]


class RunnableKernel:
    """A kernel with made-up inputs and several sets of weights.

    Raises:
        KernelError: of such a type none can be made, or it does not run.
    """

    def __init__(
        self, kernel: Kernel, device: str = "cuda", weight_bytes: int = _WEIGHT_BYTES
    ) -> None:
        self.kernel, self.device = kernel, device
        self.call = operator(kernel.op_type)
        self.attributes: dict[str, Any] = {name: value for name, _, value in kernel.attributes}
        self.generator = torch.Generator(device).manual_seed(0)
        fixed = sum(spec.bytes for spec in kernel.inputs if spec is not None and spec.constant)
        sets = int(max(2, min(_MOST_WEIGHTS, weight_bytes // max(fixed, 1)))) if fixed else 1
        try:
            self.weights = [self._constants() for _ in range(sets)]
            self.inputs = [self._inputs()]
        except (KeyError, RuntimeError, TypeError) as error:
            raise KernelError(f"{kernel.describe()} cannot be made: {error}") from error

    def _constants(self) -> dict[int, Tensor]:
        found = {}
        for position, spec in enumerate(self.kernel.inputs):
            if spec is not None and spec.constant:
                tensor = self._constant(spec, position)
                found[position] = place(self.kernel.op_type, position, tensor, self.device)
        return found

    def _constant(self, spec: TensorSpec, position: int) -> Tensor:
        dtype = DTYPES[spec.dtype]
        if spec.values is not None:
            return torch.tensor(spec.values, dtype=dtype).reshape(spec.shape)
        if on_host(self.kernel.op_type, position, dtype, spec.elements):
            return torch.full(spec.shape, 0.5, dtype=dtype)
        if dtype.is_floating_point and len(spec.shape) < 2:
            # Positive, so that it will do as a scale or a variance.
            return torch.full(spec.shape, 0.02, dtype=dtype, device=self.device)
        tensor = made_up(dtype, spec.shape, self.device, self.generator)
        return tensor.mul_(0.05) if dtype in (torch.float32, torch.bfloat16) else tensor

    def _inputs(self) -> dict[int, Tensor]:
        layouts = list(self.attributes.get("layouts", ()))
        found: dict[int, Tensor] = {}
        for position, spec in enumerate(self.kernel.inputs):
            if spec is not None and not spec.constant:
                layout = layouts.pop(0) if layouts else ""
                dtype = DTYPES[spec.dtype]
                found[position] = made_up(dtype, spec.shape, self.device, self.generator, layout)
        return found

    @property
    def input_bytes(self) -> float:
        return sum(s.bytes for s in self.kernel.inputs if s is not None and not s.constant)

    def more_inputs(self, copies: int) -> bool:
        """Makes inputs enough to leave the cache; False where the copies' own fit into it."""
        if copies * self.input_bytes < _WARM_BYTES:
            return False
        wanted = min(copies, max(2, math.ceil(_CACHE_BYTES / self.input_bytes)))
        while len(self.inputs) < wanted:
            self.inputs.append(self._inputs())
        return True

    def once(self, copy: int = 0, cold: bool = False) -> Any:
        """Launches one copy."""
        given = {
            **self.weights[copy % len(self.weights)],
            **self.inputs[copy % len(self.inputs) if cold else 0],
        }
        return self.call(
            self.attributes, [given.get(position) for position in range(len(self.kernel.inputs))]
        )

    def copies(self, count: int, cold: bool = False) -> Callable[[], None]:
        def work() -> None:
            for copy in range(count):
                self.once(copy, cold)

        return work


class KernelTimer:
    """One kernel's graphs and the ratios to the reference measured so far.

    Raises:
        KernelError: the kernel does not run, or it launches nothing.
    """

    def __init__(self, kernel: Kernel, pool: Any = None, cold: bool = True) -> None:
        self.kernel = kernel
        try:
            self.runnable = RunnableKernel(kernel)
            self.few = Replay(self.runnable.copies(_PROBE_COPIES), pool)
            each = max(min(self.few.us(3) for _ in range(2)) / _PROBE_COPIES, 0.05)
            few = int(min(_MOST_COPIES // 4, max(2, math.ceil(_LEAST_FEW_US / each))))
            self.few = Replay(self.runnable.copies(few), pool)
            many = int(min(_MOST_COPIES, max(3 * few, _MANY_US / each)))
            self.many = Replay(self.runnable.copies(many), pool)
            self.cold = None
            if cold and self.runnable.more_inputs(many):
                self.cold = Replay(self.runnable.copies(many, cold=True), pool)
        except KernelError:
            raise
        except Exception as error:
            raise KernelError(
                f"{kernel.describe()} does not run alone: {str(error).splitlines()[0]}"
            ) from error
        self.few_copies, self.many_copies = few, many
        self.few_repeats = max(3, math.ceil(_TIMED_US / 3 / (few * each)))
        self.many_repeats = max(2, math.ceil(_TIMED_US / (many * each)))
        self.ratios: list[float] = []
        self.cold_ratios: list[float] = []

    def slopes(self) -> tuple[float, float]:
        """Microseconds of one copy, warm and cold, in one round."""
        few = self.few.us(self.few_repeats)
        many = self.many.us(self.many_repeats)
        warm = (many - few) / (self.many_copies - self.few_copies)
        if self.cold is None:
            return warm, warm
        # The fixed cost of a replay is the same for both.
        return warm, warm + (self.cold.us(self.many_repeats) - many) / self.many_copies

    def row(self, reference_us: float) -> Row:
        """The row where the reference takes so many microseconds.

        Raises:
            KernelError: it takes no time that could be told from nothing.
        """
        middle, low, high = (value * reference_us for value in median_ci95(self.ratios))
        if middle <= _LEAST_US:
            raise KernelError(f"{self.kernel.describe()}: too short to be timed")
        p10, p90 = (max(0.0, float(np.quantile(self.ratios, q))) * reference_us for q in (0.1, 0.9))
        return Row(
            kernel=self.kernel,
            count=len(self.ratios),
            median_us=middle,
            p10_us=p10,
            p90_us=p90,
            ci95=(low, high),
            time=now(),
            reference_us=reference_us,
            run_reference_us=reference_us,
            cold_us=max(0.0, float(np.median(self.cold_ratios))) * reference_us,
        )


def reference(arithmetic: str) -> Replay:
    """The network every time is a ratio to.

    ``float``: twenty 3x3 convolutions of 64 channels on 32 maps of 28x28 in bfloat16; ``integer`` (8 bits): twenty
    int8 matrix products 256x768x3072. Never change them: rows measured against others cannot share a table.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    if arithmetic == "integer":
        x = made_up(torch.int8, (256, 768), "cuda", generator)
        weight = made_up(torch.int8, (3072, 768), "cuda", generator)
        return Replay(lambda: _repeat(lambda: torch._int_mm(x, weight.t())))
    x = made_up(torch.bfloat16, (32, 64, 28, 28), "cuda", generator)
    weight = made_up(torch.bfloat16, (64, 64, 3, 3), "cuda", generator)
    return Replay(lambda: _repeat(lambda: torch.conv2d(x, weight, padding=1)))


def _repeat(call: Callable[[], Any]) -> None:
    for _ in range(_REFERENCE_CALLS):
        call()


def time_rounds(timers: Sequence[KernelTimer], beside: Replay, rounds: int) -> list[float]:
    """Adds one ratio a round to each timer; gives the reference's times, microseconds.

    The reference runs between every two kernels; a slope is taken relative to the four runs of it nearest in time.
    """
    times: list[float] = []
    for _ in range(rounds):
        near, slopes = [beside.us(3)], []
        for timer in timers:
            slopes.append(timer.slopes())
            near.append(beside.us(3))
        for index, (timer, (warm, cold)) in enumerate(zip(timers, slopes)):
            around = float(np.median(near[max(0, index - 1) : index + 3]))
            timer.ratios.append(warm / around)
            timer.cold_ratios.append(cold / around)
        times += near
    return times


def time_graphs(graphs: Mapping[str, Replay], seconds: float) -> Measurements:
    """Times whole networks round robin, ``seconds`` for all of them together."""
    beside = reference("float")
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    rounds: dict[str, list[float]] = {name: [] for name in graphs}
    references: list[float] = []
    end = time.monotonic() + seconds
    while len(references) < _LEAST_ROUNDS or time.monotonic() < end:
        near = [beside.us(3)]
        for name, graph in graphs.items():
            timed = [us / 1e3 for us in graph.samples_us(_SAMPLES)]
            samples[name] += timed
            rounds[name].append(float(np.median(timed)))
            near.append(beside.us(3))
        references.append(float(np.median(near)))
    return Measurements(
        latencies={name: _latency(samples[name], rounds[name]) for name in graphs},
        rounds={name: tuple(found) for name, found in rounds.items()},
        reference_us=float(np.median(references)),
        reference_rounds=tuple(us / 1e3 for us in references),
        time=now(),
    )


def _latency(samples: Sequence[float], rounds: Sequence[float]) -> Latency:
    p10, p50, p90 = (float(np.quantile(samples, q)) for q in (0.1, 0.5, 0.9))
    middle, low, high = median_ci95(rounds)
    # The interval's width comes from the rounds, its place from the p50 over all samples.
    return Latency(p50, p90, p10, len(samples), (p50 + low - middle, p50 + high - middle))
