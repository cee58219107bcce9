"""Bounds on one cost that differ from proposal to proposal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.bound_span import BoundSpan
from agents.errors import AgentError
from search_spaces.pricing import Pricer

# What is added from one draw to the next: of all steps that of the golden section leaves the smallest gaps.
_STEP = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """Which bounds are drawn.

    Attributes:
        quantity: that is bounded.
        low, high: ends of the span, as shares of the uncompressed network's cost.
        wanted: shares that are drawn in turns, in the place of the span; none by default.

    Raises:
        AgentError: a share is not above 0, or the span is empty.
    """

    quantity: str = "latency_ms"
    low: float = 0.3
    high: float = 0.75
    wanted: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high or min(self.wanted, default=1.0) <= 0:
            raise AgentError("budgets need shares above 0, the lower end of a span below the upper")


class Budgets:
    """Draws bounds evenly by their logarithm, and prices policies under them.

    Successive draws are an additive recurrence of low discrepancy, so that every stretch of the span gets its share of
    proposals however many there are.

    Args:
        pricer: with the job's limits, which always hold.
        settings: of the draws.
    """

    def __init__(self, pricer: Pricer, settings: BudgetSettings) -> None:
        if settings.quantity not in pricer.models:
            known = ", ".join(pricer.models)
            raise AgentError(f"{settings.quantity} is not priced on this target; known: {known}")
        self._span = BoundSpan(pricer, (settings.quantity,))
        self._whole = pricer.costs(pricer.space.uncompressed())
        self._margin = pricer.margin(settings.quantity)
        self._settings = settings

    def share(self, number: int, offset: float) -> float:
        """The share of the uncompressed network's cost that bounds a proposal.

        Args:
            number: of the proposal, from 0.
            offset: of the recurrence, from 0 to 1.
        """
        s = self._settings
        if s.wanted:
            return s.wanted[number % len(s.wanted)]
        return float(s.low * (s.high / s.low) ** ((offset + number * _STEP) % 1.0))

    def at(self, share: float) -> Pricer:
        """The job's prices with the bound at a share, or at the nearest one that can be reached and the job allows."""
        return self._span.near(self._whole, np.array([share / self._margin]))
