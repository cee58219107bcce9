"""A network's structure after some of its layers were factored, without running it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from compressors.call_graph import Call, CallGraph, ModuleUse
from compressors.low_rank import Ranks, factors
from compressors.structure import Layer, Structure


def factored_structure(structure: Structure, ranks: Mapping[str, Ranks]) -> Structure:
    """The structure of the network in which ``low_rank.install`` replaced layers.

    Sites keep their names but for the factored layers': ``path:conv2d#0`` becomes those of its factors, the last of
    which is read in its place. Channels of whole layers stay the uncompressed ones, as everywhere in a structure;
    the ranks between factors are those given.

    Args:
        structure: of the uncompressed network.
        ranks: of factored layers; other layers stay whole. None give the structure itself.
    """
    if not ranks:
        return structure
    split = {x.path: _split(x, ranks[x.path]) for x in structure.layers if x.path in ranks}
    renamed = {x.call: split[x.path][-1].call for x in structure.layers if x.path in split}
    by_call = {x.call: split[x.path] for x in structure.layers if x.path in split}

    def at(site: str) -> str:
        return renamed.get(site, site)

    calls: list[Call] = []
    for call in structure.graph.calls:
        inputs = tuple(at(site) for site in call.inputs)
        if call.site not in by_call:
            calls.append(replace(call, inputs=inputs))
            continue
        for k, part in enumerate(by_call[call.site]):
            read = inputs if k == 0 else (part.input,)
            calls.append(
                Call(part.call, call.function, part.path, read, part.output_shape, call.floating)
            )
    uses: list[ModuleUse] = []
    for use in structure.graph.uses:
        for part in split.get(use.path, ()):
            uses.append(
                ModuleUse(part.path, at(part.input), part.call, part.input_shape, part.output_shape, 1)
            )  # fmt: skip
        uses.append(
            replace(
                use,
                input=None if use.input is None else at(use.input),
                output=None if use.output is None else at(use.output),
            )
        )
    layers: list[Layer] = []
    for layer in structure.layers:
        for part in split.get(layer.path, (layer,)):
            layers.append(
                replace(
                    part,
                    index=len(layers),
                    input=at(part.input),
                    call=at(part.call),
                    output=at(part.output),
                )
            )
    blocks = tuple(replace(b, input=at(b.input), output=at(b.output)) for b in structure.blocks)
    graph = CallGraph(
        tuple(calls), tuple(uses), at(structure.graph.output), structure.graph.output_shape
    )
    return Structure(graph, tuple(layers), blocks, structure.skipped)


def _split(layer: Layer, ranks: Ranks) -> tuple[Layer, ...]:
    """The factors as layers, first to last."""
    function = layer.call.rpartition(":")[2]
    paths = factors(layer.path, ranks)
    widths = (layer.in_channels, *ranks, layer.out_channels)
    last = len(paths) - 1
    # The stride and the kernel are the core's, which is the first factor where there are only two.
    core = 1 if last == 2 else 0
    parts: list[Layer] = []
    shape = layer.input_shape
    for k, path in enumerate(paths):
        after = layer.input_shape if k < core else layer.output_shape
        out = widths[k + 1]
        if layer.kind == "linear":
            after = (*layer.output_shape[:-1], out)
            places = prod(after[1:-1])
        else:
            after = (after[0], out, *after[2:])
            places = prod(after[2:])
        own = layer.kernel if last == 2 and k == core else 1
        # Square or not, the core's positions follow from the whole layer's weights.
        area = layer.weights // (layer.in_channels * layer.out_channels) if own > 1 else 1
        weights = area * widths[k] * out
        call = f"{path}:{function}"
        parts.append(
            replace(
                layer,
                path=path,
                input=layer.input if k == 0 else parts[-1].call,
                call=call,
                norm=layer.norm if k == last else None,
                output=(layer.output if layer.output != layer.call else call)
                if k == last
                else call,
                rectified=layer.rectified and k == last,
                input_shape=shape,
                output_shape=after,
                in_channels=widths[k],
                out_channels=out,
                kernel=own,
                stride=layer.stride if k == core else 1,
                macs=weights * places,
                weights=weights,
            )
        )
        shape = after
    return tuple(parts)
