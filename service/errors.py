"""Errors of the service: sources, requests, jobs and leases."""

from __future__ import annotations

from typing import Any

from latency_tables.errors import TrimtabError


class SourceError(TrimtabError):
    """A model or data source is malformed, unknown, not allowed by the operator, or fails to
    load.
    """

    slug = "source"
    title = "Unknown or disallowed source"


class WeightsError(TrimtabError):
    """An upload is no safetensors file, or does not fit the network."""

    slug = "weights"
    title = "Unusable weights"


class RequestError(TrimtabError):
    """A field of a request is unknown, missing or out of range."""

    slug = "invalid-request"
    title = "Invalid request"


class NotFoundError(TrimtabError):
    """No such job, trial, artifact or upload."""

    slug = "not-found"
    title = "Not found"
    status = 404


class ConflictError(TrimtabError):
    """The job's state does not allow this."""

    slug = "conflict"
    title = "Conflict"
    status = 409


class AuthError(TrimtabError):
    """No API key, or a wrong one."""

    slug = "unauthorized"
    title = "Missing or wrong API key"
    status = 401


class Cancelled(TrimtabError):
    """Somebody cancelled the job; the pipeline unwinds."""

    slug = "cancelled"
    title = "Job cancelled"
    status = 409


class LeaseLost(TrimtabError):
    """Another attempt holds the job's lease; this driver stops without writing anything more."""

    slug = "lease-lost"
    title = "Lease lost"
    status = 409


class SettingsError(TrimtabError):
    """The server's settings are wrong or unsafe; it does not start."""

    slug = "settings"
    title = "Unusable settings"


class TooLargeError(TrimtabError):
    """A request or an upload is larger than the operator allows."""

    slug = "too-large"
    title = "Too large"
    status = 413


class OriginError(TrimtabError):
    """A web page of another origin, or an unexpected Host header, asks for something."""

    slug = "foreign-origin"
    title = "Foreign origin"
    status = 403


class DriverCrashed(TrimtabError):
    """The job's driver died again and again without getting any further."""

    slug = "driver-crashed"
    title = "Job driver crashed"
    status = 500


class RuntimeUnavailable(TrimtabError):
    """The runtime that starts jobs (Ray) cannot be started or reached."""

    slug = "runtime-unavailable"
    title = "Runtime unavailable"
    status = 503


class ApiError(TrimtabError):
    """What a client sees of a server's problem document, or of a server that does not answer.

    Attributes:
        problem: the problem document, empty when no server answered.
    """

    slug = "api"
    title = "The server refused"

    def __init__(self, detail: str, problem: dict[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.problem = problem or {}
