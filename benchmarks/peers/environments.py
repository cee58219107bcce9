"""Virtual environments of the peers: each has exact versions of its own, and torch from the environment that made it.

A file of requirements lists what a peer needs beyond this environment (whose site-packages come last on its import
path), so nothing large is installed twice. Nothing is resolved: what is listed is installed, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.registry import Peer

FOLDER = Path(__file__).parent
REQUIREMENTS = FOLDER / "requirements"
ROOT = FOLDER.parents[1]
_LAST = "zz_environment_that_made_this.pth"
_DONE = ".requirements"


def home() -> Path:
    """Where the environments are kept: ``TRIMTAB_PEERS``, or a folder of the user's cache."""
    kept = os.environ.get("TRIMTAB_PEERS")
    return Path(kept) if kept else Path.home() / ".cache" / "trimtab-peers"


def interpreter(environment: str) -> Path:
    return home() / environment / "bin" / "python"


def ready(environment: str) -> bool:
    """Whether it was made whole, of the requirements as they are now."""
    done = home() / environment / _DONE
    return done.exists() and done.read_text() == _digest(environment)


def make(environment: str) -> None:
    """Makes an environment anew.

    Raises:
        RuntimeError: pip failed; what it said is in the message.
    """
    folder = home() / environment
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / _LAST).write_text("\n".join(site.getsitepackages()) + "\n")
    command = [
        sys.executable, "-m", "pip", "--python", str(interpreter(environment)), "install", "--quiet", "--no-deps",
        "--requirement", str(REQUIREMENTS / f"{environment}.txt"),
    ]  # fmt: skip
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"pip could not make {folder}:\n{made.stderr.strip()[-2000:]}")
    (folder / _DONE).write_text(_digest(environment))


def run(peer: Peer, assignment: Path, out: Path, arguments: list[str], here: bool) -> int:
    """Runs a peer's search and returns its exit code; it prints as it goes.

    Args:
        here: in this environment, where the peer is installed too.

    Raises:
        RuntimeError: its environment is not there.
    """
    if not here and not ready(peer.environment):
        raise RuntimeError(
            f"{peer.name}: no environment in {home() / peer.environment}; run "
            f"`python -m benchmarks.peers environments {peer.name}` first"
        )
    python = Path(sys.executable) if here else interpreter(peer.environment)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Telemetry of openvino's and NNCF's would wait for a network.
    own = {"PYTHONPATH": os.pathsep.join(paths), "NNCF_CI": "1", "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", peer.module, str(assignment), str(out), *arguments]
    return subprocess.run(command, env={**os.environ, **own}, cwd=out, check=False).returncode


def _digest(environment: str) -> str:
    text = (REQUIREMENTS / f"{environment}.txt").read_text()
    return hashlib.sha256(f"{text}{sys.prefix}{sys.version}".encode()).hexdigest()
