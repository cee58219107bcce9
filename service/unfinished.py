"""What a job had found before it failed or was cancelled: its trials, the best policy, and a report that says so.

All of it comes from the database, so the server leaves the same files in place of a driver that died.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from search_spaces.policy import Policy
from service import transitions
from service.blobs import Blobs
from service.front import best_of
from service.front_job import PIN, policies_of
from service.job_files import write_json, write_trials
from service.store import Store
from service.tables import Artifact
from service.transitions import JobState

# What only a finished job knows.
_MEASURED = ("baseline", "compressed", "accuracy_drop", "references", "met_budget", "versions")


def keep_unfinished(
    store: Store, blobs: Blobs, job: str, state: JobState, reason: Mapping[str, Any] | None
) -> list[Artifact]:
    """Stores ``report.json``, ``policy.json`` and ``trials.parquet`` of a job that ends without a network.

    Args:
        state: as which it ends, unless somebody cancelled it.
        reason: problem document of a failed job.

    Returns:
        The files, for the caller to record; none where the job has no trials. ``policy.json`` only where a trial
        is within the budget.
    """
    row = store.get(job)
    trials, _ = store.trials(job)
    if not trials:
        return []
    state = transitions.finish(JobState(row.state), state)
    best = best_of(row.spec, trials)
    ids = tuple(trials[0].policy)
    space = (store.pinned(job, "space") or {}).get("digest")
    report: dict[str, Any] = {
        "state": state.value,
        "reason": dict(reason) if reason and state is JobState.FAILED else None,
        "name": row.name,
        **{key: row.spec.get(key) for key in ("model", "data", "objective", "max_drop")},
        **_asked(row.spec),
        "agent": row.spec["agent"]["name"],
        "seed": row.spec["agent"]["seed"],
        "evaluations": len(trials),
        "wall_seconds": store.worked(job, row.attempt + 1),
        "space": space,
        "best": best,
        "policies": policies_of(row.spec, store.pinned(job, PIN), trials),
        **dict.fromkeys(_MEASURED),
        "notes": [
            f"the job ended as {state} after {len(trials)} trials: scores and costs are the search's, nothing was "
            "exported or measured"
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("trials.parquet", "report.json")]
        write_trials(files[0], ids, [asdict(trial) for trial in trials])
        write_json(files[1], report)
        if best is not None and space is not None:
            policy = Policy(space, tuple(best["policy"].values()))
            files.append(Path(folder) / "policy.json")
            write_json(files[2], policy.to_json(ids))
        kept = [(file.name, blobs.put_artifact(job, file.name, file)) for file in files]
    return [
        Artifact(job=job, name=name, path=stored.path, size=stored.size, sha256=stored.sha256)
        for name, stored in kept
    ]


def _asked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Targets and budgets where a finished job's report has them."""
    targets = spec.get("targets")
    if targets is None:
        return {"target": {"spec": spec.get("target")}, "budget": spec.get("budget")}
    return {
        "target": {"spec": targets[0]["name"]},
        "budget": targets[0]["budget"],
        "targets": [dict(target) for target in targets],
    }
