"""Agents propose policies and learn from what they gave.

One module an algorithm behind one protocol (``Agent``). An agent sees a space, prices and
evaluations, never a network or data. ``make_agent`` finds one by name; ``agents.contract`` is the
test suite every one passes.
"""

from agents.amc import AmcAgent, AmcSettings
from agents.errors import AgentError
from agents.objective import Objective, ObjectiveKind
from agents.protocol import Agent, Proposal
from agents.random_search import RandomAgent
from agents.registry import AGENTS, AgentEntry, agent_names, check_agent, make_agent
from agents.uniform import (
    UniformAgent,
    UniformPolicy,
    best_uniform,
    precisions,
    uniform_policies,
    uniform_policy,
)

__all__ = [
    "AGENTS",
    "Agent",
    "AgentEntry",
    "AgentError",
    "AmcAgent",
    "AmcSettings",
    "Objective",
    "ObjectiveKind",
    "Proposal",
    "RandomAgent",
    "UniformAgent",
    "UniformPolicy",
    "agent_names",
    "best_uniform",
    "check_agent",
    "make_agent",
    "precisions",
    "uniform_policies",
    "uniform_policy",
]
