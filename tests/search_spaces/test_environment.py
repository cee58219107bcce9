from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_for_stable_baselines

from agents.contract import contract_evaluation, contract_pricers
from agents.haq.state import HaqFeatures
from agents.uniform import BITS
from search_spaces import Policy, Pricer
from search_spaces.environment import CompressionEnvironment
from search_spaces.state_features import Features, StateFeatures


def environment(pricer: Pricer) -> CompressionEnvironment:
    return CompressionEnvironment(pricer, lambda p: contract_evaluation(p, pricer).score)


def walk(env: CompressionEnvironment, actions: list[float]) -> tuple[list[float], Policy, list]:
    observations, rewards, executed = [env.reset()[0]], [], []
    for action in actions:
        observation, reward, over, cut, info = env.step(np.array([action], dtype=np.float32))
        observations.append(observation)
        rewards.append(reward)
        executed.append(float(info["executed"][0]))
        assert not cut
        if over:
            return rewards, info["policy"], [observations, executed]
    raise AssertionError("the episode is longer than its actions")


@pytest.mark.parametrize("name", sorted(contract_pricers()))
def test_passes_the_checkers(name: str) -> None:
    pricer = contract_pricers()[name]
    check_env(environment(pricer), skip_render_check=True)
    check_for_stable_baselines(environment(pricer))
    assert isinstance(environment(pricer), gymnasium.Env)


def test_the_reward_is_the_score_at_the_last_step() -> None:
    pricer = contract_pricers()["prune"]
    rewards, policy, _ = walk(environment(pricer), [1.0] * len(pricer.space))
    assert rewards[:-1] == [0.0] * (len(pricer.space) - 1)
    assert rewards[-1] == contract_evaluation(policy, pricer).score


@pytest.mark.parametrize("action", [-5.0, -1.0, 0.0, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("name", ["prune", "joint", "two_bounds", "everything"])
def test_every_episode_ends_within_the_budget(name: str, action: float) -> None:
    pricer = contract_pricers()[name]
    _, policy, _ = walk(environment(pricer), [action] * len(pricer.space))
    pricer.space.check(policy)
    assert pricer.within(policy)


def test_wanted_values_within_the_budget_are_executed() -> None:
    pricer = contract_pricers()["free"]
    wanted = pricer.space.from_indices([i % 2 for i in range(len(pricer.space))])
    env = environment(pricer)
    _, actions = env.episode(wanted)
    _, policy, (observations, executed) = walk(env, actions[:, 0].tolist())
    assert policy == wanted
    assert executed == pytest.approx(actions[:, 0].tolist())
    # An episode told afterwards is the one that was walked.
    seen, _ = env.episode(policy)
    assert np.array_equal(np.stack(observations[: len(seen)]), seen)


def test_decisions_in_a_dropped_block_are_passed_over() -> None:
    pricer = contract_pricers()["free"]
    blocks = [d.id for d in pricer.space.decisions if d.id.endswith(":block")]
    dropped = pricer.space.policy(dict.fromkeys(blocks, 0))
    env = environment(pricer)
    _, actions = env.episode(dropped)
    assert len(actions) == len(pricer.space) - 2 * len(blocks)
    _, policy, _ = walk(env, actions[:, 0].tolist())
    assert policy == dropped


def test_an_episode_that_is_over_wants_a_reset() -> None:
    pricer = contract_pricers()["tiny"]
    env = environment(pricer)
    walk(env, [0.0] * len(pricer.space))
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(1, dtype=np.float32))
    assert env.reset(seed=1)[0].shape == env.observation_space.shape


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", ["two_bounds", "everything"])
def test_states_along_a_policy_are_those_before_each_decision(name: str, published: bool) -> None:
    pricer = contract_pricers()[name]
    space, rng = pricer.space, np.random.default_rng(0)
    indices = [int(rng.integers(len(d.values))) for d in space.decisions]
    positions = [i for i in range(len(space)) if i % 3]
    previous = rng.random(len(positions)).tolist()
    kinds: list[Features] = [StateFeatures(pricer, published)]
    if any(d.kind in BITS for d in space.decisions):
        kinds.append(HaqFeatures(space, published))
    for features in kinds:
        found = features.along(positions, indices, previous)
        each = [features.at(i, indices[:i], p) for i, p in zip(positions, previous, strict=True)]
        assert found.shape == (len(positions), len(features.names))
        np.testing.assert_allclose(found, each, rtol=1e-12, atol=1e-12)
