"""One search of the contest: the product's own loop and agent, a surrogate's scores, a virtual clock."""

from __future__ import annotations

import hashlib
import importlib.metadata
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest_spaces import ContestSpace, load_space
from benchmarks.experiments import make
from benchmarks.line_file import LineFile
from evaluation.replay import ReplayScorer
from evaluation.simulated_pool import SimulatedPool
from search_spaces import Evaluation, Policy
from service.search_loop import SearchLoop, Trial

# Hypervolume is the area between the front and this point: the uncompressed network's latency, and a divergence that
# leaves nothing worth having of ten classes.
REFERENCE = (1.0, -2.0)
_ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = ("numpy", "scipy", "torch", "optuna", "stable-baselines3", "gymnasium")


@dataclass(frozen=True)
class Task:
    """What a run's result depends on.

    Attributes:
        space: name of the recording.
        digest: of the recording and its surrogate.
        budget: latency, as a share of the uncompressed network's.
        evaluations: the agent may use.
        agent: its name.
        seed: of the agent.
        evaluators: simulated ones, side by side.
        code: digest of the agents' and the search's sources and of the libraries' versions.
    """

    space: str
    digest: str
    budget: float
    evaluations: int
    agent: str
    seed: int
    evaluators: int
    code: str


@dataclass(frozen=True)
class Run:
    """What a search found.

    Attributes:
        task: it did.
        best: highest score within the budget; None where none was found.
        policy: values of the policy with that score.
        hypervolume: see ``REFERENCE``, in nats.
        trials: evaluations used; fewer than allowed where the agent had nothing more to propose.
        seconds: of wall time, most of it the agent's.
        utilisation: share of the evaluators' virtual time that was used.
        error: why there is no result; None where there is one.
    """

    task: Task
    best: float | None = None
    policy: tuple[int, ...] | None = None
    hypervolume: float | None = None
    trials: int = 0
    seconds: float = 0.0
    utilisation: float = 0.0
    error: str | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        policy = data["policy"]
        return cls(
            **{
                **data,
                "task": Task(**data["task"]),
                "policy": None if policy is None else tuple(policy),
            }
        )


def search(space: ContestSpace, task: Task) -> Run:
    """Runs one agent once. Whatever it raises is its result."""
    begun = time.perf_counter()
    try:
        pricer = space.recording.budget(task.budget)
        agent = make(task.agent, space.recording.space, pricer, task.evaluations, task.seed)
        macs, (least, start, slope) = space.recording.models["macs"], space.virtual_seconds

        def seconds(policy: Policy) -> float:
            index = space.recording.space.indices(policy)[None]
            return max(start + slope * float(macs.price(index)[0]), least)

        scorer = ReplayScorer(space.recording, space.surrogate, exact=False)
        pool = SimulatedPool(lambda: scorer, task.evaluators, seconds)
        loop = SearchLoop(agent, pricer, lambda _: None, lambda: None, lambda *_: None)
        trials = loop.run(pool, task.evaluations, None)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Run(task, seconds=time.perf_counter() - begun, error=" ".join(reason.split())[:300])
    spent = time.perf_counter() - begun
    scored = [(t.policy, t.outcome) for t in trials if isinstance(t.outcome, Evaluation)]
    if len(scored) < len(trials) or not scored:
        return Run(task, trials=len(trials), seconds=spent, error=_unscored(trials))
    within = [(policy, outcome) for policy, outcome in scored if outcome.feasible]
    if not within:
        return Run(task, trials=len(trials), seconds=spent, error="no policy within the budget")
    policy, best = max(within, key=lambda pair: pair[1].score)
    whole = pricer.costs(space.recording.space.uncompressed())["latency_ms"]
    points = [(outcome.costs["latency_ms"] / whole, outcome.score) for _, outcome in within]
    return Run(
        task, best.score, policy.values, hypervolume(points), len(trials), spent, pool.utilisation
    )  # fmt: skip


def _unscored(trials: Sequence[Trial]) -> str:
    failures = [t.outcome for t in trials if not isinstance(t.outcome, Evaluation)]
    if not failures:
        return "the agent proposed nothing"
    return f"{len(failures)} policies could not be scored: {failures[0].reason}"


def hypervolume(
    points: Iterable[tuple[float, float]], reference: tuple[float, float] = REFERENCE
) -> float:
    """Area that points dominate, up to a reference point: costs are to be small, scores high.

    Zitzler and Thiele 1998, "Multiobjective Optimization Using Evolutionary Algorithms", in two dimensions.

    Args:
        points: cost and score each.
        reference: cost and score that are worse than any worth having; what is worse than it adds nothing.
    """
    area, height = 0.0, reference[1]
    for cost, score in sorted(points, key=lambda p: (p[0], -p[1])):
        if cost < reference[0] and score > height:
            area += (reference[0] - cost) * (score - height)
            height = score
    return area


def run_all(
    tasks: Sequence[Task], paths: dict[str, Path], workers: int, done: Callable[[Run], None]
) -> None:
    """Runs tasks in so many processes, in this one where it is one; ``done`` gets each as it ends.

    Args:
        paths: of the recordings, by name.
    """
    if workers == 1:
        for task in tasks:
            done(_work(task, paths[task.space]))
        return
    # Each process has one core: libraries that start threads of their own would fight over it.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin) as pool:
        futures = {pool.submit(_work, task, paths[task.space]): task for task in tasks}
        for future in as_completed(futures):
            try:
                run = future.result()
            except Exception as error:
                run = Run(
                    futures[future], error=f"its process ended: {error or type(error).__name__}"
                )
            done(run)


def _begin() -> None:
    torch.set_num_threads(1)


@cache
def _space(path: Path) -> ContestSpace:
    return load_space(path)


def _work(task: Task, path: Path) -> Run:
    return search(_space(path), task)


class ResultFile(LineFile[Run]):
    """Runs kept from one contest to the next."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, Run.from_json)


def code_digest() -> str:
    """Of everything but the recording that a run's result depends on."""
    digest = hashlib.sha256()
    folders = ("agents", "search_spaces", "benchmarks/model_based_rl")
    files = [p for folder in folders for p in (_ROOT / folder).rglob("*.py")]
    files += [_ROOT / name for name in (
        "service/search_loop.py", "evaluation/replay.py", "evaluation/simulated_pool.py",
        "evaluation/outcome.py", "benchmarks/contest_runs.py",
    )]  # fmt: skip
    for file in sorted(files):
        digest.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    for library in _LIBRARIES:
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            version = "absent"  # its agents end with an error, the others run
        digest.update(f"{library} {version}\n".encode())
    return digest.hexdigest()[:16]
