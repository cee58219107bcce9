from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from latency_fakes import conv_kernel, made_up_row

from latency_tables import (
    HostFingerprint,
    Kernel,
    LatencyTable,
    Row,
    TableError,
    TensorSpec,
    shipped,
)
from latency_tables.energy_model import (
    EnergyModel,
    energy_error,
    kind_of,
    measured_rows,
    with_energies,
)

IDLE = 120.0


def relu(channels: int) -> Kernel:
    spec = TensorSpec("float32", (32, channels, 28, 28))
    return Kernel("torch", "Relu", 1, (), (spec,), (spec,))


def with_energy(row: Row, watts: float) -> Row:
    net = watts * row.median_us
    gross = net + IDLE * row.median_us
    return replace(row, energy_uj=gross, energy_net_uj=net, energy_provenance="measured")


def lawful_rows(count: int = 40, noise: float = 0.0) -> list[Row]:
    """Convolutions and activations whose power follows the model's law, with made-up numbers."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(count):
        us = float(np.exp(generator.uniform(1, 4)))
        channels = int(generator.integers(16, 256))
        if i % 2:
            row = made_up_row(conv_kernel(channels, channels, 28), us)
            rate = row.kernel.macs / us
            watts = 0.05 * rate**0.4 * (row.kernel.moved_bytes / us) ** 0.2 * us**0.3
        else:
            row = made_up_row(relu(channels), us)
            watts = 0.1 * (row.kernel.moved_bytes / us) ** 0.6
        rows.append(with_energy(row, watts * float(np.exp(generator.normal(0, noise)))))
    return rows


def table_of(rows: list[Row]) -> LatencyTable:
    host = HostFingerprint("a GPU", (), 1, "torch 0", "an OS")
    empty = LatencyTable("cuda-torch?batch=1", "cuda", host, "2026-01-01T00:00:00+00:00")
    return empty.with_rows(rows)


def test_kinds() -> None:
    assert kind_of(conv_kernel()) == "convolution"
    assert kind_of(conv_kernel(16, 16, group=16)) == "depthwise"
    assert kind_of(conv_kernel(32, 32, group=2)) == "convolution"
    assert kind_of(replace(conv_kernel(), op_type="MaxPool")) == "pooling"
    assert kind_of(relu(8)) == "elementwise"
    assert kind_of(replace(relu(8), op_type="MatMulInteger")) == "product"


def test_finds_a_law_that_holds() -> None:
    rows = lawful_rows()
    model = EnergyModel.fit(rows)
    assert model.idle_w == pytest.approx(IDLE)
    fresh = made_up_row(conv_kernel(77, 77, 28), 20.0)
    rate, bytes_ = fresh.kernel.macs / 20.0, fresh.kernel.moved_bytes / 20.0
    watts = min(0.05 * rate**0.4 * bytes_**0.2 * 20.0**0.3, model.most_w)
    assert model.net_uj(fresh) == pytest.approx(watts * 20.0, rel=1e-6)


def test_held_out_error_is_that_of_the_noise() -> None:
    exact = energy_error(lawful_rows())
    # The cap is told from the rows too, so the one with the most power is off when it is left out.
    assert exact.median < 1e-9
    noisy = energy_error(lawful_rows(80, noise=0.2))
    assert (noisy.count, noisy.alone) == (80, 0)
    assert 0.1 < noisy.mape < 0.3
    assert noisy.median <= noisy.p90 <= noisy.worst
    assert abs(noisy.total) < 0.15


def test_held_out_means_left_out() -> None:
    rows = lawful_rows()
    liar = with_energy(rows[7], 2 * (rows[7].energy_net_uj or 0.0) / rows[7].median_us)
    error = energy_error([*rows[:7], liar, *rows[8:]])
    assert error.worst > 0.4


def test_completes_rows_and_says_which() -> None:
    rows = lawful_rows()
    bare = made_up_row(conv_kernel(99, 99, 28), 15.0)
    other_type = replace(relu(8), inputs=(TensorSpec("float64", (1, 8)),))
    unknown = made_up_row(other_type, 3.0)
    full = with_energies(table_of([*rows, bare, unknown]))
    told = full.rows[bare.kernel.key]
    assert told.energy_provenance == "modelled"
    assert told.provenance == "measured"
    assert told.median_us == bare.median_us
    assert told.energy_uj is not None and told.energy_net_uj is not None
    assert told.energy_uj - told.energy_net_uj == pytest.approx(IDLE * 15.0)
    # Nothing of its kind and type was measured: no number is made up.
    assert full.rows[unknown.kernel.key].energy_uj is None
    assert full.rows[rows[3].kernel.key].energy_provenance == "measured"
    # A modelled energy teaches nothing.
    assert len(measured_rows(full.rows.values())) == len(
        measured_rows(table_of(rows).rows.values())
    )


def test_power_is_never_beyond_what_was_measured() -> None:
    rows = lawful_rows()
    model = EnergyModel.fit(rows)
    huge = made_up_row(conv_kernel(2048, 2048, 28), 1.0)
    assert model.net_uj(huge) == pytest.approx(model.most_w * 1.0)


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_to_learn_from(count: int) -> None:
    with pytest.raises(TableError, match=f"{count} kernels with a measured energy are too few"):
        EnergyModel.fit(lawful_rows()[:count])


def test_held_out_error_on_the_h100() -> None:
    rows = shipped.load("cuda-torch-h100-batch32").rows.values()
    error = energy_error(rows)
    assert error.count > 200
    assert error.alone == 0
    assert error.mape < 0.2
    assert error.median < 0.13
    assert error.p90 < 0.45
    assert abs(error.total) < 0.1


def test_mean_power_of_a_kind_would_do_worse() -> None:
    rows = measured_rows(shipped.load("cuda-torch-h100-batch32").rows.values())
    watts = [(row.energy_net_uj or 0.0) / row.median_us for row in rows]
    kinds = [kind_of(row.kernel) for row in rows]
    means = {kind: np.mean([w for w, k in zip(watts, kinds) if k == kind]) for kind in set(kinds)}
    plain = np.mean([abs(means[kind] / w - 1) for w, kind in zip(watts, kinds)])
    assert plain > 2 * energy_error(rows).mape


def test_every_kernel_of_the_h100_gets_an_energy() -> None:
    table = with_energies(shipped.load("cuda-torch-h100-batch32"))
    provenances = {row.energy_provenance for row in table.rows.values()}
    assert provenances == {"measured", "modelled"}
    for row in table.rows.values():
        assert row.energy_uj is not None and row.energy_net_uj is not None
        assert 0 < row.energy_net_uj < row.energy_uj
        assert row.energy_net_uj / row.median_us < 700, row.kernel.describe()
