"""Progress of long work on standard error, with the time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_SECONDS = 10.0


class StageProgress:
    """Shows one stage after another. On a terminal a live bar, elsewhere a line every ten seconds.

    Args:
        stream: standard error when left out.
        quiet: show nothing at all.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._console = Console(
            file=stream or sys.stderr, markup=False, highlight=False, quiet=quiet, soft_wrap=True
        )
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._began = 0.0
        self._first = 0
        self._said = 0.0

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def show(self, stage: str, message: str = "", done: int = 0, total: int = 0) -> None:
        """Shows how far a stage is; ``total`` 0 means that nobody knows.

        Args:
            stage: a new name ends the stage before.
            message: a few words more.
            done, total: a count.
        """
        new = stage != self._stage
        if new:
            self._stage, self._began, self._first = stage, time.monotonic(), done
        if self._console.is_terminal:
            self._show_bar(new, f"{stage}  {message}".strip(), done, total)
        elif new or done == total > 0 or time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            self._console.print(self._line(stage, message, done, total))

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text)

    def close(self) -> None:
        """Ends the bar; lines written so far stay."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_bar(self, new: bool, text: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        if new or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(text, total=total or None, completed=done)
        self._bar.update(self._task, description=text, completed=done, total=total or None)

    def _line(self, stage: str, message: str, done: int, total: int) -> str:
        parts = [stage]
        if total:
            parts.append(f"{done}/{total}")
        if message:
            parts.append(message)
        line = "  ".join(parts)
        seconds = time.monotonic() - self._began
        if total > done > self._first and seconds > 1:
            line += f"  ({duration(seconds / (done - self._first) * (total - done))} left)"
        return line


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
