"""Tables in a folder: older JSON files become Parquet once, damaged ones are kept and named."""

from __future__ import annotations

from pathlib import Path

import pytest
from latency_fakes import conv_kernel, made_up_row

from latency_tables import LatencyTable, TableError, TableStore, parse_target
from latency_tables import table_folder as module
from latency_tables.store import table_name
from latency_tables.table_file import load_table, save_table
from latency_tables.table_folder import TableFolder

TARGET = parse_target("x86-ort")
NAME = table_name(TARGET.spec, TARGET.host())


@pytest.fixture
def table() -> LatencyTable:
    rows = [made_up_row(conv_kernel(c, c), c / 3) for c in (16, 32)]
    return LatencyTable.empty(TARGET).with_rows(rows)


def test_a_measured_json_table_is_converted_once(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / f"{NAME}.json")
    store = TableStore(tmp_path)
    assert store.list() == (NAME,)
    assert store.load(TARGET) == table
    assert not (tmp_path / f"{NAME}.json").exists()
    assert load_table(tmp_path / f"{NAME}.parquet") == table
    assert TableStore(tmp_path).get(NAME) == table


def test_rows_are_added_to_an_older_table(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / f"{NAME}.json")
    more = TableStore(tmp_path).add(TARGET, [made_up_row(conv_kernel(8, 8), 1.0)])
    assert len(more) == 3
    assert [file.suffix for file in tmp_path.glob(f"{NAME}.*")].count(".parquet") == 1
    assert TableStore(tmp_path).load(TARGET) == more


def test_an_imported_json_table_is_converted(table: LatencyTable, tmp_path: Path) -> None:
    (tmp_path / "imported").mkdir()
    table.save(tmp_path / "imported" / "theirs.json")
    store = TableStore(tmp_path)
    assert store.is_imported("theirs")
    assert store.add_imported({"theirs": table}) == ()
    assert [f.name for f in (tmp_path / "imported").glob("t*s.[jp]*")] == ["theirs.parquet"]


def test_a_folder_that_cannot_be_written_to_is_read_as_it_is(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    table.save(tmp_path / "old.json")
    monkeypatch.setattr(module, "save_table", full)
    folder = TableFolder(tmp_path, "Mend it")
    assert folder.read("old") == table
    assert (tmp_path / "old.json").exists() and not (tmp_path / "old.parquet").exists()


def test_a_conversion_that_loses_something_is_undone(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(one: LatencyTable, path: Path) -> None:
        save_table(one.with_rows([made_up_row(conv_kernel(16, 16), 1.0)]), path)

    table.save(tmp_path / "old.json")
    monkeypatch.setattr(module, "save_table", lossy)
    with pytest.raises(TableError, match="without loss"):
        TableFolder(tmp_path, "Mend it").read("old")
    assert load_table(tmp_path / "old.json") == table
    assert not (tmp_path / "old.parquet").exists()


@pytest.mark.parametrize("name", ["broken.parquet", "broken.json"])
def test_a_damaged_file_is_kept_and_the_remedy_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 or not")
    with pytest.raises(TableError, match=rf"{name} cannot be read.*\. Mend it$"):
        TableFolder(tmp_path, "Mend it").read("broken")
    assert (tmp_path / name).read_bytes() == b"PAR1 or not"


def test_nobody_is_told_to_move_a_sound_file_away(table: LatencyTable, tmp_path: Path) -> None:
    (tmp_path / "odd.parquet").mkdir()
    with pytest.raises(TableError) as caught:
        TableFolder(tmp_path, "Mend it").read("odd")
    assert "Mend it" not in str(caught.value)


def test_what_another_process_wrote_is_seen(table: LatencyTable, tmp_path: Path) -> None:
    one, other = TableStore(tmp_path), TableStore(tmp_path)
    one.add(TARGET, table.rows.values())
    assert len(one.load(TARGET)) == 2
    other.add(TARGET, [made_up_row(conv_kernel(8, 8), 1.0)])
    assert len(one.load(TARGET)) == 3


def test_a_write_that_fails_leaves_the_old_file(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TableStore(tmp_path)
    store.add(TARGET, table.rows.values())

    def fail(*_: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr("latency_tables.files.os.replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        store.add(TARGET, [made_up_row(conv_kernel(8, 8), 1.0)])
    monkeypatch.undo()
    assert TableStore(tmp_path).load(TARGET) == table
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".lock", ".parquet"]


def test_names_of_shipped_tables_are_kept(table: LatencyTable, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="comes with Trimtab"):
        TableStore(tmp_path).add_imported({"cuda-torch-h100-batch32": table})
