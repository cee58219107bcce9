"""Ctrl-C as a wish: what is being timed is finished and kept before a measurement ends."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any

# A closed connection to the device ends the measurement as Ctrl-C does.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """While it is entered the first signal only sets ``wanted``; a second one ends at once.

    Attributes:
        wanted: somebody asked to stop.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self.wanted = False

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            # Under nohup, and in the background of a script, some are ignored and must stay so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping when the kernels at hand are done; once more stops at once\n")
