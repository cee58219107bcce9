"""Bounds that differ from proposal to proposal, between the cheapest network and what the job allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.feasible import Feasible
from agents.objective import Objective
from agents.uniform import best_uniforms, precisions, uniform_policy
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer

# How far a sampled bound may lie from what the wanted policy costs, as a factor.
LEEWAY = 1.25
# Keep ratios that uniform policies are looked for at.
STEPS = 50


class BoundSpan:
    """For each cost of a front the range its bound can take.

    From what the cheapest policy takes that every bound of the job allows, so that all bounds of the span can be
    kept at once, to the job's own bound, or the uncompressed network where there is none.

    Args:
        pricer: with the job's limits.
        quantities: costs of the front.
    """

    def __init__(self, pricer: Pricer, quantities: Sequence[str]) -> None:
        self._pricer = pricer
        self.quantities = tuple(quantities)
        least = pricer.costs(pricer.enforce([0] * len(pricer.space)))
        whole = pricer.costs(pricer.space.uncompressed())
        low, high = [], []
        for quantity in self.quantities:
            margin = pricer.margin(quantity)
            top = min(whole[quantity] * margin, pricer.limits.get(quantity, np.inf))
            low.append(max(min(least[quantity] * margin, top), 1e-9 * top, 1e-300))
            high.append(max(top, low[-1]))
        self._low, self._high = np.array(low), np.array(high)

    def at(self, shares: Sequence[float] | NDArray[np.float64]) -> Pricer:
        """The job's prices with the bounds at these places of the range: 0 the lowest, 1 the highest; between them
        evenly by their logarithm."""
        bounds = self._low * (self._high / self._low) ** np.asarray(shares)
        return self._bounded(bounds)

    def near(self, costs: Mapping[str, float], factors: NDArray[np.float64]) -> Pricer:
        """The job's prices with the bounds at so many times these costs, kept within the range."""
        held = [costs[q] * self._pricer.margin(q) for q in self.quantities]
        return self._bounded(np.clip(np.array(held) * factors, self._low, self._high))

    def _bounded(self, bounds: NDArray[np.float64]) -> Pricer:
        limits = dict(zip(self.quantities, (float(b) for b in bounds), strict=True))
        return self._pricer.with_limits({**self._pricer.limits, **limits})

    def spread(self, count: int) -> list[NDArray[np.float64]]:
        """So many places over the range, the highest first and never the lowest.

        With one cost at equal distances; with several by an additive recurrence of low discrepancy (Roberts 2018, "The
        Unreasonable Effectiveness of Quasirandom Sequences").
        """
        n = len(self.quantities)
        if n == 1:
            return [np.array([1 - k / count]) for k in range(count)]
        golden = 2.0
        for _ in range(60):
            golden = (1 + golden) ** (1 / (n + 1))
        steps = golden ** -np.arange(1.0, n + 1)
        return [1 - (k * steps) % 1.0 for k in range(count)]

    def uniforms(self, levels: int) -> list[Policy]:
        """The largest uniform policy of each precision at several levels common to all costs, levels in turns, each
        policy once: what a front starts from, so that it is never below what needs no search.

        A precision is left out at levels it does not reach; where none reaches any, the cheapest policies stand in.
        """
        space = self._pricer.space
        # Where the job bounds nothing the highest level is the uncompressed network itself.
        whole = not any(q in self._pricer.limits for q in self.quantities)
        pricers = [
            self.at([1 - (k + 0.5 * whole) / levels] * len(self.quantities)) for k in range(levels)
        ]
        priced: list[list[tuple[Policy, dict[str, float]]]] = []
        for precision in precisions(space):
            ratios = dict.fromkeys(
                uniform_policy(space, step / STEPS, precision) for step in range(STEPS, 0, -1)
            )
            priced.append([(policy, self._pricer.costs(policy)) for policy in ratios])
        turns: list[Policy] = []
        for pricer in pricers:
            for own in priced:
                within = (policy for policy, costs in own if not pricer.violations(costs))
                turns += [policy for policy in (next(within, None),) if policy is not None]
        return list(dict.fromkeys(turns)) or best_uniforms(space, self._pricer)


class SampledFeasible(Feasible):
    """Brings what an agent wants inside bounds drawn for this one proposal, and uses them up.

    A front wants policies of all costs, each as good as its costs allow: the bounds are near to what the wanted policy
    costs itself, or, in a share of the draws, anywhere in the span, which takes a policy's pattern to another budget.

    Args:
        pricer: with the job's limits, which always hold.
        span: of its bounds.
        rng: of the agent.
        anywhere: share of draws over the whole span.
    """

    def __init__(
        self, pricer: Pricer, span: BoundSpan, rng: np.random.Generator, anywhere: float
    ) -> None:
        super().__init__(pricer, Objective())
        self._span = span
        self._rng = rng
        self.anywhere = anywhere

    def __call__(self, indices: Sequence[int] | NDArray[np.int64]) -> Policy:
        policy = self._pricer.space.from_indices([int(i) for i in indices])
        n = len(self._span.quantities)
        if self._rng.random() < self.anywhere:
            bounded = self._span.at(self._rng.random(n))
        else:
            factors = LEEWAY ** self._rng.uniform(-1.0, 1.0, n)
            bounded = self._span.near(self._pricer.costs(policy), factors)
        if not bounded.within(policy):
            policy = bounded.repair(policy)
        if not bounded.within(policy):
            return self.inside(policy)
        return bounded.fill(policy)
