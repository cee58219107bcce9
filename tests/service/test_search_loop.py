"""What the loop tells evaluators of the best so far, and that a resumed search tells them the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agents.random_search import RandomAgent
from evaluation.pool import Finished
from evaluation.stopping import bar
from search_spaces import Evaluation, Policy, Pricer
from service.context import TrialRecord
from service.search_loop import SearchLoop
from tests.agents.agent_toys import ToyResNet

EVALUATIONS, CONTENDERS = 24, 4


class Pool:
    """Three workers, of which the one that began last finishes first."""

    def __init__(self, evaluate: Callable[[Policy], Evaluation]) -> None:
        self._evaluate = evaluate
        self._waiting: list[tuple[int, Policy]] = []
        self.asked: list[tuple[Policy, float | None]] = []
        self.capacity, self.backlog = 3, 0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        self.asked.append((policy, score_to_beat))
        self._waiting.append((len(self.asked), policy))
        return len(self.asked)

    def wait(self, timeout: float | None = None) -> list[Finished]:
        ticket, policy = self._waiting.pop()
        return [Finished(ticket, self._evaluate(policy))]

    def close(self) -> None: ...


def search(
    contenders: int | None, earlier: list[TrialRecord], evaluations: int = EVALUATIONS
) -> tuple[Pool, list[TrialRecord]]:
    toy = ToyResNet(4)
    pricer: Pricer = toy.pricer(latency_ms=0.6)
    records: list[TrialRecord] = []
    loop = SearchLoop(
        RandomAgent(pricer.space, pricer, 5), pricer, records.extend, lambda: None,
        lambda *_: None, contenders,
    )  # fmt: skip
    loop.replay(earlier)
    pool = Pool(lambda policy: toy.evaluate(policy, pricer))
    loop.run(pool, evaluations, None)
    return pool, records


def test_the_score_to_beat_is_told_from_the_log() -> None:
    pool, records = search(CONTENDERS, [])
    assert len(records) == EVALUATIONS
    by_policy = {tuple(sorted(r.policy.items())): r for r in records if not r.cached}
    space = ToyResNet(4).pricer().space
    beaten = []
    for policy, beat in pool.asked:
        record = by_policy[tuple(sorted(space.as_dict(policy).items()))]
        told = {
            tuple(sorted(r.policy.items())): Evaluation.from_json(r.evaluation)
            for r in records
            if r.told < record.asked_after and r.evaluation is not None
        }
        assert beat == bar(told.values(), CONTENDERS)
        beaten.append(beat)
    assert beaten[0] is None and beaten[-1] is not None
    # The bar only ever rises.
    known = [b for b in beaten if b is not None]
    assert known == sorted(known) and len(set(known)) > 1


@pytest.mark.parametrize("told", [1, 9, 16])
def test_an_attempt_that_goes_on_asks_the_same(told: int) -> None:
    pool, records = search(CONTENDERS, [])
    again, more = search(CONTENDERS, records[:told])
    # Trials that were in flight when the first attempt ended are begun in the order of asking.
    expected = dict(pool.asked[-len(again.asked) :]) | dict(again.asked)
    asked_before = {r.number for r in records[:told]}
    waiting = [r for r in records if r.number not in asked_before and r.asked_after < told]
    assert waiting or told == EVALUATIONS
    for policy, beat in again.asked[: len(waiting)]:
        assert dict(pool.asked)[policy] == beat == expected[policy]
    assert len(records[:told]) + len(more) == EVALUATIONS


def test_without_contenders_everything_is_scored_precisely() -> None:
    pool, _ = search(None, [])
    assert {beat for _, beat in pool.asked} == {None}
