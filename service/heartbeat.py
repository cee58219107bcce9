"""Keeps a driver's lease alive, and ends the driver when it cannot."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from service.errors import LeaseLost
from service.store import Lease, Store
from service.transitions import JobState

# sysexits.h: EX_TEMPFAIL. The job goes on elsewhere.
EXIT_LEASE_LOST = 75
_log = logging.getLogger(__name__)


def hard_exit() -> None:
    """Ends the process without unwinding: whatever it still does must not be written any more."""
    os._exit(EXIT_LEASE_LOST)


class Heartbeat:
    """Renews a lease every third of its time in a thread.

    The lease is lost when another attempt was started, or when no renewal got through for its whole
    time. The driver then has ``grace`` seconds to unwind before ``on_lost`` is called.

    Attributes:
        lost: the lease is gone; nothing may be written any more.
        cancelling: somebody asked for the job's end.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        seconds: float,
        grace: float = 5.0,
        on_lost: Callable[[], None] = hard_exit,
    ) -> None:
        self.lost = False
        self.cancelling = False
        self._store = store
        self._lease = lease
        self._seconds = seconds
        self._grace = grace
        self._on_lost = on_lost
        self._renewed = time.monotonic()
        self._tried = self._renewed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stops renewing; the lease itself is ended by ``Store.finish``."""
        self._stop.set()
        self._thread.join()

    def beat(self, at_least_every: float = 0.0) -> None:
        """Renews now, unless that was tried less than so many seconds ago."""
        with self._lock:
            if self.lost or time.monotonic() - self._tried < at_least_every:
                return
            self._tried = time.monotonic()
            try:
                state = self._store.renew(self._lease, self._seconds)
            except LeaseLost:
                _log.error("the lease was taken by another attempt")
                self.lost = True
            except Exception as error:
                _log.warning("the lease could not be renewed: %s", error)
                if time.monotonic() - self._renewed > self._seconds:
                    self.lost = True
            else:
                self._renewed = self._tried
                self.cancelling = state == JobState.CANCELLING

    def _run(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            self.beat()
            if self.lost:
                if not self._stop.wait(self._grace):
                    self._on_lost()
                return
