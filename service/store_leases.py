"""Leases: one attempt at a time works on a job, and only the newest one is believed.

The server starts an attempt (its number is the fencing token); the attempt's driver claims the
lease and renews it. When it stops doing so, the server buries the attempt and may start another. A
lease that ran out but was not taken yet may still be renewed: what fences a driver off is that
somebody took its job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from service import transitions
from service.errors import ConflictError, LeaseLost
from service.store_jobs import StoreJobs
from service.tables import Artifact, Attempt, Job
from service.transitions import JobState


@dataclass(frozen=True, slots=True)
class Lease:
    """A driver's right to write: every write names it.

    Attributes:
        owner: unique to the driver's process.
    """

    job: str
    attempt: int
    owner: str


class StoreLeases(StoreJobs):
    """The part of ``Store`` that starts, renews and ends attempts."""

    def start_attempt(self, job: str, seconds: float) -> int:
        """Makes room for a new attempt and returns its number; its driver has ``seconds`` to claim
        it.

        Raises:
            ConflictError: the job is not queued, and not running without a lease.
        """
        with self.database.write() as session:
            row = self._locked(session, job)
            now = self.database.now(session)
            before = JobState(row.state)
            state = transitions.start(before)
            if before == JobState.RUNNING and not self._expired(row, now):
                raise ConflictError(f"attempt {row.attempt} of job {job} holds the lease")
            self._bury(session, row, now)
            row.state = state.value
            row.attempt += 1
            row.started = row.started or now
            row.lease_expires = now + seconds
            session.add(Attempt(job=job, number=row.attempt, created=now, trials=0))
            self._append(session, row, "attempt", {"number": row.attempt})
            if before != state:
                self._append(session, row, "state", {"state": row.state})
            return row.attempt

    def claim(self, job: str, attempt: int, owner: str, seconds: float) -> Lease:
        """The driver takes the lease of its attempt, once.

        Raises:
            LeaseLost: another attempt was started, another process claimed this one, or the job has
                ended.
        """
        with self.database.write() as session:
            row = self._locked(session, job)
            record = session.get(Attempt, (job, attempt))
            if (
                record is None
                or row.attempt != attempt
                or record.owner is not None
                or record.outcome is not None
                or not JobState(row.state).active
            ):
                raise LeaseLost(f"attempt {attempt} of job {job} may not start")
            now = self.database.now(session)
            record.owner = row.lease_owner = owner
            record.claimed = record.renewed = now
            row.lease_expires = now + seconds
            return Lease(job, attempt, owner)

    def renew(self, lease: Lease, seconds: float) -> JobState:
        """Extends the lease and says whether somebody asked for the job's end.

        Raises:
            LeaseLost: another attempt was started or the job has ended.
        """
        with self.database.write() as session:
            row = self._held(session, lease)
            now = self.database.now(session)
            row.lease_expires = now + seconds
            session.get_one(Attempt, (lease.job, lease.attempt)).renewed = now
            return JobState(row.state)

    def worked(self, job: str, before: int) -> float:
        """Seconds for which drivers of attempts below number ``before`` worked, each to its last sign of life."""
        query = select(func.sum(Attempt.renewed - Attempt.claimed)).where(
            Attempt.job == job, Attempt.number < before
        )
        with self.database.read() as session:
            return float(session.scalar(query) or 0.0)

    def release(self, job: str, attempt: int) -> None:
        """Gives an attempt up in good order (the server shuts down): another may start at once."""
        with self.database.write() as session:
            row = self._locked(session, job)
            if row.attempt != attempt or not JobState(row.state).active:
                return
            now = self.database.now(session)
            row.lease_expires = now
            self._bury(session, row, now, outcome="released")

    def expire(self, job: str, attempt: int) -> None:
        """The runtime says the driver is gone: do not wait for its lease to run out."""
        with self.database.write() as session:
            row = self._locked(session, job)
            if row.attempt == attempt and JobState(row.state).active:
                row.lease_expires = self.database.now(session)

    def expired(self) -> list[Job]:
        """Jobs that should have a driver and have none."""
        with self.database.read() as session:
            now = self.database.now(session)
            active = [JobState.RUNNING.value, JobState.CANCELLING.value]
            query = select(Job).where(
                Job.state.in_(active), or_(Job.lease_expires.is_(None), Job.lease_expires <= now)
            )
            return list(session.scalars(query.order_by(Job.seq)))

    def bury(self, job: str, attempt: int) -> int | None:
        """Closes an attempt whose lease ran out: from now on its driver is fenced off.

        Returns:
            How many attempts in a row crashed without recording a trial; None when the lease was
            renewed in the meantime or another server was faster.
        """
        with self.database.write() as session:
            row = self._locked(session, job)
            now = self.database.now(session)
            if (
                row.attempt != attempt
                or not JobState(row.state).active
                or not self._expired(row, now)
            ):
                return None
            self._bury(session, row, now)
            session.flush()
            newest = session.scalars(
                select(Attempt).where(Attempt.job == job).order_by(Attempt.number.desc())
            )
            crashes = 0
            for record in newest:
                if record.outcome != "crashed" or record.trials:
                    break
                crashes += 1
            return crashes

    def finish(
        self,
        lease: Lease,
        outcome: JobState,
        reason: Mapping[str, Any] | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> JobState:
        """The driver ends its job. A job that is being cancelled ends as cancelled.

        Args:
            reason: problem document of a failed job.

        Raises:
            LeaseLost: another attempt was started or the job has ended.
        """
        with self.database.write() as session:
            return self._finish(session, self._held(session, lease), outcome, reason, report)

    def finish_buried(
        self,
        job: str,
        attempt: int,
        outcome: JobState,
        reason: Mapping[str, Any] | None = None,
        artifacts: Sequence[Artifact] = (),
    ) -> JobState:
        """The server ends a job whose last attempt it has buried.

        Args:
            artifacts: files the server left in its place, in addition to what is listed.

        Raises:
            ConflictError: an attempt is running.
        """
        with self.database.write() as session:
            row = self._locked(session, job)
            record = session.get(Attempt, (job, attempt))
            if row.attempt != attempt or record is None or record.outcome is None:
                raise ConflictError(f"job {job} is being worked on")
            for artifact in artifacts:
                session.merge(artifact)
            return self._finish(session, row, outcome, reason, None)

    def _finish(
        self,
        session: Session,
        row: Job,
        outcome: JobState,
        reason: Mapping[str, Any] | None,
        report: Mapping[str, Any] | None,
    ) -> JobState:
        state = transitions.finish(JobState(row.state), outcome)
        now = self.database.now(session)
        row.state = state.value
        row.finished = now
        row.reason = dict(reason) if reason is not None and state == JobState.FAILED else None
        row.report = None if report is None else dict(report)
        record = session.get_one(Attempt, (row.id, row.attempt))
        if record.outcome is None:
            record.outcome, record.ended = state.value, now
        row.lease_owner = row.lease_expires = None
        data = {"state": row.state} | ({"reason": row.reason} if row.reason else {})
        self._append(session, row, "state", data)
        return state

    def _held(self, session: Session, lease: Lease) -> Job:
        """The job's row, locked, when the lease still counts."""
        query = select(Job).where(Job.id == lease.job).with_for_update()
        row = session.scalar(query)
        if (
            row is None
            or row.attempt != lease.attempt
            or row.lease_owner != lease.owner
            or not JobState(row.state).active
        ):
            raise LeaseLost(f"attempt {lease.attempt} of job {lease.job} no longer holds the lease")
        return row

    @staticmethod
    def _expired(row: Job, now: float) -> bool:
        return row.lease_expires is None or row.lease_expires <= now

    @staticmethod
    def _bury(session: Session, row: Job, now: float, outcome: str = "crashed") -> None:
        row.lease_owner = None
        record = session.get(Attempt, (row.id, row.attempt))
        if record is not None and record.outcome is None:
            record.outcome, record.ended = outcome, now
