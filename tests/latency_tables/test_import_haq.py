"""HAQ's format: what is refused and what is flagged."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from import_files import flags, haq_array, layer_tables, saved

from latency_tables import (
    TableError,
)
from latency_tables.importers import import_file


def test_a_table_that_nobody_published(tmp_path: Path) -> None:
    path = saved(haq_array(), tmp_path / "my board.npy")
    found = import_file(path)
    (table,) = layer_tables(path)
    assert list(found.tables) == ["my-board"] == [table.name]
    assert (table.provenance, table.device, table.network) == ("imported", "unknown device", None)
    assert table.cost(1, 3, 5) == 650
    assert list(flags(path)) == ["origin"]


@pytest.mark.parametrize(
    ("value", "words"),
    [(-3.0, "is -3 (negative)"), (math.nan, "is missing"), (math.inf, "is inf")],
)
def test_haq_bad_cells(value: float, words: str, tmp_path: Path) -> None:
    array = haq_array()
    array[2, 0, 6] = value
    with pytest.raises(TableError) as caught:
        import_file(saved(array, tmp_path / "t.npy"))
    assert f"t.npy (haq): row layer 2, W1A7: latency {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[[{"a": 1}]]], dtype=object), "Python objects"),
        (np.zeros((3, 8)), "shape"),
        (np.zeros((0, 8, 8)), "shape"),
        (np.zeros((2, 40, 40)), "shape"),
        (np.zeros((2, 2, 2), dtype=complex), "real numbers"),
        (np.zeros((2, 2, 2), dtype="datetime64[s]"), "real numbers"),
        (np.zeros((2, 2, 2), dtype=bool), "real numbers"),
        (np.zeros((2, 2, 2), dtype=[("a", "<f8")]), "real numbers"),
    ],
)
def test_arrays_that_are_no_table(array: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=words):
        import_file(saved(array, tmp_path / "t.npy"))


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f8", "fortran_order": False, "shape": (4096, 32, 32)}
    )
    path = tmp_path / "t.npy"
    for tail in (b"", b"\0" * 64):
        path.write_bytes(stream.getvalue() + tail)
        with pytest.raises(TableError, match="cut off"):
            import_file(path)
    unclosed = b"{'descr': '<f8', 'shape': (1, 1,  \n"
    for broken in (
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x09abc",
        b"\x93NUMPY\x01\x00\x08\x00{'a': 1}",
        b"\x93NUMPY\x01\x00" + bytes([len(unclosed), 0]) + unclosed,
    ):
        path.write_bytes(broken)
        with pytest.raises(TableError, match=r"whole \.npy"):
            import_file(path)


def test_copies_and_steps_are_flagged(tmp_path: Path) -> None:
    array = haq_array()
    array[1] = array[0]
    array[2, 4, 4] = 1.0
    messages = flags(saved(array, tmp_path / "t.npy"))
    assert messages["copies"] == [
        "1 of 3 rows the same as another (2 are distinct), which is right for repeated blocks and "
        "plateaus only: layer 1 = layer 0"
    ]
    (steps,) = messages["not monotone"]
    assert steps.startswith("2 steps to more bits cheaper (latency, cycles)")
    assert "layer 2 W4A5 1250, W5A5 1" in steps and "layer 2 W5A4 1540, W5A5 1" in steps
    array[2, 4, 4] = 0.0
    assert flags(saved(array, tmp_path / "t.npy"))["zeros"] == [
        "1 cell of latency at 0: layer 2 at W5A5"
    ]
