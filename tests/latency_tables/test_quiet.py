"""Rounds in which a stranger disturbed the machine do not decide what a network costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables import Measurements
from latency_tables.latency import (
    QUIET_LEAST,
    QUIET_TIMES,
    REFERENCE,
    Latency,
    quiet_rounds,
    undisturbed,
)

LATENCY = Latency(1.0, 1.0, 1.0, 10, (1.0, 1.0))


def run(disturbed: np.ndarray, beside: bool) -> Measurements:
    """A float network that takes 2 ms and an integer one that takes 1 ms where nobody is on the same core."""
    drift = np.linspace(1.0, 1.2, len(disturbed))
    float_times = drift * np.where(disturbed, 1.35, 1.0)
    integer_times = drift * np.where(disturbed, 1.65, 1.0)
    near = tuple(0.1 * t for t in np.where(disturbed, 1.35, 1.0))
    return Measurements(
        latencies={"float": LATENCY, "integer": LATENCY},
        rounds={"float": tuple(2 * float_times), "integer": tuple(integer_times)},
        reference_us=100.0,
        reference_rounds=near,
        time="",
        beside={"float": near, "integer": near} if beside else {},
    )


def test_a_neighbour_that_came_for_most_of_the_run_does_not_change_the_ratio() -> None:
    disturbed = np.arange(40) >= 15
    measured = run(disturbed, beside=True)
    assert measured.ratio("integer", "float") == pytest.approx(0.5)
    low, high = measured.ratio_ci95("integer", "float")
    assert low <= 0.5 <= high
    # Without the reference beside it, the neighbour decides.
    assert run(disturbed, beside=False).ratio("integer", "float") == pytest.approx(
        0.5 * 1.65 / 1.35
    )


def test_a_run_disturbed_throughout_is_what_it_is() -> None:
    measured = run(np.ones(20, dtype=bool), beside=True)
    assert measured.ratio("integer", "float") == pytest.approx(0.5 * 1.65 / 1.35)


def test_the_reference_itself_can_be_compared_with() -> None:
    measured = run(np.arange(40) >= 15, beside=True)
    assert measured.ratio("float", REFERENCE) == pytest.approx(
        np.median(2 * np.linspace(1.0, 1.2, 40)[:15]) / 0.1
    )


@given(st.lists(st.floats(0.1, 100.0), min_size=3, max_size=60))
def test_enough_rounds_always_stay_and_they_are_the_quietest(times: list[float]) -> None:
    floor = undisturbed(times)
    quiet = quiet_rounds(times, floor)
    assert quiet.sum() >= min(len(times), max(3, np.ceil(QUIET_LEAST * len(times))))
    kept, left = np.array(times)[quiet], np.array(times)[~quiet]
    assert not len(left) or kept.max() <= left.min()
    assert all(quiet[np.array(times) <= QUIET_TIMES * floor])
