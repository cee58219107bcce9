"""Errors of search spaces, policies and budgets."""

from __future__ import annotations

from latency_tables.errors import TrimtabError


class PolicyError(TrimtabError):
    """A policy does not belong to the space, or has a value the space does not allow."""

    slug = "policy"
    title = "Invalid policy"


class SpaceError(TrimtabError):
    """The network gives no decision to search on, or a decision is malformed."""

    slug = "search-space"
    title = "No usable search space"


class BudgetError(TrimtabError):
    """The budget is malformed, unreachable, or already met by the uncompressed network."""

    slug = "budget"
    title = "Unusable budget"
