"""Optuna's samplers behind our protocol."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from agents.errors import AgentError
from agents.objective import Objective
from agents.search_agent import SearchAgent
from agents.uniform import best_uniforms
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# What ``TPESampler`` keeps of trials: internal representations by parameter.
Internal = dict[str, NDArray[np.float64]]
# (seed of one proposal, evaluations of the job) -> sampler
Sampler = Callable[[int, int], BaseSampler]


def _tpe(seed: int, evaluations: int) -> BaseSampler:
    # Joint densities: no slower than one a decision, and decisions do interact.
    return _Tpe(seed=seed, n_startup_trials=_startup(evaluations), multivariate=True)


def _nsga2(seed: int, evaluations: int) -> BaseSampler:
    return _Nsga2(seed=seed, population_size=min(max(evaluations // 5, 10), 50))


def _gp(seed: int, evaluations: int) -> BaseSampler:
    return _Gp(
        seed=seed,
        n_startup_trials=_startup(evaluations),
        deterministic_objective=True,
        warn_independent_sampling=False,
    )


def _startup(evaluations: int) -> int:
    return min(max(evaluations // 10, 4), 20)


SAMPLERS: Mapping[str, Sampler] = {"tpe": _tpe, "nsga2": _nsga2, "gp": _gp}


class SameParameters(BaseSampler):
    """A sampler for studies all of whose trials have the same parameters.

    Optuna's samplers compare the parameters of all trials to find out what they share, which takes longer than most of
    them take to sample. What is proposed is the same.
    """

    def infer_relative_search_space(
        self,
        study: optuna.Study,
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Parameters of the finished trials that have more than one value, by name; none before one has finished."""
        known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not known:
            return {}
        return {
            name: distribution
            for name, distribution in sorted(known[-1].distributions.items())
            if not distribution.single()
        }


class _Nsga2(SameParameters, NSGAIISampler):
    pass


class _Gp(SameParameters, GPSampler):
    pass


class _Tpe(SameParameters, TPESampler):
    """Its rows of observations are made a trial at a time instead of a number at a time."""

    def _get_internal_repr(
        self,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
        study: optuna.Study | None = None,  # noqa: ARG002
    ) -> Internal:
        names = list(search_space)
        rows = np.empty((len(trials), len(names)))
        for row, trial in zip(rows, trials, strict=True):
            params = trial.params
            row[:] = [params[name] for name in names]
        return {name: rows[:, k].copy() for k, name in enumerate(names)}


class OptunaAgent(SearchAgent):
    """A sampler of Optuna (Akiba et al. 2019, arXiv 1907.10902) with ask and tell.

    - ``tpe``: tree-structured Parzen estimators, joint over the decisions (Bergstra et al. 2011;
      Watanabe 2023, arXiv 2304.11127); running trials count as bad ones, so that proposals in
      flight spread.
    - ``nsga2``: Deb et al. 2002; with one objective, an elitist genetic algorithm.
    - ``gp``: Gaussian process with log expected improvement (Ament et al. 2023, arXiv 2310.20708).

    Every decision is an integer parameter, the place of its value. What the sampler wants is brought
    inside the bounds (``Feasible``), so no constraint has to be learned, and the trial's parameters
    are overwritten by what is executed: that is what the sampler learns from. The first trials are
    the best uniform policy of each precision. A policy seen before is changed in a few decisions.

    Each proposal's sampler is seeded by the agent's seed and the proposal's number, so the study (in
    memory) is all the state there is; saved as plain rows, it is rebuilt trial by trial. A failed
    evaluation is learned as the worst reward so far, a retryable one as a failed trial.

    Args:
        name: of ``SAMPLERS``.
        evaluations: the number of start-up trials, or the population, is made for.

    Raises:
        AgentError: there is no such sampler.
    """

    kind: ClassVar[str] = "optuna"

    def __init__(
        self,
        name: str,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(space, pricer, seed, objective)
        if name not in SAMPLERS:
            raise AgentError(f"no sampler {name!r}; known: {', '.join(SAMPLERS)}")
        self._name = name
        self._seed = seed
        self._evaluations = evaluations
        self._anchors = best_uniforms(space, pricer)
        self._distributions: dict[str, BaseDistribution] = {
            d.id: IntDistribution(0, len(d.values) - 1) for d in space.decisions
        }
        self._open_trials: dict[int, int] = {}
        self._new_study()

    def _propose(self, id: int) -> Policy:
        # Samplers warn of what is experimental in them and of how they sample: nothing a user can act on.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.sampler = SAMPLERS[self._name](self._seed_of(id), self._evaluations)
            trial = self._study.ask(self._distributions)
        if id < len(self._anchors):
            policy = self._anchors[id]
        else:
            # A copy each time it is asked for.
            params = trial.params
            wanted = [int(params[d.id]) for d in self._space.decisions]
            policy = self._unseen(lambda attempt: self._feasible(self._changed(wanted, attempt)))
        self._open_trials[id] = trial.number
        self._overwrite(trial.number, policy)
        return policy

    def _learn(
        self,
        id: int | None,
        executed: Policy,
        outcome: Evaluation | Failure,  # noqa: ARG002
        reward: float | None,
    ) -> None:
        number = self._open_trials.pop(id) if id is not None else self._added(executed)
        self._overwrite(number, executed)
        state = TrialState.FAIL if reward is None else TrialState.COMPLETE
        self._study.tell(number, reward, state)

    def _changed(self, wanted: list[int], count: int) -> list[int]:
        """The wanted values with ``count`` of them drawn anew."""
        changed = list(wanted)
        for position in self._rng.choice(len(changed), min(count, len(changed)), False):
            changed[position] = int(self._rng.integers(len(self._space.decisions[position].values)))
        return changed

    def _seed_of(self, id: int) -> int:
        # Samplers take 32 bits; consecutive ones are independent streams of NumPy's generator.
        return (self._seed * 1_000_003 + id) % 2**32

    @property
    def _directions(self) -> list[StudyDirection]:
        """Of the objectives of a trial: here one, the reward."""
        return [StudyDirection.MAXIMIZE]

    def _new_study(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(
            storage=self._storage, study_name="search", directions=self._directions
        )
        self._study_id = self._storage.get_study_id_from_name("search")

    def _added(self, policy: Policy) -> int:
        """A running trial of a policy that no sampler asked for."""
        self._study.add_trial(self._frozen(TrialState.RUNNING, policy, None, {}))
        return len(self._study.get_trials(deepcopy=False)) - 1

    def _overwrite(self, number: int, policy: Policy) -> None:
        """Makes the policy what the trial tried."""
        trial = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        known = self._storage.get_trial(trial).params
        for name, index in zip(self._space.ids, self._pricer.views.indices(policy).tolist()):
            if known[name] != index:
                distribution = self._distributions[name]
                self._storage.set_trial_param(trial, name, float(index), distribution)

    def _frozen(
        self,
        state: TrialState,
        policy: Policy,
        values: Sequence[float] | None,
        attributes: Mapping[str, Any],
    ) -> optuna.trial.FrozenTrial:
        params = zip(self._space.ids, self._pricer.views.indices(policy).tolist())
        return create_trial(
            state=state,
            values=values,
            params=dict(params),
            distributions=self._distributions,
            system_attrs=dict(attributes),
        )

    def _state(self) -> dict[str, Any]:
        trials = [
            [
                trial.state.name,
                [int(trial.params[id]) for id in self._space.ids],
                list(trial.values) if trial.state is TrialState.COMPLETE else None,
                dict(trial.system_attrs),
            ]
            for trial in self._study.get_trials(deepcopy=False)
        ]
        return {
            "sampler": self._name,
            "seed": self._seed,
            "trials": trials,
            "study": dict(self._storage.get_study_system_attrs(self._study_id)),
            "open_trials": sorted(self._open_trials.items()),
        }

    def _load(self, state: dict[str, Any]) -> None:
        if state["sampler"] != self._name:
            raise AgentError(f"{self._name} cannot load the state of {state['sampler']}")
        self._new_study()
        self._seed = int(state["seed"])
        for name, indices, values, attributes in state["trials"]:
            policy = self._space.from_indices(indices)
            self._study.add_trial(self._frozen(TrialState[name], policy, values, attributes))
        for key, attribute in state["study"].items():
            self._storage.set_study_system_attr(self._study_id, key, attribute)
        self._open_trials = {int(id): int(number) for id, number in state["open_trials"]}
