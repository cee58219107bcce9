"""Content: what a file, or a folder of logs, holds, read once and with a bound on its size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latency_tables.errors import TableError
from latency_tables.table_file import AnyTable

MAX_FILE_BYTES = 64 * 2**20
MAX_LOGS = 256
LOG_SUFFIXES = (".txt", ".log")


@dataclass(frozen=True)
class Content:
    """Names and bytes of the files to import.

    (No slots: the parsed JSON is cached on the instance.)

    Attributes:
        path: what the user named.
        files: (file name, bytes); more than one only for a folder.
    """

    path: Path
    files: tuple[tuple[str, bytes], ...]

    @classmethod
    def read(cls, path: Path) -> Content:
        """Reads a file, or the logs (``.txt``, ``.log``) of a folder.

        Raises:
            TableError: nothing there, no logs, more than ``MAX_LOGS``, a file over
                ``MAX_FILE_BYTES``, or one that cannot be read.
        """
        if not path.is_dir():
            return cls(path, ((path.name, _bytes(path)),))
        try:
            logs = sorted(
                entry
                for entry in path.iterdir()
                if entry.suffix.lower() in LOG_SUFFIXES and not entry.name.startswith(".")
            )
        except OSError as error:
            raise TableError(f"{path} cannot be read: {error}") from error
        if not logs:
            raise TableError(
                f"{path} is a folder without logs ({', '.join(LOG_SUFFIXES)}); only TFLite "
                "benchmark logs are imported by the folder, for the other formats give the file"
            )
        if len(logs) > MAX_LOGS:
            raise TableError(f"{path} holds {len(logs)} logs; at most {MAX_LOGS} are imported")
        return cls(path, tuple((log.name, _bytes(log)) for log in logs))

    @property
    def data(self) -> bytes:
        """The first file's bytes."""
        return self.files[0][1]

    @property
    def sha256(self) -> str:
        """Of the file; of several, over their digests in order."""
        digests = [hashlib.sha256(data).hexdigest() for _, data in self.files]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @cached_property
    def document(self) -> Any:
        """The file's JSON, None where it is none.

        Raises:
            TableError: it begins like JSON and is not, or names a key twice (which of the two
                rows counts?).
        """
        text = self.data.removeprefix(b"\xef\xbb\xbf").lstrip()
        if len(self.files) > 1 or text[:1] not in (b"{", b"["):
            return None
        try:
            return json.loads(self.data, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{self.path} is not valid JSON: {error}") from error


@dataclass(frozen=True, slots=True)
class Format:
    """One format of tables.

    Attributes:
        name: short, as results show it.
        what: what such a file holds, for the error that lists the formats.
        recognises: whether a content is of this format, from what it holds and not from its name.
        read: the content's tables. Raises ``TableError`` with the row named.
    """

    name: str
    what: str
    recognises: Callable[[Content], bool]
    read: Callable[[Content], list[AnyTable]]


def number(value: Any, what: str) -> float | None:
    """A JSON number as float; None for null and nan, which is how a cell is missing.

    Raises:
        TableError: something else than a number, infinity; ``what`` names the cell.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TableError(f"{what} is {value!r}, not a number")
    try:
        real = float(value)
    except OverflowError:
        raise TableError(f"{what} is too large") from None
    return None if real != real else real


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise TableError(f"there is no file {path}")
    if not path.is_file():
        raise TableError(f"{path} is no ordinary file")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise TableError(
            f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB, the most a table may have"
        )
    if not data:
        raise TableError(f"{path} is empty")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"row or key {key!r} is given twice")
        document[key] = value
    return document
