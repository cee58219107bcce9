"""Searches on recorded evaluations: the surrogate, the scorer and the virtual clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.errors import RecordingError
from evaluation.pool import EvaluatorPool, ScorerFactory
from evaluation.pool_contract import PoolContract, policy, scorers
from evaluation.recording import Recorded, Recording
from evaluation.replay import ReplayScorer
from evaluation.simulated_pool import SimulatedPool
from evaluation.surrogate import Surrogate, check
from search_spaces import CostModel, Evaluation, PolicyError
from search_spaces.cost_model import Factor
from search_spaces.decision import Decision, DecisionKind
from search_spaces.policy import Policy
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    tuple(Decision(f"l{k}:channels", DecisionKind.CHANNELS, (2, 4, 6, 8)) for k in range(6))
)


def truth(indices: np.ndarray) -> np.ndarray:
    """Scores in which neighbours interact: both thin is far worse than the sum of the two."""
    share = (indices + 1) / 4
    lost = 0.2 * (1 - share).sum(axis=1) + 3 * ((1 - share[:, :-1]) * (1 - share[:, 1:])).sum(
        axis=1
    )
    return -np.expm1(lost)


def recording(rows: int, seed: int = 0) -> Recording:
    rng = np.random.default_rng(seed)
    indices = np.unique(rng.integers(0, 4, size=(2 * rows, 6)), axis=0)
    indices = rng.permutation(indices)[:rows]
    found = tuple(
        Recorded(SPACE.from_indices(row), Evaluation((float(score),), (score - 0.1, score + 0.1)))
        for row, score in zip(indices, truth(indices))
    )
    costs = CostModel(1.0, tuple(Factor((k,), np.arange(4.0)) for k in range(6)))
    return Recording(SPACE, {"latency_ms": costs}, found)


def test_the_surrogate_tells_what_it_never_saw_better_than_a_sum_of_decisions() -> None:
    known, other = recording(200), recording(150, seed=1)
    told = Surrogate.of(known).predict(other.indices())
    true = np.log1p(-other.scores())
    error = np.sqrt(np.mean((np.log1p(-told) - true) ** 2))
    design = np.concatenate([np.ones((200, 1)), known.indices()], axis=1)
    weights = np.linalg.lstsq(design, np.log1p(-known.scores()), rcond=None)[0]
    additive = np.concatenate([np.ones((150, 1)), other.indices()], axis=1) @ weights
    assert error < 0.3 * np.sqrt(np.mean((additive - true) ** 2))


def test_the_surrogate_passes_near_what_it_saw_and_is_least_sure_elsewhere() -> None:
    known = recording(120)
    surrogate = Surrogate.of(known)
    told = surrogate.predict(known.indices())
    assert np.corrcoef(np.log1p(-told), np.log1p(-known.scores()))[0, 1] > 0.999
    assert (told <= 0).all()
    fresh = recording(200, seed=7).indices()
    assert surrogate.spread(fresh).mean() > surrogate.spread(known.indices()).mean()


def test_the_same_rows_give_the_same_surrogate() -> None:
    known = recording(120)
    rows = known.indices()[:9]
    assert (Surrogate.of(known).predict(rows) == Surrogate.of(known).predict(rows)).all()


def test_its_own_error_is_told_from_rows_left_out() -> None:
    fit = check(recording(200), budgets=(0.7, 0.01), folds=2)
    assert fit.r2_log > 0.95 and fit.spearman > 0.95
    assert fit.best_half[0.01] is None  # nothing lies there
    half = fit.best_half[0.7]
    assert half is not None and half[2] >= 20 and half[1] > 0.5


def test_rows_no_surrogate_can_be_made_of_are_refused() -> None:
    with pytest.raises(RecordingError, match="at least 50"):
        Surrogate.of(recording(20))
    known = recording(60)
    with pytest.raises(RecordingError, match="at most 0"):
        Surrogate(SPACE, known.indices(), -known.scores())


def test_a_recorded_policy_is_looked_up_and_another_told() -> None:
    known = recording(100)
    scorer = ReplayScorer(known, Surrogate.of(known))
    assert scorer.score(known.rows[3].policy).score == known.rows[3].evaluation.score
    rows = {row.policy for row in known.rows}
    other = next(r.policy for r in recording(300, seed=3).rows if r.policy not in rows)
    told = scorer.score(other)
    assert told.interval[0] < told.score < told.interval[1] <= 0
    assert (scorer.looked_up, scorer.told) == (1, 1)
    smooth = ReplayScorer(known, Surrogate.of(known), exact=False)
    assert smooth.score(known.rows[3].policy).score != known.rows[3].evaluation.score
    with pytest.raises(PolicyError):
        scorer.score(Policy("another", (2,)))


class TestSimulatedPool(PoolContract):
    def make(self, factory: ScorerFactory) -> EvaluatorPool:
        return SimulatedPool(factory, 3, lambda _: 1.0)


def test_evaluations_pass_side_by_side_on_the_virtual_clock(tmp_path: Path) -> None:
    pool = SimulatedPool(scorers(tmp_path), 2, lambda p: float(p.values[0]))
    tickets = {value: pool.submit(policy(value)) for value in (5, 2, 4)}
    first = pool.wait()
    assert [f.ticket for f in first] == [tickets[2]] and pool.clock == 2.0
    # The third began when the second worker was free.
    assert [f.ticket for f in pool.wait()] == [tickets[5]] and pool.clock == 5.0
    assert [f.ticket for f in pool.wait()] == [tickets[4]] and pool.clock == 6.0
    assert pool.busy == 11.0 and pool.utilisation == pytest.approx(11 / 12)
    assert pool.wait() == []


def test_those_that_end_together_come_back_together(tmp_path: Path) -> None:
    pool = SimulatedPool(scorers(tmp_path), 4, lambda _: 3.0)
    for value in range(4):
        pool.submit(policy(value))
    assert pool.in_flight == pool.capacity == 4
    assert len(pool.wait()) == 4 and pool.in_flight == 0


def test_a_pool_needs_a_worker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        SimulatedPool(scorers(tmp_path), 0, lambda _: 1.0)
