"""Sizes that modules hold as plain numbers, told apart from equal numbers that come from elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


class HeldSize(int):
    """A number that a module holds; the very object that arrives where the module passes it on."""


@contextlib.contextmanager
def held_sizes(network: nn.Module) -> Iterator[None]:
    """While it lasts, whole numbers among the attributes of modules that are not torch's own are ``HeldSize``."""
    held = {
        (module, name): value
        for module in network.modules()
        if not type(module).__module__.startswith("torch.nn.")
        for name, value in vars(module).items()
        if name[0] != "_" and type(value) is int
    }
    try:
        for (module, name), value in held.items():
            vars(module)[name] = HeldSize(value)
        yield
    finally:
        for (module, name), value in held.items():
            vars(module)[name] = value
