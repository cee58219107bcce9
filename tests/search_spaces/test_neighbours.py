"""Changes of one decision are differences of prices, and index views agree with the space."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import CostModel, Decision, DecisionKind, Factor, SearchSpace
from search_spaces.neighbours import Neighbours
from search_spaces.policy_indices import PolicyIndices


def random_model(rng: np.random.Generator, sizes: list[int], factors: int) -> CostModel:
    """Factors over up to four decisions, some over the same ones, some over none."""
    made = []
    for _ in range(factors):
        count = min(len(sizes), int(rng.integers(0, 5)))
        scope = tuple(sorted(int(i) for i in rng.choice(len(sizes), count, replace=False)))
        made.append(Factor(scope, rng.normal(size=[sizes[i] for i in scope])))
    return CostModel(float(rng.normal()), tuple(made))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_changes_are_differences_of_prices(seed: int, sizes: list[int], factors: list[int]) -> None:
    rng = np.random.default_rng(seed)
    models = [random_model(rng, sizes, count) for count in factors]
    near = Neighbours(models, sizes)
    here = np.array([rng.integers(n) for n in sizes])
    costs, changes = near.at(here)
    others = np.repeat(here[None], len(near.position), axis=0)
    others[np.arange(len(others)), near.position] = near.value
    assert sorted(zip(near.position.tolist(), near.value.tolist())) == [
        (i, v) for i, n in enumerate(sizes) for v in range(n)
    ]
    for model, cost, change in zip(models, costs, changes, strict=True):
        price = model.price(here[None])[0]
        np.testing.assert_allclose(cost, price, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(change, model.price(others) - price, rtol=1e-9, atol=1e-12)
    # Others are looked up together as each is alone, to the last digit.
    for row, cost, change in zip(others, *near.at(others), strict=True):
        alone = near.at(row)
        assert cost.tolist() == alone[0].tolist() and change.tolist() == alone[1].tolist()
    # What stays as it is changes nothing, to the last digit: walks look for changes that are free.
    assert not changes[:, near.first + here].any()


def test_a_decision_that_no_term_depends_on_changes_nothing() -> None:
    model = CostModel(1.0, (Factor((1,), np.array([1.0, 3.0])),))
    costs, changes = Neighbours([model, CostModel(2.0, ())], [3, 2]).at(np.array([1, 0]))
    assert costs.tolist() == [2.0, 2.0]
    assert changes.tolist() == [[0.0, 0.0, 0.0, 0.0, 2.0], [0.0] * 5]
    costs, changes = Neighbours([], [3, 2]).at(np.array([1, 0]))
    assert costs.shape == (0,) and changes.shape == (0, 5)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Layers with and without blocks, blocks within blocks, weight bits tied to precisions."""
    decisions: list[Decision] = []
    kind = DecisionKind
    for layer in range(draw(st.integers(1, 4))):
        block = None
        if draw(st.booleans()):
            outer = draw(
                st.sampled_from([None, *(d.id for d in decisions if d.kind is kind.BLOCK)])
            )
            block = f"{layer}:block"
            decisions.append(Decision(block, kind.BLOCK, (0, 1), outer))
        decisions.append(Decision(f"{layer}:channels", kind.CHANNELS, (4, 8, 12), block))
        decisions.append(Decision(f"{layer}:precision", kind.PRECISION, (8, 32), block))
        if draw(st.booleans()):
            decisions.append(Decision(f"{layer}:weight_bits", kind.WEIGHT_BITS, (2, 8, 32), block))
    return SearchSpace(tuple(decisions))


@settings(max_examples=100, deadline=None)
@given(spaces(), st.integers(0, 10_000))
def test_index_views_agree_with_the_space(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    views = PolicyIndices(space)
    raw = np.array([rng.integers(len(d.values)) for d in space.decisions])
    policy = space.from_indices(raw)
    assert views.policy(raw) == policy
    assert views.policy(raw.tolist()) == policy
    space.check(views.policy(raw))
    assert views.indices(policy).tolist() == space.indices(policy).tolist()
    assert views.canonical(raw).tolist() == space.indices(policy).tolist()
