"""Jobs as the API sees them: created, listed, cancelled, deleted; and uploaded weights."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import transitions
from service.database import Database
from service.errors import ConflictError, NotFoundError
from service.tables import Attempt, EventRow, Job, Weights
from service.transitions import JobState


@dataclass(frozen=True, slots=True)
class Created:
    """A job, and whether this request made it."""

    job: Job
    fresh: bool


class StoreJobs:
    """The part of ``Store`` that needs no lease."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(self, spec: Mapping[str, Any], key: str | None = None) -> Created:
        """Queues a job.

        Args:
            spec: ``JobSpec`` as JSON.
            key: idempotency key; the same key and the same spec give the same job again.

        Raises:
            ConflictError: the key was used with another spec.
        """
        body = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(body.encode()).hexdigest()
        try:
            with self.database.write() as session:
                if key is not None and (found := self._keyed(session, key, digest)):
                    return Created(found, False)
                job = Job(
                    id=secrets.token_hex(6),
                    name=str(spec.get("name", "")),
                    spec=dict(spec),
                    state=JobState.QUEUED.value,
                    created=self.database.now(session),
                    idempotency_key=key,
                    body_digest=digest,
                    stage="",
                    message="",
                    done=0,
                    total=0,
                    attempt=0,
                    events=0,
                    trials=0,
                )
                session.add(job)
                session.flush()
                self._append(session, job, "state", {"state": job.state})
                return Created(job, True)
        except IntegrityError:
            # PostgreSQL: another request with the same key was faster.
            with self.database.read() as session:
                if key is not None and (found := self._keyed(session, key, digest)):
                    return Created(found, False)
            raise

    @staticmethod
    def _keyed(session: Session, key: str, digest: str) -> Job | None:
        job = session.scalar(select(Job).where(Job.idempotency_key == key))
        if job is not None and job.body_digest != digest:
            raise ConflictError(
                f"Idempotency-Key {key!r} was used with another body (job {job.id})"
            )
        return job

    def get(self, job: str) -> Job:
        """Raises NotFoundError."""
        with self.database.read() as session:
            return self._found(session.scalar(select(Job).where(Job.id == job)), job)

    def jobs(
        self, state: JobState | None = None, cursor: int | None = None, limit: int = 50
    ) -> tuple[list[Job], int | None]:
        """Newest first.

        Args:
            cursor: as returned with the page before.

        Returns:
            The page, and the cursor of the next one or None.
        """
        query = select(Job).order_by(Job.seq.desc()).limit(limit + 1)
        if state is not None:
            query = query.where(Job.state == state.value)
        if cursor is not None:
            query = query.where(Job.seq < cursor)
        with self.database.read() as session:
            jobs = list(session.scalars(query))
        more = len(jobs) > limit
        jobs = jobs[:limit]
        return jobs, jobs[-1].seq if more else None

    def queued(self, limit: int) -> list[Job]:
        """Jobs that wait, oldest first."""
        query = select(Job).where(Job.state == JobState.QUEUED.value).order_by(Job.seq)
        with self.database.read() as session:
            return list(session.scalars(query.limit(limit)))

    def now(self) -> float:
        """The clock that stamps everything here."""
        with self.database.read() as session:
            return self.database.now(session)

    def cancel(self, job: str) -> Job:
        """Asks for a job's end; a queued one ends at once.

        Raises:
            ConflictError: it has succeeded or failed.
        """
        with self.database.write() as session:
            row = self._locked(session, job)
            state = transitions.cancel(JobState(row.state))
            if state != row.state:
                now = self.database.now(session)
                row.state = state.value
                row.cancelled_at = now
                if state.ended:
                    row.finished = now
                self._append(session, row, "state", {"state": row.state})
            return row

    def delete(self, job: str) -> None:
        """Forgets an ended job with everything recorded for it; its files are the caller's.

        Raises:
            ConflictError: the job has not ended.
        """
        with self.database.write() as session:
            row = self._locked(session, job)
            transitions.deletable(JobState(row.state))
            session.execute(delete(Job).where(Job.seq == row.seq))

    def counts(self) -> dict[str, int]:
        """Jobs by state; every state is there."""
        with self.database.read() as session:
            found = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
        counts = {state.value: 0 for state in JobState}
        counts.update((state, count) for state, count in found)
        return counts

    def trials_total(self) -> int:
        with self.database.read() as session:
            return int(session.scalar(select(func.coalesce(func.sum(Job.trials), 0))) or 0)

    def attempts(self, job: str) -> list[Attempt]:
        with self.database.read() as session:
            return list(
                session.scalars(select(Attempt).where(Attempt.job == job).order_by(Attempt.number))
            )

    # Weights

    def add_weights(self, id: str, size: int, path: str, tensors: Mapping[str, Any]) -> Weights:
        """Remembers an upload; the same file again is the same upload."""
        try:
            with self.database.write() as session:
                row = session.get(Weights, id)
                if row is None:
                    now = self.database.now(session)
                    row = Weights(id=id, size=size, path=path, tensors=dict(tensors), created=now)
                    session.add(row)
                return row
        except IntegrityError:
            return self.weights(id)

    def weights(self, id: str) -> Weights:
        """Raises NotFoundError."""
        with self.database.read() as session:
            row = session.get(Weights, id)
        if row is None:
            raise NotFoundError(f"no weights {id!r}; upload them to POST /v1/weights first")
        return row

    # Shared with the other parts

    @staticmethod
    def _found(job: Job | None, id: str) -> Job:
        if job is None:
            raise NotFoundError(f"no job {id!r}")
        return job

    def _locked(self, session: Session, job: str) -> Job:
        """The job's row, held until the transaction ends."""
        query = select(Job).where(Job.id == job).with_for_update()
        return self._found(session.scalar(query), job)

    def _append(self, session: Session, job: Job, kind: str, data: Mapping[str, Any]) -> None:
        """Appends an event to a locked job, so that ids become visible in their order."""
        job.events += 1
        now = self.database.now(session)
        session.add(EventRow(job=job.id, id=job.events, kind=kind, data=dict(data), time=now))
