"""Every agent of the table against the contract."""

from __future__ import annotations

from dataclasses import replace

import torch

from agents import AmcAgent, AmcSettings, RandomAgent, UniformAgent, make_agent
from agents.amc.ddpg import DdpgSettings
from agents.contract import AgentContract
from agents.protocol import Agent
from search_spaces import Pricer

torch.set_num_threads(1)


def small(settings: AmcSettings) -> AmcSettings:
    """The same agent with networks and gradient steps that take no time."""
    ddpg = settings.ddpg
    return replace(
        settings,
        ddpg=DdpgSettings(16, ddpg.actor_rate, ddpg.critic_rate, ddpg.tau, ddpg.discount),
        batch=8,
        updates=None if settings.updates is None else 3,
    )


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


class TestAuto(AgentContract):
    spaces = ("joint",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return make_agent("auto", pricer.space, pricer, evaluations, seed)
