"""Laws of dominance and hypervolume, and known cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from search_spaces.dominance import crowding, nondominated, ranks
from search_spaces.hypervolume import best_subset, exclusive, hypervolume

Points = NDArray[np.float64]


def points(objectives: int, most: int = 12) -> st.SearchStrategy[Points]:
    # Few distinct values, so that ties and dominated points are common.
    value = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.25])
    return st.integers(0, most).flatmap(lambda n: arrays(float, (n, objectives), elements=value))


any_points = st.integers(1, 4).flatmap(points)


def by_definition(losses: Points) -> list[bool]:
    return [
        not any((q <= p).all() and (q < p).any() for q in losses)
        for p in losses
    ]  # fmt: skip


def by_grid(losses: Points, objectives: int) -> float:
    """Volume below 1 by counting the cells of a grid that the values lie on."""
    step = 0.25
    cells = itertools.product(np.arange(0, 1, step), repeat=objectives)
    return sum(
        step**objectives for cell in cells if any((p <= np.array(cell)).all() for p in losses)
    )


@settings(max_examples=60, deadline=None)
@given(any_points)
def test_the_front_is_what_nothing_dominates(losses: Points) -> None:
    assert nondominated(losses).tolist() == by_definition(losses)


@settings(max_examples=40, deadline=None)
@given(any_points)
def test_each_rank_is_the_front_of_what_is_left(losses: Points) -> None:
    found = ranks(losses)
    for rank in range(int(found.max(initial=-1)) + 1):
        left = np.flatnonzero(found >= rank)
        assert nondominated(losses[left]).tolist() == (found[left] == rank).tolist()
        assert (found == rank).any()


def test_crowding_is_the_share_of_the_gap_between_neighbours() -> None:
    losses = np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])
    assert crowding(losses).tolist() == [np.inf, 2.0, np.inf]
    assert crowding(np.array([[1.0, 1.0], [1.0, 1.0]])).tolist() == [0.0, 0.0]
    assert crowding(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize(
    ("losses", "reference", "volume"),
    [
        (np.empty((0, 2)), [1, 1], 0.0),
        ([[0.5, 0.5]], [1, 1], 0.25),
        ([[1.0, 0.0]], [1, 1], 0.0),
        ([[0, 2], [1, 1], [2, 0]], [3, 3], 6.0),
        ([[0, 2], [1, 1], [2, 0], [2, 2]], [3, 3], 6.0),
        ([[0, 0, 2], [0, 2, 0], [2, 0, 0]], [3, 3, 3], 19.0),
        ([[1, 1, 1], [0, 2, 2]], [3, 3, 3], 9.0),
        ([[0, 0, 0, 0]], [1, 2, 3, 4], 24.0),
        ([[-0.9, 0.4], [-0.5, 0.2]], [0, 1], 0.9 * 0.6 + 0.5 * 0.2),
    ],
)
def test_known_volumes(losses: list[list[float]], reference: list[float], volume: float) -> None:
    found = hypervolume(np.array(losses, dtype=float), np.array(reference, dtype=float))
    assert found == pytest.approx(volume)


@settings(max_examples=60, deadline=None)
@given(any_points)
def test_volume_is_what_the_points_cover(losses: Points) -> None:
    reference = np.ones(losses.shape[1])
    assert hypervolume(losses, reference) == pytest.approx(by_grid(losses, losses.shape[1]))


@settings(max_examples=60, deadline=None)
@given(any_points.filter(len))
def test_an_added_point_adds_its_exclusive_volume(losses: Points) -> None:
    reference = np.ones(losses.shape[1])
    before, after = hypervolume(losses[1:], reference), hypervolume(losses, reference)
    own = exclusive(losses[0], losses[1:], reference)
    assert own >= 0 and after == pytest.approx(before + own)
    if not nondominated(losses)[0]:
        assert own == pytest.approx(0)


def test_agrees_with_optuna_on_random_fronts() -> None:
    private = pytest.importorskip("optuna._hypervolume", reason="needs an Optuna with this module")
    theirs = private.compute_hypervolume
    rng = np.random.default_rng(0)
    for objectives in (2, 3, 4):
        losses = rng.dirichlet(np.ones(objectives), 30)
        reference = np.ones(objectives)
        assert hypervolume(losses, reference) == pytest.approx(theirs(losses, reference))


@settings(max_examples=40, deadline=None)
@given(points(3, most=7), st.integers(1, 4))
def test_a_greedy_subset_takes_the_most_each_time(losses: Points, count: int) -> None:
    reference = np.ones(3)
    chosen = best_subset(losses, reference, count)
    assert len(chosen) == min(count, int(nondominated(losses).sum()))
    assert len(set(chosen)) == len(chosen)
    taken: list[int] = []
    for one in chosen:
        gains = [exclusive(p, losses[taken], reference) for p in losses]
        assert gains[one] == pytest.approx(max(gains))
        taken.append(one)
    if chosen:
        best = max(
            hypervolume(losses[list(some)], reference)
            for some in itertools.combinations(range(len(losses)), min(count, len(losses)))
        )
        assert hypervolume(losses[chosen], reference) >= (1 - 1 / np.e) * best - 1e-12


def test_a_subset_goes_on_from_what_was_chosen() -> None:
    losses = np.array([[0.0, 0.6], [0.1, 0.5], [0.6, 0.0]])
    reference = np.ones(2)
    assert best_subset(losses, reference, 3) == [1, 2, 0]
    assert best_subset(losses, reference, 2, chosen=[1]) == [2, 0]
