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
from agents.objective import Objective
from agents.protocol import Agent
from agents.random_search import RandomAgent
from agents.uniform import UniformAgent
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
    """

    summary: str
    build: Build


def _amc(
    space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
) -> Agent:
    published = all(d.kind is DecisionKind.CHANNELS for d in space.decisions)
    return AmcAgent(space, pricer, evaluations, seed, published, objective)


def _haq(
    space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
) -> Agent:
    return HaqAgent(space, pricer, evaluations, seed, objective=objective)


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
        "reinforcement learning (DDPG), one action a decision (AMC, He et al. 2018)", _amc
    ),
    "haq": AgentEntry(
        "reinforcement learning (DDPG) over bit widths (HAQ, Wang et al. 2019)", _haq
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


def agent_names() -> tuple[str, ...]:
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
