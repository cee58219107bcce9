"""Small real distributions, installed into a folder: a module and the metadata that pip leaves beside it."""

from __future__ import annotations

from pathlib import Path

from service.plugins import Group

# Twice as slow as the accelerator it is made after.
BOARD = '''
from dataclasses import dataclass, replace

from latency_tables.bitfusion_target import BitFusionTarget


@dataclass(frozen=True)
class Board(BitFusionTarget):
    """A board."""

    lanes: int = 1

    @property
    def name(self):
        return "board"

    @property
    def options(self):
        return {"batch": self.batch, "lanes": self.lanes}

    @property
    def spec(self):
        return f"board?batch={self.batch}&lanes={self.lanes}"

    def rows(self, kernels):
        def slow(row):
            times = {name: 2 * getattr(row, name) for name in ("median_us", "p10_us", "p90_us")}
            low, high = row.ci95
            return replace(row, ci95=(2 * low, 2 * high), cold_us=None, **times)

        return tuple(slow(row) for row in super().rows(kernels))
'''

# Measured here.
BENCH = """
from latency_tables.ort import OrtTarget


class Bench(OrtTarget):
    name = "bench"

    @property
    def spec(self):
        return f"bench?threads={self.threads}&batch={self.batch}"


def bench(threads: int = 1, batch: int = 1):
    return Bench(threads, batch)
"""

# Keeps the channels that were made last.
LAST = '''
def rank(network, groups, images):
    """The last channels matter most.

    At length.
    """
    return {group.root: range(group.channels) for group in groups}
'''


def bring(
    folder: Path,
    name: str,
    points: dict[str, str],
    code: str,
    version: str = "1.0",
    group: Group = Group.AGENTS,
) -> None:
    """Installs a distribution of one module.

    Args:
        points: name of an agent, a target or a criterion to what gives it.
    """
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines) + "\n")


def bring_board(folder: Path, version: str = "1.0") -> None:
    """The target ``board`` of the distribution ``boards``."""
    bring(folder, "boards", {"board": "boards:Board"}, BOARD, version, Group.TARGETS)


def bring_last(folder: Path, version: str = "1.0") -> None:
    """The criterion ``last`` of the distribution ``lasting``."""
    bring(folder, "lasting", {"last": "lasting:rank"}, LAST, version, Group.CRITERIA)


def remove(folder: Path, name: str, version: str = "1.0") -> None:
    """Takes a distribution's entry points away."""
    (folder / f"{name}-{version}.dist-info" / "entry_points.txt").unlink()
