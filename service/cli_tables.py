"""``trimtab tables``: latency tables looked at, drawn, checked and taken in; ``trimtab measure`` beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import cli_measure
from service.cli_common import FAILED, OK, aligned, reserved_stdout, write, write_json
from service.errors import RequestError

if TYPE_CHECKING:
    from latency_tables.catalog import Catalog
    from latency_tables.table_file import AnyTable

# Staircases drawn of a whole table, and of the kernels asked for.
_PANELS, _PANELS_ASKED = 4, 9
# Layers drawn of an imported table.
_LAYERS = 6


def add_commands(commands: Any) -> None:
    cli_measure.add_command(commands)
    tables = commands.add_parser("tables", help="look at latency tables")
    verbs = tables.add_subparsers(required=True, metavar="list|show|check|import")
    listing = verbs.add_parser("list", help="the tables there are")
    listing.set_defaults(run=run_list)
    show = verbs.add_parser("show", help="rows of a table, and what they cost against channels")
    show.add_argument("name", metavar="NAME")
    show.add_argument(
        "--kernel", metavar="TEXT",
        help="only kernels whose description or key holds the text, such as 3x3 (layers: their label)",
    )  # fmt: skip
    show.add_argument(
        "--plot", type=Path, metavar="FILE.png",
        help="draw latency against channels (layers: bits), a line a precision; .svg and .pdf too",
    )  # fmt: skip
    show.add_argument(
        "--out", type=Path, metavar="FILE", help="write the table as .parquet or .json"
    )
    show.set_defaults(run=run_show)
    check = verbs.add_parser(
        "check", help="measure some rows again and say whether the table holds (exit code 1: no)"
    )
    check.add_argument("name", metavar="NAME")
    check.add_argument("--rows", type=int, default=20, metavar="N", help="default 20")
    check.set_defaults(run=run_check)
    load = verbs.add_parser("import", help="take in a table of another device, or a published one")
    load.add_argument("file", metavar="FILE", type=Path, help="or a folder of TFLite logs")
    load.add_argument("--name", metavar="N", help="what to call it; default as the file")
    load.set_defaults(run=run_import)
    for verb in (listing, show, check, load):
        verb.add_argument("--json", action="store_true")


def run_import(args: argparse.Namespace) -> int:
    """Reads a file's tables, stores them, and says what is odd about them."""
    from latency_tables.importers import import_file
    from service.table_text import headline, summary

    catalog = _catalog()
    store = catalog.store
    assert store is not None
    path = args.file.expanduser()
    found = import_file(path, args.name)
    if taken := set(found.tables) & set(catalog.others):
        raise RequestError(
            f"{sorted(taken)[0]!r} is the name of a plug-in's target; give the table another with --name"
        )
    new = store.add_imported(found.tables)
    if args.json:
        items = [
            {
                **summary(name, table, imported=True),
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
        lines += [f"{verb} {name} ({found.format}): {headline(table)}"]
        lines += [f"  {flag.kind}: {flag.message}" for flag in found.flags[name]]
    write("\n".join(lines))
    return OK


def run_list(args: argparse.Namespace) -> int:
    from service.table_text import list_row, summary

    catalog = _catalog()
    store = catalog.store
    tables = [
        (
            name,
            catalog.table(name),
            store is not None and store.is_imported(name),
            catalog.is_shipped(name),
        )
        for name in catalog.tables
    ]
    if args.json:
        write_json({"items": [summary(*item) for item in tables]})
        return OK
    rows = [["name", "for", "rows", "device", "how"], *(list_row(*item) for item in tables)]
    write(aligned(rows, right=(2,)))
    if all(shipped for *_, shipped in tables):
        write(
            "no tables of your own yet; a job, `trimtab measure` or `trimtab tables import` makes one"
        )
    return OK


def run_show(args: argparse.Namespace) -> int:
    """Prints a table's rows, and leaves the picture and the file that were asked for."""
    from latency_tables.table_file import save_table
    from service.table_text import rows_text

    table = _only(_catalog().table(args.name), args.kernel)
    notes = []
    if args.plot is not None:
        notes.append(_draw(args.name, table, args.plot.expanduser(), args.kernel is not None))
    if args.out is not None:
        save_table(table, args.out.expanduser())
        notes.append(f"wrote {args.out}")
    if args.json:
        write_json({**table.to_json(), "digest": table.digest})
    else:
        write("\n".join([rows_text(table), *[""] * bool(notes), *notes]))
    return OK


def _only(table: AnyTable, text: str | None) -> AnyTable:
    """A table's rows that hold a text."""
    from dataclasses import replace

    from latency_tables.table import LatencyTable

    if text is None:
        return table
    wanted = text.lower()
    if isinstance(table, LatencyTable):
        kept = [
            row.kernel
            for row in table.rows.values()
            if wanted in f"{row.kernel.key} {row.kernel.describe()}".lower()
        ]
        if kept:
            return table.snapshot(kept)
    else:
        rows = [i for i, layer in enumerate(table.layers) if wanted in layer.label.lower()]
        if rows:
            return replace(
                table,
                layers=tuple(table.layers[i] for i in rows),
                quantities=tuple(
                    replace(quantity, values=tuple(quantity.values[i] for i in rows))
                    for quantity in table.quantities
                ),
            )
    raise RequestError(
        f"--kernel {text!r}: no row of the table holds that; `tables show` without it lists all"
    )


def _draw(name: str, table: AnyTable, path: Path, asked: bool) -> str:
    """Draws the staircases with most widths; gives what was drawn."""
    from latency_tables.staircase import kernel_panels, layer_panels
    from latency_tables.table import LatencyTable
    from service.table_plot import draw

    if isinstance(table, LatencyTable):
        most = _PANELS_ASKED if asked else _PANELS
        panels = kernel_panels(table.rows.values())
        title = f"{name}: {table.target} on {table.host.processor}"
    else:
        most = _PANELS_ASKED if asked else _LAYERS
        panels = layer_panels(table)
        made = "" if table.provenance in table.device else f", {table.provenance}"
        title = f"{name}: {table.device}{made}"
    draw(panels[:most], title, path)
    rest = f" of {len(panels)}; --kernel TEXT draws others" if len(panels) > most else ""
    many = min(len(panels), most)
    return f"drew {many} staircase{'' if many == 1 else 's'}{rest}: {path}"


def run_check(args: argparse.Namespace) -> int:
    """Measures a sample of rows again and says whether the table holds."""
    from latency_tables.check import check_table
    from service.progress import StageProgress
    from service.table_text import check_json, check_text

    if args.rows < 1:
        raise RequestError(f"--rows must be 1 or more, not {args.rows}")
    table = _kernels(args.name)
    target = _catalog().device(table.target)
    with reserved_stdout(), StageProgress() as progress:
        check = check_table(
            table,
            target,
            args.rows,
            progress=lambda done, total: progress.show("measuring again", "", done, total),
        )
    if args.json:
        write_json(check_json(args.name, check))
    else:
        write(check_text(args.name, check))
    return OK if check.holds else FAILED


def _kernels(name: str) -> Any:
    """A table of kernels, which can be measured again."""
    from latency_tables.table import LatencyTable

    catalog = _catalog()
    table = catalog.table(name)
    if isinstance(table, LatencyTable):
        return table
    raise RequestError(
        f"the rows of table {name!r} are layers and not kernels ({table.source}): there is nothing here to "
        "measure again"
    )


def _catalog() -> Catalog:
    from service.plugin_targets import catalog_of
    from service.plugins import ALL
    from service.settings import Settings

    return catalog_of(Settings.load().data_dir, (ALL,))
