"""Prometheus metrics of one server. What the database knows is read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.store import Store


class Metrics:
    """Counters with a registry of their own, so that several applications fit into one process."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_FromStore(store))
        self.requests = Counter(
            "trimtab_requests",
            "Answered requests.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "trimtab_request_seconds",
            "Time until an answer began.",
            ["route"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _FromStore(Collector):
    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[GaugeMetricFamily]:
        # Without this the registry would query the database when it is built.
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("trimtab_jobs", "Jobs by state.", labels=["state"])
        for state, count in self._store.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        trials = GaugeMetricFamily("trimtab_trials_recorded", "Trials of the jobs that are kept.")
        trials.add_metric([], self._store.trials_total())
        yield trials
