"""The stage ``finish`` of ``benchmarks.headline`` for one network: export, measure, pick, read the test split once."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks.headline import CANDIDATE, Goal, weights_of
from benchmarks.verify_artifacts import (
    FLOAT,
    UNIFORM,
    accuracy_of,
    drop_of,
    reference_files,
    right,
)
from compressors import Compressed
from compressors.exporter import export_onnx, save_onnx
from compressors.finetuning import Recipe
from compressors.lots import RESULT_FILE, TrainingJob
from compressors.training_images import TensorImages
from latency_tables import HostFingerprint, parse_target


@dataclass(frozen=True)
class Finished:
    """A network that is ready to be measured, and what its training said."""

    name: str
    compressed: Compressed
    file: Path
    held_out: float
    training: dict[str, Any]


class Finish:
    """See the module's docstring."""

    def __init__(
        self,
        args: argparse.Namespace,
        name: str,
        goal: Goal,
        original: nn.Module,
        files: dict[str, Path],
        test: TensorImages,
    ) -> None:
        self._args, self._name, self._goal, self._original = args, name, goal, original
        self._target = parse_target("x86-ort")
        self._test, self._held_out = test, TensorImages.load(files["held_out"])
        self.folder: Path = args.work / "finished" / name
        calibration = TensorImages.load(files["calibration"])
        self._references = reference_files(original, calibration, self._target, self.folder)

    def report(self) -> dict[str, Any] | None:
        """The trained candidate that is best on held-out images within the bound."""
        found = self._trained()
        return self._report(found) if found else None

    def _trained(self) -> list[Finished]:
        folders = sorted((self._args.work / "trained").glob(f"{self._name}-{CANDIDATE}*"))
        return [
            self._finished(folder.name, folder, json.loads((folder / RESULT_FILE).read_text()))
            for folder in folders
            if (folder / RESULT_FILE).exists()
        ]

    def _finished(self, name: str, folder: Path, training: dict[str, Any]) -> Finished:
        weights = weights_of(self._args, self._name)
        job = TrainingJob(name, f"cifar_zoo:{self._name}", weights, folder, Recipe(1))
        compressed = job.begin(self._original)
        file = self.folder / name / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_onnx(export_onnx(compressed.network, compressed.plan), file)
        held_out = float(right(self._target, file, self._held_out).mean())
        print(f"{name}: {100 * held_out:.2f} % on held-out images", flush=True)
        return Finished(name, compressed, file, held_out, training)

    @cached_property
    def _reference_hits(self) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
        return {n: right(self._target, file, self._test) for n, file in self._references.items()}

    def _report(self, found: list[Finished]) -> dict[str, Any]:
        bound = self._goal.bound
        files = {**self._references, **{one.name: one.file for one in found}}
        times = self._target.measure(files, seconds=self._args.seconds)
        ratios = {one.name: times.ratio(one.name, UNIFORM) for one in found}
        inside = [one for one in found if ratios[one.name] <= bound]
        winner = (
            max(inside, key=lambda one: one.held_out)
            if inside
            else min(found, key=lambda one: ratios[one.name])
        )
        hits = right(self._target, winner.file, self._test)
        drop = drop_of(self._reference_hits[FLOAT], hits)
        return {
            "network": self._name,
            "candidate": winner.name,
            "data": "CIFAR-10, JPEG re-encoded; test split",
            "target": "x86-ort, 1 thread, batch 1, default session options",
            "bound": bound,
            "met": bool(inside) and drop["estimate"] <= self._goal.max_drop,
            **accuracy_of(hits),
            "accuracy_drop": drop,
            "latency_ratio": {
                "estimate": ratios[winner.name],
                "ci95": list(times.ratio_ci95(winner.name, UNIFORM)),
            },
            "latency_ms": {name: times[name].p50_ms for name in (FLOAT, UNIFORM, winner.name)},
            "size_bytes": winner.file.stat().st_size,
            "references": {n: accuracy_of(h) for n, h in self._reference_hits.items()},
            "held_out_accuracy": winner.held_out,
            "dropped_blocks": list(winner.compressed.plan.dropped),
            "training": winner.training,
            "candidates": [
                {"name": one.name, "held_out": one.held_out, "of_uniform_int8": ratios[one.name]}
                for one in found
            ],
            "measured": {
                "time": times.time,
                "waited": times.waited,
                "host": dataclasses.asdict(HostFingerprint.here()),
            },
            "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
            "files": [str(winner.file.relative_to(self.folder))],
        }
