"""``trimtab serve``: the service with its own local Ray."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from service.cli_common import OK, folder


def add_commands(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="run the service",
        description="Options left out come from the environment (TRIMTAB_HOST, ...) or a default. "
        "The API key comes from TRIMTAB_API_KEY only, so that no process list shows it.",
    )
    serve.add_argument("--host", help="default 127.0.0.1; other hosts need TRIMTAB_API_KEY")
    serve.add_argument("--port", type=int, help="default 8500; 0 takes a free one")
    serve.add_argument("--data-dir", type=Path, metavar="DIR", help="state (TRIMTAB_DATA_DIR)")
    serve.add_argument(
        "--database-url", metavar="URL", help="default: SQLite in the data directory"
    )
    serve.add_argument(
        "--allow", action="append", metavar="SOURCE",
        help="python:MODULE, python:MODULE:FACTORY, python:*, imagefolder:NAME=DIR or torchvision; "
        "repeatable",
    )  # fmt: skip
    serve.add_argument(
        "--code-path", action="append", type=folder, metavar="DIR",
        help="folder with the modules of python: sources; repeatable",
    )  # fmt: skip
    serve.add_argument(
        "--allow-plugin", action="append", metavar="NAME",
        help="installed plug-in that jobs may use, * for all; repeatable",
    )  # fmt: skip
    serve.add_argument("--evaluators", type=int, metavar="N", help="policies scored side by side")
    serve.add_argument(
        "--ray-address", metavar="URL", help="default embedded; or http://HOST:8265 of a cluster"
    )
    serve.add_argument("--ray-dashboard-port", type=int, metavar="PORT", help="default 8265")
    serve.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """Returns when the server was stopped."""
    from service.settings import Settings

    settings = Settings.load(
        host=args.host,
        port=args.port,
        data_dir=args.data_dir,
        database_url=args.database_url,
        allow_sources=args.allow,
        code_paths=args.code_path,
        allow_plugins=args.allow_plugin,
        evaluators=args.evaluators,
        ray_address=args.ray_address,
        ray_dashboard_port=args.ray_dashboard_port,
    )
    settings.sources()  # says at once when a pattern or a folder cannot be right
    from service.server import serve

    serve(settings)
    return OK
