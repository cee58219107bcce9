"""Prices of policies on a target and the bounds they must keep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from search_spaces.prefix import Prefix, fitting
from search_spaces.quantities import is_uncertain
from search_spaces.space import SearchSpace
from search_spaces.steps import Steps

# Upper end of a two-sided 90 % interval in standard deviations.
UPPER_90 = 1.6449
# Bounds up to which completions under mixtures of every two of them are looked at.
MOST_PAIRED = 4


@dataclass
class _Shared:
    """Tables of prices that are the same whatever the bounds are.

    Attributes:
        alone: cheapest completions under one quantity.
        neighbours: of bounded quantities, in their order, and of the work.
        indices: of the space.
    """

    alone: dict[str, Lookahead] = field(default_factory=dict)
    neighbours: dict[tuple[str, ...], Neighbours] = field(default_factory=dict)
    indices: PolicyIndices | None = None


class Pricer:
    """Costs of policies, and which values keep a partial policy within every bound.

    Bounds on latency, energy and packed size are held against the upper end of the predicted 90 % interval, the others
    against the prediction itself (they are exact).

    Args:
        space: whose policies are priced.
        models: quantity (``latency_ms``, ``energy_mj``, ``size_bytes``, ``packed_bytes``, ``macs``, also of one of
            several targets, see ``quantities``) to its cost model.
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
        self._shared = _Shared()
        unknown = sorted(set(self.limits) - set(self.models))
        if unknown:
            raise BudgetError(f"no price is known for {', '.join(unknown)} on this target")

    def with_limits(self, limits: Mapping[str, float]) -> Pricer:
        """The same prices under other bounds."""
        other = Pricer(self.space, self.models, limits)
        other._shared = self._shared
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
        indices = self.views.indices(policy)[None]
        costs = {q: float(m.price(indices)[0]) for q, m in self.models.items()}
        for quantity in filter(is_uncertain, self.models):
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
        return self._keeps(self.views.indices(policy))

    def _keeps(self, here: NDArray[np.int64]) -> bool:
        """``within`` of value indices int64 [decisions]."""
        costs = {q: float(self.models[q].price(here[None])[0]) for q in self.limits}
        return not self.violations(costs)

    @property
    def views(self) -> PolicyIndices:
        """Goes between policies of the space and value indices."""
        if self._shared.indices is None:
            self._shared.indices = PolicyIndices(self.space)
        return self._shared.indices

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
        """One a mixture of the bounded quantities: each alone, every pair, all; of more than ``MOST_PAIRED`` each alone
        and beside all, as every one takes time to build."""
        if len(self.limits) == 1:
            return [self._cheapest_by(next(iter(self.limits)))]
        models = [self.models[q] for q in self.limits]
        scale = 1 / np.maximum(self._bounds, 1e-300)
        n = len(models)
        mixtures = [np.eye(n)[i] for i in range(n)]
        if n > MOST_PAIRED:
            mixtures += [(np.eye(n)[i] + np.full(n, 1 / n)) / 2 for i in range(n)]
        else:
            for i, j in itertools.combinations(range(n), 2):
                mixtures += [np.eye(n)[i] * a + np.eye(n)[j] * (1 - a) for a in (0.25, 0.5, 0.75)]
        if n > 2:
            mixtures.append(np.full(n, 1 / n))
        return [Lookahead(models, list(mix * scale), self._sizes) for mix in mixtures]

    def _cheapest_by(self, quantity: str) -> Lookahead:
        known = self._shared.alone
        if quantity not in known:
            known[quantity] = Lookahead([self.models[quantity]], [1.0], self._sizes)
        return known[quantity]

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
        return fitting([look.options(prefix) for look in self._lookaheads], self._bounds)

    def growing(self) -> Prefix:
        """A prefix of no decisions yet, which tells faster than ``allowed`` what is allowed as it grows."""
        looks = self._lookaheads if self.limits else []
        return Prefix([look.growing() for look in looks], self._bounds, self._sizes)

    def enforce(self, indices: Sequence[int]) -> Policy:
        """The policy nearest to the wanted one within the bounds, decision by decision in order.

        Each wanted value is clipped to the largest allowed one not above it, or else to the smallest allowed,
        as AMC clips its action (He et al. 2018, arXiv 1802.03494, algorithm 1), with the cheapest completion
        instead of the smallest ratio everywhere.
        """
        prefix = self.growing()
        for wanted in indices:
            allowed = np.flatnonzero(prefix.allowed())
            below = allowed[allowed <= wanted]
            prefix.append(int(below[-1] if len(below) else allowed[0]))
        return self.views.policy(prefix.indices)

    def repair(self, policy: Policy) -> Policy:
        """A policy within the bounds that is as near to the given one as a greedy walk finds.

        Each step lowers one decision by one value: the one that takes most off the violated bounds for the
        multiply-accumulates it costs (as NetAdapt does, Yang et al. 2018, arXiv 1804.03230, without its trial
        training). ``enforce`` decides in order and leaves the late layers to pay; this spreads the loss.
        Falls back to ``enforce`` where no single step helps.
        """
        here, within = self.steps.lowered(self.views.indices(policy))
        return self.views.policy(here) if within else self.enforce(here.tolist())

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
        here = self.views.indices(policy)
        if not self._keeps(here):
            return policy
        return self.views.policy(self.steps.filled(here))

    @cached_property
    def steps(self) -> Steps:
        """The walks of ``repair`` and ``fill`` on value indices."""
        quantities = tuple(self.limits)
        known = self._shared.neighbours
        if quantities not in known:
            models = [*(self.models[q] for q in quantities), self._work]
            known[quantities] = Neighbours(models, self._sizes)
        macs = self.models.get("macs")
        return Steps(self.views, known[quantities], self._upper, macs, self._work is macs)

    @cached_property
    def _work(self) -> CostModel:
        """Multiply-accumulates less what bits and zeros are taken to cost (``distortion``), or the summed shares of
        channels and blocks where they are not priced."""
        if "macs" in self.models:
            macs, distortion = self.models["macs"], distortion_factors(self.space)
            return CostModel(macs.constant, (*macs.factors, *distortion)) if distortion else macs
        factors = [
            Factor((i,), np.array(d.values) / d.largest)
            for i, d in enumerate(self.space.decisions)
            if d.kind in (DecisionKind.CHANNELS, DecisionKind.BLOCK, DecisionKind.RANK)
        ]
        return CostModel(0.0, tuple(factors))

    def cheapest(self, quantity: str) -> Policy:
        """The policy with the smallest predicted value of one quantity."""
        prefix, found = self._cheapest_by(quantity).growing(), []
        for _ in self._sizes:
            found.append(int(prefix.options()[:, 0].argmin()))
            prefix.append(found[-1])
        return self.views.policy(found)

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
