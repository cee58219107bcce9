"""The server's loop: brings what runs in line with what the database says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from service.blobs import Blobs
from service.errors import ConflictError, DriverCrashed, NotFoundError, RuntimeUnavailable
from service.job_spec import target_names
from service.problems import problem_of
from service.runtime import DriverState, Runtime
from service.store import Store
from service.tables import Artifact, Job
from service.transitions import JobState

_log = logging.getLogger(__name__)


class Reconciler:
    """Starts queued jobs, takes up jobs whose driver died, ends what was cancelled.

    Every step is idempotent and safe beside another server's: the store decides who wins.

    Args:
        blobs: gets what jobs had found whose drivers died.
        max_running: jobs at a time.
        max_attempts: attempts in a row that may crash without recording a trial.
        start_seconds: time a driver has from its submission to its first sign of life.
        cancel_seconds: time a driver has to stop by itself after a cancel.
        pause_seconds: rest after the runtime could not start a driver.
    """

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        blobs: Blobs,
        max_running: int = 1,
        max_attempts: int = 3,
        start_seconds: float = 120.0,
        cancel_seconds: float = 30.0,
        pause_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._blobs = blobs
        self._max_running = max_running
        self._max_attempts = max_attempts
        self._start_seconds = start_seconds
        self._cancel_seconds = cancel_seconds
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._resting_until = float("-inf")
        self._stopped_by_force: set[tuple[str, int]] = set()

    def run(self, stop: threading.Event, every: float = 1.0) -> None:
        """Steps until told to stop; an error of one step does not end the loop."""
        while not stop.is_set():
            try:
                self.step()
            except Exception:
                _log.exception("reconciling failed; trying again")
            stop.wait(every)

    def step(self) -> None:
        """One look at everything."""
        for job in self._active():
            self._look_after(job)
        for job in self._store.expired():
            self._take_up(job)
        room = self._max_running - len(self._active())
        for job in self._store.queued(max(0, room)):
            self._start(job)

    def release_all(self) -> None:
        """The server ends its runtime: running jobs may be started again at once."""
        for job in self._active():
            self._store.release(job.id, job.attempt)

    def _active(self) -> list[Job]:
        return [
            job
            for state in (JobState.RUNNING, JobState.CANCELLING)
            for job in self._store.jobs(state, limit=1000)[0]
        ]

    def _look_after(self, job: Job) -> None:
        """Believes the runtime where it says that a driver is gone, and ends one that will not
        stop.
        """
        if self._runtime.poll(job.id, job.attempt) == DriverState.ENDED:
            self._store.expire(job.id, job.attempt)
            return
        if job.state == JobState.CANCELLING and job.cancelled_at is not None:
            key = (job.id, job.attempt)
            waited = self._store.now() - job.cancelled_at
            if waited > self._cancel_seconds and key not in self._stopped_by_force:
                _log.warning("job %s does not stop by itself; ending its driver", job.id)
                self._stopped_by_force.add(key)
                self._runtime.cancel(job.id, job.attempt)

    def _take_up(self, job: Job) -> None:
        """The attempt's lease has run out: end the job or begin a new attempt."""
        crashes = self._store.bury(job.id, job.attempt)
        if crashes is None:
            return
        try:
            if job.state == JobState.CANCELLING:
                self._runtime.cancel(job.id, job.attempt)
                self._finish(job, JobState.CANCELLED)
            elif crashes >= self._max_attempts:
                said = self._runtime.explain(job.id, job.attempt)
                error = DriverCrashed(
                    f"the job's driver died {crashes} times in a row without recording a trial"
                    + (f"; the last time: {said}" if said else "")
                    + "; its log is in Ray's dashboard"
                )
                self._finish(job, JobState.FAILED, problem_of(error))
            else:
                # An orphan fences itself off; ending it frees its evaluators' cores now.
                self._runtime.cancel(job.id, job.attempt)
                self._start(job)
        except (ConflictError, NotFoundError) as error:
            _log.info("another server was faster: %s", error)

    def _finish(self, job: Job, state: JobState, reason: Mapping[str, Any] | None = None) -> None:
        """Ends a job in place of its driver, with what its trials tell."""
        # Loads pyarrow, which a server whose drivers live need not.
        from service.unfinished import keep_unfinished

        found: list[Artifact] = []
        try:
            if not self._store.artifacts(job.id):
                found = keep_unfinished(self._store, self._blobs, job.id, state, reason)
        except Exception:
            _log.exception("what job %s had found could not be stored", job.id)
        self._store.finish_buried(job.id, job.attempt, state, reason, found)

    def _start(self, job: Job) -> None:
        if self._clock() < self._resting_until:
            return
        attempt = None
        try:
            self._runtime.ensure()
            attempt = self._store.start_attempt(job.id, self._start_seconds)
            names = {
                "name": job.name or job.id,
                "model": job.spec["model"]["source"],
                "target": ", ".join(target_names(job.spec)),
            }
            self._runtime.submit(job.id, attempt, names)
            _log.info("job %s: attempt %d", job.id, attempt)
        except (ConflictError, NotFoundError) as error:
            _log.info("another server was faster: %s", error)
        except RuntimeUnavailable as error:
            _log.error("%s; trying again in %.0f s", error, self._pause_seconds)
            self._resting_until = self._clock() + self._pause_seconds
            if attempt is not None:
                self._store.release(job.id, attempt)
