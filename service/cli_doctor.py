"""``trimtab doctor``."""

from __future__ import annotations

import argparse
import importlib.metadata
from typing import Any

from service.cli_common import OK, reserved_stdout, write, write_json


def add_commands(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="what this machine can measure, and what it cannot")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Exit 0 whatever is missing: the lines say what follows."""
    from latency_tables.host import HostFingerprint
    from service.doctor import examine
    from service.settings import Settings

    with reserved_stdout():
        settings = Settings.load()
        findings = examine(settings.data_dir, settings.database_url)
    if args.json:
        write_json(
            {
                "version": importlib.metadata.version("trimtab"),
                "host": HostFingerprint.here().to_json(),
                "findings": [finding.to_json() for finding in findings],
            }
        )
    else:
        write("\n".join(finding.line() for finding in findings))
    return OK
