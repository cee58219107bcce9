"""One value for every decision of a space: immutable, hashable, versioned JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import PolicyError

POLICY_VERSION = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """Values in the order of the space's decisions.

    Build one with ``SearchSpace.policy``, which checks values and brings it into its canonical form.

    Attributes:
        space: digest of the space it belongs to.
        values: one integer a decision: channels, bits, 0 or 1.
    """

    space: str
    values: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Twelve hex digits naming this policy; equal policies have equal digests."""
        text = json.dumps([POLICY_VERSION, self.space, list(self.values)], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self, ids: tuple[str, ...]) -> dict[str, Any]:
        """``ids`` are the decision ids of the space, so that the file can be read by a person."""
        return {
            "version": POLICY_VERSION,
            "space": self.space,
            "digest": self.digest,
            "values": dict(zip(ids, self.values, strict=True)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        """Raises PolicyError where the document is no policy of a version this one reads."""
        if data.get("version") != POLICY_VERSION:
            raise PolicyError(
                f"policy version {data.get('version')!r} is not supported; this Trimtab reads {POLICY_VERSION}"
            )
        try:
            return cls(str(data["space"]), tuple(int(v) for v in data["values"].values()))
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise PolicyError(f"not a policy document: {error}") from error
