"""State, actions, replay and networks of AMC, each on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents import AgentError
from agents.amc.actions import KeepRatios
from agents.amc.ddpg import Ddpg, DdpgSettings, MovingAverage
from agents.amc.replay import Batch, Episode, Replay
from search_spaces import (
    CostModel,
    Decision,
    DecisionKind,
    Factor,
    LayerFeatures,
    Pricer,
    SearchSpace,
)
from search_spaces.actions import Bins
from search_spaces.state_features import StateFeatures

torch.set_num_threads(1)

CHAIN = SearchSpace(
    (
        Decision(
            "a:channels",
            DecisionKind.CHANNELS,
            (8, 16),
            features=LayerFeatures(0, 0, 16, 3, 32, 32, 1, 3, 100, 432),
        ),
        Decision(
            "b:channels",
            DecisionKind.CHANNELS,
            (8, 16, 24, 32),
            features=LayerFeatures(1, 0, 32, 16, 32, 32, 2, 3, 300, 4608),
        ),
        Decision(
            "c:channels",
            DecisionKind.CHANNELS,
            (16, 32),
            features=LayerFeatures(2, 0, 32, 32, 16, 16, 1, 1, 100, 1024),
        ),
    )
)
# macs: 500 in all; latency: another scale, and the second layer's smallest width is not its
# cheapest.
MODELS = {
    "macs": CostModel(
        0.0,
        (
            Factor((0,), np.array([50.0, 100.0])),
            Factor((1,), np.array([75.0, 150.0, 225.0, 300.0])),
            Factor((2,), np.array([50.0, 100.0])),
        ),
    ),
    "latency_ms": CostModel(
        2.0,
        (
            Factor((0,), np.array([1.0, 2.0])),
            Factor((1,), np.array([3.0, 2.0, 3.5, 4.0])),
            Factor((2,), np.array([1.5, 2.0])),
        ),
    ),
}


def test_the_papers_features_by_hand() -> None:
    features = StateFeatures(Pricer(CHAIN, MODELS, {"macs": 300.0}), published=True)
    assert len(features.names) == 11
    #                            t    n    c      h  w  s  k  macs reduced rest previous
    assert features.at(0, [], 1.0) == pytest.approx([0, 0, 0, 1, 1, 0, 1, 0, 0, 0.8, 1.0])
    second = [0.5, 1, 13 / 29, 1, 1, 1, 1, 1, 0.1, 0.2, 0.5]
    assert features.at(1, [0], 0.5) == pytest.approx(second)
    third = [1, 1, 1, 0, 0, 0, 0, 0, (50 + 150) / 500, 0, 0.5]
    assert features.at(2, [0, 1], 0.5) == pytest.approx(third)


def test_published_counts_macs_whatever_the_budget_bounds() -> None:
    pricer = Pricer(CHAIN, MODELS, {"latency_ms": 8.0})
    assert StateFeatures(pricer, published=True).at(1, [0], 0.5)[8] == pytest.approx(0.1)


def test_features_by_default_follow_the_bounded_quantity() -> None:
    pricer = Pricer(CHAIN, MODELS, {"latency_ms": 8.0})
    features = StateFeatures(pricer)
    assert len(features.names) == len(features.at(1, [0], 0.5)) == 16
    state = dict(zip(features.names, features.at(1, [0], 0.5)))
    assert state["reduced"] == pytest.approx(1 / 10)  # 2 + 2 + 4 + 2 is the whole
    assert state["rest"] == pytest.approx(0.5 / 10)  # only the third layer is left
    assert (state["channels"], state["block"], state["precision"]) == (1, 0, 0)
    assert (state["in_block"], state["position"]) == (0, 0.5)


def test_every_feature_lies_between_0_and_1() -> None:
    pricer = Pricer(CHAIN, MODELS, {"latency_ms": 8.0})
    for published in (False, True):
        features = StateFeatures(pricer, published)
        for prefix in ([], [0], [1], [0, 0], [1, 3], [0, 1]):
            state = features.at(len(prefix), prefix, 0.25)
            assert all(0 <= v <= 1 for v in state), state


def test_bins_share_the_range_evenly() -> None:
    decision, bins = CHAIN.decisions[1], Bins()
    assert [bins.index(decision, a) for a in (0.0, 0.24, 0.25, 0.6, 0.99, 1.0)] == [
        0,
        0,
        1,
        2,
        3,
        3,
    ]
    assert [bins.action(decision, i) for i in range(4)] == [0.125, 0.375, 0.625, 0.875]
    assert all(bins.index(decision, bins.action(decision, i)) == i for i in range(4))
    block = Decision("x:block", DecisionKind.BLOCK, (0, 1))
    assert (bins.index(block, 0.49), bins.index(block, 0.5)) == (0, 1)


def test_keep_ratios_round_channels_up() -> None:
    decision, ratios = CHAIN.decisions[1], KeepRatios(CHAIN)
    assert [ratios.index(decision, a) for a in (0.01, 0.25, 0.3, 0.5, 0.52, 1.0)] == [
        0,
        0,
        1,
        1,
        2,
        3,
    ]
    assert [ratios.action(decision, i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_keep_ratios_refuse_other_decisions() -> None:
    space = SearchSpace((*CHAIN.decisions, Decision("x:block", DecisionKind.BLOCK, (0, 1))))
    with pytest.raises(AgentError, match="x:block"):
        KeepRatios(space)


def test_the_moving_average_starts_at_the_first_value() -> None:
    average = MovingAverage(0.5)
    assert [average.update(x) for x in (1.0, 0.0, 1.0)] == [1.0, 0.5, 0.75]


def test_rewards_are_taken_less_their_moving_average() -> None:
    settings = DdpgSettings(hidden=16, discount=0.0)
    ddpg = Ddpg(2, 0, settings)
    states, actions = torch.rand(8, 2), torch.rand(8, 1)
    for reward in (1.0, 0.0):
        rewards = torch.full((8, 1), reward)
        ddpg.update(Batch(states, actions, rewards, states, torch.ones(8, 1)))
    assert ddpg.baseline.value == 0.5


def test_the_critic_learns_which_actions_pay_and_the_actor_follows() -> None:
    ddpg = Ddpg(2, 0, DdpgSettings(hidden=32, actor_rate=1e-3, discount=0.0))
    rng = torch.Generator().manual_seed(0)
    ends = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    for _ in range(600):
        states = ends[torch.randint(2, (64,), generator=rng)]
        actions = torch.rand(64, 1, generator=rng)
        best = 0.2 + 0.6 * states[:, :1]  # 0.8 in the second state, 0.2 in the first
        rewards = 1 - (actions - best) ** 2
        ddpg.update(Batch(states, actions, rewards, states, torch.ones(64, 1)), scale=0.1)
    assert ddpg.act([0.0, 1.0]) == pytest.approx(0.2, abs=0.15)
    assert ddpg.act([1.0, 0.0]) == pytest.approx(0.8, abs=0.15)


def test_discounted_targets_bootstrap_until_the_last_step() -> None:
    # Reward 1 at both steps, baseline pinned at 0: values are 2 before the first and 1 before
    # the last.
    ddpg = Ddpg(1, 0, DdpgSettings(hidden=32, tau=0.1, discount=1.0, baseline_rate=0.0))
    ddpg.baseline.value = 0.0
    states = torch.tensor([[0.0], [1.0]]).repeat(32, 1)
    following = torch.ones(64, 1)
    last = torch.tensor([[0.0], [1.0]]).repeat(32, 1)
    rng = torch.Generator().manual_seed(0)
    for _ in range(400):
        actions = torch.rand(64, 1, generator=rng)
        ddpg.update(Batch(states, actions, torch.ones(64, 1), following, last))
    values = ddpg.critic(torch.tensor([[0.0, 0.5], [1.0, 0.5]])).flatten().tolist()
    assert values == pytest.approx([2.0, 1.0], abs=0.1)


def test_replay_keeps_the_latest_episodes_and_ends_each() -> None:
    replay = Replay(capacity=2)
    for i in range(3):
        states = torch.tensor([[10.0 * i], [10.0 * i + 1]])
        replay.add(Episode(states, torch.tensor([[0.1], [0.2]]), float(i)))
    assert replay.rewards == [1.0, 2.0]
    batch = replay.sample(np.random.default_rng(0), 200)
    assert set(batch.states.flatten().tolist()) == {10.0, 11.0, 20.0, 21.0}
    second = batch.states.flatten() % 10 == 1
    assert torch.equal(batch.last.flatten() == 1, second)
    assert torch.equal(batch.rewards, (batch.states // 10))
    assert torch.equal(batch.following.flatten(), batch.states.flatten() + (~second).float())


def test_gradients_in_closed_form_are_those_of_autograd() -> None:
    ddpg = Ddpg(3, 0, DdpgSettings(hidden=16, discount=0.0, baseline_rate=1.0))
    rng = torch.Generator().manual_seed(1)
    states, actions, rewards = (torch.rand(32, n, generator=rng) for n in (3, 1, 1))
    error = (ddpg.critic(torch.cat([states, actions], 1)) - (rewards - rewards.mean()) / 0.5) ** 2
    wanted = torch.autograd.grad(error.mean(), list(ddpg.critic.parameters()))
    ddpg.update(Batch(states, actions, rewards, states, torch.ones(32, 1)), scale=0.5)
    for weight, gradient in zip(ddpg.critic.parameters(), wanted, strict=True):
        assert weight.grad is not None and bool(gradient.any())
        torch.testing.assert_close(weight.grad, gradient)
    # The actor climbed the critic that had just learned; its own step is one of Adam's rate.
    taken = [weight.grad for weight in ddpg.actor.parameters()]
    before = Ddpg(3, 0, DdpgSettings(hidden=16, discount=0.0)).actor
    gain = ddpg.critic(torch.cat([states, before(states)], 1)).mean()
    for found, gradient in zip(
        taken, torch.autograd.grad(-gain, list(before.parameters())), strict=True
    ):
        assert found is not None and bool(gradient.any())
        torch.testing.assert_close(found, gradient)


def test_an_action_is_the_actors() -> None:
    ddpg = Ddpg(3, 0)
    state = [0.2, 0.9, 0.4]
    with torch.no_grad():
        assert ddpg.act(state) == pytest.approx(float(ddpg.actor(torch.tensor([state]))), abs=1e-7)
