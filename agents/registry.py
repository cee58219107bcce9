"""The agents by name.

Those of Optuna and stable-baselines3 are imported when they are made: the others run where these are
not installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agents.amc import AmcAgent
from agents.cmaes import CmaesAgent
from agents.dp import DpAgent
from agents.errors import AgentError
from agents.evolution import EvolutionAgent
from agents.greedy import GreedyAgent
from agents.haq import HaqAgent
from agents.model_guided import ModelGuidedAgent
from agents.narrowed import NarrowedAgent
from agents.objective import Objective
from agents.protocol import Agent
from agents.random_search import RandomAgent
from agents.uniform import BITS, UniformAgent
from search_spaces.decision import DecisionKind
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# (space, pricer, evaluations, seed, objective) -> agent
Build = Callable[[SearchSpace, Pricer, int, int, Objective], Agent]


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """One agent of the table.

    Attributes:
        summary: one line for a person.
        build: constructor.
        as_published: of agents that have a form as published and one fitted to few evaluations and all spaces, the
            constructor of the former (True) and the latter (False); ``build`` takes the former where it can express
            the whole space.
    """

    summary: str
    build: Build
    as_published: Callable[[bool], Build] | None = None


# What AMC as published leaves as it is where it is asked for on a space that has it.
_BESIDE_CHANNELS = (DecisionKind.BLOCK, DecisionKind.RANK, DecisionKind.SPARSITY)


def _amc(published: bool | None = None) -> Build:
    def build(
        space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
    ) -> Agent:
        channels = space.of_kind(DecisionKind.CHANNELS)
        as_paper = len(channels) == len(space) if published is None else published

        def make(own: Pricer) -> Agent:
            return AmcAgent(own.space, own, evaluations, seed, as_paper, objective)

        beside = [d.kind for d in space.decisions if d.kind is not DecisionKind.CHANNELS]
        if as_paper and channels and beside and all(k in _BESIDE_CHANNELS for k in beside):
            return NarrowedAgent(pricer, channels, make)
        return make(pricer)

    return build


def _haq(published: bool | None = None) -> Build:
    def build(
        space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
    ) -> Agent:
        return HaqAgent(space, pricer, evaluations, seed, published, objective=objective)

    return build


def _off_policy(name: str) -> Build:
    def build(
        space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
    ) -> Agent:
        from agents.stable_baselines import OffPolicyAgent

        return OffPolicyAgent(name, space, pricer, evaluations, seed, objective)

    return build


def _ppo(
    space: SearchSpace,
    pricer: Pricer,
    evaluations: int,  # noqa: ARG001
    seed: int,
    objective: Objective,
) -> Agent:
    from agents.stable_baselines import PpoAgent

    return PpoAgent(space, pricer, seed, objective)


def _optuna(name: str) -> Build:
    def build(
        space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
    ) -> Agent:
        from agents.optuna_samplers import OptunaAgent

        return OptunaAgent(name, space, pricer, evaluations, seed, objective)

    return build


def _cmaes(
    space: SearchSpace,
    pricer: Pricer,
    evaluations: int,  # noqa: ARG001
    seed: int,
    objective: Objective,
) -> Agent:
    return CmaesAgent(space, pricer, seed, objective)


def _evolution(
    space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
) -> Agent:
    return EvolutionAgent(space, pricer, evaluations, seed, objective)


def _greedy(
    space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
) -> Agent:
    return GreedyAgent(space, pricer, evaluations, seed, objective)


def _dp(
    space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
) -> Agent:
    return DpAgent(space, pricer, evaluations, seed, objective)


def _random(
    space: SearchSpace,
    pricer: Pricer,
    evaluations: int,  # noqa: ARG001
    seed: int,
    objective: Objective,  # noqa: ARG001
) -> Agent:
    return RandomAgent(space, pricer, seed)


def _uniform(
    space: SearchSpace,
    pricer: Pricer,
    evaluations: int,  # noqa: ARG001
    seed: int,  # noqa: ARG001
    objective: Objective,  # noqa: ARG001
) -> Agent:
    return UniformAgent(space, pricer)


def _auto(
    space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
) -> Agent:
    return ModelGuidedAgent(space, pricer, evaluations, seed, objective)


AGENTS: Mapping[str, AgentEntry] = {
    "auto": AgentEntry(
        "what we choose for you: evolution in turns with a Gaussian process that picks children",
        _auto,
    ),
    "amc": AgentEntry(
        "reinforcement learning (DDPG), one action a decision (AMC, He et al. 2018)", _amc(), _amc
    ),
    "haq": AgentEntry(
        "reinforcement learning (DDPG) over bit widths (HAQ, Wang et al. 2019)", _haq(), _haq
    ),
    "ddpg": AgentEntry(
        "deep deterministic policy gradient of stable-baselines3", _off_policy("ddpg")
    ),
    "td3": AgentEntry("twin delayed DDPG of stable-baselines3", _off_policy("td3")),
    "sac": AgentEntry("soft actor-critic of stable-baselines3", _off_policy("sac")),
    "ppo": AgentEntry("proximal policy optimization of stable-baselines3", _ppo),
    "tpe": AgentEntry("tree-structured Parzen estimators of Optuna", _optuna("tpe")),
    "nsga2": AgentEntry("genetic algorithm NSGA-II of Optuna", _optuna("nsga2")),
    "cmaes": AgentEntry("covariance matrix adaptation (Hansen 2016), on integers", _cmaes),
    "gp": AgentEntry("Gaussian process with expected improvement of Optuna", _optuna("gp")),
    "evolution": AgentEntry(
        "mutation and crossover of policies (after Real et al. 2019)", _evolution
    ),
    "greedy": AgentEntry("shrinks step by step where it hurts least (NetAdapt)", _greedy),
    "dp": AgentEntry("per-layer sensitivities and exact dynamic programming over the prices", _dp),
    "random": AgentEntry("uniform draws within the budget, no policy twice", _random),
    "uniform": AgentEntry("one keep ratio and one precision for the whole network", _uniform),
}


def form_note(name: str, space: SearchSpace, published: bool | None) -> list[str]:
    """For a report: in which of its forms an agent that has two searched this space; empty for others.

    Args:
        published: as it was asked for, see ``AgentEntry.as_published``.
    """
    if AGENTS[name].as_published is None:
        return []
    kinds = {"amc": (DecisionKind.CHANNELS,), "haq": BITS}[name]
    other = [d.id for d in space.decisions if d.kind not in kinds]
    if published or (published is None and not other):
        left = f"; {len(other)} decisions that it does not know stayed as they are" if other else ""
        return [
            f"the agent {name} ran as published, its schedule run through in the evaluations it had{left}"
        ]
    why = f": {other[0]} is beyond the published one" if other else ""
    return [f"the agent {name} ran in the form fitted to few evaluations and all decisions{why}"]


def agent_names() -> tuple[str, ...]:
    """In the table's order."""
    return tuple(AGENTS)


def check_agent(name: str) -> None:
    """Raises AgentError for an unknown name, before anything else of a job is known."""
    if name in AGENTS:
        return
    close = difflib.get_close_matches(name.lower(), AGENTS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise AgentError(f"unknown agent {name!r}; known: {', '.join(AGENTS)}{hint}")


def make_agent(
    name: str,
    space: SearchSpace,
    pricer: Pricer,
    evaluations: int,
    seed: int,
    objective: Objective | None = None,
) -> Agent:
    """The agent of that name.

    Args:
        space: it proposes policies of.
        pricer: of the same space, with the budget's limits.
        evaluations: how many outcomes it can count on.
        seed: of all it draws.
        objective: what it maximises; accuracy by default.

    Raises:
        AgentError: the name is unknown, or the agent cannot express the space.
    """
    check_agent(name)
    return AGENTS[name].build(space, pricer, evaluations, seed, objective or Objective())
