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
    Policy,
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


def network_model(rng: np.random.Generator, space: SearchSpace) -> CostModel:
    """Random costs of each decision, and of it with the one before; dropped blocks cost nothing."""
    factors = []
    for i, block in enumerate(space.block_of):
        scope = {i}
        if i and space.block_of[i - 1] in (None, block) and rng.random() < 0.7:
            scope.add(i - 1)
        if block is not None:
            scope.add(block)
        order = tuple(sorted(scope))
        table = rng.choice(
            [0.0, 0.5, 1.0, rng.random()], [len(space.decisions[j].values) for j in order]
        )
        # Usually wider is dearer, as in a network; the rest is a staircase's whim.
        table = np.sort(table, axis=order.index(i)) if rng.random() < 0.7 else table
        if block is not None:
            table[tuple(0 if j == block else slice(None) for j in order)] = 0.0
        factors.append(Factor(order, table))
    return CostModel(0.1, tuple(factors), relative_error=float(rng.choice([0.0, 0.05])))


@st.composite
def priced_policies(draw: st.DrawFn) -> tuple[Pricer, Policy]:
    """Layers with or without blocks and precisions, one or two bounds, a policy in or out of them."""
    decisions: list[Decision] = []
    for layer in range(draw(st.integers(1, 4))):
        block = f"{layer}:block" if draw(st.booleans()) else None
        if block:
            decisions.append(Decision(block, DecisionKind.BLOCK, (0, 1)))
        widths = tuple(range(1, draw(st.integers(2, 6))))
        decisions.append(Decision(f"{layer}:channels", DecisionKind.CHANNELS, widths, block))
        if draw(st.booleans()):
            decisions.append(Decision(f"{layer}:precision", DecisionKind.PRECISION, (8, 32), block))
    space = SearchSpace(tuple(decisions))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    quantities = draw(st.sampled_from([["latency_ms"], ["latency_ms", "size_bytes"]]))
    priced = [*quantities, "macs"] if draw(st.booleans()) else quantities
    free = Pricer(space, {q: network_model(rng, space) for q in priced})
    policy = space.from_indices([int(rng.integers(len(d.values))) for d in decisions])
    slack = draw(st.floats(0.8, 2.0))
    costs = free.costs(policy)
    return free.with_limits({q: slack * costs[q] * free.margin(q) for q in quantities}), policy


def work(pricer: Pricer, policy: Policy) -> float:
    """What a raise is worth: multiply-accumulates, else shares of channels and blocks."""
    if "macs" in pricer.models:
        return pricer.costs(policy)["macs"]
    decisions = pricer.space.decisions
    shares = [
        v / d.largest
        for d, v in zip(decisions, policy.values)
        if d.kind is not DecisionKind.PRECISION
    ]
    return sum(shares)


@settings(max_examples=200, deadline=None)
@given(priced_policies())
def test_filling_stays_within_lowers_nothing_and_leaves_nothing(
    case: tuple[Pricer, Policy],
) -> None:
    pricer, policy = case
    space = pricer.space
    filled = pricer.fill(policy)
    if not pricer.within(policy):
        assert filled == policy
        return
    space.check(filled)
    assert pricer.within(filled)
    assert all(after >= before for before, after in zip(policy.values, filled.values))
    here, costs = space.indices(filled), pricer.costs(filled)
    for i, decision in enumerate(space.decisions):
        for value in range(here[i] + 1, len(decision.values)):
            raised = space.from_indices([*here[:i], value, *here[i + 1 :]])
            if raised == filled:
                continue  # inactive
            after = pricer.costs(raised)
            assert any(after[q] > costs[q] for q in pricer.limits), f"{decision.id} rises for free"
            assert not pricer.within(raised) or work(pricer, raised) <= work(pricer, filled) + 1e-9
    assert pricer.fill(filled) == filled
    assert pricer.fill(policy) == filled


def test_filling_climbs_over_the_high_steps_of_a_staircase() -> None:
    # 63 channels run slower than 64: a raise by one does not fit, a raise by two does.
    latency = CostModel(0.0, (Factor((0,), np.array([1.0, 3.0, 2.0, 4.0])),))
    macs = CostModel(0.0, (Factor((0,), np.array([1.0, 2.0, 3.0, 4.0])),))
    pricer = Pricer(space_of([4]), {"latency_ms": latency, "macs": macs}, {"latency_ms": 2.5})
    assert pricer.fill(pricer.space.policy([1])).values == (3,)
    # From the high step the one above is cheaper: taken though the bound has nothing left.
    assert pricer.with_limits({"latency_ms": 3.0}).fill(pricer.space.policy([2])).values == (3,)


def test_filling_takes_the_most_work_for_what_is_scarce() -> None:
    line = np.array([1.0, 2.0])
    macs = CostModel(0.0, (Factor((0,), 3 * line), Factor((1,), 2 * line)))
    latency = CostModel(0.0, (Factor((0,), 2 * line), Factor((1,), line)))
    pricer = Pricer(space_of([2, 2]), {"latency_ms": latency, "macs": macs})
    smallest = pricer.space.policy([1, 1])
    # Both do not fit: the first gives 3 for 2 ms, the second 2 for 1 ms.
    assert pricer.with_limits({"latency_ms": 5.5}).fill(smallest).values == (1, 2)
    # The second needs nearly all that is left of the size, the first none.
    size = CostModel(91.0, (Factor((1,), 9 * line),))
    both = Pricer(pricer.space, {**pricer.models, "size_bytes": size})
    assert both.with_limits({"latency_ms": 5.5, "size_bytes": 109.5}).fill(smallest).values == (
        2,
        1,
    )
    assert both.with_limits({"latency_ms": 6.5, "size_bytes": 109.5}).fill(smallest).values == (
        2,
        2,
    )


def test_filling_leaves_precisions_and_what_lies_in_a_dropped_block() -> None:
    space = SearchSpace(
        (
            Decision("a:precision", DecisionKind.PRECISION, (8, 32)),
            Decision("b:block", DecisionKind.BLOCK, (0, 1)),
            Decision("b:channels", DecisionKind.CHANNELS, (8, 16), "b:block"),
            Decision("b:precision", DecisionKind.PRECISION, (8, 32), "b:block"),
        )
    )
    inside = np.array([[1.0, 2.0], [2.0, 4.0]])  # [channels, precision]
    block = Factor((1, 2, 3), np.stack([np.zeros_like(inside), inside]))
    wide = np.array([[8.0, 8.0], [16.0, 16.0]])
    macs = CostModel(0.0, (Factor((1, 2, 3), np.stack([np.zeros_like(wide), wide])),))
    latency = CostModel(0.0, (Factor((0,), np.array([1.0, 1.5])), block))
    pricer = Pricer(space, {"latency_ms": latency, "macs": macs})
    dropped, eights = space.policy([8, 0, 16, 32]), space.policy([8, 1, 8, 8])
    # Too little for the whole block, enough for a precision that is not free: nothing changes.
    assert pricer.with_limits({"latency_ms": 4.9}).fill(dropped) == dropped
    assert pricer.with_limits({"latency_ms": 5.0}).fill(dropped).values == (8, 1, 16, 32)
    assert pricer.with_limits({"latency_ms": 9.0}).fill(eights).values == (8, 1, 16, 8)
    # An integer layer that is not faster gives accuracy away for nothing.
    level = CostModel(0.0, (Factor((0,), np.array([1.5, 1.5])), block))
    same = Pricer(space, {"latency_ms": level, "macs": macs}, {"latency_ms": 3.5})
    assert same.fill(eights).values == (32, 1, 16, 8)


def test_filling_holds_the_upper_end_of_the_interval_and_needs_a_bound() -> None:
    line = (Factor((0,), np.array([1.0, 2.0, 3.0])),)
    model = CostModel(0.0, line, relative_error=0.1)
    free = Pricer(space_of([3]), {"latency_ms": model})
    smallest = free.space.policy([1])
    assert free.with_limits({"latency_ms": 3.4}).fill(smallest).values == (2,)
    assert free.with_limits({"latency_ms": 3.5}).fill(smallest).values == (3,)
    assert free.fill(smallest) == free.space.uncompressed()


def test_energy_is_bounded_beside_latency() -> None:
    """Fast and thirsty against slow and frugal: only the middle keeps both bounds, margins included."""
    latency = CostModel(0.0, (Factor((0,), np.array([3.0, 2.0, 1.0])),), relative_error=0.05)
    energy = CostModel(0.0, (Factor((0,), np.array([1.0, 2.0, 3.0])),), relative_error=0.1)
    free = Pricer(space_of([3]), {"latency_ms": latency, "energy_mj": energy})
    policies = [free.space.from_indices([i]) for i in range(3)]
    costs = free.costs(policies[1])
    assert costs["energy_mj_upper"] == pytest.approx(2 * free.margin("energy_mj"))
    pricer = free.with_limits({"latency_ms": 2.5, "energy_mj": 2.4})
    assert [pricer.within(policy) for policy in policies] == [False, True, False]
    assert set(pricer.violations(free.costs(policies[2]))) == {"energy_mj"}
    assert pricer.enforce([2]) == policies[1] and pricer.enforce([0]) == policies[1]
    with pytest.raises(BudgetError, match="energy_mj"):
        free.with_limits({"energy_mj": 1.1}).require_reachable()
