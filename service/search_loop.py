"""Asks the agent, evaluates, records, tells: steps 5 to 7 of a job's way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from agents.protocol import Agent, Proposal
from evaluation.pool import EvaluatorPool
from evaluation.stopping import bar
from search_spaces import Evaluation, Failure, Policy, Pricer
from service.context import TrialRecord

Stage = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """A policy with what it gave."""

    number: int
    policy: Policy
    outcome: Evaluation | Failure


class SearchLoop:
    """One search, resumable from its recorded trials.

    Args:
        agent: fresh, of the job's seed.
        pricer: with the job's limits.
        record: stores a trial.
        check: raises where the job must stop.
        stage: reports progress.
        contenders: only policies that may be among so many best ones by score are scored precisely; all are where it
            is None, as it must be where the score alone does not say which policies are wanted.
    """

    def __init__(
        self,
        agent: Agent,
        pricer: Pricer,
        record: Callable[[TrialRecord], None],
        check: Callable[[], None],
        stage: Stage,
        contenders: int | None = None,
    ) -> None:
        self._agent = agent
        self._pricer = pricer
        self._record = record
        self._check = check
        self._stage = stage
        self._contenders = contenders
        self._asked = 0
        self._told = 0
        self._cache: dict[Policy, Evaluation | Failure] = {}
        self._waiting: list[
            tuple[Proposal, int, int]
        ] = []  # asked but not evaluated: a lost attempt's
        self.trials: list[Trial] = []
        self.replayed = 0

    def replay(self, records: list[TrialRecord]) -> None:
        """Takes the agent through an earlier attempt's log of asks and tells.

        Args:
            records: in the order they were told.
        """
        proposals: dict[int, tuple[Proposal, int]] = {}
        for record in records:
            last = max((r.number for r in records if r.asked_after <= record.told), default=-1)
            while self._asked <= max(last, record.number):
                asked = self._agent.ask(1)
                if not asked:
                    break
                proposals[self._asked] = (asked[0], self._told)
                self._asked += 1
            proposal, _ = proposals.pop(record.number)
            policy = self._pricer.space.policy(record.policy)
            outcome = _outcome(record)
            self._agent.tell(proposal.id, policy, outcome)
            self._cache[policy] = outcome
            self.trials.append(Trial(record.number, policy, outcome))
            self._told += 1
        self._waiting = [
            (proposal, number, after) for number, (proposal, after) in sorted(proposals.items())
        ]
        self.replayed = len(records)

    def run(self, pool: EvaluatorPool, evaluations: int, deadline: float | None) -> list[Trial]:
        """Searches until the evaluations or the seconds are used up.

        Args:
            pool: evaluators; stays open.
            deadline: ``time.monotonic()`` after which nothing new is asked.

        Returns:
            All trials, those replayed included, in the order they were told.
        """
        flying: dict[int, tuple[Proposal, int, int]] = {}
        twins: dict[Policy, list[tuple[Proposal, int, int]]] = {}
        begun = time.monotonic()
        while self._told < evaluations:
            self._check()
            # At least one policy is evaluated, however long the set-up took.
            late = deadline is not None and time.monotonic() > deadline and self._asked > 0
            while (
                not late
                and pool.in_flight < pool.capacity
                and (self._waiting or self._asked < evaluations)
            ):
                item = self._next()
                if item is None:
                    break
                policy = item[0].policy
                if policy in self._cache:
                    self._tell(*item, self._cache[policy], cached=True)
                elif policy in twins:
                    twins[policy].append(item)  # being evaluated already
                else:
                    twins[policy] = []
                    flying[pool.submit(policy, self._score_to_beat(item[2]))] = item
            if not flying:
                if (
                    late
                    or self._agent.finished
                    or self._told >= evaluations
                    or self._asked >= evaluations
                ):
                    break
                continue
            for finished in pool.wait(timeout=1.0):
                item = flying.pop(finished.ticket)
                outcome = self._priced(item[0].policy, finished.outcome)
                self._cache[item[0].policy] = outcome
                self._tell(*item, outcome, cached=False)
                for twin in twins.pop(item[0].policy):
                    self._tell(*twin, outcome, cached=True)
            self._progress(evaluations, begun)
        return self.trials

    def _next(self) -> tuple[Proposal, int, int] | None:
        if self._waiting:
            return self._waiting.pop(0)
        asked = self._agent.ask(1)
        if not asked:
            return None
        self._asked += 1
        return asked[0], self._asked - 1, self._told

    def _score_to_beat(self, told: int) -> float | None:
        """By what was told when the policy was asked for: an attempt that goes on from the log scores it alike."""
        if self._contenders is None:
            return None
        known = {trial.policy: trial.outcome for trial in self.trials[:told]}
        return bar(known.values(), self._contenders)

    def _priced(self, policy: Policy, outcome: Evaluation | Failure) -> Evaluation | Failure:
        if isinstance(outcome, Failure):
            return outcome
        costs = self._pricer.costs(policy)
        return replace(outcome, costs=costs, violations=self._pricer.violations(costs))

    def _tell(
        self,
        proposal: Proposal,
        number: int,
        after: int,
        outcome: Evaluation | Failure,
        cached: bool,
    ) -> None:
        good = isinstance(outcome, Evaluation)
        record = TrialRecord(
            number=number,
            told=self._told,
            asked_after=after,
            policy=self._pricer.space.as_dict(proposal.policy),
            evaluation=outcome.to_json() if good else None,
            failure=None if good else outcome.to_json(),
            cached=cached,
        )
        # Recorded before the agent learns: what is not in the store did not happen.
        self._record(record)
        self._agent.tell(proposal.id, proposal.policy, outcome)
        self.trials.append(Trial(number, proposal.policy, outcome))
        self._told += 1

    def _progress(self, evaluations: int, begun: float) -> None:
        fresh = self._told - self.replayed
        message = ""
        scores = [
            t.outcome.score
            for t in self.trials
            if isinstance(t.outcome, Evaluation) and t.outcome.feasible
        ]
        if scores:
            message = f"best score {max(scores):.4g}"
        if fresh > 0:
            left = (time.monotonic() - begun) / fresh * (evaluations - self._told)
            message += f"{', ' if message else ''}about {left:.0f} s left"
        self._stage("search", message, self._told, evaluations)


def _outcome(record: TrialRecord) -> Evaluation | Failure:
    if record.evaluation is not None:
        return Evaluation.from_json(record.evaluation)
    assert record.failure is not None
    return Failure(record.failure["reason"], record.failure.get("retryable", False))
