"""Evaluators that exist on a virtual clock only: a search over hours is repeated in seconds."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from evaluation.outcome import outcome_of
from evaluation.pool import Finished, Scorer, ScorerFactory
from search_spaces.policy import Policy


class SimulatedPool:
    """Satisfies ``EvaluatorPool``: what is waited for passes on the virtual clock at once.

    Args:
        factory: builds what gives the outcomes, such as a ``ReplayScorer``, when it is first needed.
        workers: policies evaluated side by side.
        seconds: virtual seconds that evaluating a policy takes, more than 0.

    Attributes:
        clock: virtual seconds since the start.
        busy: virtual seconds that workers spent evaluating, over all of them.
    """

    def __init__(
        self, factory: ScorerFactory, workers: int, seconds: Callable[[Policy], float]
    ) -> None:
        if workers < 1:
            raise ValueError(f"a pool needs at least one worker, not {workers}")
        self.clock = 0.0
        self.busy = 0.0
        self._factory = factory
        self._scorer: Scorer | None = None
        self._seconds = seconds
        # When each worker is free again.
        self._free = [0.0] * workers
        self._flying: list[tuple[float, int, Policy, float | None]] = []
        self._workers = workers
        self._tickets = 0

    @property
    def capacity(self) -> int:
        return self._workers

    @property
    def backlog(self) -> int:
        return 0

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    @property
    def utilisation(self) -> float:
        """Share of the workers' virtual time that was spent evaluating, 0 to 1."""
        return self.busy / (self.clock * self._workers) if self.clock else 0.0

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        """Starts at once where a worker is free, else when the first one is."""
        ticket = self._tickets
        self._tickets += 1
        seconds = self._seconds(policy)
        begin = max(self.clock, heapq.heappop(self._free))
        heapq.heappush(self._free, begin + seconds)
        self.busy += seconds
        heapq.heappush(self._flying, (begin + seconds, ticket, policy, score_to_beat))
        return ticket

    def wait(self, timeout: float | None = None) -> list[Finished]:  # noqa: ARG002
        """Moves the clock to the next evaluation that ends; those that end with it come back together.

        Raises:
            TrimtabError: the factory cannot build a scorer.
        """
        if not self._flying:
            return []
        if self._scorer is None:
            self._scorer = self._factory()
        self.clock = self._flying[0][0]
        done = []
        while self._flying and self._flying[0][0] <= self.clock:
            _, ticket, policy, score_to_beat = heapq.heappop(self._flying)
            outcome = outcome_of(self._scorer, policy, score_to_beat)
            done.append(Finished(ticket, outcome))
        return done

    def close(self) -> None:
        self._flying.clear()
