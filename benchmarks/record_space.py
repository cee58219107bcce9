"""Records real evaluations of a network's search space, to repeat searches on.

Prices are learned as a job learns them; then policies are drawn and scored side by side in worker processes until
the evaluations or the seconds are used up: a third at random over the space, a sixth at random within random budgets,
half by mutating and crossing the best policies known at each of several budgets, which is where searches end up.
A recording that is there already is gone on with, under the prices it began with.

    python benchmarks/record_space.py python:cifar_zoo:resnet20 --weights ../shared/zoo/weights/resnet20.safetensors
        --data python:cifar_zoo:cifar10 --code-path ../shared/zoo --evaluations 3000 --workers 2 --out FILE.parquet
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import trimtab
from evaluation.device_scoring import on_device
from evaluation.outcome import outcome_of
from evaluation.pool import Scorer, ScorerFactory
from evaluation.recording import Recorded, Recording, load_recording, save_recording
from latency_tables.host import HostFingerprint
from search_spaces import Evaluation, Failure, Policy, Pricer
from search_spaces.latency_model import sample_policies
from search_spaces.network_space import NetworkSpace
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.price_setup import learn_prices
from service.sources import Sources

BUDGETS = (0.35, 0.5, 0.7)
# Parents are the best of so many drawn at random from the best quarter.
_TOURNAMENT = 4
# Policies drawn at random before any is a parent.
_FOUNDERS = 200
_SAVE_SECONDS = 60.0

_scorer: Scorer | None = None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--target", default="x86-ort")
    parser.add_argument("--scope", default="joint", choices=("prune", "quantize", "joint"))
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of evaluating")
    parser.add_argument("--kernel-seconds", type=float, default=300.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--search-images", type=int, default=2000)
    parser.add_argument("--device", default="cpu", help="that policies are compressed and run on")
    parser.add_argument("--data-dir", type=Path, help="keeps tables between runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        record(args, Path(scratch))
    return 0


def record(args: argparse.Namespace, scratch: Path) -> None:
    """Evaluates until there are enough, and keeps the file up to date."""
    spec = JobSpec.model_validate(
        {
            "model": {"source": args.source},
            "data": {"source": args.data},
            "target": args.target,
            "budget": {"latency": 0.5},
            "space": {"scope": args.scope},
            "search_images": args.search_images,
        }
    )
    sources = Sources(allow=("python:*",), code_paths=args.code_path)
    setup = load_job(spec, sources, args.weights)
    recording = begin(setup, args, scratch)
    print(
        f"{args.source}: {len(recording.space)} decisions, {len(recording.rows)} evaluated",
        flush=True,
    )
    builder = on_device(setup.scorer_builder(scratch), args.device)
    space = setup.network.network_space
    explorer = Explorer(recording, space, np.random.default_rng([args.seed, len(recording.rows)]))
    known = {row.policy for row in recording.rows}
    fresh: list[Recorded] = []
    flying: dict[Future[Evaluation | Failure], Policy] = {}
    begun = saved = time.monotonic()
    failed = 0
    with ProcessPoolExecutor(
        args.workers, multiprocessing.get_context("spawn"), _begin_worker, (builder,)
    ) as pool:
        while True:
            have = len(recording.rows) + len(fresh)
            late = time.monotonic() - begun > args.seconds
            while (
                not late
                and len(flying) < 2 * args.workers
                and have + len(flying) < args.evaluations
            ):
                policy = explorer.ask()
                if policy not in known:
                    known.add(policy)
                    flying[pool.submit(_score, policy)] = policy
            if not flying:
                break
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                policy, outcome = flying.pop(future), future.result()
                if isinstance(outcome, Evaluation):
                    fresh.append(Recorded(policy, outcome))
                    explorer.tell(fresh[-1])
                else:
                    failed += 1
            if time.monotonic() - saved > _SAVE_SECONDS:
                saved = time.monotonic()
                save_recording(recording.extended(fresh), args.out)
                print(f"{have} evaluated, {failed} failed, {saved - begun:.0f} s", flush=True)
    save_recording(recording.extended(fresh), args.out)
    seconds = [row.evaluation.seconds for row in fresh]
    print(
        f"{len(recording.rows) + len(fresh)} evaluated, {failed} failed, {time.monotonic() - begun:.0f} s on "
        f"{args.workers} workers, median {np.median(seconds) if seconds else 0:.2f} s an evaluation"
    )


def begin(setup: JobSetup, args: argparse.Namespace, scratch: Path) -> Recording:
    """The recording so far, or an empty one with freshly learned prices."""
    if args.out.exists():
        recording = load_recording(args.out)
        if recording.space.digest != setup.network.network_space.space.digest:
            raise SystemExit(f"{args.out} is of another search space; name another file")
        if (scored_on := recording.provenance.get("scored_on", "cpu")) != args.device:
            raise SystemExit(
                f"{args.out} was scored on {scored_on}; go on there, or name another file"
            )
        return recording
    prices = learn_prices(
        setup.compressor,
        setup.network.network_space,
        setup.target,
        args.data_dir or scratch / "data",
        scratch,
        lambda *_: None,
        lambda: None,
        budget={"latency": 0.5},
        measure_seconds=args.kernel_seconds,
    )
    provenance = {
        "model": args.source,
        "data": args.data,
        "scope": args.scope,
        "target": setup.target.spec,
        "machine": setup.target.host().processor,
        "runtime": setup.target.host().runtime,
        "score": "minus mean KL divergence in nats on search images",
        "search_images": len(setup.search),
        "scored_on": args.device,
        "recipe": setup.compressor.recipe.to_json(),
        "prices": {"local_terms_error": prices.fit.heldout_mape, "anchors_error": prices.anchors.error},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {
            "trimtab": trimtab.__version__, "torch": torch.__version__, "python": platform.python_version(),
        },
        "scoring_machine": HostFingerprint.here().processor,
    }  # fmt: skip
    recording = Recording(setup.network.network_space.space, prices.pricer.models, (), provenance)
    save_recording(recording, args.out)
    return recording


class Explorer:
    """Draws the policies to score; see the module's docstring."""

    def __init__(
        self, recording: Recording, network_space: NetworkSpace, rng: np.random.Generator
    ) -> None:
        self._space, self._rng = recording.space, rng
        # Without the prices' uncertainty: what is wanted is policies around the bounds, not under them.
        self._exact = {n: replace(m, relative_error=0.0) for n, m in recording.models.items()}
        free = Pricer(self._space, self._exact)
        self._whole = free.costs(self._space.uncompressed())["latency_ms"]
        self._bounded = [self._within(share) for share in BUDGETS]
        self._drawn = self._random(network_space)
        self._indices: list[NDArray[np.int64]] = []
        self._scores: list[float] = []
        self._costs: list[float] = []
        for row in recording.rows:
            self.tell(row)

    def _random(self, network_space: NetworkSpace) -> Iterator[Policy]:
        while True:
            yield from sample_policies(network_space, 64, seed=int(self._rng.integers(2**31)))

    def _within(self, share: float) -> Pricer:
        return Pricer(self._space, self._exact, {"latency_ms": share * self._whole})

    def tell(self, row: Recorded) -> None:
        """A policy with its score."""
        self._indices.append(self._space.indices(row.policy))
        self._scores.append(row.evaluation.score)
        self._costs.append(float(self._exact["latency_ms"].price(self._indices[-1][None])[0]))

    def ask(self) -> Policy:
        """The next policy; it may have been drawn before."""
        kind = self._rng.uniform()
        if kind < 1 / 3 or len(self._scores) < _FOUNDERS:
            return next(self._drawn)
        if kind < 1 / 2:
            return self._within(float(self._rng.uniform(0.25, 0.85))).repair(next(self._drawn))
        return self._child(self._bounded[int(self._rng.integers(len(BUDGETS)))])

    def _child(self, pricer: Pricer) -> Policy:
        """A mutation or a crossing of good policies within the bound."""
        bound = pricer.limits["latency_ms"]
        within = np.flatnonzero(np.array(self._costs) <= bound)
        if len(within) < 2:
            return pricer.repair(next(self._drawn))
        best = within[np.argsort(-np.array(self._scores)[within])][: max(8, len(within) // 4)]
        first, second = (
            self._indices[best[int(min(self._rng.integers(len(best), size=_TOURNAMENT)))]]
            for _ in range(2)
        )
        here = first.copy()
        if self._rng.uniform() < 0.3:
            start, end = np.sort(self._rng.integers(0, len(here) + 1, size=2))
            here[start:end] = second[start:end]
        for position in self._rng.integers(0, len(here), size=int(self._rng.integers(1, 5))):
            here[position] = int(self._rng.integers(len(self._space.decisions[position].values)))
        policy = pricer.repair(self._space.from_indices(here))
        return pricer.fill(policy) if self._rng.uniform() < 0.5 else policy


def _begin_worker(builder: ScorerFactory) -> None:
    global _scorer
    torch.set_num_threads(1)
    _scorer = builder()


def _score(policy: Policy) -> Evaluation | Failure:
    assert _scorer is not None
    return outcome_of(_scorer, policy)


if __name__ == "__main__":
    raise SystemExit(main())
