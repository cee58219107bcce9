"""Runs of a benchmark kept from one call to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


class LineFile(Generic[Row]):
    """Rows, each a dataclass, as lines of JSON.

    Args:
        path: is made when the first row is added; None keeps nothing.
        parse: makes a row of what its ``asdict`` was.
    """

    def __init__(self, path: Path | None, parse: Callable[[dict[str, Any]], Row]) -> None:
        self._path, self._parse = path, parse

    def read(self) -> Iterator[Row]:
        """All rows that are kept. A line that was cut off while it was written is left out."""
        if self._path is None or not self._path.exists():
            return
        for line in self._path.read_text().splitlines():
            try:
                yield self._parse(json.loads(line))
            except json.JSONDecodeError:
                continue

    def add(self, row: Row) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A line cut off in an earlier call must not swallow this one.
            whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n")
            with self._path.open("a") as file:
                file.write(("" if whole else "\n") + json.dumps(asdict(row)) + "\n")  # type: ignore[call-overload]
