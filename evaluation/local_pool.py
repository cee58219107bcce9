"""Evaluating in this process: what ``trimtab compress`` uses."""

from __future__ import annotations

from collections import deque

from evaluation.outcome import outcome_of
from evaluation.pool import Finished, Scorer, ScorerFactory
from search_spaces.policy import Policy


class LocalPool:
    """Scores one policy after another when waited for; satisfies ``EvaluatorPool``.

    Args:
        factory: builds the scorer, at the first policy.
        threads: cores one scoring may use; torch's own setting when None.
    """

    def __init__(self, factory: ScorerFactory, threads: int | None = None) -> None:
        self._factory = factory
        self._threads = threads
        self._scorer: Scorer | None = None
        self._waiting: deque[tuple[int, Policy, float | None]] = deque()
        self._tickets = 0

    @property
    def capacity(self) -> int:
        return 1

    @property
    def backlog(self) -> int:
        return 0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        ticket = self._tickets
        self._tickets += 1
        self._waiting.append((ticket, policy, score_to_beat))
        return ticket

    def wait(self, timeout: float | None = None) -> list[Finished]:  # noqa: ARG002
        """Scores the oldest policy; a scoring that has begun is not broken off at the timeout.

        Raises:
            TrimtabError: the factory cannot build a scorer.
        """
        if not self._waiting:
            return []
        if self._scorer is None:
            self._scorer = self._build()
        ticket, policy, score_to_beat = self._waiting.popleft()
        return [Finished(ticket, outcome_of(self._scorer, policy, score_to_beat))]

    def close(self) -> None:
        self._waiting.clear()
        self._scorer = None

    def _build(self) -> Scorer:
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        return self._factory()
