"""The members of a front as files, and their lines in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressors import Compressed, save
from compressors.packed import PACKED_FILE, pack_network, write_whole
from search_spaces import Evaluation, Policy
from search_spaces.dominance import nondominated
from search_spaces.front import FrontAxes
from service.energy_bound import QUANTITY
from service.file_results import Comparison, Measured
from service.job_files import write_json
from service.job_setup import JobSetup
from service.prices import Prices
from service.reporting import costs_json, held, missed
from service.target_files import export_for

# Where the files of members other than the delivered one lie.
FOLDER = "front"


@dataclass(frozen=True)
class Member:
    """A compressed network that a job delivers, trained where training was asked for.

    Attributes:
        costs: of its file when it was picked; those that follow from the file itself are taken from it.
    """

    policy: Policy
    compressed: Compressed
    evaluation: Evaluation
    costs: Mapping[str, float]

    @property
    def folder(self) -> str:
        """Of its files within the job's, where it is not the delivered one."""
        return f"{FOLDER}/{self.policy.digest}"

    @property
    def name(self) -> str:
        """Among the files that are measured."""
        return f"{FOLDER}_{self.policy.digest}"


def export_member(setup: JobSetup, member: Member, workdir: Path) -> tuple[tuple[Path, ...], int]:
    """Leaves the same files of a member as of the delivered network.

    Returns:
        What each target runs, and the bytes of the packed file.
    """
    folder = workdir / member.folder
    network, plan = member.compressed.network, member.compressed.plan
    files = export_for(setup.targets, network, plan, folder)
    packed = pack_network(network, plan)
    write_whole({folder / PACKED_FILE: packed})
    save(network, plan, folder)
    space = setup.network.network_space.space
    write_json(
        folder / "policy.json",
        member.policy.to_json(space.ids) | {"decisions": space.to_json()["decisions"]},
    )
    return files, len(packed)


def front_json(
    setup: JobSetup,
    prices: Prices,
    limits: Mapping[str, float],
    axes: FrontAxes,
    members: Sequence[Member],
    measured: Mapping[str, Measured],
    compared: Comparison,
) -> list[dict[str, Any]]:
    """``front`` of the report, a document a member, the delivered one first.

    ``on_front`` says whether no other member has both a higher score and lower costs by the numbers listed here, which
    are of one run.

    Args:
        members: the delivered one first; it was measured as ``compressed``.
    """
    names = ["compressed", *(member.name for member in members[1:])]
    have = [held(setup.spec.budget, prices, measured[n], compared, n) for n in names]
    points = [
        axes.losses(
            member.evaluation.score,
            {**member.costs, **_final_costs(prices, measured[name], compared, name)},
        )
        for member, name in zip(members, names, strict=True)
    ]
    found = []
    for member, name, own, best in zip(
        members, names, have, nondominated(np.array(points)), strict=True
    ):
        folder = "" if name == "compressed" else f"{member.folder}/"
        found.append(
            {
                "policy": member.policy.digest,
                "delivered": name == "compressed",
                "artifact": f"{folder}{setup.target.artifact_name}",
                "score": member.evaluation.score,
                "interval": list(member.evaluation.interval),
                **costs_json(measured, compared, missed(limits, own), name),
                "on_front": bool(best),
            }
        )
    return found


def _final_costs(
    prices: Prices, file: Measured, compared: Comparison, name: str
) -> dict[str, float]:
    """What a member's file takes by the run that the report tells of, times and energies by their ratio to the
    baseline's."""
    whole = prices.uncompressed
    costs: dict[str, float] = {
        "latency_ms": compared.ratios[name] * whole["latency_ms"],
        "size_bytes": file.size_bytes,
        "packed_bytes": file.packed_bytes,
        "macs": file.macs,
    }
    if name in compared.energy_ratios and QUANTITY in whole:
        costs[QUANTITY] = compared.energy_ratios[name] * whole[QUANTITY]
    return costs
