"""What a job's files take and give on each of its targets, and how the report lists it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.file_results import Comparison, Measured
from service.front_files import Member
from service.job_prices import TargetPrices
from service.job_setup import JobSetup
from service.reporting import costs_json, held, missed, target_json


@dataclass(frozen=True)
class TargetResults:
    """All reported files on one target.

    Attributes:
        on: the target, and prices as the search went by them.
        limits: absolute bounds of its own budget, by their plain names.
        measured, compared: see ``measure_files``; the delivered network's file is ``compressed``.
        agreement: share of the search images to which that file and the scored network give the same top-1.
        corrections: measured over predicted latency of finalists that missed the bound on it here.
    """

    on: TargetPrices
    limits: Mapping[str, float]
    measured: Mapping[str, Measured]
    compared: Comparison
    agreement: float
    corrections: Sequence[float]

    def violations(self, file: str = "compressed") -> dict[str, float]:
        """Bounds of this target's budget that a file misses, as fractions of them."""
        have = held(self.on.of.budget, self.on.prices, self.measured[file], self.compared, file)
        return missed(self.limits, have)

    def by_job(self, violations: Mapping[str, float]) -> dict[str, float]:
        """The same by the names that the job has for them."""
        return {self.on.of.quantity(q): by for q, by in violations.items()}

    def costs_json(self, file: str) -> dict[str, Any]:
        """What one file takes and gives here, beside the uncompressed network."""
        return costs_json(self.measured, self.compared, self.violations(file), file)

    def to_json(self, references: Sequence[str]) -> dict[str, Any]:
        """An entry of ``targets`` in ``report.json``."""
        own = self.costs_json("compressed")
        beside = ("accuracy_drop", "latency_ratio", "energy_ratio", "met_budget", "violations")
        return {
            **target_json(self.on.target, self.on.prices, self.compared),
            "name": self.on.of.name,
            "artifact": self.on.of.artifact,
            "budget": self.on.of.budget,
            "budget_limits": dict(self.limits),
            "baseline": self.measured["baseline"].to_json(),
            "compressed": {key: value for key, value in own.items() if key not in beside},
            **{key: own[key] for key in beside},
            "met_by": "measurement" if self.compared.measured else "prediction",
            "not_faster": not self.compared.faster("compressed"),
            "references": {
                name: self.costs_json(name) if name in self.measured else None
                for name in references
            },
            "agreement": self.agreement,
            "corrections": list(self.corrections),
        }


def add_targets(
    report: dict[str, Any],
    setup: JobSetup,
    results: Sequence[TargetResults],
    members: Sequence[Member],
) -> None:
    """Makes the first target's report that of a job for several.

    The first target stays in its places; ``targets`` has all of them, and a budget is met where it is on each.

    Args:
        members: of a front, the delivered one first.
    """
    if setup.spec.targets is None:
        return
    references = tuple(report["references"])
    report["targets"] = [one.to_json(references) for one in results]
    report["met_budget"] &= all(entry["met_budget"] for entry in report["targets"])
    report["violations"] = _joined(results, "compressed")
    if "front" not in report:
        return
    names = ["compressed", *(member.name for member in members[1:])]
    for line, name in zip(report["front"], names, strict=True):
        line["targets"] = [
            {"name": one.on.of.name, "artifact": _beside(line["artifact"], one.on.of.artifact)}
            | one.costs_json(name)
            for one in results
        ]
        line["met_budget"] = all(entry["met_budget"] for entry in line["targets"])
        line["violations"] = _joined(results, name)


def _joined(results: Sequence[TargetResults], file: str) -> dict[str, float]:
    """The largest miss of each bound on any target."""
    joined: dict[str, float] = {}
    for one in results:
        for quantity, by in one.by_job(one.violations(file)).items():
            joined[quantity] = max(by, joined.get(quantity, by))
    return joined


def _beside(file: str, name: str) -> str:
    """The path of another file in the same folder."""
    folder, slash, _ = file.rpartition("/")
    return f"{folder}{slash}{name}"
