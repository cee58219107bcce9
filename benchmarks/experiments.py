"""Agents that were tried and that no job can name, beside those that jobs can."""

from __future__ import annotations

from collections.abc import Mapping

from agents.objective import Objective
from agents.protocol import Agent
from agents.registry import AgentEntry, check_agent, make_agent
from benchmarks.model_based_rl import EditorSettings, ModelBasedRlAgent, ModelBasedRlSettings
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace


def _dyna(
    space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
) -> Agent:
    return ModelBasedRlAgent(space, pricer, evaluations, seed, objective)


def _dyna_untrained(
    space: SearchSpace, pricer: Pricer, evaluations: int, seed: int, objective: Objective
) -> Agent:
    training = ModelBasedRlSettings(editor=EditorSettings(rate=0.0))
    return ModelBasedRlAgent(space, pricer, evaluations, seed, objective, training=training)


EXPERIMENTS: Mapping[str, AgentEntry] = {
    "dyna": AgentEntry(
        "reinforcement learning (REINFORCE) inside a model of the scores (after DyNA-PPO)", _dyna
    ),
    "dyna-untrained": AgentEntry("dyna with a policy that never learns", _dyna_untrained),
}


def check(name: str) -> None:
    """Raises AgentError where no agent and no experiment has that name."""
    if name not in EXPERIMENTS:
        check_agent(name)


def make(name: str, space: SearchSpace, pricer: Pricer, evaluations: int, seed: int) -> Agent:
    """The agent or experiment of that name; see ``agents.registry.make_agent``."""
    if name in EXPERIMENTS:
        return EXPERIMENTS[name].build(space, pricer, evaluations, seed, Objective())
    return make_agent(name, space, pricer, evaluations, seed)
