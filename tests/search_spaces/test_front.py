"""The front of a search: what its points are, and how its volume grows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.contract import contract_evaluation, contract_pricers
from search_spaces import BudgetError, Evaluation, Failure
from search_spaces.dominance import nondominated
from search_spaces.front import FrontAxes, RunningFront, worth
from search_spaces.hypervolume import hypervolume

AXES = FrontAxes(("latency_ms", "size_bytes"), (2.0, 100.0))


def evaluation(score: float, latency: float, size: float, over: float = 0.0) -> Evaluation:
    costs = {"latency_ms": latency, "size_bytes": size}
    violations = {"latency_ms": over} if over else {}
    return Evaluation((score,), (score, score), costs=costs, violations=violations)


def test_worth_rises_with_the_score_from_nothing() -> None:
    scores = [-1e6, -3.0, -0.1, 0.0, 0.5, 2.0]
    found = [worth(s) for s in scores]
    assert found == sorted(found) and found[0] == 0 and worth(0.0) == 1 and worth(0.5) == 1.5
    assert worth(-0.1) == pytest.approx(math.exp(-0.1))


def test_points_are_shares_of_the_uncompressed_network() -> None:
    assert AXES.losses(0.0, {"latency_ms": 1.0, "size_bytes": 25.0, "macs": 3.0}).tolist() == [
        -1.0,
        0.5,
        0.25,
    ]
    assert AXES.reference.tolist() == [0.0, 1.0, 1.0]
    assert FrontAxes.from_json(AXES.to_json()) == AXES


def test_axes_of_prices() -> None:
    pricer = contract_pricers()["two_bounds"]
    axes = FrontAxes.of(pricer, ("size_bytes", "latency_ms"))
    costs = pricer.costs(pricer.space.uncompressed())
    assert axes.whole == (costs["size_bytes"], costs["latency_ms"])
    for quantities, says in (
        ((), "at least one cost"),
        (("macs", "macs"), "distinct"),
        (("energy_mj",), "energy_mj is not priced on this target; known: latency_ms"),
    ):
        with pytest.raises(BudgetError, match=says):
            FrontAxes.of(pricer, quantities)


outcomes = st.lists(
    st.one_of(
        st.builds(
            evaluation,
            st.sampled_from([-2.0, -1.0, -0.5, -0.1, 0.0]),
            st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5]),
            st.sampled_from([20.0, 50.0, 100.0]),
            st.sampled_from([0.0, 0.0, 0.1]),
        ),
        st.builds(Failure, st.just("did not run")),
    ),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(outcomes)
def test_the_running_volume_is_that_of_all_points_and_never_falls(
    told: list[Evaluation | Failure],
) -> None:
    front = RunningFront(AXES)
    points = np.empty((0, 3))
    last = 0.0
    for outcome in told:
        new = front.tell(outcome)
        if isinstance(outcome, Evaluation) and outcome.feasible:
            point = AXES.losses(outcome.score, outcome.costs)
            known = bool((points == point).all(axis=1).any())
            points = np.concatenate([points, point[None]])
            assert new == (bool(nondominated(points)[-1]) and not known)
        else:
            assert not new
        assert front.volume >= last
        assert front.volume == pytest.approx(hypervolume(points, AXES.reference))
        last = front.volume
    document = front.to_json()
    assert document["evaluations"] == len(told) and document["final"] == front.volume
    steps = document["over_evaluations"]
    assert steps == sorted(steps) and (not steps or steps[-1][1] == front.volume)
    assert document["reference"] == {"worth": 0.0, "latency_ms": 2.0, "size_bytes": 100.0}


def test_evaluations_of_a_search_are_points() -> None:
    pricer = contract_pricers()["joint"]
    axes = FrontAxes.of(pricer, ("latency_ms",))
    front = RunningFront(axes)
    policy = pricer.enforce([0] * len(pricer.space))
    assert front.tell(contract_evaluation(policy, pricer))
    assert not front.tell(contract_evaluation(policy, pricer)) and front.evaluations == 2
    # The uncompressed network dominates nothing: it costs what the reference costs.
    free = contract_pricers()["free"]
    whole = RunningFront(FrontAxes.of(free, ("latency_ms",)))
    assert whole.tell(contract_evaluation(free.space.uncompressed(), free))
    assert whole.volume == 0 and whole.steps == []
