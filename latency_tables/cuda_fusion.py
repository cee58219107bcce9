"""Which nodes of an exported file PyTorch executes together.

A convolution takes the addition and the activation behind it along (cuDNN has one kernel for all three), a product
with a constant its bias; the chains of nodes that a GELU or a SiLU is exported as are one call each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One operator to run.

    Attributes:
        op_type: a key of ``cuda_operators.OPERATORS``.
        attributes: settings; sequences are tuples.
        inputs: names of tensors, "" for one left out.
        outputs: likewise.
        name: the exported node's.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


class _Chains:
    """Who makes and who reads each tensor."""

    def __init__(self, steps: Sequence[Step], outputs: Sequence[str]) -> None:
        self.kept = set(outputs)
        self.maker = {name: i for i, step in enumerate(steps) for name in step.outputs if name}
        self.readers: dict[str, list[int]] = {}
        for i, step in enumerate(steps):
            for name in step.inputs:
                self.readers.setdefault(name, []).append(i)

    def only_reader(self, name: str) -> int | None:
        """The step that alone reads a tensor, None when others need it too."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.kept else None


def fuse(steps: Sequence[Step], constants: dict[str, Tensor], outputs: Sequence[str]) -> list[Step]:
    """The steps as PyTorch runs them; transposed weights are added to ``constants``."""
    found = [_as_linear(step, constants) for step in steps]
    for fusion in (_bias, _gelu, _silu, _convolution):
        found = fusion(found, constants, outputs)
    return found


def _scalar(constants: Mapping[str, Tensor], name: str) -> float | None:
    tensor = constants.get(name)
    return float(tensor) if tensor is not None and tensor.numel() == 1 else None


def _rewritten(steps: Sequence[Step], gone: set[int], new: Mapping[int, Step]) -> list[Step]:
    return [new.get(i, step) for i, step in enumerate(steps) if i in new or i not in gone]


def _as_linear(step: Step, constants: dict[str, Tensor]) -> Step:
    """A product with a constant matrix as ``Gemm`` with the weight [out, in], as PyTorch holds it."""
    if step.op_type not in ("Gemm", "MatMul") or len(step.inputs) < 2:
        return step
    weight, settings = constants.get(step.inputs[1]), step.attributes
    if weight is None or weight.dim() != 2 or settings.get("transA", 0):
        return step
    if settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
        return step
    if settings.get("transB", 0):
        return replace(step, attributes={"transB": 1})
    name = f"{step.inputs[1]} (transposed)"
    constants[name] = weight.t().contiguous()
    inputs = (step.inputs[0], name, *step.inputs[2:])
    return replace(step, op_type="Gemm", inputs=inputs, attributes={"transB": 1})


def _bias(steps: list[Step], constants: dict[str, Tensor], outputs: Sequence[str]) -> list[Step]:
    chains, gone, new = _Chains(steps, outputs), set[int](), dict[int, Step]()
    for i, step in enumerate(steps):
        reader = chains.only_reader(step.outputs[0]) if step.op_type == "Gemm" else None
        if reader is None or len(step.inputs) > 2 or steps[reader].op_type != "Add":
            continue
        (bias,) = [name for name in steps[reader].inputs if name != step.outputs[0]] or ("",)
        if bias in constants and constants[bias].dim() == 1:
            gone.add(i)
            new[reader] = replace(step, inputs=(*step.inputs, bias), outputs=steps[reader].outputs)
    return _rewritten(steps, gone, new)


def _gelu(steps: list[Step], constants: dict[str, Tensor], outputs: Sequence[str]) -> list[Step]:
    """``0.5 * x * (1 + erf(x / sqrt 2))``."""
    chains, gone, new = _Chains(steps, outputs), set[int](), dict[int, Step]()
    for i, erf in enumerate(steps):
        divided = chains.maker.get(erf.inputs[0]) if erf.op_type == "Erf" else None
        if divided is None or steps[divided].op_type != "Div":
            continue
        x, chain = steps[divided].inputs[0], [divided, i]
        if abs((_scalar(constants, steps[divided].inputs[1]) or 0.0) - 2**0.5) > 1e-3:
            continue
        for op_type, other in (("Add", 1.0), ("Mul", x), ("Mul", 0.5)):
            reader = chains.only_reader(steps[chain[-1]].outputs[0])
            if reader is None or steps[reader].op_type != op_type:
                break
            others = [n for n in steps[reader].inputs if n != steps[chain[-1]].outputs[0]]
            named = others[:1] == [x] if isinstance(other, str) else False
            if not named and _scalar(constants, others[0]) != other:
                break
            chain.append(reader)
        if len(chain) == 5:
            gone |= set(chain)
            last = steps[chain[-1]]
            new[chain[-1]] = Step("Gelu", (x,), last.outputs, {}, last.name)
    return _rewritten(steps, gone, new)


def _silu(steps: list[Step], _: dict[str, Tensor], outputs: Sequence[str]) -> list[Step]:
    """``x * sigmoid(x)``."""
    chains, gone, new = _Chains(steps, outputs), set[int](), dict[int, Step]()
    for i, step in enumerate(steps):
        reader = chains.only_reader(step.outputs[0]) if step.op_type == "Sigmoid" else None
        if reader is None or steps[reader].op_type != "Mul":
            continue
        if set(steps[reader].inputs) == {step.inputs[0], step.outputs[0]}:
            gone.add(i)
            new[reader] = Step("Silu", step.inputs, steps[reader].outputs, {}, steps[reader].name)
    return _rewritten(steps, gone, new)


def _convolution(
    steps: list[Step], constants: dict[str, Tensor], outputs: Sequence[str]
) -> list[Step]:
    """Convolution, addition and ReLU, or convolution and ReLU or clip."""
    chains, gone, new = _Chains(steps, outputs), set[int](), dict[int, Step]()
    for i in reversed(range(len(steps))):
        conv = steps[i]
        reader = chains.only_reader(conv.outputs[0]) if conv.op_type == "Conv" else None
        if reader is None or reader in gone or reader in new:
            continue
        added, before = "", [i]
        if steps[reader].op_type == "Add":
            others = [name for name in steps[reader].inputs if name != conv.outputs[0]]
            last = chains.only_reader(steps[reader].outputs[0])
            if not others or others[0] in constants or last is None:
                continue
            if steps[last].op_type != "Relu" or last in new:
                continue
            added, before, reader = others[0], [i, reader], last
        activation = _activation(steps[reader], constants)
        if not activation:
            continue
        bias = conv.inputs[2] if len(conv.inputs) > 2 else ""
        gone |= {*before, reader}
        new[reader] = Step(
            "FusedConv",
            (*conv.inputs[:2], *((bias, added) if added else (bias,) if bias else ())),
            steps[reader].outputs,
            {**conv.attributes, **activation},
            conv.name,
        )
    return _rewritten(steps, gone, new)


def _activation(step: Step, constants: Mapping[str, Tensor]) -> dict[str, Any]:
    if step.op_type == "Relu":
        return {"activation": "Relu"}
    if step.op_type != "Clip" or len(step.inputs) < 3:
        return {}
    low, high = (_scalar(constants, name) for name in step.inputs[1:3])
    if low is None or high is None:
        return {}
    return {"activation": "Clip", "activation_params": (low, high)}
