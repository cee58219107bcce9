"""The commands that talk to a server: submit, status, watch, policies, fetch, cancel."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli_common import FAILED, INTERRUPTED, OK, aligned, complain, write, write_json
from service.cli_job import add_job_options, job_document
from service.errors import RequestError
from service.summary import count, file_size, milliseconds, side_by_side

if TYPE_CHECKING:
    from service.client import Client, Event

DEFAULT_URL = "http://127.0.0.1:8500"
URL_VARIABLE, KEY_VARIABLE = "TRIMTAB_URL", "TRIMTAB_API_KEY"


def add_commands(commands: Any) -> None:
    submit = commands.add_parser("submit", help="send a job to a server")
    submit.add_argument(
        "--file", metavar="F", help="body of POST /v1/jobs instead of options; - is standard input"
    )
    submit.add_argument("--name", default="", help="shown in lists")
    add_job_options(submit, required=False)
    submit.set_defaults(run=run_submit)
    status = commands.add_parser("status", help="one job, or all of them")
    status.add_argument("job", nargs="?", metavar="JOB")
    status.set_defaults(run=run_status)
    for name, run, text in (
        ("watch", run_watch, "follow a job until it ends"),
        ("policies", run_policies, "the Pareto front of a job"),
        ("fetch", run_fetch, "download a job's files"),
        ("cancel", run_cancel, "cancel a job"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("job", metavar="JOB")
        command.set_defaults(run=run)
    commands.choices["fetch"].add_argument("--out", type=Path, metavar="DIR", help="default: JOB")
    for name in ("submit", "status", "watch", "policies", "fetch", "cancel"):
        command = commands.choices[name]
        command.add_argument(
            "--server", metavar="URL", default=os.environ.get(URL_VARIABLE, DEFAULT_URL),
            help=f"default: ${URL_VARIABLE} or {DEFAULT_URL}; the key comes from ${KEY_VARIABLE}",
        )  # fmt: skip
        command.add_argument("--json", action="store_true")


def run_submit(args: argparse.Namespace) -> int:
    """Prints the job's id."""
    document = _document(args)
    with _client(args) as client:
        if args.weights is not None:
            document["model"]["weights"] = client.upload_weights(args.weights)["id"]
        job = client.submit(document)
    if args.json:
        write_json(job)
    else:
        write(job["id"])
    return OK


def run_status(args: argparse.Namespace) -> int:
    with _client(args) as client:
        if args.job is None:
            jobs = list(client.jobs())
            if args.json:
                write_json({"items": jobs})
            else:
                write(_job_list(jobs) if jobs else "no jobs")
            return OK
        job = client.get(args.job)
    if args.json:
        write_json(job)
    else:
        write(_job_text(job))
    return OK


def run_watch(args: argparse.Namespace) -> int:
    """Exit 0 when the job succeeded, 1 when it failed or was cancelled, 130 after Ctrl-C."""
    from service.progress import StageProgress

    with _client(args) as client, StageProgress() as progress:
        try:
            for event in client.events(args.job):
                show_event(progress, event)
        except KeyboardInterrupt:
            progress.close()
            complain(f"no longer watching; job {args.job} goes on")
            return INTERRUPTED
        job = client.get(args.job)
    if args.json:
        write_json(job)
    else:
        write(_job_text(job))
    if job["state"] != "succeeded":
        complain(f"job {args.job} {job['state']}{_reason(job)}")
    return OK if job["state"] == "succeeded" else FAILED


def run_policies(args: argparse.Namespace) -> int:
    with _client(args) as client:
        found = client.policies(args.job)
    if args.json:
        write_json({"items": found})
        return OK
    if not found:
        write("no trial within the budget yet")
        return OK
    rows = [["trial", "search score", "predicted", "size", "MACs"]]
    for policy in found:
        costs = policy.get("costs") or {}
        rows.append(
            [
                str(policy.get("number", "")),
                f"{policy['score']:.4f}",
                milliseconds(costs.get("latency_ms")),
                file_size(costs.get("size_bytes")),
                count(costs.get("macs")),
            ]
        )
    write(aligned(rows, right=range(5)))
    return OK


def run_fetch(args: argparse.Namespace) -> int:
    out = args.out or Path(args.job)
    with _client(args) as client:
        files = client.fetch(args.job, out)
    if args.json:
        write_json({"folder": str(out), "files": [str(path) for path in files]})
    else:
        write("\n".join(str(path) for path in files) or f"job {args.job} has no files yet")
    return OK


def run_cancel(args: argparse.Namespace) -> int:
    with _client(args) as client:
        job = client.cancel(args.job)
    if args.json:
        write_json(job)
    else:
        write(f"{args.job} {job['state']}")
    return OK


def show_event(progress: Any, event: Event) -> None:
    """Shows one event of a job on a ``StageProgress``."""
    data = event.data
    if event.kind == "stage":
        stage = str(data.get("stage") or data.get("name") or "")
        progress.show(stage, data.get("message", ""), data.get("done", 0), data.get("total", 0))
    elif event.kind == "warning":
        progress.say(f"warning: {data.get('message', '')}")
    elif event.kind == "state":
        progress.show(str(data.get("state", "")))
    elif event.kind == "attempt" and data.get("number", 1) > 1:
        progress.say(f"attempt {data['number']}: goes on from the recorded trials")


def _client(args: argparse.Namespace) -> Client:
    from service.client import Client

    if not args.server.startswith(("http://", "https://")):
        raise RequestError(f"--server {args.server!r} is no address; use {DEFAULT_URL}")
    return Client(args.server, os.environ.get(KEY_VARIABLE) or None)


def _document(args: argparse.Namespace) -> dict[str, Any]:
    if args.file is None:
        for option in ("model", "data"):
            if getattr(args, option) is None:
                raise RequestError(f"submit needs --{option} (or --file with a whole job)")
        return {"name": args.name, **job_document(args, None)}
    if args.model is not None or args.data is not None:
        raise RequestError("--file holds the whole job; leave out --model and --data")
    try:
        text = sys.stdin.read() if args.file == "-" else Path(args.file).read_text("utf-8")
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise RequestError(f"--file {args.file}: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise RequestError(f"--file {args.file} is no job; see the body of POST /v1/jobs")
    return document | ({"name": args.name} if args.name else {})


def _job_list(jobs: list[dict[str, Any]]) -> str:
    rows = [["job", "state", "created (UTC)", "name"]]
    for job in jobs:
        rows.append([job["id"], job["state"], _when(job.get("created")), job.get("name") or ""])
    return aligned(rows)


def _job_text(job: Mapping[str, Any]) -> str:
    lines = [f"{job['id']}  {job['state']}{_reason(job)}"]
    if job["state"] in ("running", "cancelling") and job.get("stage"):
        total = f" {job.get('done', 0)}/{job['total']}" if job.get("total") else ""
        lines.append(f"{job['stage']}{total} {job.get('message') or ''}".rstrip())
    if job.get("report"):
        lines += ["", side_by_side(job["report"])]
    return "\n".join(lines)


def _reason(job: Mapping[str, Any]) -> str:
    reason = job.get("reason") or {}
    text = reason.get("detail") or reason.get("title")
    return f": {text}" if text else ""


def _when(created: Any) -> str:
    """``2026-03-01 12:30`` from the server's ISO 8601 time (UTC)."""
    return str(created or "")[:16].replace("T", " ")
