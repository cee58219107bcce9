"""Shared values by k-means: optimal where that can be told, idempotent, and zeros stay."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressors import PruningError
from compressors.codebook import fit_codebook, share_values


def cost(weights: np.ndarray, values: np.ndarray) -> float:
    return float(np.square(weights[:, None] - values).min(1).sum())


def test_the_paper_s_example() -> None:
    """Figure 3 of arXiv 1510.00149: sixteen weights, four shared values."""
    weights = np.array(
        [2.09, -0.98, 1.48, 0.09, 0.05, -0.14, -1.08, 2.12, -0.91, 1.92, 0.0, -1.03, 1.87, 0.0, 1.53, 1.49],
        dtype=np.float32,
    )  # fmt: skip
    assert fit_codebook(weights, 4) == pytest.approx([-1.0, 0.0, 1.5, 2.0], abs=1e-6)


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40),
    st.integers(1, 8),
)
def test_it_is_a_fixed_point_of_lloyd_s_algorithm(weights: list[float], count: int) -> None:
    given_weights = np.array(weights, dtype=np.float32)
    values = fit_codebook(given_weights, count)
    assert 1 <= len(values) <= count and (np.diff(values) > 0).all()
    nearest = np.abs(given_weights[:, None].astype(np.float64) - values).argmin(1)
    for k, value in enumerate(values):
        if (nearest == k).any():
            assert given_weights[nearest == k].mean() == pytest.approx(value, abs=1e-3)


def test_it_comes_near_the_best_partition() -> None:
    """In one dimension the optimum is a cut of the sorted weights: all of them are tried."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        weights = np.sort(rng.normal(size=14)).astype(np.float32)
        best = min(
            sum(float(np.square(part - part.mean()).sum()) for part in np.split(weights, cuts))
            for cuts in combinations(range(1, 14), 3)
        )
        assert cost(weights, fit_codebook(weights, 4)) <= 1.6 * best + 1e-9


def test_sharing_is_idempotent_and_keeps_shape_and_zeros() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    weight[weight.abs() < 0.4] = 0.0
    shared = share_values(weight, 16)
    assert shared.shape == weight.shape and 12 <= len(torch.unique(shared)) <= 16
    assert torch.equal(shared == 0, weight == 0)
    assert torch.equal(share_values(shared, 16), shared)
    assert (shared - weight).abs().max() < 0.5


def test_more_values_come_nearer() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    errors = [float((share_values(weight, n) - weight).square().mean()) for n in (2, 4, 16, 256)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3
    assert errors[0] == pytest.approx(0.363, abs=0.03)  # two values of a normal: 1 - 2 / pi


@pytest.mark.parametrize("count", [0, 1, 257])
def test_other_numbers_of_values_are_refused(count: int) -> None:
    with pytest.raises(PruningError, match="2 to 256"):
        share_values(torch.randn(4), count)


def test_nothing_but_zeros_stays_so() -> None:
    assert torch.equal(share_values(torch.zeros(4, 4), 4), torch.zeros(4, 4))
