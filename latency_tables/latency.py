"""What timing whole networks gives.

Absolute times on a shared machine move by 30 % within a minute. Models that
are to be compared are therefore timed round robin in one run, and ratios are taken round by round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from latency_tables.errors import MeasurementError

REFERENCE = "(reference)"
Z95 = 1.959964


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Waiting:
    """Watches how long this thread waits for a processor.

    The host's token keeps our own evaluators away, but not strangers: this tells when they were
    there. (Shared caches and hyper-threads disturb without showing here.)
    """

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Waiting:
        self.wall -= time.perf_counter()
        self.cpu -= time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.thread_time()

    @property
    def share(self) -> float:
        """Share of the wall time without a processor, 0 to 1."""
        return min(1.0, max(0.0, 1 - self.cpu / self.wall)) if self.wall > 0 else 0.0


def median_ci95(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval from independent samples, outliers or not.

    The median's standard error is 1.2533 sigma / sqrt(n) (normal samples); sigma is 1.4826 times
    the median absolute deviation, so a round in which the machine was disturbed does not count.
    """
    values = np.asarray(samples, dtype=float)
    middle = float(np.median(values))
    if len(values) < 2:
        return middle, middle, middle
    sigma = 1.4826 * float(np.median(np.abs(values - middle)))
    half = Z95 * 1.2533 * sigma / math.sqrt(len(values))
    return middle, middle - half, middle + half


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one whole inference (one batch), milliseconds.

    Attributes:
        p50_ms, p90_ms, p10_ms: quantiles over every timed inference.
        count: timed inferences.
        ci95_ms: 95 % interval of the p50, from the medians of the rounds.
    """

    p50_ms: float
    p90_ms: float
    p10_ms: float
    count: int
    ci95_ms: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measurements(Mapping[str, Latency]):
    """Latencies of several networks timed in one interleaved run, by name.

    Attributes:
        latencies: one a network.
        rounds: each network's median in each round, ms, the same number of rounds for all.
        reference_us: the reference network's median time in the run, microseconds, and
        reference_rounds: its medians by round, ms; the unit a table's rows are relative to.
        time: when the run ended, UTC.
        waited: share of the run in which the timing thread did not have a processor, 0 to 1. Much
            more than 0 means that something else was running: measure again.
    """

    latencies: Mapping[str, Latency]
    rounds: Mapping[str, tuple[float, ...]]
    reference_us: float
    reference_rounds: tuple[float, ...]
    time: str
    waited: float = 0.0

    def __getitem__(self, name: str) -> Latency:
        return self.latencies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.latencies)

    def __len__(self) -> int:
        return len(self.latencies)

    def _ratios(self, name: str, to: str) -> list[float]:
        series = {**self.rounds, REFERENCE: self.reference_rounds}
        for key in (name, to):
            if key not in series:
                raise MeasurementError(f"{key!r} was not measured; measured: {sorted(self.rounds)}")
        return [a / b for a, b in zip(series[name], series[to])]

    def ratio(self, name: str, to: str) -> float:
        """Time of ``name`` over time of ``to``: the median over rounds, in which drift cancels."""
        return median_ci95(self._ratios(name, to))[0]

    def ratio_ci95(self, name: str, to: str) -> tuple[float, float]:
        """95 % interval of ``ratio``."""
        return median_ci95(self._ratios(name, to))[1:]

    def at_reference(self, name: str, reference_us: float) -> float:
        """Time in microseconds on the scale of a table whose reference takes ``reference_us``."""
        return self.ratio(name, REFERENCE) * reference_us
