"""What the server asks of targets that plug-ins make: another process makes them, since it loads none of their code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.job_spec import JobSpec
from service.plugin_targets import catalog_of
from service.plugins import PluginError
from service.problems import FieldError, ReportedError, field, problem_of
from service.python_factory import extend_import_path
from service.settings import Settings
from service.target_items import target_item, unusable_item
from service.targets import job_targets

_SECONDS = 120.0


def check_targets(settings: Settings, spec: JobSpec) -> None:
    """``job_targets`` of a job, with plug-ins.

    Raises:
        FieldError: what that found, of its field.
        PluginError: the process came to no answer.
    """
    answer = _ask(settings, {"spec": spec.model_dump(mode="json")})
    if problem := answer.get("problem"):
        error = ReportedError(problem)
        for wrong in problem.get("errors", ()):
            raise FieldError(wrong["field"], error)
        raise error


def described(settings: Settings, name: str, distribution: str) -> dict[str, Any]:
    """What a list says of a target, see ``target_item``; of one whose code breaks its process, that it does."""
    try:
        item: dict[str, Any] = _ask(settings, {"name": name, "distribution": distribution})["item"]
    except PluginError as error:
        return unusable_item(name, str(error), distribution)
    return item


def _ask(settings: Settings, question: dict[str, Any]) -> dict[str, Any]:
    # -P: no file of the current folder may be taken for one of our packages.
    command = [sys.executable, "-P", "-m", "service.target_process"]
    command.append(str(settings.write_driver_file()))
    try:
        done = subprocess.run(
            command, input=json.dumps(question).encode(), capture_output=True, timeout=_SECONDS
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise PluginError(
            f"making the plug-in's target took more than {_SECONDS:.0f} s; choose another target"
        ) from None
    except (ValueError, IndexError):
        raise PluginError(
            f"the process that made the plug-in's target ended with code {done.returncode} and without an answer; "
            "choose another target"
        ) from None
    return answer


def main(arguments: Sequence[str]) -> int:
    """The process: a question on standard input, the answer on the last line of output."""
    settings = Settings.from_driver_file(Path(arguments[0]))
    question = json.load(sys.stdin)
    # Whatever plug-ins print goes to the log.
    output, sys.stdout = sys.stdout, sys.stderr
    answer: dict[str, Any] = {}
    try:
        extend_import_path(settings.code_paths)
        catalog = catalog_of(settings.data_dir, settings.allow_plugins)
        if "spec" in question:
            spec = JobSpec.model_validate(question["spec"])
            job_targets(spec, catalog, settings.ray_address == "embedded", field)
        else:
            name, distribution = question["name"], question["distribution"]
            answer["item"] = target_item(catalog, name, distribution)
    except Exception as error:
        answer = {"problem": problem_of(error)}
    output.write("\n" + json.dumps(answer) + "\n")
    output.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
