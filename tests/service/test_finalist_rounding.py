"""Finalists and references rounded adaptively: which are, what is kept, and what a fault leaves as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agents.uniform import uniform_policy
from compressors import Compressed
from compressors.adaround import adaptive_round
from compressors.loading import PLAN_FILE
from compressors.packed import PACKED_FILE, pack_network
from compressors.plan import Plan
from search_spaces import Policy, Pricer
from search_spaces.budget import PACKED
from search_spaces.macs_model import macs_model
from service.demo_networks import DigitsNetwork, train_digits_cnn
from service.file_check import FileCosts
from service.finalist_rounding import FinalistRounding, recipe_json
from service.finalists import Finalist
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.packed_prices import packed_size
from service.pipeline import run_job
from service.sources import Sources

WIDTH = 20
# Where 4 bits everywhere do not fit.
SHARE = 0.13
NOTE = "adaptive rounding of "


def spec_of(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "model": {"source": "python:service.demo_networks:digits_cnn"},
        "data": {"source": "digits"},
        "budget": {"packed_size": SHARE},
        # Nothing is timed there, and the bound holds all the same.
        "target": "sim-bitfusion",
        "space": {"scope": "quantize"},
        "agent": {"name": "random", "evaluations": 3},
        "search_images": 200,
    }
    return JobSpec.model_validate(fields | changes)


@pytest.fixture(scope="module", autouse=True)
def _little_work() -> Iterator[None]:
    """What is kept and what is left out is the same for a narrower network, trained less, and after fewer steps."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DigitsNetwork.__init__, "__defaults__", (WIDTH, 10))
        patch.setattr("service.demo_networks._EPOCHS", 2)
        patch.setattr("service.price_setup.SAMPLES", 24)
        patch.setattr("service.packed_prices.SAMPLES", 8)
        short = partial(adaptive_round, steps=80)
        patch.setattr("compressors.layer_quantizer.adaptive_round", short)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the narrower network, in place of those that the other tests share."""
    file = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    train_digits_cnn(file)
    return file


@dataclass(frozen=True)
class Done:
    """A finished job: its folder and its report."""

    out: Path
    report: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        return [note for note in self.report["notes"] if note.startswith(NOTE)]

    @property
    def policy(self) -> Policy:
        return Policy.from_json(json.loads((self.out / "policy.json").read_text()))

    @property
    def bits(self) -> list[int]:
        plan = Plan.from_json(json.loads((self.out / PLAN_FILE).read_text()))
        return [scale.bits for scale in plan.weights.values()]


class Jobs:
    """Runs jobs on the trained network."""

    def __init__(self, weights: Path, data_dir: Path) -> None:
        self.weights, self._data_dir = weights, data_dir

    def run(
        self, spec: JobSpec, out: Path, context_class: type[LocalContext] = LocalContext
    ) -> Done:
        with context_class(spec, out, self._data_dir, Sources(), self.weights, 1) as context:
            return Done(out, run_job(spec, context))


class CutOff(LocalContext):
    """Interrupted when it is about to round its finalist."""

    def stage(self, name: str, message: str = "", done: int = 0, total: int = 0) -> None:
        if message == "rounding adaptively":
            raise KeyboardInterrupt
        super().stage(name, message, done, total)


@pytest.fixture(scope="module")
def jobs(weights: Path, data_dir: Path) -> Jobs:
    return Jobs(weights, data_dir)


@pytest.fixture(scope="module")
def rounded(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Cut off before it rounds its finalist, and resumed."""
    out = tmp_path_factory.mktemp("rounded")
    with pytest.raises(KeyboardInterrupt):
        jobs.run(spec_of(), out, CutOff)
    assert not (out / "report.json").exists()
    return jobs.run(spec_of(), out)


@pytest.fixture(scope="module")
def nearest(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Done:
    spec = spec_of(recipe={"adaround": False})
    return jobs.run(spec, tmp_path_factory.mktemp("nearest"))


@dataclass(frozen=True)
class Loaded:
    """A job before its search."""

    setup: JobSetup

    def pricer(self, **limits: float) -> Pricer:
        """Prices play no part here: bounds are held against files."""
        macs = macs_model(self.setup.network.network_space)
        return Pricer(self.setup.network.network_space.space, {"macs": macs, PACKED: macs}, limits)


@pytest.fixture(scope="module")
def loaded(weights: Path) -> Loaded:
    return Loaded(load_job(spec_of(), Sources(), weights))


# whole jobs


def test_a_job_below_8_bits_rounds_its_finalist_and_its_reference(
    rounded: Done, loaded: Loaded
) -> None:
    report = rounded.report
    assert min(rounded.bits) < 8
    finalist, reference = rounded.notes
    assert finalist.startswith(f"{NOTE}finalist {report['winner']}: search score ")
    assert reference.startswith(f"{NOTE}reference uniform_prune_int8: search score ")
    assert finalist.endswith(", kept") and reference.endswith(", kept")
    assert report["recipe"]["adaround"] and report["recipe"]["bias_correction"]

    setup = loaded.setup
    plain = setup.scorer().score(rounded.policy).score
    better = report["search_score"]["winner"]
    assert plain < better and f"{plain:.4f} -> {better:.4f}" in finalist
    # The search went by nearest rounding.
    assert not setup.compressor.recipe.adaround
    # What was shipped is what was scored: on the policy's grid, with other integers.
    compressed = setup.compressor.compress(setup.network.network_space.choices(rounded.policy))
    shipped = load_file(rounded.out / "model.safetensors")
    paths = compressed.plan.weights
    assert rounded.bits == [scale.bits for scale in paths.values()]
    moved = [
        not torch.equal(shipped[f"{path}.weight"], compressed.network.get_submodule(path).weight)
        for path in paths
    ]
    assert any(moved)


def test_the_packed_bound_is_held_against_the_file_as_it_was_rounded(rounded: Done) -> None:
    report = rounded.report
    size = (rounded.out / PACKED_FILE).stat().st_size
    limit = report["budget_limits"][PACKED]
    assert report["compressed"]["packed_bytes"] == size <= limit and report["met_budget"]
    assert report["references"]["uniform_prune_int8"]["packed_bytes"] <= limit


def test_a_job_that_wants_no_adaptive_rounding_has_none(rounded: Done, nearest: Done) -> None:
    assert nearest.policy == rounded.policy and nearest.bits == rounded.bits
    assert not nearest.notes and not nearest.report["recipe"]["adaround"]
    score, other = (done.report["search_score"]["winner"] for done in (nearest, rounded))
    assert score < other
    sizes = [
        done.report["references"]["uniform_prune_int8"]["packed_bytes"]
        for done in (nearest, rounded)
    ]
    assert sizes[0] != sizes[1]


def test_a_job_cut_off_before_its_rounding_delivers_what_the_rounding_gives(
    rounded: Done, loaded: Loaded
) -> None:
    setup = loaded.setup
    rounding = FinalistRounding(setup)
    found = rounding.finalist(finalist_of(setup, rounded.policy), loaded.pricer())
    assert rounding.notes == rounded.notes[:1]
    assert found.evaluation.score == rounded.report["search_score"]["winner"]
    data = pack_network(found.compressed.network, found.compressed.plan)
    assert (rounded.out / PACKED_FILE).read_bytes() == data


def test_a_fault_in_the_rounding_leaves_the_job_what_it_found(
    jobs: Jobs, nearest: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes\nat somewhere")

    monkeypatch.setattr("compressors.layer_quantizer.adaptive_round", broken)
    done = jobs.run(spec_of(), tmp_path)
    why = (
        "left out, as it failed: RuntimeError: can't allocate memory: you tried to allocate 9 bytes"
    )
    assert [note.split(": ", 1)[1] for note in done.notes] == [why, why]
    assert not done.report["recipe"]["adaround"] and done.report["met_budget"]
    for name in ("model.safetensors", PLAN_FILE, PACKED_FILE):
        assert (tmp_path / name).read_bytes() == (nearest.out / name).read_bytes()


# which networks


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [False, True]),
        ({"recipe": {"adaround": True}}, [True, True]),
        ({"recipe": {"adaround": False}}, [False, False]),
        ({"finetune": {"epochs": 1}}, [False, False]),
    ],
    ids=["null", "true", "false", "fine-tuned"],
)
def test_who_is_rounded_follows_from_the_job_and_the_bits(
    changes: dict[str, Any], wanted: list[bool], loaded: Loaded
) -> None:
    setup = loaded.setup
    rounding = FinalistRounding(replace(setup, spec=spec_of(**changes)))
    space = setup.network.network_space.space
    plans = [setup.scorer().compress(uniform_policy(space, 1.0, bits)).plan for bits in (8, 4)]
    assert [rounding.wants(plan) for plan in plans] == wanted
    assert not rounding.wants(Plan(input_shape=setup.input_shape))


# one network at a time


def three_bits(setup: JobSetup) -> Policy:
    return uniform_policy(setup.network.network_space.space, 1.0, 3)


def finalist_of(setup: JobSetup, policy: Policy) -> Finalist:
    made = setup.scorer().compress(policy)
    costs = FileCosts(1.0, {"latency_ms": 1.0, PACKED: packed_size(made)}, {})
    return Finalist(policy, made, setup.scorer().score_compressed(made), (Path("none"),), costs, {})


def said(rounding: FinalistRounding) -> Sequence[str]:
    return [note.split(", ", 1)[1] for note in rounding.notes]


def test_a_finalist_is_rounded_where_that_scores_better(loaded: Loaded) -> None:
    setup = loaded.setup
    rounding, finalist = FinalistRounding(setup), finalist_of(setup, three_bits(setup))
    pricer = loaded.pricer()
    better = rounding.finalist(finalist, pricer)
    assert better.policy == finalist.policy and better.met
    assert better.evaluation.score > finalist.evaluation.score
    assert better.costs.quantities[PACKED] == packed_size(better.compressed)
    assert better.costs.quantities["latency_ms"] == 1.0
    assert rounding.kept == {finalist.policy.digest} and said(rounding) == ["kept"]
    assert recipe_json(setup, better.compressed.plan, True)["adaround"]

    hard_to_beat = replace(finalist, evaluation=replace(finalist.evaluation, scores=(1.0,)))
    assert rounding.finalist(hard_to_beat, pricer) is hard_to_beat
    assert said(rounding)[1] == "left out"


def test_a_finalist_never_leaves_its_packed_bound_by_rounding(
    loaded: Loaded,
) -> None:
    setup = loaded.setup
    finalist = finalist_of(setup, three_bits(setup))
    size = finalist.costs.quantities[PACKED]
    rounding = FinalistRounding(setup)
    larger = rounding.finalist(finalist, loaded.pricer()).costs.quantities[PACKED]
    # Or the bounds below would say nothing.
    assert size < larger
    # The second is missed as it is, and would be by more.
    for limit in (larger - 1, size - 1):
        violations = finalist.costs.violations({PACKED: limit}, 0.0)
        before = replace(finalist, violations=violations)
        assert before.met == (limit >= size)
        assert rounding.finalist(before, loaded.pricer(**{PACKED: limit})) is before
        assert said(rounding)[-1] == (
            f"left out, as its packed file of {larger} bytes misses the bound of {max(limit, size):.0f}"
        )


def test_a_reference_is_held_against_the_bound_that_it_keeps(
    loaded: Loaded,
) -> None:
    setup = loaded.setup
    policy = three_bits(setup)
    made = setup.scorer().compress(policy)
    size = packed_size(made)
    rounding = FinalistRounding(setup)

    def of(limit: float) -> Compressed:
        return rounding.reference("it", policy, made, loaded.pricer(**{PACKED: limit}))

    better = of(2.0 * size)
    scorer = setup.scorer()
    assert scorer.score_compressed(better).score > scorer.score_compressed(made).score
    assert of(float(size)) is made and "misses the bound" in rounding.notes[-1]
    # All int8 need not keep the bound of a job for few bits.
    assert packed_size(of(0.5 * size)) == packed_size(better)
    assert rounding.notes[0] == rounding.notes[2] and not rounding.kept


def test_a_rounding_that_fails_loses_no_finalist_and_no_reference(
    loaded: Loaded,
) -> None:
    setup = loaded.setup
    finalist = finalist_of(setup, three_bits(setup))

    def broken(outputs: torch.Tensor, _targets: torch.Tensor) -> torch.Tensor:
        return torch.full((len(outputs),), torch.nan)

    faulty = replace(setup, data=replace(setup.data, evaluate=broken))
    rounding = FinalistRounding(faulty)
    assert rounding.finalist(finalist, loaded.pricer()) is finalist and not rounding.kept
    made = finalist.compressed
    assert rounding.reference("it", finalist.policy, made, loaded.pricer()) is made
    why = "left out, as it failed: the data's metric gave a value that is not finite"
    assert rounding.notes == [
        f"{NOTE}finalist {finalist.policy.digest}: {why}", f"{NOTE}reference it: {why}"
    ]  # fmt: skip


def test_a_network_left_float_is_not_rounded(loaded: Loaded) -> None:
    setup = loaded.setup
    finalist = finalist_of(setup, three_bits(setup))
    plain = replace(finalist.compressed, plan=Plan(input_shape=setup.input_shape))
    rounding = FinalistRounding(setup)
    whole = replace(finalist, compressed=plain)
    assert rounding.finalist(whole, loaded.pricer()) is whole and not rounding.notes
    told = recipe_json(setup, plain.plan, False)
    assert not told["adaround"] and not told["bias_correction"]
