"""What the commands share: the parser that answers in one line, exit codes, output."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from latency_tables.errors import TrimtabError
from service.errors import ApiError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# Errors that are nobody's input: the machine, a measurement or another process is at fault.
_FAILURES = frozenset(
    {
        "measurement",
        "kernel",
        "pruning",
        "plan",
        "scoring",
        "tuning",
        "cancelled",
        "lease-lost",
        "driver-crashed",
        "runtime-unavailable",
    }
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and never guesses a shortened option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see `{self.prog} --help`)")
        raise SystemExit(BAD_INPUT)


def complain(message: str) -> None:
    """One line on standard error, beginning ``trimtab: ``."""
    sys.stderr.write(f"trimtab: {' '.join(message.split())}\n")
    sys.stderr.flush()


def exit_code(error: BaseException) -> int:
    """2 where the user can mend it by asking for something else, 1 otherwise."""
    if isinstance(error, ApiError):
        status = error.problem.get("status", 0)
        return BAD_INPUT if 400 <= status < 500 else FAILED
    if isinstance(error, TrimtabError):
        return FAILED if error.slug in _FAILURES or error.status >= 500 else BAD_INPUT
    return BAD_INPUT if isinstance(error, ValidationError) else FAILED


def message_of(error: BaseException) -> str:
    """The error in a line; a validation error names its field."""
    if isinstance(error, ValidationError):
        return first_problem(error)
    if isinstance(error, TrimtabError):
        return str(error)
    text = str(error)
    name = type(error).__name__
    if isinstance(error, OSError):
        return text or name
    return f"internal error, {name}: {text} (TRIMTAB_DEBUG=1 shows where)"


def first_problem(error: ValidationError) -> str:
    """``budget: ...`` from what pydantic found first."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def debugging() -> bool:
    """True when the user wants tracebacks (``TRIMTAB_DEBUG=1``)."""
    return os.environ.get("TRIMTAB_DEBUG", "") not in ("", "0")


def write(text: str) -> None:
    """Text for a person, on standard output."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def write_json(document: Any) -> None:
    """The one JSON document of ``--json``."""
    write(json.dumps(document, indent=2, default=str))


@contextlib.contextmanager
def reserved_stdout() -> Iterator[None]:
    """Sends whatever libraries print to standard error, so that standard output stays ours.

    File descriptor 1 is turned too where Python writes to it, for what is printed from C and by
    child processes.
    """
    sys.stdout.flush()
    saved = -1
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout.fileno() == 1:
            saved = os.dup(1)
            os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if saved >= 0:
            os.dup2(saved, 1)
            os.close(saved)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as text columns, the first row being the heading.

    Args:
        right: indices of the columns set flush right.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def folder(text: str) -> Path:
    """An argument that must be a folder."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {text!r}")
    return path


def readable_file(text: str) -> Path:
    """An argument that must be a file."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"no file {text!r}")
    return path


def input_shape(text: str) -> tuple[int, int, int]:
    """``CxHxW``, such as ``3x224x224``."""
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(
        s.isascii() and s.isdigit() and 0 < int(s) <= 8192 for s in sizes
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form CxHxW, e.g. 3x224x224")
    channels, height, width = (int(size) for size in sizes)
    return channels, height, width
