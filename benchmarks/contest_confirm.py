"""Agents of the contest again, with real evaluations in place of the surrogate's.

Each agent searches each recorded space as in the contest, but every policy it asks for is compressed and run. The best
policy of each search is then compressed, exported and scored as its file, and the file is timed beside the
uncompressed network's.

    python -m benchmarks.contest_confirm --agents auto evolution dp --spaces resnet20-joint --code-path ../shared/zoo
        --weights ../shared/zoo/weights --budget 0.5 --evaluations 100 --seeds 3 --workers 2 [--device cuda] --json FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.registry import make_agent
from benchmarks.contest_spaces import find
from benchmarks.process_pool import ProcessPool
from compressors.exporter import export_onnx, save_onnx
from evaluation.device_scoring import on_device
from evaluation.intervals import mean_ci95
from evaluation.recording import Recording, load_recording
from latency_tables import parse_target
from search_spaces import Evaluation
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.search_loop import SearchLoop
from service.sources import Sources

UNCOMPRESSED = "uncompressed"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", nargs="+", required=True)
    parser.add_argument("--spaces", nargs="*", default=[], help="recordings; all by default")
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--weights", type=Path, required=True, help="folder of NETWORK.safetensors")
    parser.add_argument("--budget", type=float, default=0.5, help="of the latency")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="that policies are compressed and run on")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for path in find(args.spaces):
        rows += confirmed(path, args)
        if args.json:
            args.json.write_text(json.dumps({"runs": rows}, indent=1) + "\n")
    print(table(rows))
    return 0


def confirmed(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a search on one space."""
    recording = load_recording(path)
    setup = job_of(recording, args)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        builder = on_device(setup.scorer_builder(Path(scratch)), args.device)
        pool = ProcessPool(builder, args.workers)
        try:
            for seed in range(args.seeds):
                for name in args.agents:
                    row = search(path.stem, recording, name, seed, pool, args)
                    if row is not None:
                        found.append(row)
                        print(row, flush=True)
        finally:
            pool.close()
        measure(setup, found, Path(scratch))
    for row in found:
        row["policy"] = list(row["policy"].values)
    return found


def job_of(recording: Recording, args: argparse.Namespace) -> JobSetup:
    """The job whose space was recorded.

    Raises:
        SystemExit: its network has another search space today.
    """
    made = recording.provenance
    spec = JobSpec.model_validate(
        {
            "model": {"source": made["model"]},
            "data": {"source": made["data"]},
            "target": made["target"],
            "budget": {"latency": args.budget},
            "space": {"scope": made["scope"], "criterion": made["recipe"]["criterion"]},
            "search_images": made["search_images"],
        }
    )
    network = made["model"].rpartition(":")[2]
    sources = Sources(allow=("python:*",), code_paths=args.code_path)
    setup = load_job(spec, sources, args.weights / f"{network}.safetensors")
    if setup.network.network_space.space.digest != recording.space.digest:
        raise SystemExit(f"{made['model']} has another search space than was recorded")
    return setup


def search(
    space: str,
    recording: Recording,
    name: str,
    seed: int,
    pool: ProcessPool,
    args: argparse.Namespace,
) -> dict[str, Any] | None:
    """One search with real scores on all search images; None where nothing kept the budget."""
    pricer = recording.budget(args.budget)
    agent = make_agent(name, recording.space, pricer, args.evaluations, seed)
    begun = time.monotonic()
    loop = SearchLoop(agent, pricer, lambda _: None, lambda: None, lambda *_: None)
    trials = loop.run(pool, args.evaluations, None)
    scored = [(t.policy, t.outcome) for t in trials if isinstance(t.outcome, Evaluation)]
    within = [pair for pair in scored if pair[1].feasible]
    if not within:
        print(f"{space}, {name}, seed {seed}: no policy within the budget", flush=True)
        return None
    policy, best = max(within, key=lambda pair: pair[1].score)
    return {
        "space": space, "agent": name, "seed": seed, "evaluations": len(trials), "score": best.score,
        "predicted": best.costs["latency_ms"], "seconds": time.monotonic() - begun, "policy": policy,
    }  # fmt: skip


def measure(setup: JobSetup, rows: list[dict[str, Any]], scratch: Path) -> None:
    """Adds the score of each row's exported file and its time beside the uncompressed network's."""
    target = parse_target(setup.target.spec)
    scorer = setup.scorer_builder(scratch)()
    space = setup.network.network_space
    files = {UNCOMPRESSED: scratch / "uncompressed.onnx"}
    whole = scorer.compress(space.space.uncompressed())
    save_onnx(export_onnx(whole.network, whole.plan), files[UNCOMPRESSED])
    for k, row in enumerate(rows):
        compressed = scorer.compress(row["policy"])
        row["file_score"] = scorer.score_compressed(compressed).score
        files[str(k)] = scratch / f"{k}.onnx"
        save_onnx(export_onnx(compressed.network, compressed.plan), files[str(k)])
    times = target.measure(files, seconds=0.5 * len(files))
    for k, row in enumerate(rows):
        row["latency_ratio"] = times.ratio(str(k), UNCOMPRESSED)


def table(rows: list[dict[str, Any]]) -> str:
    """Mean score of the exported files by space and agent, with 95 % intervals, and pairs with the first agent."""
    lines = [
        "| space | agent | searches | score of the file (95 %) | less the first agent's, pairs | time of the file |"
    ]
    lines.append("|---|---|---|---|---|---|")
    names = list(dict.fromkeys(row["agent"] for row in rows))
    for space in dict.fromkeys(row["space"] for row in rows):
        of = {
            name: {r["seed"]: r for r in rows if r["space"] == space and r["agent"] == name}
            for name in names
        }
        for name in names:
            if not of[name]:
                continue
            scores = np.array([row["file_score"] for row in of[name].values()])
            mean, low, high = mean_ci95(scores)
            first = of[names[0]]
            both = [s for s in of[name] if s in first and name != names[0]]
            gains = np.array([of[name][s]["file_score"] - first[s]["file_score"] for s in both])
            gain = "{:+.4f} ({:+.4f} to {:+.4f})".format(*mean_ci95(gains)) if both else ""
            ratio = np.mean([r["latency_ratio"] for r in of[name].values()])
            lines.append(
                f"| {space} | {name} | {len(scores)} | {mean:.4f} ({low:.4f} to {high:.4f}) | {gain} | {ratio:.3f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
