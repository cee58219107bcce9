"""Targets that plug-ins make, in the catalog beside our own.

A distribution names a function (or a class) whose parameters are the target's options, each a number from 1 to 4096
with a default::

    [project.entry-points."trimtab.targets"]
    board = "my_package:Board"          # Board(threads: int = 1, batch: int = 1) -> Target

A job's target ``board?threads=2`` is then what ``Board(threads=2)`` gives: a ``latency_tables.Target`` called ``board``
whose ``spec`` makes it again and whose ``options`` are those asked for. Its ``host().runtime`` is part of the key under
which its kernels are kept, so it names the versions that their times depend on.
``latency_tables.contract.TargetContract`` has the tests every target passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from latency_tables import Catalog, Target
from latency_tables.errors import TrimtabError
from latency_tables.target import read_options
from service.plugins import ALL, Group, PluginError, installed, load


def catalog_of(data_dir: Path | None, allow: Sequence[str]) -> Catalog:
    """The catalog of a data folder with the targets of plug-ins, which are loaded when they are asked for.

    Args:
        allow: plug-ins that may be loaded. The others are in the catalog too: making one says why it cannot be.
    """
    own = Group.TARGETS.own
    names = [plugin.name for plugin in installed(Group.TARGETS, (ALL,))]
    others = {name: partial(make_target, allow=allow) for name in names if name not in own}
    return Catalog.of(data_dir, others)


def make_target(text: str, allow: Sequence[str]) -> Target:
    """A plug-in's target from its name with options.

    Raises:
        PluginError: it is not allowed, it cannot be loaded, it fails, or what it makes is not that target.
        TargetError: an option it does not have, or a value that is no number from 1 to 4096.
    """
    name, _, query = text.partition("?")
    make, label = load(Group.TARGETS, name, allow)
    try:
        options = read_options(name, query, _options(make, label))
        target: Target = make(**options)
        _require_itself(target, name, options, label)
    except TrimtabError:
        raise
    except Exception as error:
        raise PluginError(
            f"{label} could not be made of {text!r}: {type(error).__name__}: {error}. Install what it needs, or "
            "choose another target"
        ) from error
    return target


def _options(make: Callable[..., Any], label: str) -> tuple[str, ...]:
    parameters = inspect.signature(make).parameters.values()
    for parameter in parameters:
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not named or parameter.default is parameter.empty:
            raise PluginError(
                f"{label} takes {parameter} where only options with defaults can stand, such as threads=1; mend the "
                "plug-in or choose another target"
            )
    return tuple(parameter.name for parameter in parameters)


def _require_itself(target: Any, name: str, options: Mapping[str, int], label: str) -> None:
    if not isinstance(target, Target):
        raise PluginError(
            f"{label} gives {type(target).__name__}, which is no latency_tables.Target"
        )
    if target.name != name or target.spec.partition("?")[0] != name:
        raise PluginError(
            f"{label} calls itself {target.name!r} ({target.spec!r}); name and spec must begin with {name!r}"
        )
    for option, value in options.items():
        if target.options.get(option) != value:
            raise PluginError(
                f"{label} was asked for {option}={value} and says it has {dict(target.options)!r}"
            )
