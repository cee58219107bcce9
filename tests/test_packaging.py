"""What is installed: pinned constraints, package data, and scripts that run."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned_without_local_paths() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    pins = dict(line.split("==") for line in lines)
    names = {name.lower().replace("_", "-") for name in pins}
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["postgres"]]
    assert {_name(requirement) for requirement in wanted} <= names
    assert not [line for line in lines if re.search(r"[/@ ]|^-|^nvidia|^cuda", line)]
    assert (pins["torch"], pins["torchvision"]) == ("2.14.1", "0.29.1")


def test_the_report_template_is_package_data() -> None:
    assert resources.files("service").joinpath("pages/report.html").is_file()
    assert (
        "*.html"
        in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
            "package-data"
        ]["service.pages"]
    )


def test_the_scripts_are_sound() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    for target in ("demo", "test", "lint"):
        done = subprocess.run(
            ["make", "-n", target, "TRIMTAB_VENV=/nowhere"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "/nowhere/bin/python" in done.stdout
