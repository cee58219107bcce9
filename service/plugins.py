"""Agents, targets and criteria that other distributions bring by entry points of three groups.

| group | what the entry point is | in a job |
|---|---|---|
| ``trimtab.agents`` | a function of our registry's form, ``agents.registry.Build`` | ``agent.name`` |
| ``trimtab.targets`` | ``make(threads=1, ...)``, see ``service.plugin_targets`` | ``target`` |
| ``trimtab.criteria`` | ``rank(network, groups, images)``, see ``compressors.custom_criterion`` | ``space.criterion`` |

A plug-in is used where the operator allows its name (``TRIMTAB_ALLOW_PLUGINS``; on the command line the user is the
operator): one list for the three groups, so a name allows what is called so in each of them. No code of a plug-in that
is not allowed is loaded. The server never loads one itself: it has another process try (``service.plugin_trial``,
``service.target_process``), so that what breaks there, however it breaks, is a line in a list or a 422.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from latency_tables.errors import TrimtabError
from service.job_spec import AGENTS, CRITERIA, JobSpec
from service.source_name import suggest

# Pattern that allows every plug-in.
ALL = "*"


class Group(StrEnum):
    """A group of entry points."""

    AGENTS = "trimtab.agents"
    TARGETS = "trimtab.targets"
    CRITERIA = "trimtab.criteria"

    @property
    def noun(self) -> str:
        """What one of the group is."""
        return {Group.AGENTS: "agent", Group.TARGETS: "target", Group.CRITERIA: "criterion"}[self]

    @property
    def own(self) -> tuple[str, ...]:
        """Names of Trimtab's own, which no plug-in can take."""
        from latency_tables import shipped
        from latency_tables.target import known_targets

        if self is Group.TARGETS:
            return (*known_targets(), *shipped.names())
        return AGENTS if self is Group.AGENTS else CRITERIA


class PluginError(TrimtabError):
    """A plug-in is not allowed, or its code cannot be loaded."""

    slug = "plugin"
    title = "Unusable plug-in"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point, as found or as tried.

    Attributes:
        name: of the agent, target or criterion.
        distribution: name and version of what brings it.
        summary: first line of its docstring, empty before it was loaded.
        error: why it cannot be used; None where it can.
    """

    name: str
    distribution: str
    summary: str = ""
    error: str | None = None


def installed(
    group: Group, allow: Sequence[str], code_paths: Sequence[Path] = ()
) -> tuple[Plugin, ...]:
    """Plug-ins of a group on the import path, by name; nothing of theirs is loaded.

    Args:
        allow: names that may be loaded, or ``ALL``.
        code_paths: folders to look into after the import path.
    """
    own = group.own
    found: dict[str, Plugin] = {}
    for point in _points(group, code_paths):
        name, distribution, error = point.name, _distribution(point), None
        if name in own:
            error = f"the name is taken by one of Trimtab's own; rename the {group.noun}"
        elif name in found:
            distribution = f"{found[name].distribution} and {distribution}"
            error = f"more than one distribution brings a {group.noun} of this name; uninstall all but one"
        elif name not in allow and ALL not in allow:
            error = (
                f"not allowed by the operator (TRIMTAB_ALLOW_PLUGINS={name}, or serve --allow-plugin "
                f"{name})"
            )
        found[name] = Plugin(name, distribution, error=error)
    return tuple(found.values())


def brought_by(spec: JobSpec, devices: Iterable[str] = ()) -> dict[str, str]:
    """The distributions that bring what a job uses, as part of its key; nothing for Trimtab's own.

    Args:
        devices: names of the targets that the job turned out to use beside those it names.

    Returns:
        ``agent``, ``criterion`` and ``target NAME`` to the distribution's name and version.
    """
    names = [(Group.AGENTS, spec.agent.name, "agent")]
    names += [(Group.CRITERIA, spec.space.criterion, "criterion")]
    targets = dict.fromkeys([*(own.name.partition("?")[0] for own in spec.places), *devices])
    names += [(Group.TARGETS, name, f"target {name}") for name in targets]
    found = {label: distribution_of(group, name) for group, name, label in names}
    return {label: brought for label, brought in found.items() if brought}


def distribution_of(group: Group, name: str) -> str:
    """Name and version of the distribution that brings what is called so; empty for what none does."""
    if name in group.own:
        return ""
    return next((p.distribution for p in installed(group, (ALL,)) if p.name == name), "")


def require(group: Group, name: str, plugins: Sequence[Plugin]) -> None:
    """Checks that there is one of that name, ours or a plug-in's that can be used.

    Args:
        plugins: of the group, as far as they are known; none are needed where the name is one of Trimtab's own.

    Raises:
        PluginError: there is none, or it cannot be used.
    """
    if name in group.own:
        return
    known = {plugin.name: plugin for plugin in plugins}
    if name not in known:
        names = (*group.own, *known)
        raise PluginError(
            f"unknown {group.noun} {name!r}{suggest(name, names)}; known: {', '.join(names)}"
        )
    if known[name].error is not None:
        raise PluginError(_unusable(group, known[name]))


def load(group: Group, name: str, allow: Sequence[str]) -> tuple[Callable[..., Any], str]:
    """The function that a plug-in gives, and what to call it in messages: name and distribution.

    Raises:
        PluginError: there is none of that name, it is not allowed, or its code fails.
    """
    found = [plugin for plugin in installed(group, allow) if plugin.name == name]
    if not found:
        raise PluginError(f"there is no plug-in with a {group.noun} {name!r}")
    if found[0].error is not None:
        raise PluginError(_unusable(group, found[0]))
    label = _label(group, found[0])
    (point,) = (point for point in _points(group) if point.name == name)
    try:
        function = point.load()
    except Exception as error:
        raise PluginError(
            f"{label} cannot be loaded from {point.value}: {type(error).__name__}: {error}. Install what it "
            f"needs or another version of it, or choose another {group.noun}"
        ) from error
    if not callable(function):
        raise PluginError(f"{label}: {point.value} is no function that makes one")
    return function, label


def _label(group: Group, plugin: Plugin) -> str:
    return f"the {group.noun} {plugin.name!r} of {plugin.distribution}"


def _unusable(group: Group, plugin: Plugin) -> str:
    return f"{_label(group, plugin)} is unusable: {plugin.error}"


def _points(group: Group, code_paths: Sequence[Path] = ()) -> list[EntryPoint]:
    """Entry points of a group; a distribution that is found through several folders counts once."""
    path = [*sys.path, *(str(path) for path in code_paths)]
    found = {
        (point.name, _distribution(point)): point
        for distribution in reversed(list(importlib.metadata.distributions(path=path)))
        for point in distribution.entry_points.select(group=group)
    }
    return [found[key] for key in sorted(found)]


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
