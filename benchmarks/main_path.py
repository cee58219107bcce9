"""The whole main path on the zoo: a network goes in, a smaller and faster one comes out, measured on its own.

    python benchmarks/main_path.py resnet20 mobilenet_v2 --via rest
    python benchmarks/main_path.py resnet20 mobilenet_v2 --via compress
    python benchmarks/main_path.py resnet20 --via rest --latency 0.4 --finetune-epochs 2

Each job's artifact is then timed again in a process of its own, beside a fresh export of the original, and compared
with the budget. Needs ``../shared/zoo``. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from service.client import Client
from service.demo import free_port

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT.parent / "shared" / "zoo"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="+", metavar="NETWORK", help="resnet20, resnet56 or mobilenet_v2"
    )
    parser.add_argument("--via", choices=("rest", "compress"), default="rest")
    parser.add_argument(
        "--latency", type=float, default=0.45, help="fraction of the uncompressed network's"
    )
    parser.add_argument("--agent", default="amc")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--finetune-epochs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data-dir", type=Path, help="keeps tables between runs (default: a fresh folder)"
    )
    parser.add_argument("--out", type=Path, help="keeps the jobs' files")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure_alone(args.networks[0], args.measure)))
        return 0
    if not ZOO.is_dir():
        print(f"main_path: {ZOO} is not there", file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = args.data_dir or Path(scratch) / "data"
        for network in args.networks:
            out = (args.out or Path(scratch) / "out") / f"{network}-{args.via}"
            shutil.rmtree(out, ignore_errors=True)
            begun = time.monotonic()
            report = (via_rest if args.via == "rest" else via_compress)(
                network, args, data_dir, out
            )
            wall = time.monotonic() - begun
            rows.append(row(network, args, report, alone(network, out), wall))
            print(table([rows[-1]]), flush=True)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1))
    return 0


def spec_of(network: str, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": f"{network}, {args.latency:g} of the time",
        "model": {"source": f"python:cifar_zoo:{network}"},
        "data": {"source": "python:cifar_zoo:cifar10"},
        "target": "x86-ort",
        "budget": {"latency": args.latency},
        "agent": {"name": args.agent, "evaluations": args.evaluations, "seed": args.seed},
        "finetune": {"epochs": args.finetune_epochs},
    }


def via_rest(network: str, args: argparse.Namespace, data_dir: Path, out: Path) -> dict[str, Any]:
    data_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIMTAB_")}
    environment |= {"TRIMTAB_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "trimtab", "serve", "--port", str(port)]
    command += ["--ray-dashboard-port", str(free_port())]
    command += ["--allow", "python:cifar_zoo", "--code-path", str(ZOO)]
    with (data_dir / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        with Client(f"http://127.0.0.1:{port}", patience=120.0) as client:
            while not client.ready():
                if server.poll() is not None:
                    raise SystemExit(f"the server ended, see {data_dir / 'server.log'}")
                time.sleep(0.5)
            spec = spec_of(network, args)
            spec["model"]["weights"] = client.upload_weights(
                ZOO / "weights" / f"{network}.safetensors"
            )["id"]
            job = client.submit(spec)
            for event in client.events(job["id"]):
                show(event.kind, event.data)
            found = client.get(job["id"])
            if found["state"] != "succeeded":
                raise SystemExit(f"job {found['state']}: {found.get('reason')}")
            client.fetch(job["id"], out)
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def show(kind: str, data: dict[str, Any], seen: dict[str, Any] = {}) -> None:  # noqa: B006
    if kind == "stage" and (data.get("stage"), data.get("message", "")[:12]) != seen.get("last"):
        seen["last"] = (data.get("stage"), data.get("message", "")[:12])
        print(f"  {datetime.datetime.now():%H:%M:%S} {data}", file=sys.stderr, flush=True)


def via_compress(
    network: str, args: argparse.Namespace, data_dir: Path, out: Path
) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "trimtab", "compress",
        "--model", f"python:cifar_zoo:{network}", "--code-path", str(ZOO),
        "--weights", str(ZOO / "weights" / f"{network}.safetensors"),
        "--data", "python:cifar_zoo:cifar10", "--budget", f"latency={args.latency}",
        "--agent", args.agent, "--evaluations", str(args.evaluations), "--seed", str(args.seed),
        "--finetune-epochs", str(args.finetune_epochs), "--out", str(out),
    ]  # fmt: skip
    subprocess.run(
        command, env=os.environ | {"TRIMTAB_DATA_DIR": str(data_dir)}, check=True, stdout=sys.stderr
    )
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def alone(network: str, out: Path) -> dict[str, Any]:
    """Times the artifact in a fresh process."""
    command = [sys.executable, __file__, network, "--measure", str(out / "model.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_alone(network: str, artifact: Path) -> dict[str, Any]:
    sys.path.append(str(ZOO))
    import cifar_zoo

    from compressors import Compressor, Plan, prepare
    from compressors.exporter import export_onnx, save_onnx
    from compressors.structure import example_input
    from latency_tables import parse_target

    target = parse_target("x86-ort")
    original = Compressor(prepare(getattr(cifar_zoo, network)()), example_input((3, 32, 32)), [])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "original.onnx"
        save_onnx(export_onnx(original.folded, Plan(input_shape=(3, 32, 32))), file)
        measured = target.measure({"original": file, "artifact": artifact}, seconds=5.0)
    return {
        "ratio": measured.ratio("artifact", "original"),
        "ratio_ci95": list(measured.ratio_ci95("artifact", "original")),
        "p50_ms": measured["artifact"].p50_ms,
        "original_p50_ms": measured["original"].p50_ms,
        "waited": measured.waited,
    }


def row(
    network: str, args: argparse.Namespace, report: dict[str, Any], own: dict[str, Any], wall: float
) -> dict[str, Any]:
    before, after, drop = report["baseline"], report["compressed"], report["accuracy_drop"]
    return {
        "network": network,
        "via": args.via,
        "agent": args.agent,
        "evaluations": report["evaluations"],
        "finetune_epochs": args.finetune_epochs,
        "budget": args.latency,
        "met_in_report": report["met_budget"],
        "ratio_in_report": report["latency_ratio"]["estimate"],
        "ratio_alone": own["ratio"],
        "within_10_percent": own["ratio"] <= args.latency * 1.1,
        "predicted_ms": after["latency_ms"]["predicted_p50"],
        "measured_ms": after["latency_ms"]["p50"],
        "baseline_ms": before["latency_ms"]["p50"],
        "baseline_accuracy": before["accuracy"],
        "accuracy": after["accuracy"],
        "drop": drop["estimate"],
        "drop_ci95": drop["ci95"],
        "references": {
            name: None
            if r is None
            else {"accuracy": r["accuracy"], "latency_ratio": r["latency_ratio"]}
            for name, r in report["references"].items()
        },
        "size_bytes": [before["size_bytes"], after["size_bytes"]],
        "macs": [before["macs"], after["macs"]],
        "search_score": report["search_score"],
        "corrections": report["corrections"],
        "heldout_error": report["target"]["heldout_error"],
        "agreement": report.get("agreement"),
        "wall_seconds": wall,
        "job_seconds": report["wall_seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | via | budget | ratio in report | ratio alone | within 10 % | accuracy | drop (95 %) | "
        "uniform int8 | uniform prune + int8 | wall s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["drop_ci95"]

        def reference(name: str, r: dict[str, Any] = r) -> str:
            found = r["references"][name]
            return (
                "-"
                if found is None
                else f"{100 * found['accuracy']:.2f} % at {found['latency_ratio']:.3f}"
            )

        tuned = f", {r['finetune_epochs']} epochs" if r["finetune_epochs"] else ""
        lines.append(
            f"| {r['network']}{tuned} | {r['via']} | {r['budget']} | {r['ratio_in_report']:.3f} | "
            f"{r['ratio_alone']:.3f} | {'yes' if r['within_10_percent'] else 'no'} | "
            f"{100 * r['baseline_accuracy']:.2f} -> {100 * r['accuracy']:.2f} % | "
            f"{100 * r['drop']:.2f} ({100 * low:.2f} to {100 * high:.2f}) | {reference('uniform_int8')} | "
            f"{reference('uniform_prune_int8')} | {r['wall_seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
