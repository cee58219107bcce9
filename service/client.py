"""A client of the REST service, for the command line and for scripts."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from service.errors import ApiError

ENDED = ("succeeded", "failed", "cancelled")
_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job.

    Attributes:
        id: ascending within the job, from 1.
        kind: ``state``, ``attempt``, ``stage``, ``trial``, ``artifact`` or ``warning``.
        data: depends on the kind; see ``service.store``.
        time: seconds since 1970.
    """

    id: int
    kind: str
    data: dict[str, Any]
    time: float


class Client:
    """Talks to one server. Every method raises ApiError with the server's problem document.

    Args:
        url: such as ``http://127.0.0.1:8500``.
        api_key: sent as ``Authorization: Bearer``.
        patience: seconds to go on trying while no server answers (it may be restarting).
        transport: for tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8500",
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        patience: float = 5.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # trust_env off: a proxy of the environment has no business with a local server.
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Jobs

    def submit(self, spec: Mapping[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """Creates a job. A key is made up when none is given, so that a retry makes no second job.

        Args:
            spec: the body of ``POST /v1/jobs``.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._json("POST", "/v1/jobs", json=dict(spec), headers=headers)

    def get(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{quote(job, safe='')}")

    def jobs(self, state: str | None = None) -> Iterator[dict[str, Any]]:
        """All jobs, newest first."""
        return self._pages("/v1/jobs", {"state": state} if state else {})

    def cancel(self, job: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{quote(job, safe='')}/cancel")

    def delete(self, job: str) -> None:
        self._send("DELETE", f"/v1/jobs/{quote(job, safe='')}")

    def trials(self, job: str) -> Iterator[dict[str, Any]]:
        """All trials in the order they were told."""
        return self._pages(f"/v1/jobs/{quote(job, safe='')}/trials", {})

    def policies(self, job: str) -> list[dict[str, Any]]:
        """The Pareto front: search score against predicted latency, feasible trials only."""
        items: list[dict[str, Any]] = self._json("GET", f"/v1/jobs/{quote(job, safe='')}/policies")[
            "items"
        ]
        return items

    def best(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{quote(job, safe='')}/policies/best")

    def hypervolume(self, job: str) -> dict[str, Any]:
        """What the job's front dominates over its evaluations."""
        return self._json("GET", f"/v1/jobs/{quote(job, safe='')}/hypervolume")

    # Progress

    def events(self, job: str, after: int = 0) -> Iterator[Event]:
        """Events as they happen, until the job has ended. Reconnects where it left off."""
        path = f"/v1/jobs/{quote(job, safe='')}/events"
        deadline = time.monotonic() + self.patience
        while True:
            try:
                with self._http.stream(
                    "GET",
                    path,
                    headers={"Last-Event-ID": str(after)},
                    timeout=httpx.Timeout(30, read=60),
                ) as response:
                    _raise_for(response)
                    deadline = time.monotonic() + self.patience
                    for event in _parse(response.iter_lines()):
                        if event is None:
                            return
                        after = event.id
                        deadline = time.monotonic() + self.patience
                        yield event
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise self._silent(error) from error
            # The stream broke before its closing event: go on behind the last one seen.
            time.sleep(_RETRY_SECONDS)

    def wait(
        self,
        job: str,
        on_event: Callable[[Event], None] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Blocks until the job has ended and returns it.

        Raises:
            ApiError: no server answers, or ``timeout`` seconds have passed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        after = 0
        while True:
            # The job before its events: once it has ended, these are complete.
            found = self.get(job)
            if on_event is not None:
                for event in self.history(job, after):
                    after = event.id
                    on_event(event)
            if found["state"] in ENDED:
                return found
            if deadline is not None and time.monotonic() > deadline:
                raise ApiError(f"job {job} is still {found['state']} after {timeout:.0f} s")
            time.sleep(_RETRY_SECONDS)

    def history(self, job: str, after: int = 0) -> list[Event]:
        """Events so far, without waiting for more."""
        path = f"/v1/jobs/{quote(job, safe='')}/history"
        found = self._json("GET", path, params={"after": after})
        return [Event(e["id"], e["kind"], e["data"], e["time"]) for e in found["items"]]

    # Files

    def artifacts(self, job: str) -> list[dict[str, Any]]:
        """``name``, ``size`` and ``sha256`` of each file the job left."""
        found = self._json("GET", f"/v1/jobs/{quote(job, safe='')}/artifacts")
        items: list[dict[str, Any]] = found["items"]
        return items

    def fetch(self, job: str, folder: Path) -> list[Path]:
        """Downloads all artifacts of a job into a folder."""
        written = []
        for artifact in self.artifacts(job):
            name = PurePosixPath(artifact["name"])
            if name.is_absolute() or ".." in name.parts:
                raise ApiError(f"the server offers a file outside of the folder: {name}")
            path = folder.joinpath(*name.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.part")
            url = f"/v1/jobs/{quote(job, safe='')}/artifacts/{quote(str(name))}"
            with self._stream("GET", url) as response, partial.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
            partial.replace(path)
            written.append(path)
        return written

    def upload_weights(self, path: Path) -> dict[str, Any]:
        """Uploads a safetensors file; the answer's ``id`` goes into ``model.weights``."""
        with path.open("rb") as file:
            return self._json(
                "POST",
                "/v1/weights",
                content=file,
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(path.stat().st_size),
                },
                timeout=httpx.Timeout(30, read=600, write=600),
            )

    # What there is

    def plan(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The dry run: decisions, smallest reachable budget, estimated time."""
        return self._json("POST", "/v1/plans", json=dict(spec), timeout=httpx.Timeout(30, read=900))

    def models(self) -> dict[str, Any]:
        return self._json("GET", "/v1/models")

    def data(self) -> dict[str, Any]:
        return self._json("GET", "/v1/data")

    def targets(self) -> dict[str, Any]:
        return self._json("GET", "/v1/targets")

    def tables(self) -> dict[str, Any]:
        return self._json("GET", "/v1/tables")

    def agents(self) -> dict[str, Any]:
        return self._json("GET", "/v1/agents")

    def criteria(self) -> dict[str, Any]:
        return self._json("GET", "/v1/criteria")

    def ready(self) -> bool:
        """True when a server answers and its database is usable."""
        try:
            return self._http.get("/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    # Inside

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        document: dict[str, Any] = self._send(method, path, **options).json()
        return document

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                response = self._http.request(method, path, **options)
                _raise_for(response)
                return response
            except httpx.ConnectError as error:
                if time.monotonic() > deadline:
                    raise self._silent(error) from error
            except httpx.TransportError as error:
                # Anything may have happened on the server; jobs are safe to repeat (they carry a
                # key).
                safe = method == "GET" or path == "/v1/jobs"
                if not safe or time.monotonic() > deadline:
                    raise self._silent(error) from error
            time.sleep(_RETRY_SECONDS)

    def _stream(self, method: str, path: str) -> _Streamed:
        return _Streamed(self, method, path)

    def _pages(self, path: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        cursor: int | None = None
        while True:
            page = self._json("GET", path, params=params | ({"cursor": cursor} if cursor else {}))
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _silent(self, error: httpx.TransportError) -> ApiError:
        return ApiError(
            f"no Trimtab server answers at {self.url} ({type(error).__name__}: {error}); "
            "start one with `trimtab serve`"
        )


class _Streamed:
    """A streamed response whose errors are ApiErrors."""

    def __init__(self, client: Client, method: str, path: str) -> None:
        self._client = client
        self._context = client._http.stream(method, path)

    def __enter__(self) -> httpx.Response:
        try:
            response = self._context.__enter__()
        except httpx.TransportError as error:
            raise self._client._silent(error) from error
        _raise_for(response)
        return response

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.__exit__(kind, error, trace)


def _raise_for(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        problem = response.json()
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        raise ApiError(
            f"the server answered {response.status_code}: {response.text[:200]}"
        ) from None
    fields = [
        f"{item['field']}: {item['message']}"
        for item in problem.get("errors", ())
        if isinstance(item, dict) and {"field", "message"} <= item.keys()
    ]
    raise ApiError("; ".join(fields) or detail, problem)


def _parse(lines: Iterator[str]) -> Iterator[Event | None]:
    """Events of a ``text/event-stream``; None for the closing one."""
    fields: dict[str, list[str]] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        elif "data" in fields or "event" in fields:
            kind = fields.get("event", ["message"])[-1]
            if kind == "end":
                yield None
                return
            document = json.loads("\n".join(fields["data"]))
            yield Event(int(fields["id"][-1]), kind, document["data"], document["time"])
            fields = {}
        else:
            fields = {}
