"""Trimtab's own tables come back, and are looked at as others are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from import_files import flags, haq_array, layer_tables, saved, written
from latency_fakes import conv_kernel, made_up_row

from latency_tables import (
    HostFingerprint,
    Kernel,
    LatencyTable,
    Row,
    TableError,
    TensorSpec,
    parse_target,
)
from latency_tables.importers import import_file

OTHER = HostFingerprint("Z80", (), 1, "onnxruntime 1.0", "CP/M")


def kernel_table(*rows: Row) -> LatencyTable:
    table = LatencyTable.empty(parse_target("x86-ort")).with_rows(rows)
    return replace(table, host=OTHER)


def test_kernels_of_another_machine(tmp_path: Path) -> None:
    table = kernel_table(*(made_up_row(conv_kernel(c, c), 0.1 * c) for c in (16, 32, 64)))
    table.save(tmp_path / "board.json")
    found = import_file(tmp_path / "board.json")
    assert found.format == "trimtab"
    assert dict(found.tables) == {"board": table}
    assert found.flags == {"board": ()}


def test_kernel_rows_are_looked_at(tmp_path: Path) -> None:
    rows = [made_up_row(conv_kernel(16, c), us) for c, us in ((16, 3.0), (32, 2.0), (48, 2.0))]
    kernel_table(*rows).save(tmp_path / "t.json")
    messages = flags(tmp_path / "t.json")
    (copies,) = messages["copies"]
    assert copies.startswith("1 of 3 rows with exactly the numbers of another: ")
    (steps,) = messages["not monotone"]
    assert steps.startswith("1 step to more channels cheaper beyond both intervals: ")
    assert "1x16x8x8 3.00 us" in steps and "1x32x8x8 2.00 us" in steps


def test_floats_cheaper_than_integers_are_flagged(tmp_path: Path) -> None:
    floats = conv_kernel(16, 16)
    image, weight = TensorSpec("uint8", (1, 16, 8, 8)), TensorSpec("int8", (16, 16, 3, 3), True)
    integers = Kernel("", "QLinearConv", 10, floats.attributes, (image, weight), (image,))
    kernel_table(made_up_row(floats, 2.0), made_up_row(integers, 3.0)).save(tmp_path / "t.json")
    (steps,) = flags(tmp_path / "t.json")["not monotone"]
    assert "1 step to more bits" in steps and "QLinearConv" in steps


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.update(median_us=-1.0), "median_us is -1"),
        (lambda row: row.update(median_us=None), "float"),
        (lambda row: row.pop("median_us"), "median_us"),
        (lambda row: row.update(provenance="modelled"), "modelled"),
    ],
)
def test_bad_kernel_rows_are_named(
    change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path
) -> None:
    data = kernel_table(made_up_row(conv_kernel(), 1.0)).to_json()
    change(data["rows"][conv_kernel().key])
    with pytest.raises(TableError) as caught:
        import_file(written(data, tmp_path / "t.json"))
    assert conv_kernel().key in str(caught.value)
    assert words in str(caught.value)


def test_a_table_without_rows(tmp_path: Path) -> None:
    kernel_table().save(tmp_path / "t.json")
    with pytest.raises(TableError, match="no rows"):
        import_file(tmp_path / "t.json")


def test_a_layer_table_comes_back_as_it_was(tmp_path: Path) -> None:
    array = haq_array()
    array[1] = array[0]
    (table,) = layer_tables(saved(array, tmp_path / "t.npy"))
    table.save(tmp_path / "again.json")
    (again,) = layer_tables(tmp_path / "again.json", "t")
    assert again == table
    assert [flag.kind for flag in again.flags] == ["origin", "copies"]
