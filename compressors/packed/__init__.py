"""The packed file: a compressed network's plan and weights, entropy-coded, restored bit for bit."""

from compressors.packed.archive import pack, unpack
from compressors.packed.files import (
    PACKED_FILE,
    network_files,
    pack_directory,
    pack_network,
    unpack_file,
    write_whole,
)

__all__ = [
    "PACKED_FILE",
    "network_files",
    "pack",
    "pack_directory",
    "pack_network",
    "unpack",
    "unpack_file",
    "write_whole",
]
