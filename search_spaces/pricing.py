"""Prices of policies on a target and the bounds they must keep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost_model import CostModel, Factor, Lookahead
from search_spaces.decision import DecisionKind
from search_spaces.distortion import distortion_factors
from search_spaces.errors import BudgetError
from search_spaces.neighbours import Neighbours
from search_spaces.policy import Policy
from search_spaces.policy_indices import PolicyIndices
from search_spaces.space import SearchSpace

# Upper end of a two-sided 90 % interval in standard deviations.
UPPER_90 = 1.6449
# Quantities whose prices come with an interval that a reader must know.
UNCERTAIN = ("latency_ms", "energy_mj", "packed_bytes")
# Changes of cost below this share of a bound are rounding, not a price.
ROUNDING = 1e-13


class Pricer:
    """Costs of policies, and which values keep a partial policy within every bound.

    Bounds on latency, energy and packed size are held against the upper end of the predicted 90 % interval, the others
    against the prediction itself (they are exact).

    Args:
        space: whose policies are priced.
        models: quantity (``latency_ms``, ``energy_mj``, ``size_bytes``, ``packed_bytes``, ``macs``) to its cost model.
        limits: quantity to absolute upper bound; may be empty.
    """

    def __init__(
        self,
        space: SearchSpace,
        models: Mapping[str, CostModel],
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self.space = space
        self.models = dict(models)
        self.limits = dict(limits or {})
        self._alone: dict[str, Lookahead] = {}
        unknown = sorted(set(self.limits) - set(self.models))
        if unknown:
            raise BudgetError(f"no price is known for {', '.join(unknown)} on this target")

    def with_limits(self, limits: Mapping[str, float]) -> Pricer:
        """The same prices under other bounds."""
        other = Pricer(self.space, self.models, limits)
        # The cheapest completion under one quantity is the same whatever the bounds are.
        other._alone = self._alone
        return other

    def corrected(self, quantity: str, factor: float) -> Pricer:
        """The same pricer with one quantity's prices multiplied by measured over predicted."""
        models = {q: m.scaled(factor) if q == quantity else m for q, m in self.models.items()}
        return Pricer(self.space, models, self.limits)

    def margin(self, quantity: str) -> float:
        """What the prediction is multiplied by before it is held against the bound."""
        return 1 + UPPER_90 * self.models[quantity].relative_error

    def costs(self, policy: Policy) -> dict[str, float]:
        """Predicted quantities, with ``latency_ms_upper``, ``energy_mj_upper`` and ``packed_bytes_upper``, the upper
        ends of 90 % intervals."""
        indices = self._indices.indices(policy)[None]
        costs = {q: float(m.price(indices)[0]) for q, m in self.models.items()}
        for quantity in UNCERTAIN:
            if quantity in costs:
                costs[f"{quantity}_upper"] = costs[quantity] * self.margin(quantity)
        return costs

    def violations(self, costs: Mapping[str, float]) -> dict[str, float]:
        """By how much each bound is exceeded, as a fraction of it."""
        found = {}
        for quantity, limit in self.limits.items():
            value = costs[quantity] * self.margin(quantity)
            if value > limit * (1 + 1e-9):
                found[quantity] = value / limit - 1
        return found

    def within(self, policy: Policy) -> bool:
        return self._keeps(self._indices.indices(policy))

    def _keeps(self, here: NDArray[np.int64]) -> bool:
        """``within`` of value indices int64 [decisions]."""
        costs = {q: float(self.models[q].price(here[None])[0]) for q in self.limits}
        return not self.violations(costs)

    @cached_property
    def _indices(self) -> PolicyIndices:
        return PolicyIndices(self.space)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(len(d.values) for d in self.space.decisions)

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        return np.asarray(self._upper * (1 + 1e-9))

    @cached_property
    def _upper(self) -> NDArray[np.float64]:
        """Largest predictions that keep the bounds, without tolerance."""
        return np.array([v / self.margin(q) for q, v in self.limits.items()])

    @cached_property
    def _lookaheads(self) -> list[Lookahead]:
        """One a mixture of the bounded quantities: each alone, every pair, all."""
        if len(self.limits) == 1:
            return [self._cheapest_by(next(iter(self.limits)))]
        models = [self.models[q] for q in self.limits]
        scale = 1 / np.maximum(self._bounds, 1e-300)
        n = len(models)
        mixtures = [np.eye(n)[i] for i in range(n)]
        for i, j in itertools.combinations(range(n), 2):
            mixtures += [np.eye(n)[i] * a + np.eye(n)[j] * (1 - a) for a in (0.25, 0.5, 0.75)]
        if n > 2:
            mixtures.append(np.full(n, 1 / n))
        return [Lookahead(models, list(mix * scale), self._sizes) for mix in mixtures]

    def _cheapest_by(self, quantity: str) -> Lookahead:
        if quantity not in self._alone:
            self._alone[quantity] = Lookahead([self.models[quantity]], [1.0], self._sizes)
        return self._alone[quantity]

    def allowed(self, prefix: Sequence[int]) -> NDArray[np.bool_]:
        """Which values of the next decision can still be completed within every bound.

        A value is allowed when one of the cheapest completions (under each bound alone and under mixtures of
        them) keeps all bounds. With one bound that is exact: a value is refused only if nothing completes it.

        Args:
            prefix: value indices of the decisions before it.

        Returns:
            bool [values]. Where the prefix itself cannot be completed, only the value that comes nearest to
            the bounds is allowed, so that there always is one.
        """
        if not self.limits:
            return np.ones(self._sizes[len(prefix)], dtype=bool)
        options = np.stack([look.options(prefix) for look in self._lookaheads])
        excess = (options / self._bounds).max(axis=2).min(axis=0)
        fits = np.asarray(excess <= 1)
        if not fits.any():
            fits[excess.argmin()] = True
        return fits

    def enforce(self, indices: Sequence[int]) -> Policy:
        """The policy nearest to the wanted one within the bounds, decision by decision in order.

        Each wanted value is clipped to the largest allowed one not above it, or else to the smallest allowed,
        as AMC clips its action (He et al. 2018, arXiv 1802.03494, algorithm 1), with the cheapest completion
        instead of the smallest ratio everywhere.
        """
        prefix: list[int] = []
        for wanted in indices:
            allowed = np.flatnonzero(self.allowed(prefix))
            below = allowed[allowed <= wanted]
            prefix.append(int(below[-1] if len(below) else allowed[0]))
        return self.space.from_indices(prefix)

    def repair(self, policy: Policy) -> Policy:
        """A policy within the bounds that is as near to the given one as a greedy walk finds.

        Each step lowers one decision by one value: the one that takes most off the violated bounds for the
        multiply-accumulates it costs (as NetAdapt does, Yang et al. 2018, arXiv 1804.03230, without its trial
        training). ``enforce`` decides in order and leaves the late layers to pay; this spreads the loss.
        Falls back to ``enforce`` where no single step helps.
        """
        here = self._indices.indices(policy)
        near = self._neighbours
        while not self._keeps(here):
            lower = np.flatnonzero(here)
            if not len(lower):
                return self.enforce([int(i) for i in here])
            costs, changes = near.at(here)
            changes = changes[:, near.first[lower] + here[lower] - 1]
            before = costs[:-1] / self._upper - 1
            after = (costs[:-1, None] + changes[:-1]) / self._upper[:, None] - 1
            gain = np.maximum(0.0, before).sum() - np.maximum(0.0, after).sum(axis=0)
            if gain.max() <= 0:
                return self.enforce([int(i) for i in here])
            lost: NDArray[np.float64] | float = 0.0
            if "macs" in self.models:
                work = float(self.models["macs"].price(here[None])[0])
                lost = np.maximum(0.0, -changes[-1]) / max(work, 1e-9)
            # Integer precision costs no MACs; a small price keeps it from being free.
            here[lower[int(np.argmax(gain / (lost + 2e-3)))]] -= 1
            # In canonical form, or a step might change nothing and hide those behind it.
            here = self._indices.canonical(here)
        return self._indices.policy(here)

    def fill(self, policy: Policy) -> Policy:
        """The policy with what it leaves of the bounds used up: the opposite of ``repair``.

        Each step raises one decision to any higher value, as on a staircase of latency a raise by two can cost
        less than a raise by one. It takes the step within every bound that gives most multiply-accumulates back
        for the largest share it uses of what is left of a bound. What costs nothing is always taken; what
        costs something and gives no multiply-accumulates, as a higher precision, never is. A dropped block
        that is taken back comes uncompressed, as its canonical form has it, and nothing else within it.

        Returns:
            A policy within the bounds, no decision of it lower. The policy itself where it is not within them;
            the uncompressed one where there are no bounds.
        """
        here = self._indices.indices(policy)
        if not self._keeps(here):
            return policy
        near = self._neighbours
        bounds = self._bounds * (1 - 5e-10)  # half of the tolerance is for the rounding of the sums
        while True:
            costs, changes = near.at(here)
            uses = changes[:-1] / bounds[:, None]
            uses[np.abs(uses) < ROUNDING] = 0.0
            left = np.maximum(0.0, 1 - costs[:-1] / bounds)[:, None]
            gains = changes[-1]
            fits = (near.value > here[near.position]) & (uses <= left).all(axis=0)
            price = (uses / np.maximum(left, ROUNDING)).max(axis=0, initial=0.0)
            free = fits & (price <= 0)
            if free.any():
                worth = np.where(free, gains, -np.inf)
            else:
                possible = fits & (gains > 0)
                if not possible.any():
                    return self._indices.policy(here)
                worth = np.where(possible, gains / np.where(possible, price, 1.0), -np.inf)
            step = int(worth.argmax())
            here[near.position[step]] = near.value[step]

    @cached_property
    def _neighbours(self) -> Neighbours:
        """Of the bounded quantities and, last, of the work."""
        return Neighbours([*(self.models[q] for q in self.limits), self._work], self._sizes)

    @cached_property
    def _work(self) -> CostModel:
        """Multiply-accumulates less what bits and zeros are taken to cost (``distortion``), or the summed shares of
        channels and blocks where they are not priced."""
        if "macs" in self.models:
            macs = self.models["macs"]
            return CostModel(macs.constant, (*macs.factors, *distortion_factors(self.space)))
        factors = [
            Factor((i,), np.array(d.values) / d.largest)
            for i, d in enumerate(self.space.decisions)
            if d.kind in (DecisionKind.CHANNELS, DecisionKind.BLOCK, DecisionKind.RANK)
        ]
        return CostModel(0.0, tuple(factors))

    def cheapest(self, quantity: str) -> Policy:
        """The policy with the smallest predicted value of one quantity."""
        look = self._cheapest_by(quantity)
        prefix: list[int] = []
        for _ in self._sizes:
            prefix.append(int(look.options(prefix)[:, 0].argmin()))
        return self.space.from_indices(prefix)

    def smallest(self, quantity: str) -> float:
        """The smallest predicted value any policy has, as it is held against a bound (margin included)."""
        return self.costs(self.cheapest(quantity))[quantity] * self.margin(quantity)

    def require_reachable(self) -> None:
        """Raises BudgetError where no policy keeps the bounds, naming the smallest reachable values."""
        for quantity, limit in self.limits.items():
            least = self.smallest(quantity)
            if least > limit * (1 + 1e-9):
                whole = self.costs(self.space.uncompressed())[quantity]
                raise BudgetError(
                    f"budget {quantity} <= {limit:.6g} cannot be reached: the smallest reachable value on this "
                    f"target is {least:.6g}, {least / whole:.3f} of the uncompressed network's {whole:.6g}. "
                    "Raise the budget, widen the scope, or exclude fewer modules"
                )
        if self.limits and not self.within(self.enforce([0] * len(self.space))):
            bounds = ", ".join(f"{q} <= {v:.6g}" for q, v in self.limits.items())
            raise BudgetError(
                f"each bound alone can be reached, but no policy was found that keeps all of {bounds} at once; "
                "raise one of them"
            )
