"""The expected gain of a front: against integrals and volumes computed another way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from agents.front_gain import CELLS, FrontGain, improvement
from search_spaces.dominance import nondominated
from search_spaces.hypervolume import best_subset, exclusive

EXACT = 1e-7


def front(costs: int, n: int, seed: int = 0) -> np.ndarray:
    """Points whose worth rises with their costs, and noise, dominated ones among them."""
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0.05, 1.1, (n, costs))
    worth = np.clip(shares.mean(axis=1) + rng.normal(0, 0.1, n), 0.0, 1.0)
    return np.column_stack([-worth, shares])


@pytest.mark.parametrize(
    ("mean", "deviation", "level"),
    [(0.3, 0.1, 0.5), (0.3, 0.1, 0.0), (0.05, 0.4, 0.9), (0.9, 0.2, 0.95), (-0.1, 0.3, 0.2)],
)
def test_improvement_is_the_integral_it_stands_for(
    mean: float, deviation: float, level: float
) -> None:
    z = np.linspace(mean - 9 * deviation, mean + 9 * deviation, 200_001)
    gained = np.maximum(1 - z**2 - level, 0.0) * norm.pdf(z, mean, deviation)
    told = improvement(np.array(level), np.array(mean), np.array(deviation))
    assert float(told) == pytest.approx(float(np.trapezoid(gained, z)), rel=1e-6, abs=1e-12)


def test_improvement_of_what_is_certain() -> None:
    levels = np.array([0.0, 0.5, 0.91, 0.95, 1.0])
    told = improvement(levels, np.array(0.3), np.array(0.0))
    assert told == pytest.approx([0.91, 0.41, 0.0, 0.0, 0.0], abs=1e-8)


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_a_certain_score_gains_the_volume_it_adds(costs: int) -> None:
    points = front(costs, 12)
    reference = np.array([0.0] + [1.0] * costs)
    candidates = front(costs, 40, seed=1)
    deviations = np.full(len(candidates), EXACT)
    told = FrontGain(points)(candidates[:, 1:], np.sqrt(1 + candidates[:, 0]), deviations)
    added = [exclusive(c, points, reference) for c in candidates]
    assert told == pytest.approx(added, abs=1e-5)
    assert sum(a > 0.01 for a in added) > 5


@pytest.mark.parametrize("costs", [1, 2])
def test_an_uncertain_score_gains_the_mean_of_what_it_may_add(costs: int) -> None:
    points = front(costs, 8)
    reference = np.array([0.0] + [1.0] * costs)
    shares, mean, deviation = np.full(costs, 0.4), 0.6, 0.2
    (told,) = FrontGain(points)(shares[None], np.array([mean]), np.array([deviation]))
    z = norm.ppf((np.arange(1500) + 0.5) / 1500, mean, deviation)
    added = [exclusive(np.array([min(v * v - 1, 0.0), *shares]), points, reference) for v in z]
    assert told == pytest.approx(np.mean(added), rel=1e-3)


def test_the_chance_to_do_better_counts_where_the_mean_adds_nothing() -> None:
    gain = FrontGain(np.array([[-0.8, 0.3]]))
    shares, mean = np.array([[0.5], [0.5], [0.5]]), np.full(3, 0.6)  # a worth of 0.64, below 0.8
    none, little, more = gain(shares, mean, np.array([EXACT, 0.1, 0.3]))
    assert none == pytest.approx(0.0, abs=1e-9)
    assert 0.001 < little < more < 0.1


def test_an_empty_front_leaves_all_to_gain() -> None:
    gain = FrontGain(np.array([[-0.9, 1.2, 0.3]]))  # dearer than the uncompressed network
    told = gain(np.array([[0.5, 0.2], [1.0, 0.2], [1.5, 0.1]]), np.full(3, 0.0), np.full(3, EXACT))
    assert told == pytest.approx([0.5 * 0.8, 0.0, 0.0], abs=1e-6)


def test_a_large_front_of_many_costs_is_thinned_to_what_matters() -> None:
    points = front(4, 60)
    inside = points[(points < np.array([0.0, 1, 1, 1, 1])).all(axis=1)]
    most = int(CELLS**0.25) - 1
    assert nondominated(inside).sum() > most
    gain = FrontGain(points)
    assert gain._known.size <= CELLS
    kept = inside[best_subset(inside, np.array([0.0, 1, 1, 1, 1]), most)]
    shares, mean = np.full((1, 4), 0.5), np.array([0.4])
    told = gain(shares, mean, np.array([EXACT]))
    added = exclusive(np.array([0.4**2 - 1, *shares[0]]), kept, np.array([0.0, 1, 1, 1, 1]))
    assert told == pytest.approx([added], abs=1e-6)
