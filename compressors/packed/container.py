"""The frame of a packed file: tagged sections, each with its sizes and its checksum.

    magic "TRIMPACK" | version u16 | sections u16 | size of the unpacked weights u64
    one row a section: tag 4 bytes | bytes stored u64 | bytes unpacked u64 | BLAKE2b of the stored bytes, 8 bytes
    BLAKE2b of all of the above, 8 bytes
    the sections, one behind the other, to the end of the file

Numbers are little-endian. A section whose two sizes differ is a Zstandard frame, else it is stored as it is.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from compressors.errors import PackError

MAGIC = b"TRIMPACK"
VERSION = 1
# What a file may unpack to for each of its bytes, and what it may in any case: a few kilobytes must not fill the
# memory. Real networks stay below 300, at two bits with nine of ten weights zero.
MOST_RATIO = 1000
ALWAYS_ALLOWED = 1 << 20
_HEAD = struct.Struct("<8sHHQ")
_ROW = struct.Struct("<4sQQ8s")
_MOST_SECTIONS = 64
_DIGEST = 8
# Above this size the strongest level takes minutes and gains less than a per cent.
_STRONG_BELOW = 2 << 20
# Sections (digits of floats) of which the quickest level takes less than a hundredth are stored as they are.
_NOISE = 0.99
_SMALL = 1 << 14


@dataclass(frozen=True)
class Sections:
    """What a packed file holds.

    Attributes:
        size: bytes of the unpacked weights file.
        parts: unpacked sections by tag, in the file's order.
    """

    size: int
    parts: Mapping[str, bytes]

    def part(self, tag: str) -> bytes:
        """Raises PackError where there is no such section."""
        try:
            return self.parts[tag]
        except KeyError:
            raise PackError(f"the packed file has no section {tag!r}") from None

    def to_bytes(self) -> bytes:
        """The whole file."""
        rows, stored = [], []
        for tag, raw in self.parts.items():
            data = _compressed(raw)
            stored.append(data)
            rows.append(_ROW.pack(tag.encode(), len(data), len(raw), _digest(data)))
        head = _HEAD.pack(MAGIC, VERSION, len(rows), self.size) + b"".join(rows)
        return head + _digest(head) + b"".join(stored)

    @classmethod
    def from_bytes(cls, data: bytes) -> Sections:
        """Checks the frame, then every section's checksum and size, and only then unpacks any.

        Raises:
            PackError: not a packed file, one of another version, a truncated or altered one, or one that unpacks
                to more than ``MOST_RATIO`` times its size.
        """
        if not data.startswith(MAGIC):
            raise PackError("not a packed network: it does not begin with TRIMPACK")
        if len(data) < _HEAD.size + _DIGEST:
            raise PackError("the packed file is truncated: its header is incomplete")
        _, version, count, size = _HEAD.unpack_from(data)
        if version != VERSION:
            raise PackError(
                f"packed format version {version} is not supported; this Trimtab reads {VERSION}"
            )
        start = _HEAD.size + count * _ROW.size
        if count > _MOST_SECTIONS or len(data) < start + _DIGEST:
            raise PackError("the packed file is truncated or altered: its table of sections")
        if _digest(data[:start]) != data[start : start + _DIGEST]:
            raise PackError("the packed file is damaged: the checksum of its header does not fit")
        rows = [_ROW.unpack_from(data, _HEAD.size + k * _ROW.size) for k in range(count)]
        start += _DIGEST
        expected = start + sum(stored for _, stored, _, _ in rows)
        if len(data) != expected:
            raise PackError(
                f"the packed file has {len(data)} bytes and its header says {expected}: it is truncated or something "
                "was appended"
            )
        allowed = ALWAYS_ALLOWED + MOST_RATIO * len(data)
        if max(size, sum(raw for _, _, raw, _ in rows)) > allowed:
            raise PackError(
                f"the packed file claims to unpack to more than {MOST_RATIO} times its size; it is refused"
            )
        found: list[tuple[str, bytes, int]] = []
        for tag, stored, raw, digest in rows:
            part, start = data[start : start + stored], start + stored
            name = tag.decode("ascii", "replace")
            if _digest(part) != digest:
                raise PackError(
                    f"the packed file is damaged: the checksum of section {name} does not fit"
                )
            found.append((name, part, raw))
        return cls(size, {name: _restored(name, part, raw) for name, part, raw in found})


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _compressed(raw: bytes) -> bytes:
    # Imported where it is used: networks are also trained and measured where nothing is packed.
    import zstandard

    data = zstandard.ZstdCompressor(level=1).compress(raw)
    if len(data) > _NOISE * len(raw) and len(raw) > _SMALL:
        return raw
    level = 19 if len(raw) < _STRONG_BELOW else 6
    data = zstandard.ZstdCompressor(level=level).compress(raw)
    return data if len(data) < len(raw) else raw


def _restored(name: str, part: bytes, raw: int) -> bytes:
    if len(part) == raw:
        return part
    import zstandard

    try:
        # The frame's own word is checked first: the decompressor allocates by it.
        if zstandard.get_frame_parameters(part).content_size != raw:
            raise PackError(f"section {name} unpacks to another size than the header says")
        data = zstandard.ZstdDecompressor().decompress(part, max_output_size=raw)
    except zstandard.ZstdError as error:
        raise PackError(f"section {name} cannot be unpacked: {error}") from error
    if len(data) != raw:
        raise PackError(f"section {name} unpacks to {len(data)} bytes instead of {raw}")
    return data
