"""How long it takes to price policies: one by one, and many at once.

For each network the kernels of sampled policies are read as a job reads them and local terms are learned as a job
learns them. Nothing is timed but pricing itself: kernels have made-up costs, a fixed function of their
multiply-accumulates and bytes, since how long a look-up takes does not depend on what it finds. (The terms then differ
from those of a measured table in their values, not in their number and shape.)

    python benchmarks/price_speed.py python:cifar_zoo:mobilenet_v2 --code-path ../shared/zoo --input 3x32x32
        [--target x86-ort] [--samples 240] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressors import Compressor
from latency_tables import Kernel, parse_target
from search_spaces import Pricer
from search_spaces.latency_model import PricedGraph, fit_latency, sample_policies
from search_spaces.macs_model import macs_model
from search_spaces.size_model import size_model
from service.graphs import Graphs
from service.job_setup import default_shape, load_network
from service.sources import Sources

MANY = 10_000
# Goals: microseconds a policy when many are priced at once.
GOAL_US = 50.0
_REPEATS = 7


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", default=["python:cifar_zoo:mobilenet_v2"]
    )
    parser.add_argument("--input", metavar="CxHxW", default="3x32x32")
    parser.add_argument("--target", default="x86-ort")
    parser.add_argument("--samples", type=int, default=240, help="policies to learn from")
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks = []
    for source in args.sources:
        networks.append(one(source, args))
        print(describe(networks[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"goal_us": GOAL_US, "networks": networks}, indent=1))
    return 0


def made_up_us(kernel: Kernel) -> float:
    """A kernel's cost: 0.5 us, 20 multiply-accumulates and 8 bytes a nanosecond."""
    return 0.5 + kernel.macs / 20e3 + kernel.moved_bytes / 8e3


def learn(source: str, args: argparse.Namespace) -> tuple[Pricer, float]:
    """Prices of a network under made-up costs of kernels, and the local terms' held-out error."""
    sources = Sources(allow=("python:*",), code_paths=args.code_path)
    shape = default_shape(source, sources, args.input)
    target = parse_target(args.target)
    network = load_network(source, sources, None, shape, target)
    images = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    groups = list(network.network_space.groups.values())
    compressor = Compressor(network.prepared, images, groups, reduce_range=target.reduce_range)
    graphs = Graphs(compressor, network.network_space, target)
    space = network.network_space.space
    found = [
        (policy, *graphs.of(network.network_space.choices(policy)))
        for policy in [
            space.uncompressed(),
            *sample_policies(network.network_space, args.samples, seed=0),
        ]
    ]
    fit = fit_latency(
        network.network_space,
        [PricedGraph(policy, uses) for policy, uses, _ in found],
        made_up_us,
    )
    models = {
        "latency_ms": fit.model,
        "size_bytes": size_model(network.network_space, [(p, size) for p, _, size in found]),
        "macs": macs_model(network.network_space),
    }
    return Pricer(space, models), fit.heldout_mape


def one(source: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is said of one network."""
    pricer, error = learn(source, args)
    space, rng = pricer.space, np.random.default_rng(0)
    policies = [
        space.from_indices([int(rng.integers(len(d.values))) for d in space.decisions])
        for _ in range(200)
    ]
    sizes = np.array([len(d.values) for d in space.decisions])
    indices = (rng.random((MANY, len(sizes))) * sizes).astype(np.int64)
    latency = pricer.models["latency_ms"]
    return {
        "name": source,
        "target": args.target,
        "decisions": len(space),
        "terms": {name: len(model.factors) for name, model in pricer.models.items()},
        "local_terms_error": error,
        "one_policy_us": {
            # A policy as agents hand it over: values to indices, three quantities, the interval.
            "costs": 1e6 * best_of(lambda: [pricer.costs(p) for p in policies]) / len(policies),
            "latency": 1e6
            * best_of(lambda: [latency.price(indices[k : k + 1]) for k in range(200)])
            / 200,
        },
        "many_policies_s": {
            "policies": MANY,
            "latency": best_of(lambda: latency.price(indices)),
            "all_quantities": best_of(lambda: [m.price(indices) for m in pricer.models.values()]),
        },
    }


def best_of(work: Callable[[], Any]) -> float:
    """Seconds of the quickest of several runs: what the work takes when nothing else runs."""
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def describe(found: dict[str, Any]) -> str:
    single, many = found["one_policy_us"], found["many_policies_s"]
    each = 1e6 * many["latency"] / MANY
    every = 1e6 * many["all_quantities"] / MANY
    verdict = "within" if every <= GOAL_US else "over"
    return (
        f"{found['name']} on {found['target']}: {found['decisions']} decisions, {found['terms']['latency_ms']} "
        f"terms of latency; one policy {single['costs']:.0f} us (all quantities), {single['latency']:.0f} us (latency "
        f"from indices); {MANY} policies {many['latency']:.3f} s latency, {many['all_quantities']:.3f} s all "
        f"quantities: {each:.1f} and {every:.1f} us a policy, {verdict} the goal of {GOAL_US:.0f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
