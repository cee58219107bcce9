from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import AgentError, Objective, ObjectiveKind
from agents.contract import contract_pricers
from search_spaces import Evaluation

LATENCY = Objective(ObjectiveKind.LATENCY, max_drop=0.01, latency_ms=10.0)


def accuracy(score: float, **violations: float) -> Evaluation:
    return Evaluation((score,), (score, score), violations=violations)


def latency(drop: float, ms: float, **violations: float) -> Evaluation:
    drops = (drop, drop - 0.1, drop + 0.1)
    costs = {"latency_ms": ms}
    return Evaluation((-1.0,), (-1, -1), top1_drop=drops, costs=costs, violations=violations)


def test_accuracy_is_the_exponential_of_a_negative_score() -> None:
    reward = Objective().reward
    assert reward(accuracy(0.0)) == 1.0
    assert reward(accuracy(-8.0)) == pytest.approx(math.exp(-8))
    assert reward(accuracy(0.7)) == pytest.approx(1.7)
    assert reward(accuracy(-1.0, latency_ms=0.2, macs=0.1)) == pytest.approx(math.exp(-1) - 0.3)


@given(st.floats(-20, 2), st.floats(-20, 2))
def test_accuracy_keeps_the_order_of_scores(a: float, b: float) -> None:
    low, high = sorted((a, b))
    reward = Objective().reward
    assert reward(accuracy(low)) <= reward(accuracy(high))


def test_latency_counts_while_the_drop_holds() -> None:
    assert LATENCY.reward(latency(0.01, 4.0)) == pytest.approx(-0.4)
    assert LATENCY.reward(latency(-0.5, 2.0)) == pytest.approx(-0.2)
    assert LATENCY.reward(latency(0.05, 2.0)) == pytest.approx(-1.04)
    assert LATENCY.reward(latency(0.0, 4.0, size_bytes=0.5)) == pytest.approx(-0.9)


@given(st.floats(-1, 0.01), st.floats(0.1, 30), st.floats(0.0101, 1), st.floats(0.1, 30))
def test_no_policy_that_breaks_the_drop_beats_one_that_holds_it(
    held: float, slow: float, broken: float, fast: float
) -> None:
    held_reward = LATENCY.reward(latency(held, slow))
    broken_reward = LATENCY.reward(latency(broken, fast))
    assert held_reward > broken_reward >= LATENCY.floor


def test_latency_without_a_drop_is_refused() -> None:
    with pytest.raises(AgentError, match="needs the drop"):
        LATENCY.reward(accuracy(0.0))


def test_of_a_job() -> None:
    pricer = contract_pricers()["joint"]
    assert Objective.of("accuracy", pricer) == Objective()
    made = Objective.of("latency", pricer, 0.005)
    whole = pricer.costs(pricer.space.uncompressed())["latency_ms"]
    assert (made.kind, made.max_drop, made.latency_ms) == (ObjectiveKind.LATENCY, 0.005, whole)
    with pytest.raises(AgentError, match="known: accuracy, latency"):
        Objective.of("speed", pricer)
    with pytest.raises(AgentError, match="max_drop"):
        Objective.of("latency", pricer)
    with pytest.raises(AgentError, match="max_drop"):
        Objective.of("accuracy", pricer, 0.1)
