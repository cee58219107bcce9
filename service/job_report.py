"""The last step of a job: its files on all targets, beside the uncompressed network and the references."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressors import Compressed
from compressors.packed import PACKED_FILE, pack_network, write_whole
from evaluation.scoring import outputs_of
from latency_tables.table_target import runner
from search_spaces import Policy, Pricer
from search_spaces.front import FrontAxes
from service.context import JobContext
from service.file_results import Comparison, Measured, Scores, measure_files
from service.finalist_rounding import FinalistRounding
from service.front_files import FOLDER, Member, export_member, front_json
from service.job_prices import JobPrices
from service.job_setup import JobSetup
from service.packed_prices import baseline_size, packed_size
from service.references import references_of
from service.reporting import build_report
from service.search_loop import Trial
from service.staircases import staircases
from service.target_files import export_for
from service.target_results import TargetResults, add_targets

# Fake quantization must agree with the exported file on this share of the search images.
AGREEMENT = 0.995


@dataclass
class ReportedFiles:
    """Files to be measured, by name, and what is known of them without measuring.

    Attributes:
        files: what each target runs.
        packed: bytes of the packed file.
        macs: of one example.
        policies: of all but the uncompressed network.
    """

    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    packed: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)

    def add(
        self, name: str, files: tuple[Path, ...], packed: int, macs: float, policy: Policy | None
    ) -> None:
        """``policy`` is None for the uncompressed network."""
        self.files[name], self.packed[name], self.macs[name] = files, packed, round(macs)
        if policy is not None:
            self.policies[name] = policy

    def measured(
        self,
        setup: JobSetup,
        prices: JobPrices,
        place: int,
        context: JobContext,
        scored: Scores,
    ) -> tuple[dict[str, Measured], Comparison]:
        """All of them on one target.

        Args:
            scored: see ``measure_files``.
        """
        own = prices.places[place].prices
        whole = own.uncompressed["latency_ms"]
        # As the search saw it, before any correction.
        foreseen = {n: own.pricer.costs(p)["latency_ms"] / whole for n, p in self.policies.items()}
        files = {name: files[place] for name, files in self.files.items()}
        return measure_files(
            setup.on(place), own, files, self.packed, self.macs, foreseen, context.stage,
            context.check, scored,
        )  # fmt: skip


def job_report(
    setup: JobSetup,
    prices: JobPrices,
    limits: Mapping[str, float],
    trials: list[Trial],
    members: Sequence[Member],
    context: JobContext,
    hidden: Path,
    pricer: Pricer,
    corrections: Sequence[Sequence[float]],
    axes: FrontAxes,
    rounding: FinalistRounding,
    extra: dict[str, Any],
    begun: float,
) -> dict[str, Any]:
    """Exports and measures the delivered network, the rest of its front and the references.

    Args:
        prices: as the search went by them.
        limits: the job's bounds.
        members: what is delivered, of a front all of it, the delivered one first.
        hidden: folder for files that the job does not keep.
        pricer: with the job's limits, as finalists left it.
        corrections: of each target, see ``TargetResults``.
        rounding: what finalists were rounded by; the references are, too.
        extra: what else the report says; ``notes`` among it.
        begun: ``time.monotonic()`` when the job's work began.

    Returns:
        The contract's ``report.json``.
    """
    context.stage("report", "exporting the winner and the references", 0, 0)
    delivered = members[0]
    reported, why = _exported(setup, prices, members, context, hidden, pricer, axes, rounding)
    extra["notes"] += rounding.notes
    if setup.spec.objective == "pareto":
        extra["notes"].append(
            "references that keep a budget keep the predicted costs of the delivered member of the front"
        )
    results = []
    scored: Scores = {}
    for number, place in enumerate(prices.places):
        measured, compared = reported.measured(setup, prices, number, context, scored)
        view, artifact = setup.on(number), reported.files["compressed"][number]
        agreed = agreement(view, delivered.compressed, artifact)
        own = prices.limits_on(number)
        results.append(TargetResults(place, own, measured, compared, agreed, corrections[number]))
        if agreed < AGREEMENT:
            extra["notes"].append(
                f"{prices.said(number)}the file and the scored network agree on {agreed:.4f} of the search images, "
                f"less than {AGREEMENT}"
            )
    first = results[0]
    extra["agreement"] = first.agreement
    extra["notes"] += why
    extra["staircases"] = staircases(setup.network.network_space, pricer, delivered.policy)
    extra["wall_seconds"] = time.monotonic() - begun
    if setup.spec.objective == "pareto":
        extra["front"] = front_json(
            setup.on(0), prices.first, first.limits, axes, members, first.measured, first.compared
        )
    report = build_report(
        setup.on(0), prices.first, dict(first.limits), trials, delivered.policy,
        delivered.compressed, dict(first.measured), first.compared, extra,
    )  # fmt: skip
    report["budget_limits"] = dict(limits)
    add_targets(report, setup, results, members)
    report["met_budget"] &= all(line["met_budget"] for line in extra.get("front", ()))
    return report


def _exported(
    setup: JobSetup,
    prices: JobPrices,
    members: Sequence[Member],
    context: JobContext,
    hidden: Path,
    pricer: Pricer,
    axes: FrontAxes,
    rounding: FinalistRounding,
) -> tuple[ReportedFiles, list[str]]:
    """The files, and notes on the references among them."""
    reported = ReportedFiles()
    reported.add(
        "baseline",
        tuple(place.prices.baseline for place in prices.places),
        baseline_size(setup.compressor),
        prices.uncompressed["macs"],
        None,
    )
    delivered = members[0]
    network, plan = delivered.compressed.network, delivered.compressed.plan
    data = pack_network(network, plan)
    write_whole({context.workdir / PACKED_FILE: data})
    reported.add(
        "compressed",
        export_for(setup.targets, network, plan, context.workdir),
        len(data),
        pricer.costs(delivered.policy)["macs"],
        delivered.policy,
    )
    # An earlier attempt, or an earlier job in the same folder, may have left members that are none of this front.
    shutil.rmtree(context.workdir / FOLDER, ignore_errors=True)
    for member in members[1:]:
        macs = pricer.costs(member.policy)["macs"]
        files, packed = export_member(setup, member, context.workdir)
        reported.add(member.name, files, packed, macs, member.policy)
    bounded = pricer
    if setup.spec.objective == "pareto":
        costs = pricer.costs(delivered.policy)
        own = {q: costs[q] * pricer.margin(q) for q in axes.quantities}
        bounded = pricer.with_limits({**pricer.limits, **own})
    references, why = references_of(setup, bounded)
    for name, reference in references.items():
        made = setup.compressor.compress(setup.network.network_space.choices(reference))
        if rounding.wants(made.plan):
            context.stage("report", f"rounding {name} adaptively", 0, 0)
            context.check()
            made = rounding.reference(name, reference, made, bounded)
        files = export_for(setup.targets, made.network, made.plan, hidden / name)
        macs = prices.pricer.costs(reference)["macs"]
        reported.add(name, files, packed_size(made), macs, reference)
    return reported, why


def agreement(setup: JobSetup, compressed: Compressed, artifact: Path) -> float:
    """Share of the search images to which the exported file and the scored network give the same top-1."""
    inputs = setup.search.inputs
    scored = outputs_of(compressed.runnable(), inputs).argmax(1).numpy()
    ran = runner(setup.target).run(artifact, np.ascontiguousarray(inputs.numpy())).argmax(1)
    return float((scored == ran).mean())
