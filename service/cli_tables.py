"""``trimtab measure`` and ``trimtab tables``: latency tables on this machine."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np

from service.cli_common import OK, aligned, input_shape, reserved_stdout, write, write_json
from service.cli_job import add_local_options, local_sources
from service.errors import RequestError

NOT_YET = "is not available in this version"


def add_commands(commands: Any) -> None:
    measure = commands.add_parser("measure", help="time a network's kernels into this host's table")
    measure.add_argument("--model", required=True, metavar="S")
    measure.add_argument("--input", type=input_shape, metavar="CxHxW")
    measure.add_argument("--target", default="x86-ort", metavar="T")
    measure.add_argument("--kit", metavar="DIR", help="(not available in this version)")
    measure.add_argument("--json", action="store_true")
    add_local_options(measure)
    measure.set_defaults(run=run_measure)
    tables = commands.add_parser("tables", help="look at latency tables")
    verbs = tables.add_subparsers(required=True, metavar="list|show|check|import")
    listing = verbs.add_parser("list", help="the tables there are")
    listing.set_defaults(run=run_list)
    show = verbs.add_parser("show", help="rows of a table")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=run_show)
    check = verbs.add_parser("check", help="measure some rows again and compare")
    check.add_argument("name", metavar="NAME")
    check.add_argument("--rows", type=int, default=20, metavar="N", help="default 20")
    check.set_defaults(run=run_check)
    load = verbs.add_parser("import", help="(not available in this version)")
    load.add_argument("file", metavar="FILE")
    load.add_argument("--name", metavar="N")
    load.set_defaults(run=run_import)
    for verb in (listing, show, check, load):
        verb.add_argument("--json", action="store_true")
    for name in ("pack", "unpack"):
        command = commands.add_parser(name, help="(not available in this version)")
        command.add_argument("rest", nargs="*", metavar="FILE")
        command.set_defaults(run=run_absent, absent=name)


def run_absent(args: argparse.Namespace) -> int:
    raise RequestError(f"{args.absent} {NOT_YET}")


def run_import(_args: argparse.Namespace) -> int:
    raise RequestError(f"tables import {NOT_YET}; tables come from measuring on this host")


def run_measure(args: argparse.Namespace) -> int:
    """Times the kernels of the uncompressed network in fp32; a job measures the others it needs."""
    from compressors.exporter import export_onnx
    from compressors.plan import Plan
    from compressors.preparation import prepare
    from latency_tables import TableStore, parse_target
    from service.progress import StageProgress
    from service.settings import Settings

    if args.kit is not None:
        raise RequestError(f"measuring another device with --kit {NOT_YET}")
    with reserved_stdout(), StageProgress() as progress:
        data_dir = Settings.load().data_dir
        target = parse_target(args.target)
        sources = local_sources(args, data_dir)
        sources.check_model(args.model)
        shape = args.input or sources.default_input(args.model)
        if shape is None:
            raise RequestError(f"{args.model} has no default input; give --input CxHxW")
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


def run_list(args: argparse.Namespace) -> int:
    store = _store()
    tables = [(name, store.get(name)) for name in store.list()]
    if args.json:
        write_json(
            {
                "items": [
                    {
                        "name": name,
                        "target": table.target,
                        "device_class": table.device_class,
                        "rows": len(table),
                        "digest": table.digest,
                        "host": table.host.to_json(),
                        "created": table.created,
                    }
                    for name, table in tables
                ]
            }
        )
    elif not tables:
        write("no tables yet; a job or `trimtab measure` makes one")
    else:
        rows = [["name", "target", "rows", "processor", "runtime"]]
        for name, table in tables:
            host = table.host
            rows.append([name, table.target, str(len(table)), host.processor, host.runtime])
        write(aligned(rows, right=(2,)))
    return OK


def run_show(args: argparse.Namespace) -> int:
    table = _store().get(args.name)
    if args.json:
        write_json({**table.to_json(), "digest": table.digest})
        return OK
    rows = [["median", "95 % interval", "rounds", "kernel"]]
    for row in sorted(table.rows.values(), key=lambda row: -row.median_us):
        low, high = row.ci95
        rows.append(
            [
                f"{row.median_us:.2f} us",
                f"{low:.2f} to {high:.2f}",
                str(row.count),
                row.kernel.describe(),
            ]
        )
    write(
        f"{table.target} on {table.host.processor}, {table.host.runtime}; digest {table.digest}\n\n"
        + aligned(rows, right=(0, 1, 2))
    )
    return OK


def run_check(args: argparse.Namespace) -> int:
    """Measures a sample of rows again. The differences are shares of the stored time."""
    from latency_tables import parse_target
    from service.progress import StageProgress

    if args.rows < 1:
        raise RequestError(f"--rows must be 1 or more, not {args.rows}")
    table = _store().get(args.name)
    target = parse_target(table.target)
    table.require_host(target.host())
    if not table.rows:
        raise RequestError(f"table {args.name} has no rows yet")
    keys = sorted(table.rows)
    chosen = random.Random(0).sample(keys, min(args.rows, len(keys)))
    with reserved_stdout(), StageProgress() as progress:
        found = target.measure_kernels(
            [table.rows[key].kernel for key in chosen],
            progress=lambda done, total: progress.show("measuring again", "", done, total),
        )
    lines = []
    for row in found.rows:
        stored = table.rows[row.kernel.key]
        again = row.at_reference(stored.reference_us)
        change = again.median_us / stored.median_us - 1 if stored.median_us else 0.0
        lines.append((change, stored, again))
    changes = np.abs([change for change, _, _ in lines])
    document = {
        "table": args.name,
        "rows_checked": len(lines),
        "failed": len(found.failures),
        "median_difference": float(np.median(changes)) if len(lines) else None,
        "worst_difference": float(changes.max()) if len(lines) else None,
        "within_5_percent": float(np.mean(changes <= 0.05)) if len(lines) else None,
        "within_10_percent": float(np.mean(changes <= 0.10)) if len(lines) else None,
    }
    if args.json:
        write_json(document)
        return OK
    rows = [["stored", "again", "difference", "kernel"]]
    for change, stored, again in sorted(lines, key=lambda line: -abs(line[0])):
        name = stored.kernel.describe()
        rows.append(
            [
                f"{stored.median_us:.2f} us",
                f"{again.median_us:.2f} us",
                f"{100 * change:+.1f} %",
                name,
            ]
        )
    shares = [
        f"{key.replace('_', ' ')}: {100 * value:.1f} %"
        for key, value in document.items()
        if isinstance(value, float)
    ]
    write("\n".join([aligned(rows, right=(0, 1, 2)), "", *shares]))
    return OK


def _store() -> Any:
    from latency_tables import TableStore
    from service.settings import Settings

    root: Path = Settings.load().data_dir / "tables"
    return TableStore(root)
