"""The exported graph of any policy, cut from one export without tracing again.

Exporting a network takes up to seconds and pricing needs hundreds of graphs. All of them are parts of one: the
uncompressed network with every tensor quantized. Removing quantize/dequantize pairs, bypassing dropped blocks and
shrinking initializers gives the graph a real export of the policy has (weights zero, since only shapes have a
price). ``verify`` compares the two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from compressors.call_graph import INPUT_SITE
from compressors.compressor import Choices, Compressor
from compressors.errors import ExportError
from compressors.exporter import export_onnx, scope_path
from compressors.factored_nodes import ACTIVATION_STEP, WEIGHT_STEP, factored_nodes
from compressors.float_layers import keep_float
from compressors.head_constants import holds_width, resize_heads, resize_width
from compressors.low_rank import Ranks, ranks_of
from compressors.narrow_levels import narrow_levels, narrow_weights
from compressors.plan import ActivationScale, Plan, WeightScale
from compressors.pruner import Channels
from compressors.pruning_group import Member
from compressors.quantization import asked_bits, quantized_sites, shared_bits
from compressors.structure import MOVERS, RECTIFIERS, inside
from compressors.weight_grid import grid_limit

_COMPUTE = ("Conv", "Gemm", "MatMul")


class Skeleton:
    """See the module's docstring.

    Args:
        compressor: of the network.
        batch: examples a run of the exported file.

    Raises:
        ExportError: the network cannot be exported, or its graph cannot be matched with its modules.
    """

    def __init__(self, compressor: Compressor, batch: int = 1) -> None:
        self._compressor = compressor
        structure = compressor.structure
        self._layers = {layer.path: layer for layer in structure.layers}
        everything = quantized_sites(structure, self._layers)
        for block in structure.blocks:  # so that a block's ends can be found in the graph
            everything.setdefault(block.input, block.input)
            everything.setdefault(block.output, block.output)
        # A rectifier merges into an unsigned quantizer only where zero is its lowest value.
        rectified: set[str] = set()
        for call in structure.graph.calls:
            moved = call.function in MOVERS and call.inputs[0] in rectified
            if call.function in RECTIFIERS or moved:
                rectified.add(call.site)
        plan = Plan(
            weights={
                p: WeightScale((WEIGHT_STEP,) * x.out_channels) for p, x in self._layers.items()
            },
            activations={
                s: ActivationScale(ACTIVATION_STEP, 0 if s in rectified else 128)
                for s in everything
            },
            input_shape=tuple(compressor.images.shape[1:]),
        )
        self._model = export_onnx(compressor.folded, plan, batch)
        graph = self._model.graph
        self._initial = {i.name: i for i in graph.initializer}
        self._refuse_other_sizes()
        order = [INPUT_SITE, *(c.site for c in structure.graph.calls)]
        sites = [s for s in order if s in everything]
        quantizers = [n for n in graph.node if n.op_type == "QuantizeLinear"]
        if len(sites) != len(quantizers):
            raise ExportError(
                f"{len(quantizers)} quantizers in the exported graph for {len(sites)} tensors"
            )
        dequantizer = {n.input[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
        # site -> (tensor before the quantizer, tensor after the dequantizer)
        self._ends = {
            s: (q.input[0], dequantizer[q.output[0]].output[0]) for s, q in zip(sites, quantizers)
        }
        self._sites = tuple(sites)
        self._rectified = rectified
        self._pairs = {q.name: s for s, q in zip(sites, quantizers)}
        self._pairs |= {dequantizer[q.output[0]].name: s for s, q in zip(sites, quantizers)}
        self._owner = self._owners(graph)
        missing = set(self._layers) - set(self._owner.values())
        if missing:
            raise ExportError(
                f"layers without a node in the exported graph: {', '.join(sorted(missing)[:5])}"
            )

    def _refuse_other_sizes(self) -> None:
        """Raises ExportError where pruning changes what cannot be found again in the graph."""
        for group in self._compressor.groups.values():
            for member in group.attached:
                if member.axis.startswith(".") and not self._reshapes_by(member):
                    raise ExportError(f"{member.path} works with sizes that pruning changes")
                if member.axis.isdigit() and member.path not in self._initial:
                    raise ExportError(f"parameter {member.path} is exported in another form")

    def _reshapes_by(self, member: Member) -> bool:
        """Whether the width that a module holds shows in its graph, and nowhere but in shapes."""
        own = [n for n in self._model.graph.node if scope_path(n.name) == member.path]
        value = getattr(self._compressor.folded.get_submodule(member.path), member.axis[1:], None)
        split = any(node.op_type == "Split" for node in own)
        return isinstance(value, int) and not split and any(holds_width(n, value) for n in own)

    def _owners(self, graph: onnx.GraphProto) -> dict[str, str]:
        """Node name to the layer that pays for it, one that runs whenever the node does.

        A layer's own nodes are its own. What lies between layers goes to the last layer it depends on within
        the module that computes it, else to the next one there; outside of droppable blocks, never to a layer
        inside one.
        """
        layers = self._compressor.structure.layers
        rank = {layer.path: k for k, layer in enumerate(layers)}
        blocks = tuple(b.path for b in self._compressor.structure.blocks)
        made: dict[str, int] = {}
        owner: dict[str, str] = {}
        for node in graph.node:
            path = scope_path(node.name)
            above = max((made.get(name, -1) for name in node.input), default=-1)
            if path in rank:
                own = paid = rank[path]
            else:
                own = above
                near = [
                    k
                    for k, layer in enumerate(layers)
                    if (not path or inside(layer.path, (path,)))
                    and (inside(path, blocks) or not inside(layer.path, blocks))
                ]
                before = [k for k in near if k <= above]
                # At the root everything above is "within the module"; only the very last layer counts there.
                if before and (path or before[-1] == above):
                    paid = before[-1]
                else:
                    paid = next((k for k in near if k > above), near[-1] if near else max(above, 0))
            for name in node.output:
                made[name] = max(own, above)
            owner[node.name] = layers[paid].path
        return owner

    def model(self, choices: Choices) -> onnx.ModelProto:
        """The graph of a policy; nodes are named ``/<owning layer>/<operator>...``."""
        compressor, dropped = self._compressor, tuple(choices.dropped)
        channels = compressor.channels(choices)
        ranks = ranks_of(
            compressor.structure, compressor.folded, channels, choices.rank, choices.dropped
        )
        integer = {p for p in self._layers if p in choices.integer and not inside(p, dropped)}
        model = self.cut(dropped, channels, integer, ranks)
        if choices.narrow:
            self._narrow(model.graph, choices, integer)
        return model

    def _narrow(self, graph: onnx.GraphProto, choices: Choices, integer: Collection[str]) -> None:
        """Ends grids of fewer than 8 bits as the exporter does, in place.

        Raises:
            ExportError: a layer is factored.
        """
        if choices.rank:
            raise ExportError("bits below 8 of a factored layer are not cut from the graph")
        structure = self._compressor.structure
        sites = quantized_sites(structure, integer, choices.dropped)
        asked = asked_bits(structure, integer, choices.activation_bits, choices.dropped)
        widths = shared_bits(sites, asked)
        # A step of nothing: every capped rectifier's range holds such a grid, as it holds a calibrated one.
        grids = {
            site: ActivationScale(0.0, 0 if site in self._rectified else 128, bits)
            for site, bits in widths.items()
        }
        narrow_levels(graph, [site for site in self._sites if site in sites], grids)
        bits = {p: b for p, b in choices.weight_bits.items() if p in integer and b < 8}
        narrow_weights(graph, {path: grid_limit(b) for path, b in bits.items()})

    def cut(
        self,
        dropped: tuple[str, ...],
        channels: Channels,
        integer: Collection[str],
        ranks: Mapping[str, Ranks],
    ) -> onnx.ModelProto:
        """The graph of a plan, see ``model``.

        Args:
            dropped: blocks left out.
            channels: kept positions per module and axis.
            integer: quantized layers, none inside a dropped block; of a factored one its own path.
            ranks: of factored layers.
        """
        sites = quantized_sites(self._compressor.structure, integer, dropped)
        alias = self._aliases(sites, dropped)
        nodes: list[onnx.NodeProto] = []
        initializers: dict[str, onnx.TensorProto] = {}
        for source in self._model.graph.node:
            site = self._pairs.get(source.name)
            if site is not None and site not in sites:
                continue
            path = scope_path(source.name)
            if source.op_type == "DequantizeLinear" and site is None and path not in integer:
                continue  # a float layer's weight or bias
            node = onnx.NodeProto()
            node.CopyFrom(source)
            for k, name in enumerate(node.input):
                while name in alias:
                    name = alias[name]
                if (
                    name.endswith("_dequantized")
                    and path not in integer
                    and source.op_type in _COMPUTE
                ):
                    name = name.removesuffix("_dequantized")
                node.input[k] = name
            if source.op_type == "Conv" and "both" in channels.get(path, {}):
                for attribute in node.attribute:
                    if attribute.name == "group":
                        kept, whole = len(channels[path]["both"]), self._made(path)
                        attribute.i = attribute.i * kept // whole
            if "heads" in channels.get(path, {}):
                attention = self._compressor.folded.get_submodule(path)
                resize_heads(node, attention, len(channels[path]["heads"]))
            for axis, left in channels.get(path, {}).items():
                if axis.startswith("."):
                    module = self._compressor.folded.get_submodule(path)
                    resize_width(node, getattr(module, axis[1:]), len(left))
            nodes.append(node)
        factored, owner = self._factored(nodes, ranks, channels, integer)
        nodes = self._alive(nodes)
        for node in nodes:
            for name in node.input:
                if name not in initializers:
                    made = factored.get(name) or self._initializer(name, channels)
                    if made is not None:
                        initializers[name] = made
        return self._assemble(nodes, list(initializers.values()), owner)

    def _factored(
        self,
        nodes: list[onnx.NodeProto],
        ranks: Mapping[str, Ranks],
        channels: Channels,
        integer: Collection[str],
    ) -> tuple[dict[str, onnx.TensorProto], dict[str, str]]:
        """Puts factors in the place of factored layers' nodes.

        Returns:
            The factors' initializers by name, and every node's owner.
        """
        initializers: dict[str, onnx.TensorProto] = {}
        if not ranks:
            return initializers, self._owner
        owner = dict(self._owner)
        expanded: list[onnx.NodeProto] = []
        for node in nodes:
            path = scope_path(node.name)
            if node.op_type not in _COMPUTE or path not in ranks:
                expanded.append(node)
                continue
            layer, axes = self._layers[path], channels.get(path, {})
            made = factored_nodes(
                node,
                path,
                ranks[path],
                len(axes.get("in", range(layer.in_channels))),
                len(axes.get("out", range(layer.out_channels))),
                path in integer,
            )
            expanded += made.nodes
            initializers |= made.initializers
            owner |= {one.name: path for one in made.nodes}
        nodes[:] = expanded
        return initializers, owner

    def _aliases(self, sites: dict[str, str], dropped: tuple[str, ...]) -> dict[str, str]:
        """Tensor to the one that stands for it where quantizers are absent and blocks are bypassed."""
        alias: dict[str, str] = {}
        for site, (before, after) in self._ends.items():
            if site not in sites:
                alias[after] = before
        output = self._model.graph.output[0].name
        for block in self._compressor.structure.blocks:
            if block.path in dropped:
                target = self._ends[block.input][1]
                before, after = self._ends[block.output]
                if output in (before, after):
                    raise ExportError(
                        f"block {block.path} ends the network and cannot be cut from its graph"
                    )
                alias[after] = target
                alias[before] = target
        return alias

    def _alive(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        wanted = {o.name for o in self._model.graph.output}
        alive = []
        for node in reversed(nodes):
            if any(name in wanted for name in node.output):
                alive.append(node)
                wanted.update(node.input)
        return alive[::-1]

    def _initializer(self, name: str, channels: Channels) -> onnx.TensorProto | None:
        """The initializer shrunk to the kept channels."""
        path, _, kind = name.rpartition(".")
        base = kind.removesuffix("_quantized").removesuffix("_scale").removesuffix("_zero_point")
        source = self._initial.get(name)
        if source is None and base in ("weight", "bias"):
            source = self._initial.get(f"{name}_quantized")  # a float layer's parameter
            if source is None:
                return None
            shape, dtype = list(source.dims), np.dtype(np.float32)
        elif source is None:
            return None
        else:
            shape, dtype = list(source.dims), onnx.helper.tensor_dtype_to_np_dtype(source.data_type)
        axes = channels.get(path, {})
        bare = {int(axis): len(kept) for axis, kept in channels.get(name, {}).items()}
        if path not in self._layers and not axes and not bare:
            return source
        shape = [bare.get(axis, size) for axis, size in enumerate(shape)]
        out = axes.get("out", axes.get("both"))
        if out is not None and shape:
            transposed = self._transposed(name)
            shape[1 if transposed and len(shape) > 1 else 0] = len(out)
        if "in" in axes and len(shape) > 1:
            shape[0 if self._transposed(name) else 1] = len(axes["in"])
        fill: NDArray[np.generic] = np.zeros(shape, dtype=dtype)
        if kind.endswith("_scale") and source is not None:
            # A bias must keep the product of its layer's scales, or the runtime leaves it float.
            fill = np.full(shape, numpy_helper.to_array(source).flat[0], dtype=dtype)
        return numpy_helper.from_array(fill, name)

    def _made(self, path: str) -> int:
        """Channels that a convolution makes uncompressed."""
        convolution = self._compressor.folded.get_submodule(path)
        assert isinstance(convolution, nn.Conv2d)
        return convolution.out_channels

    def _transposed(self, name: str) -> bool:
        """Whether the exporter turned this weight round for a MatMul: [in, out]."""
        path = name.rpartition(".")[0]
        source = self._initial.get(name) or self._initial.get(f"{name}_quantized")
        layer = self._layers.get(path)
        if layer is None or source is None or layer.kind != "linear" or len(source.dims) != 2:
            return False
        return any(
            node.op_type == "MatMul" and scope_path(node.name) == path
            for node in self._model.graph.node
        )

    def _assemble(
        self,
        nodes: list[onnx.NodeProto],
        initializers: list[onnx.TensorProto],
        owner: dict[str, str],
    ) -> onnx.ModelProto:
        rename: dict[str, str] = {}
        kept = {o.name for o in self._model.graph.output}
        for k, node in enumerate(nodes):
            prefix = f"/{owner[node.name]}/{node.op_type}_{k}"
            node.name = prefix
            for j, name in enumerate(node.output):
                if name and name not in kept:
                    rename[name] = f"{prefix}_output_{j}"
        for node in nodes:
            node.input[:] = [rename.get(name, name) for name in node.input]
            node.output[:] = [rename.get(name, name) for name in node.output]
        model = onnx.ModelProto()
        model.ir_version = self._model.ir_version
        model.opset_import.extend(self._model.opset_import)
        model.graph.name = "skeleton"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(initializers)
        model.graph.input.extend(self._model.graph.input)
        model.graph.output.extend(self._model.graph.output)
        keep_float(model.graph)
        return model
