"""RFC 9457 problem documents: the one place where errors become answers and a failed job's
reason.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from latency_tables.errors import TrimtabError

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)


class FieldError(TrimtabError):
    """An error of one field of a request, with the field's name beside what is wrong with it."""

    def __init__(self, field: str, error: TrimtabError) -> None:
        super().__init__(str(error))
        self.field = field
        # On the instance: slug and title are those of the error it wraps.
        self.slug, self.title = error.slug, error.title


class ReportedError(TrimtabError):
    """What another process of ours reported; carries that error's slug, title and status."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(str(problem["detail"]))
        self.slug = str(problem["type"]).rsplit(":", 1)[-1]
        self.title, self.status = str(problem["title"]), int(problem["status"])


@contextmanager
def field(name: str) -> Iterator[None]:
    """Whatever Trimtab error the block raises becomes a 422 about that field."""
    try:
        yield
    except FieldError:
        # It knows its field better.
        raise
    except TrimtabError as error:
        raise FieldError(name, error) from error


def problem_of(error: BaseException) -> dict[str, Any]:
    """The problem document of any error. What nobody expected is logged and told by its id only."""
    if isinstance(error, FieldError):
        problem = _problem(error.slug, error.title, error.status, error.detail)
        problem["errors"] = [{"field": error.field, "message": error.detail}]
        return problem
    if isinstance(error, TrimtabError):
        return _problem(error.slug, error.title, error.status, error.detail)
    if isinstance(error, RequestValidationError | ValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        slug = phrase.lower().replace(" ", "-")
        return _problem(slug, phrase, error.status_code, str(error.detail))
    id = uuid.uuid4().hex[:12]
    _log.error("unexpected error %s", id, exc_info=error)
    problem = _problem(
        "internal",
        "Internal error",
        500,
        f"something unexpected went wrong ({type(error).__name__}); the log has it under {id}",
    )
    return problem | {"instance": f"urn:trimtab:error:{id}"}


def _problem(slug: str, title: str, status: int, detail: str) -> dict[str, Any]:
    return {
        "type": f"urn:trimtab:problem:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
    }


def _invalid(error: RequestValidationError | ValidationError) -> dict[str, Any]:
    errors = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        if item["type"] == "json_invalid":
            location = location[:1]
        elif len(location) > 1 and location[0] in ("body", "query", "path", "header"):
            location = location[1:]
        message = str(item["msg"]).removeprefix("Value error, ")
        errors.append({"field": ".".join(location), "message": message})
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors)
    return _problem("invalid-request", "Invalid request", 422, detail) | {"errors": errors}


def problem_response(error: BaseException) -> JSONResponse:
    """The answer to a request that raised ``error``."""
    problem = problem_of(error)
    headers = dict(getattr(error, "headers", None) or {})
    if problem["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        problem, status_code=problem["status"], headers=headers, media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Every error of the application is answered by a problem document."""

    async def answer(_request: Request, error: Exception) -> JSONResponse:
        return problem_response(error)

    for kind in (TrimtabError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
