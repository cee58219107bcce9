"""One row of a latency table: what one kernel costs, how well that is known, and where from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from latency_tables.errors import TableError
from latency_tables.kernel import Kernel
from latency_tables.latency import Z95

PROVENANCES = ("measured", "modelled", "simulated", "imported")


@dataclass(frozen=True, slots=True)
class Row:
    """Cost of one kernel.

    A time on a shared machine means little alone, so every row carries the time of the reference
    network beside it, one of the same arithmetic (a busy neighbour slows integer and float kernels
    by different factors). ``median_us / reference_us`` is the ratio that was measured; a table
    expresses all its rows of one arithmetic at one reference time.

    Attributes:
        kernel: what was measured.
        count: rounds of measurement; 0 for a modelled row.
        median_us, p10_us, p90_us: over the rounds, in ``unit``: repeated alone, with what it touches
            in the caches.
        ci95: 95 % interval of the median, in ``unit``.
        time: when, UTC, ISO 8601.
        reference_us: the reference network's time that the numbers above are expressed at.
        run_reference_us: the reference network's median time in the run that measured the row.
        unit: ``us``.
        provenance: one of ``PROVENANCES``.
        cold_us: median between other kernels, with more touched in between than the caches hold;
            None where that was not measured. What the kernel costs in a network lies between the two.
        energy_uj: microjoules of one run, gross (all that the device took), None where unknown.
        energy_net_uj: the same without what the idle device takes in that time.
        energy_provenance: one of ``PROVENANCES``; the energy may be modelled where the time was measured.
    """

    kernel: Kernel
    count: int
    median_us: float
    p10_us: float
    p90_us: float
    ci95: tuple[float, float]
    time: str
    reference_us: float
    run_reference_us: float
    unit: str = "us"
    provenance: str = "measured"
    cold_us: float | None = None
    energy_uj: float | None = None
    energy_net_uj: float | None = None
    energy_provenance: str | None = None

    def __post_init__(self) -> None:
        for name in ("median_us", "p10_us", "p90_us", "reference_us", "run_reference_us"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and "reference" in name):
                raise TableError(f"row {self._label}: {name} is {value}")
        if self.cold_us is not None and not (math.isfinite(self.cold_us) and self.cold_us >= 0):
            raise TableError(f"row {self._label}: cold_us is {self.cold_us}")
        self._check_energy()
        if not all(math.isfinite(end) for end in self.ci95) or self.ci95[0] > self.ci95[1]:
            raise TableError(f"row {self._label}: ci95 is {self.ci95}")
        if self.count < 0:
            raise TableError(f"row {self._label}: count is {self.count}")
        if self.unit != "us":
            raise TableError(f"row {self._label}: unknown unit {self.unit!r}, known: us")
        if self.provenance not in PROVENANCES:
            raise TableError(f"row {self._label}: unknown provenance {self.provenance!r}")

    def _check_energy(self) -> None:
        given = (self.energy_uj, self.energy_net_uj, self.energy_provenance)
        if given == (None, None, None):
            return
        if self.energy_uj is None or self.energy_net_uj is None or self.energy_provenance is None:
            raise TableError(
                f"row {self._label}: energy_uj, energy_net_uj and energy_provenance go together"
            )
        if not (math.isfinite(self.energy_uj) and 0 <= self.energy_net_uj <= self.energy_uj):
            raise TableError(
                f"row {self._label}: energy is {self.energy_uj} uJ gross, {self.energy_net_uj} net"
            )
        if self.energy_provenance not in PROVENANCES:
            raise TableError(
                f"row {self._label}: unknown provenance of energy {self.energy_provenance!r}"
            )

    @property
    def _label(self) -> str:
        return f"{self.kernel.key} ({self.kernel.describe()})"

    @property
    def sigma_us(self) -> float:
        """Standard error of the median, from the interval."""
        return (self.ci95[1] - self.ci95[0]) / (2 * Z95)

    def at_reference(self, reference_us: float) -> Row:
        """The same row expressed at another time of the reference network."""
        if reference_us == self.reference_us:
            return self
        scale = reference_us / self.reference_us
        return replace(
            self,
            median_us=self.median_us * scale,
            p10_us=self.p10_us * scale,
            p90_us=self.p90_us * scale,
            ci95=(self.ci95[0] * scale, self.ci95[1] * scale),
            reference_us=reference_us,
            cold_us=None if self.cold_us is None else self.cold_us * scale,
        )

    def with_energy_of(self, other: Row) -> Row:
        """The same row with another one's energy where it has none of its own.

        Energies are not expressed at a reference time: they are taken as they are.
        """
        if self.energy_provenance is not None or other.energy_provenance is None:
            return self
        return replace(
            self,
            energy_uj=other.energy_uj,
            energy_net_uj=other.energy_net_uj,
            energy_provenance=other.energy_provenance,
        )

    def to_json(self) -> dict[str, Any]:
        # Numbers are floats, as they are read back: the digest of a table must not change on disk.
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name, value in fields.items():
            if name.endswith(("_us", "_uj")) and value is not None:
                fields[name] = float(value)
        ends = [float(end) for end in self.ci95]
        return {**fields, "kernel": self.kernel.to_json(), "ci95": ends}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str = "?") -> Row:
        """Reads what ``to_json`` wrote.

        Args:
            name: what to call the row in an error.

        Raises:
            TableError: a field is missing, of the wrong type, negative or no number.
        """
        try:
            low, high = data["ci95"]
            return cls(
                kernel=Kernel.from_json(data["kernel"]),
                count=int(data["count"]),
                ci95=(float(low), float(high)),
                time=str(data["time"]),
                unit=str(data["unit"]),
                provenance=str(data["provenance"]),
                cold_us=None if data["cold_us"] is None else float(data["cold_us"]),
                energy_uj=_number(data, "energy_uj"),
                energy_net_uj=_number(data, "energy_net_uj"),
                energy_provenance=_text(data, "energy_provenance"),
                **{
                    field: float(data[field])
                    for field in (
                        "median_us",
                        "p10_us",
                        "p90_us",
                        "reference_us",
                        "run_reference_us",
                    )
                },
            )
        except KeyError as error:
            raise TableError(f"row {name}: {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise TableError(f"row {name}: {error}") from error


def _number(data: Mapping[str, Any], name: str) -> float | None:
    """A field that older tables do not have."""
    value = data.get(name)
    return None if value is None else float(value)


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    return None if value is None else str(value)
