"""What timing whole networks gives.

Absolute times on a shared machine move by 30 % within a minute. Models that
are to be compared are therefore timed round robin in one run, and ratios are taken round by round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import MeasurementError

REFERENCE = "(reference)"
INTEGER_REFERENCE = "(integer reference)"
EMPTY = "(empty)"
Z95 = 1.959964
# A round counts as quiet where the reference beside it took at most so many times what it takes undisturbed.
QUIET_TIMES = 1.12
# What is left must be at least this share of the rounds; else the quietest of them.
QUIET_LEAST = 0.3


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


def undisturbed(times: Sequence[float]) -> float:
    """What the reference network takes where nobody disturbs it: the 10 % quantile of its times."""
    return float(np.quantile(np.asarray(times, dtype=float), 0.1))


def quiet_rounds(beside: Sequence[float], floor: float) -> NDArray[np.bool_]:
    """Rounds in which the machine was itself: bool [rounds].

    A busy neighbour on the same core slows float networks to 1.35 and integer ones to 1.65 times their time, without
    the timing thread ever waiting for a processor: ratios of the two then say nothing of the network. The reference
    network beside each round shows when that was so.

    Args:
        beside: the reference's time next to each round.
        floor: its undisturbed time.
    """
    disturbed = np.asarray(beside, dtype=float) / max(floor, 1e-12)
    quiet = disturbed <= QUIET_TIMES
    least = min(len(disturbed), max(3, int(np.ceil(QUIET_LEAST * len(disturbed)))))
    if quiet.sum() < least:
        quiet = np.zeros(len(disturbed), dtype=bool)
        quiet[np.argsort(disturbed, kind="stable")[:least]] = True
    return quiet


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
        integer_over_float: the integer reference network's time over the float one's in quiet rounds, where both
            were timed.
        fixed_us: microseconds of a run that does nothing, where that was timed too: what a run takes beside its
            kernels.
        beside: each network's neighbours: the reference's time around it in each round, ms.
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
    integer_over_float: float | None = None
    fixed_us: float | None = None
    beside: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

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
        quiet = self._quiet(name, to)
        return [a / b for a, b, kept in zip(series[name], series[to], quiet) if kept]

    def _quiet(self, name: str, to: str) -> NDArray[np.bool_]:
        """Rounds in which neither of two networks was disturbed."""
        rounds = len(self.reference_rounds)
        near = [self.beside[key] for key in (name, to) if key in self.beside]
        if not near:
            return np.ones(rounds, dtype=bool)
        floor = undisturbed([time for times in self.beside.values() for time in times])
        return quiet_rounds(np.max(np.asarray(near), axis=0).tolist(), floor)

    def ratio(self, name: str, to: str) -> float:
        """Time of ``name`` over time of ``to``: the median over quiet rounds, in which drift cancels."""
        return median_ci95(self._ratios(name, to))[0]

    def ratio_ci95(self, name: str, to: str) -> tuple[float, float]:
        """95 % interval of ``ratio``."""
        return median_ci95(self._ratios(name, to))[1:]

    def at_reference(self, name: str, reference_us: float) -> float:
        """Time in microseconds on the scale of a table whose reference takes ``reference_us``."""
        return self.ratio(name, REFERENCE) * reference_us
