"""Finalists are measured: where prices were wrong they are corrected, where budget is left it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.errors import ScoringError
from evaluation.scoring import PolicyScorer
from latency_tables import TableStore
from search_spaces import Evaluation, Policy
from search_spaces.latency_model import sample_policies
from service.anchors import Anchors, Sums
from service.demo_networks import train_digits_cnn
from service.finalist_kernels import FinalistKernels
from service.finalists import FinalistPicker
from service.job_prices import JobPrices
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.kernel_rows import Rows
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
    anchors = prices.anchors
    assert isinstance(anchors, Anchors)
    wrong = replace(
        anchors,
        float_ms_per_us=factor * anchors.float_ms_per_us,
        integer_ms_per_us=factor * anchors.integer_ms_per_us,
        fixed_ms=factor * anchors.fixed_ms,
    )
    pricer, fit = prices.learned.price(wrong)
    return replace(prices, pricer=pricer, fit=fit, anchors=wrong)


def picker_of(
    job: tuple[JobSetup, Prices], prices: Prices, folder: Path, share: float = 0.6
) -> FinalistPicker:
    limits = {"latency_ms": share * prices.uncompressed["latency_ms"]}
    store = TableStore(folder / "tables")
    on_targets = JobPrices.of(job[0].targets, [prices])
    return FinalistPicker(job[0], on_targets, limits, folder, lambda: None, lambda *_: None, store)


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


@pytest.mark.parametrize(("factor", "calls"), [(1.6, 99), (0.4, 1)], ids=["grown", "repaired"])
def test_a_policy_that_cannot_be_scored_does_not_lose_what_the_search_found(
    factor: float,
    calls: int,
    job: tuple[JobSetup, Prices],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup, prices = job
    picker = picker_of(job, wrong_by(prices, factor), tmp_path)
    trials = trials_within(picker, setup, 4)
    scored, left = PolicyScorer.score_compressed, [None] * calls

    def failing(*args: Any, **kwargs: Any) -> Evaluation:
        if left:
            left.pop()
            raise ScoringError("the compressed network's outputs are not finite")
        return scored(*args, **kwargs)

    monkeypatch.setattr(PolicyScorer, "score_compressed", failing)
    (winner,) = picker.pick(trials, 1)
    assert winner.met and len(left) < calls
    if factor > 1:
        assert picker.grown == 0 and winner.policy in {trial.policy for trial in trials}


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


def test_modelled_kernels_of_a_finalist_are_timed_before_it_is_reported(
    job: tuple[JobSetup, Prices], tmp_path: Path
) -> None:
    setup, prices = job
    graph = prices.learned.graphs[3]
    uses = list(graph.uses)
    measured = [u.kernel for u in uses if prices.table.lookup(u.kernel) is not None]
    # As if two of its kernels had been told from others', one of them four times too dear.
    lost = {kernel.key for kernel in measured[:2]}
    rows = Rows(
        prices.table,
        {
            key: (4 * us[0], 4 * us[1]) if key == measured[0].key else us
            for key, us in prices.learned.rows.used.items()
        },
        pinned_modelled=lost,
    )
    sums = tuple(Sums.of(g.uses, rows) for g in prices.learned.graphs)
    guessed = replace(prices, learned=replace(prices.learned, rows=rows, sums=sums))
    kernels = FinalistKernels(
        setup.target, TableStore(tmp_path / "empty"), lambda *_: None, lambda: None
    )
    settled = kernels.settle(guessed, uses)
    assert kernels.timed == 2 and not kernels.notes
    again = settled.learned.rows
    assert not again.modelled
    # What the fresh table says counts now, not what was guessed.
    for kernel in measured[:2]:
        row = kernels.store.load(setup.target).rows[kernel.key]
        assert row.provenance == "measured"
        assert again.of(kernel) == (row.median_us, row.cold_us)
    assert again.used[measured[2].key] == prices.learned.rows.used[measured[2].key]
    # Nothing is left to be timed.
    assert kernels.settle(settled, uses) is settled
    assert kernels.timed == 2


def test_a_finalist_whose_kernels_were_all_measured_costs_no_timing(
    job: tuple[JobSetup, Prices], tmp_path: Path
) -> None:
    setup, prices = job

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be timed")

    kernels = FinalistKernels(setup.target, TableStore(tmp_path), refuse, lambda: None)
    uses = [u for u in prices.learned.graphs[2].uses if prices.table.lookup(u.kernel) is not None]
    assert kernels.settle(prices, uses) is prices
