"""Layer tables: look-up, totals, what is refused, and the file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables import (
    Flag,
    Layer,
    LayerShape,
    LayerTable,
    Quantity,
    RowKey,
    TableError,
    TableStore,
)
from latency_tables.importers.apq import kind_of, label_of

BITS = ((4, 4), (4, 8), (8, 4), (8, 8))


def made_up(cells: list[list[float | None]], **fields: Any) -> LayerTable:
    """A table of layers at ``BITS`` that nobody measured."""
    rows = tuple(tuple(row) for row in cells)
    defaults: dict[str, Any] = {
        "name": "toy",
        "key": RowKey.LAYER,
        "layers": tuple(Layer(f"layer {i}") for i in range(len(rows))),
        "precisions": BITS,
        "quantities": (Quantity("latency", "ms", rows),),
        "provenance": "simulated",
        "source": "a test",
        "sha256": "0" * 64,
    }
    return LayerTable(**{**defaults, **fields})


@pytest.fixture
def table() -> LayerTable:
    return made_up([[1.0, 2.0, 3.0, 4.0], [0.5, 0.6, 0.7, 0.8]])


@pytest.fixture
def shapes() -> LayerTable:
    """Two dense shapes, and two depthwise ones that are not offered at 4-bit activations."""
    sizes = [
        LayerShape(16, 32, 28, 1, 1, 0, 1),
        LayerShape(16, 64, 28, 1, 1, 0, 1),
        LayerShape(32, 32, 28, 7, 1, 3, 32),
        LayerShape(64, 64, 28, 7, 1, 3, 64),
    ]
    cells: list[list[float | None]] = [
        [1.0, 2.0, 3.0, 4.0],
        [2.0, 3.0, 4.0, 5.0],
        [None, 2.5, None, 3.5],
        [None, 3.0, None, 4.5],
    ]
    return made_up(
        cells,
        key=RowKey.SHAPE,
        layers=tuple(Layer(label_of(size), kind_of(size), size) for size in sizes),
        fixed={"head": {"latency": 0.25}, "tail": {"latency": 0.5}},
    )


def test_lookup(table: LayerTable) -> None:
    assert table.cost(0, 4, 8) == 2.0
    assert table.cost("layer 1", 8, 8) == 0.8
    assert (table.w_bits, table.a_bits, len(table)) == ((4, 8), (4, 8), 2)
    np.testing.assert_array_equal(table.matrix()[1], [0.5, 0.6, 0.7, 0.8])
    for layer, bits, words in [
        (2, (4, 4), "layers 0 to 1"),
        (-1, (4, 4), "layers 0 to 1"),
        ("layer 9", (4, 4), "no row layer 9"),
        (1, (2, 8), "layer 1 has no W2A8"),
    ]:
        with pytest.raises(TableError, match=words):
            table.cost(layer, *bits)
    with pytest.raises(TableError, match="no energy; it has latency"):
        table.cost(0, 4, 4, "energy")


def test_totals(table: LayerTable) -> None:
    assert table.total([(8, 8), (4, 4)]) == 4.5
    assert table.total([(4, 8)] * 3, layers=[1, "layer 1", 0]) == pytest.approx(3.2)
    assert table.fixed_cost() == 0
    with pytest.raises(TableError, match="1 precisions were given for 2 layers"):
        table.total([(8, 8)])


def test_totals_over_shapes(shapes: LayerTable) -> None:
    dense, deep = LayerShape(16, 64, 28, 1, 1, 0, 1), LayerShape(64, 64, 28, 7, 1, 3, 64)
    assert shapes.total([(8, 8), (4, 8)], layers=[dense, deep]) == 8.0
    assert shapes.fixed_cost() == 0.75
    with pytest.raises(TableError, match="shapes, not a network"):
        shapes.total([(8, 8)] * 4)
    with pytest.raises(TableError, match="has no W4A4"):
        shapes.cost(deep, 4, 4)
    assert np.isnan(shapes.matrix()[2:, [0, 2]]).all()


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=6))
def test_uniform_precision_costs_its_column(rows: list[tuple[float, float]]) -> None:
    table = made_up([list(row) for row in rows], precisions=((4, 4), (8, 8)))
    for column, bits in enumerate(table.precisions):
        assert table.total([bits] * len(rows)) == pytest.approx(table.matrix()[:, column].sum())


def test_one_row_without_a_precision_is_a_hole_and_a_whole_kind_is_not(
    shapes: LayerTable,
) -> None:
    cells = [list(row) for row in shapes.quantity().values]
    cells[1][2] = None
    with pytest.raises(TableError, match=r"row \(16, 64, 28.*W8A4: latency is missing"):
        replace(shapes, quantities=(Quantity("latency", "ms", tuple(map(tuple, cells))),))
    for row in cells:
        row[2] = None
    with pytest.raises(TableError, match="no row has a latency at W8A4"):
        replace(shapes, quantities=(Quantity("latency", "ms", tuple(map(tuple, cells))),))


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, None])
def test_bad_cells_are_named(value: float | None) -> None:
    with pytest.raises(TableError, match="row layer 1, W4A8: latency"):
        made_up([[1.0, 2.0, 3.0, 4.0], [1.0, value, 3.0, 4.0]])


def test_many_bad_cells_are_counted() -> None:
    with pytest.raises(TableError, match=r"layer 1, W4A4: .*; and 3 more"):
        made_up([[-1.0] * 4, [-2.0] * 4])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": (Layer("a"), Layer("a"))}, "row a is given twice"),
        ({"precisions": ((4, 4), (4, 4), (8, 4), (8, 8))}, "W4A4 is given twice"),
        ({"precisions": ((0, 4), (4, 8), (8, 4), (8, 8))}, "W0A4"),
        ({"provenance": "guessed"}, "guessed"),
        ({"quantities": (Quantity("latency", "mJ", ((1.0,) * 4,) * 2),)}, "'latency' in 'mJ'"),
        ({"quantities": (Quantity("speed", "ms", ((1.0,) * 4,) * 2),)}, "speed"),
        ({"quantities": (Quantity("latency", "ms", ((1.0,) * 4,)),)}, "1 rows for 2 layers"),
        ({"quantities": (Quantity("latency", "ms", ((1.0,) * 3,) * 2),)}, "3 cells for 4"),
        ({"quantities": ()}, "no rows"),
        ({"fixed": {"head": {"latency": -1.0}}}, "head: latency"),
        ({"whole": (1.0, math.nan)}, "run 1"),
    ],
)
def test_what_is_no_table(table: LayerTable, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(TableError, match=words):
        replace(table, **fields)


def test_the_file_keeps_everything(shapes: LayerTable, tmp_path: Path) -> None:
    whole = replace(
        shapes,
        network="toynet",
        batch=16,
        whole=(8.5, 8.75),
        flags=(Flag("copies", "two", 2, ("a", "b")),),
    )
    path = tmp_path / "deep" / "table.json"
    whole.save(path)
    again = LayerTable.load(path)
    assert again == whole
    assert again.digest == whole.digest
    assert again.end_to_end == pytest.approx(8.625)
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]


def test_digest_is_of_the_content(table: LayerTable) -> None:
    renamed = replace(table, name="other", created="then", flags=(Flag("zeros", "one", 1),))
    assert renamed.digest == table.digest
    assert replace(table, device="T4").digest != table.digest
    assert made_up([[1.0, 2.0, 3.0, 4.0], [0.5, 0.6, 0.7, 0.9]]).digest != table.digest


def test_whole_numbers_keep_the_digest(tmp_path: Path) -> None:
    table = made_up(
        [[1, 2, 3, 4]],
        layers=(Layer("a", facts={"runs": 3}),),
        fixed={"head": {"latency": 1}},
        whole=(11,),
    )
    table.save(tmp_path / "table.json")
    assert LayerTable.load(tmp_path / "table.json").digest == table.digest


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00", '{"format": "trimtab-layer-table"}'])
def test_corrupt_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(TableError, match=r"table\.json"):
        LayerTable.load(path)
    with pytest.raises(TableError, match="cannot be read"):
        LayerTable.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("latency", None, "row layer 1: latency is missing"),
        ("latency", [1.0, 2.0, 3.0], "row layer 1: latency has 3 cells"),
        ("latency", [1.0, "2", 3.0, 4.0], "row layer 1: latency '2'"),
        ("latency", [1.0, True, 3.0, 4.0], "row layer 1: latency True"),
        ("latency", [1.0, -2.0, 3.0, 4.0], "row layer 1, W4A8: latency is -2"),
        ("latency", [1.0, None, 3.0, 4.0], "row layer 1, W4A8: latency is missing"),
        ("latency", [1.0, 10**400, 3.0, 4.0], "incomplete"),
        ("shape", [1, 2], "row layer 1"),
        ("facts", {"macs": math.nan}, "row layer 1: macs"),
        ("facts", None, "row layer 1"),
    ],
)
def test_bad_rows_of_a_file_are_named(
    table: LayerTable, field: str, value: Any, words: str
) -> None:
    data = json.loads(json.dumps(table.to_json()))
    data["rows"][1][field] = value
    with pytest.raises(TableError, match=words):
        LayerTable.from_json(data)


def test_unknown_schema_version(table: LayerTable) -> None:
    with pytest.raises(TableError, match="schema version 99"):
        LayerTable.from_json({**table.to_json(), "schema_version": 99})


def test_the_store_keeps_imported_tables_apart(table: LayerTable, tmp_path: Path) -> None:
    store = TableStore(tmp_path / "tables")
    assert store.add_imported({"toy": table}) == ("toy",)
    assert store.add_imported({"toy": replace(table, created="later")}) == ()
    assert store.list() == ("toy",)
    assert store.is_imported("toy") and not store.is_imported("other")
    assert store.get("toy") == table
    assert not list((tmp_path / "tables").glob("*.parquet"))
    with pytest.raises(TableError, match="layers and not kernels"):
        store.get_kernels("toy")


def test_the_store_stores_all_tables_of_a_file_or_none(table: LayerTable, tmp_path: Path) -> None:
    store = TableStore(tmp_path)
    store.add_imported({"b": table})
    with pytest.raises(TableError, match=r"another content.*--name"):
        store.add_imported({"a": table, "b": replace(table, device="T4")})
    assert store.list() == ("b",)
    assert store.get("b") == table


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x86-ort", "target's name"),
        ("x86-ort-threads-1-batch-1-0123456789ab", "measured here"),
        ("../x", "no table's name"),
        ("", "no table's name"),
    ],
)
def test_names_kept_for_others(table: LayerTable, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=words):
        TableStore(tmp_path).add_imported({name: table})
