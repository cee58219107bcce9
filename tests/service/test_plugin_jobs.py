"""Criteria that other distributions bring, and whole jobs by a criterion and on a target of theirs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_process import OneProcess
from plugin_folder import bring, bring_board, bring_last, remove
from rest_server import SPEC, serving

from compressors.contract import CriterionContract
from compressors.custom_criterion import Rank
from compressors.errors import PruningError
from service import cli
from service.blobs import Blobs
from service.client import Client
from service.errors import ApiError
from service.heartbeat import Heartbeat
from service.job_setup import load_job
from service.job_spec import CRITERIA, JobSpec
from service.local_context import job_key
from service.pipeline import SearchFailed, run_job
from service.plugin_criteria import criterion_of
from service.plugins import ALL, Group, PluginError, load
from service.sources import Sources

# No kernel is timed there, and prices are exact.
JOB: dict[str, Any] = SPEC | {
    "target": "board?batch=2",
    "budget": {"latency": 0.6},
    "space": {"scope": "joint", "criterion": "last"},
    "agent": {"name": "random", "evaluations": 4},
    "search_images": 64,
}
WRONG = "def rank(network, groups, images):\n    return {g.root: [0.0] for g in groups}\n"


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.price_setup.SAMPLES", 24)


@pytest.fixture
def both(plugin_folder: Path) -> Path:
    bring_board(plugin_folder)
    bring_last(plugin_folder)
    return plugin_folder


@pytest.mark.usefixtures("both")
class TestLast(CriterionContract):
    def rank(self) -> Rank:
        return load(Group.CRITERIA, "last", [ALL])[0]


def test_a_criterion_is_found_by_its_name_where_it_is_allowed(both: Path) -> None:
    assert all(criterion_of(name, []) is None for name in CRITERIA)
    found = criterion_of("last", ["last"])
    assert found is not None and found.label == "the criterion 'last' of lasting 1.0"
    with pytest.raises(PluginError, match=r"lasting 1\.0 is unusable: not allowed"):
        criterion_of("last", ["board"])
    bring(both, "impostor", {"l1": "impostor:rank"}, WRONG, group=Group.CRITERIA)
    assert criterion_of("l1", [ALL]) is None


def test_channels_are_ranked_by_it(both: Path) -> None:
    setup = load_job(JobSpec.model_validate(JOB), Sources(), None, plugins=[ALL])
    assert setup.targets[0].target.spec == "board?batch=2&lanes=1"
    assert setup.compressor.recipe.criterion == "last"
    for root, order in setup.compressor.rankings.items():
        channels = setup.network.network_space.groups[root].channels
        np.testing.assert_array_equal(order, np.arange(channels)[::-1])
    bring(both, "wrong", {"wrong": "wrong:rank"}, WRONG, "2", Group.CRITERIA)
    spec = JobSpec.model_validate(JOB | {"space": {"criterion": "wrong"}})
    with pytest.raises(PruningError, match=r"'wrong' of wrong 2 must give one number a channel"):
        load_job(spec, Sources(), None, plugins=[ALL])


def test_a_job_is_of_one_version_of_its_criterion(both: Path) -> None:
    keys = {job_key(JobSpec.model_validate(SPEC), None)}
    spec = JobSpec.model_validate(SPEC | {"space": {"criterion": "last"}})
    keys.add(job_key(spec, None))
    remove(both, "lasting")
    bring_last(both, "1.1")
    keys.add(job_key(spec, None))
    assert len(keys) == 3


def test_a_whole_job_on_the_command_line(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path / "state"))
    out = tmp_path / "out"
    job = ["compress", "--model", SPEC["model"]["source"], "--data", "digits", "--agent", "random"]
    job += [
        "--budget",
        "latency=0.6",
        "--evaluations",
        "4",
        "--finetune-epochs",
        "1",
        "--finalists",
        "1",
    ]
    job += [
        "--target",
        "board?batch=2",
        "--criterion",
        "last",
        "--out",
        str(out),
        "--evaluators",
        "1",
    ]
    assert cli.main(job) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert report["met_budget"] and report["met_by"] == "prediction"
    assert report["versions"]["target board"] == "boards 1.0"
    assert report["versions"]["criterion"] == "lasting 1.0"
    assert report["recipe"]["criterion"] == "last"
    kept = json.loads((out / "plan.json").read_text())["channels"]
    pruned = [axes["out"] for axes in kept.values() if len(axes.get("out", ())) > 1]
    # The last channels of every layer, whatever their number.
    assert pruned and all(
        np.diff(positions).tolist() == [1] * (len(positions) - 1) for positions in pruned
    )
    for change, says in (
        (["--criterion", "lost"], "did you mean 'last'"),
        (["--target", "bord"], "did you mean 'board'"),
    ):
        assert cli.main([*job, *change]) == 2
        assert says in capsys.readouterr().err


def test_a_whole_job_over_rest_where_the_operator_allows_it(both: Path, tmp_path: Path) -> None:
    bring(
        both,
        "burst",
        {"burst": "burst:rank"},
        "raise RuntimeError('no licence')",
        group=Group.CRITERIA,
    )
    for allowed in ([], ["last", "burst"], ["board"]):
        with serving(
            tmp_path / f"refuses{len(allowed)}{allowed[:1]}",
            code_paths=[both],
            allow_plugins=allowed,
        ) as server:
            with pytest.raises(ApiError, match="not allowed") as refused:
                server.client().submit(JOB)
            (error,) = refused.value.problem["errors"]
            assert error["field"] == ("space.criterion" if "board" in allowed else "target")
            if "burst" in allowed:
                listed(server.client())
    with serving(tmp_path / "data", code_paths=[both], allow_plugins=["board", "last"]) as server:
        client, store, settings = server.client(), server.store, server.services.settings
        job = client.submit(JOB)["id"]
        assert not {"boards", "lasting"} & set(sys.modules)
        lease = store.claim(job, store.start_attempt(job, 600), "driver", 600)
        context = OneProcess(
            settings,
            store,
            Blobs(settings.data_dir),
            lease,
            Heartbeat(store, lease, 600.0),
            store.get(job),
        )
        context.kernels = settings.data_dir
        spec = JobSpec.model_validate(store.get(job).spec)
        report = run_job(spec, context)
        assert report["target"]["spec"] == "board?batch=2&lanes=1" and report["met_budget"]
        # A later attempt finds another version.
        remove(both, "lasting")
        bring_last(both, "1.1")
        with pytest.raises(
            SearchFailed,
            match=r"plug-ins: the criterion was of lasting 1\.0 and is of lasting 1\.1 now\. ",
        ):
            run_job(spec, context)


def listed(client: Client) -> None:
    found = {item["name"]: item for item in client.criteria()["items"]}
    assert [name for name, item in found.items() if item["distribution"] == "trimtab"] == [
        *CRITERIA
    ]
    assert found["last"] == {
        "name": "last",
        "summary": "The last channels matter most.",
        "distribution": "lasting 1.0",
        "unusable": None,
    }
    assert "no licence" in found["burst"]["unusable"]
    for criterion, says in (("burst", "no licence"), ("fishher", "did you mean 'fisher'")):
        with pytest.raises(ApiError, match=says) as refused:
            client.submit(SPEC | {"space": {"criterion": criterion}})
        assert refused.value.problem["errors"][0]["field"] == "space.criterion"
