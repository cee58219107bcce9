"""``trimtab pack`` and ``trimtab unpack``: a job's network as one small file, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from service.cli_common import OK, folder, readable_file, write, write_json
from service.errors import RequestError


def add_commands(commands: Any) -> None:
    pack = commands.add_parser("pack", help="write a job's network as one entropy-coded file")
    pack.add_argument("directory", type=folder, metavar="DIR", help="a job's files")
    pack.add_argument(
        "--out", type=Path, metavar="FILE", help="the packed file; default DIR/model.packed"
    )
    pack.add_argument("--json", action="store_true")
    pack.set_defaults(run=run_pack)
    unpack = commands.add_parser("unpack", help="restore a packed network, bit for bit")
    unpack.add_argument("file", type=readable_file, metavar="FILE")
    unpack.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="gets model.safetensors and plan.json",
    )
    unpack.add_argument("--json", action="store_true")
    unpack.set_defaults(run=run_unpack)


def run_pack(args: argparse.Namespace) -> int:
    """Exit 0 with the sizes before and after."""
    from compressors.packed import PACKED_FILE, pack_directory
    from compressors.packed.files import PLAN_FILE, WEIGHTS_FILE
    from service.summary import file_size

    out = args.out or args.directory / PACKED_FILE
    if out.is_dir():
        raise RequestError(f"--out {str(out)!r} is a folder, not a file")
    if not out.parent.is_dir():
        raise RequestError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}")
    size = pack_directory(args.directory, out)
    before = sum((args.directory / name).stat().st_size for name in (PLAN_FILE, WEIGHTS_FILE))
    if args.json:
        write_json({"file": str(out), "packed_bytes": size, "unpacked_bytes": before})
    else:
        ratio = f"{before / size:.1f} times smaller"
        write(f"{out}: {file_size(size)}, {ratio} than {WEIGHTS_FILE} and {PLAN_FILE}")
    return OK


def run_unpack(args: argparse.Namespace) -> int:
    """Exit 0 with the files' names; nothing is written from a damaged file."""
    from compressors.packed import unpack_file
    from compressors.packed.files import PLAN_FILE, WEIGHTS_FILE

    if args.out.exists() and not args.out.is_dir():
        raise RequestError(f"--out {str(args.out)!r} is a file, not a folder")
    unpack_file(args.file, args.out)
    files = [str(args.out / name) for name in (WEIGHTS_FILE, PLAN_FILE)]
    if args.json:
        write_json({"files": files})
    else:
        write("\n".join(files))
    return OK
