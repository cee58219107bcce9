"""Which layers of a network a job may factor: where its target runs the factors faster, or a size bound wants them.

With a bound on latency or energy the kernels of a layer and of its factors are priced, alone and at the widths of the
uncompressed network, timed first where the device is here, and ranks that do not make the layer faster are withheld.
With a bound on size every rank is offered; on a target that cannot measure, those whose kernels its table can price.
Each shape is looked at once, as a network of this one layer and a rectifier.
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
from latency_tables import LatencyTable, TableStore, Target
from latency_tables.errors import TrimtabError
from search_spaces.network_space import runs_integer
from search_spaces.ranks import OfferedRanks, RankValues, rank_candidates
from service.context import JobContext
from service.job_spec import JobSpec
from service.kernel_rows import Rows, Stage, known_rows, measure_missing
from service.rank_forms import Form, Uses, faster, priceable

# Seconds spent on kernels of factors that a job's table lacks.
MEASURE_SECONDS = 90.0
_TIMED = ("latency", "latency_ms", "energy", "energy_mj")
_SIZED = ("size", "size_bytes", "packed_size", "packed_bytes")
_LAYER = "layer"


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
            spec.priced,
            spec.objective,
            spec.space.scope,
            spec.space.exclude,
            data_dir,
        )
        if context is None:
            return cls(*known)
        return cls(*known, target.can_measure, context.stage, context.check, context.pin)

    def __call__(self, network: nn.Module, structure: Structure, example: Tensor) -> OfferedRanks:
        """What may be factored, and why other layers with a low-rank form may not.

        Raises:
            MeasurementError: kernels cannot be timed here.
        """
        timed = self.objective == "latency" or any(key in self.budget for key in _TIMED)
        sized = any(key in self.budget for key in _SIZED)
        if self.scope == "quantize" or not (timed or sized):
            return OfferedRanks()
        candidates = rank_candidates(network, structure, example, self.target, self.exclude)
        # Where the device is here a job times what it needs; without any table nothing can be told.
        if not candidates or (sized and (self.target.can_measure or self.data_dir is None)):
            return OfferedRanks(candidates)
        found = self._judged(network, structure, candidates, faster if not sized else priceable)
        pinned = self.pin(
            "rank_offers",
            {
                "values": {path: list(values) for path, values in found.values.items()},
                "withheld": dict(found.withheld),
            },
        )
        values = {path: tuple(ranks) for path, ranks in pinned["values"].items()}
        return OfferedRanks(values, pinned["withheld"])

    def _judged(
        self,
        network: nn.Module,
        structure: Structure,
        candidates: RankValues,
        judge: Callable[[Mapping[Form, Uses], Rows], tuple[list[int], str]],
    ) -> OfferedRanks:
        """Ranks that a judge of a layer's forms lets through, and what it says against the others."""
        if self.data_dir is None:
            return OfferedRanks(withheld=dict.fromkeys(candidates, "no table of kernels was given"))
        layers = {layer.path: layer for layer in structure.layers}
        shapes = {p: _shape(layers[p], network.get_submodule(p)) for p in candidates}
        like = {shape: path for path, shape in reversed(shapes.items())}
        forms: dict[str, dict[Form, Uses]] = {}
        failed: dict[str, str] = {}
        for k, path in enumerate(like.values()):
            self.check()
            self.stage("kernels", "looking at low-rank forms", k, len(like))
            try:
                forms[path] = self.forms(network, layers[path], candidates[path])
            except TrimtabError as error:
                failed[path] = f"the target does not run it alone: {error}"
        # Should time run out, whole layers have been timed: nothing is faster than what nobody knows.
        items = [item for found in forms.values() for item in found.items()]
        items.sort(key=lambda item: item[0][1] is not None)
        rows = Rows(self._table([uses for _, uses in items]), {})
        judged = {path: judge(found, rows) for path, found in forms.items()}
        offered: dict[str, tuple[int, ...]] = {}
        withheld: dict[str, str] = {}
        for path, values in candidates.items():
            first = like[shapes[path]]
            ranks, reason = judged.get(first, ([], failed.get(first, "")))
            if ranks:
                offered[path] = (*ranks, values[-1])
            else:
                withheld[path] = reason
        return OfferedRanks(offered, withheld)

    def _table(self, graphs: list[Uses]) -> LatencyTable:
        assert self.data_dir is not None
        store = TableStore(self.data_dir / "tables")
        if self.measures:
            table, _ = measure_missing(
                store, self.target, graphs, self.stage, self.check, MEASURE_SECONDS
            )
            return table
        return known_rows(store, self.target, [use.kernel for uses in graphs for use in uses])

    def forms(self, network: nn.Module, layer: Layer, values: tuple[int, ...]) -> dict[Form, Uses]:
        """Kernels of the layer and its factors, in every precision that the job may give it."""
        alone = nn.Sequential()
        alone.add_module(_LAYER, copy.deepcopy(network.get_submodule(layer.path)))
        alone.add_module("rectifier", nn.ReLU())
        if layer.kind != "linear":
            # A convolution's output is quantized; a graph cannot end there and be cut to float as well.
            alone.add_module("end", nn.Flatten())
        images = torch.zeros((2, *layer.input_shape[1:]))
        compressor = Compressor(alone.eval(), images, [])
        precisions = [False]
        if self.scope == "joint" and runs_integer(layer, self.target):
            precisions.append(True)
        skeleton = Skeleton(compressor, self.target.batch)
        found: dict[Form, Uses] = {}
        for integer in precisions:
            for rank in (None, *values[:-1]):
                choices = Choices(
                    integer=frozenset([_LAYER] if integer else []),
                    rank={} if rank is None else {_LAYER: rank},
                )
                file = skeleton.model(choices).SerializeToString()
                found[integer, rank] = self.target.kernels(file)
        return found


def rank_notes(whole: Mapping[str, str]) -> list[str]:
    """For the report: why layers with a low-rank form were offered no rank, one line a reason.

    Args:
        whole: layer path to the reason.
    """
    alike: dict[str, list[str]] = {}
    for path, reason in whole.items():
        alike.setdefault(reason, []).append(path)
    return [f"no rank was offered for {_few(paths)}: {reason}" for reason, paths in alike.items()]


def _few(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more layers" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more


def _shape(layer: Layer, module: nn.Module) -> tuple[Any, ...]:
    """Equal for layers that run as the same kernels."""
    own = [getattr(module, name, None) for name in ("kernel_size", "stride", "padding", "dilation")]
    bias = getattr(module, "bias", None) is not None
    return (layer.kind, layer.input_shape, layer.output_shape, bias, *own)
