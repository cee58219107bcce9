"""Asks the agent, evaluates, records, tells: steps 5 to 7 of a job's way."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agents.protocol import Agent, Proposal
from evaluation.pool import EvaluatorPool
from search_spaces import Evaluation, Failure, Policy, Pricer
from service.ask_ahead import AskAhead
from service.context import TrialRecord
from service.recorder import Recorder

Stage = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """A policy with what it gave."""

    number: int
    policy: Policy
    outcome: Evaluation | Failure


@dataclass(frozen=True)
class Repricing:
    """New prices in the middle of a search.

    From so many told trials on nothing is asked until everything that was asked is told; then prices are looked at, and
    where they changed an agent that goes by the new ones takes over the state of the one before.

    Attributes:
        after: trials told before.
        prices: gets the trials; the new prices under the job's bounds, None where the old ones hold.
        agent: a fresh agent of the job's that goes by prices.
    """

    after: int
    prices: Callable[[Sequence[Trial]], Pricer | None]
    agent: Callable[[Pricer], Agent]


class SearchLoop:
    """One search, resumable from its recorded trials.

    Where evaluators run beside the search it asks ahead of them as far as it is slow itself (``AskAhead``), at most as
    many policies as are being evaluated. Any order of asks and tells is replayed from the log to the same policies.

    Args:
        agent: fresh, of the job's seed.
        pricer: with the job's limits.
        record: stores trials, see ``Recorder``.
        check: raises where the job must stop.
        stage: reports progress.
        contenders: only policies that may be among so many best ones by score are scored precisely; all are where it
            is None, as it must be where the score alone does not say which policies are wanted.
        repricing: see ``Repricing``; None where prices stay as they are.
    """

    def __init__(
        self,
        agent: Agent,
        pricer: Pricer,
        record: Callable[[Sequence[TrialRecord]], None],
        check: Callable[[], None],
        stage: Stage,
        contenders: int | None = None,
        repricing: Repricing | None = None,
    ) -> None:
        self._agent = agent
        self._pricer = pricer
        self._repricing = repricing
        self._record = record
        self._recorder = Recorder(record)
        self._check = check
        self._stage = stage
        self._contenders = contenders
        self._asked = 0
        self._told = 0
        self._cache: dict[Policy, Evaluation | Failure] = {}
        self._ahead = AskAhead()
        self._best: float | None = None
        # The contenders' scores, and what the last of them was after so many trials.
        self._top: list[float] = []
        self._bars: list[float | None] = [None]
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
        # Who was asked later had heard of as much or more.
        numbered = deque(sorted(records, key=lambda record: record.number))
        last = -1
        for record in records:
            while numbered and numbered[0].asked_after <= record.told:
                last = numbered.popleft().number
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
            self._keep(Trial(record.number, policy, outcome))
            # As when it was run: nothing was asked any more that was not told.
            if self._settling and not proposals:
                self._reprice()
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
            All trials, those replayed included, in the order they were told; all are recorded.

        Raises:
            Exception: what ``record`` or ``check`` raised. Trials told before ``check`` did are recorded.
        """
        while True:
            with self._recorder:
                self._run(pool, evaluations, deadline)
            late = deadline is not None and time.monotonic() > deadline
            if not self._settling or self._told >= evaluations or self._waiting or late:
                return self.trials
            # All that the new prices rest on is recorded.
            self._reprice()
            self._recorder = Recorder(self._record)

    @property
    def _settling(self) -> bool:
        """Whether prices are to be looked at as soon as all that was asked is told."""
        return self._repricing is not None and self._told >= self._repricing.after

    def _reprice(self) -> None:
        assert self._repricing is not None
        repricing, self._repricing = self._repricing, None
        pricer = repricing.prices(self.trials)
        if pricer is None:
            return
        agent = repricing.agent(pricer)
        agent.load_state_dict(self._agent.state_dict())
        self._agent, self._pricer = agent, pricer
        self._cache = {policy: self._priced(policy, o) for policy, o in self._cache.items()}
        within = [o.score for o in self._cache.values() if isinstance(o, Evaluation) and o.feasible]
        self._best = max(within, default=None)
        if self._contenders is not None:
            self._top = sorted(within)[-self._contenders :]
            self._bars[-1] = self._bar()

    def _run(self, pool: EvaluatorPool, evaluations: int, deadline: float | None) -> None:
        flying: dict[int, tuple[Proposal, int, int]] = {}
        twins: dict[Policy, list[tuple[Proposal, int, int]]] = {}
        begun = since = time.monotonic()
        submitted = 0
        while self._told < evaluations:
            self._check()
            room = pool.capacity + min(pool.backlog, self._ahead.policies(pool.capacity))
            # At least one policy is evaluated, however long the set-up took.
            late = deadline is not None and time.monotonic() > deadline and self._asked > 0
            while (
                not late
                and pool.in_flight < room
                # An agent that proposes again and again what is being evaluated must hear of it some time.
                and self._asked - self._told - len(self._waiting) < room + pool.capacity
                and (self._waiting or (self._asked < evaluations and not self._settling))
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
                    # By what was told when it was asked for: an attempt that goes on from the log scores it alike.
                    flying[pool.submit(policy, self._bars[item[2]])] = item
                    submitted += 1
            if not flying:
                if (
                    late
                    or self._settling
                    or self._agent.finished
                    or self._told >= evaluations
                    or self._asked >= evaluations
                ):
                    break
                continue
            self._ahead.searched(time.monotonic() - since, submitted)
            done = pool.wait(timeout=1.0)
            since, submitted = time.monotonic(), 0
            for finished in done:
                item = flying.pop(finished.ticket)
                outcome = self._priced(item[0].policy, finished.outcome)
                self._tell(*item, outcome, cached=False)
                for twin in twins.pop(item[0].policy):
                    self._tell(*twin, outcome, cached=True)
                self._ahead.evaluated(finished.seconds)
            self._progress(evaluations, begun)

    def _next(self) -> tuple[Proposal, int, int] | None:
        if self._waiting:
            return self._waiting.pop(0)
        asked = self._agent.ask(1)
        if not asked:
            return None
        self._asked += 1
        return asked[0], self._asked - 1, self._told

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
        self._recorder.put(record)
        self._agent.tell(proposal.id, proposal.policy, outcome)
        self._keep(Trial(number, proposal.policy, outcome))

    def _keep(self, trial: Trial) -> None:
        outcome = trial.outcome
        if isinstance(outcome, Evaluation) and outcome.feasible:
            self._best = outcome.score if self._best is None else max(self._best, outcome.score)
            if self._contenders is not None and trial.policy not in self._cache:
                heapq.heappush(self._top, outcome.score)
                if len(self._top) > self._contenders:
                    heapq.heappop(self._top)
        self._cache[trial.policy] = outcome
        self._bars.append(self._bar())
        self.trials.append(trial)
        self._told += 1

    def _bar(self) -> float | None:
        return self._top[0] if len(self._top) == self._contenders else None

    def _progress(self, evaluations: int, begun: float) -> None:
        fresh = self._told - self.replayed
        message = "" if self._best is None else f"best score {self._best:.4g}"
        if fresh > 0:
            left = (time.monotonic() - begun) / fresh * (evaluations - self._told)
            message += f"{', ' if message else ''}about {left:.0f} s left"
        self._stage("search", message, self._told, evaluations)


def _outcome(record: TrialRecord) -> Evaluation | Failure:
    if record.evaluation is not None:
        return Evaluation.from_json(record.evaluation)
    assert record.failure is not None
    return Failure(record.failure["reason"], record.failure.get("retryable", False))
