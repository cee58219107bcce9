"""Asking ahead: as far as the search is slow beside its evaluators, and no order of asks and tells is lost by it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.evolution import EvolutionAgent
from agents.protocol import Agent, Proposal
from evaluation.pool import Finished
from search_spaces import Evaluation, Failure, Policy, Pricer
from service.ask_ahead import IDLE, AskAhead
from service.context import TrialRecord
from service.search_loop import SearchLoop
from tests.agents.agent_toys import ToyResNet

EVALUATIONS, WORKERS = 40, 3


@given(
    evaluators=st.integers(1, 300),
    search=st.floats(1e-4, 10.0),
    evaluation=st.floats(1e-3, 1000.0),
)
def test_no_more_waits_than_keeps_the_evaluators_busy(
    evaluators: int, search: float, evaluation: float
) -> None:
    ahead = AskAhead()
    ahead.searched(search * 5, 5)
    ahead.evaluated(evaluation)
    without = evaluators - ahead.policies(evaluators)

    def lost(m: int) -> float:
        """Share of the time lost where ``m`` of all evaluators wait for the search one after the other."""
        return sum(k * search for k in range(1, m + 1)) / (evaluators * evaluation)

    assert 0 <= without <= evaluators
    assert lost(without) <= IDLE * (1 + 1e-9)
    assert without == evaluators or lost(without + 1) > IDLE * (1 - 1e-9)


def test_nothing_is_asked_ahead_before_anything_is_known() -> None:
    ahead = AskAhead()
    assert ahead.policies(8) == 0
    ahead.searched(3.0, 8)
    assert ahead.policies(8) == 0


def test_it_follows_an_agent_that_becomes_slow() -> None:
    ahead = AskAhead()
    for _ in range(100):
        ahead.searched(0.0001, 1)
        ahead.evaluated(1.0)
    assert ahead.policies(8) == 0
    for _ in range(100):
        ahead.searched(0.5, 1)
        ahead.evaluated(1.0)
    assert ahead.policies(8) == 8


class Pool:
    """Workers that finish in a shuffled order and say that each policy took them so long."""

    def __init__(
        self, evaluate: Callable[[Policy], Evaluation], seconds: float, backlog: int, seed: int
    ) -> None:
        self._evaluate, self._seconds = evaluate, seconds
        self._draw = random.Random(seed)
        self._flying: list[tuple[int, Policy]] = []
        self._tickets = 0
        self.most = 0
        self.capacity, self.backlog = WORKERS, backlog

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        self._flying.append((self._tickets, policy))
        self._tickets += 1
        self.most = max(self.most, len(self._flying))
        return self._tickets - 1

    def wait(self, timeout: float | None = None) -> list[Finished]:
        self._draw.shuffle(self._flying)
        count = self._draw.randint(1, len(self._flying))
        done, self._flying = self._flying[:count], self._flying[count:]
        return [Finished(t, self._evaluate(p), self._seconds) for t, p in sorted(done)]

    def close(self) -> None: ...


class Noted:
    """An agent whose proposals are noted; proposes its first policy only where it is ``stuck``."""

    def __init__(self, agent: Agent, stuck: bool = False) -> None:
        self._agent, self._stuck = agent, stuck
        self.asked: list[Policy] = []
        self.heard = 0
        self.most = 0

    @property
    def finished(self) -> bool:
        return self._agent.finished

    def ask(self, n: int = 1) -> list[Proposal]:
        (proposal,) = self._agent.ask(n)
        if self._stuck and self.asked:
            proposal = Proposal(proposal.id, self.asked[0])
        self.asked.append(proposal.policy)
        self.most = max(self.most, len(self.asked) - self.heard)
        return [proposal]

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        self.heard += 1
        self._agent.tell(id, executed, outcome)

    def state_dict(self) -> dict[str, object]:
        return self._agent.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._agent.load_state_dict(state)


def make(stuck: bool = False) -> tuple[ToyResNet, Pricer, Noted]:
    toy = ToyResNet(4)
    pricer = toy.pricer(latency_ms=0.6)
    return toy, pricer, Noted(EvolutionAgent(pricer.space, pricer, EVALUATIONS, 3), stuck)


def search(
    seconds: float, backlog: int, earlier: list[TrialRecord] | None = None, stuck: bool = False
) -> tuple[Pool, Noted, list[TrialRecord]]:
    toy, pricer, agent = make(stuck)
    records: list[TrialRecord] = []
    loop = SearchLoop(agent, pricer, records.extend, lambda: None, lambda *_: None, 4)
    loop.replay(earlier or [])
    pool = Pool(lambda policy: toy.evaluate(policy, pricer), seconds, backlog, seed=len(records))
    trials = loop.run(pool, EVALUATIONS, None)
    assert [t.number for t in trials] == [r.number for r in [*(earlier or []), *records]]
    return pool, agent, records


def test_a_slow_search_keeps_as_many_waiting_as_are_evaluated() -> None:
    pool, _, records = search(seconds=1e-9, backlog=WORKERS)
    assert pool.most == 2 * WORKERS and len(records) == EVALUATIONS


@pytest.mark.parametrize(("seconds", "backlog"), [(1e9, WORKERS), (1e-9, 0)])
def test_long_evaluations_and_pools_without_a_backlog_are_not_asked_ahead(
    seconds: float, backlog: int
) -> None:
    assert search(seconds, backlog)[0].most == WORKERS


@pytest.mark.parametrize("told", [1, 7, 20, EVALUATIONS])
def test_a_log_of_asking_ahead_is_replayed_to_the_same_policies(told: int) -> None:
    pool, first, records = search(seconds=1e-9, backlog=WORKERS)
    assert pool.most == 2 * WORKERS and len({r.asked_after for r in records}) < EVALUATIONS
    _, again, more = search(1e-9, WORKERS, records[:told])
    heard = max(r.number for r in records[:told])
    assert again.asked[: heard + 1] == first.asked[: heard + 1]
    assert len(records[:told]) + len(more) == EVALUATIONS
    # What the second attempt added is replayed as well, on top of what it took over.
    _, third, _ = search(1e-9, WORKERS, [*records[:told], *more])
    assert third.asked == again.asked


def test_an_agent_that_repeats_itself_hears_before_all_is_asked() -> None:
    _, agent, records = search(seconds=1e-9, backlog=WORKERS, stuck=True)
    assert len(records) == EVALUATIONS and sum(not r.cached for r in records) == 1
    assert agent.most <= 3 * WORKERS
