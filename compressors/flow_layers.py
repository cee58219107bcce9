"""What convolutions, norms and products make of their operands' channels."""

from __future__ import annotations

from torch import Tensor

from compressors.channel_flow import (
    MEETS_FIXED,
    ChannelFlow,
    Flow,
    Invocation,
    follow_by_element,
)


def linear(flow: ChannelFlow, call: Invocation) -> None:
    x, weight, bias = call.arguments("input", "weight", "bias")
    last = x.dim() - 1
    flow.tie(flow.of(x).get(last), flow.of(weight).get(1))
    rest = {axis: numbers for axis, numbers in flow.of(x).items() if axis != last}
    _made(flow, call.out, rest, last, weight, bias)


def _made(
    flow: ChannelFlow, out: Tensor, rest: Flow, axis: int, weight: Tensor, bias: Tensor | None
) -> None:
    """The output's channels are the rows of the weight."""
    rows = flow.of(weight).get(0)
    if bias is not None:
        flow.tie(rows, flow.of(bias).get(0))
    flow.put(out, rest if rows is None else rest | {axis: rows})


def convolution(flow: ChannelFlow, call: Invocation) -> None:
    x, weight, bias, _, _, _, groups = call.arguments(
        "input", "weight", "bias", "stride", "padding", "dilation", "groups"
    )
    axis = x.dim() - (weight.dim() - 1)  # an image may come without a batch
    read, columns, rows = flow.of(x).get(axis), flow.of(weight).get(1), flow.of(weight).get(0)
    for a, numbers in flow.of(x).items():
        if a > axis:
            flow.classes.pin(numbers, "a convolution slides over its channels")
    if groups in (None, 1):
        flow.tie(read, columns)
    elif rows is not None:
        if columns is not None:
            flow.classes.pin(columns, "every group of a convolution reads it")
        # A group of the convolution goes as a whole: its inputs with its outputs.
        table = rows.view(groups, -1)
        flow.classes.unite(table[:, :1], table[:, 1:])
        if read is None:
            flow.classes.pin(rows, MEETS_FIXED)
        else:
            flow.classes.unite(table[:, :1], read.view(groups, -1), MEETS_FIXED)
    rest = {a: numbers for a, numbers in flow.of(x).items() if a < axis}
    _made(flow, call.out, rest, axis, weight, bias)


def batch_norm(flow: ChannelFlow, call: Invocation) -> None:
    x, *vectors = call.arguments("input", "running_mean", "running_var", "weight", "bias")
    _with_vectors(flow, x, vectors, call.out)


def group_norm(flow: ChannelFlow, call: Invocation) -> None:
    x, groups, weight, bias = call.arguments("input", "num_groups", "weight", "bias")
    numbers = flow.of(x).get(1)
    if numbers is not None and groups > 1:
        table = numbers.view(groups, -1)
        flow.classes.unite(table[:1], table[1:])  # every group of the norm loses alike
    _with_vectors(flow, x, [weight, bias], call.out)


def prelu(flow: ChannelFlow, call: Invocation) -> None:
    x, weight = call.arguments("input", "weight")
    _with_vectors(flow, x, [weight] if weight.numel() > 1 else [], call.out)


def _with_vectors(flow: ChannelFlow, x: Tensor, vectors: list[Tensor | None], out: Tensor) -> None:
    """Parameters [channels] that go with axis 1."""
    for vector in vectors:
        if vector is not None:
            flow.tie(flow.of(x).get(1), flow.of(vector).get(0))
    flow.put(out, dict(flow.of(x)))


def layer_norm(flow: ChannelFlow, call: Invocation) -> None:
    x, shape, weight, _ = call.arguments("input", "normalized_shape", "weight", "bias")
    numbers = flow.of(x).get(x.dim() - 1)
    if weight is None and numbers is not None and hasattr(flow.running, "normalized_shape"):
        # No parameter shows that the module's own shape has to follow.
        flow.tie(numbers, flow.held("norm", len(numbers)))
    if len(shape) > 1:
        flow.pin(x, "a norm over several axes reads its channels")
    follow_by_element(flow, call)


def matrix_product(flow: ChannelFlow, call: Invocation) -> None:
    rows, columns = call.operands
    if min(rows.dim(), columns.dim()) < 2:
        for operand in (rows, columns):
            flow.pin(operand, "a product with a vector is not followed")
        return
    flow.tie(flow.of(rows).get(rows.dim() - 1), flow.of(columns).get(columns.dim() - 2))
    _product(flow, call.out, rows, columns)


def attention(flow: ChannelFlow, call: Invocation) -> None:
    query, key, value, mask = call.arguments("query", "key", "value", "attn_mask")
    flow.tie(flow.of(query).get(query.dim() - 1), flow.of(key).get(key.dim() - 1))
    flow.tie(flow.of(key).get(key.dim() - 2), flow.of(value).get(value.dim() - 2))
    _product(flow, call.out, query, value, *[t for t in (key, mask) if isinstance(t, Tensor)])


def _product(
    flow: ChannelFlow, out: Tensor, rows: Tensor, columns: Tensor, *others: Tensor
) -> None:
    """A product [..., i, j] of operands [..., i, k] and [..., k, j]."""
    dims = out.dim()
    found = flow.broadcast([rows, columns, *others], dims, leave=2)
    made = {
        dims - 2: flow.of(rows).get(rows.dim() - 2),
        dims - 1: flow.of(columns).get(columns.dim() - 1),
    }
    flow.put(out, found | {axis: numbers for axis, numbers in made.items() if numbers is not None})


def einsum(flow: ChannelFlow, call: Invocation) -> None:
    equation = str(call.args[0]).replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow or "." in equation or len(terms) != len(call.operands):
        for operand in call.operands:
            flow.pin(operand, "einsum is not followed")
        return
    found: Flow = {}
    for letter in dict.fromkeys("".join(terms)):
        pairs = zip(call.operands, terms)
        known = flow.tie_all(
            [flow.of(t).get(term.index(letter)) for t, term in pairs if letter in term]
        )
        if known is not None and letter in output:
            found[output.index(letter)] = known
    flow.put(call.out, found)
