"""The ordered decisions of one network on one target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.decision import FLOAT_BITS, Decision, DecisionKind
from search_spaces.errors import PolicyError, SpaceError
from search_spaces.policy import Policy


@dataclass(frozen=True)
class SearchSpace:
    """Decisions in execution order, a block's own decision before those within it.

    Attributes:
        decisions: see ``Decision``.
    """

    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        if not self.decisions:
            raise SpaceError(
                "the network offers no decision in this scope: nothing can be pruned, dropped or quantized. "
                "Use another scope, or exclude fewer modules"
            )
        positions = {d.id: i for i, d in enumerate(self.decisions)}
        if len(positions) != len(self.decisions):
            raise SpaceError("decision ids must be distinct")
        for i, d in enumerate(self.decisions):
            if d.block is not None and positions.get(d.block, i) >= i:
                raise SpaceError(f"decision {d.id}: its block {d.block} must come before it")

    def __len__(self) -> int:
        return len(self.decisions)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(d.id for d in self.decisions)

    @cached_property
    def position(self) -> Mapping[str, int]:
        return {id_: i for i, id_ in enumerate(self.ids)}

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits over the ids, kinds, values and blocks."""
        rows = [[d.id, d.kind.value, list(d.values), d.block] for d in self.decisions]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @cached_property
    def block_of(self) -> tuple[int | None, ...]:
        """Position of each decision's block decision."""
        return tuple(None if d.block is None else self.position[d.block] for d in self.decisions)

    @cached_property
    def float_of(self) -> tuple[int | None, ...]:
        """Position of the earlier decision on activation bits that can have each decision's layer run in float, where
        the decision, on weight bits, is inactive."""
        found: list[int | None] = []
        for i, decision in enumerate(self.decisions):
            at = self.position.get(f"{decision.module}:activation_bits", i)
            weights = decision.kind is DecisionKind.WEIGHT_BITS
            floats = weights and at < i and self.decisions[at].largest == FLOAT_BITS
            found.append(at if floats else None)
        return tuple(found)

    @property
    def size(self) -> float:
        """Number of value combinations (inactive ones counted)."""
        return float(np.prod([float(len(d.values)) for d in self.decisions]))

    @cached_property
    def _precision_of(self) -> tuple[tuple[int, int], ...]:
        """Positions of decisions on weight bits, each with that of the same layer's precision."""
        bits = self.of_kind(DecisionKind.WEIGHT_BITS)
        names = {f"{self.decisions[i].module}:precision": i for i in bits}
        return tuple((self.position[name], i) for name, i in names.items() if name in self.position)

    def policy(self, values: Sequence[int] | Mapping[str, int]) -> Policy:
        """A canonical policy: decisions inside a dropped block take their largest value, and so do the weight bits of a
        layer whose activation bits are float's; a layer that runs in integers has no more weight bits than they have.

        Args:
            values: one a decision in order, or by id (missing ids take the uncompressed value).

        Raises:
            PolicyError: a value is not allowed, an id unknown, or the length is off.
        """
        if isinstance(values, Mapping):
            unknown = sorted(set(values) - set(self.ids))
            if unknown:
                raise PolicyError(f"no such decision in this space: {', '.join(unknown)}")
            values = [int(values.get(d.id, d.largest)) for d in self.decisions]
        if len(values) != len(self.decisions):
            raise PolicyError(f"{len(values)} values for {len(self.decisions)} decisions")
        result = [int(v) for v in values]
        for i, (d, v) in enumerate(zip(self.decisions, result)):
            if v not in d.values:
                raise PolicyError(f"decision {d.id}: {v} is not one of {list(d.values)}")
            block = self.block_of[i]
            if block is not None and result[block] == 0:
                result[i] = d.largest
            home = self.float_of[i]
            if home is not None and result[home] == FLOAT_BITS:
                result[i] = d.largest
        for precision, i in self._precision_of:
            if result[precision] < result[i] and result[precision] in self.decisions[i].values:
                result[i] = result[precision]
        return Policy(self.digest, tuple(result))

    def uncompressed(self) -> Policy:
        return self.policy([d.largest for d in self.decisions])

    def check(self, policy: Policy) -> None:
        """Raises PolicyError unless the policy is a canonical one of this space."""
        if policy.space != self.digest:
            raise PolicyError(
                f"policy of space {policy.space} used with space {self.digest}: the network, the target's "
                "precisions, the scope or the exclusions differ from when it was made"
            )
        if self.policy(policy.values) != policy:
            raise PolicyError("policy is not in canonical form")

    def indices(self, policy: Policy) -> NDArray[np.int64]:
        """int64 [decisions]: each value's place among its decision's values."""
        return np.array(
            [d.values.index(v) for d, v in zip(self.decisions, policy.values)], dtype=np.int64
        )

    def from_indices(self, indices: Sequence[int] | NDArray[np.int64]) -> Policy:
        return self.policy([d.values[int(i)] for d, i in zip(self.decisions, indices)])

    def as_dict(self, policy: Policy) -> dict[str, int]:
        return dict(zip(self.ids, policy.values, strict=True))

    def of_kind(self, kind: DecisionKind) -> tuple[int, ...]:
        return tuple(i for i, d in enumerate(self.decisions) if d.kind is kind)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "digest": self.digest,
            "decisions": [d.to_json() for d in self.decisions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSpace:
        return cls(tuple(Decision.from_json(d) for d in data["decisions"]))
