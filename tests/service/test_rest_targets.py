"""What may be a target over REST: devices, tables by their name; energy only where there is some."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from rest_server import SPEC, Running

from latency_tables import (
    HostFingerprint,
    LatencyTable,
    TableStore,
    known_targets,
    parse_target,
    shipped,
)
from latency_tables.ort import OrtTarget

H100 = "cuda-torch-h100-batch32"


def with_board(server: Running) -> None:
    """A table of another machine under the name "board", without energies."""
    host = HostFingerprint("another processor", ("avx2",), 4, "onnxruntime 1.20", "Linux x86_64")
    target = parse_target("x86-ort?batch=2").spec
    table = LatencyTable(
        target, "x86-avx2", host, "2026-01-01T00:00:00+00:00", {}, MappingProxyType({})
    )
    TableStore(server.services.settings.data_dir / "tables").add_imported({"board": table})


def test_targets_are_listed_with_their_tables(server: Running) -> None:
    with_board(server)
    items = {item["name"]: item for item in server.http.get("/v1/targets").json()["items"]}
    assert set(items) == {*known_targets(), "board", H100}
    h100 = items[H100]
    assert h100["table_of"] == "cuda-torch?batch=32" and h100["no_energy"] is None
    assert h100["can_measure"] is False and h100["precisions"] == [32] and h100["options"] == {}
    assert "no energies" in items["board"]["no_energy"]
    assert items["x86-ort"]["table_of"] is None and items["x86-ort"]["options"]["threads"] == 1
    tables = {item["name"]: item for item in server.http.get("/v1/tables").json()["items"]}
    assert tables[H100]["shipped"] and tables[H100]["rows"] == len(shipped.load(H100))
    assert not tables["board"]["shipped"] and tables["board"]["kind"] == "kernels"


def test_a_job_may_name_a_table(server: Running) -> None:
    with_board(server)
    for target, budget in ((H100, {"latency": 0.5, "energy": 0.5}), ("board", {"latency": 0.5})):
        answer = server.http.post("/v1/jobs", json=SPEC | {"target": target, "budget": budget})
        assert answer.status_code == 202, answer.text
        assert server.http.get(answer.headers["location"]).json()["spec"]["target"] == target


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_what_is_no_target_or_has_no_energy_is_refused_at_once(server: Running, path: str) -> None:
    with_board(server)
    cases = [
        (SPEC | {"target": "bord"}, "target", "did you mean 'board'"),
        (SPEC | {"target": f"{H100}?batch=8"}, "target", "takes no options"),
        (SPEC | {"target": "board", "budget": {"energy": 0.5}}, "budget", H100),
        (SPEC | {"space": {"bits": {"weights": [4, 8]}}}, "space.bits", "bound packed_size"),
    ]
    if OrtTarget().energy_absent() is not None:
        cases.append((SPEC | {"budget": {"energy_mj": 2.0}}, "budget", "no energy counter"))
    for body, field, says in cases:
        answer = server.http.post(path, json=body)
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert error["field"] == field and says in error["message"]
    assert server.http.get("/v1/jobs").json()["items"] == []
