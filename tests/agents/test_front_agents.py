"""Agents that search for a whole front pass the suite of agents, and find fronts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agent_toys import ToyResNet

from agents import AgentError, EvolutionSettings, Objective, RandomAgent, agent_names
from agents.bound_span import BoundSpan
from agents.contract import AgentContract, contract_pricers, drive
from agents.front_evolution import FrontEvolutionAgent, anchors_of
from agents.front_optuna import FrontOptunaAgent
from agents.front_sweep import SweptAgent
from agents.fronts import make_front_agent
from agents.protocol import Agent
from search_spaces import Evaluation, Failure, Pricer, SearchSpace
from search_spaces.front import FrontAxes, RunningFront


def axes_of(pricer: Pricer) -> FrontAxes:
    """All that the prices know, multiply-accumulates apart."""
    return FrontAxes.of(pricer, tuple(q for q in pricer.models if q != "macs"))


class FrontContract(AgentContract):
    """The suite; whether the front is a good one is tested below."""

    learns = False
    name: str

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        axes = axes_of(pricer)
        return make_front_agent(self.name, pricer.space, pricer, evaluations, seed, axes)


class TestEvolution(FrontContract):
    name = "evolution"
    spaces = ("two_bounds", "free", "tiny", "everything")


class TestNsga2(FrontContract):
    name = "nsga2"
    spaces = ("two_bounds", "free")


class TestTpe(FrontContract):
    name = "tpe"
    spaces = ("everything",)


class TestAuto(FrontContract):
    name = "auto"
    spaces = ("two_bounds",)


class TestSweptCmaes(FrontContract):
    name = "cmaes"
    spaces = ("two_bounds", "tiny")


def volume(agent: Agent, toy: ToyResNet, pricer: Pricer, axes: FrontAxes, evaluations: int) -> Any:
    """The running front after so many evaluations."""
    front = RunningFront(axes)
    while front.evaluations < evaluations and (proposals := agent.ask(1)):
        outcome = toy.evaluate(proposals[0].policy, pricer)
        assert pricer.within(proposals[0].policy)
        agent.tell(proposals[0].id, proposals[0].policy, outcome)
        front.tell(outcome)
    return front


@pytest.mark.parametrize(
    ("name", "times"), [("evolution", 1.2), ("nsga2", 1.2), ("tpe", 1.2), ("cmaes", 1.0)]
)
def test_finds_more_of_the_front_than_random_draws(name: str, times: float) -> None:
    toy = ToyResNet(4)
    pricer = toy.pricer(latency_ms=0.8)
    axes = FrontAxes.of(pricer, ("latency_ms", "size_bytes"))
    found = {
        agent: [
            volume(
                make_front_agent(agent, pricer.space, pricer, 50, seed, axes),
                toy, pricer, axes, 50,
            ).volume
            for seed in range(2)
        ]
        for agent in (name, "random")
    }  # fmt: skip
    assert np.mean(found[name]) > times * np.mean(found["random"])


def test_every_agent_searches_for_a_front_or_says_why_not() -> None:
    pricer = contract_pricers()["tiny"]
    axes = axes_of(pricer)
    for name in agent_names():
        agent = make_front_agent(name, pricer.space, pricer, 3, 0, axes)
        assert all(pricer.within(policy) for policy in drive(agent, pricer, 3)), name
    prune = contract_pricers()["prune"]
    with pytest.raises(AgentError, match="haq decides bit widths"):
        make_front_agent("haq", prune.space, prune, 4, 0, axes_of(prune))
    with pytest.raises(AgentError, match="unknown agent"):
        make_front_agent("nobody", prune.space, prune, 4, 0, axes_of(prune))


def test_an_agent_of_others_is_swept() -> None:
    pricer = contract_pricers()["two_bounds"]
    made: list[Pricer] = []
    seeds: list[int] = []

    def build(space: SearchSpace, own: Pricer, evaluations: int, seed: int, _: Objective) -> Agent:
        made.append(own)
        seeds.append(seed)
        return RandomAgent(space, own, seed)

    agent = make_front_agent("mine", pricer.space, pricer, 60, 0, axes_of(pricer), build)
    assert isinstance(agent, SweptAgent)
    assert all(pricer.within(policy) for policy in drive(agent, pricer, 9))
    assert len({tuple(own.limits.values()) for own in made}) == 3
    # Members with one seed would draw alike; the job's seed says which they have.
    assert len(set(seeds)) == 3
    make_front_agent("mine", pricer.space, pricer, 60, 0, axes_of(pricer), build)
    make_front_agent("mine", pricer.space, pricer, 60, 1, axes_of(pricer), build)
    assert seeds[3:6] == seeds[:3] and not set(seeds[6:]) & set(seeds[:3])


def test_a_sweep_gives_each_member_bounds_of_its_own() -> None:
    pricer = contract_pricers()["free"]
    span = BoundSpan(pricer, ("latency_ms",))
    given: list[Pricer] = []

    def build(bounded: Pricer, own: int) -> Agent:
        given.append(bounded)
        assert own == 20
        return FrontEvolutionAgent(pricer.space, bounded, own, 0, axes_of(bounded))

    agent = SweptAgent(pricer.space, 80, build, span)
    bounds = [p.limits["latency_ms"] for p in given]
    assert len(bounds) == 4 and bounds == sorted(bounds, reverse=True)
    whole = pricer.costs(pricer.space.uncompressed())["latency_ms"]
    assert bounds[0] == pytest.approx(whole)
    for k, proposal in enumerate(agent.ask(8)):
        assert given[k % 4].within(proposal.policy)


def test_a_member_hears_only_of_what_keeps_its_bounds() -> None:
    pricer = contract_pricers()["free"]
    heard: dict[int, list[tuple[float, dict[str, float]]]] = {}

    class Listener(FrontEvolutionAgent):
        def observe(self, executed: Any, outcome: Evaluation | Failure) -> None:
            assert isinstance(outcome, Evaluation)
            cost = self._pricer.costs(executed)["latency_ms"]
            heard.setdefault(id(self), []).append((cost, dict(outcome.violations)))
            assert self._pricer.within(executed)
            super().observe(executed, outcome)

    agent = SweptAgent(
        pricer.space,
        40,
        lambda bounded, own: Listener(pricer.space, bounded, own, 0, axes_of(bounded)),
        BoundSpan(pricer, ("latency_ms",)),
    )
    drive(agent, pricer, 12)
    # The member with the wider bound hears of the other's proposals, and not the other way round in general.
    assert heard and max(len(h) for h in heard.values()) == 6
    assert all(not violations for h in heard.values() for _, violations in h)


def test_bounds_of_a_span_can_be_kept_together() -> None:
    for name in ("two_bounds", "free", "everything"):
        pricer = contract_pricers()[name]
        span = BoundSpan(pricer, axes_of(pricer).quantities)
        for shares in (*span.spread(6), np.zeros(2)):
            bounded = span.at(shares)
            assert bounded.within(bounded.repair(pricer.space.uncompressed()))
            for quantity, limit in pricer.limits.items():
                assert bounded.limits[quantity] <= limit * (1 + 1e-9)


def test_a_front_begins_with_uniform_policies_of_several_levels() -> None:
    toy = ToyResNet(4)
    pricer = toy.pricer(latency_ms=0.8)
    anchors = anchors_of(BoundSpan(pricer, ("latency_ms",)), 60)
    costs = [pricer.costs(policy)["latency_ms"] for policy in anchors]
    assert 2 < len(anchors) <= 12 and len(set(anchors)) == len(anchors)
    assert max(costs) > 2 * min(costs)
    assert len(anchors_of(BoundSpan(pricer, ("latency_ms",)), 5)) == 2


def test_the_population_keeps_the_front_and_its_ends() -> None:
    pricer = contract_pricers()["free"]
    axes = FrontAxes.of(pricer, ("latency_ms",))
    settings = EvolutionSettings(4, 2, aging=False)
    agent = FrontEvolutionAgent(pricer.space, pricer, 40, 0, axes, settings)
    told = []
    for proposal in agent.ask(12):
        costs = pricer.costs(proposal.policy)
        # The dearer the better, but for one in three, which is dominated by nearly all.
        bad = proposal.id % 3 == 1
        score = -5.0 if bad else -1 / costs["latency_ms"]
        outcome = Evaluation((score,), (score, score), costs=costs)
        agent.tell(proposal.id, proposal.policy, outcome)
        if not bad:
            told.append(costs["latency_ms"])
    state = agent.state_dict()
    kept = [pricer.costs(pricer.space.from_indices(g))["latency_ms"] for _, g in state["members"]]
    assert len(kept) == 4
    assert min(kept) == pytest.approx(min(told)) and max(kept) == pytest.approx(max(told))


def test_what_a_front_refuses() -> None:
    pricer = contract_pricers()["joint"]
    axes = axes_of(pricer)
    with pytest.raises(AgentError, match="does not age"):
        FrontEvolutionAgent(
            pricer.space, pricer, 9, 0, axes, settings=EvolutionSettings.published()
        )
    with pytest.raises(AgentError, match="does not search for a front"):
        FrontOptunaAgent("gp", pricer.space, pricer, 9, 0, axes)
    sweep = make_front_agent("cmaes", pricer.space, pricer, 40, 0, axes)
    with pytest.raises(AgentError, match="members"):
        sweep.load_state_dict(
            make_front_agent("cmaes", pricer.space, pricer, 100, 0, axes).state_dict()
        )
    tpe = FrontOptunaAgent("tpe", pricer.space, pricer, 9, 0, axes)
    with pytest.raises(AgentError, match="cannot load the state of nsga2"):
        tpe.load_state_dict(
            FrontOptunaAgent("nsga2", pricer.space, pricer, 9, 0, axes).state_dict()
        )
