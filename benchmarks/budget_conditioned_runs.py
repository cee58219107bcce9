"""One search for several budgets: one training over all of them, a search a budget, or a front."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from agents.fronts import make_front_agent
from agents.protocol import Agent
from agents.registry import agent_names
from benchmarks.contest_runs import code_digest, hypervolume
from benchmarks.contest_spaces import ContestSpace, load_space
from benchmarks.experiments import check, make
from benchmarks.line_file import LineFile
from benchmarks.model_based_rl import (
    BudgetConditionedAgent,
    BudgetSettings,
    ConditionedSettings,
    EditorSettings,
    ModelBasedRlSettings,
)
from evaluation.replay import ReplayScorer
from search_spaces.front import FrontAxes, worth
from search_spaces.pricing import Pricer

# Bounds on the latency that are judged, and the span that one training and fronts search, as shares of the
# uncompressed network's.
BOUNDS = (0.35, 0.5, 0.7)
LOW, HIGH = 0.3, 0.75
_QUANTITY = "latency_ms"
_SPAN = BudgetSettings(_QUANTITY, LOW, HIGH)
_UNTRAINED = ModelBasedRlSettings(editor=EditorSettings(rate=0.0))
# One training over all budgets, by what is different.
_KNOWN = replace(_SPAN, wanted=BOUNDS)
CONDITIONED: Mapping[str, ConditionedSettings] = {
    "conditioned": ConditionedSettings(_SPAN),
    "untrained": ConditionedSettings(_SPAN, _UNTRAINED),
    "no-replay": ConditionedSettings(_SPAN, kept=0),
    "taught": ConditionedSettings(_SPAN, taught=4, clones=2),
    "known": ConditionedSettings(_KNOWN),
    "known-untrained": ConditionedSettings(_KNOWN, _UNTRAINED),
}
# How the evaluations are spent.
ONE, APART, FRONT = "one", "apart", "front"
# An evaluation: share of the uncompressed network's latency that is held against bounds, and score.
Point = tuple[float, float]


@dataclass(frozen=True)
class Task:
    """What a run's result depends on.

    Attributes:
        space: name of the recording.
        digest: of the recording and its surrogate.
        method: ``one/NAME`` of ``CONDITIONED``, ``apart/AGENT`` or ``front/AGENT``.
        evaluations: for all budgets together.
        seed: of the agents.
        code: digest of all sources that matter and of the libraries' versions.
    """

    space: str
    digest: str
    method: str
    evaluations: int
    seed: int
    code: str


@dataclass(frozen=True)
class Run:
    """What was found.

    Attributes:
        task: that was done.
        best: highest score within each of ``BOUNDS``; None where nothing was.
        volume: see ``span_volume``.
        evaluations: that were used; fewer than allowed where an agent had nothing more to propose.
        seconds: of wall time, most of it the agents'.
        error: why there is no result; None where there is one.
    """

    task: Task
    best: tuple[float | None, ...] = field(default=(None,) * len(BOUNDS))
    volume: float = 0.0
    evaluations: int = 0
    seconds: float = 0.0
    error: str | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        return cls(**{**data, "task": Task(**data["task"]), "best": tuple(data["best"])})


def check_method(method: str) -> None:
    """Raises SystemExit, with what is known, where there is no such method."""
    way, _, name = method.partition("/")
    if way == APART and name:
        check(name)
    elif not (way == ONE and name in CONDITIONED) and not (way == FRONT and name in agent_names()):
        ways = [*(f"{ONE}/{known}" for known in CONDITIONED), f"{APART}/AGENT", f"{FRONT}/AGENT"]
        raise SystemExit(f"unknown method {method!r}; known: {', '.join(ways)}")


def search(space: ContestSpace, task: Task) -> Run:
    """Runs a method once, one proposal at a time. Whatever it raises is its result."""
    begun = time.perf_counter()
    try:
        points = [
            point
            for agent, pricer, evaluations in _searches(space, task)
            for point in drive(space, agent, pricer, evaluations)
        ]
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Run(task, seconds=time.perf_counter() - begun, error=" ".join(reason.split())[:300])
    spent = time.perf_counter() - begun
    best = tuple(best_within(points, bound) for bound in BOUNDS)
    return Run(task, best, span_volume(points), len(points), spent)


def _searches(space: ContestSpace, task: Task) -> Iterator[tuple[Agent, Pricer, int]]:
    """Agents one after the other, each with the prices it is held against and its evaluations."""
    way, _, name = task.method.partition("/")
    of, total, seed = space.recording.space, task.evaluations, task.seed
    if way == APART:
        for k, bound in enumerate(BOUNDS):
            own = total // len(BOUNDS) + (k < total % len(BOUNDS))
            bounded = space.recording.budget(bound, _QUANTITY)
            yield make(name, of, bounded, own, seed), bounded, own
        return
    widest = space.recording.budget(HIGH, _QUANTITY)
    if way == FRONT:
        axes = FrontAxes.of(widest, (_QUANTITY,))
        yield make_front_agent(name, of, widest, total, seed, axes), widest, total
        return
    agent = BudgetConditionedAgent(of, widest, total, seed, CONDITIONED[name])
    yield agent, widest, total


def drive(space: ContestSpace, agent: Agent, pricer: Pricer, evaluations: int) -> list[Point]:
    """What an agent's proposals cost and score. A repeated policy counts as an evaluation, as in a job."""
    scorer = ReplayScorer(space.recording, space.surrogate, exact=False)
    whole = pricer.costs(space.recording.space.uncompressed())[_QUANTITY]
    points: list[Point] = []
    while len(points) < evaluations and (proposals := agent.ask(1)):
        (proposal,) = proposals
        costs = pricer.costs(proposal.policy)
        scored = scorer.score(proposal.policy)
        told = replace(scored, costs=costs, violations=pricer.violations(costs))
        agent.tell(proposal.id, proposal.policy, told)
        points.append((costs[_QUANTITY] * pricer.margin(_QUANTITY) / whole, told.score))
    return points


def best_within(points: Sequence[Point], bound: float) -> float | None:
    """The highest score at no more than a bound; None where nothing is within it."""
    return max((score for share, score in points if share <= bound * (1 + 1e-9)), default=None)


def span_volume(points: Sequence[Point]) -> float:
    """The hypervolume of worth (e to the score) and latency within the span, as a share of the span's width.

    It is the mean over all bounds from ``LOW`` to ``HIGH`` of the worth of the best policy within each, 0 where there
    is none. What is faster than ``LOW`` counts as if it were there: searches that go lower gain nothing by it.
    """
    held = [(max(share, LOW), worth(score)) for share, score in points]
    return hypervolume(held, (HIGH, 0.0)) / (HIGH - LOW)


@cache
def _space(path: Path) -> ContestSpace:
    return load_space(path)


def work(task: Task, path: Path) -> Run:
    """``search`` in a process of its own, which keeps the spaces that it loaded."""
    torch.set_num_threads(1)
    return search(_space(path), task)


def sources_digest() -> str:
    """Of everything but the recording that a run's result depends on."""
    return hashlib.sha256(code_digest().encode() + Path(__file__).read_bytes()).hexdigest()[:16]


class RunFile(LineFile[Run]):
    """Runs kept from one call to the next."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, Run.from_json)
