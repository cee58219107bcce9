"""The recorded spaces of a contest, each with the surrogate that scores on it and how far that can be trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import evaluation.gaussian_process
import evaluation.surrogate
import evaluation.surrogate_fit
from evaluation.recording import Recording, load_recording
from evaluation.surrogate import Surrogate
from evaluation.surrogate_fit import SurrogateFit, check
from search_spaces import Policy

RECORDINGS = Path(__file__).with_name("recordings")
# Surrogates are checked at these shares of the latency, whatever the contest's budgets are.
CHECKED = (0.35, 0.5, 0.7)


@dataclass(frozen=True)
class ContestSpace:
    """A recording, ready to be searched on.

    Attributes:
        name: of the recording's file, without its ending.
        path: of the recording's file.
        digest: of the recording and of the surrogate's code: scores of equal digests compare.
        recording: real evaluations.
        surrogate: scores every policy, the recorded ones too.
        fit: how well it tells held-out rows.
    """

    name: str
    path: Path
    digest: str
    recording: Recording
    surrogate: Surrogate
    fit: SurrogateFit

    def best_recorded(self, share: float) -> tuple[float, Policy] | None:
        """The recorded policy within a latency budget that the surrogate scores highest, and its score."""
        pricer = self.recording.budget(share)
        costs = self.recording.models["latency_ms"].price(self.recording.indices())
        scores = self.surrogate.predict(self.recording.indices())
        scores[costs * pricer.margin("latency_ms") > pricer.limits["latency_ms"]] = -np.inf
        best = int(scores.argmax())
        return (
            (float(scores[best]), self.recording.rows[best].policy)
            if np.isfinite(scores[best])
            else None
        )

    @cached_property
    def virtual_seconds(self) -> tuple[float, float, float]:
        """Least seconds, seconds at no MACs and seconds a MAC of an evaluation: a line through the recorded ones."""
        seconds = np.array([row.evaluation.seconds for row in self.recording.rows])
        macs = self.recording.models["macs"].price(self.recording.indices())
        slope, start = np.polyfit(macs, seconds, 1)
        return max(float(np.median(seconds)) / 10, 1e-3), float(start), float(slope)


def find(names: Sequence[str]) -> list[Path]:
    """Recording files of names in ``benchmarks/recordings`` or paths; all there are where no name is given."""
    if not names:
        return sorted(RECORDINGS.glob("*.parquet"))
    paths = [
        Path(name) if name.endswith(".parquet") else RECORDINGS / f"{name}.parquet"
        for name in names
    ]
    for path in paths:
        if not path.exists():
            known = ", ".join(p.stem for p in sorted(RECORDINGS.glob("*.parquet")))
            raise SystemExit(f"there is no recording {path}; in {RECORDINGS}: {known or 'none'}")
    return paths


def load_space(path: Path) -> ContestSpace:
    """Loads a recording and its surrogate, which is fitted, checked and kept beside it when it is new.

    Raises:
        RecordingError: the file is no recording, or too small for a surrogate.
    """
    recording, digest = load_recording(path), _digest(path)
    kept = path.with_suffix(".surrogate.json")
    if kept.exists():
        data = json.loads(kept.read_text())
        if data["digest"] == digest:
            surrogate = Surrogate.from_json(recording, data["surrogate"])
            fit = SurrogateFit.from_json(data["fit"])
            return ContestSpace(path.stem, path, digest, recording, surrogate, fit)
    surrogate, fit = Surrogate.of(recording), check(recording, CHECKED)
    data = {"digest": digest, "fit": fit.to_json(), "surrogate": surrogate.to_json()}
    kept.write_text(json.dumps(data, indent=1) + "\n")
    return ContestSpace(path.stem, path, digest, recording, surrogate, fit)


def _digest(path: Path) -> str:
    parts = [path]
    modules = (evaluation.gaussian_process, evaluation.surrogate, evaluation.surrogate_fit)
    parts += [Path(str(module.__file__)) for module in modules]
    return hashlib.sha256(
        b"".join(hashlib.sha256(p.read_bytes()).digest() for p in parts)
    ).hexdigest()[:16]
