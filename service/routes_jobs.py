"""Jobs and what belongs to them."""

from __future__ import annotations

import mimetypes
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Response
from fastapi.responses import StreamingResponse

from search_spaces.front import FrontAxes
from service.errors import NotFoundError
from service.examples import JOB_EXAMPLES
from service.front import best_of
from service.front_job import PIN, hypervolume_json, policies_of
from service.job_spec import JobSpec
from service.services import Given
from service.transitions import JobState
from service.views import artifact_view, job_line, job_view, trial_view

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(pattern="^[0-9a-f]{1,32}$")]
Limit = Annotated[int, Query(ge=1, le=1000)]
# Within what both databases can hold.
Cursor = Annotated[int, Query(ge=0, lt=2**31)]
Key = Annotated[str | None, Header(min_length=1, max_length=200)]


@router.post("", status_code=202)
def create_job(
    services: Given,
    response: Response,
    spec: Annotated[JobSpec, Body(openapi_examples=JOB_EXAMPLES)],
    idempotency_key: Key = None,
) -> dict[str, Any]:
    """Queues a job. The same Idempotency-Key with the same body gives the same job again (200)."""
    services.check(spec)
    created = services.store.create(spec.model_dump(mode="json"), idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{created.job.id}"
    if not created.fresh:
        response.status_code = 200
    return job_view(created.job)


@router.get("")
def list_jobs(
    services: Given,
    state: JobState | None = None,
    cursor: Cursor | None = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Newest first, without specs and reports."""
    jobs, following = services.store.jobs(state, cursor, limit)
    return {"items": [job_line(job) for job in jobs], "next_cursor": following}


@router.get("/{job}")
def get_job(services: Given, job: JobId) -> dict[str, Any]:
    """State, progress, best trial so far; the report or the reason once it has ended."""
    return job_view(services.store.get(job))


@router.post("/{job}/cancel", status_code=202)
def cancel_job(services: Given, job: JobId) -> dict[str, Any]:
    """A queued job ends at once; a running one as soon as its driver has stopped."""
    return job_view(services.store.cancel(job))


@router.delete("/{job}", status_code=204)
def delete_job(services: Given, job: JobId) -> None:
    """Forgets an ended job and removes its files."""
    services.store.delete(job)
    services.blobs.delete_job(job)


@router.get("/{job}/trials")
def list_trials(
    services: Given, job: JobId, cursor: Cursor = 0, limit: Limit = 200
) -> dict[str, Any]:
    """In the order they were told to the agent."""
    services.store.get(job)
    trials, following = services.store.trials(job, cursor, limit)
    return {"items": [trial_view(trial) for trial in trials], "next_cursor": following}


@router.get("/{job}/policies")
def list_policies(services: Given, job: JobId) -> dict[str, Any]:
    """The Pareto front over trials within the budget: of search score against the costs of a job that asked for a
    front, against predicted latency otherwise."""
    spec = services.store.get(job).spec
    trials = services.store.trials(job)[0]
    return {"items": policies_of(spec, services.store.pinned(job, PIN), trials)}


@router.get("/{job}/hypervolume")
def hypervolume(services: Given, job: JobId) -> dict[str, Any]:
    """What the front of score and costs dominates after every evaluation that added to it, and the reference point."""
    services.store.get(job)
    pinned = services.store.pinned(job, PIN)
    if pinned is None:
        raise NotFoundError(f"job {job} has not begun its search")
    return hypervolume_json(FrontAxes.from_json(pinned), services.store.trials(job)[0])


@router.get("/{job}/policies/best")
def best_policy(services: Given, job: JobId) -> dict[str, Any]:
    """The best trial within the budget: highest search score (also of a front), or fastest within max_drop."""
    row = services.store.get(job)
    best = best_of(row.spec, services.store.trials(job)[0])
    if best is None:
        raise NotFoundError(f"job {job} has no trial within its budget yet")
    return best


@router.get("/{job}/artifacts")
def list_artifacts(services: Given, job: JobId) -> dict[str, Any]:
    services.store.get(job)
    return {"items": [artifact_view(item) for item in services.store.artifacts(job)]}


@router.get("/{job}/artifacts/{name:path}", response_class=StreamingResponse)
def get_artifact(services: Given, job: JobId, name: str) -> StreamingResponse:
    """The file. Pages are confined: a report cannot act in this server's name."""
    artifact = services.store.artifact(job, name)
    shown = name.endswith((".html", ".json"))
    file = name.rsplit("/", 1)[-1]
    return StreamingResponse(
        services.blobs.read(artifact.path),
        media_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
        headers={
            "Content-Length": str(artifact.size),
            "ETag": f'"{artifact.sha256}"',
            "Content-Disposition": f'{"inline" if shown else "attachment"}; filename="{file}"',
            "Content-Security-Policy": (
                "sandbox allow-scripts; default-src 'none'; img-src data:; "
                "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
            ),
            "X-Content-Type-Options": "nosniff",
        },
    )
