"""Exported files of compressed networks, cut from one export and filled with their numbers.

Tracing a network for its file takes longer than anything else in it: 0.4 of 0.5 CPU-seconds for ResNet-56. A search
writes a file for every policy, and all of them are parts of one graph (``skeleton``); what differs is numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from compressors.call_graph import INPUT_SITE
from compressors.compressor import Choices, Compressor
from compressors.errors import ExportError
from compressors.exporter import export_onnx, integer_bias, integer_weight
from compressors.graph_digest import graph_digest
from compressors.narrow_levels import narrow_levels, narrow_weights
from compressors.plan import Plan, WeightScale
from compressors.quantization import past_dropped
from compressors.skeleton import Skeleton


class CutFiles:
    """Writes the same graphs as ``exporter.export_onnx``, under other names.

    Args:
        compressor: of the network.
        batch: examples a run.
        probes: choices whose cut files are held against real exports.

    Raises:
        ExportError: the network's graph cannot be cut, or a probe's cut file is not the exported one.
    """

    def __init__(self, compressor: Compressor, batch: int, probes: Sequence[Choices]) -> None:
        self._skeleton = Skeleton(compressor, batch)
        self._structure = compressor.structure
        self._batch = batch
        calls = [INPUT_SITE, *(call.site for call in compressor.structure.graph.calls)]
        self._place = {site: k for k, site in enumerate(calls)}
        for choices in probes:
            # Factored layers are always traced.
            made = compressor.compress(replace(choices, rank={}), refit=False, quick=True)
            real = export_onnx(made.network, made.plan, batch)
            if graph_digest(self.model(made.network, made.plan)) != graph_digest(real):
                raise ExportError("a cut file differs from the exported one")

    def __call__(self, network: nn.Module, plan: Plan, batch: int) -> onnx.ModelProto:
        """``export_onnx`` in other words: traces what cannot be cut."""
        if batch == self._batch and not plan.ranks:
            with contextlib.suppress(ExportError):
                return self.model(network, plan)
        return export_onnx(network, plan, batch)

    def model(self, network: nn.Module, plan: Plan) -> onnx.ModelProto:
        """The file of a network made by the compressor.

        Args:
            network: weights of quantized layers on their grid.
            plan: of the network, without factored layers.

        Raises:
            ExportError: the graph holds a number that is no parameter of the network, or lacks what the plan names.
        """
        try:
            return self._filled(network, plan)
        except KeyError as error:
            raise ExportError(f"the cut graph has no {error}") from error

    def _filled(self, network: nn.Module, plan: Plan) -> onnx.ModelProto:
        model = self._skeleton.cut(plan.dropped, plan.channels, plan.weights.keys(), {})
        graph = model.graph
        sites = sorted(plan.activations, key=self._place.__getitem__)
        self._fill_grids(graph, sites, plan)
        readers = {name: node for node in graph.node for name in node.input}
        state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        for tensor in graph.initializer:
            turned = _turned(readers[tensor.name])
            array = self._array(tensor.name, turned, state, plan)
            if list(array.shape) != list(tensor.dims):
                raise ExportError(f"{tensor.name} is exported in another form")
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        narrow_levels(graph, sites, plan.activations)
        narrow_weights(graph, plan.narrow)
        return model

    def _fill_grids(self, graph: onnx.GraphProto, sites: Sequence[str], plan: Plan) -> None:
        """Puts scales and zero points of activations into the constants of their quantizers."""
        makers = {name: node for node in graph.node for name in node.output}
        quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        if len(quantizers) != len(sites):
            raise ExportError(
                f"{len(quantizers)} quantizers in the cut graph for {len(sites)} tensors"
            )
        for site, quantizer in zip(sites, quantizers):
            scale = plan.activations[site]
            values = (
                np.array(scale.scale, dtype=np.float32),
                np.array(scale.zero_point, dtype=np.uint8),
            )
            for name, value in zip(quantizer.input[1:], values):
                held = makers[name].attribute[0].t
                held.CopyFrom(numpy_helper.from_array(value, held.name))

    def _array(
        self, name: str, turned: bool, state: dict[str, NDArray[np.float32]], plan: Plan
    ) -> NDArray[np.generic]:
        """What an initializer holds.

        Args:
            turned: a weight is written with inputs before outputs.
        """
        if name in state:
            return state[name].T if turned else state[name]
        path, _, kind = name.rpartition(".")
        scale = plan.weights.get(path)
        if scale is not None and kind.startswith("weight_"):
            axis = 1 if turned else 0
            weight = state[f"{path}.weight"]
            integers, steps = integer_weight(weight.T if turned else weight, scale, axis)
            zero = np.zeros(len(steps), dtype=np.int8)
            return _parts(integers, steps, zero)[kind.removeprefix("weight_")]
        if scale is not None and kind.startswith("bias_"):
            return self._bias(path, kind.removeprefix("bias_"), scale, state, plan)
        raise ExportError(f"{name} in the exported graph is no parameter of the network")

    def _bias(
        self,
        path: str,
        kind: str,
        scale: WeightScale,
        state: dict[str, NDArray[np.float32]],
        plan: Plan,
    ) -> NDArray[np.generic]:
        reads = past_dropped(self._structure, plan.dropped)(self._structure.layer(path).input)
        activation = np.array(plan.activations[reads].scale, dtype=np.float32)
        steps = np.array(scale.scale, dtype=np.float32)
        integers, step = integer_bias(state[f"{path}.bias"], activation, steps)
        return _parts(integers, step, np.zeros(len(step), dtype=np.int32))[kind]


def _parts(
    integers: NDArray[np.generic], steps: NDArray[np.generic], zero: NDArray[np.generic]
) -> dict[str, NDArray[np.generic]]:
    """By what the exporter adds to a quantized tensor's name."""
    return {"quantized": integers, "scale": steps, "zero_point": zero}


def _turned(reader: onnx.NodeProto) -> bool:
    """Whether a node reads its weight with inputs before outputs, as a product without bias does."""
    if reader.op_type == "DequantizeLinear":
        return any(a.name == "axis" and a.i == 1 for a in reader.attribute)
    return str(reader.op_type) == "MatMul"
