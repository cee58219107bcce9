"""Every agent under a bound on each of several targets: nothing assumes that there is one latency."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.contract import contract_evaluation, contract_pricers
from agents.fronts import make_front_agent
from agents.objective import Objective
from agents.registry import AGENTS
from search_spaces.cost_model import CostModel, Factor
from search_spaces.front import FrontAxes
from search_spaces.pricing import Pricer
from search_spaces.quantities import at_target

OTHER = at_target("latency_ms", "b")
THIRD = at_target("latency_ms", "c")


def tilted(model: CostModel, towards: float) -> CostModel:
    """The same terms, the later layers so much dearer: a device that dislikes other layers."""
    last = max(factor.scope[-1] for factor in model.factors)
    factors = tuple(
        Factor(f.scope, f.table * towards ** (f.scope[-1] / last - 0.5)) for f in model.factors
    )
    return CostModel(model.constant, factors, 0.03)


@pytest.fixture(scope="module")
def pricers() -> dict[str, Pricer]:
    """Two and three targets that dislike different layers."""
    found = {}
    for name, shares in (
        ("joint", {"latency_ms": 0.6, OTHER: 0.55}),
        ("everything", {"latency_ms": 0.7, OTHER: 0.65, THIRD: 0.7, "size_bytes": 0.6}),
    ):
        base = contract_pricers()[name]
        models = {
            "latency_ms": tilted(base.models["latency_ms"], 1.0),
            **{q: m for q, m in base.models.items() if q not in ("latency_ms", "energy_mj")},
            OTHER: tilted(base.models["latency_ms"], 9.0),
            THIRD: tilted(base.models["latency_ms"], 1 / 9),
        }
        whole = Pricer(base.space, models).costs(base.space.uncompressed())
        found[name] = Pricer(base.space, models, {q: v * whole[q] for q, v in shares.items()})
        found[name].require_reachable()
    return found


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_proposal_keeps_the_bound_on_each_target(
    name: str, pricers: dict[str, Pricer]
) -> None:
    pricer = pricers["everything"]
    seen = set()
    agent = AGENTS[name].build(pricer.space, pricer, 8, 0, Objective())
    for _ in range(8):
        asked = agent.ask(1)
        if not asked:
            assert agent.finished
            break
        (proposal,) = asked
        costs = pricer.costs(proposal.policy)
        assert not pricer.violations(costs), (name, costs)
        seen.add(proposal.policy)
        agent.tell(proposal.id, proposal.policy, contract_evaluation(proposal.policy, pricer))
    # There are only so many uniform policies.
    assert len(seen) >= (1 if name == "uniform" else 4)


def test_bounds_on_two_targets_bind_where_one_alone_would_not(pricers: dict[str, Pricer]) -> None:
    both = pricers["joint"]
    rng = np.random.default_rng(0)
    over = dict.fromkeys(both.limits, 0)
    for _ in range(20):
        wanted = [int(rng.integers(len(d.values))) for d in both.space.decisions]
        for quantity, limit in both.limits.items():
            alone = both.with_limits({quantity: limit})
            policy = alone.fill(alone.repair(both.space.from_indices(wanted)))
            assert alone.within(policy)
            missed = both.violations(both.costs(policy)).keys()
            for other in missed:
                over[other] += 1
        policy = both.repair(both.space.from_indices(wanted))
        assert both.within(policy)
    assert all(over.values())


@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"sac", "td3", "ddpg", "ppo"}))
def test_fronts_against_two_latencies_keep_the_bounds(
    name: str, pricers: dict[str, Pricer]
) -> None:
    pricer = pricers["joint"]
    axes = FrontAxes.of(pricer, ("latency_ms", OTHER))
    agent = make_front_agent(name, pricer.space, pricer, 10, 0, axes)
    for _ in range(10):
        asked = agent.ask(1)
        if not asked:
            break
        (proposal,) = asked
        assert pricer.within(proposal.policy)
        agent.tell(proposal.id, proposal.policy, contract_evaluation(proposal.policy, pricer))


def test_the_fastest_is_fastest_on_the_first_target(pricers: dict[str, Pricer]) -> None:
    pricer = pricers["joint"]
    objective = Objective.of("latency", pricer, 0.5)
    policy = pricer.cheapest("latency_ms")
    costs = pricer.costs(policy)
    good = replace(contract_evaluation(policy, pricer), top1_drop=(0.1, 0.0, 0.2), violations={})
    share = costs["latency_ms"] / pricer.costs(pricer.space.uncompressed())["latency_ms"]
    assert objective.reward(good) == pytest.approx(-share)
    slower_there = replace(good, costs={**costs, OTHER: 2 * costs[OTHER]})
    assert objective.reward(slower_there) == objective.reward(good)
    # A bound missed there counts as it does here.
    assert objective.reward(replace(good, violations={OTHER: 0.2})) < objective.reward(good)
