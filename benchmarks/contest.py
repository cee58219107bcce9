"""Lets agents search recorded spaces at equal evaluations and says how far each stays behind the best known policy.

Every search is the product's own loop with its own agents; scores come from a surrogate of real evaluations, for
recorded policies too, so that nobody gains by hitting one of them; evaluators are simulated on a virtual clock. Prices
are the recording's, budgets are held against the upper end of the predicted 90 % interval as in a job.

Regret is the score of the best policy known (over the recording and all runs, kept ones included, told by the same
surrogate) minus that of the best policy a search found. Hypervolume is the area that the policies of a search dominate
in score and latency share. Both are means over seeds with Student's 95 % interval; a search gets one seed, and the
recording, the surrogate and the machine that priced the policies are the same for all of them.

    python -m benchmarks.contest --resume runs.jsonl --json contest.json
    python -m benchmarks.contest --agents dp evolution tpe --spaces resnet20-joint --seeds 5 --evaluations 50 100
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from agents.registry import agent_names
from benchmarks.contest_runs import REFERENCE, ResultFile, Run, Task, code_digest, run_all
from benchmarks.contest_spaces import ContestSpace, find, load_space
from benchmarks.contest_tables import Cell, Interval, Rank, best_known, cells, mean_t95, ranks
from benchmarks.experiments import check
from evaluation.surrogate_fit import R2_BAR

_PROGRESS_SECONDS = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", nargs="+", default=list(agent_names()), metavar="AGENT")
    parser.add_argument(
        "--spaces",
        nargs="+",
        default=[],
        help="recordings: names in benchmarks/recordings, or files",
    )
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.35, 0.5, 0.7], help="of the latency"
    )
    parser.add_argument("--evaluators", type=int, default=4, help="simulated, of one search")
    parser.add_argument("--workers", type=int, default=2, help="processes, a search each")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE.jsonl", help="keeps runs and goes on from them"
    )
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="AGENT", help="run anew though they are kept"
    )
    parser.add_argument(
        "--old-code",
        action="store_true",
        help="also take kept runs of agents as they were before they changed",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    for agent in (*args.agents, *args.again):
        check(agent)
    torch.set_num_threads(1)
    begun = time.monotonic()
    spaces = [load_space(path) for path in find(args.spaces)]
    for space in spaces:
        print_head(space)
    kept = ResultFile(args.resume)
    tasks = wanted(spaces, args)
    earlier = reusable(kept, tasks, args)
    runs = [earlier[task] for task in tasks if task in earlier]
    missing = [task for task in tasks if task not in earlier]
    print(f"{len(tasks)} searches, {len(runs)} of them kept from earlier runs\n", flush=True)
    contest = Progress(kept, runs, len(missing))
    run_all(missing, {space.name: space.path for space in spaces}, args.workers, contest.done)
    wall = time.monotonic() - begun
    recorded = {}
    for space in spaces:
        for budget in args.budgets:
            if (found := space.best_recorded(budget)) is not None:
                recorded[space.name, budget] = found[0]
    digests = {space.digest for space in spaces}
    # What any search ever found by the same surrogate is known, whichever agent's or code's it was.
    same = [*runs, *(run for run in kept.read() if run.task.digest in digests)]
    best = best_known(same, recorded)
    table = cells(runs, best)
    places = ranks(table)
    print_cells(table, best)
    print_ranks(places)
    busy = sum(run.seconds for run in runs)
    print(
        f"\n{wall:.0f} s of wall time for {len(missing)} searches in {args.workers} processes; "
        f"all {len(runs)} searches took {busy:.0f} s of process time. Simulated evaluators: {args.evaluators}."
    )
    if args.json is not None:
        document = {
            "cells": [cell.to_json() for cell in table],
            "spaces": [
                {"space": s.name, "digest": s.digest, "fit": s.fit.to_json(), "preliminary": not s.fit.fit}
                for s in spaces
            ],
            "best_known": [
                {"space": space, "budget": budget, "score": score} for (space, budget), score in best.items()
            ],
            "ranks": [
                {"agent": r.agent, "rank": r.rank, "rank_ci95": r.interval and list(r.interval),
                 "relative_regret": r.regret, "level_with_best": r.level, "cells": r.places,
                 "milliseconds_per_evaluation": r.milliseconds}
                for r in places
            ],
            "hypervolume_reference": {"latency_share": REFERENCE[0], "score": REFERENCE[1]},
            "evaluators": args.evaluators,
            "code": code_digest(),
            "wall_seconds": wall,
            "process_seconds": busy,
        }  # fmt: skip
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def wanted(spaces: Sequence[ContestSpace], args: argparse.Namespace) -> list[Task]:
    """All searches, seeds outermost: whatever is there when a contest is cut off covers all agents."""
    code = code_digest()
    return [
        Task(space.name, space.digest, budget, evaluations, agent, seed, args.evaluators, code)
        for seed in range(args.seeds)
        for space in spaces
        for budget in args.budgets
        for evaluations in args.evaluations
        for agent in dict.fromkeys(args.agents)
    ]


def reusable(kept: ResultFile, tasks: Sequence[Task], args: argparse.Namespace) -> dict[Task, Run]:
    """Kept runs by the task they stand for; the latest where there are several."""
    found: dict[Task, Run] = {}
    asked = {_key(task, args.old_code): task for task in tasks if task.agent not in args.again}
    for run in kept.read():
        task = asked.get(_key(run.task, args.old_code))
        if task is not None:
            found[task] = run
    return found


def _key(task: Task, any_code: bool) -> tuple[object, ...]:
    code = None if any_code else task.code
    return (
        task.space, task.digest, task.budget, task.evaluations, task.agent, task.seed, task.evaluators, code,
    )  # fmt: skip


class Progress:
    """Takes runs as they end: keeps them and says now and then how far the contest is."""

    def __init__(self, kept: ResultFile, runs: list[Run], missing: int) -> None:
        self._kept, self._runs, self._missing = kept, runs, missing
        self._begun = self._said = time.monotonic()
        self._ended = 0

    def done(self, run: Run) -> None:
        self._kept.add(run)
        self._runs.append(run)
        self._ended += 1
        now = time.monotonic()
        if now - self._said > _PROGRESS_SECONDS:
            self._said = now
            left = (now - self._begun) / self._ended * (self._missing - self._ended)
            print(f"{self._ended} of {self._missing} searches, about {left:.0f} s left", flush=True)


def print_head(space: ContestSpace) -> None:
    """How many evaluations the space's scores come from, and how well they are told."""
    fit, about = space.fit, space.recording.provenance
    print(
        f"{space.name}: {about.get('model')} on {about.get('target')}, {len(space.recording.space)} decisions, "
        f"{fit.rows} real evaluations. Held-out R2 {fit.r2:.3f} (of the logarithm {fit.r2_log:.3f}), "
        f"Spearman {fit.spearman:.3f}."
    )
    for budget, half in fit.best_half.items():
        said = "too few rows" if half is None else (
            f"R2 {half.r2:.3f}, Spearman {half.spearman:.3f} ({half.rows} rows)"
        )  # fmt: skip
        print(f"  best half at {budget:.2f} of the latency: {said}")
    print(f"  Divergences below about {space.surrogate.error**2:.4f} nats lie within its error.")
    if not fit.fit:
        print(
            f"  The surrogate misses the bar of R2 {R2_BAR}: conclusions on this space are PRELIMINARY."
        )


def print_cells(table: Sequence[Cell], best: dict[tuple[str, float], float]) -> None:
    """A table a space and number of evaluations, a row an agent, its mean regrets and hypervolumes by budget."""
    print(
        "Regret (score's unit: nats of divergence) and hypervolume (nats; reference point: latency share "
        f"{REFERENCE[0]:g}, score {REFERENCE[1]:g}), mean [95 % interval over seeds];\n"
        "* = no worse than the best mean of its column by more than chance (paired 95 % interval)."
    )
    by_place: dict[tuple[str, int], dict[str, dict[float, Cell]]] = {}
    for cell in table:
        rows = by_place.setdefault((cell.space, cell.evaluations), {})
        rows.setdefault(cell.agent, {})[cell.budget] = cell
    for (space, evaluations), rows in by_place.items():
        budgets = sorted({budget for row in rows.values() for budget in row})
        print(f"\n{space}, {evaluations} evaluations")
        known = "".join(
            f"{f'best known {best[space, b]:.4f}':>60}" for b in budgets if (space, b) in best
        )
        print(f"{'':12}{known}")
        print(
            f"{'agent':12}"
            + "".join(f"{f'regret at {b:.2f}':>34}{'hypervolume':>26}" for b in budgets)
        )
        for agent, row in sorted(rows.items(), key=lambda item: _order(item[1])):
            print(
                f"{agent:12}" + "".join(_entry(row[b]) if b in row else " " * 60 for b in budgets)
            )
        for agent, row in rows.items():
            errors = sorted({error for cell in row.values() for error in cell.errors})
            if errors:
                count = sum(len(cell.errors) for cell in row.values())
                print(f"  {agent}: {count} searches without a result: {errors[0]}")


def _order(row: dict[float, Cell]) -> float:
    means = [mean_t95(list(cell.regrets.values()))[0] for cell in row.values() if cell.regrets]
    return sum(means) / len(means) if means else float("inf")


def _entry(cell: Cell) -> str:
    if not cell.regrets:
        return f"{'no result':>60}"
    regret, hypervolume = (mean_t95(list(v.values())) for v in (cell.regrets, cell.hypervolumes))
    level = "*" if cell.level else " "
    return f"{f'{_interval(*regret, digits=4)}{level}':>34}{_interval(*hypervolume, digits=3):>26}"


def _interval(mean: float, interval: Interval | None, digits: int) -> str:
    span = "one seed" if interval is None else f"{interval[0]:.{digits}f}, {interval[1]:.{digits}f}"
    return f"{mean:.{digits}f} [{span}]"


def print_ranks(places: Sequence[Rank]) -> None:
    """Agents from the best mean rank to the worst."""
    print(
        "\nRanks among the agents that ran, by regret, over all spaces, budgets and evaluations (95 % interval over "
        "seeds); relative regret: 1 is the mean of all agents"
    )
    print(
        f"{'agent':12}{'mean rank':>24}{'relative regret':>18}{'level with best':>18}{'ms an evaluation':>19}"
    )
    for r in places:
        print(
            f"{r.agent:12}{_interval(r.rank, r.interval, 2):>24}{r.regret:>18.3f}"
            f"{f'{r.level} of {r.places}':>18}{r.milliseconds:>19.1f}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
