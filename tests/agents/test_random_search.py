from __future__ import annotations

import itertools
from collections import Counter

from agent_toys import ToyResNet

from agents import RandomAgent
from agents.contract import contract_pricers
from search_spaces import Failure


def test_proposes_every_policy_of_a_small_space_once() -> None:
    pricer = contract_pricers()["tiny"]
    space = pricer.space
    every = {space.policy(v) for v in itertools.product(*(d.values for d in space.decisions))}
    within = {policy for policy in every if pricer.within(policy)}
    agent = RandomAgent(space, pricer, seed=0)
    proposals = agent.ask(1000)
    assert agent.finished
    assert len(proposals) == len(within)
    assert {p.policy for p in proposals} == within


def test_no_policy_twice_in_a_large_space() -> None:
    toy = ToyResNet()
    agent = RandomAgent(toy.space, toy.pricer(latency_ms=0.4), seed=0)
    assert len({p.policy for p in agent.ask(100)}) == 100


def test_what_was_executed_is_not_proposed_again() -> None:
    pricer = contract_pricers()["tiny"]
    agent = RandomAgent(pricer.space, pricer, seed=0)
    executed = pricer.enforce([0] * len(pricer.space))
    (first,) = agent.ask(1)
    agent.tell(first.id, executed, Failure("x"))
    assert executed not in {p.policy for p in agent.ask(1000)}


def test_draws_uniformly_and_by_seed() -> None:
    toy = ToyResNet(scope="prune")
    free = toy.pricer()
    counts = Counter(p.policy.values[0] for p in RandomAgent(toy.space, free, seed=1).ask(800))
    assert len(counts) == 8
    assert max(counts.values()) < 1.5 * min(counts.values())
    asked = [RandomAgent(toy.space, free, seed=s).ask(1)[0].policy for s in range(5)]
    assert len(set(asked)) == 5
