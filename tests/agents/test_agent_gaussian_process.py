from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from agents.gaussian_process import GaussianProcess, fit, likelihood

RNG = np.random.default_rng(0)
X = RNG.random((30, 3))
Y = np.sin(4 * X[:, 0]) + X[:, 1]


def parameters() -> np.ndarray:
    return np.log(np.array([0.7, 1.3, 2.0, 0.5, 0.4, 0.8, 0.01]))


def test_the_slope_is_that_of_the_likelihood() -> None:
    y = Y - Y.mean()
    _, slope = likelihood(parameters(), X, y)
    numeric = approx_fprime(parameters(), lambda p: likelihood(p, X, y)[0], 1e-6)
    np.testing.assert_allclose(slope, numeric, rtol=1e-3, atol=1e-3)


def test_one_row_gives_the_textbook_mean_and_variance() -> None:
    # A constant, a linear and a Matern part of variance 1 each, at the row itself: 1 + x^2 + 1.
    process = GaussianProcess.of(np.zeros(5), np.array([[0.5]]), np.array([2.0]))
    prior = 2.25
    mean, deviation = process.predict(np.array([[0.5]]))
    assert mean[0] == 2.0  # one row is its own mean
    assert deviation[0] ** 2 == pytest.approx(prior - prior**2 / (prior + 1 + 1e-6))
    far = np.sqrt(5) * 0.5
    between = 1 + 0.5 + (1 + far + far**2 / 3) * np.exp(-far)
    _, deviation = process.predict(np.array([[1.0]]))
    assert deviation[0] ** 2 == pytest.approx(3 - between**2 / (prior + 1 + 1e-6))


def test_what_has_no_effect_gets_a_long_scale() -> None:
    lengths = fit(X, Y)[:3]
    assert lengths[2] > lengths[0] + 1
    assert lengths[2] > lengths[1]


def test_tells_rows_it_has_not_seen() -> None:
    process = GaussianProcess.of(fit(X, Y), X, Y)
    new = RNG.random((50, 3))
    mean, deviation = process.predict(new)
    truth = np.sin(4 * new[:, 0]) + new[:, 1]
    assert np.corrcoef(mean, truth)[0, 1] > 0.99
    away, at_rows = process.predict(new + 3)[1], process.predict(X)[1]
    assert away.min() > deviation.mean() > at_rows.mean()


def test_a_fit_goes_on_where_it_is_started() -> None:
    best = fit(X, Y, iterations=200)
    again = fit(X, Y, best, iterations=1)
    centred = Y - Y.mean()
    assert likelihood(again, X, centred)[0] == pytest.approx(
        likelihood(best, X, centred)[0], abs=0.1
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_equal_rows_and_targets_do_not_break_it(rows: int) -> None:
    x, y = np.ones((rows, 2)), np.ones(rows)
    mean, _ = GaussianProcess.of(fit(x, y), x, y).predict(x)
    np.testing.assert_allclose(mean, 1.0)
