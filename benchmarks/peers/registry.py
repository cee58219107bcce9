"""The peers by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Peer:
    """A peer's search.

    Attributes:
        name: of its module here, and what its answers' folders begin with.
        environment: its file of requirements, and the folder of its environment.
        arguments: of its module on a network, where they differ from the defaults.
    """

    name: str
    environment: str
    arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return f"benchmarks.peers.{self.name}"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch_pruning", "torch_pruning", {"mobilenet_v2": ("--whole",)}),
        Peer("modelopt_fastnas", "modelopt"),
        Peer("modelopt_bits", "modelopt"),
        Peer("nncf_accuracy", "nncf"),
        Peer("mct_bits", "mct"),
        Peer("aimet_amp", "aimet"),
    )
}


def peer_of(folder: str) -> str:
    """The peer that an answer's folder is of.

    Raises:
        ValueError: none.
    """
    name = folder.partition("-")[0]
    if name not in PEERS:
        raise ValueError(f"{folder} is no answer of a known peer: {', '.join(PEERS)}")
    return name
