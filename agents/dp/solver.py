"""The policy with the least of one additive quantity while others stay within their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from agents.dp.completions import Completions
from search_spaces.cost_model import TABLE_LIMIT, CostModel
from search_spaces.space import SearchSpace

# Labels kept a step: beyond that the best by their bounds go on and the result is no longer proven.
LABELS = 20_000
# Rounds of the cutting planes for the multipliers; a handful suffices for one bound.
ROUNDS = 30
# Relative difference below which two values are equal.
EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class Solution:
    """What the dynamic program found.

    Attributes:
        indices: int64 [decisions], value indices of the best policy found.
        value: of the minimised quantity.
        bound: no policy within the bounds has less.
        proven: ``value`` is the optimum (within the tolerance that was asked for).
    """

    indices: NDArray[np.int64]
    value: float
    bound: float
    proven: bool


class ConstrainedProblem:
    """Minimise one sum of local terms subject to upper bounds on others.

    Dynamic programming over labels (Joksch 1966, "The shortest route problem with constraints"):
    decisions in order, a label is a partial policy with what it has cost so far. Of two labels that
    agree in every decision later terms still depend on, one that costs more in every quantity goes
    (dominance). Terms may span several decisions, so neighbours' transitions are exact. A label also
    goes where no completion keeps a bound, or where the Lagrangian bound of its completions
    (Handler and Zang 1980, "A dual algorithm for the constrained shortest path problem") is no
    better than a policy that is known: completions come from bucket elimination
    (``search_spaces.Lookahead``), multipliers from cutting planes (Kelley 1960).

    Args:
        space: whose decisions the terms are over. Decisions within a dropped block keep their
            largest value, the canonical one.
        objective: to be minimised.
        bounds: quantities with their upper bounds; may be empty.
        labels: see ``LABELS``; 0 leaves it at the best policy that the multipliers came by.
        tolerance: relative distance from the optimum that is good enough.
        table_limit: entries of one table of the elimination. Terms over many decisions that would need
            larger ones are split (mini-buckets): bounds get looser, so that proofs get rarer, and a
            solution takes a fraction of the time.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: CostModel,
        bounds: Sequence[tuple[CostModel, float]],
        labels: int = LABELS,
        tolerance: float = EQUAL,
        table_limit: int = TABLE_LIMIT,
    ) -> None:
        self._space = space
        self._sizes = tuple(len(d.values) for d in space.decisions)
        self._models = (objective, *(model for model, _ in bounds))
        self._limits = np.array([bound for _, bound in bounds])
        self._labels = labels
        self._tolerance = tolerance
        self._table_limit = table_limit
        self._best: tuple[float, NDArray[np.int64]] | None = None

    def solve(self) -> Solution | None:
        """The best policy, None where none within the bounds was found.

        That none was found proves that there is none as long as the labels were enough.
        """
        self._best = None
        looks = [self._completions(np.eye(len(self._models))[0])]
        self._offer(self._cheapest(looks[0]))
        if self._settled(looks[0].floor[0]):
            return self._solution(float(looks[0].floor[0]), True)
        cheapest = [
            self._completions(np.eye(len(self._models))[q + 1]) for q in range(len(self._limits))
        ]
        for q, look in enumerate(cheapest):
            if look.floor[q + 1] > self._limits[q]:
                return None
            self._offer(self._cheapest(look))
        dual, bound = self._multipliers([looks[0], *cheapest])
        if dual is not None:
            looks.append(dual)
        if self._settled(bound):
            return self._solution(bound, True)
        proven = bool(self._labels) and self._label([*looks, *cheapest])
        return self._solution(bound, proven)

    def _solution(self, bound: float, proven: bool) -> Solution | None:
        if self._best is None:
            return None
        value, indices = self._best
        return Solution(indices, value, value if proven else min(bound, value), proven)

    def _completions(self, weights: NDArray[np.float64]) -> Completions:
        return Completions(self._models, list(weights), self._sizes, self._table_limit)

    def _values(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([model.price(indices[None])[0] for model in self._models])

    def _offer(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Takes a policy for the best where it is within the bounds; its quantities."""
        values = self._values(indices)
        within = bool((values[1:] <= self._limits).all())
        if within and (self._best is None or values[0] < self._best[0]):
            self._best = (float(values[0]), indices)
        return values

    def _settled(self, bound: float) -> bool:
        """Whether the best policy is as good as the bound says one can be."""
        return self._best is not None and self._best[0] <= self._threshold_of(bound)

    def _threshold_of(self, bound: float) -> float:
        return bound + self._tolerance * max(abs(bound), 1e-12)

    def _cheapest(self, look: Completions) -> NDArray[np.int64]:
        """The policy that is cheapest under a look-ahead's weights, in canonical form."""
        weights = look.weights
        prefix: list[int] = []
        for position in range(len(self._sizes)):
            options = look.options(prefix) @ weights
            block = self._space.block_of[position]
            if block is not None and prefix[block] == 0:
                prefix.append(self._sizes[position] - 1)
            else:
                prefix.append(int(options.argmin()))
        return np.array(prefix, dtype=np.int64)

    def _multipliers(self, known: Sequence[Completions]) -> tuple[Completions | None, float]:
        """Look-ahead under the best multipliers found and the lower bound they give."""
        cuts = [look.floor for look in known]
        best: Completions | None = None
        bound = float(known[0].floor[0])
        for _ in range(ROUNDS):
            ceiling, multipliers = self._dual(np.array(cuts))
            if ceiling <= self._threshold_of(bound):
                break
            look = self._completions(np.array([1.0, *multipliers]))
            reached = float(look.floor[0] + multipliers @ (look.floor[1:] - self._limits))
            if best is None or reached > bound:
                best, bound = look, max(reached, bound)
            values = self._offer(self._cheapest(look))
            cuts += [look.floor, values]
            if self._settled(bound):
                break
        return best, bound

    def _dual(self, cuts: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Maximises over multipliers the least Lagrangian of the policies seen so far."""
        if len(self._limits) == 1:
            return self._dual_of_one(cuts[:, 0], cuts[:, 1] - self._limits[0])
        scale = np.maximum(np.abs(self._limits), 1e-300)
        excess = (cuts[:, 1:] - self._limits) / scale
        count = len(self._limits)
        # Bounded, as before an infeasible policy is cut off the dual rises without end.
        spread = float(np.ptp(cuts[:, 0])) or 1.0
        reach = spread / max(float(np.abs(excess[excess < 0]).min(initial=1.0)), 1e-6)
        result = linprog(
            np.array([-1.0, *np.zeros(count)]),
            A_ub=np.concatenate([np.ones((len(cuts), 1)), -excess], axis=1),
            b_ub=cuts[:, 0],
            bounds=[(None, None), *[(0.0, reach)] * count],
            method="highs",
        )
        if result.x is None:
            return -np.inf, np.zeros(count)
        return float(result.x[0]), np.asarray(result.x[1:] / scale)

    @staticmethod
    def _dual_of_one(
        values: NDArray[np.float64], excess: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """The top of the lower envelope of lines ``value + multiplier x excess``: where a policy
        over the bound meets one within it."""
        over, within = np.flatnonzero(excess > 0), np.flatnonzero(excess <= 0)
        slopes = excess[over][:, None] - excess[within]
        crossings = (values[within] - values[over][:, None]) / slopes
        multipliers = np.unique(np.maximum(np.append(crossings.ravel(), 0.0), 0.0))
        envelope = (values + multipliers[:, None] * excess).min(axis=1)
        best = int(envelope.argmax())
        return float(envelope[best]), multipliers[best : best + 1]

    def _label(self, looks: Sequence[Completions]) -> bool:
        """The dynamic program; True where nothing but dominated or hopeless labels was dropped."""
        prefixes = np.zeros((1, 0), dtype=np.int64)
        costs = looks[0].constant[None].copy()
        complete = all(look.exact for look in looks[:1])
        for position in range(len(self._sizes)):
            values = np.arange(self._sizes[position])
            added = looks[0].added(prefixes)
            spent = costs[:, None, :] + added
            hopeless = self._inactive(prefixes, position)[:, None] & (values < len(values) - 1)
            score = np.full(spent.shape[:2], -np.inf)
            for look in looks:
                total = spent + look.rest(prefixes)
                hopeless |= self._hopeless(look, total)
                if look.weights[0] > 0:
                    score = np.maximum(score, self._lagrangian(look, total))
                self._improve(look, prefixes, total, hopeless)
            if self._best is not None:
                hopeless |= score >= self._cut()
            rows, picks = np.nonzero(~hopeless)
            if not len(rows):
                return complete
            prefixes = np.concatenate([prefixes[rows], values[picks][:, None]], axis=1)
            costs, score = spent[rows, picks], score[rows, picks]
            keep = self._undominated(looks[0].interface(position + 1), prefixes, costs)
            if len(keep) > self._labels:
                keep = np.sort(keep[np.argsort(score[keep], kind="stable")[: self._labels]])
                complete = False
            prefixes, costs = prefixes[keep], costs[keep]
        for row in prefixes[np.argsort(costs[:, 0], kind="stable")]:
            before = self._best
            self._offer(row)
            if self._best is not before:
                break
        return complete

    def _cut(self) -> float:
        """Bounds from here on are no improvement worth having."""
        assert self._best is not None
        return self._best[0] - self._tolerance * max(abs(self._best[0]), 1e-12)

    def _hopeless(self, look: Completions, total: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where the least that completions have of a bounded quantity is above its bound."""
        bounded = np.flatnonzero(look.weights)
        if len(bounded) != 1 or bounded[0] == 0:
            return np.zeros(total.shape[:2], dtype=bool)
        limit = self._limits[bounded[0] - 1]
        return np.asarray(total[..., bounded[0]] > limit + EQUAL * abs(limit))

    def _lagrangian(self, look: Completions, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """Lower bounds on the objective of every completion within the bounds."""
        multipliers = look.weights[1:] / look.weights[0]
        return np.asarray(total[..., 0] + (total[..., 1:] - self._limits) @ multipliers)

    def _improve(
        self,
        look: Completions,
        prefixes: NDArray[np.int64],
        total: NDArray[np.float64],
        hopeless: NDArray[np.bool_],
    ) -> None:
        """Takes the best completion at hand that is within the bounds and better than the best known."""
        if not look.exact:
            return
        fits = ~hopeless & (total[..., 1:] <= self._limits).all(axis=-1)
        values = np.where(fits, total[..., 0], np.inf)
        row, pick = divmod(int(values.argmin()), values.shape[1])
        if self._best is not None and not values[row, pick] < self._best[0]:
            return
        if not np.isfinite(values[row, pick]):
            return
        prefix = [int(i) for i in (*prefixes[row], pick)]
        for position in range(len(prefix), len(self._sizes)):
            inactive = bool(self._inactive(np.array([prefix]), position)[0])
            options = look.options(prefix) @ look.weights
            prefix.append(self._sizes[position] - 1 if inactive else int(options.argmin()))
        self._offer(np.array(prefix, dtype=np.int64))

    def _inactive(self, prefixes: NDArray[np.int64], position: int) -> NDArray[np.bool_]:
        block = self._space.block_of[position]
        if block is None:
            return np.zeros(len(prefixes), dtype=bool)
        return np.asarray(prefixes[:, block] == 0)

    @staticmethod
    def _undominated(
        interface: Sequence[int], prefixes: NDArray[np.int64], costs: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Rows that no other row with the same interface beats in every quantity, increasing."""
        keys = prefixes[:, list(interface)]
        _, group = np.unique(keys, axis=0, return_inverse=True) if keys.size else (None, None)
        group = np.zeros(len(prefixes), dtype=np.int64) if group is None else group.ravel()
        order = np.lexsort((*costs.T[::-1], group))
        keep: list[int] = []
        front: list[NDArray[np.float64]] = []
        current = -1
        least = np.inf
        two = costs.shape[1] == 2
        for row in order:
            if group[row] != current:
                current, front, least = int(group[row]), [], np.inf
            rest = costs[row, 1:]
            # Sorted by the objective, so only the bounded quantities are left to compare.
            if two:
                if rest[0] >= least:
                    continue
                least = float(rest[0])
            elif front and bool((np.stack(front) <= rest).all(axis=1).any()):
                continue
            else:
                front.append(rest)
            keep.append(int(row))
        return np.sort(np.array(keep, dtype=np.int64))
