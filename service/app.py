"""The REST application."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from service import (
    problems,
    routes_catalog,
    routes_events,
    routes_health,
    routes_jobs,
    routes_weights,
)
from service.guard import Guard
from service.services import Services

_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:trimtab:problem:budget"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {problems.MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}}}
    for code, text in {
        404: "Not found",
        409: "The state does not allow it",
        422: "Something in the request is wrong",
    }.items()
}


def create_app(services: Services) -> FastAPI:
    """The application on given parts; whoever made them closes them."""
    app = FastAPI(
        title="Trimtab",
        version=version("trimtab"),
        summary="Prunes and quantizes trained networks to a budget measured on the device.",
        responses=_ERRORS,
        # A trailing slash is another path, not a redirect that loses a body.
        redirect_slashes=False,
    )
    app.state.services = services
    problems.install(app)
    app.add_middleware(Guard, settings=services.settings, metrics=services.metrics)
    for module in (routes_jobs, routes_events, routes_weights, routes_catalog, routes_health):
        app.include_router(module.router)
    return app
