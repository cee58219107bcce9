"""What a score before training says of the network after it.

Divergence before training tells how much a policy breaks; how much of that training can mend depends on how large a
network is left. Over policies of one latency, scored in one call and then fine-tuned, Spearman's coefficient with the
final accuracy (and within the better half) is, for the divergence alone and with the multiply-accumulates:

====================  ============  ============
policies              alone         with MACs
====================  ============  ============
ResNet-20, 48         0.89, 0.81    0.96, 0.84
ResNet-20, 48 others  0.87, 0.84    0.97, 0.94
ResNet-56, 24         0.97, 0.79    0.95, 0.83
====================  ============  ============

The weight was chosen on the first row; weights from 1 to 3 do about as well in all of them (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from evaluation.pool import Scorer
from search_spaces.cost_model import CostModel
from search_spaces.evaluation import Evaluation
from search_spaces.policy import Policy
from search_spaces.space import SearchSpace

# Nats of divergence that a network e times as large may show more.
MACS_WEIGHT = 2.0


@dataclass(frozen=True)
class Promise:
    """Adds ``MACS_WEIGHT * ln(share of the multiply-accumulates)`` to scores in nats.

    Args:
        space: whose policies are scored.
        macs: multiply-accumulates of policies.
    """

    space: SearchSpace
    macs: CostModel

    def added(self, policy: Policy) -> float:
        """Nats, at most 0: of the uncompressed network 0."""
        whole, kept = self.macs.price(
            np.stack([self.space.indices(p) for p in (self.space.uncompressed(), policy)])
        )
        return MACS_WEIGHT * math.log(kept / whole)

    def of(self, policy: Policy, evaluation: Evaluation) -> Evaluation:
        """The evaluation as a search goes by it."""
        return _moved(evaluation, self.added(policy))

    def without(self, policy: Policy, evaluation: Evaluation) -> Evaluation:
        """The inverse of ``of``: the divergence alone, as trained networks are judged by."""
        return _moved(evaluation, -self.added(policy))


def _moved(evaluation: Evaluation, by: float) -> Evaluation:
    first, *others = evaluation.scores
    low, high = evaluation.interval
    return replace(evaluation, scores=(first + by, *others), interval=(low + by, high + by))


class PromiseScorer:
    """Scores policies by what they promise to be after training; satisfies ``evaluation.pool.Scorer``.

    Args:
        scorer: gives minus the divergence in nats.
    """

    def __init__(self, scorer: Scorer, promise: Promise) -> None:
        self._scorer = scorer
        self._promise = promise

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:
        """See ``Scorer.score``."""
        if score_to_beat is not None:
            score_to_beat -= self._promise.added(policy)
        return self._promise.of(policy, self._scorer.score(policy, score_to_beat))


@dataclass(frozen=True)
class PromiseScorerBuilder:
    """Builds a ``PromiseScorer`` in a worker process."""

    builder: Callable[[], Scorer]
    promise: Promise

    def __call__(self) -> PromiseScorer:
        return PromiseScorer(self.builder(), self.promise)
