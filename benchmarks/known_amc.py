"""AMC on ResNet-56 at half of the multiply-accumulates, beside the published result and a uniform keep ratio.

He et al. 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices" (arXiv 1802.03494, table 2):
92.8 % before, 90.2 % pruned to half of the multiply-accumulates, 91.9 % after fine-tuning.

    python -m benchmarks.known_amc search --zoo ../shared/zoo --out DIR [--evaluations 120] [--published] [--device D]
    python -m benchmarks.known_amc train  --zoo ../shared/zoo --out DIR --seconds 300 [--epochs 80]
    python -m benchmarks.known_amc finish --zoo ../shared/zoo --out DIR [--json FILE]

``search`` lets the agent search with real scores and adds its best policy to ``policies.json``, beside the
largest uniform keep ratio filled up to the budget. ``--published`` gives the paper's agent a space of channels alone,
as the paper has it; without it the project's ``amc`` may drop residual blocks too. ``train`` (GPU) gives all of them
the same training with the original as teacher and goes on where the last call stopped. ``finish`` (CPU) reads the
test split: the original, and each network before and after training, in ONNX Runtime, float32. The data is CIFAR-10,
JPEG re-encoded, so drops compare with the paper's, accuracies do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agents.amc import AmcAgent
from agents.registry import make_agent
from agents.uniform import best_uniform
from benchmarks.headline import SHAPE, images_of, original_of, prepare_data, run_stage, weights_of
from benchmarks.process_pool import ProcessPool
from benchmarks.verify_artifacts import accuracy_of, drop_of, right
from compressors import Choices, Compressed, Compressor, save
from compressors.exporter import export_onnx, save_onnx
from compressors.finetuning import Recipe
from compressors.groups import find_groups
from compressors.loading import PLAN_FILE
from compressors.lots import RESULT_FILE, TrainingJob, train_lot
from compressors.recipe import CompressionRecipe
from compressors.structure import example_input
from compressors.training_images import TensorImages
from evaluation.device_scoring import on_device
from evaluation.stopping import CONTENDERS
from latency_tables import parse_target
from search_spaces import DecisionKind, Evaluation, Pricer
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace
from search_spaces.space import SearchSpace
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec, SpaceSpec
from service.search_loop import SearchLoop
from service.sources import Sources

NETWORK, SHARE = "resnet56", 0.5
PUBLISHED = {"before": 0.928, "pruned": 0.902, "fine_tuned": 0.919}
AMC, UNIFORM = "amc", "uniform"
POLICIES_FILE = "policies.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, run in (("search", search), ("train", train), ("finish", finish)):
        stage = stages.add_parser(name)
        stage.set_defaults(run=run)
        stage.add_argument("--zoo", type=Path, required=True, help="folder of cifar_zoo.py")
        stage.add_argument("--out", type=Path, required=True, help="keeps everything between calls")
        stage.add_argument("--json", type=Path, metavar="FILE")
        if name == "search":
            stage.add_argument("--evaluations", type=int, default=120)
            stage.add_argument("--seconds", type=float, default=float("inf"))
            stage.add_argument("--workers", type=int, default=1)
            stage.add_argument("--published", action="store_true")
            stage.add_argument("--criterion", default=SpaceSpec().criterion)
            stage.add_argument("--search-images", type=int, default=2000)
            stage.add_argument("--seed", type=int, default=0)
            stage.add_argument("--device", default="cpu", help="that policies are scored on")
        if name == "train":
            stage.add_argument("--seconds", type=float, default=540.0)
            stage.add_argument("--epochs", type=int, default=80)
            stage.add_argument("--batch", type=int, default=256)
            stage.add_argument("--stack", type=int, default=8)
            stage.add_argument("--device", default="cuda")
            stage.add_argument("--images", type=int, help="train on about so many, to try it")
        if name == "finish":
            stage.add_argument("--test-images", type=int, help="to try it")
    return run_stage(parser, "known_amc", "out")


# ---- search


def search(args: argparse.Namespace) -> dict[str, Any]:
    """Adds the agent's best policy, and the uniform one where it is missing, to ``policies.json``."""
    setup = setup_of(args)
    network_space = setup.network.network_space
    if args.published:
        network_space = channels_alone(network_space)
    space = network_space.space
    models = {"macs": macs_model(network_space)}
    free = Pricer(space, models)
    whole = free.costs(space.uncompressed())["macs"]
    pricer = free.with_limits({"macs": SHARE * whole})
    agent = (
        AmcAgent(space, pricer, args.evaluations, args.seed, published=True)
        if args.published
        else make_agent(AMC, space, pricer, args.evaluations, args.seed)
    )
    # Channels go in steps that the target likes: the largest ratio leaves a part of the budget unused.
    uniform = pricer.fill(best_uniform(space, pricer, None).policy)
    # The published reward is the accuracy on all images.
    contenders = None if args.published else CONTENDERS
    begun = time.monotonic()
    loop = SearchLoop(agent, pricer, lambda _: None, lambda: None, said, contenders)
    with tempfile.TemporaryDirectory() as scratch:
        on_cpu = dataclasses.replace(
            setup.scorer_builder(Path(scratch)), network_space=network_space
        )
        builder = on_device(on_cpu, args.device)
        pool = ProcessPool(builder, args.workers)
        try:
            trials = loop.run(pool, args.evaluations, begun + args.seconds)
            pool.submit(uniform)
            (alone,) = pool.wait()
        finally:
            pool.close()
    seconds = time.monotonic() - begun
    scored = [(t.policy, t.outcome) for t in trials if isinstance(t.outcome, Evaluation)]
    policy, best = max(
        ((p, e) for p, e in scored if e.feasible),
        key=lambda pair: (pair[1].top1 or 0.0) if args.published else pair[1].score,
    )
    assert isinstance(alone.outcome, Evaluation)
    document = read_policies(args.out) if (args.out / POLICIES_FILE).exists() else {}
    name = f"{AMC}-published" if args.published else AMC
    for row_name, chosen, evaluation in ((name, policy, best), (UNIFORM, uniform, alone.outcome)):
        choices = network_space.choices(chosen)
        document[row_name] = {
            "keep": dict(choices.keep),
            "dropped": list(choices.dropped),
            "macs": pricer.costs(chosen)["macs"] / whole,
            "score": evaluation.score,
            "search_accuracy": evaluation.top1,
            "recipe": setup.compressor.recipe.to_json(),
        }
    document[name] |= {
        "evaluations": len(trials),
        "seconds": seconds,
        "seed": args.seed,
        "scores": [e.score for _, e in scored],
    }
    (args.out / POLICIES_FILE).write_text(json.dumps(document, indent=1))
    for row_name, row in document.items():
        print(
            f"{row_name}: {row['macs']:.3f} of the MACs, score {row['score']:.4f}, "
            f"{100 * row['search_accuracy']:.2f} % of the search images, {len(row['dropped'])} blocks dropped"
        )
    return document


def setup_of(args: argparse.Namespace) -> JobSetup:
    spec = JobSpec.model_validate(
        {
            "model": {"source": f"python:cifar_zoo:{NETWORK}"},
            "data": {"source": "python:cifar_zoo:cifar10"},
            "target": "x86-ort",
            "budget": {"macs": SHARE},
            "space": {"scope": "prune", "criterion": args.criterion},
            "search_images": args.search_images,
        }
    )
    sources = Sources(allow=("python:*",), code_paths=[args.zoo.resolve()])
    return load_job(spec, sources, weights_of(args, NETWORK))


def channels_alone(network_space: NetworkSpace) -> NetworkSpace:
    """The space without its blocks: one keep ratio a group, as the paper has."""
    decisions = tuple(
        dataclasses.replace(d, block=None)
        for d in network_space.space.decisions
        if d.kind is DecisionKind.CHANNELS
    )
    return dataclasses.replace(network_space, space=SearchSpace(decisions))


def said(_stage: str, message: str, done: int, total: int) -> None:
    print(f"\r  {done} of {total}: {message}", end="" if done < total else "\n", flush=True)


# ---- train


def train(args: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    files = prepare_data(args.out / "data", args.images)
    starts = save_starts(args, files["calibration"])
    recipe = Recipe(args.epochs, batch=args.batch, augment="crop_flip_cutout")
    weights = weights_of(args, NETWORK)
    jobs = [
        TrainingJob(name, f"cifar_zoo:{NETWORK}", weights, start, recipe)
        for name, start in starts.items()
    ]
    states = train_lot(
        jobs, files["train"], files["calibration"], args.out / "trained",
        args.seconds - (time.monotonic() - begun), 1, args.stack, args.device, files["held_out"],
        (args.zoo.resolve(),),
    )  # fmt: skip
    for name, state in states.items():
        print(f"{name}: {state['state']}, {state['epoch']} of {state['epochs']} epochs")
    return states


def save_starts(args: argparse.Namespace, calibration: Path) -> dict[str, Path]:
    """Folders of the networks that are trained: pruned and refitted, not trained yet."""
    rows = read_policies(args.out)
    folders = {name: args.out / "starts" / name for name in rows}
    for name, row in rows.items():
        if (folders[name] / PLAN_FILE).exists():
            continue
        made = compressor_of(args, row["recipe"], calibration).compress(
            Choices(row["keep"], tuple(row["dropped"]))
        )
        folders[name].mkdir(parents=True, exist_ok=True)
        save(made.network, made.plan, folders[name])
    return folders


def compressor_of(
    args: argparse.Namespace, recipe: dict[str, Any], calibration: Path
) -> Compressor:
    images = TensorImages.load(calibration)
    inputs = images.normalised(images.images)
    original = original_of(args, NETWORK)
    folded = Compressor(original, inputs[:2], []).folded
    groups, _ = find_groups(folded, example_input(SHAPE))
    return Compressor(original, inputs, groups, CompressionRecipe(**recipe))


def read_policies(out: Path) -> dict[str, Any]:
    file = out / POLICIES_FILE
    if not file.exists():
        raise SystemExit(f"{file} is missing; run the stage search first")
    rows: dict[str, Any] = json.loads(file.read_text())
    return rows


# ---- finish


def finish(args: argparse.Namespace) -> dict[str, Any]:
    files = prepare_data(args.out / "data")
    test = images_of("test")
    if args.test_images:
        test = test.subset(torch.arange(0, len(test), len(test) // args.test_images))
    starts = save_starts(args, files["calibration"])
    original = original_of(args, NETWORK)
    calibration = TensorImages.load(files["calibration"])
    inputs = calibration.normalised(calibration.images[:2])
    before = hits_of(Compressor(original, inputs, []).compress(Choices()), test)
    rows = read_policies(args.out)
    hits = {}
    for name, start in starts.items():
        row, trained = rows[name], args.out / "trained" / name
        pruned = hits_of(begun_with(start, original), test)
        row["pruned"] = {**accuracy_of(pruned), "drop": drop_of(before, pruned)}
        if (trained / RESULT_FILE).exists():
            row["training"] = json.loads((trained / RESULT_FILE).read_text())
            hits[name] = hits_of(begun_with(trained, original), test)
            row["fine_tuned"] = {
                **accuracy_of(hits[name]),
                "drop": drop_of(before, hits[name]),
            }
    found: dict[str, Any] = {"network": NETWORK, "share": SHARE, "original": accuracy_of(before)}
    found |= {"policies": rows, "published": PUBLISHED}
    if UNIFORM in hits:
        found["above_uniform"] = {
            name: drop_of(own, hits[UNIFORM]) for name, own in hits.items() if name != UNIFORM
        }
    print(table(found))
    return found


def begun_with(folder: Path, original: nn.Module) -> Compressed:
    return TrainingJob("", f"cifar_zoo:{NETWORK}", Path(), folder, Recipe(1)).begin(original)


def hits_of(made: Compressed, test: TensorImages) -> NDArray[np.bool_]:
    """Which test images the exported file classifies rightly."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "network.onnx"
        save_onnx(export_onnx(made.network, made.plan), file)
        return right(parse_target("x86-ort"), file, test)


def table(found: dict[str, Any]) -> str:
    published = found["published"]
    lines = [
        "| network | MACs | pruned, test (drop, 95 %) | fine-tuned, test (drop, 95 %) |",
        "|---|---|---|---|",
    ]
    for name, row in found["policies"].items():
        cells = []
        for key in ("pruned", "fine_tuned"):
            if key not in row:
                cells.append("not yet")
                continue
            drop = row[key]["drop"]
            low, high = (100 * end for end in drop["ci95"])
            accuracy, estimate = 100 * row[key]["accuracy"], 100 * drop["estimate"]
            cells.append(f"{accuracy:.2f} % ({estimate:.2f}; {low:.2f} to {high:.2f})")
        lines.append(f"| {name} | {row['macs']:.3f} | {' | '.join(cells)} |")
    pruned, tuned = (published["before"] - published[k] for k in ("pruned", "fine_tuned"))
    lines.append(
        f"| published AMC | 0.5 | {100 * published['pruned']:.1f} % ({100 * pruned:.1f}) | "
        f"{100 * published['fine_tuned']:.1f} % ({100 * tuned:.1f}) |"
    )
    lines.append(f"original: {100 * found['original']['accuracy']:.2f} %")
    for name, gap in found.get("above_uniform", {}).items():
        low, high = (100 * end for end in gap["ci95"])
        lines.append(
            f"{name} minus uniform, fine-tuned: {100 * gap['estimate']:.2f} points ({low:.2f} to {high:.2f}, pairs)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
