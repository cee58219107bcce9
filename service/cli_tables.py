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
    measure.add_argument(
        "--kit", type=Path, metavar="DIR",
        help="write a folder that measures on another device, without Trimtab, instead",
    )  # fmt: skip
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
    load = verbs.add_parser("import", help="take in a table of another device, or a published one")
    load.add_argument("file", metavar="FILE", type=Path, help="or a folder of TFLite logs")
    load.add_argument("--name", metavar="N", help="what to call it; default as the file")
    load.set_defaults(run=run_import)
    for verb in (listing, show, check, load):
        verb.add_argument("--json", action="store_true")
    for name in ("pack", "unpack"):
        command = commands.add_parser(name, help="(not available in this version)")
        command.add_argument("rest", nargs="*", metavar="FILE")
        command.set_defaults(run=run_absent, absent=name)


def run_absent(args: argparse.Namespace) -> int:
    raise RequestError(f"{args.absent} {NOT_YET}")


def run_import(args: argparse.Namespace) -> int:
    """Reads a file's tables, stores them, and says what is odd about them."""
    from latency_tables.importers import import_file

    store = _store()
    path = args.file.expanduser()
    found = import_file(path, args.name)
    new = store.add_imported(found.tables)
    if args.json:
        items = [
            {
                **_summary(name, table, imported=True),
                "new": name in new,
                "flags": [flag.to_json() for flag in found.flags[name]],
            }
            for name, table in found.tables.items()
        ]
        write_json({"file": str(path), "format": found.format, "tables": items})
        return OK
    lines = []
    for name, table in found.tables.items():
        verb = "imported" if name in new else "was there already:"
        lines += [f"{verb} {name} ({found.format}): {_headline(table)}"]
        lines += [f"  {flag.kind}: {flag.message}" for flag in found.flags[name]]
    write("\n".join(lines))
    return OK


def run_measure(args: argparse.Namespace) -> int:
    """Times the kernels of the uncompressed network in fp32; a job measures the others it needs."""
    from compressors.exporter import export_onnx
    from compressors.plan import Plan
    from compressors.preparation import prepare
    from latency_tables import TableStore, parse_target
    from service.progress import StageProgress
    from service.settings import Settings

    if args.kit is not None:
        return _write_kit(args)
    with reserved_stdout(), StageProgress() as progress:
        data_dir = Settings.load().data_dir
        target = parse_target(args.target)
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
    from latency_tables import parse_target
    from latency_tables.kit import require_free
    from service.progress import StageProgress
    from service.settings import Settings

    with reserved_stdout(), StageProgress() as progress:
        target = parse_target(args.target)
        require_free(args.kit)
        sources, shape = _network(args, Settings.load().data_dir)
        from service.kit import make_kit

        document = make_kit(args.model, sources, shape, target, args.kit, progress.show)
    if args.json:
        write_json(document)
    else:
        write("\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in document.items()))
        write(f"next: read {args.kit / 'README.txt'}")
    return OK


def run_list(args: argparse.Namespace) -> int:
    store = _store()
    tables = [(name, store.get(name), store.is_imported(name)) for name in store.list()]
    if args.json:
        write_json({"items": [_summary(*item) for item in tables]})
    elif not tables:
        write("no tables yet; a job, `trimtab measure` or `trimtab tables import` makes one")
    else:
        rows = [["name", "for", "rows", "device", "how"]]
        for name, table, imported in tables:
            if _has_layers(table):
                what = table.network or ("layers" if table.key == "layer" else "layer shapes")
                device, how = table.device, table.provenance
            else:
                what, device, how = table.target, table.host.processor, table.host.runtime
            marked = f"{how}, imported" if imported and how != "imported" else how
            rows.append([name, what, str(len(table)), device, marked])
        write(aligned(rows, right=(2,)))
    return OK


def _has_layers(table: Any) -> bool:
    """Whether a table's rows are layers at several precisions, not kernels."""
    from latency_tables import LayerTable

    return isinstance(table, LayerTable)


def _summary(name: str, table: Any, imported: bool) -> dict[str, Any]:
    """What ``--json`` says of a table without its rows."""
    layers = _has_layers(table)
    made = {table.provenance} if layers else {row.provenance for row in table.rows.values()}
    summary = {
        "name": name,
        "kind": "layers" if layers else "kernels",
        "imported": imported,
        "target": table.target,
        "device_class": table.device_class,
        "rows": len(table),
        "digest": table.digest,
        "host": None if layers else table.host.to_json(),
        "provenance": ", ".join(sorted(made)) or None,
        "created": table.created,
    }
    if layers:
        summary |= {
            "network": table.network,
            "batch": table.batch,
            "quantities": {quantity.name: quantity.unit for quantity in table.quantities},
            "weight_bits": list(table.w_bits),
            "activation_bits": list(table.a_bits),
            "end_to_end": table.end_to_end,
            "source": table.source,
        }
    return summary


def _headline(table: Any) -> str:
    """What a table holds and where it is from, in a line."""
    if not _has_layers(table):
        host = table.host
        return (
            f"{len(table)} kernels of {table.target} on {host.processor}, {host.runtime}; "
            f"digest {table.digest}"
        )
    rows = f"{len(table)} {'layers' if table.key == 'layer' else 'layer shapes'}"
    rows += f" of {table.network}" if table.network else ""
    units = [q.name if q.unit == "1" else f"{q.name} in {q.unit}" for q in table.quantities]
    batch = "" if table.batch is None else f", batch {table.batch}"
    many = len(table.precisions)
    return (
        f"{rows} at {many} precision{'' if many == 1 else 's'} on {table.device}{batch}: "
        f"{', '.join(units)}; {table.provenance}; digest {table.digest}"
    )


def run_show(args: argparse.Namespace) -> int:
    table = _store().get(args.name)
    if args.json:
        write_json({**table.to_json(), "digest": table.digest})
        return OK
    if _has_layers(table):
        write(_layer_rows(table))
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


def _layer_rows(table: Any) -> str:
    """Rows of an imported table: every precision, or of many those with equal bits."""
    from latency_tables.layer import precision_name

    columns = list(range(len(table.precisions)))
    if len(columns) > 4:
        equal = [i for i in columns if table.precisions[i][0] == table.precisions[i][1]]
        columns = equal or columns[:8]
    shown = [(quantity, i) for quantity in table.quantities for i in columns]
    rows = [["row", *(f"{precision_name(table.precisions[i])} {q.name}" for q, i in shown)]]
    for row, layer in enumerate(table.layers):
        cells = [quantity.values[row][i] for quantity, i in shown]
        rows.append([layer.label, *("-" if cell is None else f"{cell:.7g}" for cell in cells)])
    lines = [_headline(table), f"from {table.source}, {table.created}"]
    lines += [f"{flag.kind}: {flag.message}" for flag in table.flags]
    if table.whole:
        runs = ", ".join(f"{run:.2f}" for run in table.whole)
        lines.append(f"end to end: {table.end_to_end:.2f} (runs: {runs})")
    for part, costs in table.fixed.items():
        lines.append(f"{part}: {', '.join(f'{key} {cost:.7g}' for key, cost in costs.items())}")
    if len(columns) < len(table.precisions):
        lines.append(f"{len(columns)} of {len(table.precisions)} precisions; --json prints all")
    return "\n".join(lines) + "\n\n" + aligned(rows, right=tuple(range(1, len(rows[0]))))


def run_check(args: argparse.Namespace) -> int:
    """Measures a sample of rows again. The differences are shares of the stored time."""
    from latency_tables import parse_target
    from service.progress import StageProgress

    if args.rows < 1:
        raise RequestError(f"--rows must be 1 or more, not {args.rows}")
    table = _store().get_kernels(args.name)
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
