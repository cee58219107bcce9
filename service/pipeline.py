"""A compression job from its spec to its report: the same path on a server and on the command line."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.fronts import make_front_agent
from agents.objective import Objective
from agents.protocol import Agent
from compressors import Compressed, save
from compressors.loading import PLAN_FILE
from evaluation.promise import MACS_WEIGHT
from evaluation.stopping import CONTENDERS
from latency_tables import TableStore
from latency_tables.errors import TrimtabError
from latency_tables.table_target import TableTarget
from search_spaces import Evaluation, Policy, Pricer
from search_spaces.budget import PACKED
from search_spaces.front import FrontAxes
from service.context import JobContext, TrialRecord
from service.finalist_rounding import FinalistRounding, recipe_json
from service.finalist_training import finetuned
from service.finalists import Finalist, FinalistPicker
from service.front_files import Member
from service.front_job import FrontProgress, axes_of
from service.job_files import write_json, write_trials
from service.job_prices import learn_job_prices, limits_of
from service.job_report import job_report
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.packed_prices import packed_size
from service.plugin_agents import agent_notes, builder
from service.plugins import brought_by
from service.price_review import PriceReview
from service.rank_offers import RankOffers, rank_notes
from service.report_page import render
from service.search_loop import SearchLoop, Trial


class SearchFailed(TrimtabError):
    """No policy could be evaluated."""

    slug = "search-failed"
    title = "The search found nothing"


def run_job(spec: JobSpec, context: JobContext) -> dict[str, Any]:
    """Runs one job and leaves its files in ``context.workdir``.

    Returns:
        The report, as written to ``report.json``.

    Raises:
        TrimtabError: the job's reason; ``Cancelled`` and ``LeaseLost`` end it from outside.
    """
    # As if all attempts at the job had been one.
    begun = time.monotonic() - context.worked()
    deadline = None if spec.max_seconds is None else begun + spec.max_seconds
    setup = load_job(
        spec,
        context.sources,
        context.weights_path,
        lambda name, text: context.stage(name, text),
        context.data_dir,
        lambda one: replace(
            RankOffers.of(one.spec, one.target, context.data_dir, context),
            pin=one.pin(context.pin),
        ),
        context.plugins,
    )
    brought = _pin_plugins(setup, context)
    space = setup.network.network_space.space
    pinned = context.pin("space", {"digest": space.digest})
    if pinned["digest"] != space.digest:
        raise SearchFailed(
            "the search space differs from the one this job began with: the network, the target or Trimtab "
            "changed in between. Submit the job anew"
        )
    # Which channels a later attempt keeps must not hang on the last digits of its gradients.
    ranked = {root: order.tolist() for root, order in setup.compressor.rankings.items()}
    pinned = context.pin("rankings", ranked)
    setup.compressor.rankings = {root: np.array(order) for root, order in pinned.items()}
    hidden = context.workdir / ".work"
    hidden.mkdir(parents=True, exist_ok=True)
    prices = learn_job_prices(setup, context, hidden)
    limits = limits_of(spec, prices)
    pricer = prices.pricer.with_limits(limits)
    pricer.require_reachable()
    axes = axes_of(spec, pricer, context.pin)
    progress = FrontProgress(axes, context.stage)
    store = TableStore(context.data_dir / "tables")
    review = PriceReview(
        setup, prices, limits, hidden, store, context.check, context.stage, context.pin
    )
    trials, records = _search(
        spec, setup, pricer, context, hidden, deadline, axes, progress, review
    )
    prices = review.prices
    if not any(isinstance(t.outcome, Evaluation) for t in trials):
        reasons = sorted(
            {t.outcome.reason for t in trials if not isinstance(t.outcome, Evaluation)}
        )
        raise SearchFailed(
            f"none of {len(trials)} policies could be evaluated: {'; '.join(reasons[:3])}"
        )
    whole_front = spec.objective == "pareto"
    picker = FinalistPicker(
        setup, prices, limits, hidden, context.check, context.stage, store,
        axes if whole_front else None,
    )  # fmt: skip
    several = whole_front or spec.finetune.epochs
    finalists = picker.pick(trials, spec.finetune.finalists if several else 1)
    rounding = FinalistRounding(setup)
    for k, finalist in enumerate(finalists):
        if rounding.wants(finalist.compressed.plan):
            context.stage("finalists", "rounding adaptively", k, len(finalists))
            context.check()
            finalists[k] = rounding.finalist(finalist, picker.pricer)
    verb = "measured" if prices.measurable else "priced from its own kernels"
    members, notes = _finish(
        spec, setup, finalists, context, hidden, limits.get(PACKED, math.inf), verb
    )
    winner = members[0]
    rounded = winner.policy.digest in rounding.kept
    notes += [prices.said(k) + note for k, own in enumerate(picker.kernels) for note in own.notes]
    timed = sum(own.timed for own in picker.kernels)
    if timed:
        notes.append(
            f"{timed} kernels of finalists that were modelled during the search were timed"
        )
    if picker.repaired:
        notes.append(
            f"prices were corrected {len(picker.corrections)} times by what finalists took; "
            f"{picker.repaired} further policies were made from the best trials and scored"
        )
    if picker.grown:
        notes.append(
            f"the winner was grown {picker.grown} times into what it left unused of the bounds, and scored and "
            f"{'timed' if prices.measurable else 'priced'} anew each time"
        )
    report = job_report(
        setup, prices, limits, trials, members, context, hidden, picker.pricer,
        picker.corrections_on, axes, rounding,
        {
            "search_score": {
                "winner": winner.evaluation.score, "interval": list(winner.evaluation.interval)
            },
            "recipe": recipe_json(setup, winner.compressed.plan, rounded),
            "hypervolume": progress.front.to_json(),
            "corrections": picker.corrections,
            "notes": [
                *prices.prediction_notes(),
                *rank_notes(setup.network.network_space.whole),
                *prices.notes,
                *review.notes,
                *agent_notes(spec.agent, pricer.space),
                *notes,
            ],
        },
        begun,
    )  # fmt: skip
    report["versions"] |= brought
    _leave(setup, winner.policy, winner.compressed, report, records, context.workdir)
    shutil.rmtree(hidden, ignore_errors=True)
    context.stage("done", "met the budget" if report["met_budget"] else "missed the budget", 1, 1)
    return report


def _pin_plugins(setup: JobSetup, context: JobContext) -> dict[str, str]:
    """The distributions that bring what the job uses, which no later attempt may find in another version.

    Raises:
        SearchFailed: this attempt does.
    """
    devices = [
        one.target.inner.name if isinstance(one.target, TableTarget) else one.target.name
        for one in setup.targets
    ]
    brought = brought_by(setup.spec, devices)
    if brought and (pinned := context.pin("plugins", brought)) != brought:
        changed = [
            f"the {label} was of {pinned.get(label, 'no plug-in')} and is of {brought.get(label, 'none')} now"
            for label in sorted(pinned | brought)
            if pinned.get(label) != brought.get(label)
        ]
        raise SearchFailed(
            f"this job began with other plug-ins: {'; '.join(changed)}. Install those again, or submit the job anew"
        )
    return brought


def _search(
    spec: JobSpec,
    setup: JobSetup,
    pricer: Pricer,
    context: JobContext,
    hidden: Path,
    deadline: float | None,
    axes: FrontAxes,
    progress: FrontProgress,
    review: PriceReview,
) -> tuple[list[Trial], list[TrialRecord]]:
    space = setup.network.network_space.space
    count, seed = spec.agent.evaluations, spec.agent.seed
    build = builder(spec.agent.name, context.plugins, spec.agent.published)

    def made(own: Pricer) -> Agent:
        if spec.objective == "pareto":
            return make_front_agent(spec.agent.name, space, own, count, seed, axes, build)
        return build(space, own, count, seed, Objective.of(spec.objective, own, spec.max_drop))

    records: list[TrialRecord] = []

    def record(trials: Sequence[TrialRecord]) -> None:
        context.record(trials)
        records.extend(trials)
        progress.tell(trials)

    # Under the other objectives a policy of a lower score may be the one that is wanted.
    contenders = CONTENDERS if spec.objective == "accuracy" else None
    loop = SearchLoop(
        made(pricer), pricer, record, context.check, progress.stage, contenders,
        review.repricing(made),
    )  # fmt: skip
    earlier = context.recorded()
    if earlier:
        context.stage(
            "search",
            f"replaying {len(earlier)} recorded trials",
            len(earlier),
            spec.agent.evaluations,
        )
        loop.replay(earlier)
        records.extend(earlier)
        progress.tell(earlier)
    if len(earlier) < spec.agent.evaluations:
        context.stage("search", "starting evaluators", len(earlier), spec.agent.evaluations)
        pool = context.pool(setup.search_builder(hidden))
        try:
            loop.run(pool, spec.agent.evaluations, deadline)
        finally:
            pool.close()
    return loop.trials, records


def _finish(
    spec: JobSpec,
    setup: JobSetup,
    finalists: list[Finalist],
    context: JobContext,
    hidden: Path,
    packed_limit: float,
    verb: str,
) -> tuple[list[Member], list[str]]:
    """The winner: by search score after fine-tuning, never by the test split. Of a front all, the winner first.

    Training moves a packed file's size a little; one that stays within its bound goes before one that does not.
    """
    notes = []
    if not finalists[0].met:
        notes.append(
            f"no policy met the budget when its file was {verb}; the nearest is returned with its violation"
        )
    if not spec.finetune.epochs:
        return [_member(f, f.compressed, f.evaluation) for f in finalists], notes
    if setup.promise is not None:
        notes.append(
            "the search went by minus the divergence plus "
            f"{MACS_WEIGHT:g} ln(share of the multiply-accumulates), which tells better what training gives; "
            "the scores of its trials hold both"
        )
    builder = setup.scorer_builder(hidden)
    tuned, more = finetuned(setup, finalists, context.tuner(), builder, hidden, context.stage)
    # Finalists of a front stay in its order: the one that alone dominates most is first.
    best = (
        tuned
        if spec.objective == "pareto"
        else sorted(
            tuned,
            key=lambda item: (
                packed_limit == math.inf or packed_size(item[1]) <= packed_limit,
                *_wanted(spec, item[0], item[2]),
            ),
            reverse=True,
        )[:1]
    )
    before = ", ".join(
        f"{f.policy.digest}: {f.evaluation.score:.4f} -> {e.score:.4f}" for f, _, e in tuned
    )
    notes += [*more, f"search score by fine-tuning: {before}"]
    return [_member(*item) for item in best], notes


def _member(finalist: Finalist, compressed: Compressed, evaluation: Evaluation) -> Member:
    return Member(finalist.policy, compressed, evaluation, finalist.costs.quantities)


def _wanted(spec: JobSpec, finalist: Finalist, evaluation: Evaluation) -> tuple[bool, float]:
    """What the job's objective prefers among trained finalists, larger first."""
    if spec.objective == "accuracy":
        return True, evaluation.score
    drop = evaluation.top1_drop[0] if evaluation.top1_drop is not None else 1.0
    kept = drop <= (spec.max_drop or 0.0)
    return kept, -finalist.ratio if kept else -drop


def _leave(
    setup: JobSetup,
    policy: Policy,
    compressed: Compressed,
    report: dict[str, Any],
    records: list[TrialRecord],
    workdir: Path,
) -> None:
    """Writes the job's files; the report last, so that its presence means all are there."""
    space = setup.network.network_space.space
    save(compressed.network, compressed.plan, workdir)
    assert (workdir / PLAN_FILE).exists()
    write_json(
        workdir / "policy.json",
        policy.to_json(space.ids) | {"decisions": space.to_json()["decisions"]},
    )
    documents = [dataclasses.asdict(record) for record in records]
    write_trials(workdir / "trials.parquet", space.ids, documents)
    (workdir / "report.html").write_text(render(report, documents))
    write_json(workdir / "report.json", report)
