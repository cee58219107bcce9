"""Keeping the timing thread where it is: which processors, and that nothing else is kept there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from latency_fakes import conv_kernel

from latency_tables import affinity
from latency_tables.affinity import Pin, busy_shares, fast_ones, least_busy, siblings
from latency_tables.ort import OrtTarget

HAS_AFFINITY = hasattr(os, "sched_setaffinity")
several = pytest.mark.skipif(
    not HAS_AFFINITY or len(os.sched_getaffinity(0)) < 2,
    reason="needs two processors and a system with affinities",
)
ALONE = {cpu: frozenset({cpu}) for cpu in range(4)}
PAIRS = {cpu: frozenset({cpu % 2, cpu % 2 + 2}) for cpu in range(4)}


@pytest.mark.parametrize(
    ("threads", "busy", "cores", "expected"),
    [
        (1, {}, ALONE, {3}),
        (1, {3: 1.0, 2: 0.5}, ALONE, {1}),
        (1, {1: 0.04, 2: 0.03, 3: 0.02}, ALONE, {3}),
        (1, {1: 1.0, 2: 1.0, 3: 1.0}, ALONE, {0}),
        (2, {3: 0.9}, ALONE, {1, 2}),
        (1, {3: 0.9}, PAIRS, {2}),
        (2, {3: 0.9}, PAIRS, {1, 2}),
        (3, {}, PAIRS, set()),
        (4, {}, ALONE, {0, 1, 2, 3}),
    ],
)
def test_the_least_busy_cores_are_taken(
    threads: int, busy: dict[int, float], cores: dict[int, frozenset[int]], expected: set[int]
) -> None:
    assert least_busy(threads, range(4), busy, cores) == expected


@given(
    st.integers(1, 5),
    st.sets(st.integers(0, 15), max_size=16),
    st.dictionaries(st.integers(0, 15), st.floats(0, 1)),
)
def test_one_processor_a_core(threads: int, allowed: set[int], busy: dict[int, float]) -> None:
    cores = {cpu: frozenset({cpu, cpu ^ 8}) for cpu in range(16)}
    chosen = least_busy(threads, allowed, busy, cores)
    assert chosen <= allowed
    assert len(chosen) in (0, threads)
    assert len({cores[cpu] for cpu in chosen}) == len(chosen)


def test_what_the_system_says(tmp_path: Path) -> None:
    for cpu, text in ((0, "0,4-5"), (1, "1"), (2, "")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    assert siblings([0, 1, 2, 3], tmp_path) == {
        0: {0, 4, 5},
        1: {1},
        2: {2},
        3: {3},
    }
    assert fast_ones([0, 1], tmp_path) == {0, 1}
    for cpu, capacity in ((0, 1024), (1, 400), (2, 1000)):
        (tmp_path / f"cpu{cpu}" / "cpu_capacity").write_text(f"{capacity}\n")
    assert fast_ones([0, 1, 2], tmp_path) == {0, 2}
    assert fast_ones([1], tmp_path) == {1}


def test_busy_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9\ncpu0 10 0 0 90 0 0 0 0 0 0\ncpu1 5 0 5 90 0 0 0 0 0 0\n")
    later = "cpu0 12 1 1 91 0 0 0 0 0 0\ncpu1 5 0 5 94 1 0 0 0 0 0\nintr 5\n"
    monkeypatch.setattr(affinity.time, "sleep", lambda _: stat.write_text(later))
    assert busy_shares(0.05, stat) == {0: 0.8, 1: 0.0}
    assert busy_shares(0.05, tmp_path / "absent") == {}


@pytest.fixture
def mask() -> Iterator[set[int]]:
    before = os.sched_getaffinity(0)
    yield before
    assert os.sched_getaffinity(0) == before


@several
def test_the_thread_is_kept_and_let_go(mask: set[int]) -> None:
    pin = Pin(1)
    with pin:
        assert os.sched_getaffinity(0) == mask  # nothing was chosen yet
    pin.choose()
    assert len(pin.processors) == 1
    elsewhere: list[set[int]] = []
    inside, outside = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(10)
        elsewhere.append(os.sched_getaffinity(0))
        outside.set()

    thread = threading.Thread(target=other)
    thread.start()
    with pin, pin:
        assert os.sched_getaffinity(0) == set(pin.processors)
        inside.set()
        outside.wait(10)
    thread.join()
    assert elsewhere == [mask]
    assert os.sched_getaffinity(0) == mask
    with pytest.raises(ZeroDivisionError), pin:
        raise ZeroDivisionError
    code = "import os; print(len(os.sched_getaffinity(0)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) == len(mask)


@several
def test_a_runtimes_threads_may_use_as_many_as_they_are(mask: set[int]) -> None:
    pin = Pin(len(mask) + 1)
    pin.choose()
    assert pin.processors == ()
    whole = Pin(len(mask))
    whole.choose()
    with whole:
        assert os.sched_getaffinity(0) == mask


@several
def test_a_restricted_process_stays_within(mask: set[int]) -> None:
    only = {max(mask)}
    os.sched_setaffinity(0, only)
    try:
        pin = Pin(1)
        pin.choose()
        with pin:
            assert os.sched_getaffinity(0) == only
        assert os.sched_getaffinity(0) == only
    finally:
        os.sched_setaffinity(0, mask)


@several
def test_a_system_that_refuses(mask: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    pin = Pin(1)
    pin.choose()
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", refuse)
        with pin:
            assert os.sched_getaffinity(0) == mask
    assert pin.processors == ()


def test_a_system_without_affinities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    pin = Pin(1)
    pin.choose()
    with pin:
        assert pin.processors == ()


@several
def test_what_is_asked_and_told_meanwhile_is_not_kept_there(mask: set[int]) -> None:
    seen: list[set[int]] = []

    def stop() -> bool:
        seen.append(os.sched_getaffinity(0))
        return False

    target = OrtTarget()
    found = target.measure_kernels(
        [conv_kernel(4, 4)], progress=lambda *_: seen.append(os.sched_getaffinity(0)), stop=stop
    )
    assert len(found.rows) == 1
    assert seen and all(one == mask for one in seen)
