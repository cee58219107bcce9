from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from latency_fakes import conv_kernel, made_up_row

from latency_tables import (
    HostFingerprint,
    Kernel,
    KernelUse,
    LatencyTable,
    Row,
    TableError,
    TableStore,
    TensorSpec,
    estimate_error,
    network_cost,
    parse_target,
)
from latency_tables.table_file import save_table

OTHER = HostFingerprint("Z80", (), 1, "onnxruntime 1.0", "CP/M")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def table() -> LatencyTable:
    rows = [made_up_row(conv_kernel(c, c), 0.1 * c) for c in (16, 32, 64)]
    return LatencyTable.empty(parse_target("x86-ort")).with_rows(rows)


def test_lookup(table: LatencyTable) -> None:
    row = table.lookup(conv_kernel(32, 32))
    assert row is not None
    assert row.median_us == pytest.approx(3.2)
    assert table.lookup(conv_kernel(48, 48)) is None
    assert table.missing([conv_kernel(32, 32), conv_kernel(48, 48), conv_kernel(48, 48)]) == [
        conv_kernel(48, 48)
    ]


def test_save_and_load(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.json"
    table.save(path)
    again = LatencyTable.load(path)
    assert again.digest == table.digest
    assert again == table
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_digest_is_of_the_content(table: LatencyTable) -> None:
    assert replace(table, created="then").digest == table.digest
    more = table.with_rows([made_up_row(conv_kernel(8, 8), 1.0)])
    assert more.digest != table.digest
    assert table.snapshot() is table
    assert set(more.snapshot(row.kernel for row in table.rows.values()).rows) == set(table.rows)
    shuffled = LatencyTable.empty(parse_target("x86-ort")).with_rows(
        list(table.rows.values())[::-1]
    )
    assert shuffled.digest == table.digest


def test_rows_of_drifted_runs_add_up(table: LatencyTable) -> None:
    slow = replace(made_up_row(conv_kernel(8, 8), 2.0), reference_us=400.0, run_reference_us=400.0)
    row = table.with_rows([slow]).lookup(conv_kernel(8, 8))
    assert row is not None
    assert row.median_us == pytest.approx(1.0)
    assert row.reference_us == 200.0
    assert row.run_reference_us == 400.0


def test_cold_times_drift_with_the_others_and_survive_the_file(
    table: LatencyTable, tmp_path: Path
) -> None:
    slow = replace(
        made_up_row(conv_kernel(8, 8), 2.0), reference_us=400.0, run_reference_us=400.0, cold_us=6.0
    )
    table.with_rows([slow]).save(tmp_path / "table.json")
    row = LatencyTable.load(tmp_path / "table.json", allow_other_host=True).lookup(
        conv_kernel(8, 8)
    )
    assert row is not None
    assert row.cold_us == pytest.approx(3.0)


def test_integer_rows_keep_a_reference_of_their_own(table: LatencyTable) -> None:
    spec = TensorSpec("uint8", (1, 8, 8, 8))
    integer = Kernel("", "MaxPool", 17, (), (spec,), (spec,))
    assert integer.arithmetic == "integer"
    row = replace(made_up_row(integer, 2.0), reference_us=50.0, run_reference_us=50.0)
    both = table.with_rows([row])
    kept = both.lookup(integer)
    assert kept is not None and kept.median_us == 2.0
    assert both.references_us == {"float": 200.0, "integer": 50.0}
    assert LatencyTable.from_json(both.to_json(), allow_other_host=True).digest == both.digest


def test_a_modelled_row_is_as_much_slower_cold_as_its_neighbours(table: LatencyTable) -> None:
    rows = [replace(row, cold_us=1.5 * row.median_us) for row in table.rows.values()]
    estimate = replace(table, rows={}).with_rows(rows).estimate(conv_kernel(24, 24))
    assert estimate is not None and estimate.cold_us is not None
    assert estimate.cold_us == pytest.approx(1.5 * estimate.median_us)


def test_the_later_measurement_wins(table: LatencyTable) -> None:
    old = made_up_row(conv_kernel(16, 16), 9.0, "2020-01-01T00:00:00+00:00")
    new = made_up_row(conv_kernel(16, 16), 8.0, "2027-01-01T00:00:00+00:00")
    other = LatencyTable.empty(parse_target("x86-ort")).with_rows([old])
    kept = table.merge(other).lookup(conv_kernel(16, 16))
    assert kept is not None and kept.median_us == pytest.approx(1.6)
    changed = table.with_rows([new]).lookup(conv_kernel(16, 16))
    assert changed is not None and changed.median_us == 8.0


def test_a_kernel_timed_again_keeps_its_energy(table: LatencyTable) -> None:
    def row(us: float, time: str, energy: float | None) -> Row:
        return replace(
            made_up_row(conv_kernel(8, 8), us, time),
            energy_uj=energy,
            energy_net_uj=energy,
            energy_provenance=None if energy is None else "measured",
        )

    old, new = row(2.0, "2026-01-01", 5.0), row(1.0, "2026-02-01", None)
    for order in ([old, new], [new, old]):
        kept = table.with_rows(order).lookup(conv_kernel(8, 8))
        assert kept is not None
        assert (kept.median_us, kept.energy_uj, kept.energy_provenance) == (1.0, 5.0, "measured")
    kept = table.with_rows([old, row(1.0, "2026-02-01", 4.0)]).lookup(conv_kernel(8, 8))
    assert kept is not None and kept.energy_uj == 4.0


def test_merge_refuses_strangers(table: LatencyTable) -> None:
    with pytest.raises(TableError, match="machine"):
        table.merge(replace(table, host=OTHER))
    with pytest.raises(TableError, match="threads=2"):
        table.merge(replace(table, target="x86-ort?threads=2&batch=1"))


def test_another_machines_table(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    replace(table, host=OTHER).save(path)
    with pytest.raises(TableError, match=r"another machine.*Z80"):
        LatencyTable.load(path)
    assert LatencyTable.load(path, allow_other_host=True).host == OTHER


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1}', "\x00\x01"])
def test_corrupt_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(TableError, match=r"table\.json"):
        LatencyTable.load(path)
    with pytest.raises(TableError, match="cannot be read"):
        LatencyTable.load(tmp_path / "absent.json")


def test_unknown_schema_version(table: LatencyTable) -> None:
    with pytest.raises(TableError, match="schema version 99"):
        LatencyTable.from_json({**table.to_json(), "schema_version": 99})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("median_us", -1.0),
        ("median_us", math.nan),
        ("median_us", None),
        ("p90_us", math.inf),
        ("ci95", [1.0]),
        ("ci95", [2.0, 1.0]),
        ("reference_us", 0.0),
        ("reference_us", 7.0),
        ("cold_us", -1.0),
        ("cold_us", math.inf),
        ("cold_us", "fast"),
        ("unit", "ms"),
        ("provenance", "guessed"),
        ("count", -1),
        ("kernel", {}),
        ("kernel", conv_kernel(99, 99).to_json()),
    ],
)
def test_bad_values_name_the_row(table: LatencyTable, field: str, value: Any) -> None:
    data = json.loads(json.dumps(table.to_json()))
    key = conv_kernel(32, 32).key
    data["rows"][key][field] = value
    with pytest.raises(TableError, match=key):
        LatencyTable.from_json(data)
    del data["rows"][key][field]
    with pytest.raises(TableError, match=key):
        LatencyTable.from_json(data)


def test_estimates_are_marked_and_not_stored(table: LatencyTable) -> None:
    row = table.estimate(conv_kernel(48, 48))
    assert row is not None
    assert row.provenance == "modelled"
    assert row.count == 0
    assert row.ci95[0] < row.median_us < row.ci95[1]
    assert 3.2 < row.median_us < 6.4
    with pytest.raises(TableError, match="modelled"):
        table.with_rows([row])


def test_no_family_no_estimate(table: LatencyTable) -> None:
    assert table.estimate(conv_kernel(16, 16, group=16)) is None
    assert table.estimate(replace(conv_kernel(48, 48), op_type="QLinearConv")) is None
    empty = LatencyTable.empty(parse_target("x86-ort"))
    assert empty.estimate(conv_kernel()) is None
    assert math.isnan(estimate_error(empty).mape)


def test_estimate_error_on_a_law() -> None:
    rows = [
        made_up_row(conv_kernel(a, b), 1e-5 * conv_kernel(a, b).macs)
        for a in (16, 32, 48, 64)
        for b in (16, 32, 48, 64)
    ]
    empty = LatencyTable.empty(parse_target("x86-ort"))
    error = estimate_error(empty.with_rows([*rows, made_up_row(conv_kernel(8, 8, group=8), 1.0)]))
    assert error.count == 16
    assert error.without_family == 1
    assert error.mape < 0.01


def test_network_cost(table: LatencyTable) -> None:
    uses = [KernelUse(conv_kernel(c, c)) for c in (16, 32, 16)]
    cost = network_cost(uses, table)
    assert cost.total_us == pytest.approx(1.6 * 2 + 3.2)
    assert cost.unknown == ()
    assert cost.modelled_share == 0
    sigma = math.hypot(2 * 0.016, 0.032) * 2 / (2 * 1.959964) * 2
    assert (cost.spread[1] - cost.spread[0]) / 2 == pytest.approx(1.644854 * sigma, rel=1e-3)


def test_network_cost_says_what_it_does_not_know(table: LatencyTable) -> None:
    strange = conv_kernel(16, 16, group=16)
    uses = [KernelUse(conv_kernel(48, 48)), KernelUse(strange), KernelUse(conv_kernel(16, 16))]
    cost = network_cost(uses, table)
    assert cost.unknown == (strange,)
    assert 0 < cost.modelled_share < 1
    strict = network_cost(uses, table, model=False)
    assert set(strict.unknown) == {strange, conv_kernel(48, 48)}
    assert strict.modelled_share == 0
    wide = network_cost(uses, table, relative_sigma=0.05).spread
    assert wide[0] < cost.spread[0] and wide[1] > cost.spread[1]


@given(st.lists(st.tuples(st.sampled_from([16, 32, 64]), st.integers(1, 4)), max_size=8))
def test_cost_is_additive(picks: list[tuple[int, int]]) -> None:
    table = LatencyTable.empty(parse_target("x86-ort")).with_rows(
        made_up_row(conv_kernel(c, c), 0.1 * c) for c in (16, 32, 64)
    )
    uses = [KernelUse(conv_kernel(c, c), count=n) for c, n in picks]
    alone = sum(network_cost([use], table).total_us for use in uses)
    assert network_cost(uses, table).total_us == pytest.approx(alone)


def test_store(table: LatencyTable, tmp_path: Path) -> None:
    store, target = TableStore(tmp_path / "tables"), parse_target("x86-ort")
    assert len(store.load(target)) == 0
    assert store.list() == ()
    store.add(target, list(table.rows.values())[:1])
    assert len(store.add(target, list(table.rows.values())[1:])) == 3
    assert store.load(target).digest == table.digest
    (name,) = store.list()
    assert store.get(name).digest == table.digest
    assert len(store.load(parse_target("x86-ort?threads=2"))) == 0
    with pytest.raises(TableError, match=name):
        store.get("nothing")
    with pytest.raises(TableError, match="no table's name"):
        store.get("../secret")


def test_store_keeps_a_corrupt_file_for_inspection(table: LatencyTable, tmp_path: Path) -> None:
    store, target = TableStore(tmp_path), parse_target("x86-ort")
    store.add(target, table.rows.values())
    path = tmp_path / f"{store.list()[0]}.parquet"
    path.write_text("{broken")
    for attempt in (lambda: store.load(target), lambda: store.add(target, [])):
        with pytest.raises(TableError, match=r"cannot be read.*move it away: its kernels are then"):
            attempt()
    assert path.read_text() == "{broken"


def test_store_refuses_a_copied_file(table: LatencyTable, tmp_path: Path) -> None:
    store, target = TableStore(tmp_path), parse_target("x86-ort")
    store.add(target, table.rows.values())
    save_table(replace(table, host=OTHER), tmp_path / f"{store.list()[0]}.parquet")
    with pytest.raises(TableError, match="another machine"):
        store.load(target)


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from latency_tables import TableStore, parse_target\n"
        "from latency_fakes import conv_kernel, made_up_row\n"
        "store, who = TableStore(Path(sys.argv[1])), int(sys.argv[2])\n"
        "for i in range(5):\n"
        "    kernel = conv_kernel(16, 16 + 5 * who + i)\n"
        "    store.add(parse_target('x86-ort'), [made_up_row(kernel, 1.0)])\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(who)], cwd=Path(__file__).parent
        )
        for who in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(TableStore(tmp_path).load(parse_target("x86-ort"))) == 15


def test_rows_survive_rescaling() -> None:
    row = made_up_row(conv_kernel(), 3.0)
    again = row.at_reference(500.0).at_reference(200.0)
    assert isinstance(again, Row)
    np.testing.assert_allclose(again.ci95, row.ci95)
    assert again.median_us == pytest.approx(3.0)
    assert row.sigma_us == pytest.approx(0.12 / (2 * 1.959964))
