"""Logs of TensorFlow Lite's benchmark tool: what is refused and what is flagged."""

from __future__ import annotations

from pathlib import Path

import pytest
from import_files import TIMES, layer_tables, log

from latency_tables import (
    LayerTable,
    TableError,
)
from latency_tables.importers import import_file


def test_a_folder_of_logs(tmp_path: Path) -> None:
    (tmp_path / "r1.txt").write_text(log(TIMES))
    (tmp_path / "r2.log").write_text(log(TIMES | {"b": 3.5}, 9500))
    (tmp_path / "r3.txt").write_text(log(TIMES | {"b": 3.125}, 9100))
    (tmp_path / "README.md").write_text("no log")
    found = import_file(tmp_path, "toy")
    table = found.tables["toy"]
    assert isinstance(table, LayerTable)
    assert table.matrix().ravel().tolist() == [4.0, 3.125, 2.0]
    assert table.whole == (9.0, 9.5, 9.1)
    assert table.layers[1].facts == {"runs": 3, "lowest_ms": 3.0, "highest_ms": 3.5}
    assert (table.provenance, table.device) == ("measured", "unknown device, 1 thread")
    assert {flag.kind for flag in found.flags["toy"]} == {"origin", "drift"}


def test_a_copied_log_is_flagged(tmp_path: Path) -> None:
    for name in ("r1.txt", "r2.txt"):
        (tmp_path / name).write_text(log(TIMES))
    (found,) = import_file(tmp_path).flags.values()
    (flag,) = [flag for flag in found if flag.kind == "copied runs"]
    assert "r2.txt = r1.txt" in flag.message


def test_operators_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text(log(TIMES).replace("[c]", "[a]"))
    (table,) = layer_tables(path)
    assert [layer.label for layer in table.layers] == ["a", "b", "a (2)"]


def test_an_integer_network(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text(log(TIMES, **{"Input types": "[uint8]", "Num threads": "[4]"}))
    (table,) = layer_tables(path)
    assert (table.precisions, table.device) == (((8, 8),), "unknown device, 4 threads")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (log(TIMES).replace("2.000\t 1.0%", "-2.000\t 1.0%"), "operator 2, c is -2 (negative)"),
        (log(TIMES).replace("2.000\t 1.0%", "nan\t 1.0%"), "operator 2, c is missing"),
        (log(TIMES).replace("2.000\t 1.0%", "two\t 1.0%"), "operator 2, c: 'two' is no time"),
        (log(TIMES).replace("\t 1\t[c]", ""), "operator 2 is cut off"),
        (log(TIMES, executed=4), "4 operators ran and 3 are listed"),
        (log({}), "is empty"),
        (log(TIMES, -5), "average inference time is -5 (negative)"),
        (log(TIMES).replace("no stats", "stats"), "the average inference time"),
        (log(TIMES).replace("Graph", "Grape"), "the graph's name"),
        (log(TIMES).replace("[avg ms]", "[best ms]"), "no columns [avg ms]"),
        (log(TIMES, **{"Input types": "[string]"}), "unknown input type 'string'"),
    ],
)
def test_bad_logs(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text(text)
    with pytest.raises(TableError) as caught:
        import_file(tmp_path / "r.txt")
    assert words in str(caught.value)
    assert "r.txt" in str(caught.value)


def test_a_missing_operator_is_named_or_placed(tmp_path: Path) -> None:
    lines = log(TIMES).splitlines()
    cut = "\n".join(line for line in lines if "[b]" not in line)
    (tmp_path / "r1.txt").write_text(cut)
    with pytest.raises(TableError, match=r"3 operators ran and 2 are listed.*between a and c"):
        import_file(tmp_path / "r1.txt")
    (tmp_path / "r2.txt").write_text(log(TIMES))
    with pytest.raises(TableError, match="operator b is missing in the former"):
        import_file(tmp_path)
    (tmp_path / "r0.txt").write_text(log(TIMES))
    with pytest.raises(TableError, match=r"r0\.txt and r1\.txt.*operator b is missing there"):
        import_file(tmp_path)


def test_runs_under_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "r1.txt").write_text(log(TIMES))
    (tmp_path / "r2.txt").write_text(log(TIMES, **{"Num threads": "[4]"}))
    with pytest.raises(TableError, match="threads 1 and 4"):
        import_file(tmp_path)
    (tmp_path / "r2.txt").write_text("no log")
    with pytest.raises(TableError, match=r"r2\.txt is no benchmark log"):
        import_file(tmp_path)
