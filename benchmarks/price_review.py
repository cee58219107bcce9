"""What a search gains by looking at its prices again in its middle, replayed on recorded scores.

    python -m benchmarks.price_review resnet20 --zoo ../shared/zoo --shares 0.44 --seeds 4
    python -m benchmarks.price_review resnet56 --zoo ../shared/zoo --shares 0.34 --seeds 4 --data-dir DIR

Prices are a job's own on ``x86-ort``: kernels and networks are timed here once. Scores come from the surrogate of a
recorded space. What a policy truly takes is here what its own kernels add up to under the same anchors, so that nothing
hangs on the state of the machine; only the error of the local terms is left, and ``--anchors-error`` says how sure the
rest is taken to be, as on a quiet machine. Each search is done once with one price and once with prices learned again
after half of its evaluations (``Prices.reviewed``, nothing timed), with the same seed; then finalists are tried in the
order of a job: the best within the bound as it is priced, prices corrected by what it truly takes, the best trials
repaired, until one keeps the bound.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from agents.protocol import Agent
from agents.registry import make_agent
from benchmarks.contest_spaces import ContestSpace, find, load_space
from benchmarks.contest_tables import mean_t95
from evaluation.replay import ReplayScorer
from evaluation.simulated_pool import SimulatedPool
from search_spaces import Evaluation, Policy, Pricer
from search_spaces.latency_model import PricedGraph
from service.anchors import Anchors, Sums
from service.finalists import MOST_CORRECTIONS, REPAIRED
from service.job_setup import load_job
from service.job_spec import JobSpec
from service.price_review import READ
from service.price_setup import learn_prices
from service.prices import Prices
from service.search_loop import Repricing, SearchLoop, Trial
from service.sources import Sources

LATENCY = "latency_ms"


@dataclass(frozen=True)
class Found:
    """What one search ended at.

    Attributes:
        score: of the finalist that keeps the bound; None where none does.
        used: share of the bound that it takes.
        best: highest score among policies priced within the bound when they were told.
        seen: what the best policies took over their price when prices were looked at; None where they were not.
        corrections: what refused finalists took over their price.
    """

    agent: str
    seed: int
    share: float
    reviewed: bool
    score: float | None
    used: float | None
    best: float
    seen: float | None
    corrections: tuple[float, ...]


class Replay:
    """See the module's docstring."""

    def __init__(self, prices: Prices, space: ContestSpace, share: float, evaluations: int) -> None:
        self._prices, self._share = prices, share
        self._scorer = ReplayScorer(space.recording, space.surrogate, exact=False)
        self._limits = {LATENCY: share * prices.uncompressed[LATENCY]}
        self._evaluations = evaluations
        self._true: dict[Policy, float] = {}

    def run(self, agent: str, seed: int, reviewed: bool) -> Found:
        prices, seen = [self._prices], list[float]()

        def made(pricer: Pricer) -> Agent:
            return make_agent(agent, pricer.space, pricer, self._evaluations, seed)

        def again(trials: Sequence[Trial]) -> Pricer:
            pricer = prices[0].pricer.with_limits(self._limits)
            best = within(scores_of(trials), pricer)[:READ]
            graphs = [PricedGraph(p, prices[0].reader.of_policy(p)[0]) for p in best]
            prices[0], factor = prices[0].reviewed(graphs, [], prices[0].learned.rows)
            seen.append(factor)
            return prices[0].pricer.with_limits(self._limits)

        pricer = prices[0].pricer.with_limits(self._limits)
        loop = SearchLoop(
            made(pricer), pricer, lambda _: None, lambda: None, lambda *_: None,
            repricing=Repricing(self._evaluations // 2, again, made) if reviewed else None,
        )  # fmt: skip
        pool = SimulatedPool(lambda: self._scorer, 4, lambda _: 1.0)
        trials = loop.run(pool, self._evaluations, None)
        scores = scores_of(trials)
        finalist, corrections = self._finalist(scores, prices[0].pricer.with_limits(self._limits))
        return Found(
            agent, seed, self._share, reviewed,
            None if finalist is None else scores[finalist],
            None if finalist is None else self._of(finalist) / self._limits[LATENCY],
            max(scores.values()), seen[0] if seen else None, tuple(corrections),
        )  # fmt: skip

    def _finalist(
        self, scores: dict[Policy, float], pricer: Pricer
    ) -> tuple[Policy | None, list[float]]:
        """The first that truly keeps the bound, as a job finds it; policies made on the way get their scores."""
        tried: set[Policy] = set()
        corrections: list[float] = []
        while len(corrections) <= MOST_CORRECTIONS:
            policy = next((p for p in within(scores, pricer) if p not in tried), None)
            if policy is None:
                break
            tried.add(policy)
            true, priced = self._of(policy), pricer.costs(policy)[LATENCY]
            if true <= self._limits[LATENCY]:
                return policy, corrections
            corrections.append(true / priced)
            pricer = pricer.corrected(LATENCY, max(true / priced, 1.01))
            for wanted in sorted(scores, key=lambda p: -scores[p])[:REPAIRED]:
                repaired = pricer.repair(wanted)
                if repaired not in scores:
                    scores[repaired] = self._scorer.score(repaired).score
        return None, corrections

    def _of(self, policy: Policy) -> float:
        """Milliseconds of a policy's own kernels."""
        if policy not in self._true:
            uses, _ = self._prices.reader.of_policy(policy)
            self._true[policy] = self._prices.anchors.latency(
                Sums.of(uses, self._prices.learned.rows)
            )
        return self._true[policy]


def scores_of(trials: Sequence[Trial]) -> dict[Policy, float]:
    return {t.policy: t.outcome.score for t in trials if isinstance(t.outcome, Evaluation)}


def within(scores: dict[Policy, float], pricer: Pricer) -> list[Policy]:
    """Policies priced within the bound, the best first."""
    return sorted((p for p in scores if pricer.within(p)), key=lambda p: -scores[p])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", help="a factory of cifar_zoo")
    parser.add_argument("--zoo", type=Path, required=True, help="folder of cifar_zoo.py")
    parser.add_argument("--space", help="recording; NETWORK-joint when left out")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.35, 0.45])
    parser.add_argument("--agents", nargs="+", default=["auto", "evolution"])
    parser.add_argument("--seeds", type=int, default=4, help="how many, from 0")
    parser.add_argument("--evaluations", type=int, default=160)
    parser.add_argument("--anchors-error", type=float, default=0.015)
    parser.add_argument("--kernel-seconds", type=float, default=90.0)
    parser.add_argument("--data-dir", type=Path, help="keeps tables between runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    space = load_space(find([args.space or f"{args.network}-joint"])[0])
    rows: list[Found] = []
    with tempfile.TemporaryDirectory() as scratch:
        for share in args.shares:
            prices = prices_of(args, share, Path(scratch))
            replay = Replay(prices, space, share, args.evaluations)
            for agent in args.agents:
                for seed in range(args.seeds):
                    for reviewed in (False, True):
                        rows.append(replay.run(agent, seed, reviewed))
                        print(rows[-1], flush=True)
    print(table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def prices_of(args: argparse.Namespace, share: float, scratch: Path) -> Prices:
    """A job's prices, whose anchors are taken to be as sure as they are on a quiet machine."""
    spec = JobSpec.model_validate(
        {
            "model": {"source": f"python:cifar_zoo:{args.network}"},
            "data": {"source": "python:cifar_zoo:cifar10"},
            "budget": {"latency": share},
            "search_images": 64,
        }
    )
    sources = Sources(allow=("python:*",), code_paths=[args.zoo.resolve()])
    setup = load_job(spec, sources, args.zoo / "weights" / f"{args.network}.safetensors")
    prices = learn_prices(
        setup.compressor, setup.network.network_space, setup.target, args.data_dir or scratch,
        scratch, lambda *_: None, lambda: None, budget=spec.budget,
        measure_seconds=args.kernel_seconds,
    )  # fmt: skip
    assert isinstance(prices.anchors, Anchors)
    anchors = replace(prices.anchors, error=args.anchors_error)
    pricer, fit = prices.learned.price(anchors)
    return replace(prices, pricer=pricer, fit=fit, anchors=anchors)


def table(rows: Sequence[Found]) -> str:
    """A line an agent and share: scores of finalists with one price and reviewed, and pairs by seed."""
    lines = [
        "| share | agent | one price | reviewed | difference, pairs (95 %) | refused, of searches | seen |",
        "|---|---|---|---|---|---|---|",
    ]
    for share, agent in dict.fromkeys((row.share, row.agent) for row in rows):
        own = [row for row in rows if (row.share, row.agent) == (share, agent)]
        once, again = ([r for r in own if r.reviewed == wanted] for wanted in (False, True))
        pairs = [
            b.score - a.score
            for a, b in zip(once, again, strict=True)
            if a.score is not None and b.score is not None
        ]
        mean, interval = mean_t95(pairs) if pairs else (float("nan"), None)
        said = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        refused = [sum(bool(row.corrections) for row in some) for some in (once, again)]
        seen = float(np.mean([row.seen for row in again if row.seen is not None]))
        lines.append(
            f"| {share} | {agent} | {shown(once)} | {shown(again)} | {mean:+.3f}{said} | "
            f"{refused[0]} and {refused[1]} of {len(once)} | {seen:.3f} |"
        )
    return "\n".join(lines)


def shown(rows: Sequence[Found]) -> str:
    scores = [row.score for row in rows if row.score is not None]
    lost = len(rows) - len(scores)
    return f"{np.mean(scores):.3f}" + (f", {lost} without any" if lost else "")


if __name__ == "__main__":
    raise SystemExit(main())
