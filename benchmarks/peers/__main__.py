"""Peers beside Trimtab at equal measured latency or equal packed bytes, without fine-tuning.

    python -m benchmarks.peers environments [NAME ...]
    python -m benchmarks.peers search [NAME ...] --zoo ../shared/zoo --work DIR [--networks resnet20 ...]
    python -m benchmarks.peers compete --zoo ../shared/zoo --work DIR [--workers 4] [--evaluations 100]
    python -m benchmarks.peers finish --zoo ../shared/zoo --work DIR [--json FILE]

``environments`` makes a virtual environment a peer. ``search`` runs peers on networks in their environments, on the
images that a job of ours would use (``--here``: in this one). ``compete`` puts what they decided into our plans and
files, times these to see where each peer ends, and lets ``auto`` search in the same measured time or the same bytes.
``finish`` times all files of a network in one interleaved run and reads the test split once a file. Target: x86-ort,
1 thread, batch 1; nothing else may run on its cores in the last two stages. Data: CIFAR-10, JPEG re-encoded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import environments
from benchmarks.peers.assignment import FILE
from benchmarks.peers.registry import PEERS

NETWORKS = ("resnet20", "mobilenet_v2", "resnet56")
# Share of uniform int8's time that families of pruned networks are held to: widths alone hardly shorten ResNets.
WANTED = {"resnet20": 0.85, "resnet56": 0.9, "mobilenet_v2": 0.75}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    runs = {"environments": make, "search": search, "compete": compete, "finish": finish}
    for name, run in runs.items():
        stage = stages.add_parser(name)
        stage.set_defaults(run=run)
        if name in ("environments", "search"):
            stage.add_argument("peers", nargs="*", metavar="NAME", help=", ".join(PEERS))
        if name != "environments":
            stage.add_argument("--zoo", type=Path, required=True, help="folder of cifar_zoo.py")
            stage.add_argument(
                "--work", type=Path, required=True, help="keeps everything between stages"
            )
            stage.add_argument(
                "--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS)
            )
        if name == "search":
            stage.add_argument("--images", type=int, default=2000, help="search images of a job")
            stage.add_argument("--seed", type=int, default=0)
            stage.add_argument("--here", action="store_true", help="peers are installed here")
            stage.add_argument(
                "--with", dest="arguments", default="", help="arguments for the peers' modules"
            )
        if name == "compete":
            stage.add_argument("--only", nargs="+", default=[], choices=list(PEERS))
            stage.add_argument("--wanted", type=float, help="share of uniform int8's time")
            stage.add_argument("--peers-alone", action="store_true", help="no search of ours")
            stage.add_argument(
                "--evaluations", type=int, default=100, help="at least, of a search of ours"
            )
            stage.add_argument("--seconds", type=float, default=240.0, help="of a search of ours")
            stage.add_argument("--kernel-seconds", type=float, default=60.0)
            stage.add_argument("--workers", type=int, default=1)
            stage.add_argument("--device", default="cpu", help="that our policies are run on")
            stage.add_argument("--seed", type=int, default=0)
        if name == "finish":
            stage.add_argument("--seconds", type=float, default=4.0, help="of timing, a file")
            stage.add_argument("--test-images", type=int, help="to try the machinery")
            stage.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if unknown := [name for name in getattr(args, "peers", []) if name not in PEERS]:
        print(f"peers: no peer {unknown[0]!r}; there are {', '.join(PEERS)}", file=sys.stderr)
        return 2
    if hasattr(args, "zoo"):
        if not (args.zoo / "cifar_zoo.py").is_file():
            print(f"peers: no cifar_zoo.py in {args.zoo}", file=sys.stderr)
            return 2
        sys.path.append(str(args.zoo.resolve()))
        args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    code: int = args.run(args)
    return code


def make(args: argparse.Namespace) -> int:
    wanted = {PEERS[name].environment for name in args.peers or PEERS}
    failed = 0
    for environment in sorted(wanted):
        if environments.ready(environment):
            print(f"{environment}: there already", flush=True)
            continue
        try:
            environments.make(environment)
            print(f"{environment}: made in {environments.home() / environment}", flush=True)
        except RuntimeError as error:
            failed += 1
            print(f"{environment}: {error}", file=sys.stderr)
    return 1 if failed else 0


def search(args: argparse.Namespace) -> int:
    from benchmarks.peers.ours import assign

    failed = []
    for network in args.networks:
        folder = args.work / network
        assignment = folder / FILE
        if not assignment.exists():
            assignment = assign(network, args.zoo, folder, args.images, args.seed)
        out = (folder / "answers").resolve()
        out.mkdir(exist_ok=True)
        for name in args.peers or PEERS:
            peer = PEERS[name]
            arguments = [*peer.arguments.get(network, ()), *args.arguments.split()]
            try:
                code = environments.run(peer, assignment.resolve(), out, arguments, args.here)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                code = 1
            if code:
                failed.append(f"{name} on {network}")
    if failed:
        print(f"peers: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def compete(args: argparse.Namespace) -> int:
    from benchmarks.peers.compete import compete as run
    from benchmarks.peers.ours import Effort

    for network in args.networks:
        data_dir = args.work / "data"
        effort = Effort(
            args.evaluations, args.seconds, args.workers, data_dir, args.seed, args.device
        )
        wanted = WANTED[network] if args.wanted is None else args.wanted
        own = None if args.peers_alone else effort
        run(args.work / network, wanted, own, args.kernel_seconds, args.only)
    return 0


def finish(args: argparse.Namespace) -> int:
    from benchmarks.headline import images_of
    from benchmarks.peers.results import finish as measured
    from benchmarks.peers.results import table
    from benchmarks.some_images import some_of

    test = images_of("test")
    if args.test_images:
        test = test.subset(some_of(len(test), args.test_images))
    found: dict[str, Any] = {}
    for network in args.networks:
        found[network] = measured(args.work / network, test, args.seconds)
        print(table(found[network]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
