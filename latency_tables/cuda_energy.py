"""Energy of kernels and networks on an NVIDIA GPU: each is repeated for a second or more under the meter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from latency_tables.cuda_bench import Replay, RunnableKernel
from latency_tables.kernel import Kernel
from latency_tables.nvml import EnergyMeter

# Its classes carry no types.
_cuda: Any = torch.cuda

_CHUNK_US = 3000.0
_PROBE_COPIES = 8
_REPLAY_US = 1500.0
_MOST_COPIES = 512


@dataclass(frozen=True, slots=True)
class Energy:
    """What one run of something takes while it is repeated.

    Attributes:
        uj: gross, microjoules.
        net_uj: without what the idle GPU takes in that time.
        us: time of one run in this loop.
        watts: gross.
        sm_mhz: clock in this loop, lower than elsewhere where the power limit holds it down.
    """

    uj: float
    net_uj: float
    us: float
    watts: float
    sm_mhz: int


class Busy:
    """Keeps a GPU at one piece of work: a call queues some replays and waits for those of the call before."""

    def __init__(self, replay: Callable[[], None], us: float) -> None:
        self.replay, self.repeats = replay, max(1, math.ceil(_CHUNK_US / us))
        self.before: Any = None

    def __call__(self) -> None:
        for _ in range(self.repeats):
            self.replay()
        event = _cuda.Event()
        event.record()
        if self.before is not None:
            self.before.synchronize()
        self.before = event


def replay_energy(
    replay: Replay, runs: int, meter: EnergyMeter, idle_watts: float, seconds: float
) -> Energy:
    """Energy of one of the ``runs`` in a replay.

    Raises:
        MeasurementError: the counter stands still.
    """
    busy = Busy(replay, max(replay.us(3), 1.0))
    span = meter.span(busy, seconds)
    mhz = meter.sm_mhz()
    torch.cuda.synchronize()
    count = span.steps * busy.repeats * runs
    us = 1e6 * span.seconds / count
    uj = 1e6 * span.joules / count
    return Energy(uj, max(0.0, uj - idle_watts * us), us, span.watts, mhz)


def kernel_energy(
    kernel: Kernel, meter: EnergyMeter, idle_watts: float, seconds: float = 1.0
) -> Energy:
    """Energy of one kernel.

    Raises:
        KernelError: the kernel does not run alone.
        MeasurementError: the counter stands still.
    """
    runnable = RunnableKernel(kernel)
    each = max(Replay(runnable.copies(_PROBE_COPIES)).us(3) / _PROBE_COPIES, 0.1)
    copies = int(max(_PROBE_COPIES, min(_MOST_COPIES, _REPLAY_US / each)))
    replay = Replay(runnable.copies(copies))
    return replay_energy(replay, copies, meter, idle_watts, seconds)
