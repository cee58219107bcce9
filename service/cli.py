"""The command line: one parser, one place where errors become a line and an exit code."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence

from service import cli_doctor, cli_job, cli_pack, cli_serve, cli_server, cli_tables
from service.cli_common import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    Parser,
    complain,
    debugging,
    exit_code,
    message_of,
)

_ABOUT = (
    "The most accurate pruned and quantized network that meets a budget measured on your device."
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(prog="trimtab", description=_ABOUT)
    top.add_argument("--version", action="version", version=f"trimtab {_version()}")
    commands = top.add_subparsers(
        required=True, dest="command", metavar="COMMAND", parser_class=Parser
    )
    for module in (cli_serve, cli_job, cli_server, cli_tables, cli_pack, cli_doctor):
        module.add_commands(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 for success, 1 for a failure, 2 for bad input, 130 after Ctrl-C. Anything but success says
        so in one line on standard error; ``TRIMTAB_DEBUG=1`` adds the traceback.
    """
    try:
        args = parser().parse_args(argv)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else BAD_INPUT
    try:
        code = args.run(args)
        return int(code)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`| head`); Python's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debugging():
            traceback.print_exc()
        complain(message_of(error))
        return exit_code(error)


def _version() -> str:
    try:
        return importlib.metadata.version("trimtab")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
