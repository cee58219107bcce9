"""Errors of the service: sources, requests, jobs and leases."""

from __future__ import annotations

from latency_tables.errors import TrimtabError


class SourceError(TrimtabError):
    """A model or data source is malformed, unknown, not allowed by the operator, or fails to load."""

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
