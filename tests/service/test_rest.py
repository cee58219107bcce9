"""The REST contract over real HTTP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rest_server import SPEC, Running, serving

from service.contract import trial
from service.errors import ApiError
from service.front import pareto
from service.store import Lease
from service.tables import Artifact
from service.transitions import JobState


def changed(**fields: Any) -> dict[str, Any]:
    return SPEC | fields


def running_job(server: Running, spec: dict[str, Any] = SPEC) -> Lease:
    job = server.client().submit(spec)["id"]
    return server.store.claim(job, server.store.start_attempt(job, 60), "driver", 60)


def test_a_job_is_accepted_and_found_again(server: Running) -> None:
    answer = server.http.post("/v1/jobs", json=SPEC)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "queued" and job["name"] == "digits" and job["reason"] is None
    found = server.http.get(answer.headers["location"]).json()
    assert found["spec"]["agent"] == SPEC["agent"]
    assert found["spec"]["search_images"] == 2000
    (listed,) = server.http.get("/v1/jobs").json()["items"]
    assert listed["id"] == job["id"] and "spec" not in listed


def test_the_same_key_gives_the_same_job(server: Running) -> None:
    headers = {"Idempotency-Key": "k"}
    first = server.http.post("/v1/jobs", json=SPEC, headers=headers)
    # Defaults written out are the same body.
    again = server.http.post(
        "/v1/jobs", json=SPEC | {"search_images": 2000, "max_seconds": None}, headers=headers
    )
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    other = server.http.post("/v1/jobs", json=changed(name="other"), headers=headers)
    assert other.status_code == 409
    assert len(server.http.get("/v1/jobs").json()["items"]) == 1


BAD_BODIES: dict[str, tuple[Any, str]] = {
    "unknown model": (changed(model={"source": "timm:resnet_of_mine"}), "model.source"),
    "malformed model": (changed(model={"source": "/etc/passwd"}), "model.source"),
    "disallowed model": (changed(model={"source": "python:os:getcwd"}), "model.source"),
    "disallowed data": (changed(data={"source": "python:os:getcwd"}), "data.source"),
    "unregistered folder": (changed(data={"source": "imagefolder:mine"}), "data.source"),
    "unknown data": (changed(data={"source": "mnist"}), "data.source"),
    "unknown target": (changed(target="z80-ort"), "target"),
    "unknown target option": (changed(target="x86-ort?turbo=1"), "target"),
    "unknown agent": (changed(agent={"name": "oracle"}), "agent.name"),
    "no evaluations": (changed(agent={"evaluations": 0}), "agent.evaluations"),
    "unknown budget key": (changed(budget={"speed": 0.5}), ""),
    "budget above one": (changed(budget={"latency": 1.5}), ""),
    "budget is text": (changed(budget={"latency": "half"}), ""),
    "no budget": (changed(budget={}), ""),
    "unknown field": (changed(colour="red"), "colour"),
    "unknown nested field": (changed(space={"scoop": "joint"}), "space.scoop"),
    "unknown calibration": (changed(recipe={"calibration": "guess"}), "recipe.calibration"),
    "unknown option": (changed(recipe={"adaptive": True}), "recipe.adaptive"),
    "options at odds": (changed(recipe={"adaround": True}, finetune={"epochs": 1}), ""),
    "unknown weights": (
        changed(model={"source": SPEC["model"]["source"], "weights": "0" * 64}),
        "model.weights",
    ),
    "missing model": ({k: v for k, v in SPEC.items() if k != "model"}, "model"),
    "not an object": ([1, 2], ""),
}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_bad_bodies_are_refused_at_once_and_change_nothing(server: Running, path: str) -> None:
    before = server.snapshot()
    for what, (body, field) in BAD_BODIES.items():
        answer = server.http.post(path, json=body)
        problem = answer.json()
        assert answer.status_code == 422, what
        assert answer.headers["content-type"] == "application/problem+json", what
        assert problem["status"] == 422 and problem["title"] and problem["detail"], what
        assert problem["type"].startswith("urn:trimtab:problem:"), what
        if field:
            assert [item["field"] for item in problem["errors"]] == [field], what
    assert server.snapshot() == before


def test_a_body_that_is_no_json(server: Running) -> None:
    answer = server.http.post(
        "/v1/jobs", content=b"{nope", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "body"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/jobs/000000000000", 404),
        ("GET", "/v1/jobs/000000000000/events", 404),
        ("GET", "/v1/jobs/000000000000/trials", 404),
        ("POST", "/v1/jobs/000000000000/cancel", 404),
        ("DELETE", "/v1/jobs/000000000000", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/jobs", 405),
        ("GET", "/v1/jobs/..%2F..%2Fetc", 404),
        ("GET", "/v1/jobs/ABC", 422),
        ("GET", "/v1/jobs?state=asleep", 422),
        ("GET", "/v1/jobs?limit=0", 422),
        ("GET", "/v1/jobs?cursor=99999999999999999999", 422),
        ("GET", "/v1/weights/nope", 404),
    ],
)
def test_every_error_is_a_problem_document(
    server: Running, method: str, path: str, status: int
) -> None:
    answer = server.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_what_nobody_expected_is_told_by_an_id_only(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(type(server.store), "get", broken)
    answer = server.http.get("/v1/jobs/000000000000")
    assert answer.status_code == 500
    assert "hunter2" not in answer.text and "Traceback" not in answer.text
    id = answer.json()["instance"].rsplit(":", 1)[-1]
    assert id in caplog.text and "hunter2" in caplog.text


def test_cancelling_and_deleting(server: Running) -> None:
    client = server.client()
    queued = client.submit(SPEC)["id"]
    assert client.cancel(queued)["state"] == "cancelled"
    client.delete(queued)
    lease = running_job(server)
    assert client.cancel(lease.job)["state"] == "cancelling"
    with pytest.raises(ApiError) as refused:
        client.delete(lease.job)
    assert refused.value.problem["status"] == 409
    server.store.finish(lease, JobState.CANCELLED)
    with pytest.raises(ApiError):
        client.get(queued)
    done = running_job(server)
    server.store.finish(done, JobState.SUCCEEDED, report={})
    with pytest.raises(ApiError) as late:
        client.cancel(done.job)
    assert late.value.problem["status"] == 409


def test_trials_in_pages_and_the_pareto_front(server: Running) -> None:
    lease = running_job(server)
    # Latency rises with the number; number 2 is beaten by 1, number 4 is over the budget.
    for number, score in enumerate((0.3, 0.5, 0.4, 0.6, 0.9)):
        record = trial(number, score)
        if number == 4:
            assert record.evaluation is not None
            record.evaluation["violations"]["latency_ms"] = 0.1
        server.store.record_trials(lease, [record])
    page = server.http.get(f"/v1/jobs/{lease.job}/trials?limit=2").json()
    assert [item["number"] for item in page["items"]] == [0, 1]
    assert page["next_cursor"] == 2
    client = server.client()
    assert [item["number"] for item in client.trials(lease.job)] == [0, 1, 2, 3, 4]
    assert [item["number"] for item in client.policies(lease.job)] == [0, 1, 3]
    best = client.best(lease.job)
    assert best["number"] == 3 and best["policy"] == {"conv1.keep": 11, "fc.bits": 8}
    assert client.get(lease.job)["best"]["number"] == 3


def test_no_best_policy_before_the_first_feasible_trial(server: Running) -> None:
    lease = running_job(server)
    assert server.http.get(f"/v1/jobs/{lease.job}/policies").json() == {"items": []}
    assert server.http.get(f"/v1/jobs/{lease.job}/policies/best").status_code == 404


def test_the_best_policy_of_objective_latency_is_the_fastest_within_the_drop(
    server: Running,
) -> None:
    lease = running_job(server, changed(objective="latency", max_drop=0.01, budget={"size": 0.9}))
    # Later trials are slower here; the first is the fastest and ruins the network.
    for number, drop in enumerate((0.5, 0.008, 0.002)):
        made = trial(number, 0.3)
        assert made.evaluation is not None
        made.evaluation["top1_drop"] = [drop, drop, drop]
        server.store.record_trials(lease, [made])
    assert server.client().best(lease.job)["number"] == 1
    assert server.client().get(lease.job)["best"]["number"] == 1


def test_a_front_has_one_entry_of_equals() -> None:
    twins = [trial(0, 0.5), trial(1, 0.5)]
    for twin in twins:
        assert twin.evaluation is not None
        twin.evaluation["costs"]["latency_ms"] = 2.0
    assert [item["number"] for item in pareto(twins)] == [0]


def test_artifacts_are_served_whole_and_confined(server: Running, tmp_path: Path) -> None:
    lease = running_job(server)
    content = bytes(range(256)) * 5000
    file = tmp_path / "model"
    artifacts = []
    for name in ("report.html", "sub/model.bin"):
        file.write_bytes(content)
        stored = server.services.blobs.put_artifact(lease.job, name, file)
        artifacts.append(
            Artifact(
                job=lease.job, name=name, path=stored.path, size=stored.size, sha256=stored.sha256
            )
        )
    server.store.put_artifacts(lease, artifacts)
    client = server.client()
    listed = client.artifacts(lease.job)
    assert [item["name"] for item in listed] == ["report.html", "sub/model.bin"]
    assert listed[0]["sha256"] == hashlib.sha256(content).hexdigest()
    paths = client.fetch(lease.job, tmp_path / "out")
    assert [path.read_bytes() for path in paths] == [content, content]
    page = server.http.get(f"/v1/jobs/{lease.job}/artifacts/report.html")
    assert "sandbox" in page.headers["content-security-policy"]
    for name in ("nothing", "..%2F..%2F..%2Fdriver.json", "%2Fetc%2Fpasswd"):
        assert server.http.get(f"/v1/jobs/{lease.job}/artifacts/{name}").status_code == 404
    server.store.finish(lease, JobState.SUCCEEDED, report={"ok": True})
    client.delete(lease.job)
    assert not (server.services.settings.data_dir / "jobs" / lease.job).exists()


def test_the_catalogue(server: Running) -> None:
    client = server.client()
    assert "amc" in [item["name"] for item in client.agents()["items"]]
    assert {"timm", "torchvision", "python"} == {i["kind"] for i in client.models()["items"]}
    assert "digits" in [item["kind"] for item in client.data()["items"]]
    (target,) = [item for item in client.targets()["items"] if item["name"] == "x86-ort"]
    assert target["options"] == {"threads": 1, "batch": 1} and target["precisions"]
    assert all(item["shipped"] for item in client.tables()["items"])  # none measured yet


def test_health_and_metrics(server: Running) -> None:
    assert server.http.get("/healthz").json() == {"status": "ok"}
    assert server.http.get("/readyz").status_code == 200
    lease = running_job(server)
    server.store.record_trials(lease, [trial(0)])
    server.http.get(f"/v1/jobs/{lease.job}")
    text = server.http.get("/metrics").text
    assert 'trimtab_jobs{state="running"} 1.0' in text
    assert "trimtab_trials_recorded 1.0" in text
    line = 'trimtab_requests_total{method="GET",route="/v1/jobs/{job}",status="200"} 1.0'
    assert line in text
    with server.store.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    assert server.http.get("/readyz").status_code == 503


def test_openapi_shows_job_examples_that_are_valid(server: Running) -> None:
    from service.job_spec import JobSpec

    document = server.http.get("/openapi.json").json()
    operation = document["paths"]["/v1/jobs"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    for example in examples.values():
        JobSpec.model_validate(example["value"])
    assert "application/problem+json" in operation["responses"]["422"]["content"]


def test_a_dry_run_answers_with_the_problem_of_its_process(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A target is checked at once, weights that do not fit only where the network is built.
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file = len(header).to_bytes(8, "little") + header + bytes(4)
    id = server.http.post("/v1/weights", content=file).json()["id"]
    answer = server.http.post("/v1/plans", json=changed(model=SPEC["model"] | {"weights": id}))
    assert answer.status_code == 422 and answer.json()["type"] == "urn:trimtab:problem:weights"


# Who may ask


def test_without_a_key_nobody_gets_past_v1(tmp_path: Path) -> None:
    with serving(tmp_path / "data", api_key="secret") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            for path in ("/v1/jobs", "/v1/nothing", "/v1"):
                answer = server.http.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["content-type"] == "application/problem+json"
        assert server.http.post("/v1/jobs", json=SPEC).status_code == 401
        assert server.http.get("/healthz").status_code == 200
        assert list(server.client("secret").jobs()) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
)
def test_foreign_pages_are_refused(server: Running, headers: dict[str, str]) -> None:
    answer = server.http.post("/v1/jobs", json=SPEC, headers=headers)
    assert answer.status_code == 403
    assert server.store.counts()["queued"] == 0


def test_our_own_pages_are_served(server: Running) -> None:
    assert server.http.get("/v1/jobs", headers={"Origin": server.url}).status_code == 200


@pytest.mark.parametrize(
    "post",
    [
        lambda http, body: http.post("/v1/jobs", content=body),
        lambda http, body: http.post("/v1/jobs", content=iter([body[:100], body[100:]])),
    ],
    ids=["said", "unsaid"],
)
def test_a_huge_body_is_refused(server: Running, post: Callable[[Any, bytes], Any]) -> None:
    body = json.dumps(changed(name="x" * 2_000_000)).encode()
    answer = post(server.http, body)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
