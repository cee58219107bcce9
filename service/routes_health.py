"""Whether the server lives and can work, for supervisors and Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from service.errors import RuntimeUnavailable
from service.migrations import at_head
from service.services import Given

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(services: Given) -> dict[str, str]:
    """The database answers and is migrated to this version."""
    try:
        ready = at_head(services.store.database.engine)
    except SQLAlchemyError as error:
        raise RuntimeUnavailable(f"the database does not answer: {type(error).__name__}") from error
    if not ready:
        raise RuntimeUnavailable("the database is not migrated to this version")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
def metrics(services: Given) -> Response:
    """Prometheus text format."""
    return Response(services.metrics.render(), media_type="text/plain; version=0.0.4")
