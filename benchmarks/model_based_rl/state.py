"""What the policy of edits sees of every edit before it takes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.model_based_rl.edits import Edits
from search_spaces.decision import Decision, DecisionKind
from search_spaces.pricing import Pricer

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_KINDS = (DecisionKind.CHANNELS, DecisionKind.BLOCK, DecisionKind.PRECISION)
_AMOUNTS = (DecisionKind.CHANNELS, DecisionKind.RANK, DecisionKind.SPARSITY)
# A unit of cost is a twentieth of the bound: a decision moves a few hundredths of it.
_UNIT = 20.0
# Where features end that have no end of their own.
_END = 4.0
# Decisions over which the memory of the last edit fades.
_REACH = 2.0


@dataclass(frozen=True)
class References:
    """Policies that episodes begin at, with what every edit would do to them.

    Attributes:
        policies: int64 [n, decisions].
        over: float64 [n], see ``Edits.over``.
        effects: float64 [n, edits], what each edit adds to the model's mean.
        doubts: float64 [n, edits], what it adds to the deviation times its weight in the reward.
        prices: float64 [n, edits], what it adds to ``over``.
    """

    policies: Indices
    over: Floats
    effects: Floats
    doubts: Floats
    prices: Floats


class EditFeatures:
    """Numbers of every edit of a policy, and of stopping.

    An edit's own: what it does to the model's mean and deviation and to the cost, all on the reference; by how much
    it takes away or gives back; its decision's kind and largest change of cost. Of the policy as it is now: what it
    is over the bounds, and would be after the edit. Of neighbours: the difference in loss from the decisions of the
    same kind before and after (channels that align, changes of precision), and whether the edit is near the last one
    and in its direction. Of the episode: steps taken, the deviation's weight, and the bounds themselves.

    Args:
        pricer: whose prices they are of.
        edits: of the same pricer.
    """

    NAMES = (
        "effect", "price", "doubt", "shift", "over", "excess", "relief", "channels", "block", "precision",
        "step", "weight", "near", "along", "budget", "before", "after", "stop", "late_stop", "cost",
    )  # fmt: skip
    # Weights of a policy that has learned nothing yet: what the model likes and the bounds allow, about three edits.
    START: ClassVar[dict[str, float]] = {"effect": -1.0, "doubt": 1.0, "excess": -1.0, "stop": 2.0}

    def __init__(self, pricer: Pricer, edits: Edits) -> None:
        self._edits = edits
        decisions = pricer.space.decisions
        own = [_losses(d) for d in decisions]
        self._at = {name: k for k, name in enumerate(self.NAMES)}
        self._loss: Singles = np.zeros(
            (len(decisions), max(len(d.values) for d in decisions)), np.float32
        )
        for row, losses in zip(self._loss, own):
            row[: len(losses)] = losses
        self._losses: Singles = np.concatenate(own).astype(np.float32)
        before, after = np.arange(len(decisions)), np.arange(len(decisions))
        for kind in {d.kind for d in decisions}:
            at = pricer.space.of_kind(kind)
            before[list(at[1:])] = at[:-1]
            after[list(at[:-1])] = at[1:]
        self._before, self._after = before[edits.position], after[edits.position]
        far = np.abs(np.arange(len(decisions))[:, None] - edits.position)
        self._near: Singles = np.exp(-far / _REACH).astype(np.float32)
        kinds = [[d.kind is kind for kind in _KINDS] for d in decisions]
        self._kinds = np.array(kinds, dtype=np.float64)[edits.position]
        whole = np.array([[len(d.values) - 1 for d in decisions]])
        # Of a budget of a share s of the whole network, 1 / s - 1.
        self._budget = min(float(edits.over(whole)[0]), _END)
        self._starts = np.cumsum([0, *(len(d.values) for d in decisions[:-1])])

    @classmethod
    def start(cls) -> Floats:
        """float64 [features]."""
        return np.array([cls.START.get(name, 0.0) for name in cls.NAMES])

    def begin(self, references: References, weight: float) -> Singles:
        """What does not change in episodes: float32 [references, edits + 1, features], the rest of it 0.

        Args:
            weight: of the deviation in the reward.
        """
        count = len(self._edits)
        prices = references.prices * _UNIT
        cost = np.maximum.reduceat(np.abs(prices), self._starts, axis=1)[:, self._edits.position]
        x = np.zeros((len(prices), count + 1, len(self.NAMES)), dtype=np.float32)
        x[:, :count, self._at["effect"]] = _ended(references.effects)
        x[:, :count, self._at["price"]] = _ended(prices)
        x[:, :count, self._at["doubt"]] = _ended(references.doubts)
        x[:, :count, self._at["cost"]] = _ended(cost)
        first = self._at["channels"]
        x[:, :count, first : first + len(_KINDS)] = self._kinds
        x[:, :, self._at["weight"]] = weight
        x[:, :, self._at["budget"]] = self._budget
        x[:, count, self._at["stop"]] = 1.0
        return x

    def at(
        self,
        begun: Singles,
        references: References,
        of: Indices,
        policies: Indices,
        last: Indices,
        step: float,
    ) -> Singles:
        """float32 [n, edits + 1, features]; stopping is the last.

        Args:
            begun: what ``begin`` gave for these references.
            of: int64 [n], the reference of each policy.
            policies: int64 [n, decisions], as they are now.
            last: int64 [n], the edit each had last, -1 for none.
            step: share of the steps of an episode that were taken.
        """  # fmt: skip
        edits, count = self._edits, len(self._edits)
        over = (edits.over(policies)[:, None] * _UNIT).astype(np.float32)
        loss = self._loss[np.arange(policies.shape[1]), policies]
        shift = self._losses - loss[:, edits.position]
        # Of the last edit's decision, as it was and as it is.
        position = edits.position[last]
        near = self._near[position] * (last >= 0)[:, None]
        moved = self._losses[last] - self._loss[position, references.policies[of, position]]
        prices = (references.prices * _UNIT).astype(np.float32)[of]
        x: Singles = begun[of]
        x[:, :count, self._at["shift"]] = shift
        x[:, :count, self._at["excess"]] = np.clip(over + prices, 0.0, _END)
        x[:, :count, self._at["relief"]] = _ended(over) * x[:, :count, self._at["price"]]
        x[:, :count, self._at["near"]] = near
        x[:, :count, self._at["along"]] = np.sign(shift) * np.sign(moved)[:, None] * near
        x[:, :count, self._at["before"]] = np.abs(self._losses - loss[:, self._before])
        x[:, :count, self._at["after"]] = np.abs(self._losses - loss[:, self._after])
        x[:, count, self._at["excess"]] = np.clip(over[:, 0], 0.0, _END)
        x[:, count, self._at["late_stop"]] = step
        x[:, :, self._at["over"]] = _ended(over)
        x[:, :, self._at["step"]] = step
        return x


def _losses(decision: Decision) -> Floats:
    """What each value takes away: of amounts the share of the largest, of names their rank from the highest."""
    if decision.kind in _AMOUNTS:
        return np.asarray(1 - np.array(decision.values, dtype=np.float64) / decision.largest)
    n = len(decision.values)
    return np.linspace(1, 0, n) if n > 1 else np.zeros(1)


def _ended(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.clip(x, -_END, _END))
