"""Evaluators in processes of one thread each, for searches on machines without Ray."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

import torch

from evaluation.outcome import outcome_of
from evaluation.pool import Finished, Scorer, ScorerFactory
from search_spaces import Evaluation, Failure, Policy

_scorer: Scorer | None = None


class ProcessPool:
    """Satisfies ``EvaluatorPool``, but for workers that die: they end the search.

    Args:
        factory: builds a scorer in each worker; must be picklable.
        workers: processes.
    """

    def __init__(self, factory: ScorerFactory, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.capacity = workers
        self._executor = ProcessPoolExecutor(workers, context, _begin, (factory,))
        self._flying: dict[Future[tuple[Evaluation | Failure, float]], int] = {}
        self._tickets = 0

    @property
    def backlog(self) -> int:
        return self.capacity

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        self._tickets += 1
        self._flying[self._executor.submit(_score, policy, score_to_beat)] = self._tickets
        return self._tickets

    def wait(self, timeout: float | None = None) -> list[Finished]:
        """See ``EvaluatorPool``.

        Raises:
            BrokenProcessPool: a worker died, or could not build its scorer.
        """
        done, _ = wait(self._flying, timeout, FIRST_COMPLETED)
        # In the order they were submitted: a search is told equals alike in every run.
        return sorted(
            (Finished(self._flying.pop(future), *future.result()) for future in done),
            key=lambda finished: finished.ticket,
        )

    def close(self) -> None:
        self._flying.clear()
        self._executor.shutdown(cancel_futures=True)


def _begin(factory: ScorerFactory) -> None:
    global _scorer
    torch.set_num_threads(1)
    _scorer = factory()


def _score(policy: Policy, score_to_beat: float | None) -> tuple[Evaluation | Failure, float]:
    assert _scorer is not None
    begun = time.monotonic()
    return outcome_of(_scorer, policy, score_to_beat), time.monotonic() - begun
