"""A job's events, as a stream and as a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.routes_jobs import Cursor, JobId, Limit
from service.services import Given, Services
from service.tables import EventRow
from service.transitions import JobState
from service.views import event_view

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
_POLL_SECONDS = 0.3
_PAGE = 500


def _existing(services: Given, job: JobId) -> str:
    """A dependency, because a stream that has begun can no longer answer 404."""
    return services.store.get(job).id


@router.get("/{job}/events", response_class=EventSourceResponse)
async def stream_events(
    services: Given,
    job: Annotated[str, Depends(_existing)],
    last_event_id: Annotated[int, Header(ge=0, lt=2**31)] = 0,
    after: Cursor = 0,
) -> AsyncIterable[ServerSentEvent]:
    """All events from the first, or behind Last-Event-ID; ends with event ``end`` when the job has
    ended.

    Each event's data is ``{"id", "kind", "data", "time"}``.
    """
    seen = max(last_event_id, after)
    while not services.stopping:
        ended, events = await run_in_threadpool(_read, services, job, seen)
        for event in events:
            seen = event.id
            yield ServerSentEvent(data=event_view(event), event=event.kind, id=str(event.id))
        if not events:
            if ended is not None:
                yield ServerSentEvent(data={"state": ended}, event="end")
                return
            await asyncio.sleep(_POLL_SECONDS)


@router.get("/{job}/history")
def list_events(
    services: Given,
    job: Annotated[str, Depends(_existing)],
    after: Cursor = 0,
    limit: Limit = 1000,
) -> dict[str, Any]:
    """Events so far behind ``after``, for clients that poll."""
    return {"items": [event_view(event) for event in services.store.events(job, after, limit)]}


def _read(services: Services, job: str, after: int) -> tuple[str | None, list[EventRow]]:
    # The state before the events: once a job has ended, its events are complete.
    state = JobState(services.store.get(job).state)
    return (state.value if state.ended else None), services.store.events(job, after, _PAGE)
