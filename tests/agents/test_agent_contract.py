"""Every agent of the table against the contract."""

from __future__ import annotations

from dataclasses import replace

import torch
from agent_toys import small

from agents import (
    AmcAgent,
    AmcSettings,
    CmaesAgent,
    DpAgent,
    EvolutionAgent,
    EvolutionSettings,
    GreedyAgent,
    HaqAgent,
    ModelGuidedAgent,
    ModelGuidedSettings,
    RandomAgent,
    UniformAgent,
)
from agents.contract import AgentContract
from agents.optuna_samplers import OptunaAgent
from agents.protocol import Agent
from agents.stable_baselines import OffPolicyAgent, OffPolicySettings, PpoAgent, PpoSettings
from search_spaces import Pricer

torch.set_num_threads(1)

# Networks and gradient steps that take no time; the actor acts from the fourth proposal on.
TINY = OffPolicySettings(warm_up=3, updates=1, batch=4, hidden=4, capacity=32)


class TestRandom(AgentContract):
    spaces = ("prune", "joint", "two_bounds", "free", "tiny", "everything")
    learns = False

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return RandomAgent(pricer.space, pricer, seed)


class TestUniform(AgentContract):
    spaces = ("prune", "joint", "two_bounds", "free", "tiny", "everything")
    learns = False

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return UniformAgent(pricer.space, pricer)


class TestAmc(AgentContract):
    spaces = ("prune", "joint", "two_bounds", "free", "tiny")

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        settings = small(AmcSettings.over(evaluations))
        return AmcAgent(pricer.space, pricer, evaluations, seed, settings=settings)


class TestPublishedAmc(AgentContract):
    spaces = ("prune",)
    # Reinforcement learning as published needs hundreds of episodes: it has a test of its own.
    learns = False

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        # The published warm-up is longer than the suite: shortened, so that the actor acts in it.
        settings = small(AmcSettings.published())
        settings = replace(settings, schedule=replace(settings.schedule, warm_up=4))
        return AmcAgent(pricer.space, pricer, evaluations, seed, published=True, settings=settings)


class TestHaq(AgentContract):
    spaces = ("everything",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        settings = small(AmcSettings.over(evaluations))
        return HaqAgent(pricer.space, pricer, evaluations, seed, settings=settings)


class TestPublishedHaq(AgentContract):
    spaces = ("bits",)
    learns = False  # as for AMC

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        settings = small(AmcSettings.published())
        settings = replace(settings, schedule=replace(settings.schedule, warm_up=4))
        return HaqAgent(pricer.space, pricer, evaluations, seed, settings=settings)


class TestEvolution(AgentContract):
    spaces = ("prune", "free", "everything")

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        settings = EvolutionSettings(5, 3, aging=False, crossover=0.5, strength=1.5)
        return EvolutionAgent(pricer.space, pricer, evaluations, seed, settings=settings)


class TestAgingEvolution(AgentContract):
    spaces = ("joint",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        settings = EvolutionSettings(5, 3)
        return EvolutionAgent(pricer.space, pricer, evaluations, seed, settings=settings)


class TestModelGuided(AgentContract):
    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        # The model chooses from the third evaluation on, or the suite would see evolution alone.
        guidance = ModelGuidedSettings(draws=2, begin=3, share=0.75, candidates=40)
        return ModelGuidedAgent(pricer.space, pricer, evaluations, seed, guidance=guidance)


class TestGreedy(AgentContract):
    spaces = ("free", "everything")
    # One decision at a time and never back: short-sighted where two bounds pull at the same decisions.
    problem = "joint"

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return GreedyAgent(pricer.space, pricer, evaluations, seed)


class TestDp(AgentContract):
    spaces = ("tiny", "everything")

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return DpAgent(pricer.space, pricer, evaluations, seed)


class TestCmaes(AgentContract):
    spaces = ("tiny", "everything")

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return CmaesAgent(pricer.space, pricer, seed)


class TestTpe(AgentContract):
    spaces = ("bits",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return OptunaAgent("tpe", pricer.space, pricer, evaluations, seed)


class TestNsga2(AgentContract):
    spaces = ("tiny",)
    # A generation has at least ten members: children come after the first.
    lessons = 40

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return OptunaAgent("nsga2", pricer.space, pricer, evaluations, seed)


class TestGp(AgentContract):
    spaces = ("tiny",)
    problem = "bits"
    lessons = 7

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return OptunaAgent("gp", pricer.space, pricer, evaluations, seed)


class TestDdpg(AgentContract):
    spaces = ("everything",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return OffPolicyAgent("ddpg", pricer.space, pricer, evaluations, seed, settings=TINY)


class TestTd3(AgentContract):
    spaces = ("tiny",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return OffPolicyAgent("td3", pricer.space, pricer, evaluations, seed, settings=TINY)


class TestSac(AgentContract):
    spaces = ("two_bounds",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return OffPolicyAgent("sac", pricer.space, pricer, evaluations, seed, settings=TINY)


class TestPpo(AgentContract):
    spaces = ("two_bounds",)

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        settings = PpoSettings(episodes=2, epochs=1, batch=8, hidden=4)
        return PpoAgent(pricer.space, pricer, seed, settings=settings)
