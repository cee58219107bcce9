"""Exploration noise of AMC: a normal distribution cut off at the ends of the action range."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import ndtr, ndtri


def truncated_normal(
    uniform: float, mean: float, sigma: float, low: float = 0.0, high: float = 1.0
) -> float:
    """A draw from the normal distribution conditioned on lying in [low, high], by inverse CDF.

    Exact, with one uniform number a draw, so that the generator advances by the same amount
    whatever the mean: rejection sampling (and clipping, which piles mass onto the ends) would not.

    Args:
        uniform: uniform draw from [0, 1).
        mean: of the untruncated distribution; may lie outside [low, high].
        sigma: its standard deviation, positive.
    """
    a, b = (low - mean) / sigma, (high - mean) / sigma
    below = ndtr(a) + uniform * (ndtr(b) - ndtr(a))
    if below < 0.5:
        value = mean + sigma * ndtri(below)
    else:
        # The CDF runs out of digits near 1: there the share above is what is known exactly.
        above = ndtr(-b) + (1.0 - uniform) * (ndtr(-a) - ndtr(-b))
        value = mean - sigma * ndtri(above)
    return float(min(max(value, low), high))


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to explore uniformly and how far to stray from the actor after that.

    Attributes:
        warm_up: episodes of uniform actions.
        start: standard deviation of the first episode after them.
        decay: factor an episode.
        floor: below which it does not fall.
    """

    warm_up: int
    start: float
    decay: float
    floor: float = 0.0

    @classmethod
    def published(cls) -> Schedule:
        """100 episodes of warm-up, then 0.5 x 0.95^episode (He et al. 2018, section 4.1)."""
        return cls(warm_up=100, start=0.5, decay=0.95)

    def shrunk(self, evaluations: int, episodes: int) -> Schedule:
        """The same course run through in ``evaluations`` where they are fewer than ``episodes``."""
        share = min(evaluations / episodes, 1.0)
        return Schedule(
            int(self.warm_up * share), self.start, self.decay ** (1 / share), self.floor
        )

    @classmethod
    def over(cls, evaluations: int) -> Schedule:
        """A quarter of the evaluations (at most 100) of warm-up, then from 0.5 down to 0.05 at the
        last.

        The published schedule reaches 0.05 after 145 episodes; this one does so when the
        evaluations end, and stays there should more be asked.
        """
        warm_up = min(100, evaluations // 4)
        return cls(warm_up, start=0.5, decay=0.1 ** (1 / max(evaluations - warm_up, 1)), floor=0.05)

    def sigma(self, episode: int) -> float | None:
        """Standard deviation in an episode counted from 0; None during the warm-up."""
        if episode < self.warm_up:
            return None
        return max(self.start * self.decay ** (episode - self.warm_up), self.floor)
