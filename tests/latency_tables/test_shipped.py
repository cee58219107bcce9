from __future__ import annotations

import gzip
import math
import sys

import pytest
from latency_fakes import conv_kernel, made_up_row

from latency_tables import Kernel, LatencyTable, Row, TableError, parse_target, shipped

H100 = "cuda-torch-h100-batch32"


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return shipped.load(H100)


def stairs(table: LatencyTable, dtype: str) -> dict[int, Row]:
    """3x3 convolutions at 28x28 without bias, by channels in and out."""
    found = {}
    for row in table.rows.values():
        kernel, spec, weight = row.kernel, row.kernel.inputs[0], row.kernel.weight
        plain = kernel.op_type == "Conv" and len(kernel.inputs) == 2 and kernel.outputs[0] == spec
        if plain and spec is not None and weight is not None and spec.dtype == dtype:
            channels = spec.shape[1]
            if spec.shape == (32, channels, 28, 28) and weight.shape == (channels, channels, 3, 3):
                found[channels] = row
    return found


def product(table: LatencyTable, dtype: str, rows: int, inner: int, outer: int) -> Row:
    (found,) = [
        row
        for row in table.rows.values()
        if (spec := row.kernel.inputs[0]) is not None
        and (spec.dtype, spec.shape) == (dtype, (rows, inner))
        and (weight := row.kernel.weight) is not None
        and weight.shape == (outer, inner)
        and len(row.kernel.inputs) in (2, 4)
    ]
    return found


def test_is_there_and_is_for_the_target(table: LatencyTable) -> None:
    assert H100 in shipped.names()
    assert table.target == parse_target("cuda-torch?batch=32").spec
    assert "H100" in table.host.processor
    assert table.host.runtime.startswith("torch ")
    assert any(flag.startswith("driver-") for flag in table.host.flags)
    assert any(flag.startswith("power-limit-") for flag in table.host.flags)
    assert set(table.references_us) == {"float", "integer"}
    assert len(table) > 2000


def test_every_row_is_sane(table: LatencyTable) -> None:
    for row in table.rows.values():
        assert row.provenance == "measured"
        assert row.count >= 5
        assert 0.3 < row.median_us < 5000
        assert row.p10_us <= row.median_us <= row.p90_us
        assert row.ci95[0] <= row.median_us <= row.ci95[1]
        assert row.cold_us is not None
        # Inputs from memory instead of the cache: not much faster, and never many times slower.
        assert 0.8 * row.median_us < row.cold_us < 6 * row.median_us, row.kernel.describe()
        assert row.time.startswith("2026-11-22")
        assert row.kernel.moved_bytes > 0
        # No kernel beats the GPU: 990 T multiply-accumulates a second in 8 bits.
        assert row.kernel.macs / row.median_us < 990e6, row.kernel.describe()


def test_channels_off_the_step_of_eight_are_slower(table: LatencyTable) -> None:
    for dtype, least in (("float32", 1.8), ("bfloat16", 2.0)):
        found = stairs(table, dtype)
        assert set(found) == set(range(16, 129))
        assert found[63].median_us > least * found[64].median_us
        assert found[127].median_us > 1.5 * found[128].median_us
        assert all(found[c - 1].median_us > 1.2 * found[c].median_us for c in range(24, 129, 8))


def test_products_in_fewer_bits_are_faster(table: LatencyTable) -> None:
    size = (6304, 4096, 1024)
    times = [product(table, d, *size).median_us for d in ("float32", "bfloat16", "float8e4m3fn")]
    assert times[0] > 10 * times[1]
    assert times[1] > 1.2 * times[2]
    nets = [product(table, d, 256, 768, 3072).energy_net_uj for d in ("float32", "bfloat16")]
    assert nets[0] is not None and nets[1] is not None
    assert nets[0] > 4 * nets[1]


def test_energies_are_measured_and_positive(table: LatencyTable) -> None:
    found = [row for row in table.rows.values() if row.energy_uj is not None]
    assert len(found) > 200
    for row in found:
        assert row.energy_provenance == "measured"
        assert row.energy_uj is not None and row.energy_net_uj is not None
        idle = (row.energy_uj - row.energy_net_uj) / row.median_us
        assert 0 < row.energy_net_uj < row.energy_uj
        # A kernel that the power limit slows down is idle for longer than its time in the table.
        assert 100 < idle < 160, row.kernel.describe()
        assert row.energy_uj / row.median_us < 1.25 * 700


def test_keys_are_those_of_this_version(table: LatencyTable) -> None:
    # ``load`` compares each key with its kernel's; a network's kernels must find them.
    row = stairs(table, "bfloat16")[64]
    again = Kernel.from_json(row.kernel.to_json())
    assert table.lookup(again) is row
    assert math.isclose(again.macs, 32 * 28 * 28 * 64 * 64 * 9)


def test_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert len(shipped.load(H100)) > 2000


def test_unknown_and_damaged_tables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TableError, match=f"known: .*{H100}"):
        shipped.load("no-such-table")
    with pytest.raises(TableError, match="no table"):
        shipped.load("../data/x")
    monkeypatch.setattr(gzip, "decompress", lambda data: data[:20])
    shipped._read.cache_clear()
    with pytest.raises(TableError, match="damaged"):
        shipped.load(H100)


def test_is_read_once(table: LatencyTable) -> None:
    assert shipped.load(H100) is shipped.load(H100)


def test_packing_is_reversible_and_stable() -> None:
    from latency_tables import HostFingerprint

    host = HostFingerprint("a GPU", (), 1, "torch 0", "an OS")
    empty = LatencyTable("cuda-torch?batch=1", "cuda", host, "2026-01-01T00:00:00+00:00")
    table = empty.with_rows([made_up_row(conv_kernel(), 12.5)])
    data = shipped.packed(table)
    assert data == shipped.packed(table)
    import json

    assert LatencyTable.from_json(json.loads(gzip.decompress(data)), True) == table
