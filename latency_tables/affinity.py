"""Keeping a timing thread on the processors it was given.

A thread that the system moves finds cold caches and, beside a busy one, half a core; both show as
scatter. While something is timed its thread therefore stays on the least busy processors, one a
physical core. It is the thread that is kept, not the process, and only while it times: threads and
processes that are started at other times may run anywhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

SAMPLE_SECONDS = 0.05
# A choice is not made anew before so many seconds.
LASTS_SECONDS = 3.0
# Processors slower than this share of the fastest are another kind of core, and nothing is timed there.
_FAST = 0.9
_CPUS = Path("/sys/devices/system/cpu")
_STAT = Path("/proc/stat")


class Pin:
    """Keeps the calling thread, and those it starts meanwhile, on as many processors as it has threads.

    ``choose`` looks for the least busy ones, ``with`` goes there and comes back. A runtime's own
    threads inherit where they may run from the thread that makes its session, so with more than one
    thread sessions are to be made inside of ``with``, and the choice is made only once.

    One of them serves one thread. Nothing happens where the system has no affinities, where the
    process may use no more processors than it has threads, or where the fastest kind of core is too
    rare.

    Args:
        threads: of the runtime, the calling one among them.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._chosen: frozenset[int] | None = None
        self._until = 0.0
        self._before: list[frozenset[int]] = []

    @property
    def processors(self) -> tuple[int, ...]:
        """What was chosen; () where the thread is left alone."""
        return tuple(sorted(self._chosen or ()))

    def choose(self) -> None:
        """Takes a twentieth of a second to see which processors are busy with something else.

        The calling thread sleeps meanwhile: what is busy then is others' work.
        """
        kept = self._chosen is not None and (self._threads > 1 or time.monotonic() < self._until)
        allowed = _allowed()
        if kept or len(allowed) <= self._threads:
            return
        self._chosen = least_busy(
            self._threads, fast_ones(allowed), busy_shares(SAMPLE_SECONDS), siblings(allowed)
        )
        self._until = time.monotonic() + LASTS_SECONDS

    def __enter__(self) -> Pin:
        before = _allowed() if self._chosen else frozenset()
        if self._chosen:
            try:
                os.sched_setaffinity(0, self._chosen)
            except OSError:
                # They were taken away from this process in between.
                self._chosen, before = None, frozenset()
        self._before.append(before)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        before = self._before.pop()
        if not before:
            return
        try:
            os.sched_setaffinity(0, before)
        except OSError:
            # All of them are gone; the system cuts a mask down to what there is.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, range(os.cpu_count() or 1))


def least_busy(
    threads: int,
    allowed: Collection[int],
    busy: Mapping[int, float],
    cores: Mapping[int, frozenset[int]],
) -> frozenset[int]:
    """One processor in each of the physical cores that have least to do.

    Args:
        threads: processors wanted.
        allowed: processors to choose from.
        busy: share of the time each had something to do, 0 to 1; unknown ones count as idle.
        cores: the processors of each one's physical core, itself among them.

    Returns:
        ``threads`` processors, or none where there are fewer cores than that. Among equals not the
        first processor, which takes most interrupts.
    """
    groups: dict[frozenset[int], list[int]] = {}
    for cpu in allowed:
        groups.setdefault(cores.get(cpu, frozenset({cpu})), []).append(cpu)
    if len(groups) < threads:
        return frozenset()

    def load(members: Collection[int]) -> float:
        # The system counts in hundredths of a second: less than a tenth is noise.
        return round(sum(busy.get(cpu, 0.0) for cpu in members), 1)

    order = sorted(groups, key=lambda core: (load(core), 0 in core, -max(core)))
    return frozenset(
        min(groups[core], key=lambda cpu: (load({cpu}), cpu == 0, cpu)) for core in order[:threads]
    )


def busy_shares(seconds: float, stat: Path = _STAT) -> dict[int, float]:
    """Share of the time each processor had something to do; {} where the system does not say."""
    before = _ticks(stat)
    if not before:
        return {}
    time.sleep(seconds)
    found = {}
    for cpu, (busy, total) in _ticks(stat).items():
        busy_then, total_then = before.get(cpu, (busy, total))
        passed = total - total_then
        found[cpu] = (busy - busy_then) / passed if passed > 0 else 0.0
    return found


def siblings(allowed: Collection[int], root: Path = _CPUS) -> dict[int, frozenset[int]]:
    """The processors that share a physical core with each one; itself alone where unknown."""
    found = {}
    for cpu in allowed:
        text = _read(root / f"cpu{cpu}" / "topology" / "thread_siblings_list")
        found[cpu] = _numbers(text) | {cpu}
    return found


def fast_ones(allowed: Collection[int], root: Path = _CPUS) -> frozenset[int]:
    """The processors of the fastest kind: phones and laptops have slower cores beside them."""
    kept = frozenset(allowed)
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {cpu: _number(_read(root / f"cpu{cpu}" / name)) for cpu in allowed}
        fastest = max(speeds.values(), default=0)
        kept &= {cpu for cpu, speed in speeds.items() if speed >= _FAST * fastest}
    return kept


def _allowed() -> frozenset[int]:
    """Where this thread may run; empty where the system has no affinities."""
    if not hasattr(os, "sched_setaffinity"):
        return frozenset()
    try:
        return frozenset(os.sched_getaffinity(0))
    except OSError:
        return frozenset()


def _ticks(stat: Path) -> dict[int, tuple[int, int]]:
    """(busy, all) ticks of each processor since the start."""
    found = {}
    for line in _read(stat).splitlines():
        name, *fields = line.split() or [""]
        number = name.removeprefix("cpu")
        if name.startswith("cpu") and number.isdigit() and len(fields) >= 5:
            # user nice system idle iowait irq softirq steal; guests are in user already
            ticks = [int(field) for field in fields[:8]]
            idle = ticks[3] + ticks[4]
            found[int(number)] = (sum(ticks) - idle, sum(ticks))
    return found


def _numbers(text: str) -> frozenset[int]:
    """``0-2,5`` as numbers."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return frozenset(found)


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
