"""The suite every agent passes; a plug-in runs it too.

Subclass ``AgentContract`` in a test module, say how your agent is made, and run pytest::

    class TestMine(AgentContract):
        def make(self, pricer, evaluations, seed):
            return MyAgent(pricer.space, pricer, evaluations, seed)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from agents.errors import AgentError
from agents.protocol import Agent, Proposal
from agents.random_search import RandomAgent
from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import Decision, DecisionKind, LayerFeatures
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

EVALUATIONS = 8
# What everything costs over what it was priced at, once that is known.
DEARER = 1.07


def _space(layers: int, blocks: bool, precisions: tuple[int, ...]) -> SearchSpace:
    decisions: list[Decision] = []
    for layer in range(layers):
        width = 16 * (1 + layer % 3)
        features = LayerFeatures(
            layer, 0, width, width, 8, 8, 1, 3, 64 * 9 * width**2, 9 * width**2
        )
        block = f"b{layer}:block" if blocks and layer else None
        if block:
            decisions.append(Decision(block, DecisionKind.BLOCK, (0, 1), None, features))
        widths = tuple(range(width // 4, width + 1, width // 4))
        decisions.append(
            Decision(f"b{layer}.conv:channels", DecisionKind.CHANNELS, widths, block, features)
        )
        if precisions:
            decisions.append(
                Decision(
                    f"b{layer}.conv:precision", DecisionKind.PRECISION, precisions, block, features
                )
            )
    return SearchSpace(tuple(decisions))


def _model(space: SearchSpace, price: Callable[[int, int], float]) -> CostModel:
    """One factor a layer over its block, channels and precision; ``price(channels, bits)``."""
    factors = []
    for at in space.of_kind(DecisionKind.CHANNELS):
        follows = at + 1 < len(space) and space.decisions[at + 1].kind is DecisionKind.PRECISION
        bits = space.decisions[at + 1].values if follows else (32,)
        table = np.array([[price(v, b) for b in bits] for v in space.decisions[at].values])
        scope = (at, at + 1) if follows else (at,)
        table = table if follows else table[:, 0]
        if space.block_of[at] is not None:
            scope, table = (at - 1, *scope), np.stack([np.zeros_like(table), table])
        factors.append(Factor(scope, table))
    return CostModel(1.0, tuple(factors))


def _staircase(channels: int, bits: int) -> float:
    """Widths off the multiples of 8 run slower than the next one, as on real targets."""
    lanes = -(-channels // 8) * 8
    return lanes * (1.0 if bits == 32 else 0.6) * (1.2 if channels % 8 else 1.0)


def _everything(layers: int) -> SearchSpace:
    """Blocks, channels, weight and activation bits, rank and sparsity, several a layer."""
    decisions: list[Decision] = []
    for layer in range(layers):
        width = 16 * (1 + layer % 2)
        features = LayerFeatures(layer, 0, width, width, 8, 8, 1, 3, 9 * width**2, 9 * width**2)
        block = f"b{layer}:block" if layer else None
        if block:
            decisions.append(Decision(block, DecisionKind.BLOCK, (0, 1), None, features))
        for kind, values in (
            (DecisionKind.CHANNELS, (width // 4, width // 2, width)),
            (DecisionKind.RANK, (width // 4, width)),
            (DecisionKind.SPARSITY, (25, 50, 100)),
            (DecisionKind.WEIGHT_BITS, (2, 4, 8)),
            (DecisionKind.ACTIVATION_BITS, (4, 8)),
        ):
            decisions.append(Decision(f"b{layer}.conv:{kind}", kind, values, block, features))
    return SearchSpace(tuple(decisions))


def _product_model(space: SearchSpace, kinds: tuple[DecisionKind, ...]) -> CostModel:
    """One factor a layer: the product of what its decisions of these kinds keep; 0 where dropped."""
    layers: dict[str, list[int]] = {}
    for i, decision in enumerate(space.decisions):
        if decision.kind in kinds:
            layers.setdefault(decision.module, []).append(i)
    factors = []
    for own in layers.values():
        table = np.ones(())
        for i in own:
            decision = space.decisions[i]
            table = np.multiply.outer(table, np.array(decision.values) / decision.largest)
        block = space.block_of[own[0]]
        if block is None:
            factors.append(Factor(tuple(own), table))
        else:
            factors.append(Factor((block, *own), np.stack([np.zeros_like(table), table])))
    return CostModel(0.1, tuple(factors))


def contract_pricers() -> dict[str, Pricer]:
    """Spaces with budgets: ``prune``, ``joint``, ``two_bounds``, ``free`` (no bound), ``tiny``,
    ``bits`` (weights and activations apart), ``everything`` (all kinds of decisions, two bounds)."""

    def pricer(space: SearchSpace, **fractions: float) -> Pricer:
        models = {
            "latency_ms": _model(space, _staircase),
            "size_bytes": _model(space, lambda v, b: v * b / 8),
            "macs": _model(space, lambda v, _: float(v)),
        }
        whole = Pricer(space, models).costs(space.uncompressed())
        return Pricer(space, models, {q: f * whole[q] for q, f in fractions.items()})

    joint = _space(4, True, (8, 32))
    everything = _everything(3)
    kind = DecisionKind
    models = {
        "latency_ms": _product_model(
            everything, (kind.CHANNELS, kind.RANK, kind.WEIGHT_BITS, kind.ACTIVATION_BITS)
        ),
        "size_bytes": _product_model(
            everything, (kind.CHANNELS, kind.RANK, kind.SPARSITY, kind.WEIGHT_BITS)
        ),
    }
    free = Pricer(everything, models)
    whole = free.costs(everything.uncompressed())
    bits = SearchSpace(
        tuple(
            replace(d, id=d.id.replace("b0", f"b{layer}"))
            for layer in range(3)
            for d in everything.decisions[:5]
            if d.kind in (kind.WEIGHT_BITS, kind.ACTIVATION_BITS)
        )
    )
    energy = {"energy_mj": _product_model(bits, (kind.WEIGHT_BITS, kind.ACTIVATION_BITS))}
    return {
        "prune": pricer(_space(5, False, ()), macs=0.5),
        "joint": pricer(joint, latency_ms=0.45),
        "two_bounds": pricer(joint, latency_ms=0.6, size_bytes=0.2),
        "free": pricer(joint),
        "tiny": pricer(_space(1, False, (8, 32)), latency_ms=0.7),
        "bits": Pricer(bits, energy, {"energy_mj": 1.5}),
        "everything": free.with_limits({q: 0.5 * whole[q] for q in models}),
    }


def contract_evaluation(policy: Policy, pricer: Pricer) -> Evaluation:
    """A score that falls with everything taken away; a pure function of the policy."""
    space = pricer.space
    lost = [1 - (v / d.largest) for d, v in zip(space.decisions, policy.values)]
    score = -sum(x**2 * (1 + i % 3) for i, x in enumerate(lost)) / len(lost)
    costs = pricer.costs(policy)
    return Evaluation(
        (score,),
        (score - 0.01, score + 0.01),
        top1=float(np.exp(score)),
        top1_drop=(-score / 10, -score / 10, -score / 10),
        costs=costs,
        violations=pricer.violations(costs),
    )


def drive(agent: Agent, pricer: Pricer, evaluations: int, ahead: int = 1) -> list[Policy]:
    """Asks ``ahead`` at a time and tells in order, until ``evaluations`` or finished."""
    policies: list[Policy] = []
    while len(policies) < evaluations:
        proposals = agent.ask(min(ahead, evaluations - len(policies)))
        if not proposals:
            break
        policies += [p.policy for p in proposals]
        for p in proposals:
            agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
    return policies


def stored(agent: Agent) -> dict[str, object]:
    """The agent's state after a trip through a file that may hold plain data and tensors only."""
    buffer = io.BytesIO()
    torch.save(agent.state_dict(), buffer)
    buffer.seek(0)
    state: dict[str, object] = torch.load(buffer, weights_only=True)
    return state


class AgentContract:
    """What every agent keeps. Override ``make``, and ``spaces`` where some cannot be expressed.

    Attributes:
        spaces: keys of ``contract_pricers`` the agent takes.
        learns: it must do better than random search on ``problem``; False for what does not learn.
        problem: key of the space on which it must.
        lessons: evaluations it gets there.
    """

    spaces: ClassVar[tuple[str, ...]] = (
        "prune",
        "joint",
        "two_bounds",
        "free",
        "tiny",
        "bits",
        "everything",
    )
    learns: ClassVar[bool] = True
    problem: ClassVar[str] = "two_bounds"
    lessons: ClassVar[int] = 20

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        raise NotImplementedError

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Runs each test on every space the agent takes."""
        if "pricer" in metafunc.fixturenames:
            pricers = contract_pricers()
            metafunc.parametrize("pricer", [pricers[name] for name in cls.spaces], ids=cls.spaces)

    def agent(self, pricer: Pricer, seed: int = 3) -> Agent:
        return self.make(pricer, EVALUATIONS, seed)

    def test_equal_seeds_and_tells_give_equal_policies(self, pricer: Pricer) -> None:
        first = drive(self.agent(pricer), pricer, EVALUATIONS)
        torch.manual_seed(1)  # the global generator is not the agent's
        assert drive(self.agent(pricer), pricer, EVALUATIONS) == first
        assert first

    def test_leaves_the_global_generators_alone(self, pricer: Pricer) -> None:
        before = torch.get_rng_state().clone()
        drive(self.agent(pricer), pricer, 4)
        assert torch.equal(torch.get_rng_state(), before)

    def test_every_proposal_is_canonical_and_within_the_budget(self, pricer: Pricer) -> None:
        for policy in drive(self.agent(pricer), pricer, EVALUATIONS, ahead=3):
            pricer.space.check(policy)
            assert pricer.within(policy), pricer.violations(pricer.costs(policy))

    def test_survives_failures(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        for i in range(EVALUATIONS):
            for p in agent.ask(1):
                outcome: Evaluation | Failure = Failure("did not run", retryable=i % 4 == 0)
                if i % 3 == 2:
                    outcome = contract_evaluation(p.policy, pricer)
                agent.tell(p.id, p.policy, outcome)
                assert pricer.within(p.policy)

    def test_asks_ahead_and_hears_out_of_order(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        proposals = agent.ask(4) + agent.ask(2)
        assert [p.id for p in proposals] == list(range(len(proposals)))
        for p in reversed(proposals):
            agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
        assert all(pricer.within(p.policy) for p in agent.ask(2))

    def test_hears_of_a_policy_other_than_it_proposed(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        executed = pricer.enforce([0] * len(pricer.space))
        for p in agent.ask(2):
            agent.tell(p.id, executed, contract_evaluation(executed, pricer))
        drive(agent, pricer, 4)

    def test_hears_of_a_policy_over_the_budget(self, pricer: Pricer) -> None:
        # Prices are corrected by measurements: what was within may turn out not to be.
        agent = self.agent(pricer)
        for p in agent.ask(2):
            evaluation = Evaluation((-0.5,), (-0.6, -0.4), violations={"latency_ms": 0.2})
            agent.tell(p.id, p.policy, evaluation)
        drive(agent, pricer, 4)

    def test_tells_once_what_was_asked(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        (p,) = agent.ask(1)
        evaluation = contract_evaluation(p.policy, pricer)
        with pytest.raises(AgentError, match="never asked"):
            agent.tell(p.id + 1, p.policy, evaluation)
        agent.tell(p.id, p.policy, evaluation)
        with pytest.raises(AgentError, match="told before"):
            agent.tell(p.id, p.policy, evaluation)

    def test_resumes_from_its_state(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        drive(agent, pricer, EVALUATIONS // 2)
        waiting = agent.ask(2)
        state = stored(agent)
        follower = self.agent(pricer, seed=99)
        follower.load_state_dict(state)
        rest = []
        for one in (agent, follower):
            for p in waiting:
                one.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
            rest.append(drive(one, pricer, EVALUATIONS))
            assert one.finished == agent.finished
        assert rest[0] == rest[1]

    def test_goes_on_from_its_state_under_other_prices(self, pricer: Pricer) -> None:
        """As in the middle of a search, when prices are learned again from what was found."""
        agent = self.agent(pricer)
        drive(agent, pricer, EVALUATIONS // 2)
        dearer = pricer
        for quantity in pricer.limits:
            dearer = dearer.corrected(quantity, DEARER)
        follower, twin = self.agent(dearer), self.agent(dearer)
        follower.load_state_dict(stored(agent))
        twin.load_state_dict(stored(agent))
        rest = drive(follower, dearer, EVALUATIONS)
        assert all(dearer.within(policy) for policy in rest)
        assert drive(twin, dearer, EVALUATIONS) == rest
        # Finding the new bounds too tight for what is left is no reason to stop.
        assert bool(rest) or agent.finished

    def test_saved_state_does_not_change_afterwards(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        drive(agent, pricer, EVALUATIONS // 2)
        state = agent.state_dict()
        rest = drive(agent, pricer, EVALUATIONS // 2)
        follower = self.agent(pricer)
        follower.load_state_dict(state)
        assert drive(follower, pricer, EVALUATIONS // 2) == rest

    def test_replays_a_log_of_asks_and_tells(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        log: list[tuple[str, int]] = []
        waiting: list[Proposal] = []
        asked: list[Policy] = []
        rng = np.random.default_rng(0)
        for _ in range(2 * EVALUATIONS):
            if not waiting or rng.random() < 0.5:
                proposals = agent.ask(1)
                waiting += proposals
                asked += [p.policy for p in proposals]
                log.append(("ask", 1))
            else:
                p = waiting.pop(int(rng.integers(len(waiting))))
                agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
                log.append(("tell", p.id))
        again, replayed = self.agent(pricer), list[Policy]()
        for verb, value in log:
            if verb == "ask":
                replayed += [p.policy for p in again.ask(value)]
            else:
                policy = replayed[value]
                again.tell(value, policy, contract_evaluation(policy, pricer))
        assert replayed == asked

    def test_is_finished_when_it_has_nothing_more(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        for _ in range(3 * EVALUATIONS):
            finished = agent.finished
            proposals = agent.ask(1)
            assert len(proposals) <= 1
            if not proposals:
                break
            assert not finished
            agent.tell(proposals[0].id, proposals[0].policy, Failure("x", retryable=True))
        else:
            return
        assert agent.finished
        assert agent.ask(3) == []

    def test_hears_the_same_policy_again_and_again(self, pricer: Pricer) -> None:
        agent = self.agent(pricer)
        executed = pricer.enforce([0] * len(pricer.space))
        for _ in range(EVALUATIONS):
            for p in agent.ask(1):
                agent.tell(p.id, executed, contract_evaluation(executed, pricer))
        assert all(pricer.within(p.policy) for p in agent.ask(2))

    def test_does_better_than_random_search(self) -> None:
        if not self.learns:
            pytest.skip("a control: it does not learn")
        pricer = contract_pricers()[self.problem]

        def best(agent: Agent) -> float:
            policies = drive(agent, pricer, self.lessons)
            return max(contract_evaluation(policy, pricer).score for policy in policies)

        seeds = range(2)
        own = [best(self.make(pricer, self.lessons, seed)) for seed in seeds]
        control = [best(RandomAgent(pricer.space, pricer, seed)) for seed in seeds]
        assert np.mean(own) > np.mean(control)

    def test_refuses_the_state_of_another_space(self) -> None:
        pricer = contract_pricers()[self.spaces[0]]
        decisions = pricer.space.decisions
        other = SearchSpace((replace(decisions[0], id="other:channels"), *decisions[1:]))
        agent = self.agent(Pricer(other, pricer.models, pricer.limits))
        with pytest.raises(AgentError):
            agent.load_state_dict(self.agent(pricer).state_dict())
