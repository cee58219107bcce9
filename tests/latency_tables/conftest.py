"""Fixtures of the latency-table tests: a private timing token, the zoo where it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latency_tables import exclusive

ZOO = Path(__file__).parents[2] / ".." / "shared" / "zoo"


@pytest.fixture(autouse=True)
def private_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A token of the test's own, so that tests do not wait for a real measurement."""
    monkeypatch.setattr(exclusive, "default_directory", lambda: tmp_path / "token")
    yield tmp_path / "token"


@pytest.fixture(scope="session")
def zoo() -> Any:
    """The ``cifar_zoo`` module."""
    if not (ZOO / "cifar_zoo.py").exists():
        pytest.skip("the shared zoo is not beside this repository")
    sys.path.append(str(ZOO.resolve()))
    return pytest.importorskip("cifar_zoo")
