"""Ranks that all targets of a job agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from compressors.structure import Structure
from search_spaces.ranks import OfferedRanks, RankOffer


@dataclass(frozen=True)
class AgreedRanks:
    """Offers a layer the ranks that every target with something to say offers it; satisfies ``RankOffer``.

    A target whose budget bounds neither time, energy nor size names no layer at all, and keeps none whole.

    Attributes:
        offers: by the target's name.
    """

    offers: Mapping[str, RankOffer]

    def __call__(self, network: nn.Module, structure: Structure, example: Tensor) -> OfferedRanks:
        """What they agree on, and why other layers with a low-rank form are left whole."""
        told = {name: offer(network, structure, example) for name, offer in self.offers.items()}
        found = {name: offer for name, offer in told.items() if offer.values or offer.withheld}
        if len(found) < 2:
            return next(iter(found.values()), OfferedRanks())
        reasons: dict[str, str] = {}
        for name, offered in found.items():
            for path, reason in offered.withheld.items():
                reasons.setdefault(path, f"{name}: {reason}")
        paths = next(iter(found.values())).values
        values: dict[str, tuple[int, ...]] = {}
        for path, first in paths.items():
            agreed = set(first).intersection(*(o.values.get(path, ()) for o in found.values()))
            # The full rank alone is no choice.
            if len(agreed) > 1:
                values[path] = tuple(sorted(agreed))
            else:
                reasons.setdefault(path, f"no rank suits all of {', '.join(found)}")
        return OfferedRanks(values, {p: r for p, r in reasons.items() if p not in values})
