"""Agents that other distributions bring: small real distributions in a folder on the import path."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from plugin_folder import bring
from rest_server import SPEC, serving

from agents.objective import Objective
from agents.random_search import RandomAgent
from service.job_spec import JobSpec
from service.local_context import job_key
from service.plugin_agents import builder
from service.plugin_trial import tried
from service.plugins import ALL, Group, Plugin, PluginError, installed, load, require
from service.settings import Settings
from tests.agents.agent_toys import ToyResNet

GOOD = '''
def build(space, pricer, evaluations, seed, objective):
    """Draws with a seed of its own.

    At length.
    """
    from agents.random_search import RandomAgent

    return RandomAgent(space, pricer, seed + 1)

NUMBER = 3
'''


def spec(agent: str, **changes: Any) -> JobSpec:
    return JobSpec.model_validate(SPEC | {"agent": {"name": agent}} | changes)


def test_a_plug_in_s_agent_is_built_by_its_name(plugin_folder: Path) -> None:
    bring(plugin_folder, "far_draws", {"far": "far_draws:build"}, GOOD)
    assert installed(Group.AGENTS, ["far"]) == (Plugin("far", "far_draws 1.0"),)
    pricer = ToyResNet(4).pricer(latency_ms=0.6)
    agent = builder("far", [ALL])(pricer.space, pricer, 10, 4, Objective())
    own = RandomAgent(pricer.space, pricer, 5)
    assert [p.policy for p in agent.ask(4)] == [p.policy for p in own.ask(4)]
    ours = builder("random", [])(pricer.space, pricer, 10, 5, Objective())
    assert isinstance(ours, RandomAgent)


def test_nothing_is_loaded_that_the_operator_does_not_allow(plugin_folder: Path) -> None:
    mark = plugin_folder / "was here"
    bring(plugin_folder, "nosy", {"nosy": "nosy:build"}, f"open({str(mark)!r}, 'w')\n{GOOD}")
    (plugin,) = installed(Group.AGENTS, ["another"])
    assert "not allowed" in (plugin.error or "") and "TRIMTAB_ALLOW_PLUGINS" in (plugin.error or "")
    assert tried(Group.AGENTS, ["another"]) == (plugin,)
    for allow in ([], ["another"]):
        with pytest.raises(PluginError, match="not allowed"):
            load(Group.AGENTS, "nosy", allow)
    assert installed(Group.AGENTS, [ALL])[0].error is None
    assert not mark.exists() and "nosy" not in sys.modules
    load(Group.AGENTS, "nosy", ["nosy"])
    assert mark.exists()


def test_our_own_names_cannot_be_taken_nor_one_name_by_two(plugin_folder: Path) -> None:
    bring(plugin_folder, "impostor", {"auto": "impostor:build"}, GOOD)
    bring(plugin_folder, "one", {"same": "one:build"}, GOOD)
    bring(plugin_folder, "two", {"same": "two:build"}, GOOD)
    taken, twice = installed(Group.AGENTS, [ALL])
    assert taken.name == "auto" and "Trimtab's own" in (taken.error or "")
    assert twice.distribution == "one 1.0 and two 1.0" and "more than one" in (twice.error or "")
    with pytest.raises(PluginError, match=r"one 1\.0 and two 1\.0"):
        load(Group.AGENTS, "same", [ALL])
    assert builder("auto", [ALL]).__module__.startswith("agents.")


def test_what_cannot_be_loaded_says_why(plugin_folder: Path) -> None:
    points = {"lost": "broken:nothing", "number": "broken:NUMBER"}
    bring(plugin_folder, "broken", points, GOOD)
    bring(plugin_folder, "burst", {"burst": "burst:build"}, "raise RuntimeError('no licence')")
    with pytest.raises(PluginError, match=r"'lost' of broken 1.0 .*AttributeError"):
        load(Group.AGENTS, "lost", [ALL])
    with pytest.raises(PluginError, match="no function"):
        load(Group.AGENTS, "number", [ALL])
    with pytest.raises(PluginError, match="RuntimeError: no licence"):
        load(Group.AGENTS, "burst", [ALL])
    with pytest.raises(PluginError, match="no plug-in"):
        load(Group.AGENTS, "nobody", [ALL])


def test_a_job_names_a_plug_in_that_is_there_and_can_be_used() -> None:
    plugins = [Plugin("far", "far_draws 1.0", "Draws."), Plugin("sad", "sad 2", error="no licence")]
    require(Group.AGENTS, "far", plugins)
    require(Group.AGENTS, "amc", ())
    with pytest.raises(PluginError, match="did you mean 'far'"):
        require(Group.AGENTS, "fare", plugins)
    with pytest.raises(PluginError, match="sad 2 is unusable: no licence"):
        require(Group.AGENTS, "sad", plugins)


def test_a_job_is_not_continued_with_another_version_of_its_plug_in(plugin_folder: Path) -> None:
    keys = []
    for version in ("1.0", "1.1"):
        bring(plugin_folder, "far_draws", {"far": "far_draws:build"}, GOOD, version)
        keys.append(job_key(spec("far"), None))
        (plugin_folder / f"far_draws-{version}.dist-info" / "entry_points.txt").unlink()
    assert keys[0] != keys[1]
    assert job_key(spec("random"), None) == job_key(spec("random"), None)


def test_the_server_lists_plug_ins_and_survives_broken_ones(tmp_path: Path) -> None:
    site = tmp_path / "site"
    bring(site, "far_draws", {"far": "far_draws:build"}, GOOD)
    bring(site, "burst", {"burst": "burst:build"}, "raise RuntimeError('no licence')")
    bring(site, "killer", {"killer": "killer:build"}, "import os\nos._exit(7)")
    bring(site, "nosy", {"nosy": "nosy:build"}, GOOD)
    allowed = ["far", "burst", "killer"]
    with serving(tmp_path / "data", code_paths=[site], allow_plugins=allowed) as server:
        found = {item["name"]: item for item in server.client().agents()["items"]}
        assert found["random"]["unusable"] is None and found["random"]["distribution"] == "trimtab"
        assert found["far"] == {
            "name": "far",
            "summary": "Draws with a seed of its own.",
            "distribution": "far_draws 1.0",
            "unusable": None,
        }
        assert "RuntimeError: no licence" in found["burst"]["unusable"]
        assert "code 7" in found["killer"]["unusable"]
        assert "not allowed" in found["nosy"]["unusable"]
        assert server.client().submit(SPEC | {"agent": {"name": "far"}})["state"] == "queued"
        for name in ("burst", "killer", "nosy", "nobody"):
            answer = server.http.post("/v1/jobs", json=SPEC | {"agent": {"name": name}})
            assert answer.status_code == 422, answer.text
            assert answer.json()["errors"][0]["field"] == "agent.name"
        # The server itself loaded none of them.
        assert not {"far_draws", "burst", "killer", "nosy"} & set(sys.modules)


def test_drivers_get_what_the_operator_allowed(tmp_path: Path) -> None:
    environ = {"TRIMTAB_DATA_DIR": str(tmp_path), "TRIMTAB_ALLOW_PLUGINS": "far, near"}
    settings = Settings.load(environ)
    assert settings.allow_plugins == ("far", "near")
    assert json.loads(settings.write_driver_file().read_text())["allow_plugins"] == ["far", "near"]
    assert Settings.from_driver_file(tmp_path / "driver.json").allow_plugins == ("far", "near")
    assert Settings.load({"TRIMTAB_DATA_DIR": str(tmp_path)}).allow_plugins == ()
