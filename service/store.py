"""The job store: the database is the truth about jobs, attempts, trials, events and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import delete, insert, or_, select

from service.context import TrialRecord
from service.database import Database
from service.errors import NotFoundError
from service.front import better, summary
from service.recorder import unrecorded
from service.store_jobs import Created
from service.store_leases import Lease, StoreLeases
from service.tables import Artifact, Attempt, EventRow, Job, Pin, Trial

_TRIAL_FIELDS = tuple(field.name for field in fields(TrialRecord))

__all__ = ["Created", "Lease", "Store"]


class Store(StoreLeases):
    """Everything that is remembered. ``service.contract.StoreContract`` is its test suite.

    Events a job's stream carries, by kind:
        state: ``state``, and ``reason`` for a failed job.
        attempt: ``number``.
        stage: ``stage``, ``message``, ``done``, ``total``.
        trial: ``number``, ``told``, ``trials`` (recorded so far), ``cached``, ``score``, ``costs``,
            ``violations``, ``failure``, ``best`` (score of the best feasible trial so far).
        warning: ``message``.
    """

    @classmethod
    def open(cls, url: str) -> Store:
        """Raises SettingsError where the URL cannot be used."""
        return cls(Database(url))

    def close(self) -> None:
        self.database.close()

    def record_trials(self, lease: Lease, trials: Sequence[TrialRecord]) -> None:
        """Stores trials exactly once, all of them or none; the very same trial again changes nothing.

        Raises:
            LeaseLost: the attempt was fenced off; nothing is written.
            ConflictError: another trial has the number of one of them or its place in the order of telling.
        """
        with self.database.write() as session:
            job = self._held(session, lease)
            numbers, places = [t.number for t in trials], [t.told for t in trials]
            query = select(Trial).where(
                Trial.job == job.id, or_(Trial.number.in_(numbers), Trial.told.in_(places))
            )
            stored = [_record(row) for row in session.scalars(query)]
            fresh = unrecorded(
                trials, {known.number: known for known in stored}, {known.told for known in stored}
            )
            if not fresh:
                return
            now = self.database.now(session)
            rows, events = [], []
            for trial in fresh:
                row = {name: getattr(trial, name) for name in _TRIAL_FIELDS}
                rows.append(row | {"job": job.id, "attempt": lease.attempt, "created": now})
                job.trials += 1
                job.events += 1
                found = summary(trial)
                if found and better(job.spec, found, job.best):
                    job.best = found
                data = _trial_event(trial, job)
                events.append(
                    {"job": job.id, "id": job.events, "kind": "trial", "data": data, "time": now}
                )
            session.execute(insert(Trial), rows)
            session.execute(insert(EventRow), events)
            attempt = session.get_one(Attempt, (lease.job, lease.attempt))
            attempt.trials += len(fresh)
            attempt.renewed = now

    def trials(
        self, job: str, cursor: int = 0, limit: int | None = None
    ) -> tuple[list[TrialRecord], int | None]:
        """Trials in the order they were told.

        Args:
            cursor: as returned with the page before; 0 starts.

        Returns:
            The page, and the cursor of the next one or None.
        """
        query = select(Trial).where(Trial.job == job, Trial.told >= cursor).order_by(Trial.told)
        if limit is not None:
            query = query.limit(limit + 1)
        with self.database.read() as session:
            records = [_record(row) for row in session.scalars(query)]
        if limit is None or len(records) <= limit:
            return records, None
        return records[:limit], records[limit].told

    def pin(self, lease: Lease, key: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Stores ``value`` unless there is one; returns what is stored. Raises LeaseLost."""
        with self.database.write() as session:
            self._held(session, lease)
            pin = session.get(Pin, (lease.job, key))
            if pin is None:
                pin = Pin(job=lease.job, key=key, value=dict(value))
                session.add(pin)
                # What comes back must be what a later attempt reads, tuples turned into lists and
                # all.
                session.flush()
                session.refresh(pin)
            return dict(pin.value)

    def pinned(self, job: str, key: str) -> dict[str, Any] | None:
        """What ``pin`` stored, None where nothing was."""
        with self.database.read() as session:
            pin = session.get(Pin, (job, key))
            return None if pin is None else dict(pin.value)

    def stage(self, lease: Lease, stage: str, message: str, done: int, total: int) -> None:
        """Says how far the job is. Raises LeaseLost."""
        with self.database.write() as session:
            job = self._held(session, lease)
            job.stage, job.message, job.done, job.total = stage, message, done, total
            data = {"stage": stage, "message": message, "done": done, "total": total}
            self._append(session, job, "stage", data)

    def warn(self, lease: Lease, message: str) -> None:
        """Raises LeaseLost."""
        with self.database.write() as session:
            self._append(session, self._held(session, lease), "warning", {"message": message})

    def events(self, job: str, after: int = 0, limit: int = 1000) -> list[EventRow]:
        """Events with an id above ``after``, in order."""
        query = select(EventRow).where(EventRow.job == job, EventRow.id > after)
        with self.database.read() as session:
            return list(session.scalars(query.order_by(EventRow.id).limit(limit)))

    def put_artifacts(self, lease: Lease, artifacts: list[Artifact]) -> None:
        """Replaces the job's list of files. Raises LeaseLost."""
        with self.database.write() as session:
            self._held(session, lease)
            session.execute(delete(Artifact).where(Artifact.job == lease.job))
            session.add_all(artifacts)

    def artifacts(self, job: str) -> list[Artifact]:
        query = select(Artifact).where(Artifact.job == job).order_by(Artifact.name)
        with self.database.read() as session:
            return list(session.scalars(query))

    def artifact(self, job: str, name: str) -> Artifact:
        """Raises NotFoundError."""
        with self.database.read() as session:
            found = session.get(Artifact, (job, name))
        if found is None:
            raise NotFoundError(f"job {job!r} has no artifact {name!r}")
        return found


def _record(row: Trial) -> TrialRecord:
    return TrialRecord(
        number=row.number,
        told=row.told,
        asked_after=row.asked_after,
        policy=row.policy,
        evaluation=row.evaluation,
        failure=row.failure,
        cached=row.cached,
    )


def _trial_event(trial: TrialRecord, job: Job) -> dict[str, Any]:
    evaluation = trial.evaluation or {}
    scores = evaluation.get("scores")
    return {
        "number": trial.number,
        "told": trial.told,
        "trials": job.trials,
        "cached": trial.cached,
        "score": scores[0] if scores else None,
        "costs": evaluation.get("costs"),
        "violations": evaluation.get("violations"),
        "failure": trial.failure,
        "best": None if job.best is None else job.best["score"],
    }
