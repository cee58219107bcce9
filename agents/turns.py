"""Members of a portfolio that propose in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from agents.proposals import Proposals
from agents.protocol import Agent, Proposal

Key = TypeVar("Key")


def ask_in_turns(
    n: int,
    proposals: Proposals,
    owners: dict[int, tuple[Key, int]],
    member: Callable[[Key], Agent],
    order: Callable[[int], Iterable[Key]],
) -> list[Proposal]:
    """At most so many proposals of members; fewer where none has anything more.

    Args:
        proposals: of the portfolio.
        owners: gets the member and its own id of each proposal, by the portfolio's id.
        member: by key.
        order: keys in the order in which members are asked for a proposal of an id; the later stand in for those that
            have nothing.
    """
    made: list[Proposal] = []
    while len(made) < n:
        for key in order(proposals.asked):
            asked = member(key).ask(1)
            if asked:
                proposal = proposals.add(asked[0].policy)
                owners[proposal.id] = (key, asked[0].id)
                made.append(proposal)
                break
        else:
            break
    return made
