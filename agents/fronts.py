"""The agents of a job that asks for a whole front, by the names that find one policy otherwise."""

from __future__ import annotations

from functools import partial

from agents.bound_span import BoundSpan
from agents.front_evolution import FrontEvolutionAgent
from agents.front_guided import FrontModelGuidedAgent
from agents.front_sweep import SweptAgent, member_seeds
from agents.objective import Objective
from agents.protocol import Agent
from agents.registry import Build, check_agent, make_agent
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

    ``evolution``, ``nsga2`` and ``tpe`` rank policies by the front itself; ``auto`` is ``evolution`` with every second
    child chosen by a model (``FrontModelGuidedAgent``); ``random`` and ``uniform`` propose policies of all costs as
    they are; all others optimise the score under bounds that change from proposal to proposal (``SweptAgent``).

    Args:
        space: it proposes policies of.
        pricer: of the same space, with the job's limits, which every proposal keeps.
        evaluations: how many outcomes it can count on.
        seed: of all it draws.
        axes: of the front.
        build: makes the agent otherwise than the registry does, such as a plug-in's or ``amc`` as published.

    Raises:
        AgentError: the name is unknown, or the agent cannot express the space.
    """
    if build is None:
        check_agent(name)
        build = partial(make_agent, name)
    if name in _SPREAD:
        return build(space, pricer, evaluations, seed, Objective())
    if name == "evolution":
        return FrontEvolutionAgent(space, pricer, evaluations, seed, axes)
    if name == "auto":
        return FrontModelGuidedAgent(space, pricer, evaluations, seed, axes)
    if name in ("nsga2", "tpe"):
        # Optuna is imported only where it is asked for.
        from agents.front_optuna import FrontOptunaAgent

        return FrontOptunaAgent(name, space, pricer, evaluations, seed, axes)
    seeds = member_seeds(seed)
    return SweptAgent(
        space,
        evaluations,
        lambda bounded, own: build(space, bounded, own, next(seeds), Objective()),
        BoundSpan(pricer, axes.quantities),
    )
