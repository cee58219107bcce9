"""Errors of agents."""

from __future__ import annotations

from latency_tables.errors import TrimtabError


class AgentError(TrimtabError):
    """An agent is unknown, cannot express the space, or was told something it never asked."""

    slug = "agent"
    title = "Unusable agent"
