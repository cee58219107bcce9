"""``trimtab measure``: the kernels of a network timed here, or a kit that times them elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from service.cli_common import OK, input_shape, reserved_stdout, write, write_json
from service.cli_job import add_local_options, local_sources
from service.errors import RequestError


def add_command(commands: Any) -> None:
    measure = commands.add_parser("measure", help="time a network's kernels into this host's table")
    measure.add_argument("--model", required=True, metavar="S")
    measure.add_argument("--input", type=input_shape, metavar="CxHxW")
    measure.add_argument("--target", default="x86-ort", metavar="T")
    measure.add_argument(
        "--kit", type=Path, metavar="DIR",
        help="write a folder that measures on another device, without Trimtab, instead",
    )  # fmt: skip
    measure.add_argument("--json", action="store_true")
    add_local_options(measure)
    measure.set_defaults(run=run_measure)


def run_measure(args: argparse.Namespace) -> int:
    """Times the kernels of the uncompressed network in fp32; a job measures the others it needs."""
    from compressors.exporter import export_onnx
    from compressors.plan import Plan
    from compressors.preparation import prepare
    from latency_tables import TableStore
    from service.plugin_targets import catalog_of
    from service.plugins import ALL
    from service.progress import StageProgress
    from service.settings import Settings

    if args.kit is not None:
        return _write_kit(args)
    with reserved_stdout(), StageProgress() as progress:
        data_dir = Settings.load().data_dir
        target = catalog_of(data_dir, (ALL,)).device(args.target)
        sources, shape = _network(args, data_dir)
        progress.show("exporting")
        network = prepare(sources.model_factory(args.model)())
        model = export_onnx(network, Plan(input_shape=shape), target.batch)
        uses = target.kernels(model.SerializeToString())
        kernels = {use.kernel.key: use.kernel for use in uses}
        store = TableStore(data_dir / "tables")
        missing = store.load(target).missing(kernels.values())
        found = target.measure_kernels(
            missing, progress=lambda done, total: progress.show("measuring", "", done, total)
        )
        table = store.add(target, found.rows)
    document = {
        "target": target.spec,
        "model": args.model,
        "input": list(shape),
        "kernels": len(kernels),
        "already_measured": len(kernels) - len(missing),
        "measured": len(found.rows),
        "failed": [
            {"kernel": failure.kernel.describe(), "reason": failure.reason}
            for failure in found.failures
        ],
        "table_rows": len(table),
        "table_digest": table.digest,
    }
    if args.json:
        write_json(document)
    else:
        write("\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in document.items()))
    return OK


def _network(args: argparse.Namespace, data_dir: Path) -> tuple[Any, tuple[int, int, int]]:
    """Where ``--model`` comes from, and the shape of one example."""
    sources = local_sources(args, data_dir)
    sources.check_model(args.model)
    shape = args.input or sources.default_input(args.model)
    if shape is None:
        raise RequestError(f"{args.model} has no default input; give --input CxHxW")
    return sources, shape


def _write_kit(args: argparse.Namespace) -> int:
    """A folder that measures on a device; nothing is timed here."""
    from latency_tables.kit import require_free
    from service.plugin_targets import catalog_of
    from service.plugins import ALL
    from service.progress import StageProgress
    from service.settings import Settings

    with reserved_stdout(), StageProgress() as progress:
        data_dir = Settings.load().data_dir
        target = catalog_of(data_dir, (ALL,)).device(args.target)
        require_free(args.kit)
        sources, shape = _network(args, data_dir)
        from service.kit import make_kit

        document = make_kit(args.model, sources, shape, target, args.kit, progress.show)
    if args.json:
        write_json(document)
    else:
        write("\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in document.items()))
        write(f"next: read {args.kit / 'README.txt'}")
    return OK
