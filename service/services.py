"""What the routes share: settings, store, files, sources and counters of one server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request

from service.blobs import Blobs
from service.errors import NotFoundError, WeightsError
from service.job_spec import AGENTS, JobSpec
from service.metrics import Metrics
from service.plugins import Plugin, require_agent, tried
from service.problems import field as named
from service.settings import Settings
from service.sources import Sources
from service.store import Store


@dataclass
class Services:
    """One server's parts.

    Attributes:
        plans: lets one dry run at a time through.
        stopping: set when the server shuts down, so that open event streams end.
    """

    settings: Settings
    store: Store
    blobs: Blobs
    sources: Sources
    metrics: Metrics
    plans: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    stopping: bool = False

    @classmethod
    def of(cls, settings: Settings, store: Store) -> Services:
        """Raises SourceError where the operator's sources cannot be right."""
        blobs = Blobs(settings.data_dir)
        return cls(settings, store, blobs, settings.sources(), Metrics(store))

    @cached_property
    def plugins(self) -> tuple[Plugin, ...]:
        """Agents of other distributions, tried once; what is installed later is seen after a restart."""
        return tried(self.settings.allow_plugins, self.settings.code_paths)

    def check(self, spec: JobSpec) -> None:
        """Checks every name a job uses, without loading anything.

        Raises:
            TrimtabError: an unknown or disallowed source, or an unknown agent, target or upload; one target
                twice; a bound on energy where the target never has any.
        """
        from latency_tables.catalog import Catalog
        from service.targets import job_targets

        catalog = Catalog.of(self.settings.data_dir)
        with named("model.source"):
            self.sources.check_model(spec.model.source)
        with named("data.source"):
            self.sources.check_data(spec.data.source)
        # Drivers of another cluster may run where there is an energy counter: they say so themselves.
        job_targets(spec, catalog, self.settings.ray_address == "embedded", named)
        with named("agent.name"):
            require_agent(spec, () if spec.agent.name in AGENTS else self.plugins)
        if spec.model.weights is not None:
            with named("model.weights"):
                try:
                    self.store.weights(spec.model.weights)
                except NotFoundError as error:
                    raise WeightsError(str(error)) from error


def _services(request: Request) -> Services:
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


Given = Annotated[Services, Depends(_services)]
