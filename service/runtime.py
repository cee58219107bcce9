"""Where drivers run. The database says what is true of a job; a runtime only gives hints."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol


class DriverState(StrEnum):
    """What a runtime knows about one attempt's driver."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    # Never seen, forgotten with a restart of the runtime, or the runtime does not answer.
    UNKNOWN = "unknown"


class Runtime(Protocol):
    """Starts one driver an attempt."""

    def ensure(self) -> None:
        """Makes the runtime ready to start drivers. Raises RuntimeUnavailable."""

    def submit(self, job: str, attempt: int, metadata: Mapping[str, str]) -> None:
        """Starts a driver; the same attempt twice is one driver.

        Args:
            metadata: shown to people: ``name``, ``model``, ``target``.

        Raises:
            RuntimeUnavailable: it could not be started.
        """

    def poll(self, job: str, attempt: int) -> DriverState: ...

    def explain(self, job: str, attempt: int) -> str:
        """What the runtime says about how a driver ended; empty when it says nothing."""

    def cancel(self, job: str, attempt: int) -> None:
        """Ends a driver by force; one that is not there is fine."""
