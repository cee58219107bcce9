from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import kstest, truncnorm

from agents.amc.noise import Schedule, truncated_normal


@settings(max_examples=200, deadline=None)
@given(
    uniform=st.floats(0, 1, exclude_max=True),
    mean=st.floats(-1, 2),
    sigma=st.floats(0.05, 2),
)
@example(uniform=1 - 2**-52, mean=0.0, sigma=0.125)  # nearly the last draw there is, far out
@example(uniform=1 - 2**-53, mean=-1.0, sigma=0.05)
@example(uniform=2**-60, mean=2.0, sigma=0.05)
def test_is_the_inverse_of_the_truncated_cdf(uniform: float, mean: float, sigma: float) -> None:
    value = truncated_normal(uniform, mean, sigma)
    assert 0 <= value <= 1
    a, z, b = ((x - mean) / sigma for x in (0.0, value, 1.0))
    # Held against the shares on either side of it, each taken where it is small: scipy's own
    # truncnorm.ppf is off by 0.002 in such tails.
    if a > 0 or (b >= 0 and uniform > 0.5):
        share, wanted = (ndtr(-z) - ndtr(-b)) / (ndtr(-a) - ndtr(-b)), 1 - uniform
    else:
        share, wanted = (ndtr(z) - ndtr(a)) / (ndtr(b) - ndtr(a)), uniform
    assert share == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    if 1e-3 < uniform < 1 - 1e-3:
        expected = truncnorm.ppf(uniform, a, b, loc=mean, scale=sigma)
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("mean", "sigma"), [(0.02, 0.5), (0.5, 0.05), (0.97, 0.2), (-3.0, 0.4)])
def test_draws_follow_scipys_truncated_normal(mean: float, sigma: float) -> None:
    rng = np.random.default_rng(0)
    draws = [truncated_normal(rng.random(), mean, sigma) for _ in range(3000)]
    a, b = (0 - mean) / sigma, (1 - mean) / sigma
    assert kstest(draws, truncnorm(a, b, loc=mean, scale=sigma).cdf).pvalue > 0.01


def test_other_bounds() -> None:
    assert truncated_normal(0.5, 3.0, 1.0, low=2.0, high=4.0) == pytest.approx(3.0)


def test_published_schedule() -> None:
    schedule = Schedule.published()
    assert schedule.sigma(0) is None
    assert schedule.sigma(99) is None
    assert schedule.sigma(100) == 0.5
    assert schedule.sigma(101) == pytest.approx(0.5 * 0.95)
    assert schedule.sigma(799) == pytest.approx(0.5 * 0.95**699)


@pytest.mark.parametrize(
    ("evaluations", "warm_up"), [(60, 15), (100, 25), (400, 100), (800, 100), (1, 0)]
)
def test_scaled_schedule(evaluations: int, warm_up: int) -> None:
    schedule = Schedule.over(evaluations)
    assert schedule.warm_up == warm_up
    assert schedule.sigma(warm_up) == 0.5
    assert schedule.sigma(evaluations) == pytest.approx(0.05)
    assert schedule.sigma(evaluations + 500) == pytest.approx(0.05)
