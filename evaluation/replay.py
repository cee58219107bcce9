"""Scores policies from a recording instead of from the network."""

from __future__ import annotations

from dataclasses import replace

from evaluation.recording import Recording
from evaluation.surrogate import Surrogate
from search_spaces.evaluation import Evaluation
from search_spaces.policy import Policy


class ReplayScorer:
    """What was recorded of a policy, else what the surrogate tells; satisfies ``evaluation.pool.Scorer``.

    Args:
        recording: real evaluations.
        surrogate: of the policies that are not among them.
        exact: answer recorded policies from the recording. Off, every score is the surrogate's, so that recorded
            policies have no error of their own that sets them apart from their neighbours.

    Attributes:
        looked_up: how many policies were answered from the recording.
        told: how many by the surrogate.
    """

    def __init__(self, recording: Recording, surrogate: Surrogate, exact: bool = True) -> None:
        self._recording = recording
        self._rows = {row.policy: row.evaluation for row in recording.rows} if exact else {}
        self._surrogate = surrogate
        self.looked_up = self.told = 0

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:  # noqa: ARG002
        """See ``Scorer.score``.

        Raises:
            PolicyError: the policy is not of the recording's space.
        """
        self._recording.space.check(policy)
        known = self._rows.get(policy)
        if known is not None:
            self.looked_up += 1
            return replace(known, seconds=0.0)
        self.told += 1
        score, low, high = self._surrogate.interval(self._recording.space.indices(policy))
        return Evaluation((score,), (low, high))
