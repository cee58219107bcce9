from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from latency_tables import HostToken, MeasurementError, timing_token

ROOT = Path(__file__).parents[2]


def holder(path: Path, how: str) -> subprocess.Popen[str]:
    """A real process that takes the token and then holds it until it is told to go on or killed."""
    code = (
        "import sys; from pathlib import Path; from latency_tables.exclusive import HostToken\n"
        f"with HostToken(Path({str(path)!r})).{how}():\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    return process


def held(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=30)


def test_timing_excludes_everybody(tmp_path: Path) -> None:
    path = tmp_path / "host.lock"
    process = held(holder(path, "timing"))
    told: list[str] = []
    for take in (HostToken(path).timing, HostToken(path).computing):
        with pytest.raises(MeasurementError, match="stayed taken"), take(0.05, told.append):
            pass
    assert len(told) == 2
    assert str(process.pid) in told[0]
    end(process)
    with HostToken(path).timing(timeout=5):
        pass


def test_computing_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "host.lock"
    process = held(holder(path, "computing"))
    with HostToken(path).computing(timeout=5):
        pass
    with pytest.raises(MeasurementError), HostToken(path).timing(timeout=0.05):
        pass
    end(process)


@pytest.mark.parametrize("how", ["timing", "computing"])
def test_a_killed_holder_gives_the_token_back(tmp_path: Path, how: str) -> None:
    path = tmp_path / "host.lock"
    process = held(holder(path, how))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with HostToken(path).timing(timeout=5):
        pass


def test_evaluators_do_not_starve_a_timer(tmp_path: Path) -> None:
    path = tmp_path / "host.lock"
    first = held(holder(path, "computing"))
    timer = holder(path, "timing")
    deadline = time.monotonic() + 30
    # Once the timer waits, a new evaluator is kept out although the token is only held shared.
    while True:
        try:
            with HostToken(path).computing(timeout=0):
                assert time.monotonic() < deadline, "the waiting timer kept nobody out"
                time.sleep(0.02)
        except MeasurementError:
            break
    end(first)
    held(timer)
    end(timer)
    with HostToken(path).computing(timeout=5):
        pass


def test_nesting_in_one_thread(tmp_path: Path) -> None:
    token = HostToken(tmp_path / "host.lock")
    with token.timing(), token.timing(timeout=0), token.computing(timeout=0):
        pass
    with (
        token.computing(),
        token.computing(timeout=0),
        pytest.raises(MeasurementError, match="cannot time"),
        token.timing(),
    ):
        pass
    with token.timing(timeout=0):
        pass


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    token = HostToken(tmp_path / "host.lock")
    refused: list[bool] = []

    def other() -> None:
        try:
            with token.computing(timeout=0.02):
                refused.append(False)
        except MeasurementError:
            refused.append(True)

    with token.timing():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == [True]


def test_an_error_inside_gives_the_token_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), timing_token(tmp_path):
        1 / 0  # noqa: B018
    with timing_token(tmp_path):
        pass


def test_one_place_a_host(private_token: Path) -> None:
    with timing_token():
        assert (private_token / "host.lock").exists()
