"""Progress on a device: standard error, with the time left, and nothing that must be installed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TextIO

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.2


class KitProgress:
    """One step after another: a line that is written over on a terminal, else one every ten seconds.

    Args:
        stream: standard error when left out.
        clock: seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._step = ""
        self._began = self._said = 0.0
        self._first = self._width = 0

    def show(self, step: str, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` are done; a new name of a step begins another count."""
        now = self._clock()
        new = step != self._step
        if new:
            self.end()
            self._step, self._began, self._first = step, now, done
        pause = _BAR_SECONDS if self._terminal else _LINE_SECONDS
        if not (new or done >= total or now - self._said >= pause):
            return
        self._said = now
        line = f"{step}  {done}/{total}"
        if total > done > self._first:
            left = (now - self._began) / (done - self._first) * (total - done)
            line += f"  {duration(left)} left"
        if self._terminal:
            self._write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._write(line + "\n")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.end()
        self._write(text + "\n")

    def end(self) -> None:
        """Leaves the line that was written over as it is."""
        if self._width:
            self._write("\n")
        self._width = 0

    def _write(self, text: str) -> None:
        # Nobody need be listening: the connection to the device may be gone.
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
