from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latency_tables import Kernel, KernelUse, LatencyTable, Measurements, TensorSpec, parse_target
from latency_tables.errors import MeasurementError
from latency_tables.latency import Latency
from service.anchors import QUIET, TRIES, Anchor, Anchors, Sums, constants_mib, measure_quietly
from service.kernel_rows import Rows

TRUTH = Anchors(5.0, 1.1e-3, 0.9e-3, 0.02, 0.25, 0.6, 0.0, ())


def some_sums(count: int, seed: int = 0) -> list[Sums]:
    """Networks between all float and all integer, the first all float."""
    rng = np.random.default_rng(seed)
    found = [Sums(4500.0, 0.0, 6000.0, 0.0, 2.5)]
    for _ in range(count - 1):
        work, integer, mib = rng.uniform(0.2, 1.0), rng.uniform(), rng.uniform(0.2, 2.2)
        floats, integers = 4500 * work * (1 - integer), 1600 * work * integer
        grown = rng.uniform(1.3, 2.2, 2)
        found.append(Sums(floats, integers, floats * grown[0], integers * grown[1], mib))
    return found


def timed(sums: list[Sums], noise: float = 0.0, seed: int = 1) -> list[Anchor]:
    rng = np.random.default_rng(seed)
    whole = TRUTH.latency(sums[0])
    return [
        Anchor(s, 1.0 if k == 0 else TRUTH.latency(s) / whole * (1 + noise * rng.normal()))
        for k, s in enumerate(sums)
    ]


def test_finds_what_made_the_times() -> None:
    sums = some_sums(16)
    fitted = Anchors.fit(TRUTH.latency(sums[0]), timed(sums))
    unseen = some_sums(30, seed=5)[1:]
    errors = [abs(fitted.latency(s) / TRUTH.latency(s) - 1) for s in unseen]
    # Priors pull a little.
    assert max(errors) < 0.03
    assert fitted.error < 0.03
    assert fitted.coldness(2.0) > 2 * fitted.coldness(0.5)


def test_one_disturbed_run_is_shrugged_off() -> None:
    sums = some_sums(16)
    anchors = timed(sums)
    anchors[5] = replace(anchors[5], ratio=2 * anchors[5].ratio)
    fitted = Anchors.fit(TRUTH.latency(sums[0]), anchors)
    unseen = some_sums(30, seed=5)[1:]
    assert np.median([abs(fitted.latency(s) / TRUTH.latency(s) - 1) for s in unseen]) < 0.04
    # But the error says that something did not fit.
    assert fitted.error > 0.1


def test_the_error_is_that_of_networks_left_out() -> None:
    sums = some_sums(16)
    whole = TRUTH.latency(sums[0])
    noisy = Anchors.fit(whole, timed(sums, noise=0.06))
    assert 0.03 < noisy.error < 0.12
    assert Anchors.fit(whole, timed(sums)).error < noisy.error


def test_a_finalist_pulls_prices_towards_itself() -> None:
    sums = some_sums(16)
    fitted = Anchors.fit(TRUTH.latency(sums[0]), timed(sums))
    there = sums[3]
    ratio = 1.2 * fitted.latency(there) / fitted.latency_ms
    again = fitted.with_finalist(there, ratio)
    assert fitted.latency(there) < again.latency(there) <= 1.2 * fitted.latency(there)
    assert len(again.timed) == 17


@pytest.mark.parametrize("seed", range(5))
def test_a_finalist_is_no_outlier_however_noisy_the_others(seed: int) -> None:
    sums = some_sums(16, seed)
    whole = TRUTH.latency(sums[0])
    fitted = Anchors.fit(whole, timed(sums, noise=0.15, seed=seed))
    ended_at = some_sums(20, seed=seed + 50)[-1]
    predicted = fitted.latency(ended_at)
    for factor in (0.7, 1.5):
        again = fitted.with_finalist(ended_at, factor * predicted / whole).latency(ended_at)
        assert abs(np.log(again / (factor * predicted))) < 0.5 * abs(np.log(factor))


def test_a_shift_moves_integers_alone() -> None:
    sums = some_sums(16)
    fitted = Anchors.fit(TRUTH.latency(sums[0]), timed(sums), 0.05)
    moved = fitted.at_shift(0.15)
    floats = Sums(1000.0, 0.0, 1200.0, 0.0, 0.5)
    integers = Sums(0.0, 1000.0, 0.0, 1200.0, 0.5)
    assert moved.latency(floats) == pytest.approx(fitted.latency(floats))
    assert moved.latency(integers) == pytest.approx(fitted.latency(integers) * np.exp(0.1))
    assert moved.at_shift(0.05).latency(integers) == pytest.approx(fitted.latency(integers))


def test_where_only_the_uncompressed_network_was_timed_the_shift_tells_of_integers() -> None:
    sums = some_sums(3)
    alone = timed(sums)[:1]
    whole = TRUTH.latency(sums[0])
    integers = Sums(0.0, 1600.0, 0.0, 2000.0, 0.5)
    cheap, dear = (Anchors.fit(whole, alone, s).latency(integers) for s in (-0.1, 0.1))
    assert dear == pytest.approx(cheap * np.exp(0.2))


def test_small_networks_are_mostly_what_a_run_costs() -> None:
    fixed = 0.4
    sums = some_sums(16)
    whole = TRUTH.latency(sums[0]) + fixed
    anchors = [Anchor(s, (TRUTH.latency(s) + fixed) / whole) for s in sums]
    fitted = Anchors.fit(whole, anchors, fixed_ms=fixed)
    tiny = Sums(60.0, 40.0, 90.0, 70.0, 0.02)
    wanted = TRUTH.latency(tiny) + fixed
    assert fitted.latency(tiny) == pytest.approx(wanted, rel=0.02)
    assert Anchors.fit(whole, anchors).latency(tiny) < 0.6 * wanted
    rows = Rows(LatencyTable.empty(parse_target("x86-ort")), {})
    _, constant = fitted.linear(tiny, rows)
    assert constant == pytest.approx(fixed, rel=0.05)
    assert fitted.with_finalist(tiny, wanted / whole).fixed_ms == fixed


def test_floats_alone() -> None:
    sums = [replace(s, integer_us=0.0, integer_cold_us=0.0) for s in some_sums(8)]
    fitted = Anchors.fit(TRUTH.latency(sums[0]), timed(sums))
    assert fitted.latency(sums[2]) == pytest.approx(TRUTH.latency(sums[2]), rel=0.03)


def test_nothing_to_price_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no kernel"):
        Anchors.fit(1.0, [Anchor(Sums(0.0, 0.0, 0.0, 0.0, 1.0), 1.0)])


def conv(channels: int) -> Kernel:
    weight = TensorSpec("float32", (channels, channels, 3, 3), True)
    image = TensorSpec("float32", (1, channels, 8, 8))
    return Kernel("", "Conv", 11, (), (image, weight), (image,))


def test_linear_prices_are_exact_at_the_point_and_first_order_around_it() -> None:
    kernels = {c: conv(c) for c in (64, 128, 160)}
    rows = Rows(
        LatencyTable.empty(parse_target("x86-ort")),
        {kernels[64].key: (30, 40), kernels[128].key: (90, 140), kernels[160].key: (140, 230)},
    )

    def network(*counts: int) -> list[KernelUse]:
        return [KernelUse(k, "", "", c) for k, c in zip(kernels.values(), counts)]

    at = Sums.of(network(5, 2, 1), rows)
    assert at.weights_mib == pytest.approx(
        5 * constants_mib(kernels[64])
        + 2 * constants_mib(kernels[128])
        + constants_mib(kernels[160])
    )
    cost, constant = TRUTH.linear(at, rows)

    def linear(*counts: int) -> float:
        return constant + sum(c * cost(k) for k, c in zip(kernels.values(), counts))

    assert linear(5, 2, 1) == pytest.approx(TRUTH.latency(at))
    near = Sums.of(network(6, 2, 1), rows)
    assert linear(6, 2, 1) == pytest.approx(TRUTH.latency(near), rel=3e-3)
    # Second order: twice as far is about four times as wrong, not twice.
    off = [
        abs(linear(5 + n, 2, 1) - TRUTH.latency(Sums.of(network(5 + n, 2, 1), rows)))
        for n in (1, 2)
    ]
    assert off[1] == pytest.approx(4 * off[0], rel=0.2)


def test_where_coldness_is_at_its_most_weights_cost_nothing_more() -> None:
    kernel = conv(128)
    rows = Rows(LatencyTable.empty(parse_target("x86-ort")), {kernel.key: (90, 140)})
    cost, constant = TRUTH.linear(Sums(500.0, 0.0, 900.0, 0.0, 50.0), rows)
    assert constant == 0.0
    assert cost(kernel) == pytest.approx(1.1e-3 * (90 + 0.6 * 50))


class Restless:
    """A target whose runs wait as told; timing itself is not what is tested."""

    def __init__(self, *waits: float) -> None:
        self.waits = list(waits)
        self.runs = 0

    def measure(self, models: dict[str, Path], seconds: float = 2.0) -> Measurements:
        waited = self.waits[self.runs]
        self.runs += 1
        latency = Latency(1.0, 1.0, 1.0, 1, (1.0, 1.0))
        return Measurements(dict.fromkeys(models, latency), {}, 1.0, (1.0,), "", waited)


@pytest.mark.parametrize(
    ("waits", "runs", "kept"),
    [((0.0,), 1, 0.0), ((0.4, 0.01), 2, 0.01), ((0.4, 0.2, 0.3), TRIES, 0.2)],
)
def test_a_disturbed_measurement_is_done_again(
    waits: tuple[float, ...], runs: int, kept: float
) -> None:
    target = Restless(*waits)
    found = measure_quietly(target, {"it": Path("it")}, seconds=0.1)  # type: ignore[arg-type]
    assert target.runs == runs
    assert found.waited == kept
    assert kept <= QUIET or runs == TRIES
