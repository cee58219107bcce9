"""The cheapest completion is exact, and clipping never leaves the budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import (
    BudgetError,
    CostModel,
    Decision,
    DecisionKind,
    Factor,
    Lookahead,
    Pricer,
    SearchSpace,
)


def random_model(rng: np.random.Generator, sizes: list[int], factors: int) -> CostModel:
    made = []
    for _ in range(factors):
        scope = tuple(
            sorted(rng.choice(len(sizes), size=min(len(sizes), rng.integers(1, 4)), replace=False))
        )
        made.append(Factor(tuple(int(i) for i in scope), rng.random([sizes[i] for i in scope])))
    return CostModel(float(rng.random()), tuple(made))


def space_of(sizes: list[int]) -> SearchSpace:
    return SearchSpace(
        tuple(
            Decision(f"m{i}:channels", DecisionKind.CHANNELS, tuple(range(1, n + 1)))
            for i, n in enumerate(sizes)
        )
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_lookahead_equals_exhaustive_search(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng, sizes, 6)
    look = Lookahead([model], [1.0], sizes)
    assert look.exact
    everything = np.array(list(itertools.product(*(range(n) for n in sizes))))
    prices = model.price(everything)
    assert look.floor[0] == pytest.approx(prices.min())
    prefix: list[int] = []
    for t, n in enumerate(sizes):
        options = look.options(prefix)[:, 0]
        for v in range(n):
            match = (everything[:, : t + 1] == [*prefix, v]).all(axis=1)
            assert options[v] == pytest.approx(prices[match].min())
        prefix.append(int(rng.integers(n)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_enforced_policies_keep_several_bounds(seed: int, where: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = [3, 2, 4, 2, 3]
    models = {"latency_ms": random_model(rng, sizes, 6), "size_bytes": random_model(rng, sizes, 6)}
    space = space_of(sizes)
    free = Pricer(space, models)
    witness = space.from_indices([int(rng.integers(n)) for n in sizes])
    # A budget that the witness just keeps is reachable for certain; the slack loosens it towards the largest.
    limits = {q: v * (1 + where) for q, v in free.costs(witness).items() if q in models}
    pricer = free.with_limits(limits)
    policy = pricer.enforce([n - 1 for n in sizes])
    if pricer.within(pricer.enforce([0] * len(sizes))):
        assert pricer.within(policy)


def test_single_bound_allows_exactly_what_can_be_completed() -> None:
    rng = np.random.default_rng(3)
    sizes = [3, 3, 2, 4]
    model = random_model(rng, sizes, 7)
    space = space_of(sizes)
    everything = np.array(list(itertools.product(*(range(n) for n in sizes))))
    prices = model.price(everything)
    pricer = Pricer(space, {"latency_ms": model}, {"latency_ms": float(np.quantile(prices, 0.1))})
    for t in range(len(sizes)):
        for prefix in itertools.product(*(range(n) for n in sizes[:t])):
            fits = [
                (
                    prices[(everything[:, : t + 1] == [*prefix, v]).all(axis=1)]
                    <= pricer.limits["latency_ms"]
                ).any()
                for v in range(sizes[t])
            ]
            if any(fits):
                assert pricer.allowed(prefix).tolist() == fits


def test_a_split_bucket_gives_a_lower_bound() -> None:
    rng = np.random.default_rng(0)
    sizes = [4] * 6
    model = random_model(rng, sizes, 20)
    exact = Lookahead([model], [1.0], sizes)
    split = Lookahead([model], [1.0], sizes, table_limit=64)
    assert exact.exact and not split.exact
    assert split.floor[0] <= exact.floor[0] + 1e-12


def test_an_unreachable_budget_is_refused_with_the_smallest_value() -> None:
    model = CostModel(1.0, (Factor((0,), np.array([1.0, 2.0, 3.0])),))
    pricer = Pricer(space_of([3]), {"latency_ms": model}, {"latency_ms": 1.5})
    with pytest.raises(BudgetError, match=r"smallest reachable value on this target is 2"):
        pricer.require_reachable()
    pricer.with_limits({"latency_ms": 2.0}).require_reachable()


def test_the_upper_end_of_the_interval_is_what_counts() -> None:
    model = CostModel(0.0, (Factor((0,), np.array([1.0, 2.0])),), relative_error=0.1)
    pricer = Pricer(space_of([2]), {"latency_ms": model}, {"latency_ms": 2.1})
    assert pricer.enforce([1]).values == (1,)
    assert pricer.corrected("latency_ms", 0.9).enforce([1]).values == (2,)


def test_an_unpriced_quantity_is_refused() -> None:
    with pytest.raises(BudgetError, match="energy_mj"):
        Pricer(space_of([2]), {}, {"energy_mj": 1.0})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_repaired_policies_keep_the_budget_and_what_already_does(seed: int, where: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = [3, 2, 4, 2, 3]
    free = Pricer(space_of(sizes), {"latency_ms": random_model(rng, sizes, 6)})
    least = free.smallest("latency_ms")
    whole = free.costs(free.space.uncompressed())["latency_ms"]
    pricer = free.with_limits({"latency_ms": least + where * max(0.0, whole - least) + 1e-9})
    repaired = pricer.repair(free.space.uncompressed())
    assert pricer.within(repaired)
    assert pricer.repair(repaired) == repaired


def test_a_repair_spreads_the_loss_that_enforcing_puts_on_the_last() -> None:
    factors = tuple(Factor((i,), np.array([1.0, 2.0, 3.0])) for i in range(4))
    model = CostModel(0.0, factors)
    pricer = Pricer(space_of([3] * 4), {"latency_ms": model, "macs": model}, {"latency_ms": 8.0})
    whole = pricer.space.uncompressed()
    assert pricer.enforce([2, 2, 2, 2]).values == (3, 3, 1, 1)
    assert sorted(pricer.repair(whole).values) in ([1, 1, 3, 3], [1, 2, 2, 3], [2, 2, 2, 2])
