"""Fronts that agents find on recorded spaces with equal evaluations: hypervolume of score and costs.

    python -m benchmarks.fronts --seeds 10 --json fronts.json

Every agent searches for the whole front (``agents.fronts``) and is scored by the surrogate of the recording. The volume
is that of ``search_spaces.front``: worth (e to the score) times shares of the uncompressed network's costs, between 0
and 1. ``random-swept`` draws at random under bounds that change as those of a sweep do: what random search does with a
fair share of proposals at every cost. Differences are paired by seed, with Student's 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from agents.bound_span import BoundSpan
from agents.front_sweep import SweptAgent, member_seeds
from agents.fronts import make_front_agent
from agents.protocol import Agent
from agents.random_search import RandomAgent
from benchmarks.contest_spaces import ContestSpace, find, load_space
from benchmarks.contest_tables import mean_t95
from evaluation.replay import ReplayScorer
from search_spaces import Pricer
from search_spaces.front import FrontAxes, RunningFront

AGENTS = ("auto", "evolution", "nsga2", "tpe", "cmaes", "random-swept", "random", "uniform")
CONTROL = "random"
# Evaluations after which the volume is kept, up to what the run has.
CHECKPOINTS = (25, 50, 100, 200, 400)


@dataclass(frozen=True)
class Run:
    """One search. ``volumes`` by the number of evaluations; ``members`` on the front at the end."""

    space: str
    agent: str
    seed: int
    volumes: dict[int, float]
    members: int
    seconds: float


def agent_of(name: str, pricer: Pricer, evaluations: int, seed: int, axes: FrontAxes) -> Agent:
    if name != "random-swept":
        return make_front_agent(name, pricer.space, pricer, evaluations, seed, axes)
    seeds = member_seeds(seed)
    return SweptAgent(
        pricer.space,
        evaluations,
        lambda bounded, _: RandomAgent(pricer.space, bounded, next(seeds)),
        BoundSpan(pricer, axes.quantities),
    )


def search(
    space: ContestSpace, name: str, seed: int, evaluations: int, costs: Sequence[str], share: float
) -> Run:
    """One agent, one seed. A repeated policy counts as an evaluation, as in a job."""
    begun = time.perf_counter()
    pricer = space.recording.budget(share) if share < 1 else space.recording.pricer()
    axes = FrontAxes.of(pricer, tuple(costs))
    agent, front = agent_of(name, pricer, evaluations, seed, axes), RunningFront(axes)
    scorer = ReplayScorer(space.recording, space.surrogate, exact=False)
    volumes: dict[int, float] = {}
    while front.evaluations < evaluations and (proposals := agent.ask(1)):
        (proposal,) = proposals
        priced = pricer.costs(proposal.policy)
        scored = scorer.score(proposal.policy)
        outcome = type(scored)(
            scored.scores, scored.interval, costs=priced, violations=pricer.violations(priced)
        )
        agent.tell(proposal.id, proposal.policy, outcome)
        front.tell(outcome)
        if front.evaluations in CHECKPOINTS:
            volumes[front.evaluations] = front.volume
    for checkpoint in (*(c for c in CHECKPOINTS if c < evaluations), evaluations):
        # An agent that is finished early keeps what it has.
        volumes.setdefault(checkpoint, front.volume)
    return Run(space.name, name, seed, volumes, front.members, time.perf_counter() - begun)


@cache
def _space(path: Path) -> ContestSpace:
    return load_space(path)


def _work(
    path: Path, name: str, seed: int, evaluations: int, costs: Sequence[str], share: float
) -> Run:
    torch.set_num_threads(1)
    return search(_space(path), name, seed, evaluations, costs, share)


def print_tables(runs: Sequence[Run], control: str = CONTROL) -> None:
    """A table a space: volumes with intervals, and the last one's difference to the control's."""
    for space in dict.fromkeys(run.space for run in runs):
        own = [run for run in runs if run.space == space]
        checkpoints = sorted(own[0].volumes)
        print(f"\n{space}: hypervolume after so many evaluations (mean, 95 % interval over seeds)")
        head = "".join(f"{c:>26}" for c in checkpoints)
        print(f"{'agent':14}{head}{f'minus {control}, paired':>30}{'members':>9}{'s a run':>9}")
        of_control = {r.seed: r.volumes[checkpoints[-1]] for r in own if r.agent == control}
        for agent in dict.fromkeys(run.agent for run in own):
            mine = [run for run in own if run.agent == agent]
            cells = "".join(f"{_text([r.volumes[c] for r in mine]):>26}" for c in checkpoints)
            pairs = [
                r.volumes[checkpoints[-1]] - of_control[r.seed]
                for r in mine
                if r.seed in of_control
            ]
            gain = _text(pairs, "+") if pairs and agent != control else ""
            members = sum(r.members for r in mine) / len(mine)
            seconds = sum(r.seconds for r in mine) / len(mine)
            print(f"{agent:14}{cells}{gain:>30}{members:>9.1f}{seconds:>9.1f}")


def _text(values: Sequence[float], sign: str = "") -> str:
    mean, interval = mean_t95(list(values))
    if interval is None:
        return f"{mean:{sign}.4f}"
    return f"{mean:{sign}.4f} ({interval[0]:{sign}.4f}, {interval[1]:{sign}.4f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--spaces", nargs="*", default=[], help="recordings; all by default")
    parser.add_argument("--agents", nargs="+", default=list(AGENTS))
    parser.add_argument("--costs", nargs="+", default=["latency_ms", "size_bytes"])
    parser.add_argument(
        "--budget", type=float, default=1.0, help="share of the latency; 1 for none"
    )
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--control", default=CONTROL, help="agent that differences are told to")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    tasks = [
        (path, agent, seed, args.evaluations, args.costs, args.budget)
        for path in find(args.spaces)
        for agent in args.agents
        for seed in range(args.seeds)
    ]
    if args.workers == 1:
        runs = [_work(*task) for task in tasks]
    else:
        with ProcessPoolExecutor(args.workers) as pool:
            runs = list(pool.map(_work, *zip(*tasks, strict=True)))
    print_tables(runs, args.control)
    if args.json is not None:
        document = {"settings": {**vars(args), "json": None}, "runs": [asdict(r) for r in runs]}
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
