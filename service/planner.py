"""Runs a dry run in a process of its own: it loads torch and networks, which the server does
not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from service.errors import RequestError
from service.job_spec import JobSpec
from service.problems import ReportedError, problem_of
from service.python_factory import extend_import_path
from service.settings import Settings

_SECONDS = 600.0


async def run_plan(settings: Settings, spec: JobSpec, weights: Path | None) -> dict[str, Any]:
    """Waits for the dry run without blocking the event loop; ends it when nobody waits any more.

    Raises:
        TrimtabError: what the dry run raised.
    """
    process = await asyncio.create_subprocess_exec(
        # -P: nothing of the current folder may be taken for one of our packages.
        *(sys.executable, "-P", "-m", "service.planner", str(settings.write_driver_file())),
        *([] if weights is None else [str(weights)]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await asyncio.wait_for(
            process.communicate(spec.model_dump_json().encode()), _SECONDS
        )
    except TimeoutError:
        raise RequestError(f"the dry run took longer than {_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    lines = output.splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"the dry run's process ended with code {process.returncode}") from None
    if "problem" in answer:
        raise ReportedError(answer["problem"])
    plan: dict[str, Any] = answer["plan"]
    return plan


def main(arguments: list[str]) -> None:
    """The process: spec on standard input, the plan or a problem document on the last line of
    output.
    """
    settings = Settings.from_driver_file(Path(arguments[0]))
    weights = Path(arguments[1]) if len(arguments) > 1 else None
    spec = JobSpec.model_validate_json(sys.stdin.buffer.read())
    # Whatever libraries print goes to the log.
    output, sys.stdout = sys.stdout, sys.stderr
    answer: dict[str, Any]
    try:
        from service.planning import plan

        extend_import_path(settings.code_paths)
        answer = {
            "plan": plan(
                spec, settings.sources(), weights, settings.data_dir, settings.allow_plugins
            )
        }
    except Exception as error:
        answer = {"problem": problem_of(error)}
    output.write("\n" + json.dumps(answer) + "\n")
    output.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
