"""The stage ``choose`` of ``benchmarks.headline`` for one network: files timed, policies scored, starts written."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.headline import (
    CANDIDATE,
    MARGIN,
    SHAPE,
    Goal,
    original_of,
    prepare_data,
)
from benchmarks.headline_candidates import (
    Priced,
    TimeModel,
    export_all,
    first_design,
    known,
    measured,
    near,
    priced_by,
    uniform_int8,
)
from compressors import Compressor, save
from compressors.compressor import Compressed
from compressors.structure import example_input
from compressors.training_images import TensorImages
from evaluation.scoring import PolicyScorer
from evaluation.splits import Examples
from latency_tables import parse_target
from search_spaces import Policy
from search_spaces.network_space import build_space

# A file this far below its bound leaves too much of it unused.
_LEAST_USED = 0.88
# Policies that are scored for each purpose, the largest first.
_SCORED = 5


class Choice:
    """See the module's docstring."""

    def __init__(self, args: argparse.Namespace, name: str, goal: Goal) -> None:
        self._args, self._name, self._goal = args, name, goal
        self._folder: Path = args.work / "starts" / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files: Path = args.work / "files" / name
        self._target = parse_target("x86-ort")
        data = prepare_data(args.work / "data")
        self._original = original_of(args, name)
        calibration = TensorImages.load(data["calibration"])
        images = calibration.normalised(calibration.images)
        folded = Compressor(self._original, images, []).folded
        self._space = build_space(folded, example_input(SHAPE), self._target)
        groups = list(self._space.groups.values())
        self._compressor = Compressor(
            self._original, images, groups, reduce_range=self._target.reduce_range
        )
        held_out = TensorImages.load(data["held_out"])
        examples = Examples(held_out.normalised(held_out.images), held_out.labels)
        self._scorer = PolicyScorer(self._compressor, self._space, examples)

    def export_designs(self) -> None:
        """The files that the time model is fitted to."""
        args = self._args
        self._designs = first_design(self._space, self._name, args.designs, args.seed)
        export_all(self._compressor, self._space, self._designs, self._files)
        print(f"{self._name}: {len(self._designs)} files exported", flush=True)

    def time_designs(self) -> None:
        """Times them, then the ones that the model finds near the bound."""
        args = self._args
        uniform = uniform_int8(self._space)
        times = self._timed(self._designs, uniform)
        model = TimeModel(self._space)
        error = model.fit(times)
        print(f"{self._name}: time model off by {error:.3f} on {len(times)} files", flush=True)
        low, high = _LEAST_USED * self._goal.bound, MARGIN * self._goal.bound
        found = near(self._space, model, low, high, args.near, args.seed + 1)
        times |= self._timed([uniform, *found], uniform)
        ids = tuple(d.id for d in self._space.space.decisions)
        rows = [
            {"policy": p.to_json(ids), "ratio": ratio, "ratio_ci95": interval}
            for p, (ratio, interval) in times.items()
        ]
        self._priced.write_text(json.dumps(rows, indent=1))

    @property
    def _priced(self) -> Path:
        return self._folder / "priced.json"

    def _timed(
        self, policies: Sequence[Policy], uniform: Policy
    ) -> dict[Policy, tuple[float, tuple[float, float]]]:
        files = export_all(self._compressor, self._space, list(policies), self._files)
        found = measured(self._target, files, uniform.digest, self._args.seconds)
        return {policy: found[policy.digest] for policy in policies}

    def write_starts(self) -> dict[str, Any]:
        """Scores what lies within the bound and leaves a folder a candidate."""
        rows = json.loads(self._priced.read_text())
        times = {
            Policy.from_json(row["policy"]): (row["ratio"], tuple(row["ratio_ci95"]))
            for row in rows
        }
        model = TimeModel(self._space)
        print(f"{self._name}: time model off by {model.fit(times):.3f} on {len(times)} files")
        for policy in known(self._space, self._name):
            # Never measured or measured badly, the model prices it all the same.
            times.setdefault(policy, (math.nan, (math.nan, math.nan)))
        priced = priced_by(model, self._space, times)
        found = {
            "network": self._name,
            "bound": self._goal.bound,
            "candidates": self._best(priced, self._goal.bound, self._args.candidates),
        }
        (self._folder / "candidates.json").write_text(json.dumps(found, indent=1))
        return found

    def _best(self, priced: list[Priced], bound: float, count: int) -> list[dict[str, Any]]:
        inside = [p for p in priced if _LEAST_USED * bound <= p.predicted <= MARGIN * bound]
        inside.sort(key=lambda p: -p.macs)
        scored = []
        for one in inside[:_SCORED]:
            made = self._scorer.compress(one.policy)
            evaluation = self._scorer.score_compressed(made)
            scored.append((evaluation.score, float(evaluation.top1 or 0.0), one, made))
            print(
                f"{self._name} {one.policy.digest}: {one.ratio:.3f}, predicted {one.predicted:.3f}, "
                f"score {evaluation.score:.3f}",
                flush=True,
            )
        scored.sort(key=lambda item: -item[0])
        found = []
        for number, (score, accuracy, one, made) in enumerate(scored[:count]):
            facts = self._written(f"{CANDIDATE}{number}", made)
            priced_facts = dataclasses.asdict(one)
            facts |= {
                key: priced_facts[key] for key in ("ratio", "ratio_ci95", "predicted", "macs")
            }
            found.append(facts | {"score": score, "accuracy": accuracy})
        return found

    def _written(self, name: str, made: Compressed) -> dict[str, Any]:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        # What is trained anyhow travels in half the bytes.
        save(copy.deepcopy(made.network).half(), made.plan, folder)
        return {"name": name, "dropped": len(made.plan.dropped)}
