"""A server's job in the process of a test."""

from __future__ import annotations

from pathlib import Path

from evaluation.local_pool import LocalPool
from evaluation.pool import EvaluatorPool, ScorerFactory
from service.db_context import DbContext


class OneProcess(DbContext):
    """A job's context on a server, with evaluators in this process; kernels are timed once for all tests."""

    kernels: Path

    @property
    def data_dir(self) -> Path:
        return self.kernels

    def pool(self, factory: ScorerFactory) -> EvaluatorPool:
        return LocalPool(factory, 1)
