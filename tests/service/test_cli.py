"""The command line: every command's output, and one line with an exit code for what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from latency_tables.errors import MeasurementError
from service import cli, cli_server
from service.cli_common import aligned, exit_code
from service.client import Client
from service.errors import ApiError, LeaseLost, SourceError
from trimtab.__main__ import PACKAGES, strangers

JOB = ["--model", "python:service.demo_networks:digits_cnn", "--data", "digits"]
BUDGET = ["--budget", "latency=0.5"]
REPORT: dict[str, Any] = {
    "budget": {"latency": 0.5},
    "met_budget": True,
    "not_faster": False,
    "baseline": {
        "accuracy": 0.99,
        "accuracy_ci95": [0.97, 1.0],
        "latency_ms": {"p50": 0.2, "p90": 0.22, "predicted_p50": None},
        "size_bytes": 1_200_000,
        "macs": 6_000_000,
    },
    "compressed": {
        "accuracy": 0.98,
        "accuracy_ci95": [0.96, 0.99],
        "latency_ms": {"p50": 0.1, "p90": 0.11, "predicted_p50": 0.098},
        "size_bytes": 300_000,
        "macs": None,
    },
    "references": {"uniform_int8": None},
    "accuracy_drop": {"estimate": 0.01, "ci95": [-0.01, 0.03], "images": 355},
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of the test's own, and none of the user's settings."""
    for name in list(os.environ):
        if name.startswith("TRIMTAB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; gives its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def only_complaint(result: tuple[int, str, str], code: int = 2) -> str:
    """Checks that a command said one line and nothing else; gives the line."""
    assert result[0] == code, result
    assert result[1] == ""
    lines = [line for line in result[2].splitlines() if line]
    assert len(lines) == 1, result[2]
    assert lines[0].startswith("trimtab: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["compres"], "invalid choice"),
        (["compress", *JOB, *BUDGET], "--out"),
        (["compress", "--out", "x", *BUDGET], "--model"),
        (["compress", *JOB, "--out", "x"], "needs a budget"),
        (["compress", *JOB, "--out", "x", "--budget", "latency"], "key=number"),
        (["compress", *JOB, "--out", "x", "--budget", "latency=1.5"], "below 1"),
        (["compress", *JOB, "--out", "x", "--budget", "speed=0.5"], "unknown budget key"),
        (["compress", *JOB, "--out", "x", "--budget", "packed_size=2"], "below 1"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--evaluations", "0"], "evaluations"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--evaluations", "many"], "invalid int"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--agent", "am"], "did you mean 'amc'"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--target", "x87-ort"], "unknown target"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--target", "x86-ort?threads=0"], "threads"),
        (
            ["plan", *JOB, *BUDGET, "--target", "cuda-torch-h100-batch23"],
            "did you mean 'cuda-torch-h100-batch32'",
        ),
        (["compress", *JOB, "--out", "x", *BUDGET, "--seed", "-1"], "seed"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--scope", "all"], "invalid choice"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--max-drop", "0.1"], "max_drop"),
        (["compress", *JOB, "--out", "x", "--objective", "latency"], "needs max_drop"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--weights", "absent"], "no file"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--code-path", "absent"], "no folder"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--image-folder", "a"], "NAME=DIR"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--evaluators", "0"], "evaluators"),
        (["compress", *JOB, "--out", "x", *BUDGET, "--eval", "3"], "unrecognized"),
        (["plan", "--model", "timm:resnet19", "--data", "digits", *BUDGET], "did you mean"),
        (["plan", "--model", "timm:resnet18", "--data", "digit", *BUDGET], "did you mean"),
        (["submit"], "needs --model"),
        (["submit", "--file", "absent.json"], "absent.json"),
        (["submit", "--file", "x", *JOB], "leave out"),
        (["status", "--server", "here"], "no address"),
        (["measure", *JOB[:2], "--kit", "d"], "give --input CxHxW"),
        (["measure", *JOB[:2]], "give --input CxHxW"),
        (["measure", *JOB[:2], "--input", "3x32"], "CxHxW"),
        (["tables"], "required"),
        (["tables", "show", "nothing"], "there is no table"),
        (["tables", "show", "../x"], "there is no table"),
        (["tables", "check", "nothing"], "there is no table"),
        (["tables", "import", "file.csv"], "there is no file"),
        (["pack", "absent"], "no folder"),
        (["unpack", "absent", "--out", "x"], "no file"),
        (["serve", "--host", "0.0.0.0"], "TRIMTAB_API_KEY"),
        (["serve", "--port", "99999"], "port"),
        (["serve", "--allow", "os"], "cannot allow"),
        (["serve", "--code-path", "absent"], "no folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(run: Run, arguments: list[str], words: str) -> None:
    assert words in only_complaint(run(*arguments))
    assert not Path("x").exists()


def test_a_file_that_is_no_weights(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x80\x04nonsense")
    result = run("compress", *JOB, *BUDGET, "--weights", str(path), "--out", str(tmp_path / "out"))
    assert "no readable safetensors file" in only_complaint(result)
    assert not (tmp_path / "out").exists()


def test_out_may_not_be_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    result = run("compress", *JOB, *BUDGET, "--out", str(tmp_path / "out"))
    assert "is a file" in only_complaint(result)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stands in for the pipeline: records what it was given, prints, and gives a report."""
    seen = SimpleNamespace(fails=None, calls=[])

    def run_job(spec: Any, context: Any) -> dict[str, Any]:
        seen.calls.append((spec, context.weights_path, context.workdir))
        context.stage("search", "", 1, 2)
        sys.stdout.write("a library prints\n")
        if seen.fails is not None:
            raise seen.fails
        return REPORT

    def plan(spec: Any, sources: Any, weights: Any, data_dir: Path, plugins: Any) -> dict[str, Any]:
        seen.calls.append((spec, weights, data_dir))
        return {
            "smallest_budget": {"latency": 0.31},
            "seconds": 12.5,
            "decisions": [{"id": "conv/channels", "kind": "channels", "values": [8, 16]}],
        }

    monkeypatch.setitem(sys.modules, "service.pipeline", SimpleNamespace(run_job=run_job))
    monkeypatch.setitem(sys.modules, "service.planning", SimpleNamespace(plan=plan))
    yield seen


def test_compress_prints_both_networks_side_by_side(
    run: Run, pipeline: SimpleNamespace, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, str(weights))
    code, out, err = run(
        *("compress", *JOB, *BUDGET, "--weights", str(weights), "--out", str(tmp_path / "out")),
        *("--evaluations", "7", "--scope", "prune", "--exclude", "head", "--exclude", "stem"),
        *("--finetune-epochs", "2", "--seed", "3", "--max-seconds", "9", "--agent", "random"),
        *("--criterion", "fisher"),
    )
    assert code == 0
    assert "a library prints" not in out
    assert "a library prints" in err
    assert "search" in err
    assert "baseline" in out and "compressed" in out
    assert "2.00x faster" in out
    assert "budget (latency 0.5) met" in out
    assert "report.html" in out
    spec, weights_path, workdir = pipeline.calls[0]
    assert weights_path == weights
    assert workdir == tmp_path / "out"
    agent = spec.agent
    assert (agent.name, agent.evaluations, agent.seed) == ("random", 7, 3)
    assert spec.space.exclude == ("head", "stem")
    assert spec.space.criterion == "fisher"
    assert (spec.finetune.epochs, spec.max_seconds, spec.space.scope) == (2, 9.0, "prune")
    assert len(spec.model.weights) == 64


def test_compress_json_is_one_document(run: Run, pipeline: SimpleNamespace, tmp_path: Path) -> None:
    code, out, _ = run("compress", *JOB, *BUDGET, "--out", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out) == REPORT


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SourceError("no such thing"), 2, "no such thing"),
        (MeasurementError("did not settle"), 1, "did not settle"),
        (RuntimeError("surprise"), 1, "internal error, RuntimeError: surprise"),
        (OSError(28, "No space left"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "0 trials are kept"),
    ],
)
def test_what_a_job_may_end_with(
    run: Run,
    pipeline: SimpleNamespace,
    tmp_path: Path,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    pipeline.fails = error
    result = run("compress", *JOB, *BUDGET, "--out", str(tmp_path))
    assert result[0] == code
    assert result[1] == ""
    assert "Traceback" not in result[2]
    assert words in result[2].splitlines()[-1]
    assert result[2].splitlines()[-1].startswith("trimtab: ")


def test_a_traceback_on_request(
    run: Run, pipeline: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_DEBUG", "1")
    pipeline.fails = RuntimeError("surprise")
    assert "Traceback" in run("compress", *JOB, *BUDGET, "--out", str(tmp_path))[2]


def test_plan(run: Run, pipeline: SimpleNamespace, state: Path) -> None:
    code, out, _ = run("plan", *JOB, *BUDGET)
    assert code == 0
    assert "smallest budget: latency 0.31" in out
    assert "conv/channels  channels  8 16" in out
    assert pipeline.calls[0][2] == state
    assert json.loads(run("plan", *JOB, *BUDGET, "--json")[1])["seconds"] == 12.5


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A server in a dict: path to answer. Requests are kept under the key ``requests``."""
    answers: dict[str, Any] = {"requests": []}

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        answers["requests"].append(request)
        found = answers.get(f"{request.method} {request.url.path}")
        if found is None:
            problem = {"status": 404, "title": "Not found", "detail": "there is no job 'x'"}
            return httpx.Response(404, json=problem)
        if isinstance(found, bytes | str):
            return httpx.Response(200, content=found)
        return httpx.Response(found.get("status", 200), json=found)

    def client(args: Any) -> Client:
        return Client(args.server, transport=httpx.MockTransport(answer), patience=0.0)

    monkeypatch.setattr(cli_server, "_client", client)
    yield answers


def test_submit_uploads_weights_and_prints_the_id(
    run: Run, server: dict[str, Any], tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, str(weights))
    server["POST /v1/weights"] = {"id": "w1"}
    server["POST /v1/jobs"] = {"id": "j1", "state": "queued"}
    code, out, _ = run("submit", *JOB, *BUDGET, "--weights", str(weights), "--name", "mine")
    assert (code, out) == (0, "j1\n")
    body = json.loads(server["requests"][-1].content)
    assert body["model"] == {"source": JOB[1], "weights": "w1"}
    assert (body["name"], body["budget"]) == ("mine", {"latency": 0.5})
    # The body is a whole job: the server's own model takes it.
    from service.job_spec import JobSpec

    JobSpec.model_validate(body)


def test_submit_a_file(run: Run, server: dict[str, Any], tmp_path: Path) -> None:
    server["POST /v1/jobs"] = {"id": "j1", "state": "queued"}
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"model": {"source": "timm:resnet18"}}))
    assert json.loads(run("submit", "--file", str(path), "--json")[1])["id"] == "j1"
    path.write_text("[]")
    assert "is no job" in only_complaint(run("submit", "--file", str(path)))


def test_status_of_one_job_and_of_all(run: Run, server: dict[str, Any]) -> None:
    job = {
        "id": "j1", "name": "mine", "state": "running", "created": "2026-03-01T12:30:00.000+00:00",
        "stage": "search", "done": 3, "total": 9, "message": "best 0.9",
    }  # fmt: skip
    server["GET /v1/jobs"] = {"items": [job], "next_cursor": None}
    server["GET /v1/jobs/j1"] = job
    assert "j1   running  2026-03-01 12:30  mine" in run("status")[1]
    assert json.loads(run("status", "--json")[1]) == {"items": [job]}
    assert "search 3/9 best 0.9" in run("status", "j1")[1]
    server["GET /v1/jobs/j1"] = job | {"state": "succeeded", "report": REPORT}
    assert "2.00x faster" in run("status", "j1")[1]
    assert "no job 'x'" in only_complaint(run("status", "x"))


def test_watch_follows_to_the_end(run: Run, server: dict[str, Any]) -> None:
    events = "".join(
        f"id: {i}\nevent: {kind}\ndata: {json.dumps({'data': data, 'time': 0.0})}\n\n"
        for i, (kind, data) in enumerate(
            [
                ("state", {"state": "running"}),
                ("stage", {"stage": "search", "message": "", "done": 1, "total": 2}),
                ("trial", {"number": 0}),
                ("warning", {"message": "noisy machine"}),
                ("attempt", {"number": 2}),
            ],
            start=1,
        )
    )
    server["GET /v1/jobs/j1/events"] = events + "event: end\ndata: {}\n\n"
    server["GET /v1/jobs/j1"] = {"id": "j1", "state": "succeeded", "report": REPORT}
    code, out, err = run("watch", "j1")
    assert code == 0
    assert "2.00x faster" in out
    assert "search" in err and "noisy machine" in err and "attempt 2" in err
    failed = {"id": "j1", "state": "failed", "reason": {"detail": "weights do not fit"}}
    server["GET /v1/jobs/j1"] = failed
    code, _, err = run("watch", "j1", "--json")
    assert code == 1
    assert err.splitlines()[-1] == "trimtab: job j1 failed: weights do not fit"


def test_policies_fetch_and_cancel(run: Run, server: dict[str, Any], tmp_path: Path) -> None:
    costs = {"latency_ms": 0.1, "size_bytes": 2000.0, "macs": 3e6}
    server["GET /v1/jobs/j1/policies"] = {"items": [{"number": 4, "score": -0.2, "costs": costs}]}
    assert "4       -0.2000   0.100 ms  2.00 kB  3.00 M" in run("policies", "j1")[1]
    server["GET /v1/jobs/j1/policies"] = {"items": []}
    assert "no trial" in run("policies", "j1")[1]
    server["GET /v1/jobs/j1/artifacts"] = {"items": [{"name": "model.onnx"}]}
    server["GET /v1/jobs/j1/artifacts/model.onnx"] = b"onnx"
    assert run("fetch", "j1", "--out", str(tmp_path / "got"))[0] == 0
    assert (tmp_path / "got" / "model.onnx").read_bytes() == b"onnx"
    server["POST /v1/jobs/j1/cancel"] = {"id": "j1", "state": "cancelling"}
    assert run("cancel", "j1")[1] == "j1 cancelling\n"


def test_no_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Client

    def impatient(url: str, key: str | None) -> Client:
        return real(url, key, patience=0.0)

    monkeypatch.setattr("service.client.Client", impatient)
    result = run("status", "--server", "http://127.0.0.1:9")
    assert "trimtab serve" in only_complaint(result, code=1)


def test_exit_codes() -> None:
    assert exit_code(ApiError("x", {"status": 422})) == 2
    assert exit_code(ApiError("x", {"status": 503})) == 1
    assert exit_code(ApiError("x")) == 1
    assert exit_code(LeaseLost("x")) == 1
    assert exit_code(SourceError("x")) == 2


def test_aligned_columns() -> None:
    assert aligned([["a", "long"], ["bb", "1"]], right=(1,)) == "a   long\nbb     1"


def test_no_tables_yet(run: Run) -> None:
    assert "no tables of your own yet" in run("tables", "list")[1]
    items = json.loads(run("tables", "list", "--json")[1])["items"]
    assert items and all(item["shipped"] for item in items)


@pytest.mark.slow
def test_measuring_a_network_fills_a_table(run: Run) -> None:
    arguments = ("measure", *JOB[:2], "--input", "1x8x8", "--json")
    first = json.loads(run(*arguments)[1])
    assert first["measured"] > 3
    assert first["already_measured"] == 0
    second = json.loads(run(*arguments)[1])
    assert second["measured"] == 0
    assert second["table_digest"] == first["table_digest"]
    items = json.loads(run("tables", "list", "--json")[1])["items"]
    (table,) = [item for item in items if not item["shipped"]]
    assert table["rows"] == first["table_rows"]
    assert table["name"] in run("tables", "list")[1]
    assert "us" in run("tables", "show", table["name"])[1]
    shown = json.loads(run("tables", "show", table["name"], "--json")[1])
    assert shown["digest"] == table["digest"]
    code, out, _ = run("tables", "check", table["name"], "--rows", "2")
    assert "difference" in out and (" holds" in out) == (code == 0)


def test_all_packages_come_from_one_place() -> None:
    assert strangers() == {}
    assert {"service", "agents"} <= set(PACKAGES)


def test_a_package_that_hides_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("raise SystemExit('hijacked')\n")
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("trimtab: another package hides")
    assert str(tmp_path / "agents") in done.stderr
    assert "hijacked" not in done.stderr


def test_the_installed_command_answers_without_loading_torch() -> None:
    code = (
        "import sys; from service.cli import main; main(['--version']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["trimtab", done.stdout.split()[1], "False"]
