"""What is added to scores for the training that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from evaluation.promise import MACS_WEIGHT, Promise, PromiseScorer
from search_spaces import CostModel, Decision, DecisionKind, Evaluation, Policy, SearchSpace
from search_spaces.cost_model import Factor

SPACE = SearchSpace(
    (
        Decision("a:channels", DecisionKind.CHANNELS, (4, 8, 16)),
        Decision("b:channels", DecisionKind.CHANNELS, (8, 16)),
    )
)
MACS = CostModel(
    100.0, (Factor((0,), np.array([50.0, 100.0, 200.0])), Factor((1,), np.array([50.0, 100.0])))
)
PROMISE = Promise(SPACE, MACS)


@dataclass
class Told:
    """Gives one evaluation and keeps what it was asked."""

    evaluation: Evaluation
    asked: list[tuple[Policy, float | None]] = field(default_factory=list)

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:
        self.asked.append((policy, score_to_beat))
        return self.evaluation


def test_the_uncompressed_network_gets_nothing() -> None:
    assert PROMISE.added(SPACE.uncompressed()) == 0.0


def test_half_of_the_work_costs_two_nats_a_factor_of_e() -> None:
    half = SPACE.from_indices([0, 0])  # 100 + 50 + 50 of 400
    assert PROMISE.added(half) == pytest.approx(MACS_WEIGHT * math.log(0.5))


def test_scores_and_intervals_move_together_and_back() -> None:
    policy = SPACE.from_indices([0, 1])
    plain = Evaluation((-0.3, 5.0), (-0.4, -0.25), top1=0.8, top1_drop=(0.1, 0.0, 0.2), images=700)
    by = MACS_WEIGHT * math.log(250 / 400)
    found = PROMISE.of(policy, plain)
    assert found.scores == (pytest.approx(-0.3 + by), 5.0)
    assert found.interval == (pytest.approx(-0.4 + by), pytest.approx(-0.25 + by))
    assert (found.top1, found.top1_drop, found.images) == (0.8, (0.1, 0.0, 0.2), 700)
    back = PROMISE.without(policy, found)
    assert back.score == pytest.approx(plain.score)
    assert back.interval == pytest.approx(plain.interval)


def test_of_two_that_break_as_much_the_larger_one_is_better() -> None:
    scorer = PromiseScorer(Told(Evaluation((-0.5,), (-0.6, -0.4))), PROMISE)
    small, large = SPACE.from_indices([0, 0]), SPACE.from_indices([1, 1])
    assert scorer.score(small).score < scorer.score(large).score < -0.5


@pytest.mark.parametrize("beat", [None, -0.7])
def test_the_score_to_beat_is_held_against_the_divergence_alone(beat: float | None) -> None:
    inner = Told(Evaluation((-0.5,), (-0.6, -0.4)))
    policy = SPACE.from_indices([0, 0])
    PromiseScorer(inner, PROMISE).score(policy, beat)
    ((asked, score),) = inner.asked
    assert asked == policy
    if beat is None:
        assert score is None
    else:
        # -0.5 with its bonus of -1.39 misses the bar: so must the divergence alone miss the bar it is given.
        assert score == pytest.approx(-0.7 - MACS_WEIGHT * math.log(0.5)) and score > -0.5
