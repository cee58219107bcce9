"""One training over all latency budgets against a search for each and against fronts, at equal evaluations in all.

    python -m benchmarks.budget_conditioned --evaluations 150 300 --seeds 10 --resume runs.jsonl --json FILE
    python -m benchmarks.budget_conditioned --spaces resnet20-joint --methods one/conditioned apart/auto --seeds 2

Methods are ``one/NAME`` (a policy of edits trained in a model of the scores under bounds drawn anew for each proposal,
which is shown the bound; ``untrained`` never learns, ``no-replay`` not from steps under other bounds, ``taught`` also
from ``dp``; ``known`` is told the bounds that are judged and draws only these), ``apart/AGENT`` (a search for each
bound with a third of the evaluations; what any of the three finds within a bound counts) and ``front/AGENT`` (front of
latency and score). ``one`` and ``front`` search up to 0.75 of the latency, ``one`` from 0.3; except for ``known``
neither is told what is judged, as ``apart`` is.

Scores come from surrogates of real evaluations. THESE ARE GAUSSIAN PROCESSES, as is the model that ``one``, ``auto``
and ``dyna`` are guided by, which favours these three. Proposals come one at a time. Settings were chosen on
resnet20-joint and resnet56-prune; only the other spaces judge.

Regret is the score of the best policy known within a bound (over the recording and all kept runs) less that of the
best found. Relative regret divides it by the mean of all methods at the same place, or by what lies within the
surrogate's error where that is more, before bounds are averaged. Hypervolume is the mean worth (e to the score) of the
best policy within each bound from 0.3 to 0.75 of the latency; ``apart`` searches at three of these bounds only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.budget_conditioned_runs import (
    APART,
    BOUNDS,
    CONDITIONED,
    FRONT,
    HIGH,
    LOW,
    ONE,
    Run,
    RunFile,
    Task,
    check_method,
    sources_digest,
    work,
)
from benchmarks.budget_conditioned_tables import (
    Pair,
    best_known,
    entries,
    pairs,
    print_entries,
    print_pairs,
)
from benchmarks.contest_spaces import ContestSpace, find, load_space

TUNED = ("resnet20-joint", "resnet56-prune")
SPACES = ("mobilenet_v2-joint", "resnet56-joint", *TUNED)
METHODS = (
    *(f"{ONE}/{name}" for name in CONDITIONED),
    *(f"{APART}/{name}" for name in ("dyna", "dp", "evolution", "tpe", "auto")),
    *(f"{FRONT}/{name}" for name in ("auto", "evolution")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), help="recordings")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="WAY/NAME")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[150, 300], help="in all")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from --first-seed")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes, a run each")
    parser.add_argument("--seconds", type=float, help="after which no further run is begun")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE.jsonl", help="keeps runs, goes on from them"
    )
    parser.add_argument(
        "--old-code", action="store_true", help="also take kept runs of other code or libraries"
    )
    parser.add_argument(
        "--less", default=f"{ONE}/conditioned", help="method that others are taken from"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(arguments)
    methods = list(dict.fromkeys(args.methods))
    for method in methods:
        check_method(method)
    if min(args.evaluations) < len(BOUNDS):
        parser.error(f"each of the {len(BOUNDS)} bounds needs an evaluation")
    torch.set_num_threads(1)
    begun = time.monotonic()
    spaces = [load_space(path) for path in find(args.spaces)]
    tasks = wanted(
        spaces, methods, args.evaluations, range(args.first_seed, args.first_seed + args.seeds)
    )
    kept = RunFile(args.resume)
    earlier = list(kept.read())
    by_key = {_key(run.task, args.old_code): run for run in earlier}
    done = {task: by_key[key] for task in tasks if (key := _key(task, args.old_code)) in by_key}
    missing = [task for task in tasks if task not in done]
    print(f"{len(tasks)} runs, {len(tasks) - len(missing)} of them kept from before", flush=True)

    def ended(run: Run) -> None:
        kept.add(run)
        done[run.task] = run

    until = None if args.seconds is None else begun + args.seconds
    run_all(missing, {space.name: space.path for space in spaces}, args.workers, until, ended)
    digests = {space.digest for space in spaces}
    # What any run ever found by the same surrogate is known, whichever method's or code's it was.
    known = (run for run in (*earlier, *done.values()) if run.task.digest in digests)
    best = best_known(spaces, known)
    table = entries(
        [done[task] for task in tasks if task in done],
        best,
        {space.name: space.surrogate.error**2 for space in spaces},
    )
    print(
        "Scores and the models of one, auto and dyna are Gaussian processes alike, which favours these three.\n"
        f"Regret in nats, mean (95 % over seeds); hypervolume over {LOW:g} to {HIGH:g} of the latency."
    )  # fmt: skip
    print_entries(table, best)
    compared = comparisons(table_places(spaces, args.evaluations))
    told: dict[str, list[Pair]] = {}
    for title, places in compared.items():
        if found := pairs(table, args.less, places):
            told[title] = found
            print_pairs(title, args.less, found)
    left = len([task for task in tasks if task not in done])
    wall = time.monotonic() - begun
    print(
        f"\n{wall:.0f} s of wall time in {args.workers} processes; {left} runs were not begun or not ended."
    )
    if args.json is not None:
        document = {
            "spaces": [{"space": s.name, "digest": s.digest, "fit": s.fit.to_json()} for s in spaces],
            "bounds": list(BOUNDS), "span": [LOW, HIGH], "tuned_on": list(TUNED),
            "surrogate": "Gaussian process", "code": sources_digest(),
            "best_known": [{"space": s, "bound": b, "score": v} for (s, b), v in best.items()],
            "entries": [entry.to_json() for entry in table],
            "pairs": {
                title: {"method": args.less, "pairs": [p.to_json() for p in found]} for title, found in told.items()
            },
            "missing": left, "wall_seconds": wall,
        }  # fmt: skip
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def wanted(
    spaces: Sequence[ContestSpace],
    methods: Sequence[str],
    evaluations: Sequence[int],
    seeds: Sequence[int],
) -> list[Task]:
    """All runs, seeds outermost: whatever is there when it is cut off covers all methods."""
    code = sources_digest()
    return [
        Task(space.name, space.digest, method, count, seed, code)
        for seed in seeds
        for space in spaces
        for count in evaluations
        for method in methods
    ]  # fmt: skip


def _key(task: Task, any_code: bool) -> Task:
    return replace(task, code="") if any_code else task


def table_places(
    spaces: Sequence[ContestSpace], evaluations: Sequence[int]
) -> list[tuple[str, int]]:
    return [(space.name, count) for space in spaces for count in evaluations]


def comparisons(places: Sequence[tuple[str, int]]) -> dict[str, list[tuple[str, int]]]:
    """Places that are averaged, by title: each alone, and several that judge, or that were tuned on, together."""
    found = {f"{space}, {count} evaluations": [(space, count)] for space, count in places}
    judged = [place for place in places if place[0] not in TUNED]
    tuned = [place for place in places if place[0] in TUNED]
    for title, own in (("spaces that judge", judged), ("spaces tuned on", tuned)):
        if len(own) > 1:
            found[f"all {title}"] = own
    return found


def run_all(
    tasks: Sequence[Task],
    paths: dict[str, Path],
    workers: int,
    until: float | None,
    done: Callable[[Run], None],
) -> None:
    """Runs tasks in order in so many processes, in this one where it is one; ``done`` gets each as it ends.

    Args:
        paths: of the recordings, by name.
        until: time of ``time.monotonic`` after which none is begun; None for no end.
    """

    def late() -> bool:
        return until is not None and time.monotonic() >= until

    waiting = iter(tasks)
    if workers == 1:
        for task in waiting:
            if late():
                return
            done(work(task, paths[task.space]))
        return
    # Each process has one core: libraries that start threads of their own would fight over it.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        flying: dict[Future[Run], Task] = {}
        while True:
            while (
                len(flying) < workers and not late() and (task := next(waiting, None)) is not None
            ):
                flying[pool.submit(work, task, paths[task.space])] = task
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                task = flying.pop(future)
                try:
                    run = future.result()
                except BrokenProcessPool:
                    # What did not end is run by the next call.
                    print("a process ended before its run did", flush=True)
                    return
                done(run)


if __name__ == "__main__":
    raise SystemExit(main())
