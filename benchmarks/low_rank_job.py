"""A job that factors layers for speed: what its table says of factors, whether its prices hold, and what ranks buy.

A plain convolutional network (in the manner of VGG, Simonyan and Zisserman 2014, arXiv 1409.1556, with strides in the
place of pooling) of 64 to 256 channels is trained for a short while on CIFAR-10. Then, on a target of this machine
under a bound on latency:

1. every shape of layer whole and as factors: the ratio that the timed kernels give, beside the ratio of the two as
   exported files timed in one interleaved run, in float and in integers;
2. prices of sampled policies that factor layers, beside their files timed in one interleaved run;
3. two searches with the same evaluations, one that may factor layers and one that may not; their finalists, the
   uncompressed network and uniform int8 timed in one interleaved run and tested on images nobody trained on.

    python -m benchmarks.low_rank_job --zoo ../shared/zoo --out DIR [--workers 2] [--json FILE]

Weights and kernel times stay in DIR.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from agents.registry import make_agent
from agents.uniform import uniform_policy
from benchmarks.low_rank import timed
from benchmarks.process_pool import ProcessPool
from compressors import Compressed
from compressors.exporter import export_onnx, save_onnx
from evaluation.intervals import mean_ci95, share_ci95
from evaluation.splits import Examples, carve, gather, spread
from evaluation.stopping import CONTENDERS
from latency_tables import Catalog, TableStore, Target
from search_spaces import DecisionKind
from search_spaces.latency_model import sample_policies
from search_spaces.ranks import OfferedRanks, rank_candidates
from service.anchors import measure_quietly
from service.finalists import Finalist, FinalistPicker
from service.job_prices import JobPrices
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.kernel_rows import Rows
from service.price_setup import learn_prices
from service.prices import Prices
from service.rank_forms import Uses
from service.rank_offers import RankOffers, rank_notes
from service.search_loop import SearchLoop
from service.sources import Sources

WEIGHTS = "weights.safetensors"
SOURCE, DATA = "python:benchmarks.low_rank_job:plain", "python:cifar_zoo:cifar10"
# What a price may be off.
WITHIN = 0.10
_BATCH, _RATE, _DECAY = 128, 0.1, 5e-4


# Input channels, output channels and stride of each convolution.
SIZES = (
    (3, 64, 2),
    (64, 64, 1),
    (64, 128, 2),
    (128, 128, 1),
    (128, 256, 2),
    (256, 256, 1),
    (256, 256, 1),
)


class Plain(nn.Module):
    """Seven convolutions of 3x3 and a linear layer. Input [N, 3, 32, 32], logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in SIZES:
            layers.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


def plain() -> nn.Module:
    return Plain()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, required=True, help="folder of cifar_zoo.py")
    parser.add_argument("--out", type=Path, required=True, help="keeps weights, tables and files")
    parser.add_argument("--target", default="x86-ort")
    parser.add_argument("--latency", type=float, default=0.2, help="of the uncompressed network's")
    parser.add_argument("--agent", default="evolution")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--search-images", type=int, default=1000)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=12, help="whose prices are checked")
    parser.add_argument("--shape-seconds", type=float, default=0.5, help="of timing a form's file")
    parser.add_argument("--kernel-seconds", type=float, default=60.0)
    parser.add_argument("--train-seconds", type=float, default=60.0)
    parser.add_argument("--train-images", type=int, default=20_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not (args.zoo / "cifar_zoo.py").is_file():
        print(f"low_rank_job: no cifar_zoo.py in {args.zoo}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    found = run(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    sources = Sources(allow=("python:*",), code_paths=[args.zoo.resolve()])
    weights = args.out / WEIGHTS
    if not weights.exists():
        train(args, sources, weights)
    torch.set_num_threads(1)
    target = Catalog.of(args.out).target(args.target)
    said: dict[str, Any] = {}
    jobs: dict[str, Finalist] = {}
    for name in ("with ranks", "without ranks"):
        print(f"-- {name}", flush=True)
        offer = RankOffers(target, {"latency": args.latency}, data_dir=args.out, measures=True)
        setup = set_up(args, sources, None if name == "without ranks" else offer)
        if name == "with ranks":
            said["offers"] = offered(setup)
            said["shapes"] = shapes(setup, offer, args)
        prices = learn_prices(
            setup.compressor,
            setup.network.network_space,
            setup.target,
            args.out,
            args.out,
            lambda *_: None,
            lambda: None,
            budget=setup.spec.budget,
            measure_seconds=args.kernel_seconds,
        )
        if name == "with ranks":
            said["prices"] = priced(setup, prices, args)
        jobs[name] = searched(setup, prices, args)
    return {
        "target": args.target,
        "latency": args.latency,
        **said,
        "jobs": compared(setup, jobs, args),
    }


def set_up(args: argparse.Namespace, sources: Sources, offer: RankOffers | None) -> JobSetup:
    spec = JobSpec.model_validate(
        {
            "model": {"source": SOURCE},
            "data": {"source": DATA},
            "target": args.target,
            "budget": {"latency": args.latency},
            "agent": {
                "name": args.agent,
                "evaluations": args.evaluations,
                "seed": args.seed,
            },
            "search_images": args.search_images,
        }
    )
    none = lambda *_: OfferedRanks()  # noqa: E731
    return load_job(
        spec, sources, args.out / WEIGHTS, data_dir=args.out, ranks=lambda _: offer or none
    )


# ---- training


def train(args: argparse.Namespace, sources: Sources, weights: Path) -> None:
    """SGD with momentum, one cycle of the learning rate over the given seconds, flipped images."""
    begun = time.monotonic()
    pool = sources.data(DATA).train
    left = carve(len(pool), None, args.search_images).training
    # Spread: the data is sorted by class.
    images = gather(pool, spread(left, args.train_images), "train")
    print(f"{len(images)} images read in {time.monotonic() - begun:.0f} s", flush=True)
    torch.manual_seed(args.seed)
    network = plain().to(args.device).train()
    inputs, targets = images.inputs.to(args.device), images.targets.to(args.device)
    optimizer = torch.optim.SGD(
        network.parameters(), _RATE, 0.9, weight_decay=_DECAY, nesterov=True
    )
    begun, seen, done = time.monotonic(), 0, 0.0
    while done < 1:
        for rows in torch.randperm(len(inputs), device=args.device).split(_BATCH):
            done = min(1.0, (time.monotonic() - begun) / args.train_seconds)
            optimizer.param_groups[0]["lr"] = _RATE * max(1e-3, min(done / 0.2, 1.25 * (1 - done)))
            batch = inputs[rows]
            batch = batch.flip(3) if torch.rand(()) < 0.5 else batch
            loss = F.cross_entropy(network(batch), targets[rows], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen += len(rows)
            if done == 1:
                break
    print(f"trained on {seen} images in {args.train_seconds:.0f} s, last loss {loss.item():.3f}")
    save_file({name: t.cpu().contiguous() for name, t in network.state_dict().items()}, weights)


# ---- what the table says of factors


def offered(setup: JobSetup) -> dict[str, Any]:
    space = setup.network.network_space
    values = {
        d.module: list(d.values) for d in space.space.decisions if d.kind is DecisionKind.RANK
    }
    for path, ranks in values.items():
        print(f"{path}: ranks {ranks}")
    for note in rank_notes(space.whole):
        print(note)
    return {"values": values, "withheld": space.whole}


def shapes(setup: JobSetup, offer: RankOffers, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each shape at the rank nearest to half and at the smallest one: ratios by the table and of files."""
    network, structure = setup.network.folded, setup.network.network_space.structure
    example = setup.calibration.inputs[:2]
    table = TableStore(args.out / "tables").load(setup.target)
    rows, found, seen = Rows(table, {}), [], set()
    print(f"{'layer':12} {'shape':22} {'rank':>5} {'bits':>4} {'table':>6} {'files':>6}")
    for path, ranks in rank_candidates(network, structure, example, setup.target).items():
        layer = structure.layer(path)
        shape = (
            layer.in_channels,
            layer.out_channels,
            layer.kernel,
            layer.stride,
            layer.input_shape,
        )
        if shape in seen:
            continue
        seen.add(shape)
        forms = offer.forms(network, layer, ranks)
        named = {float(rank): rank for rank in (ranks[0], ranks[(len(ranks) - 1) // 2])}
        ratios, _ = timed(
            network.get_submodule(path), layer, named, setup.target, args.shape_seconds
        )
        for (bits, rank), ratio in ratios.items():
            integer = bits == 8
            told = total(forms[integer, int(rank)], rows) / total(forms[integer, None], rows)
            size = f"{shape[0]}>{shape[1]} k{shape[2]}/{shape[3]} {shape[4][-1]}x{shape[4][-1]}"
            print(f"{path:12} {size:22} {int(rank):5d} {bits:4d} {told:6.2f} {ratio:6.2f}")
            row = {"layer": path, "shape": size, "rank": int(rank), "bits": bits}
            found.append(row | {"table": told if told == told else None, "files": ratio})
    return found


def total(uses: Uses, rows: Rows) -> float:
    """Microseconds of a file's kernels, halfway between warm and cold; NaN where one has no price."""
    if any(rows.row(use.kernel) is None for use in uses):
        return np.nan
    return sum(use.count * sum(rows.of(use.kernel)) / 2 for use in uses)


# ---- prices


def priced(setup: JobSetup, prices: Prices, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Predicted and measured latency of policies with factored layers, as shares of the uncompressed network's."""
    space = setup.network.network_space
    whole = prices.pricer.costs(space.space.uncompressed())["latency_ms"]
    drawn = sample_policies(space, 8 * args.policies, seed=args.seed + 1000)
    low = [policy for policy in drawn if space.choices(policy).rank]
    if not low:
        print("no rank was offered, or none of the policies drawn uses one: no prices to check")
        return []
    files = {"uncompressed": prices.baseline}
    told: dict[str, float] = {}
    counts: dict[str, int] = {}
    for policy in low[: args.policies]:
        made = setup.compressor.compress(space.choices(policy), refit=False, quick=True)
        name = policy.digest
        files[name] = exported(setup, made, args.out / f"{name}.onnx")
        told[name] = prices.pricer.costs(policy)["latency_ms"] / whole
        counts[name] = len(made.plan.ranks)
    measured = measure_quietly(setup.target, files, seconds=1.0)
    rows = []
    for name, share in told.items():
        ratio = measured.ratio(name, "uncompressed")
        rows.append(
            {"policy": name, "factored": counts[name], "predicted": share, "measured": ratio}
        )
        files[name].unlink()
    errors = np.array([row["predicted"] / row["measured"] - 1 for row in rows])
    print(
        f"prices of {len(rows)} files with factored layers: mean error {100 * np.abs(errors).mean():.1f} %, "
        f"{(np.abs(errors) <= WITHIN).sum()} of {len(rows)} within {100 * WITHIN:.0f} %, "
        f"worst {100 * np.abs(errors).max():.1f} %, waited {100 * measured.waited:.0f} %"
    )
    return rows


def exported(setup: JobSetup, made: Compressed, file: Path) -> Path:
    save_onnx(export_onnx(made.network, made.plan, setup.target.batch), file)
    return file


# ---- searches


def searched(setup: JobSetup, prices: Prices, args: argparse.Namespace) -> Finalist:
    """The finalist of one search."""
    limits = {"latency_ms": args.latency * prices.uncompressed["latency_ms"]}
    pricer = prices.pricer.with_limits(limits)
    pricer.require_reachable()
    space = setup.network.network_space.space
    agent = make_agent(args.agent, space, pricer, args.evaluations, args.seed)
    loop = SearchLoop(agent, pricer, lambda _: None, lambda: None, lambda *_: None, CONTENDERS)
    begun = time.monotonic()
    pool = ProcessPool(setup.scorer_builder(args.out), args.workers)
    try:
        trials = loop.run(pool, args.evaluations, None)
    finally:
        pool.close()
    store = TableStore(args.out / "tables")
    on_targets = JobPrices.of(setup.targets, [prices])
    picker = FinalistPicker(
        setup, on_targets, limits, args.out, lambda: None, lambda *_: None, store
    )
    (finalist,) = picker.pick(trials, 1)
    print(
        f"{len(space)} decisions, {len(trials)} evaluations in {time.monotonic() - begun:.0f} s; finalist "
        f"{'meets' if finalist.met else 'misses'} the bound, search score {finalist.evaluation.score:.4f}, "
        f"{len(finalist.compressed.plan.ranks)} layers factored: {dict(finalist.compressed.plan.ranks)}",
        flush=True,
    )
    return finalist


def compared(
    setup: JobSetup, jobs: Mapping[str, Finalist], args: argparse.Namespace
) -> dict[str, Any]:
    """Finalists beside the uncompressed network and uniform int8, timed in one run and tested."""
    space = setup.network.network_space
    uniform = space.choices(uniform_policy(space.space, 1.0, 8))
    files = {
        "uncompressed": args.out / "baseline.onnx",
        "uniform int8": exported(setup, setup.compressor.compress(uniform), args.out / "int8.onnx"),
    } | {name: finalist.file for name, finalist in jobs.items()}
    measured = measure_quietly(setup.target, files, seconds=3.0)
    test = gather(setup.data.test, spread(range(len(setup.data.test)), args.test_images), "test")
    hits = {name: right(setup.target, file, test) for name, file in files.items()}
    found = {}
    for name in files:
        n, ratio = len(hits[name]), measured.ratio(name, "uncompressed")
        drop = mean_ci95(hits["uncompressed"] - hits[name])
        share = share_ci95(int(hits[name].sum()), n)
        ranks = (
            {p: list(r) for p, r in jobs[name].compressed.plan.ranks.items()}
            if name in jobs
            else {}
        )
        found[name] = {
            "latency_ms": measured[name].p50_ms,
            "ratio": ratio,
            "accuracy": float(hits[name].mean()),
            "accuracy_ci95": share,
            "drop": drop[0],
            "drop_ci95": drop[1:],
            "images": n,
            "ranks": ranks,
        }
        print(
            f"{name:14} {1e3 * measured[name].p50_ms:7.1f} us {ratio:6.3f}  accuracy {100 * hits[name].mean():.2f} %, "
            f"drop {100 * drop[0]:.2f} ({100 * drop[1]:.2f} to {100 * drop[2]:.2f}), {len(ranks)} layers factored"
        )
    print(f"waited {100 * measured.waited:.0f} %")
    return found


def right(target: Target, file: Path, test: Examples) -> NDArray[np.float64]:
    """1 where the file's top-1 is the label, 0 elsewhere."""
    answers = target.run(file, np.ascontiguousarray(test.inputs.numpy())).argmax(1)
    return np.asarray(answers == test.targets.numpy(), dtype=np.float64)


if __name__ == "__main__":
    raise SystemExit(main())
