"""Entry point of the command ``trimtab`` and of ``python -m trimtab``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = (
    "agents",
    "compressors",
    "evaluation",
    "latency_tables",
    "search_spaces",
    "service",
    "trimtab",
)


def strangers() -> dict[str, str]:
    """Our packages that would be imported from somewhere else than ``trimtab`` itself.

    Their names are plain words that another distribution or folder on the import path may use too.

    Returns:
        Package to the folder it would come from, or to ``nowhere``; empty when all is well.
    """
    home = Path(__file__).resolve().parent.parent
    found = {}
    for name in PACKAGES:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.origin:
            found[name] = "nowhere"
        elif Path(spec.origin).resolve().parent.parent != home:
            found[name] = str(Path(spec.origin).resolve().parent)
    return found


def main() -> int:
    """Runs the command line. Exit code 1 when a package of ours is hidden by another one."""
    wrong = strangers()
    if wrong:
        places = ", ".join(f"{name} comes from {place}" for name, place in wrong.items())
        home = Path(__file__).resolve().parent.parent
        sys.stderr.write(
            f"trimtab: another package hides one of Trimtab's own ({places}; expected in {home}); "
            "start from another folder, or take it off PYTHONPATH\n"
        )
        return 1
    from service.cli import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
