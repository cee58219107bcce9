"""What a search score costs, beside a plain float forward pass over the same search images.

An agent searches as in a job, its policies scored by worker processes of one thread each, one a core. Each round the
workers score the next policies, then the original network's plain forward pass over all search images is timed twice,
in one process with a thread a core and in the workers with a share of the images each, and the faster one counts.
The batch of the plain pass is the fastest of several. What a score costs is the round's wall time over its policies,
with the preparation spread over 100 scores; CPU seconds are given beside it. Every policy is then scored again in
full (all search images, no score to beat), and the two rankings are compared.

    python -m benchmarks.score_speed python:cifar_zoo:resnet56 --weights F --data python:cifar_zoo:cifar10
        --code-path ../shared/zoo [--policies 64] [--agent auto] [--json FILE]

Prices are made up (multiply-accumulates, those in integers at half the price), so that nothing but scoring is timed.
Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from dataclasses import dataclass
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
from evaluation.stopping import bar
from search_spaces import CostModel, Evaluation, Policy, Pricer
from search_spaces.cost_model import Factor
from search_spaces.network_space import NetworkSpace, layer_tables, macs_model
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
    parser.add_argument("--policies", type=int, default=64)
    parser.add_argument("--round", type=int, default=8, help="policies between two plain passes")
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
    """

    start: int = 0
    stop: int = 0
    batch: int = 0
    threads: int = 1
    policies: tuple[tuple[Policy, float | None], ...] = ()


@dataclass(frozen=True)
class Done:
    evaluations: tuple[Evaluation, ...]
    cpu_seconds: float


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


def serve(connection: Connection, args: argparse.Namespace) -> None:
    """A worker: prepares its scorer, then answers."""
    torch.set_num_threads(1)
    setup = setup_of(args)
    begun = time.process_time()
    scorer = setup.scorer()
    # Whatever a first score would compute once: the original's outputs, importances, what the refit aims at.
    _ = scorer.reference, setup.compressor.rankings, setup.compressor.targets()
    connection.send(Done((), time.process_time() - begun))
    while isinstance(ask := connection.recv(), Ask):
        begun = time.process_time()
        done = answer(ask, setup, scorer)
        connection.send(Done(done, time.process_time() - begun))


def answer(ask: Ask, setup: JobSetup, scorer: PolicyScorer) -> tuple[Evaluation, ...]:
    if ask.policies:
        torch.set_num_threads(1)
        return tuple(scorer.score(policy, beat) for policy, beat in ask.policies)
    torch.set_num_threads(ask.threads)
    with torch.no_grad():
        for part in torch.split(setup.search.inputs[ask.start : ask.stop], ask.batch):
            setup.network.folded(channels_last(part))
    return ()


class Workers:
    """Processes that work at the same time and are waited for together."""

    def __init__(self, args: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections = []
        self._processes = []
        for _ in range(args.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, args))
            process.start()
            self._connections.append(ours)
            self._processes.append(process)
        self.preparation_cpu = sum(c.recv().cpu_seconds for c in self._connections)

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


def plain_pass(workers: Workers, images: int, batch: int) -> tuple[float, float, str]:
    """Wall and CPU seconds of the faster way to run the original on all search images, and which it was."""
    (threads,), threaded = workers.run([Ask(0, images, batch, len(workers))])
    bounds = np.linspace(0, images, len(workers) + 1).round().astype(int)
    done, spread = workers.run([Ask(int(a), int(b), batch) for a, b in pairwise(bounds)])
    if threaded < spread:
        return threaded, threads.cpu_seconds, "threads"
    return spread, sum(d.cpu_seconds for d in done), "processes"


def score_round(
    workers: Workers, policies: list[tuple[Policy, float | None]]
) -> tuple[list[Evaluation], float, float]:
    """Evaluations in the order of the policies, wall and CPU seconds."""
    shares = [tuple(policies[k :: len(workers)]) for k in range(len(workers))]
    done, wall = workers.run([Ask(policies=share) for share in shares])
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
    workers = Workers(args)
    try:
        batch = min(_BATCHES, key=lambda b: plain_pass(workers, images, b)[0])
        told: dict[Policy, Evaluation] = {}
        rows: dict[str, list[tuple[float, float]]] = {"fast": [], "full": [], "plain": []}
        ways = []
        full: dict[Policy, Evaluation] = {}
        while len(told) < args.policies and not agent.finished:
            wanted = min(args.round, args.policies - len(told))
            proposals = [p for _ in range(wanted) for p in agent.ask(1)]
            fresh = list({p.policy: None for p in proposals if p.policy not in told})
            beat = bar(told.values())
            found, wall, cpu = score_round(workers, [(p, beat) for p in fresh])
            rows["fast"].append((wall / max(1, len(fresh)), cpu / max(1, len(fresh))))
            told |= zip(fresh, found)
            for proposal in proposals:
                agent.tell(proposal.id, proposal.policy, told[proposal.policy])
            plain_wall, plain_cpu, way = plain_pass(workers, images, batch)
            rows["plain"].append((plain_wall, plain_cpu))
            ways.append(way)
            found, wall, cpu = score_round(workers, [(p, None) for p in fresh])
            rows["full"].append((wall / max(1, len(fresh)), cpu / max(1, len(fresh))))
            full |= zip(fresh, found)
            print(f"  {len(told)} of {args.policies}", flush=True)
    finally:
        workers.close()
    return summary(args, rows, ways, batch, workers.preparation_cpu / len(workers), told, full)


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
    rows: dict[str, list[tuple[float, float]]],
    ways: list[str],
    batch: int,
    preparation_cpu: float,
    told: dict[Policy, Evaluation],
    full: dict[Policy, Evaluation],
) -> dict[str, Any]:
    """Costs are means over the search (early scores are dearer than late ones), ratios those of the same rounds."""
    plain_wall, plain_cpu = np.median(np.array(rows["plain"]), axis=0)
    found: dict[str, Any] = {
        "source": args.source,
        "policies": len(told),
        "search_images": args.search_images,
        "workers": args.workers,
        "agent": args.agent,
        "plain": {
            "seconds": float(plain_wall),
            "cpu_seconds": float(plain_cpu),
            "batch": batch,
            "by": max(set(ways), key=ways.count),
        },
        # A worker's, which prepare side by side.
        "preparation_seconds": preparation_cpu,
    }
    spread = preparation_cpu / _SCORES
    for name in ("fast", "full"):
        pairs = np.array(rows[name])
        ratios = (pairs[:, 0] + spread) / np.array(rows["plain"])[:, 0]
        found[name] = {
            "seconds": float(pairs[:, 0].mean() + spread),
            "seconds_median": float(np.median(pairs[:, 0]) + spread),
            "cpu_seconds": float(pairs[:, 1].mean() + spread * args.workers),
            "over_plain": float(ratios.mean()),
            "over_plain_median": float(np.median(ratios)),
            "over_plain_cpu": float((pairs[:, 1].mean() + spread * args.workers) / plain_cpu),
            "evaluations_per_cpu_second": float(1 / (pairs[:, 1].mean() + spread * args.workers)),
        }
    policies = list(told)
    fast = np.array([told[p].score for p in policies])
    whole = np.array([full[p].score for p in policies])
    top = np.argsort(-whole)[:10]
    found["ranking"] = {
        "spearman": float(spearmanr(fast, whole)[0]),
        "spearman_top_ten": float(spearmanr(fast[top], whole[top])[0]),
        "top_ten_in_common": len(set(top.tolist()) & set(np.argsort(-fast)[:10].tolist())),
        "same_best": bool(fast.argmax() == whole.argmax()),
        "within_interval": float(
            np.mean([told[p].interval[0] <= full[p].score <= told[p].interval[1] for p in policies])
        ),
        "mean_images": float(np.mean([told[p].images or 0 for p in policies])),
        "goal_met": found["fast"]["over_plain"] <= GOAL,
    }
    found["scores"] = {
        "fast": fast.tolist(),
        "full": whole.tolist(),
        "images": [told[p].images for p in policies],
    }
    return found


def describe(found: dict[str, Any]) -> str:
    plain, ranking = found["plain"], found["ranking"]
    lines = [
        f"{found['source']}, {found['policies']} policies of agent {found['agent']}, {found['search_images']} search "
        f"images, {found['workers']} workers of one thread; preparation {found['preparation_seconds']:.1f} s a worker",
        f"plain float pass: {plain['seconds']:.2f} s, {plain['cpu_seconds']:.2f} CPU-s (batch {plain['batch']}, "
        f"{plain['by']})",
        "",
        "| a score | seconds, mean (median) | CPU-s | over a plain pass, mean (median) | in CPU-s | per CPU-s |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in (
        ("full", "before: all search images"),
        ("fast", "after: as the search asks"),
    ):
        row = found[name]
        lines.append(
            f"| {label} | {row['seconds']:.2f} ({row['seconds_median']:.2f}) | {row['cpu_seconds']:.2f} | "
            f"{row['over_plain']:.2f} ({row['over_plain_median']:.2f}) | {row['over_plain_cpu']:.2f} | "
            f"{row['evaluations_per_cpu_second']:.3f} |"
        )
    best = "the same" if ranking["same_best"] else "another"
    lines += [
        "",
        f"Spearman of both scores {ranking['spearman']:.4f}, of the ten best {ranking['spearman_top_ten']:.4f}; "
        f"{ranking['top_ten_in_common']} of the ten best in common, the best {best}; "
        f"{ranking['mean_images']:.0f} images a policy; the full score lies within the interval of "
        f"{ranking['within_interval']:.0%}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
