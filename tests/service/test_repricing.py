"""A search whose prices change in its middle, cut off anywhere and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from test_search_loop import Pool

from agents.evolution import EvolutionAgent
from agents.protocol import Proposal
from evaluation.stopping import bar
from search_spaces import Evaluation, Policy, Pricer
from service.context import TrialRecord
from service.search_loop import Repricing, SearchLoop, Trial
from tests.agents.agent_toys import ToyResNet

EVALUATIONS, AFTER, CONTENDERS = 24, 10, 4
TOY = ToyResNet(4)
CHEAP = TOY.pricer(latency_ms=0.6)
DEAR = CHEAP.corrected("latency_ms", 1.2)


class Asked(EvolutionAgent):
    """Keeps what it proposed, in a list it shares with the agent that takes over."""

    def __init__(self, pricer: Pricer, proposed: list[Policy]) -> None:
        super().__init__(pricer.space, pricer, EVALUATIONS, 5)
        self._proposed = proposed

    def ask(self, n: int = 1) -> list[Proposal]:
        found = super().ask(n)
        self._proposed += [proposal.policy for proposal in found]
        return found


class Looks:
    """What a job's review does, without looking: after so many trials everything is a fifth dearer."""

    def __init__(self, pricer: Pricer | None = DEAR) -> None:
        self._pricer = pricer
        self.seen: list[list[Trial]] = []
        self.proposed: list[Policy] = []

    def __call__(self, trials: Sequence[Trial]) -> Pricer | None:
        self.seen.append(list(trials))
        return self._pricer


def search(
    looks: Looks,
    earlier: Sequence[TrialRecord] = (),
    evaluate: Callable[[Policy], Evaluation] = lambda policy: TOY.evaluate(policy, CHEAP),
    deadline: float | None = None,
) -> tuple[Pool, list[TrialRecord], SearchLoop]:
    records = list(earlier)

    def agent(pricer: Pricer) -> Asked:
        return Asked(pricer, looks.proposed)

    loop = SearchLoop(
        agent(CHEAP), CHEAP, records.extend, lambda: None, lambda *_: None, CONTENDERS,
        Repricing(AFTER, looks, agent),
    )  # fmt: skip
    loop.replay(list(earlier))
    pool = Pool(evaluate)
    loop.run(pool, EVALUATIONS, deadline)
    return pool, records, loop


def policies(records: Sequence[TrialRecord]) -> list[Policy]:
    return [TOY.space.policy(record.policy) for record in records]


def test_policies_asked_for_afterwards_keep_the_new_bounds() -> None:
    looks = Looks()
    _, records, _ = search(looks)
    (seen,) = looks.seen
    # Everything asked before is told before, and recorded.
    assert AFTER <= len(seen) < EVALUATIONS
    before, after = records[: len(seen)], records[len(seen) :]
    assert all(r.asked_after < AFTER for r in before)
    assert all(r.asked_after >= len(seen) for r in after) and after
    assert not all(DEAR.within(policy) for policy in policies(before))
    assert all(DEAR.within(policy) for policy in policies(after))
    for record in after:
        assert record.evaluation is not None
        assert record.evaluation["costs"]["latency_ms"] == pytest.approx(
            DEAR.costs(TOY.space.policy(record.policy))["latency_ms"]
        )


def test_the_score_to_beat_is_that_of_policies_within_the_new_bounds() -> None:
    looks = Looks()
    pool, records, _ = search(looks)
    count = len(looks.seen[0])
    known = {}
    for record, policy in zip(records[:count], policies(records[:count]), strict=True):
        if DEAR.within(policy):
            known[policy] = Evaluation.from_json(record.evaluation or {})
    first = TOY.space.policy(next(r for r in records if r.number == count).policy)
    assert dict(pool.asked)[first] == bar(known.values(), CONTENDERS)


def test_prices_that_hold_change_nothing() -> None:
    _, records, _ = search(Looks(None))
    _, changed, _ = search(Looks(CHEAP))
    assert policies(records) == policies(changed)


@pytest.mark.parametrize("told", range(1, EVALUATIONS))
def test_an_attempt_that_goes_on_changes_prices_where_the_first_did(told: int) -> None:
    _, records, _ = search(Looks())
    looks = Looks()
    _, again, loop = search(looks, records[:told])
    assert len(looks.seen) == 1 and len(again) == EVALUATIONS and loop.replayed == told
    # A third attempt's own agent, taken through what two wrote, asks for just these policies.
    third = Looks()
    search(third, again)
    assert [t.policy for t in third.seen[0]] == [t.policy for t in looks.seen[0]]
    assert third.proposed == policies(sorted(again, key=lambda record: record.number))
    count = len(looks.seen[0])
    assert all(DEAR.within(policy) for policy in policies(again)[count:])


def test_a_search_that_is_late_does_not_look() -> None:
    looks = Looks()
    _, records, _ = search(looks, deadline=0.0)
    assert looks.seen == [] and 0 < len(records) < AFTER
