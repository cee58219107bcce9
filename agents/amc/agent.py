"""AMC's agent behind our protocol, as published or fitted to few evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.amc.actions import KeepRatios
from agents.amc.ddpg import Ddpg, DdpgSettings
from agents.amc.noise import Schedule, truncated_normal
from agents.amc.replay import Episode, Replay
from agents.errors import AgentError
from agents.objective import Objective, ObjectiveKind
from agents.proposals import Proposals
from agents.protocol import Proposal
from agents.uniform import best_uniforms
from search_spaces.actions import ActionMap, Bins
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace
from search_spaces.state_features import Features, StateFeatures
from search_spaces.walk import is_active, walk


@dataclass(frozen=True, slots=True)
class AmcSettings:
    """What the published agent and the default one do differently; see ``AmcAgent``.

    Attributes:
        schedule: of warm-up and noise.
        ddpg: hyper-parameters.
        batch: transitions a gradient step.
        capacity: of the replay memory, in episodes.
        updates: gradient steps an episode; None is one a transition, as published.
        learn_in_warm_up: whether the warm-up's episodes bring gradient steps too, taken when it is
            over.
        standardise: whether rewards are divided by their standard deviation in the replay memory.
        retries: further roll-outs where a policy was proposed before.
        elites: best policies that every other proposal after the warm-up strays from; 0 for none.
    """

    schedule: Schedule
    ddpg: DdpgSettings = field(default_factory=DdpgSettings)
    batch: int = 64
    capacity: int = 100
    updates: int | None = None
    learn_in_warm_up: bool = False
    standardise: bool = False
    retries: int = 0
    elites: int = 0

    @classmethod
    def published(cls, evaluations: int = 800) -> AmcSettings:
        """The paper's; its schedule is shrunk where there are fewer evaluations than its 800."""
        return cls(Schedule.published().shrunk(evaluations, 800))

    @classmethod
    def over(cls, evaluations: int) -> AmcSettings:
        """Settings that learn within ``evaluations``, be they as few as 60."""
        return cls(
            Schedule.over(evaluations),
            ddpg=DdpgSettings(hidden=128, actor_rate=1e-3, discount=0.0),
            batch=256,
            capacity=max(100, evaluations),
            updates=8,
            learn_in_warm_up=True,
            standardise=True,
            retries=8,
            elites=4,
        )


class AmcAgent:
    """He et al. 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices".

    arXiv 1802.03494. An episode walks through the decisions of a space; the actor sees one
    decision's features and what was executed before it, and its action stands for a value. The
    action is clipped from above to what can still be completed within the budget, so the reward is
    that of a feasible policy.

    ``published``, on a space of one keep ratio a layer, is the paper's agent: keep ratios as
    actions, 100 episodes of uniform warm-up, noise 0.5 x 0.95^episode, one gradient step a
    transition after the warm-up, the final reward on every transition with discount 1, less a
    moving average of rate 0.5, replay of 100 episodes, accuracy as the reward (where the evaluation
    has a top-1). The paper runs 800 episodes; with fewer evaluations warm-up and noise run through
    the same course in as many as there are. One thing differs:
    the clip asks the prices for the cheapest completion of the later decisions instead of setting
    all to their smallest ratio. Where cost falls with every channel, as MACs do, both are the same;
    on a staircase only ours is exact.

    By default the agent takes any space, and learns from fewer evaluations:

    - Its first proposals are the best uniform policy of each precision (``best_uniform``), so that
      its result is never below what needs no search and learning starts from something sound. They
      are evaluations of the warm-up like the others. Without a budget they are the uncompressed
      network and those of one lower precision throughout, which the objective latency starts from.
    - In the warm-up every decision's value is drawn whatever the others are, and the draw is
      brought into the budget by ``Pricer.repair``: clipped in order, early layers would take the
      budget and late ones starve.
    - With bounds and the objective accuracy, what a policy leaves of the budget is used up by
      ``Pricer.fill``: AMC clips from above only, and a budget left unused is accuracy given away.
      The uniform policies stay as they are. The objective latency is after what is left over, and
      without bounds filling would undo the policy.
    - After the warm-up every other proposal changes a few decisions of one of the best policies so
      far and is brought back to the budget by ``repair`` and ``fill``; the critic learns from it like
      from the others (as evolution-guided reinforcement learning does, Khadka and Tumer 2018, arXiv
      1805.07917, with the agent's own episodes as population). Of a hundred evaluations the actor
      alone can spend all on a plateau it learned to like: two of four measured searches ended below
      their own warm-up.
    - A decision's values share [0, 1] evenly (``Bins``), and the state has five features more.
    - Warm-up and noise scale with ``evaluations`` (``Schedule.over``).
    - Discount 0: the reward comes once, at the end, so with the final reward on every transition
      the plain regression of it is already the undiscounted return. AMC's discount 1 adds it up
      over the steps left and bootstraps each through target networks that move by 1 % an update:
      800 episodes can wait for that.
    - 8 gradient steps an episode on 256 transitions each instead of one a transition on 64, the
      warm-up's ones taken when it ends, and an actor rate of 1e-3: as many transitions as 32 steps
      of the published batch.
    - Networks of 128-128: on the toy network of the tests no worse than 300-300 (8 seeds) in half
      the time, which the evaluators on the same machine lack.
    - Rewards are divided by their standard deviation: how far scores differ depends on network and
      budget.
    - A policy proposed before is rolled out again, up to 8 times with growing noise, as a repeat
      teaches nothing.

    Several proposals may be out at once; the noise's stage counts asked episodes, and learning
    starts when as many as the warm-up has were told. What is stored is what was executed (truth 4
    of the design). A failed evaluation is learned as the worst reward seen so far (the objective's
    floor before any); one that is retryable says nothing of the policy and teaches nothing.

    Args:
        space: whose decisions are taken.
        pricer: of the same space, with the budget's limits.
        evaluations: the schedule is made for; the agent goes on with its last noise if more are
            asked.
        seed: equal seeds and equal orders of asks and tells give equal policies (on one machine and
            one thread: sums of floats depend on how they are split).
        published: see above.
        objective: what the reward is.
        settings: instead of those that ``published`` and ``evaluations`` call for.

    Raises:
        AgentError: ``published`` and the space decides more than channels.
    """

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        published: bool = False,
        objective: Objective | None = None,
        settings: AmcSettings | None = None,
    ) -> None:
        self._space = space
        self._pricer = pricer
        self._published = published
        self._objective = objective or Objective()
        self._settings = settings or self._usual_settings(evaluations)
        self._actions = self._action_map()
        self._features = self._state_features()
        self._ddpg = Ddpg(len(self._features.names), seed, self._settings.ddpg)
        self._replay = Replay(self._settings.capacity)
        self._proposals = Proposals(space)
        # Two generators: how often the agent learned must not shift what it draws next, nor the
        # reverse.
        self._explore, self._draw = (np.random.default_rng([seed, stream]) for stream in (0, 1))
        self._seen: set[tuple[int, ...]] = set()
        self._worst: float | None = None
        self._owed = 0
        self._observed = 0  # evaluations of other agents' proposals
        self._elites: list[tuple[float, tuple[int, ...]]] = []  # best first
        self._fills = (
            not published and bool(pricer.limits) and self._objective.kind is ObjectiveKind.ACCURACY
        )
        self._anchors = [] if published else best_uniforms(space, pricer)

    @property
    def finished(self) -> bool:
        """Never: the actor can always be asked once more. Who asks counts the evaluations."""
        return False

    @property
    def sigma(self) -> float | None:
        """Standard deviation of the next proposal's noise; None during the warm-up."""
        return self._settings.schedule.sigma(self._proposals.asked + self._observed)

    @property
    def replay(self) -> Replay:
        """What the agent learns from."""
        return self._replay

    def ask(self, n: int = 1) -> list[Proposal]:
        return [self._proposals.add(self._propose()) for _ in range(n)]

    def greedy(self) -> Policy:
        """The actor's own policy, without noise. Asking for it changes no later proposal."""
        return self._roll_out(0.0)

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        reward = self._worth(outcome)
        self._proposals.settle(id, executed)
        self._take(executed, outcome, reward)

    def observe(self, executed: Policy, outcome: Evaluation | Failure) -> None:
        """Learns from an evaluation that another agent asked for."""
        reward = self._worth(outcome)
        self._space.check(executed)
        self._observed += 1
        self._take(executed, outcome, reward)

    def _worth(self, outcome: Evaluation | Failure) -> float:
        if isinstance(outcome, Evaluation):
            return self._reward(outcome)
        return self._floor if self._worst is None else self._worst

    @property
    def _floor(self) -> float:
        """What a failure is worth before any evaluation."""
        return self._objective.floor

    def _take(self, executed: Policy, outcome: Evaluation | Failure, reward: float) -> None:
        if isinstance(outcome, Failure) and outcome.retryable:
            return
        if isinstance(outcome, Evaluation):
            self._worst = reward if self._worst is None else min(self._worst, reward)
        self._seen.add(executed.values)
        if isinstance(outcome, Evaluation) and self._settings.elites:
            indices = tuple(int(i) for i in self._space.indices(executed))
            found = {*self._elites, (reward, indices)}
            self._elites = sorted(found, reverse=True)[: self._settings.elites]
        episode = self._episode(executed, reward)
        self._replay.add(episode)
        self._learn(len(episode.states))

    def state_dict(self) -> dict[str, Any]:
        return {
            "features": list(self._features.names),
            "proposals": self._proposals.state_dict(),
            "ddpg": self._ddpg.state_dict(),
            "replay": self._replay.state_dict(),
            "explore": self._explore.bit_generator.state,
            "draw": self._draw.bit_generator.state,
            "seen": [list(values) for values in sorted(self._seen)],
            "worst": self._worst,
            "owed": self._owed,
            "observed": self._observed,
            "elites": [[reward, list(indices)] for reward, indices in self._elites],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises AgentError when the state is of another space or of the other kind of amc."""
        if state["features"] != list(self._features.names):
            raise AgentError("the published and the default amc cannot load each other's state")
        self._proposals.load_state_dict(state["proposals"])
        self._ddpg.load_state_dict(state["ddpg"])
        self._replay.load_state_dict(state["replay"])
        self._explore.bit_generator.state = state["explore"]
        self._draw.bit_generator.state = state["draw"]
        self._seen = {tuple(values) for values in state["seen"]}
        self._worst = state["worst"]
        self._owed = int(state["owed"])
        self._observed = int(state["observed"])
        self._elites = [(float(reward), tuple(indices)) for reward, indices in state["elites"]]

    def _usual_settings(self, evaluations: int) -> AmcSettings:
        if self._published:
            return AmcSettings.published(evaluations)
        return AmcSettings.over(evaluations)

    def _action_map(self) -> ActionMap:
        return KeepRatios(self._space) if self._published else Bins()

    def _state_features(self) -> Features:
        return StateFeatures(self._pricer, self._published)

    def _reward(self, evaluation: Evaluation) -> float:
        if (
            self._published
            and self._objective.kind is ObjectiveKind.ACCURACY
            and evaluation.top1 is not None
        ):
            return evaluation.top1 - sum(evaluation.violations.values())
        return self._objective.reward(evaluation)

    def _episode(self, executed: Policy, reward: float) -> Episode:
        """The executed policy as the actor would have walked through it."""
        indices = [int(i) for i in self._space.indices(executed)]
        active = [i for i in range(len(indices)) if is_active(self._space, indices, i)]
        actions = [self._actions.action(self._space.decisions[i], indices[i]) for i in active]
        states = self._features.along(active, indices, [1.0, *actions[:-1]])
        return Episode(
            torch.from_numpy(states.astype(np.float32)), torch.tensor(actions)[:, None], reward
        )

    def _propose(self) -> Policy:
        if self._proposals.asked < len(self._anchors):
            policy = self._anchors[self._proposals.asked]
            self._seen.add(policy.values)
            return policy
        sigma = self.sigma
        from_elite = sigma is not None and bool(self._elites) and self._proposals.asked % 2 == 1
        for _ in range(self._settings.retries + 1):
            if sigma is None and not self._published:
                policy = self._draw_at_once()
            elif sigma is not None and from_elite:
                policy = self._stray(sigma)
            else:
                policy = self._roll_out(sigma)
            if policy.values not in self._seen:
                break
            sigma = None if sigma is None else 1.3 * sigma
        self._seen.add(policy.values)
        return policy

    def _roll_out(self, sigma: float | None) -> Policy:
        """One episode; ``sigma`` None draws actions uniformly, 0 takes the actor's as they are."""
        active: list[int] = []

        def choose(position: int, prefix: Sequence[int], allowed: NDArray[np.bool_]) -> int:  # noqa: ARG001
            decision = self._space.decisions[position]
            if sigma is None:
                action = self._explore.random()
            else:
                previous = 1.0
                if active:
                    # What was executed, after clipping, is what the next state speaks of.
                    last = active[-1]
                    previous = self._actions.action(self._space.decisions[last], prefix[last])
                action = self._ddpg.act(self._features.at(position, prefix, previous))
                if sigma > 0:
                    action = truncated_normal(self._explore.random(), action, sigma)
            active.append(position)
            return self._actions.index(decision, action)

        return self._filled(walk(self._pricer, choose))

    def _draw_at_once(self) -> Policy:
        """A uniform action for every decision, whatever the others are, brought into the budget."""
        wanted = [
            self._actions.index(decision, self._explore.random())
            for decision in self._space.decisions
        ]
        return self._filled(self._pricer.repair(self._space.from_indices(wanted)))

    def _stray(self, sigma: float) -> Policy:
        """One of the best policies with a few of its decisions changed."""
        rank = min(int(self._explore.geometric(0.5)) - 1, len(self._elites) - 1)
        indices = list(self._elites[rank][1])
        active = [i for i in range(len(indices)) if is_active(self._space, indices, i)]
        count = min(int(1 + self._explore.geometric(0.4)), len(active))
        for position in self._explore.choice(active, count, replace=False):
            decision = self._space.decisions[position]
            mean = self._actions.action(decision, indices[position])
            action = truncated_normal(self._explore.random(), mean, max(sigma, 0.2))
            indices[position] = self._actions.index(decision, action)
        return self._filled(self._pricer.repair(self._space.from_indices(indices)))

    def _filled(self, policy: Policy) -> Policy:
        return self._pricer.fill(policy) if self._fills else policy

    def _learn(self, steps: int) -> None:
        settings = self._settings
        updates = steps if settings.updates is None else settings.updates
        told = self._proposals.told + self._observed
        if told < settings.schedule.warm_up:
            self._owed += updates if settings.learn_in_warm_up else 0
            return
        if told == settings.schedule.warm_up and not settings.learn_in_warm_up:
            return
        updates += self._owed
        self._owed = 0
        scale = 1.0
        if settings.standardise:
            scale = max(float(np.std(self._replay.rewards)), 1e-8)
        for _ in range(updates):
            self._ddpg.update(self._replay.sample(self._draw, settings.batch), scale)
