"""What a search alone reaches, without any training, in 0.75 of uniform int8's time.

    python -m benchmarks.without_training resnet56 --zoo ../shared/zoo --out DIR --workers 10 --seconds 400
        [--evaluations 2000] [--json FILE]

A job's own steps on ``x86-ort``: kernels and whole networks are timed, prices learned from them, an agent searches
over channels, blocks and precisions with every policy scored, and finalists are exported, timed, corrected and grown,
against a latency bound of 0.75 of what uniform int8 takes here. Then finalists, uniform int8 and fp32 are timed again
in one interleaved run; the finalist with the best search score among those within the bound is run on the test split,
once, beside the two references. Nothing else may run on the cores of this process; several such runs on one machine
need cores and a ``TMPDIR`` of their own each, or they wait for one another. Data: CIFAR-10, JPEG re-encoded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.protocol import Agent
from agents.registry import make_agent
from agents.uniform import uniform_policy
from benchmarks.process_pool import ProcessPool
from benchmarks.verify_artifacts import FLOAT, UNIFORM, accuracy_of, drop_of
from compressors import Compressed, save
from compressors.exporter import export_onnx, save_onnx
from evaluation.device_scoring import on_device
from evaluation.splits import Examples, gather
from evaluation.stopping import CONTENDERS
from latency_tables import HostFingerprint, TableStore, Target
from search_spaces import Pricer
from search_spaces.decision import INTEGER_BITS
from service.finalists import Finalist, FinalistPicker
from service.job_prices import JobPrices
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.price_review import PriceReview
from service.price_setup import learn_prices
from service.search_loop import SearchLoop, Trial
from service.sources import Sources

FINALISTS = 3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", help="a factory of cifar_zoo")
    parser.add_argument("--zoo", type=Path, required=True, help="folder of cifar_zoo.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bound", type=float, default=0.75, help="share of uniform int8's time")
    parser.add_argument("--agent", default="auto")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument(
        "--seconds", type=float, default=400.0, help="in all, finalists and test split included"
    )
    parser.add_argument("--finalist-seconds", type=float, default=110.0, help="kept for them")
    parser.add_argument("--kernel-seconds", type=float, default=120.0)
    parser.add_argument("--search-images", type=int, default=2000)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--data-dir", type=Path, help="keeps tables between runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="that policies are scored on")
    parser.add_argument(
        "--one-price", action="store_true", help="do not look at prices again during the search"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = Run(args, Path(scratch)).report()
    (args.out / "report.json").write_text(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    print(table(found))
    return 0


class Run:
    """One network's search, from its prices to the test split."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self._args, self._scratch = args, scratch
        self._begun, self._said = time.monotonic(), ""
        setup = self._setup()
        self._target: Target = setup.target
        self._references = self._written_references(setup)
        times = self._target.measure(self._references, seconds=2.0)
        self._share = args.bound * times.ratio(UNIFORM, FLOAT)
        self._say("prices", f"the bound is {self._share:.3f} of fp32's time")
        asked = setup.spec.agent.model_copy(update={"evaluations": args.evaluations})
        spec = setup.spec.model_copy(update={"budget": {"latency": self._share}, "agent": asked})
        self._job = dataclasses.replace(setup, spec=spec)

    def _setup(self) -> JobSetup:
        args = self._args
        spec = JobSpec.model_validate(
            {
                "model": {"source": f"python:cifar_zoo:{args.network}"},
                "data": {"source": "python:cifar_zoo:cifar10"},
                "target": "x86-ort",
                "budget": {"latency": 0.5},
                "search_images": args.search_images,
            }
        )
        sources = Sources(allow=("python:*",), code_paths=[args.zoo.resolve()])
        weights = args.zoo / "weights" / f"{args.network}.safetensors"
        return load_job(spec, sources, weights)

    def _written_references(self, setup: JobSetup) -> dict[str, Path]:
        network_space = setup.network.network_space
        space = network_space.space
        files = {}
        for name, policy in (
            (FLOAT, space.uncompressed()),
            (UNIFORM, uniform_policy(space, 1.0, INTEGER_BITS)),
        ):
            made = setup.compressor.compress(network_space.choices(policy))
            files[name] = self._scratch / f"{name.replace(' ', '-')}.onnx"
            save_onnx(export_onnx(made.network, made.plan), files[name])
        return files

    def _say(self, stage: str, message: str, done: int = 0, total: int = 0) -> None:
        said = f"{stage}: {message}" if not total else f"{stage}: {done - done % 100} of {total}"
        if said != self._said:
            self._said = said
            print(f"{time.monotonic() - self._begun:6.0f} s {said}", flush=True)

    def report(self) -> dict[str, Any]:
        args, job = self._args, self._job
        data_dir = args.data_dir or self._scratch / "data"
        prices = learn_prices(
            job.compressor, job.network.network_space, self._target, data_dir, self._scratch,
            self._say, lambda: None, budget={"latency": self._share},
            measure_seconds=args.kernel_seconds,
        )  # fmt: skip
        limits = {"latency_ms": self._share * prices.uncompressed["latency_ms"]}
        pricer = prices.pricer.with_limits(limits)
        store = TableStore(data_dir / "tables")

        def agent(own: Pricer) -> Agent:
            return make_agent(args.agent, own.space, own, args.evaluations, args.seed)

        review = PriceReview(
            job, JobPrices.of(job.targets, [prices]), limits, self._scratch, store, lambda: None,
            self._say, lambda _, value: value,
        )  # fmt: skip
        priced = time.monotonic()
        loop = SearchLoop(
            agent(pricer), pricer, lambda _: None, lambda: None, self._say, CONTENDERS,
            None if args.one_price else review.repricing(agent),
        )  # fmt: skip
        builder = on_device(job.scorer_builder(self._scratch), args.device)
        pool = ProcessPool(builder, args.workers)
        try:
            deadline = self._begun + args.seconds - args.finalist_seconds
            trials = loop.run(pool, args.evaluations, deadline)
        finally:
            pool.close()
        searched = time.monotonic()
        picker = FinalistPicker(
            job, review.prices, limits, self._scratch, lambda: None, self._say, store,
        )  # fmt: skip
        finalists = picker.pick(trials, FINALISTS)
        found = self._measured(finalists)
        return {
            "network": args.network,
            "bound_of_uniform_int8": args.bound,
            "bound_of_fp32": self._share,
            "agent": args.agent,
            "seed": args.seed,
            "recipe": job.compressor.recipe.to_json(),
            "search_images": len(job.search),
            "evaluations": len(trials),
            "scored_in_full": full(trials, len(job.search)),
            "workers": args.workers,
            "seconds": {
                "prices": priced - self._begun,
                "search": searched - priced,
                "all": time.monotonic() - self._begun,
            },
            "prices_error": prices.fit.heldout_mape,
            "anchors_error": prices.anchors.error,
            "review": review.notes,
            "corrections": picker.corrections,
            "grown": picker.grown,
            **found,
            "host": dataclasses.asdict(HostFingerprint.here()),
        }

    def _measured(self, finalists: list[Finalist]) -> dict[str, Any]:
        """All files in one run; the winner, chosen by its search score, on the test split."""
        files = {**self._references, **{f.policy.digest: f.file for f in finalists}}
        times = self._target.measure(files, seconds=4.0)
        ratios = {f.policy.digest: times.ratio(f.policy.digest, UNIFORM) for f in finalists}
        inside = [f for f in finalists if ratios[f.policy.digest] <= self._args.bound]
        winner = (
            max(inside, key=lambda f: f.evaluation.score)
            if inside
            else min(finalists, key=lambda f: ratios[f.policy.digest])
        )
        test = self._job.data.test
        total = len(test)  # type: ignore[arg-type]
        chosen = (
            np.linspace(0, total - 1, min(self._args.test_images, total))
            .round()
            .astype(int)
            .tolist()
        )
        examples = gather(test, chosen, "the test split")
        named = {**self._references, "found": winner.file}
        hits = {name: self._right(file, examples) for name, file in named.items()}
        self._keep(winner)
        rows = {}
        for name, file in named.items():
            key = name if name in self._references else winner.policy.digest
            rows[name] = {
                "of_uniform_int8": times.ratio(key, UNIFORM),
                "of_uniform_int8_ci95": list(times.ratio_ci95(key, UNIFORM)),
                "of_fp32": times.ratio(key, FLOAT),
                "p50_ms": times[key].p50_ms,
                "size_bytes": file.stat().st_size,
                **accuracy_of(hits[name]),
                "drop": drop_of(hits[FLOAT], hits[name]),
            }
        return {
            "within_bound": bool(inside),
            "waited": times.waited,
            "time": times.time,
            "finalists": [
                {
                    "policy": f.policy.digest,
                    "score": f.evaluation.score,
                    "search_accuracy": f.evaluation.top1,
                    "of_uniform_int8": ratios[f.policy.digest],
                }
                for f in finalists
            ],
            "files": rows,
        }

    def _right(self, file: Path, examples: Examples) -> NDArray[np.bool_]:
        outputs = self._target.run(file, examples.inputs.numpy())
        return np.asarray(outputs.argmax(1) == examples.targets.numpy())

    def _keep(self, winner: Finalist) -> None:
        out: Path = self._args.out
        made: Compressed = winner.compressed
        save(made.network, made.plan, out)
        save_onnx(export_onnx(made.network, made.plan), out / "model.onnx")
        ids = self._job.network.network_space.space.ids
        (out / "policy.json").write_text(json.dumps(winner.policy.to_json(ids), indent=1))


def full(trials: list[Trial], images: int) -> int:
    """Trials that were run on all search images."""
    return sum(getattr(t.outcome, "images", None) in (None, images) for t in trials)


def table(found: Mapping[str, Any]) -> str:
    seconds = found["seconds"]
    lines = [
        f"{found['network']}: {found['evaluations']} evaluations by {found['agent']} on {found['workers']} workers, "
        f"{seconds['all']:.0f} s, {seconds['search']:.0f} of them searching",
        "| file | of uniform int8's time (95 %) | of fp32's | test accuracy (95 %) | drop, points (95 %, pairs) |",
        "|---|---|---|---|---|",
    ]
    for name, f in found["files"].items():
        low, high = f["of_uniform_int8_ci95"]
        worst, best = (100 * end for end in f["accuracy_ci95"])
        drop, (least, most) = 100 * f["drop"]["estimate"], (100 * end for end in f["drop"]["ci95"])
        lines.append(
            f"| {name} | {f['of_uniform_int8']:.3f} ({low:.3f} to {high:.3f}) | {f['of_fp32']:.3f} | "
            f"{100 * f['accuracy']:.2f} ({worst:.2f} to {best:.2f}) % | {drop:.2f} ({least:.2f} to {most:.2f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
