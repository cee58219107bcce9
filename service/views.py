"""What the API shows of rows of the database."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from service.context import TrialRecord
from service.tables import Artifact, EventRow, Job, Weights


def job_view(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "created": instant(job.created),
        "started": instant(job.started),
        "finished": instant(job.finished),
        "attempt": job.attempt,
        "stage": job.stage,
        "message": job.message,
        "done": job.done,
        "total": job.total,
        "trials": job.trials,
        "best": job.best,
        "reason": job.reason,
        "report": job.report,
        "spec": job.spec,
    }


def job_line(job: Job) -> dict[str, Any]:
    """A job in a list: without the long parts."""
    view = job_view(job)
    del view["report"], view["spec"]
    return view


def trial_view(trial: TrialRecord) -> dict[str, Any]:
    return asdict(trial)


def event_view(event: EventRow) -> dict[str, Any]:
    return {"id": event.id, "kind": event.kind, "data": event.data, "time": event.time}


def artifact_view(artifact: Artifact) -> dict[str, Any]:
    return {"name": artifact.name, "size": artifact.size, "sha256": artifact.sha256}


def weights_view(weights: Weights) -> dict[str, Any]:
    return {
        "id": weights.id,
        "size": weights.size,
        "tensors": len(weights.tensors),
        "created": instant(weights.created),
    }


def instant(seconds: float | None) -> str | None:
    """ISO 8601 in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
