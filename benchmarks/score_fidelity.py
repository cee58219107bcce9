"""Does the search score say which policy will be the better network after fine-tuning?

Policies of one network, random and searched, all within one narrow band of predicted latency, are scored before
training by every variant of the recipe and then fine-tuned; rank correlations of score and final accuracy tell how
far a score can be trusted. Predicted latency, multiply-accumulates and blocks kept are the controls.

    python -m benchmarks.score_fidelity choose --zoo ../shared/zoo --out DIR --data-dir TABLES
    python -m benchmarks.score_fidelity score  --zoo ../shared/zoo --out DIR [--variants refit one_call ...]
    python -m benchmarks.score_fidelity train  --zoo ../shared/zoo --out DIR --seconds 480 [--trained FILE]
    python -m benchmarks.score_fidelity report --out DIR [--json FILE]

Stages hand on files in ``--out``: ``policies.json``, ``scores.json`` and ``trained.json``; each stage goes on where
its last run stopped. ``choose`` times networks and wants a quiet machine. ``train`` wants a GPU and is called again
until all is trained; it needs ``policies.json``, and between calls only ``trained.json`` must be kept. Images are
decoded once into ``--work``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.fidelity_policies import (
    Candidate,
    fitted_candidates,
    price_band,
    random_candidates,
    searched_candidates,
)
from benchmarks.fidelity_report import name_of, summary, table
from compressors import Compressor, fold_norms, foldable, prepare
from compressors.finetuning import Recipe
from compressors.loading import save
from compressors.lots import TrainingJob, train_lot
from compressors.recipe import CompressionRecipe
from compressors.structure import analyse, example_input
from compressors.training_images import TensorImages
from evaluation.scoring import PolicyScorer
from evaluation.splits import Examples, carve
from evaluation.stopping import bar
from latency_tables import parse_target
from search_spaces import Evaluation
from search_spaces.network_space import NetworkSpace, build_space
from service.job_spec import SpaceSpec

SHAPE = (3, 32, 32)
SEARCH_IMAGES = 2000
# What jobs that fine-tune do unless they are told otherwise.
RECIPE = CompressionRecipe(criterion=SpaceSpec().criterion, statistics=True)
VARIANTS: dict[str, CompressionRecipe] = {
    "none": replace(RECIPE, refit=False, statistics=False),
    "statistics": replace(RECIPE, refit=False, statistics=True),
    "refit": replace(RECIPE, refit=True, statistics=False),
    "refit+statistics": replace(RECIPE, refit=True, statistics=True),
}
# The recipe of jobs as a search calls it: policies that surely are not among the best are not scored on all images.
ONE_CALL = "one_call"


@dataclass(frozen=True)
class Bench:
    """The network and its images."""

    prepared: nn.Module
    network_space: NetworkSpace
    calibration: Examples
    search: Examples

    def compressor(self, recipe: CompressionRecipe) -> Compressor:
        groups = list(self.network_space.groups.values())
        return Compressor(self.prepared, self.calibration.inputs, groups, recipe)

    def scorer(self, recipe: CompressionRecipe) -> PolicyScorer:
        return PolicyScorer(self.compressor(recipe), self.network_space, self.search)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("choose", "score", "train", "report"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the stages' files")
    parser.add_argument(
        "--zoo", type=Path, default=Path("../shared/zoo"), help="of the networks' package"
    )
    parser.add_argument("--network", default="cifar_zoo:resnet20", metavar="MODULE:FACTORY")
    parser.add_argument("--data", default="cifar_zoo:cifar10", metavar="MODULE:FACTORY")
    parser.add_argument("--weights", type=Path, help="default: ZOO/weights/FACTORY.safetensors")
    parser.add_argument("--work", type=Path, help="images, states (default: OUT/work)")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="of CPU stages"
    )
    choose = parser.add_argument_group("choose")
    choose.add_argument("--target", default="x86-ort")
    choose.add_argument("--data-dir", type=Path, help="keeps tables between runs")
    choose.add_argument("--centre", type=float, default=0.5, help="share of the float latency")
    choose.add_argument("--width", type=float, default=0.05, help="of the band, relative")
    choose.add_argument("--random", type=int, default=20)
    choose.add_argument("--integer", type=int, default=10, help="random with all layers int8")
    choose.add_argument("--searched", type=int, default=18)
    choose.add_argument("--evaluations", type=int, default=80, help="of the search")
    choose.add_argument("--seed", type=int, default=0)
    score = parser.add_argument_group("score")
    score.add_argument("--variants", nargs="+", default=[*VARIANTS, ONE_CALL])
    score.add_argument("--again", action="store_true", help="score anew what was scored before")
    train = parser.add_argument_group("train")
    train.add_argument("--seconds", type=float, default=540.0, help="after which no epoch is begun")
    train.add_argument("--epochs", type=int, default=10)
    train.add_argument("--seeds", type=int, default=2, help="trainings a policy")
    train.add_argument("--batch", type=int, default=256)
    train.add_argument("--stack", type=int, default=12, help="trainings a process runs at once")
    train.add_argument("--processes", type=int, default=1)
    train.add_argument("--device", default="cuda")
    train.add_argument(
        "--trained",
        type=Path,
        help="written too, for machines that give back a folder of their own",
    )
    train.add_argument("--images", type=int, help="train on this many only, to try the stage")
    report = parser.add_argument_group("report")
    report.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    stages = {
        "choose": choose_policies,
        "score": score_policies,
        "train": train_policies,
        "report": report_results,
    }
    return stages[args.stage](args)


def load(args: argparse.Namespace) -> Bench:
    """Network, decisions and images; nothing that a bare GPU machine lacks is imported."""
    factory = function_of(args.network, args.zoo)
    network: nn.Module = factory()
    network.load_state_dict(load_file(weights_of(args)))
    prepared = prepare(network)
    example = example_input(SHAPE)
    folded = prepare(prepared)
    fold_norms(folded, foldable(prepared, analyse(prepared, example)))
    network_space = build_space(folded, example, parse_target(args.target))
    files = image_files(args)
    return Bench(prepared, network_space, *(examples(files[k]) for k in ("calibration", "search")))


def function_of(name: str, zoo: Path) -> Callable[[], Any]:
    """``MODULE:FUNCTION`` of the user's package."""
    if str(zoo.resolve()) not in sys.path:
        sys.path.append(str(zoo.resolve()))
    module, _, function = name.partition(":")
    found: Callable[[], Any] = getattr(importlib.import_module(module), function)
    return found


def weights_of(args: argparse.Namespace) -> Path:
    weights: Path | None = args.weights
    return weights or args.zoo / "weights" / f"{args.network.split(':')[1]}.safetensors"


def image_files(args: argparse.Namespace) -> dict[str, Path]:
    """Images of the splits as ``train_lot`` reads them; search and calibration images are not trained on."""
    work = args.work or args.out / "work"
    files = {n: work / f"{n}.safetensors" for n in ("train", "calibration", "search", "test")}
    if all(file.exists() for file in files.values()):
        return files
    data = function_of(args.data, args.zoo)()
    package = importlib.import_module(args.data.split(":")[0])
    whole = {
        split: TensorImages(
            torch.from_numpy(d.images).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(d.labels), package.MEAN, package.STD,
        )
        for split, d in data.items()
    }  # fmt: skip
    splits = carve(len(data["train"]), None, SEARCH_IMAGES)
    # Images are sorted by class: the first of them would be of one.
    training = np.random.default_rng(0).permutation(splits.training)[: args.images]
    testing = np.random.default_rng(0).permutation(len(data["test"]))[: args.images]
    whole["train"].subset(torch.from_numpy(training)).save(files["train"])
    whole["train"].subset(splits.calibration).save(files["calibration"])
    whole["train"].subset(splits.search).save(files["search"])
    whole["test"].subset(torch.from_numpy(testing)).save(files["test"])
    return files


def examples(file: Path) -> Examples:
    images = TensorImages.load(file)
    return Examples(images.normalised(images.images), images.labels)


def choose_policies(args: argparse.Namespace) -> int:
    bench = load(args)
    scorer = bench.scorer(RECIPE)
    band = price_band(
        bench.compressor(RECIPE), bench.network_space, args.target, args.centre, args.width,
        args.data_dir or args.out / "data", args.out,
    )  # fmt: skip
    space = bench.network_space
    drawn = random_candidates(band, space, args.random, False, args.seed)
    integer = random_candidates(band, space, args.integer, True, args.seed + 1)
    starts = fitted_candidates(band, space, 12, args.seed + 2)
    searched = searched_candidates(
        band, starts, lambda p: scorer.score(p).score, args.evaluations, args.searched, args.seed
    )
    found = [band.candidate("random", space, p) for p in drawn]
    found += [band.candidate("integer", space, p) for p in integer]
    found += [band.candidate("searched", space, p) for p in searched]
    write(
        args.out / "policies.json",
        {
            "network": args.network,
            "target": args.target,
            "latency_ms": band.whole_ms,
            "band": [band.low, band.high],
            "policies": [c.to_json() for c in found],
        },
    )
    shares = np.array([c.share for c in found])
    print(f"{len(found)} policies, shares {shares.min():.4f} to {shares.max():.4f}")
    return 0


def score_policies(args: argparse.Namespace) -> int:
    """Every policy by every variant, on all cores; what earlier runs scored is kept."""
    image_files(args)  # once, before several processes look for them
    numbers = range(len(read_candidates(args.out)))
    file = args.out / "scores.json"
    scores: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    if args.again:
        scores = {variant: kept for variant, kept in scores.items() if variant not in args.variants}
    works: list[tuple[str, list[int]]] = []
    for variant in args.variants:
        missing = [k for k in numbers if str(k) not in scores.get(variant, {})]
        if variant == ONE_CALL and missing:
            works.append((variant, list(numbers)))  # in order: each is held against those before it
        elif missing:
            works += [(variant, missing[k :: args.workers]) for k in range(args.workers)]
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        done = [pool.submit(score_some, args, *work) for work in works]
        for (variant, _), found in zip(works, done):
            scores[variant] = scores.get(variant, {}) | found.result()
            write(file, scores)
    for variant in args.variants:
        spent = np.median([found["cpu_seconds"] for found in scores[variant].values()])
        print(f"{variant}: {len(scores[variant])} policies, {spent:.2f} CPU-s each", flush=True)
    return 0


def score_some(args: argparse.Namespace, variant: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Scores by number of the policy, one thread."""
    torch.set_num_threads(1)
    candidates = read_candidates(args.out)
    scorer = load(args).scorer(VARIANTS.get(variant, RECIPE))
    told: list[Evaluation] = []
    done: dict[str, Any] = {}
    for number in numbers:
        begun = time.process_time()
        beat = bar(told) if variant == ONE_CALL else None
        compressed = scorer.compressor.compress(candidates[number].choices)
        found = scorer.score_compressed(compressed, beat)
        told.append(found)
        done[str(number)] = {
            "score": found.score,
            "accuracy": found.top1,
            "images": found.images,
            "cpu_seconds": time.process_time() - begun,
        }
    return done


def train_policies(args: argparse.Namespace) -> int:
    """One lot: what ``trained.json`` lacks, in an order in which every policy is trained once before any is twice."""
    file = args.out / "trained.json"
    trained: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    begun = time.monotonic()
    starts = save_starts(args)
    jobs = [
        TrainingJob(name, args.network, weights_of(args), starts[number], recipe)
        for name, number, recipe in trainings(len(starts), args)
        if trained.get(name, {}).get("state") != "finished"
    ]
    files = image_files(args)
    seconds = args.seconds - (time.monotonic() - begun)
    states = train_lot(
        jobs, files["train"], files["calibration"], starts[0].parent.parent / "states", seconds,
        args.processes, args.stack, args.device, files["test"], [args.zoo],
    )  # fmt: skip
    trained |= {name: state for name, state in states.items() if state["state"] != "unfinished"}
    for place in (file, args.trained):
        if place is not None:
            write(place, trained)
    counts = Counter(state["state"] for state in states.values())
    print(f"{dict(counts)} of {len(jobs)} in {time.monotonic() - begun:.0f} s")
    for name, state in states.items():
        if state["state"] == "failed":
            print(f"{name}: {state.get('reason')}")
    return 0


def save_starts(args: argparse.Namespace) -> list[Path]:
    """Folders with what each training begins with: the networks of the recipe of jobs."""
    image_files(args)  # once, before several processes look for them
    root = (args.work or args.out / "work") / "starts"
    candidates = read_candidates(args.out)
    folders = [root / f"{k:03d}" for k in range(len(candidates))]
    missing = [k for k, folder in enumerate(folders) if not (folder / "plan.json").exists()]
    if missing:
        workers = min(args.workers, len(missing))
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            parts = [missing[k::workers] for k in range(workers)]
            works = [pool.submit(save_some, args, part, root) for part in parts]
            for work in works:
                work.result()
    return folders


def save_some(args: argparse.Namespace, numbers: Sequence[int], root: Path) -> None:
    torch.set_num_threads(1)
    compressor = load(args).compressor(RECIPE)
    candidates = read_candidates(args.out)
    for number in numbers:
        made = compressor.compress(candidates[number].choices)
        folder = root / f"{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        save(made.network, made.plan, folder)


def trainings(policies: int, args: argparse.Namespace) -> Iterator[tuple[str, int, Recipe]]:
    """Name, number of the policy and recipe of every training."""
    for number in range(policies):
        recipe = Recipe(epochs=1, batch=args.batch, integer_epochs=0)
        yield name_of(number, short=True), number, recipe
        yield name_of(number), number, Recipe(epochs=args.epochs, batch=args.batch)
    for seed in range(1, args.seeds):
        for number in range(policies):
            yield name_of(number, seed), number, Recipe(args.epochs, batch=args.batch, seed=seed)


def read_candidates(out: Path) -> list[Candidate]:
    file = out / "policies.json"
    if not file.exists():
        raise SystemExit(f"{file} is missing; run the stage choose first")
    return [Candidate.from_json(d) for d in json.loads(file.read_text())["policies"]]


def report_results(args: argparse.Namespace) -> int:
    candidates = read_candidates(args.out)
    scores = json.loads((args.out / "scores.json").read_text())
    trained = json.loads((args.out / "trained.json").read_text())
    found = summary(candidates, scores, trained)
    print(table(found))
    if args.json:
        write(args.json, found)
    return 0


def write(file: Path, value: Any) -> None:
    """Whole or not at all: a lot may be cut off at any moment."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(file)


if __name__ == "__main__":
    raise SystemExit(main())
