"""Whether plug-ins load, tried in processes of their own: the server loads none of their code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from service.plugins import Group, Plugin, PluginError, installed, load

_SECONDS = 120.0


def tried(
    group: Group, allow: Sequence[str], code_paths: Sequence[Path] = ()
) -> tuple[Plugin, ...]:
    """All plug-ins of a group, those that are allowed loaded once, each in a process of its own.

    Args:
        code_paths: folders at the end of the import path, as drivers have them.
    """
    return tuple(
        _apart(group, plugin, code_paths) if plugin.error is None else plugin
        for plugin in installed(group, allow, code_paths)
    )


def _apart(group: Group, plugin: Plugin, code_paths: Sequence[Path]) -> Plugin:
    # -P: no file of the current folder may be taken for one of our packages.
    command = [sys.executable, "-P", "-m", "service.plugin_trial", group, plugin.name]
    command += [str(path) for path in code_paths]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
        reason = f"its process ended with code {done.returncode} when it was loaded"
        if done.returncode == 0:
            return Plugin(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        reason = f"loading it took more than {_SECONDS:.0f} s"
    except (ValueError, IndexError, TypeError):
        reason = "its process ended without an answer when it was loaded"
    return replace(plugin, error=reason)


def main(arguments: Sequence[str]) -> int:
    """Loads a group's plug-in, with the folders named behind it on the import path, and prints what came of it."""
    group, name, *folders = arguments
    sys.path.extend(path for path in folders if path not in sys.path)
    found = installed(Group(group), (name,))
    (plugin,) = (plugin for plugin in found if plugin.name == name)
    try:
        function, _ = load(Group(group), name, (name,))
        lines = (function.__doc__ or "").strip().splitlines()
        plugin = replace(plugin, summary=lines[0] if lines else "")
    except PluginError as error:
        plugin = replace(plugin, error=error.detail)
    sys.stdout.write(f"\n{json.dumps(asdict(plugin))}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
