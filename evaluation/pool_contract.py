"""The contract of ``EvaluatorPool``: subclass ``PoolContract``, say how to make a pool, run it by
pytest.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from evaluation.errors import ScoringError
from evaluation.pool import EvaluatorPool, Finished, ScorerFactory
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy

_SECONDS = 60.0
FAILS, BREAKS, DIES_ONCE, DIES = 90, 91, 92, 93


@dataclass(frozen=True, slots=True)
class TestScorer:
    """Scores a policy by its first value; some values misbehave.

    Attributes:
        folder: where it leaves a file for each policy, and ``DIES_ONCE`` remembers that it died.
    """

    __test__ = False

    folder: Path

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:
        value = policy.values[0]
        if value == FAILS:
            raise ScoringError("this policy gives no valid network")
        if value == BREAKS:
            raise RuntimeError("shape mismatch")
        (self.folder / f"scored {value}").touch()
        marker = self.folder / "died"
        if value == DIES or (value == DIES_ONCE and not marker.exists()):
            marker.touch()
            os._exit(1)
        low = 0.0 if score_to_beat is None else score_to_beat
        return Evaluation(scores=(float(value),), interval=(low, 1.0))


def scorers(folder: Path) -> ScorerFactory:
    """A factory of ``TestScorer``; picklable."""

    def build() -> TestScorer:
        return TestScorer(folder)

    return build


def broken_scorers() -> ScorerFactory:
    """A factory that cannot build a scorer."""

    def build() -> TestScorer:
        raise ScoringError("the data cannot be read")

    return build


def policy(value: int) -> Policy:
    return Policy("space", (value,))


def drain(pool: EvaluatorPool) -> list[Finished]:
    """Waits for all that is in flight."""
    finished: list[Finished] = []
    while pool.in_flight:
        found = pool.wait(_SECONDS)
        assert found, f"nothing came back within {_SECONDS} s"
        finished += found
    return finished


class PoolContract:
    """What every pool must do. Override ``make``."""

    def make(self, factory: ScorerFactory) -> EvaluatorPool:
        raise NotImplementedError

    def test_every_policy_comes_back_once_under_its_ticket(self, tmp_path: Path) -> None:
        pool = self.make(scorers(tmp_path))
        try:
            tickets = {
                pool.submit(policy(value)): value
                for value in range(pool.capacity + pool.backlog + 3)
            }
            assert pool.in_flight == len(tickets)
            scores = {
                item.ticket: item.outcome.score
                for item in drain(pool)
                if isinstance(item.outcome, Evaluation)
            }
        finally:
            pool.close()
        assert scores == {ticket: float(value) for ticket, value in tickets.items()}

    def test_the_score_to_beat_reaches_the_scorer(self, tmp_path: Path) -> None:
        pool = self.make(scorers(tmp_path))
        try:
            tickets = {pool.submit(policy(1), beat): beat for beat in (-3.0, None, -7.0)}
            lows = {
                item.ticket: item.outcome.interval[0]
                for item in drain(pool)
                if isinstance(item.outcome, Evaluation)
            }
        finally:
            pool.close()
        assert lows == {ticket: beat or 0.0 for ticket, beat in tickets.items()}

    def test_nothing_in_flight_is_nothing_to_wait_for(self, tmp_path: Path) -> None:
        pool = self.make(scorers(tmp_path))
        try:
            assert pool.in_flight == 0
            assert pool.wait(0.01) == []
        finally:
            pool.close()

    def test_a_bad_policy_is_a_failure_and_the_next_one_is_scored(self, tmp_path: Path) -> None:
        pool = self.make(scorers(tmp_path))
        try:
            tickets = [pool.submit(policy(value)) for value in (FAILS, BREAKS, 3)]
            outcomes = {item.ticket: item.outcome for item in drain(pool)}
        finally:
            pool.close()
        refused, broke, scored = (outcomes[ticket] for ticket in tickets)
        assert isinstance(refused, Failure) and "no valid network" in refused.reason
        assert isinstance(broke, Failure) and "shape mismatch" in broke.reason
        assert not refused.retryable and not broke.retryable
        assert isinstance(scored, Evaluation) and scored.score == 3

    def test_a_factory_that_fails_says_why(self) -> None:
        pool = self.make(broken_scorers())
        try:
            pool.submit(policy(1))
            try:
                drain(pool)
            except ScoringError as error:
                assert "the data cannot be read" in str(error)
            else:
                raise AssertionError("the factory's error was swallowed")
        finally:
            pool.close()

    def test_closing_with_policies_in_flight(self, tmp_path: Path) -> None:
        pool = self.make(scorers(tmp_path))
        pool.submit(policy(1))
        pool.close()
        pool.close()


class WorkerPoolContract(PoolContract):
    """In addition, for pools whose workers are processes of their own."""

    def test_a_worker_that_dies_is_replaced_and_its_policy_tried_again(
        self, tmp_path: Path
    ) -> None:
        pool = self.make(scorers(tmp_path))
        try:
            tickets = [pool.submit(policy(value)) for value in (DIES_ONCE, 5)]
            outcomes = {item.ticket: item.outcome for item in drain(pool)}
        finally:
            pool.close()
        for ticket, value in zip(tickets, (DIES_ONCE, 5), strict=True):
            outcome = outcomes[ticket]
            assert isinstance(outcome, Evaluation) and outcome.score == value

    def _all_scored(self, pool: EvaluatorPool, folder: Path, values: range) -> bool:
        """Whether all are scored within seconds while nobody waits for the pool."""
        for value in values:
            pool.submit(policy(value))
        patience = time.monotonic() + 3.0
        while time.monotonic() < patience:
            if all((folder / f"scored {value}").exists() for value in values):
                return True
            time.sleep(0.02)
        return False

    def test_workers_go_on_with_the_backlog_by_themselves(self, tmp_path: Path) -> None:
        pool = self.make(scorers(tmp_path))
        try:
            assert pool.backlog > 0
            count = pool.capacity + pool.backlog
            deadline = time.monotonic() + _SECONDS
            first = 10
            # A worker that is still being prepared has no backlog: then once more.
            while not self._all_scored(pool, tmp_path, range(first, first + count)):
                assert time.monotonic() < deadline, sorted(p.name for p in tmp_path.iterdir())
                drain(pool)
                first += count
            assert pool.in_flight == count
            finished = drain(pool)
            assert len(finished) == count and all(item.seconds > 0 for item in finished)
        finally:
            pool.close()

    def test_a_policy_that_kills_its_worker_twice_fails_and_what_waits_behind_it_is_scored(
        self, tmp_path: Path
    ) -> None:
        pool = self.make(scorers(tmp_path))
        try:
            pool.submit(policy(0))
            drain(pool)
            values = [DIES, *range(1, pool.capacity + pool.backlog)]
            tickets = {pool.submit(policy(value)): value for value in values}
            outcomes = {tickets[item.ticket]: item.outcome for item in drain(pool)}
        finally:
            pool.close()
        failed = outcomes.pop(DIES)
        assert isinstance(failed, Failure) and failed.retryable
        assert {v: o.score for v, o in outcomes.items() if isinstance(o, Evaluation)} == {
            value: float(value) for value in values[1:]
        }
