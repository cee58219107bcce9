from __future__ import annotations

import numpy as np
import pytest

from agents import CmaesAgent
from agents.cmaes import _Rates
from agents.contract import contract_pricers
from search_spaces import Decision, DecisionKind, Evaluation, Pricer, SearchSpace


def test_rates_of_the_tutorial() -> None:
    rates = _Rates.of(10)
    assert rates.population == 10  # 4 + floor(3 ln 10)
    assert rates.weights.sum() == pytest.approx(1.0)
    assert (np.diff(rates.weights) < 0).all()
    assert rates.mueff == pytest.approx(3.167, abs=1e-3)
    assert rates.cs == pytest.approx((rates.mueff + 2) / (rates.mueff + 15))
    assert rates.norm == pytest.approx(np.sqrt(10) * (1 - 1 / 40 + 1 / 2100))
    assert 0 < rates.c1 + rates.cmu < 1


def test_climbs_a_quadratic_with_a_steep_and_a_flat_direction() -> None:
    values = tuple(range(1, 33))
    space = SearchSpace(
        tuple(Decision(f"{i}:channels", DecisionKind.CHANNELS, values) for i in range(4))
    )
    agent = CmaesAgent(space, Pricer(space, {}), seed=0)
    optimum, steepness = np.array([7, 20, 12, 25]), np.array([1.0, 4.0, 16.0, 4.0])

    def score(indices: np.ndarray) -> float:
        return -float((steepness * ((indices - optimum) / 32) ** 2).sum())

    reached = []
    for _ in range(240):
        (p,) = agent.ask()
        reached.append(score(space.indices(p.policy)))
        agent.tell(p.id, p.policy, Evaluation((reached[-1],), (0, 0)))
    assert max(reached) > -0.01
    assert np.mean(reached[-40:]) > 0.05 * np.mean(reached[1:41])
    assert np.abs(agent.mean - (optimum + 0.5) / 32).max() < 0.1


def test_learns_the_executed_policy() -> None:
    pricer = contract_pricers()["free"]
    agent = CmaesAgent(pricer.space, pricer, seed=0)
    executed = pricer.space.from_indices([0] * len(pricer.space))
    for p in agent.ask(_Rates.of(len(pricer.space)).population):
        agent.tell(p.id, executed, Evaluation((-0.1,), (0, 0)))
    sizes = np.array([len(d.values) for d in pricer.space.decisions])
    middle = (pricer.space.indices(executed) + 0.5) / sizes
    assert agent.mean == pytest.approx(middle, abs=0.5 / sizes.min())


def test_decisions_never_freeze() -> None:
    pricer = contract_pricers()["tiny"]
    agent = CmaesAgent(pricer.space, pricer, seed=0)
    for _ in range(60):
        (p,) = agent.ask()
        agent.tell(p.id, p.policy, Evaluation((-0.1,), (0, 0)))
    state = agent.state_dict()
    own = agent.sigma * np.sqrt(np.diag(np.array(state["covariance"])))
    sizes = np.array([len(d.values) for d in pricer.space.decisions])
    assert (own >= 0.5 / sizes - 1e-9).all()
