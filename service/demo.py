"""``make demo``: a network trained on scikit-learn's digits goes in over REST and comes out faster.

Run as ``python -m service.demo [--out DIR]``. Everything it starts it also stops.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.cli_common import FAILED, INTERRUPTED, OK, complain, write
from service.cli_server import show_event
from service.client import Client
from service.errors import RuntimeUnavailable
from service.progress import StageProgress, duration
from service.summary import percent, side_by_side

BUDGET = {"latency": 0.4}
EVALUATIONS = 40
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0 when the job succeeded, 1 when it did not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m service.demo")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    try:
        with StageProgress() as progress:
            job = run(args.out, progress)
    except KeyboardInterrupt:
        complain("demo interrupted")
        return INTERRUPTED
    except Exception as error:
        complain(f"demo failed: {error}; see {args.out / '.data' / 'server.log'}")
        return FAILED
    if job["state"] != "succeeded":
        complain(f"demo job {job['state']}: {(job.get('reason') or {}).get('detail', '')}")
        return FAILED
    write(f"\n{side_by_side(job['report'])}\n")
    write(
        f"{duration(time.monotonic() - began)}; files in {args.out}/, page {args.out}/report.html"
    )
    return OK


def run(out: Path, progress: StageProgress) -> dict[str, Any]:
    """Trains, starts the service, submits, waits and fetches; returns the job.

    Args:
        out: gets the job's files; ``.data`` in it holds the service's state and log.
    """
    import torch

    from service.demo_networks import train_digits_cnn

    torch.set_num_threads(1)  # on so small a network a second thread costs more than it gives
    data_dir = out.resolve() / ".data"
    _clear(data_dir)
    weights = data_dir / "digits_cnn.safetensors"
    progress.show("training the network")
    right = train_digits_cnn(
        weights,
        report=lambda done, total: progress.show("training the network", "epochs", done, total),
    )
    progress.say(f"trained a small residual network on digits: {percent(right)} of the test split")
    progress.show("starting the service")
    with service(data_dir) as url, Client(url) as client:
        progress.say(f"service at {url}")
        uploaded = client.upload_weights(weights)["id"]
        job = client.submit(
            {
                "name": f"digits at {BUDGET['latency']:g} of the time",
                "model": {
                    "source": "python:service.demo_networks:digits_cnn",
                    "weights": uploaded,
                },
                "data": {"source": "digits"},
                "target": "x86-ort",
                "budget": BUDGET,
                "agent": {"name": "auto", "evaluations": EVALUATIONS, "seed": 0},
            }
        )
        progress.say(f"job {job['id']} submitted")
        try:
            for event in client.events(job["id"]):
                show_event(progress, event)
        except KeyboardInterrupt:
            client.cancel(job["id"])
            raise
        found = client.get(job["id"])
        progress.close()
        client.fetch(job["id"], out)
    return found


@contextlib.contextmanager
def service(data_dir: Path) -> Iterator[str]:
    """``trimtab serve`` on a free loopback port with state of its own; stopped on the way out.

    Raises:
        RuntimeUnavailable: it did not become ready.
    """
    port, dashboard = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    # Settings of the user's own service must not reach the demo's.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIMTAB_")}
    environment["TRIMTAB_DATA_DIR"] = str(data_dir)
    command = [sys.executable, "-P", "-m", "trimtab", "serve", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--ray-dashboard-port", str(dashboard)]
    with (data_dir / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait_until_ready(process, url)
        yield url
    finally:
        _stop(process, data_dir)


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _clear(data_dir: Path) -> None:
    """Leaves of an earlier demo nothing but the latency tables: its jobs must not start again."""
    from service.embedded_ray import EmbeddedRay

    if (data_dir / "ray").is_dir():
        EmbeddedRay(data_dir / "ray", 0, 1).stop()
    data_dir.mkdir(parents=True, exist_ok=True)
    for path in data_dir.iterdir():
        if path.is_dir() and path.name != "tables":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None:
                raise RuntimeUnavailable(f"the service ended with code {process.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeUnavailable(f"no answer from the service in {_START_SECONDS:.0f} s")
            time.sleep(0.3)


def _stop(process: subprocess.Popen[bytes], data_dir: Path) -> None:
    """Asks the server to end, which ends what it started; insists when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.returncode != 0:
        # It did not come to end its Ray, which lives in a session of its own.
        from service.embedded_ray import EmbeddedRay

        EmbeddedRay(data_dir / "ray", 0, 1).stop()


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
