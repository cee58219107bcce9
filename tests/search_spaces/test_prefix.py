"""A prefix that grows tells what a prefix looked up anew does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.contract import contract_pricers
from search_spaces import CostModel, Factor, Lookahead
from search_spaces.prefix import fitting

PRICERS = contract_pricers()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_options_are_those_of_the_whole_prefix(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)

    def model() -> CostModel:
        made = []
        for _ in range(int(rng.integers(0, 8))):
            count = min(len(sizes), int(rng.integers(0, 4)))
            scope = tuple(sorted(int(i) for i in rng.choice(len(sizes), count, replace=False)))
            made.append(Factor(scope, rng.normal(size=[sizes[i] for i in scope])))
        return CostModel(float(rng.normal()), tuple(made))

    look = Lookahead([model(), model()], [1.0, 0.5], sizes)
    prefix: list[int] = []
    growing = look.growing()
    for size in sizes:
        # What is inactive is taken without a look.
        if rng.random() < 0.7:
            np.testing.assert_allclose(growing.options(), look.options(prefix), atol=1e-12)
        value = int(rng.integers(size))
        growing.append(value)
        prefix.append(value)


def test_prefixes_grow_apart_from_each_other() -> None:
    look = Lookahead([CostModel(0.0, (Factor((0, 1), np.arange(6.0).reshape(2, 3)),))], [1], [2, 3])
    first, second = look.growing(), look.growing()
    first.append(1)
    assert first.options()[:, 0].tolist() == [3.0, 4.0, 5.0]
    assert second.options()[:, 0].tolist() == [0.0, 3.0]


@pytest.mark.parametrize("name", sorted(PRICERS))
def test_what_is_allowed_is_what_the_prices_say(name: str) -> None:
    pricer = PRICERS[name]
    rng = np.random.default_rng(0)
    for _ in range(20):
        prefix = pricer.growing()
        for _ in pricer.space.decisions:
            allowed = prefix.allowed()
            assert allowed.tolist() == pricer.allowed(prefix.indices).tolist()
            prefix.append(int(rng.choice(np.flatnonzero(allowed))))
        assert pricer.within(pricer.space.from_indices(prefix.indices))


def test_where_nothing_fits_the_nearest_value_is_allowed() -> None:
    bounds = np.array([1.0, 2.0])
    first, second = np.array([[3.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 5.0], [4.0, 4.0]])
    assert fitting([first, second], bounds).tolist() == [False, True]
    assert fitting([first[:, :1]], bounds[:1] * 2).tolist() == [False, True]
    assert fitting([first[:, :1]], bounds[:1]).tolist() == [False, True]
