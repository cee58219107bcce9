"""No agent leaves the space or the budget, whatever the prices are."""

from __future__ import annotations

import numpy as np
import torch
from agent_toys import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import (
    AmcAgent,
    AmcSettings,
    CmaesAgent,
    DpAgent,
    EvolutionAgent,
    EvolutionSettings,
    GreedyAgent,
    RandomAgent,
    UniformAgent,
)
from agents.contract import contract_evaluation
from agents.protocol import Agent
from search_spaces import CostModel, Decision, DecisionKind, Factor, Pricer, SearchSpace
from search_spaces.walk import clip

torch.set_num_threads(1)


@st.composite
def pricers(draw: st.DrawFn) -> Pricer:
    """Chains with blocks, random pair costs that need not grow with anything, one or two bounds."""
    decisions: list[Decision] = []
    for layer in range(draw(st.integers(1, 4))):
        block = None
        if draw(st.booleans()):
            block = f"{layer}:block"
            decisions.append(Decision(block, DecisionKind.BLOCK, (0, 1)))
        widths = draw(st.sets(st.integers(1, 64), min_size=1, max_size=4))
        decisions.append(
            Decision(f"{layer}:channels", DecisionKind.CHANNELS, tuple(sorted(widths)), block)
        )
        if draw(st.booleans()):
            decisions.append(
                Decision(f"{layer}:precision", DecisionKind.PRECISION, (4, 8, 32), block)
            )
    space = SearchSpace(tuple(decisions))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    quantities = ["latency_ms", "size_bytes"][: draw(st.integers(1, 2))]
    models = {q: _model(space, rng) for q in quantities}
    free = Pricer(space, models)
    # A bound above what one policy costs can be reached: two bounds together as well.
    costs = free.costs(space.from_indices([int(rng.integers(len(d.values))) for d in decisions]))
    slack = draw(st.floats(1.0, 1.3))
    return free.with_limits({q: costs[q] * slack for q in quantities})


def _model(space: SearchSpace, rng: np.random.Generator) -> CostModel:
    factors = []
    for i in range(len(space)):
        others = {space.block_of[i]} if space.block_of[i] is not None else set()
        if i and space.block_of[i - 1] in (None, space.block_of[i]):
            others.add(i - 1)
        scope = tuple(sorted({i, *(o for o in others if o is not None)}))
        table = rng.uniform(0.1, 1.0, [len(space.decisions[j].values) for j in scope])
        block = space.block_of[i]
        if block is not None:
            # A dropped block costs nothing, whatever is decided inside it.
            index: list[slice | int] = [slice(None)] * len(scope)
            index[scope.index(block)] = 0
            table[tuple(index)] = 0.0
        factors.append(Factor(scope, table))
    return CostModel(0.1, tuple(factors))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pricer=pricers(), seed=st.integers(0, 1000))
def test_never_leaves_the_space_or_the_budget(pricer: Pricer, seed: int) -> None:
    space = pricer.space
    amc = AmcAgent(space, pricer, 8, seed, settings=small(AmcSettings.over(8)))
    agents: list[Agent] = [amc, RandomAgent(space, pricer, seed), UniformAgent(space, pricer)]
    check(pricer, agents, 8)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pricer=pricers(), seed=st.integers(0, 1000))
def test_nor_do_those_that_repair_and_fill(pricer: Pricer, seed: int) -> None:
    space = pricer.space
    agents: list[Agent] = [
        EvolutionAgent(space, pricer, 8, seed, settings=EvolutionSettings(3, 2, crossover=0.5)),
        GreedyAgent(space, pricer, 8, seed),
        DpAgent(space, pricer, 8, seed),
        CmaesAgent(space, pricer, seed),
    ]
    check(pricer, agents, 5)


def check(pricer: Pricer, agents: list[Agent], evaluations: int) -> None:
    space = pricer.space
    exact = len(pricer.limits) == 1
    # Under several bounds at once the clip is a lower bound's: it may miss what can be reached.
    reachable = exact or pricer.within(pricer.enforce([0] * len(space)))
    for agent in agents:
        for _ in range(evaluations):
            for p in agent.ask(1):
                space.check(p.policy)
                assert pricer.within(p.policy) or not reachable
                agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))


@given(
    allowed=st.lists(st.booleans(), min_size=1, max_size=8).filter(any),
    wanted=st.integers(0, 7),
)
def test_clip_takes_the_nearest_allowed_value_from_above(allowed: list[bool], wanted: int) -> None:
    index = clip(wanted, np.array(allowed))
    assert allowed[index]
    if any(allowed[: wanted + 1]):
        assert index <= wanted
        assert not any(allowed[index + 1 : wanted + 1])
    else:
        assert not any(allowed[:index])
