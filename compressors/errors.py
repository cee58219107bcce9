"""Errors of compressing a network."""

from __future__ import annotations

from latency_tables.errors import TrimtabError


class TraceError(TrimtabError):
    """The network cannot be run or traced on its input."""

    slug = "trace"
    title = "Network cannot be traced"


class PruningError(TrimtabError):
    """A plan does not fit the network, or leaves an invalid one."""

    slug = "pruning"
    title = "Pruning failed"


class PlanError(TrimtabError):
    """A plan document is malformed or of another version."""

    slug = "plan"
    title = "Invalid plan"


class ExportError(TrimtabError):
    """The network cannot be exported, or the file disagrees with the network."""

    slug = "export"
    title = "Export failed"
