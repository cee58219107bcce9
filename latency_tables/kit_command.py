"""The command line of a measuring kit: what ``measure.py`` runs once it knows that it can."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from latency_tables.errors import KernelError, MeasurementError, TargetError, TrimtabError
from latency_tables.kit_device import QUIET, Device
from latency_tables.kit_interrupts import Interrupts
from latency_tables.kit_plan import KitPlan
from latency_tables.kit_progress import KitProgress
from latency_tables.kit_results import NETWORKS_FILE, TABLE_FILE
from latency_tables.kit_state import KitState
from latency_tables.kit_target import DeviceTarget

STATE_FILE = "state.jsonl"
# The first one that reads files of the version our kernels are written in.
OLDEST_RUNTIME = (1, 18)


def main(folder: str, arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 done or out of time, 130 interrupted, 2 bad input, 1 otherwise."""
    kit = Path(folder)
    progress = KitProgress()
    try:
        _check_runtime()
        plan = KitPlan.load(kit)
        args = _parser(plan).parse_args(arguments)
        out: Path = args.out or kit
        target = DeviceTarget(args.threads, plan.batch)
        out.mkdir(parents=True, exist_ok=True)
        identity = {"plan": plan.digest, "target": target.spec, **target.host().to_json()}
        with Interrupts() as interrupts, KitState(out / STATE_FILE, identity) as state:
            device = Device(kit, plan, target, state, progress, interrupts, args.seconds)
            try:
                device.run()
            finally:
                progress.end()
                left = device.save(out)
            _tell(plan, target, state, out, left, device, progress)
            return 130 if interrupts.wanted else 0
    except KeyboardInterrupt:
        progress.say("measure.py: stopped; the same command goes on from what is on the disk")
        return 130
    except (TrimtabError, OSError) as error:
        progress.say(f"measure.py: {error}")
        return 1 if isinstance(error, KernelError | MeasurementError) else 2


def _parser(plan: KitPlan) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure.py", allow_abbrev=False,
        description=f"Times {plan.model} on this device. Ctrl-C stops, the same command goes on.",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=plan.threads, metavar="N",
        help=f"threads of the runtime (default {plan.threads}); the batch is {plan.batch}",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, metavar="S",
        help="begin nothing new after so long; kernels left are modelled from measured ones",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help=f"where {STATE_FILE}, {TABLE_FILE} and {NETWORKS_FILE} go (default: this folder)",
    )  # fmt: skip
    return parser


def _check_runtime() -> None:
    version = str(onnxruntime.__version__)
    parts = version.split(".")[:2]
    if all(part.isdigit() for part in parts) and tuple(map(int, parts)) < OLDEST_RUNTIME:
        oldest = ".".join(map(str, OLDEST_RUNTIME))
        raise TargetError(
            f"onnxruntime {version} is too old, {oldest} or newer is needed: "
            "python3 -m pip install --upgrade onnxruntime"
        )


def _tell(
    plan: KitPlan,
    target: DeviceTarget,
    state: KitState,
    out: Path,
    left: int,
    device: Device,
    progress: KitProgress,
) -> None:
    """What was done and what to do next."""
    if device.disturbed > QUIET:
        progress.say(
            f"something else was running: the timing had to wait up to {device.disturbed:.0%} of the "
            "time; times are ratios to a reference beside them, but a quiet device is better"
        )
    if state.refused:
        name, reason = next(iter(state.refused.items()))
        progress.say(
            f"{len(state.refused)} networks are not taken by the runtime, e.g. {name}: {reason}"
        )
    if state.failures:
        progress.say(f"{len(state.failures)} kernels cannot be timed alone and will be modelled")
    unread = len(plan.networks) - len({*state.graphs, *state.refused})
    if unread or left:
        todo = f"{unread} networks to read and {left} kernels to time"
        progress.say(f"{todo} are left; the same command goes on")
    if not state.rows:
        progress.say("no kernel was timed yet: there is no table")
        return
    sys.stdout.write(
        f"{out / TABLE_FILE}: {len(state.rows)} kernels of {plan.model} on {target.spec}, "
        f"{target.host().processor}\nnext: trimtab tables import {TABLE_FILE} --name NAME\n"
    )
    sys.stdout.flush()
