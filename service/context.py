"""What the pipeline sees of the world: where files go, who records trials, whether to stop.

The database-backed context (a Ray driver under a lease) and the local one (``trimtab compress``) both satisfy
``JobContext``, so the path a job takes is the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evaluation.pool import EvaluatorPool, ScorerFactory
from evaluation.tuning import Tuner
from service.sources import Sources


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial as it is stored, with what is needed to replay the agent's log of asks and tells.

    Attributes:
        number: order of asking, from 0.
        told: order of telling, from 0.
        asked_after: number of trials told before this one was asked for.
        policy: decision id to value, as executed.
        evaluation: ``Evaluation.to_json()``, or None for a failure.
        failure: ``Failure.to_json()``, or None.
        cached: answered from an earlier evaluation of the same policy.
    """

    number: int
    told: int
    asked_after: int
    policy: dict[str, int]
    evaluation: dict[str, Any] | None
    failure: dict[str, Any] | None
    cached: bool = False


class JobContext(Protocol):
    """See the module's docstring."""

    @property
    def workdir(self) -> Path:
        """Files left here when the pipeline returns become the job's artifacts."""

    @property
    def data_dir(self) -> Path:
        """State that outlives the job: tables, caches."""

    @property
    def sources(self) -> Sources: ...

    @property
    def plugins(self) -> tuple[str, ...]:
        """Plug-ins that may be loaded, see ``service.plugins``."""

    @property
    def weights_path(self) -> Path | None:
        """The safetensors file of ``model.weights``."""

    def pool(self, factory: ScorerFactory) -> EvaluatorPool:
        """Starts evaluators; the caller closes the pool."""

    def tuner(self) -> Tuner:
        """Fine-tunes finalists (Ray Tune with ASHA, or one after another in this process)."""

    def stage(self, name: str, message: str = "", done: int = 0, total: int = 0) -> None:
        """Reports progress: a stage of the job with an optional count."""

    def check(self) -> None:
        """Raises Cancelled or LeaseLost when the job must stop. Called between steps."""

    def worked(self) -> float:
        """Seconds that earlier attempts at the job worked, the time between attempts apart."""

    def recorded(self) -> list[TrialRecord]:
        """Trials of earlier attempts, in the order they were told."""

    def record(self, trials: Sequence[TrialRecord]) -> None:
        """Stores trials exactly once under the lease, in their order. Raises LeaseLost.

        A search calls it from a thread beside its own, in which it then stores nothing else.
        """

    def pin(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        """Stores ``value`` for the job unless an earlier attempt did; returns what is stored."""
