"""Kernels of sampled policies, kept from one job to the next.

Which kernels a policy leads to depends on the network, the decisions, the target and the runtime's version, never
on weights or data. Reading the graphs of a few hundred policies takes up to a minute; a second job on the same
network reads them here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latency_tables import Kernel, KernelUse, Target
from latency_tables.errors import TrimtabError
from latency_tables.table_target import TableTarget
from search_spaces import Policy
from search_spaces.network_space import NetworkSpace
from service.plugins import Group, distribution_of

# To be raised with every change of how files are exported or kernels are read.
_VERSION = 1
# Policies of one network that are kept.
_MOST = 4000


def _brought(target: Target) -> str:
    """The distribution whose code reads the kernels, where it is not ours."""
    inner = target.inner if isinstance(target, TableTarget) else target
    return distribution_of(Group.TARGETS, inner.name)


class GraphCache:
    """See the module's docstring.

    Args:
        folder: may not exist yet; a file a network.
        network_space: whose policies these are.
        target: whose runtime read them.
        probes: kernels of a few policies as read just now. They stand for everything that decides kernels but is
            in no digest: layer shapes, input size, where quantizers are put.
    """

    def __init__(
        self,
        folder: Path,
        network_space: NetworkSpace,
        target: Target,
        probes: Sequence[Sequence[KernelUse]],
    ) -> None:
        seen = [[(u.kernel.key, u.scope, u.count) for u in uses] for uses in probes]
        key = [_VERSION, network_space.space.digest, target.spec, target.host().runtime, seen]
        # Keys of our own targets stay as they are.
        key += [brought] if (brought := _brought(target)) else []
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
        self._file = folder / f"{digest}.json.gz"
        self._kernels: list[Kernel] = []
        self._index: dict[str, int] = {}
        self._policies: dict[str, list[Any]] = {}
        self._changed = False
        self._load()

    def _load(self) -> None:
        try:
            data = json.loads(gzip.decompress(self._file.read_bytes()))
            for kernel in data["kernels"]:
                self._place(Kernel.from_json(kernel))
            self._policies = data["policies"]
        except FileNotFoundError:
            pass
        except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, TrimtabError):
            # A cache that cannot be read is read off the runtime again and written anew.
            self._kernels, self._index, self._policies = [], {}, {}

    def _place(self, kernel: Kernel) -> int:
        if kernel.key not in self._index:
            self._index[kernel.key] = len(self._kernels)
            self._kernels.append(kernel)
        return self._index[kernel.key]

    def get(self, policy: Policy) -> tuple[list[KernelUse], int] | None:
        """Kernels of a policy and its file's bytes, None where they were never read."""
        found = self._policies.get(policy.digest)
        if found is None:
            return None
        size, uses = found
        return [KernelUse(self._kernels[k], scope, "", count) for k, scope, count in uses], size

    def put(self, policy: Policy, uses: Sequence[KernelUse], size: int) -> None:
        """Keeps what was read; ``save`` writes it."""
        if len(self._policies) < _MOST:
            rows = [[self._place(u.kernel), u.scope, u.count] for u in uses]
            self._policies[policy.digest] = [size, rows]
            self._changed = True

    def save(self) -> None:
        """Writes what is new in one step. A disk that is full costs the next job its time, not this one its result."""
        if not self._changed:
            return
        document = {"kernels": [k.to_json() for k in self._kernels], "policies": self._policies}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._file.parent, suffix=".part")
            with os.fdopen(handle, "wb") as out:
                out.write(gzip.compress(json.dumps(document).encode(), compresslevel=6, mtime=0))
            os.replace(name, self._file)
        except OSError:
            return
        self._changed = False
