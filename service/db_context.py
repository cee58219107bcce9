"""The context of a job that runs under a lease, with the database behind it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.pool import EvaluatorPool, ScorerFactory
from evaluation.tuning import Tuner
from service.blobs import Blobs
from service.context import TrialRecord
from service.errors import Cancelled, LeaseLost
from service.heartbeat import Heartbeat
from service.settings import Settings
from service.sources import Sources
from service.store import Lease, Store
from service.tables import Job

_log = logging.getLogger(__name__)
# Seconds between two looks at whether somebody cancelled, and between two counts of one stage.
_LOOK_EVERY = 1.0
_COUNT_EVERY = 0.5


class DbContext:
    """Satisfies ``JobContext``. Evaluators and trainings are spread by Ray.

    Args:
        job: as read after the lease was claimed.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: Blobs,
        lease: Lease,
        heartbeat: Heartbeat,
        job: Job,
    ) -> None:
        self._settings = settings
        self._store = store
        self._blobs = blobs
        self._lease = lease
        self._heartbeat = heartbeat
        self._job = job
        self._sources = settings.sources()
        self._shown: tuple[str, float] = ("", 0.0)

    @property
    def workdir(self) -> Path:
        return self._blobs.workdir(self._lease.job)

    @property
    def data_dir(self) -> Path:
        return self._settings.data_dir

    @property
    def sources(self) -> Sources:
        return self._sources

    @property
    def plugins(self) -> tuple[str, ...]:
        return self._settings.allow_plugins

    @property
    def weights_path(self) -> Path | None:
        weights = self._job.spec["model"].get("weights")
        if weights is None:
            return None
        return self._blobs.local(self._store.weights(weights).path)

    def pool(self, factory: ScorerFactory) -> EvaluatorPool:
        from evaluation.ray_pool import RayPool

        _join_ray()
        return RayPool(
            factory, self._settings.evaluators, self._name, code_paths=self._settings.code_paths
        )

    def tuner(self) -> Tuner:
        from evaluation.ray_tuning import RayTuner

        _join_ray()
        return RayTuner(self._name, code_paths=self._settings.code_paths)

    def stage(self, name: str, message: str = "", done: int = 0, total: int = 0) -> None:
        self.check()
        shown, when = self._shown
        now = time.monotonic()
        if shown == name and done != total and now - when < _COUNT_EVERY:
            return
        self._shown = (name, now)
        count = f" {done}/{total}" if total else ""
        _log.info("%s%s %s", name, count, message)
        self._store.stage(self._lease, name, message, done, total)

    def warn(self, message: str) -> None:
        """Something the user should see in the job's events."""
        _log.warning("%s", message)
        self._store.warn(self._lease, message)

    def check(self) -> None:
        self._heartbeat.beat(at_least_every=_LOOK_EVERY)
        if self._heartbeat.lost:
            raise LeaseLost(f"attempt {self._lease.attempt} of job {self._lease.job} was replaced")
        if self._heartbeat.cancelling:
            raise Cancelled("the job was cancelled")

    def worked(self) -> float:
        return self._store.worked(self._lease.job, self._lease.attempt)

    def recorded(self) -> list[TrialRecord]:
        return self._store.trials(self._lease.job)[0]

    def record(self, trials: Sequence[TrialRecord]) -> None:
        self._store.record_trials(self._lease, trials)

    def pin(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        return self._store.pin(self._lease, key, value)

    @property
    def _name(self) -> str:
        return self._job.name or self._job.id


def _join_ray() -> None:
    import ray

    if not ray.is_initialized():
        # In a Ray Job the address is in the environment. Nothing is started here: without a cluster
        # it raises.
        ray.init(address="auto", logging_level=logging.WARNING)
