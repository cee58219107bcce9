"""Published files, known by their SHA-256.

The formats say neither how their numbers were made nor on what. Where a file is byte for byte a
published one that is known; for any other the provenance is only ``imported``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from latency_tables.importers.content import Content
from latency_tables.layer_table import Flag


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a table beyond its file.

    Attributes:
        provenance: ``measured`` or ``simulated``; ``imported`` where nobody knows.
        source: where it was published and under which licence; "" where that is not known.
        device, network, batch: as in ``LayerTable``.
    """

    provenance: str = "imported"
    source: str = ""
    device: str = "unknown device"
    network: str | None = None
    batch: int | None = None


_HAQ = Origin(
    "simulated", "mit-han-lab/haq 8228d126, MIT", "simulated accelerator", "MobileNetV2", 16
)
_APQ = Origin("simulated", "mit-han-lab/apq 428190a6, BSD-2 style", "BitFusion", None, 1)
_AMC = Origin("measured", "mit-han-lab/amc-models 49f83edf, MIT", "Pixel 1")
_HAWQ = Origin("measured", "Zhen-Dong/HAWQ 1616df69, MIT", "NVIDIA T4")

_KNOWN: Mapping[str, Origin] = MappingProxyType(
    {
        "41c377108ab97b62451afbc13cdb1ae8ea9f43b837446fd91c65c73f477c6529": _HAQ,
        "8997e0a55466356a1ba141bbc22d84a55c605d6514db684bd0a02cd831be81e2": _APQ,
        "d12303e2ebb34cccc11e6f0d41bf8d3ad714f5b097004cf675544ef0af282196": _HAWQ,
        "a91e4ade80d561eba9d387ffb107a3855b39d5ede64ff00996c2c02834cfdb37": _AMC,
        "24b1ef4481dd52cbaf680e14c04665b8fefa53e2962100bd19b717a132714f22": _AMC,
        "a7c35294f46cb76d1c274cccd219bef07945069c0d81d6f43d5fc5e21d2c08b1": _AMC,
        "4cdc82b99635a3cc035b0126b4ab903f04c4e0170879a8dc96ec42eaa6a88134": _AMC,
        "fd37765dfc7a7cdfb5d869075735174dc736457672d1fd6eda004c8cbd6b7fd8": _AMC,
        "c0f1b4d564b3886f2a61736899b39d600297a0677f241a0c8891b21c69afe0ea": _AMC,
        "c75a56075ce5d5e7aed0223d56de46c69234c8c88057d0a80044f3946d3991d4": _AMC,
        "ce029f3bd6615a3b7ab28973f43076d7d0163a7cbf2bacc61ecea1d6be458b88": _AMC,
        "4a8ad9610943b5e914c1e05d88eaace15c2072e9dd738fce543fb9411136c460": _AMC,
        "fc06becee694c45c875da9d31aa474c600c28ddc3e0e4c5b102f16279ab3d74c": _AMC,
        "6488cf1a8a90ce825886816c46232d659a53fdda242d365ac114b6f01371cd93": _AMC,
        "eaf753b3116909180bd2e2251b00e5de61fbda88f9e3c19994c31a3129a05d9a": _AMC,
    }
)


def origin_of(content: Content) -> Origin:
    """What is known of the files; nothing unless every one is a published one of the same origin."""
    found = {_KNOWN.get(hashlib.sha256(data).hexdigest(), Origin()) for _, data in content.files}
    return found.pop() if len(found) == 1 else Origin()


def source_text(format_name: str, content: Content, origin: Origin) -> str:
    """``haq file table.npy (published: mit-han-lab/haq 8228d126, MIT)``."""
    what = "folder" if len(content.files) > 1 else "file"
    published = f" (published: {origin.source})" if origin.source else ""
    return f"{format_name} {what} {content.path.name}{published}"


def origin_flags(origin: Origin, assumed: str) -> tuple[Flag, ...]:
    """A flag for a file that is not a published one.

    Args:
        assumed: what the format means by its numbers, such as "latency in cycles".
    """
    if origin.source:
        return ()
    message = (
        f"the file does not say how its numbers were made, on what device and in which unit; "
        f"{assumed} is assumed, as in the published files of this format"
    )
    return (Flag("origin", message, 1),)
