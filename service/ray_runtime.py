"""Drivers as Ray Jobs, so that Ray's dashboard shows each with its log and its evaluators."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from service.errors import RuntimeUnavailable
from service.runtime import DriverState

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_log = logging.getLogger(__name__)
_AGENT_SECONDS = 60.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RayAccess:
    """A Ray dashboard and its token (None: Ray's own environment variables say)."""

    url: str
    token: str | None = None


class RayRuntime:
    """Satisfies ``Runtime`` through Ray's Jobs API.

    Args:
        access: gives the dashboard, and starts Ray first where it is embedded. Raises
            RuntimeUnavailable.
        driver_file: as ``Settings.write_driver_file`` left it.
    """

    def __init__(self, access: Callable[[], RayAccess], driver_file: Path) -> None:
        self._access = access
        self._driver_file = driver_file
        self._connected: tuple[RayAccess, JobSubmissionClient] | None = None

    def ensure(self) -> None:
        self._client()

    def submit(self, job: str, attempt: int, metadata: Mapping[str, str]) -> None:
        # -P: no file of the current folder may be taken for one of our packages.
        command = [sys.executable, "-P", "-m", "service.driver", "--job", job]
        command += ["--attempt", str(attempt), "--config", str(self._driver_file)]
        deadline = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                self._client().submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=_submission(job, attempt),
                    metadata={**metadata, "trimtab_job": job, "attempt": str(attempt)},
                )
                return
            except (RuntimeError, OSError) as error:
                if "already exists" in str(error) or "has already been" in str(error):
                    return
                # Just after a start Ray's head has no agent yet and answers 500.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise RuntimeUnavailable(f"Ray did not take the job: {_line(error)}") from error
                time.sleep(0.5)

    def poll(self, job: str, attempt: int) -> DriverState:
        info = self._try(lambda client: client.get_job_info(_submission(job, attempt)))
        if info is None:
            return DriverState.UNKNOWN
        status = str(getattr(info.status, "value", info.status))
        if status in _ENDED:
            return DriverState.ENDED
        return DriverState.RUNNING if status == "RUNNING" else DriverState.PENDING

    def explain(self, job: str, attempt: int) -> str:
        info = self._try(lambda client: client.get_job_info(_submission(job, attempt)))
        # "Job entrypoint command failed with exit code 9, last available logs ..." and then the
        # logs.
        message = "" if info is None else str(info.message or "").strip()
        return message.partition("\n")[0].partition(", last available")[0][:500]

    def cancel(self, job: str, attempt: int) -> None:
        self._try(lambda client: client.stop_job(_submission(job, attempt)))

    def _client(self) -> JobSubmissionClient:
        access = self._access()
        if self._connected is None or self._connected[0] != access:
            from ray.job_submission import JobSubmissionClient

            headers = {"Authorization": f"Bearer {access.token}"} if access.token else None
            try:
                client = JobSubmissionClient(access.url, headers=headers)
            except Exception as error:
                raise RuntimeUnavailable(
                    f"Ray does not answer at {access.url}: {_line(error)}"
                ) from error
            self._connected = (access, client)
        return self._connected[1]

    def _try(self, ask: Callable[[JobSubmissionClient], T]) -> T | None:
        """None where Ray does not know the job or does not answer."""
        try:
            return ask(self._client())
        except (RuntimeError, OSError, RuntimeUnavailable) as error:
            _log.debug("Ray: %s", error)
            return None


def _submission(job: str, attempt: int) -> str:
    return f"{job}-{attempt}"


def _line(error: Any) -> str:
    """The last line that says something; Ray's errors carry whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
