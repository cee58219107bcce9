"""A price is the sum of its factors' cells, alone or among others."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import CostModel, Factor


def random_model(rng: np.random.Generator, sizes: list[int], factors: int) -> CostModel:
    """Factors over up to three decisions each, some of them over the same ones or over none."""
    made = []
    for _ in range(factors):
        count = min(len(sizes), int(rng.integers(0, 4)))
        scope = tuple(sorted(int(i) for i in rng.choice(len(sizes), size=count, replace=False)))
        made.append(Factor(scope, rng.normal(size=[sizes[i] for i in scope])))
    return CostModel(float(rng.normal()), tuple(made), 0.1)


def by_hand(model: CostModel, policy: list[int]) -> float:
    return model.constant + sum(
        float(factor.table[tuple(policy[i] for i in factor.scope)]) for factor in model.factors
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=7), st.integers(0, 12)
)
def test_a_price_is_the_sum_of_the_cells(seed: int, sizes: list[int], factors: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng, sizes, factors)
    policies = np.array([[int(rng.integers(n)) for n in sizes] for _ in range(9)])
    expected = [by_hand(model, list(policy)) for policy in policies]
    np.testing.assert_allclose(model.price(policies), expected, rtol=1e-12, atol=1e-12)


def test_a_policy_costs_the_same_alone_and_among_many() -> None:
    rng = np.random.default_rng(0)
    sizes = [int(n) for n in rng.integers(2, 9, 60)]
    model = random_model(rng, sizes, 150)
    policies = np.array([[int(rng.integers(n)) for n in sizes] for _ in range(3000)])
    together = model.price(policies)
    for k in (0, 1, 1023, 1024, 2999):
        assert model.price(policies[k : k + 1])[0] == together[k]


def test_no_policies_and_no_factors() -> None:
    rng = np.random.default_rng(1)
    assert random_model(rng, [3, 3], 4).price(np.zeros((0, 2), dtype=np.int64)).shape == (0,)
    assert CostModel(2.5, ()).price(np.zeros((3, 2), dtype=np.int64)).tolist() == [2.5] * 3
    nothing = CostModel(1.0, (Factor((), np.array(2.0)),))
    assert nothing.price(np.zeros((2, 1), dtype=np.int64)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("policy", [[0, 3], [-1, 0], [0]])
def test_an_index_that_names_no_value_is_refused(policy: list[int]) -> None:
    model = CostModel(0.0, (Factor((0, 1), np.zeros((2, 3))),))
    with pytest.raises(IndexError, match="out of range"):
        model.price(np.array([policy]))


def test_decisions_no_factor_depends_on_may_have_any_value() -> None:
    model = CostModel(0.0, (Factor((1,), np.array([1.0, 2.0])),))
    assert model.price(np.array([[700, 1, 900]])).tolist() == [2.0]


def test_scaling_and_pickling_keep_the_prices() -> None:
    rng = np.random.default_rng(2)
    model = random_model(rng, [3, 4, 2], 6)
    policies = np.array([[2, 3, 1], [0, 0, 0]])
    prices = model.price(policies)
    np.testing.assert_allclose(model.scaled(3.0).price(policies), 3 * prices, rtol=1e-12)
    assert model.scaled(3.0).relative_error == 0.1
    again = pickle.loads(pickle.dumps(model))
    assert again.price(policies).tolist() == prices.tolist()
