"""What an actor sees of a decision before it acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.decision import DecisionKind
from search_spaces.pricing import Pricer

PAPER = ("index", "n", "c", "h", "w", "stride", "k", "flops", "reduced", "rest", "previous")
_KINDS = (DecisionKind.CHANNELS, DecisionKind.BLOCK, DecisionKind.PRECISION)


class Features(Protocol):
    """What a policy network is shown before each decision.

    Attributes:
        names: of the numbers, in order; their count is the length of a state.
    """

    names: tuple[str, ...]

    def at(self, position: int, prefix: Sequence[int], previous: float) -> list[float]:
        """The state before the decision at ``position``; see ``StateFeatures.at``."""

    def along(
        self, positions: Sequence[int], indices: Sequence[int], previous: Sequence[float]
    ) -> NDArray[np.float64]:
        """States float64 [positions, features] before several decisions of one policy.

        Args:
            indices: value indices of the whole policy.
            previous: as ``at`` takes it, one a position.
        """


def scaled_columns(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each column brought to 0..1 over its rows; a constant one is 0."""
    low, high = columns.min(axis=0), columns.max(axis=0)
    scaled: NDArray[np.float64] = (columns - low) / np.where(high > low, high - low, 1.0)
    return scaled


class StateFeatures:
    """The 11 features of He et al. 2018 (arXiv 1802.03494), eq. 1, scaled to 0..1, and a few more.

    ``(t, n, c, h, w, stride, k, FLOPs[t], reduced, rest, a_{t-1})``: index of the layer, channels
    out and in, input height and width, stride, kernel, multiply-accumulates; what earlier decisions
    took off the network's cost; what later ones are about; the previous executed action (1 before
    the first). Scaled by smallest and largest over the decisions, as the released code does (which
    has no h, w and FLOPs, and counts weights at its first step: not copied).

    Deviations, none of them with ``published``: "FLOPs" in ``reduced`` and ``rest`` become the
    quantity that the budget bounds first. Its prices need not be sums over layers, so ``rest`` is
    what the following decisions can still take off. Decisions have a kind (one-hot over channels,
    block, precision, and whatever else the space decides) and a position of their own, because
    several decisions share a layer, and say whether they lie in a block. (Whether that block is
    dropped need not be said: nothing is decided inside a dropped one.)

    Attributes:
        names: of the features, in order.
    """

    def __init__(self, pricer: Pricer, published: bool = False) -> None:
        space = pricer.space
        layers = [d.features for d in space.decisions]
        shape = [
            (f.index, f.out_channels, f.in_channels, f.height, f.width, f.stride, f.kernel, f.macs)
            for f in layers
        ]
        self._static = scaled_columns(np.array(shape, dtype=np.float64))
        self._static_rows = self._static.tolist()
        self._published = published
        self._model = pricer.models[self._quantity(pricer)]
        self._largest = np.array([len(d.values) - 1 for d in space.decisions], dtype=np.int64)
        self._whole = float(self._model.price(self._largest[None])[0])
        macs = np.array([f.macs for f in layers], dtype=np.float64)
        after = macs.sum() - np.cumsum(macs)
        self._rest_macs = after / max(macs.sum(), 1.0)
        present = {d.kind for d in space.decisions}
        kinds = (*_KINDS, *(k for k in DecisionKind if k in present and k not in _KINDS))
        self._extra: list[list[float]] = [
            []
            if published
            else [
                *(float(d.kind is kind) for kind in kinds),
                float(d.block is not None),
                i / max(len(space) - 1, 1),
            ]
            for i, d in enumerate(space.decisions)
        ]
        extra = (*(kind.value for kind in kinds), "in_block", "position")
        self.names: tuple[str, ...] = PAPER if published else PAPER + extra

    def _quantity(self, pricer: Pricer) -> str:
        if self._published and "macs" in pricer.models:
            return "macs"
        candidates = (*pricer.limits, "macs", *pricer.models)
        return next(quantity for quantity in candidates if quantity in pricer.models)

    def at(self, position: int, prefix: Sequence[int], previous: float) -> list[float]:
        """The state before the decision at ``position``.

        Args:
            prefix: executed value indices of the decisions before it.
            previous: action that stands for the last executed active decision, 1 where there is
                none.
        """
        rows = np.stack([self._largest, np.zeros_like(self._largest)])
        rows[:, :position] = prefix
        # "Following" leaves the decision itself out: in the second row it still takes its largest
        # value.
        rows[1, position] = self._largest[position]
        now, least = self._model.price(rows)
        reduced, rest = self._dynamic(now, least, self._rest_macs[position])
        dynamic = [min(max(float(v), 0.0), 1.0) for v in (reduced, rest)]
        return [*self._static_rows[position], *dynamic, previous, *self._extra[position]]

    def along(
        self, positions: Sequence[int], indices: Sequence[int], previous: Sequence[float]
    ) -> NDArray[np.float64]:
        """See ``Features.along``."""
        where = np.array(positions, dtype=np.int64)
        count = np.arange(len(self._largest))
        before = count < where[:, None]
        now = np.where(before, indices, self._largest)
        least = np.where(before, indices, np.where(count == where[:, None], self._largest, 0))
        prices = self._model.price(np.concatenate([now, least]))
        dynamic = self._dynamic(prices[: len(where)], prices[len(where) :], self._rest_macs[where])
        return np.column_stack(
            [
                self._static[where],
                *(np.clip(share, 0.0, 1.0) for share in dynamic),
                np.array(previous, dtype=np.float64),
                np.array(self._extra)[where],
            ]
        )

    def _dynamic(self, now: Any, least: Any, rest_macs: Any) -> tuple[Any, Any]:
        """``reduced`` and ``rest``, of one state or of several."""
        rest = rest_macs if self._published else (now - least) / self._whole
        return 1 - now / self._whole, rest
