"""Evaluators: a pool of workers, each with its own copy of the network, scoring policies side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy


class Scorer(Protocol):
    """Scores policies one after another in one process. See ``evaluation.scoring``."""

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:
        """Applies the policy to a copy of the network and scores it.

        Args:
            score_to_beat: a policy that surely scores less need not be scored precisely; its evaluation's interval
                says how precisely it was. The result depends on nothing but the two arguments.

        Raises:
            TrimtabError: the policy gives no valid network; the pool turns it into a Failure.
        """


# Builds a scorer inside a worker process; must be picklable by cloudpickle (it stays within one cluster).
ScorerFactory = Callable[[], Scorer]


@dataclass(frozen=True, slots=True)
class Finished:
    """What came back from the pool.

    Attributes:
        ticket: as returned by ``submit``.
        outcome: the evaluation or the failure.
        seconds: that a worker took for it; 0 where the pool does not tell.
    """

    ticket: int
    outcome: Evaluation | Failure
    seconds: float = 0.0


class EvaluatorPool(Protocol):
    """Policies in, outcomes out, in the order they finish.

    A worker that dies is replaced and its policy tried once more before it becomes a retryable Failure.
    """

    @property
    def capacity(self) -> int:
        """Number of policies that can be in flight without waiting."""

    @property
    def backlog(self) -> int:
        """Number of further policies that workers take over by themselves, without the caller, when they have done one;
        0 where nothing is evaluated unless the caller waits.
        """

    @property
    def in_flight(self) -> int: ...

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        """Starts an evaluation (see ``Scorer.score``); returns its ticket."""

    def wait(self, timeout: float | None = None) -> list[Finished]:
        """Blocks until at least one evaluation is done, or the timeout (seconds) passes (then empty)."""

    def close(self) -> None:
        """Stops the workers; evaluations in flight are lost."""
