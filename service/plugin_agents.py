"""Constructors of agents by name, ours and those of plug-ins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.job_spec import AGENTS, AgentSpec
from service.plugins import Group, load

if TYPE_CHECKING:
    from agents.registry import Build
    from search_spaces.space import SearchSpace


def builder(name: str, allow: Sequence[str], published: bool | None = None) -> Build:
    """The constructor of an agent, ours or a plug-in's.

    Args:
        allow: plug-ins that may be loaded.
        published: of agents that have such a form; see ``AgentEntry.as_published``.

    Raises:
        PluginError: see ``plugins.load``.
    """
    from agents.registry import AGENTS as OWN

    if name not in OWN:
        build, _ = load(Group.AGENTS, name, allow)
        return build
    variants = OWN[name].as_published
    return OWN[name].build if published is None or variants is None else variants(published)


def agent_notes(agent: AgentSpec, space: SearchSpace) -> list[str]:
    """For the report: in which of its forms an agent of ours ran, where it has two."""
    from agents.registry import form_note

    return form_note(agent.name, space, agent.published) if agent.name in AGENTS else []
