"""Timing whole networks round robin in one run, each beside a reference network."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from latency_tables.latency import (
    EMPTY,
    INTEGER_REFERENCE,
    Latency,
    Measurements,
    Waiting,
    median_ci95,
    now,
    quiet_rounds,
    undisturbed,
)

_LEAST_ROUNDS = 7
# Short rounds: whatever disturbs the machine should disturb all networks of a round alike.
_ROUND_SECONDS = 0.004
_REFERENCE_REPEATS = 3


class TimedNetwork(Protocol):
    """A loaded network that can be run and timed."""

    def once(self) -> float:
        """Seconds of one run."""

    def samples(self, repeats: int) -> list[float]:
        """Seconds of ``repeats`` runs after one that is not counted."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keeps Python's collector out of the timings."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def time_networks(
    networks: Mapping[str, TimedNetwork],
    beside: TimedNetwork,
    seconds: float,
    integers: TimedNetwork,
    empty: TimedNetwork | None = None,
) -> Measurements:
    """Times networks round robin; the caller holds the host's token and has pinned the thread.

    Args:
        beside: the float reference, which runs between every two networks.
        seconds: for each network.
        integers: the integer reference, timed as the networks are.
        empty: a network that does nothing, where the runtime's fixed cost is to be known.
    """
    timed = {**networks, INTEGER_REFERENCE: integers}
    if empty is not None:
        timed[EMPTY] = empty
    samples: dict[str, list[float]] = {name: [] for name in timed}
    rounds: dict[str, list[float]] = {name: [] for name in timed}
    near: dict[str, list[float]] = {name: [] for name in timed}
    references: list[float] = []
    with no_garbage_collection(), Waiting() as waiting:
        repeats = {}
        for name, network in timed.items():
            network.once()
            best = min(network.once() for _ in range(3))
            repeats[name] = int(max(1, min(50, _ROUND_SECONDS / max(best, 1e-6))))
        end = time.monotonic() + seconds * len(networks)
        while len(references) < _LEAST_ROUNDS or time.monotonic() < end:
            around = beside.samples(_REFERENCE_REPEATS)
            every = list(around)
            for name, network in timed.items():
                found = network.samples(repeats[name])
                samples[name] += found
                rounds[name].append(float(np.median(found)))
                after = beside.samples(_REFERENCE_REPEATS)
                near[name].append(float(np.median(around + after)))
                around = after
                every += after
            references.append(float(np.median(every)))
    reference_us = 1e6 * float(np.median(references))
    return Measurements(
        latencies={name: _latency(samples[name], rounds[name]) for name in networks},
        rounds={name: tuple(1e3 * value for value in rounds[name]) for name in networks},
        reference_us=reference_us,
        reference_rounds=tuple(1e3 * value for value in references),
        time=now(),
        waited=waiting.share,
        integer_over_float=_over_reference(INTEGER_REFERENCE, rounds, near),
        fixed_us=None if empty is None else _over_reference(EMPTY, rounds, near) * reference_us,
        beside={name: tuple(1e3 * value for value in near[name]) for name in networks},
    )


def _over_reference(
    name: str, rounds: Mapping[str, Sequence[float]], near: Mapping[str, Sequence[float]]
) -> float:
    """Time of a network over the float reference's beside it, where the machine was undisturbed."""
    floor = undisturbed([time for times in near.values() for time in times])
    beside = np.asarray(near[name])
    quiet = quiet_rounds(beside.tolist(), floor)
    return float(np.median(np.asarray(rounds[name])[quiet] / beside[quiet]))


def _latency(samples: list[float], rounds: list[float]) -> Latency:
    p10, p50, p90 = (1e3 * float(np.quantile(samples, q)) for q in (0.1, 0.5, 0.9))
    middle, low, high = median_ci95(rounds)
    # The interval's width comes from the rounds, its place from the p50 over all samples.
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p10_ms=p10,
        count=len(samples),
        ci95_ms=(p50 + 1e3 * (low - middle), p50 + 1e3 * (high - middle)),
    )
