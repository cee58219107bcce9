"""Pruning groups: layers whose channels must go together.

torch-pruning's dependency graph (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900)
proposes them; each is then tried on a copy of the network, because on some networks (slice-and-pad shortcuts) a
proposed group leaves an invalid network or a different function. A group becomes plain index data here, so that a
plan can be replayed without the dependency graph.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors.pruner import Channels, slice_channels


@dataclass(frozen=True)
class Member:
    """One module's part in a group.

    Attributes:
        path: module path.
        axis: ``out`` (rows of a weight), ``in`` (columns) or ``both`` (depthwise convolutions and norms).
        positions: int64 [channels, multiplicity]: which of the module's channels belong to each of the group's.
    """

    path: str
    axis: str
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class PruningGroup:
    """See the module's docstring.

    Attributes:
        root: path of the layer that makes the channels; the group's stable name.
        channels: number of channels.
        members: every module to slice.
    """

    root: str
    channels: int
    members: tuple[Member, ...]

    def kept(self, keep: NDArray[np.int64]) -> dict[tuple[str, str], NDArray[np.int64]]:
        """Removed positions per (module path, axis) when only the channels ``keep`` (int64 [k]) stay."""
        gone = np.setdiff1d(np.arange(self.channels), keep)
        removed: dict[tuple[str, str], NDArray[np.int64]] = {}
        for member in self.members:
            key = (member.path, member.axis)
            positions = member.positions[gone].reshape(-1)
            removed[key] = np.union1d(removed.get(key, np.array([], dtype=np.int64)), positions)
        return removed


def channels_of(
    network: nn.Module, choices: list[tuple[PruningGroup, NDArray[np.int64]]]
) -> Channels:
    """Kept positions per module and axis for several groups at once.

    Args:
        network: uncompressed.
        choices: groups with the channels each keeps, int64 [k], increasing.
    """
    removed: dict[tuple[str, str], NDArray[np.int64]] = {}
    for group, keep in choices:
        for key, positions in group.kept(keep).items():
            removed[key] = np.union1d(removed.get(key, np.array([], dtype=np.int64)), positions)
    channels: Channels = {}
    for (path, axis), gone in removed.items():
        if len(gone):
            total = _width(network.get_submodule(path), axis)
            kept = np.setdiff1d(np.arange(total), gone)
            channels.setdefault(path, {})[axis] = tuple(int(i) for i in kept)
    return channels


def _width(module: nn.Module, axis: str) -> int:
    if isinstance(module, nn.Conv2d):
        return module.in_channels if axis == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if axis == "in" else module.out_features
    if isinstance(module, nn.BatchNorm2d):
        return module.num_features
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    raise TypeError(f"cannot prune a {type(module).__name__}")


def find_groups(
    network: nn.Module, example: Tensor, exclude: tuple[str, ...] = ()
) -> tuple[list[PruningGroup], dict[str, str]]:
    """Groups that can be pruned correctly, and why the others are left out.

    Args:
        network: prepared, batch norms still in place or folded.
        example: float [batch, ...].
        exclude: module paths; a group that touches one (or something below it) is left out.

    Returns:
        Groups in the order torch-pruning meets their roots, and root path to reason for those left out.
    """
    import torch_pruning as tp

    left_out: dict[str, str] = {}
    work = copy.deepcopy(network)
    for parameter in work.parameters():
        parameter.requires_grad_(True)
    names = {id(module): path for path, module in work.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = tp.DependencyGraph().build_dependency(work, example_inputs=example)
            raw = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
        except Exception as error:
            return [], {
                "*": f"the dependency graph cannot be built: {type(error).__name__}: {_line(error)}"
            }
    groups: list[PruningGroup] = []
    with torch.no_grad():
        expected = network(example)
    for items in raw:
        root = names[id(items[0].dep.target.module)]
        try:
            group = _read(items, root, names)
            _refuse_excluded(group, exclude)
            _try(network, group, example, expected)
        except _LeftOut as reason:
            left_out[root] = str(reason)
        else:
            groups.append(group)
    return groups, left_out


class _LeftOut(Exception):
    pass


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _read(items: Any, root: str, names: dict[int, str]) -> PruningGroup:
    members: dict[tuple[str, str], list[tuple[int, int]]] = {}
    channels = len(items[0].idxs)
    for item in items:
        module = item.dep.target.module
        if type(module).__name__.startswith("_") and not isinstance(
            module, nn.Module | nn.Parameter
        ):
            continue
        if type(module).__name__.startswith("_"):
            continue  # torch-pruning's stand-ins for reshapes, splits and element-wise calls
        if isinstance(module, nn.Parameter):
            raise _LeftOut("a bare parameter shares its channels")
        path = names.get(id(module))
        if path is None:
            raise _LeftOut(f"a {type(module).__name__} in the group has no path")
        handler = item.dep.handler.__name__
        axis = "in" if "in_channels" in handler else "out"
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            if module.groups != module.in_channels or module.groups != module.out_channels:
                raise _LeftOut(f"{path} is a grouped convolution")
            axis = "both"
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            axis = "both"
        elif not isinstance(module, nn.Conv2d | nn.Linear):
            raise _LeftOut(f"{path} is a {type(module).__name__}, which cannot be pruned yet")
        roots = item.root_idxs if getattr(item, "root_idxs", None) is not None else item.idxs
        members.setdefault((path, axis), []).extend(
            zip([int(r) for r in roots], [int(i) for i in item.idxs])
        )
    made = []
    for (path, axis), pairs in members.items():
        rows: list[list[int]] = [[] for _ in range(channels)]
        for channel, position in sorted(set(pairs)):
            if channel >= channels:
                raise _LeftOut("the channel mapping of torch-pruning is inconsistent")
            rows[channel].append(position)
        if len({len(row) for row in rows}) != 1:
            raise _LeftOut(f"{path} does not hold every channel of the group alike")
        made.append(Member(path, axis, np.array(rows, dtype=np.int64)))
    if not any(m.axis == "in" for m in made):
        raise _LeftOut("its channels are the network's output")
    order = {path: k for k, path in enumerate(names.values())}
    makers = [m.path for m in made if m.axis == "out" and m.positions.shape == (channels, 1)]
    # torch-pruning names a group after any of its layers; the first that makes the channels is the stable name.
    return PruningGroup(min(makers, key=order.__getitem__, default=root), channels, tuple(made))


def _refuse_excluded(group: PruningGroup, exclude: tuple[str, ...]) -> None:
    for member in group.members:
        for path in exclude:
            if member.path == path or member.path.startswith(path + "."):
                raise _LeftOut(f"{path} is excluded")


def _try(network: nn.Module, group: PruningGroup, example: Tensor, expected: Tensor) -> None:
    """Prunes half the channels on a copy: it must run, keep its output's shape, and compute what the whole
    network computes once the consumers of the removed channels ignore them."""
    if group.channels < 2:
        raise _LeftOut("it has a single channel")
    keep = np.sort(
        np.random.default_rng(0).permutation(group.channels)[: (group.channels + 1) // 2]
    )
    pruned = copy.deepcopy(network)
    try:
        slice_channels(pruned, channels_of(network, [(group, keep)]))
        with torch.no_grad():
            out = pruned(example)
    except Exception as error:
        raise _LeftOut(
            f"the network fails after pruning it: {type(error).__name__}: {_line(error)}"
        ) from error
    if out.shape != expected.shape:
        raise _LeftOut(
            f"it changes the output's shape from {list(expected.shape)} to {list(out.shape)}"
        )
    if any(isinstance(network.get_submodule(m.path), nn.LayerNorm) for m in group.members):
        return  # normalising over fewer channels is another function by design
    masked = copy.deepcopy(network)
    for (path, axis), gone in group.kept(keep).items():
        if axis == "in":
            module = masked.get_submodule(path)
            assert isinstance(module, nn.Conv2d | nn.Linear)
            module.weight.data[:, torch.from_numpy(gone)] = 0
    with torch.no_grad():
        reference = masked(example)
    if not torch.allclose(
        out, reference, rtol=1e-3, atol=1e-4 * float(reference.abs().max()) + 1e-6
    ):
        raise _LeftOut("pruning it changes what the kept channels compute")
