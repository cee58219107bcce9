"""What a job learns of its prices in the middle of its search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables import TableStore
from latency_tables.errors import MeasurementError
from search_spaces import Evaluation, Policy
from search_spaces.latency_model import sample_policies
from service import price_review
from service.anchors import Anchors, Sums
from service.job_prices import JobPrices, learn_job_prices
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.price_review import PriceReview
from service.search_loop import Trial
from service.sources import Sources

EVALUATIONS = 36


def spec_of(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "model": {"source": "python:service.demo_networks:digits_cnn"},
        "data": {"source": "digits"},
        "budget": {"latency": 0.7},
        "agent": {"name": "random", "evaluations": EVALUATIONS},
        "search_images": 64,
    }
    return JobSpec.model_validate(fields | changes)


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.price_setup.SAMPLES", 60)
        patch.setattr("service.price_review.SECONDS", 0.2)
        yield


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, data_dir: Path, weights: Path
) -> tuple[JobSetup, JobPrices]:
    out = tmp_path_factory.mktemp("job")
    spec = spec_of()
    with LocalContext(spec, out, data_dir, Sources(), weights, threads=1) as context:
        setup = load_job(spec, Sources(), weights, data_dir=data_dir)
        return setup, learn_job_prices(setup, context, out)


class Pins:
    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def __call__(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        return self.kept.setdefault(key, value)


def review_of(
    setup: JobSetup, prices: JobPrices, folder: Path, pins: Pins | None = None
) -> PriceReview:
    limits = {"latency_ms": 0.7 * prices.uncompressed["latency_ms"]}
    return PriceReview(
        setup, prices, limits, folder, TableStore(folder / "tables"), lambda: None,
        lambda *_: None, pins or Pins(),
    )  # fmt: skip


def trials_of(review: PriceReview) -> list[Trial]:
    """Policies within the bound; the score is what a policy keeps of its decisions."""
    space = review.setup.network.network_space
    pricer = review.prices.pricer.with_limits(review.limits)
    found: dict[Policy, None] = {}
    for policy in sample_policies(space, 30, seed=9):
        found.setdefault(pricer.fill(pricer.repair(policy)))

    def kept(policy: Policy) -> float:
        return float(np.mean([v / d.largest for d, v in zip(space.space.decisions, policy.values)]))

    return [Trial(k, p, Evaluation((kept(p),), (0.0, 1.0))) for k, p in enumerate(found)]


def too_cheap(prices: JobPrices, factor: float) -> JobPrices:
    """Local terms that call everything so many times as dear as its kernels are."""
    own = prices.first
    return prices.with_prices(0, replace(own, pricer=own.pricer.corrected("latency_ms", factor)))


def test_best_policies_cost_afterwards_what_they_were_timed_at(
    job: tuple[JobSetup, JobPrices], tmp_path: Path
) -> None:
    setup, prices = job
    pins = Pins()
    review = review_of(setup, too_cheap(prices, 0.8), tmp_path, pins)
    trials = trials_of(review)
    before = review.prices.pricer
    pricer = review.again(trials)
    assert pricer is not None and pricer.limits == review.limits
    seen = pins.kept["review"]
    best = [setup.network.network_space.space.policy(values) for values in seen["policies"]]
    assert len(best) == price_review.READ and len(seen["ratios"]) == price_review.TIMED
    scores = {t.policy: t.outcome.score for t in trials if isinstance(t.outcome, Evaluation)}
    assert [scores[p] for p in best] == sorted(scores.values(), reverse=True)[: len(best)]
    # Timed ones at what they took, the others at what their kernels add up to.
    own = review.prices.first
    assert isinstance(own.anchors, Anchors) and len(own.anchors.timed) == len(
        prices.first.anchors.timed
    ) + len(seen["ratios"])
    true = [
        own.anchors.latency(Sums.of(own.reader.of_policy(p)[0], own.learned.rows)) for p in best
    ]
    true[: len(seen["ratios"])] = [r * own.anchors.latency_ms for r in seen["ratios"]]
    priced = [pricer.costs(p)["latency_ms"] for p in best]
    assert np.median(np.array(true) / priced) == pytest.approx(1, abs=0.02)
    assert (
        np.median([pricer.costs(p)["latency_ms"] / before.costs(p)["latency_ms"] for p in best])
        > 1.1
    )
    assert len(review.notes) == 1 and "timed, took 1." in review.notes[0]
    assert list(tmp_path.glob(".best*")) == []


def test_what_was_pinned_is_what_a_later_attempt_prices_by(
    job: tuple[JobSetup, JobPrices], tmp_path: Path
) -> None:
    setup, prices = job
    pins = Pins()
    first = review_of(setup, prices, tmp_path, pins)
    trials = trials_of(first)
    one = first.again(trials)
    (tmp_path / "other").mkdir()
    # Other timings, and even other trials, make no difference any more.
    other = review_of(setup, prices, tmp_path / "other", pins).again(trials[::-1][:3])
    assert one is not None and other is not None
    for trial in trials:
        assert one.costs(trial.policy) == other.costs(trial.policy)


def test_a_device_that_cannot_be_timed_now_leaves_prices_as_they_were(
    job: tuple[JobSetup, JobPrices], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, prices = job

    def busy(*_: Any, **__: Any) -> None:
        raise MeasurementError("the device is gone")

    monkeypatch.setattr("service.price_review.measure_quietly", busy)
    review = review_of(setup, prices, tmp_path)
    assert review.again(trials_of(review)) is None
    assert review.prices is prices and "the device is gone" in review.notes[0]


def test_nothing_within_the_bounds_is_nothing_to_look_at(
    job: tuple[JobSetup, JobPrices], tmp_path: Path
) -> None:
    review = review_of(*job, tmp_path)
    whole = review.prices.pricer.space.uncompressed()
    assert review.again([Trial(0, whole, Evaluation((0.0,), (0.0, 0.0)))]) is None
    assert review.notes == []


@pytest.mark.parametrize(
    ("changes", "looks"),
    [
        ({}, True),
        ({"agent": {"name": "random", "evaluations": 20}}, False),
        ({"objective": "pareto"}, False),
        ({"objective": "latency", "budget": {}, "max_drop": 0.1}, True),
    ],
)
def test_long_searches_for_one_policy_look(
    job: tuple[JobSetup, JobPrices], tmp_path: Path, changes: dict[str, Any], looks: bool
) -> None:
    setup, prices = job
    other = replace(setup, spec=spec_of(**changes))
    repricing = review_of(other, prices, tmp_path).repricing(lambda _: pytest.fail("not yet"))
    assert (repricing is not None) == looks
    assert repricing is None or repricing.after == EVALUATIONS // 2


def test_a_job_cut_off_after_it_looked_goes_on_to_the_same_policies(
    data_dir: Path, weights: Path, tmp_path: Path
) -> None:
    # Priced from a table: the same prices in every attempt, whatever the machine is doing.
    spec = spec_of(target="sim-bitfusion", budget={"latency": 0.5})
    resumed = False

    class CutOff(LocalContext):
        def record(self, trials: Any) -> None:
            super().record(trials)
            if trials[-1].told >= EVALUATIONS - 6 and not resumed:
                raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        CutOff(spec, tmp_path / "cut", data_dir, Sources(), weights, threads=1) as context,
    ):
        run_job(spec, context)
    resumed = True
    with CutOff(spec, tmp_path / "cut", data_dir, Sources(), weights, threads=1) as context:
        assert context.pin("review", {})["policies"]
        again = run_job(spec, context)
        gone_on = context.recorded()
    with LocalContext(spec, tmp_path / "whole", data_dir, Sources(), weights, threads=1) as context:
        report = run_job(spec, context)
        whole = context.recorded()
    assert [t.policy for t in gone_on] == [t.policy for t in whole]
    assert again["winner"] == report["winner"] and len(whole) == EVALUATIONS
    assert report["met_budget"]


def test_a_job_says_that_its_prices_were_looked_at(
    data_dir: Path, weights: Path, tmp_path: Path
) -> None:
    spec = spec_of()
    with LocalContext(spec, tmp_path, data_dir, Sources(), weights, threads=1) as context:
        report = run_job(spec, context)
        (pinned,) = [context.pin("review", {})]
        trials = context.recorded()
    assert any("learned again in the middle of the search" in note for note in report["notes"])
    assert len(pinned["ratios"]) == price_review.TIMED and len(trials) == EVALUATIONS
    first = sorted(trials, key=lambda t: t.told)[: EVALUATIONS // 2]
    ids = first[0].policy.keys()
    seen = {tuple(t.policy[i] for i in ids) for t in first}
    assert {tuple(values) for values in pinned["policies"]} <= seen
