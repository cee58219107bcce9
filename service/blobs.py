"""Files of jobs and uploads, through fsspec under one root.

jobs/{id}/work        where the pipeline works
jobs/{id}/artifacts   what it left, as the database lists it
weights/{sha256}.safetensors
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from service.errors import NotFoundError, RequestError, TooLargeError
from service.safetensors_header import read_header

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as it was stored; ``path`` is relative to the root."""

    path: str
    size: int
    sha256: str


def checked_name(name: str) -> str:
    """A relative path of plain parts.

    Raises:
        RequestError: it could lead out of its folder, or is hidden.
    """
    parts = name.split("/")
    if len(parts) > 8 or not all(_PART.fullmatch(part) and ".." not in part for part in parts):
        raise RequestError(f"{name!r} is no file name of a job")
    return name


class Blobs:
    """See the module's docstring.

    Args:
        root: folder; ``url`` names the place for stored files where it is another one that fsspec
            knows.
    """

    def __init__(self, root: Path, url: str | None = None) -> None:
        self.root = root
        self._fs, self._base = fsspec.core.url_to_fs(url or str(root), auto_mkdir=True)

    def workdir(self, job: str) -> Path:
        """The job's folder for its pipeline, on a local disk; the same in every attempt."""
        path = self.root / "jobs" / checked_name(job) / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def put_artifact(self, job: str, name: str, file: Path) -> Stored:
        """Raises RequestError for a name that is none."""
        path = f"jobs/{checked_name(job)}/artifacts/{checked_name(name)}"
        digest = hashlib.sha256()
        size = 0
        with file.open("rb") as source, self._fs.open(self._full(path), "wb") as copy:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                copy.write(chunk)
        return Stored(path, size, digest.hexdigest())

    def read(self, path: str) -> Iterator[bytes]:
        """Chunks of a stored file. Raises NotFoundError before the first one."""
        try:
            file: Any = self._fs.open(self._full(path), "rb")
        except FileNotFoundError:
            raise NotFoundError(f"the file {path} is gone") from None
        return _chunks(file)

    def local(self, path: str) -> Path:
        """A stored file on the local disk, fetched when it lies elsewhere."""
        local = self.root / path
        if not local.exists():
            if not self._fs.exists(self._full(path)):
                raise NotFoundError(f"the file {path} is gone")
            local.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(self._full(path), str(local))
        return local

    def delete_job(self, job: str) -> None:
        """Removes all files of a job."""
        folder = f"jobs/{checked_name(job)}"
        if self._fs.exists(self._full(folder)):
            self._fs.rm(self._full(folder), recursive=True)
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def upload(self, limit: int) -> WeightsUpload:
        """Begins an upload of at most ``limit`` bytes."""
        return WeightsUpload(self, limit)

    def keep_weights(self, file: Path, sha256: str) -> str:
        """Moves a checked upload to its place and returns its path."""
        path = f"weights/{sha256}.safetensors"
        if self._fs.exists(self._full(path)):
            file.unlink()
        else:
            self._fs.put_file(str(file), self._full(path + ".part"))
            self._fs.mv(self._full(path + ".part"), self._full(path))
            file.unlink()
        return path

    def _full(self, path: str) -> str:
        return f"{self._base}/{path}"


class WeightsUpload:
    """A safetensors file on its way in: written beside the others, checked, then moved or
    removed.
    """

    def __init__(self, blobs: Blobs, limit: int) -> None:
        self._blobs = blobs
        self._limit = limit
        self._digest = hashlib.sha256()
        folder = blobs.root / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
        self._file = os.fdopen(handle, "wb")
        self._path = Path(name)
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Raises TooLargeError above the limit."""
        self.size += len(chunk)
        if self.size > self._limit:
            raise TooLargeError(
                f"the upload is larger than {self._limit} bytes, which is what the operator allows "
                "(TRIMTAB_MAX_WEIGHTS_BYTES)"
            )
        self._digest.update(chunk)
        self._file.write(chunk)

    def finish(self) -> tuple[Stored, dict[str, dict[str, Any]]]:
        """Checks the file and puts it in its place; returns it with its tensors by name.

        Raises:
            WeightsError: it is no whole safetensors file.
        """
        self._file.close()
        tensors = read_header(self._path)
        sha256 = self._digest.hexdigest()
        return Stored(self._blobs.keep_weights(self._path, sha256), self.size, sha256), tensors

    def abort(self) -> None:
        """Removes what is left of the upload; after ``finish`` there is nothing left."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _chunks(file: Any) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk
