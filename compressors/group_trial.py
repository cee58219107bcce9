"""Tries pruning groups on a copy of the network.

Pruned channels must leave what the whole network computes once the layers that read those channels ignore them:
same output shape, same numbers. Norms over channels compute something else on fewer of them by design; while a
group is tried they only divide by what they divided by on average. Constant parameters (fresh norms, layer scales
near zero) get random values first, or mistakes behind them would not show.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressors.call_graph import function_name, module_stack
from compressors.pruner import slice_channels
from compressors.pruning_group import PruningGroup, channels_of
from compressors.structure import inside

_NORMS = ("layer_norm", "group_norm", "rms_norm")
# Modules that divide by a mean over channels (Woo et al. 2023, "ConvNeXt V2", arXiv 2301.00808, section 3.2).
_RESPONSE_NORMS = ("GlobalResponseNorm", "GRN")
# Random subsets a set of groups is tried with, each with other numbers of channels.
_DRAWS = 2
_TOLERANCE = 1e-3


class _SteadyNorms(TorchFunctionMode):
    """Norms over channels that divide by what they divided by in the first pass: a number for each norm instead of
    its input's deviation, the mean itself in response norms."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: list[Tensor] = []
        self._calls = 0
        self._response_norms = 0  # that are running

    def watch(self, network: nn.Module) -> None:
        """Sees to it that response norms are known when they run."""
        for module in network.modules():
            if type(module).__name__ in _RESPONSE_NORMS:
                module.register_forward_pre_hook(lambda _m, _i: self._enter(1))
                module.register_forward_hook(lambda _m, _i, _o: self._enter(-1))

    def _enter(self, step: int) -> None:
        self._response_norms += step

    @property
    def used(self) -> bool:
        return bool(self._sizes)

    def restart(self) -> None:
        self._calls = self._response_norms = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        averages = name == "mean" and self._response_norms > 0
        if name not in _NORMS and not averages:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        if self._calls == len(self._sizes):
            first = func(*args, **kwargs) if averages else x.square().mean().sqrt() + 1e-6
            self._sizes.append(first)
        size = self._sizes[self._calls]
        self._calls += 1
        if averages:
            return size
        out = x / size
        for k, parameter in enumerate(("weight", "bias"), start=2):
            vector = args[k] if k < len(args) else kwargs.get(parameter)
            if isinstance(vector, Tensor):
                if name == "group_norm":
                    vector = vector.view(-1, *[1] * (x.dim() - 2))
                out = out * vector if parameter == "weight" else out + vector
        return out


@dataclass(frozen=True, slots=True)
class _Fault:
    """What went wrong, and in which module's own code, where that is known."""

    reason: str
    module: str = ""


class GroupTrial:
    """See the module's docstring.

    Args:
        network: prepared; it is not changed.
        example: float [batch, ...].
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self._network = copy.deepcopy(network)
        self._modules = dict(self._network.named_modules())
        self._example = example
        _vary(self._network)
        self._norms = _SteadyNorms()
        self._norms.watch(self._network)
        self._expected = self._run()

    def judge(self, groups: Sequence[PruningGroup]) -> dict[str, str]:
        """Roots of the groups that must be left out, with the reason."""
        reasons: dict[str, str] = {}
        sound = self._sift(list(groups), reasons)
        if reasons and self._fault(sound) is not None:
            # Right one by one and wrong together: keep those that agree with all before them.
            agreed: list[PruningGroup] = []
            for group in sound:
                fault = self._fault([*agreed, group])
                if fault is None:
                    agreed.append(group)
                else:
                    reasons[group.root] = f"together with other groups, {fault.reason}"
        return reasons

    def _sift(self, groups: list[PruningGroup], reasons: dict[str, str]) -> list[PruningGroup]:
        """Those without a fault, found by halving, or by taking out whom the fault points at."""
        fault = self._fault(groups) if groups else None
        if fault is None:
            return groups
        if len(groups) == 1:
            reasons[groups[0].root] = fault.reason
            return []
        first = self._suspects(groups, fault.module)
        if not 0 < len(first) < len(groups):
            first = groups[: len(groups) // 2]
        chosen = {g.root for g in first}
        rest = [g for g in groups if g.root not in chosen]
        return self._sift(first, reasons) + self._sift(rest, reasons)

    def _suspects(self, groups: list[PruningGroup], module: str) -> list[PruningGroup]:
        """Groups that change something inside the module that failed, and those of the same making elsewhere."""
        makings = {
            self._making(g)
            for g in groups
            if module and any(inside(m.path, (module,)) for m in (*g.members, *g.attached))
        }
        return [g for g in groups if self._making(g) in makings]

    def _making(self, group: PruningGroup) -> tuple[tuple[str, str], ...]:
        return tuple(
            (type(self._modules.get(m.path)).__name__, m.axis)
            for m in (*group.members, *group.attached)
        )

    def _fault(self, groups: Sequence[PruningGroup]) -> _Fault | None:
        """What is wrong when all the groups are pruned at once, each to a number of its own."""
        for draw in range(_DRAWS):
            rng = np.random.default_rng(draw)
            choices = []
            for group in groups:
                count = int(rng.integers((group.channels + 1) // 2, group.channels))
                choices.append((group, np.sort(rng.permutation(group.channels)[:count])))
            fault = self._compare(choices)
            if fault is not None:
                return fault
        return None

    def _compare(self, choices: list[tuple[PruningGroup, NDArray[np.int64]]]) -> _Fault | None:
        channels = channels_of(self._network, choices)
        touched = {path for group, keep in choices for path, _ in group.kept(keep)}
        with _restored(self._network, touched), module_stack(self._network) as stack:
            try:
                slice_channels(self._network, channels)
                out = self._run()
                if self._norms.used:
                    self._plain()  # as it will run; only its numbers cannot be compared
            except Exception as error:
                line = (str(error).splitlines() or [""])[0][:200]
                return _Fault(
                    f"the network fails after pruning it: {type(error).__name__}: {line}", stack[-1]
                )
        if out.shape != self._expected.shape:
            return _Fault(
                f"pruning it changes the output's shape from {list(self._expected.shape)} "
                f"to {list(out.shape)}"
            )
        with _restored(self._network, touched):
            for group, keep in choices:
                for (path, axis), gone in group.kept(keep).items():
                    if axis == "in":
                        _silence(self._network.get_submodule(path), gone)
            reference = self._run()
        allowed = _TOLERANCE * (reference - self._expected).abs().max()
        allowed = allowed + _TOLERANCE / 10 * reference.abs().max() + 1e-6
        if not bool(((out - reference).abs() <= allowed).all()):
            return _Fault("pruning it changes what the kept channels compute")
        return None

    def _run(self) -> Tensor:
        self._norms.restart()
        with self._norms:
            return self._plain()

    def _plain(self) -> Tensor:
        with torch.no_grad():
            out: Tensor = self._network(self._example)
        return out


def _silence(module: nn.Module, columns: NDArray[np.int64]) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    silent = weight.detach().clone()
    silent[:, torch.from_numpy(columns)] = 0
    module.weight = nn.Parameter(silent, requires_grad=False)


def _vary(network: nn.Module) -> None:
    """Random values for constant parameters and statistics, in place."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        if (
            tensor.is_floating_point()
            and tensor.numel() > 1
            and bool((tensor == tensor.flatten()[0]).all())
        ):
            fresh = torch.rand(tensor.shape, generator=generator) * 0.4 + 0.3
            tensor.data.copy_(fresh if tensor.flatten()[0] != 0 else 0.2 * (fresh - 0.5))


@contextmanager
def _restored(network: nn.Module, paths: set[str]) -> Iterator[None]:
    """Undoes what is done inside to the named modules and the owners of the named parameters."""
    modules = dict(network.named_modules())
    owners = [modules[p] if p in modules else modules[p.rpartition(".")[0]] for p in paths]
    saved = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in set(owners)]
    try:
        yield
    finally:
        for module, attributes, parameters, buffers in saved:
            module.__dict__.update(attributes)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
