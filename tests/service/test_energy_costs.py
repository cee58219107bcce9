"""Energies of networks from those of kernels, or from networks under a meter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latency_tables import (
    Catalog,
    HostFingerprint,
    Kernel,
    KernelUse,
    LatencyTable,
    MeasurementError,
    Row,
    TableError,
    TensorSpec,
    parse_target,
)
from latency_tables.energy import NetworkEnergy
from latency_tables.table_target import TableTarget
from service.anchors import Sums
from service.energy_costs import KernelEnergies, PowerModel
from service.kernel_rows import MOST_UNKNOWN, Rows, require_known
from service.provenance import graph_note
from service.table_times import TableTimes

HOST = HostFingerprint("a device elsewhere", (), 1, "runtime 1", "an OS")


def conv(channels: int, dtype: str = "float32", size: int = 8) -> Kernel:
    weight = TensorSpec(dtype, (channels, channels, 3, 3), True)
    image = TensorSpec(dtype, (1, channels, size, size))
    return Kernel("", "Conv", 11, (), (image, weight), (image,))


def row(kernel: Kernel, us: float, energy: float | None = None, cold: float | None = None) -> Row:
    return Row(
        kernel, 7, us, us, us, (us, us), "2026-01-01T00:00:00+00:00", 1.0, 1.0,
        cold_us=cold,
        energy_uj=None if energy is None else 2 * energy,
        energy_net_uj=energy,
        energy_provenance=None if energy is None else "measured",
    )  # fmt: skip


def table_target(rows: list[Row]) -> TableTarget:
    table = LatencyTable("x86-ort?threads=1&batch=1", "x86", HOST, "2026-01-01T00:00:00+00:00")
    return TableTarget("board", parse_target("x86-ort"), table.with_rows(rows))


def uses(*pairs: tuple[Kernel, int]) -> list[KernelUse]:
    return [KernelUse(kernel, "", "", count) for kernel, count in pairs]


def test_a_networks_energy_is_the_sum_of_its_kernels() -> None:
    small, large = conv(16), conv(64)
    target = table_target([row(small, 10, 300.0), row(large, 40, 2000.0)])
    rows = Rows(target.table, {})
    network = uses((small, 3), (large, 2))
    costs = KernelEnergies.of_target(target, [network], rows)
    assert costs is not None
    energy = costs.of(network)
    assert energy.net_mj == pytest.approx(1e-3 * (3 * 300 + 2 * 2000))
    assert energy.gross_mj == pytest.approx(2 * energy.net_mj)
    assert energy.provenance == "modelled" and "100 % measured" in energy.source
    assert energy.to_json()["idle"] == pytest.approx(energy.net_mj)
    assert costs.error == target.facts.energy_error


def test_energies_that_are_missing_are_not_made_up() -> None:
    small, large = conv(16), conv(64)
    rows = [row(small, 10, 300.0), row(large, 40)]
    target = table_target(rows)
    assert (
        KernelEnergies.of_target(target, [uses((small, 1), (large, 1))], Rows(target.table, {}))
        is None
    )
    # What takes next to no time may be without.
    few = uses((small, 1000), (large, 1))
    costs = KernelEnergies.of_target(target, [few], Rows(target.table, {}))
    assert costs is not None and costs.net_uj(large) == 0.0


def test_pinned_energies_come_first() -> None:
    kernel = conv(16)
    target = table_target([row(kernel, 10, 300.0)])
    rows = Rows(target.table, {kernel.key: (20.0, 20.0)}, {kernel.key: (7.0, 9.0)})
    assert rows.us(kernel) == 20.0 and rows.energy(kernel) == (7.0, 9.0)
    assert Rows(target.table, {}, {kernel.key: None}).energy(kernel) is None


def test_power_is_told_from_metered_networks() -> None:
    floats, integers = conv(32), conv(32, "uint8")
    target = table_target([row(floats, 100.0), row(integers, 40.0)])
    rows = Rows(target.table, {})
    rng = np.random.default_rng(0)
    networks, energies = {}, {}
    for k in range(10):
        counts = rng.integers(1, 20, 2)
        networks[str(k)] = uses((floats, int(counts[0])), (integers, int(counts[1])))
        ms = 0.1 * counts[0], 0.04 * counts[1]
        net = (12.0 * ms[0] + 20.0 * ms[1]) * (1 + 0.01 * rng.normal())
        energies[str(k)] = NetworkEnergy(net + 3.0, net, float(sum(ms)), 5.0, "RAPL package-0")
    model = PowerModel.fit(networks, energies, rows)
    assert (model.float_w, model.integer_w) == pytest.approx((12.0, 20.0), rel=0.05)
    assert 0.0 < model.error < 0.05 and model.idle_w == 5.0
    assert model.of(networks["3"]).net_mj == pytest.approx(energies["3"].net_mj, rel=0.05)
    told = model.of(networks["3"])
    assert told.provenance == "modelled" and told.gross_mj is None and "10 networks" in told.source
    assert model.to_json()["kind"] == "power"


def test_power_where_nothing_runs_in_integers() -> None:
    kernel = conv(32)
    rows = Rows(table_target([row(kernel, 100.0)]).table, {})
    networks = {str(n): uses((kernel, n)) for n in (1, 2, 4, 8)}
    energies = {n: NetworkEnergy(int(n) * 2.0, int(n) * 1.0, 0.1, 5.0, "RAPL") for n in networks}
    model = PowerModel.fit(networks, energies, rows)
    assert model.integer_w == model.float_w == pytest.approx(10.0)
    with pytest.raises(MeasurementError, match="no more energy than the idle device"):
        PowerModel.fit(networks, {n: replace(e, net_mj=0.0) for n, e in energies.items()}, rows)


def test_networks_of_a_table_are_sums_with_the_tables_cold_share() -> None:
    small, large = conv(16), conv(64)
    target = table_target([row(small, 10.0, cold=14.0), row(large, 40.0, cold=80.0)])
    rows = Rows(target.table, {})
    network = uses((small, 3), (large, 2))
    times = TableTimes.of(target, [network], rows)
    share = target.facts.cold_share
    alone, cold = 3 * 10 + 2 * 40, 3 * 14 + 2 * 80
    assert times.latency_ms == pytest.approx(1e-3 * (alone + share * (cold - alone)))
    assert times.error == target.facts.latency_error and times.timed == ()
    cost, constant = times.linear(Sums.of(network, rows), rows)
    assert constant == 0.0
    assert sum(use.count * cost(use.kernel) for use in network) == pytest.approx(times.latency_ms)


def test_kernels_that_had_to_be_modelled_widen_the_error() -> None:
    known = [conv(c) for c in (16, 32, 48, 64, 80)]
    target = table_target([row(k, 1e-3 * k.macs) for k in known])
    rows = Rows(target.table, {})
    sure = TableTimes.of(target, [uses((known[0], 1))], rows)
    between = TableTimes.of(target, [uses((known[0], 1), (conv(56), 5))], rows)
    assert sure.error == target.facts.latency_error < between.error
    assert rows.is_modelled(conv(56)) and not rows.is_modelled(known[0])


def test_a_network_nobody_knows_is_refused_with_its_kernels_named() -> None:
    known = [conv(c) for c in (16, 32, 48, 64, 80)]
    target = table_target([row(k, 1e-3 * k.macs) for k in known])
    strange = replace(conv(64), op_type="QLinearConv")
    with pytest.raises(TableError, match=r"does not know 1 of the 2 kernels.*QLinearConv.*--kit"):
        require_known(target, [uses((known[0], 1), (strange, 1))], Rows(target.table, {}))
    # A little of it is passed over.
    many = uses((known[4], int(3 / MOST_UNKNOWN)), (replace(conv(16), op_type="Sin"), 1))
    require_known(target, [many], Rows(target.table, {}))


def test_a_network_of_which_too_much_is_modelled_is_refused() -> None:
    target = table_target([row(conv(64), 100.0)])  # one row tells next to nothing of its kind
    with pytest.raises(TableError, match=r"lacks 1 of the network's kernels.*uncertain by"):
        require_known(target, [uses((conv(48), 1))], Rows(target.table, {}))


def test_graphs_that_were_read_on_another_machine_are_said_to_be() -> None:
    target = table_target([row(conv(16), 10.0)])
    note = graph_note(target)
    assert (note is not None) == target.inner.can_measure
    assert note is None or "runtime 1 on a device elsewhere" in note
    # PyTorch's kernels on a GPU are read in the same way on every machine.
    assert graph_note(Catalog().target("cuda-torch-h100-batch32")) is None
    assert graph_note(parse_target("x86-ort")) is None
