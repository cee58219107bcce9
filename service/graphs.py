"""What the runtime executes for a policy: cut from one export where that is exact, else exported."""

from __future__ import annotations

from collections import Counter

from compressors import Choices, Compressor, Skeleton
from compressors.errors import ExportError
from compressors.exporter import export_onnx
from compressors.structure import inside
from latency_tables import KernelUse, Target
from search_spaces.latency_model import sample_policies
from search_spaces.network_space import NetworkSpace, runs_integer

# Policies whose cut graph is held against a real export before cut graphs are trusted.
VERIFIED = 2


class Graphs:
    """See the module's docstring.

    Attributes:
        note: why policies are exported one by one, None where their graphs are cut.
    """

    def __init__(self, compressor: Compressor, network_space: NetworkSpace, target: Target) -> None:
        self._compressor = compressor
        self._space = network_space
        self._target = target
        self._skeleton: Skeleton | None = None
        self.note: str | None = None
        try:
            skeleton = Skeleton(compressor, target.batch)
            for policy in sample_policies(network_space, VERIFIED, seed=1):
                choices = network_space.choices(policy)
                if _kernel_counts(
                    target, skeleton.model(choices).SerializeToString()
                ) != _kernel_counts(target, self._export(choices)):
                    raise ExportError("a cut graph has other kernels than the exported one")
            self._skeleton = skeleton
        except ExportError as error:
            self.note = f"pricing exported every sampled policy, because {error}"

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
        return self._target.kernels(data), len(data)


def _kernel_counts(target: Target, model: bytes) -> Counter[str]:
    counts: Counter[str] = Counter()
    for use in target.kernels(model):
        counts[use.kernel.key] += use.count
    return counts


def integer_layers(
    network_space: NetworkSpace, target: Target, exclude: tuple[str, ...]
) -> frozenset[str]:
    """All layers that the reference "uniform int8" quantizes."""
    return frozenset(
        layer.path
        for layer in network_space.structure.layers
        if runs_integer(layer, target) and not inside(layer.path, exclude)
    )
