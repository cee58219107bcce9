"""Searches on recorded evaluations: the surrogate, the scorer and the virtual clock."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.errors import RecordingError
from evaluation.pool import EvaluatorPool, ScorerFactory
from evaluation.pool_contract import PoolContract, policy, scorers
from evaluation.recording import Recorded, Recording
from evaluation.replay import ReplayScorer
from evaluation.simulated_pool import SimulatedPool
from evaluation.surrogate import Features, Surrogate
from evaluation.surrogate_fit import SurrogateFit, check
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
    # A divergence has an end: outputs that say nothing.
    return 2.3 * np.expm1(-lost / 3)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


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
    known, other = recording(300), recording(150, seed=1)
    told = Surrogate.of(known).predict(other.indices())
    error = rms(np.sqrt(-told) - np.sqrt(-other.scores()))
    design = np.concatenate([np.ones((300, 1)), known.indices()], axis=1)
    weights = np.linalg.lstsq(design, np.sqrt(-known.scores()), rcond=None)[0]
    additive = np.concatenate([np.ones((150, 1)), other.indices()], axis=1) @ weights
    assert error < 0.5 * rms(additive - np.sqrt(-other.scores()))


def test_the_surrogate_passes_near_what_it_saw() -> None:
    known = recording(120)
    told = Surrogate.of(known).predict(known.indices())
    assert np.corrcoef(told, known.scores())[0, 1] > 0.999
    assert (told < 0).all()


def test_what_it_misses_rows_by_is_what_leaving_each_out_shows() -> None:
    """The closed form against 80 surrogates of one row less, with the same hyperparameters."""
    known = recording(80)
    surrogate = Surrogate.of(known)
    parameters = np.frombuffer(base64.b64decode(surrogate.to_json()["parameters"]))
    lengths, scales = np.exp(parameters[:-5]), np.exp(parameters[-5:])
    constant, linear, quadratic, matern, noise = scales
    x = Features(known)(known.indices()) / lengths
    y = np.sqrt(-known.scores())
    apart = np.sqrt(np.maximum(np.square(x[:, None] - x[None]).sum(-1), 1e-10))
    far = math.sqrt(5) / 2 * apart
    both = np.exp(-apart) + (1 + far + far**2 / 3) * np.exp(-far)
    product = x @ x.T / x.shape[1]
    covariance = constant + linear * product + quadratic * product**2 + matern * both / 2
    missed = []
    for i in range(80):
        rest = np.arange(80) != i
        noisy = covariance[np.ix_(rest, rest)] + (noise + 1e-6) * np.eye(79)
        told = covariance[i, rest] @ np.linalg.solve(noisy, y[rest] - y.mean())
        missed.append(told + y.mean() - y[i])
    assert surrogate.error == pytest.approx(rms(np.array(missed)), rel=1e-3)


def test_policies_near_the_uncompressed_one_keep_their_order() -> None:
    known = recording(200)
    best = np.full((4, 6), 3)
    best[1, 0], best[2, :2], best[3, :4] = 2, 1, 0
    told = Surrogate.of(known).predict(best)
    assert (np.diff(told) < 0).all() and told[0] < 0


def test_the_same_rows_give_the_same_surrogate_and_so_does_what_is_kept_of_it() -> None:
    known = recording(120)
    rows = known.indices()[:9]
    surrogate = Surrogate.of(known)
    told = surrogate.predict(rows)
    assert (Surrogate.of(known).predict(rows) == told).all()
    kept = json.loads(json.dumps(surrogate.to_json()))
    again = Surrogate.from_json(known, kept)
    assert (again.predict(rows) == told).all() and again.error == surrogate.error
    with pytest.raises(RecordingError, match="another recording"):
        Surrogate.from_json(recording(100), kept)


def test_features_are_lost_shares_ranks_costs_and_blocks() -> None:
    space = SearchSpace(
        (
            Decision("b:block", DecisionKind.BLOCK, (0, 1)),
            Decision("b.c:channels", DecisionKind.CHANNELS, (2, 8), block="b:block"),
            Decision("b.c:precision", DecisionKind.PRECISION, (4, 8, 32), block="b:block"),
        )
    )
    costs = CostModel(1.0, (Factor((0,), np.array([0.0, 3.0])),))
    found = Features(Recording(space, {"macs": costs}, ()))(np.array([[0, 1, 2], [1, 0, 1]]))
    # Channels of a dropped block are lost, its precision says nothing.
    assert found == pytest.approx(np.array([[1, 1, 0, math.log(0.25), 1], [0, 0.75, 0.5, 0, 0]]))


def test_its_own_error_is_told_from_rows_left_out() -> None:
    fit = check(recording(300), budgets=(0.7, 0.01))
    assert fit.fit and fit.r2_log > 0.9 and fit.spearman > 0.95 and fit.rows == 300
    assert fit.best_half[0.01] is None  # nothing lies there
    half = fit.best_half[0.7]
    assert half is not None and half.rows >= 20 and half.spearman > 0.5
    assert SurrogateFit.from_json(json.loads(json.dumps(fit.to_json()))) == fit


def test_scores_that_nothing_tells_make_no_fit_surrogate() -> None:
    known, rng = recording(100), np.random.default_rng(0)
    noise = [
        replace(row, evaluation=Evaluation((-float(rng.uniform()),), (-1.0, 0.0)))
        for row in known.rows
    ]
    fit = check(replace(known, rows=tuple(noise)), folds=2)
    assert not fit.fit and fit.r2 < 0.3


def test_rows_no_surrogate_can_be_made_of_are_refused() -> None:
    with pytest.raises(RecordingError, match="at least 50"):
        Surrogate.of(recording(20))
    known = recording(60)
    better = replace(known.rows[7], evaluation=Evaluation((0.5,), (0.4, 0.6)))
    with pytest.raises(RecordingError, match="at most 0"):
        Surrogate.of(replace(known, rows=(*known.rows, better)))


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
