"""Which layers of a network a job may factor: where its target runs the factors faster, or a size bound wants them.

With a bound on latency or energy the kernels of a layer and of its factors are timed, alone and at the widths of the
uncompressed network, and ranks that do not make it faster are not offered. Each shape is looked at once, as a network
of this one layer and a rectifier.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressors import Choices, Compressor, Skeleton
from compressors.structure import Layer, Structure
from latency_tables import KernelUse, TableStore, Target
from latency_tables.errors import TrimtabError
from search_spaces.network_space import runs_integer
from search_spaces.ranks import RankValues, rank_candidates
from service.context import JobContext
from service.job_spec import JobSpec
from service.kernel_rows import Rows, Stage, known_rows, measure_missing

# What a rank must save of the layer's time to be offered.
FASTER = 0.05
# Layers narrower than this are not timed. Chosen after one run on a busy machine, in which a 3x3 convolution of 64
# channels at 8x8 in integers was at most 14 % faster at a quarter of its work; a quiet machine may say otherwise.
LEAST_TIMED = 128
# Seconds spent on kernels of factors that a job's table lacks.
MEASURE_SECONDS = 60.0
_TIMED = ("latency", "latency_ms", "energy", "energy_mj")
_SIZED = ("size", "size_bytes", "packed_size", "packed_bytes")
_LAYER = "layer"

# (integer, rank); rank None is the whole layer
Form = tuple[bool, int | None]


@dataclass(frozen=True)
class RankOffers:
    """See the module's docstring; satisfies ``search_spaces.ranks.RankOffer``.

    Attributes:
        target: runs the network.
        budget: the job's.
        objective: ``latency`` wants time whatever the budget bounds.
        scope: ``prune`` knows no integers.
        exclude: modules left as they are.
        data_dir: holds the tables; None where nothing is known of kernels.
        measures: whether missing kernels may be timed.
        stage, check: as a job's context has them.
        pin: stores what was offered, for later attempts at the job.
    """

    target: Target
    budget: Mapping[str, float]
    objective: str = "accuracy"
    scope: str = "joint"
    exclude: tuple[str, ...] = ()
    data_dir: Path | None = None
    measures: bool = False
    stage: Stage = lambda _name, _message, _done, _total: None
    check: Callable[[], None] = lambda: None
    pin: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _key, value: value

    @classmethod
    def of(
        cls, spec: JobSpec, target: Target, data_dir: Path | None, context: JobContext | None = None
    ) -> RankOffers:
        """Those of a job: in its own context missing kernels are timed, elsewhere only the table is asked."""
        known = (
            target,
            spec.budget,
            spec.objective,
            spec.space.scope,
            spec.space.exclude,
            data_dir,
        )
        if context is None:
            return cls(*known)
        return cls(*known, target.can_measure, context.stage, context.check, context.pin)

    def __call__(self, network: nn.Module, structure: Structure, example: Tensor) -> RankValues:
        """Ranks offered by layer path, the full one last.

        Raises:
            MeasurementError: kernels cannot be timed here.
        """
        timed = self.objective == "latency" or any(key in self.budget for key in _TIMED)
        sized = any(key in self.budget for key in _SIZED)
        if self.scope == "quantize" or not (timed or sized):
            return {}
        candidates = rank_candidates(network, structure, example, self.target, self.exclude)
        if not candidates or sized:
            return candidates
        wide = {
            x.path for x in structure.layers if min(x.in_channels, x.out_channels) >= LEAST_TIMED
        }
        candidates = {path: values for path, values in candidates.items() if path in wide}
        if not candidates:
            return {}
        found = self._faster(network, structure, candidates)
        pinned = self.pin("ranks", {path: list(values) for path, values in found.items()})
        return {path: tuple(values) for path, values in pinned.items()}

    def _faster(
        self, network: nn.Module, structure: Structure, candidates: RankValues
    ) -> dict[str, tuple[int, ...]]:
        if self.data_dir is None:
            return {}
        layers = {layer.path: layer for layer in structure.layers}
        shapes = {p: _shape(layers[p], network.get_submodule(p)) for p in candidates}
        like = {shape: path for path, shape in reversed(shapes.items())}
        forms: dict[str, dict[Form, list[KernelUse]]] = {}
        for k, path in enumerate(like.values()):
            self.check()
            self.stage("kernels", "looking at low-rank forms", k, len(like))
            try:
                forms[path] = self._forms(network, layers[path], candidates[path])
            except TrimtabError:
                continue  # the target does not run this layer alone: nothing says that factors are faster
        store = TableStore(self.data_dir / "tables")
        graphs = [uses for found in forms.values() for uses in found.values()]
        if self.measures:
            args = (self.stage, self.check, MEASURE_SECONDS)
            table, _ = measure_missing(store, self.target, graphs, *args)
        else:
            kernels = [use.kernel for uses in graphs for use in uses]
            table = known_rows(store, self.target, kernels)
        rows = Rows(table, {})
        fast = {p: _fast(found, candidates[p], rows) for p, found in forms.items()}
        offered = {path: fast.get(like[shapes[path]], ()) for path in candidates}
        return {p: (*v, candidates[p][-1]) for p, v in offered.items() if v}

    def _forms(
        self, network: nn.Module, layer: Layer, values: tuple[int, ...]
    ) -> dict[Form, list[KernelUse]]:
        """Kernels of the layer and its factors, in every precision that the job may give it."""
        whole = copy.deepcopy(network.get_submodule(layer.path))
        alone = nn.Sequential()
        alone.add_module(_LAYER, whole)
        alone.add_module("rectifier", nn.ReLU())
        images = torch.zeros((2, *layer.input_shape[1:]))
        compressor = Compressor(alone.eval(), images, [])
        precisions = [False]
        if self.scope == "joint" and runs_integer(layer, self.target):
            precisions.append(True)
        skeleton = Skeleton(compressor, self.target.batch)
        found = {}
        for integer in precisions:
            for rank in (None, *values[:-1]):
                choices = Choices(
                    integer=frozenset([_LAYER] if integer else []),
                    rank={} if rank is None else {_LAYER: rank},
                )
                file = skeleton.model(choices).SerializeToString()
                found[integer, rank] = self.target.kernels(file)
        return found


def _shape(layer: Layer, module: nn.Module) -> tuple[Any, ...]:
    """Equal for layers that run as the same kernels."""
    own = [getattr(module, name, None) for name in ("kernel_size", "stride", "padding", "dilation")]
    bias = getattr(module, "bias", None) is not None
    return (layer.kind, layer.input_shape, layer.output_shape, bias, *own)


def _fast(
    forms: Mapping[Form, list[KernelUse]], values: tuple[int, ...], rows: Rows
) -> tuple[int, ...]:
    """Ranks whose factors, in their faster precision, beat the whole layer in its own by ``FASTER``.

    What feeds the lone layer and takes its output (quantizers, changes of layout) is the same with factors and does
    not count; a form with a kernel nobody can price is not known to be faster.
    """

    def us(uses: list[KernelUse]) -> float:
        return sum(use.count * sum(rows.of(use.kernel)) / 2 for use in uses)

    def known(uses: list[KernelUse]) -> bool:
        return all(rows.row(use.kernel) is not None for use in uses)

    def cost(integer: bool, rank: int | None) -> float:
        uses, whole = forms[integer, rank], forms[integer, None]
        if not known(uses) or not known(whole):
            return float("inf")
        around = us([use for use in whole if not use.kernel.macs])
        return us(uses) - around

    precisions = sorted({integer for integer, _ in forms})
    whole = min(cost(integer, None) for integer in precisions)
    return tuple(
        rank
        for rank in values[:-1]
        if min(cost(integer, rank) for integer in precisions) <= (1 - FASTER) * whole < float("inf")
    )
