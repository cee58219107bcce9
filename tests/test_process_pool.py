"""The pool of processes that benchmarks search with."""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest

from evaluation.pool_contract import BREAKS, DIES, FAILS, TestScorer, drain, policy
from search_spaces import Evaluation, Failure

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.process_pool import ProcessPool  # noqa: E402


def test_policies_come_back_under_their_tickets_and_a_dead_worker_ends_the_search(
    tmp_path: Path,
) -> None:
    pool = ProcessPool(partial(TestScorer, tmp_path), workers=2)
    try:
        assert pool.wait(0.01) == []
        tickets = {pool.submit(policy(value), -float(value)): value for value in range(5)}
        bad = {pool.submit(policy(FAILS)): "no valid network", pool.submit(policy(BREAKS)): "shape"}
        assert pool.in_flight == len(tickets) + len(bad)
        found = {item.ticket: item for item in drain(pool)}
        for ticket, value in tickets.items():
            outcome = found[ticket].outcome
            assert isinstance(outcome, Evaluation)
            assert (outcome.score, outcome.interval[0]) == (float(value), -float(value))
            assert found[ticket].seconds > 0
        for ticket, reason in bad.items():
            outcome = found[ticket].outcome
            assert isinstance(outcome, Failure) and reason in outcome.reason
        pool.submit(policy(DIES))
        with pytest.raises(BrokenProcessPool):
            drain(pool)
    finally:
        pool.close()
    assert pool.in_flight == 0
