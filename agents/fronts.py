"""The agents of a job that asks for a whole front, by the names that find one policy otherwise."""

from __future__ import annotations

from agents.auto import AutoAgent, AutoSettings
from agents.bound_span import BoundSpan
from agents.front_evolution import FrontEvolutionAgent
from agents.front_sweep import SweptAgent
from agents.objective import Objective
from agents.protocol import Agent
from agents.registry import AGENTS, Build, check_agent
from search_spaces.front import FrontAxes
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# Proposals of these already have all costs, whatever the bounds.
_SPREAD = ("random", "uniform")


def make_front_agent(
    name: str,
    space: SearchSpace,
    pricer: Pricer,
    evaluations: int,
    seed: int,
    axes: FrontAxes,
    build: Build | None = None,
) -> Agent:
    """The agent of that name, searching for the front of score and costs.

    ``evolution``, ``nsga2`` and ``tpe`` rank policies by the front itself; ``random`` and ``uniform`` propose policies
    of all costs as they are; ``auto`` is its members, each searching for the front; all others optimise the score under
    bounds that change from proposal to proposal (``SweptAgent``).

    Args:
        space: it proposes policies of.
        pricer: of the same space, with the job's limits, which every proposal keeps.
        evaluations: how many outcomes it can count on.
        seed: of all it draws.
        axes: of the front.
        build: makes an agent that is not of the registry's table, such as a plug-in's; it is swept.

    Raises:
        AgentError: the name is unknown, or the agent cannot express the space.
    """
    if build is None:
        check_agent(name)
        build = AGENTS[name].build
    if name in _SPREAD:
        return build(space, pricer, evaluations, seed, Objective())
    if name == "evolution":
        return FrontEvolutionAgent(space, pricer, evaluations, seed, axes)
    if name == "auto":
        settings = AutoSettings()
        members = {
            member: make_front_agent(member, space, pricer, evaluations, seed, axes)
            for member in settings.members
        }
        return AutoAgent(space, members, evaluations, settings)
    if name in ("nsga2", "tpe"):
        # Optuna is imported only where it is asked for.
        from agents.front_optuna import FrontOptunaAgent

        return FrontOptunaAgent(name, space, pricer, evaluations, seed, axes)
    return SweptAgent(
        space,
        evaluations,
        lambda bounded, own: build(space, bounded, own, seed, Objective()),
        BoundSpan(pricer, axes.quantities),
    )
