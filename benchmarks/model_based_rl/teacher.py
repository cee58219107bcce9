"""What ``dp`` would choose under a bound, for a policy of edits to begin with."""

from __future__ import annotations

import numpy as np

from agents.dp.exchange import AliveTerms, Exchanges
from agents.dp.sensitivity import Sensitivities
from agents.score_model import Floats, Indices
from search_spaces.pricing import Pricer

# Exchanges from one policy, of two decisions each at most.
_EXCHANGES = 3
# How far drawn terms stray from the expected ones, as in ``DpAgent`` where nothing is exact.
_STRAY = 0.5
# Evaluations that terms are learned from, at least and as a share of those told, the best: damage is additive near
# the best policies at most.
_LEAST, _NEAR = 20, 0.5


class DpTeacher:
    """Policies that sensitivities of decisions, learned from evaluations, call better than those it is given.

    The same parts as ``DpAgent`` has where prices are terms over many decisions: additive sensitivities after HAWQ-V3
    (Yao et al. 2021, arXiv 2011.10680), and exchanges of two decisions within the bounds.

    Args:
        pricer: with the bounds.
    """

    def __init__(self, pricer: Pricer) -> None:
        self._pricer = pricer
        costs = [pricer.models[q] for q in pricer.limits]
        self._exchanges = Exchanges(pricer.space, costs)
        self._upper = np.array([limit / pricer.margin(q) for q, limit in pricer.limits.items()])

    def solutions(
        self, rows: Indices, damage: Floats, starts: Indices, rng: np.random.Generator
    ) -> Indices:
        """A better policy for each of some, int64 [starts, decisions]; a start itself where none is found.

        The first is improved under the expected sensitivities, each other one under a draw of its own.

        Args:
            rows: evaluated policies int64 [n, decisions].
            damage: of each, float64 [n], lower is better.
            starts: policies within the bounds, int64 [starts, decisions].
        """
        near = np.argsort(damage, kind="stable")[: max(_LEAST, int(_NEAR * len(damage)))]
        learned = Sensitivities(self._pricer.space, rows[near], damage[near])
        found = []
        for k, start in enumerate(starts):
            terms = learned.sample(rng, _STRAY) if k else learned.mean()
            alive = AliveTerms.of(self._pricer.space, terms)
            found.append(self._exchanges.improve(start, alive, self._upper, _EXCHANGES))
        views = self._pricer.views
        return np.array([views.canonical(row) for row in found])
