"""Walks of many policies are each policy's own, and prices under other bounds walk as prices made for them."""

from __future__ import annotations

import numpy as np
import pytest

from agents.contract import contract_pricers
from search_spaces import Pricer

PRICERS = contract_pricers()


def wanted(pricer: Pricer, count: int, seed: int) -> np.ndarray:
    """Value indices of canonical policies drawn at random."""
    rng = np.random.default_rng(seed)
    sizes = [len(d.values) for d in pricer.space.decisions]
    return np.array([pricer.views.canonical(rng.integers(sizes)) for _ in range(count)])


@pytest.mark.parametrize("name", sorted(PRICERS))
def test_policies_are_filled_together_as_each_is_alone(name: str) -> None:
    pricer = PRICERS[name]
    rows = wanted(pricer, 60, 0)
    within = np.array([row for row in rows if pricer.within(pricer.views.policy(row))])
    cheapest = pricer.views.indices(pricer.enforce([0] * len(pricer.space)))
    within = np.concatenate([within.reshape(-1, len(pricer.space)), cheapest[None]])
    before = within.copy()
    together = pricer.steps.filled(within)
    assert (within == before).all()
    for row, found in zip(within, together, strict=True):
        assert found.tolist() == pricer.steps.filled(row).tolist()
        policy = pricer.views.policy(found)
        assert pricer.within(policy) and policy == pricer.fill(pricer.views.policy(row))
    assert (together >= within).all()
    # A precision that gives no work back is not bought.
    assert (together != within).any() == (name != "bits")


@pytest.mark.parametrize("name", sorted(PRICERS))
def test_the_way_down_and_up_in_one_is_both_ways(name: str) -> None:
    pricer = PRICERS[name]
    steps = pricer.steps
    for row in wanted(pricer, 30, 1):
        down, kept = steps.lowered(row)
        both, inside = steps.lowered_and_filled(row)
        assert kept == inside
        assert both.tolist() == (steps.filled(down) if kept else down).tolist()
        assert not kept or pricer.within(pricer.views.policy(down))


def test_a_walk_that_no_step_helps_says_so() -> None:
    pricer = PRICERS["joint"]
    impossible = pricer.with_limits({"latency_ms": 1e-9})
    whole = impossible.views.indices(pricer.space.uncompressed())
    _, within = impossible.steps.lowered(whole)
    assert not within
    assert whole.tolist() == pricer.views.indices(pricer.space.uncompressed()).tolist()


def test_prices_under_other_bounds_walk_as_if_they_were_new() -> None:
    pricer = PRICERS["two_bounds"]
    policies = [pricer.views.policy(row) for row in wanted(pricer, 20, 2)]
    assert all(pricer.within(pricer.fill(pricer.repair(policy))) for policy in policies)
    for share in (0.9, 0.5):
        limits = {quantity: limit * share for quantity, limit in pricer.limits.items()}
        # In another order, as the tables are shared by quantities and their order.
        for order in (limits, dict(reversed(limits.items()))):
            other, new = pricer.with_limits(order), Pricer(pricer.space, pricer.models, order)
            for policy in policies:
                repaired = new.repair(policy)
                assert other.repair(policy) == repaired
                assert other.fill(repaired) == new.fill(repaired)
