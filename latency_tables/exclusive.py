"""Timing is exclusive on a host.

Whoever computes (an evaluator of any job) holds the host's token *shared*, whoever times holds it
*exclusive*. The token is a ``flock`` on a file, so the kernel gives it back when a process dies,
however it dies. A stream of evaluators would starve a timer, therefore a timer first takes a second
file (the intent) which every evaluator touches on its way in: once a timer waits, no new evaluator
starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from latency_tables.errors import MeasurementError

OnWait = Callable[[str], None]
_POLL_SECONDS = 0.01


def default_directory() -> Path:
    """The host-wide place of the token: one directory a user under the temporary directory."""
    return Path(tempfile.gettempdir()) / f"trimtab-{os.getuid()}"


class _Lock:
    """One acquisition of one lock file; polls, so that a wait can be given up."""

    def __init__(self, path: Path, mode: int) -> None:
        self.path, self.mode = path, mode
        self.handle = -1

    def acquire(self, deadline: float, on_wait: OnWait | None) -> None:
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        told = False
        try:
            while True:
                try:
                    fcntl.flock(self.handle, self.mode | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if on_wait is not None and not told:
                        told = True
                        on_wait(f"waiting for {self.path}{self._holder()}")
                    if time.monotonic() >= deadline:
                        raise MeasurementError(
                            f"the host's timing token {self.path} stayed taken{self._holder()}; "
                            "wait for the other measurement or evaluation to end"
                        ) from None
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            self._close()
            raise

    def _holder(self) -> str:
        text = os.pread(self.handle, 32, 0).decode(errors="replace").strip()
        return f" (last timed by process {text})" if text else ""

    def sign(self) -> None:
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        # Unlock before closing: a forked child would otherwise keep the lock alive.
        fcntl.flock(self.handle, fcntl.LOCK_UN)
        self._close()

    def _close(self) -> None:
        os.close(self.handle)
        self.handle = -1

    def __enter__(self) -> _Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class _Held(threading.local):
    """What this thread holds: token path to (mode, depth)."""

    def __init__(self) -> None:
        self.tokens: dict[Path, tuple[int, int]] = {}


_HELD = _Held()


class HostToken:
    """The token of one host.

    Args:
        path: lock file; its directory is made. ``path`` with ``.intent`` appended is the timers'
            queue. Left out, the one file of this user on this host.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or default_directory() / "host.lock").absolute()
        self.intent = self.path.with_name(self.path.name + ".intent")

    @contextlib.contextmanager
    def computing(
        self, timeout: float | None = None, on_wait: OnWait | None = None
    ) -> Iterator[None]:
        """Holds the token shared: any number compute together while nobody times.

        Args:
            timeout: seconds to wait, None without end.
            on_wait: told once, in words, when there is something to wait for.

        Raises:
            MeasurementError: the token stayed taken for ``timeout`` seconds.
        """
        with self._held(fcntl.LOCK_SH, timeout, on_wait):
            yield

    @contextlib.contextmanager
    def timing(self, timeout: float | None = None, on_wait: OnWait | None = None) -> Iterator[None]:
        """Holds the token exclusive: nobody else on this host computes or times.

        Raises:
            MeasurementError: the token stayed taken for ``timeout`` seconds, or this very thread
                holds it shared (it would wait for itself).
        """
        with self._held(fcntl.LOCK_EX, timeout, on_wait):
            yield

    @contextlib.contextmanager
    def _held(self, mode: int, timeout: float | None, on_wait: OnWait | None) -> Iterator[None]:
        held, depth = _HELD.tokens.get(self.path, (mode, 0))
        if depth:
            if mode == fcntl.LOCK_EX and held == fcntl.LOCK_SH:
                raise MeasurementError(
                    "a thread that holds the host's token for computing cannot time"
                )
            _HELD.tokens[self.path] = (held, depth + 1)
            try:
                yield
            finally:
                _HELD.tokens[self.path] = (held, depth)
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        lock = _Lock(self.path, mode)
        intent = _Lock(self.intent, mode)
        intent.acquire(deadline, on_wait)
        with intent:
            lock.acquire(deadline, on_wait)
        with lock:
            if mode == fcntl.LOCK_EX:
                lock.sign()
            _HELD.tokens[self.path] = (mode, 1)
            try:
                yield
            finally:
                del _HELD.tokens[self.path]


@contextlib.contextmanager
def timing_token(directory: Path | None = None, on_wait: OnWait | None = None) -> Iterator[None]:
    """Holds the host's token for timing; reentrant in a thread.

    Args:
        directory: where the lock file lies; ``default_directory()`` when left out.
        on_wait: told once when somebody else holds the token.
    """
    path = None if directory is None else directory / "host.lock"
    with HostToken(path).timing(on_wait=on_wait):
        yield
