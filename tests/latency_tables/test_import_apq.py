"""APQ's format: what is refused and what is flagged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from import_files import flags, layer_tables, written

from latency_tables import (
    TableError,
)
from latency_tables.importers import import_file


def apq_document() -> dict[str, Any]:
    """Dense and depthwise shapes of growing width, the cost growing with channels and bits."""
    document: dict[str, Any] = {"head": {"latency": 0.25, "energy": 0.5}}
    shapes = [(16, c, 28, 1, 1, 0, 1) for c in (32, 40, 48)]
    shapes += [(c, c, 28, 3, 1, 1, c) for c in (32, 40, 48)]
    for shape in shapes:
        for w in (4, 8):
            for a in (4, 8):
                cost = 1e-3 * shape[0] * (shape[1] + w + a / 2)
                document[f"{shape}-W{w}A{a}"] = {"latency": cost, "energy": 2 * cost}
    return document


def test_apq_format(tmp_path: Path) -> None:
    path = written(apq_document(), tmp_path / "t.json")
    (table,) = layer_tables(path)
    assert (len(table), len(table.precisions)) == (6, 4)
    assert [layer.kind for layer in table.layers] == ["convolution 1x1"] * 3 + ["depthwise 3x3"] * 3
    assert list(flags(path)) == ["origin"]
    assert table.provenance == "imported"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"latency": -1, "energy": 1}, "W8A4: latency is -1 (negative)"),
        ({"latency": None, "energy": 1}, "W8A4: latency is missing"),
        ({"latency": 1}, "W8A4: energy is missing"),
        ({"latency": math.nan, "energy": 1}, "W8A4: latency is missing"),
        ({"latency": math.inf, "energy": 1}, "W8A4: latency is inf"),
        ({"latency": "1", "energy": 1}, "latency is '1', not a number"),
        ({"latency": True, "energy": 1}, "latency is True, not a number"),
        ({"latency": 1, "energy": 1, "power": 1}, "unknown power"),
        (7, "JSON object"),
    ],
)
def test_apq_bad_rows(entry: Any, words: str, tmp_path: Path) -> None:
    document = apq_document() | {"(16, 40, 28, 1, 1, 0, 1)-W8A4": entry}
    with pytest.raises(TableError) as caught:
        import_file(written(document, tmp_path / "t.json"))
    assert words in str(caught.value)
    assert "row (16, 40, 28, 1, 1, 0, 1)" in str(caught.value)


@pytest.mark.parametrize("key", ["(16, 40, 28, 1, 1, 0)-W8A4", "body", "(16, 40)"])
def test_apq_unknown_keys(key: str, tmp_path: Path) -> None:
    document = apq_document() | {key: {"latency": 1, "energy": 1}}
    with pytest.raises(TableError) as caught:
        import_file(written(document, tmp_path / "t.json"))
    assert repr(key) in str(caught.value)


def test_a_row_given_twice(tmp_path: Path) -> None:
    text = json.dumps(apq_document())
    key = "(16, 40, 28, 1, 1, 0, 1)-W8A4"
    path = tmp_path / "t.json"
    path.write_text(text[:-1] + f', "{key}": {{"latency": 1, "energy": 1}}}}')
    with pytest.raises(TableError, match="given twice") as caught:
        import_file(path)
    assert key in str(caught.value)
    spaced = key.replace(", ", ",")
    path.write_text(text[:-1] + f', "{spaced}": {{"latency": 1, "energy": 1}}}}')
    with pytest.raises(TableError, match="given twice"):
        import_file(path)


def test_steps_in_channels_are_flagged(tmp_path: Path) -> None:
    document = apq_document()
    document["(16, 48, 28, 1, 1, 0, 1)-W4A4"]["latency"] = 0.7
    for key, entry in document.items():
        if key.startswith("(48, 48, 28"):
            entry["energy"] /= 2
    messages = flags(written(document, tmp_path / "t.json"))["not monotone"]
    assert len(messages) == 2
    assert messages[0].startswith("1 step to more channels cheaper (latency, ms): ")
    assert "(16, 40, 28, 1, 1, 0, 1) 0.736, (16, 48, 28, 1, 1, 0, 1) 0.7 at W4A4" in messages[0]
    assert "(energy, mJ): (40, 40, 28, 3, 1, 1, 40)" in messages[1]
