"""Which targets a job names: what is refused, what each calls its costs, which file each of them runs."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rest_server import SPEC, Running
from torch import nn

from agents.contract import contract_pricers
from compressors.structure import Structure, analyse, example_input
from latency_tables import (
    Catalog,
    HostFingerprint,
    LatencyTable,
    TableStore,
    TargetError,
    TrimtabError,
    parse_target,
)
from latency_tables.bitfusion_target import BitFusionTarget
from latency_tables.capabilities import Capabilities, CommonCapabilities
from latency_tables.ort import OrtTarget
from search_spaces import Pricer
from search_spaces.quantities import at_target, base_quantity, is_uncertain, target_of
from search_spaces.ranks import OfferedRanks, RankOffer
from service.blobs import checked_name
from service.cli import parser
from service.cli_job import job_document
from service.front_job import quantities_of
from service.job_spec import JobSpec, target_names
from service.local_context import job_key
from service.rank_agreement import AgreedRanks
from service.targets import job_targets

ORT = {"name": "x86-ort", "budget": {"latency": 0.5}}
TWO = {"name": "x86-ort?threads=2", "budget": {"latency": 0.6, "size": 0.4}}
SIM = {"name": "sim-bitfusion", "budget": {"energy": 0.5, "macs": 0.7}}
# Bodies of requests have these or target and budget.
BODY = {key: value for key, value in SPEC.items() if key not in ("target", "budget")}


def spec_of(*targets: dict[str, Any], **changes: Any) -> JobSpec:
    return JobSpec.model_validate(BODY | {"targets": list(targets)} | changes)


def test_a_spec_for_several_targets_is_the_document_it_came_from() -> None:
    spec = spec_of(ORT, TWO)
    document = spec.model_dump(mode="json")
    assert document["targets"] == [ORT, TWO]
    assert "target" not in document and "budget" not in document
    assert JobSpec.model_validate(document) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert target_names(document) == ("x86-ort", "x86-ort?threads=2")
    assert (spec.target, spec.budget) == (ORT["name"], ORT["budget"])
    second = spec.alone(1)
    assert (second.target, second.budget, second.targets) == (TWO["name"], TWO["budget"], None)
    assert second.priced == TWO["budget"]


def test_a_spec_for_one_target_is_the_document_it_always_was() -> None:
    document = JobSpec.model_validate(SPEC).model_dump(mode="json")
    assert "targets" not in document and document["target"] == "x86-ort"
    assert target_names(document) == ("x86-ort",)
    (place,) = JobSpec.model_validate(SPEC).places
    assert place.model_dump() == {"name": "x86-ort", "budget": {"latency": 0.5}}
    schema = JobSpec.model_json_schema()
    assert "budget" not in schema["required"]
    assert {"required": ["targets"]} in schema["oneOf"]


def test_a_resumed_job_must_have_the_same_targets() -> None:
    keys = {
        job_key(spec, None)
        for spec in (
            JobSpec.model_validate(SPEC),
            spec_of(ORT),
            spec_of(ORT, TWO),
            spec_of(TWO, ORT),
            spec_of(ORT, TWO | {"budget": {"latency": 0.6}}),
        )
    }
    assert len(keys) == 5


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"target": "x" * 201, "budget": {"latency": 0.5}}, "target", "at most 200 characters"),
    ({"targets": [ORT], "target": "x86-ort"}, "targets", "takes the place of target and budget"),
    ({"targets": [ORT], "budget": {"size": 0.5}}, "targets", "takes the place of"),
    ({"targets": []}, "targets", "targets is empty; give at least one"),
    ({"targets": [ORT, TWO, SIM, ORT, TWO]}, "targets", "1 to 4 targets, not 5"),
    ({"targets": {"name": "x86-ort"}}, "targets", "valid tuple"),
    ({"targets": [ORT, {"name": "sim-bitfusion"}]}, "targets.1.budget", "required"),
    ({"targets": [{"budget": {"latency": 0.5}}]}, "targets.0.name", "required"),
    ({"targets": [ORT | {"weight": 2}]}, "targets.0.weight", "not permitted"),
    ({"targets": [ORT, SIM | {"budget": {"speed": 1}}]}, "targets.1.budget", "unknown budget key"),
    ({"targets": [ORT | {"budget": {"latency": 2}}]}, "targets.0.budget", "must be below 1"),
    ({"targets": [ORT, SIM | {"budget": {}}]}, "", "objective accuracy needs a budget on every"),
    (
        {"targets": [ORT, SIM | {"budget": {}}], "objective": "latency", "max_drop": 0.01},
        "",
        "bounds the others; sim-bitfusion needs a budget",
    ),
    (
        {
            "targets": [ORT, TWO, SIM],
            "objective": "pareto",
            "costs": ["latency", "energy", "size"],
        },
        "",
        "are 7 costs, as latency and energy count on each",
    ),
]


@pytest.mark.parametrize(("changes", "field", "says"), WRONG)
def test_what_a_spec_may_not_say(changes: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(BODY | changes)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == field
    assert says in error["msg"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_bad_targets_are_problem_documents(server: Running, path: str) -> None:
    names = [
        ([ORT, {**ORT, "name": "x86-ort?batch=1&threads=1"}], "targets.1.name", "are the same"),
        ([ORT, {**SIM, "name": "sim-bitfusio"}], "targets.1.name", "did you mean 'sim-bitfusion'"),
        ([SIM, {**ORT, "name": "x86-ort?cores=2"}], "targets.1.name", "no option 'cores'"),
    ]
    if OrtTarget().energy_absent() is not None:
        names.append(([SIM, {**ORT, "budget": SIM["budget"]}], "targets.1.budget", "no energy"))
    cases = [(BODY | {"targets": targets}, field, says) for targets, field, says in names]
    cases += [(BODY | changes, field or "body", says) for changes, field, says in WRONG]
    for body, field, says in cases:
        answer = server.http.post(path, json=body)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        (error,) = answer.json()["errors"]
        assert error["field"] == field and says in error["message"]
    assert server.http.get("/v1/jobs").json()["items"] == []


def test_a_job_is_queued_with_its_targets(server: Running) -> None:
    body = BODY | {"targets": [ORT, SIM]}
    answer = server.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "a"})
    assert answer.status_code == 202, answer.text
    job = server.http.get(answer.headers["location"]).json()
    assert job["spec"]["targets"] == [ORT, SIM] and "target" not in job["spec"]
    again = server.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "a"})
    assert again.status_code == 200
    other = BODY | {"targets": [SIM, ORT]}
    assert (
        server.http.post("/v1/jobs", json=other, headers={"Idempotency-Key": "a"}).status_code
        == 409
    )


def test_a_table_that_is_this_machines_own_is_the_same_target(tmp_path: Any) -> None:
    host = HostFingerprint("another processor", ("avx2",), 4, "onnxruntime 1.20", "Linux x86_64")
    target = parse_target("x86-ort?batch=2").spec
    table = LatencyTable(
        target, "x86-avx2", host, "2026-01-01T00:00:00+00:00", {}, MappingProxyType({})
    )
    store = TableStore(tmp_path)
    store.add_imported({"board": table})
    board = {"name": "board", "budget": {"latency": 0.5}}
    found = job_targets(spec_of(ORT, board), Catalog(store))
    # The same runtime with two images a run: a file of its own.
    assert [one.artifact for one in found] == ["model.onnx", "model@board.onnx"]
    with pytest.raises(TargetError, match="'board' and 'board' are the same"):
        job_targets(spec_of(board, board), Catalog(store))


def test_each_target_has_its_own_costs_and_what_they_share_has_one_name() -> None:
    more = {"name": "x86-ort?threads=2&batch=8", "budget": {"size": 0.3, "latency_ms": 1.0}}
    again = {"name": "x86-ort?batch=8", "budget": {"size": 0.2}}
    first, sim, eight, last = job_targets(spec_of(ORT, SIM, more, again), Catalog.of(None))
    assert [one.artifact for one in (first, sim, eight, last)] == [
        "model.onnx",
        "model.onnx",
        "model@x86-ort-threads2-batch8.onnx",
        "model@x86-ort-threads2-batch8.onnx",
    ]
    assert all(checked_name(one.artifact) for one in (first, eight))
    assert first.quantity("latency_ms") == "latency_ms"
    assert sim.quantity("latency_ms") == "latency_ms@sim-bitfusion"
    assert sim.quantity("size_bytes") == "size_bytes"
    assert eight.quantity("size_bytes") == last.quantity("size_bytes") == f"size_bytes@{eight.name}"
    assert {one.quantity("macs") for one in (first, sim, eight)} == {"macs"}
    costs = {
        one.quantity(q): float(k)
        for k, one in enumerate((first, sim, eight, last))
        for q in ("latency_ms", "energy_mj", "size_bytes")
    } | {"macs": 9.0}
    assert sim.own(costs) == {"latency_ms": 1, "energy_mj": 1, "size_bytes": 1, "macs": 9}
    assert last.own(costs) == {"latency_ms": 3, "energy_mj": 3, "size_bytes": 3, "macs": 9}
    pins: dict[str, Any] = {}

    def pin(key: str, value: dict[str, Any]) -> dict[str, Any]:
        return pins.setdefault(key, value)

    for one in (first, sim, last):
        one.pin(pin)("prices", {"of": one.place})
    assert pins == {"prices": {"of": 0}, "prices@1": {"of": 1}, "prices@3": {"of": 3}}


def test_names_of_costs() -> None:
    name = at_target("energy_mj", "x86-ort?threads=2")
    assert base_quantity(name) == "energy_mj" and target_of(name) == "x86-ort?threads=2"
    assert target_of("energy_mj") is None and is_uncertain(name) and not is_uncertain("macs")
    pricer = contract_pricers()["joint"]
    policy = pricer.space.uncompressed()
    on_two = Pricer(pricer.space, {"macs": pricer.models["macs"], name: pricer.models["macs"]})
    assert f"{name}_upper" in on_two.costs(policy) and "macs_upper" not in on_two.costs(policy)


class Likes:
    """Capabilities of a runtime that likes multiples of one number."""

    def __init__(self, step: int, precisions: tuple[int, ...], reduce_range: bool) -> None:
        self._step, self.precisions, self.reduce_range = step, precisions, reduce_range

    def channel_step(self, channels: int) -> int:
        return self._step


def test_a_network_uses_only_what_all_targets_run() -> None:
    one: Capabilities = Likes(6, (4, 8, 32), False)
    both = CommonCapabilities.of([one, Likes(4, (2, 8, 16), True)])
    assert both.precisions == (8, 16, 32) and both.reduce_range
    assert both.channel_step(64) == 12
    assert CommonCapabilities.of([one]) is one
    real = CommonCapabilities.of([OrtTarget(), BitFusionTarget(), parse_target("cuda-torch")])
    assert real.precisions == (16, 32) and real.channel_step(64) == 8


def test_ranks_are_those_that_every_target_with_a_say_offers() -> None:
    network = nn.Sequential(nn.Linear(8, 8))
    example = torch.zeros((2, 8))
    structure: Structure = analyse(
        nn.Sequential(nn.Flatten(), nn.Linear(8, 8)), example_input((1, 2, 4))
    )

    def offering(values: dict[str, tuple[int, ...]], **withheld: str) -> RankOffer:
        return lambda *_: OfferedRanks(values, withheld)

    offers = {
        "a": offering({"x": (8, 16, 64), "y": (8, 64), "z": (8, 64)}, w="slower"),
        "b": offering({"x": (16, 32, 64), "y": (16, 64), "w": (8, 64)}, z="slower too"),
        "silent": offering({}),
    }
    found = AgreedRanks(offers)(network, structure, example)
    assert found.values == {"x": (16, 64)}
    assert found.withheld == {
        "y": "no rank suits all of a, b",
        "z": "b: slower too",
        "w": "a: slower",
    }
    alone = AgreedRanks({"a": offers["a"], "silent": offers["silent"]})
    assert set(alone(network, structure, example).values) == {"x", "y", "z"}
    assert AgreedRanks({"silent": offers["silent"]})(network, structure, example) == OfferedRanks()


def test_a_front_is_held_against_the_latency_of_every_target() -> None:
    base = contract_pricers()["joint"]
    models = dict(base.models) | {at_target("latency_ms", "sim-bitfusion"): base.models["macs"]}
    models[at_target("energy_mj", "sim-bitfusion")] = base.models["macs"]
    pricer = Pricer(base.space, models)
    none = [ORT | {"budget": {}}, SIM | {"budget": {}}]
    on_both = {"latency_ms", "latency_ms@sim-bitfusion"}
    unnamed = quantities_of(spec_of(*none, objective="pareto"), pricer)
    assert set(unnamed) == on_both
    named = spec_of(*none, objective="pareto", costs=["size", "latency"])
    assert set(quantities_of(named, pricer)) == {"size_bytes", *on_both}
    # The first target's table knows no energy.
    energetic = spec_of(*none, objective="pareto", costs=["energy", "macs"])
    assert set(quantities_of(energetic, pricer)) == {"energy_mj@sim-bitfusion", "macs"}
    # With other objectives the hypervolume is a record only.
    assert quantities_of(spec_of(TWO, ORT), pricer) == ("latency_ms", "size_bytes")


def test_the_command_line_says_the_same() -> None:
    flags = ["--model", "timm:a", "--data", "digits", "--out", "o", "--budget", "latency=0.5"]
    further = ["--also-target", "x86-ort?threads=2", "latency=0.6", "size=0.4"]
    args = parser().parse_args(["compress", *flags, *further, "--also-target", "sim-bitfusion"])
    document = job_document(args, None)
    assert document["targets"] == [ORT, TWO, {"name": "sim-bitfusion", "budget": {}}]
    assert "target" not in document and "budget" not in document
    plain = job_document(parser().parse_args(["compress", *flags]), None)
    assert plain["target"] == "x86-ort" and "targets" not in plain
    wrong = parser().parse_args(["compress", *flags, "--also-target", "sim-bitfusion", "latency"])
    with pytest.raises(TrimtabError, match="not of the form key=number"):
        job_document(wrong, None)
