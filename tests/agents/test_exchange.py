"""Exchanges never leave the bounds, and end where no change of one or two decisions helps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from agent_toys import ToyResNet
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.dp.agent import DpAgent
from agents.dp.exchange import AliveTerms, Exchanges
from agents.dp.sensitivity import Sensitivities
from search_spaces import CostModel, Decision, DecisionKind, Factor, Lookahead, SearchSpace
from search_spaces.cost_model import largest_table
from search_spaces.neighbours import Neighbours


def terms_of(space: SearchSpace, rng: np.random.Generator) -> CostModel:
    """Damage that falls with every decision's value, nothing at the last; 0 within dropped blocks."""
    factors = []
    for i, decision in enumerate(space.decisions):
        own = np.sort(rng.exponential(size=len(decision.values)))[::-1].copy()
        own[-1] = 0.0
        block = space.block_of[i]
        if block is None:
            factors.append(Factor((i,), own))
        else:
            factors.append(Factor((block, i), np.stack([np.zeros_like(own), own])))
    return CostModel(0.0, tuple(factors))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=2, max_size=5), st.floats(0.0, 1.0)
)
def test_exchanges_end_where_no_two_changes_help(seed: int, sizes: list[int], share: float) -> None:
    rng = np.random.default_rng(seed)
    ids = (f"m{i}:channels" for i in range(len(sizes)))
    space = SearchSpace(
        tuple(
            Decision(id, DecisionKind.CHANNELS, tuple(range(1, n + 1)))
            for id, n in zip(ids, sizes, strict=True)
        )
    )
    damage, *costs = (
        CostModel(0.1, tuple(Factor((i,), rng.uniform(size=n)) for i, n in enumerate(sizes)))
        for _ in range(3)
    )
    every = np.array(list(itertools.product(*(range(n) for n in sizes))))
    start = every[int(rng.integers(len(every)))]
    limits = np.array([model.price(start[None])[0] * (1 + share) for model in costs])
    search = Exchanges(space, costs)
    found = search.improve(start, AliveTerms.of(space, damage), limits, 500)
    prices = np.array([model.price(every) for model in costs]).T
    within = (prices <= limits).all(axis=1)
    near = ((every != found).sum(axis=1) <= 2) & within
    least = damage.price(every[near]).min()
    assert damage.price(found[None])[0] == pytest.approx(least, rel=1e-6)
    one = search.improve(start, AliveTerms.of(space, damage), limits, 1)
    assert (one != start).sum() <= 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_alive_terms_are_the_models_sums(seed: int) -> None:
    space, rng = ToyResNet(blocks=3).space, np.random.default_rng(seed)
    model = terms_of(space, rng)
    sizes = [len(d.values) for d in space.decisions]
    here = np.array([rng.integers(n) for n in sizes])
    value, changes = AliveTerms.of(space, model).at(here)
    expected, differences = Neighbours([model], sizes).at(here)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    np.testing.assert_allclose(changes, differences, atol=1e-12)


def test_a_further_bound_is_kept() -> None:
    toy = ToyResNet(blocks=2)
    space, rng = toy.space, np.random.default_rng(0)
    model, latency = terms_of(space, rng), toy.models["latency_ms"]
    sizes = [len(d.values) for d in space.decisions]
    start = np.array([n - 1 for n in sizes])
    damage = AliveTerms.of(space, model)
    allowed = 0.1 * sum(float(f.table.max()) for f in model.factors)
    found = Exchanges(space, []).improve(
        start, Neighbours([latency], sizes), np.array([allowed]), 100, damage
    )
    assert damage.at(found)[0][0] <= allowed
    assert latency.price(found[None])[0] < latency.price(start[None])[0]


@pytest.mark.parametrize(("limit", "exact"), [(8, False), (10_000_000, True)])
def test_largest_table_says_when_completions_are_exact(limit: int, exact: bool) -> None:
    toy = ToyResNet(blocks=4)
    models = [toy.models["latency_ms"]]
    sizes = [len(d.values) for d in toy.space.decisions]
    assert (largest_table(models, sizes) <= limit) is exact
    assert Lookahead(models, [1.0], sizes, limit).exact is exact


def test_where_tables_are_too_large_it_draws_first_and_learns_from_the_better_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = ToyResNet(blocks=6)
    pricer = toy.pricer(latency_ms=0.5)
    monkeypatch.setattr("agents.dp.agent.TABLES", 8)
    agent = DpAgent(toy.space, pricer, 200, 0)
    heard: list[tuple[np.ndarray, np.ndarray]] = []

    class Heard(Sensitivities):
        def __init__(self, space: SearchSpace, indices: np.ndarray, damage: np.ndarray) -> None:
            heard.append((indices, damage))
            super().__init__(space, indices, damage)

    monkeypatch.setattr("agents.dp.agent.Sensitivities", Heard)
    told: list[float] = []
    for _ in range(80):
        (proposal,) = agent.ask(1)
        assert pricer.within(proposal.policy)
        evaluation = toy.evaluate(proposal.policy, pricer)
        told.append(-evaluation.score)
        agent.tell(proposal.id, proposal.policy, evaluation)
    assert np.median(told[40:]) < 0.9 * np.median(told[:31])
    # The first thirty were drawn, nothing was learned for them; what is learned are the best.
    _, damage = heard[0]
    assert 20 <= len(damage) <= 31 and max(damage) <= np.median(told[:31]) * 2
    _, damage = heard[-1]
    assert max(damage) <= sorted(told)[len(told) // 2 + 1]
