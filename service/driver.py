"""One attempt of one job: the entry point of a Ray Job.

python -m service.driver --job ID --attempt N --config DATA_DIR/driver.json
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.blobs import Blobs, checked_name
from service.context import JobContext
from service.db_context import DbContext
from service.errors import Cancelled, LeaseLost, RequestError
from service.heartbeat import EXIT_LEASE_LOST, Heartbeat
from service.job_spec import JobSpec
from service.problems import problem_of
from service.settings import Settings
from service.store import Lease, Store
from service.tables import Artifact
from service.transitions import JobState
from service.unfinished import keep_unfinished

Pipeline = Callable[[JobSpec, JobContext], dict[str, Any]]
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the attempt; the exit code is 0 when the job succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--config", type=Path, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    settings = Settings.from_driver_file(given.config)
    store = Store.open(settings.database_url)
    try:
        return run_attempt(settings, store, given.job, given.attempt)
    finally:
        store.close()


def run_attempt(settings: Settings, store: Store, job: str, attempt: int) -> int:
    """Claims the lease and takes the job to its end, or leaves it to another attempt."""
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    try:
        lease = store.claim(job, attempt, owner, settings.lease_seconds)
    except LeaseLost as error:
        _log.error("%s", error)
        return EXIT_LEASE_LOST
    heartbeat = Heartbeat(store, lease, settings.lease_seconds)
    heartbeat.start()
    try:
        return _run(settings, store, lease, heartbeat)
    except LeaseLost as error:
        # Whoever took the job writes its end.
        _log.error("%s", error)
        return EXIT_LEASE_LOST
    finally:
        heartbeat.stop()


def _run(settings: Settings, store: Store, lease: Lease, heartbeat: Heartbeat) -> int:
    row = store.get(lease.job)
    blobs = Blobs(settings.data_dir)
    _log.info("job %s %r, attempt %d", row.id, row.name, lease.attempt)
    try:
        context = DbContext(settings, store, blobs, lease, heartbeat, row)
        spec = JobSpec.model_validate(row.spec)
        # At the end of the import path: an operator's module may not take the place of ours.
        sys.path.extend(str(path) for path in settings.code_paths if str(path) not in sys.path)
        report = _pipeline(settings.pipeline)(spec, context)
        context.check()
        store.put_artifacts(lease, keep_artifacts(blobs, context))
    except LeaseLost:
        raise
    except Cancelled:
        _keep_found(store, blobs, lease, JobState.CANCELLED)
        return _end(store, lease, JobState.CANCELLED)
    except Exception as error:
        _log.exception("job %s failed", row.id)
        reason = problem_of(error)
        _keep_found(store, blobs, lease, JobState.FAILED, reason)
        return _end(store, lease, JobState.FAILED, reason=reason)
    return _end(store, lease, JobState.SUCCEEDED, report=report)


def _keep_found(
    store: Store,
    blobs: Blobs,
    lease: Lease,
    state: JobState,
    reason: Mapping[str, Any] | None = None,
) -> None:
    """Leaves what the search had found. Whatever goes wrong here, the job ends as it was going to."""
    try:
        store.put_artifacts(lease, keep_unfinished(store, blobs, lease.job, state, reason))
    except LeaseLost:
        raise
    except Exception:
        _log.exception("what job %s had found could not be stored", lease.job)


def _end(
    store: Store,
    lease: Lease,
    outcome: JobState,
    reason: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
) -> int:
    state = store.finish(lease, outcome, reason, report)
    _log.info("job %s %s", lease.job, state)
    return 0 if state == JobState.SUCCEEDED else 1


def keep_artifacts(blobs: Blobs, context: DbContext) -> list[Artifact]:
    """Stores every file the pipeline left, hidden ones apart."""
    job = context.workdir.parent.name
    kept: list[Artifact] = []
    for file in sorted(context.workdir.rglob("*")):
        name = file.relative_to(context.workdir).as_posix()
        if not file.is_file() or file.is_symlink() or any(p[0] == "." for p in name.split("/")):
            continue
        try:
            checked_name(name)
        except RequestError as error:
            context.warn(f"not kept: {error}")
            continue
        stored = blobs.put_artifact(job, name, file)
        kept.append(
            Artifact(job=job, name=name, path=stored.path, size=stored.size, sha256=stored.sha256)
        )
        context.check()
    return kept


def _pipeline(name: str) -> Pipeline:
    module, _, function = name.partition(":")
    found: Pipeline = getattr(importlib.import_module(module), function)
    return found


if __name__ == "__main__":
    sys.exit(main())
