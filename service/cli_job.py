"""``trimtab compress`` and ``trimtab plan``: one job in this process, and its dry run."""

from __future__ import annotations

import argparse
import hashlib
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from service.cli_common import (
    INTERRUPTED,
    OK,
    complain,
    first_problem,
    folder,
    readable_file,
    reserved_stdout,
    write,
    write_json,
)
from service.errors import RequestError

# Of options that are on, off or left to the job, as the job says them.
_SWITCHES = {"auto": None, "on": True, "off": False}
# No target has integers of more; keeps a range that was mistyped short.
_MOST_BITS = 64


def add_job_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options that make up a job, the same for ``compress``, ``plan`` and ``submit``."""
    parser.add_argument(
        "--model", required=required, metavar="S",
        help="timm:NAME, torchvision:NAME or python:MODULE:FACTORY",
    )  # fmt: skip
    parser.add_argument("--weights", type=readable_file, metavar="F", help="safetensors file")
    parser.add_argument(
        "--data", required=required, metavar="S",
        help="digits, imagefolder:NAME, torchvision:NAME, python:MODULE:FACTORY",
    )  # fmt: skip
    parser.add_argument(
        "--target", default="x86-ort", metavar="T",
        help="e.g. x86-ort?threads=2, or a table's name (trimtab tables list); default x86-ort",
    )  # fmt: skip
    parser.add_argument(
        "--budget", action="append", default=[], metavar="KEY=VALUE",
        help="latency=0.5, energy=0.5, size=0.3, macs=0.5, latency_ms=1.2, ...; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--also-target", action="append", nargs="+", default=[], metavar=("T", "KEY=VALUE"),
        help='a further target with its own budget, e.g. --also-target "x86-ort?threads=2" latency=0.6 size=0.5; '
        "one network is to keep all; repeatable, --target and --budget are the first one's",
    )  # fmt: skip
    parser.add_argument(
        "--objective", choices=("accuracy", "latency", "pareto"), default="accuracy",
        help="best score within the budget; fastest within --max-drop; or the whole front",
    )  # fmt: skip
    parser.add_argument(
        "--cost", action="append", choices=("latency", "energy", "size", "packed_size", "macs"),
        help="with objective pareto: what the score is held against; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--finalists", type=int, default=3, metavar="N",
        help="policies to fine-tune, or members of the front to export and measure (default 3)",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float, metavar="D", help="for objective latency, e.g. 0.005"
    )
    parser.add_argument("--agent", default="auto", metavar="A")
    parser.add_argument(
        "--published", choices=tuple(_SWITCHES), default="auto",
        help="amc and haq: as their papers have them; auto: where that can express all decisions",
    )  # fmt: skip
    parser.add_argument("--scope", choices=("prune", "quantize", "joint"), default="joint")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="MODULE", help="left as it is; repeatable"
    )
    parser.add_argument(
        "--criterion", default="fisher", metavar="C",
        help="which channels go first: l1, l2, bn_scale, geometric_median, taylor, fisher, random, or a plug-in's",
    )  # fmt: skip
    parser.add_argument(
        "--zeros", choices=("anywhere", "1:2", "1:4", "2:4", "3:4", "4:8"), default="anywhere",
        help="where zeros lie that a bound on packed bytes may want; N:M: N of every M weights stay",
    )  # fmt: skip
    parser.add_argument(
        "--bits", nargs="+", metavar="KIND=BITS",
        help="bits to choose among layer by layer, where the target runs them, e.g. --bits weights=2,4,8 "
        "activations=4,8 or weights=2-8 (8 must be among them); without, 8 and float",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", default="minmax", metavar="METHOD",
        help="how activation ranges are found: minmax, percentile, percentile:P, mse, entropy",
    )  # fmt: skip
    parser.add_argument(
        "--bias-correction", choices=tuple(_SWITCHES), default="auto",
        help="bring outputs' mean and spread back after quantization; auto: below 8 bits",
    )  # fmt: skip
    parser.add_argument(
        "--equalization", action="store_true", help="even out weight ranges before quantization"
    )
    parser.add_argument(
        "--adaround", nargs="?", choices=tuple(_SWITCHES), const="on", default="auto",
        help="round the finalists' weights by what their layers' outputs need, where that scores better; auto: below "
        "8 bits, without fine-tuning; alone: on",
    )  # fmt: skip
    parser.add_argument(
        "--no-refit", action="store_true", help="do not solve pruned layers anew by least squares"
    )
    parser.add_argument(
        "--statistics", choices=tuple(_SWITCHES), default="auto",
        help="bring batch norms' statistics back after pruning; auto: with fine-tuning",
    )  # fmt: skip
    parser.add_argument("--evaluations", type=int, default=100, metavar="N")
    parser.add_argument("--max-seconds", type=float, metavar="S")
    parser.add_argument("--finetune-epochs", type=int, default=0, metavar="E")
    parser.add_argument(
        "--temperature", type=float, default=4.0, metavar="T",
        help="of distillation while fine-tuning (default 4)",
    )  # fmt: skip
    parser.add_argument(
        "--features", type=float, default=0.0, metavar="W",
        help="weight of the distance between feature maps while fine-tuning (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--gradual", action="store_true", help="channels fade out while fine-tuning"
    )
    parser.add_argument(
        "--augment", choices=("none", "crop_flip", "crop_flip_cutout"), default="crop_flip",
        help="of the images that are trained on (default crop_flip)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S")


def add_local_options(parser: argparse.ArgumentParser) -> None:
    """What the operator of a server would set."""
    parser.add_argument(
        "--code-path", action="append", default=[], type=folder, metavar="DIR",
        help="folder with the modules of python: sources; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--image-folder", action="append", default=[], metavar="NAME=DIR",
        help="makes DIR available as imagefolder:NAME; repeatable",
    )  # fmt: skip


def add_commands(commands: Any) -> None:
    compress = commands.add_parser("compress", help="run one job in this process, without a server")
    add_job_options(compress)
    add_local_options(compress)
    compress.add_argument(
        "--evaluators", type=int, metavar="N", help="cores that scoring may use (default: all)"
    )
    compress.add_argument("--out", required=True, type=Path, metavar="DIR", help="the job's files")
    compress.add_argument("--json", action="store_true", help="print report.json")
    compress.set_defaults(run=run_compress)
    plan = commands.add_parser("plan", help="decisions, smallest reachable budget, estimated time")
    add_job_options(plan)
    add_local_options(plan)
    plan.add_argument("--json", action="store_true")
    plan.set_defaults(run=run_plan)


def job_document(args: argparse.Namespace, weights: str | None) -> dict[str, Any]:
    """The body of ``POST /v1/jobs`` for these options."""
    return {
        "model": {"source": args.model, "weights": weights},
        "data": {"source": args.data},
        **_targets(args),
        "objective": args.objective,
        "max_drop": args.max_drop,
        "costs": args.cost,
        "space": {
            "scope": args.scope,
            "exclude": args.exclude,
            "criterion": args.criterion,
            "zeros": args.zeros,
            **({} if args.bits is None else {"bits": _bits(args.bits)}),
        },
        "recipe": {
            "refit": not args.no_refit,
            "statistics": _SWITCHES[args.statistics],
            "calibration": args.calibration,
            "bias_correction": _SWITCHES[args.bias_correction],
            "equalization": args.equalization,
            "adaround": _SWITCHES[args.adaround],
        },
        "agent": {
            "name": args.agent,
            "evaluations": args.evaluations,
            "seed": args.seed,
            "published": _SWITCHES[args.published],
        },
        "max_seconds": args.max_seconds,
        "finetune": {
            "epochs": args.finetune_epochs,
            "finalists": args.finalists,
            "augment": args.augment,
            "features": args.features,
            "gradual": args.gradual,
            "temperature": args.temperature,
        },
    }


def _bits(items: list[str]) -> dict[str, list[int]]:
    """``space.bits`` of ``weights=2,4,8`` and ``activations=2-8``.

    Raises:
        RequestError: neither is of that form.
    """
    found: dict[str, list[int]] = {}
    for item in items:
        kind, _, text = item.partition("=")
        first, dash, last = text.partition("-")
        numbers = [first, last] if dash else text.split(",")
        if (
            kind not in ("weights", "activations")
            or kind in found
            or not all(n.isdecimal() for n in numbers)
        ):
            raise RequestError(
                f"--bits {item!r} is not of the form weights=2,4,8 or activations=2-8, each given once"
            )
        bits = [int(number) for number in numbers]
        found[kind] = [*range(bits[0], min(bits[1], _MOST_BITS) + 1)] if dash else bits
    return found


def _targets(args: argparse.Namespace) -> dict[str, Any]:
    """``target`` and ``budget``, or ``targets`` where further ones are given."""
    from search_spaces.budget import Budget

    def budget(items: list[str]) -> dict[str, float]:
        return Budget.parse(items).to_json() if items else {}

    first = {"name": args.target, "budget": budget(args.budget)}
    others = [{"name": name, "budget": budget(items)} for name, *items in args.also_target]
    if not others:
        return {"target": first["name"], "budget": first["budget"]}
    return {"targets": [first, *others]}


def checked_spec(document: dict[str, Any], data_dir: Path) -> Any:
    """A JobSpec whose agent, criterion and targets exist.

    Args:
        data_dir: holds the tables that may be targets.

    Raises:
        RequestError: a field is missing or out of range.
        PluginError: there is no such agent or criterion, or a plug-in cannot be used.
        TargetError: unknown target, or one twice.
        BudgetError: a bound on energy where the target has none.
    """
    from pydantic import ValidationError

    from service.job_spec import JobSpec
    from service.plugin_targets import catalog_of
    from service.plugins import ALL, Group, installed, require
    from service.targets import job_targets

    try:
        spec = JobSpec.model_validate(document)
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error
    for group, name in ((Group.AGENTS, spec.agent.name), (Group.CRITERIA, spec.space.criterion)):
        require(group, name, installed(group, (ALL,)))
    job_targets(spec, catalog_of(data_dir, (ALL,)))
    return spec


def local_sources(args: argparse.Namespace, data_dir: Path) -> Any:
    """On the command line the user is the operator: every Python source is allowed."""
    from service.sources import Sources

    folders = {}
    for item in args.image_folder:
        name, _, path = item.partition("=")
        if not name or not path or not Path(path).expanduser().is_dir():
            raise RequestError(
                f"--image-folder {item!r} is not of the form NAME=DIR with a folder DIR"
            )
        folders[name] = Path(path).expanduser()
    return Sources(
        allow=("python:*",),
        code_paths=args.code_path,
        image_folders=folders,
        torchvision_root=data_dir / "torchvision",
    )


def file_id(path: Path | None) -> str | None:
    """SHA-256 of a weights file, which stands for its id."""
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prepared(args: argparse.Namespace) -> tuple[Any, Any, Path]:
    """Spec, sources and data directory, everything checked that can be checked at once."""
    from service.settings import Settings
    from service.weights import read_weights

    data_dir = Settings.load().data_dir
    sources = local_sources(args, data_dir)
    sources.check_model(args.model)
    sources.check_data(args.data)
    spec = checked_spec(job_document(args, file_id(args.weights)), data_dir)
    if args.weights is not None:
        read_weights(args.weights)
    return spec, sources, data_dir


def run_compress(args: argparse.Namespace) -> int:
    """Exit 0 with a report, 130 after Ctrl-C or SIGTERM."""
    from service.local_context import LocalContext
    from service.progress import StageProgress
    from service.summary import side_by_side

    if args.evaluators is not None and not 1 <= args.evaluators <= 1024:
        raise RequestError(f"--evaluators must be 1 to 1024, not {args.evaluators}")
    if args.out.exists() and not args.out.is_dir():
        raise RequestError(f"--out {str(args.out)!r} is a file, not a folder")
    with reserved_stdout():
        spec, sources, data_dir = _prepared(args)
        from service.pipeline import run_job

        with (
            StageProgress() as progress,
            LocalContext(
                spec, args.out, data_dir, sources, args.weights, args.evaluators, progress
            ) as context,
        ):
            earlier = len(context.recorded())
            if earlier:
                progress.say(f"going on after {earlier} recorded trials in {args.out}")
            previous = signal.signal(signal.SIGTERM, _interrupt)
            try:
                report = run_job(spec, context)
                context.finish()
            except KeyboardInterrupt:
                progress.close()
                kept = len(context.recorded())
                complain(
                    f"interrupted; {kept} trials are kept in {args.out} and the same command "
                    "goes on from there"
                )
                return INTERRUPTED
            finally:
                signal.signal(signal.SIGTERM, previous)
    if args.json:
        write_json(report)
    else:
        write(f"{side_by_side(report)}\n\nfiles: {args.out}, page: {args.out / 'report.html'}")
    return OK


def run_plan(args: argparse.Namespace) -> int:
    """Spends no evaluation; exit 0."""
    from service.progress import StageProgress
    from service.summary import plan_text

    with reserved_stdout(), StageProgress() as progress:
        spec, sources, data_dir = _prepared(args)
        from service.planning import plan
        from service.plugins import ALL

        progress.show("planning", "tracing the network and measuring what the table lacks")
        found = plan(spec, sources, args.weights, data_dir, (ALL,))
    if args.json:
        write_json(found)
    else:
        write(plan_text(found))
    return OK


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
