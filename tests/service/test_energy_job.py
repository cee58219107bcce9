"""A job that bounds energy on this processor: its counter is a folder of files that move as the processor works."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latency_tables import TableStore
from latency_tables.exclusive import HostToken
from latency_tables.ort import OrtTarget
from search_spaces import BudgetError, Evaluation
from search_spaces.front import FrontAxes
from search_spaces.latency_model import sample_policies
from service.energy_costs import PowerModel
from service.file_results import measure_files
from service.finalists import FinalistPicker
from service.job_prices import JobPrices
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.price_setup import learn_prices
from service.prices import Prices
from service.search_loop import Trial
from service.sources import Sources

BUDGET = {"energy": 0.7}
IDLE_W, BUSY_W = 3.0, 20.0


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.price_setup.SAMPLES", 24)
        patch.setattr("service.price_setup.ANCHORED", 6)
        patch.setattr("service.price_setup.METER_SECONDS", 0.2)
        patch.setattr("service.finalists.MEASURE_SECONDS", 0.2)
        patch.setattr("service.finalists.GROWN", 1)
        patch.setattr("latency_tables.rapl.IDLE_SECONDS", 0.3)
        patch.setattr("service.file_results.METER_SECONDS", 0.3)
        patch.setattr("service.file_results.REPORT_SECONDS", 0.2)
        yield


@pytest.fixture(scope="module")
def powercap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A counter that takes some power all the time, and more while this thread computes."""
    root = tmp_path_factory.mktemp("powercap")
    folder = root / "intel-rapl:0"
    folder.mkdir()
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    stop, part = threading.Event(), folder / ".part"
    clock = time.pthread_getcpuclockid(threading.get_ident())
    begun = time.perf_counter()

    def move() -> None:
        joules = IDLE_W * (time.perf_counter() - begun) + BUSY_W * time.clock_gettime(clock)
        part.write_text(f"{int(1e6 * joules)}\n")
        part.replace(folder / "energy_uj")

    def run() -> None:
        while not stop.wait(0.002):
            move()

    move()
    thread = threading.Thread(target=run)
    thread.start()
    yield root
    stop.set()
    thread.join()


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, powercap: Path
) -> tuple[JobSetup, Prices, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("job")
    torch.set_num_threads(1)
    spec = JobSpec.model_validate(
        {
            "model": {"source": "python:service.demo_networks:digits_cnn"},
            "data": {"source": "digits"},
            "budget": {"latency": 0.7},
            "space": {"scope": "prune"},
            "search_images": 100,
        }
    )
    setup = load_job(spec, Sources(), None)
    # A token of its own: nothing here is held against a time, so it need not wait for who measures.
    target = OrtTarget(token=HostToken(folder / "token" / "host.lock"), powercap=powercap)
    if not target.can_measure:
        pytest.skip("needs an x86 machine")
    spec = spec.model_copy(update={"budget": BUDGET})
    setup = replace(
        setup, spec=spec, targets=(replace(setup.targets[0], spec=spec, target=target),)
    )
    pinned: dict[str, Any] = {}

    def pin(key: str, value: dict[str, Any]) -> dict[str, Any]:
        return pinned.setdefault(key, value)

    prices = learn_prices(
        setup.compressor,
        setup.network.network_space,
        target,
        folder,
        folder,
        lambda *_: None,
        lambda: None,
        budget=BUDGET,
        pin=pin,
        measure_seconds=3.0,
    )
    return setup, prices, pinned


def test_prices_follow_from_metered_networks(job: tuple[JobSetup, Prices, dict[str, Any]]) -> None:
    setup, prices, pinned = job
    model = prices.energy
    assert isinstance(model, PowerModel)
    assert model.meter == "RAPL package-0" and model.metered == len(pinned["prices"]["metered"]) > 4
    assert model.float_w > 0
    whole = pinned["prices"]["metered"]["uncompressed"]
    assert prices.uncompressed["energy_mj"] == whole["net_mj"] < whole["gross_mj"]
    space = prices.pricer.space
    least = prices.pricer.costs(prices.pricer.cheapest("energy_mj"))
    assert 0 < least["energy_mj"] < prices.pricer.costs(space.uncompressed())["energy_mj"]
    assert setup.target.batch == 1


def test_the_winner_is_metered_beside_the_uncompressed_network(
    job: tuple[JobSetup, Prices, dict[str, Any]], tmp_path: Path
) -> None:
    setup, prices, _ = job
    limits = {"energy_mj": 0.7 * prices.uncompressed["energy_mj"]}
    store = TableStore(tmp_path / "tables")
    on_targets = JobPrices.of(setup.targets, [prices])
    picker = FinalistPicker(
        setup, on_targets, limits, tmp_path, lambda: None, lambda *_: None, store
    )
    scorer = setup.scorer()
    trials = []
    for k, policy in enumerate(sample_policies(setup.network.network_space, 2, seed=5)):
        policy = picker.pricer.repair(policy)
        trials.append(Trial(k, policy, scorer.score(policy)))
    assert all(isinstance(trial.outcome, Evaluation) for trial in trials)
    (winner,) = picker.pick(trials, 1)
    assert winner.costs.quantities["energy_mj"] > 0
    assert "energy_mj" not in winner.costs.margins  # metered, so nothing is added
    files = {"baseline": prices.baseline, "compressed": winner.file}
    macs = {"baseline": 1, "compressed": 1}
    found, compared = measure_files(
        setup, prices, files, macs, macs, {}, lambda *_: None, lambda: None
    )
    assert compared.measured and compared.measured_energy
    energy = found["compressed"].to_json()["energy_mj"]
    assert energy["provenance"] == "measured" and "RAPL" in energy["source"]
    assert 0 < energy["value"] < energy["gross"]
    assert compared.energy_ratios["baseline"] == 1.0


def test_members_of_a_front_are_metered_where_energy_is_a_cost_of_it(
    job: tuple[JobSetup, Prices, dict[str, Any]], tmp_path: Path
) -> None:
    setup, prices, _ = job
    (policy,) = sample_policies(setup.network.network_space, 1, seed=5)
    metered = {}
    for costs in (("latency_ms", "energy_mj"), ("latency_ms",)):
        picker = FinalistPicker(
            setup, JobPrices.of(setup.targets, [prices]), {}, tmp_path, lambda: None,
            lambda *_: None, TableStore(tmp_path / "tables"), FrontAxes.of(prices.pricer, costs),
        )  # fmt: skip
        found = picker.measure(policy).costs
        assert found.quantities["energy_mj"] > 0
        metered[costs] = "energy_mj" not in found.margins
    assert list(metered.values()) == [True, False]


def test_without_a_counter_the_job_is_refused_at_its_start(tmp_path: Path) -> None:
    spec = JobSpec.model_validate(
        {
            "model": {"source": "python:service.demo_networks:digits_cnn"},
            "data": {"source": "digits"},
            "budget": {"energy": 0.5},
        }
    )
    if OrtTarget().energy_absent() is None:
        pytest.skip("needs a machine without an energy counter")
    with pytest.raises(BudgetError, match=r"no energy counter.*cuda-torch-h100-batch32"):
        load_job(spec, Sources(), None, data_dir=tmp_path)
