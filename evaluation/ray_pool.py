"""Evaluators as named Ray actors, each with its own copy of the network."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from evaluation.errors import ScoringError
from evaluation.outcome import outcome_of
from evaluation.pool import Finished, Scorer, ScorerFactory
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy

# Workers that die one after another before anything was scored: the job cannot go on.
_MAX_DEATHS = 10


class Evaluator:
    """What runs in the actor. The scorer is built by ``prepare``, so that its error reaches the
    driver.
    """

    def __init__(self, factory: bytes, code_paths: tuple[str, ...]) -> None:
        self._factory = factory
        self._code_paths = code_paths
        self._scorer: Scorer | None = None

    def prepare(self) -> None:
        """Builds the scorer, on one thread: the pool has as many evaluators as there are cores.

        Ray sets OMP_NUM_THREADS to the actor's one core, which torch heeds when it is imported;
        here it is said once more for a scorer that changed it.
        """
        self._scorer = load_by_value(self._factory, self._code_paths)()
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)

    def score(self, policy: Policy, score_to_beat: float | None) -> Evaluation | Failure:
        if self._scorer is None:
            raise ScoringError("the evaluator was not prepared")
        return outcome_of(self._scorer, policy, score_to_beat)


@dataclass(slots=True)
class _Task:
    ticket: int
    policy: Policy
    score_to_beat: float | None
    tries: int = 0


@dataclass(slots=True)
class _Worker:
    """An actor with the one call it is busy with; without a task that call is its preparation."""

    index: int
    actor: Any
    call: Any
    task: _Task | None = None


@dataclass(slots=True)
class _State:
    queue: deque[_Task] = field(default_factory=deque)
    busy: list[_Worker] = field(default_factory=list)
    idle: list[_Worker] = field(default_factory=list)
    tickets: int = 0
    deaths: int = 0
    generation: int = 0


class RayPool:
    """Satisfies ``EvaluatorPool``; needs an initialised Ray.

    Args:
        factory: builds a scorer inside an actor.
        size: number of actors; no more than the cluster has cores.
        name: actors are called ``{name}-evaluator-{i}`` in Ray's dashboard.
        code_paths: folders that the actors append to their import path before they read the
            factory.
    """

    def __init__(
        self, factory: ScorerFactory, size: int, name: str, code_paths: Sequence[Path] = ()
    ) -> None:
        cores = int(ray.cluster_resources().get("CPU", 1))
        self._capacity = max(1, min(size, cores))
        self._name = readable(name)
        # Shipped once to the object store, not once an actor.
        self._factory = ray.put(cloudpickle.dumps(factory))
        self._code_paths = tuple(str(path) for path in code_paths)
        self._state = _State()
        for index in range(self._capacity):
            self._start(index)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def in_flight(self) -> int:
        busy = sum(worker.task is not None for worker in self._state.busy)
        return busy + len(self._state.queue)

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        state = self._state
        ticket = state.tickets
        state.tickets += 1
        state.queue.append(_Task(ticket, policy, score_to_beat))
        self._assign()
        return ticket

    def wait(self, timeout: float | None = None) -> list[Finished]:
        """See ``EvaluatorPool.wait``.

        Raises:
            TrimtabError: the factory cannot build a scorer, or evaluators keep dying.
        """
        state = self._state
        while self.in_flight:
            calls = [worker.call for worker in state.busy]
            ready, _ = ray.wait(calls, num_returns=1, timeout=timeout)
            if not ready:
                return []
            # Take all that is done by now, oldest first, without waiting again.
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            done = [worker for worker in state.busy if worker.call in ready]
            finished = [item for worker in done if (item := self._collect(worker)) is not None]
            self._assign()
            if finished:
                return sorted(finished, key=lambda item: item.ticket)
        return []

    def close(self) -> None:
        state = self._state
        for worker in [*state.busy, *state.idle]:
            ray.kill(worker.actor, no_restart=True)
        state.busy.clear()
        state.idle.clear()
        state.queue.clear()

    def _start(self, index: int) -> None:
        state = self._state
        # A dead actor keeps its name for a moment: the replacement's name says which life it is.
        life = f"-{state.generation}" if state.generation else ""
        actor = (
            ray.remote(Evaluator)
            .options(name=f"{self._name}-evaluator-{index}{life}", num_cpus=1, max_restarts=0)
            .remote(self._factory, self._code_paths)
        )
        state.busy.append(_Worker(index, actor, actor.prepare.remote()))

    def _assign(self) -> None:
        state = self._state
        while state.queue and state.idle:
            worker = state.idle.pop(0)
            worker.task = state.queue.popleft()
            task = worker.task
            worker.call = worker.actor.score.remote(task.policy, task.score_to_beat)
            state.busy.append(worker)

    def _collect(self, worker: _Worker) -> Finished | None:
        """Takes a worker's result; None after a preparation or a death that is not the policy's
        last.
        """
        state = self._state
        state.busy.remove(worker)
        task, worker.task = worker.task, None
        try:
            outcome = ray.get(worker.call)
        except RayTaskError as error:
            state.idle.append(worker)
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except RayError as error:
            return self._replace(worker, task, error)
        state.idle.append(worker)
        if task is None:
            return None
        state.deaths = 0
        return Finished(task.ticket, outcome)

    def _replace(self, worker: _Worker, task: _Task | None, error: RayError) -> Finished | None:
        state = self._state
        state.deaths += 1
        state.generation += 1
        reason = str(error).strip().splitlines()[0]
        if state.deaths > _MAX_DEATHS:
            raise ScoringError(
                f"{state.deaths} evaluators died in a row ({reason}); is there enough memory for "
                f"{self._capacity} of them? Fewer: TRIMTAB_EVALUATORS"
            ) from error
        ray.kill(worker.actor, no_restart=True)
        self._start(worker.index)
        if task is None:
            return None
        if task.tries:
            failure = Failure(f"the evaluator died twice on this policy: {reason}", retryable=True)
            return Finished(task.ticket, failure)
        task.tries += 1
        state.queue.appendleft(task)
        return None


def readable(name: str) -> str:
    """A job's name as part of an actor's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")[:40] or "job"


def load_by_value(dumped: bytes, code_paths: Sequence[str]) -> Any:
    """Unpickles what a driver of ours pickled, after making the operator's modules importable."""
    sys.path.extend(path for path in code_paths if path not in sys.path)
    return cloudpickle.loads(dumped)
