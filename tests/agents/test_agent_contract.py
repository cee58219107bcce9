"""Every agent of the table against the contract."""

from __future__ import annotations

from dataclasses import replace

import torch
from agent_toys import small

from agents import AmcAgent, AmcSettings, RandomAgent, UniformAgent
from agents.contract import AgentContract
from agents.protocol import Agent
from search_spaces import Pricer

torch.set_num_threads(1)


class TestRandom(AgentContract):
    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return RandomAgent(pricer.space, pricer, seed)


class TestUniform(AgentContract):
    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return UniformAgent(pricer.space, pricer)


class TestAmc(AgentContract):
    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        settings = small(AmcSettings.over(evaluations))
        return AmcAgent(pricer.space, pricer, evaluations, seed, settings=settings)


class TestPublishedAmc(AgentContract):
    spaces = ("prune",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        # The published warm-up is longer than the suite: shortened, so that the actor acts in it.
        settings = small(AmcSettings.published())
        settings = replace(settings, schedule=replace(settings.schedule, warm_up=4))
        return AmcAgent(pricer.space, pricer, evaluations, seed, published=True, settings=settings)
