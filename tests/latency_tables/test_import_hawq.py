"""HAWQ's format: what is refused and what is flagged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from import_files import flags, layer_tables, written

from latency_tables import (
    TableError,
)
from latency_tables.importers import import_file


def hawq_document() -> dict[str, Any]:
    return {
        "net": {
            "Hutchinson_trace": [0.5, 0.25],
            "delta_weights_8bit_square": [0.1, 0.2],
            "delta_weights_4bit_square": [4.0, 8.0],
            "parameters": [10, 20],
            "bops": [100, 200],
            "latency_int4": [1.0, 2.0],
            "latency_int8": [1.5, 3.0],
        }
    }


def test_hawq_format(tmp_path: Path) -> None:
    path = written(hawq_document(), tmp_path / "t.json")
    (table,) = layer_tables(path)
    assert (table.name, table.network, table.precisions) == ("t", "net", ((4, 4), (8, 8)))
    assert table.matrix("sensitivity").tolist() == [[2.0, 0.05], [2.0, 0.05]]
    assert dict(table.layers[1].facts) == {"parameters": 20, "macs": 200}
    assert list(flags(path)) == ["origin"]


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("latency_int4", [1.0], "row 1 of latency_int4 is missing"),
        ("latency_int4", [1.0, None], "latency_int4, row 1 is missing"),
        ("latency_int4", [1.0, -2.0], "latency_int4, row 1 is -2 (negative)"),
        ("Hutchinson_trace", [0.5, "x"], "Hutchinson_trace, row 1 is 'x'"),
        ("latency_int4", 1.0, "latency_int4 is no list"),
        ("parameters", [], "parameters has 0 rows"),
        ("latency_int2", [1.0, math.inf], "row net layer 1, W2A2: latency is inf"),
    ],
)
def test_hawq_bad_rows(key: str, values: Any, words: str, tmp_path: Path) -> None:
    document = hawq_document()
    document["net"][key] = values
    with pytest.raises(TableError) as caught:
        import_file(written(document, tmp_path / "t.json"))
    assert words in str(caught.value)


def test_more_bits_should_be_dearer_and_less_sensitive(tmp_path: Path) -> None:
    document = hawq_document()
    document["net"]["latency_int8"][0] = 0.9
    document["net"]["delta_weights_8bit_square"][1] = 9.0
    messages = flags(written(document, tmp_path / "t.json"))["not monotone"]
    assert "cheaper (latency, ms): net layer 0 W4A4 1, W8A8 0.9" in messages[0]
    assert "more sensitive (sensitivity, no unit): net layer 1 W4A4 2, W8A8 2.25" in messages[1]
