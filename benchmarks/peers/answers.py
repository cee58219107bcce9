"""What a peer leaves behind: channels it kept with its own weights, bits of layers, or a finished file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.peers.assignment import Assignment, outputs_of

ANSWER_FILE, STATE_FILE, PROBE_FILE, MODEL_FILE = (
    "answer.json",
    "state.safetensors",
    "probe.safetensors",
    "model.onnx",
)
# Search images on which a network brought over must give what the peer's own gave.
PROBED = 64


class Kind(StrEnum):
    """What the peer decided: channels, bits of weights, or which layers run in integers, in a file of its own."""

    CHANNELS = "channels"
    BITS = "bits"
    FILE = "file"


@dataclass(frozen=True)
class Answer:
    """See the module's docstring.

    Attributes:
        peer, version: the project.
        method: what was called, with the goal it was given.
        kind: of what was decided.
        goal: that it was held to, such as ``{"macs": 0.6}``.
        search_accuracy: of the peer's own network, as the peer runs it, on the search images.
        evaluations: networks it ran on search images, the uncompressed one left out.
        images: search images that each of these was run on.
        seconds: of searching, on ``threads`` threads of a processor.
        bits: layer path to the bits of its weights, of ``Kind.BITS``.
        notes: what a reader must know.
    """

    peer: str
    version: str
    method: str
    kind: Kind
    goal: Mapping[str, float]
    search_accuracy: float
    evaluations: int
    images: int
    seconds: float
    threads: int = 1
    bits: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Writes it last: a folder with an answer is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ANSWER_FILE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Answer:
        """Raises ValueError for a document that is no answer."""
        data: dict[str, Any] = json.loads((folder / ANSWER_FILE).read_text())
        try:
            kind, notes = Kind(data.pop("kind")), tuple(data.pop("notes"))
            return cls(kind=kind, notes=notes, **data)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / ANSWER_FILE} is no answer of a peer: {error}") from error


def write_network(network: nn.Module, assignment: Assignment, folder: Path) -> None:
    """Leaves a pruned network's weights, and what it gives on the first search images, for ``transfer``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / STATE_FILE)
    inputs, _ = assignment.search(PROBED)
    save_file({"outputs": outputs_of(network.eval(), inputs)}, folder / PROBE_FILE)


def read_network(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """The weights and the outputs that ``write_network`` left."""
    return load_file(folder / STATE_FILE), load_file(folder / PROBE_FILE)["outputs"]


class Stopwatch:
    """Seconds of wall clock since it was made."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun
