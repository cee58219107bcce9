"""How many evaluations a second a search makes, and how busy it keeps many evaluators.

Everything but the scoring is the product's: the search loop, the agents on the recorded space of ResNet-20, the pool of
Ray actors, and the job store with every trial on disk before the search ends. Scoring does nothing (``rate``), or
sleeps (``busy``): an evaluator is then a process of its own that needs no core.

    python -m benchmarks.many_evaluations [--agents random evolution] [--evaluators 1 4 16 64 128 256] [--json FILE]

``rate``: evaluations a second with as many evaluators as there are cores, and what they would be if the agent needed no
time. ``busy``: share of the evaluators' time that they slept, over the whole search (in which they are first given
work one after the other, and in the end run dry) and from when all have begun until no more is asked; once as the
product does it and once without asking ahead. No more than ``1 / agent ms`` evaluations a second are to be had.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from agents.protocol import Agent, Proposal
from agents.registry import agent_names, make_agent
from benchmarks.contest_spaces import RECORDINGS
from benchmarks.postgres_server import NoPostgres, execute, own_postgres
from evaluation.pool import EvaluatorPool, Finished
from evaluation.ray_pool import RayPool
from evaluation.recording import Recording, load_recording
from search_spaces import Evaluation, Failure, Policy
from service.database import Database
from service.migrations import migrate
from service.search_loop import SearchLoop
from service.store import Store

GOALS = {"rate": 300.0, "busy": 0.95, "busy_evaluators": 64}
BUDGET = 0.5
_CORES = len(os.sched_getaffinity(0))
_PATIENCE = 3600.0


class Sleeper:
    """Scores every policy alike after so many seconds; ``top1`` is when it began, the drop in which process."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:  # noqa: ARG002
        began = time.time()
        if self.seconds:
            time.sleep(self.seconds)
        return Evaluation(
            (-0.1,), (-0.2, 0.0), top1=began, top1_drop=(float(os.getpid()), 0.0, 0.0)
        )


class Timed:
    """An agent, and the seconds it took."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        return self._agent.finished

    def ask(self, n: int = 1) -> list[Proposal]:
        begun = time.perf_counter()
        proposals = self._agent.ask(n)
        self.seconds += time.perf_counter() - begun
        return proposals

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        begun = time.perf_counter()
        self._agent.tell(id, executed, outcome)
        self.seconds += time.perf_counter() - begun

    def state_dict(self) -> dict[str, Any]:
        return self._agent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._agent.load_state_dict(state)


class Watched:
    """A pool whose evaluations are noted as they come back.

    Args:
        ahead: False hides the pool's backlog from the search.
    """

    def __init__(self, pool: EvaluatorPool, ahead: bool) -> None:
        self._pool = pool
        self.backlog = pool.backlog if ahead else 0
        self.spans: list[tuple[float, float]] = []

    @property
    def capacity(self) -> int:
        return self._pool.capacity

    @property
    def in_flight(self) -> int:
        return self._pool.in_flight

    def submit(self, policy: Policy, score_to_beat: float | None = None) -> int:
        return self._pool.submit(policy, score_to_beat)

    def wait(self, timeout: float | None = None) -> list[Finished]:
        finished = self._pool.wait(timeout)
        for item in finished:
            if not isinstance(item.outcome, Evaluation) or item.outcome.top1 is None:
                raise SystemExit(f"an evaluator failed: {item.outcome}")
            self.spans.append((item.outcome.top1, item.outcome.top1 + item.seconds))
        return finished

    def close(self) -> None:
        self._pool.close()


@dataclass(frozen=True)
class Result:
    """One search.

    Attributes:
        store: the database's kind.
        ahead: whether it asked ahead of its evaluators.
        rate: evaluations a second, of a search whose evaluators were ready.
        rate_without_agent: what it would be if the agent took no time.
        agent_ms: milliseconds an evaluation that the agent took.
        cpu_ms: milliseconds of a core an evaluation that the whole driver took, all its threads together; neighbours on
            a busy machine change it least.
        busy: share of the evaluators' time spent evaluating, from the first evaluation to the last.
        busy_steady: from when all have begun until the first has nothing more.
        evaluator_mib: memory of an evaluator's process that it shares with no other.
        start_seconds: until all evaluators were ready.
    """

    agent: str
    store: str
    evaluators: int
    seconds_each: float
    evaluations: int
    ahead: bool
    rate: float
    rate_without_agent: float
    agent_ms: float
    cpu_ms: float
    busy: float
    busy_steady: float
    evaluator_mib: float
    start_seconds: float


def search(
    recording: Recording, agent_name: str, url: str, pool: Watched, evaluations: int
) -> tuple[float, float, float]:
    """Seconds that a search took, seconds of these that its agent took, and seconds of a core."""
    pricer = recording.budget(BUDGET)
    agent = Timed(make_agent(agent_name, recording.space, pricer, evaluations, 0))
    store = Store(Database(url))
    try:
        migrate(store.database.engine)
        job = store.create({"name": "many evaluations", "objective": "accuracy"}).job.id
        lease = store.claim(job, store.start_attempt(job, _PATIENCE), "benchmark", _PATIENCE)
        loop = SearchLoop(
            agent,
            pricer,
            lambda trials: store.record_trials(lease, trials),
            lambda: None,
            lambda *_: None,
        )
        pool.spans.clear()
        begun, used = time.perf_counter(), time.process_time()
        trials = loop.run(pool, evaluations, None)
        taken, used = time.perf_counter() - begun, time.process_time() - used
        stored = len(store.trials(job)[0])
    finally:
        store.close()
    if not len(trials) == stored == evaluations:
        raise SystemExit(f"{len(trials)} trials, {stored} of them recorded, of {evaluations}")
    return taken, agent.seconds, used


def share(spans: list[tuple[float, float]], evaluators: int) -> tuple[float, float]:
    """Share of the evaluators' time spent evaluating: of all, and while all could be busy."""
    begins, ends = sorted(b for b, _ in spans), sorted(e for _, e in spans)
    windows = [(begins[0], ends[-1])]
    # All have begun with the n-th evaluation; with n left the first may have nothing more.
    steady = (begins[evaluators - 1], ends[-evaluators])
    windows.append(steady if steady[1] > steady[0] else windows[0])
    whole, middle = (
        sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in spans)
        / (evaluators * (last - first))
        for first, last in windows
    )
    return whole, middle


def ready(pool: EvaluatorPool) -> set[int]:
    """Waits until every evaluator has evaluated something; their process ids."""
    found: set[int] = set()
    while len(found) < pool.capacity:
        while pool.in_flight < pool.capacity:
            pool.submit(Policy("ready", (len(found),)))
        for item in pool.wait():
            if not isinstance(item.outcome, Evaluation) or item.outcome.top1_drop is None:
                raise SystemExit(f"an evaluator failed: {item.outcome}")
            found.add(int(item.outcome.top1_drop[0]))
        # Those that are ready would otherwise answer at once, again and again, and take the others' cores.
        time.sleep(0.1)
    while pool.in_flight:
        pool.wait()
    return found


def memory_of(processes: set[int]) -> float:
    """MiB that a process shares with no other, a mean."""
    return sum(psutil.Process(p).memory_full_info().uss for p in processes) / len(processes) / 2**20


def measure(
    recording: Recording, url: str, evaluators: int, seconds: float, evaluations: int,
    variants: list[tuple[str, bool]],
) -> Iterator[Result]:  # fmt: skip
    """Searches with one pool: pairs of an agent and whether to ask ahead."""
    begun = time.perf_counter()
    inner = RayPool(lambda: Sleeper(seconds), evaluators, "many", cores=0)
    try:
        processes = ready(inner)
        started, memory = time.perf_counter() - begun, memory_of(processes)
        for number, (agent, ahead) in enumerate(variants):
            pool = Watched(inner, ahead)
            with fresh_database(url, f"n{evaluators}_{number}") as own:
                taken, asking, used = search(recording, agent, own, pool, evaluations)
            busy, steady = share(pool.spans, evaluators)
            yield Result(
                agent, url.partition(":")[0].partition("+")[0], evaluators, seconds, evaluations,
                ahead, evaluations / taken, evaluations / max(taken - asking, 1e-9),
                1e3 * asking / evaluations, 1e3 * used / evaluations, busy, steady, memory, started,
            )  # fmt: skip
    finally:
        inner.close()


@contextlib.contextmanager
def fresh_database(url: str, name: str) -> Iterator[str]:
    """URL of an empty database on a server, or in a folder that is removed afterwards."""
    if url.startswith("sqlite"):
        with tempfile.TemporaryDirectory(prefix="trimtab-many-") as folder:
            yield f"sqlite:///{folder}/trimtab.sqlite3"
    else:
        execute(url, f"CREATE DATABASE {name}")
        yield f"{url}/{name}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recording", type=Path, default=RECORDINGS / "resnet20-joint.parquet")
    parser.add_argument(
        "--agents", nargs="+", default=["random", "evolution"], metavar="AGENT",
        choices=agent_names(),
    )  # fmt: skip
    parser.add_argument("--no-ops", type=int, default=1500, help="evaluations for rate; 0: skip")
    parser.add_argument(
        "--evaluators", type=int, nargs="*", default=[1, 4, 16, 64, 128, 256], metavar="N"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="that an evaluation sleeps")
    parser.add_argument("--rounds", type=int, default=20, help="evaluations an evaluator, for busy")
    parser.add_argument(
        "--compare", type=int, nargs="*", default=[64], metavar="N",
        help="numbers of evaluators that are tried without asking ahead as well",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    recording = load_recording(args.recording)
    # Evaluators that compute nothing have no part in the host's timing token, which lies in the temporary folder.
    scratch = tempfile.mkdtemp(prefix="many-")
    os.environ["TMPDIR"] = scratch
    ray.init(
        address="local", num_cpus=_CORES, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    results: list[Result] = []
    notes: list[str] = []
    try:
        if args.no_ops:
            agents = [(agent, True) for agent in args.agents]
            print(f"no-op evaluations, {_CORES} evaluators on {_CORES} cores\n{_RATE}")
            with contextlib.ExitStack() as stack:
                urls = ["sqlite:"]
                try:
                    urls.append(stack.enter_context(own_postgres(durable=True)))
                except NoPostgres as error:
                    notes.append(str(error))
                for url in urls:
                    for found in measure(recording, url, _CORES, 0.0, args.no_ops, agents):
                        results.append(found)
                        print(_rate_line(found), flush=True)
        if args.evaluators:
            print(f"\nevaluations of {args.seconds:g} s, SQLite\n{_BUSY}")
        for evaluators in args.evaluators:
            variants = [(agent, True) for agent in args.agents]
            if evaluators in args.compare:
                variants += [(agent, False) for agent in args.agents]
            count = evaluators * args.rounds
            each = measure(recording, "sqlite:", evaluators, args.seconds, count, variants)
            for found in each:
                results.append(found)
                print(_busy_line(found), flush=True)
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    for note in notes:
        print(f"not measured: {note}")
    if args.json:
        document = {
            "goals": GOALS,
            "recording": args.recording.name,
            "cores": _CORES,
            "machine": platform.processor() or platform.machine(),
            "ray": ray.__version__,
            "not_measured": notes,
            "results": [asdict(found) for found in results],
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


_RATE = f"{'agent':<10} {'store':<11} {'a second':>9} {'without the agent':>18} {'agent ms':>9} {'CPU ms':>7}"
_BUSY = (
    f"{'agent':<10} {'evaluators':>10} {'ahead':>6} {'busy':>7} {'steady':>7} {'a second':>9} "
    f"{'agent ms':>9} {'CPU ms':>7} {'MiB each':>9} {'start s':>8}"
)


def _rate_line(found: Result) -> str:
    return (
        f"{found.agent:<10} {found.store:<11} {found.rate:9.0f} {found.rate_without_agent:18.0f} "
        f"{found.agent_ms:9.2f} {found.cpu_ms:7.2f}"
    )


def _busy_line(found: Result) -> str:
    return (
        f"{found.agent:<10} {found.evaluators:10d} {'yes' if found.ahead else 'no':>6} "
        f"{found.busy:7.1%} {found.busy_steady:7.1%} {found.rate:9.1f} {found.agent_ms:9.2f} "
        f"{found.cpu_ms:7.2f} {found.evaluator_mib:9.0f} {found.start_seconds:8.1f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
