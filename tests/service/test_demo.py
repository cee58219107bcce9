"""The demo's exit codes, and that it cleans up before it starts. Running it is ``make demo``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import demo
from service.errors import RuntimeUnavailable


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        ({"state": "succeeded", "report": {"met_budget": True}}, 0, ""),
        ({"state": "failed", "reason": {"detail": "no luck"}}, 1, "demo job failed: no luck"),
        (RuntimeUnavailable("no Ray"), 1, "demo failed: no Ray"),
        (KeyboardInterrupt(), 130, "demo interrupted"),
    ],
)
def test_exit_codes(
    outcome: Any,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def run(out: Path, progress: object) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(demo, "run", run)
    assert demo.main(["--out", str(tmp_path)]) == code
    assert words in capsys.readouterr().err


def test_an_earlier_demo_leaves_only_its_tables(tmp_path: Path) -> None:
    data = tmp_path / ".data"
    (data / "tables").mkdir(parents=True)
    (data / "tables" / "a.json").write_text("{}")
    (data / "artifacts").mkdir()
    (data / "trimtab.sqlite3").write_text("")
    demo._clear(data)
    assert sorted(path.name for path in data.rglob("*")) == ["a.json", "tables"]


def test_a_service_that_does_not_start_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeUnavailable, match="ended with code 1"), demo.service(tmp_path):
        raise AssertionError("it did not start")
