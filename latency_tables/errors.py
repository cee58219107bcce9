"""The root of Trimtab's error tree.

    TrimtabError
    ├── latency_tables.errors: KernelError, TableError, TargetError, MeasurementError
    ├── compressors.errors: TraceError, PruningError, ExportError, PlanError, PackError
    ├── search_spaces.errors: PolicyError, BudgetError
    ├── agents.errors: AgentError
    ├── evaluation.errors: DataError, ScoringError
    └── service.errors: sources, jobs, leases, requests

The root lives in the lowest room because every room may import from here; each room keeps its own leaves.
``service.problems`` turns any of them into an RFC 9457 problem document from the three attributes below.
"""

from __future__ import annotations


class TrimtabError(Exception):
    """An error a user can act on. The message says what is wrong and what to do.

    Attributes:
        slug: stable short name, used as the last part of the problem document's ``type``.
        title: the same for every error of the class.
        status: HTTP status when the error answers a request.
    """

    slug = "error"
    title = "Trimtab error"
    status = 422

    @property
    def detail(self) -> str:
        return str(self)


class TargetError(TrimtabError):
    """The target's name or options are wrong, or its runtime is not installed."""

    slug = "target"
    title = "Unknown or unusable target"


class TableError(TrimtabError):
    """A table cannot be read, or it belongs to another machine."""

    slug = "table"
    title = "Unusable latency table"


class KernelError(TrimtabError):
    """A kernel cannot be built or run alone."""

    slug = "kernel"
    title = "Kernel cannot be measured"


class MeasurementError(TrimtabError):
    """A measurement failed or did not settle."""

    slug = "measurement"
    title = "Measurement failed"
