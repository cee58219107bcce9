"""What the routes share: settings, store, files, sources and counters of one server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from service.blobs import Blobs
from service.errors import NotFoundError, WeightsError
from service.job_spec import AGENTS, CRITERIA, JobSpec
from service.metrics import Metrics
from service.plugin_trial import tried
from service.plugins import Group, Plugin, PluginError, installed, require
from service.problems import field as named
from service.settings import Settings
from service.sources import Sources
from service.store import Store

if TYPE_CHECKING:
    from latency_tables.catalog import Catalog
    from latency_tables.target import Target


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
    _descriptions: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, store: Store) -> Services:
        """Raises SourceError where the operator's sources cannot be right."""
        blobs = Blobs(settings.data_dir)
        return cls(settings, store, blobs, settings.sources(), Metrics(store))

    @cached_property
    def agent_plugins(self) -> tuple[Plugin, ...]:
        """Agents of other distributions, tried once; what is installed later is seen after a restart."""
        return tried(Group.AGENTS, self.settings.allow_plugins, self.settings.code_paths)

    @cached_property
    def criterion_plugins(self) -> tuple[Plugin, ...]:
        """Likewise criteria."""
        return tried(Group.CRITERIA, self.settings.allow_plugins, self.settings.code_paths)

    @cached_property
    def _target_plugins(self) -> tuple[Plugin, ...]:
        """Likewise targets, as found: they are made for each job, and once for the list."""
        return installed(Group.TARGETS, self.settings.allow_plugins, self.settings.code_paths)

    def _catalog(self) -> Catalog:
        """With the names of plug-ins' targets, none of which this process makes."""
        from latency_tables.catalog import Catalog

        def refuse(text: str) -> Target:
            raise PluginError(f"the server does not load the plug-in of target {text!r}")

        return Catalog.of(
            self.settings.data_dir, {plugin.name: refuse for plugin in self._target_plugins}
        )

    def targets(self) -> list[dict[str, Any]]:
        """What ``GET /v1/targets`` lists."""
        from latency_tables.target import known_targets
        from service.target_items import target_item, unusable_item

        catalog = self._catalog()
        items = []
        for name in (*known_targets(), *catalog.table_targets()):
            if catalog.made_by_others(name):
                items.append(self._described(name, "trimtab", catalog.table(name).digest))
            else:
                items.append(target_item(catalog, name))
        for plugin in self._target_plugins:
            reason = plugin.error
            if plugin.name in catalog.tables and reason is None:
                reason = "the name is taken by a table; import that one under another name"
            if reason is None:
                items.append(self._described(plugin.name, plugin.distribution))
            else:
                items.append(unusable_item(plugin.name, reason, plugin.distribution))
        return items

    def _described(self, name: str, distribution: str, digest: str = "") -> dict[str, Any]:
        """A target that only another process can make, asked once; ``digest`` is of its table."""
        from service.target_process import described

        key = (name, digest)
        if key not in self._descriptions:
            self._descriptions[key] = described(self.settings, name, distribution)
        return self._descriptions[key]

    def _check_targets(self, spec: JobSpec) -> None:
        from service.target_process import check_targets
        from service.targets import job_targets

        catalog = self._catalog()
        brought = False
        for place, own in enumerate(spec.places):
            if catalog.made_by_others(own.name):
                brought = True
                name, _, _ = own.name.partition("?")
                if name in catalog.devices():
                    with named("target" if spec.targets is None else f"targets.{place}.name"):
                        require(Group.TARGETS, name, self._target_plugins)
        if brought:
            with named("target"):
                check_targets(self.settings, spec)
            return
        # Drivers of another cluster may run where there is an energy counter: they say so themselves.
        job_targets(spec, catalog, self.settings.ray_address == "embedded", named)

    def check(self, spec: JobSpec) -> None:
        """Checks every name a job uses, without loading anything.

        Raises:
            TrimtabError: an unknown or disallowed source, or an unknown agent, criterion, target or upload; one
                target twice; a bound on energy where the target never has any.
        """
        with named("model.source"):
            self.sources.check_model(spec.model.source)
        with named("data.source"):
            self.sources.check_data(spec.data.source)
        self._check_targets(spec)
        with named("space.criterion"):
            criterion = spec.space.criterion
            plugins = () if criterion in CRITERIA else self.criterion_plugins
            require(Group.CRITERIA, criterion, plugins)
        with named("agent.name"):
            plugins = () if spec.agent.name in AGENTS else self.agent_plugins
            require(Group.AGENTS, spec.agent.name, plugins)
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
