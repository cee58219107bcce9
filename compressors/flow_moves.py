"""What calls that only move, join or sum up values make of their operands' channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.attention import head_count, head_names
from compressors.channel_classes import FIXED
from compressors.channel_flow import ChannelFlow, Flow, Invocation, spread, tensors
from compressors.held_sizes import HeldSize


def move(flow: ChannelFlow, call: Invocation) -> None:
    """Reshapes, slices, splits: the call is made again on the numbers."""
    (moved, *_), results = call.operands, tensors(call.out)
    flows: list[Flow] = [{} for _ in results]
    for axis, numbers in flow.of(moved).items():
        placed = [_place(flow, piece) for piece in _repeated(call, moved, axis, numbers)]
        _even(flow, [found for _, found in placed])
        for result, (where, found) in zip(flows, placed):
            if where is None:
                flow.classes.pin(found, "one of its channels is read alone")
            elif where in result:
                for both in (found, result.pop(where)):
                    flow.classes.pin(both, "two kinds of channels are merged")
            else:
                result[where] = found
        _held_sizes(flow, call, numbers, placed)
    if call.name == "expand":
        _expanded_heads(flow, moved, results[0], flows[0])
    for tensor, carried in zip(results, flows):
        flow.put(tensor, carried)


def _repeated(call: Invocation, moved: Tensor, axis: int, numbers: Tensor) -> list[Tensor]:
    table = spread(numbers, axis, moved.shape).contiguous()
    args = tuple(table if a is moved else a for a in call.args)
    kwargs = {name: table if a is moved else a for name, a in call.kwargs.items()}
    return tensors(call.function(*args, **kwargs))


def _place(flow: ChannelFlow, table: Tensor) -> tuple[int | None, Tensor]:
    """The axis along which numbers vary. Where a reshape spread them over several, all but one are tied."""
    varying = []
    for axis in range(table.dim()):
        first = table.narrow(axis, 0, 1)
        if table.shape[axis] > 1 and bool((table != first).any()):
            varying.append(axis)
        else:
            table = first
    if not varying:
        return None, table.reshape(-1)
    free = varying[-1]
    heads = _heads_axis(flow, table, varying) if len(varying) > 1 else None
    if heads is not None:
        free = heads
    lines = table.movedim(free, 0).reshape(table.shape[free], -1)
    flow.classes.unite(lines[:, :1], lines[:, 1:], "its channels are split unevenly")
    numbers = lines[:, 0].contiguous()
    if heads is not None:
        flow.classes.unite(flow.held("heads", len(numbers)), numbers)
    return free, numbers


def _heads_axis(flow: ChannelFlow, table: Tensor, varying: list[int]) -> int | None:
    """The axis that counts attention heads, if the running module has as many."""
    count = head_count(flow.running)
    found = [a for a in varying if table.shape[a] == count]
    # A size that equals the number of heads by chance: qkv comes before the heads, a head's width after.
    inner = [a for a in found if a != varying[-1]]
    chosen = inner or found
    return chosen[-1] if chosen else None


def _expanded_heads(flow: ChannelFlow, moved: Tensor, result: Tensor, found: Flow) -> None:
    """A mask that an attention module repeats for each of its heads."""
    count, added = head_count(flow.running), result.dim() - moved.dim()
    grown = [
        a
        for a in range(added, result.dim())
        if result.shape[a] == count and moved.shape[a - added] == 1
    ]
    if grown and count is not None and count > 1:
        found[grown[-1]] = flow.held("heads", count)


def _even(flow: ChannelFlow, pieces: list[Tensor]) -> None:
    """Ties pieces of one tensor that were split evenly: they have to stay even."""
    first = pieces[0]
    for piece in pieces[1:]:
        if len(piece) == len(first) and not torch.equal(piece, first):
            flow.classes.unite(first, piece, "its channels are split evenly")


def _held_sizes(
    flow: ChannelFlow, call: Invocation, numbers: Tensor, placed: list[tuple[int | None, Tensor]]
) -> None:
    """Sizes that the running module holds as plain numbers, has split or reshaped by, and has to change."""
    held = {name: value for name, value in vars(flow.running).items() if name[0] != "_"}
    where, first = placed[0]
    if (
        where is not None
        and call.name == "split"
        and isinstance(call.arguments("x", "size")[1], int)
    ):
        for name, value in held.items():
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            for split in (first, numbers):
                if value == len(split):
                    flow.tie(flow.held(f".{name}", value), split)
    if where is not None and call.name in ("view", "reshape"):
        sizes = _asked(call)
        derived = head_names(flow.running)
        for name, value in held.items():
            # An entry of -1 follows by itself.
            if (
                isinstance(value, tuple)
                and value in (*call.args[1:], call.args[1:])
                and value[where] == len(first)
            ):
                flow.tie(flow.held(f".{name}.{where}", len(first)), first)
            elif (
                isinstance(value, HeldSize)
                and name not in derived
                and where < len(sizes)
                and sizes[where] is value
            ):
                flow.tie(flow.held(f".{name}", len(first)), first)


def _asked(call: Invocation) -> Sequence[Any]:
    """Sizes that a reshape was given; none where it was given a type."""
    given = call.args[1:] or tuple(call.kwargs.values())
    first = given[0] if given else ()
    return first if isinstance(first, tuple | list) else given


def reduction(flow: ChannelFlow, call: Invocation) -> None:
    """Sums, means, norms: the axes reduced are gone."""
    (operand, *_) = call.operands
    given: Any = call.kwargs.get("dim", call.kwargs.get("axis"))
    if given is None:
        sizes = [a for a in call.args[1:] if isinstance(a, int | tuple | list)]
        sizes = [a for a in sizes if not isinstance(a, bool)]
        given = sizes[-1] if sizes else tuple(range(operand.dim()))
    dims = {d % operand.dim() for d in ([given] if isinstance(given, int) else given)}
    for result in tensors(call.out):
        kept = result.dim() == operand.dim()
        found = {a: numbers for a, numbers in flow.of(operand).items() if a not in dims}
        flow.put(
            result,
            {a if kept else a - sum(d < a for d in dims): n for a, n in found.items()},
        )


def concatenation(flow: ChannelFlow, call: Invocation) -> None:
    pieces = list(call.args[0] if call.args else call.kwargs["tensors"])
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", call.kwargs.get("axis", 0))
    flow.put(call.out, _join(flow, pieces, [flow.of(p) for p in pieces], dim % call.out.dim()))


def stack(flow: ChannelFlow, call: Invocation) -> None:
    pieces = list(call.args[0] if call.args else call.kwargs["tensors"])
    dim = (call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)) % call.out.dim()
    flows = [{a + (a >= dim): n for a, n in flow.of(p).items()} for p in pieces]
    flow.put(call.out, _join(flow, [p.unsqueeze(dim) for p in pieces], flows, dim))


def _join(flow: ChannelFlow, pieces: list[Tensor], flows: list[Flow], dim: int) -> Flow:
    found: Flow = {}
    for axis in range(pieces[0].dim()):
        axes = [f.get(axis) for f in flows]
        if axis != dim:
            known = flow.tie_all(axes)
            if known is not None:
                found[axis] = known
        elif any(numbers is not None for numbers in axes):
            whole = [torch.full((p.shape[dim],), FIXED) for p in pieces]
            found[axis] = torch.cat([w if n is None else n for w, n in zip(whole, axes)])
    return found


def padding(flow: ChannelFlow, call: Invocation) -> None:
    x, widths = call.arguments("input", "pad")
    found: Flow = {}
    for axis, numbers in flow.of(x).items():
        k = 2 * (x.dim() - 1 - axis)
        low, high = (widths[k], widths[k + 1]) if k + 1 < len(widths) else (0, 0)
        if min(low, high) < 0:
            flow.classes.pin(numbers, "its channels are cropped")
        else:
            found[axis] = F.pad(numbers, (low, high), value=FIXED)
    flow.put(call.out, found)
