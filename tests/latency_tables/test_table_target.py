"""A table as a target: it prices what it knows and measures nothing elsewhere."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from latency_fakes import conv_kernel, made_up_row

from latency_tables import (
    Catalog,
    HostFingerprint,
    LatencyTable,
    MeasurementError,
    TableError,
    Target,
    parse_target,
    shipped,
)
from latency_tables.contract import TargetContract, small_network
from latency_tables.ort import OrtTarget
from latency_tables.table_facts import TableFacts, facts_of
from latency_tables.table_target import TableTarget, runner, why_no_energy

H100 = "cuda-torch-h100-batch32"
ELSEWHERE = HostFingerprint(
    "a processor of another machine", ("avx2",), 4, "onnxruntime 1.20", "Linux x86_64"
)


def elsewhere(batch: int = 2, energies: bool = False) -> TableTarget:
    """Every kernel of the contract's small network, with made-up times, on another machine."""
    inner = parse_target(f"x86-ort?batch={batch}")
    kernels = {u.kernel.key: u.kernel for u in inner.kernels(small_network(batch))}
    rows = [made_up_row(kernel, 10.0 + k) for k, kernel in enumerate(kernels.values())]
    if energies:
        rows = [
            replace(row, energy_uj=9.0, energy_net_uj=7.0, energy_provenance="measured")
            for row in rows
        ]
    empty = LatencyTable(inner.spec, "x86-avx2", ELSEWHERE, "2026-01-01T00:00:00+00:00")
    return TableTarget("board", inner, empty.with_rows(rows))


class TestAnothersTable(TargetContract):
    def target(self) -> Target:
        return elsewhere()

    def parse(self, text: str) -> Target:
        if text == "board":
            return elsewhere()
        return Catalog().target(text.replace("board", H100))  # refuses options as for any table


class TestShippedTable(TargetContract):
    def target(self) -> Target:
        return Catalog().target(H100)

    def parse(self, text: str) -> Target:
        return Catalog().target(text)


def test_rows_and_facts_are_the_tables() -> None:
    target = Catalog().target(H100)
    assert isinstance(target, TableTarget)
    assert (target.batch, target.precisions, target.can_measure) == (32, (32,), False)
    assert target.host().processor == "NVIDIA H100 80GB HBM3"
    table = shipped.load(H100)
    some = [row.kernel for row in list(table.rows.values())[:3]]
    assert {row.kernel.key for row in target.rows([*some, conv_kernel()])} == {k.key for k in some}
    assert target.facts.cold_share == 0.75 and "134 networks" in target.facts.source
    assert facts_of("", "x86-ort") != facts_of("", "no-such-target")


def test_facts_out_of_range_are_refused() -> None:
    good = facts_of(H100, "cuda-torch").to_json()
    assert TableFacts.from_json(good).to_json() == good
    for change in (
        {"cold_share": 1.5},
        {"latency_error": -0.1},
        {"energy_error": 2},
        {"cold_share": "?"},
    ):
        with pytest.raises(TableError, match="facts"):
            TableFacts.from_json({**good, **change})


def test_it_measures_on_its_own_machine_only(tmp_path: Path) -> None:
    far = elsewhere()
    file = tmp_path / "model.onnx"
    file.write_bytes(small_network(2))
    with pytest.raises(MeasurementError, match="measured on another machine"):
        far.measure({"it": file})
    with pytest.raises(MeasurementError, match="another machine"):
        far.measure_energy({"it": file})
    here = replace(far, table=replace(far.table, host=far.inner.host()))
    assert here.can_measure == far.inner.can_measure
    if here.can_measure:
        assert here.measure({"it": file}, seconds=0.05)["it"].p50_ms > 0


def test_files_run_in_onnx_runtime(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(small_network(2))
    examples = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    far = elsewhere()
    assert isinstance(runner(far), OrtTarget)
    np.testing.assert_allclose(far.run(file, examples), far.inner.run(file, examples), rtol=1e-5)
    assert runner(far.inner) is far.inner


def test_int8_is_rounded_as_on_the_device() -> None:
    far = elsewhere()
    assert far.reduce_range  # no VNNI there, whatever is here
    there = replace(ELSEWHERE, flags=("avx2", "avx512_vnni"))
    assert not replace(far, table=replace(far.table, host=there)).reduce_range


def test_it_travels_to_other_processes() -> None:
    far = elsewhere(energies=True)
    again = pickle.loads(pickle.dumps(far))
    assert again.table.digest == far.table.digest and again.spec == far.spec
    assert again.has_energies


def test_why_energy_cannot_be_bounded(tmp_path: Path) -> None:
    assert why_no_energy(elsewhere(energies=True)) is None
    assert why_no_energy(Catalog().target(H100)) is None
    assert "holds times and no energies" in str(why_no_energy(elsewhere()))
    bare = OrtTarget(powercap=tmp_path)
    if bare.can_measure:
        assert "no energy counter" in str(why_no_energy(bare))
        assert why_no_energy(bare, here=False) is None  # another machine may have one
