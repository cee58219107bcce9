"""Agents that other distributions bring, by entry points of the group ``trimtab.agents``.

A distribution names a function of our registry's form (``agents.registry.Build``)::

    [project.entry-points."trimtab.agents"]
    annealing = "my_package:build"      # build(space, pricer, evaluations, seed, objective) -> Agent

Its agent is then ``"agent": {"name": "annealing"}``, where the operator allows that name (``TRIMTAB_ALLOW_PLUGINS``; on
the command line the user is the operator). No code of a plug-in that is not allowed is loaded. The server never loads
one itself: it has another process try, so that what breaks there, however it breaks, is a line in ``GET /v1/agents``.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from latency_tables.errors import TrimtabError
from service.job_spec import AGENTS, AgentSpec, JobSpec
from service.source_name import suggest

if TYPE_CHECKING:
    from agents.registry import Build
    from search_spaces.space import SearchSpace

GROUP = "trimtab.agents"
# Pattern that allows every plug-in.
ALL = "*"
_SECONDS = 120.0


class PluginError(TrimtabError):
    """A plug-in is not allowed, or its code cannot be loaded."""

    slug = "plugin"
    title = "Unusable plug-in"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point, as found or as tried.

    Attributes:
        name: of the agent.
        distribution: name and version of what brings it.
        summary: first line of its docstring, empty before it was loaded.
        error: why it cannot be used; None where it can.
    """

    name: str
    distribution: str
    summary: str = ""
    error: str | None = None


def installed(allow: Sequence[str], code_paths: Sequence[Path] = ()) -> tuple[Plugin, ...]:
    """Plug-ins on the import path, by name; nothing of theirs is loaded.

    Args:
        allow: names that may be loaded, or ``ALL``.
        code_paths: folders to look into after the import path.
    """
    found: dict[str, Plugin] = {}
    for point in _points(code_paths):
        name, distribution, error = point.name, _distribution(point), None
        if name in AGENTS:
            error = "the name is taken by an agent of Trimtab's own"
        elif name in found:
            distribution = f"{found[name].distribution} and {distribution}"
            error = "more than one distribution brings an agent of this name"
        elif name not in allow and ALL not in allow:
            error = "not allowed by the operator (TRIMTAB_ALLOW_PLUGINS)"
        found[name] = Plugin(name, distribution, error=error)
    return tuple(found.values())


def brought_by(name: str) -> dict[str, str]:
    """The distribution that brings an agent, as part of a job's key; nothing for Trimtab's own."""
    if name in AGENTS:
        return {}
    brought = [plugin.distribution for plugin in installed((ALL,)) if plugin.name == name]
    return {"plugin": brought[0]} if brought else {}


def require_agent(spec: JobSpec, plugins: Sequence[Plugin]) -> None:
    """Checks a job's agent by its name.

    Args:
        plugins: as far as they are known; none are needed where the agent is one of Trimtab's own.

    Raises:
        PluginError: there is no such agent, or it cannot be used.
    """
    name = spec.agent.name
    if name in AGENTS:
        return
    known = {plugin.name: plugin for plugin in plugins}
    if name not in known:
        names = (*AGENTS, *known)
        raise PluginError(
            f"unknown agent {name!r}{suggest(name, names)}; known: {', '.join(names)}"
        )
    if (error := known[name].error) is not None:
        raise PluginError(f"the agent {name!r} of {known[name].distribution} is unusable: {error}")


def builder(name: str, allow: Sequence[str], published: bool | None = None) -> Build:
    """The constructor of an agent, ours or a plug-in's.

    Args:
        published: of agents that have such a form; see ``AgentEntry.as_published``.

    Raises:
        PluginError: see ``load``.
    """
    from agents.registry import AGENTS as OWN

    if name not in OWN:
        return load(name, allow)
    variants = OWN[name].as_published
    return OWN[name].build if published is None or variants is None else variants(published)


def agent_notes(agent: AgentSpec, space: SearchSpace) -> list[str]:
    """For the report: in which of its forms an agent of ours ran, where it has two."""
    from agents.registry import form_note

    return form_note(agent.name, space, agent.published) if agent.name in AGENTS else []


def load(name: str, allow: Sequence[str]) -> Build:
    """The constructor of a plug-in's agent.

    Raises:
        PluginError: there is none of that name, it is not allowed, or its code fails.
    """
    found = [plugin for plugin in installed(allow) if plugin.name == name]
    if not found:
        raise PluginError(f"there is no plug-in with an agent {name!r}")
    where = f"the agent {name!r} of {found[0].distribution}"
    if found[0].error is not None:
        raise PluginError(f"{where} is unusable: {found[0].error}")
    (point,) = (point for point in _points(()) if point.name == name)
    try:
        build: Build = point.load()
    except Exception as error:
        raise PluginError(
            f"{where} cannot be loaded from {point.value}: {type(error).__name__}: {error}"
        ) from error
    if not callable(build):
        raise PluginError(f"{where}: {point.value} is no function that builds an agent")
    return build


def tried(allow: Sequence[str], code_paths: Sequence[Path] = ()) -> tuple[Plugin, ...]:
    """All plug-ins, those that are allowed loaded once, each in a process of its own.

    Args:
        code_paths: folders at the end of the import path, as drivers have them.
    """
    return tuple(
        _apart(plugin, code_paths) if plugin.error is None else plugin
        for plugin in installed(allow, code_paths)
    )


def _apart(plugin: Plugin, code_paths: Sequence[Path]) -> Plugin:
    # -P: no file of the current folder may be taken for one of our packages.
    command = [sys.executable, "-P", "-m", "service.plugins", plugin.name]
    command += [str(path) for path in code_paths]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
        reason = f"its process ended with code {done.returncode} when it was loaded"
        if done.returncode == 0:
            return Plugin(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        reason = f"loading it took more than {_SECONDS:.0f} s"
    except (ValueError, IndexError, TypeError):
        reason = "its process ended without an answer when it was loaded"
    return replace(plugin, error=reason)


def _points(code_paths: Sequence[Path]) -> list[EntryPoint]:
    """Entry points of our group; a distribution that is found through several folders counts once."""
    path = [*sys.path, *(str(path) for path in code_paths)]
    found = {
        (point.name, _distribution(point)): point
        for distribution in reversed(list(importlib.metadata.distributions(path=path)))
        for point in distribution.entry_points.select(group=GROUP)
    }
    return [found[key] for key in sorted(found)]


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def main(arguments: Sequence[str]) -> int:
    """Loads the plug-in named first, with the folders named after it on the import path, and prints what came of it."""
    name, *folders = arguments
    sys.path.extend(path for path in folders if path not in sys.path)
    (plugin,) = (plugin for plugin in installed((name,)) if plugin.name == name)
    try:
        lines = (load(name, (name,)).__doc__ or "").strip().splitlines()
        plugin = replace(plugin, summary=lines[0] if lines else "")
    except PluginError as error:
        plugin = replace(plugin, error=error.detail)
    sys.stdout.write(f"\n{json.dumps(asdict(plugin))}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
