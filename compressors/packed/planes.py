"""Lossless storage of float32 numbers: one plane for each of their bytes.

The bits are turned left by one first, so that the exponent fills a byte of its own; the sign goes where the digits are
noise anyway. Exponents of weights take about 3 of 8 bits, the other planes are stored as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressors.errors import PackError

PLANES = ("FLT0", "FLT1", "FLT2", "FLT3")


def to_planes(bits: NDArray[np.uint32]) -> dict[str, bytes]:
    """Sections of floats given by their bits, uint32 [n]; the last plane holds the exponents."""
    turned = (bits << np.uint32(1)) | (bits >> np.uint32(31))
    planes = np.ascontiguousarray(turned.astype("<u4").view(np.uint8).reshape(-1, 4).T)
    return {tag: plane.tobytes() for tag, plane in zip(PLANES, planes, strict=True)}


def from_planes(parts: list[bytes]) -> NDArray[np.uint32]:
    """The bits uint32 [n].

    Raises:
        PackError: the planes differ in length.
    """
    if len({len(part) for part in parts}) != 1:
        raise PackError("the packed file's planes of floats differ in length")
    planes = np.stack([np.frombuffer(part, dtype=np.uint8) for part in parts], axis=1)
    turned = np.ascontiguousarray(planes).view("<u4")[:, 0].astype(np.uint32)
    return (turned >> np.uint32(1)) | (turned << np.uint32(31))
