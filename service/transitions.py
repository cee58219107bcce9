"""Which state a job goes to next. Pure rules; the store applies them under a lock.

queued ──start──> running ──finish──> succeeded | failed
  │                 │  ^ start (a new attempt)
  │ cancel          │ cancel
  v                 v
cancelled <──finish── cancelling
"""

from __future__ import annotations

from enum import StrEnum

from service.errors import ConflictError


class JobState(StrEnum):
    """States of a job, as the contract names them."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in ENDED

    @property
    def active(self) -> bool:
        """True when a driver runs, or should."""
        return self in (JobState.RUNNING, JobState.CANCELLING)


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


def start(state: JobState) -> JobState:
    """A new attempt begins.

    Raises:
        ConflictError: the job has ended or is being cancelled.
    """
    if state in (JobState.QUEUED, JobState.RUNNING):
        return JobState.RUNNING
    raise ConflictError(f"a job that is {state} cannot be started")


def cancel(state: JobState) -> JobState:
    """Somebody asks for the end; asking twice is fine.

    Raises:
        ConflictError: the job has succeeded or failed already.
    """
    if state in (JobState.QUEUED, JobState.CANCELLED):
        return JobState.CANCELLED
    if state.active:
        return JobState.CANCELLING
    raise ConflictError(f"the job has {state} already and cannot be cancelled")


def finish(state: JobState, outcome: JobState) -> JobState:
    """The driver, or the server in place of a dead one, ends the job.

    A job that is being cancelled ends as cancelled whatever its driver reached in the meantime:
    that is what the user asked for.

    Raises:
        ConflictError: nothing runs that could end, or the outcome is no end.
    """
    if not outcome.ended:
        raise ConflictError(f"{outcome} is not an end of a job")
    if state == JobState.CANCELLING:
        return JobState.CANCELLED
    if state == JobState.RUNNING:
        return outcome
    raise ConflictError(f"a job that is {state} cannot end as {outcome}")


def deletable(state: JobState) -> None:
    """Raises ConflictError unless the job has ended."""
    if not state.ended:
        raise ConflictError(
            f"the job is {state}; cancel it and wait for its end before deleting it"
        )
