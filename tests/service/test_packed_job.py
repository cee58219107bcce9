"""A bound on the packed file's size, from the space it opens to the file that keeps it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import trimtab
from agents.uniform import uniform_policy
from compressors.adaround import adaptive_round
from compressors.packed import PACKED_FILE, unpack
from latency_tables import TableStore
from search_spaces.decision import DecisionKind
from search_spaces.packed_decisions import WEIGHT_BITS
from service.demo_networks import digits_cnn
from service.finalists import FinalistPicker
from service.job_prices import JobPrices
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.packed_prices import packed_size
from service.pipeline import run_job
from service.planning import out_of_reach, plan
from service.price_setup import learn_prices
from service.prices import Prices
from service.references import references_of
from service.search_loop import Trial
from service.sources import Sources

SHARE = 0.08


def spec_of(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "model": {"source": "python:service.demo_networks:digits_cnn"},
        "data": {"source": "digits"},
        "budget": {"packed_size": SHARE},
        # Nothing is timed there, and the bound holds all the same.
        "target": "sim-bitfusion",
        "agent": {"name": "random", "evaluations": 4},
        "search_images": 200,
    }
    return JobSpec.model_validate(fields | changes)


def run(spec: JobSpec, out: Path, data_dir: Path) -> dict[str, Any]:
    with LocalContext(spec, out, data_dir, Sources(), None, threads=1) as context:
        return run_job(spec, context)


@pytest.fixture(scope="module", autouse=True)
def _few_samples() -> Iterator[None]:
    """Latencies do not matter here, and sizes are priced well enough by fewer files.

    Neither does accuracy: the network is not trained, and rounding its finalist well would take most of the time.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.price_setup.SAMPLES", 40)
        patch.setattr("service.planning.SAMPLES", 40)
        patch.setattr("service.packed_prices.SAMPLES", 8)
        short = partial(adaptive_round, steps=10)
        patch.setattr("compressors.layer_quantizer.adaptive_round", short)
        yield


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("packed")
    return out, run(spec_of(), out, data_dir)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> tuple[JobSetup, Prices]:
    """Bits alone are decided."""
    spec = spec_of(space={"scope": "quantize"})
    setup = load_job(spec, Sources(), None)
    prices = learn_prices(
        setup.compressor, setup.network.network_space, setup.target, data_dir,
        tmp_path_factory.mktemp("learned"), lambda *_: None, lambda: None, budget=spec.budget,
    )  # fmt: skip
    return setup, prices


def test_the_bound_holds_on_the_file_itself(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    size = (out / PACKED_FILE).stat().st_size
    assert report["compressed"]["packed_bytes"] == size
    whole = report["baseline"]["packed_bytes"]
    assert report["met_budget"] and size <= SHARE * whole
    assert report["budget_limits"]["packed_bytes"] == pytest.approx(SHARE * whole)
    # The packed baseline is the float network without loss, a little smaller than its raw numbers.
    parameters = sum(p.numel() for p in digits_cnn().parameters())
    assert report["weight_bytes"] <= 4 * parameters
    assert 0.8 * report["weight_bytes"] < whole < 1.1 * report["weight_bytes"]
    for reference in report["references"].values():
        assert reference is None or reference["packed_bytes"] > 0


def test_the_uniform_reference_keeps_the_packed_bound_too(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    _, report = finished
    limit = report["budget_limits"]["packed_bytes"]
    reference = report["references"]["uniform_prune_int8"]
    assert reference["packed_bytes"] <= limit < report["references"]["uniform_int8"]["packed_bytes"]
    (note,) = [note for note in report["notes"] if note.startswith("uniform prune + int8 holds")]
    assert re.search(r"at [2-6] bits and keep ratio [01]\.\d\d", note)


def test_the_best_uniform_width_is_the_reference(learned: tuple[JobSetup, Prices]) -> None:
    """Without pruning the ratio plays no part: of the widths within the bound the best one is taken."""
    setup, prices = learned[0], learned[1].pricer
    scorer, space = setup.scorer(), setup.network.network_space.space
    widths = {
        bits: scorer.compress(uniform_policy(space, 1.0, bits)) for bits in WEIGHT_BITS if bits <= 8
    }
    sizes = {bits: packed_size(made) for bits, made in widths.items()}
    assert sizes[3] < sizes[4] < sizes[8]
    limit = 1.02 * prices.margin("packed_bytes") * sizes[4]
    found, notes = references_of(setup, prices.with_limits({"packed_bytes": limit}))
    policy = found["uniform_prune_int8"]
    scores = {
        bits: scorer.score_compressed(made).score
        for bits, made in widths.items()
        if sizes[bits] <= limit
        and prices.with_limits({"packed_bytes": limit}).within(uniform_policy(space, 1.0, bits))
    }
    best = max(scores, key=lambda bits: scores[bits])
    assert policy == uniform_policy(space, 1.0, best)
    assert packed_size(scorer.compress(policy)) <= limit
    assert f"at {best} bits to meet" in notes[0]


def test_prices_too_low_do_not_make_the_reference_miss_the_bound(
    learned: tuple[JobSetup, Prices],
) -> None:
    setup, prices = learned[0], learned[1].pricer
    limit = 0.12 * learned[1].uncompressed["packed_bytes"]
    wrong = prices.corrected("packed_bytes", 0.6).with_limits({"packed_bytes": limit})
    found, _ = references_of(setup, wrong)
    made = setup.scorer().compress(found["uniform_prune_int8"])
    assert packed_size(made) <= limit


def test_a_plan_says_which_bounds_are_out_of_reach() -> None:
    smallest: dict[str, dict[str, float | None] | None] = {
        "latency_ms": None,
        "packed_bytes": {"value": 1387.0, "fraction": 0.0053},
        "macs": {"value": 2112.0, "fraction": 0.025},
    }
    budget = {"latency": 0.1, "packed_size": 0.001, "packed_bytes": 1400, "macs_count": 2000}
    notes = out_of_reach(budget, smallest)
    assert [note.split()[1] for note in notes] == ["packed_size", "macs_count"]
    assert "0.0053" in notes[0] and "2112" in notes[1]


def test_a_job_chooses_where_zeros_lie() -> None:
    setup = load_job(spec_of(space={"zeros": "2:4", "scope": "prune"}), Sources(), None)
    network_space = setup.network.network_space
    zeros = [
        network_space.space.decisions[i] for i in network_space.space.of_kind(DecisionKind.SPARSITY)
    ]
    assert {d.values for d in zeros} == {(50, 100)}
    choices = network_space.choices(network_space.space.policy({zeros[0].id: 50}))
    assert choices.patterns == {zeros[0].module: (2, 4)}
    compressed = setup.compressor.compress(choices)
    assert compressed.zeros.keys() == {zeros[0].module}
    assert 0.45 < float(compressed.zeros[zeros[0].module].float().mean()) < 0.55


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"zeros": "2:4"}, "budget": {"latency": 0.5}}, "needs a bound on packed bytes"),
        ({"space": {"zeros": "2:4", "scope": "quantize"}}, "decides no zeros"),
        ({"space": {"zeros": "5:4"}}, "zeros"),
    ],
)
def test_zeros_that_no_job_can_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_of(**changes)


def test_a_reference_that_is_no_uniform_one_says_so(
    learned: tuple[JobSetup, Prices], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, prices = learned
    limit = 0.2 * prices.uncompressed["packed_bytes"]
    # As if no file of any width had turned out small enough.
    monkeypatch.setattr("service.references._CORRECTIONS", 0)
    bounded = prices.pricer.with_limits({"packed_bytes": limit})
    found, notes = references_of(setup, bounded)
    assert bounded.within(found["uniform_prune_int8"])
    assert notes == [
        "no single bit width at any keep ratio meets the budget; uniform prune + int8 was lowered further, "
        "one decision at a time"
    ]


@pytest.mark.parametrize("key", ["packed_bytes", "macs"])
def test_pruning_alone_is_held_against_one_keep_ratio(
    key: str, tmp_path: Path, data_dir: Path
) -> None:
    """Under a bound on the packed file no zeros are among it, as none are under other bounds."""
    bound = {"packed_size": 0.4} if key == "packed_bytes" else {"macs": 0.4}
    setup = load_job(spec_of(space={"scope": "prune"}, budget=bound), Sources(), None)
    prices = learn_prices(
        setup.compressor, setup.network.network_space, setup.target, data_dir, tmp_path,
        lambda *_: None, lambda: None, budget=bound,
    )  # fmt: skip
    space, limit = setup.network.network_space.space, 0.4 * prices.uncompressed[key]
    bounded = prices.pricer.with_limits({key: limit})
    found, notes = references_of(setup, bounded)
    assert list(found) == ["uniform_prune"]
    policy = found["uniform_prune"]
    kept = {d.kind: d.largest for d in space.decisions}
    zeros = {v for d, v in zip(space.decisions, policy.values) if d.kind is DecisionKind.SPARSITY}
    assert zeros <= {kept.get(DecisionKind.SPARSITY)}
    ratios = [step / 100 for step in range(100, 0, -1)]
    assert any(policy == uniform_policy(space, ratio, None) for ratio in ratios)
    assert "no precision decisions" in notes[0]
    if key == "packed_bytes":
        assert packed_size(setup.scorer().compress(policy)) <= limit
        assert "to meet the packed bound" in notes[1]
    else:
        assert bounded.within(policy) and len(notes) == 1


def test_the_packed_file_is_the_network(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    plan_text, data = unpack((out / PACKED_FILE).read_bytes())
    assert plan_text == (out / "plan.json").read_text()
    assert data == (out / "model.safetensors").read_bytes()
    inputs = torch.rand(8, 1, 8, 8)
    packed, loose = trimtab.load(digits_cnn, out / PACKED_FILE), trimtab.load(digits_cnn, out)
    assert torch.equal(packed(inputs), loose(inputs))
    zeros = {row["path"]: row["zeros"] for row in report["layers"] if row["zeros"]}
    tensors = load_file(out / "model.safetensors")
    for path, share in zeros.items():
        assert float((tensors[f"{path}.weight"] == 0).float().mean()) >= share - 0.02


def test_prices_far_too_low_are_corrected_by_what_finalists_really_take(
    learned: tuple[JobSetup, Prices], tmp_path: Path
) -> None:
    setup, prices = learned
    limit = 0.12 * prices.uncompressed["packed_bytes"]
    wrong = replace(prices, pricer=prices.pricer.corrected("packed_bytes", 0.6))
    store = TableStore(tmp_path / "tables")
    on_targets = JobPrices.of(setup.targets, [wrong])
    picker = FinalistPicker(
        setup, on_targets, {"packed_bytes": limit}, tmp_path, lambda: None, lambda *_: None, store
    )
    whole = picker.pricer.space.uncompressed()
    policy = picker.pricer.fill(picker.pricer.repair(whole))
    # It would not be taken if its file were not packed.
    assert picker.pricer.within(policy)
    assert "packed_bytes" in picker.measure(policy).violations
    (winner,) = picker.pick([Trial(0, policy, setup.scorer().score(policy))], 1)
    assert winner.met and winner.policy != policy
    assert winner.costs.quantities["packed_bytes"] == packed_size(winner.compressed) <= limit


def test_bits_and_zeros_are_offered_for_a_packed_bound_alone() -> None:
    def kinds(**changes: Any) -> set[str]:
        setup = load_job(spec_of(**changes), Sources(), None)
        return {d.kind.value for d in setup.network.network_space.space.decisions}

    assert kinds() >= {"weight_bits", "sparsity"}
    assert not kinds(budget={"size": 0.5}) & {"weight_bits", "sparsity"}
    assert kinds(space={"scope": "prune"}) & {"weight_bits", "sparsity"} == {"sparsity"}
    assert kinds(space={"scope": "quantize"}) == {"precision", "weight_bits"}


def test_the_dry_run_names_the_smallest_packed_file(tmp_path: Path) -> None:
    found = plan(spec_of(space={"scope": "prune"}), Sources(), None, tmp_path)
    smallest = found["smallest"]["packed_bytes"]
    assert smallest["value"] > 0 and smallest["fraction"] < 0.2
    assert json.loads(json.dumps(found))["counts"]["sparsity"] > 0
