"""How long the table of a whole search space takes to measure, in a fresh folder.

The kernels are those of the policies a job samples (the uncompressed network, uniform int8 and 240 drawn ones), of
every allowed value of every decision set alone in the uncompressed network, and of the same in the network that is
integer throughout. A kernel that needs an unlikely pair of values may be missing all the same: 240 further policies
that were not looked at are read afterwards, and what they need and the table lacks is counted.

    python benchmarks/table_speed.py python:cifar_zoo:resnet56 --code-path ../shared/zoo --input 3x32x32
        [--target x86-ort] [--scope joint] [--max-seconds 1800] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from compressors import Choices, Compressor
from latency_tables import KernelUse, LatencyTable, TableStore, Target, merge_uses, parse_target
from search_spaces import Policy
from search_spaces.decision import INTEGER_BITS, DecisionKind
from search_spaces.latency_model import sample_policies
from search_spaces.network_space import NetworkSpace
from service.graphs import Graphs, integer_layers
from service.job_setup import default_shape, load_network
from service.kernel_rows import measure_missing
from service.sources import Sources

GOAL_SECONDS = 300.0
_FRESH_SEED = 1000
_SAY_EVERY = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--input", metavar="CxHxW")
    parser.add_argument("--target", default="x86-ort")
    parser.add_argument("--scope", default="joint", choices=("prune", "quantize", "joint"))
    parser.add_argument("--samples", type=int, default=240, help="policies a job samples")
    parser.add_argument("--fresh", type=int, default=240, help="further policies that are checked")
    parser.add_argument("--max-seconds", type=float, default=1800.0, help="of timing kernels")
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = run(args)
    print(describe(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Reads, measures, checks."""
    target = parse_target(args.target)
    sources = Sources(allow=("python:*",), code_paths=args.code_path)
    shape = default_shape(args.source, sources, args.input)
    network = load_network(args.source, sources, None, shape, target, args.scope)
    network_space = network.network_space
    images = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    groups = list(network_space.groups.values())
    compressor = Compressor(network.prepared, images, groups, reduce_range=target.reduce_range)
    begun = time.monotonic()
    graphs = Graphs(compressor, network_space, target)
    sampled = read(graphs, as_job(network_space, target, args.samples), "sampled policies")
    alone = read(graphs, every_value(network_space), "every value alone")
    reading = time.monotonic() - begun
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        table, notes = measure_missing(
            TableStore(Path(folder)), target, [*sampled, *alone], Progress(), lambda: None, args.max_seconds
        )  # fmt: skip
        measuring = time.monotonic() - begun
    fresh = read(
        graphs,
        map(network_space.choices, sample_policies(network_space, args.fresh, _FRESH_SEED)),
        "fresh policies",
    )
    decisions = network_space.space.decisions
    kernels = {"sampled": len(distinct(sampled)), "every_value": len(distinct(alone))}
    kernels |= {"all": len(distinct([*sampled, *alone])), "measured": len(table)}
    return {
        "name": args.source,
        "target": target.spec,
        "machine": target.host().processor,
        "runtime": target.host().runtime,
        "processors_allowed": len(os.sched_getaffinity(0)),
        "decisions": len(decisions),
        "values": sum(len(d.values) for d in decisions),
        "policies": {"sampled": len(sampled), "every_value": len(alone)},
        "kernels": kernels,
        "seconds": {"reading": reading, "measuring": measuring, "both": reading + measuring},
        "seconds_a_kernel": measuring / max(1, len(table)),
        "goal_seconds": GOAL_SECONDS,
        "finished": measuring < args.max_seconds,
        "within_goal": measuring < min(GOAL_SECONDS, args.max_seconds),
        "fresh": coverage(fresh, distinct([*sampled, *alone]), table),
        "notes": notes if graphs.note is None else [*notes, graphs.note],
    }


def as_job(network_space: NetworkSpace, target: Target, samples: int) -> list[Choices]:
    """What a job reads before it measures."""
    drawn = [
        network_space.space.uncompressed(),
        *sample_policies(network_space, samples, seed=0),
    ]
    integer = Choices(integer=integer_layers(network_space, target, ()))
    return [integer, *(network_space.choices(policy) for policy in drawn)]


def every_value(network_space: NetworkSpace) -> list[Choices]:
    """Each value of each decision alone, in the uncompressed network and in the integer one."""
    space = network_space.space
    integer = {
        d.id: INTEGER_BITS
        for d in space.decisions
        if d.kind is DecisionKind.PRECISION and INTEGER_BITS in d.values
    }
    found: dict[Policy, None] = {}
    for base in ({}, integer):
        for decision in space.decisions:
            for value in decision.values:
                found[space.policy({**base, decision.id: value})] = None
    return [network_space.choices(policy) for policy in found]


def read(graphs: Graphs, choices: Iterable[Choices], what: str) -> list[list[KernelUse]]:
    """Kernels of networks."""
    say, wanted = Progress(), list(choices)
    found = []
    for k, chosen in enumerate(wanted):
        say("read", what, k, len(wanted))
        found.append(graphs.of(chosen)[0])
    return found


def distinct(graphs: Sequence[Sequence[KernelUse]]) -> set[str]:
    return {use.kernel.key for uses in graphs for use in uses}


def coverage(
    graphs: Sequence[Sequence[KernelUse]], foreseen: set[str], table: LatencyTable
) -> dict[str, Any]:
    """What policies need that was not foreseen, and that the table lacks for whatever reason."""
    uses = merge_uses(use for graph in graphs for use in graph)
    lacking = [use for use in uses if table.lookup(use.kernel) is None]
    keys = {use.kernel.key for use in lacking}
    return {
        "policies": len(graphs),
        "kernels": len(uses),
        "unforeseen": sum(use.kernel.key not in foreseen for use in uses),
        "lacking": len(lacking),
        "lacking_uses_share": sum(u.count for u in lacking) / max(1, sum(u.count for u in uses)),
        "policies_lacking_one": sum(any(u.kernel.key in keys for u in g) for g in graphs),
        "examples": [use.kernel.describe() for use in lacking[:5]],
    }


class Progress:
    """Says on standard error every few seconds how far it is."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, _stage: str, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._last > _SAY_EVERY:
            self._last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)


def describe(found: dict[str, Any]) -> str:
    kernels, seconds, fresh = found["kernels"], found["seconds"], found["fresh"]
    verdict = "within" if found["within_goal"] else "over"
    verdict = f"{verdict} the goal of {GOAL_SECONDS:.0f} s" if found["finished"] else "not finished"
    notes = "".join(f"\n{note}" for note in found["notes"])
    return (
        f"{found['name']} on {found['target']}, {found['machine']}, {found['runtime']}, "
        f"{found['processors_allowed']} processors allowed\n"
        f"{found['decisions']} decisions with {found['values']} values; {kernels['sampled']} kernels in "
        f"{found['policies']['sampled']} policies as a job samples them, {kernels['every_value']} in "
        f"{found['policies']['every_value']} with one value changed, {kernels['all']} in all\n"
        f"{kernels['measured']} measured in {seconds['measuring']:.0f} s ({found['seconds_a_kernel']:.2f} s each; "
        f"reading the graphs took {seconds['reading']:.0f} s): {verdict}\n"
        f"{fresh['policies']} further policies have {fresh['kernels']} kernels, {fresh['unforeseen']} of them "
        f"unforeseen; the table lacks {fresh['lacking']} ({fresh['lacking_uses_share']:.2%} of the uses, in "
        f"{fresh['policies_lacking_one']} policies){notes}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
