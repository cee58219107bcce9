"""What the agents of stable-baselines3 store and when they train."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import AgentError
from agents.contract import contract_evaluation, contract_pricers, drive
from agents.stable_baselines import OffPolicyAgent, OffPolicySettings, PpoAgent, PpoSettings
from agents.stable_baselines.generators import PrivateGenerators
from search_spaces import Evaluation, Failure, Pricer

torch.set_num_threads(1)

TINY = OffPolicySettings(warm_up=3, updates=2, batch=4, hidden=4, capacity=4)


def off_policy(pricer: Pricer, name: str = "ddpg") -> OffPolicyAgent:
    return OffPolicyAgent(name, pricer.space, pricer, 12, 0, settings=TINY)


def test_the_buffer_holds_the_executed_episode_with_its_reward_at_every_step() -> None:
    pricer = contract_pricers()["free"]
    agent = off_policy(pricer)
    executed = pricer.space.policy({"b1:block": 0, "b0.conv:channels": 8})
    for p in agent.ask(3):
        agent.tell(p.id, executed, Evaluation((-1.0 - p.id,), (0, 0)))
    buffer = agent._model.replay_buffer
    assert buffer is not None
    # What lies in the dropped block is no step.
    steps = len(pricer.space) - 2
    assert buffer.pos == 3 * steps
    observations, actions = agent._environment.episode(executed)
    assert np.array_equal(buffer.observations[:steps, 0], observations)
    assert np.array_equal(buffer.actions[:steps, 0], actions)
    assert np.array_equal(buffer.next_observations[: steps - 1, 0], observations[1:])
    # Every transition carries the episode's reward as its return: nothing is bootstrapped behind it.
    assert (buffer.dones[: 3 * steps, 0] == 1).all() and not buffer.dones[3 * steps :].any()
    returns = buffer.rewards[: 3 * steps, 0].reshape(3, steps)
    assert (returns == returns[:, :1]).all()
    assert returns[:, 0].mean() == pytest.approx(0.0, abs=1e-6)
    assert returns[:, 0].std() == pytest.approx(1.0, abs=1e-5)
    assert (np.diff(returns[:, 0]) < 0).all()
    assert not buffer.rewards[3 * steps :].any()


def test_trains_a_bounded_number_of_steps_when_the_warm_up_is_over() -> None:
    pricer = contract_pricers()["joint"]
    agent = off_policy(pricer)
    counts = []
    for _ in range(5):
        (p,) = agent.ask()
        agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
        counts.append(agent.state_dict()["updates"])
    assert counts == [0, 0, 6, 8, 10]
    (p,) = agent.ask()
    agent.tell(p.id, p.policy, Failure("evaluator died", retryable=True))
    assert agent.state_dict()["updates"] == 10


def test_keeps_the_latest_episodes() -> None:
    pricer = contract_pricers()["joint"]
    agent = off_policy(pricer)
    told = drive(agent, pricer, 7)
    kept = [tuple(indices) for indices, _ in agent.state_dict()["episodes"]]
    assert kept == [tuple(pricer.space.indices(policy).tolist()) for policy in told[-4:]]


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
def test_the_actor_changes_and_acts(name: str) -> None:
    pricer = contract_pricers()["tiny"]
    settings = replace(TINY, hidden=32)  # of four units all may be dead
    agent = OffPolicyAgent(name, pricer.space, pricer, 12, 0, settings=settings)
    before = agent.state_dict()["parameters"]["policy"]
    drive(agent, pricer, 5)
    after = agent.state_dict()["parameters"]["policy"]
    actor = [key for key in before if key.startswith("actor.")]
    assert any(not torch.equal(before[key], after[key]) for key in actor)


def test_ppo_learns_its_own_draws_only() -> None:
    pricer = contract_pricers()["joint"]
    settings = PpoSettings(episodes=2, epochs=1, batch=8, hidden=4)
    agent = PpoAgent(pricer.space, pricer, 0, settings=settings)
    anchors = len(agent._anchors)
    proposals = agent.ask(anchors + 3)
    for p in proposals[:anchors]:
        agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
    assert agent.state_dict()["told"] == []
    other, *own = proposals[anchors:]
    executed = pricer.enforce([0] * len(pricer.space))
    assert executed != other.policy
    agent.tell(other.id, executed, contract_evaluation(executed, pricer))
    assert agent.state_dict()["told"] == []
    agent.tell(own[0].id, own[0].policy, contract_evaluation(own[0].policy, pricer))
    ((row, _),) = agent.state_dict()["told"]
    # Drawn from a normal distribution and kept as drawn: nothing cut it off at the range's ends.
    assert row[1].shape == (len(row[0]), 1)
    assert agent.state_dict()["updates"] == 0
    agent.tell(own[1].id, own[1].policy, contract_evaluation(own[1].policy, pricer))
    assert agent.state_dict()["updates"] == 1
    assert agent.state_dict()["told"] == []


def test_private_generators_leave_the_global_ones_alone_and_go_on() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(2), np.random.rand(2), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    generators = PrivateGenerators(3)
    with generators.use():
        first = torch.rand(1).item(), np.random.rand()
        random.seed(9)
    state = generators.state_dict()
    found = torch.rand(2), np.random.rand(2), random.random()
    assert torch.equal(found[0], expected[0])
    assert (found[1] == expected[1]).all()
    assert found[2] == expected[2]
    with generators.use():
        second = torch.rand(1).item(), np.random.rand()
    assert first != second
    again = PrivateGenerators(99)
    again.load_state_dict(state)
    with again.use():
        assert (torch.rand(1).item(), np.random.rand()) == second


def test_unknown_algorithms_and_others_states_are_refused() -> None:
    pricer = contract_pricers()["tiny"]
    with pytest.raises(AgentError, match="known: ddpg, td3, sac"):
        OffPolicyAgent("a2c", pricer.space, pricer, 12, 0)
    state = off_policy(pricer).state_dict()
    with pytest.raises(AgentError, match="td3 cannot load the state of ddpg"):
        off_policy(pricer, "td3").load_state_dict(state)
