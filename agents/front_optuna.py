"""Optuna's samplers that search for a front by themselves."""

from __future__ import annotations

from typing import ClassVar

from optuna.study import StudyDirection
from optuna.trial import TrialState

from agents.bound_span import BoundSpan, SampledFeasible
from agents.errors import AgentError
from agents.front_evolution import ANYWHERE, anchors_of
from agents.optuna_samplers import OptunaAgent
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.front import FrontAxes
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# Those that take several objectives in every version of Optuna that Trimtab runs with.
SAMPLERS = ("nsga2", "tpe")


class FrontOptunaAgent(OptunaAgent):
    """``OptunaAgent`` with an objective a coordinate of the front, all minimised.

    - ``nsga2``: Deb et al. 2002, by non-dominated rank and crowding.
    - ``tpe``: good trials are those of the first fronts, split within a front by hypervolume (Ozaki et al. 2022,
      "Multiobjective Tree-Structured Parzen Estimator", JAIR 73).

    What the sampler wants is brought inside bounds drawn for it and uses them up (``SampledFeasible``); it learns from
    what was executed. A failure is learned as worth nothing at what it would have cost.

    Args:
        name: of ``SAMPLERS``.
        axes: of the front.

    Raises:
        AgentError: the sampler does not take several objectives.
    """

    kind: ClassVar[str] = "front-optuna"

    def __init__(
        self,
        name: str,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        axes: FrontAxes,
    ) -> None:
        if name not in SAMPLERS:
            raise AgentError(f"{name!r} does not search for a front; known: {', '.join(SAMPLERS)}")
        self._axes = axes
        super().__init__(name, space, pricer, evaluations, seed)
        span = BoundSpan(pricer, axes.quantities)
        self._feasible = SampledFeasible(pricer, span, self._rng, ANYWHERE)
        self._anchors = anchors_of(span, evaluations)

    def _learn(
        self,
        id: int | None,
        executed: Policy,
        outcome: Evaluation | Failure,
        reward: float | None,
    ) -> None:
        number = self._open_trials.pop(id) if id is not None else self._added(executed)
        self._overwrite(number, executed)
        if reward is None:
            self._study.tell(number, state=TrialState.FAIL)
            return
        score = outcome.score if isinstance(outcome, Evaluation) else 0.0
        point = self._axes.losses(score, self._pricer.costs(executed))
        if isinstance(outcome, Evaluation):
            point[0] += sum(outcome.violations.values())
        else:
            point[0] = 0.0
        self._study.tell(number, [float(v) for v in point])

    @property
    def _directions(self) -> list[StudyDirection]:
        return [StudyDirection.MINIMIZE] * (1 + len(self._axes.quantities))
