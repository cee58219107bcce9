"""The context of ``trimtab compress``: one job in this process, no server, no database."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from service.context import TrialRecord
from service.errors import Cancelled, ConflictError
from service.job_spec import JobSpec
from service.journal import Journal
from service.plugins import ALL, brought_by
from service.progress import StageProgress
from service.sources import Sources

if TYPE_CHECKING:
    from evaluation.pool import EvaluatorPool, ScorerFactory
    from evaluation.tuning import Tuner

JOURNAL_NAME = ".trimtab-journal.jsonl"
_LOCK_NAME = ".trimtab-lock"
# Packages whose version can change a trial's score or price.
_VERSIONED = (
    "trimtab",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "numpy",
)


class LocalContext:
    """Satisfies ``JobContext`` with files in one folder.

    Trials are appended to a journal in ``out``, so the same command goes on where an interrupted
    one stopped. A job of another key (spec, weights, versions, instruction set) does not mix with
    it.

    Args:
        spec: the job.
        out: where the job's files go.
        data_dir: tables and caches that outlive the job.
        sources: what may be loaded.
        weights_path: safetensors file of the network's weights.
        threads: cores that scoring may use; torch decides when None.
        progress: shows stages.

    Raises:
        ConflictError: another process works in ``out``, or it holds another unfinished job.
    """

    def __init__(
        self,
        spec: JobSpec,
        out: Path,
        data_dir: Path,
        sources: Sources,
        weights_path: Path | None = None,
        threads: int | None = None,
        progress: StageProgress | None = None,
    ) -> None:
        self._workdir = out.resolve()
        self._data_dir = data_dir
        self._sources = sources
        self._weights_path = weights_path
        self._threads = threads
        self._progress = progress or StageProgress(quiet=True)
        self._cancelled = False
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._workdir / _LOCK_NAME)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConflictError(f"another trimtab process works in {out}") from None
        try:
            self._journal = Journal(self._workdir / JOURNAL_NAME, job_key(spec, weights_path))
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> LocalContext:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._journal.close()
        self._lock.release()
        self._progress.close()

    @property
    def workdir(self) -> Path:
        return self._workdir

    @property
    def data_dir(self) -> Path:
        return self._data_dir

    @property
    def sources(self) -> Sources:
        return self._sources

    @property
    def plugins(self) -> tuple[str, ...]:
        return (ALL,)

    @property
    def weights_path(self) -> Path | None:
        return self._weights_path

    def pool(self, factory: ScorerFactory) -> EvaluatorPool:
        from evaluation.local_pool import LocalPool

        pool: EvaluatorPool = LocalPool(factory, self._threads)
        return pool

    def tuner(self) -> Tuner:
        from evaluation.local_tuning import LocalTuner

        tuner: Tuner = LocalTuner()
        return tuner

    def stage(self, name: str, message: str = "", done: int = 0, total: int = 0) -> None:
        self._progress.show(name, message, done, total)

    def cancel(self) -> None:
        """The next ``check`` raises; may be called from a signal handler."""
        self._cancelled = True

    def check(self) -> None:
        if self._cancelled:
            raise Cancelled("interrupted")

    def worked(self) -> float:
        return self._journal.earlier_seconds

    def recorded(self) -> list[TrialRecord]:
        return sorted(self._journal.trials, key=lambda trial: trial.told)

    def record(self, trials: Sequence[TrialRecord]) -> None:
        self._journal.record(trials)

    def pin(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        return self._journal.pin(key, value)

    def finish(self) -> None:
        """The job's files are complete."""
        self._journal.finish()


def job_key(spec: JobSpec, weights_path: Path | None) -> str:
    """Digest of all that decides a job's trials: spec, weights, versions and instruction set."""
    from latency_tables.host import HostFingerprint

    digest = hashlib.sha256()
    if weights_path is not None:
        with weights_path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    document = {
        "spec": spec.model_dump(mode="json", exclude={"name": True, "model": {"weights"}}),
        "weights": None if weights_path is None else digest.hexdigest(),
        "versions": {name: _version(name) for name in _VERSIONED},
        # Not among the versions: journals of jobs without a plug-in keep their key.
        **({"plugins": brought} if (brought := brought_by(spec)) else {}),
        "instructions": list(HostFingerprint.here().flags),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
