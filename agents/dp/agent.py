"""Probes, sensitivities, and the exact optimum under them, again and again."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.dp.sensitivity import Sensitivities
from agents.dp.solver import ConstrainedProblem
from agents.objective import Objective, ObjectiveKind
from agents.search_agent import SearchAgent
from agents.uniform import best_uniforms
from search_spaces.cost_model import CostModel
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace
from search_spaces.walk import is_active

# Share of the evaluations that may be spent on probes of single decisions.
PROBES = 0.4
# Labels and entries of a table of the dynamic program for the expected terms. On chains, as published
# tables are, that is exact; where prices have terms over a dozen decisions it found the same policies as
# a hundred times larger tables did (ResNet-20 on x86-ort) in a quarter of the time.
LABELS, TABLES = 2_000, 20_000
# The same for problems that explore, whose terms are drawn anyway.
ROUGH_LABELS, ROUGH_TABLES = 200, 4_000
ROUGH_TOLERANCE = 1e-2
# Evaluations the terms are learned from: the best and the latest of more.
MOST = 600
# Of so many proposals one is the optimum under the expected terms, the others under drawn ones.
EXPECTED_EVERY = 3
# Solutions tried, ever farther from the expected terms, before one that was proposed before is left
# for a policy near the best.
ATTEMPTS = 3


class DpAgent(SearchAgent):
    """Per-layer sensitivities, then exact dynamic programming over the price tables.

    The scheme of HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680, section 3.3), which minimises a sum of
    layers' sensitivities under a latency table by integer programming:

    1. The best uniform policy of each precision.
    2. Probes: the better of them with one decision changed, to its smallest value where it was
       above, otherwise to the largest that fits. They count as evaluations and are feasible like all
       others (a decision that cannot be moved within the budget is not probed). Where there are more
       decisions than ``PROBES`` of the evaluations, neighbours of one kind are moved together.
    3. The terms are learned from all evaluations (``Sensitivities``) and the problem is solved
       exactly, transition costs of the price tables and several bounds included
       (``ConstrainedProblem``). One proposal of ``EXPECTED_EVERY`` is the optimum under the expected
       terms, the others under terms drawn from what the evaluations leave possible, so that every
       evaluation is both a good policy and a new equation.

    With the objective latency, the drop of top-1 is what is learned and bounded, and predicted
    latency what is minimised.

    Deviation: HAWQ's sensitivities are Hessian traces and are never corrected; it solves once.

    Args:
        evaluations: the probes are a share of.
    """

    kind: ClassVar[str] = "dp"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(space, pricer, seed, objective)
        self._anchors = best_uniforms(space, pricer)
        self._groups = _groups(space, int(PROBES * evaluations))
        self._data: list[tuple[tuple[int, ...], float]] = []
        self._centre: tuple[int, ...] | None = None
        self._probed = 0
        self._solved = 0

    @property
    def data(self) -> tuple[tuple[tuple[int, ...], float], ...]:
        """Value indices and damage of what was told."""
        return tuple(self._data)

    def sensitivities(self) -> Sensitivities:
        """Learned from what was told so far; needs one evaluation."""
        data = self._data
        if len(data) > MOST:
            best = set(sorted(range(len(data)), key=lambda k: data[k][1])[: MOST // 2])
            best.update(range(len(data) - MOST // 2, len(data)))
            data = [data[k] for k in sorted(best)]
        indices = np.array([indices for indices, _ in data], dtype=np.int64)
        return Sensitivities(self._space, indices, np.array([damage for _, damage in data]))

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        probe = self._probe()
        if probe is not None:
            return probe
        if not self._data:
            return self._unseen(lambda _: self._random())
        return self._solve()

    def _learn(
        self,
        id: int | None,  # noqa: ARG002
        executed: Policy,
        outcome: Evaluation | Failure,
        reward: float | None,
    ) -> None:
        if reward is None or isinstance(outcome, Failure):
            return
        damage = -outcome.score
        if self._objective.kind is ObjectiveKind.LATENCY:
            assert outcome.top1_drop is not None  # Objective.reward asks for it
            damage = outcome.top1_drop[0]
        self._data.append((tuple(int(i) for i in self._space.indices(executed)), damage))

    def _probe(self) -> Policy | None:
        """The next policy with one group of decisions moved; None when all are probed."""
        while self._probed < len(self._groups):
            if self._centre is None:
                anchors = [tuple(int(i) for i in self._space.indices(p)) for p in self._anchors]
                told = dict(self._data)
                # The first told, or the first of all: which is better may not be known yet.
                self._centre = min(anchors, key=lambda a: told.get(a, np.inf))
            group = self._groups[self._probed]
            self._probed += 1
            policy = self._moved(self._centre, group)
            if policy is not None and policy.values not in self._seen:
                return policy
        return None

    def _moved(self, centre: tuple[int, ...], group: tuple[int, ...]) -> Policy | None:
        indices = list(centre)
        moved = False
        for position in group:
            if not is_active(self._space, centre, position):
                continue
            own = centre[position]
            largest = len(self._space.decisions[position].values) - 1
            candidates = [*range(own), *range(largest, own, -1)]
            for value in candidates:
                tried = [*indices[:position], value, *indices[position + 1 :]]
                if self._pricer.within(self._space.from_indices(tried)):
                    indices, moved = tried, True
                    break
        return self._space.from_indices(indices) if moved else None

    def _solve(self) -> Policy:
        learned = self.sensitivities()
        policy: Policy | None = None
        for attempt in range(ATTEMPTS):
            expected = self._solved % EXPECTED_EVERY == 0 and attempt == 0
            terms = learned.mean() if expected else learned.sample(self._rng, 2.0**attempt)
            policy = self._optimum(terms, learned.power, expected)
            if policy.values not in self._seen:
                break
        self._solved += 1
        assert policy is not None
        if policy.values in self._seen:
            return self._unseen(self._nearby)
        return policy

    def _optimum(self, terms: CostModel, power: float, expected: bool) -> Policy:
        pricer = self._pricer
        bounds = [
            (pricer.models[q], limit / pricer.margin(q)) for q, limit in pricer.limits.items()
        ]
        minimised = terms
        if self._objective.kind is ObjectiveKind.LATENCY:
            minimised = pricer.models["latency_ms"]
            bounds.append((terms, self._largest_drop(terms, power)))
        if expected:
            problem = ConstrainedProblem(self._space, minimised, bounds, LABELS, table_limit=TABLES)
        else:
            problem = ConstrainedProblem(
                self._space, minimised, bounds, ROUGH_LABELS, ROUGH_TOLERANCE, ROUGH_TABLES
            )
        solution = problem.solve()
        if solution is None:
            return self._feasible([0] * len(self._space))
        policy = self._feasible.inside(self._space.from_indices(solution.indices))
        # What costs nothing within the bounds is given back; terms learned from little may not see it.
        return pricer.fill(policy) if self._feasible.fills and not expected else policy

    def _largest_drop(self, terms: CostModel, power: float) -> float:
        """The bound on the terms' sum that stands for the largest drop of top-1 allowed."""
        indices = np.array([indices for indices, _ in self._data], dtype=np.int64)
        damage = np.array([damage for _, damage in self._data])
        # Terms know no constant: it is what evaluations have beyond them.
        allowed = _powered(np.array([max(self._objective.max_drop, 1e-12)]), power)[0]
        return float(allowed - np.median(_powered(damage, power) - terms.price(indices)))

    def _nearby(self, attempt: int) -> Policy:
        """The best policy told so far with a few decisions drawn anew: all solutions are known."""
        indices = list(min(self._data, key=lambda row: row[1])[0])
        for position in self._rng.choice(len(indices), min(1 + attempt, len(indices)), False):
            indices[position] = int(self._rng.integers(len(self._space.decisions[position].values)))
        return self._feasible(indices)

    def _random(self) -> Policy:
        return self._feasible(
            [int(self._rng.integers(len(d.values))) for d in self._space.decisions]
        )

    def _state(self) -> dict[str, Any]:
        return {
            "data": [[list(indices), damage] for indices, damage in self._data],
            "centre": None if self._centre is None else list(self._centre),
            "probed": self._probed,
            "solved": self._solved,
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._data = [(tuple(indices), float(damage)) for indices, damage in state["data"]]
        self._centre = None if state["centre"] is None else tuple(state["centre"])
        self._probed = int(state["probed"])
        self._solved = int(state["solved"])


def _powered(damage: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    if power == 1.0:
        return damage
    if power == 0.0:
        return np.asarray(np.log(damage))
    return np.asarray((damage**power - 1) / power)


def _groups(space: SearchSpace, most: int) -> list[tuple[int, ...]]:
    """Decisions that are probed together: each alone, or neighbours of one kind where that is too many."""
    by_kind = sorted(
        (i for i, d in enumerate(space.decisions) if len(d.values) > 1),
        key=lambda i: (space.decisions[i].kind.value, i),
    )
    count = min(len(by_kind), max(most, 0))
    if count == 0:
        return []
    return [tuple(int(i) for i in part) for part in np.array_split(by_kind, count)]
