"""Which networks can be pruned, from the network to the runtime.

For each: five random policies that each remove at least a fifth of the multiply-accumulates are carried out; each has
to run, keep the output's shape, come back from its plan, export, and give in ONNX Runtime what torch gives (fp32,
1e-3 of the largest output). ``prunable_macs`` is the share of the multiply-accumulates that the file of the smallest
policy does not hold. Networks are untrained (seeded, with random norm statistics), at the smallest image they take.

    python -m benchmarks.zoo_coverage [SOURCE...] [--input CxHxW] [--code-path DIR] [--jobs 2] [--limit 400]
        [--resume FILE] [--json FILE]

Sources are timm:NAME, torchvision:NAME or python:MODULE:FACTORY (with --input); 40 architectures where none is given.
Each network runs in a process of its own under a time limit. With --resume, rows found in that file are kept, and
every new one is added to it at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.zoo_networks import DEFAULT, SourceProblem, allow_code, factory, input_shape

GOAL_VALID, GOAL_PRUNABLE = 40, 36


def main() -> int:
    args = _arguments()
    allow_code(args.code_path)
    if args.worker:
        print(json.dumps(one(args.worker, args.input)))
        return 0
    sources = list(dict.fromkeys(args.sources or DEFAULT))
    rows = _earlier(args.resume)
    missing = [source for source in sources if source not in rows]
    print(HEADER, flush=True)
    for source in sources:
        if source in rows:
            print(describe(rows[source]), flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda source: _apart(source, args), missing):
            rows[row["name"]] = row
            print(describe(row), flush=True)
            if args.resume:
                _write(args.resume, list(rows.values()))
    found = [rows[source] for source in sources]
    print(summary(found))
    if args.json:
        _write(args.json, found)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", metavar="SOURCE")
    parser.add_argument(
        "--input", type=_shape, metavar="CxHxW", help="of every source; needed by python: ones"
    )
    parser.add_argument("--code-path", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument("--limit", type=float, default=400, help="seconds a network may take")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="rows are kept here between runs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--worker", metavar="SOURCE", help=argparse.SUPPRESS)
    return parser.parse_args()


def _shape(text: str) -> tuple[int, int, int]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(s.isdigit() and int(s) > 0 for s in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no CxHxW, such as 3x64x64")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def one(source: str, shape: tuple[int, int, int] | None) -> dict[str, Any]:
    """Row of one network, checked in this process."""
    import torch

    from benchmarks.coverage_check import check

    torch.set_num_threads(1)
    started = time.perf_counter()
    row: dict[str, Any] = {"name": source, "valid": False, "prunable_macs": None, "reason": None}
    try:
        if shape is None and source.startswith("python:"):
            raise SourceProblem(f"{source} needs --input CxHxW")
        shape = shape or input_shape(source)
        row |= {"input": list(shape)} | check(factory(source, shape[1]), shape)
    except SourceProblem as error:
        row["reason"] = str(error)
    return row | {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time(), 1),
    }


def _apart(source: str, args: argparse.Namespace) -> dict[str, Any]:
    """Row of one network, checked in a process of its own: a crash there ends nothing here."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.zoo_coverage", "--worker", source]
    for folder in args.code_path:
        command += ["--code-path", str(folder)]
    if args.input:
        command += ["--input", "x".join(map(str, args.input))]
    row: dict[str, Any] = {"name": source, "valid": False, "prunable_macs": None}
    root = Path(__file__).resolve().parents[1]
    try:
        run = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=args.limit, check=False
        )
    except subprocess.TimeoutExpired:
        return row | {"reason": f"not done after {args.limit:g} s", "seconds": args.limit}
    try:
        found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        said = (run.stderr.strip().splitlines() or ["nothing"])[-1][:300]
        return row | {"reason": f"the process ended with {run.returncode}: {said}"}
    return found


HEADER = f"{'network':42} {'input':>10} {'groups':>6} {'blocks':>6} {'prunable':>8} {'valid':>5} {'s':>5}  reason"


def describe(row: dict[str, Any]) -> str:
    share = row.get("prunable_macs")
    return (
        f"{row['name']:42} {'x'.join(map(str, row.get('input', []))):>10} {row.get('groups', ''):>6} "
        f"{row.get('blocks', ''):>6} {'' if share is None else format(share, '.3f'):>8} "
        f"{'yes' if row['valid'] else 'no':>5} {row.get('seconds', 0):5.0f}  {row['reason'] or ''}"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """How many are valid, and how many of those lose at least half of their MACs at the smallest policy."""
    valid = [row for row in rows if row["valid"]]
    prunable = [row for row in valid if row["prunable_macs"] >= 0.5]
    wall, cpu = (sum(row.get(k, 0) for row in rows) / 60 for k in ("seconds", "cpu_seconds"))
    return (
        f"{len(valid)} of {len(rows)} valid (goal {GOAL_VALID} of 40), {len(prunable)} with prunable_macs of at "
        f"least 0.5 (goal {GOAL_PRUNABLE} of 40); {wall:.0f} minutes of work, {cpu:.0f} of them on a processor"
    )


def _earlier(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    return {row["name"]: row for row in json.loads(path.read_text())["networks"]}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"networks": rows}, indent=1))
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
