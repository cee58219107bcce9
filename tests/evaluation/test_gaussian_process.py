"""Slopes are those of the likelihood, and what is fitted tells what generated the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import gaussian_process
from evaluation.gaussian_process import Covariance, fit, solve


def data(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three features of which the last says nothing, and a course with a product in it."""
    x = np.random.default_rng(seed).uniform(-1, 1, size=(rows, 3))
    y = np.sin(2 * x[:, 0]) + x[:, 0] * x[:, 1]
    return x, y - y.mean()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_slopes_are_those_of_the_likelihood(seed: int) -> None:
    x, y = data(25, seed)
    at = gaussian_process._start(3, y) + np.random.default_rng(seed).normal(0, 0.4, 8)
    _, slope = gaussian_process._likelihood(at, x, y)
    for k, step in enumerate(1e-5 * np.eye(8)):
        after, _ = gaussian_process._likelihood(at + step, x, y)
        before, _ = gaussian_process._likelihood(at - step, x, y)
        assert slope[k] == pytest.approx((after - before) / 2e-5, rel=1e-4, abs=1e-4)


def test_fitting_raises_the_likelihood_and_finds_what_says_nothing() -> None:
    x, y = data(80, 1)
    covariance = fit(x, y)
    start = gaussian_process._start(3, y)
    before, after = (
        gaussian_process._likelihood(parameters, x, y)[0]
        for parameters in (start, covariance.parameters)
    )
    assert after < before - 10
    lengths = covariance.parameters[:3]
    assert lengths[2] > max(lengths[:2]) + 1
    assert covariance.features == 3


def test_predictions_of_rows_left_out_are_the_closed_forms() -> None:
    x, y = data(30, 2)
    covariance = Covariance(np.log([0.5, 1.0, 2.0, 1.0, 0.5, 0.2, 1.0, 0.01]))
    weights, missed = solve(covariance, x, y)
    rows = covariance.scaled(x)
    told = covariance.between(rows, rows) @ weights
    np.testing.assert_allclose(told + covariance.noise * weights, y, atol=1e-9)
    rest = np.arange(30) != 7
    others, _ = solve(covariance, x[rest], y[rest])
    left_out = covariance.between(rows[7:8], rows[rest]) @ others
    assert missed[7] == pytest.approx(y[7] - left_out[0], rel=1e-8)
