"""The stream of a job's events."""

from __future__ import annotations

import threading
import time

import pytest
from rest_server import SPEC, Running

from service.client import Event
from service.errors import ApiError
from service.transitions import JobState


def lines(server: Running, job: str, **headers: str) -> list[str]:
    with server.http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(response.iter_lines())


def test_a_stream_ends_with_the_job_and_resumes_where_it_was_left(server: Running) -> None:
    job = server.client().submit(SPEC)["id"]
    lease = server.store.claim(job, server.store.start_attempt(job, 60), "driver", 60)
    seen: list[Event] = []
    reader = threading.Thread(target=lambda: seen.extend(server.client().events(job)))
    reader.start()
    for done in range(3):
        server.store.stage(lease, "search", "scoring", done, 3)
        time.sleep(0.05)
    server.store.finish(lease, JobState.FAILED, reason={"detail": "no"})
    reader.join(20)
    assert not reader.is_alive()
    assert [event.id for event in seen] == list(range(1, len(seen) + 1))
    assert [event.kind for event in seen] == ["state", "attempt", "state", *["stage"] * 3, "state"]
    assert seen[-1].data == {"state": "failed", "reason": {"detail": "no"}}
    assert seen[0].time <= seen[-1].time
    resumed = [line for line in lines(server, job, **{"Last-Event-ID": "5"}) if "id: " in line]
    assert resumed == ["id: 6", "id: 7"]
    assert server.client().history(job, after=6) == seen[6:]
    assert [event.id for event in server.client().events(job, after=6)] == [7]


def test_a_client_that_lost_its_stream_goes_on(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends the stream in the middle, as a restart does."""
    job = server.client().submit(SPEC)["id"]
    events = server.client().events(job)
    assert next(events).kind == "state"
    server.services.stopping = True
    time.sleep(0.5)
    server.services.stopping = False
    server.store.cancel(job)
    assert [event.data for event in events] == [{"state": "cancelled"}]


def test_waiting_tells_every_event_once(server: Running) -> None:
    job = server.client().submit(SPEC)["id"]
    seen: list[Event] = []
    threading.Timer(0.3, server.store.cancel, [job]).start()
    ended = server.client().wait(job, seen.append, timeout=20)
    assert ended["state"] == "cancelled"
    assert [event.id for event in seen] == [1, 2]


def test_waiting_has_an_end(server: Running) -> None:
    job = server.client().submit(SPEC)["id"]
    with pytest.raises(ApiError, match="still queued"):
        server.client().wait(job, timeout=0.1)


def test_a_bad_last_event_id(server: Running) -> None:
    job = server.client().submit(SPEC)["id"]
    answer = server.http.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "x"})
    assert answer.status_code == 422


def test_a_silent_server_is_said_so() -> None:
    from service.client import Client

    with (
        Client("http://127.0.0.1:1", patience=0.1) as client,
        pytest.raises(ApiError, match="trimtab serve"),
    ):
        client.get("0")
