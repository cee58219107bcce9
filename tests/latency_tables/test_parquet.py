"""Parquet tables: nothing is lost, others can read them, and what is damaged or altered is refused."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from latency_fakes import conv_kernel, made_up_row

from latency_tables import (
    HostFingerprint,
    Kernel,
    LatencyTable,
    Layer,
    LayerTable,
    Quantity,
    Row,
    RowKey,
    TableError,
    TensorSpec,
    shipped,
)
from latency_tables import parquet as parquet_module
from latency_tables.importers import import_file
from latency_tables.layer import LayerShape
from latency_tables.parquet import from_parquet, to_parquet
from latency_tables.table_file import load_table, save_table

HOST = HostFingerprint("Z80", ("avx2",), 3, "onnxruntime 1.0", "CP/M")


@pytest.fixture
def table() -> LatencyTable:
    odd = Kernel(
        domain="com.microsoft.nchwc",
        op_type="Conv",
        version=1,
        attributes=(("activation", "s", "Relu"), ("alpha", "f", 0.1), ("t", "t", ("int64", (1,)))),
        inputs=(TensorSpec("uint8", (1, 8, 4, 4)), None, TensorSpec("float32", (), True, (0.1,))),
        outputs=(TensorSpec("map(int64, tensor(float))", (0, 2)), None),
    )
    rows = [
        replace(
            made_up_row(odd, 1 / 3),
            reference_us=50.0,
            cold_us=0.7,
            energy_uj=3.25,
            energy_net_uj=0.1 + 0.2,
            energy_provenance="modelled",
        ),
        *(made_up_row(conv_kernel(c, c), 0.1 * c) for c in (16, 33)),
    ]
    empty = LatencyTable("x86-ort?threads=1&batch=1", "x86-avx2", HOST, "2026-01-01T00:00:00+00:00")
    return empty.with_rows(rows)


@pytest.fixture
def layers() -> LayerTable:
    shape = LayerShape(3, 8, 32, 3, 1, 1, 1)
    return LayerTable(
        name="toy",
        key=RowKey.SHAPE,
        layers=(
            Layer("a", "conv", shape, MappingProxyType({"parameters": 10.0})),
            Layer("b", "depthwise", replace(shape, groups=3)),
        ),
        precisions=((4, 4), (8, 8)),
        quantities=(
            Quantity("latency", "ms", ((0.1, 0.3), (None, 2.0))),
            Quantity("sensitivity", "1", ((5.0, 1 / 3), (None, 0.0))),
        ),
        provenance="imported",
        source="somewhere",
        sha256="ab" * 32,
        network="null",
        fixed=MappingProxyType({"head": MappingProxyType({"latency": 0.5})}),
        whole=(3.5, 3.25),
    )


def test_nothing_is_lost(table: LatencyTable, layers: LayerTable, tmp_path: Path) -> None:
    for one in (table, layers, replace(layers, network=None, batch=16)):
        path = tmp_path / "deep" / "table.parquet"
        save_table(one, path)
        again = load_table(path)
        assert again == one
        assert again.digest == one.digest
        assert again.to_json() == one.to_json()
        assert [file.name for file in path.parent.iterdir()] == ["table.parquet"]


def test_json_is_read_and_written_too(table: LatencyTable, tmp_path: Path) -> None:
    save_table(table, tmp_path / "table.json")
    assert load_table(tmp_path / "table.json") == table
    assert LatencyTable.load(tmp_path / "table.json", allow_other_host=True) == table
    with pytest.raises(TableError, match=r"ends in \.parquet or \.json"):
        save_table(table, tmp_path / "table.csv")


def test_an_empty_table(tmp_path: Path) -> None:
    empty = LatencyTable("x86-ort", "x86", HOST, "2026-01-01T00:00:00+00:00")
    assert from_parquet(to_parquet(empty)) == empty


def test_the_shipped_table() -> None:
    table = shipped.load("cuda-torch-h100-batch32")
    assert from_parquet(to_parquet(table)) == table


@given(
    st.lists(
        st.floats(min_value=1e-300, max_value=1e300, allow_nan=False), min_size=4, max_size=4
    ).map(sorted)
)
def test_every_float_comes_back_to_the_last_bit(values: list[float]) -> None:
    low, median, high, reference = values
    row = Row(conv_kernel(), 3, median, low, high, (low, high), "then", reference, reference)
    empty = LatencyTable("x86-ort", "x86", HOST, "2026-01-01T00:00:00+00:00")
    table = empty.with_rows([row])
    assert from_parquet(to_parquet(table)) == table


def test_columns_are_flat_and_say_what_they_are(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    save_table(table, path)
    rows = {row["description"]: row for row in pq.read_table(path).to_pylist()}
    row = rows["Conv 3x3 float32 1x16x8x8 -> 1x16x8x8"]
    assert row["kernel"] == "Conv"
    assert (row["dtype"], row["bits"], row["arithmetic"]) == ("float32", 32, "float")
    assert row["inputs"] == ["float32 1x16x8x8", "float32 16x16x3x3 constant"]
    assert row["median_us"] == 1.6 and row["cold_us"] is None
    assert row["ci95_low_us"] == 1.6 * 0.98
    assert ["kernel_shape", "is", [3, 3]] in json.loads(row["attributes"])
    metadata = {k.decode(): v.decode() for k, v in pq.read_schema(path).metadata.items()}
    assert metadata["target"] == table.target
    assert metadata["digest"] == table.digest
    assert json.loads(metadata["host"])["processor"] == "Z80"
    assert json.loads(metadata["references_us"]) == {"float": 200.0, "integer": 50.0}


def test_layers_have_a_line_a_precision(layers: LayerTable, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    save_table(layers, path)
    lines = pq.read_table(path).to_pylist()
    assert [(x["label"], x["weight_bits"], x["latency_ms"]) for x in lines] == [
        ("a", 4, 0.1),
        ("a", 8, 0.3),
        ("b", 4, None),
        ("b", 8, 2.0),
    ]
    assert lines[0]["sensitivity"] == 5.0 and lines[0]["in_channels"] == 3


def test_pandas_reads_it(table: LatencyTable, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    save_table(table, tmp_path / "table.parquet")
    frame = pandas.read_parquet(tmp_path / "table.parquet")
    assert frame.groupby("arithmetic").median_us.count().to_dict() == {"float": 2, "integer": 1}
    assert math.isnan(frame.set_index("key").cold_us[conv_kernel(33, 33).key])


def _changed(data: bytes, change: Callable[[pa.Table], pa.Table]) -> bytes:
    """The file with its content changed and its metadata kept, as another program would write it."""
    sink = pa.BufferOutputStream()
    pq.write_table(change(pq.read_table(pa.BufferReader(data))), sink)
    return bytes(sink.getvalue())


def _with(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table[name].type))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: _with(t, "median_us", [9.0] * len(t)), "altered after it was written"),
        (lambda t: t.slice(1), "altered after it was written"),
        (lambda t: _with(t, "bits", [9] * len(t)), None),
        (lambda t: t.append_column("mine", pa.array([1] * len(t))), None),
        (lambda t: t.drop_columns(["p90_us"]), "column p90_us is missing"),
        (lambda t: t.replace_schema_metadata({}), "no table of Trimtab"),
        (lambda t: _with(t, "median_us", [None] * len(t)), r"row [0-9a-f]{16}: float"),
        (lambda t: _with(t, "median_us", [-1.0] * len(t)), r"row [0-9a-f]{16}.*median_us is -1"),
        (lambda t: _with(t, "attributes", ["{"] * len(t)), r"row [0-9a-f]{16}: Expecting"),
        (lambda t: _with(t, "inputs", [["float32"]] * len(t)), "'float32' is no tensor"),
        (lambda t: _with(t, "version", [99] * len(t)), "its kernel has the key"),
    ],
)
def test_what_others_changed(
    table: LatencyTable, change: Callable[[pa.Table], pa.Table], words: str | None
) -> None:
    data = _changed(to_parquet(table), change)
    if words is None:
        assert from_parquet(data) == table
    else:
        with pytest.raises(TableError, match=words):
            from_parquet(data)


def test_lines_of_layers_must_be_complete(layers: LayerTable) -> None:
    data = to_parquet(layers)
    with pytest.raises(TableError, match="row a: its lines are not one a precision"):
        from_parquet(_changed(data, lambda t: t.slice(1)))
    with pytest.raises(TableError, match="altered"):
        from_parquet(_changed(data, lambda t: _with(t, "latency_ms", [1.0, 1.0, None, 1.0])))
    again = from_parquet(
        _changed(
            data,
            lambda t: t.replace_schema_metadata({**t.schema.metadata, "device": "unknown device"}),
        )
    )
    assert again == layers


@given(place=st.floats(0, 1), byte=st.integers(1, 255))
def test_a_flipped_byte_is_never_taken_for_a_measurement(place: float, byte: int) -> None:
    rows = [made_up_row(conv_kernel(c, c), 0.1 * c) for c in range(16, 48)]
    empty = LatencyTable("x86-ort", "x86", HOST, "2026-01-01T00:00:00+00:00")
    table = empty.with_rows(rows)
    data = bytearray(to_parquet(table))
    data[min(int(place * len(data)), len(data) - 1)] ^= byte
    try:
        again = from_parquet(bytes(data))
    except TableError:
        return
    # Some bytes of the footer mean nothing here, such as the writer's name; those of ``created`` are not measured.
    assert replace(again, created=table.created) == table


@pytest.mark.parametrize("data", [b"PAR1", b"PAR1" + bytes(100), b"PAR1" + bytes(40) + b"PAR1"])
def test_rubbish(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(TableError, match=r"t\.parquet cannot be read as a table: .*no Parquet"):
        load_table(tmp_path / "t.parquet")


def test_a_file_that_announces_too_much(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = to_parquet(table)
    monkeypatch.setattr(parquet_module, "MOST_ROWS", 2)
    with pytest.raises(TableError, match="announces 3 rows"):
        from_parquet(data)


def test_without_pyarrow(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_table(table, tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TableError, match="pip install pyarrow"):
        load_table(tmp_path / "t.parquet")
    with pytest.raises(TableError, match="pip install pyarrow"):
        to_parquet(table)
    save_table(table, tmp_path / "t.json")
    assert load_table(tmp_path / "t.json") == table


def test_parquet_is_imported(table: LatencyTable, layers: LayerTable, tmp_path: Path) -> None:
    for name, one in (("kernels", table), ("layers", layers)):
        path = tmp_path / f"{name}.bin"  # told by what it holds, not by its name
        path.write_bytes(to_parquet(one))
        found = import_file(path)
        assert found.format == "trimtab"
        assert found.tables[name].digest == one.digest
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(TableError, match="no table of Trimtab"):
        import_file(tmp_path / "other.parquet")
