"""The agents by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agents.amc import AmcAgent
from agents.errors import AgentError
from agents.objective import Objective
from agents.protocol import Agent
from agents.random_search import RandomAgent
from agents.uniform import UniformAgent
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
    return AmcAgent(space, pricer, evaluations, seed, objective=objective)


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


AGENTS: Mapping[str, AgentEntry] = {
    # No contest has been measured yet that would justify another choice.
    "auto": AgentEntry("what we choose for you: amc, until agents have been measured", _amc),
    "amc": AgentEntry(
        "reinforcement learning (DDPG), one action a decision (AMC, He et al. 2018)", _amc
    ),
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
