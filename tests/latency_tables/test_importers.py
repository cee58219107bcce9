"""Files of any format: which are refused unread, and what their tables are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from import_files import TIMES, log

from latency_tables import (
    TableError,
)
from latency_tables.importers import content as contents
from latency_tables.importers import import_file
from latency_tables.store import default_name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "no format that can be imported"),
        (b"[1, 2]", "no format that can be imported"),
        (b"PK\x03\x04", "no format that can be imported"),
        (b'{"a": ', "not valid JSON"),
        (b"{\xff}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_files_of_no_format(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(TableError, match=words) as caught:
        import_file(path)
    assert "table.json" in str(caught.value)


def test_files_that_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_FILE_BYTES", 2**20)
    (tmp_path / "large.npy").write_bytes(b"\x93NUMPY" + b"\0" * 2**20)
    with pytest.raises(TableError, match="larger than 1 MiB"):
        import_file(tmp_path / "large.npy")
    with pytest.raises(TableError, match="there is no file"):
        import_file(tmp_path / "absent.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(TableError, match="no ordinary file"):
        import_file(tmp_path / "pipe.npy")
    monkeypatch.setattr(contents, "MAX_LOGS", 1)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(log(TIMES))
    with pytest.raises(TableError, match="2 logs; at most 1"):
        import_file(tmp_path)


def test_names() -> None:
    assert default_name(Path("x/my board (v2).npy")) == "my-board-v2"
    assert default_name(Path("x86-ort-threads-1-batch-1-0123456789ab.json")) == (
        "x86-ort-threads-1-batch-1"
    )
    assert default_name(Path("....json")) == "table"
