"""What Trimtab finds where a peer ended: in the same measured latency, or in the same packed bytes."""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.registry import make_agent
from benchmarks.peers.assignment import Assignment, write_images
from benchmarks.process_pool import ProcessPool
from benchmarks.some_images import shuffled
from benchmarks.verify_artifacts import UNIFORM
from benchmarks.without_training import Run
from compressors import Compressed, Plan
from compressors.exporter import export_onnx, save_onnx
from evaluation.device_scoring import on_device
from evaluation.stopping import CONTENDERS
from search_spaces import Failure, Policy, Pricer
from search_spaces.budget import PACKED
from search_spaces.macs_model import macs_model
from service.finalists import GROWN, Finalist, best_first
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.packed_prices import learn_packed, packed_size
from service.search_loop import SearchLoop
from service.sources import Sources

AGENT = "auto"
# Candidates whose packed file is too large after all that are passed over before the search has failed.
_TRIED = 40
# Of prices near a network that was just packed: one standard deviation.
NEARBY_PACKED_ERROR = 0.005


@dataclass(frozen=True)
class Effort:
    """What a search may spend.

    Attributes:
        evaluations: policies scored.
        seconds: of a search with its prices and finalists.
        workers: processes that score.
        data_dir: keeps tables of kernels between searches.
        seed: the agent's.
        device: that policies are compressed and run on.
    """

    evaluations: int
    seconds: float
    workers: int
    data_dir: Path
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Found:
    """What a search ended at, and what it took: seconds on ``workers`` threads, and policies scored."""

    compressed: Compressed
    facts: dict[str, Any]


def setup_of(
    network: str, zoo: Path, budget: dict[str, float], scope: str, images: int
) -> JobSetup:
    """A job of ours on a network of the zoo."""
    spec = JobSpec.model_validate(
        {
            "model": {"source": f"python:cifar_zoo:{network}"},
            "data": {"source": "python:cifar_zoo:cifar10"},
            "target": "x86-ort",
            "budget": budget,
            "space": {"scope": scope},
            "search_images": images,
        }
    )
    sources = Sources(allow=("python:*",), code_paths=[zoo.resolve()])
    return load_job(spec, sources, zoo / "weights" / f"{network}.safetensors")


def assign(network: str, zoo: Path, folder: Path, images: int, seed: int) -> Path:
    """Writes an assignment with the images of a job of ours; returns its file."""
    setup = setup_of(network, zoo, {"latency": 0.5}, "joint", images)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    made = Assignment(
        network, zoo.resolve(), folder / "images.safetensors", folder / "model.onnx", seed
    )
    # Some peers look at the first few alone, and data may come in the order of its classes.
    calibration = shuffled(seed, setup.calibration.inputs)[0]
    write_images(
        made.images, calibration, *shuffled(seed, setup.search.inputs, setup.search.targets)
    )
    plain = Plan(input_shape=setup.input_shape)
    save_onnx(export_onnx(setup.compressor.folded, plain), made.model)
    return made.write(folder)


class _Search(Run):
    """A search without training that ends at its winner, before the test split."""

    winner: Finalist

    def _measured(self, finalists: list[Finalist]) -> dict[str, Any]:
        files = {**self._references, **{f.policy.digest: f.file for f in finalists}}
        times = self._target.measure(files, seconds=2.0)
        ratios = {f.policy.digest: times.ratio(f.policy.digest, UNIFORM) for f in finalists}
        inside = [f for f in finalists if ratios[f.policy.digest] <= self._args.bound]
        self.winner = (
            max(inside, key=lambda f: f.evaluation.score)
            if inside
            else min(finalists, key=lambda f: ratios[f.policy.digest])
        )
        own = ratios[self.winner.policy.digest]
        return {"within_bound": bool(inside), "ratio_then": own, "waited": times.waited}


def at_latency(
    assignment: Assignment, bound: float, effort: Effort, kernel_seconds: float
) -> Found:
    """The best file in a share of uniform int8's time.

    Args:
        bound: that share, as it was measured for the peer's file.
        kernel_seconds: for kernels that the tables lack.
    """
    _, targets = assignment.search()
    args = argparse.Namespace(
        network=assignment.network, zoo=assignment.zoo, bound=bound, agent=AGENT, workers=effort.workers,
        evaluations=effort.evaluations, seconds=effort.seconds, finalist_seconds=0.35 * effort.seconds,
        kernel_seconds=kernel_seconds, search_images=len(targets), data_dir=effort.data_dir, seed=effort.seed,
        device=effort.device, one_price=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        search = _Search(args, Path(scratch))
        report = search.report()
    report.pop("host")
    return Found(search.winner.compressed, report)


def at_bytes(assignment: Assignment, limit: int, scope: str, effort: Effort) -> Found:
    """The best network whose packed file takes at most so many bytes.

    Args:
        scope: ``quantize`` for bits alone, ``joint`` for channels, blocks and zeros too.

    Raises:
        RuntimeError: no policy that was scored packs into the bytes.
    """
    begun = time.monotonic()
    _, targets = assignment.search()
    setup = setup_of(
        assignment.network, assignment.zoo, {"packed_bytes": limit}, scope, len(targets)
    )
    network_space = setup.network.network_space
    prices = learn_packed(
        setup.compressor, network_space, setup.target.reduce_range, _quiet, lambda: None
    )
    models = {PACKED: prices.model, "macs": macs_model(network_space)}
    pricer = Pricer(network_space.space, models, {PACKED: float(limit)})
    agent = make_agent(AGENT, network_space.space, pricer, effort.evaluations, effort.seed)
    loop = SearchLoop(agent, pricer, lambda _: None, lambda: None, _quiet, CONTENDERS)
    with tempfile.TemporaryDirectory() as scratch:
        builder = on_device(setup.scorer_builder(Path(scratch)), effort.device)
        pool = ProcessPool(builder, effort.workers)
        try:
            trials = loop.run(pool, effort.evaluations, begun + effort.seconds)
        finally:
            pool.close()
    scorer = setup.scorer()
    for tried, (policy, evaluation) in enumerate(best_first(trials, pricer, "accuracy", None)):
        if tried == _TRIED:
            break
        compressed = scorer.compress(policy)
        size = packed_size(compressed)
        if size <= limit:
            grown = 0
            while (larger := _grown(pricer, policy, size)) != policy and grown < GROWN:
                made = scorer.compress(larger)
                again = scorer.score_compressed(made)
                if packed_size(made) > limit or again.score <= evaluation.score:
                    break
                policy, compressed, evaluation = larger, made, again
                size, grown = packed_size(made), grown + 1
            seconds = time.monotonic() - begun
            facts = {
                "evaluations": len(trials), "workers": effort.workers, "device": effort.device,
                "seconds": {"all": seconds}, "passed_over": tried, "grown": grown, "packed_bytes": size,
                "score": evaluation.score, "scope": scope,
            }  # fmt: skip
            return Found(compressed, facts)
    failures = [trial.outcome for trial in trials if isinstance(trial.outcome, Failure)]
    why = f"{len(failures)} failed: {failures[0].reason}" if failures else "give more evaluations"
    raise RuntimeError(
        f"{assignment.network}: no policy of {len(trials)} packs into {limit} bytes; {why}"
    )


def _quiet(_stage: str, _message: str, _done: int = 0, _total: int = 0) -> None:
    """Searches run beside one another; their progress would only be mixed up."""


def _grown(pricer: Pricer, policy: Policy, size: int) -> Policy:
    """A policy that uses up what a packed file leaves of its bound, as finalists of a job are grown."""
    model = pricer.models[PACKED]
    here = replace(
        model.scaled(size / pricer.costs(policy)[PACKED]), relative_error=NEARBY_PACKED_ERROR
    )
    return Pricer(pricer.space, {**pricer.models, PACKED: here}, pricer.limits).fill(policy)
