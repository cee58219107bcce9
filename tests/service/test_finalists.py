"""Finalists are measured: where prices were wrong they are corrected, where budget is left it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_spaces import Evaluation, Policy, Pricer
from search_spaces.latency_model import sample_policies
from service.demo_networks import train_digits_cnn
from service.finalists import FinalistPicker
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.price_setup import Prices, learn_prices
from service.search_loop import Trial
from service.sources import Sources

SPEC = JobSpec.model_validate(
    {
        "model": {"source": "python:service.demo_networks:digits_cnn"},
        "data": {"source": "digits"},
        "budget": {"latency": 0.6},
        "search_images": 200,
    }
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> tuple[JobSetup, Prices]:
    folder = tmp_path_factory.mktemp("job")
    torch.set_num_threads(1)
    train_digits_cnn(folder / "digits.safetensors")
    setup = load_job(SPEC, Sources(), folder / "digits.safetensors")
    prices = learn_prices(
        setup.compressor,
        setup.network.network_space,
        setup.target,
        data_dir,
        folder,
        lambda *_: None,
        lambda: None,
        budget=SPEC.budget,
    )
    return setup, prices


def wrong_by(prices: Prices, factor: float) -> Prices:
    """Prices that call everything so many times as dear as it is."""
    models = dict(prices.pricer.models)
    models["latency_ms"] = models["latency_ms"].scaled(factor)
    return replace(prices, pricer=Pricer(prices.pricer.space, models))


def picker_of(
    job: tuple[JobSetup, Prices], prices: Prices, folder: Path, share: float = 0.6
) -> FinalistPicker:
    limits = {"latency_ms": share * prices.uncompressed["latency_ms"]}
    return FinalistPicker(job[0], prices, limits, folder, lambda: None, lambda *_: None)


def trials_within(picker: FinalistPicker, setup: JobSetup, count: int) -> list[Trial]:
    """Scored random policies that use up the budget as it is priced."""
    found: list[Policy] = []
    for policy in sample_policies(setup.network.network_space, 40, seed=5):
        policy = picker.pricer.fill(picker.pricer.repair(policy))
        if policy not in found:
            found.append(policy)
    scorer = setup.scorer()
    return [Trial(k, p, scorer.score(p)) for k, p in enumerate(found[:count])]


def test_prices_that_are_far_too_low_are_corrected_until_the_budget_is_kept(
    job: tuple[JobSetup, Prices], tmp_path: Path
) -> None:
    setup, prices = job
    picker = picker_of(job, wrong_by(prices, 0.4), tmp_path)
    trials = trials_within(picker, setup, 4)
    (winner,) = picker.pick(trials, 1)
    assert picker.corrections and picker.corrections[0] > 1.3
    assert winner.met
    assert winner.ratio <= 0.6
    assert isinstance(winner.evaluation, Evaluation)


def test_prices_that_are_too_high_leave_budget_that_the_winner_is_grown_into(
    job: tuple[JobSetup, Prices], tmp_path: Path
) -> None:
    setup, prices = job
    picker = picker_of(job, wrong_by(prices, 1.6), tmp_path)
    trials = trials_within(picker, setup, 4)
    best = max(t.outcome.score for t in trials if isinstance(t.outcome, Evaluation))
    (winner,) = picker.pick(trials, 1)
    assert picker.grown > 0
    assert winner.met
    assert winner.evaluation.score >= best


def test_a_timed_network_is_priced_as_it_was_timed(job: tuple[JobSetup, Prices]) -> None:
    setup, prices = job
    space = prices.pricer.space
    policy = sample_policies(setup.network.network_space, 1, seed=9)[0]
    uses = prices.learned.graphs[1].uses
    known = prices.learned.graphs[1].policy
    before = prices.pricer.costs(known)["latency_ms"] / prices.uncompressed["latency_ms"]
    again = prices.with_finalist(list(uses), 1.5 * before)
    after = again.pricer.costs(known)["latency_ms"] / prices.uncompressed["latency_ms"]
    assert before < after
    assert len(again.anchors.timed) == len(prices.anchors.timed) + 1
    # What needs no timing stays.
    assert again.pricer.costs(policy)["macs"] == prices.pricer.costs(policy)["macs"]
    assert space is again.pricer.space
