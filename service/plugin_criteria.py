"""Channel criteria of plug-ins.

A distribution names a function as ``compressors.custom_criterion.CustomCriterion`` describes it::

    [project.entry-points."trimtab.criteria"]
    entropy = "my_package:rank"         # rank(network, groups, images) -> {group.root: numbers [channels]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.job_spec import CRITERIA
from service.plugins import Group, load

if TYPE_CHECKING:
    from compressors.custom_criterion import CustomCriterion


def criterion_of(name: str, allow: Sequence[str]) -> CustomCriterion | None:
    """The criterion that a plug-in brings; None for one of ours.

    Args:
        allow: plug-ins that may be loaded.

    Raises:
        PluginError: see ``plugins.load``.
    """
    from compressors.custom_criterion import CustomCriterion

    if name in CRITERIA:
        return None
    rank, label = load(Group.CRITERIA, name, allow)
    return CustomCriterion(label, rank)
