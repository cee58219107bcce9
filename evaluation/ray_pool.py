"""Evaluators as named Ray actors, each with its own copy of the network."""

from __future__ import annotations

import re
import sys
import time
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

    def score(
        self, policy: Policy, score_to_beat: float | None
    ) -> tuple[Evaluation | Failure, float]:
        """The outcome, and the seconds it took."""
        if self._scorer is None:
            raise ScoringError("the evaluator was not prepared")
        begun = time.perf_counter()
        outcome = outcome_of(self._scorer, policy, score_to_beat)
        return outcome, time.perf_counter() - begun


@dataclass(slots=True)
class _Task:
    ticket: int
    policy: Policy
    score_to_beat: float | None
    tries: int = 0


@dataclass(slots=True)
class _Call:
    """What an actor was told to do; without a task that is to prepare."""

    result: Any
    task: _Task | None = None


@dataclass(slots=True, eq=False)
class _Worker:
    """An actor with the calls it makes one after the other: a score, and the next one where one was asked ahead.

    Attributes:
        since: when it began the first of its calls, as far as is known here.
    """

    index: int
    actor: Any
    calls: deque[_Call]
    since: float = 0.0

    @property
    def scoring(self) -> bool:
        """Whether it is at its one score: then another one may wait behind that."""
        return len(self.calls) == 1 and self.calls[0].task is not None


@dataclass(slots=True)
class _State:
    """Attributes:
    queue: what no worker was told of yet.
    flying: number of policies in flight.
    """

    queue: deque[_Task] = field(default_factory=deque)
    workers: dict[int, _Worker] = field(default_factory=dict)
    idle: deque[_Worker] = field(default_factory=deque)
    flying: int = 0
    tickets: int = 0
    deaths: int = 0
    generation: int = 0


class RayPool:
    """Satisfies ``EvaluatorPool``; needs an initialised Ray.

    Args:
        factory: builds a scorer inside an actor.
        size: number of actors; no more than the cluster has cores for.
        name: actors are called ``{name}-evaluator-{i}`` in Ray's dashboard.
        code_paths: folders that the actors append to their import path before they read the
            factory.
        cores: that an actor keeps busy; 0 where it waits for something else.
    """

    def __init__(
        self,
        factory: ScorerFactory,
        size: int,
        name: str,
        code_paths: Sequence[Path] = (),
        cores: int = 1,
    ) -> None:
        room = int(ray.cluster_resources().get("CPU", 1)) // cores if cores else size
        self._capacity = max(1, min(size, room))
        self._cores = cores
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
    def backlog(self) -> int:
        return self._capacity

    @property
    def in_flight(self) -> int:
        return self._state.flying

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        state = self._state
        ticket = state.tickets
        state.tickets += 1
        state.flying += 1
        state.queue.append(_Task(ticket, policy, score_to_beat))
        self._assign()
        return ticket

    def wait(self, timeout: float | None = None) -> list[Finished]:
        """See ``EvaluatorPool.wait``.

        Raises:
            TrimtabError: the factory cannot build a scorer, or evaluators keep dying.
        """
        state = self._state
        while state.flying:
            calls = {
                call.result: worker for worker in state.workers.values() for call in worker.calls
            }
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
            if not ready:
                return []
            # Take all that is done by now, oldest first, without waiting again.
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            done = set(ready)
            finished = []
            for worker in dict.fromkeys(calls[result] for result in ready):
                finished += self._collect(worker, done)
            self._assign()
            if finished:
                state.flying -= len(finished)
                return sorted(finished, key=lambda item: item.ticket)
        return []

    def close(self) -> None:
        state = self._state
        for worker in state.workers.values():
            ray.kill(worker.actor, no_restart=True)
        self._state = _State(tickets=state.tickets)

    def _start(self, index: int) -> None:
        state = self._state
        # A dead actor keeps its name for a moment: the replacement's name says which life it is.
        life = f"-{state.generation}" if state.generation else ""
        actor = (
            ray.remote(Evaluator)
            .options(
                name=f"{self._name}-evaluator-{index}{life}", num_cpus=self._cores, max_restarts=0
            )
            .remote(self._factory, self._code_paths)
        )
        state.workers[index] = _Worker(index, actor, deque([_Call(actor.prepare.remote())]))

    def _assign(self) -> None:
        """Gives what waits to idle workers, then to those that have been busy longest: they are done first."""
        state = self._state
        while state.queue and state.idle:
            worker = state.idle.popleft()
            worker.since = time.monotonic()
            self._tell(worker, state.queue.popleft())
        if state.queue:
            scoring = [worker for worker in state.workers.values() if worker.scoring]
            for worker in sorted(scoring, key=lambda worker: worker.since):
                if not state.queue:
                    return
                self._tell(worker, state.queue.popleft())

    @staticmethod
    def _tell(worker: _Worker, task: _Task) -> None:
        result = worker.actor.score.remote(task.policy, task.score_to_beat)
        worker.calls.append(_Call(result, task))

    def _collect(self, worker: _Worker, done: set[Any]) -> list[Finished]:
        """Takes a worker's results; preparations have none, and neither have deaths that are not the policy's last."""
        state = self._state
        finished = []
        while worker.calls and worker.calls[0].result in done:
            call = worker.calls.popleft()
            worker.since = time.monotonic()
            try:
                outcome = ray.get(call.result)
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except RayError as error:
                finished += self._replace(worker, call.task, error)
                return finished
            if call.task is not None:
                state.deaths = 0
                finished.append(Finished(call.task.ticket, *outcome))
        if not worker.calls:
            state.idle.append(worker)
        return finished

    def _replace(self, worker: _Worker, task: _Task | None, error: RayError) -> list[Finished]:
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
        # What waited behind the policy it died on was not tried.
        state.queue.extendleft(call.task for call in worker.calls if call.task is not None)
        self._start(worker.index)
        if task is None:
            return []
        if task.tries:
            failure = Failure(f"the evaluator died twice on this policy: {reason}", retryable=True)
            return [Finished(task.ticket, failure)]
        task.tries += 1
        state.queue.appendleft(task)
        return []


def readable(name: str) -> str:
    """A job's name as part of an actor's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")[:40] or "job"


def load_by_value(dumped: bytes, code_paths: Sequence[str]) -> Any:
    """Unpickles what a driver of ours pickled, after making the operator's modules importable."""
    sys.path.extend(path for path in code_paths if path not in sys.path)
    return cloudpickle.loads(dumped)
