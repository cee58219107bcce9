"""Probes, sensitivities, and the exact optimum under them, again and again."""

from __future__ import annotations

from bisect import insort
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.dp.exchange import AliveTerms, Exchanges
from agents.dp.sensitivity import Sensitivities
from agents.dp.solver import ConstrainedProblem
from agents.draws import spread_indices
from agents.objective import Objective, ObjectiveKind
from agents.search_agent import SearchAgent
from agents.uniform import best_uniforms
from search_spaces.cost_model import CostModel, Factor, largest_table
from search_spaces.decision import DecisionKind
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.neighbours import Neighbours
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace
from search_spaces.walk import is_active

# Share of the evaluations that may be spent on probes of single decisions.
PROBES = 0.4
# Labels and entries of a table of the dynamic program for the expected terms. Where prices need larger tables, as
# those with terms over a dozen decisions do, exchanges take its place.
LABELS, TABLES = 2_000, 20_000
# Labels for problems that explore, whose terms are drawn anyway.
ROUGH_LABELS = 200
ROUGH_TOLERANCE = 1e-2
# Exchanges at most under the expected terms and on average under drawn ones, as they lead away from what is known,
EXCHANGES, FEW_EXCHANGES = 6, 3
# and how far drawn terms stray from the expected ones, in their own standard deviations
STRAY = 0.5
# Policies drawn at random are so large a share of the evaluations, in the place of probes, and the terms are
# learned from so large a share of what was told, the best: damage is additive near the best policies at most.
DRAWN, NEAR = 0.15, 0.5
_LEAST_NEAR = 20
# Terms are learned anew when so many of the evaluations are new.
NEW = 0.05
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

    Where prices have terms over so many decisions that exact tables would be too large (measured
    latencies of networks with residual streams), nothing of this is exact, and three things differ:
    policies drawn at random take the place of probes, the terms are learned from the better half of
    what was told, and the best policies are improved by a few exchanges (``Exchanges``).

    With the objective latency, the drop of top-1 is what is learned and bounded, and predicted
    latency what is minimised.

    Deviation: HAWQ's sensitivities are Hessian traces and are never corrected; it solves once.

    Args:
        evaluations: probes and draws are a share of.
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
        costs = [pricer.models[q] for q in pricer.limits]
        sizes = [len(d.values) for d in space.decisions]
        priced = [*costs, _shape(space)]
        if self._objective.kind is ObjectiveKind.LATENCY:
            # Is what the program minimises, bounded or not.
            priced.append(pricer.models["latency_ms"])
        self._exact = largest_table(priced, sizes) <= TABLES
        self._exchanges = Exchanges(space, costs)
        self._indices = pricer.views
        self._drawn = 0 if self._exact else int(DRAWN * evaluations)
        self._groups = _groups(space, int(PROBES * evaluations) if self._exact else 0)
        self._data: list[tuple[tuple[int, ...], float]] = []
        # Damage and place in ``_data`` of what was told, the least damage first, and of that what keeps the bounds.
        self._ranked: list[tuple[float, int]] = []
        self._inside: list[tuple[float, int]] = []
        self._centre: tuple[int, ...] | None = None
        self._probed = 0
        self._solved = 0
        # How many evaluations the terms were last learned from, and the terms.
        self._rows = 0
        self._learned: Sensitivities | None = None

    @property
    def data(self) -> tuple[tuple[tuple[int, ...], float], ...]:
        """Value indices and damage of what was told."""
        return tuple(self._data)

    def sensitivities(self) -> Sensitivities:
        """Learned from what was told so far; needs one evaluation."""
        return self._sensitivities(len(self._data))

    def _sensitivities(self, rows: int) -> Sensitivities:
        """Learned from the first evaluations told, so many."""
        data = self._data[:rows]
        if not self._exact:
            ranked = sorted(range(rows), key=lambda k: data[k][1])
            data = [data[k] for k in sorted(ranked[: max(_LEAST_NEAR, int(NEAR * rows))])]
        if len(data) > MOST:
            best = set(sorted(range(len(data)), key=lambda k: data[k][1])[: MOST // 2])
            best.update(range(len(data) - MOST // 2, len(data)))
            data = [data[k] for k in sorted(best)]
        indices = np.array([indices for indices, _ in data], dtype=np.int64)
        return Sensitivities(self._space, indices, np.array([damage for _, damage in data]))

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        if id < self._drawn:
            return self._unseen(lambda _: self._random())
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
        self._add(tuple(self._indices.indices(executed).tolist()), damage)

    def _add(self, indices: tuple[int, ...], damage: float) -> None:
        ranked = (damage, len(self._data))
        self._data.append((indices, damage))
        insort(self._ranked, ranked)
        if self._pricer.within(self._indices.policy(indices)):
            insort(self._inside, ranked)

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

    def _latest(self) -> Sensitivities:
        """Learned from all evaluations told but the newest few."""
        if not self._rows or len(self._data) - self._rows >= max(NEW * self._rows, 1):
            self._rows, self._learned = len(self._data), None
        if self._learned is None:
            self._learned = self._sensitivities(self._rows)
        return self._learned

    def _solve(self) -> Policy:
        learned = self._latest()
        policy: Policy | None = None
        spread = 1.0 if self._exact else STRAY
        for attempt in range(ATTEMPTS):
            expected = self._solved % EXPECTED_EVERY == 0 and attempt == 0
            terms = learned.mean() if expected else learned.sample(self._rng, spread * 2.0**attempt)
            search = self._optimum if self._exact else self._exchanged
            policy = search(terms, learned.power, expected)
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
                self._space, minimised, bounds, ROUGH_LABELS, ROUGH_TOLERANCE, TABLES
            )
        solution = problem.solve()
        if solution is None:
            return self._feasible([0] * len(self._space))
        policy = self._feasible.inside(self._space.from_indices(solution.indices))
        # What costs nothing within the bounds is given back; terms learned from little may not see it.
        return pricer.fill(policy) if self._feasible.fills and not expected else policy

    def _exchanged(self, terms: CostModel, power: float, expected: bool) -> Policy:
        """A policy near the best ones known that is better than they are under the terms."""
        start = self._start(expected)
        if start is None:
            return self._feasible([0] * len(self._space))
        pricer = self._pricer
        upper = np.array([limit / pricer.margin(q) for q, limit in pricer.limits.items()])
        damage = AliveTerms.of(self._space, terms)
        steps = EXCHANGES if expected else int(self._rng.geometric(1 / FEW_EXCHANGES))
        if self._objective.kind is ObjectiveKind.LATENCY:
            allowed = self._largest_drop(terms, power)
            if damage.at(start)[0][0] <= allowed:
                sizes = [len(d.values) for d in self._space.decisions]
                latency = Neighbours([pricer.models["latency_ms"]], sizes)
                limits = np.append(upper, allowed)
                found = self._exchanges.improve(start, latency, limits, steps, damage)
                return self._feasible.inside(self._indices.policy(found))
        found = self._exchanges.improve(start, damage, upper, steps)
        policy = self._feasible.inside(self._indices.policy(found))
        return pricer.fill(policy) if self._feasible.fills and not expected else policy

    def _start(self, expected: bool) -> NDArray[np.int64] | None:
        """Value indices of the best policy within the bounds, or of one of the next best; None where none is.

        Decisions within dropped blocks are as in the best policy that keeps the block: taken back uncompressed, a
        block hardly ever fits.
        """
        inside = self._inside
        if not inside:
            return None
        rank = 0 if expected else min(int(self._rng.geometric(0.5)) - 1, len(inside) - 1)
        start = np.array(self._data[inside[rank][1]][0], dtype=np.int64)
        for block in self._space.of_kind(DecisionKind.BLOCK):
            if start[block] > 0:
                continue
            rows = (self._data[place][0] for _, place in self._ranked)
            keeper = next((row for row in rows if row[block] > 0), None)
            if keeper is not None:
                within = [i for i, own in enumerate(self._space.block_of) if own == block]
                start[within] = [keeper[i] for i in within]
        return start

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
        return self._feasible(spread_indices(self._space, self._rng))

    def _state(self) -> dict[str, Any]:
        return {
            "data": [[list(indices), damage] for indices, damage in self._data],
            "centre": None if self._centre is None else list(self._centre),
            "probed": self._probed,
            "solved": self._solved,
            "rows": self._rows,
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._data, self._ranked, self._inside = [], [], []
        for indices, damage in state["data"]:
            self._add(tuple(indices), float(damage))
        self._centre = None if state["centre"] is None else tuple(state["centre"])
        self._probed = int(state["probed"])
        self._solved = int(state["solved"])
        self._rows, self._learned = int(state["rows"]), None


def _shape(space: SearchSpace) -> CostModel:
    """What terms of ``Sensitivities`` are over."""
    sizes = [len(d.values) for d in space.decisions]
    scopes = [(i,) if b is None else (b, i) for i, b in enumerate(space.block_of)]
    return CostModel(0.0, tuple(Factor(s, np.zeros([sizes[i] for i in s])) for s in scopes))


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
