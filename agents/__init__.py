"""Agents propose policies and learn from what they gave.

One module an algorithm behind one protocol (``Agent``). An agent sees a space, prices and
evaluations, never a network or data. ``make_agent`` finds one by name (those of Optuna and
stable-baselines3 are imported only then); ``agents.contract`` is the
test suite every one passes.
"""

from agents.amc import AmcAgent, AmcSettings
from agents.cmaes import CmaesAgent
from agents.dp import DpAgent
from agents.errors import AgentError
from agents.evolution import EvolutionAgent, EvolutionSettings
from agents.greedy import GreedyAgent
from agents.haq import HaqAgent
from agents.model_guided import ModelGuidedAgent, ModelGuidedSettings
from agents.objective import Objective, ObjectiveKind
from agents.protocol import Agent, Proposal
from agents.random_search import RandomAgent
from agents.registry import AGENTS, AgentEntry, agent_names, check_agent, make_agent
from agents.search_agent import SearchAgent
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
    "CmaesAgent",
    "DpAgent",
    "EvolutionAgent",
    "EvolutionSettings",
    "GreedyAgent",
    "HaqAgent",
    "ModelGuidedAgent",
    "ModelGuidedSettings",
    "Objective",
    "ObjectiveKind",
    "Proposal",
    "RandomAgent",
    "SearchAgent",
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
