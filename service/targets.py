"""The targets of a job: which they are, what each calls its costs, and which file each of them gets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from latency_tables import Catalog, Target, TargetError
from latency_tables.capabilities import Capabilities, CommonCapabilities
from search_spaces.bit_widths import BitWidths
from search_spaces.budget import PACKED
from search_spaces.quantities import at_target, base_quantity
from service.energy_bound import require_energy
from service.job_spec import JobSpec

Pin = Callable[[str, dict[str, Any]], dict[str, Any]]

# Of the network, not of any device.
_EVERYWHERE = ("macs", PACKED)


@dataclass(frozen=True)
class JobTarget:
    """One of the targets that a job's network must hold on.

    Attributes:
        place: 0 for the first.
        spec: the job as if it had this target only.
        target: see ``latency_tables.Target``.
        artifact: name of the exported file it runs; targets that run the same bytes share one.
        file_of: place of the first target that runs this file.
        file_name: what that target is called.
    """

    place: int
    spec: JobSpec
    target: Target
    artifact: str
    file_of: int = 0
    file_name: str = ""

    @property
    def name(self) -> str:
        """As the job has it."""
        return self.spec.target

    @property
    def budget(self) -> dict[str, float]:
        return self.spec.budget

    def quantity(self, own: str) -> str:
        """What the job calls one of this target's costs: the first's have their plain names."""
        if own in _EVERYWHERE:
            return own
        if own == "size_bytes":
            return own if self.file_of == 0 else at_target(own, self.file_name)
        return own if self.place == 0 else at_target(own, self.name)

    def own(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Those of a job's costs (or bounds) that are this target's, by their plain names."""
        return {base: v for q, v in costs.items() if self.quantity(base := base_quantity(q)) == q}

    def pin(self, pin: Pin) -> Pin:
        """Stores under names of this target's own; the first's are the plain ones."""
        if self.place == 0:
            return pin
        return lambda key, value: pin(f"{key}@{self.place}", value)


def common(targets: Sequence[JobTarget]) -> Capabilities:
    """What all of them run."""
    return CommonCapabilities.of([one.target for one in targets])


def job_targets(
    spec: JobSpec,
    catalog: Catalog,
    here: bool = True,
    field: Callable[[str], AbstractContextManager[None]] = lambda _name: nullcontext(),
) -> tuple[JobTarget, ...]:
    """Looks up the targets of a job.

    Args:
        here: see ``require_energy``.
        field: given a field's name in the job's document, what is entered while that field is judged.

    Raises:
        TargetError: one is unknown, two are the same, or one does not run the bits that are to be chosen among.
        TableError: a table that is damaged.
        BudgetError: a bound on energy where a target has none.
    """
    found: list[JobTarget] = []
    for place, own in enumerate(spec.places):
        alone = spec.alone(place)
        several = spec.targets is not None
        with field(f"targets.{place}.name" if several else "target"):
            target = catalog.target(own.name)
            for other in found:
                if other.target.spec == target.spec:
                    raise TargetError(
                        f"targets {other.name!r} and {own.name!r} are the same ({target.spec}); give it once, with "
                        "all of its bounds in one budget"
                    )
        with field(f"targets.{place}.budget" if several else "budget"):
            require_energy(target, alone.priced, catalog, here)
        with field("space.bits"):
            _require_bits(own.name, target, spec.space.widths)
        owner = next((one for one in found if _same_file(one.target, target)), None)
        if owner is None:
            artifact = _artifact(own.name, target, [one.artifact for one in found])
            found.append(JobTarget(place, alone, target, artifact, place, own.name))
        else:
            found.append(JobTarget(place, alone, target, owner.artifact, owner.place, owner.name))
    return tuple(found)


def _require_bits(name: str, target: Target, bits: BitWidths | None) -> None:
    missing = () if bits is None else bits.missing(target)
    if missing:
        runs, asked = (", ".join(map(str, found)) for found in (target.precisions, missing))
        raise TargetError(
            f"{name} runs {runs} bits and not {asked}: there fewer bits count for the packed file alone. Leave "
            "space.bits out (and bound packed_size, where smaller files are wanted), or use sim-bitfusion"
        )


def _same_file(one: Target, other: Target) -> bool:
    """All that an exported file depends on besides the network."""
    return (one.artifact_name, one.batch) == (other.artifact_name, other.batch)


def _artifact(name: str, target: Target, taken: Sequence[str]) -> str:
    """``model.onnx`` of the first target, ``model@x86-ort-batch8.onnx`` of a later one with a file of its own."""
    if not taken:
        return target.artifact_name
    path = PurePosixPath(target.artifact_name)
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name.replace("=", "")).strip("-")
    candidates: Iterator[str] = (
        f"{path.stem}@{plain}{more}{path.suffix}" for more in ("", *(f"-{n}" for n in range(2, 9)))
    )
    return next(candidate for candidate in candidates if candidate not in taken)
