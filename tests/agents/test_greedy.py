from __future__ import annotations

import numpy as np
from agent_toys import ToyResNet

from agents import GreedyAgent
from agents.contract import contract_evaluation, contract_pricers
from search_spaces import CostModel, Decision, DecisionKind, Evaluation, Factor, Pricer, SearchSpace

WIDTHS = (4, 8, 12, 16)


def layers(harm: list[float], bound: float) -> tuple[SearchSpace, Pricer, list[float]]:
    """Layers whose latency is their width; lowering layer i by a step hurts ``harm[i]``."""
    space = SearchSpace(
        tuple(Decision(f"{i}:channels", DecisionKind.CHANNELS, WIDTHS) for i in range(len(harm)))
    )
    factors = tuple(Factor((i,), np.array(WIDTHS, dtype=float)) for i in range(len(harm)))
    return space, Pricer(space, {"macs": CostModel(0.0, factors)}, {"macs": bound}), harm


def run(agent: GreedyAgent, space: SearchSpace, harm: list[float]) -> list[Evaluation]:
    told = []
    while not agent.finished:
        (p,) = agent.ask()
        steps = 3 - space.indices(p.policy)
        score = -float((steps * np.array(harm)).sum())
        told.append(Evaluation((score,), (score, score)))
        agent.tell(p.id, p.policy, told[-1])
    return told


def test_shrinks_where_it_hurts_least() -> None:
    space, pricer, harm = layers([0.3, 0.01, 0.2], 36.0)
    # 48 wide, 36 allowed: three steps of one width each, all from the second layer.
    agent = GreedyAgent(space, pricer, 9, 0)
    run(agent, space, harm)
    assert agent.here == space.policy([16, 4, 16])
    assert pricer.within(agent.here)


def test_every_candidate_of_a_step_lowers_one_decision() -> None:
    space, pricer, _ = layers([0.3, 0.01, 0.2], 36.0)
    agent = GreedyAgent(space, pricer, 9, 0, complete=False)
    candidates = agent.ask(3)
    lowered = [np.flatnonzero(space.indices(p.policy) < 3).tolist() for p in candidates]
    assert sorted(lowered) == [[0], [1], [2]]
    # As published they are over the job's budget on the way down.
    assert not any(pricer.within(p.policy) for p in candidates)


def test_what_is_evaluated_is_within_the_budget_and_uses_it() -> None:
    toy = ToyResNet()
    pricer = toy.pricer(latency_ms=0.5)
    agent = GreedyAgent(toy.space, pricer, 40, 0)
    for _ in range(6):
        (p,) = agent.ask()
        assert pricer.within(p.policy)
        assert pricer.fill(p.policy) == p.policy
        agent.tell(p.id, p.policy, toy.evaluate(p.policy, pricer))


def test_more_proposals_than_a_step_has_are_other_policies() -> None:
    pricer = contract_pricers()["joint"]
    agent = GreedyAgent(pricer.space, pricer, 40, 0)
    proposals = agent.ask(12)
    assert len(proposals) == 12
    assert len({p.policy for p in proposals}) > 6
    for p in proposals:
        agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
    assert agent.ask(1)


def test_finishes_within_its_evaluations() -> None:
    pricer = contract_pricers()["everything"]
    agent = GreedyAgent(pricer.space, pricer, 30, 0)
    told = 0
    while not agent.finished:
        (p,) = agent.ask()
        agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
        told += 1
    assert told <= 40
    assert pricer.within(agent.here)
    assert agent.ask(1) == []
