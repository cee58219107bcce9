"""Tables that come with the package, measured on devices that most users do not have.

They are read without the device and without its runtime: a compressed ``LatencyTable`` a file.
"""

from __future__ import annotations

import gzip
import json
import zlib
from functools import lru_cache
from importlib import resources

from latency_tables.errors import TableError
from latency_tables.table import LatencyTable

_ENDING = ".json.gz"


def names() -> tuple[str, ...]:
    """The tables there are, such as ``cuda-torch-h100-batch32``."""
    folder = resources.files("latency_tables") / "data"
    if not folder.is_dir():
        return ()
    files = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(_ENDING) for name in files if name.endswith(_ENDING)))


def load(name: str) -> LatencyTable:
    """A table of another machine, as measured: most kernels have a time alone.

    ``energy_model.with_energies`` adds the energies of the others, modelled.

    Raises:
        TableError: there is no such table, with those there are, or its file is damaged.
    """
    if name not in names():
        known = ", ".join(names()) or "none"
        raise TableError(f"no table {name!r} comes with Trimtab; known: {known}")
    return _read(name)


@lru_cache(maxsize=4)
def _read(name: str) -> LatencyTable:
    # Kept: tables are immutable, and one of 2,000 kernels takes a while to read.
    file = resources.files("latency_tables") / "data" / f"{name}{_ENDING}"
    try:
        data = json.loads(gzip.decompress(file.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TableError(
            f"the table {name!r} that came with Trimtab is damaged: {error}"
        ) from error
    return LatencyTable.from_json(data, allow_other_host=True)


def packed(table: LatencyTable) -> bytes:
    """What ``load`` reads; the same bytes for the same table."""
    text = json.dumps(table.to_json(), allow_nan=False, separators=(",", ":"))
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)
