"""What a measuring kit is to measure: the file ``plan.json`` beside its networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from latency_tables.errors import TableError
from latency_tables.kit_network import expanded

PLAN_VERSION = 1
PLAN_FILE = "plan.json"
# The network that all others are timed beside; a plan lists it first.
UNCOMPRESSED = "uncompressed"


@dataclass(frozen=True, slots=True)
class KitNetwork:
    """One network of a kit.

    Attributes:
        name: such as ``sample-017``.
        file: its ONNX file, relative to the kit.
        sha256: of the file.
        values: the policy's values, in the order of the plan's decisions.
        timed: whether it is timed end to end; kernels are read of all.
    """

    name: str
    file: str
    sha256: str
    values: tuple[int, ...]
    timed: bool


@dataclass(frozen=True)
class KitPlan:
    """See the module's docstring.

    Attributes:
        model: source of the network.
        input_shape: of one example.
        threads, batch: of the target; the batch is fixed in the files.
        space: digest of the search space, and
        decisions: ids of its decisions.
        networks: the uncompressed one first.
        made: UTC, ISO 8601.
        versions: of what the kit was made with.
    """

    model: str
    input_shape: tuple[int, ...]
    threads: int
    batch: int
    space: str
    decisions: tuple[str, ...]
    networks: tuple[KitNetwork, ...]
    made: str
    versions: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits over everything; measurements of another plan cannot be continued."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": PLAN_VERSION, **asdict(self)}

    def save(self, kit: Path) -> None:
        text = json.dumps(self.to_json(), indent=1)
        (kit / PLAN_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, kit: Path) -> KitPlan:
        """Reads the plan of a kit's folder.

        Raises:
            TableError: it is missing, damaged, or of a version this code does not read.
        """
        path = kit / PLAN_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema_version"] != PLAN_VERSION:
                raise TableError(
                    f"{path} has the version {data['schema_version']!r}, this code reads "
                    f"{PLAN_VERSION}; write the kit again"
                )
            plan = cls(
                model=str(data["model"]),
                input_shape=tuple(int(size) for size in data["input_shape"]),
                threads=int(data["threads"]),
                batch=int(data["batch"]),
                space=str(data["space"]),
                decisions=tuple(str(name) for name in data["decisions"]),
                networks=tuple(_network(network) for network in data["networks"]),
                made=str(data["made"]),
                versions={str(k): str(v) for k, v in data["versions"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TableError(
                f"{path} is no plan of a measuring kit ({error!r}); copy the kit again"
            ) from error
        if not plan.networks or plan.networks[0].name != UNCOMPRESSED:
            raise TableError(f"{path} does not begin with the uncompressed network")
        return plan

    def bytes_of(self, kit: Path, network: KitNetwork) -> bytes:
        """A network as the runtime is to get it, with made-up weights.

        Raises:
            TableError: the file is missing or not what the plan says.
        """
        path = kit / network.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TableError(f"{path} cannot be read ({error}); copy the kit again") from error
        if hashlib.sha256(data).hexdigest() != network.sha256:
            raise TableError(f"{path} is damaged or incomplete; copy the kit again")
        model: bytes = expanded(onnx.load_from_string(data)).SerializeToString()
        return model


def _network(data: Mapping[str, Any]) -> KitNetwork:
    return KitNetwork(
        name=str(data["name"]),
        file=str(data["file"]),
        sha256=str(data["sha256"]),
        values=tuple(int(value) for value in data["values"]),
        timed=bool(data["timed"]),
    )
