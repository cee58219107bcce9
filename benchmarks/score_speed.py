"""What a search score costs, beside a plain float forward pass over the same search images.

An agent searches as in a job, its policies scored by worker processes of one thread each, one a core. Each round the
workers score the next policies, then the original network's plain forward pass over all search images is timed twice,
in one process with a thread a core and in the workers with a share of the images each, and the faster one counts.
The batch of the plain pass is the fastest of several. What a score costs is the round's wall time over its policies,
with the preparation spread over 100 scores: what the job's process runs once for all workers, and what each of them
builds from that. CPU seconds are given beside it. The policies are then scored again as they once were (traced anew
for the file, all search images), and the two rankings are compared.

    python -m benchmarks.score_speed python:cifar_zoo:resnet56 --weights F --data python:cifar_zoo:cifar10
        --code-path ../shared/zoo --agent evolution --workers 2 [--policies 100] [--again 8] [--json FILE]

Prices are made up (multiply-accumulates, those in integers at half the price), so that nothing but scoring is timed.
Nothing else may run on the machine meanwhile. Needs neither Ray nor a server.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from agents.objective import Objective
from agents.registry import make_agent
from compressors.call_graph import channels_last
from evaluation.scoring import PolicyScorer
from evaluation.stopping import CONTENDERS, bar
from search_spaces import CostModel, Evaluation, Policy, Pricer
from search_spaces.cost_model import Factor
from search_spaces.layer_tables import layer_tables
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.sources import Sources

# Scores a job's preparation is spread over.
_SCORES = 100
_BATCHES = (16, 32, 64, 128, 256)
GOAL = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", required=True, metavar="SOURCE")
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--target", default="x86-ort")
    parser.add_argument("--agent", default="auto")
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--round", type=int, default=8, help="policies between two plain passes")
    parser.add_argument(
        "--again",
        type=int,
        default=8,
        metavar="N",
        help="of a round that are scored as before, too",
    )
    parser.add_argument("--budget", type=float, default=0.4, help="share of the made-up price")
    parser.add_argument("--search-images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = compare(args)
    print(describe(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


@dataclass(frozen=True)
class Ask:
    """What the parent asks a worker for: a plain pass over images, or scores of policies.

    Attributes:
        start, stop: images of a plain pass.
        threads: of a plain pass.
        policies: with their scores to beat.
        traced: export each policy anew for its file.
    """

    start: int = 0
    stop: int = 0
    batch: int = 0
    threads: int = 1
    policies: tuple[tuple[Policy, float | None], ...] = ()
    traced: bool = False


@dataclass(frozen=True)
class Done:
    evaluations: tuple[Evaluation, ...]
    cpu_seconds: float
    seconds: float = 0.0


def setup_of(args: argparse.Namespace) -> JobSetup:
    spec = JobSpec.model_validate(
        {
            "model": {"source": args.source},
            "data": {"source": args.data},
            "target": args.target,
            "budget": {"macs": args.budget},
            "search_images": args.search_images,
        }
    )
    sources = Sources(allow=("python:*",), code_paths=args.code_path)
    return load_job(spec, sources, args.weights)


def serve(connection: Connection, builder: bytes, code_paths: list[Path]) -> None:
    """A worker: builds its scorer as a job's worker does, then answers."""
    sys.path.extend(str(path) for path in code_paths)
    torch.set_num_threads(1)
    begun, wall = time.process_time(), time.perf_counter()
    scorer: PolicyScorer = pickle.loads(builder)()
    # Whatever a first score would compute once: the images' order, what refits aim at, what files are cut from.
    _ = scorer.sample, scorer.compressor.targets(), scorer.export
    connection.send(Done((), time.process_time() - begun, time.perf_counter() - wall))
    while isinstance(ask := connection.recv(), Ask):
        begun = time.process_time()
        done = answer(ask, scorer)
        connection.send(Done(done, time.process_time() - begun))


def answer(ask: Ask, scorer: PolicyScorer) -> tuple[Evaluation, ...]:
    if ask.policies:
        torch.set_num_threads(1)
        if ask.traced:
            return tuple(scorer.score_compressed(scorer.compress(p), b) for p, b in ask.policies)
        return tuple(scorer.score(policy, beat) for policy, beat in ask.policies)
    torch.set_num_threads(ask.threads)
    with torch.no_grad():
        for part in torch.split(scorer.search_images[ask.start : ask.stop], ask.batch):
            scorer.compressor.folded(channels_last(part))
    return ()


class Workers:
    """Processes that work at the same time and are waited for together.

    Attributes:
        preparation: what it took until all of them could score.
    """

    def __init__(self, args: argparse.Namespace, setup: JobSetup) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections = []
        self._processes = []
        with tempfile.TemporaryDirectory() as folder:
            begun, wall = time.process_time(), time.perf_counter()
            builder = pickle.dumps(setup.scorer_builder(Path(folder)))
            shared = Cost(time.perf_counter() - wall, time.process_time() - begun)
            for _ in range(args.workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs, builder, args.code_path))
                process.start()
                self._connections.append(ours)
                self._processes.append(process)
            built = [c.recv() for c in self._connections]
        self.preparation = Cost(
            shared.wall + max(d.seconds for d in built),
            shared.cpu + sum(d.cpu_seconds for d in built),
        )

    def __len__(self) -> int:
        return len(self._connections)

    def run(self, asks: list[Ask]) -> tuple[list[Done], float]:
        """Answers in order, and the wall seconds until the last one; one ask a worker."""
        begun = time.perf_counter()
        for connection, ask in zip(self._connections, asks):
            connection.send(ask)
        done = [connection.recv() for connection, _ in zip(self._connections, asks)]
        return done, time.perf_counter() - begun

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.join()


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds of so many scores or passes, and how they were run."""

    wall: float
    cpu: float
    count: int = 1
    way: str = "processes"


@dataclass(frozen=True)
class Rounds:
    """What each round cost: scores as the search asks, one plain pass, scores as they once were."""

    fast: list[Cost] = field(default_factory=list)
    plain: list[Cost] = field(default_factory=list)
    full: list[Cost] = field(default_factory=list)


def plain_pass(workers: Workers, images: int, batch: int) -> Cost:
    """The faster way to run the original on all search images."""
    (threads,), threaded = workers.run([Ask(0, images, batch, len(workers))])
    bounds = np.linspace(0, images, len(workers) + 1).round().astype(int)
    done, spread = workers.run([Ask(int(a), int(b), batch) for a, b in pairwise(bounds)])
    if threaded < spread:
        return Cost(threaded, threads.cpu_seconds, way="threads")
    return Cost(spread, sum(d.cpu_seconds for d in done))


def score_round(
    workers: Workers, policies: list[tuple[Policy, float | None]], traced: bool = False
) -> tuple[list[Evaluation], float, float]:
    """Evaluations in the order of the policies, wall and CPU seconds."""
    shares = [tuple(policies[k :: len(workers)]) for k in range(len(workers))]
    done, wall = workers.run([Ask(policies=share, traced=traced) for share in shares])
    found: list[Evaluation] = [done[k % len(workers)].evaluations[k // len(workers)]
                               for k in range(len(policies))]  # fmt: skip
    return found, wall, sum(d.cpu_seconds for d in done)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    setup = setup_of(args)
    images = len(setup.search)
    pricer = made_up_prices(setup.network.network_space, args.budget)
    agent = make_agent(
        args.agent, pricer.space, pricer, args.policies, args.seed, Objective.of("accuracy", pricer)
    )
    workers = Workers(args, setup)
    try:
        batch = min(_BATCHES, key=lambda b: plain_pass(workers, images, b).wall)
        told: dict[Policy, Evaluation] = {}
        rounds = Rounds()
        full: dict[Policy, Evaluation] = {}
        asked = 0
        while asked < args.policies and not agent.finished:
            proposals = [
                p for _ in range(min(args.round, args.policies - asked)) for p in agent.ask(1)
            ]
            asked += len(proposals)
            fresh = list({p.policy: None for p in proposals if p.policy not in told})
            beat = bar(told.values())
            found, *cost = score_round(workers, [(p, beat) for p in fresh])
            told |= zip(fresh, found)
            for proposal in proposals:
                agent.tell(proposal.id, proposal.policy, told[proposal.policy])
            if fresh:  # what was scored before costs nothing
                rounds.fast.append(Cost(*cost, len(fresh)))
                rounds.plain.append(plain_pass(workers, images, batch))
                again = fresh[: args.again]
                found, *cost = score_round(workers, [(p, None) for p in again], traced=True)
                rounds.full.append(Cost(*cost, len(again)))
                full |= zip(again, found)
            print(f"  {asked} of {args.policies}", flush=True)
    finally:
        workers.close()
    return summary(args, rounds, batch, workers.preparation, told, full)


def made_up_prices(network_space: NetworkSpace, budget: float) -> Pricer:
    """Multiply-accumulates as latency, those in integers at half the price."""
    factors, constant = [], 0.0
    for layer in network_space.structure.layers:
        tables = layer_tables(network_space, layer)
        share = tables.inputs * tables.outputs / (layer.in_channels * layer.out_channels)
        price = np.asarray(layer.macs * share * np.where(tables.integer, 0.5, 1.0))
        if tables.scope:
            factors.append(Factor(tables.scope, price))
        else:
            constant += float(price)
    models = {"latency_ms": CostModel(constant, tuple(factors)), "macs": macs_model(network_space)}
    pricer = Pricer(network_space.space, models)
    whole = pricer.costs(network_space.space.uncompressed())["latency_ms"]
    return pricer.with_limits({"latency_ms": budget * whole})


def summary(
    args: argparse.Namespace,
    rounds: Rounds,
    batch: int,
    preparation: Cost,
    told: dict[Policy, Evaluation],
    full: dict[Policy, Evaluation],
) -> dict[str, Any]:
    """Costs are means over the search (early scores are dearer than late ones), ratios those of the same rounds."""
    plain_wall = np.array([cost.wall for cost in rounds.plain])
    plain_cpu = np.array([cost.cpu for cost in rounds.plain])
    ways = [cost.way for cost in rounds.plain]
    found: dict[str, Any] = {
        "source": args.source,
        "policies": len(told),
        "search_images": args.search_images,
        "workers": args.workers,
        "agent": args.agent,
        "plain": {
            "seconds": float(np.median(plain_wall)),
            "cpu_seconds": float(np.median(plain_cpu)),
            "batch": batch,
            "by": max(set(ways), key=ways.count),
        },
        "preparation": {"seconds": preparation.wall, "cpu_seconds": preparation.cpu},
    }
    for name, costs in (("fast", rounds.fast), ("full", rounds.full)):
        kept = [k for k, cost in enumerate(costs) if cost.count]
        if not kept:
            continue
        counts = np.array([costs[k].count for k in kept])
        wall = np.array([costs[k].wall for k in kept]) / counts + preparation.wall / _SCORES
        cpu = np.array([costs[k].cpu for k in kept]) / counts + preparation.cpu / _SCORES
        cpu_mean = float(np.average(cpu, weights=counts))
        found[name] = {
            "seconds": float(np.average(wall, weights=counts)),
            "seconds_median": float(np.median(wall)),
            "cpu_seconds": cpu_mean,
            "over_plain": float(np.average(wall / plain_wall[kept], weights=counts)),
            "over_plain_median": float(np.median(wall / plain_wall[kept])),
            "over_plain_cpu": float(np.average(cpu / plain_cpu[kept], weights=counts)),
            "over_plain_cpu_median": float(np.median(cpu / plain_cpu[kept])),
            "evaluations_per_cpu_second": 1 / cpu_mean,
        }
    found["mean_images"] = float(np.mean([e.images or 0 for e in told.values()]))
    found["goal_met"] = found["fast"]["over_plain"] <= GOAL
    found["images"] = [e.images for e in told.values()]
    if len(full) > 2:
        found["ranking"] = ranking(told, full)
    return found


def ranking(told: dict[Policy, Evaluation], full: dict[Policy, Evaluation]) -> dict[str, Any]:
    """How the scores that the search was told order the policies that were also scored as before."""
    fast = np.array([told[p].score for p in full])
    whole = np.array([e.score for e in full.values()])
    top = np.argsort(-whole)[:10]
    inside = [told[p].interval[0] <= full[p].score <= told[p].interval[1] for p in full]
    # These saw the same images in the same network.
    complete = np.array([told[p].images == full[p].images for p in full])
    return {
        "policies": len(full),
        "spearman": float(spearmanr(fast, whole)[0]),
        "spearman_top_ten": float(spearmanr(fast[top], whole[top])[0]),
        "top_ten_in_common": len(set(top.tolist()) & set(np.argsort(-fast)[:10].tolist())),
        "contenders_in_common": len(
            set(top[:CONTENDERS].tolist()) & set(np.argsort(-fast)[:CONTENDERS].tolist())
        ),
        "same_best": bool(fast.argmax() == whole.argmax()),
        "within_interval": float(np.mean(inside)),
        "complete": int(complete.sum()),
        "largest_difference_of_complete": float(np.abs(fast - whole)[complete].max(initial=0)),
        "scores": {"fast": fast.tolist(), "full": whole.tolist()},
    }


def describe(found: dict[str, Any]) -> str:
    plain = found["plain"]
    lines = [
        f"{found['source']}, {found['policies']} policies of agent {found['agent']}, {found['search_images']} search "
        f"images, {found['workers']} workers of one thread; preparation {found['preparation']['seconds']:.1f} s, "
        f"{found['preparation']['cpu_seconds']:.1f} CPU-s",
        f"plain float pass: {plain['seconds']:.2f} s, {plain['cpu_seconds']:.2f} CPU-s (batch {plain['batch']}, "
        f"{plain['by']})",
        "",
        "| a score | seconds, mean (median) | CPU-s | over a plain pass, mean (median) | in CPU-s | per CPU-s |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in (
        ("full", "before: traced file, all search images"),
        ("fast", "after: cut file, as the search asks"),
    ):
        if row := found.get(name):
            lines.append(
                f"| {label} | {row['seconds']:.2f} ({row['seconds_median']:.2f}) | {row['cpu_seconds']:.2f} | "
                f"{row['over_plain']:.2f} ({row['over_plain_median']:.2f}) | {row['over_plain_cpu']:.2f} "
                f"({row['over_plain_cpu_median']:.2f}) | {row['evaluations_per_cpu_second']:.3f} |"
            )
    goal = "met" if found["goal_met"] else "missed"
    lines += ["", f"{found['mean_images']:.0f} images a policy; goal {GOAL} {goal}"]
    if order := found.get("ranking"):
        best = "the same" if order["same_best"] else "another"
        lines.append(
            f"{order['policies']} policies scored both ways: Spearman {order['spearman']:.4f}, of the ten best "
            f"{order['spearman_top_ten']:.4f}; {order['top_ten_in_common']} of the ten best and "
            f"{order['contenders_in_common']} of the {CONTENDERS} best in common, the best {best}; "
            f"the score before lies within the interval of {order['within_interval']:.0%}; scores of the "
            f"{order['complete']} that ran all images differ by at most {order['largest_difference_of_complete']:.1g}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
