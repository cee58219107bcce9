"""What the runtime executes for a policy: cut from one export where that is exact, else exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from compressors import Choices, Compressor, Skeleton
from compressors.errors import ExportError
from compressors.exporter import export_onnx
from compressors.structure import inside
from latency_tables import KernelUse, Target
from latency_tables.capabilities import Capabilities
from latency_tables.errors import KernelError
from search_spaces import Policy
from search_spaces.latency_model import sample_policies
from search_spaces.network_space import NetworkSpace, runs_integer
from service.graph_cache import GraphCache

# Policies whose cut graph is held against a real export before cut graphs are trusted.
VERIFIED = 2


class Graphs:
    """See the module's docstring.

    Args:
        cache: folder in which the kernels of policies are kept from one job to the next; None keeps none.

    Attributes:
        note: why policies are exported one by one, None where their graphs are cut.
    """

    def __init__(
        self,
        compressor: Compressor,
        network_space: NetworkSpace,
        target: Target,
        cache: Path | None = None,
    ) -> None:
        self._compressor = compressor
        self._space = network_space
        self._target = target
        self._skeleton: Skeleton | None = None
        self.note: str | None = None
        probes: list[list[KernelUse]] = []
        try:
            skeleton = Skeleton(compressor, target.batch)
            for policy in sample_policies(network_space, VERIFIED, seed=1):
                choices = network_space.choices(policy)
                probes.append(target.kernels(self._export(choices)))
                cut = target.kernels(skeleton.model(choices).SerializeToString())
                if _kernel_counts(cut) != _kernel_counts(probes[-1]):
                    raise ExportError("a cut graph has other kernels than the exported one")
            self._skeleton = skeleton
        except (ExportError, KernelError) as error:  # the latter: the runtime refuses a cut graph
            self.note = f"pricing exported every sampled policy, because {error}"
        probes.append(self.of(network_space.choices(network_space.space.uncompressed()))[0])
        self._cache = cache and GraphCache(cache, network_space, target, probes)

    def _export(self, choices: Choices) -> bytes:
        made = self._compressor.compress(choices, refit=False, quick=True)
        data: bytes = export_onnx(made.network, made.plan, self._target.batch).SerializeToString()
        return data

    def file(self, choices: Choices) -> bytes:
        """A file with the policy's graph; its weights mean nothing, which no kernel's time depends on."""
        if self._skeleton is None:
            return self._export(choices)
        data: bytes = self._skeleton.model(choices).SerializeToString()
        return data

    def of(self, choices: Choices) -> tuple[list[KernelUse], int]:
        """Kernels with their owning layers, and the file's bytes."""
        data = self.file(choices)
        try:
            return self._target.kernels(data), len(data)
        except KernelError as error:
            if self._skeleton is None:
                raise
            # The policies that were held against exports did not show it.
            self._skeleton = None
            self.note = f"pricing exports every sampled policy, because {error}"
            return self.of(choices)

    def of_policy(self, policy: Policy) -> tuple[list[KernelUse], int]:
        """``of`` a policy's choices, from the cache where it was read before."""
        found = self._cache.get(policy) if self._cache else None
        if found is None:
            found = self.of(self._space.choices(policy))
            if self._cache:
                self._cache.put(policy, *found)
        return found

    def save(self) -> None:
        """Keeps what was read of policies for the next job."""
        if self._cache:
            self._cache.save()


def _kernel_counts(uses: Iterable[KernelUse]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for use in uses:
        counts[use.kernel.key] += use.count
    return counts


def integer_layers(
    network_space: NetworkSpace, target: Capabilities, exclude: tuple[str, ...]
) -> frozenset[str]:
    """All layers that the reference "uniform int8" quantizes."""
    return frozenset(
        layer.path
        for layer in network_space.structure.layers
        if runs_integer(layer, target) and not inside(layer.path, exclude)
    )
